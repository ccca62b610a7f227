/* SPDX-License-Identifier: Apache-2.0 */
/* model/tokenizer.h: text to tokens and back, as the model file describes it: `llama` (SPM with byte fallback) and
 * `gpt2` (byte-level BPE). */
#ifndef NKV_MODEL_TOKENIZER_H
#define NKV_MODEL_TOKENIZER_H

#include "model/gguf.h"

struct nkv_tokenizer;

/*
 * Builds the tokenizer from metadata tokenizer.ggml.*; copies what it needs. returns: 0; NKV_EFORMAT, NKV_ENOTSUP
 * (model or pre-tokenizer named), NKV_ENOMEM.
 */
int nkv_tokenizer_open(const struct nkv_gguf *gguf, struct nkv_tokenizer **tokenizer_out);
void nkv_tokenizer_close(struct nkv_tokenizer *tokenizer);
uint32_t nkv_tokenizer_n_vocab(const struct nkv_tokenizer *tokenizer);
/* flags: enum nkv_tokenize_flag (nearkv/model.h). *tokens_out from nkv_alloc. */
int nkv_tokenizer_encode(const struct nkv_tokenizer *tokenizer, const char *text, size_t bytes, unsigned flags,
                         int32_t **tokens_out, size_t *n_out);
/* *text_out from nkv_alloc, zero terminated. NKV_EINVAL for a token id outside the vocabulary. */
int nkv_tokenizer_decode(const struct nkv_tokenizer *tokenizer, const int32_t *tokens, size_t n, unsigned flags,
                         char **text_out, size_t *bytes_out);
/* End of sequence or of turn. */
bool nkv_tokenizer_is_end(const struct nkv_tokenizer *tokenizer, int32_t token);

#endif
