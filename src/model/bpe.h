/* SPDX-License-Identifier: Apache-2.0 */
/* model/bpe.h: byte-level BPE, tokenizer `gpt2`: words by a pre-tokenizer, merges by rank. */
#ifndef NKV_MODEL_BPE_H
#define NKV_MODEL_BPE_H

#include "model/pretok.h"
#include "model/tokenizer_vocab.h"

struct nkv_bpe;

/* vocab is borrowed until close. returns: 0; NKV_ENOENT (no merges), NKV_EFORMAT, NKV_ENOTSUP, NKV_ENOMEM. */
int nkv_bpe_open(const struct nkv_gguf *gguf, const struct nkv_vocab *vocab, struct nkv_bpe **bpe_out);
void nkv_bpe_close(struct nkv_bpe *bpe);
const struct nkv_pretok *nkv_bpe_pretok(const struct nkv_bpe *bpe);
/* Appends the tokens of a stretch of plain text. words: opened on the tokenizer's nkv_pretok. pre: bytes < UINT32_MAX.
 */
int nkv_bpe_encode(const struct nkv_bpe *bpe, const char *text, size_t bytes, struct nkv_words *words,
                   struct nkv_merger *merger, struct nkv_tokens *tokens);

#endif
