/* SPDX-License-Identifier: Apache-2.0 */
/* model/spm.h: SentencePiece's BPE, tokenizer `llama`: merges by score, bytes where a character has no token. */
#ifndef NKV_MODEL_SPM_H
#define NKV_MODEL_SPM_H

#include "model/tokenizer_vocab.h"

struct nkv_spm;

/* vocab is borrowed until close. returns: 0; NKV_ENOENT (no scores), NKV_EFORMAT, NKV_ENOMEM. */
int nkv_spm_open(const struct nkv_gguf *gguf, const struct nkv_vocab *vocab, struct nkv_spm **spm_out);
void nkv_spm_close(struct nkv_spm *spm);
/* Whether a space is put before each stretch of plain text: the text's start and what follows a special token. */
bool nkv_spm_adds_space(const struct nkv_spm *spm);
/* Appends the tokens of a stretch of plain text. pre: 0 < bytes < UINT32_MAX. */
int nkv_spm_encode(const struct nkv_spm *spm, const char *text, size_t bytes, struct nkv_merger *merger,
                   struct nkv_tokens *tokens);

#endif
