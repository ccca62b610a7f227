/* SPDX-License-Identifier: Apache-2.0 */
/* Steady-Select and ArkVale's rule: the paper's toy case, and random histories against sets kept the naive way. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "policy/steady.h"

#define MAX_SLOTS  24
#define MAX_CHOSEN 24
#define N_PAGES    60

struct outputs {
    uint32_t device[MAX_CHOSEN], steady[MAX_SLOTS], recall[MAX_SLOTS + MAX_CHOSEN], slots[MAX_SLOTS + MAX_CHOSEN];
    struct nkv_recall_plan plan;
};

static uint32_t random_below(uint32_t n)
{
    static uint64_t state = 0x9e3779b97f4a7c15u;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 32) % n);
}

static void steady(const uint32_t *chosen, uint32_t n_chosen, const uint32_t *resident, uint32_t n_slots, uint32_t open,
                   struct outputs *out)
{
    uint32_t scratch[MAX_CHOSEN + 2 * MAX_SLOTS];

    memset(out, 0xee, sizeof *out);
    out->plan = nkv_steady_select(chosen, n_chosen, resident, n_slots, open, scratch, out->device, out->steady,
                                  out->recall, out->slots);
}

static bool contains(const uint32_t *list, uint32_t n, uint32_t item)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i] == item)
            return true;
    return false;
}

static void test_toy_case(void **state)
{
    const uint32_t chosen[] = {1, 8, 9, 3};
    uint32_t resident[] = {1, 10};
    struct outputs out;

    (void)state;
    steady(chosen, 4, resident, 2, NKV_PAGE_NONE, &out);
    assert_int_equal(out.plan.n_steady, 1);
    assert_int_equal(out.steady[0], 0);
    assert_int_equal(out.plan.n_recall, 1);
    assert_int_equal(out.recall[0], 8);
    assert_int_equal(out.slots[0], 1);
    assert_int_equal(out.device[0], 3);
    assert_int_equal(out.device[1], 8);
    assert_int_equal(out.device[2], 9);
    resident[out.slots[0]] = out.recall[0];
    assert_int_equal(resident[0], 1);
    assert_int_equal(resident[1], 8);
}

static void test_initial_fill(void **state)
{
    const uint32_t chosen[] = {0, 7, 5, 9, 10};
    const uint32_t resident[] = {NKV_PAGE_NONE, NKV_PAGE_NONE, NKV_PAGE_NONE};
    struct outputs out;

    (void)state;
    steady(chosen, 5, resident, 3, 10, &out);
    assert_int_equal(out.plan.n_recall, 3);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(out.recall[i], chosen[i]);
        assert_int_equal(out.slots[i], i);
    }
    steady(chosen, 5, resident, 3, 7, &out); /* the open page is passed over, the next best takes its place */
    assert_int_equal(out.recall[1], 5);
    assert_int_equal(out.recall[2], 9);
}

static void check_common(const uint32_t *chosen, uint32_t n_chosen, const uint32_t *resident, uint32_t n_slots,
                         uint32_t open, const struct outputs *out)
{
    uint32_t n_steady = 0;

    for (uint32_t s = 0; s < n_slots; s++)
        n_steady += resident[s] != NKV_PAGE_NONE && contains(chosen, n_chosen, resident[s]);
    assert_int_equal(out->plan.n_steady, n_steady);
    for (uint32_t i = 0; i < n_steady; i++) {
        assert_true(contains(chosen, n_chosen, resident[out->steady[i]]));
        if (i)
            assert_true(resident[out->steady[i - 1]] < resident[out->steady[i]]);
    }
    for (uint32_t i = 0; i < out->plan.n_recall; i++) {
        assert_true(out->slots[i] < n_slots);
        assert_false(contains(out->slots, i, out->slots[i]));
        assert_false(contains(chosen, n_chosen, resident[out->slots[i]]));
        assert_int_not_equal(out->recall[i], open);
        assert_false(contains(resident, n_slots, out->recall[i]));
    }
}

/* A random set in rank order that keeps most of the previous one. */
static uint32_t next_chosen(uint32_t *chosen, uint32_t n_old)
{
    uint32_t next[MAX_CHOSEN], n = 0, limit = 1 + random_below(MAX_CHOSEN);

    for (uint32_t i = 0; i < n_old && n < limit; i++)
        if (random_below(4))
            next[n++] = chosen[i];
    while (n < limit) {
        uint32_t page = random_below(N_PAGES);

        if (!contains(next, n, page))
            next[n++] = page;
    }
    for (uint32_t i = n - 1; i > 0; i--) {
        uint32_t j = random_below(i + 1), page = next[i];

        next[i] = next[j];
        next[j] = page;
    }
    memcpy(chosen, next, n * sizeof *next);
    return n;
}

static void test_steady_histories(void **state)
{
    (void)state;
    for (int history = 0; history < 400; history++) {
        uint32_t resident[MAX_SLOTS], chosen[MAX_CHOSEN], n_chosen = 0, n_slots = random_below(MAX_SLOTS + 1);
        struct outputs out;

        memset(resident, 0xff, sizeof resident);
        for (int step = 0; step < 40; step++) {
            uint32_t open, given_up = 0, n_device = 0, n_expected = 0, expected[MAX_CHOSEN];

            n_chosen = next_chosen(chosen, n_chosen);
            open = chosen[random_below(n_chosen)];
            if (contains(resident, n_slots, open)) /* a page being written was never resident */
                open = NKV_PAGE_NONE;
            steady(chosen, n_chosen, resident, n_slots, open, &out);
            check_common(chosen, n_chosen, resident, n_slots, open, &out);
            for (uint32_t s = 0; s < n_slots; s++)
                given_up += resident[s] == NKV_PAGE_NONE || !contains(chosen, n_chosen, resident[s]);
            for (uint32_t i = 0; i < n_chosen; i++) {
                if (contains(resident, n_slots, chosen[i]))
                    continue;
                assert_true(contains(out.device, n_chosen - out.plan.n_steady, chosen[i]));
                n_device++;
                if (chosen[i] != open && n_expected < given_up)
                    expected[n_expected++] = chosen[i];
            }
            assert_int_equal(n_device, n_chosen - out.plan.n_steady);
            for (uint32_t i = 1; i < n_device; i++)
                assert_true(out.device[i - 1] < out.device[i]);
            assert_int_equal(out.plan.n_recall, n_expected); /* exactly those slots, best first */
            assert_memory_equal(out.recall, expected, n_expected * sizeof *expected);
            for (uint32_t i = 0; i < out.plan.n_recall; i++)
                resident[out.slots[i]] = out.recall[i];
        }
    }
}

static void test_arkvale_histories(void **state)
{
    (void)state;
    for (int history = 0; history < 400; history++) {
        uint32_t resident[MAX_SLOTS], chosen[MAX_CHOSEN], n_chosen = 0, n_slots = MAX_SLOTS;
        uint32_t scratch[MAX_CHOSEN + 2 * MAX_SLOTS];
        struct outputs out;

        memset(resident, 0xff, sizeof resident);
        for (int step = 0; step < 40; step++) {
            float scores[N_PAGES], worst_kept = INFINITY, best_evicted = -INFINITY;
            uint32_t open, n_missing = 0;

            n_chosen = next_chosen(chosen, n_chosen);
            open = chosen[random_below(n_chosen)];
            if (contains(resident, n_slots, open))
                open = NKV_PAGE_NONE;
            for (uint32_t p = 0; p < N_PAGES; p++)
                scores[p] = (float)random_below(1000);
            memset(&out, 0xee, sizeof out);
            out.plan = nkv_arkvale_recall(chosen, n_chosen, resident, n_slots, open, scores, N_PAGES, scratch,
                                          out.steady, out.recall, out.slots);
            check_common(chosen, n_chosen, resident, n_slots, open, &out);
            for (uint32_t i = 0; i < n_chosen; i++)
                if (!contains(resident, n_slots, chosen[i]) && chosen[i] != open)
                    assert_int_equal(out.recall[n_missing++], chosen[i]);
            assert_int_equal(out.plan.n_recall, n_missing);
            for (uint32_t s = 0; s < n_slots; s++) {
                bool evicted = contains(out.slots, n_missing, s);

                if (resident[s] == NKV_PAGE_NONE || contains(chosen, n_chosen, resident[s]))
                    continue;
                if (evicted && scores[resident[s]] > best_evicted)
                    best_evicted = scores[resident[s]];
                if (!evicted && scores[resident[s]] < worst_kept)
                    worst_kept = scores[resident[s]];
            }
            assert_true(best_evicted <= worst_kept);
            for (uint32_t i = 0; i < n_missing; i++)
                resident[out.slots[i]] = out.recall[i];
        }
    }
}

static void test_arkvale_ranks_unscored_worst(void **state)
{
    const uint32_t chosen[] = {1, 2}, resident[] = {10, 11, 12, 40};
    const float scores[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -5, NAN, -9};
    uint32_t scratch[2 + 8];
    struct outputs out;

    (void)state;
    out.plan = nkv_arkvale_recall(chosen, 2, resident, 4, NKV_PAGE_NONE, scores, 13, scratch, out.steady, out.recall,
                                  out.slots);
    assert_int_equal(out.plan.n_recall, 2);
    assert_int_equal(out.slots[0], 3); /* beyond the scores; of equals the higher page goes first */
    assert_int_equal(out.slots[1], 1); /* NaN */
}

/* Whatever a command's operands say, outputs stay within their bounds. */
static void test_repeated_residents(void **state)
{
    const uint32_t chosen[] = {4, 4, 6}, resident[] = {4, 4, 9, 4};
    struct outputs out;

    (void)state;
    steady(chosen, 3, resident, 4, NKV_PAGE_NONE, &out);
    assert_true(out.plan.n_recall <= 3);
    assert_true(out.plan.n_steady <= 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_toy_case),
        cmocka_unit_test(test_initial_fill),
        cmocka_unit_test(test_steady_histories),
        cmocka_unit_test(test_arkvale_histories),
        cmocka_unit_test(test_arkvale_ranks_unscored_worst),
        cmocka_unit_test(test_repeated_residents),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
