/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/ref_matvec.c: weights times vectors, the reference. Sums are held in double; every y[b][r] is one dot
 * product, so no result depends on how rows or vectors are split among calls (the fast versions keep that).
 */
#include <string.h>

#include "kernels/tables.h"

static float weight_f32(const void *row, size_t c)
{
    return ((const float *)row)[c];
}

static float weight_f16(const void *row, size_t c)
{
    return nkv_f16_to_f32(((const uint16_t *)row)[c]);
}

static float weight_bf16(const void *row, size_t c)
{
    return nkv_bf16_to_f32(((const uint16_t *)row)[c]);
}

/* GGUF's block: an f16 scale, then 32 int8. */
static float weight_q8_0(const void *row, size_t c)
{
    const char *block = (const char *)row + c / 32 * 34;
    uint16_t scale;
    memcpy(&scale, block, sizeof scale);
    return nkv_f16_to_f32(scale) * (float)(int8_t)block[2 + c % 32];
}

static void matvec(enum nkv_dtype dtype, float (*weight)(const void *, size_t), const void *w, size_t n_cols, size_t r0,
                   size_t r1, size_t n_batch, const float *x, float *y, size_t ldy)
{
    size_t row_bytes = nkv_weight_row_bytes(dtype, n_cols);
    for (size_t r = r0; r < r1; r++) {
        const char *row = (const char *)w + r * row_bytes;
        for (size_t b = 0; b < n_batch; b++) {
            double sum = 0;
            for (size_t c = 0; c < n_cols; c++)
                sum += (double)weight(row, c) * (double)x[b * n_cols + c];
            y[b * ldy + r] = (float)sum;
        }
    }
}

static void matvec_f32(const void *w, size_t n_cols, size_t r0, size_t r1, size_t n_batch, const float *x, float *y,
                       size_t ldy)
{
    matvec(NKV_F32, weight_f32, w, n_cols, r0, r1, n_batch, x, y, ldy);
}

static void matvec_f16(const void *w, size_t n_cols, size_t r0, size_t r1, size_t n_batch, const float *x, float *y,
                       size_t ldy)
{
    matvec(NKV_F16, weight_f16, w, n_cols, r0, r1, n_batch, x, y, ldy);
}

static void matvec_bf16(const void *w, size_t n_cols, size_t r0, size_t r1, size_t n_batch, const float *x, float *y,
                        size_t ldy)
{
    matvec(NKV_BF16, weight_bf16, w, n_cols, r0, r1, n_batch, x, y, ldy);
}

static void matvec_q8_0(const void *w, size_t n_cols, size_t r0, size_t r1, size_t n_batch, const float *x, float *y,
                        size_t ldy)
{
    matvec(NKV_Q8_0, weight_q8_0, w, n_cols, r0, r1, n_batch, x, y, ldy);
}

static uint64_t read_words(size_t bytes, const void *memory)
{
    const uint64_t *words = memory;
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes / sizeof *words; i++)
        sum += words[i];
    return sum;
}

void nkv_ref_install_matvec(struct nkv_kernels *kernels)
{
    kernels->matvec[NKV_F32] = matvec_f32;
    kernels->matvec[NKV_F16] = matvec_f16;
    kernels->matvec[NKV_BF16] = matvec_bf16;
    kernels->matvec[NKV_Q8_0] = matvec_q8_0;
    kernels->read = read_words;
}
