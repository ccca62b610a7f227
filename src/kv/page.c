/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data of pages and digests: where they lie, rows in, packed pages in and out. All functions are pure copies into
 * places that belong to one (layer, page, KV head), so a device may spread them over threads by any of the three.
 *
 * What a page does not hold is never shown: a slot is handed from sequence to sequence without being cleared, so
 * readers clip to nkv_seq_page_tokens() and the packed form carries zeros instead.
 */
#include <string.h>

#include "kernels/kernels.h"
#include "kv/store_private.h"

uint32_t nkv_seq_layer_pages(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer)
{
    uint32_t length = seq->lengths[layer];

    if (seq->flags & NKV_SLOTS)
        return seq->n_pages;
    return length ? (length - 1) / store->shape.page_tokens + 1 : 0;
}

uint32_t nkv_seq_page_tokens(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t page)
{
    uint32_t page_tokens = store->shape.page_tokens, left;

    if (seq->flags & NKV_SLOTS)
        return page_tokens;
    left = seq->lengths[layer] - page * page_tokens;
    return left < page_tokens ? left : page_tokens;
}

struct nkv_page_view nkv_store_page(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer,
                                    uint32_t page, uint32_t kv_head)
{
    uint32_t slot = seq->slots[seq->held ? 0 : page], n_heads = store->shape.n_kv_heads;
    size_t head_bytes = store->shape.page_tokens * store->row_bytes;
    char *frame = nkv_store_frame(store, layer, slot);
    struct nkv_page_view view = {.k = frame + kv_head * head_bytes, .v = frame + (n_heads + kv_head) * head_bytes};

    if (store->shape.dtype == NKV_Q8_0) {
        view.k_scale = (float *)(void *)(frame + 2 * n_heads * head_bytes) + kv_head * store->shape.page_tokens;
        view.v_scale = view.k_scale + n_heads * store->shape.page_tokens;
    }
    return view;
}

void *nkv_store_digests(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t chunk,
                        uint32_t kv_head)
{
    return nkv_store_run(store, seq->chunks[chunk], layer, kv_head);
}

static char *digest_at(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t kv_head,
                       uint32_t page)
{
    char *run = nkv_store_run(store, seq->chunks[page / NKV_DIGEST_CHUNK_PAGES], layer, kv_head);

    return run + page % NKV_DIGEST_CHUNK_PAGES * store->digest_bytes;
}

void nkv_store_seal(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t kv_head,
                    uint32_t page)
{
    struct nkv_page_view view;

    if (!nkv_seq_has_digests(seq))
        return;
    view = nkv_store_page(store, seq, layer, page, kv_head);
    nkv_digest_build(store->shape.digest, store->shape.dtype, store->shape.page_tokens, store->shape.head_dim, view.k,
                     view.k_scale, digest_at(store, seq, layer, kv_head, page));
}

/* n rows into a page from token t on. */
static void put_rows(const struct nkv_store *store, const struct nkv_page_view *view, uint32_t t, uint32_t n,
                     const float *k, const float *v, size_t stride)
{
    void (*convert)(size_t, size_t, const float *, void *, float *) = nkv_kernels()->store[store->shape.dtype];
    size_t dim = store->shape.head_dim;

    for (uint32_t i = 0; i < n; i++, t++, k += stride, v += stride) {
        convert(1, dim, k, (char *)view->k + t * store->row_bytes, view->k_scale ? view->k_scale + t : NULL);
        convert(1, dim, v, (char *)view->v + t * store->row_bytes, view->v_scale ? view->v_scale + t : NULL);
    }
}

void nkv_store_put(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t kv_head,
                   uint32_t pos, uint32_t n_tokens, const float *k, const float *v, size_t stride)
{
    uint32_t page_tokens = store->shape.page_tokens;

    while (n_tokens > 0) {
        uint32_t page = pos / page_tokens, t = pos % page_tokens;
        uint32_t n = n_tokens < page_tokens - t ? n_tokens : page_tokens - t;
        struct nkv_page_view view = nkv_store_page(store, seq, layer, page, kv_head);

        put_rows(store, &view, t, n, k, v, stride);
        if (t + n == page_tokens)
            nkv_store_seal(store, seq, layer, kv_head, page);
        pos += n;
        n_tokens -= n;
        k += n * stride;
        v += n * stride;
    }
}

/* The parts of a packed page, and of the same heads in its frame: K, V, K scales, V scales. */
struct parts {
    char *packed[4], *frame[4];
    size_t token_bytes[4]; /* 0: no such part */
};

static struct parts find_parts(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer,
                               uint32_t page, uint32_t head0, uint32_t n_heads, char *packed)
{
    struct nkv_page_view view = nkv_store_page(store, seq, layer, page, head0);
    size_t rows = (size_t)n_heads * store->shape.page_tokens;
    size_t scale_bytes = store->shape.dtype == NKV_Q8_0 ? sizeof(float) : 0;

    return (struct parts){
        .packed = {packed, packed + rows * store->row_bytes, packed + 2 * rows * store->row_bytes,
                   packed + rows * (2 * store->row_bytes + scale_bytes)},
        .frame = {view.k, view.v, (char *)view.k_scale, (char *)view.v_scale},
        .token_bytes = {store->row_bytes, store->row_bytes, scale_bytes, scale_bytes},
    };
}

void nkv_store_page_copy(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t page,
                         uint32_t head0, uint32_t n_heads, void *packed_out)
{
    struct parts parts = find_parts(store, seq, layer, page, head0, n_heads, packed_out);
    uint32_t page_tokens = store->shape.page_tokens, n = nkv_seq_page_tokens(store, seq, layer, page);
    size_t rows = (size_t)n_heads * page_tokens, data_bytes = 2 * rows * (store->row_bytes + parts.token_bytes[2]);

    for (uint32_t i = 0; i < 4 && parts.token_bytes[i]; i++)
        for (uint32_t head = 0; head < n_heads; head++) {
            size_t head_bytes = page_tokens * parts.token_bytes[i], held_bytes = n * parts.token_bytes[i];
            char *out = parts.packed[i] + head * head_bytes;

            memcpy(out, parts.frame[i] + head * head_bytes, held_bytes);
            memset(out + held_bytes, 0, head_bytes - held_bytes);
        }
    memset((char *)packed_out + data_bytes, 0, nkv_align64(data_bytes) - data_bytes);
}

void nkv_store_page_fill(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t page,
                         uint32_t head0, uint32_t n_heads, const void *packed)
{
    struct parts parts = find_parts(store, seq, layer, page, head0, n_heads, (char *)packed);
    size_t rows = (size_t)n_heads * store->shape.page_tokens;

    for (uint32_t i = 0; i < 4 && parts.token_bytes[i]; i++)
        memcpy(parts.frame[i], parts.packed[i], rows * parts.token_bytes[i]);
}

void nkv_store_digest_copy(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer,
                           uint32_t kv_head, uint32_t page0, uint32_t n_pages, void *digests_out)
{
    for (uint32_t i = 0; i < n_pages; i++)
        memcpy((char *)digests_out + i * store->digest_bytes, digest_at(store, seq, layer, kv_head, page0 + i),
               store->digest_bytes);
}

void nkv_store_digest_fill(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer,
                           uint32_t kv_head, uint32_t page0, uint32_t n_pages, const void *digests)
{
    for (uint32_t i = 0; i < n_pages; i++)
        memcpy(digest_at(store, seq, layer, kv_head, page0 + i), (const char *)digests + i * store->digest_bytes,
               store->digest_bytes);
}
