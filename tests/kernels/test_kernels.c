/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every kernel of every table, from one table of cases: the reference is compared with an oracle in double, the others
 * with the reference, each with a bound per operation and element type; and splitting the work must not change a bit.
 *
 *   kernels_kernels            the comparison (what CTest runs)
 *   kernels_kernels --time     the time of each kernel on the shapes of the same table, and the rate at which it reads
 *                              as a share of the machine's read bandwidth, measured in the same run
 */
#define _DEFAULT_SOURCE /* posix_memalign, madvise */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <nearkv/nearkv.h>

#include "base/clock.h"
#include "base/team.h"
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
        k->attend[p->dtype](&a);
    }
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

/* ---- the table of cases ---- */

enum { F16_STEP_INVERSE = 2048, BF16_STEP_INVERSE = 256 }; /* half a step: 2^-11, 2^-8 */
#define HALF_F16  (1.0 / F16_STEP_INVERSE)
#define HALF_BF16 (1.0 / BF16_STEP_INVERSE)

enum { DOT, SCORE, ATTEND, MERGE, FINISH, STORE, LOAD, MATVEC, DIGEST, N_OPS };
static const struct op ops[N_OPS] = {
    /* Order of the four types: f32, f16, bf16, q8_0. */
    [DOT] = {"dot", dot_setup, dot_expect, dot_run, one_unit, row_bytes, {1e-7, 1e-7, 1e-7, -1}, {2e-6, 2e-6, 2e-6}},
    [SCORE] = {"score",
               score_setup,
               score_expect,
               score_run,
               n_units,
               score_bytes,
               {5e-7, 5e-7, 5e-7, -1},
               {2e-6, 2e-6, 2e-6}},
    /* bf16: q and the weights of V may be rounded to bf16 where the CPU multiplies bf16; q8_0: q to int8. */
    [ATTEND] = {"attend",
                attend_setup,
                attend_expect,
                attend_run,
                attend_units,
                attend_bytes,
                {1e-6, 1e-6, 1e-6, 1e-6},
                {2e-6, 2e-6, 4e-3, 4e-3}},
    [MERGE] = {"merge", merge_setup, merge_expect, merge_run, one_unit, NULL, {1e-6, -1, -1, -1}, {1e-6}},
    [FINISH] = {"finish", finish_setup, finish_expect, finish_run, one_unit, NULL, {1e-7, -1, -1, -1}, {3e-7}},
    [STORE] = {"store",
               store_setup,
               store_expect,
               store_run,
               n_units,
               NULL,
               {0, HALF_F16, HALF_BF16, 0.5 / 127},
               {0, 0, 0, 0}},
    [LOAD] = {"load", load_setup, load_expect, load_run, n_units, NULL, {0, 0, 0, 0}, {0, 0, 0, 0}},
    [MATVEC] = {"matvec",
                matvec_setup,
                matvec_expect,
                matvec_run,
                n_units,
                matvec_bytes,
                {1e-7, 1e-7, 1e-7, 1e-7},
                {2e-6, 2e-6, 2e-6, 2e-6}},
    /* cuboid-mean rounds to the digest's type, and outward rounding of q8_0 is one whole step. */
    [DIGEST] = {"digest",
                digest_setup,
                digest_expect,
                digest_run,
                one_unit,
                digest_bytes,
                {1e-6, HALF_F16, HALF_BF16, 2 * HALF_BF16},
                {1e-6, 2 * HALF_F16, 2 * HALF_BF16, 2 * HALF_BF16}},
};

/* Every combination of the numbers in the lists (which end at 0) is a case. */
struct cases {
    int op;
    uint32_t dims[8], ns[8], rows[8];
    struct shape time[4];
};
static const struct cases table[] = {
    {DOT, {1, 7, 8, 31, 64, 80, 1000}, {1}, {1}, {{128, 1, 1, 1, false}}},
    {SCORE,
     {8, 64, 80, 128, 512, 24},
     {1, 2, 3, 4, 5, 33, 100},
     {1},
     {{128, 1u << 18, 1, 1, false}, {64, 1u << 19, 1, 1, false}}},
    {ATTEND,
     {8, 64, 80, 128, 512},
     {1, 2, 31, 32, 17},
     {1, 3, 4, 8, 32, 200},
     {{128, 32, 4, 1u << 13, false},
      {64, 32, 4, 1u << 14, false},
      {128, 32, 256, 64, false},
      {128, 32, 1, 1u << 13, false}}},
    {MERGE, {8, 64, 80, 128, 512}, {1}, {1, 3, 200}, {{128, 1, 32, 1, false}}},
    {FINISH, {8, 64, 80, 128, 512}, {1}, {1, 3, 200}, {{128, 1, 32, 1, false}}},
    {STORE, {8, 64, 80, 128, 512}, {1, 2, 31}, {1}, {{128, 32, 1, 1, false}}},
    {LOAD, {8, 64, 80, 128, 512}, {1, 2, 31}, {1}, {{128, 32, 1, 1, false}}},
    {MATVEC,
     {32, 64, 96, 2048, 4064},
     {1, 2, 3, 4, 7, 17},
     {1, 2, 3, 5, 8, 11},
     {{2048, 8192 * 4, 1, 1, false},
      {8192, 2048 * 4, 1, 1, false},
      {2048, 8192 * 4, 4, 1, false},
      {2048, 8192 * 4, 8, 1, false}}},
    {DIGEST, {8, 64, 80, 128, 512}, {1, 2, 31, 32}, {NKV_DIGEST_CUBOID_MEAN}, {{128, 32, 1, 1, false}}},
    {DIGEST, {8, 64, 80, 128, 512}, {1, 2, 31, 32}, {0}, {{128, 32, 0, 1, false}}},
};

static const char *const table_names[] = {"ref", "avx2", "avx512"};
enum { N_TABLES = sizeof table_names / sizeof *table_names };

static void result_alloc(const struct operands *p, struct result *r)
{
    const struct shape *s = &p->shape;
    size_t rows = 2 * (size_t)s->rows + 1;
    *r = (struct result){
        .out = test_alloc(p->n_out * sizeof(float)),
        .o = test_alloc(rows * s->dim * sizeof(float)),
        .m = test_alloc(rows * sizeof(float)),
        .l = test_alloc(rows * sizeof(float)),
        .raw = test_alloc(p->n_out * 4),
        .scale = test_alloc(s->n * sizeof(float)),
        .scratch = test_alloc(nkv_attend_scratch_bytes(s->rows + 1, s->n, s->dim)),
    };
}

static void result_free(struct result *r)
{
    void *all[] = {r->out, r->o, r->m, r->l, r->raw, r->scale, r->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void operands_free(struct operands *p)
{
    void *all[] = {p->x, p->x2, p->w, p->w2, p->scale, p->scale2, p->visible, p->want, p->size};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void compare(const struct op *op, const struct operands *p, const char *name, const float *out, double bound)
{
    const struct shape *s = &p->shape;
    for (size_t i = 0; i < p->n_out; i++) {
        double want = p->want[i], got = (double)out[i];
        if (want == got || (isnan(want) && isnan(got)) || fabs(got - want) <= bound * p->size[i])
            continue;
        fail_msg("%s %s %s dim %u n %u rows %u%s: out[%zu] = %.9g, want %.9g, error %.3g, bound %.3g", name, op->name,
                 nkv_dtype_name(p->dtype), s->dim, s->n, s->rows, s->ragged ? " ragged" : "", i, got, want,
                 fabs(got - want) / p->size[i], bound);
    }
}

/* Two halves, one after the other, must give the bits that the whole gave. Not for attend: it is a fold. */
static void check_split(const struct op *op, const struct operands *p, const struct nkv_kernels *k,
                        const struct result *whole)
{
    uint32_t n = op->units(p);
    struct result halves;
    if (n < 2 || op == &ops[ATTEND])
        return;
    result_alloc(p, &halves);
    op->run(k, p, &halves, 0, n / 2);
    op->run(k, p, &halves, n / 2, n);
    for (size_t i = 0; i < p->n_out; i++)
        if (memcmp(&whole->out[i], &halves.out[i], sizeof(float)) != 0)
            fail_msg("%s %s %s dim %u n %u rows %u: out[%zu] changes when the work is split", k->name, op->name,
                     nkv_dtype_name(p->dtype), p->shape.dim, p->shape.n, p->shape.rows, i);
    result_free(&halves);
}

static void check_case(const struct op *op, enum nkv_dtype dtype, struct shape shape)
{
    struct operands p = {.dtype = dtype, .shape = shape};
    struct result r;
    op->setup(&p);
    op->expect(&p);
    for (size_t i = 0; i < N_TABLES; i++) {
        const struct nkv_kernels *k = nkv_kernels_find(table_names[i]);
        if (k == NULL)
            continue;
        result_alloc(&p, &r);
        op->run(k, &p, &r, 0, op->units(&p));
        compare(op, &p, k->name, r.out, i == 0 ? op->bound_ref[dtype] : op->bound[dtype]);
        check_split(op, &p, k, &r);
        for (size_t j = 0; i == 0 && j < p.n_out; j++) /* from now on the reference is what is right */
            p.want[j] = (double)r.out[j];
        result_free(&r);
    }
    operands_free(&p);
}

static void check_cases(const struct cases *c)
{
    const struct op *op = &ops[c->op];
    bool attends = c->op == ATTEND;
    for (enum nkv_dtype dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++)
        for (size_t i = 0; op->bound_ref[dtype] >= 0 && i < 8 && c->dims[i]; i++)
            for (size_t j = 0; j < 8 && c->ns[j]; j++)
                for (size_t l = 0; l == 0 || (l < 8 && c->rows[l]); l++) {
                    struct shape shape = {c->dims[i], c->ns[j], c->rows[l], attends ? 3 : 1, false};
                    check_case(op, dtype, shape);
                    shape.ragged = attends;
                    if (attends)
                        check_case(op, dtype, shape);
                }
}

static void every_table_agrees_with_the_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        check_cases(&table[i]);
}

/* ---- times ---- */

struct timing {
    const struct op *op;
    const struct nkv_kernels *kernels;
    const struct operands *operands;
    struct result results[2];
};

static void timed_part(void *arg, uint32_t rank, uint32_t n_ranks)
{
    struct timing *t = arg;
    uint64_t n = t->op->units(t->operands);
    if (n == 1 && rank > 0)
        return;
    uint64_t ranks = n == 1 ? 1 : n_ranks;
    t->op->run(t->kernels, t->operands, &t->results[rank], (uint32_t)(n * rank / ranks),
               (uint32_t)(n * (rank + 1) / ranks));
}

static void read_part(void *arg, uint32_t rank, uint32_t n_ranks)
{
    const struct timing *t = arg;
    size_t passes = t->operands->w2 != NULL && t->operands->scale2 != NULL ? 2 : 1; /* attend reads w and w2 */
    size_t share = (size_t)t->op->bytes(t->operands) / passes / n_ranks / 4096 * 4096;
    for (size_t i = 0; i < passes; i++)
        t->results[rank].out[0] =
            (float)t->kernels->read(share, (const char *)(i ? t->operands->w2 : t->operands->w) + share * rank);
}

static double seconds_of(struct nkv_team *team, nkv_team_fn fn, struct timing *t)
{
    uint64_t start = nkv_now_ns();
    if (t->op->units(t->operands) == 1)
        fn(t, 0, 1);
    else
        nkv_team_run(team, fn, t);
    return (double)(nkv_now_ns() - start) * 1e-9;
}

/*
 * The best seconds of the kernel and of a plain read of as many bytes of the same memory, in turns, so that whatever
 * else the machine does disturbs both alike.
 */
static void best_seconds(struct nkv_team *team, struct timing *t, double *kernel_out, double *read_out)
{
    double total = 0;
    bool reads = t->op->bytes != NULL && t->op->bytes(t->operands) >= (64 << 20);
    *kernel_out = *read_out = 1e9;
    for (int i = 0; i < 10 || (total < 0.7 && i < 20000); i++) {
        double kernel = seconds_of(team, timed_part, t), read = reads ? seconds_of(team, read_part, t) : 0;
        *kernel_out = fmin(*kernel_out, kernel);
        *read_out = fmin(*read_out, read);
        total += kernel + read;
    }
}

static void time_shape(struct nkv_team *team, const struct op *op, enum nkv_dtype dtype, struct shape shape)
{
    struct operands p = {.dtype = dtype, .shape = shape};
    struct timing t = {.op = op, .operands = &p};
    op->setup(&p);
    result_alloc(&p, &t.results[0]);
    result_alloc(&p, &t.results[1]);
    for (size_t i = 0; i < N_TABLES; i++) {
        double seconds, read;
        t.kernels = nkv_kernels_find(table_names[i]);
        if (t.kernels == NULL || (i == 0 && op->units(&p) > 1000))
            continue; /* the reference would take minutes on the large shapes */
        best_seconds(team, &t, &seconds, &read);
        printf("%-7s %-5s %-7s dim %5u n %7u rows %3u pages %5u %12.2f us", op->name, nkv_dtype_name(dtype),
               t.kernels->name, shape.dim, shape.n, shape.rows, shape.pages, seconds * 1e6);
        if (op->bytes != NULL)
            printf(" %7.2f GB/s", op->bytes(&p) / seconds * 1e-9);
        if (read > 0)
            printf(" (read %6.2f) %5.1f %%", op->bytes(&p) / read * 1e-9, 100 * read / seconds);
        if (op == &ops[ATTEND] || op == &ops[MATVEC])
            printf(" %7.1f GFLOP/s",
                   (op == &ops[ATTEND] ? 4.0 : 2.0) * shape.rows * shape.dim * shape.n * shape.pages / seconds * 1e-9);
        printf("\n");
        fflush(stdout);
    }
    result_free(&t.results[0]);
    result_free(&t.results[1]);
    operands_free(&p);
}

/* argv[2], argv[3]: only this operation, only this type. */
static int time_all(int argc, char **argv)
{
    struct nkv_team *team;
    double bandwidth;
    if (nkv_read_bandwidth(1u << 30, 2, 5, &bandwidth) != 0 || nkv_team_open(2, NULL, NULL, &team) != 0) {
        fprintf(stderr, "%s\n", nkv_last_error());
        return 1;
    }
    printf("read bandwidth, 2 threads: %.2f GB/s\n", bandwidth);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const struct op *op = &ops[table[i].op];
        if (argc > 2 && strcmp(argv[2], op->name) != 0)
            continue;
        for (enum nkv_dtype dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
            if (op->bound_ref[dtype] < 0 || (argc > 3 && strcmp(argv[3], nkv_dtype_name(dtype)) != 0))
                continue;
            for (size_t j = 0; j < 4 && table[i].time[j].dim; j++)
                time_shape(team, op, dtype, table[i].time[j]);
        }
    }
    nkv_team_close(team);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_table_agrees_with_the_reference),
    };
    if (argc > 1 && strcmp(argv[1], "--time") == 0)
        return time_all(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
