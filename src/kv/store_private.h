/* SPDX-License-Identifier: Apache-2.0 */
/* kv/store_private.h: the store's insides, shared by the files of kv. */
#ifndef NKV_KV_STORE_PRIVATE_H
#define NKV_KV_STORE_PRIVATE_H

#include "base/mem.h"
#include "kv/pool.h"
#include "kv/store.h"

struct nkv_store {
    struct nkv_kv_shape shape;
    uint64_t capacity_bytes;
    size_t row_bytes;    /* K or V of one token and head */
    size_t frame_bytes;  /* one page of one layer */
    size_t page_bytes;   /* one page of all layers */
    size_t digest_bytes; /* lo and hi of one page and head */
    size_t run_bytes;    /* digests of one chunk, layer and head */
    size_t chunk_bytes;
    uint32_t extent_shift;
    struct nkv_region memory; /* extents, then chunks; empty when they are in an image */
    struct nkv_image *image;  /* NULL: anonymous memory */
    char *frames, *chunks;
    struct nkv_pool slot_pool, chunk_pool; /* each large enough for the whole capacity */
    struct nkv_kv_seq **table;             /* open addressing by key, 2^table_shift entries, at most half full */
    uint32_t table_shift, n_seqs;
    uint32_t n_lost;               /* sequences of the image that a crash of the system took */
    uint32_t next_detached;        /* the id that the next detached sequence gets, if it is free */
    struct nkv_kv_client *clients; /* [NKV_STORE_CLIENTS] */
    struct nkv_kv_client own_clients[NKV_STORE_CLIENTS];
};

/* Pools and table for so many slots and chunks. State after a failure: nkv_store_free is right. */
int nkv_store_open_tables(struct nkv_store *store, uint32_t n_slots, uint32_t n_chunks);
/* Frees the process's part of a store; an image stays as it is. */
void nkv_store_free(struct nkv_store *store);
/* Unmaps the image. */
void nkv_image_close(struct nkv_store *store);
/* Syncs the image and marks it as closed in order. */
void nkv_image_close_clean(struct nkv_store *store);
/* Frames of one layer that lie together. */
uint32_t nkv_store_extent_shift(size_t frame_bytes);

/* ---- The image's part of a change (image_seq.c). Nothing happens for a sequence that is in no image. ---- */

/* Takes a root and blocks for a new sequence, or blocks alone for one that has a root, and gives it a place for its
 * token ids. returns: 0, NKV_ENOSPC. */
int nkv_image_reserve(struct nkv_store *store, struct nkv_kv_seq *seq);
/* The same for a sequence that is in the image and will be entered anew; its ids are copied. */
int nkv_image_renew(struct nkv_store *store, struct nkv_kv_seq *seq);
/* Writes the sequence to its blocks; from here on it exists in the image, in place of whatever had its root. */
void nkv_image_enter(struct nkv_store *store, struct nkv_kv_seq *seq);
/* Gives back blocks that no root names any more. */
void nkv_image_drop_blocks(struct nkv_store *store, struct nkv_image_place place);
/* From here on the sequence does not exist in the image. */
void nkv_image_forget(struct nkv_store *store, const struct nkv_kv_seq *seq);
void nkv_image_rekey(struct nkv_store *store, const struct nkv_kv_seq *seq);
/* Says that `layer` holds the tokens that seq->lengths tells. */
void nkv_image_commit(struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer);
/* Checksums of pages that filled in one layer. */
void nkv_image_seal(struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t page0,
                    uint32_t page_end);
/* Records of pages that are full in every layer, for those from page0 on that have none or whose ids changed. */
void nkv_image_record_pages(struct nkv_store *store, struct nkv_kv_seq *seq, uint32_t page0);
/* Something was written there. */
void nkv_image_touch_slot(struct nkv_store *store, uint32_t slot);
void nkv_image_touch_chunk(struct nkv_store *store, uint32_t chunk);

/* Sizes that follow from a shape; everything else 0. */
void nkv_store_size(const struct nkv_kv_shape *shape, struct nkv_store *store_out);

/* of pages and chunks with references */
uint64_t nkv_store_used_bytes(const struct nkv_store *store);
/* Is there room for so many more? returns: 0, or NKV_ENOSPC saying how much is missing. Takes nothing. */
int nkv_store_charge(const struct nkv_store *store, uint64_t n_slots, uint64_t n_chunks);

/*
 * Puts in a sequence's place one of the same pages and tokens for head's key, name and max_tokens (at least as many),
 * where it is published with n_ids new ids at its beginning.
 * returns: 0, NKV_ENOSPC, NKV_ENOMEM: nothing changed.
 */
int nkv_store_seq_remake(struct nkv_store *store, struct nkv_kv_seq *old, struct nkv_kv_seq head, const uint32_t *ids,
                         uint32_t n_ids, struct nkv_kv_seq **seq_out);
/* Closes the sequences of each owner that is_one. returns: how many. */
uint32_t nkv_store_close_where(struct nkv_store *store,
                               bool (*is_one)(const struct nkv_store *store, uint32_t owner, uint32_t arg),
                               uint32_t arg);
/* Clients that a process before had: absent until they come back. */
void nkv_store_clients_open(struct nkv_store *store);
/* Is there a client that uses this owner's sequences? Not of those that nobody has, and not an absent one. */
bool nkv_store_has_client(const struct nkv_store *store, uint32_t owner);
/* Gives a sequence another key, which nobody has. */
void nkv_store_rekey(struct nkv_store *store, struct nkv_kv_seq *seq, uint64_t key);
/* Takes a published sequence from its client (named.c). */
void nkv_store_detach(struct nkv_store *store, struct nkv_kv_seq *seq);
/* Frees all that a sequence holds, published or not. */
void nkv_store_free_seq(struct nkv_store *store, struct nkv_kv_seq *seq);
/* Tokens that every layer holds. */
uint32_t nkv_seq_shortest_layer(const struct nkv_store *store, const struct nkv_kv_seq *seq);

/* The sequence table. insert: pre: its key is not in it. */
int nkv_store_table_reserve(struct nkv_store *store);
void nkv_store_table_insert(struct nkv_store *store, struct nkv_kv_seq *seq);
void nkv_store_table_remove(struct nkv_store *store, uint64_t key);

static inline char *nkv_store_frame(const struct nkv_store *store, uint32_t layer, uint32_t slot)
{
    uint32_t shift = store->extent_shift;
    size_t extent = (size_t)(slot >> shift) * store->shape.n_layers + layer;
    size_t index = (extent << shift) + (slot & ((1u << shift) - 1));

    return store->frames + index * store->frame_bytes;
}

static inline char *nkv_store_run(const struct nkv_store *store, uint32_t chunk, uint32_t layer, uint32_t kv_head)
{
    size_t run = ((size_t)chunk * store->shape.n_layers + layer) * store->shape.n_kv_heads + kv_head;

    return store->chunks + run * store->run_bytes;
}

static inline bool nkv_seq_has_digests(const struct nkv_kv_seq *seq)
{
    return !(seq->flags & (NKV_NO_DIGEST | NKV_SLOTS));
}

#endif
