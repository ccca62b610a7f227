/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/ref_attend.c: dot, score, attend, merge and finish, the reference.
 *
 * attend is the online softmax (Milakov and Gimelshein 2018; FlashAttention) one page at a time: the page's scores,
 * their maximum, one rescaling of the partial, then the page's weighted V. The invariant: (o, m, l) is the exact
 * partial of all tokens folded in so far, up to rounding, and l >= 1 when a finite score was seen, so nothing
 * underflows however large the scores are.
 *
 * Sums of products are held in double: this file says what is right, not what is fast.
 */
#include <math.h>

#include "kernels/tables.h"

static float dot_f32(size_t n, const float *a, const void *b)
{
    const float *x = b;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)x[i];
    return (float)sum;
}

static float dot_f16(size_t n, const float *a, const void *b)
{
    const uint16_t *x = b;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)nkv_f16_to_f32(x[i]);
    return (float)sum;
}

static float dot_bf16(size_t n, const float *a, const void *b)
{
    const uint16_t *x = b;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)nkv_bf16_to_f32(x[i]);
    return (float)sum;
}

/* int8 times a scale that the caller applies. */
static float dot_i8(size_t n, const float *a, const int8_t *b)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return (float)sum;
}

static void score(enum nkv_dtype dtype, size_t n_pages, size_t dim, const float *q_pos, const float *q_neg,
                  const void *digest, bool add, float *scores)
{
    static float (*const dot[NKV_DTYPE_COUNT])(size_t, const float *, const void *) = {dot_f32, dot_f16, dot_bf16};
    size_t row_bytes = nkv_kv_row_bytes(dtype, dim);
    for (size_t p = 0; p < n_pages; p++) {
        const char *lo = (const char *)digest + 2 * p * row_bytes;
        float s = dot[dtype](dim, q_pos, lo + row_bytes) + dot[dtype](dim, q_neg, lo);
        scores[p] = add ? scores[p] + s : s;
    }
}

static void score_f32(size_t n_pages, size_t dim, const float *q_pos, const float *q_neg, const void *digest, bool add,
                      float *scores)
{
    score(NKV_F32, n_pages, dim, q_pos, q_neg, digest, add, scores);
}

static void score_f16(size_t n_pages, size_t dim, const float *q_pos, const float *q_neg, const void *digest, bool add,
                      float *scores)
{
    score(NKV_F16, n_pages, dim, q_pos, q_neg, digest, add, scores);
}

static void score_bf16(size_t n_pages, size_t dim, const float *q_pos, const float *q_neg, const void *digest, bool add,
                       float *scores)
{
    score(NKV_BF16, n_pages, dim, q_pos, q_neg, digest, add, scores);
}

static float token_score(enum nkv_dtype dtype, const struct nkv_attend *a, const float *q, size_t t)
{
    const char *k = (const char *)a->k + t * nkv_kv_row_bytes(dtype, a->dim);
    switch (dtype) {
    case NKV_F32:
        return dot_f32(a->dim, q, k);
    case NKV_F16:
        return dot_f16(a->dim, q, k);
    case NKV_BF16:
        return dot_bf16(a->dim, q, k);
    default:
        return a->k_scale[t] * dot_i8(a->dim, q, (const int8_t *)k);
    }
}

static float value(enum nkv_dtype dtype, const struct nkv_attend *a, size_t t, size_t d)
{
    size_t i = t * a->dim + d;
    switch (dtype) {
    case NKV_F32:
        return ((const float *)a->v)[i];
    case NKV_F16:
        return nkv_f16_to_f32(((const uint16_t *)a->v)[i]);
    case NKV_BF16:
        return nkv_bf16_to_f32(((const uint16_t *)a->v)[i]);
    default:
        return a->v_scale[t] * (float)((const int8_t *)a->v)[i];
    }
}

/* The larger; NaN if one is NaN. */
static float max_or_nan(float a, float b)
{
    return a >= b || isnan(a) ? a : b;
}

static void attend_row(enum nkv_dtype dtype, const struct nkv_attend *a, size_t row, size_t n_seen)
{
    const float *q = a->q + row * a->dim;
    float *o = a->o + row * a->dim;
    float *s = a->scratch;
    float m = a->m[row];
    for (size_t t = 0; t < n_seen; t++) {
        s[t] = token_score(dtype, a, q, t);
        m = max_or_nan(m, s[t]);
    }
    if (m == -INFINITY)
        return;
    float keep = expf(a->m[row] - m);
    for (size_t d = 0; d < a->dim; d++)
        o[d] *= keep;
    a->l[row] *= keep;
    for (size_t t = 0; t < n_seen; t++) {
        float weight = expf(s[t] - m);
        a->l[row] += weight;
        for (size_t d = 0; d < a->dim; d++)
            o[d] += weight * value(dtype, a, t, d);
    }
    a->m[row] = m;
}

static void attend(enum nkv_dtype dtype, const struct nkv_attend *a)
{
    for (size_t row = 0; row < a->n_rows; row++) {
        uint32_t n_seen = a->n_tokens;
        if (a->visible != NULL && a->visible[row] < n_seen)
            n_seen = a->visible[row];
        if (n_seen > 0)
            attend_row(dtype, a, row, n_seen);
    }
}

static void attend_f32(const struct nkv_attend *a)
{
    attend(NKV_F32, a);
}

static void attend_f16(const struct nkv_attend *a)
{
    attend(NKV_F16, a);
}

static void attend_bf16(const struct nkv_attend *a)
{
    attend(NKV_BF16, a);
}

static void attend_q8_0(const struct nkv_attend *a)
{
    attend(NKV_Q8_0, a);
}

static void merge(size_t n_rows, size_t dim, float *o_a, float *m_a, float *l_a, const float *o_b, const float *m_b,
                  const float *l_b)
{
    for (size_t r = 0; r < n_rows; r++) {
        float m = max_or_nan(m_a[r], m_b[r]);
        /* Both empty: -inf - -inf is NaN, but any finite weight of nothing is right (and keeps a NaN row NaN). */
        float weight_a = m == -INFINITY ? 1 : expf(m_a[r] - m);
        float weight_b = m == -INFINITY ? 1 : expf(m_b[r] - m);
        for (size_t d = r * dim; d < (r + 1) * dim; d++)
            o_a[d] = weight_a * o_a[d] + weight_b * o_b[d];
        l_a[r] = weight_a * l_a[r] + weight_b * l_b[r];
        m_a[r] = m;
    }
}

static void finish(size_t n_rows, size_t dim, const float *o, const float *l, float *out)
{
    for (size_t r = 0; r < n_rows; r++)
        for (size_t d = r * dim; d < (r + 1) * dim; d++)
            out[d] = l[r] == 0 ? 0 : o[d] / l[r];
}

void nkv_ref_install_attend(struct nkv_kernels *kernels)
{
    kernels->dot[NKV_F32] = dot_f32;
    kernels->dot[NKV_F16] = dot_f16;
    kernels->dot[NKV_BF16] = dot_bf16;
    kernels->score[NKV_F32] = score_f32;
    kernels->score[NKV_F16] = score_f16;
    kernels->score[NKV_BF16] = score_bf16;
    kernels->attend[NKV_F32] = attend_f32;
    kernels->attend[NKV_F16] = attend_f16;
    kernels->attend[NKV_BF16] = attend_bf16;
    kernels->attend[NKV_Q8_0] = attend_q8_0;
    kernels->merge = merge;
    kernels->finish = finish;
}
