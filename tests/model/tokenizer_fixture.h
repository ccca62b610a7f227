/* SPDX-License-Identifier: Apache-2.0 */
/* What the tokenizer tests share: the committed vocabularies, and vocabularies built in memory. */
#ifndef NKV_TESTS_TOKENIZER_FIXTURE_H
#define NKV_TESTS_TOKENIZER_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nearkv/model.h>

#include "base/mem.h"
#include "model/gguf_write.h"
#include "model/tokenizer.h"

static const char *const fixture_names[] = {"gpt2", "llama3", "qwen2", "spm"};
#define N_FIXTURES (sizeof fixture_names / sizeof *fixture_names)

static inline struct nkv_tokenizer *open_fixture(const char *name)
{
    struct nkv_tokenizer *tokenizer = NULL;
    struct nkv_gguf *gguf = NULL;
    char path[512];

    snprintf(path, sizeof path, "%s/fixtures/tokenizer/%s.gguf", NKV_TEST_DIR, name);
    assert_int_equal(nkv_gguf_open(path, &gguf), 0);
    assert_int_equal(nkv_tokenizer_open(gguf, &tokenizer), 0);
    nkv_gguf_close(gguf);
    return tokenizer;
}

/* A vocabulary to be spoilt: a null pointer or a zero leaves the key out. */
struct recipe {
    const char *model, *pre;
    const char *const *tokens;
    const int32_t *types;
    const float *scores;
    const char *const *merges;
    uint64_t n_tokens, n_types, n_scores, n_merges;
    int64_t bos, eos, unk;       /* -1: left out */
    int add_bos, add_space;      /* -1: left out */
    const char *number_for_text; /* this key is written as a number */
};

static inline void put_strings(struct nkv_gguf_writer *writer, const char *key, uint64_t n, const char *const *strings)
{
    struct nkv_str *strs;

    assert_int_equal(nkv_alloc(n, sizeof *strs, &strs), 0);
    for (uint64_t i = 0; i < n; i++)
        strs[i] = (struct nkv_str){strings[i], strlen(strings[i])};
    nkv_gguf_put_strs(writer, key, n, strs);
    nkv_free(strs);
}

static inline void put_ids(struct nkv_gguf_writer *writer, const struct recipe *r)
{
    if (r->bos >= 0)
        nkv_gguf_put_u32(writer, "tokenizer.ggml.bos_token_id", (uint32_t)r->bos);
    if (r->eos >= 0)
        nkv_gguf_put_u32(writer, "tokenizer.ggml.eos_token_id", (uint32_t)r->eos);
    if (r->unk >= 0)
        nkv_gguf_put_u32(writer, "tokenizer.ggml.unknown_token_id", (uint32_t)r->unk);
    if (r->add_bos >= 0)
        nkv_gguf_put_bool(writer, "tokenizer.ggml.add_bos_token", r->add_bos);
    if (r->add_space >= 0)
        nkv_gguf_put_bool(writer, "tokenizer.ggml.add_space_prefix", r->add_space);
}

/* The recipe as a file in memory, to be freed with nkv_free. */
static inline void *build(const struct recipe *r, size_t *bytes_out)
{
    struct nkv_gguf_writer *writer = NULL;
    void *data = NULL;

    assert_int_equal(nkv_gguf_writer_open(&writer), 0);
    if (r->number_for_text)
        nkv_gguf_put_u32(writer, r->number_for_text, 1);
    if (r->model)
        nkv_gguf_put_str(writer, "tokenizer.ggml.model", r->model);
    if (r->pre)
        nkv_gguf_put_str(writer, "tokenizer.ggml.pre", r->pre);
    if (r->tokens)
        put_strings(writer, "tokenizer.ggml.tokens", r->n_tokens, r->tokens);
    if (r->types)
        nkv_gguf_put_array(writer, "tokenizer.ggml.token_type", NKV_GGUF_I32, r->n_types, r->types);
    if (r->scores)
        nkv_gguf_put_array(writer, "tokenizer.ggml.scores", NKV_GGUF_FLOAT, r->n_scores, r->scores);
    if (r->merges)
        put_strings(writer, "tokenizer.ggml.merges", r->n_merges, r->merges);
    put_ids(writer, r);
    assert_int_equal(nkv_gguf_finish(writer, &data, bytes_out), 0);
    nkv_gguf_writer_close(writer);
    return data;
}

/* Opens a recipe's tokenizer; the status. */
static inline int open_recipe(const struct recipe *r, struct nkv_tokenizer **tokenizer_out)
{
    struct nkv_gguf *gguf = NULL;
    size_t bytes = 0;
    void *data = build(r, &bytes);
    int status;

    assert_int_equal(nkv_gguf_open_memory(data, bytes, "recipe", &gguf), 0);
    status = nkv_tokenizer_open(gguf, tokenizer_out);
    nkv_gguf_close(gguf);
    nkv_free(data);
    return status;
}

static inline void check_round_trip(const struct nkv_tokenizer *tokenizer, const char *text, size_t bytes,
                                    unsigned flags)
{
    int32_t *tokens = NULL;
    char *back = NULL;
    size_t n = 0, n_back = 0;

    assert_int_equal(nkv_tokenizer_encode(tokenizer, text, bytes, flags, &tokens, &n), 0);
    assert_int_equal(nkv_tokenizer_decode(tokenizer, tokens, n, flags, &back, &n_back), 0);
    assert_int_equal(n_back, bytes);
    if (bytes)
        assert_memory_equal(back, text, bytes);
    assert_int_equal(back[bytes], 0);
    nkv_free(back);
    nkv_free(tokens);
}

#endif
