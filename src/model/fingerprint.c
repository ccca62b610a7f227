/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The number by which KV pages know their model. Pages of one model are garbage to another, and to the same shape with
 * other weights they are garbage that looks right: a session must refuse them. Hashing all weights would be sure and
 * would read the whole file at every start (16 GB for an 8B model); here the metadata and the tensor table, which name
 * the model and all of its arithmetic, are hashed as they are, and of each tensor's data the beginning, the middle and
 * the end. A fine-tuned model changes all of its matrices, so that the samples of hundreds of tensors tell it apart.
 */
#include <string.h>
#include <xxhash.h>

#include "model/gguf_file.h"
#include "model/weights.h"

/* Changes when the same file gives other keys and values. */
#define ARITHMETIC 1u
#define SAMPLE     256u

static uint64_t add(uint64_t hash, const void *data, size_t bytes)
{
    return bytes ? XXH64(data, bytes, hash) : hash;
}

static uint64_t add_samples(uint64_t hash, const void *data, size_t bytes)
{
    const uint8_t *at = data;

    if (bytes <= 3 * SAMPLE)
        return add(hash, at, bytes);
    hash = add(hash, at, SAMPLE);
    hash = add(hash, at + bytes / 2, SAMPLE);
    return add(hash, at + bytes - SAMPLE, SAMPLE);
}

static uint64_t of_file(uint64_t hash, const struct nkv_gguf *gguf)
{
    const uint8_t *data = gguf->base + gguf->bytes;

    for (uint64_t i = 0; i < gguf->n_tensors; i++)
        if ((const uint8_t *)gguf->tensors[i].data < data)
            data = gguf->tensors[i].data;
    hash = add(hash, gguf->base, (size_t)(data - gguf->base));
    for (uint64_t i = 0; i < gguf->n_tensors; i++)
        hash = add_samples(hash, gguf->tensors[i].data, gguf->tensors[i].bytes);
    return hash;
}

/* Random weights: the shape, and the matrix that was filled first. */
static uint64_t of_shape(uint64_t hash, const struct nkv_model *model)
{
    const struct nkv_model_info *info = &model->info;
    const uint32_t numbers[] = {info->n_layers, info->n_embd, info->n_heads, info->n_kv_heads,
                                info->head_dim, info->n_ff,   info->n_vocab, (uint32_t)info->weight_dtype};

    hash = add(hash, numbers, sizeof numbers);
    return add_samples(hash, model->region.base, model->region.bytes);
}

uint64_t nkv_model_fingerprint(const struct nkv_model *model)
{
    const uint32_t arithmetic = ARITHMETIC;
    uint64_t hash = add(0, &arithmetic, sizeof arithmetic);

    return model->gguf ? of_file(hash, model->gguf) : of_shape(hash, model);
}
