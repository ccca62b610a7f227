/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dense layers, two ways. Few tokens (decode): the time is that of reading the weights, so every thread streams one big
 * contiguous block of rows through the matvec kernels, all parts of a job laid end to end. Many tokens (prefill): tiles
 * of TILE_ROWS weight rows by all tokens, handed out to whichever thread is free, multiplied by oneDNN (fc_gemm.c).
 *
 * Types: bf16 and q8_0 weights are multiplied as bf16 x bf16 -> f32 (x is rounded once per job, q8_0 is widened tile by
 * tile), f16 and f32 weights as f32 x f32 (f16 is widened tile by tile): bf16 would drop bits that an f16 model has.
 * Where the library has no bf16 product (CPUs without AVX-512), all are widened to f32.
 * Widened tiles live in one buffer per thread; keeping widened weights was rejected, since a tile is used for all
 * tokens of a chunk and widening it costs a few percent of multiplying it.
 *
 * Invariant: what a row or a tile computes depends on the shapes only. Shares of rows begin at multiples of ROW_GRAIN,
 * so that a kernel that treats several rows at once groups the same rows whatever the number of threads.
 */
#include "model/fc.h"

#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/kernels.h"

#define TILE_ROWS         256u
#define ROW_GRAIN         32u
#define MAX_MATVEC_TOKENS 16u /* above, the GEMM is faster although it widens or repacks every weight */
#define CONVERT_TOKENS    16u /* rows of x per task */
#define Q8_BLOCK          32u
#define Q8_BLOCK_BYTES    34u

struct nkv_fc {
    struct nkv_team *team;
    uint32_t max_tokens, max_cols;
    enum nkv_dtype type_of[NKV_DTYPE_COUNT]; /* in which weights of a type are multiplied: bf16 or f32 */
    uint16_t *x_bf16;                        /* [max_tokens][max_cols] */
    float *panels;                           /* [threads][TILE_ROWS][max_cols] */
    float *rows;                             /* [threads][max_cols]: one q8_0 row on its way to bf16 */
    float *tiles;                            /* [threads][max_tokens][TILE_ROWS]: of y, before it is put in place */
    char *scratch;                           /* [threads][scratch_bytes]: of the largest product so far */
    size_t scratch_bytes;
};

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint64_t nkv_fc_bytes(uint32_t n_threads, uint32_t max_tokens, uint32_t max_cols)
{
    return (uint64_t)max_cols * (2u * (uint64_t)max_tokens + 4u * (uint64_t)n_threads * (TILE_ROWS + 1u)) +
           4u * (uint64_t)n_threads * max_tokens * TILE_ROWS;
}

int nkv_fc_open(struct nkv_team *team, uint32_t max_tokens, uint32_t max_cols, struct nkv_fc **fc_out)
{
    const size_t n_threads = nkv_team_size(team);
    struct nkv_fc *fc;
    int status;

    TRY(nkv_alloc(1, sizeof *fc, &fc));
    fc->team = team;
    fc->max_tokens = max_tokens;
    fc->max_cols = max_cols;
    for (int dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++)
        fc->type_of[dtype] = nkv_gemm_type((enum nkv_dtype)dtype);
    status = nkv_alloc((size_t)max_tokens * max_cols, sizeof *fc->x_bf16, &fc->x_bf16);
    if (status == 0)
        status = nkv_alloc(n_threads * TILE_ROWS * max_cols, sizeof *fc->panels, &fc->panels);
    if (status == 0)
        status = nkv_alloc(n_threads * max_cols, sizeof *fc->rows, &fc->rows);
    if (status == 0)
        status = nkv_alloc(n_threads * max_tokens * TILE_ROWS, sizeof *fc->tiles, &fc->tiles);
    if (status < 0) {
        nkv_fc_close(fc);
        return status;
    }
    *fc_out = fc;
    return 0;
}

void nkv_fc_close(struct nkv_fc *fc)
{
    if (!fc)
        return;
    nkv_free(fc->scratch);
    nkv_free(fc->tiles);
    nkv_free(fc->rows);
    nkv_free(fc->panels);
    nkv_free(fc->x_bf16);
    nkv_free(fc);
}

/* ---- Widening */

static const uint8_t *row_at(const struct nkv_matrix *w, uint32_t row)
{
    return (const uint8_t *)w->data + (size_t)row * nkv_weight_row_bytes(w->dtype, w->n_cols);
}

static void widen_q8_0(const uint8_t *blocks, size_t n_cols, float *out)
{
    for (size_t c = 0; c < n_cols; c += Q8_BLOCK, blocks += Q8_BLOCK_BYTES) {
        uint16_t bits;
        float scale;

        memcpy(&bits, blocks, sizeof bits);
        scale = nkv_f16_to_f32(bits);
        for (size_t i = 0; i < Q8_BLOCK; i++)
            out[c + i] = scale * (float)(int8_t)blocks[2 + i];
    }
}

void nkv_matrix_rows(const struct nkv_matrix *w, uint32_t r0, uint32_t r1, float *out)
{
    if (w->dtype != NKV_Q8_0) {
        nkv_kernels()->load[w->dtype](r1 - r0, w->n_cols, row_at(w, r0), NULL, out);
        return;
    }
    for (uint32_t r = r0; r < r1; r++)
        widen_q8_0(row_at(w, r), w->n_cols, out + (size_t)(r - r0) * w->n_cols);
}

/* ---- Few tokens */

struct matvec_job {
    const struct nkv_fc_part *parts;
    uint32_t n_parts, n_tokens;
    uint64_t n_rows; /* of all parts */
    const float *x;
};

/* Rows r0..r1-1 of the parts laid end to end. */
static void matvec_rows(const struct matvec_job *job, uint64_t r0, uint64_t r1)
{
    const struct nkv_kernels *kernels = nkv_kernels();
    uint64_t start = 0;

    for (uint32_t i = 0; i < job->n_parts; i++) {
        const struct nkv_matrix *w = job->parts[i].w;
        uint64_t end = start + w->n_rows, lo = r0 > start ? r0 : start, hi = r1 < end ? r1 : end;

        if (lo < hi)
            kernels->matvec[w->dtype](w->data, w->n_cols, lo - start, hi - start, job->n_tokens, job->x,
                                      job->parts[i].y, w->n_rows);
        start = end;
    }
}

static void matvec_share(void *arg, uint32_t rank, uint32_t n_ranks)
{
    const struct matvec_job *job = arg;
    uint64_t n_grains = (job->n_rows + ROW_GRAIN - 1) / ROW_GRAIN;
    uint64_t r0 = n_grains * rank / n_ranks * ROW_GRAIN, r1 = n_grains * (rank + 1) / n_ranks * ROW_GRAIN;

    matvec_rows(job, r0, r1 < job->n_rows ? r1 : job->n_rows);
}

static void run_matvec(struct nkv_fc *fc, const struct nkv_fc_part *parts, uint32_t n_parts, uint32_t n_tokens,
                       const float *x)
{
    struct matvec_job job = {parts, n_parts, n_tokens, 0, x};

    for (uint32_t i = 0; i < n_parts; i++)
        job.n_rows += parts[i].w->n_rows;
    nkv_team_run(fc->team, matvec_share, &job);
}

/* ---- Many tokens */

struct product {
    const struct nkv_fc_part *part;
    enum nkv_dtype type; /* bf16 or f32: what is multiplied */
    uint32_t first_task, n_tiles;
    struct nkv_gemm *whole, *last; /* for tiles of TILE_ROWS, and for the rest (NULL: none) */
};

struct gemm_job {
    struct nkv_fc *fc;
    uint32_t n_tokens, n_cols, n_products, n_tasks;
    const float *x;
    struct product products[NKV_FC_MAX_PARTS];
    _Atomic int status;
};

static void convert_task(void *arg, uint32_t task, uint32_t rank)
{
    const struct gemm_job *job = arg;
    uint32_t t0 = task * CONVERT_TOKENS, n = min_u32(CONVERT_TOKENS, job->n_tokens - t0);

    (void)rank;
    nkv_kernels()->store[NKV_BF16](n, job->n_cols, job->x + (size_t)t0 * job->n_cols,
                                   job->fc->x_bf16 + (size_t)t0 * job->n_cols, NULL);
}

/* The tile's weights in the type that is multiplied: in place, or converted into the thread's panel. */
static const void *panel(struct nkv_fc *fc, uint32_t rank, const struct nkv_matrix *w, uint32_t r0, uint32_t n)
{
    float *out = fc->panels + (size_t)rank * TILE_ROWS * fc->max_cols;
    float *row = fc->rows + (size_t)rank * fc->max_cols;

    if (w->dtype == fc->type_of[w->dtype])
        return row_at(w, r0);
    if (fc->type_of[w->dtype] == NKV_F32) {
        nkv_matrix_rows(w, r0, r0 + n, out);
        return out;
    }
    for (uint32_t i = 0; i < n; i++) {
        nkv_matrix_rows(w, r0 + i, r0 + i + 1, row);
        nkv_kernels()->store[NKV_BF16](1, w->n_cols, row, (uint16_t *)out + (size_t)i * w->n_cols, NULL);
    }
    return out;
}

static void gemm_task(void *arg, uint32_t task, uint32_t rank)
{
    struct gemm_job *job = arg;
    const struct product *p = job->products;
    const struct nkv_matrix *w;
    uint32_t r0, n;
    float *y;
    int status;

    while (task >= p->first_task + p->n_tiles)
        p++;
    w = p->part->w;
    r0 = (task - p->first_task) * TILE_ROWS;
    n = min_u32(TILE_ROWS, w->n_rows - r0);
    y = n == w->n_rows ? p->part->y : job->fc->tiles + (size_t)rank * job->fc->max_tokens * TILE_ROWS;
    status = nkv_gemm_run(n == TILE_ROWS ? p->whole : p->last,
                          p->type == NKV_BF16 ? (const void *)job->fc->x_bf16 : (const void *)job->x,
                          panel(job->fc, rank, w, r0, n), y, job->fc->scratch + rank * job->fc->scratch_bytes);
    if (status < 0)
        atomic_store(&job->status, status);
    for (uint32_t t = 0; n < w->n_rows && t < job->n_tokens; t++)
        memcpy(p->part->y + (size_t)t * w->n_rows + r0, y + (size_t)t * n, n * sizeof *y);
}

/* The library tells only of a product that exists what it works in. */
static int reserve_scratch(struct nkv_fc *fc, const struct nkv_gemm *gemm)
{
    size_t bytes = nkv_round_up(nkv_gemm_scratch_bytes(gemm), NKV_CACHE_LINE);
    char *scratch;

    if (bytes <= fc->scratch_bytes)
        return 0;
    TRY(nkv_alloc(nkv_team_size(fc->team), bytes, &scratch));
    nkv_free(fc->scratch);
    fc->scratch = scratch;
    fc->scratch_bytes = bytes;
    return 0;
}

static int product_open(struct gemm_job *job, const struct nkv_fc_part *part, struct product *p)
{
    const struct nkv_matrix *w = part->w;
    uint32_t rest = w->n_rows % TILE_ROWS;

    *p = (struct product){.part = part, .first_task = job->n_tasks, .n_tiles = (w->n_rows + TILE_ROWS - 1) / TILE_ROWS};
    p->type = job->fc->type_of[w->dtype];
    job->n_tasks += p->n_tiles;
    job->n_products++;
    if (w->n_rows >= TILE_ROWS) {
        TRY(nkv_gemm_open(p->type, job->n_tokens, TILE_ROWS, w->n_cols, &p->whole));
        TRY(reserve_scratch(job->fc, p->whole));
    }
    if (rest) {
        TRY(nkv_gemm_open(p->type, job->n_tokens, rest, w->n_cols, &p->last));
        TRY(reserve_scratch(job->fc, p->last));
    }
    return 0;
}

static int run_gemm(struct nkv_fc *fc, const struct nkv_fc_part *parts, uint32_t n_parts, uint32_t n_tokens,
                    const float *x)
{
    struct gemm_job job = {.fc = fc, .n_tokens = n_tokens, .n_cols = parts[0].w->n_cols, .x = x};
    bool needs_bf16 = false;
    int status = 0;

    for (uint32_t i = 0; i < n_parts && status == 0; i++) {
        status = product_open(&job, &parts[i], &job.products[i]);
        needs_bf16 |= job.products[i].type == NKV_BF16;
    }
    if (status == 0 && needs_bf16)
        nkv_team_tasks(fc->team, (n_tokens + CONVERT_TOKENS - 1) / CONVERT_TOKENS, convert_task, &job);
    if (status == 0) {
        nkv_team_tasks(fc->team, job.n_tasks, gemm_task, &job);
        status = atomic_load(&job.status);
        if (status < 0) /* its message was left on a worker's thread */
            nkv_fail(status, "out of memory in oneDNN: cannot multiply %u tokens by a weight matrix", n_tokens);
    }
    for (uint32_t i = 0; i < job.n_products; i++) {
        nkv_gemm_close(job.products[i].whole);
        nkv_gemm_close(job.products[i].last);
    }
    return status;
}

int nkv_fc_run(struct nkv_fc *fc, const struct nkv_fc_part *parts, uint32_t n_parts, uint32_t n_tokens, const float *x)
{
    if (n_tokens > MAX_MATVEC_TOKENS)
        return run_gemm(fc, parts, n_parts, n_tokens, x);
    run_matvec(fc, parts, n_parts, n_tokens, x);
    return 0;
}
