/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admission on memory that keeps pages and digests apart, where bytes that are free need not be pages that are free:
 * a device that has no page left is passed over, one that has no digest chunk left refuses and the next is asked.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <unistd.h>

#include <nearkv/device.h>

#include "runtime/rig.h"

#define FIRST_ID 1000u /* of what "another client" holds: ids that the context does not come to */

static char directory[64];

static int make_directory(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/nearkv-room-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int remove_directory(void **state)
{
    char path[80];

    (void)state;
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%d", directory, i);
        (void)unlink(path);
    }
    return rmdir(directory);
}

/* Two devices on files of 4 MiB and a context over them. */
static void open_files(struct rig *rig, enum nkv_kv_parallel kv_parallel)
{
    struct nkv_device_config config = {.size = sizeof config, .shape = rig_shape(NKV_F16), .n_threads = 1};
    struct nkv_context_options options = {.size = sizeof options,
                                          .shape = config.shape,
                                          .devices = rig->devices,
                                          .n_devices = 2,
                                          .max_batch = 4,
                                          .max_tokens = 512,
                                          .kv_parallel = kv_parallel};

    *rig = (struct rig){.shape = config.shape, .n_devices = 2};
    for (int i = 0; i < 2; i++) {
        char memory[96];

        snprintf(memory, sizeof memory, "file:%s/%d:4M", directory, i);
        config.memory = memory;
        assert_int_equal(nkv_device_open("cpu", &config, &rig->devices[i]), 0);
    }
    assert_int_equal(nkv_context_open(&options, &rig->context), 0);
}

static struct nkv_device_stat stat_of(const struct rig *rig, uint32_t i)
{
    struct nkv_device_stat stat;

    assert_int_equal(rig->devices[i]->ops->stat(rig->devices[i], &stat), 0);
    return stat;
}

/* As another client does, of which this context knows nothing. */
static int occupy(struct rig *rig, uint32_t device, uint32_t id, uint32_t n_pages, uint16_t flags)
{
    struct nkv_cmd cmd = {.op = NKV_OP_SEQ_OPEN, .seq = id, .n_tokens = n_pages * RIG_PAGE, .flags = flags};
    struct nkv_device *d = rig->devices[device];
    struct nkv_cqe cqe;

    assert_int_equal(d->ops->submit(d, &cmd, 1), 0);
    assert_int_equal(d->ops->reap(d, &cqe, 1, 1), 1);
    return cqe.res;
}

/* Only `left` pages are free then, and room for the digests of all. */
static void take_pages(struct rig *rig, uint32_t device, uint32_t left)
{
    assert_int_equal(occupy(rig, device, FIRST_ID, stat_of(rig, device).n_free_pages - left, NKV_NO_DIGEST), 0);
    assert_int_equal(stat_of(rig, device).n_free_pages, left);
}

static void take_chunks(struct rig *rig, uint32_t device)
{
    uint32_t id = FIRST_ID;

    while (occupy(rig, device, id, 1, 0) == 0)
        id++;
    assert_true(id > FIRST_ID && stat_of(rig, device).n_free_pages > 100);
}

static void pages_run_out_before_bytes(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 20 * RIG_PAGE, 4 * RIG_PAGE, NKV_SELECT_LAYER);
    struct nkv_seq *seq;
    struct rig rig;

    (void)state;
    open_files(&rig, NKV_KV_DATA);
    take_pages(&rig, 0, 20);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    assert_int_equal(nkv_seq_device(seq), 0); /* just enough */
    nkv_seq_close(seq);
    so.max_tokens += 1;
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    assert_int_equal(nkv_seq_device(seq), 1);
    assert_int_equal(nkv_seq_migrate(seq, 0, NULL, NULL), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "left: close other sequences there"));
    nkv_seq_close(seq);
    take_pages(&rig, 1, 10);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "on one device: the most that is free is 0.2 MiB"));
    assert_int_equal(nkv_seq_can_fit(rig.context, &so), 0);
    rig_close(&rig);
}

static void a_group_needs_pages_everywhere(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 30 * RIG_PAGE, 4 * RIG_PAGE, NKV_SELECT_LAYER);
    struct nkv_seq *seq;
    struct rig rig;

    (void)state;
    open_files(&rig, NKV_KV_CONTEXT);
    take_pages(&rig, 1, 14);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "over 2 devices (cp) need"));
    assert_non_null(strstr(nkv_last_error(), "on device 1 (cpu"));
    so.max_tokens = 28 * RIG_PAGE;
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_close(&rig);
}

static void the_next_is_asked_after_a_refusal(void **state)
{
    static const enum nkv_kv_parallel mappings[] = {NKV_KV_DATA, NKV_KV_AUTO};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 3 * RIG_PAGE, 3 * RIG_PAGE, NKV_SELECT_LAYER);

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct nkv_seq *seq, *other;
        struct rig rig;

        open_files(&rig, mappings[i]);
        take_chunks(&rig, 0);
        assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
        assert_int_equal(nkv_seq_device(seq), 1);
        take_chunks(&rig, 1);
        assert_int_equal(nkv_seq_open(rig.context, &so, &other), NKV_ENOSPC);
        assert_non_null(strstr(nkv_last_error(), "and 0 of "));
        assert_non_null(strstr(nkv_last_error(), "chunks are free"));
        nkv_seq_close(seq); /* and what was refused is asked again */
        assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
        assert_int_equal(nkv_seq_device(seq), 1);
        rig_close(&rig);
    }
}

/* And no member keeps its part. */
static void a_group_tells_why_it_was_refused(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 3 * RIG_PAGE, 3 * RIG_PAGE, NKV_SELECT_LAYER);
    struct nkv_seq *seq;
    struct rig rig;

    (void)state;
    open_files(&rig, NKV_KV_CONTEXT);
    take_chunks(&rig, 1);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "chunks are free"));
    assert_int_equal(stat_of(&rig, 0).n_sequences, 0);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_run_out_before_bytes),
        cmocka_unit_test(a_group_needs_pages_everywhere),
        cmocka_unit_test(the_next_is_asked_after_a_refusal),
        cmocka_unit_test(a_group_tells_why_it_was_refused),
    };

    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
