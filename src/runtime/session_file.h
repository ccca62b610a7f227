/* SPDX-License-Identifier: Apache-2.0 */
/*
 * runtime/session_file.h: a session as a file. Little endian, as is every number that nearkv stores.
 *
 *   header, 256 bytes                                  piece: a head of 32 bytes, then its data
 *   offset bytes what                                  offset bytes what
 *      0     8   "NKV-SESS"                               0     4   1: ids, 2: pages
 *      8     4   version, 1                               4     4   pages: the layer
 *     12     4   bytes of this header                     8     4   first token or page
 *     16    32   struct nkv_kv_shape, 8 words            12     4   how many
 *     48    64   struct nkv_seq_name                     16     8   bytes of data
 *    112     4   tokens                                  24     8   XXH64 of the data, seeded with that of 0..23
 *    116     4   pages of a full piece
 *    120     8   bytes of a page, all KV heads           trailer, 32 bytes
 *    128     8   bytes of the file                        0     8   "NKV-END."
 *    136   112   0                                        8     8   pieces
 *    248     8   XXH64 of bytes 0..247                   16     8   bytes of the file
 *                                                        24     8   XXH64 of all before
 *
 * Pieces: the ids (u32, 16,384 a piece), then layer by layer the pages as READ packs them. So the header says what
 * every byte of the file is for: a reader expects it and takes nothing else. Digests are left out; WRITE builds them.
 */
#ifndef NKV_RUNTIME_SESSION_FILE_H
#define NKV_RUNTIME_SESSION_FILE_H

#include <nearkv/device.h>
#include <stdio.h>

#include "base/mem.h"
#include "base/status.h"

#define SESSION_FILE_VERSION 1u
#define SESSION_PIECE_IDS    16384u
#define SESSION_PIECE_BYTES  (4u << 20) /* of pages, unless one is larger */

struct session_head {
    char magic[8];
    uint32_t version, head_bytes;
    struct nkv_kv_shape shape;
    struct nkv_seq_name name;
    uint32_t n_tokens, piece_pages;
    uint64_t page_bytes, file_bytes;
    uint64_t reserved[14];
    uint64_t sum;
};
struct session_piece {
    uint32_t kind, layer, first, n;
    uint64_t bytes, sum;
};
struct session_trailer {
    char magic[8];
    uint64_t n_pieces, file_bytes, sum;
};
_Static_assert(sizeof(struct session_head) == 256 && offsetof(struct session_head, sum) == 248 &&
                   sizeof(struct session_piece) == 32 && sizeof(struct session_trailer) == 32,
               "the table above");

enum session_kind { SESSION_IDS_PIECE = 1, SESSION_PAGES_PIECE = 2 };

struct session_file;

/* Fills what follows from shape, name and n_tokens. */
void session_head_fill(const struct nkv_kv_shape *shape, const struct nkv_seq_name *name, uint32_t n_tokens,
                       struct session_head *head_out);
/* The pieces of a file in their order: the first, the one behind `piece`. returns: whether there is one. */
bool session_piece_next(const struct session_head *head, struct session_piece *piece);

/*
 * Reads a session. The stream must allow seeking and is borrowed; name is for messages. Everything is checked before it
 * is given away. returns: 0; NKV_EFORMAT saying what is wrong where; NKV_ENOTSUP: another version; NKV_EIO, NKV_ENOMEM.
 */
int session_file_open(FILE *stream, const char *name, struct session_file **file_out);
const struct session_head *session_file_head(const struct session_file *file);
/* The next piece and its data, which stay until the next call. returns: 1; 0: that was all, and the trailer is right.
 */
int session_file_next(struct session_file *file, struct session_piece *piece_out, const void **data_out);
void session_file_close(struct session_file *file);

/*
 * Writes one: to a file beside `path`, which takes its name when all is on the disk (finish). close without finish, as
 * after a failure, leaves nothing. returns: 0; NKV_EINVAL, NKV_EIO, NKV_ENOMEM.
 */
struct session_writer;
int session_writer_open(const char *path, const struct session_head *head, struct session_writer **writer_out);
/* pre: the pieces come in their order. */
int session_writer_put(struct session_writer *writer, struct session_piece piece, const void *data);
int session_writer_finish(struct session_writer *writer);
void session_writer_close(struct session_writer *writer);

/* XXH64 of a piece: head (but its sum) and data. */
uint64_t session_piece_sum(const struct session_piece *piece, const void *data);

#endif
