/* SPDX-License-Identifier: Apache-2.0 */
/* One test per defect of a GGUF file: each must be refused with a status and a message that names it. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "model/gguf.h"

/* ---- A file, written byte by byte */

struct file {
    _Alignas(64) uint8_t data[4096];
    size_t n;
};

static void put(struct file *f, const void *data, size_t n)
{
    memcpy(f->data + f->n, data, n);
    f->n += n;
}

static void put_u32(struct file *f, uint32_t x)
{
    put(f, &x, sizeof x);
}

static void put_u64(struct file *f, uint64_t x)
{
    put(f, &x, sizeof x);
}

static void put_text(struct file *f, const char *s)
{
    put_u64(f, strlen(s));
    put(f, s, strlen(s));
}

static void put_header(struct file *f, uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    f->n = 0;
    put(f, "GGUF", 4);
    put_u32(f, version);
    put_u64(f, n_tensors);
    put_u64(f, n_keys);
}

static void put_key_u32(struct file *f, const char *key, uint32_t value)
{
    put_text(f, key);
    put_u32(f, NKV_GGUF_U32);
    put_u32(f, value);
}

static void put_tensor(struct file *f, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t type,
                       uint64_t offset)
{
    put_text(f, name);
    put_u32(f, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put_u64(f, dims[i]);
    put_u32(f, type);
    put_u64(f, offset);
}

static void put_data(struct file *f, size_t n)
{
    f->n = nkv_round_up(f->n, 32);
    for (size_t i = 0; i < n; i++)
        f->data[f->n++] = (uint8_t)i;
}

static const uint64_t dims_4x2[] = {4, 2};

/* Two keys, an array of strings, two tensors of 32 bytes. */
static void put_whole(struct file *f)
{
    memset(f, 0, sizeof *f);
    put_header(f, 3, 2, 3);
    put_key_u32(f, "answer", 42);
    put_text(f, "names");
    put_u32(f, NKV_GGUF_ARRAY);
    put_u32(f, NKV_GGUF_STRING);
    put_u64(f, 2);
    put_text(f, "one");
    put_text(f, "three");
    put_text(f, "title");
    put_u32(f, NKV_GGUF_STRING);
    put_text(f, "a file");
    put_tensor(f, "a", 2, dims_4x2, 0, 0);
    put_tensor(f, "b", 2, dims_4x2, 0, 32);
    put_data(f, 64);
}

static void refuse(const struct file *f, int status, const char *part)
{
    struct nkv_gguf *gguf = NULL;
    int got = nkv_gguf_open_memory(f->data, f->n, "bad.gguf", &gguf);

    if (got != status || !strstr(nkv_last_error(), part) || !strstr(nkv_last_error(), "bad.gguf"))
        fail_msg("got %s \"%s\", wanted %s with \"%s\"", nkv_status_name(got), nkv_last_error(),
                 nkv_status_name(status), part);
    assert_null(gguf);
}

/* ---- A good file */

static void check_whole(const struct nkv_gguf *gguf)
{
    struct nkv_gguf_array names;
    const struct nkv_gguf_tensor *b;
    const uint8_t *cursor;
    struct nkv_str s;
    uint32_t answer;

    assert_int_equal(nkv_gguf_u32(gguf, "answer", &answer), 0);
    assert_int_equal(answer, 42);
    assert_int_equal(nkv_gguf_str(gguf, "title", &s), 0);
    assert_memory_equal(s.data, "a file", s.bytes);
    assert_int_equal(nkv_gguf_array(gguf, "names", NKV_GGUF_STRING, &names), 0);
    assert_int_equal(names.n, 2);
    cursor = names.data;
    nkv_gguf_next_str(&cursor);
    s = nkv_gguf_next_str(&cursor);
    assert_int_equal(s.bytes, 5);
    assert_memory_equal(s.data, "three", 5);
    assert_int_equal(nkv_gguf_n_tensors(gguf), 2);
    b = nkv_gguf_tensor(gguf, "b");
    assert_non_null(b);
    assert_int_equal(b->dims[0], 4);
    assert_int_equal(b->dims[1], 2);
    assert_int_equal(b->dims[3], 1);
    assert_int_equal(b->bytes, 32);
    assert_int_equal(*(const uint8_t *)b->data, 32);
    assert_null(nkv_gguf_tensor(gguf, "c"));
    assert_null(nkv_gguf_tensor(gguf, ""));
}

static void test_whole(void **state)
{
    char path[] = "/tmp/nearkv-gguf-XXXXXX";
    int fd = mkstemp(path);
    struct file f;
    struct nkv_gguf *gguf;

    (void)state;
    put_whole(&f);
    assert_int_equal(nkv_gguf_open_memory(f.data, f.n, "memory", &gguf), 0);
    check_whole(gguf);
    nkv_gguf_close(gguf);
    assert_int_equal(write(fd, f.data, f.n), (int)f.n);
    close(fd);
    assert_int_equal(nkv_gguf_open(path, &gguf), 0);
    assert_string_equal(nkv_gguf_name(gguf), path);
    check_whole(gguf);
    nkv_gguf_close(gguf);
    unlink(path);
    f.data[4] = 2;
    assert_int_equal(nkv_gguf_open_memory(f.data, f.n, "version 2", &gguf), 0);
    nkv_gguf_close(gguf);
}

static void test_types(void **state)
{
    static const struct {
        uint32_t type;
        uint64_t bytes;
        enum nkv_dtype dtype;
    } cases[] = {{0, 256, NKV_F32}, {1, 128, NKV_F16}, {30, 128, NKV_BF16}, {8, 68, NKV_Q8_0}};
    const uint64_t dims[] = {32, 2};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct file f = {.n = 0};
        struct nkv_gguf *gguf;

        put_header(&f, 3, 1, 0);
        put_tensor(&f, "t", 2, dims, cases[i].type, 0);
        put_data(&f, cases[i].bytes);
        assert_int_equal(nkv_gguf_open_memory(f.data, f.n, "types", &gguf), 0);
        assert_int_equal(nkv_gguf_tensor(gguf, "t")->bytes, cases[i].bytes);
        assert_int_equal(nkv_gguf_tensor(gguf, "t")->dtype, cases[i].dtype);
        nkv_gguf_close(gguf);
    }
}

/* ---- Defects of the whole file */

static void test_truncated_anywhere(void **state)
{
    struct file f;
    struct nkv_gguf *gguf = NULL;

    (void)state;
    put_whole(&f);
    for (size_t n = 0; n < f.n; n++) {
        uint8_t *copy = malloc(n ? n : 1); /* exactly n bytes: a sanitizer sees any read beyond them */
        int status;

        memcpy(copy, f.data, n);
        status = nkv_gguf_open_memory(copy, n, "cut", &gguf);
        if (status != NKV_EFORMAT)
            fail_msg("%zu of %zu bytes: %s", n, f.n, nkv_status_name(status));
        free(copy);
    }
}

/* Every single-byte change opens or is refused: nothing in between (run under a sanitizer). */
static void test_any_byte_changed(void **state)
{
    static const uint8_t values[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    struct file f;

    (void)state;
    put_whole(&f);
    for (size_t i = 0; i < f.n; i++) {
        const uint8_t before = f.data[i];

        for (size_t v = 0; v < sizeof values; v++) {
            struct nkv_gguf *gguf = NULL;

            f.data[i] = values[v];
            if (nkv_gguf_open_memory(f.data, f.n, "changed", &gguf) == 0)
                nkv_gguf_close(gguf);
        }
        f.data[i] = before;
    }
}

static void test_not_gguf(void **state)
{
    struct file f;
    struct nkv_gguf *gguf;

    (void)state;
    put_whole(&f);
    f.data[3] = 'g';
    refuse(&f, NKV_EFORMAT, "47 47 55 67");
    put_whole(&f);
    f.data[4] = 1;
    refuse(&f, NKV_ENOTSUP, "version 1");
    f.data[4] = 4;
    refuse(&f, NKV_ENOTSUP, "version 4");
    f.data[4] = 0;
    f.data[7] = 3;
    refuse(&f, NKV_ENOTSUP, "big-endian");
    f.n = 0;
    refuse(&f, NKV_EFORMAT, "truncated");
    assert_int_equal(nkv_gguf_open_memory(f.data + 1, 100, "odd", &gguf), NKV_EINVAL);
}

static void test_unreadable_files(void **state)
{
    char path[] = "/tmp/nearkv-gguf-XXXXXX";
    struct nkv_gguf *gguf;

    (void)state;
    assert_int_equal(nkv_gguf_open("/nonexistent/model.gguf", &gguf), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "/nonexistent/model.gguf"));
    assert_int_equal(nkv_gguf_open("/tmp", &gguf), NKV_EIO);
    close(mkstemp(path));
    assert_int_equal(nkv_gguf_open(path, &gguf), NKV_EFORMAT);
    assert_non_null(strstr(nkv_last_error(), "empty"));
    unlink(path);
}

/* ---- Defects of counts, keys and values */

static void test_oversized_counts(void **state)
{
    static const uint64_t counts[] = {1000, UINT64_C(1) << 32, UINT64_C(1) << 61, UINT64_MAX};
    struct file f;

    (void)state;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        put_whole(&f);
        memcpy(f.data + 8, &counts[i], 8);
        refuse(&f, NKV_EFORMAT, "tensors do not fit");
        put_whole(&f);
        memcpy(f.data + 16, &counts[i], 8);
        refuse(&f, NKV_EFORMAT, "keys do not fit");
    }
}

static void test_bad_keys(void **state)
{
    struct file f = {.n = 0};

    (void)state;
    put_header(&f, 3, 0, 1);
    put_u64(&f, UINT64_MAX - 3);
    put_data(&f, 64);
    refuse(&f, NKV_EFORMAT, "a key needs 18446744073709551612 bytes");
    put_header(&f, 3, 0, 1);
    put_key_u32(&f, "", 1);
    refuse(&f, NKV_EFORMAT, "empty");
    put_header(&f, 3, 0, 2);
    put_key_u32(&f, "twin", 1);
    put_key_u32(&f, "twin", 2);
    refuse(&f, NKV_EFORMAT, "key twin appears twice");
    put_header(&f, 3, 0, 1);
    put_text(&f, "odd");
    put_u32(&f, 13);
    put_data(&f, 64);
    refuse(&f, NKV_EFORMAT, "key odd has unknown type 13");
    put_header(&f, 3, 0, 1);
    put_text(&f, "truth");
    put_u32(&f, NKV_GGUF_BOOL);
    put(&f, "\002", 1);
    refuse(&f, NKV_EFORMAT, "key truth is a bool of value 2");
    put_header(&f, 3, 0, 1);
    put_text(&f, "long");
    put_u32(&f, NKV_GGUF_STRING);
    put_u64(&f, 1u << 20);
    put_data(&f, 64);
    refuse(&f, NKV_EFORMAT, "a string needs 1048576 bytes");
}

static void put_array(struct file *f, uint32_t type, uint64_t n)
{
    put_header(f, 3, 0, 1);
    put_text(f, "list");
    put_u32(f, NKV_GGUF_ARRAY);
    put_u32(f, type);
    put_u64(f, n);
}

static void test_bad_arrays(void **state)
{
    struct file f = {.n = 0};

    (void)state;
    put_array(&f, NKV_GGUF_ARRAY, 1);
    put_data(&f, 64);
    refuse(&f, NKV_ENOTSUP, "key list is an array of arrays");
    put_array(&f, 77, 1);
    put_data(&f, 64);
    refuse(&f, NKV_EFORMAT, "unknown type 77");
    put_array(&f, NKV_GGUF_U32, UINT64_C(1) << 62);
    put_data(&f, 64);
    refuse(&f, NKV_EFORMAT, "key list has 4611686018427387904 elements");
    put_array(&f, NKV_GGUF_STRING, 2);
    put_text(&f, "x");
    put_u64(&f, UINT64_MAX);
    refuse(&f, NKV_EFORMAT, "string 1 of 2");
    put_header(&f, 3, 0, 1);
    put_text(&f, "list");
    put_u32(&f, NKV_GGUF_ARRAY);
    put_u32(&f, NKV_GGUF_U32);
    refuse(&f, NKV_EFORMAT, "an array's length");
}

static void test_alignment(void **state)
{
    static const uint32_t bad[] = {0, 1, 4, 24, 33, 1u << 21, UINT32_MAX};
    struct file f = {.n = 0};
    struct nkv_gguf *gguf;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_header(&f, 3, 0, 1);
        put_key_u32(&f, "general.alignment", bad[i]);
        refuse(&f, NKV_EFORMAT, "general.alignment");
    }
    put_header(&f, 3, 0, 1);
    put_text(&f, "general.alignment");
    put_u32(&f, NKV_GGUF_STRING);
    put_text(&f, "32");
    refuse(&f, NKV_EFORMAT, "general.alignment is of type string");
    put_header(&f, 3, 1, 1);
    put_key_u32(&f, "general.alignment", 64);
    put_tensor(&f, "t", 2, dims_4x2, 0, 32);
    put_data(&f, 256);
    refuse(&f, NKV_EFORMAT, "tensor t: its offset 32 is not a multiple of the alignment 64");
    put_header(&f, 3, 1, 1);
    put_key_u32(&f, "general.alignment", 64);
    put_tensor(&f, "t", 2, dims_4x2, 0, 64);
    put_data(&f, 256);
    assert_int_equal(nkv_gguf_open_memory(f.data, f.n, "aligned", &gguf), 0);
    assert_int_equal((uintptr_t)nkv_gguf_tensor(gguf, "t")->data % 64, 0);
    nkv_gguf_close(gguf);
}

/* ---- Defects of tensors */

static void refuse_tensor(uint32_t n_dims, const uint64_t *dims, uint32_t type, uint64_t offset, int status,
                          const char *part)
{
    struct file f = {.n = 0};

    put_header(&f, 3, 1, 0);
    put_tensor(&f, "the.tensor", n_dims, dims, type, offset);
    put_data(&f, 512);
    refuse(&f, status, "the.tensor");
    refuse(&f, status, part);
}

static void test_bad_tensors(void **state)
{
    static const uint64_t zero[] = {4, 0}, huge[] = {UINT64_C(1) << 33, UINT64_C(1) << 33}, big[] = {1000, 1000};
    static const uint64_t wrap[] = {UINT64_C(1) << 62, 4}, odd[] = {33, 2}, five[] = {1, 1, 1, 1, 1};

    (void)state;
    refuse_tensor(0, five, 0, 0, NKV_EFORMAT, "0 dimensions");
    refuse_tensor(5, five, 0, 0, NKV_EFORMAT, "5 dimensions");
    refuse_tensor(2, zero, 0, 0, NKV_EFORMAT, "dimension 1 is 0");
    refuse_tensor(2, huge, 0, 0, NKV_EFORMAT, "larger than the file");
    refuse_tensor(2, wrap, 0, 0, NKV_EFORMAT, "larger than the file");
    refuse_tensor(2, wrap, 8, 0, NKV_EFORMAT, "larger than the file");
    refuse_tensor(2, big, 0, 0, NKV_EFORMAT, "larger than the file");
    refuse_tensor(2, odd, 8, 0, NKV_EFORMAT, "not whole blocks of 32");
    refuse_tensor(2, dims_4x2, 0, 1024, NKV_EFORMAT, "past the end");
    refuse_tensor(2, dims_4x2, 0, 512, NKV_EFORMAT, "past the end");
    refuse_tensor(2, dims_4x2, 0, UINT64_MAX - 31, NKV_EFORMAT, "past the end");
    refuse_tensor(2, dims_4x2, 0, 16, NKV_EFORMAT, "not a multiple of the alignment");
    refuse_tensor(2, dims_4x2, 2, 0, NKV_ENOTSUP, "Q4_0 (2)");
    refuse_tensor(2, dims_4x2, 12, 0, NKV_ENOTSUP, "Q4_K (12)");
    refuse_tensor(2, dims_4x2, 4000, 0, NKV_ENOTSUP, "unknown (4000)");
}

static void test_contradictory_tensors(void **state)
{
    struct file f = {.n = 0};

    (void)state;
    put_header(&f, 3, 2, 0);
    put_tensor(&f, "twin", 2, dims_4x2, 0, 0);
    put_tensor(&f, "twin", 2, dims_4x2, 0, 32);
    put_data(&f, 64);
    refuse(&f, NKV_EFORMAT, "tensor twin appears twice");
    put_header(&f, 3, 2, 0);
    put_tensor(&f, "x", 2, dims_4x2, 0, 0);
    put_tensor(&f, "y", 2, dims_4x2, 0, 0);
    put_data(&f, 64);
    refuse(&f, NKV_EFORMAT, "overlap");
    put_header(&f, 3, 2, 0);
    put_tensor(&f, "second", 1, (const uint64_t[]){8}, 0, 32);
    put_tensor(&f, "first", 1, (const uint64_t[]){9}, 0, 0);
    put_data(&f, 64);
    refuse(&f, NKV_EFORMAT, "tensors first and second overlap");
    put_header(&f, 3, 1, 0);
    put_tensor(&f, "", 2, dims_4x2, 0, 0);
    put_data(&f, 64);
    refuse(&f, NKV_EFORMAT, "name is empty");
}

/* ---- Lookups */

static void test_numbers_of_any_width(void **state)
{
    static const struct {
        uint32_t type;
        uint64_t bits;
        uint32_t n_bytes;
        int status;
        uint32_t value;
    } cases[] = {
        {NKV_GGUF_U8, 200, 1, 0, 200},
        {NKV_GGUF_I8, 0xff, 1, NKV_EFORMAT, 0},
        {NKV_GGUF_I8, 0x7f, 1, 0, 127},
        {NKV_GGUF_U16, 0xffff, 2, 0, 65535},
        {NKV_GGUF_I16, 0x8000, 2, NKV_EFORMAT, 0},
        {NKV_GGUF_I32, 7, 4, 0, 7},
        {NKV_GGUF_I32, 0xffffffff, 4, NKV_EFORMAT, 0},
        {NKV_GGUF_U64, UINT64_C(1) << 32, 8, NKV_EFORMAT, 0},
        {NKV_GGUF_U64, 0xffffffff, 8, 0, UINT32_MAX},
        {NKV_GGUF_I64, UINT64_MAX, 8, NKV_EFORMAT, 0},
        {NKV_GGUF_I64, 9, 8, 0, 9},
        {NKV_GGUF_BOOL, 1, 1, 0, 1},
        {NKV_GGUF_FLOAT, 0x3f800000, 4, NKV_EFORMAT, 0},
        {NKV_GGUF_DOUBLE, 0, 8, NKV_EFORMAT, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct file f = {.n = 0};
        struct nkv_gguf *gguf;
        uint32_t value = 0;

        put_header(&f, 3, 0, 1);
        put_text(&f, "number");
        put_u32(&f, cases[i].type);
        put(&f, &cases[i].bits, cases[i].n_bytes);
        assert_int_equal(nkv_gguf_open_memory(f.data, f.n, "numbers", &gguf), 0);
        assert_int_equal(nkv_gguf_u32(gguf, "number", &value), cases[i].status);
        assert_int_equal(value, cases[i].value);
        nkv_gguf_close(gguf);
    }
}

static void test_wrong_lookups(void **state)
{
    struct file f;
    struct nkv_gguf *gguf;
    struct nkv_gguf_array array;
    struct nkv_str s;
    uint32_t u = 5;
    float x = 5;
    bool b = true;

    (void)state;
    put_whole(&f);
    assert_int_equal(nkv_gguf_open_memory(f.data, f.n, "lookups", &gguf), 0);
    assert_int_equal(nkv_gguf_u32(gguf, "nothing", &u), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "key nothing is missing"));
    assert_int_equal(nkv_gguf_u32(gguf, "title", &u), NKV_EFORMAT);
    assert_int_equal(nkv_gguf_f32(gguf, "answer", &x), NKV_EFORMAT);
    assert_int_equal(nkv_gguf_bool(gguf, "answer", &b), NKV_EFORMAT);
    assert_int_equal(nkv_gguf_str(gguf, "names", &s), NKV_EFORMAT);
    assert_int_equal(nkv_gguf_array(gguf, "names", NKV_GGUF_U32, &array), NKV_EFORMAT);
    assert_non_null(strstr(nkv_last_error(), "array of string, not of u32"));
    assert_int_equal(nkv_gguf_array(gguf, "answer", NKV_GGUF_U32, &array), NKV_EFORMAT);
    assert_true(nkv_gguf_has(gguf, "names") && !nkv_gguf_has(gguf, "name"));
    assert_true(u == 5 && x == 5 && b);
    nkv_gguf_close(gguf);
}

static void test_every_allocation_failing(void **state)
{
    struct file f;
    struct nkv_gguf *gguf = NULL;
    int status = NKV_ENOMEM;
    uint64_t n;

    (void)state;
    put_whole(&f);
    for (n = 1; status == NKV_ENOMEM; n++) {
        nkv_mem_fail_at(n);
        status = nkv_gguf_open_memory(f.data, f.n, "memory", &gguf);
    }
    nkv_mem_fail_at(0);
    assert_int_equal(status, 0);
    assert_true(n > 5);
    nkv_gguf_close(gguf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_truncated_anywhere),
        cmocka_unit_test(test_any_byte_changed),
        cmocka_unit_test(test_not_gguf),
        cmocka_unit_test(test_unreadable_files),
        cmocka_unit_test(test_oversized_counts),
        cmocka_unit_test(test_bad_keys),
        cmocka_unit_test(test_bad_arrays),
        cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_contradictory_tensors),
        cmocka_unit_test(test_numbers_of_any_width),
        cmocka_unit_test(test_wrong_lookups),
        cmocka_unit_test(test_every_allocation_failing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
