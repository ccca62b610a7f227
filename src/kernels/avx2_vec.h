/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx2_vec.h: 8 floats, and cache elements from and to them. The bodies in vec_*.h are written over these
 * names; kernels/avx512_vec.h defines the same with 16 floats.
 */
#ifndef NKV_KERNELS_AVX2_VEC_H
#define NKV_KERNELS_AVX2_VEC_H

#include <immintrin.h>
#include <string.h>

#include "kernels/kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8 };
typedef __m256 vec;

INLINE vec vec_set1(float x)
{
    return _mm256_set1_ps(x);
}

INLINE vec vec_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}

INLINE vec vec_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}

INLINE vec vec_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}

INLINE vec vec_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}

INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* b where a is NaN. */
INLINE vec vec_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}

INLINE vec vec_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

INLINE vec vec_abs(vec a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}

INLINE vec vec_neg(vec a)
{
    return _mm256_xor_ps(_mm256_set1_ps(-0.0f), a);
}

/* The larger magnitude by its bits: NaN > infinity > any number. */
INLINE vec vec_max_magnitude(vec a, vec x)
{
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(vec_abs(x))));
}

/* The smallest bf16 that is not below a, as f32. */
INLINE vec vec_bf16_up(vec a)
{
    __m256i bits = _mm256_castps_si256(a);
    __m256i carry = _mm256_andnot_si256(_mm256_srai_epi32(bits, 31), _mm256_set1_epi32(0xffff));
    return _mm256_castsi256_ps(
        _mm256_and_si256(_mm256_add_epi32(bits, carry), _mm256_set1_epi32((int32_t)0xffff0000u)));
}

INLINE float vec_sum(vec a)
{
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* Elements i.. of an array of dtype; q8_0: the integers, not scaled. */
INLINE vec vec_load(enum nkv_dtype dtype, const void *base, size_t i)
{
    switch (dtype) {
    case NKV_F32:
        return _mm256_loadu_ps((const float *)base + i);
    case NKV_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)base + i)));
    case NKV_BF16: {
        __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)base + i));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    default: {
        __m128i bytes = _mm_loadl_epi64((const __m128i *)((const int8_t *)base + i));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
    }
}

/* n < LANES elements; the other lanes are 0. */
INLINE vec vec_load_part(enum nkv_dtype dtype, const void *base, size_t i, size_t n)
{
    float part[LANES] = {0};
    size_t size = nkv_kv_row_bytes(dtype, 1);
    memcpy(part, (const char *)base + i * size, n * size);
    return vec_load(dtype, part, 0);
}

INLINE __m128i bf16_of(vec a)
{
    __m256i bits = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

/* q8_0: a is within [-127, 127] already. */
INLINE void vec_store(enum nkv_dtype dtype, void *base, size_t i, vec a)
{
    switch (dtype) {
    case NKV_F32:
        _mm256_storeu_ps((float *)base + i, a);
        break;
    case NKV_F16:
        _mm_storeu_si128((__m128i *)((uint16_t *)base + i), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
        break;
    case NKV_BF16:
        _mm_storeu_si128((__m128i *)((uint16_t *)base + i), bf16_of(a));
        break;
    default: {
        __m256i words = _mm256_cvtps_epi32(a);
        __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storel_epi64((__m128i *)((int8_t *)base + i), _mm_packs_epi16(shorts, shorts));
        break;
    }
    }
}

INLINE void vec_store_part(enum nkv_dtype dtype, void *base, size_t i, size_t n, vec a)
{
    float part[LANES];
    size_t size = nkv_kv_row_bytes(dtype, 1);
    vec_store(dtype, part, 0, a);
    memcpy((char *)base + i * size, part, n * size);
}

/* 32 weights of a GGUF block, scaled. */
INLINE void vec_load_block(const void *block, vec *w)
{
    int16_t half;
    memcpy(&half, block, sizeof half);
    vec scale = _mm256_cvtph_ps(_mm_set1_epi16(half));
    for (size_t i = 0; i < 4; i++)
        w[i] = _mm256_mul_ps(scale, vec_load(NKV_Q8_0, (const char *)block + 2, i * LANES));
}

/* The sum of 64-bit words. */
INLINE uint64_t vec_sum_words(size_t bytes, const char *memory)
{
    __m256i sum[8] = {0};
    for (size_t i = 0; i < bytes; i += 256)
        for (size_t j = 0; j < 8; j++) {
            __builtin_prefetch(memory + i + j * 32 + 2048);
            sum[j] = _mm256_add_epi64(sum[j], _mm256_loadu_si256((const __m256i *)(memory + i + j * 32)));
        }
    for (size_t j = 1; j < 8; j++)
        sum[0] = _mm256_add_epi64(sum[0], sum[j]);
    uint64_t words[4], total = 0;
    _mm256_storeu_si256((__m256i *)words, sum[0]);
    for (size_t j = 0; j < 4; j++)
        total += words[j];
    return total;
}

#endif
