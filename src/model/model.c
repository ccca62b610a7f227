/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Models: open, close and describe. A model comes from a GGUF file, from the built-in needle model's image or, for
 * benchmarks, from a shape with random weights; all three end as the same struct nkv_model, and nothing past this file
 * and model_load.c knows which it was. Matrices are never copied: they stay in the mapping (or the image, or the
 * random region); only vectors are, as f32.
 */
#include <math.h>
#include <string.h>

#include "base/status.h"
#include "kernels/kernels.h"
#include "model/needle.h"
#include "model/weights.h"

#define MAX_VOCAB (1u << 24)
#define MAX_WIDTH (1u << 20) /* n_embd, n_ff */

static int check_range(const char *name, const char *what, uint32_t value, uint32_t max)
{
    if (value < 1 || value > max)
        FAIL(NKV_EFORMAT, "%s: %s is %u: it must be from 1 to %u", name, what, value, max);
    return 0;
}

static int check_info(const struct nkv_model *model)
{
    const struct nkv_model_info *info = &model->info;
    const char *name = model->gguf ? nkv_gguf_name(model->gguf) : info->name;
    struct nkv_kv_shape shape;

    TRY(check_range(name, "embedding length", info->n_embd, MAX_WIDTH));
    TRY(check_range(name, "feed forward length", info->n_ff, MAX_WIDTH));
    TRY(check_range(name, "vocabulary size", info->n_vocab, MAX_VOCAB));
    nkv_model_kv_shape(model, 32, NKV_F32, NKV_DIGEST_MINMAX, &shape);
    if (nkv_kv_shape_check(&shape) < 0)
        FAIL(NKV_EFORMAT, "%s: %u layers, %u heads, %u KV heads, head dimension %u: not a shape that is supported",
             name, info->n_layers, info->n_heads, info->n_kv_heads, info->head_dim);
    if (model->n_rot < 2 || model->n_rot % 2 || model->n_rot > info->head_dim)
        FAIL(NKV_EFORMAT, "%s: %u rotary dimensions: it must be even and at most the head dimension %u", name,
             model->n_rot, info->head_dim);
    if (!isfinite(info->rope_base) || info->rope_base <= 0 || !isfinite(info->rms_eps) || info->rms_eps < 0)
        FAIL(NKV_EFORMAT, "%s: rotary base %g or RMS epsilon %g makes no sense", name, (double)info->rope_base,
             (double)info->rms_eps);
    return 0;
}

int nkv_model_layout(struct nkv_model *model)
{
    TRY(check_info(model));
    TRY(nkv_alloc(model->info.n_layers, sizeof *model->layers, &model->layers));
    TRY(nkv_alloc(model->n_rot / 2, sizeof *model->frequency, &model->frequency));
    for (uint32_t i = 0; i < model->n_rot / 2; i++)
        model->frequency[i] = pow(model->info.rope_base, -2.0 * i / model->n_rot);
    model->shard = (struct nkv_shard){.n_ranks = 1,
                                      .n_heads = model->info.n_heads,
                                      .n_kv_heads = model->info.n_kv_heads,
                                      .n_ff = model->info.n_ff,
                                      .n_rows = model->info.n_vocab};
    return 0;
}

/* Takes over gguf and image, also on failure. */
static int open_gguf(struct nkv_gguf *gguf, void *image, struct nkv_model **model_out)
{
    struct nkv_model *model;
    int status = nkv_alloc(1, sizeof *model, &model);

    if (status < 0) {
        nkv_gguf_close(gguf);
        nkv_free(image);
        return status;
    }
    model->gguf = gguf;
    model->image = image;
    status = nkv_model_load(model);
    if (status < 0) {
        nkv_model_close(model);
        return status;
    }
    *model_out = model;
    return 0;
}

static int open_needle(struct nkv_model **model_out)
{
    struct nkv_gguf *gguf = NULL;
    void *image = NULL;
    size_t bytes = 0;
    int status;

    TRY(nkv_needle_build(NKV_F16, &image, &bytes));
    status = nkv_gguf_open_memory(image, bytes, "needle", &gguf);
    if (status < 0) {
        nkv_free(image);
        return status;
    }
    return open_gguf(gguf, image, model_out);
}

int nkv_model_open(const char *path, struct nkv_model **model_out)
{
    struct nkv_gguf *gguf = NULL;

    if (!path || !model_out)
        FAIL(NKV_EINVAL, "nkv_model_open: path or model_out is NULL");
    if (strcmp(path, "needle") == 0)
        return open_needle(model_out);
    TRY(nkv_gguf_open(path, &gguf));
    return open_gguf(gguf, NULL, model_out);
}

int nkv_model_open_memory(const void *data, size_t bytes, const char *name, struct nkv_model **model_out)
{
    struct nkv_gguf *gguf = NULL;

    if (!data || !name || !model_out)
        FAIL(NKV_EINVAL, "nkv_model_open_memory: data, name or model_out is NULL");
    TRY(nkv_gguf_open_memory(data, bytes, name, &gguf));
    return open_gguf(gguf, NULL, model_out);
}

void nkv_model_close(struct nkv_model *model)
{
    if (!model)
        return;
    for (uint32_t l = 0; model->layers && l < model->info.n_layers; l++) {
        struct nkv_layer_weights *layer = &model->layers[l];
        float *vectors[] = {layer->attn_norm, layer->ffn_norm, layer->q_bias, layer->k_bias, layer->v_bias};

        for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
            nkv_free(vectors[i]);
    }
    nkv_free(model->layers);
    nkv_free(model->frequency);
    nkv_free(model->output_norm);
    nkv_tokenizer_close(model->tokenizer);
    nkv_gguf_close(model->gguf);
    nkv_region_close(&model->columns);
    nkv_region_close(&model->region);
    nkv_free(model->image);
    nkv_free(model);
}

void nkv_model_info(const struct nkv_model *model, struct nkv_model_info *info_out)
{
    *info_out = model->info;
}

void nkv_model_kv_shape(const struct nkv_model *model, uint32_t page_tokens, enum nkv_dtype dtype,
                        enum nkv_digest digest, struct nkv_kv_shape *shape_out)
{
    *shape_out = (struct nkv_kv_shape){
        .n_layers = model->info.n_layers,
        .n_heads = model->info.n_heads,
        .n_kv_heads = model->info.n_kv_heads,
        .head_dim = model->info.head_dim,
        .page_tokens = page_tokens,
        .dtype = dtype,
        .digest = digest,
    };
}
