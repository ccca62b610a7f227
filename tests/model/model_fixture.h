/* SPDX-License-Identifier: Apache-2.0 */
/* What the model tests share: fixtures, their conversion to other types, and a model with its context and decoder. */
#ifndef NKV_TESTS_MODEL_FIXTURE_H
#define NKV_TESTS_MODEL_FIXTURE_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nearkv/model.h>

#include "base/mem.h"
#include "kernels/kernels.h"
#include "model/gguf.h"
#include "model/gguf_write.h"

static const char *const fixture_names[] = {"llama", "llama-rope", "llama-tied", "qwen2"};
#define N_FIXTURES (sizeof fixture_names / sizeof *fixture_names)

#define assert_ok(call)                                                                                                \
    do {                                                                                                               \
        int status_ = (call);                                                                                          \
        if (status_ < 0)                                                                                               \
            fail_msg("%s: %s: %s", #call, nkv_status_name(status_), nkv_last_error());                                 \
    } while (0)

static inline void fixture_path(const char *name, const char *suffix, char path[512])
{
    snprintf(path, 512, "%s/fixtures/model/%s.%s", NKV_TEST_DIR, name, suffix);
}

/* n elements of a matrix in another type; q8_0: blocks along the row. */
static inline void encode(enum nkv_dtype dtype, size_t n, const float *x, void *out)
{
    uint8_t *block = out;

    if (dtype != NKV_Q8_0) {
        nkv_kernels_find("ref")->store[dtype](1, n, x, out, NULL);
        return;
    }
    for (size_t i = 0; i < n; i += 32, block += 34) {
        float max = 0, scale;
        uint16_t bits;

        for (size_t j = 0; j < 32; j++)
            max = fmaxf(max, fabsf(x[i + j]));
        bits = nkv_f32_to_f16(max / 127);
        scale = nkv_f16_to_f32(bits);
        memcpy(block, &bits, sizeof bits);
        for (size_t j = 0; j < 32; j++)
            block[2 + j] = (uint8_t)(int8_t)lrintf(scale > 0 ? fminf(fmaxf(x[i + j] / scale, -127), 127) : 0);
    }
}

static inline void copy_keys(const struct nkv_gguf *from, struct nkv_gguf_writer *to)
{
    static const char *const u32[] = {"block_count",          "context_length",
                                      "embedding_length",     "feed_forward_length",
                                      "attention.head_count", "attention.head_count_kv",
                                      "attention.key_length", "attention.value_length",
                                      "rope.dimension_count", "vocab_size"};
    static const char *const f32[] = {"attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor"};
    struct nkv_str s;
    char architecture[16], key[64], text[32];
    uint32_t u;
    float f;

    assert_ok(nkv_gguf_str(from, "general.architecture", &s));
    snprintf(architecture, sizeof architecture, "%.*s", (int)s.bytes, s.data);
    nkv_gguf_put_str(to, "general.architecture", architecture);
    for (size_t i = 0; i < sizeof u32 / sizeof *u32; i++) {
        snprintf(key, sizeof key, "%s.%s", architecture, u32[i]);
        if (nkv_gguf_u32(from, key, &u) == 0)
            nkv_gguf_put_u32(to, key, u);
    }
    for (size_t i = 0; i < sizeof f32 / sizeof *f32; i++) {
        snprintf(key, sizeof key, "%s.%s", architecture, f32[i]);
        if (nkv_gguf_f32(from, key, &f) == 0)
            nkv_gguf_put_f32(to, key, f);
    }
    snprintf(key, sizeof key, "%s.rope.scaling.type", architecture);
    if (nkv_gguf_str(from, key, &s) == 0) {
        snprintf(text, sizeof text, "%.*s", (int)s.bytes, s.data);
        nkv_gguf_put_str(to, key, text);
    }
}

/* Changes one tensor on its way, when `change` is not NULL. */
typedef void (*change_fn)(const char *name, float *x, size_t n);

/* A fixture with its matrices in another type (rows that are not whole blocks of q8_0: f16), as a file in memory to be
 * freed with nkv_free. */
static inline void convert_fixture(const char *name, enum nkv_dtype dtype, change_fn change, void **data_out,
                                   size_t *bytes_out)
{
    struct nkv_gguf *gguf;
    struct nkv_gguf_writer *writer;
    char path[512];

    fixture_path(name, "gguf", path);
    assert_ok(nkv_gguf_open(path, &gguf));
    assert_ok(nkv_gguf_writer_open(&writer));
    copy_keys(gguf, writer);
    for (uint64_t i = 0; i < nkv_gguf_n_tensors(gguf); i++) {
        const struct nkv_gguf_tensor *t = nkv_gguf_tensor_at(gguf, i);
        const enum nkv_dtype to = t->n_dims == 1 ? NKV_F32 : dtype == NKV_Q8_0 && t->dims[0] % 32 ? NKV_F16 : dtype;
        const size_t n = (size_t)(t->dims[0] * t->dims[1]);
        float *x = malloc(n * sizeof *x);
        void *out = malloc(n * sizeof *x);
        char tensor_name[64];

        snprintf(tensor_name, sizeof tensor_name, "%.*s", (int)t->name.bytes, t->name.data);
        nkv_kernels_find("ref")->load[t->dtype](1, n, t->data, NULL, x);
        if (change)
            change(tensor_name, x, n);
        encode(to, n, x, out);
        nkv_gguf_put_tensor(writer, tensor_name, t->n_dims, t->dims, to, out);
        free(out);
        free(x);
    }
    assert_ok(nkv_gguf_finish(writer, data_out, bytes_out));
    nkv_gguf_writer_close(writer);
    nkv_gguf_close(gguf);
}

/* NAME.expected, see tools/make_fixtures.py. */
struct expected {
    uint32_t n_prompt, n_generated, n_vocab;
    int32_t *tokens; /* [n_prompt + n_generated] */
    float *logits;   /* [n_generated][n_vocab] */
};

static inline void read_expected(const char *name, struct expected *e)
{
    char path[512];
    FILE *file;

    fixture_path(name, "expected", path);
    file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(e, sizeof(uint32_t), 3, file), 3);
    e->tokens = malloc((e->n_prompt + e->n_generated) * sizeof *e->tokens);
    e->logits = malloc((size_t)e->n_generated * e->n_vocab * sizeof *e->logits);
    assert_int_equal(fread(e->tokens, sizeof *e->tokens, e->n_prompt + e->n_generated, file),
                     e->n_prompt + e->n_generated);
    assert_int_equal(fread(e->logits, sizeof(float) * e->n_vocab, e->n_generated, file), e->n_generated);
    fclose(file);
}

static inline void free_expected(struct expected *e)
{
    free(e->tokens);
    free(e->logits);
}

/* A model with everything that it takes to run it. */
struct rig {
    struct nkv_device *device, *compute;
    struct nkv_context *context;
    struct nkv_decoder *decoder;
};

/* All but the decoder. */
static inline void rig_open_devices(struct nkv_model *model, const char *device, enum nkv_dtype kv,
                                    uint32_t page_tokens, uint32_t n_threads, struct rig *rig)
{
    struct nkv_device_config config = {.size = sizeof config, .capacity_bytes = 16u << 20, .n_threads = n_threads};
    struct nkv_context_options context = {.size = sizeof context, .n_devices = 1, .max_batch = 4, .max_tokens = 64};

    nkv_model_kv_shape(model, page_tokens, kv, NKV_DIGEST_MINMAX, &config.shape);
    assert_ok(nkv_device_open(device, &config, &rig->device));
    assert_ok(nkv_device_open("cpu", &config, &rig->compute));
    context.shape = config.shape;
    context.devices = &rig->device;
    context.compute = rig->compute;
    assert_ok(nkv_context_open(&context, &rig->context));
}

static inline void rig_open(struct nkv_model *model, const char *device, enum nkv_dtype kv, uint32_t page_tokens,
                            uint32_t n_threads, struct rig *rig)
{
    struct nkv_decoder_options decoder = {
        .size = sizeof decoder, .n_threads = n_threads, .max_batch = 4, .chunk_tokens = 56};

    rig_open_devices(model, device, kv, page_tokens, n_threads, rig);
    assert_ok(nkv_decoder_open(model, rig->context, &decoder, &rig->decoder));
}

static inline void rig_close(struct rig *rig)
{
    nkv_decoder_close(rig->decoder);
    nkv_context_close(rig->context);
    nkv_device_close(rig->compute);
    nkv_device_close(rig->device);
}

static inline struct nkv_seq *open_seq(struct rig *rig, enum nkv_mode mode, uint32_t budget_tokens)
{
    struct nkv_seq_options options;
    struct nkv_seq *seq;

    nkv_seq_options_init(&options);
    options.mode = mode;
    options.max_tokens = 256;
    options.budget_tokens = budget_tokens;
    assert_ok(nkv_seq_open(rig->context, &options, &seq));
    return seq;
}

static inline double cosine(const float *a, const float *b, size_t n)
{
    double ab = 0, aa = 0, bb = 0;

    for (size_t i = 0; i < n; i++) {
        ab += (double)a[i] * b[i];
        aa += (double)a[i] * a[i];
        bb += (double)b[i] * b[i];
    }
    return ab / sqrt(aa * bb);
}

static inline int32_t argmax(const float *x, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return (int32_t)best;
}

#endif
