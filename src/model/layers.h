/* SPDX-License-Identifier: Apache-2.0 */
/* model/layers.h: a decoder's state, and a step's way through the layers. */
#ifndef NKV_MODEL_LAYERS_H
#define NKV_MODEL_LAYERS_H

#include <nearkv/model.h>

#include "base/team.h"
#include "model/fc.h"
#include "model/tp.h"

#define NKV_MAX_MICRO_BATCHES 2u /* a context has as many tickets */

/* Rows of a step that go through the layers together, with the items that they belong to. */
struct nkv_micro_batch {
    uint32_t first_row, n_rows, first_item, n_items;
    struct nkv_tp_rows part;   /* of these rows: this process' heads; alone: of q, k, v, attended */
    struct nkv_ticket *ticket; /* of their attention; NULL: none is in flight */
};

struct nkv_decoder {
    struct nkv_model *model;
    struct nkv_context *context;
    struct nkv_team *team;
    struct nkv_fc *fc;
    struct nkv_comm *comm;
    struct nkv_tp tp;
    uint32_t n_threads, max_batch, chunk_tokens, max_micro;
    struct nkv_micro_batch micro[NKV_MAX_MICRO_BATCHES]; /* of this step */
    uint32_t n_micro;
    struct nkv_attend_item *items; /* [max_batch] */
    uint32_t *positions;           /* [rows] */
    float *cos_sin;                /* [rows][n_rot / 2][2] */
    float *x, *h;                  /* [rows][n_embd]: the residual stream; a layer's input or output */
    float *q, *attended;           /* [rows][n_heads][head_dim], where there is a context */
    float *k, *v;                  /* [rows][n_kv_heads][head_dim], too */
    float *gate, *up;              /* [rows][n_ff of this process] */
    int32_t *tokens;               /* [rows], of a step of several processes */
    int attend_status;             /* of this step's attention so far, rank 0's where there are several processes */
    struct nkv_decode_times times;
};

/*
 * Splits n_rows, and items where this process has a context, into n_micro micro-batches and runs them through all
 * layers. Leaves the normed output of every row in d->h. pre: items and positions are set; where n_micro is 2 there are
 * two items or more, of a row each. State after a failure: nkv_layers_abandon is due.
 */
int nkv_layers_run(struct nkv_decoder *d, uint32_t n_micro, uint32_t n_items, uint32_t n_rows, const int32_t *tokens);
/* Ends what a step that failed has left in flight. */
void nkv_layers_abandon(struct nkv_decoder *d);
/* A dense layer, timed. */
int nkv_layers_fc(struct nkv_decoder *d, const struct nkv_fc_part *parts, uint32_t n_parts, uint32_t n_rows,
                  const float *x);

#endif
