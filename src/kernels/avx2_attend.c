/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx2_attend.c: attention over one page with AVX2, all element types.
 *
 * The page is folded in blocks of 32 tokens, for up to four rows at once that see the same tokens: scores, one maximum
 * and one rescaling of the partial per block, then the block's weighted V. Eight sums of products run side by side and
 * are reduced together. K and V are widened to f32 as they are loaded; when many rows use a block it is widened once.
 *
 * Rejected: the transposed tiles of avx512_attend_many.c. Sixteen registers hold too small a tile for them to pay.
 */
#include <math.h>

#include "kernels/attend_fast.h"
#include "kernels/avx2_vec.h"

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

enum { QUAD = 4, BLOCK = NKV_ATTEND_BLOCK, MANY = 8 };

/* A block, and the one that will be folded after it (prefetched; may be NULL). Scales NULL: 1. */
struct block {
    size_t n_tokens, dim;
    const void *k, *v, *next_k, *next_v;
    const float *k_scale, *v_scale;
};

/* Rows past the last one repeat it: they compute and store the same. */
struct rows {
    _Alignas(32) float weight[QUAD][BLOCK]; /* scores, then weights */
    const float *q[QUAD];
    float *o[QUAD];
    float m[QUAD], l[QUAD], keep[QUAD];
};

/* exp(x), x <= 0: relative error below 2e-7; 0 where the result would not be normal; NaN stays NaN. */
INLINE vec exp8(vec x)
{
    const vec least = vec_set1(-87.3f), one = vec_set1(1);
    vec none = _mm256_cmp_ps(x, least, _CMP_LT_OQ);
    x = vec_max(least, x); /* in this order NaN passes */
    vec n = _mm256_round_ps(vec_mul(x, vec_set1(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vec r = _mm256_fnmadd_ps(n, vec_set1(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, vec_set1(-2.12194440e-4f), r);
    vec p = vec_fma(vec_set1(1.381446674e-3f), r, vec_set1(8.368780429e-3f));
    p = vec_fma(p, r, vec_set1(4.166839422e-2f));
    p = vec_fma(p, r, vec_set1(1.666652011e-1f));
    p = vec_fma(p, r, vec_set1(4.999999341e-1f));
    p = vec_fma(p, r, one);
    p = vec_fma(p, r, one);
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(none, vec_mul(p, _mm256_castsi256_ps(power)));
}

/* Lane i of the result is the sum of the lanes of x[i]. */
INLINE vec sum8(const vec x[8])
{
    vec a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    vec b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return vec_add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

INLINE float max_of(vec x)
{
    float lane[LANES], max = -INFINITY;
    _mm256_storeu_ps(lane, x);
    for (int i = 0; i < LANES; i++)
        max = lane[i] > max ? lane[i] : max;
    return max;
}

/* Into the L2 cache: it takes more lines in flight than L1. */
INLINE void prefetch(const void *base, size_t first, size_t bytes)
{
    for (size_t i = first; base != NULL && i < first + bytes; i += 64)
        _mm_prefetch((const char *)base + i, _MM_HINT_T1);
}

/* Scores of n_rows rows and 8 / n_rows tokens. */
INLINE void score_tile(enum nkv_dtype dtype, int n_rows, const struct block *b, struct rows *rows, size_t t)
{
    const int n_cols = 8 / n_rows;
    size_t at[8];
    vec sum[8];
    UNROLL
    for (int j = 0; j < n_cols; j++)
        at[j] = (t + (size_t)j < b->n_tokens ? t + (size_t)j : b->n_tokens - 1) * b->dim;
    UNROLL
    for (int i = 0; i < 8; i++)
        sum[i] = _mm256_setzero_ps();
    for (size_t d = 0; d < b->dim; d += LANES) {
        vec key[8];
        UNROLL
        for (int j = 0; j < n_cols; j++)
            key[j] = vec_load(dtype, b->k, at[j] + d);
        UNROLL
        for (int i = 0; i < 8; i++)
            sum[i] = vec_fma(_mm256_loadu_ps(rows->q[i / n_cols] + d), key[i % n_cols], sum[i]);
    }
    float out[8];
    _mm256_storeu_ps(out, sum8(sum));
    UNROLL
    for (int r = 0; r < n_rows; r++)
        memcpy(&rows->weight[r][t], &out[r * n_cols], (size_t)n_cols * sizeof(float));
}

/* Scores of a row to weights; m, l and keep. */
INLINE void weigh(const struct block *b, struct rows *rows, int r)
{
    float *s = rows->weight[r];
    vec top = vec_set1(rows->m[r]), sum = _mm256_setzero_ps();
    for (size_t t = 0; b->k_scale != NULL && t < b->n_tokens; t++)
        s[t] *= b->k_scale[t];
    for (size_t t = b->n_tokens; t % LANES != 0; t++)
        s[t] = -INFINITY;
    for (size_t t = 0; t < b->n_tokens; t += LANES)
        top = vec_max(top, _mm256_load_ps(s + t));
    float m = max_of(top);
    vec shift = vec_set1(m == -INFINITY ? 0 : m);
    for (size_t t = 0; t < b->n_tokens; t += LANES) {
        vec w = exp8(vec_sub(_mm256_load_ps(s + t), shift));
        sum = vec_add(sum, w);
        _mm256_store_ps(s + t, w);
    }
    for (size_t t = 0; b->v_scale != NULL && t < b->n_tokens; t++)
        s[t] *= b->v_scale[t];
    rows->keep[r] = _mm256_cvtss_f32(exp8(vec_sub(vec_set1(rows->m[r]), shift)));
    rows->l[r] = rows->l[r] * rows->keep[r] + vec_sum(sum);
    rows->m[r] = m;
}

/* o = keep * o + weights times V, n_vec vectors of dimensions from d on; prefetches ahead_bytes per token at `ahead`.
 */
INLINE void fold_values(enum nkv_dtype dtype, int n_rows, int n_vec, const struct block *b, struct rows *rows, size_t d,
                        size_t ahead, size_t ahead_bytes)
{
    vec o[8];
    UNROLL
    for (int i = 0; i < n_rows * n_vec; i++)
        o[i] = vec_mul(_mm256_loadu_ps(rows->o[i / n_vec] + d + LANES * (size_t)(i % n_vec)),
                       vec_set1(rows->keep[i / n_vec]));
    for (size_t t = 0; t < b->n_tokens; t++) {
        vec value[8];
        prefetch(b->next_v, ahead + t * ahead_bytes, ahead_bytes);
        UNROLL
        for (int c = 0; c < n_vec; c++)
            value[c] = vec_load(dtype, b->v, t * b->dim + d + LANES * (size_t)c);
        UNROLL
        for (int i = 0; i < n_rows * n_vec; i++)
            o[i] = vec_fma(vec_set1(rows->weight[i / n_vec][t]), value[i % n_vec], o[i]);
    }
    UNROLL
    for (int i = 0; i < n_rows * n_vec; i++)
        _mm256_storeu_ps(rows->o[i / n_vec] + d + LANES * (size_t)(i % n_vec), o[i]);
}

INLINE void fold_block(enum nkv_dtype dtype, int n_rows, const struct block *b, struct rows *rows)
{
    const int n_cols = 8 / n_rows, n_vec = 8 / n_rows;
    size_t row_bytes = b->dim * nkv_kv_row_bytes(dtype, 1), width = LANES * (size_t)n_vec, d = 0;
    for (size_t t = 0; t < b->n_tokens; t += (size_t)n_cols) {
        prefetch(b->next_k, t * row_bytes, (size_t)n_cols * row_bytes);
        score_tile(dtype, n_rows, b, rows, t);
    }
    for (int r = 0; r < n_rows; r++)
        weigh(b, rows, r);
    size_t passes = b->dim / width, ahead_bytes = passes > 0 ? row_bytes / passes : 0;
    for (; d + width <= b->dim; d += width)
        fold_values(dtype, n_rows, n_vec, b, rows, d, d / width * b->n_tokens * ahead_bytes, ahead_bytes);
    for (; d < b->dim; d += LANES)
        fold_values(dtype, n_rows, 1, b, rows, d, 0, 0);
}

INLINE size_t tokens_seen(const struct nkv_attend *a, size_t row)
{
    return a->visible != NULL && a->visible[row] < a->n_tokens ? a->visible[row] : a->n_tokens;
}

/* Rows first .. first + n_rows - 1, at most QUAD. */
INLINE void fold_rows(enum nkv_dtype dtype, const struct nkv_attend *a, const struct block *b, size_t first,
                      size_t n_rows)
{
    struct rows rows;
    for (size_t r = 0; r < QUAD; r++) {
        size_t row = first + (r < n_rows ? r : n_rows - 1);
        rows.q[r] = a->q + row * a->dim;
        rows.o[r] = a->o + row * a->dim;
        rows.m[r] = a->m[row];
        rows.l[r] = a->l[row];
    }
    if (n_rows == 1)
        fold_block(dtype, 1, b, &rows);
    else if (n_rows == 2)
        fold_block(dtype, 2, b, &rows);
    else
        fold_block(dtype, 4, b, &rows);
    for (size_t r = 0; r < n_rows; r++) {
        a->m[first + r] = rows.m[r];
        a->l[first + r] = rows.l[r];
    }
}

/* Folds the block that starts at token `first` into all rows: groups of rows that see the same tokens of it. */
INLINE void fold_all(enum nkv_dtype dtype, const struct nkv_attend *a, const struct block *b, size_t first)
{
    for (size_t row = 0, n; row < a->n_rows; row += n) {
        struct block seen = *b;
        size_t n_seen = tokens_seen(a, row);
        for (n = 1; n < QUAD && row + n < a->n_rows && tokens_seen(a, row + n) == n_seen;)
            n++;
        if (n_seen <= first)
            continue;
        if (n_seen - first < b->n_tokens)
            seen.n_tokens = n_seen - first;
        fold_rows(dtype, a, &seen, row, n);
    }
}

INLINE void widen(enum nkv_dtype dtype, const void *x, size_t n, float *out)
{
    for (size_t i = 0; i < n; i += LANES)
        _mm256_storeu_ps(out + i, vec_load(dtype, x, i));
}

/* The block as f32 in scratch: worth it when many rows use it. */
INLINE void fold_many(enum nkv_dtype dtype, const struct nkv_attend *a, const struct block *b, size_t first)
{
    struct block wide = *b;
    float *k = a->scratch, *v = k + BLOCK * b->dim;
    widen(dtype, b->k, b->n_tokens * b->dim, k);
    widen(dtype, b->v, b->n_tokens * b->dim, v);
    wide.k = k;
    wide.v = v;
    wide.next_k = wide.next_v = NULL;
    fold_all(NKV_F32, a, &wide, first);
}

INLINE void attend(enum nkv_dtype dtype, const struct nkv_attend *a)
{
    size_t row_bytes = a->dim * nkv_kv_row_bytes(dtype, 1);
    for (size_t t = 0; t < a->n_tokens; t += BLOCK) {
        struct block b = {.n_tokens = a->n_tokens - t < BLOCK ? a->n_tokens - t : BLOCK,
                          .dim = a->dim,
                          .k = (const char *)a->k + t * row_bytes,
                          .v = (const char *)a->v + t * row_bytes};
        if (dtype == NKV_Q8_0) {
            b.k_scale = a->k_scale + t;
            b.v_scale = a->v_scale + t;
        }
        bool last = t + b.n_tokens == a->n_tokens;
        b.next_k = last ? a->next_k : (const char *)b.k + b.n_tokens * row_bytes;
        b.next_v = last ? a->next_v : (const char *)b.v + b.n_tokens * row_bytes;
        if (a->n_rows > MANY && dtype != NKV_F32)
            fold_many(dtype, a, &b, t);
        else
            fold_all(dtype, a, &b, t);
    }
}

void nkv_avx2_attend_f32(const struct nkv_attend *a)
{
    attend(NKV_F32, a);
}

void nkv_avx2_attend_f16(const struct nkv_attend *a)
{
    attend(NKV_F16, a);
}

void nkv_avx2_attend_bf16(const struct nkv_attend *a)
{
    attend(NKV_BF16, a);
}

void nkv_avx2_attend_q8_0(const struct nkv_attend *a)
{
    attend(NKV_Q8_0, a);
}
