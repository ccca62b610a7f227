/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512x_attend.c: attention of few rows over a q8_0 page with AVX-512 VNNI: bytes are multiplied as bytes.
 *
 * q and the weights are split into two bytes each, so that vpdpbusd (four products of a byte with a byte, summed) works
 * at sixteen bits of them: q = scale (256 hi + lo), hi and lo signed; weight * v_scale = step (256 hi + lo), unsigned.
 * K is taken as k + 128, which vpdpbusd wants unsigned; 128 sum(q) is taken off again. Sums of products are exact: no
 * intermediate passes 32 bits for dim <= 512 and 64 tokens.
 *
 *   scores   4-byte groups of K are transposed, so that a register holds the same four dimensions of 16 tokens: scores
 *            of 16 tokens are lanes, and no score needs a horizontal sum
 *   values   four tokens of V are interleaved byte by byte, so that one instruction takes four tokens in
 *
 * Both go in small steps (16 dimensions of 16 tokens, 32 dimensions of four), so that the shuffles of a step overlap
 * the products of the step before it, and the prefetch of the next page is spread evenly.
 *
 * Error against exact arithmetic: a score is off by at most 2^-16 max|q| sum|k|; the output by at most 2^-17 max|v|
 * per token that weighs as much as the heaviest of its block, so below 2^-17 * 64 max|v|, typically 1e-5 max|v|.
 *
 * Rejected: q and weights of one byte (twice as fast where arithmetic binds, but an error as large as that of q8_0
 * itself); widening to f32, which needs three times the instructions that memory leaves time for.
 */
#include <math.h>
#include <string.h>

#include "kernels/attend_fast.h"
#include "kernels/avx512_attend.h"

enum {
    QUAD = 4,      /* rows that share one pass over a block */
    BLOCK = 64,    /* tokens of a block at most */
    ROWS_MAX = 16, /* more rows than these are bound by arithmetic: f32 is as good */
    DIM_MAX = 512
};

/* A prepared row. */
struct query {
    float scale;
    int32_t bias; /* 128 * sum of (256 hi + lo) */
    char unused[56];
    int8_t part[][2][64]; /* of every 64 dimensions: hi, lo; 0 from dim on */
};

struct block {
    size_t n_tokens, dim;
    const char *k, *v, *next_k, *next_v;
    const float *k_scale, *v_scale;
};

struct rows {
    const struct query *query[QUAD];
    _Alignas(64) float weight[QUAD][BLOCK];
    _Alignas(64) uint8_t part[2][QUAD][BLOCK]; /* of weight * v_scale / step */
    char tail[16 * DIM_MAX];                   /* the last tokens of a block, where whole groups can be read */
    float *o[QUAD];
    float m[QUAD], l[QUAD], keep[QUAD], step[QUAD];
    int n; /* rows that are written: a pass of four may have three and repeat the last */
};

static __mmask64 bytes_below(size_t n)
{
    return n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1;
}

static size_t prepared_bytes(size_t dim)
{
    return sizeof(struct query) + (dim + 63) / 64 * 128;
}

static void prepare_row(size_t dim, const float *q, struct query *out)
{
    __m512 top = _mm512_setzero_ps(), nan = _mm512_setzero_ps();
    for (size_t d = 0; d < dim; d += 16) {
        __m512 x = _mm512_maskz_loadu_ps(nkv_mask_below(dim - d), q + d);
        top = _mm512_max_ps(top, _mm512_abs_ps(x));
        nan = _mm512_fmadd_ps(x, _mm512_setzero_ps(), nan);
    }
    float largest = _mm512_reduce_max_ps(top) + _mm512_reduce_add_ps(nan);
    /* Below `least` the inverse would overflow; such a row scores 0 to within rounding of any other. */
    const float limit = 127 * 256, least = 1e-30f;
    __m512 inverse = _mm512_set1_ps(largest > least ? limit / largest : 0);
    __m512i sum = _mm512_setzero_si512(), half = _mm512_set1_epi32(128);
    for (size_t d = 0; d < (dim + 63) / 64 * 64; d += 16) {
        __m512 x = _mm512_maskz_loadu_ps(nkv_mask_below(dim > d ? dim - d : 0), q + d);
        __m512 scaled = _mm512_mul_ps(x, inverse);
        /* NaN becomes 0: the row is NaN by its scale. */
        __m512i n = _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(scaled, scaled, _CMP_ORD_Q), scaled);
        sum = _mm512_add_epi32(sum, n);
        __m512i hi = _mm512_srai_epi32(_mm512_add_epi32(n, half), 8);
        _mm_store_si128((__m128i *)(void *)&out->part[d / 64][0][d % 64], _mm512_cvtepi32_epi8(hi));
        _mm_store_si128((__m128i *)(void *)&out->part[d / 64][1][d % 64], _mm512_cvtepi32_epi8(n));
    }
    out->scale = largest / limit;
    out->bias = 128 * _mm512_reduce_add_epi32(sum);
}

/* Sixteen dimensions of a token, or the eight that are left. */
NKV_INLINE __m128i load16(bool whole, const char *at)
{
    return whole ? _mm_loadu_si128((const __m128i *)(const void *)at)
                 : _mm_loadl_epi64((const __m128i *)(const void *)at);
}

/* Sixteen dimensions of sixteen tokens [16][dim], as k + 128: x[c] holds the c-th four of them. */
NKV_INLINE void transpose(bool whole, const char *k, size_t dim, __m512i x[4])
{
    __m512i y[4];
    NKV_UNROLL
    for (size_t j = 0; j < 4; j++) {
        __m512i tokens = _mm512_castsi128_si512(load16(whole, k + j * dim));
        tokens = _mm512_inserti32x4(tokens, load16(whole, k + (4 + j) * dim), 1);
        tokens = _mm512_inserti32x4(tokens, load16(whole, k + (8 + j) * dim), 2);
        tokens = _mm512_inserti32x4(tokens, load16(whole, k + (12 + j) * dim), 3);
        x[j] = _mm512_xor_si512(tokens, _mm512_set1_epi8(-128));
    }
    y[0] = _mm512_unpacklo_epi32(x[0], x[1]);
    y[1] = _mm512_unpackhi_epi32(x[0], x[1]);
    y[2] = _mm512_unpacklo_epi32(x[2], x[3]);
    y[3] = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(y[0], y[2]);
    x[1] = _mm512_unpackhi_epi64(y[0], y[2]);
    x[2] = _mm512_unpacklo_epi64(y[1], y[3]);
    x[3] = _mm512_unpackhi_epi64(y[1], y[3]);
}

/* Dimensions d .. d + 15 of sixteen tokens k [16][dim]; q is 0 where they pass dim. */
NKV_INLINE void score_chunk(int n_rows, bool whole, const char *k, size_t dim, size_t d, const struct rows *rows,
                            __m512i sum[2][QUAD])
{
    __m512i x[4];
    transpose(whole, k + d, dim, x);
    NKV_UNROLL
    for (size_t i = 0; i < 4; i++) {
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            NKV_UNROLL
            for (int part = 0; part < 2; part++) {
                int32_t q;
                memcpy(&q, &rows->query[r]->part[d / 64][part][d % 64 + 4 * i], sizeof q);
                sum[part][r] = _mm512_dpbusd_epi32(sum[part][r], x[i], _mm512_set1_epi32(q));
            }
        }
    }
}

/* Scores of sixteen tokens k [16][dim]. */
NKV_INLINE void score_tile(int n_rows, const char *k, size_t dim, __m512 scale, struct rows *rows, size_t t,
                           const char *ahead)
{
    size_t d = 0;
    __m512i sum[2][QUAD];
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        sum[0][r] = sum[1][r] = _mm512_setzero_si512();
    for (; d + 16 <= dim; d += 16) {
        if (ahead != NULL)
            nkv_prefetch(ahead + 16 * d, 256);
        score_chunk(n_rows, true, k, dim, d, rows, sum);
    }
    if (d < dim)
        score_chunk(n_rows, false, k, dim, d, rows, sum);
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        __m512i s = _mm512_add_epi32(_mm512_slli_epi32(sum[0][r], 8), sum[1][r]);
        s = _mm512_sub_epi32(s, _mm512_set1_epi32(rows->query[r]->bias));
        __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(rows->query[r]->scale));
        _mm512_store_ps(&rows->weight[r][t], _mm512_mul_ps(_mm512_cvtepi32_ps(s), both));
    }
}

NKV_INLINE void score_block(int n_rows, const struct block *b, struct rows *rows)
{
    for (size_t t = 0; t < b->n_tokens; t += 16) {
        const char *k = b->k + t * b->dim;
        if (b->n_tokens - t < 16)
            k = memcpy(rows->tail, k, (b->n_tokens - t) * b->dim);
        const char *ahead = b->next_k != NULL ? b->next_k + t * b->dim : NULL;
        __m512 scale = _mm512_maskz_loadu_ps(nkv_mask_below(b->n_tokens - t), b->k_scale + t);
        score_tile(n_rows, k, b->dim, scale, rows, t, ahead);
    }
}

/* Weights times v_scale as two bytes; see nkv_weigh for the weights themselves. */
NKV_INLINE void split_weights(int n_rows, const struct block *b, struct rows *rows)
{
    for (int r = 0; r < n_rows; r++) {
        float *weight = rows->weight[r];
        __m512 top = _mm512_setzero_ps();
        for (size_t t = 0; t < b->n_tokens; t += 16)
            top = _mm512_max_ps(top, _mm512_load_ps(weight + t));
        float largest = _mm512_reduce_max_ps(top);
        __m512 inverse = _mm512_set1_ps(largest > 0 ? 65535 / largest : 0);
        for (size_t t = 0; t < b->n_tokens; t += 16) {
            __m512i n = _mm512_cvtps_epu32(_mm512_mul_ps(_mm512_load_ps(weight + t), inverse));
            n = _mm512_min_epu32(n, _mm512_set1_epi32(65535));
            _mm_store_si128((__m128i *)(void *)&rows->part[0][r][t], _mm512_cvtepi32_epi8(_mm512_srli_epi32(n, 8)));
            _mm_store_si128((__m128i *)(void *)&rows->part[1][r][t], _mm512_cvtepi32_epi8(n));
        }
        rows->step[r] = largest / 65535;
    }
}

/* Thirty-two dimensions, or those of them below dim. */
NKV_INLINE __m256i load32(bool whole, const char *row, size_t d, size_t dim)
{
    const char *at = row + d;
    return whole ? _mm256_loadu_si256((const __m256i *)(const void *)at)
                 : _mm256_maskz_loadu_epi8((__mmask32)bytes_below(dim - d), at);
}

/* Dimensions of four tokens: in lane l of out[i] the four bytes of dimension 16 i + l. */
NKV_INLINE void mix(const __m256i row[4], __m512i out[2])
{
    const __m512i spread = _mm512_setr_epi32(0, 4, 0, 4, 1, 5, 1, 5, 2, 6, 2, 6, 3, 7, 3, 7);
    __m512i v[4];
    NKV_UNROLL
    for (int i = 0; i < 4; i++)
        v[i] = _mm512_permutexvar_epi32(spread, _mm512_castsi256_si512(row[i]));
    __m512i a = _mm512_unpacklo_epi8(v[0], v[1]), b = _mm512_unpacklo_epi8(v[2], v[3]);
    out[0] = _mm512_unpacklo_epi16(a, b);
    out[1] = _mm512_unpackhi_epi16(a, b);
}

NKV_INLINE __m512i weights_of(const struct rows *rows, int part, int r, size_t t)
{
    int32_t w;
    memcpy(&w, &rows->part[part][r][t], sizeof w);
    return _mm512_set1_epi32(w);
}

/* o = keep * o + weights times V, dimensions d .. d + 31. */
NKV_INLINE void value_chunk(int n_rows, bool whole, const struct block *b, struct rows *rows, size_t d)
{
    __m512i sum[2][QUAD][2];
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        sum[0][r][0] = sum[0][r][1] = sum[1][r][0] = sum[1][r][1] = _mm512_setzero_si512();
    const char *v = b->v, *ahead = b->next_v != NULL ? b->next_v + d * b->n_tokens : NULL;
    for (size_t t = 0; t < b->n_tokens; t += 4, v += 4 * b->dim) {
        __m256i row[4];
        __m512i mixed[2];
        if (ahead != NULL)
            nkv_prefetch(ahead + 32 * t, 128);
        if (b->n_tokens - t < 4)
            v = memcpy(rows->tail, v, (b->n_tokens - t) * b->dim);
        NKV_UNROLL
        for (size_t i = 0; i < 4; i++)
            row[i] = load32(whole, v + i * b->dim, d, b->dim);
        mix(row, mixed);
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            NKV_UNROLL
            for (int part = 0; part < 2; part++) {
                __m512i w = weights_of(rows, part, r, t);
                sum[part][r][0] = _mm512_dpbusd_epi32(sum[part][r][0], w, mixed[0]);
                sum[part][r][1] = _mm512_dpbusd_epi32(sum[part][r][1], w, mixed[1]);
            }
        }
    }
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        if (r == rows->n)
            break;
        __m512 keep = _mm512_set1_ps(rows->keep[r]), step = _mm512_set1_ps(rows->step[r]);
        NKV_UNROLL
        for (size_t i = 0; i < 2; i++) {
            __mmask16 of = 0xffff;
            if (!whole)
                of = nkv_mask_below(b->dim > d + 16 * i ? b->dim - d - 16 * i : 0);
            float *o = rows->o[r] + d + 16 * i;
            __m512i both = _mm512_add_epi32(_mm512_slli_epi32(sum[0][r][i], 8), sum[1][r][i]);
            __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(both), step);
            _mm512_mask_storeu_ps(o, of, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(of, o), keep, x));
        }
    }
}

NKV_INLINE void fold_block(int n_rows, const struct block *b, struct rows *rows)
{
    score_block(n_rows, b, rows);
    for (int r = 0; r < n_rows; r++)
        nkv_weigh(b->n_tokens, b->v_scale, rows->weight[r], &rows->m[r], &rows->l[r], &rows->keep[r]);
    split_weights(n_rows, b, rows);
    size_t d = 0;
    for (; d + 32 <= b->dim; d += 32)
        value_chunk(n_rows, true, b, rows, d);
    if (d < b->dim)
        value_chunk(n_rows, false, b, rows, d);
}

void nkv_avx512x_prepare_q8_0(size_t n_rows, size_t dim, const float *q, void *out)
{
    for (size_t r = 0; r < n_rows; r++)
        prepare_row(dim, q + r * dim, (struct query *)((char *)out + r * prepared_bytes(dim)));
}

/* The rows first .. first + n_rows - 1, at most QUAD, which all see the first n_seen tokens. */
static void fold_rows(const struct nkv_attend *a, const char *prepared, size_t first, size_t n_rows, size_t n_seen)
{
    struct rows rows;
    rows.n = (int)n_rows;
    for (size_t r = 0; r < QUAD; r++) {
        size_t row = first + (r < n_rows ? r : n_rows - 1);
        rows.query[r] = (const struct query *)(const void *)(prepared + row * prepared_bytes(a->dim));
        rows.o[r] = a->o + row * a->dim;
        rows.m[r] = a->m[row];
        rows.l[r] = a->l[row];
    }
    for (size_t t = 0; t < n_seen; t += BLOCK) {
        struct block b = {.n_tokens = n_seen - t < BLOCK ? n_seen - t : BLOCK,
                          .dim = a->dim,
                          .k = (const char *)a->k + t * a->dim,
                          .v = (const char *)a->v + t * a->dim,
                          .k_scale = a->k_scale + t,
                          .v_scale = a->v_scale + t};
        bool last = t + b.n_tokens == n_seen;
        b.next_k = last ? a->next_k : b.k + b.n_tokens * b.dim;
        b.next_v = last ? a->next_v : b.v + b.n_tokens * b.dim;
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

/* Weights times scale must be finite and not negative to be bytes. */
static bool plain_scales(const struct nkv_attend *a)
{
    __mmask16 plain = 0xffff;
    for (size_t t = 0; t < a->n_tokens; t += 16) {
        __m512 x = _mm512_maskz_loadu_ps(nkv_mask_below(a->n_tokens - t), a->v_scale + t);
        plain &= _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
        plain &= _mm512_cmp_ps_mask(x, _mm512_set1_ps(INFINITY), _CMP_LT_OQ);
    }
    return plain == 0xffff;
}

void nkv_avx512x_attend_q8_0(const struct nkv_attend *a)
{
    if (a->n_rows > ROWS_MAX || a->dim > DIM_MAX || !plain_scales(a)) {
        nkv_avx512_attend_q8_0(a);
        return;
    }
    if (a->next_k_scale != NULL)
        nkv_prefetch((const char *)a->next_k_scale, a->n_tokens * sizeof(float));
    if (a->next_v_scale != NULL)
        nkv_prefetch((const char *)a->next_v_scale, a->n_tokens * sizeof(float));
    const char *prepared = a->prepared;
    if (prepared == NULL) {
        nkv_avx512x_prepare_q8_0(a->n_rows, a->dim, a->q, a->scratch); /* two blocks of f32 have room for it */
        prepared = a->scratch;
    }
    for (size_t row = 0, n; row < a->n_rows; row += n) {
        size_t n_seen = nkv_tokens_seen(a, row);
        for (n = 1; n < QUAD && row + n < a->n_rows && nkv_tokens_seen(a, row + n) == n_seen;)
            n++;
        if (n_seen > 0)
            fold_rows(a, prepared, row, n, n_seen);
    }
}
