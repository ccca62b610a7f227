/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading sequences from an image, without believing it: every number is checked against the image's sizes before it is
 * used, and the tables against their checksum. Nothing is written, neither to the image nor to the store, so that
 * looking at a damaged image cannot make it worse.
 */
#include <string.h>

#include "kv/image.h"

static int check_head(const struct nkv_image *image, const struct image_seq *head, uint32_t block)
{
    struct nkv_kv_seq like = {.flags = (uint16_t)head->flags};
    uint32_t page_tokens = image->super.shape.page_tokens, n_pages = head->max_tokens / page_tokens;
    uint32_t n_chunks =
        nkv_seq_has_digests(&like) ? n_pages / NKV_DIGEST_CHUNK_PAGES + (n_pages % NKV_DIGEST_CHUNK_PAGES != 0) : 0;

    if (memcmp(head->magic, NKV_IMAGE_SEQ_MAGIC, sizeof head->magic) != 0)
        FAIL(NKV_EFORMAT, "no sequence begins at block %u", block);
    if (head->flags & ~(uint32_t)NKV_NO_DIGEST || head->max_tokens == 0 || head->birth == 0 ||
        head->n_slots != n_pages + (head->max_tokens % page_tokens != 0) || head->n_chunks != n_chunks ||
        head->n_blocks > image->super.n_blocks - block ||
        nkv_image_seq_bytes(&image->super.shape, head) > (uint64_t)head->n_blocks * NKV_IMAGE_BLOCK_BYTES)
        FAIL(NKV_EFORMAT, "the sequence at block %u contradicts itself", block);
    if (head->name.name[0] && nkv_seq_name_check(&head->name) < 0)
        FAIL(NKV_EFORMAT, "the sequence at block %u has a damaged name", block);
    return 0;
}

static int check_lists(const struct nkv_image *image, const struct image_seq_view *view, uint64_t root, uint32_t block)
{
    if (view->head->sum != nkv_image_seq_sum(view) || (uint32_t)view->head->sum != root >> 32)
        FAIL(NKV_EFORMAT, "the tables of the sequence at block %u are damaged (their checksum differs)", block);
    for (uint32_t i = 0; i < view->head->n_slots; i++)
        if (view->slots[i] >= image->super.n_slots)
            FAIL(NKV_EFORMAT, "the sequence at block %u has slot %u of %u", block, view->slots[i],
                 image->super.n_slots);
    for (uint32_t i = 0; i < view->head->n_chunks; i++)
        if (view->chunks[i] >= image->super.n_chunks)
            FAIL(NKV_EFORMAT, "the sequence at block %u has chunk %u of %u", block, view->chunks[i],
                 image->super.n_chunks);
    return 0;
}

static int read_lengths(const struct nkv_image *image, const struct image_seq_view *view, uint32_t *lengths_out)
{
    for (uint32_t layer = 0; layer < image->super.shape.n_layers; layer++) {
        uint64_t word = atomic_load(&view->commits[layer]);
        struct image_commit record;

        memcpy(&record, &word, sizeof record);
        if (record.check != nkv_image_commit_check(view->head->birth, layer, record.n_tokens) ||
            record.n_tokens > view->head->max_tokens)
            FAIL(NKV_EFORMAT, "the commit record of layer %u of a sequence is damaged", layer);
        lengths_out[layer] = record.n_tokens;
    }
    return 0;
}

int nkv_image_read_seq(const struct nkv_image *image, uint32_t root, struct nkv_kv_seq **seq_out)
{
    uint64_t word = atomic_load(&image->roots[root]);
    uint32_t block = (uint32_t)word - 1, n_layers = image->super.shape.n_layers;
    struct image_seq_view view;
    struct nkv_kv_seq *seq = NULL;
    int status;

    if (block >= image->super.n_blocks)
        FAIL(NKV_EFORMAT, "root %u leads to block %u of %u", root, block, image->super.n_blocks);
    view = nkv_image_view(image, block);
    TRY(check_head(image, view.head, block));
    TRY(check_lists(image, &view, word, block));
    TRY(nkv_alloc(1, sizeof *seq + 4 * ((size_t)view.head->n_slots + view.head->n_chunks + 2 * (size_t)n_layers),
                  &seq));
    *seq = (struct nkv_kv_seq){.key = view.head->key,
                               .id = (uint32_t)view.head->key,
                               .flags = (uint16_t)view.head->flags,
                               .max_tokens = view.head->max_tokens,
                               .n_pages = view.head->n_slots,
                               .n_slots = view.head->n_slots,
                               .n_chunks = view.head->n_chunks,
                               .name = view.head->name,
                               .place = {root, block, view.head->n_blocks, view.head->birth, 0}};
    seq->slots = (uint32_t *)(seq + 1);
    seq->chunks = seq->slots + seq->n_slots;
    seq->lengths = seq->chunks + seq->n_chunks;
    seq->tokens = nkv_seq_is_published(seq) ? view.ids : NULL;
    memcpy(seq->slots, view.slots, seq->n_slots * sizeof *seq->slots);
    memcpy(seq->chunks, view.chunks, seq->n_chunks * sizeof *seq->chunks);
    status = read_lengths(image, &view, seq->lengths);
    if (status < 0) {
        nkv_free(seq);
        return status;
    }
    *seq_out = seq;
    return 0;
}

static bool frames_are_whole(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t page)
{
    uint32_t n_layers = store->shape.n_layers;

    for (uint32_t layer = 0; layer < n_layers; layer++)
        if (store->image->sums[(size_t)seq->slots[page] * n_layers + layer] !=
            nkv_image_frame_sum(store, seq->slots[page], layer, page))
            return false;
    return true;
}

uint32_t nkv_image_whole_pages(const struct nkv_store *store, const struct nkv_kv_seq *seq)
{
    const uint64_t *records = nkv_image_view(store->image, seq->place.block).records;
    uint32_t n = nkv_seq_shortest_layer(store, seq) / store->shape.page_tokens, page = 0;

    while (page < n && records[page] == nkv_image_record(store, seq, page, page ? records[page - 1] : 0) &&
           frames_are_whole(store, seq, page))
        page++;
    return page;
}
