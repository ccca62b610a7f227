/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512_attend.h: what the AVX-512 attend files share.
 */
#ifndef NKV_KERNELS_AVX512_ATTEND_H
#define NKV_KERNELS_AVX512_ATTEND_H

#include <immintrin.h>
#include <math.h>
#include <stddef.h>

#include "kernels/kernels.h"

/* Inlined so that dtype and sizes become constants: one body makes the loops of every element type. */
#define NKV_INLINE static inline __attribute__((always_inline))

/* Before a loop over an array of vectors: only when it is unrolled whole does the array live in registers. */
#ifdef __clang__
#define NKV_UNROLL _Pragma("clang loop unroll(full)")
#else
#define NKV_UNROLL _Pragma("GCC unroll 16")
#endif

/* A mask of the lowest n lanes, all sixteen for n >= 16. */
NKV_INLINE __mmask16 nkv_mask_below(size_t n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u);
}

/*
 * exp(x), relative error below 2e-7 for results that are normal; 0 for x < -104 and -inf; NaN stays NaN. x = n ln 2 +
 * r, |r| <= ln 2 / 2, and a polynomial for exp(r) with the smallest relative error.
 */
NKV_INLINE __m512 nkv_exp16(__m512 x)
{
    const __m512 c2 = _mm512_set1_ps(4.999999341e-1f), c3 = _mm512_set1_ps(1.666652011e-1f),
                 c4 = _mm512_set1_ps(4.166839422e-2f), c5 = _mm512_set1_ps(8.368780429e-3f),
                 c6 = _mm512_set1_ps(1.381446674e-3f), one = _mm512_set1_ps(1);
    x = _mm512_max_ps(_mm512_set1_ps(-105), x); /* in this order NaN passes */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_fmadd_ps(c6, r, c5);
    p = _mm512_fmadd_ps(p, r, c4);
    p = _mm512_fmadd_ps(p, r, c3);
    p = _mm512_fmadd_ps(p, r, c2);
    p = _mm512_fmadd_ps(p, r, one);
    p = _mm512_fmadd_ps(p, r, one);
    return _mm512_scalef_ps(p, n);
}

/* Sums or largest of pairs of lanes that a shuffle brought together. */
NKV_INLINE __m512 nkv_combine(bool max, __m512 a, __m512 b)
{
    return max ? _mm512_max_ps(a, b) : _mm512_add_ps(a, b);
}

/* Lane i of the result is the sum (or the largest) of the lanes of x[i]. */
NKV_INLINE __m512 nkv_reduce16(bool max, const __m512 x[16])
{
    __m512 pair[8], quad[4], eight[2];
    for (int i = 0; i < 8; i++)
        pair[i] =
            nkv_combine(max, _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(pair[2 * i]), b = _mm512_castps_pd(pair[2 * i + 1]);
        quad[i] =
            nkv_combine(max, _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    for (int i = 0; i < 2; i++)
        eight[i] = nkv_combine(max, _mm512_shuffle_f32x4(quad[2 * i], quad[2 * i + 1], 0x88),
                               _mm512_shuffle_f32x4(quad[2 * i], quad[2 * i + 1], 0xdd));
    return nkv_combine(max, _mm512_shuffle_f32x4(eight[0], eight[1], 0x88),
                       _mm512_shuffle_f32x4(eight[0], eight[1], 0xdd));
}

NKV_INLINE __m512 nkv_sum16(const __m512 x[16])
{
    return nkv_reduce16(false, x);
}

NKV_INLINE __m512 nkv_max16(const __m512 x[16])
{
    return nkv_reduce16(true, x);
}

/* Sixteen elements, or eight and zeros, as f32. */
NKV_INLINE __m512 nkv_load16(enum nkv_dtype dtype, const char *row, size_t d)
{
    if (dtype == NKV_F32)
        return _mm512_loadu_ps((const float *)row + d);
    if (dtype == NKV_F16)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row + 2 * d)));
    if (dtype == NKV_BF16)
        return _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(row + 2 * d))), 16));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(row + d))));
}

NKV_INLINE __m512 nkv_load8(enum nkv_dtype dtype, const char *row, size_t d)
{
    __m256 x;
    if (dtype == NKV_F32)
        x = _mm256_loadu_ps((const float *)row + d);
    else if (dtype == NKV_F16)
        x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + 2 * d)));
    else if (dtype == NKV_BF16)
        x = _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(row + 2 * d))), 16));
    else
        x = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + d))));
    return _mm512_zextps256_ps512(x);
}

NKV_INLINE size_t nkv_element_bytes(enum nkv_dtype dtype)
{
    return dtype == NKV_F32 ? 4 : dtype == NKV_Q8_0 ? 1 : 2;
}

NKV_INLINE size_t nkv_tokens_seen(const struct nkv_attend *a, size_t row)
{
    return a->visible != NULL && a->visible[row] < a->n_tokens ? a->visible[row] : a->n_tokens;
}

/*
 * Into the L2 cache: it takes more lines in flight than L1, where prefetching stays at half of memory's rate. A few
 * lines at a time, spread over the arithmetic: a burst fills the miss buffers, and the next load waits for memory.
 */
NKV_INLINE void nkv_prefetch(const char *at, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch(at + i, _MM_HINT_T1);
}

/*
 * Scores of n tokens to weights, of one row: m, l, and in keep_out what o must be multiplied by. score is read up to
 * the next multiple of 16. scale [n] or NULL multiplies the weights (not l).
 */
NKV_INLINE void nkv_weigh(size_t n, const float *scale, float *score, float *m, float *l, float *keep_out)
{
    const __m512 none = _mm512_set1_ps(-INFINITY);
    __m512 top = _mm512_set1_ps(*m), sum = _mm512_setzero_ps();
    for (size_t t = 0; t < n; t += 16) {
        __m512 s = _mm512_mask_mov_ps(none, nkv_mask_below(n - t), _mm512_load_ps(score + t));
        _mm512_store_ps(score + t, s);
        top = _mm512_max_ps(top, s);
    }
    float new_m = _mm512_reduce_max_ps(top);
    __m512 shift = _mm512_set1_ps(new_m == -INFINITY ? 0 : new_m);
    for (size_t t = 0; t < n; t += 16) {
        __m512 w = nkv_exp16(_mm512_sub_ps(_mm512_load_ps(score + t), shift));
        sum = _mm512_add_ps(sum, w);
        if (scale != NULL)
            w = _mm512_mul_ps(w, _mm512_maskz_loadu_ps(nkv_mask_below(n - t), scale + t));
        _mm512_store_ps(score + t, w);
    }
    float keep = 1; /* mostly: in a long context the maximum seldom moves */
    if (new_m != *m)
        keep = _mm512_cvtss_f32(nkv_exp16(_mm512_sub_ps(_mm512_set1_ps(*m), shift)));
    *l = *l * keep + _mm512_reduce_add_ps(sum);
    *m = new_m;
    *keep_out = keep;
}

/*
 * Folds the page into many rows. returns: false when it must be done in groups of rows that see the same tokens instead
 * (V holds values that are not finite, which a row that does not see them must not touch); nothing is changed then.
 */
bool nkv_avx512_attend_many(enum nkv_dtype dtype, const struct nkv_attend *a);

#endif
