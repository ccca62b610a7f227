/* SPDX-License-Identifier: Apache-2.0 */
/* The k best against a full sort, with ties, NaN and infinities, all k; and no input makes it slow. */
#define _DEFAULT_SOURCE /* posix_memalign, madvise */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "kernels/common.h"

struct item {
    float score;
    uint32_t id;
};

static int descending(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    float p = isnan(x->score) ? -INFINITY : x->score, q = isnan(y->score) ? -INFINITY : y->score;
    if (p != q)
        return p > q ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static void check(const float *scores, uint32_t n, uint32_t k, uint32_t base)
{
    struct item *items = test_alloc(n * sizeof *items);
    uint32_t *scratch = test_alloc(n * sizeof *scratch), *ids = test_alloc(k * sizeof *ids);
    uint32_t expected = k < n ? k : n;
    for (uint32_t i = 0; i < n; i++)
        items[i] = (struct item){scores[i], base + i};
    qsort(items, n, sizeof *items, descending);
    assert_int_equal(nkv_topk(scores, n, k, base, scratch, ids), expected);
    for (uint32_t i = 0; i < expected; i++)
        if (ids[i] != items[i].id)
            fail_msg("n %u k %u: place %u is id %u, want %u", n, k, i, ids[i], items[i].id);
    free(items);
    free(scratch);
    free(ids);
}

/* Few values, so that ties are everywhere; now and then NaN, infinities and zeros of both signs. */
static float tied_score(uint32_t n_values)
{
    static const float special[] = {NAN, -INFINITY, INFINITY, 0.0f, -0.0f, 1e-45f, -1e-45f, 3.4e38f};
    uint32_t r = random_u32();
    if (r % 16 == 0)
        return special[r / 16 % 8];
    return ((float)(r % n_values) - (float)n_values / 2) * 0.37f;
}

static void agrees_with_a_sort(void **state)
{
    static const uint32_t sizes[] = {1, 2, 3, 31, 64, 100, 1000, 5000};
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (uint32_t n_values = 1; n_values < 5000; n_values = n_values * 3 + 1) {
            uint32_t n = sizes[s];
            float *scores = test_alloc(n * sizeof *scores);
            for (uint32_t i = 0; i < n; i++)
                scores[i] = tied_score(n_values);
            const uint32_t ks[] = {0, 1, 2, n / 2, n - 1, n, n + 10, random_u32() % n};
            for (size_t i = 0; i < sizeof ks / sizeof *ks; i++)
                check(scores, n, ks[i], random_u32() % 1000);
            free(scores);
        }
}

static void nothing_of_nothing(void **state)
{
    uint32_t scratch[1], ids[1] = {7};
    float score = 1;
    (void)state;
    assert_int_equal(nkv_topk(&score, 0, 5, 0, scratch, ids), 0);
    assert_int_equal(nkv_topk(&score, 1, 0, 0, scratch, ids), 0);
    assert_int_equal(ids[0], 7);
}

/* Orders that defeat a bad pivot or a bad histogram; a quadratic method would take hours. */
static float adversary(int kind, uint32_t i, uint32_t n)
{
    switch (kind) {
    case 0:
        return (float)i; /* ascending */
    case 1:
        return -(float)i;
    case 2:
        return 1; /* all equal */
    case 3:
        return 1 + (float)(i % 1000) * 0x1p-23f; /* equal but for the last bits */
    case 4:
        return (float)(i < n / 2 ? i : n - i); /* organ pipes */
    default:
        return random_normal();
    }
}

static void a_million_scores_take_no_time(void **state)
{
    enum { N = 1 << 20 };
    float *scores = test_alloc(N * sizeof *scores);
    (void)state;
    for (int kind = 0; kind < 6; kind++) {
        for (uint32_t i = 0; i < N; i++)
            scores[i] = adversary(kind, i, N);
        uint64_t start = nkv_now_ns();
        check(scores, N, kind % 2 ? 64 : N / 3, 0);
        assert_true(nkv_now_ns() - start < 20000000000u); /* the sort of the check included, sanitizers, a busy CPU */
    }
    free(scores);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_a_sort),
        cmocka_unit_test(nothing_of_nothing),
        cmocka_unit_test(a_million_scores_take_no_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
