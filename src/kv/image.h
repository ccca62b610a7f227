/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv/image.h: a store in memory that outlives the process: a file or a DAX device, mapped shared. Numbers are little
 * endian; docs/formats.md says the same in prose.
 *
 *   offset     bytes   superblock, written once, 4,096 bytes
 *        0         8   "NKVIMAGE"
 *        8         4   version, 1
 *       12         4   0
 *       16        32   KV shape, 8 words as struct nkv_kv_shape
 *       48         8   bytes of the image
 *       56         8   capacity: bytes of slots and chunks
 *       64        24   u32: slots, chunks, roots, blocks, extent shift, 0
 *       88        48   u64: offsets of clients, roots, blocks, sums, frames, chunks
 *      136         8   XXH3 of bytes 0..135
 *
 *     4096   state, 4,096 bytes
 *        0         8   1: the last process closed it in order
 *        8        40   boot id of the system that used it last, text
 *       48         4   births given out, rounded up
 *
 *   clients    64 x {u64 id of a client, u32 its number, u32 whether it is absent}; number 0: none
 *   roots      u64 per sequence: low half: its first block + 1; high half: low half of its checksum; 0: none
 *   blocks     of 1,024 bytes; a sequence has a run of them:
 *        0         8   "NKVSEQ01"
 *        8         4   birth: the younger of two sequences has the higher one
 *       12         4   flags of SEQ_OPEN
 *       16        16   u32: most tokens, slots, chunks, blocks
 *       32        64   struct nkv_seq_name; zeros: not published
 *       96         8   XXH3 of the parts that do not change: bytes 0..95, slots, chunks
 *      104         8   key: number of its client << 32 | id
 *      112        16   0
 *      128   4 x slots     u32 per page
 *            4 x chunks    u32; then 4 bytes of 0 if slots and chunks are odd together
 *            8 x layers    commit records: {u32 tokens, u32 check}
 *            8 x slots     page records: XXH3 of the record before, the page's sums and the ids of its tokens
 *            4 x tokens    ids; published only
 *   sums       u64 [slot][layer]: XXH3 of a full frame, seeded by page and layer
 *   frames     see kv/store.h
 *   chunks     see kv/store.h
 *
 * What makes each change all or nothing is one aligned 8-byte store: a root for a sequence as a whole (a changed one
 * gets new blocks), a commit record for tokens. References are not stored: they are counted when the image is opened,
 * so none can be lost or leak. Page records form a chain over pages, layers and ids: a prefix that passes is of one
 * piece.
 */
#ifndef NKV_KV_IMAGE_H
#define NKV_KV_IMAGE_H

#include <stdatomic.h>

#include "kv/store_private.h"

#define NKV_IMAGE_MAGIC       "NKVIMAGE"
#define NKV_IMAGE_SEQ_MAGIC   "NKVSEQ01"
#define NKV_IMAGE_VERSION     1u
#define NKV_IMAGE_PAGE        4096u
#define NKV_IMAGE_BLOCK_BYTES 1024u

struct image_super {
    char magic[8];
    uint32_t version, reserved;
    struct nkv_kv_shape shape;
    uint64_t image_bytes, capacity_bytes;
    uint32_t n_slots, n_chunks, n_roots, n_blocks, extent_shift, reserved2;
    uint64_t clients_at, roots_at, blocks_at, sums_at, frames_at, chunks_at;
    uint64_t sum;
};
struct image_state {
    uint64_t clean;
    char boot_id[40];
    uint32_t n_births;
};
struct image_seq {
    char magic[8];
    uint32_t birth, flags;
    uint32_t max_tokens, n_slots, n_chunks, n_blocks;
    struct nkv_seq_name name;
    uint64_t sum;
    _Atomic uint64_t key;
    uint64_t reserved[2];
};
struct image_commit {
    uint32_t n_tokens, check;
};
_Static_assert(sizeof(struct image_super) == 144 && offsetof(struct image_super, sum) == 136 &&
                   offsetof(struct image_state, n_births) == 48 && offsetof(struct image_seq, sum) == 96 &&
                   sizeof(struct image_seq) == 128 && sizeof(struct image_commit) == 8 &&
                   sizeof(struct nkv_kv_client) == 16,
               "the table above");

/* The parts of a sequence's blocks. */
struct image_seq_view {
    struct image_seq *head;
    uint32_t *slots, *chunks;
    _Atomic uint64_t *commits; /* [n_layers] struct image_commit */
    uint64_t *records;         /* [n_slots] */
    uint32_t *ids;             /* published only */
};

struct nkv_image {
    int fd;
    bool is_dax, is_made; /* is_made: the file was not there before */
    struct nkv_region memory;
    struct image_super super; /* a copy that was checked: the mapping is never trusted twice */
    struct image_state *state;
    _Atomic uint64_t *roots;
    char *blocks;
    uint64_t *sums;
    struct nkv_pool block_pool;
    uint32_t n_births;
    uint8_t *dirty_slots, *dirty_chunks; /* DAX: written since the last sync */
};

/* ---- image.c ---- */

/* Where things lie in an image of so many bytes. returns: 0, NKV_EINVAL: it has no room for a page. */
int nkv_image_layout(const struct nkv_kv_shape *shape, uint64_t image_bytes, struct image_super *super_out);
/* Reads and checks the superblock of a mapping. returns: 0; 1: all zero, nothing was ever stored; NKV_EFORMAT,
 * NKV_ENOTSUP. */
int nkv_image_read_super(const struct nkv_region *memory, const char *path, struct image_super *super_out);
/* The text that tells one run of the system from the next; "" where it cannot be read. */
void nkv_image_boot_id(char id_out[40]);
void nkv_image_map_parts(struct nkv_image *image);
/* Writes the superblock and the state to where they survive a crash of the system. returns: 0, NKV_EIO. */
int nkv_image_sync_state(struct nkv_image *image);

/* ---- image_file.c ---- */

/* Opens and locks what `options` names, creates a file that does not exist and has a size, and maps it.
 * returns: 0, NKV_ENOENT, NKV_EINVAL, NKV_ESTATE: in use, NKV_ENOSPC, NKV_EIO, NKV_ENOMEM. */
int nkv_image_file_open(const struct nkv_image_options *options, struct nkv_image *image);
void nkv_image_file_close(struct nkv_image *image);

/* ---- image_seq.c ---- */

/* The bytes that a sequence's blocks hold. */
uint64_t nkv_image_seq_bytes(const struct nkv_kv_shape *shape, const struct image_seq *head);
struct image_seq_view nkv_image_view(const struct nkv_image *image, uint32_t block);
uint64_t nkv_image_seq_sum(const struct image_seq_view *view);
uint32_t nkv_image_commit_check(uint32_t birth, uint32_t layer, uint32_t n_tokens);
uint64_t nkv_image_frame_sum(const struct nkv_store *store, uint32_t slot, uint32_t layer, uint32_t page);
/* The record of a full page after the one with record `before` (0: none). */
uint64_t nkv_image_record(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t page, uint64_t before);

/* ---- image_read.c: nothing is written. ---- */

/* A sequence as its root and blocks tell it, to be freed with nkv_free. Its references are counted nowhere, and its
 * ids stay in the image. returns: 0, NKV_EFORMAT: damaged, NKV_ENOMEM. */
int nkv_image_read_seq(const struct nkv_image *image, uint32_t root, struct nkv_kv_seq **seq_out);
/* How many of a sequence's full pages, from the first on, pass their checksums and follow one on the other. */
uint32_t nkv_image_whole_pages(const struct nkv_store *store, const struct nkv_kv_seq *seq);

/* ---- image.c, for who looks at an image as it is (image_check.c) ---- */

/* Opens the parts of a store on an image that was mapped and whose superblock was read; nothing is recovered. */
int nkv_image_open_parts(struct nkv_store *store);

/* ---- recover.c ---- */

/* Fills the store with what the image holds. returns: 0, NKV_EFORMAT, NKV_ENOMEM: nothing was changed. */
int nkv_image_recover(struct nkv_store *store);

#endif
