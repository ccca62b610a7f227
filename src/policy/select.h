/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy/select.h: which pages a block of query tokens attends to. Pure: const views in, caller's arrays out.
 */
#ifndef NKV_POLICY_SELECT_H
#define NKV_POLICY_SELECT_H

#include <nearkv/types.h>

/* What is always chosen, and how much in all. Pages are numbered from 0; page p holds tokens p*page_tokens .. */
struct nkv_select_rule {
    uint32_t n_total;          /* pages up to that of the last query token */
    uint32_t first_query_page; /* page of the first query token; < n_total */
    uint32_t n_budget;         /* pages to choose, sinks and recent included */
    uint32_t n_sink;
    uint32_t n_recent; /* >= 1: pages that end with first_query_page */
};

/*
 * The pages that compete by score: begin <= page < end (empty when everything is chosen anyway).
 * returns: 0, or NKV_EINVAL when n_budget is less than what is always chosen (the message says how much is needed).
 */
int nkv_select_range(const struct nkv_select_rule *rule, uint32_t *begin_out, uint32_t *end_out);

/*
 * Writes the chosen set in rank order: sinks ascending, then the best of [begin, end) by score (descending, ties to the
 * lower id), then the recent pages ascending. scores[i] belongs to page begin + i. scratch: [end - begin] u32.
 * chosen_out: room for n_budget. pre: nkv_select_range succeeded for this rule. returns: number of pages.
 */
uint32_t nkv_select_pages(const struct nkv_select_rule *rule, const float *scores, uint32_t *scratch,
                          uint32_t *chosen_out);

/* Sorts ids ascending in place (no allocation). */
void nkv_sort_ids(uint32_t *ids, uint32_t n);

#endif
