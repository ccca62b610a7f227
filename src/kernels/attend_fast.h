/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/attend_fast.h: the fast `attend` functions, between the files that define them
 * ({avx2,avx512,avx512x}_attend*.c) and the files that put them into a table
 * ({avx2,avx512}_table.c). Contract: struct nkv_attend and `attend` in kernels/kernels.h.
 *
 * avx512x functions need avx512bf16 and avx512vnni; avx512_table.c installs them only when the CPU
 * has both.
 */
#ifndef NKV_KERNELS_ATTEND_FAST_H
#define NKV_KERNELS_ATTEND_FAST_H

#include <stddef.h>

struct nkv_attend;

/* Tokens that are widened to f32 at a time when there are many rows: two blocks of it are the scratch. */
enum { NKV_ATTEND_BLOCK = 32 };

void nkv_avx2_attend_f32(const struct nkv_attend *a);
void nkv_avx2_attend_f16(const struct nkv_attend *a);
void nkv_avx2_attend_bf16(const struct nkv_attend *a);
void nkv_avx2_attend_q8_0(const struct nkv_attend *a);

void nkv_avx512_attend_f32(const struct nkv_attend *a);
void nkv_avx512_attend_f16(const struct nkv_attend *a);
void nkv_avx512_attend_bf16(const struct nkv_attend *a);
void nkv_avx512_attend_q8_0(const struct nkv_attend *a);

void nkv_avx512x_attend_bf16(const struct nkv_attend *a);
void nkv_avx512x_prepare_bf16(size_t n_rows, size_t dim, const float *q, void *out);
void nkv_avx512x_attend_q8_0(const struct nkv_attend *a);
void nkv_avx512x_prepare_q8_0(size_t n_rows, size_t dim, const float *q, void *out);

#endif
