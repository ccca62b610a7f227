/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512x_attend.c: attention of few rows over a q8_0 page with AVX-512 VNNI: bytes are multiplied as bytes.
 *
 * q and the weights are split into two bytes each, so that vpdpbusd (four products of a byte with a byte, summed) works
 * at sixteen bits of them: q = scale (256 hi + lo), hi and lo signed; weight * v_scale = step (256 hi + lo), unsigned.
 * K is taken as k + 128, which vpdpbusd wants unsigned; 128 sum(q) is taken off again. Sums of products are exact: no
 * intermediate passes 32 bits for dim <= 512 and 64 tokens.
 *
 *   scores   four tokens of K are interleaved by fours of bytes, so that a lane of 16 bytes holds the same four
 *            dimensions of four tokens; the four lanes of a sum are added at the end
 *   weights  all rows side by side, against the largest score of the block, see weigh_block
 *   values   four tokens of V are interleaved byte by byte, so that one instruction takes four tokens in
 *
 * Zen 4 does one 512-bit product a cycle, on two pipes of four, and two 512-bit operations of any kind. 16 products of
 * K and 16 of V per token of four rows and 128 dimensions leave room for as many other operations. So: no shuffle that
 * crosses lanes and can be avoided, as those share a pipe with the products; few stores, which take a read port from
 * them; no broadcast from memory for a single product. The prefetch is spread evenly.
 *
 * Error against exact arithmetic: a score is off by at most 2^-16 max|q| sum|k|; the output by at most 2^-17 max|v|
 * per token that weighs as much as the heaviest of its block, so below 2^-17 * 64 max|v|, typically 1e-5 max|v|.
 *
 * Rejected: q and weights of one byte (twice as fast where arithmetic binds, but an error as large as that of q8_0
 * itself); widening to f32, which needs three times the instructions that memory leaves time for; a register of 16
 * tokens' same four dimensions, whose transposition and broadcasts of q cost more than adding lanes does.
 */
#include <math.h>
#include <stdatomic.h>
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
    _Alignas(64) float score[QUAD][BLOCK];
    _Alignas(64) uint8_t part[QUAD][2 * BLOCK]; /* of weight * v_scale / step, see split_weights */
    char tail[16 * DIM_MAX];                    /* the last tokens of a block, where whole groups can be read */
    float *o[QUAD];
    _Alignas(16) float m[QUAD];
    _Alignas(16) float l[QUAD];
    _Alignas(16) float keep[QUAD];
    _Alignas(16) float step[QUAD];
    int n; /* rows that are written: a pass of four may have three and repeat the last */
};

/* As gcc 12 wants it: a sum that is __m512i between two products is copied before and after each. */
typedef int32_t sum16 __attribute__((vector_size(64)));

/* sum + of each four bytes of a (unsigned) and b (signed) the products. */
NKV_INLINE sum16 add_products(sum16 sum, __m512i a, __m512i b)
{
    return (sum16)_mm512_dpbusd_epi32((__m512i)sum, a, b);
}

static __mmask64 bytes_below(size_t n)
{
    return n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1;
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

/* Sixty-four dimensions, or those of them below dim. */
NKV_INLINE __m512i load64(bool whole, const char *row, size_t d, size_t dim)
{
    return whole ? _mm512_loadu_si512(row + d) : _mm512_maskz_loadu_epi8(bytes_below(dim - d), row + d);
}

/* Lane i of x[j] goes to lane j of x[i]; a lane has 16 bytes. */
NKV_INLINE void transpose_lanes(__m512i x[4])
{
    __m512i a = _mm512_shuffle_i32x4(x[0], x[1], 0x88), b = _mm512_shuffle_i32x4(x[0], x[1], 0xdd);
    __m512i c = _mm512_shuffle_i32x4(x[2], x[3], 0x88), d = _mm512_shuffle_i32x4(x[2], x[3], 0xdd);
    x[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    x[1] = _mm512_shuffle_i32x4(b, d, 0x88);
    x[2] = _mm512_shuffle_i32x4(a, c, 0xdd);
    x[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

/* Element i of every lane of 16 bytes, four times. */
NKV_INLINE __m512i spread(__m512i x, size_t i)
{
    switch (i) {
    case 0:
        return _mm512_shuffle_epi32(x, 0x00);
    case 1:
        return _mm512_shuffle_epi32(x, 0x55);
    case 2:
        return _mm512_shuffle_epi32(x, 0xaa);
    default:
        return _mm512_shuffle_epi32(x, 0xff);
    }
}

/* Four tokens [4][dim], as k + 128: in lane j of x[c], dimensions d + 16 j + 4 c and the three after it, by token. */
NKV_INLINE void mix_keys(bool whole, const char *k, size_t d, size_t dim, __m512i x[4])
{
    __m512i y[4];
    NKV_UNROLL
    for (size_t i = 0; i < 4; i++)
        x[i] = _mm512_xor_si512(load64(whole, k + i * dim, d, dim), _mm512_set1_epi8(-128));
    y[0] = _mm512_unpacklo_epi32(x[0], x[1]);
    y[1] = _mm512_unpackhi_epi32(x[0], x[1]);
    y[2] = _mm512_unpacklo_epi32(x[2], x[3]);
    y[3] = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(y[0], y[2]);
    x[1] = _mm512_unpackhi_epi64(y[0], y[2]);
    x[2] = _mm512_unpacklo_epi64(y[1], y[3]);
    x[3] = _mm512_unpackhi_epi64(y[1], y[3]);
}

/* Dimensions d .. d + 63 of eight tokens k [8][dim]; q is 0 where they pass dim. */
NKV_INLINE void score_chunk(int n_rows, bool whole, const char *k, size_t dim, size_t d, const char *ahead,
                            const struct rows *rows, sum16 sum[2][2 * QUAD])
{
    __m512i x[2][4];
    mix_keys(whole, k, d, dim, x[0]);
    mix_keys(whole, k + 4 * dim, d, dim, x[1]);
    NKV_UNROLL
    for (size_t c = 0; c < 4; c++) {
        nkv_prefetch(ahead + 128 * c, 128);
        atomic_signal_fence(memory_order_seq_cst); /* gcc 12 would keep all of q in registers, and the sums in memory */
        NKV_UNROLL
        for (int i = 0; i < 2 * n_rows; i++) {
            __m512i q = spread(_mm512_load_si512(rows->query[i / 2]->part[d / 64][i % 2]), c);
            sum[0][i] = add_products(sum[0][i], x[0][c], q);
            sum[1][i] = add_products(sum[1][i], x[1][c], q);
        }
    }
}

/* Adds lanes 0 and 1, and 2 and 3, first of a, then of b. */
NKV_INLINE __m512i add_lanes(__m512i a, __m512i b)
{
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

/* Of eight tokens k [8][dim]: the sums of products, in two halves of each four tokens. */
NKV_INLINE void score_eight(int n_rows, const char *k, size_t dim, const char *ahead, const struct rows *rows,
                            __m512i out[QUAD])
{
    size_t d = 0;
    sum16 sum[2][2 * QUAD];
    NKV_UNROLL
    for (int i = 0; i < 2 * n_rows; i++)
        sum[0][i] = sum[1][i] = (sum16){0};
    for (; d + 64 <= dim; d += 64)
        score_chunk(n_rows, true, k, dim, d, ahead + 8 * d, rows, sum);
    if (d < dim)
        score_chunk(n_rows, false, k, dim, d, ahead + 8 * d, rows, sum);
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        __m512i x[2];
        NKV_UNROLL
        for (int i = 0; i < 2; i++)
            x[i] = _mm512_add_epi32(_mm512_slli_epi32((__m512i)sum[i][2 * r], 8), (__m512i)sum[i][2 * r + 1]);
        out[r] = add_lanes(x[0], x[1]);
    }
}

NKV_INLINE void score_block(int n_rows, const struct block *b, struct rows *rows)
{
    size_t dim = b->dim;
    for (size_t t = 0; t < b->n_tokens; t += 16) {
        const char *k = b->k + t * dim, *ahead = b->next_k + t * dim;
        __m512i half[2][QUAD];
        if (b->n_tokens - t < 16)
            k = memcpy(rows->tail, k, (b->n_tokens - t) * dim);
        score_eight(n_rows, k, dim, ahead, rows, half[0]);
        score_eight(n_rows, k + 8 * dim, dim, ahead + 8 * dim, rows, half[1]);
        __m512 scale = _mm512_maskz_loadu_ps(nkv_mask_below(b->n_tokens - t), b->k_scale + t);
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            __m512i s = add_lanes(half[0][r], half[1][r]);
            s = _mm512_sub_epi32(s, _mm512_set1_epi32(rows->query[r]->bias));
            __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(rows->query[r]->scale));
            _mm512_store_ps(&rows->score[r][t], _mm512_mul_ps(_mm512_cvtepi32_ps(s), both));
        }
    }
}

/* In every lane of 16 bytes: the sums (or the largest) of x[0], x[1], x[2], x[3]. */
NKV_INLINE __m512 reduce4(bool max, const __m512 x[4])
{
    __m512 a = nkv_combine(max, _mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    __m512 b = nkv_combine(max, _mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    a = nkv_combine(max, _mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
    a = nkv_combine(max, a, _mm512_shuffle_f32x4(a, a, 0x4e));
    return nkv_combine(max, a, _mm512_shuffle_f32x4(a, a, 0xb1));
}

/* Thirty-two weights as bytes: for every four tokens their low bytes, then their high bytes. */
NKV_INLINE void split_weights(__m512 w0, __m512 w1, uint8_t *out)
{
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    __m512i n = _mm512_packus_epi32(_mm512_cvtps_epi32(w0), _mm512_cvtps_epi32(w1));
    _mm512_store_si512(out, _mm512_permutexvar_epi64(order, _mm512_shuffle_epi8(n, bytes)));
}

NKV_INLINE __m512 scores_of(const struct block *b, const struct rows *rows, int r, size_t t)
{
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), nkv_mask_below(b->n_tokens > t ? b->n_tokens - t : 0),
                              _mm512_load_ps(&rows->score[r][t]));
}

/* 0 for -inf, so that -inf less it is -inf. */
NKV_INLINE __m512 finite(__m512 x)
{
    const __m512 none = _mm512_set1_ps(-INFINITY);
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, none, _CMP_NEQ_UQ), x);
}

/*
 * Scores to weights in bytes; m and l. All rows side by side, and weights against the largest score of the block
 * rather than m, so that the way from the last score to the first weight is short: nothing else can be computed
 * meanwhile.
 */
NKV_INLINE void weigh_block(int n_rows, const struct block *b, struct rows *rows)
{
    __m512 v_top = _mm512_setzero_ps(), tops[QUAD], sum[QUAD];
    for (size_t t = 0; t < b->n_tokens; t += 16)
        v_top = _mm512_max_ps(v_top, _mm512_maskz_loadu_ps(nkv_mask_below(b->n_tokens - t), b->v_scale + t));
    float v_largest = _mm512_reduce_max_ps(v_top);
    __m512 inverse = _mm512_set1_ps(v_largest > 0 ? 65535 / v_largest : 0);
    NKV_UNROLL
    for (int r = 0; r < QUAD; r++) {
        tops[r] = r < n_rows ? scores_of(b, rows, r, 0) : tops[0];
        sum[r] = _mm512_setzero_ps();
        for (size_t t = 16; r < n_rows && t < b->n_tokens; t += 16)
            tops[r] = _mm512_max_ps(tops[r], scores_of(b, rows, r, t));
    }
    __m512 block_top = reduce4(true, tops), shift = finite(block_top);
    for (size_t t = 0; t < b->n_tokens; t += 32) {
        size_t n = b->n_tokens - t;
        __m512 scale0 = _mm512_mul_ps(_mm512_maskz_loadu_ps(nkv_mask_below(n), b->v_scale + t), inverse);
        __m512 scale1 = _mm512_setzero_ps();
        if (n > 16)
            scale1 = _mm512_mul_ps(_mm512_maskz_loadu_ps(nkv_mask_below(n - 16), b->v_scale + t + 16), inverse);
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            __m512 top = _mm512_castsi512_ps(spread(_mm512_castps_si512(shift), (size_t)r));
            __m512 w0 = nkv_exp16(_mm512_sub_ps(scores_of(b, rows, r, t), top));
            __m512 w1 = nkv_exp16(_mm512_sub_ps(scores_of(b, rows, r, t + 16), top));
            sum[r] = _mm512_add_ps(sum[r], _mm512_add_ps(w0, w1));
            split_weights(_mm512_mul_ps(w0, scale0), _mm512_mul_ps(w1, scale1), &rows->part[r][2 * t]);
        }
    }
    __m512 m = _mm512_broadcast_f32x4(_mm_load_ps(rows->m)), new_m = _mm512_max_ps(m, block_top);
    /* exp(block_top - new_m) in the first lane, exp(m - new_m) in the others. */
    __m512 both = nkv_exp16(_mm512_sub_ps(_mm512_mask_mov_ps(m, 0xf, block_top), finite(new_m)));
    __m128 weight = _mm512_castps512_ps128(both), keep = _mm512_extractf32x4_ps(both, 1);
    __m128 total = _mm512_castps512_ps128(reduce4(false, sum));
    _mm_store_ps(rows->m, _mm512_castps512_ps128(new_m));
    _mm_store_ps(rows->l, _mm_fmadd_ps(_mm_load_ps(rows->l), keep, _mm_mul_ps(weight, total)));
    _mm_store_ps(rows->keep, keep);
    /* A NaN score is in the sum, and must be in o, too. */
    _mm_store_ps(rows->step, _mm_fmadd_ps(total, _mm_setzero_ps(), _mm_mul_ps(weight, _mm_set1_ps(v_largest / 65535))));
}

/*
 * Four tokens, half of 64 dimensions: the four bytes of a dimension in element e of lane j of out[i], the dimension
 * being 16 j + 8 half + 4 i + e.
 */
NKV_INLINE void mix(const __m512i v[4], int half, __m512i out[2])
{
    __m512i a = half ? _mm512_unpackhi_epi8(v[0], v[1]) : _mm512_unpacklo_epi8(v[0], v[1]);
    __m512i b = half ? _mm512_unpackhi_epi8(v[2], v[3]) : _mm512_unpacklo_epi8(v[2], v[3]);
    out[0] = _mm512_unpacklo_epi16(a, b);
    out[1] = _mm512_unpackhi_epi16(a, b);
}

NKV_INLINE __m512i weights_of(const struct rows *rows, int part, int r, size_t t)
{
    int32_t w;
    memcpy(&w, &rows->part[r][2 * t + 4 * (size_t)part], sizeof w);
    return _mm512_set1_epi32(w);
}

/* Adds the weights of four tokens v [4][dim] times half of dimensions d .. d + 63, in the order of mix. */
NKV_INLINE void add_values(int n_rows, bool whole, const char *v, size_t dim, size_t d, int half,
                           const struct rows *rows, size_t t, sum16 sum[2][QUAD][2])
{
    __m512i row[4], mixed[2];
    NKV_UNROLL
    for (size_t i = 0; i < 4; i++)
        row[i] = load64(whole, v + i * dim, d, dim);
    mix(row, half, mixed);
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        NKV_UNROLL
        for (int part = 0; part < 2; part++) {
            __m512i w = weights_of(rows, part, r, t);
            sum[part][r][0] = add_products(sum[part][r][0], w, mixed[0]);
            sum[part][r][1] = add_products(sum[part][r][1], w, mixed[1]);
        }
    }
}

/* Weights times V, half of dimensions d .. d + 63 in the order of mix. */
NKV_INLINE void value_chunk(int n_rows, bool whole, const struct block *b, struct rows *rows, size_t d, int half,
                            const char *ahead, __m512 out[QUAD][2])
{
    size_t t = 0;
    sum16 sum[2][QUAD][2];
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        sum[0][r][0] = sum[0][r][1] = sum[1][r][0] = sum[1][r][1] = (sum16){0};
    for (; t + 4 <= b->n_tokens; t += 4) {
        nkv_prefetch(ahead + 32 * t, 128);
        add_values(n_rows, whole, b->v + t * b->dim, b->dim, d, half, rows, t, sum);
    }
    if (t < b->n_tokens) {
        memcpy(rows->tail, b->v + t * b->dim, (b->n_tokens - t) * b->dim);
        add_values(n_rows, whole, rows->tail, b->dim, d, half, rows, t, sum);
    }
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        NKV_UNROLL
        for (size_t i = 0; i < 2; i++) {
            __m512i both = _mm512_add_epi32(_mm512_slli_epi32((__m512i)sum[1][r][i], 8), (__m512i)sum[0][r][i]);
            out[r][i] = _mm512_mul_ps(_mm512_cvtepi32_ps(both), _mm512_set1_ps(rows->step[r]));
        }
    }
}

/* o = keep * o + weights times V, dimensions d .. d + 63. */
NKV_INLINE void value_chunks(int n_rows, bool whole, const struct block *b, struct rows *rows, size_t d)
{
    __m512 low[QUAD][2], high[QUAD][2];
    const char *ahead = b->next_v + d * b->n_tokens;
    value_chunk(n_rows, whole, b, rows, d, 0, ahead, low);
    value_chunk(n_rows, whole, b, rows, d, 1, ahead + 32 * b->n_tokens, high);
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        if (r == rows->n)
            break;
        __m512 keep = _mm512_set1_ps(rows->keep[r]);
        __m512i x[4] = {_mm512_castps_si512(low[r][0]), _mm512_castps_si512(low[r][1]), _mm512_castps_si512(high[r][0]),
                        _mm512_castps_si512(high[r][1])};
        transpose_lanes(x);
        NKV_UNROLL
        for (size_t i = 0; i < 4; i++) {
            __mmask16 of = 0xffff;
            if (!whole)
                of = nkv_mask_below(b->dim > d + 16 * i ? b->dim - d - 16 * i : 0);
            float *o = rows->o[r] + d + 16 * i;
            __m512 sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(of, o), keep, _mm512_castsi512_ps(x[i]));
            _mm512_mask_storeu_ps(o, of, sum);
        }
    }
}

NKV_INLINE void fold_block(int n_rows, const struct block *b, struct rows *rows)
{
    score_block(n_rows, b, rows);
    weigh_block(n_rows, b, rows);
    size_t d = 0;
    for (; d + 64 <= b->dim; d += 64)
        value_chunks(n_rows, true, b, rows, d);
    if (d < b->dim)
        value_chunks(n_rows, false, b, rows, d);
}

void nkv_avx512x_prepare_q8_0(size_t n_rows, size_t dim, const float *q, void *out)
{
    for (size_t r = 0; r < n_rows; r++)
        prepare_row(dim, q + r * dim, (struct query *)((char *)out + r * nkv_prepared_row_bytes((uint32_t)dim)));
}

/* The rows first .. first + n_rows - 1, at most QUAD, which all see the first n_seen tokens. */
static void fold_rows(const struct nkv_attend *a, const char *prepared, size_t first, size_t n_rows, size_t n_seen)
{
    struct rows rows;
    rows.n = (int)n_rows;
    for (size_t r = 0; r < QUAD; r++) {
        size_t row = first + (r < n_rows ? r : n_rows - 1);
        rows.query[r] = (const struct query *)(const void *)(prepared + row * nkv_prepared_row_bytes(a->dim));
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
