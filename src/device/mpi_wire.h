/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device/mpi_wire.h: messages between rank 0 and a PNM rank. There is no shared window: each side has one of the same
 * size, and a message carries what the other side's lacks, by MPI or through memory (mpi_lane.h). Little endian; what
 * is not named is 0.
 *
 *   down (tag 1)   head, then
 *     COMMANDS       commands [n_records], segments [n_segments] (offset and bytes in the window), their bytes
 *     HELLO ...      a struct nkv_mpi_request
 *   up (tag 2)     head, then
 *     COMMANDS       completions [n_records], the texts of those that failed, what the others wrote: for each, in the
 *                    order of operands.h, the bytes of its output
 *     HELLO ...      a struct nkv_mpi_reply
 */
#ifndef NKV_DEVICE_MPI_WIRE_H
#define NKV_DEVICE_MPI_WIRE_H

#include <nearkv/device.h>

#include "base/mem.h"
#include "device/mpi_lane.h"

#define NKV_MPI_MAGIC      0x4d564b4eu /* "NKVM" */
#define NKV_MPI_VERSION    3u
#define NKV_MPI_ENTRIES    1024u /* commands that are submitted and not reaped; a power of two */
#define NKV_MPI_TEXT_BYTES 192u
#define NKV_MPI_SEGMENTS   4096u

enum { NKV_MPI_TAG_DOWN = 1, NKV_MPI_TAG_UP = 2 };

enum nkv_mpi_kind {
    NKV_MPI_COMMANDS = 1,
    NKV_MPI_HELLO = 2, /* opens the device */
    NKV_MPI_MAP = 3,
    NKV_MPI_STAT = 4,
    NKV_MPI_BYE = 5,  /* closes it; no answer */
    NKV_MPI_STOP = 6, /* ends the service; no answer */
};

struct nkv_mpi_head {
    uint32_t magic;
    uint16_t version, kind;
    uint32_t n_records, n_segments;
    uint64_t reserved[6];
};
struct nkv_mpi_segment {
    uint64_t offset, bytes;
};
struct nkv_mpi_request {
    uint32_t abi, n_threads; /* HELLO */
    uint64_t bytes;          /* HELLO: capacity; MAP: of the window */
    struct nkv_kv_shape shape;
    struct nkv_mpi_lane_place lane; /* MAP: where messages may go from now on */
};
struct nkv_mpi_reply {
    int32_t status;
    uint32_t n_threads;
    uint64_t capacity_bytes;
    uint64_t has_lane; /* MAP: 1: from now on they go there, 0: by MPI */
    struct nkv_device_stat stat;
    char name[64];
    char text[256]; /* of a failure */
};
_Static_assert(sizeof(struct nkv_mpi_head) == 64 && sizeof(struct nkv_mpi_request) == 64, "commands stay aligned");

/* Most that a message holds beside the window's bytes. */
#define NKV_MPI_FRAME_BYTES                                                                                            \
    (sizeof(struct nkv_mpi_head) +                                                                                     \
     NKV_MPI_ENTRIES * (sizeof(struct nkv_cmd) + sizeof(struct nkv_cqe) + NKV_MPI_TEXT_BYTES) +                        \
     NKV_MPI_SEGMENTS * sizeof(struct nkv_mpi_segment) + sizeof(struct nkv_mpi_reply))

static inline struct nkv_mpi_head nkv_mpi_head(enum nkv_mpi_kind kind)
{
    return (struct nkv_mpi_head){.magic = NKV_MPI_MAGIC, .version = NKV_MPI_VERSION, .kind = (uint16_t)kind};
}

#endif
