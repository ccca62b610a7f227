/* SPDX-License-Identifier: Apache-2.0 */
/* The needle model is a well-formed GGUF file of the stated shape and size, the same bytes every time, written whole or
 * not at all; the writer's other types come back as they were put. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nearkv/model.h>

#include "base/mem.h"
#include "kernels/kernels.h"
#include "model/gguf.h"
#include "model/gguf_write.h"
#include "model/needle.h"

static void builds_the_same_bytes_every_time(void **state)
{
    void *a, *b;
    size_t a_bytes, b_bytes;

    (void)state;
    assert_int_equal(nkv_needle_build(NKV_F16, &a, &a_bytes), 0);
    assert_int_equal(nkv_needle_build(NKV_F16, &b, &b_bytes), 0);
    assert_int_equal(a_bytes, b_bytes);
    assert_memory_equal(a, b, a_bytes);
    assert_true(a_bytes <= 5000000);
    nkv_free(a);
    nkv_free(b);
}

static void other_types_are_refused(void **state)
{
    void *data = NULL;
    size_t bytes;

    (void)state;
    assert_int_equal(nkv_needle_build(NKV_BF16, &data, &bytes), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "bf16"));
    assert_null(data);
}

static void expect_tensor(const struct nkv_gguf *gguf, const char *name, uint64_t cols, uint64_t rows,
                          enum nkv_dtype dtype)
{
    const struct nkv_gguf_tensor *t = nkv_gguf_tensor(gguf, name);

    assert_non_null(t);
    assert_int_equal(t->dims[0], cols);
    assert_int_equal(t->dims[1], rows);
    assert_int_equal(t->dtype, dtype);
}

static void opens_with_the_stated_shape(void **state)
{
    static const enum nkv_dtype dtypes[] = {NKV_F16, NKV_F32};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct nkv_gguf *gguf;
        uint32_t value;
        void *data;
        size_t bytes;

        assert_int_equal(nkv_needle_build(dtypes[i], &data, &bytes), 0);
        assert_int_equal(nkv_gguf_open_memory(data, bytes, "needle", &gguf), 0);
        assert_int_equal(nkv_gguf_n_tensors(gguf), 3 + 3 * 9);
        assert_int_equal(nkv_gguf_u32(gguf, "llama.block_count", &value), 0);
        assert_int_equal(value, 3);
        expect_tensor(gguf, "token_embd.weight", 256, 260, dtypes[i]);
        expect_tensor(gguf, "blk.2.attn_q.weight", 256, 1024, dtypes[i]);
        expect_tensor(gguf, "blk.0.attn_k.weight", 256, 256, dtypes[i]);
        expect_tensor(gguf, "blk.1.ffn_down.weight", 128, 256, dtypes[i]);
        expect_tensor(gguf, "output_norm.weight", 256, 1, NKV_F32);
        nkv_gguf_close(gguf);
        nkv_free(data);
    }
}

/* The construction relies on it: f16 rounds nothing but RoPE phases and the two scales. */
static void f16_holds_every_other_weight_exactly(void **state)
{
    struct nkv_gguf *gguf;
    void *data;
    size_t bytes;

    (void)state;
    assert_int_equal(nkv_needle_build(NKV_F32, &data, &bytes), 0);
    assert_int_equal(nkv_gguf_open_memory(data, bytes, "needle", &gguf), 0);
    for (uint64_t i = 0; i < nkv_gguf_n_tensors(gguf); i++) {
        const struct nkv_gguf_tensor *t = nkv_gguf_tensor_at(gguf, i);
        const float *w = t->data;

        for (uint64_t j = 0; j < t->dims[0] * t->dims[1]; j++) {
            bool placed = memmem(t->name.data, t->name.bytes, "attn_q", 6) ||
                          memmem(t->name.data, t->name.bytes, "attn_k", 6) || t->n_dims == 1;

            assert_true(isfinite(w[j]) && fabsf(w[j]) < 60000);
            assert_true(placed || nkv_f16_to_f32(nkv_f32_to_f16(w[j])) == w[j]);
        }
    }
    nkv_gguf_close(gguf);
    nkv_free(data);
}

/* Any two bytes' codes differ in at least 8 of 24 bits. */
static void codes_lie_far_apart(void **state)
{
    struct nkv_gguf *gguf;
    const float *embd;
    void *data;
    size_t bytes;

    (void)state;
    assert_int_equal(nkv_needle_build(NKV_F32, &data, &bytes), 0);
    assert_int_equal(nkv_gguf_open_memory(data, bytes, "needle", &gguf), 0);
    embd = nkv_gguf_tensor(gguf, "token_embd.weight")->data;
    for (int a = 0; a < 259; a++) {
        for (int b = a + 1; b < 259; b++) {
            int differ = 0;

            for (int i = 2; i < 26; i++)
                differ += embd[a * 256 + i] != embd[b * 256 + i];
            assert_true(differ >= 8);
        }
    }
    nkv_gguf_close(gguf);
    nkv_free(data);
}

static void a_failed_allocation_is_an_error(void **state)
{
    uint64_t n = 0;
    int status;

    (void)state;
    do {
        void *data = NULL;
        size_t bytes;

        nkv_mem_fail_at(++n);
        status = nkv_needle_build(NKV_F16, &data, &bytes);
        nkv_mem_fail_at(0);
        assert_true(status == 0 || (status == NKV_ENOMEM && !data));
        nkv_free(status == 0 ? data : NULL);
    } while (status < 0);
    assert_true(n > 5);
}

static void the_file_appears_whole_or_not_at_all(void **state)
{
    char folder[] = "/tmp/nearkv-needle-XXXXXX", path[64], below[64];
    struct nkv_gguf *gguf;
    struct stat info;

    (void)state;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/needle.gguf", folder);
    assert_int_equal(nkv_needle_write(path, NKV_F16), 0);
    assert_int_equal(nkv_needle_write(path, NKV_F16), 0); /* replaces */
    assert_int_equal(nkv_gguf_open(path, &gguf), 0);
    nkv_gguf_close(gguf);
    snprintf(below, sizeof below, "%s/link", folder);
    assert_int_equal(symlink("needle.gguf", below), 0);
    assert_int_equal(nkv_needle_write(below, NKV_F32), 0); /* what it leads to is replaced, not the link */
    assert_int_equal(lstat(below, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    assert_int_equal(lstat(path, &info), 0);
    assert_true(S_ISREG(info.st_mode) && info.st_size > 9000000);
    assert_int_equal(nkv_needle_write("/dev/full", NKV_F16), NKV_EIO);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(nkv_needle_write(below, NKV_F16), NKV_EINVAL); /* it leads nowhere */
    assert_int_equal(unlink(below), 0);
    snprintf(below, sizeof below, "%s/none/needle.gguf", folder);
    assert_int_equal(nkv_needle_write(path, NKV_F16), 0);
    assert_int_equal(nkv_needle_write(below, NKV_F16), NKV_EIO);
    assert_non_null(strstr(nkv_last_error(), "none"));
    assert_int_equal(nkv_needle_write(folder, NKV_F16), NKV_EINVAL);
    assert_int_equal(nkv_needle_write("", NKV_F16), NKV_EINVAL);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0); /* nothing else was left there */
}

static void the_writer_keeps_what_is_put(void **state)
{
    static const int64_t numbers[] = {-1, INT64_MAX};
    static const uint64_t dims[] = {32, 2};
    uint8_t blocks[68] = {1, 2, 3};
    struct nkv_gguf_writer *writer;
    struct nkv_gguf_array array;
    struct nkv_gguf *gguf;
    void *data;
    size_t bytes;
    bool flag;

    (void)state;
    assert_int_equal(nkv_gguf_writer_open(&writer), 0);
    nkv_gguf_put_bool(writer, "a.flag", true);
    nkv_gguf_put_array(writer, "a.numbers", NKV_GGUF_I64, 2, numbers);
    nkv_gguf_put_tensor(writer, "t", 2, dims, NKV_Q8_0, blocks);
    assert_int_equal(nkv_gguf_finish(writer, &data, &bytes), 0);
    nkv_gguf_writer_close(writer);
    assert_int_equal(nkv_gguf_open_memory(data, bytes, "written", &gguf), 0);
    assert_int_equal(nkv_gguf_bool(gguf, "a.flag", &flag), 0);
    assert_true(flag);
    assert_int_equal(nkv_gguf_array(gguf, "a.numbers", NKV_GGUF_I64, &array), 0);
    assert_int_equal(array.n, 2);
    assert_memory_equal(array.data, numbers, sizeof numbers);
    assert_int_equal(nkv_gguf_tensor(gguf, "t")->bytes, sizeof blocks);
    assert_memory_equal(nkv_gguf_tensor(gguf, "t")->data, blocks, sizeof blocks);
    nkv_gguf_close(gguf);
    nkv_free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(builds_the_same_bytes_every_time),
        cmocka_unit_test(other_types_are_refused),
        cmocka_unit_test(opens_with_the_stated_shape),
        cmocka_unit_test(f16_holds_every_other_weight_exactly),
        cmocka_unit_test(codes_lie_far_apart),
        cmocka_unit_test(a_failed_allocation_is_an_error),
        cmocka_unit_test(the_file_appears_whole_or_not_at_all),
        cmocka_unit_test(the_writer_keeps_what_is_put),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
