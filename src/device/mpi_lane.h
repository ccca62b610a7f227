/* SPDX-License-Identifier: Apache-2.0 */
/* device/mpi_lane.h: messages between two ranks of one machine, through memory that both map. */
#ifndef NKV_DEVICE_MPI_LANE_H
#define NKV_DEVICE_MPI_LANE_H

#include <stdbool.h>
#include <stdint.h>

#define NKV_MPI_SLOTS 4u /* messages that are on their way in one direction, each in a place of its own */

struct nkv_mpi_lane;

/* Where a lane is found by the process that did not make it. */
struct nkv_mpi_lane_place {
    int32_t pid, fd;
    uint64_t nonce; /* 0: there is none */
};

/* For messages of at most message_bytes; memory is taken as it is used. The place is to be found until it is hidden.
 * returns: 0, NKV_ENOMEM, NKV_EIO: messages must go another way. */
int nkv_mpi_lane_make(uint64_t message_bytes, struct nkv_mpi_lane **lane_out, struct nkv_mpi_lane_place *place_out);
/* The place is no longer needed: the other side has joined, or never will. */
void nkv_mpi_lane_hide(const struct nkv_mpi_lane_place *place);
/* returns: 0, NKV_ENOMEM, NKV_EIO: it is not to be found from here, NKV_EFORMAT: what is there is another thing. */
int nkv_mpi_lane_join(const struct nkv_mpi_lane_place *place, uint64_t message_bytes, struct nkv_mpi_lane **lane_out);
/* The other side's messages are read no more: it always has room from now on. NULL is allowed. */
void nkv_mpi_lane_close(struct nkv_mpi_lane *lane);

/* Where the next message is to be written; NULL: the other side has not taken the earlier ones yet. */
void *nkv_mpi_lane_room(struct nkv_mpi_lane *lane);
void nkv_mpi_lane_send(struct nkv_mpi_lane *lane, uint64_t bytes);
/* The next message, in place until it is let go. returns: its bytes; 0: there is none; NKV_EDEVICE: it makes no sense.
 */
int64_t nkv_mpi_lane_next(struct nkv_mpi_lane *lane, const void **message_out);
/* returns: whether the other side may wait for the room. */
bool nkv_mpi_lane_let_go(struct nkv_mpi_lane *lane);

#endif
