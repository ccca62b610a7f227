/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512_attend.h: what the AVX-512 attend files share.
 */
#ifndef NKV_KERNELS_AVX512_ATTEND_H
#define NKV_KERNELS_AVX512_ATTEND_H

#include <immintrin.h>
#include <stddef.h>

/* A mask of the lowest n lanes, all sixteen for n >= 16. */
static inline __mmask16 nkv_mask_below(size_t n)
{
    return n >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1u);
}

/*
 * exp(x), relative error below 2e-7 for results that are normal; 0 for x < -104 and -inf; NaN stays NaN. x = n ln 2 +
 * r, |r| <= ln 2 / 2, and a polynomial for exp(r) with the smallest relative error.
 */
static inline __m512 nkv_exp16(__m512 x)
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

/* Lane i of the result is the sum of the lanes of x[i]. */
static inline __m512 nkv_sum16(const __m512 x[16])
{
    __m512 pair[8], quad[4], eight[2];
    for (int i = 0; i < 8; i++)
        pair[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(pair[2 * i]), b = _mm512_castps_pd(pair[2 * i + 1]);
        quad[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    for (int i = 0; i < 2; i++)
        eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(quad[2 * i], quad[2 * i + 1], 0x88),
                                 _mm512_shuffle_f32x4(quad[2 * i], quad[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(eight[0], eight[1], 0x88),
                         _mm512_shuffle_f32x4(eight[0], eight[1], 0xdd));
}

#endif
