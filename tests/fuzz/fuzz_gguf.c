/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a GGUF file: opening fails with a status, or everything that the accessors hand out lies in the file.
 * What opens goes on to the tokenizer and to the model.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <nearkv/model.h>

#include "model/gguf.h"
#include "model/tokenizer.h"

static void check(bool condition)
{
    if (!condition)
        abort();
}

/* Reads each byte, for the sanitizer to object to. */
static uint8_t touch(const void *data, uint64_t bytes)
{
    const uint8_t *p = data;
    uint8_t sum = 0;

    for (uint64_t i = 0; i < bytes; i++)
        sum = (uint8_t)(sum + p[i]);
    return sum;
}

static void read_strings(const struct nkv_gguf *gguf, const char *key)
{
    struct nkv_gguf_array array;
    const uint8_t *cursor;
    volatile uint8_t sum = 0;

    if (nkv_gguf_array(gguf, key, NKV_GGUF_STRING, &array) < 0)
        return;
    cursor = array.data;
    for (uint64_t i = 0; i < array.n; i++) {
        struct nkv_str s = nkv_gguf_next_str(&cursor);

        sum = (uint8_t)(sum + touch(s.data, s.bytes));
    }
}

static void read_numbers(const struct nkv_gguf *gguf, const char *key)
{
    struct nkv_gguf_array array;
    struct nkv_str s;
    volatile uint8_t sum = 0;
    uint32_t u;
    float f;
    bool b;

    (void)nkv_gguf_u32(gguf, key, &u);
    (void)nkv_gguf_f32(gguf, key, &f);
    (void)nkv_gguf_bool(gguf, key, &b);
    if (nkv_gguf_str(gguf, key, &s) == 0)
        sum = touch(s.data, s.bytes);
    if (nkv_gguf_array(gguf, key, NKV_GGUF_FLOAT, &array) == 0)
        sum = (uint8_t)(sum + touch(array.data, 4 * array.n));
    if (nkv_gguf_array(gguf, key, NKV_GGUF_I32, &array) == 0)
        sum = (uint8_t)(sum + touch(array.data, 4 * array.n));
}

static void read_tensors(const struct nkv_gguf *gguf)
{
    volatile uint8_t sum = 0;

    for (uint64_t i = 0; i < nkv_gguf_n_tensors(gguf); i++) {
        const struct nkv_gguf_tensor *tensor = nkv_gguf_tensor_at(gguf, i);

        check(tensor->n_dims >= 1 && tensor->n_dims <= 4);
        sum = (uint8_t)(sum + touch(tensor->name.data, tensor->name.bytes) + touch(tensor->data, tensor->bytes));
    }
    (void)nkv_gguf_tensor(gguf, "token_embd.weight");
}

static void read_keys(const struct nkv_gguf *gguf)
{
    static const char *const keys[] = {
        "general.architecture",  "general.alignment",           "llama.block_count",     "llama.rope.freq_base",
        "tokenizer.ggml.model",  "tokenizer.ggml.tokens",       "tokenizer.ggml.scores", "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges", "tokenizer.ggml.add_bos_token"};

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        read_strings(gguf, keys[i]);
        read_numbers(gguf, keys[i]);
    }
}

/* A model that opens can tell about itself and, where it has a tokenizer, read text. */
static void open_model(const uint8_t *data, size_t bytes)
{
    struct nkv_model_info info = {0};
    struct nkv_model *model = NULL;
    int32_t *tokens = NULL;
    size_t n = 0;
    int status = nkv_model_open_memory(data, bytes, "fuzz", &model);

    check((status == 0) == (model != NULL));
    if (status < 0)
        return;
    nkv_model_info(model, &info);
    check(info.n_vocab > 0 && info.n_layers > 0);
    if (nkv_tokenize(model, "a b", 3, NKV_TOKENIZE_BOS, &tokens, &n) == 0)
        for (size_t i = 0; i < n; i++)
            check(tokens[i] >= 0 && (uint32_t)tokens[i] < info.n_vocab);
    nkv_tokens_free(tokens);
    nkv_model_close(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct nkv_tokenizer *tokenizer = NULL;
    struct nkv_gguf *gguf = NULL;
    int status = nkv_gguf_open_memory(data, bytes, "fuzz", &gguf);

    check((status == 0) == (gguf != NULL));
    if (status < 0) {
        check(nkv_last_error()[0] != 0);
        return 0;
    }
    read_keys(gguf);
    read_tensors(gguf);
    if (nkv_tokenizer_open(gguf, &tokenizer) == 0)
        nkv_tokenizer_close(tokenizer);
    nkv_gguf_close(gguf);
    open_model(data, bytes);
    return 0;
}
