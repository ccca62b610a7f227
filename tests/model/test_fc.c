/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dense layers against sums in double, for every type of weights, few and many tokens, shapes that are no whole tiles,
 * several parts of different types in one job; and the same bits for any number of threads.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/fc.h"
#include "model_fixture.h"

static uint64_t seed;

static float next_float(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

static void random_matrix(enum nkv_dtype dtype, uint32_t n_rows, uint32_t n_cols, struct nkv_matrix *w, float **values)
{
    const size_t n = (size_t)n_rows * n_cols;
    float *x = malloc(n * sizeof *x);
    void *data;

    for (size_t i = 0; i < n; i++)
        x[i] = next_float();
    assert_ok(nkv_alloc(n, sizeof *x, &data));
    encode(dtype, n, x, data);
    *w = (struct nkv_matrix){data, dtype, n_rows, n_cols};
    nkv_matrix_rows(w, 0, n_rows, x);
    *values = x;
}

/* Both inputs were rounded to the type: what is left is rounding of x (bf16) and of the sum. */
static void check_part(const struct nkv_fc_part *part, const float *values, uint32_t n_tokens, const float *x)
{
    const struct nkv_matrix *w = part->w;
    const bool rounds_x = n_tokens > 16 && (w->dtype == NKV_BF16 || w->dtype == NKV_Q8_0);
    const double tolerance = rounds_x ? 1.0 / 128 : 1e-5;

    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t r = 0; r < w->n_rows; r++) {
            double sum = 0, scale = 0;

            for (uint32_t c = 0; c < w->n_cols; c++) {
                double term = (double)values[(size_t)r * w->n_cols + c] * x[(size_t)t * w->n_cols + c];

                sum += term;
                scale += fabs(term);
            }
            if (!(fabs(sum - part->y[(size_t)t * w->n_rows + r]) <= tolerance * scale))
                fail_msg("%s weights, %u tokens, row %u of token %u: %g, expected %g", nkv_dtype_name(w->dtype),
                         n_tokens, r, t, (double)part->y[(size_t)t * w->n_rows + r], sum);
        }
    }
}

static void check_job(struct nkv_fc *fc, const enum nkv_dtype dtypes[3], uint32_t n_tokens, uint32_t n_cols)
{
    static const uint32_t rows[] = {300, 32, 7};
    struct nkv_matrix w[3];
    struct nkv_fc_part parts[3];
    float *values[3], *x = malloc((size_t)n_tokens * n_cols * sizeof *x);

    for (size_t i = 0; i < (size_t)n_tokens * n_cols; i++)
        x[i] = next_float();
    for (int i = 0; i < 3; i++) {
        random_matrix(dtypes[i], rows[i], n_cols, &w[i], &values[i]);
        parts[i] = (struct nkv_fc_part){&w[i], malloc((size_t)n_tokens * rows[i] * sizeof(float))};
    }
    assert_ok(nkv_fc_run(fc, parts, 3, n_tokens, x));
    for (int i = 0; i < 3; i++) {
        check_part(&parts[i], values[i], n_tokens, x);
        free(parts[i].y);
        free(values[i]);
        nkv_free((void *)(uintptr_t)w[i].data);
    }
    free(x);
}

static void test_against_double(void **state)
{
    static const uint32_t n_tokens[] = {1, 2, 8, 16, 17, 40};
    static const enum nkv_dtype mixed[] = {NKV_Q8_0, NKV_F16, NKV_BF16};
    struct nkv_team *team;
    struct nkv_fc *fc;

    (void)state;
    seed = 1;
    assert_ok(nkv_team_open(2, NULL, NULL, &team));
    assert_ok(nkv_fc_open(team, 64, 96, &fc));
    for (size_t i = 0; i < sizeof n_tokens / sizeof *n_tokens; i++) {
        for (int dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
            const enum nkv_dtype same[] = {(enum nkv_dtype)dtype, (enum nkv_dtype)dtype, (enum nkv_dtype)dtype};

            check_job(fc, same, n_tokens[i], 96);
        }
        check_job(fc, mixed, n_tokens[i], 64);
    }
    nkv_fc_close(fc);
    nkv_team_close(team);
}

static void run_with(uint32_t n_threads, const struct nkv_matrix *w, uint32_t n_tokens, const float *x, float *y)
{
    const struct nkv_fc_part part = {w, y};
    struct nkv_team *team;
    struct nkv_fc *fc;

    assert_ok(nkv_team_open(n_threads, NULL, NULL, &team));
    assert_ok(nkv_fc_open(team, n_tokens, w->n_cols, &fc));
    assert_ok(nkv_fc_run(fc, &part, 1, n_tokens, x));
    nkv_fc_close(fc);
    nkv_team_close(team);
}

static void test_same_bits_on_any_number_of_threads(void **state)
{
    static const uint32_t n_tokens[] = {1, 3, 33};
    const uint32_t n_rows = 1003, n_cols = 160;

    (void)state;
    seed = 2;
    for (int dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
        for (size_t i = 0; i < sizeof n_tokens / sizeof *n_tokens; i++) {
            const size_t bytes = (size_t)n_tokens[i] * n_rows * sizeof(float);
            float *values, *x = malloc((size_t)n_tokens[i] * n_cols * sizeof *x);
            float *first = malloc(bytes), *other = malloc(bytes);
            struct nkv_matrix w;

            for (size_t j = 0; j < (size_t)n_tokens[i] * n_cols; j++)
                x[j] = next_float();
            random_matrix((enum nkv_dtype)dtype, n_rows, n_cols, &w, &values);
            run_with(1, &w, n_tokens[i], x, first);
            for (uint32_t n_threads = 2; n_threads <= 5; n_threads++) {
                run_with(n_threads, &w, n_tokens[i], x, other);
                assert_memory_equal(first, other, bytes);
            }
            nkv_free((void *)(uintptr_t)w.data);
            free(values);
            free(other);
            free(first);
            free(x);
        }
    }
}

/* Threads that multiply at the same time do not get into each other's way: many times the same, three parts at once. */
static void test_threads_do_not_disturb_each_other(void **state)
{
    const uint32_t n_tokens = 128, n_rows = 512, n_cols = 256, n_rounds = 60;
    const size_t n = (size_t)n_tokens * n_rows;
    float *x = malloc((size_t)n_tokens * n_cols * sizeof *x), *y = malloc(3 * n * sizeof *y), *values;
    float *expected = malloc(n * sizeof *expected);

    (void)state;
    seed = 3;
    for (size_t i = 0; i < (size_t)n_tokens * n_cols; i++)
        x[i] = next_float();
    for (int dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
        struct nkv_team *team;
        struct nkv_fc *fc;
        struct nkv_matrix w;

        random_matrix((enum nkv_dtype)dtype, n_rows, n_cols, &w, &values);
        run_with(1, &w, n_tokens, x, expected);
        assert_ok(nkv_team_open(4, NULL, NULL, &team));
        assert_ok(nkv_fc_open(team, n_tokens, n_cols, &fc));
        for (uint32_t round = 0; round < n_rounds; round++) {
            const struct nkv_fc_part parts[3] = {{&w, y}, {&w, y + n}, {&w, y + 2 * n}};

            assert_ok(nkv_fc_run(fc, parts, 3, n_tokens, x));
            for (uint32_t part = 0; part < 3; part++)
                assert_memory_equal(expected, y + part * n, n * sizeof *y);
        }
        nkv_fc_close(fc);
        nkv_team_close(team);
        nkv_free((void *)(uintptr_t)w.data);
        free(values);
    }
    free(expected);
    free(y);
    free(x);
}

static void test_rate(void **state)
{
    double bf16 = 0, f32 = 0;

    (void)state;
    assert_ok(nkv_matmul_rate(NKV_BF16, 1, 64, 64, 64, &bf16));
    assert_ok(nkv_matmul_rate(NKV_F16, 2, 64, 64, 64, &f32));
    assert_true(bf16 > 0 && f32 > 0);
    assert_int_equal(nkv_matmul_rate(NKV_BF16, 1, 0, 64, 64, &bf16), NKV_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_double),
        cmocka_unit_test(test_same_bits_on_any_number_of_threads),
        cmocka_unit_test(test_threads_do_not_disturb_each_other),
        cmocka_unit_test(test_rate),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
