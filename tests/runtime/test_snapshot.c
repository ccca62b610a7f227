/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions as files: what comes back decodes to the same bits; a file with one wrong bit or byte too few is refused; a
 * device that is full, of another shape, or that fails a command is left as it was, and so is the file's name.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/rig.h"

#define LENGTH 300u
#define MODEL  UINT64_C(0x8000000000000001)

static char directory[] = "/tmp/nkv-snapshot-XXXXXX", path[64], other_path[64];

static int make_directory(void **state)
{
    (void)state;
    if (!mkdtemp(directory))
        return -1;
    snprintf(path, sizeof path, "%s/a", directory);
    snprintf(other_path, sizeof other_path, "%s/b", directory);
    return 0;
}

static int remove_directory(void **state)
{
    (void)state;
    (void)unlink(path);
    (void)unlink(other_path);
    return rmdir(directory);
}

static int32_t id_of(uint32_t pos)
{
    return (int32_t)(pos * 7 + 3);
}

static void feed(struct rig *rig, struct rig_seq *s, uint32_t length, uint32_t chunk)
{
    int32_t ids[RIG_CHUNK];

    for (s->length = nkv_seq_length(s->seq); s->length < length;) {
        uint32_t n = length - s->length < chunk ? length - s->length : chunk;

        for (uint32_t i = 0; i < n; i++)
            ids[i] = id_of(s->length + i);
        assert_int_equal(nkv_seq_note_tokens(s->seq, ids, n), 0);
        assert_int_equal(rig_step(rig, &s, &n, 1), 0);
    }
}

/* mode png: the compute side takes part. */
static int open_session(struct rig *rig, const char *name, uint32_t n, struct nkv_seq **seq_out, uint32_t *n_reused_out)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNG, 500, 160, NKV_SELECT_LAYER);
    struct nkv_session_result result;
    int32_t ids[500];
    struct nkv_session_options options = {
        .size = sizeof options, .name = name, .model = MODEL, .tokens = ids, .n_tokens = n};
    int status;

    for (uint32_t i = 0; i < n; i++)
        ids[i] = id_of(i);
    status = nkv_session_open(rig->context, &so, &options, seq_out, &result);
    if (status == 0)
        *n_reused_out = result.n_reused;
    return status;
}

static void open_rig(struct rig *rig, enum nkv_dtype dtype, const char *spec, uint64_t capacity_bytes)
{
    struct rig_options options = {.dtype = dtype, .spec = spec, .capacity_bytes = capacity_bytes};

    if (rig_open(rig, &options))
        fail_msg("%s", nkv_last_error());
}

static void fill(struct rig *rig, const char *name, uint32_t length)
{
    struct nkv_seq *seq = NULL;
    uint32_t n_reused;
    struct rig_seq s;

    assert_int_equal(open_session(rig, name, length, &seq, &n_reused), 0);
    rig_seq_init(&s, seq, 1);
    feed(rig, &s, length, 128);
    nkv_seq_close(seq);
    rig_seq_free(&s);
}

static void decode(struct rig *rig, const char *name, float out[4][RIG_LAYERS * RIG_ROW])
{
    struct nkv_seq *seq = NULL;
    uint32_t n_reused = 0;
    struct rig_seq s;

    assert_int_equal(open_session(rig, name, LENGTH + 5, &seq, &n_reused), 0);
    assert_int_equal(n_reused, LENGTH);
    rig_seq_init(&s, seq, 1);
    for (uint32_t step = 0; step < 4; step++) {
        feed(rig, &s, LENGTH + 1 + step, 1);
        memcpy(out[step], s.last, sizeof out[step]);
    }
    nkv_seq_close(seq);
    rig_seq_free(&s);
}

static uint32_t n_files(void)
{
    DIR *dir = opendir(directory);
    uint32_t n = 0;

    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2;
}

static uint8_t *read_file(const char *name, size_t *bytes_out)
{
    FILE *file = fopen(name, "rb");
    struct stat info;
    uint8_t *data;

    assert_non_null(file);
    assert_int_equal(fstat(fileno(file), &info), 0);
    *bytes_out = (size_t)info.st_size;
    data = malloc(*bytes_out);
    assert_int_equal(fread(data, 1, *bytes_out, file), *bytes_out);
    fclose(file);
    return data;
}

static void write_file(const char *name, const uint8_t *data, size_t bytes)
{
    FILE *file = fopen(name, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static void what_comes_back_is_what_went(void **state)
{
    static float here[4][RIG_LAYERS * RIG_ROW], there[4][RIG_LAYERS * RIG_ROW];
    struct nkv_session_file_info info;
    struct nkv_session_info session;
    size_t bytes, again;
    uint8_t *data, *same;
    struct rig a, b;

    (void)state;
    for (enum nkv_dtype dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
        open_rig(&a, dtype, NULL, 0);
        open_rig(&b, dtype, NULL, 0);
        fill(&a, "book", LENGTH);
        assert_int_equal(nkv_session_export(a.context, "book", path, NULL, NULL), 0);
        assert_int_equal(n_files(), 1);
        assert_int_equal(nkv_session_file_info(path, &info), 0);
        assert_true(info.n_tokens == LENGTH && info.model == MODEL && info.shape.dtype == dtype);
        assert_string_equal(info.name, "book");
        if (nkv_session_import(b.context, path, NULL, NULL, NULL))
            fail_msg("%s", nkv_last_error());
        assert_int_equal(nkv_session_import(b.context, path, NULL, NULL, NULL), NKV_ESTATE);
        assert_int_equal(nkv_session_export(b.context, "book", other_path, NULL, NULL), 0);
        data = read_file(path, &bytes);
        same = read_file(other_path, &again);
        assert_int_equal(bytes, again);
        assert_true(info.file_bytes == bytes && memcmp(data, same, bytes) == 0);
        free(data);
        free(same);
        assert_int_equal(nkv_session_import(b.context, path, "twin", NULL, NULL), 0);
        assert_int_equal(nkv_session_find(b.context, "twin", &session), 0);
        assert_true(session.model == MODEL && session.n_tokens == LENGTH && !session.is_attached);
        decode(&a, "book", here);
        decode(&b, "twin", there);
        assert_memory_equal(here, there, sizeof here);
        assert_int_equal(nkv_session_remove(b.context, "twin"), 0);
        assert_int_equal(nkv_session_remove(b.context, "book"), 0);
        assert_true(rig_empty(&b));
        rig_close(&a);
        rig_close(&b);
        unlink(path);
        unlink(other_path);
    }
}

static void refused(struct rig *rig, const uint8_t *data, size_t bytes)
{
    int status;

    write_file(other_path, data, bytes);
    status = nkv_session_import(rig->context, other_path, "s", NULL, NULL);
    if (status != NKV_EFORMAT && status != NKV_ENOTSUP)
        fail_msg("%zu bytes: %s", bytes, nkv_status_name(status));
    assert_non_null(strstr(nkv_last_error(), other_path));
    assert_true(rig_empty(rig));
}

static void a_damaged_file_is_refused(void **state)
{
    uint64_t random = 1;
    size_t bytes;
    uint8_t *data;
    struct rig rig;

    (void)state;
    open_rig(&rig, NKV_F16, NULL, 0);
    fill(&rig, "s", LENGTH);
    assert_int_equal(nkv_session_export(rig.context, "s", path, NULL, NULL), 0);
    assert_int_equal(nkv_session_remove(rig.context, "s"), 0);
    data = read_file(path, &bytes);
    for (uint32_t i = 0; i < 600; i++) { /* every byte of header and trailer, some between */
        size_t at = i < 256 ? i : i < 288 ? bytes - 1 - (i - 256) : 0;

        random = random * 6364136223846793005u + 1442695040888963407u;
        if (i >= 288)
            at = (random >> 33) % bytes;
        data[at] ^= (uint8_t)(1u << (random >> 60) % 8);
        refused(&rig, data, bytes);
        data[at] ^= (uint8_t)(1u << (random >> 60) % 8);
    }
    for (size_t n = 0; n < bytes; n += n < 300 ? 37 : 9973)
        refused(&rig, data, n);
    refused(&rig, data, bytes - 1);
    data = realloc(data, bytes + 1);
    data[bytes] = 0;
    refused(&rig, data, bytes + 1);
    data[8] = 2;
    refused(&rig, data, bytes);
    assert_non_null(strstr(nkv_last_error(), "version 2"));
    free(data);
    unlink(path);
    unlink(other_path);
    rig_close(&rig);
}

/* Stops after some calls. */
static int stop(void *arg, uint64_t n_done, uint64_t n_total)
{
    uint32_t *n = arg;

    assert_true(n_done <= n_total);
    return --*n == 0;
}

static void what_fails_leaves_nothing(void **state)
{
    static const char *const ops[] = {"seq_open", "write", "seq_publish", "seq_list"};
    struct rig rig, small, other;
    char spec[64];

    (void)state;
    open_rig(&rig, NKV_F16, NULL, 0);
    fill(&rig, "s", LENGTH);
    assert_int_equal(nkv_session_export(rig.context, "none", path, NULL, NULL), NKV_ENOENT);
    assert_int_equal(nkv_session_export(rig.context, "s", "/nonexistent/a", NULL, NULL), NKV_EIO);
    assert_int_equal(nkv_session_export(rig.context, "s", directory, NULL, NULL), NKV_EINVAL);
    for (uint32_t n = 1; n < 3; n++) {
        assert_int_equal(nkv_session_export(rig.context, "s", path, stop, &(uint32_t){n}), NKV_ECANCELED);
        assert_int_equal(n_files(), 0);
    }
    assert_int_equal(nkv_session_import(rig.context, path, NULL, NULL, NULL), NKV_ENOENT);
    assert_int_equal(nkv_session_export(rig.context, "s", path, NULL, NULL), 0);

    open_rig(&other, NKV_F32, NULL, 0);
    assert_int_equal(nkv_session_import(other.context, path, NULL, NULL, NULL), NKV_EFORMAT);
    assert_non_null(strstr(nkv_last_error(), "its own shape"));
    rig_close(&other);
    open_rig(&small, NKV_F16, NULL, 50000);
    assert_int_equal(nkv_session_import(small.context, path, NULL, NULL, NULL), NKV_ENOSPC);
    assert_true(rig_empty(&small));
    rig_close(&small);
    for (size_t op = 0; op < sizeof ops / sizeof *ops; op++)
        for (uint32_t nth = 1; nth < 3; nth++) {
            snprintf(spec, sizeof spec, "fault:op=%s,n=%u:cpu", ops[op], nth);
            open_rig(&other, NKV_F16, spec, 0);
            if (nkv_session_import(other.context, path, NULL, NULL, NULL) == 0 &&
                nkv_session_remove(other.context, "s") < 0) /* the fault was still to come */
                assert_int_equal(nkv_session_remove(other.context, "s"), 0);
            assert_true(rig_empty(&other));
            rig_close(&other);
        }
    open_rig(&other, NKV_F16, NULL, 0);
    for (uint32_t n = 1; n < 4; n++)
        assert_int_equal(nkv_session_import(other.context, path, NULL, stop, &(uint32_t){n}), NKV_ECANCELED);
    assert_true(rig_empty(&other));
    rig_close(&other);
    unlink(path);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_comes_back_is_what_went),
        cmocka_unit_test(a_damaged_file_is_refused),
        cmocka_unit_test(what_fails_leaves_nothing),
    };

    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
