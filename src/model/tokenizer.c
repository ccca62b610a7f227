/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encoding cuts the text at the special tokens that it spells; the stretches between go to SPM or to byte-level BPE.
 * Decoding concatenates what each token stands for. Invariant: decode(encode(text)) == text for any bytes, provided
 * that the vocabulary has a token for each byte; it has precedence over agreeing with other tokenizers, hence no
 * Unicode normalisation (bpe.c) and the spelling of U+2581 in bytes (spm.c).
 *
 * A tokenizer never changes after open and keeps no cache: a cache of words would be shared by threads, and encoding
 * at tens of megabytes per second is no part of the time of a prompt.
 */
#include "model/tokenizer.h"

#include <nearkv/model.h>
#include <string.h>

#include "base/mem.h"
#include "model/bpe.h"
#include "model/spm.h"
#include "model/tokenizer_special.h"

struct nkv_tokenizer {
    struct nkv_vocab vocab;
    struct nkv_specials specials;
    struct nkv_spm *spm; /* one of the two is NULL */
    struct nkv_bpe *bpe;
    bool adds_bos;
};

static int load(const struct nkv_gguf *gguf, struct nkv_tokenizer *t)
{
    static const char bos_key[] = "tokenizer.ggml.add_bos_token";

    TRY(nkv_vocab_open(gguf, &t->vocab));
    TRY(nkv_specials_open(&t->vocab, &t->specials));
    if (t->vocab.kind == NKV_VOCAB_SPM)
        TRY(nkv_spm_open(gguf, &t->vocab, &t->spm));
    else
        TRY(nkv_bpe_open(gguf, &t->vocab, &t->bpe));
    t->adds_bos = t->spm || nkv_pretok_adds_bos(nkv_bpe_pretok(t->bpe));
    if (nkv_gguf_has(gguf, bos_key))
        TRY(nkv_gguf_bool(gguf, bos_key, &t->adds_bos));
    return 0;
}

int nkv_tokenizer_open(const struct nkv_gguf *gguf, struct nkv_tokenizer **tokenizer_out)
{
    struct nkv_tokenizer *t;
    int status;

    TRY(nkv_alloc(1, sizeof *t, &t));
    status = load(gguf, t);
    if (status < 0) {
        nkv_tokenizer_close(t);
        return status;
    }
    *tokenizer_out = t;
    return 0;
}

void nkv_tokenizer_close(struct nkv_tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    nkv_bpe_close(tokenizer->bpe);
    nkv_spm_close(tokenizer->spm);
    nkv_specials_close(&tokenizer->specials);
    nkv_vocab_close(&tokenizer->vocab);
    nkv_free(tokenizer);
}

uint32_t nkv_tokenizer_n_vocab(const struct nkv_tokenizer *tokenizer)
{
    return tokenizer->vocab.n;
}

bool nkv_tokenizer_is_end(const struct nkv_tokenizer *tokenizer, int32_t token)
{
    return token >= 0 && (uint32_t)token < tokenizer->vocab.n && tokenizer->vocab.ends[token];
}

/* ---- Encoding */

/* The memory of one call. */
struct job {
    const struct nkv_tokenizer *tokenizer;
    struct nkv_words words; /* of byte-level BPE */
    struct nkv_merger merger;
    struct nkv_tokens tokens;
};

static int encode_plain(struct job *job, const char *text, size_t bytes)
{
    const struct nkv_tokenizer *t = job->tokenizer;

    if (bytes == 0)
        return 0;
    return t->spm ? nkv_spm_encode(t->spm, text, bytes, &job->merger, &job->tokens)
                  : nkv_bpe_encode(t->bpe, text, bytes, &job->words, &job->merger, &job->tokens);
}

static int encode(struct job *job, const char *text, size_t bytes, unsigned flags)
{
    const struct nkv_tokenizer *t = job->tokenizer;
    struct nkv_special special = {0};
    size_t at = 0;

    if ((flags & NKV_TOKENIZE_BOS) && t->adds_bos && t->vocab.bos != NKV_TOKEN_NONE)
        TRY(nkv_tokens_push(&job->tokens, t->vocab.bos));
    while (nkv_specials_find(&t->specials, text, bytes, at, flags & NKV_TOKENIZE_SPECIAL, &special)) {
        TRY(encode_plain(job, text + at, special.start - at));
        TRY(nkv_tokens_push(&job->tokens, special.token));
        at = special.start + special.bytes;
    }
    return bytes ? encode_plain(job, text + at, bytes - at) : 0;
}

/* An empty text still gives an array that the caller can free. */
static int run(struct job *job, const char *text, size_t bytes, unsigned flags)
{
    if (job->tokenizer->bpe)
        TRY(nkv_words_open(nkv_bpe_pretok(job->tokenizer->bpe), &job->words));
    TRY(encode(job, text, bytes, flags));
    return job->tokens.ids ? 0 : nkv_alloc(1, sizeof *job->tokens.ids, &job->tokens.ids);
}

int nkv_tokenizer_encode(const struct nkv_tokenizer *tokenizer, const char *text, size_t bytes, unsigned flags,
                         int32_t **tokens_out, size_t *n_out)
{
    struct job job = {.tokenizer = tokenizer};
    int status;

    if (bytes >= UINT32_MAX)
        FAIL(NKV_EINVAL, "text of %zu bytes: less than 4 GiB can be tokenized in one call", bytes);
    status = run(&job, text, bytes, flags);
    nkv_words_close(&job.words);
    nkv_merger_close(&job.merger);
    if (status < 0) {
        nkv_free(job.tokens.ids);
        return status;
    }
    *tokens_out = job.tokens.ids;
    *n_out = job.tokens.n;
    return 0;
}

/* ---- Decoding */

/* Whether the token's text is left out, since it is no text of the sequence. */
static bool is_hidden(const struct nkv_vocab *v, uint32_t token, unsigned flags)
{
    return !(flags & NKV_TOKENIZE_SPECIAL) &&
           (v->type[token] == NKV_TOKEN_CONTROL || v->type[token] == NKV_TOKEN_UNKNOWN);
}

/* Copies a token's text, U+2581 as space where that is its meaning; returns the end of what was written. */
static char *put_text(const struct nkv_vocab *v, uint32_t token, char *at)
{
    static const char mark[] = "\xe2\x96\x81";
    struct nkv_str text = v->text[token];
    bool marks = v->kind == NKV_VOCAB_SPM && (v->type[token] == NKV_TOKEN_NORMAL || v->type[token] == NKV_TOKEN_UNUSED);

    for (size_t i = 0; i < text.bytes; i++) {
        if (marks && text.bytes - i >= 3 && memcmp(text.data + i, mark, 3) == 0) {
            *at++ = ' ';
            i += 2;
        } else {
            *at++ = text.data[i];
        }
    }
    return at;
}

static char *decode(const struct nkv_tokenizer *t, const int32_t *tokens, size_t n, unsigned flags, char *at)
{
    bool prefixed = t->spm && nkv_spm_adds_space(t->spm);
    bool at_start = true;

    for (size_t i = 0; i < n; i++) {
        uint32_t token = (uint32_t)tokens[i];
        char *end = is_hidden(&t->vocab, token, flags) ? at : put_text(&t->vocab, token, at);
        bool special = nkv_vocab_is_special(&t->vocab, token);

        if (prefixed && at_start && !special && end > at && *at == ' ')
            memmove(at, at + 1, (size_t)(--end - at));
        at_start = special;
        at = end;
    }
    return at;
}

int nkv_tokenizer_decode(const struct nkv_tokenizer *tokenizer, const int32_t *tokens, size_t n, unsigned flags,
                         char **text_out, size_t *bytes_out)
{
    size_t bytes = 1;
    char *text, *end;

    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= tokenizer->vocab.n)
            FAIL(NKV_EINVAL, "token %d is outside the vocabulary of %u tokens", tokens[i], tokenizer->vocab.n);
        bytes += tokenizer->vocab.text[tokens[i]].bytes;
    }
    TRY(nkv_alloc(bytes, 1, &text));
    end = decode(tokenizer, tokens, n, flags, text);
    *end = 0;
    *bytes_out = (size_t)(end - text);
    *text_out = text;
    return 0;
}
