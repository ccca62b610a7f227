/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steady-Select and ArkVale's rule (the paper, Algorithm 1), over a resident table: slot -> page.
 *
 * Both begin by matching the chosen set S against the resident pages P: slots are ordered by the page they hold (radix
 * sort: no input makes it slow), and each chosen page looks itself up by bisection. What is found is steady; what is
 * not must be attended elsewhere or recalled. The rules differ only in which slots they fill: Steady-Select those whose
 * page left S (and empty ones), ArkVale as many as there are missing pages, lowest score first. A bit mask over page
 * ids, as the paper's hardware keeps, was rejected: it costs memory and time linear in the context, this in the budget.
 *
 * Invariant: a slot of `slots_out` never holds a page of S, whatever the table contains (it may come from a command's
 * operands): of a page that is listed twice, one slot is steady and the other may be given up.
 */
#include "policy/steady.h"

#include <math.h>

#include "policy/heap.h"
#include "policy/select.h"

/* `order`: the n_held slots that hold a page, by page; `steady` is indexed by slot. */
struct match {
    const uint32_t *resident;
    uint32_t n_slots, n_held;
    uint32_t *order, *steady;
};

/* One stable pass of a radix sort by eight bits of the page. */
static void sort_pass(const uint32_t *resident, const uint32_t *from, uint32_t *to, uint32_t n, uint32_t shift)
{
    uint32_t at[257] = {0};

    for (uint32_t i = 0; i < n; i++)
        at[1 + (resident[from[i]] >> shift & 255u)]++;
    for (uint32_t i = 1; i < 257; i++)
        at[i] += at[i - 1];
    for (uint32_t i = 0; i < n; i++)
        to[at[resident[from[i]] >> shift & 255u]++] = from[i];
}

static void sort_slots(struct match *match, uint32_t max_page)
{
    for (uint32_t shift = 0; shift < 32 && max_page >> shift > 0; shift += 8) {
        uint32_t *from = match->order;

        sort_pass(match->resident, from, match->steady, match->n_held, shift);
        match->order = match->steady;
        match->steady = from;
    }
}

static void match_begin(struct match *match, const uint32_t *resident, uint32_t n_slots, uint32_t *scratch)
{
    uint32_t max_page = 0;

    *match = (struct match){resident, n_slots, 0, scratch, scratch + n_slots};
    for (uint32_t slot = 0; slot < n_slots; slot++) {
        if (resident[slot] == NKV_PAGE_NONE)
            continue;
        match->order[match->n_held++] = slot;
        max_page = resident[slot] > max_page ? resident[slot] : max_page;
    }
    sort_slots(match, max_page);
    for (uint32_t slot = 0; slot < n_slots; slot++)
        match->steady[slot] = 0;
}

/* Marks the slot that holds `page` as steady. returns: whether there is one. */
static bool match_page(struct match *match, uint32_t page)
{
    uint32_t low = 0, high = match->n_held;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (match->resident[match->order[middle]] < page)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == match->n_held || match->resident[match->order[low]] != page)
        return false;
    match->steady[match->order[low]] = 1;
    return true;
}

/* Splits S: returns the pages that are not resident in rank order in `missing`. */
static uint32_t match_chosen(struct match *match, const uint32_t *chosen, uint32_t n_chosen, uint32_t *missing)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < n_chosen; i++)
        if (!match_page(match, chosen[i]))
            missing[n++] = chosen[i];
    return n;
}

static void list_steady(const struct match *match, uint32_t *steady_out)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < match->n_held; i++)
        if (match->steady[match->order[i]])
            steady_out[n++] = match->order[i];
}

/* The slots to fill when nothing ranks them: empty ones first, then those whose page left S, each in slot order. */
static uint32_t list_given_up(const struct match *match, uint32_t limit, uint32_t *slots_out)
{
    uint32_t n = 0;

    for (uint32_t slot = 0; slot < match->n_slots && n < limit; slot++)
        if (match->resident[slot] == NKV_PAGE_NONE)
            slots_out[n++] = slot;
    for (uint32_t slot = 0; slot < match->n_slots && n < limit; slot++)
        if (match->resident[slot] != NKV_PAGE_NONE && !match->steady[slot])
            slots_out[n++] = slot;
    return n;
}

static uint32_t drop_page(uint32_t *pages, uint32_t n, uint32_t page)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < n; i++)
        if (pages[i] != page)
            pages[kept++] = pages[i];
    return kept;
}

struct nkv_recall_plan nkv_steady_select(const uint32_t *chosen, uint32_t n_chosen, const uint32_t *resident,
                                         uint32_t n_slots, uint32_t open_page, uint32_t *scratch, uint32_t *device_out,
                                         uint32_t *steady_out, uint32_t *recall_out, uint32_t *slots_out)
{
    uint32_t *missing = scratch, n_missing, n_recall;
    struct match match;

    match_begin(&match, resident, n_slots, scratch + n_chosen);
    n_missing = match_chosen(&match, chosen, n_chosen, missing);
    list_steady(&match, steady_out);
    for (uint32_t i = 0; i < n_missing; i++)
        device_out[i] = missing[i];
    nkv_sort_ids(device_out, n_missing);
    n_recall = list_given_up(&match, drop_page(missing, n_missing, open_page), slots_out);
    for (uint32_t i = 0; i < n_recall; i++)
        recall_out[i] = missing[i];
    return (struct nkv_recall_plan){n_chosen - n_missing, n_recall};
}

struct ranking {
    const uint32_t *resident;
    const float *scores;
    uint32_t n_scores;
};

static float slot_score(const struct ranking *ranking, uint32_t slot)
{
    uint32_t page = ranking->resident[slot];
    float score = page < ranking->n_scores ? ranking->scores[page] : -INFINITY;

    return isnan(score) ? -INFINITY : score;
}

/* Highest score first; of equal scores the lower page, as in a selection. */
static bool better(const void *context, uint32_t a, uint32_t b)
{
    const struct ranking *ranking = context;
    float score_a = slot_score(ranking, a), score_b = slot_score(ranking, b);

    if (score_a != score_b)
        return score_a > score_b;
    if (ranking->resident[a] != ranking->resident[b])
        return ranking->resident[a] < ranking->resident[b];
    return a > b;
}

struct nkv_recall_plan nkv_arkvale_recall(const uint32_t *chosen, uint32_t n_chosen, const uint32_t *resident,
                                          uint32_t n_slots, uint32_t open_page, const float *scores, uint32_t n_scores,
                                          uint32_t *scratch, uint32_t *steady_out, uint32_t *recall_out,
                                          uint32_t *slots_out)
{
    struct ranking ranking = {resident, scores, n_scores};
    uint32_t n_missing, n_recall, n_free = 0, n_left = 0, *left;
    struct match match;

    match_begin(&match, resident, n_slots, scratch + n_chosen);
    n_missing = match_chosen(&match, chosen, n_chosen, recall_out);
    list_steady(&match, steady_out);
    n_recall = drop_page(recall_out, n_missing, open_page);
    for (uint32_t slot = 0; slot < n_slots && n_free < n_recall; slot++)
        if (resident[slot] == NKV_PAGE_NONE)
            slots_out[n_free++] = slot;
    left = match.order; /* done with */
    for (uint32_t slot = 0; slot < n_slots; slot++)
        if (resident[slot] != NKV_PAGE_NONE && !match.steady[slot])
            left[n_left++] = slot;
    heap_build(left, n_left, better, &ranking);
    for (; n_left > 0 && n_free < n_recall; n_left--)
        slots_out[n_free++] = heap_pop(left, n_left, better, &ranking);
    return (struct nkv_recall_plan){n_chosen - n_missing, n_free};
}
