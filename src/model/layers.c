/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layers of a step: RMS norm, QKV, rotary embedding, attention through the context, output projection, norm,
 * SwiGLU. Rows between dense layers are treated in blocks of ROWS_PER_TASK tokens by the same team of threads as the
 * dense layers: no result depends on which thread does a block.
 *
 * Two micro-batches are two halves of a decode step's rows, in the same buffers, that take turns: while the devices
 * attend for one half, the other's dense layers run. A half is through with what the halves share (the dense layers'
 * scratch, the exchange of several processes) before the other has its turn, so a second set of activations was not
 * needed. Rows do not know each other: up to 16 rows of a step come out the same to the bit.
 *
 * With several processes all of them make these calls in this order; tp.c exchanges what comes next.
 *
 * Failure: a step that stops half way leaves tickets in flight, for nkv_layers_abandon to end. A sequence that its
 * device fails is marked by the context and passed over; its rows hold zeros or garbage that nobody reads.
 */
#include "model/layers.h"

#include <string.h>

#include "base/clock.h"
#include "base/status.h"
#include "model/ops.h"

#define ROWS_PER_TASK 8u

/* ---- Between the dense layers */

/* One pass over the rows of a micro-batch; `fn` treats row t of the step. */
struct pass {
    struct nkv_decoder *d;
    const struct nkv_micro_batch *m;
    const int32_t *tokens;
    const struct nkv_layer_weights *layer;
    const float *norm; /* weights of the norm that follows */
    void (*fn)(const struct pass *pass, uint32_t row);
};

static void pass_task(void *arg, uint32_t task, uint32_t rank)
{
    const struct pass *pass = arg;
    uint32_t n_rows = pass->m->n_rows, begin = task * ROWS_PER_TASK;
    uint32_t end = begin + ROWS_PER_TASK < n_rows ? begin + ROWS_PER_TASK : n_rows;

    (void)rank;
    for (uint32_t t = begin; t < end; t++)
        pass->fn(pass, pass->m->first_row + t);
}

static void run_pass(struct pass *pass, void (*fn)(const struct pass *pass, uint32_t row))
{
    pass->fn = fn;
    nkv_team_tasks(pass->d->team, (pass->m->n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, pass_task, pass);
}

static void norm_row(const struct pass *pass, uint32_t t)
{
    const struct nkv_model_info *info = &pass->d->model->info;
    const size_t at = (size_t)t * info->n_embd;

    nkv_rms_norm(info->n_embd, pass->d->x + at, pass->norm, info->rms_eps, pass->d->h + at);
}

static void embed_row(const struct pass *pass, uint32_t t)
{
    const struct nkv_model *model = pass->d->model;
    const uint32_t token = (uint32_t)pass->tokens[t], half = model->n_rot / 2;

    nkv_matrix_rows(&model->token_embd, token, token + 1, pass->d->x + (size_t)t * model->info.n_embd);
    nkv_rope_angles(pass->d->positions[t], half, model->frequency, pass->d->cos_sin + (size_t)t * model->n_rot);
    norm_row(pass, t);
}

static void add_bias(uint32_t n, const float *bias, float *x)
{
    if (bias)
        nkv_add(n, bias, x);
}

static void rotate_row(const struct pass *pass, uint32_t t)
{
    struct nkv_decoder *d = pass->d;
    const struct nkv_model *model = d->model;
    const uint32_t n_heads = model->shard.n_heads, n_kv_heads = model->shard.n_kv_heads, dim = model->info.head_dim;
    const uint32_t nq = n_heads * dim, nkv = n_kv_heads * dim, half = model->n_rot / 2;
    const float *cos_sin = d->cos_sin + (size_t)t * model->n_rot;
    const size_t row = t - pass->m->first_row;
    float *q = pass->m->part.q + row * nq, *k = pass->m->part.k + row * nkv;

    add_bias(nq, pass->layer->q_bias, q);
    add_bias(nkv, pass->layer->k_bias, k);
    add_bias(nkv, pass->layer->v_bias, pass->m->part.v + row * nkv);
    nkv_rope(n_heads, dim, half, model->rotates_halves, cos_sin, q);
    nkv_rope(n_kv_heads, dim, half, model->rotates_halves, cos_sin, k);
}

static void gate_row(const struct pass *pass, uint32_t t)
{
    const uint32_t n_ff = pass->d->model->shard.n_ff;

    nkv_silu_mul(n_ff, pass->d->up + (size_t)t * n_ff, pass->d->gate + (size_t)t * n_ff);
}

/* The layer's output joins the residual stream; then the next norm. */
static void add_norm_row(const struct pass *pass, uint32_t t)
{
    const uint32_t n_embd = pass->d->model->info.n_embd;
    const size_t at = (size_t)t * n_embd;

    nkv_add(n_embd, pass->d->h + at, pass->d->x + at);
    norm_row(pass, t);
}

/* ---- A layer */

int nkv_layers_fc(struct nkv_decoder *d, const struct nkv_fc_part *parts, uint32_t n_parts, uint32_t n_rows,
                  const float *x)
{
    uint64_t start = nkv_now_ns();
    int status = nkv_fc_run(d->fc, parts, n_parts, n_rows, x);

    d->times.fc_ns += nkv_now_ns() - start;
    return status;
}

/* The micro-batch's rows of a buffer of the step's; who follows has no buffers for all heads. */
static float *row_of(float *rows, const struct nkv_micro_batch *m, size_t width)
{
    return rows ? rows + m->first_row * width : NULL;
}

/* Where a step fails in rank 0 alone, it does so here: the others learn it with the next outputs that they get. */
static int begin_attention(struct nkv_decoder *d, struct nkv_micro_batch *m, uint32_t layer)
{
    const size_t nq = nkv_q_rows(&d->model->info), nkv = nkv_kv_rows(&d->model->info);
    uint64_t start = nkv_now_ns();

    TRY(nkv_tp_collect(&d->tp, m->n_rows, row_of(d->q, m, nq), row_of(d->k, m, nkv), row_of(d->v, m, nkv)));
    if (d->context && d->attend_status == 0)
        d->attend_status = nkv_attend_begin(d->context, layer, d->items + m->first_item, m->n_items, &m->ticket);
    d->times.attend_ns += nkv_now_ns() - start;
    return 0;
}

static int end_ticket(struct nkv_micro_batch *m)
{
    struct nkv_ticket *ticket = m->ticket;

    m->ticket = NULL;
    return ticket ? nkv_attend_end(ticket) : 0;
}

static int end_attention(struct nkv_decoder *d, struct nkv_micro_batch *m)
{
    uint64_t start = nkv_now_ns();
    int status = end_ticket(m);

    if (d->attend_status == 0)
        d->attend_status = status;
    TRY(nkv_tp_share(&d->tp, m->n_rows, row_of(d->attended, m, nkv_q_rows(&d->model->info)), &d->attend_status));
    d->times.attend_ns += nkv_now_ns() - start;
    return d->attend_status;
}

/* A product of this process' columns, summed over all of them, as the micro-batch's rows of h. */
static int run_summed_fc(struct nkv_decoder *d, const struct nkv_micro_batch *m, const struct nkv_matrix *w,
                         const float *x)
{
    const struct nkv_fc_part part = {w, row_of(d->h, m, d->model->info.n_embd)};

    TRY(nkv_layers_fc(d, &part, 1, m->n_rows, x));
    return nkv_tp_sum(&d->tp, (uint64_t)m->n_rows * w->n_rows, part.y);
}

/* Up to the attention of layer l, which is then in flight. */
static int begin_layer(struct nkv_decoder *d, struct nkv_micro_batch *m, uint32_t l)
{
    const struct nkv_layer_weights *layer = &d->model->layers[l];
    const struct nkv_fc_part qkv[] = {{&layer->q, m->part.q}, {&layer->k, m->part.k}, {&layer->v, m->part.v}};
    struct pass pass = {.d = d, .m = m, .layer = layer};

    TRY(nkv_layers_fc(d, qkv, 3, m->n_rows, row_of(d->h, m, d->model->info.n_embd)));
    run_pass(&pass, rotate_row);
    return begin_attention(d, m, l);
}

/* The rest of the layer. */
static int end_layer(struct nkv_decoder *d, struct nkv_micro_batch *m, uint32_t l)
{
    const struct nkv_model *model = d->model;
    const struct nkv_layer_weights *layer = &model->layers[l];
    float *h = row_of(d->h, m, model->info.n_embd);
    float *gate = row_of(d->gate, m, model->shard.n_ff), *up = row_of(d->up, m, model->shard.n_ff);
    const struct nkv_fc_part gate_up[] = {{&layer->gate, gate}, {&layer->up, up}};
    struct pass pass = {.d = d, .m = m};

    TRY(end_attention(d, m));
    TRY(run_summed_fc(d, m, &layer->o, m->part.attended));
    pass.norm = layer->ffn_norm;
    run_pass(&pass, add_norm_row);
    TRY(nkv_layers_fc(d, gate_up, 2, m->n_rows, h));
    run_pass(&pass, gate_row);
    TRY(run_summed_fc(d, m, &layer->down, gate));
    pass.norm = l + 1 < model->info.n_layers ? model->layers[l + 1].attn_norm : model->output_norm;
    run_pass(&pass, add_norm_row);
    return 0;
}

static void split(struct nkv_decoder *d, uint32_t n_micro, uint32_t n_items, uint32_t n_rows)
{
    d->n_micro = n_micro;
    for (uint32_t i = 0; i < n_micro; i++) {
        struct nkv_micro_batch *m = &d->micro[i];

        *m = (struct nkv_micro_batch){.first_row = i * n_rows / n_micro, .first_item = i * n_items / n_micro};
        m->n_rows = (i + 1) * n_rows / n_micro - m->first_row;
        m->n_items = (i + 1) * n_items / n_micro - m->first_item;
        m->part = d->tp.comm ? nkv_tp_rows(&d->tp, m->n_rows)
                             : (struct nkv_tp_rows){.q = row_of(d->q, m, nkv_q_rows(&d->model->info)),
                                                    .k = row_of(d->k, m, nkv_kv_rows(&d->model->info)),
                                                    .v = row_of(d->v, m, nkv_kv_rows(&d->model->info)),
                                                    .attended = row_of(d->attended, m, nkv_q_rows(&d->model->info))};
    }
}

int nkv_layers_run(struct nkv_decoder *d, uint32_t n_micro, uint32_t n_items, uint32_t n_rows, const int32_t *tokens)
{
    d->attend_status = 0;
    split(d, n_micro, n_items, n_rows);
    for (uint32_t i = 0; i < n_micro; i++) {
        struct pass pass = {.d = d, .m = &d->micro[i], .tokens = tokens, .norm = d->model->layers[0].attn_norm};

        run_pass(&pass, embed_row);
        TRY(begin_layer(d, &d->micro[i], 0));
    }
    for (uint32_t l = 0; l < d->model->info.n_layers; l++)
        for (uint32_t i = 0; i < n_micro; i++) {
            TRY(end_layer(d, &d->micro[i], l));
            if (l + 1 < d->model->info.n_layers)
                TRY(begin_layer(d, &d->micro[i], l + 1));
        }
    return 0;
}

void nkv_layers_abandon(struct nkv_decoder *d)
{
    for (uint32_t i = 0; i < d->n_micro; i++)
        (void)end_ticket(&d->micro[i]);
}
