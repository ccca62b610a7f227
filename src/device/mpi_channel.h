/* SPDX-License-Identifier: Apache-2.0 */
/* device/mpi_channel.h: messages between rank 0 and a PNM rank: commands and completions through a lane where both are
 * on one machine and it could be made (mpi_lane.c), everything else by MPI. */
#ifndef NKV_DEVICE_MPI_CHANNEL_H
#define NKV_DEVICE_MPI_CHANNEL_H

#include "device/mpi_job.h"
#include "device/mpi_wire.h"

struct nkv_mpi_channel {
    const struct nkv_mpi *mpi;
    int peer, tag_out, tag_in;
    uint32_t next;
    MPI_Request requests[NKV_MPI_SLOTS];
    struct nkv_region buffers[NKV_MPI_SLOTS], inbox;
    struct nkv_mpi_lane *lane; /* NULL: none */
    bool by_lane;              /* the buffer taken last is the lane's */
    bool holds;                /* the message received last is the lane's */
};

void nkv_mpi_channel_init(struct nkv_mpi_channel *channel, const struct nkv_mpi *mpi, int peer, int tag_out,
                          int tag_in);
/* Waits until everything is on its way and frees what the channel has. */
void nkv_mpi_channel_close(struct nkv_mpi_channel *channel);
/* Room for messages of so many bytes by MPI; memory is taken as it is used. pre: no message is looked at. */
int nkv_mpi_channel_reserve(struct nkv_mpi_channel *channel, uint64_t bytes);
/* From now on commands and completions go through this lane, which becomes the channel's; NULL: by MPI. pre: both sides
 * do it after the same message, nothing is on its way. */
void nkv_mpi_channel_use(struct nkv_mpi_channel *channel, struct nkv_mpi_lane *lane);

/* For a message of that kind. returns: 1 with a free buffer, 0: all are on their way, or NKV_EDEVICE. */
int nkv_mpi_channel_take(struct nkv_mpi_channel *channel, enum nkv_mpi_kind kind, void **buffer_out);
/* Sends the buffer taken last. */
int nkv_mpi_channel_send(struct nkv_mpi_channel *channel, uint64_t bytes);
/* The next message, if there is one, of the lane or of MPI; it lies there until let_go. returns: its bytes; 0: there is
 * none; NKV_EDEVICE, also when it is too large. */
int64_t nkv_mpi_channel_receive(struct nkv_mpi_channel *channel, const void **message_out);
void nkv_mpi_channel_let_go(struct nkv_mpi_channel *channel);
/* The first turn of a loop that waits for the peer. */
struct nkv_mpi_turn nkv_mpi_channel_turn(const struct nkv_mpi_channel *channel);

#endif
