/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lane: one memory file, and in it for each direction four slots of a message each. The sender writes the message
 * where the receiver reads it, then counts `sent` up; the receiver counts `taken` up when it is through. Each counter
 * has one writer. Who waits is woken by the bells (mpi_bell.c), of which a lane knows nothing.
 *
 * MPI's own way for messages of some 10 KB between processes of a machine takes several steps, each of which needs both
 * sides to look: 30 us of a step of 0.9 ms. MPI's shared windows were rejected for this: to make one is a call of all
 * ranks of the machine, but how much room a device needs is known when it opens.
 *
 * Invariant: taken <= sent <= taken + NKV_MPI_SLOTS, modulo 2^32, until one side has closed its end: what the other
 * still sends is read by nobody, and must not wait for room.
 *
 * The file has no name. The other rank opens it as /proc/PID/fd/FD, which fails where it does not see the same
 * processes; a random number, first in the memory, tells that it is the right one.
 */
#define _GNU_SOURCE
#include "device/mpi_lane.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/mem.h"

#define PAGE 4096u

struct way {
    _Alignas(NKV_CACHE_LINE) _Atomic uint32_t sent;
    uint64_t bytes[NKV_MPI_SLOTS];
    _Alignas(NKV_CACHE_LINE) _Atomic uint32_t taken;
};

struct head {
    uint64_t nonce;
    _Atomic uint32_t closed; /* by either side */
    struct way ways[2];      /* from the maker, to it */
};
_Static_assert(sizeof(struct head) <= PAGE, "slots begin behind it");

struct nkv_mpi_lane {
    struct nkv_region region;
    struct head *head;
    struct way *out, *in;
    char *out_slots, *in_slots;
    uint64_t slot_bytes;
    uint32_t n_sent, n_taken;
};

static uint64_t slot_bytes(uint64_t message_bytes)
{
    return nkv_round_up(message_bytes, PAGE);
}

static uint64_t total_bytes(uint64_t message_bytes)
{
    return PAGE + 2 * NKV_MPI_SLOTS * slot_bytes(message_bytes);
}

static void look_at(struct nkv_mpi_lane *lane, uint64_t message_bytes, int out)
{
    struct head *head = lane->region.base;
    char *slots = (char *)lane->region.base + PAGE;

    nkv_region_keep_sparse(&lane->region);
    lane->head = head;
    lane->slot_bytes = slot_bytes(message_bytes);
    lane->out = &head->ways[out];
    lane->in = &head->ways[!out];
    lane->out_slots = slots + (uint64_t)out * NKV_MPI_SLOTS * lane->slot_bytes;
    lane->in_slots = slots + (uint64_t)!out * NKV_MPI_SLOTS * lane->slot_bytes;
}

int nkv_mpi_lane_make(uint64_t message_bytes, struct nkv_mpi_lane **lane_out, struct nkv_mpi_lane_place *place_out)
{
    struct nkv_mpi_lane *lane;
    uint64_t nonce = 0;
    int fd, status;

    if (getrandom(&nonce, sizeof nonce, 0) != sizeof nonce || nonce == 0)
        FAIL(NKV_EIO, "no random number for shared memory");
    TRY(nkv_alloc(1, sizeof *lane, &lane));
    status = nkv_region_share("nearkv-lane", total_bytes(message_bytes), &lane->region, &fd);
    if (status < 0) {
        nkv_free(lane);
        return status;
    }
    look_at(lane, message_bytes, 0);
    lane->head->nonce = nonce;
    *place_out = (struct nkv_mpi_lane_place){.pid = getpid(), .fd = fd, .nonce = nonce};
    *lane_out = lane;
    return 0;
}

void nkv_mpi_lane_hide(const struct nkv_mpi_lane_place *place)
{
    if (place->nonce)
        close(place->fd);
}

static int attach(const struct nkv_mpi_lane_place *place, uint64_t bytes, struct nkv_region *region_out)
{
    char path[64];
    int fd, status;

    snprintf(path, sizeof path, "/proc/%d/fd/%d", place->pid, place->fd);
    fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        FAIL(NKV_EIO, "cannot open %s: %s", path, strerror(errno));
    status = nkv_region_attach(fd, bytes, region_out);
    close(fd);
    TRY(status);
    if (((const struct head *)region_out->base)->nonce != place->nonce) {
        nkv_region_close(region_out);
        FAIL(NKV_EFORMAT, "%s is not the memory that was meant", path);
    }
    return 0;
}

int nkv_mpi_lane_join(const struct nkv_mpi_lane_place *place, uint64_t message_bytes, struct nkv_mpi_lane **lane_out)
{
    struct nkv_mpi_lane *lane;
    int status;

    TRY(nkv_alloc(1, sizeof *lane, &lane));
    status = attach(place, total_bytes(message_bytes), &lane->region);
    if (status < 0) {
        nkv_free(lane);
        return status;
    }
    look_at(lane, message_bytes, 1);
    *lane_out = lane;
    return 0;
}

void nkv_mpi_lane_close(struct nkv_mpi_lane *lane)
{
    if (!lane)
        return;
    atomic_store(&lane->head->closed, 1);
    nkv_region_close(&lane->region);
    nkv_free(lane);
}

void *nkv_mpi_lane_room(struct nkv_mpi_lane *lane)
{
    if (lane->n_sent - atomic_load(&lane->out->taken) >= NKV_MPI_SLOTS && !atomic_load(&lane->head->closed))
        return NULL;
    return lane->out_slots + lane->n_sent % NKV_MPI_SLOTS * lane->slot_bytes;
}

void nkv_mpi_lane_send(struct nkv_mpi_lane *lane, uint64_t bytes)
{
    lane->out->bytes[lane->n_sent % NKV_MPI_SLOTS] = bytes;
    atomic_store(&lane->out->sent, ++lane->n_sent);
}

int64_t nkv_mpi_lane_next(struct nkv_mpi_lane *lane, const void **message_out)
{
    uint32_t slot = lane->n_taken % NKV_MPI_SLOTS;
    uint64_t bytes;

    if (atomic_load(&lane->in->sent) == lane->n_taken)
        return 0;
    bytes = lane->in->bytes[slot];
    if (bytes == 0 || bytes > lane->slot_bytes)
        FAIL(NKV_EDEVICE, "a message of %llu bytes in shared memory, where at most %llu have room",
             (unsigned long long)bytes, (unsigned long long)lane->slot_bytes);
    *message_out = lane->in_slots + slot * lane->slot_bytes;
    return (int64_t)bytes;
}

bool nkv_mpi_lane_let_go(struct nkv_mpi_lane *lane)
{
    atomic_store(&lane->in->taken, ++lane->n_taken);
    return atomic_load(&lane->in->sent) - lane->n_taken == NKV_MPI_SLOTS - 1;
}
