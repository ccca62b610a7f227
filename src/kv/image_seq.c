/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences in the image. The store works on its own tables; here each change is written behind it, data before what
 * names it:
 *
 *   open, fork, publish, grow, truncate with shared pages: new blocks are filled, then one store to the root
 *   close:     the root becomes 0
 *   append:    data and digests, checksums of pages that filled, then one store to the layer's commit record
 *   truncate:  the layers' commit records, one by one; the shortest layer tells
 *
 * A log of changes was rejected: it must be read from the beginning, or be cut by checkpoints that copy the tables;
 * here opening reads each sequence once, and a change writes what it changes.
 */
#include <string.h>
#include <xxhash.h>

#include "kv/image.h"

#define BIRTHS_AT_ONCE 1024u

/* Slots and chunks, an even number together. */
static uint64_t list_words(const struct image_seq *head)
{
    uint64_t n = (uint64_t)head->n_slots + head->n_chunks;

    return n + n % 2;
}

uint64_t nkv_image_seq_bytes(const struct nkv_kv_shape *shape, const struct image_seq *head)
{
    uint64_t bytes = sizeof *head + 4 * list_words(head) + 8 * (uint64_t)shape->n_layers + 8 * (uint64_t)head->n_slots;

    return head->name.name[0] ? bytes + 4 * (uint64_t)head->max_tokens : bytes;
}

struct image_seq_view nkv_image_view(const struct nkv_image *image, uint32_t block)
{
    char *at = image->blocks + (size_t)block * NKV_IMAGE_BLOCK_BYTES;
    struct image_seq_view view = {.head = (struct image_seq *)(void *)at};

    view.slots = (uint32_t *)(void *)(view.head + 1);
    view.chunks = view.slots + view.head->n_slots;
    view.commits = (_Atomic uint64_t *)(void *)(view.slots + list_words(view.head));
    view.records = (uint64_t *)(void *)(view.commits + image->super.shape.n_layers);
    view.ids = (uint32_t *)(void *)(view.records + view.head->n_slots);
    return view;
}

uint64_t nkv_image_seq_sum(const struct image_seq_view *view)
{
    size_t list_bytes = (size_t)((char *)(uintptr_t)view->commits - (char *)view->slots);
    uint64_t head = XXH3_64bits(view->head, offsetof(struct image_seq, sum));

    return XXH3_64bits_withSeed(view->slots, list_bytes, head);
}

uint32_t nkv_image_commit_check(uint32_t birth, uint32_t layer, uint32_t n_tokens)
{
    uint32_t words[3] = {birth, layer, n_tokens};

    return (uint32_t)XXH3_64bits(words, sizeof words);
}

uint64_t nkv_image_frame_sum(const struct nkv_store *store, uint32_t slot, uint32_t layer, uint32_t page)
{
    return XXH3_64bits_withSeed(nkv_store_frame(store, layer, slot), store->frame_bytes, (uint64_t)page << 32 | layer);
}

uint64_t nkv_image_record(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t page, uint64_t before)
{
    uint32_t n_layers = store->shape.n_layers, page_tokens = store->shape.page_tokens;
    const uint64_t *sums = store->image->sums + (size_t)seq->slots[page] * n_layers;
    uint64_t record = XXH3_64bits_withSeed(sums, n_layers * sizeof *sums, before);

    if (!seq->tokens)
        return record;
    return XXH3_64bits_withSeed(seq->tokens + (size_t)page * page_tokens, page_tokens * sizeof *seq->tokens, record);
}

static bool in_image(const struct nkv_store *store, const struct nkv_kv_seq *seq)
{
    return store->image && seq->place.root != NKV_PAGE_NONE;
}

static struct image_seq head_of(const struct nkv_kv_seq *seq, uint32_t n_blocks)
{
    struct image_seq head = {.birth = seq->place.birth,
                             .flags = seq->flags,
                             .max_tokens = seq->max_tokens,
                             .n_slots = seq->n_slots,
                             .n_chunks = seq->n_chunks,
                             .n_blocks = n_blocks,
                             .name = seq->name,
                             .key = seq->key};

    memcpy(head.magic, NKV_IMAGE_SEQ_MAGIC, sizeof head.magic);
    return head;
}

static int free_root(const struct nkv_image *image, uint32_t *root_out)
{
    for (uint32_t i = 0; i < image->super.n_roots; i++)
        if (image->roots[i] == 0) {
            *root_out = i;
            return 0;
        }
    FAIL(NKV_ENOSPC, "the image has room for %u sequences, and they are there: close or remove some",
         image->super.n_roots);
}

/* Numbers are put aside a thousand at a time, so that after a crash of the system none is given twice. */
static uint32_t next_birth(struct nkv_store *store)
{
    struct nkv_image *image = store->image;

    if (++image->n_births > image->state->n_births || image->n_births == 1) {
        image->state->n_births = image->n_births + BIRTHS_AT_ONCE;
        (void)nkv_image_sync_state(image);
    }
    return image->n_births;
}

int nkv_image_reserve(struct nkv_store *store, struct nkv_kv_seq *seq)
{
    struct nkv_image *image = store->image;
    struct nkv_image_place place = seq->place;
    struct image_seq head;
    uint64_t n_blocks;
    struct image_seq_view view;

    if (!image || seq->flags & (NKV_NO_PAGES | NKV_SLOTS)) {
        seq->place.root = NKV_PAGE_NONE;
        return 0;
    }
    head = head_of(seq, 0);
    n_blocks = (nkv_image_seq_bytes(&store->shape, &head) + NKV_IMAGE_BLOCK_BYTES - 1) / NKV_IMAGE_BLOCK_BYTES;
    if (place.birth == 0)
        TRY(free_root(image, &place.root));
    if (n_blocks > image->block_pool.n || !nkv_pool_take_run(&image->block_pool, (uint32_t)n_blocks, &place.block))
        FAIL(NKV_ENOSPC, "the image's sequence tables have no room for one of %u tokens: close or remove some",
             seq->max_tokens);
    place.n_blocks = (uint32_t)n_blocks;
    place.birth = place.birth ? place.birth : next_birth(store);
    seq->place = place;
    head = head_of(seq, place.n_blocks);
    *nkv_image_view(image, place.block).head = head;
    view = nkv_image_view(image, place.block);
    if (nkv_seq_is_published(seq)) {
        memset(view.ids, 0, seq->max_tokens * sizeof *view.ids);
        seq->tokens = view.ids;
    }
    return 0;
}

int nkv_image_renew(struct nkv_store *store, struct nkv_kv_seq *seq)
{
    const uint32_t *ids = seq->tokens;

    if (!in_image(store, seq))
        return 0;
    TRY(nkv_image_reserve(store, seq));
    if (ids)
        memcpy(seq->tokens, ids, seq->max_tokens * sizeof *ids);
    return 0;
}

static void put_commit(_Atomic uint64_t *commit, uint32_t birth, uint32_t layer, uint32_t n_tokens)
{
    struct image_commit record = {n_tokens, nkv_image_commit_check(birth, layer, n_tokens)};
    uint64_t word;

    memcpy(&word, &record, sizeof word);
    atomic_store_explicit(commit, word, memory_order_release);
}

void nkv_image_enter(struct nkv_store *store, struct nkv_kv_seq *seq)
{
    struct nkv_image *image = store->image;
    struct image_seq_view view;

    if (!in_image(store, seq))
        return;
    *nkv_image_view(image, seq->place.block).head = head_of(seq, seq->place.n_blocks);
    view = nkv_image_view(image, seq->place.block);
    memcpy(view.slots, seq->slots, seq->n_slots * sizeof *view.slots);
    memcpy(view.chunks, seq->chunks, seq->n_chunks * sizeof *view.chunks);
    if ((seq->n_slots + seq->n_chunks) % 2)
        view.chunks[seq->n_chunks] = 0;
    for (uint32_t layer = 0; layer < store->shape.n_layers; layer++)
        put_commit(&view.commits[layer], seq->place.birth, layer, seq->lengths[layer]);
    view.head->sum = nkv_image_seq_sum(&view);
    nkv_image_record_pages(store, seq, 0);
    atomic_store_explicit(&image->roots[seq->place.root], (view.head->sum << 32) | (seq->place.block + 1),
                          memory_order_release);
}

void nkv_image_drop_blocks(struct nkv_store *store, struct nkv_image_place place)
{
    if (!store->image || place.root == NKV_PAGE_NONE)
        return;
    for (uint32_t i = 0; i < place.n_blocks; i++)
        nkv_pool_drop(&store->image->block_pool, place.block + i);
}

void nkv_image_forget(struct nkv_store *store, const struct nkv_kv_seq *seq)
{
    if (!in_image(store, seq))
        return;
    atomic_store_explicit(&store->image->roots[seq->place.root], 0, memory_order_release);
    nkv_image_drop_blocks(store, seq->place);
}

void nkv_image_rekey(struct nkv_store *store, const struct nkv_kv_seq *seq)
{
    if (in_image(store, seq))
        atomic_store_explicit(&nkv_image_view(store->image, seq->place.block).head->key, seq->key,
                              memory_order_release);
}

void nkv_image_commit(struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer)
{
    if (in_image(store, seq))
        put_commit(&nkv_image_view(store->image, seq->place.block).commits[layer], seq->place.birth, layer,
                   seq->lengths[layer]);
}

void nkv_image_seal(struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t page0,
                    uint32_t page_end)
{
    if (!in_image(store, seq))
        return;
    for (uint32_t page = page0; page < page_end; page++)
        store->image->sums[(size_t)seq->slots[page] * store->shape.n_layers + layer] =
            nkv_image_frame_sum(store, seq->slots[page], layer, page);
}

void nkv_image_record_pages(struct nkv_store *store, struct nkv_kv_seq *seq, uint32_t page0)
{
    uint32_t n_full, *n = &seq->place.n_recorded;
    uint64_t *records;

    if (!in_image(store, seq))
        return;
    n_full = nkv_seq_shortest_layer(store, seq) / store->shape.page_tokens;
    *n = *n < page0 ? *n : page0;
    *n = *n < n_full ? *n : n_full; /* it was truncated */
    records = nkv_image_view(store->image, seq->place.block).records;
    for (; *n < n_full; ++*n)
        records[*n] = nkv_image_record(store, seq, *n, *n ? records[*n - 1] : 0);
}

void nkv_image_touch_slot(struct nkv_store *store, uint32_t slot)
{
    if (store->image)
        store->image->dirty_slots[slot] = 1;
}

void nkv_image_touch_chunk(struct nkv_store *store, uint32_t chunk)
{
    if (store->image)
        store->image->dirty_chunks[chunk] = 1;
}
