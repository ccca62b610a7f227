/* SPDX-License-Identifier: Apache-2.0 */
/* model/tp.h: what the decoders of a sharded model exchange. With one process every call returns at once. */
#ifndef NKV_MODEL_TP_H
#define NKV_MODEL_TP_H

#include "model/weights.h"

/* What rank 0 announces to the others. */
enum nkv_tp_step_kind { NKV_TP_LAYERS = 1, NKV_TP_LOGITS = 2, NKV_TP_END = 3 };
struct nkv_tp_step {
    uint32_t kind;
    uint32_t n_rows;
    uint32_t first_row; /* LOGITS */
    uint32_t n_micro;   /* LAYERS: micro-batches that the rows are split into */
};

/* This process' part of rows of a step, between the dense layers. */
struct nkv_tp_rows {
    float *q, *k, *v; /* [rows][heads of this part][head_dim] */
    float *attended;  /* as q */
    float *logits;    /* [rows][rows of the output matrix's part] */
};

struct nkv_tp {
    const struct nkv_model *model;
    struct nkv_comm *comm; /* NULL: alone */
    float *part, *all;     /* of this process; of all, rank 0 only */
    uint64_t part_floats;
};

/* max_rows: of a step; max_logits: rows of which logits are asked at a time. State after a failure: nkv_tp_close is
 * right. */
int nkv_tp_open(const struct nkv_model *model, struct nkv_comm *comm, uint32_t max_rows, uint32_t max_logits,
                struct nkv_tp *tp_out);
void nkv_tp_close(struct nkv_tp *tp);
/* Bytes that nkv_tp_open takes in process `rank` of comm. */
uint64_t nkv_tp_bytes(const struct nkv_model *model, const struct nkv_comm *comm, uint32_t max_rows,
                      uint32_t max_logits);

static inline bool nkv_tp_leads(const struct nkv_tp *tp)
{
    return !tp->comm || tp->comm->rank == 0;
}

/* Where the part lies for n_rows. pre: not alone. */
struct nkv_tp_rows nkv_tp_rows(const struct nkv_tp *tp, uint32_t n_rows);

/* Rank 0 announces, the others listen; then tokens and positions, n_rows of each. */
int nkv_tp_announce(const struct nkv_tp *tp, struct nkv_tp_step *step);
int nkv_tp_tokens(const struct nkv_tp *tp, uint32_t n_rows, int32_t *tokens, uint32_t *positions);
/* All parts of q, k, v to rank 0's [rows][all heads][head_dim]. */
int nkv_tp_collect(const struct nkv_tp *tp, uint32_t n_rows, float *q, float *k, float *v);
/* Rank 0's attended rows to all parts. *status: rank 0's; the others get it. */
int nkv_tp_share(const struct nkv_tp *tp, uint32_t n_rows, const float *attended, int *status);
/* The sum over processes of x [n]. */
int nkv_tp_sum(const struct nkv_tp *tp, uint64_t n, float *x);
/* All parts of the logits to rank 0's [rows][n_vocab]. */
int nkv_tp_logits(const struct nkv_tp *tp, uint32_t n_rows, float *logits_out);

#endif
