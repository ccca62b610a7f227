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
    _Alignas(64) __m512i mixed[BLOCK / 4][4];  /* V of 64 dimensions, four tokens interleaved */
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

/* x[c] becomes the c-th 4-byte group of the sixteen x. */
NKV_INLINE void transpose16(__m512i x[16])
{
    __m512i y[16];
    NKV_UNROLL
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    NKV_UNROLL
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    NKV_UNROLL
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88), b = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88),
                d = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
        x[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        x[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        x[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        x[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

/* Sixty-four dimensions, or those of them below dim. */
NKV_INLINE __m512i load64(bool whole, const char *row, size_t d, size_t dim)
{
    return whole ? _mm512_loadu_si512(row + d) : _mm512_maskz_loadu_epi8(bytes_below(dim - d), row + d);
}

/* Dimensions d .. d + 63 of sixteen tokens k [16][dim]. */
NKV_INLINE void score_chunk(int n_rows, bool whole, const char *k, size_t dim, size_t d, const struct rows *rows,
                            __m512i sum[2][QUAD])
{
    __m512i x[16];
    NKV_UNROLL
    for (size_t i = 0; i < 16; i++)
        x[i] = _mm512_xor_si512(load64(whole, k + i * dim, d, dim), _mm512_set1_epi8(-128));
    transpose16(x);
    NKV_UNROLL
    for (size_t i = 0; i < 16; i++) {
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            NKV_UNROLL
            for (int part = 0; part < 2; part++) {
                int32_t q;
                memcpy(&q, &rows->query[r]->part[d / 64][part][4 * i], sizeof q);
                sum[part][r] = _mm512_dpbusd_epi32(sum[part][r], x[i], _mm512_set1_epi32(q));
            }
        }
    }
}

/* Scores of sixteen tokens k [16][dim]. */
NKV_INLINE void score_tile(int n_rows, const char *k, size_t dim, __m512 scale, struct rows *rows, size_t t)
{
    size_t d = 0;
    __m512i sum[2][QUAD];
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        sum[0][r] = sum[1][r] = _mm512_setzero_si512();
    for (; d + 64 <= dim; d += 64)
        score_chunk(n_rows, true, k, dim, d, rows, sum);
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
        if (b->next_k != NULL)
            nkv_prefetch(b->next_k + t * b->dim, 16 * b->dim);
        const char *k = b->k + t * b->dim;
        if (b->n_tokens - t < 16)
            k = memcpy(rows->tail, k, (b->n_tokens - t) * b->dim);
        __m512 scale = _mm512_maskz_loadu_ps(nkv_mask_below(b->n_tokens - t), b->k_scale + t);
        score_tile(n_rows, k, b->dim, scale, rows, t);
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

/* Sixty-four dimensions of four tokens to 4 x 16 groups of four bytes, one group a dimension. */
NKV_INLINE void mix4(const __m512i v[4], __m512i out[4])
{
    __m512i a = _mm512_unpacklo_epi8(v[0], v[1]), b = _mm512_unpackhi_epi8(v[0], v[1]);
    __m512i c = _mm512_unpacklo_epi8(v[2], v[3]), d = _mm512_unpackhi_epi8(v[2], v[3]);
    out[0] = _mm512_unpacklo_epi16(a, c);
    out[1] = _mm512_unpackhi_epi16(a, c);
    out[2] = _mm512_unpacklo_epi16(b, d);
    out[3] = _mm512_unpackhi_epi16(b, d);
}

/* Undoes mix4's order: x[j] holds, in its group g of four lanes, dimensions 16 g + 4 j .. + 3. */
NKV_INLINE void sort4(__m512 x[4])
{
    __m512 a = _mm512_shuffle_f32x4(x[0], x[1], 0x44), b = _mm512_shuffle_f32x4(x[0], x[1], 0xee);
    __m512 c = _mm512_shuffle_f32x4(x[2], x[3], 0x44), d = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
    x[0] = _mm512_shuffle_f32x4(a, c, 0x88);
    x[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
    x[2] = _mm512_shuffle_f32x4(b, d, 0x88);
    x[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
}

NKV_INLINE __m512i weights_of(const struct rows *rows, int part, int r, size_t t)
{
    int32_t w;
    memcpy(&w, &rows->part[part][r][t], sizeof w);
    return _mm512_set1_epi32(w);
}

/* o = keep * o + weights times V, dimensions d .. d + 63. */
NKV_INLINE void value_chunk(int n_rows, bool whole, const struct block *b, struct rows *rows, size_t d,
                            const char *ahead, size_t ahead_bytes)
{
    __m512i sum[QUAD][4];
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = _mm512_setzero_si512();
    const char *row = b->v;
    for (size_t t = 0; t < b->n_tokens; t += 4, row += 4 * b->dim) {
        __m512i v[4], *mixed = rows->mixed[t / 4];
        if (ahead != NULL)
            nkv_prefetch(ahead + t * ahead_bytes, 4 * ahead_bytes);
        if (b->n_tokens - t < 4)
            row = memcpy(rows->tail, row, (b->n_tokens - t) * b->dim);
        NKV_UNROLL
        for (size_t i = 0; i < 4; i++)
            v[i] = load64(whole, row + i * b->dim, d, b->dim);
        mix4(v, v);
        NKV_UNROLL
        for (int i = 0; i < 4; i++)
            mixed[i] = v[i];
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            __m512i w = weights_of(rows, 0, r, t);
            NKV_UNROLL
            for (int i = 0; i < 4; i++)
                sum[r][i] = _mm512_dpbusd_epi32(sum[r][i], w, v[i]);
        }
    }
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        NKV_UNROLL
        for (int i = 0; i < 4; i++)
            sum[r][i] = _mm512_slli_epi32(sum[r][i], 8);
    }
    for (size_t t = 0; t < b->n_tokens; t += 4) {
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            __m512i w = weights_of(rows, 1, r, t);
            NKV_UNROLL
            for (int i = 0; i < 4; i++)
                sum[r][i] = _mm512_dpbusd_epi32(sum[r][i], w, rows->mixed[t / 4][i]);
        }
    }
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        if (r == rows->n)
            break;
        __m512 x[4], keep = _mm512_set1_ps(rows->keep[r]), step = _mm512_set1_ps(rows->step[r]);
        NKV_UNROLL
        for (int i = 0; i < 4; i++)
            x[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][i]), step);
        sort4(x);
        NKV_UNROLL
        for (size_t i = 0; i < 4; i++) {
            __mmask16 of = 0xffff;
            if (!whole)
                of = nkv_mask_below(b->dim > d + 16 * i ? b->dim - d - 16 * i : 0);
            float *o = rows->o[r] + d + 16 * i;
            _mm512_mask_storeu_ps(o, of, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(of, o), keep, x[i]));
        }
    }
}

NKV_INLINE void fold_block(int n_rows, const struct block *b, struct rows *rows)
{
    score_block(n_rows, b, rows);
    for (int r = 0; r < n_rows; r++)
        nkv_weigh(b->n_tokens, b->v_scale, rows->weight[r], &rows->m[r], &rows->l[r], &rows->keep[r]);
    split_weights(n_rows, b, rows);
    size_t chunks = (b->dim + 63) / 64, ahead_bytes = (b->dim + chunks - 1) / chunks, d = 0;
    const char *ahead = b->next_v;
    for (; d + 64 <= b->dim; d += 64) {
        value_chunk(n_rows, true, b, rows, d, ahead, ahead_bytes);
        if (ahead != NULL)
            ahead += b->n_tokens * ahead_bytes;
    }
    if (d < b->dim)
        value_chunk(n_rows, false, b, rows, d, ahead, ahead_bytes);
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
