/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte-level BPE starts each word with one symbol per byte and merges the adjacent pair of lowest rank, where the rank
 * is the place in tokenizer.ggml.merges. The merges are spelled as two tokens and a space; they are resolved to token
 * ids here once, so that encoding compares numbers. A merge whose parts or result are no tokens, or that is listed
 * twice, is an error, as in the `tokenizers` package: it would split text differently from how the model was trained.
 *
 * Text is taken as it is. Qwen2's original tokenizer first normalises to NFC, which would make decode(encode(text))
 * differ from text; giving any bytes back was preferred. Text that is NFC already, as nearly all is, gives the
 * same tokens.
 */
#include "model/bpe.h"

#include <string.h>

#include "base/mem.h"
#include "model/unicode.h"

#define MAX_PART_BYTES 1024u /* no token is longer */
#define SHOWN_BYTES    64

struct nkv_bpe {
    const struct nkv_vocab *vocab;
    struct nkv_pairs merges;
    struct nkv_pretok *pretok;
};

/* Decodes one part of a merge behind buffer[*n]. returns: its token, NKV_TOKEN_NONE where there is none. */
static uint32_t find_part(const struct nkv_bpe *bpe, const char *spelled, size_t bytes, char *buffer, size_t *n)
{
    size_t decoded = bytes <= MAX_PART_BYTES ? nkv_alphabet_decode(spelled, bytes, buffer + *n) : NKV_ALPHABET_FOREIGN;
    const char *part = buffer + *n;

    if (decoded == NKV_ALPHABET_FOREIGN)
        return NKV_TOKEN_NONE;
    *n += decoded;
    return nkv_strings_get(&bpe->vocab->normal, part, decoded);
}

static int add_merge(struct nkv_bpe *bpe, uint32_t rank, struct nkv_str merge)
{
    char text[2 * MAX_PART_BYTES];
    const char *space = merge.bytes ? memchr(merge.data, ' ', merge.bytes) : NULL;
    uint32_t left = NKV_TOKEN_NONE, right = NKV_TOKEN_NONE, whole = NKV_TOKEN_NONE;
    size_t n = 0;

    if (space) {
        size_t left_bytes = (size_t)(space - merge.data);

        left = find_part(bpe, merge.data, left_bytes, text, &n);
        right = find_part(bpe, space + 1, merge.bytes - left_bytes - 1, text, &n);
        whole = nkv_strings_get(&bpe->vocab->normal, text, n);
    }
    if (left == NKV_TOKEN_NONE || right == NKV_TOKEN_NONE || whole == NKV_TOKEN_NONE)
        FAIL(NKV_EFORMAT, "%s: merge %u ('%.*s') is not two tokens that make a third", bpe->vocab->file, rank,
             merge.bytes < SHOWN_BYTES ? (int)merge.bytes : SHOWN_BYTES, merge.data);
    if (nkv_pairs_get(&bpe->merges, left, right))
        FAIL(NKV_EFORMAT, "%s: merge %u is listed before", bpe->vocab->file, rank);
    return nkv_pairs_put(&bpe->merges, left, right, rank, whole);
}

static int load(const struct nkv_gguf *gguf, struct nkv_bpe *bpe)
{
    static const char pre_key[] = "tokenizer.ggml.pre";
    struct nkv_gguf_array merges = {0};
    struct nkv_str pre = {"default", 7};
    const uint8_t *cursor;

    if (nkv_gguf_has(gguf, pre_key))
        TRY(nkv_gguf_str(gguf, pre_key, &pre));
    TRY(nkv_pretok_open(pre, &bpe->pretok));
    TRY(nkv_gguf_array(gguf, "tokenizer.ggml.merges", NKV_GGUF_STRING, &merges));
    if (merges.n > INT32_MAX)
        FAIL(NKV_EFORMAT, "%s: %llu merges: at most 2147483647 are possible", bpe->vocab->file,
             (unsigned long long)merges.n);
    cursor = merges.data;
    for (uint32_t i = 0; i < merges.n; i++)
        TRY(add_merge(bpe, i, nkv_gguf_next_str(&cursor)));
    return 0;
}

int nkv_bpe_open(const struct nkv_gguf *gguf, const struct nkv_vocab *vocab, struct nkv_bpe **bpe_out)
{
    struct nkv_bpe *bpe;
    int status;

    TRY(nkv_alloc(1, sizeof *bpe, &bpe));
    bpe->vocab = vocab;
    status = load(gguf, bpe);
    if (status < 0) {
        nkv_bpe_close(bpe);
        return status;
    }
    *bpe_out = bpe;
    return 0;
}

void nkv_bpe_close(struct nkv_bpe *bpe)
{
    if (!bpe)
        return;
    nkv_pretok_close(bpe->pretok);
    nkv_pairs_close(&bpe->merges);
    nkv_free(bpe);
}

const struct nkv_pretok *nkv_bpe_pretok(const struct nkv_bpe *bpe)
{
    return bpe->pretok;
}

static int encode_word(const struct nkv_bpe *bpe, const char *word, size_t bytes, struct nkv_merger *merger,
                       struct nkv_tokens *tokens)
{
    const struct nkv_vocab *v = bpe->vocab;

    if (nkv_pretok_ignores_merges(bpe->pretok)) {
        uint32_t token = nkv_strings_get(&v->normal, word, bytes);

        if (token != NKV_TOKEN_NONE)
            return nkv_tokens_push(tokens, token);
    }
    merger->n = 0;
    for (size_t i = 0; i < bytes; i++) {
        uint32_t token = v->byte_token[(uint8_t)word[i]];

        TRY(nkv_merger_add(merger, token == v->unk ? NKV_TOKEN_NONE : token, (uint32_t)i));
    }
    TRY(nkv_merger_run(merger, &bpe->merges));
    return nkv_vocab_emit(v, merger, word, bytes, tokens);
}

int nkv_bpe_encode(const struct nkv_bpe *bpe, const char *text, size_t bytes, struct nkv_words *words,
                   struct nkv_merger *merger, struct nkv_tokens *tokens)
{
    size_t start = 0;
    int more;

    nkv_words_begin(words, text, bytes);
    while ((more = nkv_words_next(words)) > 0) {
        TRY(encode_word(bpe, text + start, words->end - start, merger, tokens));
        start = words->end;
    }
    return more;
}
