/* SPDX-License-Identifier: Apache-2.0 */
/* model/weights.h: an open model: its shape, its weights where they lie, its rotary frequencies and its tokenizer. */
#ifndef NKV_MODEL_WEIGHTS_H
#define NKV_MODEL_WEIGHTS_H

#include <nearkv/model.h>

#include "base/mem.h"
#include "model/fc.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

struct nkv_layer_weights {
    float *attn_norm, *ffn_norm;     /* [n_embd] */
    float *q_bias, *k_bias, *v_bias; /* [rows of q, k, v]; NULL: none */
    struct nkv_matrix q, k, v, o, gate, up, down;
};

/* Which part of the dense layers this process has: all of it, or one of n_ranks. */
struct nkv_shard {
    uint32_t rank, n_ranks;
    uint32_t n_heads, n_kv_heads, n_ff; /* of this part */
    uint32_t first_row, n_rows;         /* of the output matrix */
};

struct nkv_model {
    struct nkv_model_info info; /* of the whole model */
    struct nkv_shard shard;
    uint32_t n_rot;                       /* the first n_rot elements of a head are rotated */
    bool rotates_halves;                  /* pairs (i, i + n_rot/2), else (2i, 2i + 1) */
    double *frequency;                    /* [n_rot / 2], radians per position */
    float *output_norm;                   /* [n_embd] */
    struct nkv_matrix token_embd, output; /* the same data when tied */
    struct nkv_layer_weights *layers;
    struct nkv_tokenizer *tokenizer; /* NULL: none */
    struct nkv_gguf *gguf;           /* NULL: random weights in `region` */
    struct nkv_region region;
    struct nkv_region columns; /* of a shard's o and down */
    void *image;               /* owned memory that gguf reads, NULL: none */
};

/* Rows of q (and columns of o); rows of k and of v. */
static inline uint32_t nkv_q_rows(const struct nkv_model_info *info)
{
    return info->n_heads * info->head_dim;
}

static inline uint32_t nkv_kv_rows(const struct nkv_model_info *info)
{
    return info->n_kv_heads * info->head_dim;
}

/* The first KV head of a rank's part. */
static inline uint32_t nkv_shard_kv_head(const struct nkv_model *model, uint32_t rank)
{
    return (uint32_t)((uint64_t)rank * model->info.n_kv_heads / model->shard.n_ranks);
}

/* The first row of the output matrix of a rank's part; of rank n_ranks: the end. */
static inline uint32_t nkv_shard_row(const struct nkv_model *model, uint32_t rank)
{
    return (uint32_t)((uint64_t)rank * model->info.n_vocab / model->shard.n_ranks);
}

/* Reads architecture, shape, weights and tokenizer from model->gguf. The caller closes the model also on failure. */
int nkv_model_load(struct nkv_model *model);
/* Checks info, and allocates layers and frequencies (of rope_base over n_rot). */
int nkv_model_layout(struct nkv_model *model);

#endif
