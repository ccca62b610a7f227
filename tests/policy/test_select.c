/* SPDX-License-Identifier: Apache-2.0 */
/* Page selection against a naive model that ranks every page by repeated scanning. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "policy/select.h"

#define MAX_PAGES 128

static uint32_t random_below(uint32_t n)
{
    static uint64_t state = 88172645463325252u;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 32) % n);
}

static bool always(const struct nkv_select_rule *rule, uint32_t page)
{
    return page < rule->n_sink || page + rule->n_recent > rule->first_query_page;
}

/* The set in rank order by the definition; returns its size, or 0 when the budget is too small. */
static uint32_t naive(const struct nkv_select_rule *rule, const float *scores, uint32_t *chosen)
{
    bool taken[MAX_PAGES] = {false};
    uint32_t n = 0, n_always = 0, n_tail = 0;

    if (rule->n_total <= rule->n_budget) {
        for (uint32_t p = 0; p < rule->n_total; p++)
            chosen[n++] = p;
        return n;
    }
    for (uint32_t p = 0; p < rule->n_total; p++) {
        n_always += always(rule, p);
        n_tail += p + rule->n_recent > rule->first_query_page;
    }
    if (n_always > rule->n_budget)
        return 0;
    for (uint32_t p = 0; p < rule->n_total && p < rule->n_sink && p + rule->n_recent <= rule->first_query_page; p++)
        chosen[n++] = p;
    for (uint32_t left = rule->n_budget - n_always; left > 0; left--) {
        uint32_t best = NKV_PAGE_NONE;
        float best_score = 0;

        for (uint32_t p = 0; p < rule->n_total; p++) {
            float score = isnan(scores[p]) ? -INFINITY : scores[p];

            if (!always(rule, p) && !taken[p] && (best == NKV_PAGE_NONE || score > best_score)) {
                best = p;
                best_score = score;
            }
        }
        taken[best] = true;
        chosen[n++] = best;
    }
    for (uint32_t p = rule->n_total - n_tail; p < rule->n_total; p++)
        chosen[n++] = p;
    return n;
}

static void test_matches_naive_model(void **state)
{
    (void)state;
    for (int round = 0; round < 20000; round++) {
        struct nkv_select_rule rule = {.n_total = 1 + random_below(MAX_PAGES),
                                       .n_budget = 1 + random_below(40),
                                       .n_sink = random_below(4),
                                       .n_recent = 1 + random_below(4)};
        float scores[MAX_PAGES];
        uint32_t chosen[MAX_PAGES], expected[MAX_PAGES], scratch[MAX_PAGES], begin = 0, end = 0, n;
        int status;

        rule.first_query_page =
            rule.n_total - 1 - (random_below(2) ? 0 : random_below(rule.n_total < 6 ? rule.n_total : 6));
        for (uint32_t p = 0; p < rule.n_total; p++)
            scores[p] = random_below(20) == 0 ? NAN : (float)random_below(30) - 15;
        n = naive(&rule, scores, expected);
        status = nkv_select_range(&rule, &begin, &end);
        assert_int_equal(status, n ? 0 : NKV_EINVAL);
        if (!n)
            continue;
        assert_true(begin <= end && end <= rule.n_total);
        assert_int_equal(nkv_select_pages(&rule, scores + begin, scratch, chosen), n);
        assert_memory_equal(chosen, expected, n * sizeof *chosen);
    }
}

static void test_everything_fits(void **state)
{
    struct nkv_select_rule rule = {.n_total = 5, .first_query_page = 4, .n_budget = 5, .n_sink = 1, .n_recent = 2};
    uint32_t chosen[5], begin = 9, end = 0;

    (void)state;
    assert_int_equal(nkv_select_range(&rule, &begin, &end), 0);
    assert_int_equal(begin, end);
    assert_int_equal(nkv_select_pages(&rule, NULL, NULL, chosen), 5);
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(chosen[i], i);
}

static void test_message_says_how_much(void **state)
{
    struct nkv_select_rule rule = {.n_total = 50, .first_query_page = 49, .n_budget = 3, .n_sink = 2, .n_recent = 2};
    uint32_t begin = 77, end = 77;

    (void)state;
    assert_int_equal(nkv_select_range(&rule, &begin, &end), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "budget of 3 pages"));
    assert_non_null(strstr(nkv_last_error(), "the 4 that"));
    assert_int_equal(begin, 77); /* outputs only on success */
    rule.n_recent = 0;
    assert_int_equal(nkv_select_range(&rule, &begin, &end), NKV_EINVAL);
    rule.n_recent = 1;
    rule.first_query_page = 50;
    assert_int_equal(nkv_select_range(&rule, &begin, &end), NKV_EINVAL);
}

static int compare(const void *a, const void *b)
{
    uint32_t x, y;

    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static void test_sort_ids(void **state)
{
    (void)state;
    for (uint32_t n = 0; n < 300; n++) {
        uint32_t ids[300], expected[300];

        for (uint32_t i = 0; i < n; i++)
            ids[i] = expected[i] = n % 3 ? random_below(50) : random_below(UINT32_MAX);
        qsort(expected, n, sizeof *expected, compare);
        nkv_sort_ids(ids, n);
        assert_memory_equal(ids, expected, n * sizeof *ids);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matches_naive_model),
        cmocka_unit_test(test_everything_fits),
        cmocka_unit_test(test_message_says_how_much),
        cmocka_unit_test(test_sort_ids),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
