/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy/steady.h: Algorithm 1 of the paper (section 5): which resident pages to give up and which pages to copy to the
 * compute side. Pure functions of a resident table (slot -> page id or NKV_PAGE_NONE) and the chosen set.
 */
#ifndef NKV_POLICY_STEADY_H
#define NKV_POLICY_STEADY_H

#include <nearkv/types.h>

struct nkv_recall_plan {
    uint32_t n_steady; /* |S & P|: pages of the set that are resident */
    uint32_t n_recall; /* pages to copy */
};

/*
 * Steady-Select. S = chosen[0..n_chosen) best first, without repeats; P = the pages in resident[0..n_slots).
 *
 *   evict e = P - S            only pages that left the budget set
 *   recall r = (S - P)[:|e|]   fill exactly those slots, best first
 *
 * Empty slots count as given up (initial fill: at the first step the best pages of S fill all slots) and are filled
 * first. `open_page` (NKV_PAGE_NONE: none), the page still being written, is never recalled.
 *
 * device_out [n_chosen]            S - P, ascending; its length is n_chosen - n_steady
 * steady_out [n_slots]             slots that hold pages of S, by ascending page id
 * recall_out, slots_out [n_slots]  pages to copy, best first, and the slot that each overwrites
 * scratch [n_chosen + 2 * n_slots]
 *
 * resident is not modified.
 */
struct nkv_recall_plan nkv_steady_select(const uint32_t *chosen, uint32_t n_chosen, const uint32_t *resident,
                                         uint32_t n_slots, uint32_t open_page, uint32_t *scratch, uint32_t *device_out,
                                         uint32_t *steady_out, uint32_t *recall_out, uint32_t *slots_out);

/*
 * ArkVale's rule: r = S - P, all of it; the slots are empty ones first, then those of the lowest-scored pages of P - S.
 * scores[page] ranks the pages of P - S for page < n_scores (NaN or beyond: worst first).
 * pre: n_slots >= n_chosen minus the open page.
 *
 * steady_out [n_slots]              as above: S & P before the recall
 * recall_out, slots_out [n_chosen]  as above
 * scratch [n_chosen + 2 * n_slots]
 */
struct nkv_recall_plan nkv_arkvale_recall(const uint32_t *chosen, uint32_t n_chosen, const uint32_t *resident,
                                          uint32_t n_slots, uint32_t open_page, const float *scores, uint32_t n_scores,
                                          uint32_t *scratch, uint32_t *steady_out, uint32_t *recall_out,
                                          uint32_t *slots_out);

#endif
