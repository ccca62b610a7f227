/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page selection: sinks, then the best-scored pages between, then the pages around the query.
 *
 *   0 .. sink          begin .. end                     first_query_page        n_total
 *   | always |  compete by score  | n_recent pages, ending here | the block's own pages |
 *
 * Invariant: every page that competes lies wholly before the first query token, so it is full, has a digest and is
 * visible to every query token of the block. A page set therefore depends on the scores only, never on which page
 * is being written. Per-token sets within a block were rejected: one set per block keeps the cost of a page's score
 * independent of the block's size.
 */
#include "policy/select.h"

#include "base/status.h"
#include "kernels/kernels.h"

#define FEW_IDS 24u

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* First of the pages that are always chosen at the end. */
static uint32_t recent_begin(const struct nkv_select_rule *rule)
{
    return rule->first_query_page + 1 - min_u32(rule->n_recent, rule->first_query_page + 1);
}

/* The competing pages, sizes taken as given. */
static void competing(const struct nkv_select_rule *rule, uint32_t *begin, uint32_t *end)
{
    *end = recent_begin(rule);
    *begin = min_u32(rule->n_sink, *end);
    if (rule->n_total <= rule->n_budget)
        *begin = *end;
}

int nkv_select_range(const struct nkv_select_rule *rule, uint32_t *begin_out, uint32_t *end_out)
{
    uint32_t begin, end, n_always;

    if (rule->n_recent == 0)
        FAIL(NKV_EINVAL, "0 recent pages: at least 1 is needed, the page of the query token");
    if (rule->first_query_page >= rule->n_total)
        FAIL(NKV_EINVAL, "the query token's page is %u of %u pages", rule->first_query_page, rule->n_total);
    competing(rule, &begin, &end);
    n_always = rule->n_total - (end - begin);
    if (n_always > rule->n_budget && rule->n_total > rule->n_budget)
        FAIL(NKV_EINVAL,
             "a budget of %u pages is less than the %u that are always attended (%u sink, %u recent and the block's "
             "own): raise the budget",
             rule->n_budget, n_always, begin, min_u32(rule->n_recent, rule->first_query_page + 1));
    *begin_out = begin;
    *end_out = end;
    return 0;
}

uint32_t nkv_select_pages(const struct nkv_select_rule *rule, const float *scores, uint32_t *scratch,
                          uint32_t *chosen_out)
{
    uint32_t begin, end, n = 0;

    competing(rule, &begin, &end);
    if (begin == end) {
        for (; n < rule->n_total; n++)
            chosen_out[n] = n;
        return n;
    }
    for (; n < begin; n++)
        chosen_out[n] = n;
    n +=
        nkv_topk(scores, end - begin, rule->n_budget - (rule->n_total - (end - begin)), begin, scratch, chosen_out + n);
    for (uint32_t page = end; page < rule->n_total; page++)
        chosen_out[n++] = page;
    return n;
}

/* Few ids: insertion. */
static void sort_few(uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        uint32_t id = ids[i], at = i;

        for (; at > 0 && ids[at - 1] > id; at--)
            ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

/* Moves ids without the bit to the front. returns: how many. */
static uint32_t split(uint32_t *ids, uint32_t n, uint32_t bit)
{
    uint32_t low = 0, high = n;

    while (low < high) {
        uint32_t id = ids[low];

        if (!(id & bit)) {
            low++;
            continue;
        }
        ids[low] = ids[--high];
        ids[high] = id;
    }
    return low;
}

/*
 * Radix exchange sort: by the highest bit, then each part by the next. Lists come from a command's operands: no input
 * makes it slower than 32 passes, and it needs no memory but a part per bit (of the two parts of a split one is sorted
 * at once).
 */
void nkv_sort_ids(uint32_t *ids, uint32_t n)
{
    struct part {
        uint32_t begin, n, bit;
    } parts[33];
    uint32_t n_parts = 0, all = 0;

    for (uint32_t i = 0; i < n; i++)
        all |= ids[i];
    parts[n_parts++] = (struct part){0, n, all ? 1u << (31 - __builtin_clz(all)) : 0};
    while (n_parts > 0) {
        struct part p = parts[--n_parts];
        uint32_t n_low;

        if (p.bit == 0) /* equal ids */
            continue;
        if (p.n <= FEW_IDS) {
            sort_few(ids + p.begin, p.n);
            continue;
        }
        n_low = split(ids + p.begin, p.n, p.bit);
        parts[n_parts++] = (struct part){p.begin, n_low, p.bit >> 1};
        parts[n_parts++] = (struct part){p.begin + n_low, p.n - n_low, p.bit >> 1};
    }
}
