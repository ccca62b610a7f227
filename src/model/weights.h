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

struct nkv_model {
    struct nkv_model_info info;
    uint32_t n_rot;                       /* the first n_rot elements of a head are rotated */
    bool rotates_halves;                  /* pairs (i, i + n_rot/2), else (2i, 2i + 1) */
    double *frequency;                    /* [n_rot / 2], radians per position */
    float *output_norm;                   /* [n_embd] */
    struct nkv_matrix token_embd, output; /* the same data when tied */
    struct nkv_layer_weights *layers;
    struct nkv_tokenizer *tokenizer; /* NULL: none */
    struct nkv_gguf *gguf;           /* NULL: random weights in `region` */
    struct nkv_region region;
    void *image; /* owned memory that gguf reads, NULL: none */
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

/* Reads architecture, shape, weights and tokenizer from model->gguf. The caller closes the model also on failure. */
int nkv_model_load(struct nkv_model *model);
/* Checks info, and allocates layers and frequencies (of rope_base over n_rot). */
int nkv_model_layout(struct nkv_model *model);

#endif
