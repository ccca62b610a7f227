/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From GGUF's keys and tensors to a model, for the architectures `llama` and `qwen2`. Every tensor's shape is compared
 * with the shape that the keys imply, and a tensor that nothing asked for is refused by name: it would be a part of the
 * model that is silently left out, and the answers would be wrong without a word.
 *
 * The two differ in three places. llama's q and k rows were permuted by the converter so that rotary pairs are
 * neighbours (2i, 2i + 1), qwen2 keeps the halves (i, i + n_rot/2); qwen2 must have QKV biases; llama may carry
 * rope_freqs.weight: Llama-3's scaling as one divisor per frequency.
 */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "kernels/kernels.h"
#include "model/weights.h"

#define MAX_NAME 96

struct loader {
    struct nkv_model *model;
    const struct nkv_gguf *gguf;
    uint8_t *used; /* [n_tensors] */
    uint64_t bytes_of[NKV_DTYPE_COUNT];
};

/* ---- Keys */

static const char *key_of(const struct loader *ld, const char *suffix, char buffer[MAX_NAME])
{
    snprintf(buffer, MAX_NAME, "%s.%s", ld->model->info.architecture, suffix);
    return buffer;
}

static int key_u32(const struct loader *ld, const char *suffix, uint32_t *value_out)
{
    char key[MAX_NAME];

    if (nkv_gguf_u32(ld->gguf, key_of(ld, suffix, key), value_out) == NKV_ENOENT)
        FAIL(NKV_EFORMAT, "%s: key %s is missing", nkv_gguf_name(ld->gguf), key);
    return nkv_gguf_u32(ld->gguf, key, value_out);
}

static int key_u32_or(const struct loader *ld, const char *suffix, uint32_t fallback, uint32_t *value_out)
{
    char key[MAX_NAME];

    if (!nkv_gguf_has(ld->gguf, key_of(ld, suffix, key))) {
        *value_out = fallback;
        return 0;
    }
    return nkv_gguf_u32(ld->gguf, key, value_out);
}

static int key_f32_or(const struct loader *ld, const char *suffix, float fallback, float *value_out)
{
    char key[MAX_NAME];

    if (!nkv_gguf_has(ld->gguf, key_of(ld, suffix, key))) {
        *value_out = fallback;
        return 0;
    }
    return nkv_gguf_f32(ld->gguf, key, value_out);
}

static bool str_is(struct nkv_str s, const char *text)
{
    return s.bytes == strlen(text) && memcmp(s.data, text, s.bytes) == 0;
}

/* For people: control characters, which a terminal would obey, become '?'. */
static void copy_str(struct nkv_str s, char *out, size_t size)
{
    size_t n = s.bytes < size - 1 ? s.bytes : size - 1;

    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)s.data[i] < 0x20 || s.data[i] == 0x7f ? '?' : s.data[i];
    out[n] = '\0';
}

static int load_architecture(struct loader *ld)
{
    struct nkv_model *model = ld->model;
    struct nkv_str name = {0};

    if (nkv_gguf_str(ld->gguf, "general.architecture", &name) < 0)
        FAIL(NKV_EFORMAT, "%s: key general.architecture is missing or not a string", nkv_gguf_name(ld->gguf));
    if (!str_is(name, "llama") && !str_is(name, "qwen2"))
        FAIL(NKV_ENOTSUP, "%s: architecture %.*s is not supported (llama and qwen2 are)", nkv_gguf_name(ld->gguf),
             name.bytes < 64 ? (int)name.bytes : 64, name.data);
    copy_str(name, model->info.architecture, sizeof model->info.architecture);
    model->rotates_halves = str_is(name, "qwen2");
    if (nkv_gguf_has(ld->gguf, "general.name")) {
        TRY(nkv_gguf_str(ld->gguf, "general.name", &name));
        copy_str(name, model->info.name, sizeof model->info.name);
    } else {
        snprintf(model->info.name, sizeof model->info.name, "%s", nkv_gguf_name(ld->gguf));
    }
    return 0;
}

/* What a file may ask for and we do not have. */
static int refuse_extras(const struct loader *ld)
{
    static const char *const suffixes[] = {"expert_count", "attention.sliding_window"};
    uint32_t value;

    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        TRY(key_u32_or(ld, suffixes[i], 0, &value));
        if (value)
            FAIL(NKV_ENOTSUP, "%s: key %s.%s is %u: that is not supported", nkv_gguf_name(ld->gguf),
                 ld->model->info.architecture, suffixes[i], value);
    }
    return 0;
}

static int load_head_dim(struct loader *ld)
{
    struct nkv_model_info *info = &ld->model->info;
    uint32_t value_length;

    if (info->n_heads == 0)
        FAIL(NKV_EFORMAT, "%s: key %s.attention.head_count is 0", nkv_gguf_name(ld->gguf), info->architecture);
    TRY(key_u32_or(ld, "attention.key_length", info->n_embd / info->n_heads, &info->head_dim));
    TRY(key_u32_or(ld, "attention.value_length", info->head_dim, &value_length));
    if (value_length != info->head_dim)
        FAIL(NKV_ENOTSUP, "%s: keys of %u and values of %u elements: they must be equal", nkv_gguf_name(ld->gguf),
             info->head_dim, value_length);
    return key_u32_or(ld, "rope.dimension_count", info->head_dim, &ld->model->n_rot);
}

static int load_shape(struct loader *ld)
{
    struct nkv_model_info *info = &ld->model->info;
    const struct nkv_gguf_tensor *embd = nkv_gguf_tensor(ld->gguf, "token_embd.weight");

    if (!embd)
        FAIL(NKV_EFORMAT, "%s: tensor token_embd.weight is missing", nkv_gguf_name(ld->gguf));
    if (embd->dims[1] > UINT32_MAX)
        FAIL(NKV_EFORMAT, "%s: tensor token_embd.weight has %" PRIu64 " rows", nkv_gguf_name(ld->gguf), embd->dims[1]);
    info->n_vocab = (uint32_t)embd->dims[1];
    TRY(key_u32(ld, "block_count", &info->n_layers));
    TRY(key_u32(ld, "embedding_length", &info->n_embd));
    TRY(key_u32(ld, "feed_forward_length", &info->n_ff));
    TRY(key_u32(ld, "attention.head_count", &info->n_heads));
    TRY(key_u32_or(ld, "attention.head_count_kv", info->n_heads, &info->n_kv_heads));
    TRY(key_u32_or(ld, "context_length", 0, &info->context_length));
    TRY(key_f32_or(ld, "attention.layer_norm_rms_epsilon", 1e-5f, &info->rms_eps));
    TRY(key_f32_or(ld, "rope.freq_base", 10000.0f, &info->rope_base));
    TRY(load_head_dim(ld));
    return nkv_model_layout(ld->model);
}

/* ---- Tensors */

static const struct nkv_gguf_tensor *take(struct loader *ld, const char *name)
{
    const struct nkv_gguf_tensor *t = nkv_gguf_tensor(ld->gguf, name);

    if (t && !ld->used[t - nkv_gguf_tensor_at(ld->gguf, 0)]) {
        ld->used[t - nkv_gguf_tensor_at(ld->gguf, 0)] = 1;
        ld->bytes_of[t->dtype] += t->bytes;
        ld->model->info.weight_bytes += t->bytes;
        ld->model->info.n_parameters += t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    }
    return t;
}

static int check_dims(const struct loader *ld, const char *name, const struct nkv_gguf_tensor *t, uint32_t n_cols,
                      uint32_t n_rows)
{
    if (t->dims[0] != n_cols || t->dims[1] != n_rows || t->dims[2] != 1 || t->dims[3] != 1)
        FAIL(NKV_EFORMAT,
             "%s: tensor %s is %" PRIu64 " x %" PRIu64 " x %" PRIu64 " x %" PRIu64
             ", but the model's keys make it %u x %u",
             nkv_gguf_name(ld->gguf), name, t->dims[0], t->dims[1], t->dims[2], t->dims[3], n_cols, n_rows);
    return 0;
}

static int take_matrix(struct loader *ld, const char *name, uint32_t n_rows, uint32_t n_cols, struct nkv_matrix *out)
{
    const struct nkv_gguf_tensor *t = take(ld, name);

    if (!t)
        FAIL(NKV_EFORMAT, "%s: tensor %s is missing", nkv_gguf_name(ld->gguf), name);
    TRY(check_dims(ld, name, t, n_cols, n_rows));
    *out = (struct nkv_matrix){t->data, t->dtype, n_rows, n_cols};
    return 0;
}

/* *out stays NULL when there is no such tensor and it is not required. */
static int take_vector(struct loader *ld, const char *name, uint32_t n, bool required, float **out)
{
    const struct nkv_gguf_tensor *t = take(ld, name);

    if (!t && !required)
        return 0;
    if (!t)
        FAIL(NKV_EFORMAT, "%s: tensor %s is missing", nkv_gguf_name(ld->gguf), name);
    TRY(check_dims(ld, name, t, n, 1));
    if (t->dtype == NKV_Q8_0)
        FAIL(NKV_ENOTSUP, "%s: tensor %s is a vector of type Q8_0: only F32, F16 and BF16 are supported for vectors",
             nkv_gguf_name(ld->gguf), name);
    TRY(nkv_alloc(n, sizeof **out, out));
    nkv_kernels()->load[t->dtype](1, n, t->data, NULL, *out);
    return 0;
}

static int load_layer(struct loader *ld, uint32_t l)
{
    const struct nkv_model_info *info = &ld->model->info;
    struct nkv_layer_weights *layer = &ld->model->layers[l];
    const uint32_t d = info->n_embd, nq = nkv_q_rows(info), nkv = nkv_kv_rows(info), ff = info->n_ff;
    const bool biased = ld->model->rotates_halves;
    const struct {
        const char *name;
        uint32_t n_rows, n_cols;
        struct nkv_matrix *out;
    } matrices[] = {
        {"attn_q", nq, d, &layer->q},      {"attn_k", nkv, d, &layer->k},     {"attn_v", nkv, d, &layer->v},
        {"attn_output", d, nq, &layer->o}, {"ffn_gate", ff, d, &layer->gate}, {"ffn_up", ff, d, &layer->up},
        {"ffn_down", d, ff, &layer->down},
    };
    const struct {
        const char *name;
        uint32_t n;
        bool required;
        float **out;
    } vectors[] = {
        {"attn_norm.weight", d, true, &layer->attn_norm}, {"ffn_norm.weight", d, true, &layer->ffn_norm},
        {"attn_q.bias", nq, biased, &layer->q_bias},      {"attn_k.bias", nkv, biased, &layer->k_bias},
        {"attn_v.bias", nkv, biased, &layer->v_bias},
    };
    char name[MAX_NAME];

    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        snprintf(name, sizeof name, "blk.%u.%s.weight", l, matrices[i].name);
        TRY(take_matrix(ld, name, matrices[i].n_rows, matrices[i].n_cols, matrices[i].out));
    }
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        snprintf(name, sizeof name, "blk.%u.%s", l, vectors[i].name);
        TRY(take_vector(ld, name, vectors[i].n, vectors[i].required, vectors[i].out));
    }
    return 0;
}

static int load_tensors(struct loader *ld)
{
    struct nkv_model *model = ld->model;
    struct nkv_model_info *info = &model->info;

    TRY(take_matrix(ld, "token_embd.weight", info->n_vocab, info->n_embd, &model->token_embd));
    TRY(take_vector(ld, "output_norm.weight", info->n_embd, true, &model->output_norm));
    info->tied_embeddings = nkv_gguf_tensor(ld->gguf, "output.weight") == NULL;
    TRY(take_matrix(ld, info->tied_embeddings ? "token_embd.weight" : "output.weight", info->n_vocab, info->n_embd,
                    &model->output));
    for (uint32_t l = 0; l < info->n_layers; l++)
        TRY(load_layer(ld, l));
    for (int t = 0; t < NKV_DTYPE_COUNT; t++)
        if (ld->bytes_of[t] > ld->bytes_of[info->weight_dtype])
            info->weight_dtype = (enum nkv_dtype)t;
    return 0;
}

static int refuse_unused(const struct loader *ld)
{
    for (uint64_t i = 0; i < nkv_gguf_n_tensors(ld->gguf); i++) {
        struct nkv_str name = nkv_gguf_tensor_at(ld->gguf, i)->name;

        if (!ld->used[i])
            FAIL(NKV_ENOTSUP, "%s: tensor %.*s is not part of a %s model that is supported", nkv_gguf_name(ld->gguf),
                 name.bytes < 64 ? (int)name.bytes : 64, name.data, ld->model->info.architecture);
    }
    return 0;
}

/* ---- Rotary scaling */

/* Divides the frequencies by rope_freqs.weight (Llama-3's scaling, worked out by the converter). */
static int apply_rope_freqs(struct loader *ld)
{
    float *factors = NULL;
    int status = take_vector(ld, "rope_freqs.weight", ld->model->n_rot / 2, false, &factors);

    for (uint32_t i = 0; status == 0 && factors && i < ld->model->n_rot / 2; i++) {
        if (!isfinite(factors[i]) || factors[i] <= 0)
            status = nkv_fail(NKV_EFORMAT, "%s: tensor rope_freqs.weight: element %u is %g: it must be positive",
                              nkv_gguf_name(ld->gguf), i, (double)factors[i]);
        ld->model->frequency[i] /= factors[i];
    }
    nkv_free(factors);
    return status;
}

static int apply_scaling(struct loader *ld)
{
    char key[MAX_NAME];
    struct nkv_str type = {"none", 4};
    float factor = 1;

    if (nkv_gguf_has(ld->gguf, key_of(ld, "rope.scaling.type", key)))
        TRY(nkv_gguf_str(ld->gguf, key, &type));
    if (!str_is(type, "none") && !str_is(type, "linear"))
        FAIL(NKV_ENOTSUP, "%s: key %s is %.*s: only none, linear and the tensor rope_freqs.weight are supported",
             nkv_gguf_name(ld->gguf), key, type.bytes < 32 ? (int)type.bytes : 32, type.data);
    if (str_is(type, "linear"))
        TRY(key_f32_or(ld, "rope.scaling.factor", 1, &factor));
    if (!isfinite(factor) || factor <= 0)
        FAIL(NKV_EFORMAT, "%s: key %s.rope.scaling.factor is %g: it must be positive", nkv_gguf_name(ld->gguf),
             ld->model->info.architecture, (double)factor);
    for (uint32_t i = 0; i < ld->model->n_rot / 2; i++)
        ld->model->frequency[i] /= factor;
    return apply_rope_freqs(ld);
}

/* ---- The whole */

static int load_tokenizer(struct loader *ld)
{
    struct nkv_model *model = ld->model;

    if (!nkv_gguf_has(ld->gguf, "tokenizer.ggml.model"))
        return 0;
    TRY(nkv_tokenizer_open(ld->gguf, &model->tokenizer));
    if (nkv_tokenizer_n_vocab(model->tokenizer) > model->info.n_vocab)
        FAIL(NKV_EFORMAT, "%s: the tokenizer has %u tokens, but tensor token_embd.weight only %u rows",
             nkv_gguf_name(ld->gguf), nkv_tokenizer_n_vocab(model->tokenizer), model->info.n_vocab);
    return 0;
}

static int load_all(struct loader *ld)
{
    TRY(load_architecture(ld));
    TRY(refuse_extras(ld));
    TRY(load_shape(ld));
    TRY(load_tensors(ld));
    TRY(apply_scaling(ld));
    TRY(refuse_unused(ld));
    return load_tokenizer(ld);
}

int nkv_model_load(struct nkv_model *model)
{
    struct loader ld = {.model = model, .gguf = model->gguf};
    int status;

    TRY(nkv_alloc(nkv_gguf_n_tensors(ld.gguf), sizeof *ld.used, &ld.used));
    status = load_all(&ld);
    nkv_free(ld.used);
    return status;
}
