/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kv/rows.h: random numbers, and rows of K and V that tell which token they belong to. */
#ifndef NKV_TESTS_KV_ROWS_H
#define NKV_TESTS_KV_ROWS_H

#include <stdbool.h>
#include <stdint.h>

static inline uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline uint32_t below(uint64_t *state, uint32_t n)
{
    return (uint32_t)(next_random(state) % n);
}

static inline float cell(uint32_t number, uint32_t head, uint32_t d, bool is_v)
{
    return (float)(number % 4096) + (float)head / 16 + (float)d / 256 + (is_v ? 0.5f : 0);
}

/* [dim] each */
static inline void fill_rows(uint32_t number, uint32_t head, uint32_t dim, float *k, float *v)
{
    for (uint32_t d = 0; d < dim; d++) {
        k[d] = cell(number, head, d, false);
        v[d] = cell(number, head, d, true);
    }
}

#endif
