/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512_vec.h: 16 floats, and cache elements from and to them. The bodies in vec_*.h are written over these
 * names; kernels/avx2_vec.h defines the same with 8 floats.
 */
#ifndef NKV_KERNELS_AVX512_VEC_H
#define NKV_KERNELS_AVX512_VEC_H

#include <immintrin.h>

#include "kernels/kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };
typedef __m512 vec;

INLINE vec vec_set1(float x)
{
    return _mm512_set1_ps(x);
}

INLINE vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}

INLINE vec vec_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}

INLINE vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

INLINE vec vec_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}

INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* b where a is NaN. */
INLINE vec vec_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}

INLINE vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

INLINE vec vec_abs(vec a)
{
    return _mm512_abs_ps(a);
}

INLINE vec vec_neg(vec a)
{
    return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(a), _mm512_set1_epi32(INT32_MIN)));
}

/* The larger magnitude by its bits: NaN > infinity > any number. */
INLINE vec vec_max_magnitude(vec a, vec x)
{
    __m512i magnitude = _mm512_castps_si512(_mm512_abs_ps(x));
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), magnitude));
}

/* The smallest bf16 that is not below a, as f32. */
INLINE vec vec_bf16_up(vec a)
{
    __m512i bits = _mm512_castps_si512(a);
    __m512i carry = _mm512_andnot_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(0xffff));
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_add_epi32(bits, carry), _mm512_set1_epi32((int32_t)0xffff0000u)));
}

INLINE float vec_sum(vec a)
{
    return _mm512_reduce_add_ps(a);
}

INLINE __mmask16 first_lanes(size_t n)
{
    return (__mmask16)((1u << n) - 1);
}

/* Elements i.. of an array of dtype; q8_0: the integers, not scaled. */
INLINE vec vec_load(enum nkv_dtype dtype, const void *base, size_t i)
{
    switch (dtype) {
    case NKV_F32:
        return _mm512_loadu_ps((const float *)base + i);
    case NKV_F16:
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)base + i)));
    case NKV_BF16: {
        __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)base + i));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    default: {
        __m128i bytes = _mm_loadu_si128((const __m128i *)((const int8_t *)base + i));
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }
    }
}

/* n < LANES elements; the other lanes are 0. */
INLINE vec vec_load_part(enum nkv_dtype dtype, const void *base, size_t i, size_t n)
{
    __mmask16 mask = first_lanes(n);
    switch (dtype) {
    case NKV_F32:
        return _mm512_maskz_loadu_ps(mask, (const float *)base + i);
    case NKV_F16:
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)base + i));
    case NKV_BF16: {
        __m256i half = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)base + i);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    default: {
        __m128i bytes = _mm_maskz_loadu_epi8(mask, (const int8_t *)base + i);
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }
    }
}

/* To nearest even; not with vcvtneps2bf16, which flushes subnormals. */
INLINE __m256i bf16_of(vec a)
{
    __m512i bits = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

/* q8_0: a is within [-127, 127] already. */
INLINE void vec_store_part(enum nkv_dtype dtype, void *base, size_t i, size_t n, vec a)
{
    __mmask16 mask = first_lanes(n);
    switch (dtype) {
    case NKV_F32:
        _mm512_mask_storeu_ps((float *)base + i, mask, a);
        break;
    case NKV_F16:
        _mm256_mask_storeu_epi16((uint16_t *)base + i, mask, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
        break;
    case NKV_BF16:
        _mm256_mask_storeu_epi16((uint16_t *)base + i, mask, bf16_of(a));
        break;
    default:
        _mm_mask_storeu_epi8((int8_t *)base + i, mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
        break;
    }
}

INLINE void vec_store(enum nkv_dtype dtype, void *base, size_t i, vec a)
{
    switch (dtype) {
    case NKV_F32:
        _mm512_storeu_ps((float *)base + i, a);
        break;
    case NKV_F16:
        _mm256_storeu_si256((__m256i *)((uint16_t *)base + i), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
        break;
    case NKV_BF16:
        _mm256_storeu_si256((__m256i *)((uint16_t *)base + i), bf16_of(a));
        break;
    default:
        _mm_storeu_si128((__m128i *)((int8_t *)base + i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
        break;
    }
}

/* 32 weights of a GGUF block, scaled. */
INLINE void vec_load_block(const void *block, vec *w)
{
    const __m128i *bytes = (const __m128i *)((const char *)block + 2);
    int16_t half;
    __builtin_memcpy(&half, block, sizeof half);
    vec scale = _mm512_cvtph_ps(_mm256_set1_epi16(half));
    w[0] = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes))));
    w[1] = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes + 1))));
}

/* The sum of 64-bit words. */
INLINE uint64_t vec_sum_words(size_t bytes, const char *memory)
{
    __m512i sum[8] = {0};
    for (size_t i = 0; i < bytes; i += 512)
        for (size_t j = 0; j < 8; j++) {
            __builtin_prefetch(memory + i + j * 64 + 2048);
            sum[j] = _mm512_add_epi64(sum[j], _mm512_loadu_si512(memory + i + j * 64));
        }
    for (size_t j = 1; j < 8; j++)
        sum[0] = _mm512_add_epi64(sum[0], sum[j]);
    uint64_t words[8], total = 0;
    _mm512_storeu_si512(words, sum[0]);
    for (size_t j = 0; j < 8; j++)
        total += words[j];
    return total;
}

#endif
