/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Models of a known shape with random weights, for benchmarks: what a dense layer costs depends on the shape and the
 * type of its weights, not on their values, as long as these are normal numbers. A weight is +-2^e (1 + u), u uniform
 * in [0, 1), with e such that a row times a vector of unit elements is about 1: activations stay in range through any
 * number of layers. Bits are made directly in the type, since converting 8 G numbers would take minutes.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "kernels/kernels.h"
#include "model/weights.h"

struct shape {
    const char *name;
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab;
    bool tied;
};

static const struct shape shapes[] = {
    {"llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, true},
    {"llama-3.2-3b", 28, 3072, 24, 8, 128, 8192, 128256, true},
    {"llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, false},
    {"needle-256", 3, 256, 8, 2, 128, 128, 260, false},
    {"tiny-256", 1, 256, 4, 1, 64, 256, 260, false},
};

static const struct shape *find_shape(const char *name)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    return NULL;
}

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* n is a multiple of 4: all widths of the shapes are. */
static void fill_16(uint8_t *out, size_t n, uint16_t exponent, uint16_t mantissa_mask, uint64_t *state)
{
    const uint64_t every = UINT64_C(0x0001000100010001);
    const uint64_t mask = every * (0x8000u | mantissa_mask), set = every * exponent;

    for (size_t i = 0; i < n; i += 4) {
        uint64_t four = (next_random(state) & mask) | set;

        memcpy(out + 2 * i, &four, sizeof four);
    }
}

static void fill_f32(uint32_t *out, size_t n, uint32_t exponent, uint64_t *state)
{
    for (size_t i = 0; i < n; i++)
        out[i] = ((uint32_t)next_random(state) & 0x807fffffu) | exponent;
}

static void fill_q8_0(uint8_t *out, size_t n, int e, uint64_t *state)
{
    uint16_t scale = nkv_f32_to_f16(ldexpf(1.0f, e - 6));

    for (size_t i = 0; i < n; i += 32, out += 34) {
        memcpy(out, &scale, sizeof scale);
        for (size_t j = 0; j < 32; j += 8) {
            uint64_t bits = next_random(state) & ~UINT64_C(0x0000000000000080);

            memcpy(out + 2 + j, &bits, sizeof bits);
        }
    }
}

static void fill_matrix(const struct nkv_matrix *w, void *out, uint64_t *state)
{
    const size_t n = (size_t)w->n_rows * w->n_cols;
    const int e = -(int)ceil(0.5 * log2(3.0 * w->n_cols)); /* the mean square of 1 + u is 7/3 */

    switch (w->dtype) {
    case NKV_F16:
        fill_16(out, n, (uint16_t)((15 + e) << 10), 0x3ff, state);
        break;
    case NKV_BF16:
        fill_16(out, n, (uint16_t)((127 + e) << 7), 0x7f, state);
        break;
    case NKV_Q8_0:
        fill_q8_0(out, n, e, state);
        break;
    default:
        fill_f32(out, n, (uint32_t)(127 + e) << 23, state);
        break;
    }
}

/* Places the next matrix of `model` in its region; the first pass (no region yet) only counts. */
struct carver {
    struct nkv_model *model;
    uint64_t bytes;
    uint64_t *seed; /* NULL: weights stay zero */
    enum nkv_dtype dtype;
};

static void carve(struct carver *c, struct nkv_matrix *out, uint32_t n_rows, uint32_t n_cols)
{
    struct nkv_matrix w = {NULL, c->dtype, n_rows, n_cols};
    uint64_t bytes = nkv_weight_row_bytes(c->dtype, n_cols) * (uint64_t)n_rows;

    if (c->model->region.base) {
        uint8_t *at = (uint8_t *)c->model->region.base + c->bytes;

        if (c->seed)
            fill_matrix(&w, at, c->seed);
        w.data = at;
        c->model->info.weight_bytes += bytes;
        c->model->info.n_parameters += (uint64_t)n_rows * n_cols;
    }
    *out = w;
    c->bytes += nkv_round_up(bytes, NKV_CACHE_LINE);
}

static void carve_all(struct carver *c)
{
    const struct nkv_model_info *info = &c->model->info;
    const uint32_t d = info->n_embd, nq = nkv_q_rows(info), nkv = nkv_kv_rows(info), ff = info->n_ff;

    carve(c, &c->model->token_embd, info->n_vocab, d);
    for (uint32_t l = 0; l < info->n_layers; l++) {
        struct nkv_layer_weights *layer = &c->model->layers[l];

        carve(c, &layer->q, nq, d);
        carve(c, &layer->k, nkv, d);
        carve(c, &layer->v, nkv, d);
        carve(c, &layer->o, d, nq);
        carve(c, &layer->gate, ff, d);
        carve(c, &layer->up, ff, d);
        carve(c, &layer->down, d, ff);
    }
    c->model->output = c->model->token_embd;
    if (!info->tied_embeddings)
        carve(c, &c->model->output, info->n_vocab, d);
}

static int ones(uint32_t n, float **out)
{
    TRY(nkv_alloc(n, sizeof **out, out));
    for (uint32_t i = 0; i < n; i++)
        (*out)[i] = 1;
    return 0;
}

static int build(struct nkv_model *model, enum nkv_dtype dtype, uint64_t *seed)
{
    struct carver count = {.model = model, .dtype = dtype}, place = {.model = model, .dtype = dtype, .seed = seed};

    TRY(nkv_model_layout(model));
    TRY(ones(model->info.n_embd, &model->output_norm));
    for (uint32_t l = 0; l < model->info.n_layers; l++) {
        TRY(ones(model->info.n_embd, &model->layers[l].attn_norm));
        TRY(ones(model->info.n_embd, &model->layers[l].ffn_norm));
    }
    carve_all(&count);
    TRY(nkv_region_open(count.bytes, &model->region));
    carve_all(&place);
    return 0;
}

static int open_shape(const char *shape, enum nkv_dtype dtype, uint64_t *seed, struct nkv_model **model_out)
{
    const struct shape *s = shape ? find_shape(shape) : NULL;
    struct nkv_model *model;
    int status;

    if (!s)
        FAIL(
            NKV_EINVAL,
            "no model shape is called \"%s\": there are llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, needle-256, tiny-256",
            shape ? shape : "");
    if ((unsigned)dtype >= NKV_DTYPE_COUNT)
        FAIL(NKV_EINVAL, "weights of unknown type %u", (unsigned)dtype);
    TRY(nkv_alloc(1, sizeof *model, &model));
    model->info = (struct nkv_model_info){.architecture = "llama",
                                          .n_layers = s->n_layers,
                                          .n_embd = s->n_embd,
                                          .n_heads = s->n_heads,
                                          .n_kv_heads = s->n_kv_heads,
                                          .head_dim = s->head_dim,
                                          .n_ff = s->n_ff,
                                          .n_vocab = s->n_vocab,
                                          .rope_base = 500000.0f,
                                          .rms_eps = 1e-5f,
                                          .weight_dtype = dtype,
                                          .tied_embeddings = s->tied};
    snprintf(model->info.name, sizeof model->info.name, "%s (random)", s->name);
    model->n_rot = s->head_dim;
    status = build(model, dtype, seed);
    if (status < 0) {
        nkv_model_close(model);
        return status;
    }
    *model_out = model;
    return 0;
}

int nkv_model_open_random(const char *shape, enum nkv_dtype dtype, uint64_t seed, struct nkv_model **model_out)
{
    return open_shape(shape, dtype, &seed, model_out);
}

int nkv_model_open_blank(const char *shape, enum nkv_dtype dtype, struct nkv_model **model_out)
{
    return open_shape(shape, dtype, NULL, model_out);
}
