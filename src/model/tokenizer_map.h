/* SPDX-License-Identifier: Apache-2.0 */
/* model/tokenizer_map.h: the two hash tables of the tokenizers: pairs of numbers, and strings. */
#ifndef NKV_MODEL_TOKENIZER_MAP_H
#define NKV_MODEL_TOKENIZER_MAP_H

#include "model/gguf.h"

#define NKV_TOKEN_NONE UINT32_MAX /* neither a token nor a symbol */

/* What is known of a pair: two numbers of the caller's choice. */
struct nkv_pair {
    uint64_t key;
    uint32_t rank;
    uint32_t id;
};

/* Zeroed is empty and valid. */
struct nkv_pairs {
    struct nkv_pair *slots;
    size_t n, n_slots; /* n_slots: 0 or a power of two */
};

/* NULL when absent. A `left` or `right` of NKV_TOKEN_NONE is never present. Valid until the next put. */
struct nkv_pair *nkv_pairs_get(const struct nkv_pairs *pairs, uint32_t left, uint32_t right);
/* Adds a pair. pre: absent, neither half is NKV_TOKEN_NONE. returns: 0 or NKV_ENOMEM (unchanged). */
int nkv_pairs_put(struct nkv_pairs *pairs, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
void nkv_pairs_close(struct nkv_pairs *pairs);

/* Finds an index of an array of strings by its string; the array is the caller's and must stay. */
struct nkv_strings {
    const struct nkv_str *text;
    uint32_t *slots; /* index + 1, 0 when empty */
    size_t mask;
};

/* A table with room for the indices 0..n-1 of text. returns: 0 or NKV_ENOMEM. */
int nkv_strings_open(const struct nkv_str *text, size_t n, struct nkv_strings *strings_out);
/* returns: i, or the index with the same string that is there already. pre: room is left. */
uint32_t nkv_strings_put(struct nkv_strings *strings, uint32_t i);
/* returns: the index, or NKV_TOKEN_NONE. */
uint32_t nkv_strings_get(const struct nkv_strings *strings, const char *data, size_t bytes);
void nkv_strings_close(struct nkv_strings *strings);

#endif
