/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512_attend_many.c: attention of many rows over one page (prefill): bound by arithmetic.
 *
 * 32 tokens at a time, K is widened to f32 and transposed, V widened; every row then uses them. Tiles of twelve rows by
 * 32 tokens keep 24 sums in registers: scores S = Q K^T run over the dimensions, O += P V over the tokens in chunks of
 * 32 dimensions. Rows past the last one repeat it, so that there are only three sizes of tile; they are never stored.
 *
 * Rejected: bf16 products (twice the rate). They round the queries and the weights to eight bits.
 */
#include <math.h>
#include <string.h>

#include "kernels/attend_fast.h"
#include "kernels/avx512_attend.h"

enum { TILE_ROWS = 12, BLOCK = NKV_ATTEND_BLOCK };

/* Some tokens of the page, packed. */
struct packed {
    size_t first, n_tokens, dim;
    float *k;       /* [round_up(dim, 16)][BLOCK], tokens past n_tokens are 0 */
    const float *v; /* [n_tokens][v_stride] */
    size_t v_stride;
    const float *k_scale; /* or NULL */
};

struct tile {
    _Alignas(64) float weight[TILE_ROWS][BLOCK]; /* scores, then weights */
    _Alignas(64) float m[16];
    _Alignas(64) float l[16];
    _Alignas(64) float keep[16];
    const float *q[TILE_ROWS];
    float *o[TILE_ROWS];
    uint32_t n_seen[TILE_ROWS]; /* of the block's tokens */
};

/* out[c][r] = x[r][c], with `stride` floats from row to row of out. */
static void transpose16(__m512 x[16], float *out, size_t stride)
{
    __m512 y[16];
    NKV_UNROLL
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    NKV_UNROLL
    for (int i = 0; i < 16; i += 4) {
        NKV_UNROLL
        for (int j = 0; j < 2; j++) {
            __m512d a = _mm512_castps_pd(y[i + j]), b = _mm512_castps_pd(y[i + 2 + j]);
            x[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            x[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    /* x[4g + j]: lane group c holds column 4c + j of rows 4g .. 4g + 3. */
    NKV_UNROLL
    for (int j = 0; j < 4; j++) {
        __m512 a = _mm512_shuffle_f32x4(x[j], x[4 + j], 0x88), b = _mm512_shuffle_f32x4(x[j], x[4 + j], 0xdd);
        __m512 c = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0x88), d = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0xdd);
        float *at = out + (size_t)j * stride;
        _mm512_store_ps(at, _mm512_shuffle_f32x4(a, c, 0x88));
        _mm512_store_ps(at + 4 * stride, _mm512_shuffle_f32x4(b, d, 0x88));
        _mm512_store_ps(at + 8 * stride, _mm512_shuffle_f32x4(a, c, 0xdd));
        _mm512_store_ps(at + 12 * stride, _mm512_shuffle_f32x4(b, d, 0xdd));
    }
}

NKV_INLINE __m512 load_part(enum nkv_dtype dtype, const char *row, size_t d, size_t dim)
{
    return d + 16 <= dim ? nkv_load16(dtype, row, d) : nkv_load8(dtype, row, d);
}

NKV_INLINE void pack_k(enum nkv_dtype dtype, const char *k, const struct packed *p)
{
    size_t row_bytes = p->dim * nkv_element_bytes(dtype);
    for (size_t t = 0; t < BLOCK; t += 16)
        for (size_t d = 0; d < p->dim; d += 16) {
            __m512 x[16];
            NKV_UNROLL
            for (size_t i = 0; i < 16; i++)
                x[i] = t + i < p->n_tokens ? load_part(dtype, k + (t + i) * row_bytes, d, p->dim) : _mm512_setzero_ps();
            transpose16(x, p->k + d * BLOCK + t, BLOCK);
        }
}

NKV_INLINE void pack_v(enum nkv_dtype dtype, const char *v, const float *scale, size_t n_tokens, size_t dim, float *out,
                       size_t stride)
{
    size_t row_bytes = dim * nkv_element_bytes(dtype);
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t d = 0; d < dim; d += 16) {
            __m512 x = load_part(dtype, v + t * row_bytes, d, dim);
            if (dtype == NKV_Q8_0)
                x = _mm512_mul_ps(x, _mm512_set1_ps(scale[t]));
            _mm512_store_ps(out + t * stride + d, x);
        }
}

/* Scores of the tile; -inf where a row does not see. */
NKV_INLINE void score_tile(int n_rows, const struct packed *p, struct tile *tile)
{
    __m512 sum[TILE_ROWS][2];
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    const float *k = p->k;
    for (size_t d = 0; d < p->dim; d++, k += BLOCK) {
        __m512 k0 = _mm512_load_ps(k), k1 = _mm512_load_ps(k + 16);
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            __m512 q = _mm512_set1_ps(tile->q[r][d]);
            sum[r][0] = _mm512_fmadd_ps(q, k0, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(q, k1, sum[r][1]);
        }
    }
    const __m512 none = _mm512_set1_ps(-INFINITY);
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        NKV_UNROLL
        for (size_t i = 0; i < 2; i++) {
            uint32_t seen = tile->n_seen[r];
            __mmask16 in = nkv_mask_below(seen > 16 * i ? seen - 16 * i : 0);
            __m512 s = sum[r][i];
            if (p->k_scale != NULL)
                s = _mm512_mul_ps(s, _mm512_maskz_loadu_ps(in, p->k_scale + 16 * i));
            _mm512_store_ps(&tile->weight[r][16 * i], _mm512_mask_mov_ps(none, in, s));
        }
    }
}

/* Scores to weights, and m, l, keep of the tile's rows, which are the lanes of one register each. */
NKV_INLINE void weigh_tile(int n_rows, struct tile *tile)
{
    __m512 x[16], old_m = _mm512_load_ps(tile->m);
    NKV_UNROLL
    for (int r = 0; r < 16; r++)
        x[r] = r < n_rows ? _mm512_max_ps(_mm512_load_ps(tile->weight[r]), _mm512_load_ps(tile->weight[r] + 16))
                          : _mm512_setzero_ps();
    __m512 m = _mm512_max_ps(old_m, nkv_max16(x));
    __mmask16 empty = _mm512_cmp_ps_mask(m, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ);
    __m512 shift = _mm512_mask_mov_ps(m, empty, _mm512_setzero_ps());
    _Alignas(64) float shifts[16];
    _mm512_store_ps(shifts, shift);
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        __m512 s = _mm512_set1_ps(shifts[r]);
        __m512 a = nkv_exp16(_mm512_sub_ps(_mm512_load_ps(tile->weight[r]), s));
        __m512 b = nkv_exp16(_mm512_sub_ps(_mm512_load_ps(tile->weight[r] + 16), s));
        _mm512_store_ps(tile->weight[r], a);
        _mm512_store_ps(tile->weight[r] + 16, b);
        x[r] = _mm512_add_ps(a, b);
    }
    __m512 keep = nkv_exp16(_mm512_sub_ps(old_m, shift));
    _mm512_store_ps(tile->keep, keep);
    _mm512_store_ps(tile->l, _mm512_fmadd_ps(_mm512_load_ps(tile->l), keep, nkv_sum16(x)));
    _mm512_store_ps(tile->m, m);
}

/* Dimensions d .. d + 31 of the rows, or those of them in `in`. */
NKV_INLINE void fold_chunk(int n_rows, bool whole, const struct packed *p, size_t n_tokens, size_t d, struct tile *tile)
{
    __mmask16 in[2] = {0xffff, 0xffff};
    if (!whole) {
        in[0] = nkv_mask_below(p->dim - d);
        in[1] = nkv_mask_below(p->dim - d > 16 ? p->dim - d - 16 : 0);
    }
    __m512 o[TILE_ROWS][2];
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        NKV_UNROLL
        for (size_t i = 0; i < 2; i++)
            o[r][i] =
                _mm512_mul_ps(_mm512_maskz_loadu_ps(in[i], tile->o[r] + d + 16 * i), _mm512_set1_ps(tile->keep[r]));
    }
    const float *v = p->v + d;
    for (size_t t = 0; t < n_tokens; t++, v += p->v_stride) {
        __m512 v0 = _mm512_maskz_loadu_ps(in[0], v), v1 = _mm512_maskz_loadu_ps(in[1], v + 16);
        NKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            __m512 w = _mm512_set1_ps(tile->weight[r][t]);
            o[r][0] = _mm512_fmadd_ps(w, v0, o[r][0]);
            o[r][1] = _mm512_fmadd_ps(w, v1, o[r][1]);
        }
    }
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        if (tile->n_seen[r] > 0) {
            _mm512_mask_storeu_ps(tile->o[r] + d, in[0], o[r][0]);
            _mm512_mask_storeu_ps(tile->o[r] + d + 16, in[1], o[r][1]);
        }
}

NKV_INLINE void fold_tile(int n_rows, const struct packed *p, struct tile *tile)
{
    size_t n_tokens = 0, d = 0;
    NKV_UNROLL
    for (int r = 0; r < n_rows; r++)
        n_tokens = tile->n_seen[r] > n_tokens ? tile->n_seen[r] : n_tokens;
    if (n_tokens == 0)
        return;
    score_tile(n_rows, p, tile);
    weigh_tile(n_rows, tile);
    for (; d + 32 <= p->dim; d += 32)
        fold_chunk(n_rows, true, p, n_tokens, d, tile);
    if (d < p->dim)
        fold_chunk(n_rows, false, p, n_tokens, d, tile);
}

static void fold_rows(const struct nkv_attend *a, const struct packed *p, size_t first, size_t n_rows)
{
    struct tile tile;
    for (size_t r = 0; r < 16; r++) {
        size_t row = first + (r < n_rows ? r : n_rows - 1), seen = nkv_tokens_seen(a, row);
        tile.m[r] = a->m[row];
        tile.l[r] = a->l[row];
        if (r >= TILE_ROWS)
            continue;
        tile.q[r] = a->q + row * p->dim;
        tile.o[r] = a->o + row * p->dim;
        seen = seen > p->first ? seen - p->first : 0;
        tile.n_seen[r] = (uint32_t)(seen < p->n_tokens ? seen : p->n_tokens);
    }
    if (n_rows <= 4)
        fold_tile(4, p, &tile);
    else if (n_rows <= 8)
        fold_tile(8, p, &tile);
    else
        fold_tile(12, p, &tile);
    for (size_t r = 0; r < n_rows; r++)
        if (tile.n_seen[r] > 0) {
            a->m[first + r] = tile.m[r];
            a->l[first + r] = tile.l[r];
        }
}

NKV_INLINE bool finite_v(enum nkv_dtype dtype, const struct nkv_attend *a)
{
    enum { NAN_OR_INF = 0x81 | 0x18 };
    __mmask16 bad = 0;
    for (size_t t = 0; t < a->n_tokens; t++) {
        const char *v = (const char *)a->v + t * a->dim * nkv_element_bytes(dtype);
        if (dtype == NKV_Q8_0)
            bad |= _mm512_fpclass_ps_mask(_mm512_set1_ps(a->v_scale[t]), NAN_OR_INF);
        else
            for (size_t d = 0; d < a->dim; d += 16)
                bad |= _mm512_fpclass_ps_mask(load_part(dtype, v, d, a->dim), NAN_OR_INF);
    }
    return bad == 0;
}

static bool all_see_all(const struct nkv_attend *a)
{
    for (size_t row = 0; row < a->n_rows; row++)
        if (nkv_tokens_seen(a, row) < a->n_tokens)
            return false;
    return true;
}

NKV_INLINE bool attend(enum nkv_dtype dtype, const struct nkv_attend *a)
{
    if (!all_see_all(a) && !finite_v(dtype, a))
        return false;
    size_t dim = a->dim, stride = (dim + 15) / 16 * 16, row_bytes = dim * nkv_element_bytes(dtype);
    float *packed_k = a->scratch, *packed_v = packed_k + stride * BLOCK;
    for (size_t t = 0; t < a->n_tokens; t += BLOCK) {
        const char *k = (const char *)a->k + t * row_bytes, *v = (const char *)a->v + t * row_bytes;
        struct packed p = {.first = t,
                           .n_tokens = a->n_tokens - t < BLOCK ? a->n_tokens - t : BLOCK,
                           .dim = dim,
                           .k = packed_k,
                           .v = dtype == NKV_F32 ? (const float *)v : packed_v,
                           .v_stride = dtype == NKV_F32 ? dim : stride,
                           .k_scale = dtype == NKV_Q8_0 ? a->k_scale + t : NULL};
        pack_k(dtype, k, &p);
        if (dtype != NKV_F32)
            pack_v(dtype, v, dtype == NKV_Q8_0 ? a->v_scale + t : NULL, p.n_tokens, dim, packed_v, stride);
        for (size_t row = 0; row < a->n_rows; row += TILE_ROWS)
            fold_rows(a, &p, row, a->n_rows - row < TILE_ROWS ? a->n_rows - row : TILE_ROWS);
    }
    return true;
}

bool nkv_avx512_attend_many(enum nkv_dtype dtype, const struct nkv_attend *a)
{
    switch (dtype) {
    case NKV_F32:
        return attend(NKV_F32, a);
    case NKV_F16:
        return attend(NKV_F16, a);
    case NKV_BF16:
        return attend(NKV_BF16, a);
    default:
        return attend(NKV_Q8_0, a);
    }
}
