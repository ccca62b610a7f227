/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tests/device/rig.h: a device with a window, one command at a time, and a naive model of what it should hold: f32 rows
 * of K and V per layer, rounded through the cache's element type, and attention over any set of (position) by plain
 * double loops.
 */
#ifndef NKV_TESTS_DEVICE_RIG_H
#define NKV_TESTS_DEVICE_RIG_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <nearkv/device.h>
#include <nearkv/nearkv.h>

#include "kernels/kernels.h"

#define WINDOW_BYTES ((uint64_t)16 << 20)

static inline uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline float random_float(uint64_t *state)
{
    return (float)((double)(next_random(state) >> 11) * 0x1p-52 - 1.0);
}

static inline void random_floats(uint64_t *state, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = random_float(state);
}

struct rig {
    struct nkv_device *device;
    struct nkv_kv_shape shape;
    char *window;
    uint64_t window_bytes;
    struct nkv_cqe cqe; /* of the last command */
};

static inline struct nkv_device_config rig_config(const struct nkv_kv_shape *shape, uint32_t n_threads)
{
    return (struct nkv_device_config){.size = sizeof(struct nkv_device_config),
                                      .shape = *shape,
                                      .capacity_bytes = (uint64_t)256 << 20,
                                      .n_threads = n_threads};
}

static inline void rig_open(struct rig *rig, const char *spec, const struct nkv_device_config *config)
{
    void *window;

    *rig = (struct rig){.shape = config->shape, .window_bytes = WINDOW_BYTES};
    if (nkv_device_open(spec, config, &rig->device))
        fail_msg("open %s: %s", spec, nkv_last_error());
    assert_int_equal(rig->device->ops->map(rig->device, WINDOW_BYTES, &window), 0);
    rig->window = window;
}

static inline void rig_close(struct rig *rig)
{
    nkv_device_close(rig->device);
}

/* Runs one command. returns: its result. */
static inline int rig_run(struct rig *rig, struct nkv_cmd cmd)
{
    cmd.user_data = 0x1234567890abcdefu ^ cmd.op;
    assert_int_equal(rig->device->ops->submit(rig->device, &cmd, 1), 0);
    assert_int_equal(rig->device->ops->reap(rig->device, &rig->cqe, 1, 1), 1);
    assert_true(rig->cqe.user_data == cmd.user_data);
    return rig->cqe.res;
}

/* Runs one command that must succeed. */
static inline int rig_do(struct rig *rig, struct nkv_cmd cmd)
{
    int res = rig_run(rig, cmd);

    if (res < 0)
        fail_msg("op %u: %s: %s", cmd.op, nkv_status_name(res), nkv_last_error());
    return res;
}

static inline struct nkv_device_stat rig_stat(struct rig *rig)
{
    struct nkv_device_stat stat;

    assert_int_equal(rig->device->ops->stat(rig->device, &stat), 0);
    return stat;
}

static inline int rig_seq_open(struct rig *rig, uint32_t seq, uint32_t max_tokens, uint16_t flags)
{
    return rig_run(rig, (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN, .seq = seq, .n_tokens = max_tokens, .flags = flags});
}

static inline int rig_seq_close(struct rig *rig, uint32_t seq)
{
    return rig_run(rig, (struct nkv_cmd){.op = NKV_OP_SEQ_CLOSE, .seq = seq});
}

static inline void *rig_at(struct rig *rig, uint64_t offset)
{
    return rig->window + offset;
}

/* ---- The model: what a sequence holds. ---- */

struct model {
    struct nkv_kv_shape shape;
    uint32_t max_tokens;
    uint32_t *lengths; /* [layer] */
    float *k, *v;      /* [layer][token][kv_head][dim] as the cache holds them */
};

static inline void model_open(struct model *model, const struct nkv_kv_shape *shape, uint32_t max_tokens)
{
    size_t n = (size_t)shape->n_layers * max_tokens * shape->n_kv_heads * shape->head_dim;

    *model = (struct model){.shape = *shape, .max_tokens = max_tokens};
    model->lengths = calloc(shape->n_layers, sizeof *model->lengths);
    model->k = calloc(n + 1, sizeof *model->k);
    model->v = calloc(n + 1, sizeof *model->v);
    assert_non_null(model->lengths);
    assert_non_null(model->k);
    assert_non_null(model->v);
}

static inline void model_close(struct model *model)
{
    free(model->lengths);
    free(model->k);
    free(model->v);
}

static inline size_t model_row(const struct model *model, uint32_t layer, uint32_t token, uint32_t head)
{
    return (((size_t)layer * model->max_tokens + token) * model->shape.n_kv_heads + head) * model->shape.head_dim;
}

/* x as the cache would hold it. */
static inline void model_round(const struct nkv_kv_shape *shape, const float *x, float *out)
{
    const struct nkv_kernels *kernels = nkv_kernels();
    float scale = 0;
    char cell[NKV_MAX_HEAD_DIM * 4];

    kernels->store[shape->dtype](1, shape->head_dim, x, cell, &scale);
    kernels->load[shape->dtype](1, shape->head_dim, cell, &scale, out);
}

/* Appends n random tokens to one layer, of the device (its in operand at in_offset) and of the model. */
static inline void rig_append(struct rig *rig, struct model *model, uint32_t seq, uint32_t layer, uint32_t n,
                              uint64_t *random)
{
    uint32_t heads = rig->shape.n_kv_heads, dim = rig->shape.head_dim, pos = model->lengths[layer];
    size_t floats = (size_t)n * heads * dim;
    float *in = rig_at(rig, 0);

    random_floats(random, in, 2 * floats);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t h = 0; h < heads; h++) {
            size_t row = model_row(model, layer, pos + t, h), at = ((size_t)t * heads + h) * dim;

            model_round(&rig->shape, in + at, model->k + row);
            model_round(&rig->shape, in + floats + at, model->v + row);
        }
    rig_do(rig, (struct nkv_cmd){.op = NKV_OP_APPEND, .seq = seq, .layer = (uint16_t)layer, .n_tokens = n, .pos = pos});
    model->lengths[layer] += n;
}

/*
 * Attention of one query row over the tokens of `pages`, limited to positions < limit, by the definition.
 * returns: tokens attended.
 */
static inline uint32_t model_attend(const struct model *model, uint32_t layer, uint32_t head, const float *q,
                                    const uint32_t *pages, uint32_t n_pages, uint32_t limit, double *out)
{
    const struct nkv_kv_shape *shape = &model->shape;
    double scale = shape->scale > 0 ? (double)shape->scale : 1 / sqrt(shape->head_dim), best = -INFINITY, sum = 0;
    uint32_t seen = 0;

    if (limit > model->lengths[layer])
        limit = model->lengths[layer];
    memset(out, 0, shape->head_dim * sizeof *out);
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < n_pages; i++)
            for (uint32_t t = pages[i] * shape->page_tokens; t < (pages[i] + 1) * shape->page_tokens && t < limit;
                 t++) {
                const float *k = model->k + model_row(model, layer, t, head);
                const float *v = model->v + model_row(model, layer, t, head);
                double score = 0, weight;

                for (uint32_t d = 0; d < shape->head_dim; d++)
                    score += scale * (double)q[d] * (double)k[d];
                if (pass == 0) {
                    best = score > best ? score : best;
                    continue;
                }
                weight = exp(score - best);
                sum += weight;
                seen++;
                for (uint32_t d = 0; d < shape->head_dim; d++)
                    out[d] += weight * (double)v[d];
            }
    for (uint32_t d = 0; d < shape->head_dim && sum > 0; d++)
        out[d] /= sum;
    return seen;
}

#endif
