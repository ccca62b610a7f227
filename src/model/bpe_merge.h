/* SPDX-License-Identifier: Apache-2.0 */
/* model/bpe_merge.h: the merge loop that both kinds of tokenizer end in, and the list of tokens that it fills. */
#ifndef NKV_MODEL_BPE_MERGE_H
#define NKV_MODEL_BPE_MERGE_H

#include "model/tokenizer_map.h"

/* A growing list of tokens. Zeroed is empty and valid. */
struct nkv_tokens {
    int32_t *ids;
    size_t n, room;
};

int nkv_tokens_push(struct nkv_tokens *tokens, uint32_t id);

/* A piece of the text: bytes [start, start of the next symbol). id NKV_TOKEN_NONE merges with nothing. */
struct nkv_symbol {
    uint32_t id;
    uint32_t start;
    uint32_t prev, next; /* NKV_TOKEN_NONE at the ends; set by nkv_merger_run */
};

struct nkv_candidate {
    uint64_t order; /* rank, then position: the least is merged first */
    uint32_t id;    /* what the merge makes */
};

/* The loop's memory, reused from word to word. Zeroed is empty and valid. */
struct nkv_merger {
    struct nkv_symbol *symbols;
    size_t n, room;
    struct nkv_candidate *heap;
    size_t n_heap, heap_room;
};

/* Appends a symbol. */
int nkv_merger_add(struct nkv_merger *merger, uint32_t id, uint32_t start);
/*
 * Merges neighbours found in pairs (pair.id is the result) until none is left: the least pair.rank first, the leftmost
 * among equals. Afterwards the result is the chain from symbols[0] along `next`. O(n log n).
 */
int nkv_merger_run(struct nkv_merger *merger, const struct nkv_pairs *pairs);
void nkv_merger_close(struct nkv_merger *merger);

#endif
