/* SPDX-License-Identifier: Apache-2.0 */
/* model/tokenizer_vocab.h: the vocabulary of a model file, checked, and what both kinds of tokenizer do with it. */
#ifndef NKV_MODEL_TOKENIZER_VOCAB_H
#define NKV_MODEL_TOKENIZER_VOCAB_H

#include "model/bpe_merge.h"

enum nkv_token_type {
    NKV_TOKEN_NORMAL = 1,
    NKV_TOKEN_UNKNOWN = 2,
    NKV_TOKEN_CONTROL = 3,
    NKV_TOKEN_USER_DEFINED = 4,
    NKV_TOKEN_UNUSED = 5,
    NKV_TOKEN_BYTE = 6,
};

enum nkv_vocab_kind { NKV_VOCAB_SPM, NKV_VOCAB_BPE };

struct nkv_vocab {
    const char *file; /* for messages; valid while the file is open */
    enum nkv_vocab_kind kind;
    uint32_t n;
    struct nkv_str *text; /* [n] the bytes a token stands for; in SPM vocabularies U+2581 still stands for a space */
    uint8_t *type;        /* [n] enum nkv_token_type */
    bool *ends;           /* [n] end of sequence or of turn */
    char *pool;           /* holds the texts */
    struct nkv_strings normal; /* the NORMAL tokens by text: the ones that text is made of */
    uint32_t byte_token[256];  /* unk where there is none */
    uint32_t bos, unk;         /* NKV_TOKEN_NONE where there is none */
};

/* returns: 0; NKV_ENOENT (a key is missing), NKV_EFORMAT, NKV_ENOTSUP, NKV_ENOMEM. */
int nkv_vocab_open(const struct nkv_gguf *gguf, struct nkv_vocab *vocab_out);
void nkv_vocab_close(struct nkv_vocab *vocab);

/* The token's text is matched where it is spelled: control, user-defined and unknown tokens. */
bool nkv_vocab_is_special(const struct nkv_vocab *vocab, uint32_t token);

/*
 * Appends a chain of merged symbols (bpe_merge.h) of text[0..bytes). A symbol that is no token becomes the tokens of
 * its bytes. pre: merger->n > 0.
 */
int nkv_vocab_emit(const struct nkv_vocab *vocab, const struct nkv_merger *merger, const char *text, size_t bytes,
                   struct nkv_tokens *tokens);

#endif
