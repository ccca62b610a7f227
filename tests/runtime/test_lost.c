/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Beside a device that is lost: what concerns only others is done. A sequence moves between them, and a session on one
 * of them is taken up. What the lost one alone could answer is refused with the reason why it is lost.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <nearkv/device.h>

#include "device/server.h"
#include "runtime/rig.h"

#define CAPACITY  ((uint64_t)8 << 20)
#define N_DEVICES 3u
#define LENGTH    200u

/* Device 0 is a process, which can be killed; the others are of this process. */
static void open_rig(struct rig *rig, struct server *server)
{
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F16), .capacity_bytes = CAPACITY, .n_threads = 1};
    struct nkv_context_options options = {
        .size = sizeof options, .shape = config.shape, .devices = rig->devices, .n_devices = N_DEVICES};
    struct nkv_device_caps caps = {.size = sizeof caps};

    server_open(server, true, CAPACITY);
    *rig = (struct rig){.shape = config.shape, .n_devices = N_DEVICES};
    for (uint32_t i = 0; i < N_DEVICES; i++) {
        if (nkv_device_open(i == 0 ? server->spec : "cpu", &config, &rig->devices[i]) < 0)
            fail_msg("%s", nkv_last_error());
        assert_int_equal(rig->devices[i]->ops->caps(rig->devices[i], &caps), 0);
        config.capacity_bytes = caps.capacity_bytes; /* so that they are filled in turn */
    }
    assert_int_equal(nkv_context_open(&options, &rig->context), 0);
}

static void close_rig(struct rig *rig, struct server *server)
{
    rig_close(rig);
    server_close(server);
}

/* The device is killed, and a sequence of its finds out. */
static void lose(struct rig *rig, struct server *server, struct rig_seq *s)
{
    server_kill(server);
    (void)rig_decode(rig, s);
    assert_int_equal(nkv_seq_status(s->seq), NKV_EDEVICE);
}

static void back(struct rig *rig, struct server *server)
{
    server_open_at(server, true, CAPACITY);
    assert_true(nkv_context_recover(rig->context, 0) > 0);
}

static void open_on(struct rig *rig, uint32_t device, struct rig_seq *s)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 400, 160, NKV_SELECT_LAYER);
    struct nkv_seq *seq = NULL;

    if (nkv_seq_open(rig->context, &so, &seq))
        fail_msg("%s", nkv_last_error());
    assert_int_equal(nkv_seq_device(seq), device);
    rig_seq_init(s, seq, 1);
    assert_int_equal(rig_prefill(rig, s, LENGTH, 128), 0);
}

static void close_seq(struct rig_seq *s)
{
    nkv_seq_close(s->seq);
    rig_seq_free(s);
}

static void a_sequence_moves_between_others(void **state)
{
    static float stayed[RIG_LAYERS * RIG_ROW];
    struct server server;
    struct rig_seq s[2];
    struct rig rig;

    (void)state;
    open_rig(&rig, &server);
    for (uint32_t i = 0; i < 2; i++)
        open_on(&rig, i, &s[i]);
    lose(&rig, &server, &s[0]);
    assert_int_equal(rig_decode(&rig, &s[1]), 0);
    memcpy(stayed, s[1].last, sizeof stayed);
    assert_int_equal(nkv_seq_truncate(s[1].seq, LENGTH), 0);
    s[1].length = LENGTH;
    if (nkv_seq_migrate(s[1].seq, 2, NULL, NULL))
        fail_msg("%s", nkv_last_error());
    assert_int_equal(nkv_seq_device(s[1].seq), 2);
    assert_int_equal(rig_decode(&rig, &s[1]), 0);
    assert_memory_equal(s[1].last, stayed, sizeof stayed);
    assert_int_equal(nkv_seq_migrate(s[1].seq, 0, NULL, NULL), NKV_EDEVICE);
    assert_int_equal(nkv_seq_device(s[1].seq), 2);
    close_seq(&s[0]);
    close_seq(&s[1]);
    back(&rig, &server);
    close_rig(&rig, &server);
}

static int open_session(struct rig *rig, const char *name, struct nkv_seq **seq_out,
                        struct nkv_session_result *result_out)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 400, 160, NKV_SELECT_LAYER);
    int32_t ids[LENGTH];
    struct nkv_session_options options = {
        .size = sizeof options, .name = name, .model = 1, .tokens = ids, .n_tokens = LENGTH};

    for (uint32_t i = 0; i < LENGTH; i++)
        ids[i] = (int32_t)i;
    return nkv_session_open(rig->context, &so, &options, seq_out, result_out);
}

/* A session on device 1, fed but for the last token of its prompt, and closed: it stays. */
static void leave_session(struct rig *rig, const char *name)
{
    struct nkv_session_result result;
    struct nkv_seq *seq = NULL;
    struct rig_seq s;

    if (open_session(rig, name, &seq, &result))
        fail_msg("%s", nkv_last_error());
    assert_int_equal(nkv_seq_device(seq), 1);
    rig_seq_init(&s, seq, 1);
    for (int32_t id = 0; id < (int32_t)LENGTH - 1; id++) {
        assert_int_equal(nkv_seq_note_tokens(seq, &id, 1), 0);
        assert_int_equal(rig_decode(rig, &s), 0);
    }
    close_seq(&s);
}

static void a_session_on_another_is_taken_up(void **state)
{
    struct nkv_session_info info;
    struct nkv_session_result result;
    struct nkv_seq *seq = NULL;
    struct server server;
    struct rig_seq first;
    struct rig rig;

    (void)state;
    open_rig(&rig, &server);
    open_on(&rig, 0, &first);
    leave_session(&rig, "kept");
    lose(&rig, &server, &first);
    assert_int_equal(nkv_session_find(rig.context, "kept", &info), 0);
    assert_int_equal(info.device, 1);
    if (open_session(&rig, "kept", &seq, &result))
        fail_msg("%s", nkv_last_error());
    assert_int_equal(result.how, NKV_SESSION_RESUMED);
    assert_int_equal(result.n_reused, LENGTH - 1);
    nkv_seq_close(seq);

    /* whether the lost one has a session of that name nobody knows, nor what else it has */
    assert_int_equal(open_session(&rig, "other", &seq, &result), NKV_EDEVICE);
    assert_non_null(strstr(nkv_last_error(), "its process ended"));
    assert_int_equal(nkv_session_find(rig.context, "other", &info), NKV_EDEVICE);
    assert_int_equal(nkv_session_list(rig.context, 0, &info, 1), NKV_EDEVICE);
    assert_int_equal(nkv_session_remove(rig.context, "kept"), 0);
    close_seq(&first);
    back(&rig, &server);
    assert_int_equal(open_session(&rig, "other", &seq, &result), 0);
    assert_int_equal(result.how, NKV_SESSION_NEW);
    nkv_seq_close(seq);
    assert_int_equal(nkv_session_remove(rig.context, "other"), 0);
    close_rig(&rig, &server);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sequence_moves_between_others),
        cmocka_unit_test(a_session_on_another_is_taken_up),
    };

    if (argc == 4)
        return server_role(argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
