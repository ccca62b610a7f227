/* SPDX-License-Identifier: Apache-2.0 */
/* model/ops.h: what a decoder does to the rows of single tokens between the dense layers. */
#ifndef NKV_MODEL_OPS_H
#define NKV_MODEL_OPS_H

#include <nearkv/types.h>

/* out[i] = weight[i] * x[i] / sqrt(mean(x^2) + eps); out may be x. */
void nkv_rms_norm(size_t n, const float *x, const float *weight, float eps, float *out);
/* x += y */
void nkv_add(size_t n, const float *y, float *x);
/* gate[i] = silu(gate[i]) * up[i]; silu(x) = x / (1 + exp(-x)) */
void nkv_silu_mul(size_t n, const float *up, float *gate);

/* cos_sin_out [n_frequencies][2] of the angles position * frequency[i]. */
void nkv_rope_angles(uint32_t position, uint32_t n_frequencies, const double *frequency, float *cos_sin_out);
/* Rotates n_frequencies pairs of each of n_heads heads x [n_heads][head_dim]: (i, i + n_frequencies) with `halves`,
 * else (2i, 2i + 1). */
void nkv_rope(uint32_t n_heads, uint32_t head_dim, uint32_t n_frequencies, bool halves, const float *cos_sin, float *x);

#endif
