/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring of cpu_queue.c between two processes, one of which trusts nobody. The protocol is the same: a sleeper
 * announces itself before it looks for the last time, and the other side changes the word before it looks for sleepers
 * (both sequentially consistent), so one of them sees the other and nobody pays for a bell that nobody needs.
 *
 * What differs: each side's own counters live in its own memory, never in the ring, so that a client can make the
 * device neither read nor write outside an entry; a command is copied out before anything looks at it; and sleepers
 * sleep in poll() on the socket, where the death of the other side shows, instead of in futexes, which would have to be
 * left every few milliseconds to look whether it still lives. An eventfd beside the socket was rejected: its flags
 * belong to both sides, and a client that makes it blocking could stop the device in a read.
 */
#include "device/ring.h"

#include <string.h>

#define MASK (NKV_RING_ENTRIES - 1)

int nkv_ring_join(struct nkv_ring *ring, struct nkv_ring_user *user_out)
{
    if (ring->magic != NKV_RING_MAGIC || ring->version != NKV_RING_VERSION || ring->n_entries != NKV_RING_ENTRIES ||
        ring->message_bytes != NKV_RING_MESSAGE_BYTES)
        FAIL(NKV_EFORMAT, "its ring has version %u and %u entries: this library knows version %u with %u",
             ring->version, ring->n_entries, NKV_RING_VERSION, NKV_RING_ENTRIES);
    *user_out = (struct nkv_ring_user){.ring = ring};
    return 0;
}

uint32_t nkv_ring_in_flight(const struct nkv_ring_user *user)
{
    return user->submitted - user->reaped;
}

int nkv_ring_submit(struct nkv_ring_user *user, const struct nkv_cmd *cmds, uint32_t n)
{
    struct nkv_ring *ring = user->ring;
    uint32_t n_free = NKV_RING_ENTRIES - nkv_ring_in_flight(user);

    if (n > n_free)
        FAIL(NKV_ENOSPC, "%u commands for %u free entries of the queue: reap completions first", n, n_free);
    for (uint32_t i = 0; i < n; i++)
        ring->cmds[(user->submitted + i) & MASK] = cmds[i];
    user->submitted += n;
    atomic_store(&ring->submitted, user->submitted);
    return atomic_load(&ring->device_sleeps) != 0;
}

int nkv_ring_ready(const struct nkv_ring_user *user)
{
    uint32_t n = atomic_load(&user->ring->completed) - user->reaped;

    if (n > nkv_ring_in_flight(user))
        FAIL(NKV_EDEVICE, "it completed %u commands of %u in flight", n, nkv_ring_in_flight(user));
    return (int)n;
}

void nkv_ring_await(struct nkv_ring_user *user, uint32_t n)
{
    atomic_store(&user->ring->wanted, user->reaped + n);
    atomic_store(&user->ring->client_sleeps, n > 0);
}

void nkv_ring_reap(struct nkv_ring_user *user, struct nkv_cqe *cqes_out, uint32_t n)
{
    const struct nkv_ring *ring = user->ring;

    for (uint32_t i = 0; i < n; i++, user->reaped++) {
        cqes_out[i] = ring->cqes[user->reaped & MASK];
        if (cqes_out[i].res < 0)
            nkv_fail(cqes_out[i].res, "%.*s", (int)NKV_RING_MESSAGE_BYTES, ring->messages[user->reaped & MASK]);
    }
}

void nkv_ring_init(struct nkv_ring *ring, struct nkv_ring_owner *owner_out)
{
    ring->magic = NKV_RING_MAGIC;
    ring->version = NKV_RING_VERSION;
    ring->n_entries = NKV_RING_ENTRIES;
    ring->message_bytes = NKV_RING_MESSAGE_BYTES;
    *owner_out = (struct nkv_ring_owner){.ring = ring};
}

uint32_t nkv_ring_waiting(const struct nkv_ring_owner *owner)
{
    return atomic_load(&owner->ring->submitted) - owner->done;
}

int nkv_ring_next(const struct nkv_ring_owner *owner, struct nkv_cmd *cmd_out)
{
    uint32_t waiting = nkv_ring_waiting(owner);

    if (waiting == 0)
        return 0;
    if (waiting > NKV_RING_ENTRIES)
        FAIL(NKV_EFORMAT, "its ring claims %u waiting commands of at most %u", waiting, NKV_RING_ENTRIES);
    *cmd_out = owner->ring->cmds[owner->done & MASK];
    atomic_signal_fence(memory_order_seq_cst); /* from here on the copy is what counts, whatever the client writes */
    return 1;
}

bool nkv_ring_complete(struct nkv_ring_owner *owner, const struct nkv_cqe *cqe, const char *message)
{
    struct nkv_ring *ring = owner->ring;
    uint32_t at = owner->done++ & MASK;

    ring->cqes[at] = *cqe;
    if (cqe->res < 0) {
        strncpy(ring->messages[at], message, NKV_RING_MESSAGE_BYTES - 1);
        ring->messages[at][NKV_RING_MESSAGE_BYTES - 1] = '\0';
    }
    atomic_store(&ring->completed, owner->done);
    return atomic_load(&ring->client_sleeps) && (int32_t)(owner->done - atomic_load(&ring->wanted)) >= 0;
}

void nkv_ring_sleep(struct nkv_ring_owner *owner, bool sleeps)
{
    atomic_store(&owner->ring->device_sleeps, sleeps);
}
