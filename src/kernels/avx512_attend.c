/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512_attend.c: attention over one page with AVX-512, all element types.
 *
 * The page is folded block by block: scores of a block for up to eight rows at once, one maximum and one rescaling of
 * the partial per block, then the block's weighted V. K and V are widened to f32 as they are loaded, and products are
 * summed in f32. Sixteen sums of products run side by side and are reduced together by one transposition, so that no
 * score pays for a horizontal sum of its own. While a block is computed the block after it is prefetched.
 *
 * Rejected: a running maximum per token. It puts exp and a rescaling of o on the critical path of every token.
 */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/attend_fast.h"
#include "kernels/avx512_attend.h"
#include "kernels/kernels.h"

enum {
    ROWS_MAX = 8,      /* rows that share one pass over a block of K and V */
    BLOCK_MAX = 64,    /* tokens of such a block at most: the scores live on the stack */
    BLOCK_BYTES = 8192 /* and about these bytes of K, so that a block and the next fit the L1 cache */
};

/* A block: some tokens of a page, and the block that will be folded after it (prefetched; any of those NULL). */
struct block {
    size_t n_tokens, dim;
    const char *k, *v, *next_k, *next_v;
    const float *k_scale, *v_scale;
};

/* What the rows of a pass know: rows past the last one repeat it and are not written. */
struct rows {
    const float *q[ROWS_MAX];
    float *o[ROWS_MAX];
    float m[ROWS_MAX], l[ROWS_MAX], keep[ROWS_MAX];
    _Alignas(64) float weight[ROWS_MAX][BLOCK_MAX]; /* scores, then weights */
};

/* Scores of n_rows x n_cols pairs, n_rows * n_cols <= 16: that many chains of sums, one transposing reduction. */
NKV_INLINE void score_tile(enum nkv_dtype dtype, int n_rows, int n_cols, const struct block *b, struct rows *rows,
                           size_t t)
{
    size_t row_bytes = b->dim * nkv_element_bytes(dtype), d = 0;
    size_t ahead_bytes = 16 * (size_t)n_cols * nkv_element_bytes(dtype); /* of a step over d */
    const char *ahead = b->next_k != NULL ? b->next_k + t * row_bytes : NULL;
    const char *k[16];
    NKV_UNROLL
    for (int j = 0; j < n_cols; j++)
        k[j] = b->k + (t + (size_t)j < b->n_tokens ? t + (size_t)j : b->n_tokens - 1) * row_bytes;
    __m512 sum[16];
    NKV_UNROLL
    for (int i = 0; i < 16; i++)
        sum[i] = _mm512_setzero_ps();
    for (; d + 16 <= b->dim; d += 16) {
        if (ahead != NULL) {
            nkv_prefetch(ahead, ahead_bytes);
            ahead += ahead_bytes;
        }
        __m512 key[16];
        NKV_UNROLL
        for (int j = 0; j < n_cols; j++)
            key[j] = nkv_load16(dtype, k[j], d);
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            __m512 q = _mm512_loadu_ps(rows->q[r] + d);
            NKV_UNROLL
            for (int j = 0; j < n_cols; j++)
                sum[r * n_cols + j] = _mm512_fmadd_ps(q, key[j], sum[r * n_cols + j]);
        }
    }
    if (d < b->dim) {
        NKV_UNROLL
        for (int i = 0; i < n_rows * n_cols; i++)
            sum[i] = _mm512_fmadd_ps(nkv_load8(NKV_F32, (const char *)rows->q[i / n_cols], d),
                                     nkv_load8(dtype, k[i % n_cols], d), sum[i]);
    }
    _Alignas(64) float out[16];
    _mm512_store_ps(out, nkv_sum16(sum));
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        memcpy(&rows->weight[r][t], &out[r * n_cols], (size_t)n_cols * sizeof(float));
}

NKV_INLINE void score_block(enum nkv_dtype dtype, int n_rows, const struct block *b, struct rows *rows)
{
    int n_cols = 16 / n_rows;
    for (size_t t = 0; t < b->n_tokens; t += (size_t)n_cols)
        score_tile(dtype, n_rows, n_cols, b, rows, t);
}

/* o = keep * o + sum_t weight[t] v[t], dimensions d .. d + 16 * n_vec - 1. */
NKV_INLINE void fold_values(enum nkv_dtype dtype, int n_rows, int n_vec, const struct block *b, struct rows *rows,
                            size_t d, size_t ahead_bytes, const char *ahead)
{
    size_t row_bytes = b->dim * nkv_element_bytes(dtype);
    __m512 o[ROWS_MAX][8];
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        NKV_UNROLL
        for (int c = 0; c < n_vec; c++)
            o[r][c] = _mm512_mul_ps(_mm512_loadu_ps(rows->o[r] + d + 16 * (size_t)c), _mm512_set1_ps(rows->keep[r]));
    }
    const char *v = b->v;
    for (size_t t = 0; t < b->n_tokens; t++, v += row_bytes) {
        if (ahead != NULL)
            nkv_prefetch(ahead + t * ahead_bytes, ahead_bytes);
        __m512 value[8];
        NKV_UNROLL
        for (int c = 0; c < n_vec; c++)
            value[c] = nkv_load16(dtype, v, d + 16 * (size_t)c);
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            __m512 w = _mm512_set1_ps(rows->weight[r][t]);
            NKV_UNROLL
            for (int c = 0; c < n_vec; c++)
                o[r][c] = _mm512_fmadd_ps(w, value[c], o[r][c]);
        }
    }
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        NKV_UNROLL
        for (int c = 0; c < n_vec; c++)
            _mm512_storeu_ps(rows->o[r] + d + 16 * (size_t)c, o[r][c]);
    }
}

NKV_INLINE void fold_values8(enum nkv_dtype dtype, int n_rows, const struct block *b, struct rows *rows, size_t d)
{
    size_t row_bytes = b->dim * nkv_element_bytes(dtype);
    __m256 o[ROWS_MAX];
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        o[r] = _mm256_mul_ps(_mm256_loadu_ps(rows->o[r] + d), _mm256_set1_ps(rows->keep[r]));
    for (size_t t = 0; t < b->n_tokens; t++) {
        __m256 value = _mm512_castps512_ps256(nkv_load8(dtype, b->v + t * row_bytes, d));
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++)
            o[r] = _mm256_fmadd_ps(_mm256_set1_ps(rows->weight[r][t]), value, o[r]);
    }
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        _mm256_storeu_ps(rows->o[r] + d, o[r]);
}

NKV_INLINE void value_block(enum nkv_dtype dtype, int n_rows, const struct block *b, struct rows *rows)
{
    enum { WIDE_MAX = 8 };
    int n_vec = n_rows <= 2 ? WIDE_MAX : 16 / n_rows;
    size_t width = 16 * (size_t)n_vec, d = 0, row_bytes = b->dim * nkv_element_bytes(dtype);
    size_t passes = b->dim / width, ahead_bytes = passes > 0 ? row_bytes / passes : 0;
    const char *ahead = b->next_v;
    for (; d + width <= b->dim; d += width) {
        fold_values(dtype, n_rows, n_vec, b, rows, d, ahead_bytes, ahead);
        if (ahead != NULL)
            ahead += b->n_tokens * ahead_bytes;
    }
    if (passes == 0 && ahead != NULL)
        nkv_prefetch(ahead, b->n_tokens * row_bytes);
    for (; d + 16 <= b->dim; d += 16)
        fold_values(dtype, n_rows, 1, b, rows, d, 0, NULL);
    if (d < b->dim)
        fold_values8(dtype, n_rows, b, rows, d);
}

/* Scores to weights; m, l and keep of the rows. */
NKV_INLINE void weigh_block(enum nkv_dtype dtype, int n_rows, const struct block *b, struct rows *rows)
{
    for (int r = 0; r < n_rows; r++) {
        for (size_t t = 0; dtype == NKV_Q8_0 && t < b->n_tokens; t += 16) {
            __m512 scale = _mm512_maskz_loadu_ps(nkv_mask_below(b->n_tokens - t), b->k_scale + t);
            _mm512_store_ps(&rows->weight[r][t], _mm512_mul_ps(_mm512_load_ps(&rows->weight[r][t]), scale));
        }
        nkv_weigh(b->n_tokens, dtype == NKV_Q8_0 ? b->v_scale : NULL, rows->weight[r], &rows->m[r], &rows->l[r],
                  &rows->keep[r]);
    }
}

NKV_INLINE void fold_block(enum nkv_dtype dtype, int n_rows, const struct block *b, struct rows *rows)
{
    score_block(dtype, n_rows, b, rows);
    weigh_block(dtype, n_rows, b, rows);
    value_block(dtype, n_rows, b, rows);
}

/* The rows first .. first + n_rows - 1 (n_rows <= ROWS_MAX), which all see the first n_seen tokens. */
NKV_INLINE void fold_rows(enum nkv_dtype dtype, const struct nkv_attend *a, size_t first, size_t n_rows, size_t n_seen)
{
    size_t dim = a->dim, row_bytes = dim * nkv_element_bytes(dtype);
    struct rows rows;
    for (size_t r = 0; r < ROWS_MAX; r++) {
        size_t row = first + (r < n_rows ? r : n_rows - 1);
        rows.q[r] = a->q + row * dim;
        rows.o[r] = a->o + row * dim;
        rows.m[r] = a->m[row];
        rows.l[r] = a->l[row];
    }
    size_t step = BLOCK_BYTES / row_bytes & ~(size_t)15;
    step = step < 16 ? 16 : step > BLOCK_MAX ? BLOCK_MAX : step;
    for (size_t t = 0; t < n_seen; t += step) {
        size_t n = n_seen - t < step ? n_seen - t : step;
        bool last = t + n == n_seen;
        struct block b = {.n_tokens = n,
                          .dim = dim,
                          .k = (const char *)a->k + t * row_bytes,
                          .v = (const char *)a->v + t * row_bytes,
                          .k_scale = dtype == NKV_Q8_0 ? a->k_scale + t : NULL,
                          .v_scale = dtype == NKV_Q8_0 ? a->v_scale + t : NULL};
        b.next_k = last ? a->next_k : b.k + n * row_bytes;
        b.next_v = last ? a->next_v : b.v + n * row_bytes;
        if (n_rows == 1)
            fold_block(dtype, 1, &b, &rows);
        else if (n_rows == 2)
            fold_block(dtype, 2, &b, &rows);
        else if (n_rows <= 4)
            fold_block(dtype, 4, &b, &rows);
        else
            fold_block(dtype, 8, &b, &rows);
    }
    for (size_t r = 0; r < n_rows; r++) {
        a->m[first + r] = rows.m[r];
        a->l[first + r] = rows.l[r];
    }
}

NKV_INLINE void attend(enum nkv_dtype dtype, const struct nkv_attend *a)
{
    if (a->n_rows > ROWS_MAX && nkv_avx512_attend_many(dtype, a))
        return;
    for (size_t row = 0, n; row < a->n_rows; row += n) {
        size_t n_seen = nkv_tokens_seen(a, row);
        for (n = 1; n < ROWS_MAX && row + n < a->n_rows && nkv_tokens_seen(a, row + n) == n_seen;)
            n++;
        if (n_seen > 0)
            fold_rows(dtype, a, row, n, n_seen);
    }
}

void nkv_avx512_attend_f32(const struct nkv_attend *a)
{
    attend(NKV_F32, a);
}

void nkv_avx512_attend_f16(const struct nkv_attend *a)
{
    attend(NKV_F16, a);
}

void nkv_avx512_attend_bf16(const struct nkv_attend *a)
{
    attend(NKV_BF16, a);
}

void nkv_avx512_attend_q8_0(const struct nkv_attend *a)
{
    attend(NKV_Q8_0, a);
}
