/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv/store.h: the pages and digests of sequences in one region of memory.
 *
 *   frame    one page of one layer, nkv_page_bytes(shape, KVH) bytes, 64-byte aligned:
 *            K [kv_head][token][dim], V the same, q8_0: K scales [kv_head][token] f32, V scales
 *   slot     the frames of one page in all layers; what a page id of a sequence maps to
 *   extent   2^extent_shift slots: [layer][slot of the extent] frames, so that pages with consecutive slots are one
 *            stream in each layer while a short sequence touches little memory
 *   chunk    digests of NKV_DIGEST_CHUNK_PAGES consecutive pages of one sequence: [layer][kv_head][page][2][dim]
 *
 * A sequence gets all slots and chunks that it can need when it opens: appending neither allocates nor fails for room.
 * Slots and chunks are counted references. What may still be written (slots and chunks from the first page that is not
 * full on) always belongs to one sequence; only full pages and full chunks are shared.
 *
 * A sequence is named by a key: the id that a client chose, under the number of that client (its owner). A device of
 * several clients gives each a number of its own, so that none can name another's sequences; one with a single client
 * uses 0 throughout. Messages name the id.
 *
 * Threads: functions that take a non-const store are called by one thread. The data functions (put, seal, page_copy,
 * page_fill, digest_copy, digest_fill) take a const store and may run at the same time for disjoint (layer, page,
 * head).
 */
#ifndef NKV_KV_STORE_H
#define NKV_KV_STORE_H

#include <nearkv/device.h>
#include <nearkv/nearkv.h>
#include <nearkv/types.h>

#define NKV_DIGEST_CHUNK_PAGES 64u

struct nkv_store;

/* Where the state of a sequence lies in an image (kv/image.h). */
struct nkv_image_place {
    uint32_t root, block, n_blocks; /* root NKV_PAGE_NONE: not in the image */
    uint32_t birth, n_recorded;     /* pages that have a record */
};

/* A sequence, as the device reads it. The store alone writes it. */
struct nkv_kv_seq {
    uint64_t key; /* owner << 32 | id */
    uint32_t id;
    uint16_t flags; /* NKV_NO_DIGEST, NKV_NO_PAGES, NKV_SLOTS or 0 */
    uint32_t max_tokens;
    uint32_t n_pages;         /* page ids 0 .. n_pages-1 exist */
    uint32_t n_slots;         /* entries of slots: n_pages, NKV_NO_PAGES: 1 */
    uint32_t n_chunks;        /* entries of chunks */
    uint32_t *slots;          /* page id -> slot; NKV_NO_PAGES: the one slot */
    uint32_t *chunks;         /* page id / NKV_DIGEST_CHUNK_PAGES -> chunk */
    uint32_t *lengths;        /* [n_layers] tokens */
    uint32_t *held;           /* NKV_NO_PAGES: [n_layers] the page that the slot holds or NKV_PAGE_NONE; else NULL */
    struct nkv_seq_name name; /* of a published sequence; all 0: it is not */
    uint32_t *tokens;         /* published: [max_tokens] ids; else NULL */
    struct nkv_image_place place;
};

/* A client as the table of clients holds it; number 0: the entry is free. */
struct nkv_kv_client {
    uint64_t id;
    uint32_t number;
    uint32_t is_absent; /* it was there when the memory was opened, and has not come back */
};
#define NKV_STORE_CLIENTS 64u

/* The owner of published sequences that no client has; their ids are the store's choice. */
#define NKV_OWNER_NONE UINT32_MAX

static inline uint64_t nkv_seq_key(uint32_t owner, uint32_t id)
{
    return (uint64_t)owner << 32 | id;
}

static inline bool nkv_seq_is_published(const struct nkv_kv_seq *seq)
{
    return seq->name.name[0] != '\0';
}

/* Where one page of one layer and KV head lies. */
struct nkv_page_view {
    void *k, *v;
    float *k_scale, *v_scale; /* q8_0 only, else NULL */
};

/*
 * Opens a store of capacity_bytes (used and reserved together). The memory is committed on first touch.
 * returns: 0; NKV_EINVAL: less than one page; NKV_ENOMEM.
 */
int nkv_store_open(const struct nkv_kv_shape *shape, uint64_t capacity_bytes, struct nkv_store **store_out);
void nkv_store_close(struct nkv_store *store);

/* Memory that outlives the process. */
struct nkv_image_options {
    const char *path;
    bool is_dax;       /* a DAX device; else a file */
    uint64_t bytes;    /* of a file to create; 0: it must exist */
    bool format;       /* make a new image, whatever is there */
    bool is_read_only; /* only looks: nothing is made, and several may look at a time */
    bool is_locked;    /* fd is what nkv_image_lock gave: another process cannot come in between */
    int fd;
};
/*
 * Opens what `options` names for this process alone, until fd_out is closed; makes a file that does not exist and has a
 * size. returns: 0, NKV_ENOENT, NKV_EINVAL, NKV_ESTATE: in use, NKV_ENOSPC, NKV_EIO.
 */
int nkv_image_lock(const struct nkv_image_options *options, int *fd_out);
/* How large what nkv_image_lock opened (fd) is, its tables included. returns: 0, NKV_EINVAL, NKV_ENOSPC, NKV_EIO. */
int nkv_image_bytes(const struct nkv_image_options *options, uint64_t *bytes_out);
/*
 * Opens the store in an image: what it held is there again, every sequence with the tokens that all its layers had
 * committed. An image that was never used is given the shape; one of another shape that holds no sequence is made anew.
 * After a crash of the whole system (it was not closed, and the system was started since) every page is compared with
 * its checksum, and sequences are cut before the first that differs.
 * returns: 0; NKV_ENOENT: no such file, and no size; NKV_EINVAL; NKV_ESTATE: in use, or it holds sequences of another
 * shape; NKV_EFORMAT: damaged, or not an image; NKV_ENOTSUP: another version; NKV_ENOSPC; NKV_EIO; NKV_ENOMEM. After a
 * failure the image is as it was.
 */
int nkv_store_open_image(const struct nkv_kv_shape *shape, const struct nkv_image_options *options,
                         struct nkv_store **store_out);
/* The shape of the sequences that an image holds. returns: 1; 0: it holds none, or is still to be created; else as
 * nkv_store_open_image. */
int nkv_image_peek(const struct nkv_image_options *options, struct nkv_kv_shape *shape_out);
/*
 * Looks at an image that nobody uses; say (may be NULL) gets one line per problem. Nothing is changed.
 * returns: 0, also with problems; NKV_ENOENT: none there; else as nkv_store_open_image.
 */
int nkv_image_check(const struct nkv_image_options *options, void (*say)(void *arg, const char *line), void *arg,
                    struct nkv_memory_report *report_out);
/* Sequences that were in the image but could not be read after a crash of the system. */
uint32_t nkv_store_n_lost(const struct nkv_store *store);
/* Writes an image to where it survives a crash of the system; blocks. Any other store: does nothing. returns: 0,
 * NKV_EIO. */
int nkv_store_sync(struct nkv_store *store);

/* Of pages and digests. */
uint64_t nkv_store_capacity(const struct nkv_store *store);
/* The region, for binding it to a NUMA node before it is touched. */
void nkv_store_memory(const struct nkv_store *store, void **base_out, size_t *bytes_out);
const struct nkv_kv_shape *nkv_store_shape(const struct nkv_store *store);
/* Most pages that a sequence of this store can ever score, digests without pages included. */
uint32_t nkv_store_max_pages(const struct nkv_store *store);
/* Pages that fit an empty store; never changes, so any thread may ask. */
uint32_t nkv_store_total_pages(const struct nkv_store *store);
/* Fills all but size and what counts commands: busy_ns, n_commands, read_bytes, written_bytes. */
void nkv_store_stat(const struct nkv_store *store, struct nkv_device_stat *stat_out);

/* ---- Sequences. State after a failure: unchanged. ---- */

/* returns: NULL when there is no such sequence (no message). */
struct nkv_kv_seq *nkv_store_find(const struct nkv_store *store, uint64_t key);
/* See NKV_OP_SEQ_OPEN. returns: 0, NKV_EINVAL, NKV_ENOSPC, NKV_ENOMEM. */
int nkv_store_seq_open(struct nkv_store *store, uint64_t key, uint32_t max_tokens, uint16_t flags);
/* A published sequence is only detached. returns: 0 or NKV_ENOENT. */
int nkv_store_seq_close(struct nkv_store *store, uint64_t key);
/* Closes every sequence of one owner. returns: how many. */
uint32_t nkv_store_close_owner(struct nkv_store *store, uint32_t owner);
/* See NKV_OP_SEQ_FORK. returns: 0, NKV_EINVAL, NKV_ENOENT, NKV_ENOSPC, NKV_ENOMEM. */
int nkv_store_seq_fork(struct nkv_store *store, uint64_t key, uint64_t parent_key, uint32_t n_tokens,
                       uint32_t max_tokens);
/* See NKV_OP_SEQ_TRUNCATE. returns: 0, NKV_EINVAL, NKV_ENOENT, NKV_ENOSPC. */
int nkv_store_seq_truncate(struct nkv_store *store, uint64_t key, uint32_t n_tokens);
/*
 * Says that `layer` now holds n_tokens more, whose data are written and whose full pages are sealed.
 * with_pages: false when only digests came (NKV_NO_PAGES). pre: they fit max_tokens.
 */
void nkv_store_extend(struct nkv_store *store, struct nkv_kv_seq *seq, uint32_t layer, uint32_t n_tokens,
                      bool with_pages);

/* ---- Published sequences (named.c). State after a failure: unchanged. ---- */

/* returns: 0, or NKV_EINVAL saying what is wrong with a name. */
int nkv_seq_name_check(const struct nkv_seq_name *name);
/* See NKV_OP_SEQ_PUBLISH. returns: 0, NKV_EINVAL, NKV_ENOENT, NKV_ESTATE, NKV_ENOSPC, NKV_ENOMEM. */
int nkv_store_publish(struct nkv_store *store, uint64_t key, const struct nkv_seq_name *name, const uint32_t *ids,
                      uint32_t n_ids);
/* See NKV_OP_SEQ_OPEN with NKV_NAMED. returns: tokens, NKV_EINVAL, NKV_ENOENT, NKV_EFORMAT, NKV_ESTATE, NKV_ENOSPC,
 * NKV_ENOMEM. */
int nkv_store_attach(struct nkv_store *store, uint64_t key, const struct nkv_seq_name *name, uint32_t max_tokens);
/* See NKV_OP_SEQ_CLOSE with NKV_NAMED: frees a published sequence. returns: 0, NKV_ENOENT, NKV_EINVAL: not published.
 */
int nkv_store_remove(struct nkv_store *store, uint64_t key);
/* The key of a published sequence. returns: 0, NKV_ENOENT, NKV_EFORMAT: it is of another model. */
int nkv_store_find_named(const struct nkv_store *store, const struct nkv_seq_name *name, uint64_t *key_out);
/* Sets the ids of n tokens of a published sequence. pre: pos + n <= max_tokens. */
void nkv_store_put_ids(struct nkv_store *store, struct nkv_kv_seq *seq, uint32_t pos, const uint32_t *ids, uint32_t n);
/* See NKV_OP_SEQ_LIST. returns: how many were described. */
uint32_t nkv_store_list(const struct nkv_store *store, uint32_t first, uint32_t n, const uint32_t *tokens,
                        uint32_t n_tokens, struct nkv_seq_info *infos_out);

/* ---- Clients (clients.c). State after a failure: unchanged. ---- */

/* The number of the client of that id; 0: none. */
uint32_t nkv_store_client_find(const struct nkv_store *store, uint64_t id);
/* returns: 0; NKV_EINVAL: number is 0, NKV_OWNER_NONE or taken; NKV_ENOSPC: there are NKV_STORE_CLIENTS. */
int nkv_store_client_add(struct nkv_store *store, uint32_t number, uint64_t id);
/* An absent client is there again. */
void nkv_store_client_return(struct nkv_store *store, uint32_t number);
/* Of a number that nobody has: does nothing. The sequences stay: close them before. */
void nkv_store_client_remove(struct nkv_store *store, uint32_t number);
/* returns: how many there are. */
uint32_t nkv_store_client_numbers(const struct nkv_store *store, uint32_t numbers_out[NKV_STORE_CLIENTS]);
/* Closes the sequences of owners that are not in the table. */
void nkv_store_close_strangers(struct nkv_store *store);
/* What closing all sequences of an owner would free, and how many there are. returns: 0, NKV_ENOMEM. */
int nkv_store_owner_usage(const struct nkv_store *store, uint32_t owner, uint64_t *bytes_out, uint32_t *n_out);

/* ---- Data. pre: layer, page, kv_head in range; the sequence has what is asked for. ---- */

/* Pages that `layer` has begun. */
uint32_t nkv_seq_layer_pages(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer);
/* Tokens of `page` that `layer` holds. NKV_SLOTS: page_tokens. */
uint32_t nkv_seq_page_tokens(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer,
                             uint32_t page);
struct nkv_page_view nkv_store_page(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer,
                                    uint32_t page, uint32_t kv_head);
/* Digests of pages chunk * NKV_DIGEST_CHUNK_PAGES .. of one KV head: [NKV_DIGEST_CHUNK_PAGES][2][dim]. */
void *nkv_store_digests(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t chunk,
                        uint32_t kv_head);

/*
 * Stores n_tokens rows k, v (stride elements from token to token) of one KV head from token `pos` on, and seals
 * the pages that fill.
 */
void nkv_store_put(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t kv_head,
                   uint32_t pos, uint32_t n_tokens, const float *k, const float *v, size_t stride);
/* Builds the digest of a page whose tokens are all written. Does nothing for a sequence without digests. */
void nkv_store_seal(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t kv_head,
                    uint32_t page);

/*
 * Copies KV heads head0 .. head0+n_heads-1 of a page to or from its packed form (see nkv_page_bytes). copy: tokens that
 * the page does not hold are zero.
 */
void nkv_store_page_copy(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t page,
                         uint32_t head0, uint32_t n_heads, void *packed_out);
void nkv_store_page_fill(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t page,
                         uint32_t head0, uint32_t n_heads, const void *packed);
/* Copies digests of n_pages pages from page0 on, of one KV head, to or from [n_pages][2][dim]. */
void nkv_store_digest_copy(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer,
                           uint32_t kv_head, uint32_t page0, uint32_t n_pages, void *digests_out);
void nkv_store_digest_fill(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer,
                           uint32_t kv_head, uint32_t page0, uint32_t n_pages, const void *digests);

#endif
