/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/common.h: random numbers that are the same everywhere, exact-size memory, elements as double. */
#ifndef NKV_TEST_KERNELS_COMMON_H
#define NKV_TEST_KERNELS_COMMON_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/kernels.h"

static uint64_t random_state = 88172645463325252u;

static inline uint32_t random_u32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

/* About normal, variance 1. */
static inline float random_normal(void)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += random_u32() / 4294967296.0;
    return (float)sum;
}

/* 64-byte aligned and of the exact size, so that AddressSanitizer sees the first byte too much; big ones (for timing)
 * in huge pages, as the library's regions are. */
static inline void *test_alloc(size_t bytes)
{
    void *memory = NULL;
    size_t align = bytes < 4u << 20 ? 64 : 2u << 20;
    if (posix_memalign(&memory, align, bytes ? bytes : 1) != 0) {
        fprintf(stderr, "out of memory: %zu bytes\n", bytes);
        exit(1);
    }
    if (align > 64)
        (void)madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

static inline float *random_floats(size_t n)
{
    float *x = test_alloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_normal();
    return x;
}

/* Element i of an array of cache rows; scale is its row's (q8_0 only). */
static inline double element(enum nkv_dtype dtype, const void *w, float scale, size_t i)
{
    switch (dtype) {
    case NKV_F32:
        return (double)((const float *)w)[i];
    case NKV_F16:
        return (double)nkv_f16_to_f32(((const uint16_t *)w)[i]);
    case NKV_BF16:
        return (double)nkv_bf16_to_f32(((const uint16_t *)w)[i]);
    default:
        return (double)scale * ((const int8_t *)w)[i];
    }
}

#endif
