/* SPDX-License-Identifier: Apache-2.0 */
/* model/tokenizer.h: text to tokens and back, as the model file describes it: `llama` (SPM with byte fallback) and
 * `gpt2` (byte-level BPE). */
#ifndef NKV_MODEL_TOKENIZER_H
#define NKV_MODEL_TOKENIZER_H

#include "model/gguf.h"

struct nkv_tokenizer;

/*
 * Builds the tokenizer from metadata tokenizer.ggml.*; copies what it needs, so the file may be closed. returns: 0;
 * NKV_ENOENT (a key is missing), NKV_EFORMAT, NKV_ENOTSUP (model or pre-tokenizer named), NKV_ENOMEM.
 */
int nkv_tokenizer_open(const struct nkv_gguf *gguf, struct nkv_tokenizer **tokenizer_out);
void nkv_tokenizer_close(struct nkv_tokenizer *tokenizer);
uint32_t nkv_tokenizer_n_vocab(const struct nkv_tokenizer *tokenizer);
/*
 * flags: enum nkv_tokenize_flag (nearkv/model.h). Any bytes; decode gives them back wherever the vocabulary has a token
 * for every byte. *tokens_out from nkv_alloc. Several threads may encode and decode with one tokenizer.
 * returns: 0; NKV_EINVAL (4 GiB of text or more), NKV_ENOTSUP (a limit of PCRE2), NKV_ENOMEM.
 */
int nkv_tokenizer_encode(const struct nkv_tokenizer *tokenizer, const char *text, size_t bytes, unsigned flags,
                         int32_t **tokens_out, size_t *n_out);
/*
 * Control and unknown tokens give text only with NKV_TOKENIZE_SPECIAL. The space that encode puts before each stretch
 * of plain text (tokenizer.ggml.add_space_prefix) is taken off again, at the start and after special tokens. *text_out
 * from nkv_alloc, zero terminated. returns: 0; NKV_EINVAL for a token id outside the vocabulary; NKV_ENOMEM.
 */
int nkv_tokenizer_decode(const struct nkv_tokenizer *tokenizer, const int32_t *tokens, size_t n, unsigned flags,
                         char **text_out, size_t *bytes_out);
/* End of sequence or of turn. */
bool nkv_tokenizer_is_end(const struct nkv_tokenizer *tokenizer, int32_t token);

#endif
