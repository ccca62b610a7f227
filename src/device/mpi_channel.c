/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of two ranks to each other. By MPI, a message is sent from one of four buffers, in turn, and received when a
 * look finds it; with a lane, the buffers are the lane's slots and a message is read where it lies.
 *
 * Only commands and completions go through the lane. What opens, changes and ends the device, or the job, goes by MPI,
 * one thing after the other: if both ways carried such messages, one could overtake the other where the receiver looks
 * at one way and is then kept from looking at the other. MAP, BYE and the lane do not overtake each other: nothing is
 * in flight when they are sent. STAT may be answered before commands that are.
 */
#include "device/mpi_channel.h"

#include <limits.h>

void nkv_mpi_channel_init(struct nkv_mpi_channel *channel, const struct nkv_mpi *mpi, int peer, int tag_out, int tag_in)
{
    *channel = (struct nkv_mpi_channel){.mpi = mpi, .peer = peer, .tag_out = tag_out, .tag_in = tag_in};
    for (uint32_t i = 0; i < NKV_MPI_SLOTS; i++)
        channel->requests[i] = MPI_REQUEST_NULL;
}

void nkv_mpi_channel_close(struct nkv_mpi_channel *channel)
{
    for (uint32_t i = 0; i < NKV_MPI_SLOTS; i++) {
        (void)nkv_mpi_wait(channel->mpi, &channel->requests[i], "sending");
        nkv_region_close(&channel->buffers[i]);
    }
    nkv_region_close(&channel->inbox);
    nkv_mpi_lane_close(channel->lane);
}

static int grow(struct nkv_region *region, uint64_t bytes)
{
    struct nkv_region larger;

    if (region->bytes >= bytes)
        return 0;
    TRY(nkv_region_open_sparse(bytes, &larger));
    nkv_region_close(region);
    *region = larger;
    return 0;
}

int nkv_mpi_channel_reserve(struct nkv_mpi_channel *channel, uint64_t bytes)
{
    if (bytes > INT_MAX)
        FAIL(NKV_EINVAL, "messages of %llu bytes: MPI carries at most %d; use smaller batches",
             (unsigned long long)bytes, INT_MAX);
    for (uint32_t i = 0; i < NKV_MPI_SLOTS; i++) {
        TRY(nkv_mpi_wait(channel->mpi, &channel->requests[i], "sending"));
        TRY(grow(&channel->buffers[i], bytes));
    }
    return grow(&channel->inbox, bytes);
}

void nkv_mpi_channel_use(struct nkv_mpi_channel *channel, struct nkv_mpi_lane *lane)
{
    nkv_mpi_lane_close(channel->lane);
    channel->lane = lane;
    channel->holds = false;
}

int nkv_mpi_channel_take(struct nkv_mpi_channel *channel, enum nkv_mpi_kind kind, void **buffer_out)
{
    int done = 0;

    channel->by_lane = channel->lane && kind == NKV_MPI_COMMANDS;
    if (channel->by_lane)
        return (*buffer_out = nkv_mpi_lane_room(channel->lane)) != NULL;
    TRY(nkv_mpi_check(MPI_Test(&channel->requests[channel->next], &done, MPI_STATUS_IGNORE), "sending"));
    if (done)
        *buffer_out = channel->buffers[channel->next].base;
    return done != 0;
}

int nkv_mpi_channel_send(struct nkv_mpi_channel *channel, uint64_t bytes)
{
    uint32_t slot = channel->next;

    if (channel->by_lane) {
        nkv_mpi_lane_send(channel->lane, bytes);
    } else {
        channel->next = (slot + 1) % NKV_MPI_SLOTS;
        TRY(nkv_mpi_check(MPI_Isend(channel->buffers[slot].base, (int)bytes, MPI_BYTE, channel->peer, channel->tag_out,
                                    channel->mpi->world, &channel->requests[slot]),
                          "sending"));
    }
    nkv_mpi_ring(channel->mpi, (uint32_t)channel->peer);
    return 0;
}

/* A long message moves while both sides look after it: the sender is woken for each of its steps. */
static int finish_receiving(const struct nkv_mpi *mpi, MPI_Request *request, uint32_t source)
{
    struct nkv_mpi_turn turn = nkv_mpi_first_turn(mpi);
    int done = 0;

    for (;;) {
        TRY(nkv_mpi_check(MPI_Test(request, &done, MPI_STATUS_IGNORE), "receiving"));
        if (done)
            return 0;
        nkv_mpi_ring(mpi, source);
        nkv_mpi_pause(mpi, &turn);
    }
}

static int64_t receive(const struct nkv_mpi *mpi, int source, int tag, const struct nkv_region *buffer)
{
    MPI_Message message;
    MPI_Request request;
    MPI_Status status;
    int found = 0, n = 0;

    for (int look = 0; look < 2 && !found; look++) /* OpenMPI looks first and fetches then: a lone look would be late */
        TRY(nkv_mpi_check(MPI_Improbe(source, tag, mpi->world, &found, &message, &status), "receiving"));
    if (!found)
        return 0;
    TRY(nkv_mpi_check(MPI_Get_count(&status, MPI_BYTE, &n), "receiving"));
    if (n <= 0 || (size_t)n > buffer->bytes)
        FAIL(NKV_EDEVICE, "rank %d sent a message of %d bytes where at most %zu were expected", source, n,
             buffer->bytes);
    TRY(nkv_mpi_check(MPI_Imrecv(buffer->base, n, MPI_BYTE, &message, &request), "receiving"));
    TRY(finish_receiving(mpi, &request, (uint32_t)source));
    return n;
}

int64_t nkv_mpi_channel_receive(struct nkv_mpi_channel *channel, const void **message_out)
{
    int64_t bytes = channel->lane ? nkv_mpi_lane_next(channel->lane, message_out) : 0;

    channel->holds = bytes > 0;
    if (bytes != 0)
        return bytes;
    *message_out = channel->inbox.base;
    return receive(channel->mpi, channel->peer, channel->tag_in, &channel->inbox);
}

void nkv_mpi_channel_let_go(struct nkv_mpi_channel *channel)
{
    if (channel->holds && nkv_mpi_lane_let_go(channel->lane))
        nkv_mpi_ring(channel->mpi, (uint32_t)channel->peer);
    channel->holds = false;
}

struct nkv_mpi_turn nkv_mpi_channel_turn(const struct nkv_mpi_channel *channel)
{
    struct nkv_mpi_turn turn = nkv_mpi_first_turn(channel->mpi);

    turn.is_certain = channel->lane != NULL;
    return turn;
}
