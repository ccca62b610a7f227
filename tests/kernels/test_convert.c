/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Conversions over all 65536 values of f16 and bf16, rounding at every tie and beside it, in every table; and digests
 * that bound what they stand for.
 */
#define _DEFAULT_SOURCE /* posix_memalign, madvise */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/common.h"

enum { N_HALVES = 65536, N_TABLES = 3 };
static const char *const table_names[N_TABLES] = {"ref", "avx2", "avx512"};

/* The value by definition, in double. */
static double half_value(enum nkv_dtype dtype, uint16_t x)
{
    int fraction_bits = dtype == NKV_F16 ? 10 : 7, max_exponent = dtype == NKV_F16 ? 31 : 255;
    int bias = max_exponent / 2, fraction = x & ((1 << fraction_bits) - 1);
    int exponent = (x >> fraction_bits) & max_exponent;
    double sign = x & 0x8000 ? -1 : 1;
    if (exponent == max_exponent)
        return fraction ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0)
        return sign * ldexp(fraction, 1 - bias - fraction_bits);
    return sign * ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

static void store(const struct nkv_kernels *kernels, enum nkv_dtype dtype, const float *x, uint16_t *out)
{
    kernels->store[dtype](N_HALVES / 8, 8, x, out, NULL);
}

static void every_half_loads_as_its_value_and_comes_back(void **state)
{
    uint16_t *halves = test_alloc(N_HALVES * 2), *back = test_alloc(N_HALVES * 2);
    float *values = test_alloc(N_HALVES * 4);
    (void)state;
    for (uint32_t i = 0; i < N_HALVES; i++)
        halves[i] = (uint16_t)i;
    for (int t = 0; t < N_TABLES; t++)
        for (enum nkv_dtype dtype = NKV_F16; nkv_kernels_find(table_names[t]) && dtype <= NKV_BF16; dtype++) {
            const struct nkv_kernels *kernels = nkv_kernels_find(table_names[t]);
            kernels->load[dtype](N_HALVES / 8, 8, halves, NULL, values);
            store(kernels, dtype, values, back);
            for (uint32_t i = 0; i < N_HALVES; i++) {
                double want = half_value(dtype, (uint16_t)i);
                if (isnan(want)) {
                    assert_true(isnan(values[i]) && isnan(half_value(dtype, back[i])));
                    continue;
                }
                if ((double)values[i] != want || back[i] != i)
                    fail_msg("%s %s 0x%04x: %g, want %g; back 0x%04x", kernels->name, nkv_dtype_name(dtype), i,
                             (double)values[i], want, back[i]);
            }
        }
    free(halves);
    free(back);
    free(values);
}

/*
 * Between each half and the next greater magnitude: the tie goes to the even one, its neighbours in f32 to the nearer.
 * The step from the largest number is to 2^16 (f16) or 2^128 (bf16), which are infinity.
 */
static void check_ties(const struct nkv_kernels *kernels, enum nkv_dtype dtype, int nudge)
{
    float *x = test_alloc(N_HALVES * 4);
    uint16_t *got = test_alloc(N_HALVES * 2);
    uint16_t infinity = dtype == NKV_F16 ? 0x7c00 : 0x7f80;
    for (uint32_t i = 0; i < N_HALVES; i++) {
        uint16_t low = i & 0x7fff, sign = i & 0x8000;
        double a = half_value(dtype, low), b = half_value(dtype, (uint16_t)(low + 1));
        if (low == infinity - 1)
            b = dtype == NKV_F16 ? 0x1p16 : 0x1p128;
        float tie = low < infinity ? (float)((a + b) / 2) : 0;
        tie = nudge == 0 ? tie : nextafterf(tie, nudge > 0 ? INFINITY : 0);
        x[i] = sign ? -tie : tie;
    }
    store(kernels, dtype, x, got);
    for (uint32_t i = 0; i < N_HALVES; i++) {
        uint16_t low = i & 0x7fff, sign = i & 0x8000;
        uint16_t up = nudge == 0 ? low & 1 : nudge > 0;
        if (low < infinity && got[i] != (uint16_t)(sign | (low + up)))
            fail_msg("%s %s: %a becomes 0x%04x, want 0x%04x", kernels->name, nkv_dtype_name(dtype), (double)x[i],
                     got[i], sign | (low + up));
    }
    free(x);
    free(got);
}

static void ties_round_to_even(void **state)
{
    (void)state;
    for (int t = 0; t < N_TABLES; t++)
        for (int nudge = -1; nkv_kernels_find(table_names[t]) && nudge <= 1; nudge++) {
            check_ties(nkv_kernels_find(table_names[t]), NKV_F16, nudge);
            check_ties(nkv_kernels_find(table_names[t]), NKV_BF16, nudge);
        }
}

static void q8_rows_survive_what_is_tiny_and_show_what_is_not_finite(void **state)
{
    enum { DIM = 24 };
    (void)state;
    for (int t = 0; t < N_TABLES; t++) {
        const struct nkv_kernels *kernels = nkv_kernels_find(table_names[t]);
        static const float largest[] = {0, 1e-45f, 1e-40f, 1e-38f, 1, 3.4e38f, INFINITY, NAN};
        for (size_t i = 0; kernels != NULL && i < sizeof largest / sizeof *largest; i++) {
            float x[DIM] = {0}, scale, y[DIM];
            int8_t q[DIM];
            x[17] = -largest[i];
            kernels->store[NKV_Q8_0](1, DIM, x, q, &scale);
            kernels->load[NKV_Q8_0](1, DIM, q, &scale, y);
            for (int d = 0; d < DIM; d++) {
                if (isfinite(largest[i]))
                    assert_true(fabsf(y[d] - x[d]) <= largest[i] * 0.01f + 1e-43f);
                else
                    assert_true(isnan(y[d]));
            }
        }
    }
}

/* minmax: no q.k of the page is above the page's score. */
static void check_bound(const struct nkv_kernels *kernels, enum nkv_dtype dtype, size_t dim)
{
    enum { TOKENS = 32, TYPES_BYTES = 4 };
    float *x = random_floats(TOKENS * dim), *q = random_floats(dim), *scale = test_alloc(TOKENS * 4);
    float *q_pos = test_alloc(dim * 4), *q_neg = test_alloc(dim * 4), score;
    void *k = test_alloc(TOKENS * nkv_kv_row_bytes(dtype, dim));
    void *digest = test_alloc(2 * nkv_kv_row_bytes(nkv_digest_dtype(dtype), dim));
    kernels->store[dtype](TOKENS, dim, x, k, scale);
    for (size_t d = 0; d < dim; d++) {
        q_pos[d] = q[d] > 0 ? q[d] : 0;
        q_neg[d] = q[d] < 0 ? q[d] : 0;
    }
    kernels->digest[dtype](NKV_DIGEST_MINMAX, TOKENS, dim, k, dtype == NKV_Q8_0 ? scale : NULL, digest);
    kernels->score[nkv_digest_dtype(dtype)](1, dim, q_pos, q_neg, digest, false, &score);
    for (size_t t = 0; t < TOKENS; t++) {
        double dot = 0, size = 0;
        for (size_t d = 0; d < dim; d++) {
            double term = (double)q[d] * element(dtype, k, scale[t], t * dim + d);
            dot += term;
            size += fabs(term);
        }
        assert_true((double)score >= dot - 2e-6 * size);
    }
    void *all[] = {x, q, scale, q_pos, q_neg, k, digest};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void a_minmax_score_is_never_below_a_token_of_its_page(void **state)
{
    static const size_t dims[] = {8, 64, 80, 128, 512};
    (void)state;
    for (int t = 0; t < N_TABLES; t++)
        for (enum nkv_dtype dtype = 0; nkv_kernels_find(table_names[t]) && dtype < NKV_DTYPE_COUNT; dtype++)
            for (int i = 0; i < 200; i++)
                check_bound(nkv_kernels_find(table_names[t]), dtype, dims[i % 5]);
}

/* One token: lo is the greatest bf16 not above its values, hi the least not below. */
static void q8_digests_round_outwards(void **state)
{
    enum { DIM = 104 };
    (void)state;
    for (int t = 0; t < N_TABLES; t++)
        for (int round = 0; nkv_kernels_find(table_names[t]) && round < 50; round++) {
            float *x = random_floats(DIM), scale = fabsf(x[0]) + 1e-3f;
            int8_t k[DIM];
            uint16_t digest[2 * DIM];
            for (int d = 0; d < DIM; d++)
                k[d] = (int8_t)(random_u32() % 255 - 127);
            nkv_kernels_find(table_names[t])->digest[NKV_Q8_0](NKV_DIGEST_MINMAX, 1, DIM, k, &scale, digest);
            for (int d = 0; d < DIM; d++) {
                float value = scale * (float)k[d], lo = nkv_bf16_to_f32(digest[d]),
                      hi = nkv_bf16_to_f32(digest[DIM + d]);
                assert_true(lo <= value && value <= hi);
                assert_true(lo == hi ? lo == value : digest[d] + (k[d] < 0 ? -1 : 1) == digest[DIM + d]);
            }
            free(x);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_loads_as_its_value_and_comes_back),
        cmocka_unit_test(ties_round_to_even),
        cmocka_unit_test(q8_rows_survive_what_is_tiny_and_show_what_is_not_finite),
        cmocka_unit_test(a_minmax_score_is_never_below_a_token_of_its_page),
        cmocka_unit_test(q8_digests_round_outwards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
