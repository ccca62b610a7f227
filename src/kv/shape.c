/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes of pages, digests and sequences: the one place that turns a shape into bytes. The store allocates by these
 * figures and rounds nothing beyond them, so the estimate before opening is what a sequence is charged.
 */
#include "kernels/kernels.h"
#include "kv/store_private.h"

uint64_t nkv_page_bytes(const struct nkv_kv_shape *shape, uint32_t n_kv_heads_in_unit)
{
    uint64_t rows = 2 * (uint64_t)n_kv_heads_in_unit * shape->page_tokens;
    uint64_t row_bytes = nkv_kv_row_bytes(shape->dtype, shape->head_dim);

    return nkv_align64(rows * (row_bytes + (shape->dtype == NKV_Q8_0 ? sizeof(float) : 0)));
}

uint64_t nkv_digest_bytes(const struct nkv_kv_shape *shape)
{
    return 2 * nkv_kv_row_bytes(nkv_digest_dtype(shape->dtype), shape->head_dim);
}

void nkv_store_size(const struct nkv_kv_shape *shape, struct nkv_store *store_out)
{
    *store_out = (struct nkv_store){.shape = *shape};
    store_out->row_bytes = nkv_kv_row_bytes(shape->dtype, shape->head_dim);
    store_out->frame_bytes = nkv_page_bytes(shape, shape->n_kv_heads);
    store_out->page_bytes = store_out->frame_bytes * shape->n_layers;
    store_out->digest_bytes = nkv_digest_bytes(shape);
    store_out->run_bytes = store_out->digest_bytes * NKV_DIGEST_CHUNK_PAGES;
    store_out->chunk_bytes = store_out->run_bytes * shape->n_kv_heads * shape->n_layers;
}

static uint64_t ceil_div(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

int nkv_kv_estimate(const struct nkv_kv_shape *shape, uint32_t max_tokens, struct nkv_kv_estimate *estimate_out)
{
    struct nkv_store size;
    struct nkv_kv_estimate estimate;
    uint64_t n_pages, n_chunks;

    TRY(nkv_kv_shape_check(shape));
    nkv_store_size(shape, &size);
    n_pages = ceil_div(max_tokens, shape->page_tokens);
    n_chunks = ceil_div(max_tokens / shape->page_tokens, NKV_DIGEST_CHUNK_PAGES);
    estimate.page_bytes = size.page_bytes;
    if (__builtin_mul_overflow(n_pages, size.page_bytes, &estimate.kv_bytes) ||
        __builtin_mul_overflow(n_chunks, size.chunk_bytes, &estimate.digest_bytes) ||
        __builtin_add_overflow(estimate.kv_bytes, estimate.digest_bytes, &estimate.total_bytes))
        FAIL(NKV_EINVAL, "%u tokens of this shape take more than 2^64 bytes: ask for fewer", max_tokens);
    *estimate_out = estimate;
    return 0;
}
