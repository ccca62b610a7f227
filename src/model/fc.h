/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model/fc.h: the dense layers: y = W x for one vector, a few or a chunk of them, with W as it lies in the model file.
 */
#ifndef NKV_MODEL_FC_H
#define NKV_MODEL_FC_H

#include "base/team.h"

/* Row major, n_rows outputs by n_cols inputs; q8_0: blocks of 32 along the row. */
struct nkv_matrix {
    const void *data;
    enum nkv_dtype dtype;
    uint32_t n_rows, n_cols;
};

/* One product of a job: y[t][r] = sum_c w[r][c] x[t][c], y [n_tokens][w->n_rows]. */
struct nkv_fc_part {
    const struct nkv_matrix *w;
    float *y;
};

#define NKV_FC_MAX_PARTS 3u /* q, k, v */

struct nkv_fc;

/* Runs on `team` (borrowed). Inputs have at most max_tokens rows of max_cols. */
int nkv_fc_open(struct nkv_team *team, uint32_t max_tokens, uint32_t max_cols, struct nkv_fc **fc_out);
void nkv_fc_close(struct nkv_fc *fc);
/* Bytes that nkv_fc_open takes. */
uint64_t nkv_fc_bytes(uint32_t n_threads, uint32_t max_tokens, uint32_t max_cols);

/*
 * All parts share x [n_tokens][n_cols]. Bit-identical for any number of threads. returns: 0; NKV_ENOMEM (only where
 * n_tokens is large enough for the library's GEMM). blocks.
 */
int nkv_fc_run(struct nkv_fc *fc, const struct nkv_fc_part *parts, uint32_t n_parts, uint32_t n_tokens, const float *x);

/* Rows r0..r1-1 as f32, out [r1 - r0][n_cols]. */
void nkv_matrix_rows(const struct nkv_matrix *w, uint32_t r0, uint32_t r1, float *out);

/* ---- Of fc.c and fc_gemm.c: one tile of columns of y by the library, on the calling thread alone. */

struct nkv_gemm;

/* The type in which weights of dtype are multiplied here: NKV_BF16 or NKV_F32. */
enum nkv_dtype nkv_gemm_type(enum nkv_dtype dtype);
/* y [m][n] = x [m][k] w^T, w [n][k], of type bf16 or f32. A short-lived object. */
int nkv_gemm_open(enum nkv_dtype dtype, uint32_t m, uint32_t n, uint32_t k, struct nkv_gemm **gemm_out);
void nkv_gemm_close(struct nkv_gemm *gemm);
/* Bytes that a run works in. */
size_t nkv_gemm_scratch_bytes(const struct nkv_gemm *gemm);
/* Any number of threads at a time, each with a scratch of its own, 64-byte aligned. returns: 0 or NKV_ENOMEM. */
int nkv_gemm_run(const struct nkv_gemm *gemm, const void *x, const void *w, float *y, void *scratch);

#endif
