/* SPDX-License-Identifier: Apache-2.0 */
/* model/pretok.h: splits text into words, the units within which byte-level BPE merges. */
#ifndef NKV_MODEL_PRETOK_H
#define NKV_MODEL_PRETOK_H

#include "model/gguf.h"

struct nkv_pretok;

/* By tokenizer.ggml.pre. returns: 0, NKV_ENOTSUP (the names that are known are in the message) or NKV_ENOMEM. */
int nkv_pretok_open(struct nkv_str name, struct nkv_pretok **pretok_out);
void nkv_pretok_close(struct nkv_pretok *pretok);
/* Whether a word that is a token is taken whole, whatever the merges would make of it (Llama 3). */
bool nkv_pretok_ignores_merges(const struct nkv_pretok *pretok);
/* The default of tokenizer.ggml.add_bos_token. */
bool nkv_pretok_adds_bos(const struct nkv_pretok *pretok);

/* A walk over the words of one text; several may use one nkv_pretok at the same time. */
struct nkv_words {
    const struct nkv_pretok *pretok;
    const char *text;
    size_t bytes;
    size_t end;     /* of the last word: the next one starts here */
    size_t run_end; /* of the run of well-formed UTF-8 that `end` lies in */
    void *match;
};

int nkv_words_open(const struct nkv_pretok *pretok, struct nkv_words *words_out);
void nkv_words_close(struct nkv_words *words);
/* Starts anew on another text. */
void nkv_words_begin(struct nkv_words *words, const char *text, size_t bytes);
/* The next word is text[end before the call, words->end). returns: 1, 0 at the end of the text, or NKV_ENOMEM,
 * NKV_ENOTSUP (a limit of PCRE2, named). */
int nkv_words_next(struct nkv_words *words);

#endif
