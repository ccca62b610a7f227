/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first byte of the input says what to do. 0x80 clear: the rest is text for fixture vocabulary (byte & 3), with the
 * flags NKV_TOKENIZE_SPECIAL for 4 and NKV_TOKENIZE_BOS for 8; the text must come back, twice the same way. 0x80 set:
 * the second byte is the length of a text, then comes the text, then a GGUF file whose vocabulary it is for; nothing is
 * known of such a vocabulary but that its tokens are in range and decode.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nearkv/model.h>

#include "base/mem.h"
#include "model/tokenizer.h"

static void check(bool condition)
{
    if (!condition)
        abort();
}

static const struct nkv_tokenizer *fixture(unsigned i)
{
    static const char *const names[] = {"gpt2", "llama3", "qwen2", "spm"};
    static struct nkv_tokenizer *open[4];
    struct nkv_gguf *gguf;
    char path[512];

    if (open[i])
        return open[i];
    snprintf(path, sizeof path, "%s/fixtures/tokenizer/%s.gguf", NKV_TEST_DIR, names[i]);
    if (nkv_gguf_open(path, &gguf) < 0 || nkv_tokenizer_open(gguf, &open[i]) < 0) {
        fprintf(stderr, "%s\n", nkv_last_error());
        exit(1);
    }
    nkv_gguf_close(gguf);
    return open[i];
}

/* Encodes twice; the tokens are the same and in range. */
static size_t encode(const struct nkv_tokenizer *tokenizer, const char *text, size_t bytes, unsigned flags,
                     int32_t **tokens_out)
{
    int32_t *again = NULL;
    size_t n = 0, n_again = 0;

    check(nkv_tokenizer_encode(tokenizer, text, bytes, flags, tokens_out, &n) == 0);
    check(nkv_tokenizer_encode(tokenizer, text, bytes, flags, &again, &n_again) == 0);
    check(n == n_again && memcmp(*tokens_out, again, n * sizeof *again) == 0);
    nkv_free(again);
    for (size_t i = 0; i < n; i++)
        check((*tokens_out)[i] >= 0 && (uint32_t)(*tokens_out)[i] < nkv_tokenizer_n_vocab(tokenizer));
    return n;
}

static void decode(const struct nkv_tokenizer *tokenizer, const int32_t *tokens, size_t n, unsigned flags,
                   char **text_out, size_t *bytes_out)
{
    check(nkv_tokenizer_decode(tokenizer, tokens, n, flags, text_out, bytes_out) == 0);
    check((*text_out)[*bytes_out] == 0);
}

/* A begin-of-sequence token is no part of the text: leave out what an empty text has as well. */
static void check_round_trip(const struct nkv_tokenizer *tokenizer, const char *text, size_t bytes, unsigned flags)
{
    int32_t *tokens = NULL, *empty = NULL;
    char *back = NULL;
    size_t n = encode(tokenizer, text, bytes, flags, &tokens), n_empty = encode(tokenizer, text, 0, flags, &empty);
    size_t n_back = 0;

    decode(tokenizer, tokens + n_empty, n - n_empty, flags, &back, &n_back);
    check(n_back == bytes && memcmp(back, text, bytes) == 0);
    nkv_free(back);
    nkv_free(empty);
    nkv_free(tokens);
}

static void try_vocabulary(const char *text, size_t text_bytes, const uint8_t *data, size_t bytes)
{
    struct nkv_tokenizer *tokenizer = NULL;
    struct nkv_gguf *gguf = NULL;
    int32_t *tokens = NULL;
    char *back = NULL;
    size_t n, n_back = 0;

    if (nkv_gguf_open_memory(data, bytes, "fuzz", &gguf) < 0)
        return;
    if (nkv_tokenizer_open(gguf, &tokenizer) == 0) {
        n = encode(tokenizer, text, text_bytes, NKV_TOKENIZE_SPECIAL | NKV_TOKENIZE_BOS, &tokens);
        decode(tokenizer, tokens, n, NKV_TOKENIZE_SPECIAL, &back, &n_back);
        nkv_free(back);
        nkv_free(tokens);
        nkv_tokenizer_close(tokenizer);
    }
    nkv_gguf_close(gguf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    size_t text_bytes;

    if (bytes < 2)
        return 0;
    if (!(data[0] & 0x80)) {
        unsigned flags = (data[0] & 4 ? NKV_TOKENIZE_SPECIAL : 0u) | (data[0] & 8 ? NKV_TOKENIZE_BOS : 0u);

        check_round_trip(fixture(data[0] & 3), (const char *)data + 1, bytes - 1, flags);
        return 0;
    }
    text_bytes = data[1] < bytes - 2 ? data[1] : bytes - 2;
    try_vocabulary((const char *)data + 2, text_bytes, data + 2 + text_bytes, bytes - 2 - text_bytes);
    return 0;
}
