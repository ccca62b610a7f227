/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A context over CPU devices, made-up tokens, and attention computed the naive way. Token t of sequence s has the same
 * q, k, v however it is fed, so that runs can be compared.
 */
#ifndef NKV_TESTS_RUNTIME_RIG_H
#define NKV_TESTS_RUNTIME_RIG_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nearkv/nearkv.h>

#include "base/mem.h"

#define RIG_LAYERS  2u
#define RIG_HEADS   4u
#define RIG_KV      2u
#define RIG_DIM     16u
#define RIG_PAGE    32u
#define RIG_ROW     (RIG_HEADS * RIG_DIM)
#define RIG_KV_ROW  (RIG_KV * RIG_DIM)
#define RIG_DEVICES 4u

struct rig {
    struct nkv_kv_shape shape;
    struct nkv_device *devices[RIG_DEVICES], *compute;
    uint32_t n_devices;
    struct nkv_context *context;
};

struct rig_options {
    enum nkv_dtype dtype;
    uint32_t n_devices, n_threads;
    const char *spec, *compute_spec; /* NULL: "cpu" */
    uint64_t capacity_bytes, compute_bytes;
    uint32_t max_batch, max_tokens;
    enum nkv_kv_parallel kv_parallel;
    void (*plan_log)(void *arg, const char *line);
    void *plan_log_arg;
};

static inline struct nkv_kv_shape rig_shape(enum nkv_dtype dtype)
{
    return (struct nkv_kv_shape){.n_layers = RIG_LAYERS,
                                 .n_heads = RIG_HEADS,
                                 .n_kv_heads = RIG_KV,
                                 .head_dim = RIG_DIM,
                                 .page_tokens = RIG_PAGE,
                                 .dtype = dtype};
}

static inline void rig_close(struct rig *rig)
{
    nkv_context_close(rig->context);
    for (uint32_t i = 0; i < RIG_DEVICES; i++)
        if (rig->devices[i])
            nkv_device_close(rig->devices[i]);
    if (rig->compute)
        nkv_device_close(rig->compute);
    *rig = (struct rig){0};
}

static inline int rig_open(struct rig *rig, const struct rig_options *o)
{
    struct nkv_device_config config = {.size = sizeof config,
                                       .shape = rig_shape(o->dtype),
                                       .capacity_bytes = o->capacity_bytes ? o->capacity_bytes : 8u << 20,
                                       .n_threads = o->n_threads ? o->n_threads : 1};
    struct nkv_context_options options = {.size = sizeof options,
                                          .shape = config.shape,
                                          .n_devices = o->n_devices ? o->n_devices : 1,
                                          .max_batch = o->max_batch ? o->max_batch : 4,
                                          .max_tokens = o->max_tokens ? o->max_tokens : 512,
                                          .kv_parallel = o->kv_parallel,
                                          .plan_log = o->plan_log,
                                          .plan_log_arg = o->plan_log_arg};
    int status = 0;

    if (o->kv_parallel == NKV_KV_HEADS) {
        config.shape.n_heads /= options.n_devices;
        config.shape.n_kv_heads /= options.n_devices;
    }
    *rig = (struct rig){.shape = options.shape, .n_devices = options.n_devices};
    for (uint32_t i = 0; i < options.n_devices && status == 0; i++)
        status = nkv_device_open(o->spec ? o->spec : "cpu", &config, &rig->devices[i]);
    config.shape = options.shape;
    if (o->compute_bytes)
        config.capacity_bytes = o->compute_bytes;
    if (status == 0)
        status = nkv_device_open(o->compute_spec ? o->compute_spec : "cpu", &config, &rig->compute);
    options.devices = rig->devices;
    options.compute = rig->compute;
    if (status == 0)
        status = nkv_context_open(&options, &rig->context);
    if (status < 0)
        rig_close(rig);
    return status;
}

/* A number in [-1, 1) from its coordinates. */
static inline float rig_number(uint32_t seed, uint32_t kind, uint32_t layer, uint32_t pos, uint32_t i)
{
    uint64_t x = (uint64_t)seed << 48 ^ (uint64_t)kind << 44 ^ (uint64_t)layer << 40 ^ (uint64_t)pos << 16 ^ i;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return (float)(x >> 40) / (float)(1u << 23) - 1.0f;
}

/* Keys wander from page to page, so that pages differ and sets change from step to step. */
static inline void rig_fill(uint32_t seed, uint32_t layer, uint32_t pos, uint32_t n_tokens, float *q, float *k,
                            float *v)
{
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t i = 0; i < RIG_ROW; i++)
            q[t * RIG_ROW + i] = 2.0f * rig_number(seed, 1, layer, pos + t, i);
        for (uint32_t i = 0; i < RIG_KV_ROW; i++) {
            k[t * RIG_KV_ROW + i] =
                rig_number(seed, 2, layer, (pos + t) / RIG_PAGE, i) + 0.5f * rig_number(seed, 3, layer, pos + t, i);
            v[t * RIG_KV_ROW + i] = rig_number(seed, 4, layer, pos + t, i);
        }
    }
}

/* One sequence under test: the library's, and what it was fed. */
struct rig_seq {
    struct nkv_seq *seq;
    uint32_t seed, length;
    float *q, *k, *v, *out; /* of the step under way, for one layer */
    float *last;            /* [RIG_LAYERS][RIG_ROW] output of the newest token */
};

#define RIG_CHUNK 512u

static inline void rig_seq_init(struct rig_seq *s, struct nkv_seq *seq, uint32_t seed)
{
    *s = (struct rig_seq){.seq = seq, .seed = seed};
    s->q = malloc(RIG_CHUNK * RIG_ROW * sizeof(float));
    s->out = malloc(RIG_CHUNK * RIG_ROW * sizeof(float));
    s->k = malloc(RIG_CHUNK * RIG_KV_ROW * sizeof(float));
    s->v = malloc(RIG_CHUNK * RIG_KV_ROW * sizeof(float));
    s->last = calloc(RIG_LAYERS * RIG_ROW, sizeof(float));
}

static inline void rig_seq_free(struct rig_seq *s)
{
    free(s->q);
    free(s->k);
    free(s->v);
    free(s->out);
    free(s->last);
}

static inline struct nkv_attend_item rig_item(struct rig_seq *s, uint32_t layer, uint32_t n_tokens)
{
    rig_fill(s->seed, layer, s->length, n_tokens, s->q, s->k, s->v);
    return (struct nkv_attend_item){s->seq, n_tokens, s->q, s->k, s->v, s->out};
}

/* Feeds n_tokens[i] tokens to each of n sequences in one step. */
static inline int rig_step(struct rig *rig, struct rig_seq *const *s, const uint32_t *n_tokens, uint32_t n)
{
    struct nkv_attend_item items[16];
    struct nkv_ticket *ticket;
    int status;

    for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
        for (uint32_t i = 0; i < n; i++)
            items[i] = rig_item(s[i], layer, n_tokens[i]);
        status = nkv_attend_begin(rig->context, layer, items, n, &ticket);
        if (status < 0)
            return status;
        status = nkv_attend_end(ticket);
        if (status < 0)
            return status;
        for (uint32_t i = 0; i < n; i++)
            memcpy(s[i]->last + layer * RIG_ROW, s[i]->out + (n_tokens[i] - 1) * RIG_ROW, RIG_ROW * sizeof(float));
    }
    status = nkv_step_end(rig->context, items, n);
    if (status < 0)
        return status;
    for (uint32_t i = 0; i < n; i++)
        s[i]->length = nkv_seq_length(s[i]->seq);
    return 0;
}

/* Prefill of one sequence in chunks of at most `chunk` tokens. */
static inline int rig_prefill(struct rig *rig, struct rig_seq *s, uint32_t n_tokens, uint32_t chunk)
{
    while (n_tokens > 0) {
        uint32_t n = n_tokens < chunk ? n_tokens : chunk;
        int status = rig_step(rig, &s, &n, 1);

        if (status < 0)
            return status;
        n_tokens -= n;
    }
    return 0;
}

static inline int rig_decode(struct rig *rig, struct rig_seq *s)
{
    const uint32_t one = 1;

    return rig_step(rig, &s, &one, 1);
}

/*
 * Attention of the token at pos to the pages of each KV head, in double, from the numbers themselves.
 * pages: [RIG_KV][n_pages], NULL: all.
 */
static inline void rig_oracle(uint32_t seed, uint32_t layer, uint32_t pos, const uint32_t *pages, uint32_t n_pages,
                              float *out)
{
    static float q[RIG_ROW], k[RIG_KV_ROW], v[RIG_KV_ROW];
    double m[RIG_HEADS], l[RIG_HEADS], o[RIG_ROW];
    uint32_t n_all = pos / RIG_PAGE + 1;

    rig_fill(seed, layer, pos, 1, q, k, v);
    for (uint32_t h = 0; h < RIG_HEADS; h++) {
        m[h] = -INFINITY;
        l[h] = 0;
    }
    memset(o, 0, sizeof o);
    for (uint32_t i = 0; i < (pages ? n_pages : n_all) * RIG_PAGE; i++) {
        for (uint32_t h = 0; h < RIG_HEADS; h++) {
            uint32_t g = h / (RIG_HEADS / RIG_KV), p = i / RIG_PAGE;
            uint32_t t = (pages ? pages[g * n_pages + p] : p) * RIG_PAGE + i % RIG_PAGE;
            float tq[RIG_ROW];
            double s = 0, next, scale;

            if (t > pos)
                continue;
            if (h % (RIG_HEADS / RIG_KV) == 0 && (g == 0 || pages))
                rig_fill(seed, layer, t, 1, tq, k, v);
            for (uint32_t d = 0; d < RIG_DIM; d++)
                s += (double)q[h * RIG_DIM + d] * (double)k[g * RIG_DIM + d];
            s /= sqrt((double)RIG_DIM);
            next = s > m[h] ? s : m[h];
            scale = exp(m[h] - next);
            l[h] = l[h] * scale + exp(s - next);
            for (uint32_t d = 0; d < RIG_DIM; d++)
                o[h * RIG_DIM + d] = o[h * RIG_DIM + d] * scale + exp(s - next) * (double)v[g * RIG_DIM + d];
            m[h] = next;
        }
    }
    for (uint32_t i = 0; i < RIG_ROW; i++)
        out[i] = (float)(o[i] / l[i / RIG_DIM]);
}

static inline float rig_difference(const float *a, const float *b, uint32_t n)
{
    float worst = 0;

    for (uint32_t i = 0; i < n; i++) {
        float d = fabsf(a[i] - b[i]);

        if (!(d <= worst))
            worst = d;
    }
    return worst;
}

/* Largest error that storing K and V in a type may cause. */
static inline float rig_bound(enum nkv_dtype dtype)
{
    static const float bounds[] = {2e-5f, 3e-3f, 2e-2f, 2.5e-2f};

    return bounds[dtype];
}

/* Whether every page of every device came back. */
static inline bool rig_empty(const struct rig *rig)
{
    struct nkv_device_report report;

    for (uint32_t i = 0; i <= rig->n_devices; i++) {
        if (nkv_context_device(rig->context, i, &report) < 0)
            return false;
        if (report.used_bytes || report.n_sequences || report.n_free_pages != report.n_total_pages) {
            fprintf(stderr, "device %u: %llu bytes, %u sequences, %u of %u pages free\n", i,
                    (unsigned long long)report.used_bytes, report.n_sequences, report.n_free_pages,
                    report.n_total_pages);
            return false;
        }
    }
    return true;
}

static inline struct nkv_seq_options rig_seq_options(enum nkv_mode mode, uint32_t max_tokens, uint32_t budget_tokens,
                                                     enum nkv_granularity granularity)
{
    struct nkv_seq_options options;

    nkv_seq_options_init(&options);
    options.mode = mode;
    options.max_tokens = max_tokens;
    options.budget_tokens = budget_tokens;
    options.granularity = granularity;
    return options;
}

/*
 * Opens a context and a sequence again and again, each time without memory for one allocation more than the last, until
 * both are open. returns: how often they failed.
 */
static inline uint32_t rig_open_without_memory(struct rig *rig, enum nkv_kv_parallel kv_parallel,
                                               const struct nkv_seq_options *so)
{
    struct rig_options options = {.n_devices = 2, .kv_parallel = kv_parallel};
    struct nkv_context_options again = {
        .size = sizeof again, .n_devices = 2, .max_batch = 4, .kv_parallel = kv_parallel};
    uint32_t n_failed = 0;
    int status = NKV_ENOMEM;

    assert_int_equal(rig_open(rig, &options), 0);
    again.shape = rig->shape;
    again.devices = rig->devices;
    again.compute = rig->compute;
    nkv_context_close(rig->context);
    for (uint64_t n = 1; status < 0; n++) {
        struct nkv_seq *seq;

        rig->context = NULL;
        nkv_mem_fail_at(n);
        status = nkv_context_open(&again, &rig->context);
        if (status == 0)
            status = nkv_seq_open(rig->context, so, &seq);
        nkv_mem_fail_at(0);
        assert_true(status == 0 || status == NKV_ENOMEM);
        n_failed += status < 0;
        if (status < 0)
            nkv_context_close(rig->context);
    }
    return n_failed;
}

#endif
