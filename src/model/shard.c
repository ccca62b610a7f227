/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cuts a model down to one process' part, as Megatron-LM does: q, k, v, gate and up by rows (outputs), o and down by
 * columns (inputs), so that between the two halves of a block nothing is exchanged, and behind each there is one sum.
 * Heads stay whole. The output matrix is cut by rows of the vocabulary; the embedding stays whole, since only the rows
 * of tokens that occur are read of it.
 *
 * A cut by rows is a pointer into the file's mapping: what belongs to others is never read. A cut by columns is copied
 * once, because the kernels stream whole rows; q8_0 blocks cannot be cut, so a part is a multiple of 32 columns there.
 *
 * With more processes than KV heads, a KV head's projections are there in several of them (as vLLM and others do it):
 * halving a head would need an exchange inside the rotary embedding for the sake of the smallest matrices.
 */
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "kernels/kernels.h"
#include "model/weights.h"

#define Q8_BLOCK  32u
#define MAX_RANKS 1024u

static bool cuts_columns(const struct nkv_matrix *w, uint32_t n)
{
    return w->n_cols % n == 0 && (w->dtype != NKV_Q8_0 || w->n_cols / n % Q8_BLOCK == 0);
}

static bool divides(const struct nkv_model *model, uint32_t n)
{
    const struct nkv_model_info *info = &model->info;

    if (info->n_heads % n || info->n_ff % n || info->n_vocab < n || (info->n_kv_heads % n && n % info->n_kv_heads))
        return false;
    for (uint32_t l = 0; l < info->n_layers; l++)
        if (!cuts_columns(&model->layers[l].o, n) || !cuts_columns(&model->layers[l].down, n))
            return false;
    return true;
}

static int refuse(const struct nkv_model *model, uint32_t n)
{
    const struct nkv_model_info *info = &model->info;
    char allowed[200] = "";
    size_t length = 0;

    for (uint32_t i = 1; i <= info->n_heads && length < sizeof allowed - 16; i++)
        if (divides(model, i))
            length += (size_t)snprintf(allowed + length, sizeof allowed - length, "%s%u", length ? ", " : "", i);
    FAIL(NKV_EINVAL,
         "%s has %u heads, %u KV heads and %u feed-forward units: they cannot be divided among %u processes, only "
         "among %s",
         info->name, info->n_heads, info->n_kv_heads, info->n_ff, n, allowed);
}

/* ---- Cuts ---- */

static void cut_rows(struct nkv_matrix *w, uint32_t first, uint32_t n)
{
    w->data = (const char *)w->data + first * nkv_weight_row_bytes(w->dtype, w->n_cols);
    w->n_rows = n;
}

static void cut_vector(float *x, uint32_t first, uint32_t n)
{
    if (x)
        memmove(x, x + first, n * sizeof *x);
}

static uint64_t column_bytes(const struct nkv_matrix *w, uint32_t n_ranks)
{
    return nkv_round_up(w->n_rows * nkv_weight_row_bytes(w->dtype, w->n_cols / n_ranks), NKV_CACHE_LINE);
}

/* Copies the rank's columns to *at, which moves behind them. */
static void cut_columns(struct nkv_matrix *w, const struct nkv_shard *shard, char **at)
{
    size_t row = nkv_weight_row_bytes(w->dtype, w->n_cols);
    size_t part = nkv_weight_row_bytes(w->dtype, w->n_cols / shard->n_ranks);
    const char *from = (const char *)w->data + shard->rank * part;
    uint64_t bytes = column_bytes(w, shard->n_ranks);

    for (uint32_t r = 0; r < w->n_rows; r++)
        memcpy(*at + r * part, from + r * row, part);
    w->data = *at;
    w->n_cols /= shard->n_ranks;
    *at += bytes;
}

static void cut_layer(struct nkv_model *model, struct nkv_layer_weights *layer, char **at)
{
    const struct nkv_shard *shard = &model->shard;
    const uint32_t dim = model->info.head_dim, nq = shard->n_heads * dim, nkv = shard->n_kv_heads * dim;
    const uint32_t q0 = shard->rank * nq, kv0 = nkv_shard_kv_head(model, shard->rank) * dim;

    cut_rows(&layer->q, q0, nq);
    cut_rows(&layer->k, kv0, nkv);
    cut_rows(&layer->v, kv0, nkv);
    cut_vector(layer->q_bias, q0, nq);
    cut_vector(layer->k_bias, kv0, nkv);
    cut_vector(layer->v_bias, kv0, nkv);
    cut_rows(&layer->gate, shard->rank * shard->n_ff, shard->n_ff);
    cut_rows(&layer->up, shard->rank * shard->n_ff, shard->n_ff);
    cut_columns(&layer->o, shard, at);
    cut_columns(&layer->down, shard, at);
}

static uint64_t matrix_bytes(const struct nkv_matrix *w)
{
    return w->n_rows * (uint64_t)nkv_weight_row_bytes(w->dtype, w->n_cols);
}

/* What this process holds now. */
static uint64_t shard_bytes(const struct nkv_model *model)
{
    uint64_t bytes = matrix_bytes(&model->token_embd);

    if (!model->info.tied_embeddings)
        bytes += matrix_bytes(&model->output);
    for (uint32_t l = 0; l < model->info.n_layers; l++) {
        const struct nkv_layer_weights *w = &model->layers[l];

        bytes += matrix_bytes(&w->q) + matrix_bytes(&w->k) + matrix_bytes(&w->v) + matrix_bytes(&w->o) +
                 matrix_bytes(&w->gate) + matrix_bytes(&w->up) + matrix_bytes(&w->down);
    }
    return bytes;
}

int nkv_model_shard(struct nkv_model *model, const struct nkv_comm *comm)
{
    const struct nkv_model_info *info = &model->info;
    struct nkv_shard *shard = &model->shard;
    uint64_t bytes = 0;
    char *at;

    if (shard->n_ranks > 1)
        FAIL(NKV_ESTATE, "%s is one process' part already", info->name);
    if (comm->size == 1)
        return 0;
    if (comm->rank >= comm->size || comm->size > MAX_RANKS || !divides(model, comm->size))
        return refuse(model, comm->size);
    for (uint32_t l = 0; l < info->n_layers; l++)
        bytes += column_bytes(&model->layers[l].o, comm->size) + column_bytes(&model->layers[l].down, comm->size);
    TRY(nkv_region_open(bytes, &model->columns));
    at = model->columns.base;
    *shard = (struct nkv_shard){.rank = comm->rank,
                                .n_ranks = comm->size,
                                .n_heads = info->n_heads / comm->size,
                                .n_kv_heads = info->n_kv_heads > comm->size ? info->n_kv_heads / comm->size : 1,
                                .n_ff = info->n_ff / comm->size};
    shard->first_row = nkv_shard_row(model, comm->rank);
    shard->n_rows = nkv_shard_row(model, comm->rank + 1) - shard->first_row;
    for (uint32_t l = 0; l < info->n_layers; l++)
        cut_layer(model, &model->layers[l], &at);
    cut_rows(&model->output, shard->first_row, shard->n_rows);
    model->info.weight_bytes = shard_bytes(model);
    return 0;
}
