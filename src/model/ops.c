/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Row operations, in plain C that compilers vectorise at any width: independent accumulators in place of one running
 * sum (which the standard forbids to reorder), and an exponential without branches or calls. They take a few percent of
 * a prefill, so that kernels of their own in each instruction set were rejected.
 *
 * Rotary angles are worked out in double: at position 2,000,000 the angle of the fastest pair has 21 bits before the
 * binary point, and a float would leave three after it.
 */
#include "model/ops.h"

#include <math.h>
#include <string.h>

#define LANES 16u

void nkv_rms_norm(size_t n, const float *x, const float *weight, float eps, float *out)
{
    float lane[LANES] = {0}, sum = 0, scale;
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++)
            lane[j] += x[i + j] * x[i + j];
    for (; i < n; i++)
        sum += x[i] * x[i];
    for (size_t j = 0; j < LANES; j++)
        sum += lane[j];
    scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (i = 0; i < n; i++)
        out[i] = weight[i] * (x[i] * scale);
}

void nkv_add(size_t n, const float *y, float *x)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

/*
 * exp(x), relative error below 2e-7 where the result is a normal number: x = k ln 2 + r, |r| <= ln 2 / 2, a polynomial
 * for exp(r), and k added to the exponent's bits. Adding 1.5 * 2^23 rounds to the integer k in the low bits of a float.
 * Clamped to [-87, 88]; NaN stays NaN.
 */
static float exp_approx(float x)
{
    const float rounder = 12582912.0f;
    float shifted, k, r, p;
    uint32_t bits, exponent;

    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    shifted = x * 1.44269504f + rounder;
    k = shifted - rounder;
    r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    memcpy(&bits, &shifted, sizeof bits);
    memcpy(&exponent, &p, sizeof exponent);
    exponent += bits << 23; /* the low bits of `shifted` are k */
    memcpy(&p, &exponent, sizeof p);
    return x == x ? p : x;
}

void nkv_silu_mul(size_t n, const float *up, float *gate)
{
    for (size_t i = 0; i < n; i++)
        gate[i] = gate[i] / (1.0f + exp_approx(-gate[i])) * up[i];
}

void nkv_rope_angles(uint32_t position, uint32_t n_frequencies, const double *frequency, float *cos_sin_out)
{
    for (uint32_t i = 0; i < n_frequencies; i++) {
        double angle = (double)position * frequency[i];

        cos_sin_out[2 * i] = (float)cos(angle);
        cos_sin_out[2 * i + 1] = (float)sin(angle);
    }
}

void nkv_rope(uint32_t n_heads, uint32_t head_dim, uint32_t n_frequencies, bool halves, const float *cos_sin, float *x)
{
    const size_t step = halves ? 1 : 2, partner = halves ? n_frequencies : 1;

    for (uint32_t h = 0; h < n_heads; h++, x += head_dim) {
        for (size_t i = 0; i < n_frequencies; i++) {
            float a = x[step * i], b = x[step * i + partner], c = cos_sin[2 * i], s = cos_sin[2 * i + 1];

            x[step * i] = a * c - b * s;
            x[step * i + partner] = a * s + b * c;
        }
    }
}
