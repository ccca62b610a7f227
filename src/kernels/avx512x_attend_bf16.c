/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512x_attend_bf16.c: attention of up to four rows over a bf16 page with vdpbf16ps, which multiplies two
 * pairs of bf16 and adds both products to an f32.
 *
 * K and V are taken as they are. q and the weights are split into two bf16 each, the upper half of the f32 and what is
 * left of it, so that 16 bits of them count: a score is off by at most 2^-16 sum|q k|, a weight by 2^-16 of itself. It
 * takes as many products as widening to f32 does, but nothing is widened.
 *
 *   scores   like avx512_attend.c: sixteen sums of four rows and four tokens side by side, reduced together
 *   values   two tokens of V are interleaved word by word; the order of dimensions is restored once per block
 *
 * vdpbf16ps takes denormal numbers for 0 and makes none, which is below any error here.
 *
 * Rejected: q and weights of one bf16 (1.6 times as fast where arithmetic binds, but an error as large as that of bf16
 * itself); three of them, which is as exact as f32 and slower than it.
 */
#include <string.h>

#include "kernels/attend_fast.h"
#include "kernels/avx512_attend.h"

enum {
    QUAD = 4,  /* rows that share one pass over a block; more are as well off in f32, where eight do */
    COLS = 4,  /* tokens that are scored together */
    BLOCK = 32 /* tokens of a block at most */
};

/* As gcc 12 wants it: a sum that is __m512 between two products is copied before and after each. */
typedef float sum16 __attribute__((vector_size(64)));

struct block {
    size_t n_tokens, dim;
    const char *k, *v, *next_k, *next_v;
};

struct rows {
    const char *query[QUAD]; /* prepared: of every 32 dimensions 32 upper parts, 32 lower; 0 from dim on */
    _Alignas(64) float weight[QUAD][BLOCK];
    _Alignas(64) uint16_t part[2][QUAD][BLOCK]; /* of the weights */
    float *o[QUAD];
    float m[QUAD], l[QUAD], keep[QUAD];
    int n; /* rows that are written: a pass of four may have three and repeat the last */
};

NKV_INLINE sum16 add_products(sum16 sum, __m512i a, __m512i b)
{
    return (sum16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

/* Thirty-two elements, or those of them below n. */
NKV_INLINE __m512i load32(bool whole, const char *at, size_t n)
{
    return whole ? _mm512_loadu_si512(at)
                 : _mm512_maskz_loadu_epi16(n >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << n) - 1, at);
}

/* Sixteen numbers as two bf16 each. */
NKV_INLINE void split(__m512 x, void *upper, void *lower)
{
    __m512i bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int32_t)0xffff0000u));
    __m512 cut = _mm512_castsi512_ps(bits);
    __mmask16 unlike = _mm512_cmp_ps_mask(x, cut, _CMP_NEQ_UQ); /* an infinity leaves nothing, a NaN leaves NaN */
    _mm256_storeu_si256(upper, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
    _mm256_storeu_si256(lower, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_sub_ps(unlike, x, cut)));
}

void nkv_avx512x_prepare_bf16(size_t n_rows, size_t dim, const float *q, void *out)
{
    for (size_t r = 0; r < n_rows; r++, q += dim) {
        char *row = (char *)out + r * nkv_prepared_row_bytes((uint32_t)dim);
        for (size_t d = 0; d < (dim + 31) / 32 * 32; d += 16) {
            char *at = row + d / 32 * 128 + d % 32 * 2;
            split(_mm512_maskz_loadu_ps(nkv_mask_below(dim > d ? dim - d : 0), q + d), at, at + 64);
        }
    }
}

/* Dimensions d .. d + 31 of four tokens. */
NKV_INLINE void score_chunk(int n_rows, bool whole, const char *const k[COLS], size_t dim, size_t d,
                            const struct rows *rows, sum16 sum[QUAD][COLS])
{
    __m512i key[COLS];
    NKV_UNROLL
    for (int j = 0; j < COLS; j++)
        key[j] = load32(whole, k[j] + 2 * d, dim - d);
    NKV_UNROLL
    for (int i = 0; i < 2 * n_rows; i++) {
        __m512i q = _mm512_load_si512(rows->query[i / 2] + 4 * d + (size_t)(i % 2) * 64);
        NKV_UNROLL
        for (int j = 0; j < COLS; j++)
            sum[i / 2][j] = add_products(sum[i / 2][j], key[j], q);
    }
}

/* Scores of four tokens. */
NKV_INLINE void score_tile(int n_rows, const struct block *b, struct rows *rows, size_t t)
{
    size_t row_bytes = 2 * b->dim, d = 0;
    const char *ahead = b->next_k + t * row_bytes, *k[COLS];
    sum16 sum[QUAD][COLS] = {0};
    NKV_UNROLL
    for (size_t j = 0; j < COLS; j++)
        k[j] = b->k + (t + j < b->n_tokens ? t + j : b->n_tokens - 1) * row_bytes;
    for (; d + 32 <= b->dim; d += 32) {
        nkv_prefetch(ahead + 8 * d, 256);
        score_chunk(n_rows, true, k, b->dim, d, rows, sum);
    }
    if (d < b->dim)
        score_chunk(n_rows, false, k, b->dim, d, rows, sum);
    __m512 sums[16];
    NKV_UNROLL
    for (int i = 0; i < 16; i++)
        sums[i] = (__m512)sum[i / COLS][i % COLS];
    _Alignas(64) float out[16];
    _mm512_store_ps(out, nkv_sum16(sums));
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        memcpy(&rows->weight[r][t], &out[r * COLS], COLS * sizeof(float));
}

/* Scores to weights; m, l and keep of the rows. */
NKV_INLINE void weigh_block(int n_rows, const struct block *b, struct rows *rows)
{
    for (int r = 0; r < n_rows; r++) {
        nkv_weigh(b->n_tokens, NULL, rows->weight[r], &rows->m[r], &rows->l[r], &rows->keep[r]);
        for (size_t t = 0; t < b->n_tokens; t += 16)
            split(_mm512_load_ps(&rows->weight[r][t]), &rows->part[0][r][t], &rows->part[1][r][t]);
    }
}

/* Adds the weights of two tokens v [2][dim] (pair: the second exists) times 32 n_parts dimensions from d on. */
NKV_INLINE void add_values(int n_rows, size_t n_parts, bool whole, bool pair, const char *v, size_t dim, size_t d,
                           const struct rows *rows, size_t t, sum16 sum[QUAD][4])
{
    __m512i x[4];
    size_t left = dim - d;
    NKV_UNROLL
    for (size_t i = 0; i < n_parts; i++) {
        size_t n = left > 32 * i ? left - 32 * i : 0;
        const char *at = v + 2 * d + 64 * i;
        __m512i first = load32(whole, at, n);
        __m512i second = pair ? load32(whole, at + 2 * dim, n) : _mm512_setzero_si512();
        x[2 * i] = _mm512_unpacklo_epi16(first, second);
        x[2 * i + 1] = _mm512_unpackhi_epi16(first, second);
    }
    NKV_UNROLL
    for (int i = 0; i < 2 * n_rows; i++) {
        int32_t two;
        memcpy(&two, &rows->part[i % 2][i / 2][t], sizeof two);
        __m512i w = _mm512_set1_epi32(two);
        NKV_UNROLL
        for (size_t c = 0; c < 2 * n_parts; c++)
            sum[i / 2][c] = add_products(sum[i / 2][c], x[c], w);
    }
}

/* o = keep * o + weights times V, 32 n_parts dimensions from d on, or those of them below dim. */
NKV_INLINE void value_chunk(int n_rows, size_t n_parts, bool whole, const struct block *b, struct rows *rows, size_t d)
{
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    size_t row_bytes = 2 * b->dim, t = 0;
    const char *ahead = b->next_v + 2 * d * b->n_tokens;
    sum16 sum[QUAD][4] = {0};
    for (; t + 2 <= b->n_tokens; t += 2) {
        nkv_prefetch(ahead + 64 * n_parts * t, 128 * n_parts);
        add_values(n_rows, n_parts, whole, true, b->v + t * row_bytes, b->dim, d, rows, t, sum);
    }
    if (t < b->n_tokens)
        add_values(n_rows, n_parts, whole, false, b->v + t * row_bytes, b->dim, d, rows, t, sum);
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        if (r == rows->n)
            break;
        __m512 keep = _mm512_set1_ps(rows->keep[r]);
        NKV_UNROLL
        for (size_t i = 0; i < 2 * n_parts; i++) {
            __mmask16 of = whole ? 0xffff : nkv_mask_below(b->dim > d + 16 * i ? b->dim - d - 16 * i : 0);
            float *o = rows->o[r] + d + 16 * i;
            __m512 x = _mm512_permutex2var_ps((__m512)sum[r][i & 2], i & 1 ? high : low, (__m512)sum[r][i | 1]);
            _mm512_mask_storeu_ps(o, of, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(of, o), keep, x));
        }
    }
}

NKV_INLINE void fold_block(int n_rows, const struct block *b, struct rows *rows)
{
    size_t d = 0;
    for (size_t t = 0; t < b->n_tokens; t += COLS)
        score_tile(n_rows, b, rows, t);
    weigh_block(n_rows, b, rows);
    for (; d + 64 <= b->dim; d += 64)
        value_chunk(n_rows, 2, true, b, rows, d);
    if (b->dim - d > 32)
        value_chunk(n_rows, 2, false, b, rows, d);
    else if (d < b->dim)
        value_chunk(n_rows, 1, false, b, rows, d);
}

/* The rows first .. first + n_rows - 1, at most QUAD, which all see the first n_seen tokens. */
static void fold_rows(const struct nkv_attend *a, const char *prepared, size_t first, size_t n_rows, size_t n_seen)
{
    size_t row_bytes = 2 * (size_t)a->dim;
    struct rows rows;
    rows.n = (int)n_rows;
    for (size_t r = 0; r < QUAD; r++) {
        size_t row = first + (r < n_rows ? r : n_rows - 1);
        rows.query[r] = prepared + row * nkv_prepared_row_bytes(a->dim);
        rows.o[r] = a->o + row * a->dim;
        rows.m[r] = a->m[row];
        rows.l[r] = a->l[row];
    }
    for (size_t t = 0; t < n_seen; t += BLOCK) {
        struct block b = {.n_tokens = n_seen - t < BLOCK ? n_seen - t : BLOCK,
                          .dim = a->dim,
                          .k = (const char *)a->k + t * row_bytes,
                          .v = (const char *)a->v + t * row_bytes};
        bool last = t + b.n_tokens == n_seen;
        b.next_k = last ? a->next_k : b.k + b.n_tokens * row_bytes;
        b.next_v = last ? a->next_v : b.v + b.n_tokens * row_bytes;
        /* Nothing follows: prefetching what is here already is cheaper than to ask each time. */
        if (b.next_k == NULL)
            b.next_k = b.k;
        if (b.next_v == NULL)
            b.next_v = b.v;
        if (n_rows == 1)
            fold_block(1, &b, &rows);
        else if (n_rows == 2)
            fold_block(2, &b, &rows);
        else
            fold_block(4, &b, &rows);
    }
    for (size_t r = 0; r < n_rows; r++) {
        a->m[first + r] = rows.m[r];
        a->l[first + r] = rows.l[r];
    }
}

void nkv_avx512x_attend_bf16(const struct nkv_attend *a)
{
    if (a->n_rows > QUAD) {
        nkv_avx512_attend_bf16(a);
        return;
    }
    const char *prepared = a->prepared;
    if (prepared == NULL) {
        nkv_avx512x_prepare_bf16(a->n_rows, a->dim, a->q, a->scratch); /* a block of f32 has room for it */
        prepared = a->scratch;
    }
    for (size_t row = 0, n; row < a->n_rows; row += n) {
        size_t n_seen = nkv_tokens_seen(a, row);
        for (n = 1; row + n < a->n_rows && nkv_tokens_seen(a, row + n) == n_seen;)
            n++;
        if (n_seen > 0)
            fold_rows(a, prepared, row, n, n_seen);
    }
}
