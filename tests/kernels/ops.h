/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/ops.h: the operations of test_kernels.c: random operands, what must come out in double, and how to run one.
 */
#ifndef NKV_TEST_KERNELS_OPS_H
#define NKV_TEST_KERNELS_OPS_H

#include "kernels/common.h"

struct shape {
    uint32_t dim;   /* head_dim; dot: n; matvec: columns */
    uint32_t n;     /* score: pages; attend, digest: tokens of a page; store, load: rows; matvec: rows of weights */
    uint32_t rows;  /* attend, merge, finish: query rows; matvec: vectors; digest: the kind */
    uint32_t pages; /* attend: folded in one after the other */
    bool ragged;    /* attend: rows see different numbers of tokens */
};

/* One operation's inputs, and in double what must come out: |out - want| <= bound * size. */
struct operands {
    enum nkv_dtype dtype;
    struct shape shape;
    float *x, *x2;         /* f32 inputs */
    void *w, *w2;          /* inputs of type dtype */
    float *scale, *scale2; /* of w and w2 (q8_0) */
    uint32_t *visible;
    size_t n_out;
    double *want, *size;
};

/* One thread's results and working memory. */
struct result {
    float *out; /* [n_out] */
    float *o, *m, *l;
    void *raw;
    float *scale;
    void *scratch;
};

struct op {
    const char *name;
    void (*setup)(struct operands *);
    void (*expect)(struct operands *); /* fills want and size */
    void (*run)(const struct nkv_kernels *, const struct operands *, struct result *, uint32_t first, uint32_t end);
    uint32_t (*units)(const struct operands *); /* what first and end count: work that may be split among threads */
    double (*bytes)(const struct operands *);   /* read from the big operand */
    double bound_ref[NKV_DTYPE_COUNT];          /* of the reference against the oracle; 0: exact; < 0: no such type */
    double bound[NKV_DTYPE_COUNT];              /* of the others against the reference */
};

static double row_bytes(const struct operands *p)
{
    return (double)nkv_kv_row_bytes(p->dtype, p->shape.dim);
}

static uint32_t one_unit(const struct operands *p)
{
    (void)p;
    return 1;
}

static uint32_t n_units(const struct operands *p)
{
    return p->shape.n;
}

/*
 * n_rows random cache rows. Big ones (for timing) repeat their first rows: memory is what matters there.
 */
static void *random_rows(enum nkv_dtype dtype, size_t n_rows, size_t dim, float **scale_out)
{
    size_t bytes = nkv_kv_row_bytes(dtype, dim), n_first = n_rows < 4096 ? n_rows : 4096;
    char *rows = test_alloc(n_rows * bytes);
    float *x = random_floats(n_first * dim), *scale = test_alloc(n_rows * sizeof *scale);
    nkv_kernels_find("ref")->store[dtype](n_first, dim, x, rows, scale);
    for (size_t r = n_first; r < n_rows; r++) {
        memcpy(rows + r * bytes, rows + (r - n_first) * bytes, bytes);
        scale[r] = scale[r - n_first];
    }
    free(x);
    *scale_out = scale;
    return rows;
}

static void alloc_want(struct operands *p, size_t n_out)
{
    p->n_out = n_out;
    p->want = test_alloc(n_out * sizeof *p->want);
    p->size = test_alloc(n_out * sizeof *p->size);
}

/* want = sum of a[i] * element i of w, size = sum of magnitudes. */
static void sum_products(const struct operands *p, const float *a, const void *w, float scale, double *want,
                         double *size)
{
    for (size_t i = 0; i < p->shape.dim; i++) {
        double term = (double)a[i] * element(p->dtype, w, scale, i);
        *want += term;
        *size += fabs(term);
    }
}

/* ---- dot ---- */

static void dot_setup(struct operands *p)
{
    p->x = random_floats(p->shape.dim);
    p->w = random_rows(p->dtype, 1, p->shape.dim, &p->scale);
    alloc_want(p, 1);
}

static void dot_expect(struct operands *p)
{
    p->want[0] = p->size[0] = 0;
    sum_products(p, p->x, p->w, 1, &p->want[0], &p->size[0]);
}

static void dot_run(const struct nkv_kernels *k, const struct operands *p, struct result *r, uint32_t first,
                    uint32_t end)
{
    (void)first;
    (void)end;
    r->out[0] = k->dot[p->dtype](p->shape.dim, p->x, p->w);
}

/* ---- score ---- */

static void score_setup(struct operands *p)
{
    p->x = random_floats(p->shape.dim);
    p->x2 = random_floats(p->shape.dim);
    for (size_t d = 0; d < p->shape.dim; d++) {
        p->x[d] = fabsf(p->x[d]);
        p->x2[d] = -fabsf(p->x2[d]);
    }
    p->w = random_rows(p->dtype, 2 * (size_t)p->shape.n, p->shape.dim, &p->scale);
    alloc_want(p, p->shape.n);
}

static void score_expect(struct operands *p)
{
    for (size_t i = 0; i < p->shape.n; i++) {
        const char *lo = (const char *)p->w + 2 * i * (size_t)row_bytes(p), *hi = lo + (size_t)row_bytes(p);
        p->want[i] = p->size[i] = 1; /* what `add` finds there */
        sum_products(p, p->x, hi, 1, &p->want[i], &p->size[i]);
        sum_products(p, p->x2, lo, 1, &p->want[i], &p->size[i]);
    }
}

static void score_run(const struct nkv_kernels *k, const struct operands *p, struct result *r, uint32_t first,
                      uint32_t end)
{
    const char *digest = (const char *)p->w + 2 * first * (size_t)row_bytes(p);
    bool add = p->shape.n % 2; /* both ways, over the cases: odd sizes start from 1 */
    for (uint32_t i = first; i < end; i++)
        r->out[i] = 1;
    k->score[p->dtype](end - first, p->shape.dim, p->x, p->x2, digest, add, r->out + first);
    if (!add)
        for (uint32_t i = first; i < end; i++)
            r->out[i] += 1;
}

static double score_bytes(const struct operands *p)
{
    return 2 * row_bytes(p) * p->shape.n;
}

/* ---- attend ---- */

static void attend_setup(struct operands *p)
{
    const struct shape *s = &p->shape;
    p->x = random_floats((size_t)s->rows * s->dim);
    for (size_t i = 0; i < (size_t)s->rows * s->dim; i++)
        p->x[i] *= 2 / sqrtf((float)s->dim);
    p->w = random_rows(p->dtype, (size_t)s->pages * s->n, s->dim, &p->scale);
    p->w2 = random_rows(p->dtype, (size_t)s->pages * s->n, s->dim, &p->scale2);
    if (s->ragged) {
        p->visible = test_alloc(s->rows * sizeof *p->visible);
        for (uint32_t row = 0; row < s->rows; row++)
            p->visible[row] = row % 7 == 3 ? 0 : random_u32() % (s->n + 3);
    }
    alloc_want(p, (size_t)s->rows * (s->dim + 1));
}

/* Row by row: the output, then the logarithm of the sum (m + log l). */
static void attend_expect_row(struct operands *p, size_t row)
{
    const struct shape *s = &p->shape;
    double *want = p->want + row * (s->dim + 1), *size = p->size + row * (s->dim + 1);
    size_t bytes = (size_t)row_bytes(p);
    uint32_t seen = p->visible && p->visible[row] < s->n ? p->visible[row] : s->n;
    double l = 0, largest = 0;
    memset(want, 0, (s->dim + 1) * sizeof *want);
    memset(size, 0, (s->dim + 1) * sizeof *size);
    for (size_t i = 0; i < (size_t)s->pages * s->n; i++) {
        double score = 0, magnitude = 0;
        if (i % s->n >= seen)
            continue;
        sum_products(p, p->x + row * s->dim, (const char *)p->w + i * bytes, p->scale[i], &score, &magnitude);
        l += exp(score);
        largest = fmax(largest, magnitude);
        for (size_t d = 0; d < s->dim; d++) {
            double v = element(p->dtype, (const char *)p->w2 + i * bytes, p->scale2[i], d);
            want[d] += exp(score) * v;
            size[d] += exp(score) * fabs(v);
        }
    }
    for (size_t d = 0; d < s->dim; d++) {
        want[d] = l > 0 ? want[d] / l : 0;
        size[d] = l > 0 ? size[d] / l * (1 + largest) : 0;
    }
    want[s->dim] = log(l);
    size[s->dim] = 1 + largest;
}

static void attend_expect(struct operands *p)
{
    for (size_t row = 0; row < p->shape.rows; row++)
        attend_expect_row(p, row);
}

static void partial_start(const struct operands *p, struct result *r)
{
    memset(r->o, 0, (size_t)p->shape.rows * p->shape.dim * sizeof *r->o);
    for (size_t row = 0; row < p->shape.rows; row++) {
        r->m[row] = -INFINITY;
        r->l[row] = 0;
    }
}

static void partial_end(const struct nkv_kernels *k, const struct operands *p, struct result *r)
{
    size_t dim = p->shape.dim;
    for (size_t row = 0; row < p->shape.rows; row++) {
        k->finish(1, dim, r->o + row * dim, r->l + row, r->out + row * (dim + 1));
        r->out[row * (dim + 1) + dim] = r->m[row] + logf(r->l[row]);
    }
}

static void attend_run(const struct nkv_kernels *k, const struct operands *p, struct result *r, uint32_t first,
                       uint32_t end)
{
    const struct shape *s = &p->shape;
    size_t page = (size_t)s->n * (size_t)row_bytes(p);
    void *prepared = NULL;
    if (k->prepare[p->dtype] != NULL) {
        prepared = test_alloc(s->rows * nkv_prepared_row_bytes(s->dim));
        k->prepare[p->dtype](s->rows, s->dim, p->x, prepared);
    }
    partial_start(p, r);
    for (uint32_t i = first; i < end; i++) {
        struct nkv_attend a = {.n_rows = s->rows,
                               .n_tokens = s->n,
                               .dim = s->dim,
                               .q = p->x,
                               .visible = p->visible,
                               .k = (const char *)p->w + i * page,
                               .v = (const char *)p->w2 + i * page,
                               .o = r->o,
                               .m = r->m,
                               .l = r->l,
                               .scratch = r->scratch};
        if (p->dtype == NKV_Q8_0) {
            a.k_scale = p->scale + (size_t)i * s->n;
            a.v_scale = p->scale2 + (size_t)i * s->n;
        }
        if (i + 1 < end) {
            a.next_k = (const char *)a.k + page;
            a.next_v = (const char *)a.v + page;
            a.next_k_scale = a.k_scale ? a.k_scale + s->n : NULL;
            a.next_v_scale = a.v_scale ? a.v_scale + s->n : NULL;
        }
        if (i % 4 != 3) /* with and without must agree */
            a.prepared = prepared;
        k->attend[p->dtype](&a);
    }
    free(prepared);
    partial_end(k, p, r);
}

static uint32_t attend_units(const struct operands *p)
{
    return p->shape.pages;
}

static double attend_bytes(const struct operands *p)
{
    return 2 * row_bytes(p) * p->shape.n * p->shape.pages;
}

/* ---- merge, finish ---- */

/* x: two partials of every row, o first; x2: their m (some rows empty); l is |o[0]| + 1. */
static void merge_setup(struct operands *p)
{
    const struct shape *s = &p->shape;
    p->x = random_floats(2 * (size_t)s->rows * s->dim);
    p->x2 = random_floats(2 * (size_t)s->rows);
    for (uint32_t row = 0; row < 2 * s->rows; row++) {
        p->x2[row] = row % 5 == 1 ? -INFINITY : p->x2[row] * 3;
        if (row % 5 == 1)
            memset(p->x + (size_t)row * s->dim, 0, s->dim * sizeof *p->x);
    }
    alloc_want(p, (size_t)s->rows * (s->dim + 1));
}

static float merge_l(const struct operands *p, size_t row)
{
    return p->x2[row] == -INFINITY ? 0 : fabsf(p->x[row * p->shape.dim]) + 1;
}

static void merge_expect(struct operands *p)
{
    size_t dim = p->shape.dim, rows = p->shape.rows;
    for (size_t row = 0; row < rows; row++) {
        double weight[2], l = 0, *want = p->want + row * (dim + 1), *size = p->size + row * (dim + 1);
        for (size_t part = 0; part < 2; part++) {
            weight[part] = exp((double)p->x2[part * rows + row]);
            l += weight[part] * (double)merge_l(p, part * rows + row);
        }
        for (size_t d = 0; d < dim; d++) {
            double a = weight[0] * (double)p->x[row * dim + d], b = weight[1] * (double)p->x[(rows + row) * dim + d];
            want[d] = l > 0 ? (a + b) / l : 0;
            size[d] = l > 0 ? (fabs(a) + fabs(b)) / l : 0;
        }
        want[dim] = log(l);
        size[dim] = 4;
    }
}

static void merge_run(const struct nkv_kernels *k, const struct operands *p, struct result *r, uint32_t first,
                      uint32_t end)
{
    size_t dim = p->shape.dim, rows = p->shape.rows;
    (void)first;
    (void)end;
    memcpy(r->o, p->x, 2 * rows * dim * sizeof *r->o);
    memcpy(r->m, p->x2, 2 * rows * sizeof *r->m);
    for (size_t row = 0; row < 2 * rows; row++)
        r->l[row] = merge_l(p, row);
    k->merge(rows, dim, r->o, r->m, r->l, r->o + rows * dim, r->m + rows, r->l + rows);
    partial_end(k, p, r);
}

static void finish_setup(struct operands *p)
{
    const struct shape *s = &p->shape;
    p->x = random_floats((size_t)s->rows * s->dim);
    p->x2 = random_floats(s->rows);
    for (uint32_t row = 0; row < s->rows; row++)
        p->x2[row] = row % 3 == 2 ? 0 : fabsf(p->x2[row]) + 1;
    alloc_want(p, (size_t)s->rows * s->dim);
}

static void finish_expect(struct operands *p)
{
    for (size_t i = 0; i < p->n_out; i++) {
        double l = (double)p->x2[i / p->shape.dim];
        p->want[i] = l > 0 ? (double)p->x[i] / l : 0;
        p->size[i] = fabs(p->want[i]);
    }
}

static void finish_run(const struct nkv_kernels *k, const struct operands *p, struct result *r, uint32_t first,
                       uint32_t end)
{
    (void)first;
    (void)end;
    k->finish(p->shape.rows, p->shape.dim, p->x, p->x2, r->out);
}

/* ---- store, load ---- */

static void store_setup(struct operands *p)
{
    p->x = random_floats((size_t)p->shape.n * p->shape.dim);
    alloc_want(p, (size_t)p->shape.n * p->shape.dim);
}

static void store_expect(struct operands *p)
{
    for (size_t r = 0, dim = p->shape.dim; r < p->shape.n; r++) {
        double largest = 0;
        for (size_t i = r * dim; i < (r + 1) * dim; i++)
            largest = fmax(largest, fabs((double)p->x[i]));
        for (size_t i = r * dim; i < (r + 1) * dim; i++) {
            p->want[i] = (double)p->x[i];
            p->size[i] = p->dtype == NKV_Q8_0 ? largest : fabs(p->want[i]);
        }
    }
}

static void store_run(const struct nkv_kernels *k, const struct operands *p, struct result *r, uint32_t first,
                      uint32_t end)
{
    size_t dim = p->shape.dim, begin = first * dim;
    float *scale = p->dtype == NKV_Q8_0 ? r->scale + first : NULL;
    k->store[p->dtype](end - first, dim, p->x + begin, (char *)r->raw + first * (size_t)row_bytes(p), scale);
    for (size_t i = begin; i < end * dim; i++)
        r->out[i] = (float)element(p->dtype, r->raw, r->scale[i / dim], i);
}

static void load_setup(struct operands *p)
{
    p->w = random_rows(p->dtype, p->shape.n, p->shape.dim, &p->scale);
    alloc_want(p, (size_t)p->shape.n * p->shape.dim);
}

static void load_expect(struct operands *p)
{
    for (size_t i = 0; i < p->n_out; i++) {
        p->want[i] = (double)(float)element(p->dtype, p->w, p->scale[i / p->shape.dim], i);
        p->size[i] = fabs(p->want[i]);
    }
}

static void load_run(const struct nkv_kernels *k, const struct operands *p, struct result *r, uint32_t first,
                     uint32_t end)
{
    size_t dim = p->shape.dim;
    const float *scale = p->dtype == NKV_Q8_0 ? p->scale + first : NULL;
    k->load[p->dtype](end - first, dim, (const char *)p->w + first * (size_t)row_bytes(p), scale, r->out + first * dim);
}

/* ---- matvec ---- */

/* GGUF's q8_0 row from cache rows of 32. */
static void *pack_blocks(const char *rows, const float *scale, size_t n_blocks)
{
    char *blocks = test_alloc(n_blocks * 34);
    for (size_t b = 0; b < n_blocks; b++) {
        uint16_t half = nkv_f32_to_f16(scale[b]);
        memcpy(blocks + b * 34, &half, sizeof half);
        memcpy(blocks + b * 34 + 2, rows + b * 32, 32);
    }
    return blocks;
}

static void matvec_setup(struct operands *p)
{
    const struct shape *s = &p->shape;
    p->x = random_floats((size_t)s->rows * s->dim);
    if (p->dtype == NKV_Q8_0) {
        size_t n_blocks = (size_t)s->n * s->dim / 32;
        p->w2 = random_rows(NKV_Q8_0, n_blocks, 32, &p->scale);
        p->w = pack_blocks(p->w2, p->scale, n_blocks);
    } else {
        p->w = random_rows(p->dtype, s->n, s->dim, &p->scale);
    }
    alloc_want(p, (size_t)s->rows * s->n);
}

static void matvec_expect(struct operands *p)
{
    for (size_t i = 0; i < p->n_out; i++) {
        size_t r = i % p->shape.n, b = i / p->shape.n, dim = p->shape.dim;
        p->want[i] = p->size[i] = 0;
        for (size_t c = 0; c < dim; c++) {
            size_t at = r * dim + c;
            double w = p->dtype == NKV_Q8_0
                           ? (double)nkv_f16_to_f32(nkv_f32_to_f16(p->scale[at / 32])) * ((const int8_t *)p->w2)[at]
                           : element(p->dtype, p->w, 1, at);
            p->want[i] += w * (double)p->x[b * dim + c];
            p->size[i] += fabs(w * (double)p->x[b * dim + c]);
        }
    }
}

static void matvec_run(const struct nkv_kernels *k, const struct operands *p, struct result *r, uint32_t first,
                       uint32_t end)
{
    k->matvec[p->dtype](p->w, p->shape.dim, first, end, p->shape.rows, p->x, r->out, p->shape.n);
}

static double matvec_bytes(const struct operands *p)
{
    return (double)nkv_weight_row_bytes(p->dtype, p->shape.dim) * p->shape.n;
}

/* ---- digest ---- */

static void digest_setup(struct operands *p)
{
    p->w = random_rows(p->dtype, p->shape.n, p->shape.dim, &p->scale);
    alloc_want(p, 2 * (size_t)p->shape.dim);
}

static void digest_expect(struct operands *p)
{
    for (size_t d = 0, dim = p->shape.dim; d < dim; d++) {
        double lo = INFINITY, hi = -INFINITY, distance = 0;
        for (size_t t = 0; t < p->shape.n; t++) {
            lo = fmin(lo, (double)(float)element(p->dtype, p->w, p->scale[t], t * dim + d));
            hi = fmax(hi, (double)(float)element(p->dtype, p->w, p->scale[t], t * dim + d));
        }
        for (size_t t = 0; t < p->shape.n; t++)
            distance += fabs(element(p->dtype, p->w, p->scale[t], t * dim + d) - (lo + hi) / 2) / p->shape.n;
        bool mean = p->shape.rows == NKV_DIGEST_CUBOID_MEAN;
        p->want[d] = mean ? (lo + hi) / 2 - distance : lo;
        p->want[dim + d] = mean ? (lo + hi) / 2 + distance : hi;
        p->size[d] = p->size[dim + d] = fabs(lo) + fabs(hi);
    }
}

static void digest_run(const struct nkv_kernels *k, const struct operands *p, struct result *r, uint32_t first,
                       uint32_t end)
{
    (void)first;
    (void)end;
    const float *scale = p->dtype == NKV_Q8_0 ? p->scale : NULL;
    k->digest[p->dtype]((enum nkv_digest)p->shape.rows, p->shape.n, p->shape.dim, p->w, scale, r->raw);
    for (size_t i = 0; i < p->n_out; i++)
        r->out[i] = (float)element(nkv_digest_dtype(p->dtype), r->raw, 1, i);
}

static double digest_bytes(const struct operands *p)
{
    return row_bytes(p) * p->shape.n;
}

#endif
