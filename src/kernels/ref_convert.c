/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/ref_convert.c: element types, the reference.
 *
 * One-element conversions work on the bits of IEEE numbers, so that they mean the same on every CPU: round to nearest,
 * ties to even; overflow becomes infinity; subnormals are kept; a NaN stays a NaN, made quiet, with the upper bits of
 * its payload (what F16C does, too).
 *
 * q8_0 divides by the scale instead of multiplying by its inverse: the inverse of a tiny scale overflows, and the
 * nearest integer is then wrong.
 */
#include <math.h>
#include <string.h>

#include "kernels/tables.h"

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

float nkv_bf16_to_f32(uint16_t x)
{
    return float_of((uint32_t)x << 16);
}

uint16_t nkv_f32_to_bf16(float x)
{
    uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float nkv_f16_to_f32(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16;
    uint32_t exponent = (x >> 10) & 0x1fu;
    uint32_t fraction = x & 0x3ffu;
    if (exponent == 0) /* zero or subnormal: fraction * 2^-24 is exact in f32 */
        return float_of(sign | bits_of((float)fraction * 0x1p-24f));
    if (exponent == 31)
        return float_of(sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0));
    return float_of(sign | (exponent + 112u) << 23 | fraction << 13);
}

uint16_t nkv_f32_to_f16(float x)
{
    uint32_t bits = bits_of(x);
    uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* 65520: the tie between the largest f16 and the next step rounds to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) /* below 2^-14: adding 0.5 aligns the sum's last bit with 2^-24, the subnormal step */
        return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
    uint32_t odd = magnitude >> 13 & 1u;
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

size_t nkv_kv_row_bytes(enum nkv_dtype dtype, size_t dim)
{
    static const size_t element_bytes[NKV_DTYPE_COUNT] = {4, 2, 2, 1};
    return dim * element_bytes[dtype];
}

size_t nkv_weight_row_bytes(enum nkv_dtype dtype, size_t n)
{
    return dtype == NKV_Q8_0 ? n / 32 * 34 : nkv_kv_row_bytes(dtype, n);
}

enum nkv_dtype nkv_digest_dtype(enum nkv_dtype kv)
{
    return kv == NKV_Q8_0 ? NKV_BF16 : kv;
}

static void store_f32(size_t n_rows, size_t dim, const float *x, void *out, float *scale_out)
{
    (void)scale_out;
    memcpy(out, x, n_rows * dim * sizeof *x);
}

static void store_f16(size_t n_rows, size_t dim, const float *x, void *out, float *scale_out)
{
    (void)scale_out;
    uint16_t *y = out;
    for (size_t i = 0; i < n_rows * dim; i++)
        y[i] = nkv_f32_to_f16(x[i]);
}

static void store_bf16(size_t n_rows, size_t dim, const float *x, void *out, float *scale_out)
{
    (void)scale_out;
    uint16_t *y = out;
    for (size_t i = 0; i < n_rows * dim; i++)
        y[i] = nkv_f32_to_bf16(x[i]);
}

/* The largest magnitude of a row; NaN when an element is NaN or infinite. */
static float row_magnitude(size_t dim, const float *x)
{
    float max = 0;
    for (size_t d = 0; d < dim; d++) {
        if (!isfinite(x[d]))
            return NAN;
        max = fmaxf(max, fabsf(x[d]));
    }
    return max;
}

static int8_t quantize(float x, float scale)
{
    if (!(scale > 0)) /* a row of zeros (or below what f32 can scale), or of NaN */
        return 0;
    return (int8_t)fminf(fmaxf(rintf(x / scale), -127), 127);
}

static void store_q8_0(size_t n_rows, size_t dim, const float *x, void *out, float *scale_out)
{
    int8_t *y = out;
    for (size_t r = 0; r < n_rows; r++) {
        scale_out[r] = row_magnitude(dim, x + r * dim) / 127;
        for (size_t d = 0; d < dim; d++)
            y[r * dim + d] = quantize(x[r * dim + d], scale_out[r]);
    }
}

static void load_f32(size_t n_rows, size_t dim, const void *x, const float *scale, float *out)
{
    (void)scale;
    memcpy(out, x, n_rows * dim * sizeof *out);
}

static void load_f16(size_t n_rows, size_t dim, const void *x, const float *scale, float *out)
{
    (void)scale;
    const uint16_t *h = x;
    for (size_t i = 0; i < n_rows * dim; i++)
        out[i] = nkv_f16_to_f32(h[i]);
}

static void load_bf16(size_t n_rows, size_t dim, const void *x, const float *scale, float *out)
{
    (void)scale;
    const uint16_t *h = x;
    for (size_t i = 0; i < n_rows * dim; i++)
        out[i] = nkv_bf16_to_f32(h[i]);
}

static void load_q8_0(size_t n_rows, size_t dim, const void *x, const float *scale, float *out)
{
    const int8_t *b = x;
    for (size_t r = 0; r < n_rows; r++)
        for (size_t d = 0; d < dim; d++)
            out[r * dim + d] = scale[r] * (float)b[r * dim + d];
}

void nkv_ref_install_convert(struct nkv_kernels *kernels)
{
    kernels->store[NKV_F32] = store_f32;
    kernels->store[NKV_F16] = store_f16;
    kernels->store[NKV_BF16] = store_bf16;
    kernels->store[NKV_Q8_0] = store_q8_0;
    kernels->load[NKV_F32] = load_f32;
    kernels->load[NKV_F16] = load_f16;
    kernels->load[NKV_BF16] = load_bf16;
    kernels->load[NKV_Q8_0] = load_q8_0;
}
