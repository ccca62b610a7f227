/* SPDX-License-Identifier: Apache-2.0 */
/* Sampling: greedy ties, the cuts against a sorted reference, frequencies, seeds, and logits that are no numbers. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "model_fixture.h"

#define N 50

static struct nkv_sampler *open_sampler(float temperature, uint32_t top_k, float top_p, uint64_t seed)
{
    const struct nkv_sampler_options options = {sizeof options, temperature, top_k, top_p, seed};
    struct nkv_sampler *sampler;

    assert_ok(nkv_sampler_open(&options, &sampler));
    return sampler;
}

static int32_t sample(struct nkv_sampler *sampler, const float *logits, uint32_t n)
{
    int32_t token = -1;

    assert_ok(nkv_sample(sampler, logits, n, &token));
    assert_in_range(token, 0, n - 1);
    return token;
}

static void test_greedy(void **state)
{
    static const float logits[] = {-1, 3, 2, 3, -INFINITY};
    struct nkv_sampler *sampler = open_sampler(0, 0, 1, 1);

    (void)state;
    assert_int_equal(sample(sampler, logits, 5), 1);
    assert_int_equal(sample(sampler, logits, 1), 0);
    nkv_sampler_close(sampler);
}

/* Logit i is log of weights[i] at temperature 1: frequencies must come near the weights. */
static void check_frequencies(float temperature, uint32_t top_k, float top_p, const double *expected, uint32_t n)
{
    static const double weights[] = {1, 8, 4, 2, 1};
    const int rounds = 20000;
    struct nkv_sampler *sampler = open_sampler(temperature, top_k, top_p, 7);
    int counts[5] = {0};
    float logits[5];

    for (uint32_t i = 0; i < n; i++)
        logits[i] = (float)(log(weights[i]) + 3);
    for (int i = 0; i < rounds; i++)
        counts[sample(sampler, logits, n)]++;
    for (uint32_t i = 0; i < n; i++) {
        double frequency = (double)counts[i] / rounds;

        if (fabs(frequency - expected[i]) > 0.015 || (expected[i] <= 0 && counts[i]))
            fail_msg("token %u: frequency %.4f, expected %.4f", i, frequency, expected[i]);
    }
    nkv_sampler_close(sampler);
}

static void test_frequencies(void **state)
{
    (void)state;
    check_frequencies(1, 0, 1, (const double[]){1 / 16.0, 8 / 16.0, 4 / 16.0, 2 / 16.0, 1 / 16.0}, 5);
    check_frequencies(0.5f, 0, 1, (const double[]){1 / 86.0, 64 / 86.0, 16 / 86.0, 4 / 86.0, 1 / 86.0}, 5);
    check_frequencies(1, 2, 1, (const double[]){0, 8 / 12.0, 4 / 12.0, 0, 0}, 5);
    check_frequencies(1, 4, 1, (const double[]){1 / 15.0, 8 / 15.0, 4 / 15.0, 2 / 15.0, 0}, 5);
    check_frequencies(1, 0, 0.7f, (const double[]){0, 8 / 12.0, 4 / 12.0, 0, 0}, 5);
    check_frequencies(1, 0, 0.4f, (const double[]){0, 1, 0, 0, 0}, 5);
    check_frequencies(1, 3, 0.8f, (const double[]){0, 8 / 12.0, 4 / 12.0, 0, 0}, 5);
    check_frequencies(1, 1, 1, (const double[]){0, 1, 0, 0, 0}, 5);
    check_frequencies(1e-6f, 0, 1, (const double[]){0, 1, 0, 0, 0}, 5);
}

/* No draw is outside the top_k of a sort, whatever the order of the logits. */
static void test_top_k_is_exact(void **state)
{
    (void)state;
    srand(3);
    for (int round = 0; round < 200; round++) {
        const uint32_t top_k = 1 + (uint32_t)(rand() % N);
        struct nkv_sampler *sampler = open_sampler(100, top_k, 1, (uint64_t)round);
        float logits[N];

        for (int i = 0; i < N; i++)
            logits[i] = (float)(rand() % 20);
        for (int draw = 0; draw < 20; draw++) {
            uint32_t token = (uint32_t)sample(sampler, logits, N), before = 0;

            for (uint32_t i = 0; i < N; i++)
                before += logits[i] > logits[token] || (logits[i] == logits[token] && i < token);
            assert_true(before < top_k);
        }
        nkv_sampler_close(sampler);
    }
}

static void test_seed_decides(void **state)
{
    struct nkv_sampler *a = open_sampler(1, 40, 0.9f, 11), *b = open_sampler(1, 40, 0.9f, 11),
                       *c = open_sampler(1, 40, 0.9f, 12);
    float logits[N];
    int n_other = 0;

    (void)state;
    for (int i = 0; i < N; i++)
        logits[i] = (float)(i * 7 % N) / 20;
    for (int i = 0; i < 100; i++) {
        int32_t token = sample(a, logits, N);

        assert_int_equal(token, sample(b, logits, N));
        n_other += token != sample(c, logits, N);
    }
    assert_true(n_other > 50);
    nkv_sampler_close(a);
    nkv_sampler_close(b);
    nkv_sampler_close(c);
}

static void refuse(const float *logits, uint32_t n, const char *part)
{
    static const float temperatures[] = {0, 0.7f};

    for (int i = 0; i < 2; i++) {
        struct nkv_sampler *sampler = open_sampler(temperatures[i], 0, 1, 1);
        int32_t token = -7;

        assert_int_equal(nkv_sample(sampler, logits, n, &token), NKV_EINVAL);
        assert_non_null(strstr(nkv_last_error(), part));
        assert_int_equal(token, -7);
        nkv_sampler_close(sampler);
    }
}

static void test_bad_logits(void **state)
{
    (void)state;
    refuse((const float[]){1, NAN, 2}, 3, "logit 1 is not a number");
    refuse((const float[]){NAN, 1}, 2, "logit 0 is not a number");
    refuse((const float[]){-INFINITY, -INFINITY}, 2, "minus infinity");
    refuse((const float[]){1, INFINITY}, 2, "infinite");
    refuse((const float[]){1}, 0, "no logits");
}

static void test_bad_options(void **state)
{
    static const struct nkv_sampler_options bad[] = {
        {1, 0, 0, 1, 0},
        {sizeof *bad, -1, 0, 1, 0},
        {sizeof *bad, NAN, 0, 1, 0},
        {sizeof *bad, INFINITY, 0, 1, 0},
        {sizeof *bad, 1, 0, 0, 0},
        {sizeof *bad, 1, 0, 1.5f, 0},
        {sizeof *bad, 1, 0, NAN, 0},
    };
    struct nkv_sampler *sampler = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(nkv_sampler_open(&bad[i], &sampler), NKV_EINVAL);
    assert_null(sampler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),       cmocka_unit_test(test_frequencies), cmocka_unit_test(test_top_k_is_exact),
        cmocka_unit_test(test_seed_decides), cmocka_unit_test(test_bad_logits),  cmocka_unit_test(test_bad_options),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
