/* SPDX-License-Identifier: Apache-2.0 */
/* model/tokenizer_special.h: finds tokens that text spells out: <|eot_id|>, user-defined ones. */
#ifndef NKV_MODEL_TOKENIZER_SPECIAL_H
#define NKV_MODEL_TOKENIZER_SPECIAL_H

#include "model/tokenizer_vocab.h"

struct nkv_specials {
    const struct nkv_vocab *vocab; /* borrowed */
    struct nkv_pairs trie;         /* (node, byte) -> rank: child node, id: the token that ends there */
    uint32_t n_nodes;
    bool starts[256]; /* bytes that a special token starts with */
};

struct nkv_special {
    size_t start, bytes;
    uint32_t token;
};

int nkv_specials_open(const struct nkv_vocab *vocab, struct nkv_specials *specials_out);
void nkv_specials_close(struct nkv_specials *specials);
/*
 * The first special token spelled in text from `from` on, the longest of those that start there. User-defined tokens
 * always count, the others only when `all`. returns: false when there is none.
 */
bool nkv_specials_find(const struct nkv_specials *specials, const char *text, size_t bytes, size_t from, bool all,
                       struct nkv_special *special_out);

#endif
