/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/ref_digest.c: page digests, the reference.
 *
 * minmax (Quest; the paper): lo and hi are elements of the page, so in the page's own type they are exact. Only q8_0,
 * whose digests are bf16, rounds: lo down and hi up, because a score must stay an upper bound of q.k.
 * cuboid-mean (ArkVale): an estimate anyway, so it rounds to nearest.
 */
#include <math.h>

#include "kernels/tables.h"

static float element(enum nkv_dtype dtype, const void *k, const float *k_scale, size_t t, size_t i)
{
    switch (dtype) {
    case NKV_F32:
        return ((const float *)k)[i];
    case NKV_F16:
        return nkv_f16_to_f32(((const uint16_t *)k)[i]);
    case NKV_BF16:
        return nkv_bf16_to_f32(((const uint16_t *)k)[i]);
    default:
        return k_scale[t] * (float)((const int8_t *)k)[i];
    }
}

/* Nearest even, then one step up when that went below x. */
static uint16_t bf16_up(float x)
{
    uint16_t y = nkv_f32_to_bf16(x);
    if (!(nkv_bf16_to_f32(y) < x))
        return y;
    return (uint16_t)(y & 0x8000u ? y - 1 : y + 1);
}

static uint16_t bf16_down(float x)
{
    return bf16_up(-x) ^ 0x8000u;
}

static void put(enum nkv_dtype dtype, bool outwards, size_t dim, size_t d, float lo, float hi, void *digest_out)
{
    if (dtype == NKV_F32) {
        float *out = digest_out;
        out[d] = lo;
        out[dim + d] = hi;
        return;
    }
    uint16_t *out = digest_out;
    if (dtype == NKV_F16) {
        out[d] = nkv_f32_to_f16(lo);
        out[dim + d] = nkv_f32_to_f16(hi);
    } else {
        out[d] = outwards ? bf16_down(lo) : nkv_f32_to_bf16(lo);
        out[dim + d] = outwards ? bf16_up(hi) : nkv_f32_to_bf16(hi);
    }
}

static void digest(enum nkv_dtype dtype, enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k,
                   const float *k_scale, void *digest_out)
{
    for (size_t d = 0; d < dim; d++) {
        float lo = INFINITY, hi = -INFINITY;
        for (size_t t = 0; t < n_tokens; t++) {
            float x = element(dtype, k, k_scale, t, t * dim + d);
            lo = x < lo ? x : lo;
            hi = x > hi ? x : hi;
        }
        if (kind == NKV_DIGEST_CUBOID_MEAN) {
            float center = 0.5f * lo + 0.5f * hi, distance = 0;
            for (size_t t = 0; t < n_tokens; t++)
                distance += fabsf(element(dtype, k, k_scale, t, t * dim + d) - center);
            float radius = distance / (float)n_tokens;
            lo = center - radius;
            hi = center + radius;
        }
        put(nkv_digest_dtype(dtype), kind == NKV_DIGEST_MINMAX, dim, d, lo, hi, digest_out);
    }
}

static void digest_f32(enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k, const float *k_scale,
                       void *digest_out)
{
    digest(NKV_F32, kind, n_tokens, dim, k, k_scale, digest_out);
}

static void digest_f16(enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k, const float *k_scale,
                       void *digest_out)
{
    digest(NKV_F16, kind, n_tokens, dim, k, k_scale, digest_out);
}

static void digest_bf16(enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k, const float *k_scale,
                        void *digest_out)
{
    digest(NKV_BF16, kind, n_tokens, dim, k, k_scale, digest_out);
}

static void digest_q8_0(enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k, const float *k_scale,
                        void *digest_out)
{
    digest(NKV_Q8_0, kind, n_tokens, dim, k, k_scale, digest_out);
}

void nkv_ref_install_digest(struct nkv_kernels *kernels)
{
    kernels->digest[NKV_F32] = digest_f32;
    kernels->digest[NKV_F16] = digest_f16;
    kernels->digest[NKV_BF16] = digest_bf16;
    kernels->digest[NKV_Q8_0] = digest_q8_0;
}
