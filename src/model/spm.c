/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SentencePiece merges, among all adjacent pieces whose concatenation is a token, the one with the highest score, the
 * leftmost among equals. The concatenations are looked up once, when the tokenizer is opened: every way to split a
 * token into two pieces becomes a pair (left, right) -> token, ranked by score, and the merge loop of bpe_merge.c does
 * the rest. Pieces are tokens, or characters that occur only inside tokens; those get ids above the vocabulary's.
 *
 * Text is cut, before any merging, between two characters that stand side by side in no token: no merge can cross such
 * a cut, so the result is the same and the heap stays as small as a word. (Neighbours in a token that do not merge by
 * themselves are pairs with no result.) Rejected: one heap over the whole text, whose cache misses cost several times
 * as much on a megabyte.
 *
 * A space is U+2581 in the vocabulary. U+2581 itself, where the text has it, becomes the tokens of its three bytes, so
 * that decoding can tell the two apart; SentencePiece gives it back as a space. Only NORMAL tokens take part.
 */
#include "model/spm.h"

#include <string.h>

#include "base/mem.h"
#include "model/unicode.h"

#define SPACE_BYTES 3
static const char space_text[] = "\xe2\x96\x81"; /* U+2581 */

struct nkv_spm {
    const struct nkv_vocab *vocab;
    struct nkv_pairs merges;     /* (left, right) -> rank, token; token NKV_TOKEN_NONE: neighbours only */
    struct nkv_pairs characters; /* (bytes as a number, 0) -> symbol */
    uint32_t ascii[128];         /* the same for the frequent ones */
    uint32_t n_symbols;
    bool adds_space;
};

/* The length of the character at text; a malformed byte counts as one. */
static size_t character_bytes(const char *text, size_t bytes)
{
    size_t n = nkv_utf8_next(text, bytes);

    return n ? n : 1;
}

/* Different for any two characters or malformed bytes, and never NKV_TOKEN_NONE, which is not UTF-8. */
static uint32_t character_key(const char *text, size_t bytes)
{
    uint32_t key = 0;

    memcpy(&key, text, bytes);
    return key;
}

static bool is_space_mark(const char *text, size_t bytes)
{
    return bytes == SPACE_BYTES && memcmp(text, space_text, SPACE_BYTES) == 0;
}

static uint32_t find_character(const struct nkv_spm *spm, const char *text, size_t bytes)
{
    const struct nkv_pair *pair = nkv_pairs_get(&spm->characters, character_key(text, bytes), 0);

    return pair ? pair->id : NKV_TOKEN_NONE;
}

/* The symbol of a character inside a token; a new one where it has none yet. */
static int need_character(struct nkv_spm *spm, const char *text, size_t bytes, uint32_t *symbol_out)
{
    uint32_t symbol = find_character(spm, text, bytes);

    if (symbol == NKV_TOKEN_NONE) {
        symbol = nkv_strings_get(&spm->vocab->normal, text, bytes);
        if (symbol == NKV_TOKEN_NONE)
            symbol = spm->n_symbols++;
        TRY(nkv_pairs_put(&spm->characters, character_key(text, bytes), 0, 0, symbol));
    }
    *symbol_out = symbol;
    return 0;
}

static int add_pair(struct nkv_spm *spm, uint32_t left, uint32_t right, uint32_t rank, uint32_t token)
{
    struct nkv_pair *pair = nkv_pairs_get(&spm->merges, left, right);

    if (!pair)
        return nkv_pairs_put(&spm->merges, left, right, rank, token);
    if (token != NKV_TOKEN_NONE) {
        pair->rank = rank;
        pair->id = token;
    }
    return 0;
}

/* The symbol of a whole piece of a token, NKV_TOKEN_NONE where it is neither a token nor one character. */
static uint32_t find_piece(const struct nkv_spm *spm, const char *text, size_t bytes)
{
    if (character_bytes(text, bytes) == bytes)
        return find_character(spm, text, bytes);
    return nkv_strings_get(&spm->vocab->normal, text, bytes);
}

/* Adds every split of one token, and the neighbours inside it. */
static int add_token(struct nkv_spm *spm, uint32_t token, uint32_t rank)
{
    struct nkv_str text = spm->vocab->text[token];
    uint32_t before = NKV_TOKEN_NONE;

    for (size_t at = 0, step; at < text.bytes; at += step) {
        uint32_t symbol = NKV_TOKEN_NONE;

        step = character_bytes(text.data + at, text.bytes - at);
        TRY(need_character(spm, text.data + at, step, &symbol));
        if (at > 0)
            TRY(add_pair(spm, before, symbol, 0, NKV_TOKEN_NONE));
        before = symbol;
    }
    for (size_t at = character_bytes(text.data, text.bytes); at < text.bytes;
         at += character_bytes(text.data + at, text.bytes - at)) {
        uint32_t left = find_piece(spm, text.data, at);
        uint32_t right = find_piece(spm, text.data + at, text.bytes - at);

        if (left != NKV_TOKEN_NONE && right != NKV_TOKEN_NONE)
            TRY(add_pair(spm, left, right, rank, token));
    }
    return 0;
}

/* Orders scores as numbers, the highest first, equal ones equal. */
static uint32_t rank_of(float score)
{
    uint32_t bits;
    float positive_zero = score + 0.0f;

    memcpy(&bits, &positive_zero, sizeof bits);
    return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

static int add_tokens(const struct nkv_gguf *gguf, struct nkv_spm *spm)
{
    const struct nkv_vocab *v = spm->vocab;
    struct nkv_gguf_array scores = {0};

    TRY(nkv_gguf_array(gguf, "tokenizer.ggml.scores", NKV_GGUF_FLOAT, &scores));
    if (scores.n != v->n)
        FAIL(NKV_EFORMAT, "%s: %llu token scores for %u tokens", v->file, (unsigned long long)scores.n, v->n);
    for (uint32_t i = 0; i < v->n; i++) {
        float score;

        memcpy(&score, scores.data + 4 * (size_t)i, sizeof score);
        if (score != score)
            FAIL(NKV_EFORMAT, "%s: the score of token %u is not a number", v->file, i);
        if (v->type[i] == NKV_TOKEN_NORMAL)
            TRY(add_token(spm, i, rank_of(score)));
    }
    return 0;
}

static int load(const struct nkv_gguf *gguf, struct nkv_spm *spm)
{
    static const char prefix_key[] = "tokenizer.ggml.add_space_prefix";

    TRY(add_tokens(gguf, spm));
    for (uint32_t c = 0; c < 128; c++) {
        char text = (char)c;

        spm->ascii[c] = find_character(spm, &text, 1);
    }
    spm->ascii[' '] = find_character(spm, space_text, SPACE_BYTES);
    spm->adds_space = true;
    if (nkv_gguf_has(gguf, prefix_key))
        TRY(nkv_gguf_bool(gguf, prefix_key, &spm->adds_space));
    /* Without a token of its own the space could not be told from one of the text. */
    spm->adds_space = spm->adds_space && spm->ascii[' '] < spm->vocab->n;
    return 0;
}

int nkv_spm_open(const struct nkv_gguf *gguf, const struct nkv_vocab *vocab, struct nkv_spm **spm_out)
{
    struct nkv_spm *spm;
    int status;

    TRY(nkv_alloc(1, sizeof *spm, &spm));
    spm->vocab = vocab;
    spm->n_symbols = vocab->n;
    status = load(gguf, spm);
    if (status < 0) {
        nkv_spm_close(spm);
        return status;
    }
    *spm_out = spm;
    return 0;
}

void nkv_spm_close(struct nkv_spm *spm)
{
    if (!spm)
        return;
    nkv_pairs_close(&spm->merges);
    nkv_pairs_close(&spm->characters);
    nkv_free(spm);
}

bool nkv_spm_adds_space(const struct nkv_spm *spm)
{
    return spm->adds_space;
}

static uint32_t symbol_of(const struct nkv_spm *spm, const char *text, size_t bytes)
{
    if ((uint8_t)text[0] < 128)
        return spm->ascii[(uint8_t)text[0]];
    return is_space_mark(text, bytes) ? NKV_TOKEN_NONE : find_character(spm, text, bytes);
}

/* Merges and appends the symbols gathered so far, which end at text[end]. */
static int flush(const struct nkv_spm *spm, const char *text, size_t end, struct nkv_merger *merger,
                 struct nkv_tokens *tokens)
{
    TRY(nkv_merger_run(merger, &spm->merges));
    TRY(nkv_vocab_emit(spm->vocab, merger, text, end, tokens));
    merger->n = 0;
    return 0;
}

int nkv_spm_encode(const struct nkv_spm *spm, const char *text, size_t bytes, struct nkv_merger *merger,
                   struct nkv_tokens *tokens)
{
    uint32_t before = spm->ascii[' '];

    merger->n = 0;
    if (spm->adds_space)
        TRY(nkv_merger_add(merger, before, 0));
    for (size_t at = 0, step; at < bytes; at += step) {
        uint32_t symbol;

        step = character_bytes(text + at, bytes - at);
        symbol = symbol_of(spm, text + at, step);
        if (merger->n && !nkv_pairs_get(&spm->merges, before, symbol))
            TRY(flush(spm, text, at, merger, tokens));
        TRY(nkv_merger_add(merger, symbol, (uint32_t)at));
        before = symbol;
    }
    return flush(spm, text, bytes, merger, tokens);
}
