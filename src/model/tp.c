/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor parallel decoders: rank 0 leads, the others follow. In a step every process has all rows of the residual
 * stream and its part of everything between. Per layer: q, k, v are gathered to rank 0, which scatters each sequence's
 * to its home device and gathers the outputs (TP to DP, the paper's section 4: no reduction, and a volume that does not
 * depend on the context); then the outputs are scattered, and o and down each end with a sum.
 *
 * Everything to and from devices goes through rank 0, as everything to and from CXL devices goes through the host.
 * Letting each process send its heads to the devices itself was rejected: the device would have to wait for all of them
 * before it may select, and a step's failure would have to be agreed on with every device instead of with rank 0.
 *
 * A gather has equal parts, laid out q, k, v one after the other; rank 0 puts rows together. Where several processes
 * have the same KV head, the first one's counts.
 */
#include "model/tp.h"

#include <string.h>

#include "base/mem.h"

#define HEADER_FLOATS 16u /* of a scatter: the status, and the rows stay aligned */

static uint32_t q_rows(const struct nkv_model *model)
{
    return model->shard.n_heads * model->info.head_dim;
}

static uint32_t kv_rows(const struct nkv_model *model)
{
    return model->shard.n_kv_heads * model->info.head_dim;
}

/* Rows of the largest part of the output matrix. */
static uint32_t logit_rows(const struct nkv_model *model)
{
    return (model->info.n_vocab + model->shard.n_ranks - 1) / model->shard.n_ranks;
}

static uint64_t part_floats(const struct nkv_model *model, uint32_t max_rows, uint32_t max_logits)
{
    uint64_t qkv = (uint64_t)max_rows * (q_rows(model) + 2 * kv_rows(model));
    uint64_t attended = HEADER_FLOATS + (uint64_t)max_rows * q_rows(model);
    uint64_t logits = (uint64_t)max_logits * logit_rows(model);
    uint64_t most = qkv > attended ? qkv : attended;

    return most > logits ? most : logits;
}

uint64_t nkv_tp_bytes(const struct nkv_model *model, const struct nkv_comm *comm, uint32_t max_rows,
                      uint32_t max_logits)
{
    if (!comm || comm->size == 1)
        return 0;
    return part_floats(model, max_rows, max_logits) * sizeof(float) * (comm->rank == 0 ? 1u + comm->size : 1u);
}

int nkv_tp_open(const struct nkv_model *model, struct nkv_comm *comm, uint32_t max_rows, uint32_t max_logits,
                struct nkv_tp *tp_out)
{
    *tp_out = (struct nkv_tp){.model = model};
    if (comm && comm->size != model->shard.n_ranks)
        FAIL(NKV_EINVAL, "the model is one of %u parts, but there are %u processes: cut it with nkv_model_shard",
             model->shard.n_ranks, comm->size);
    if (!comm && model->shard.n_ranks > 1)
        FAIL(NKV_EINVAL, "the model is one of %u parts: its decoder needs the other processes (comm)",
             model->shard.n_ranks);
    if (!comm || comm->size == 1)
        return 0;
    tp_out->comm = comm;
    tp_out->part_floats = part_floats(model, max_rows, max_logits);
    TRY(nkv_alloc(tp_out->part_floats, sizeof(float), &tp_out->part));
    if (comm->rank == 0)
        TRY(nkv_alloc(comm->size * tp_out->part_floats, sizeof(float), &tp_out->all));
    return comm->ops->reserve(comm, (uint64_t)max_rows * model->info.n_embd * sizeof(float));
}

void nkv_tp_close(struct nkv_tp *tp)
{
    nkv_free(tp->part);
    nkv_free(tp->all);
}

struct nkv_tp_rows nkv_tp_rows(const struct nkv_tp *tp, uint32_t n_rows)
{
    struct nkv_tp_rows rows = {.q = tp->part, .attended = tp->part + HEADER_FLOATS, .logits = tp->part};

    rows.k = rows.q + (size_t)n_rows * q_rows(tp->model);
    rows.v = rows.k + (size_t)n_rows * kv_rows(tp->model);
    return rows;
}

int nkv_tp_announce(const struct nkv_tp *tp, struct nkv_tp_step *step)
{
    return tp->comm ? tp->comm->ops->broadcast(tp->comm, step, sizeof *step) : 0;
}

int nkv_tp_tokens(const struct nkv_tp *tp, uint32_t n_rows, int32_t *tokens, uint32_t *positions)
{
    if (!tp->comm)
        return 0;
    TRY(tp->comm->ops->broadcast(tp->comm, tokens, n_rows * sizeof *tokens));
    return tp->comm->ops->broadcast(tp->comm, positions, n_rows * sizeof *positions);
}

/* Rows of one part, [n_rows][width], to or from columns `first`.. of rows of `stride`. */
static void put_rows(float *to, size_t stride, size_t first, const float *from, uint32_t n_rows, size_t width)
{
    for (uint32_t t = 0; t < n_rows; t++)
        memcpy(to + t * stride + first, from + t * width, width * sizeof *to);
}

static void take_rows(float *to, const float *from, size_t stride, size_t first, uint32_t n_rows, size_t width)
{
    for (uint32_t t = 0; t < n_rows; t++)
        memcpy(to + t * width, from + t * stride + first, width * sizeof *to);
}

int nkv_tp_collect(const struct nkv_tp *tp, uint32_t n_rows, float *q, float *k, float *v)
{
    const struct nkv_model *model = tp->model;
    const size_t nq = q_rows(model), nkv = kv_rows(model), floats = n_rows * (nq + 2 * nkv);
    const size_t all_q = nkv_q_rows(&model->info), all_kv = nkv_kv_rows(&model->info);

    if (!tp->comm)
        return 0;
    TRY(tp->comm->ops->gather(tp->comm, tp->part, floats * sizeof(float), tp->all));
    for (uint32_t r = 0; tp->comm->rank == 0 && r < tp->comm->size; r++) {
        const float *from = tp->all + r * floats;
        const uint32_t head = nkv_shard_kv_head(model, r);

        put_rows(q, all_q, r * nq, from, n_rows, nq);
        if (r > 0 && head == nkv_shard_kv_head(model, r - 1))
            continue;
        put_rows(k, all_kv, (size_t)head * model->info.head_dim, from + n_rows * nq, n_rows, nkv);
        put_rows(v, all_kv, (size_t)head * model->info.head_dim, from + n_rows * (nq + nkv), n_rows, nkv);
    }
    return 0;
}

int nkv_tp_share(const struct nkv_tp *tp, uint32_t n_rows, const float *attended, int *status)
{
    const size_t nq = q_rows(tp->model), floats = HEADER_FLOATS + n_rows * nq;

    if (!tp->comm)
        return 0;
    for (uint32_t r = 0; tp->comm->rank == 0 && r < tp->comm->size; r++) {
        float *to = tp->all + r * floats;

        memset(to, 0, HEADER_FLOATS * sizeof *to);
        memcpy(to, status, sizeof *status);
        take_rows(to + HEADER_FLOATS, attended, nkv_q_rows(&tp->model->info), r * nq, n_rows, nq);
    }
    TRY(tp->comm->ops->scatter(tp->comm, tp->all, floats * sizeof(float), tp->part));
    memcpy(status, tp->part, sizeof *status);
    return 0;
}

int nkv_tp_sum(const struct nkv_tp *tp, uint64_t n, float *x)
{
    return tp->comm ? tp->comm->ops->sum(tp->comm, x, n) : 0;
}

int nkv_tp_logits(const struct nkv_tp *tp, uint32_t n_rows, float *logits_out)
{
    const struct nkv_model *model = tp->model;
    const size_t floats = (size_t)n_rows * logit_rows(model);

    if (!tp->comm)
        return 0;
    TRY(tp->comm->ops->gather(tp->comm, tp->part, floats * sizeof(float), tp->all));
    for (uint32_t r = 0; tp->comm->rank == 0 && r < tp->comm->size; r++) {
        uint32_t first = nkv_shard_row(model, r), end = nkv_shard_row(model, r + 1);

        put_rows(logits_out, model->info.n_vocab, first, tp->all + r * floats, n_rows, end - first);
    }
    return 0;
}

int nkv_follow_end(struct nkv_comm *comm)
{
    struct nkv_tp_step step = {.kind = NKV_TP_END};

    return comm->ops->broadcast(comm, &step, sizeof step);
}
