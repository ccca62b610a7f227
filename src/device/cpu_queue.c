/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two rings between one client thread and the leader. An entry serves a command and later its completion, so a client
 * that has room to submit also has room for the answer. Each side spins for a few microseconds before it sleeps on a
 * futex: longer for the leader, which is idle between the layers of a step, shorter for the client, which would
 * take a core from the team. A spinner yields now and then, as the one it waits for may want the same core.
 *
 * A sleeper announces itself before it looks at the word for the last time, and the other side changes the word
 * before it looks for sleepers (both sequentially consistent): one of them sees the other. So nobody pays for a wake-up
 * that nobody needs. The client is woken once, by the completion that makes up its minimum.
 */
#include "device/cpu_queue.h"

#include <string.h>

#include "base/futex.h"

#define LEADER_SPIN_NS 20000u
#define CLIENT_SPIN_NS 4000u
#define MASK           (NKV_CPU_QUEUE_ENTRIES - 1)

int nkv_cpu_queue_submit(struct nkv_cpu_queue *queue, const struct nkv_cmd *cmds, uint32_t n)
{
    uint32_t at = atomic_load_explicit(&queue->submitted, memory_order_relaxed);
    uint32_t n_free = NKV_CPU_QUEUE_ENTRIES - nkv_cpu_queue_in_flight(queue);

    if (n > n_free)
        FAIL(NKV_ENOSPC, "%u commands for %u free entries of the queue: reap completions first", n, n_free);
    for (uint32_t i = 0; i < n; i++)
        queue->cmds[(at + i) & MASK] = cmds[i];
    atomic_store_explicit(&queue->submitted, at + n, memory_order_release);
    atomic_fetch_add(&queue->doorbell, 1);
    if (atomic_load(&queue->leader_sleeps))
        nkv_futex_wake(&queue->doorbell);
    return 0;
}

uint32_t nkv_cpu_queue_in_flight(const struct nkv_cpu_queue *queue)
{
    return atomic_load_explicit(&queue->submitted, memory_order_relaxed) - queue->reaped;
}

static void wait_completions(struct nkv_cpu_queue *queue, uint32_t n)
{
    uint32_t seen;

    if (!nkv_spin_below(&queue->completed, queue->reaped, n, CLIENT_SPIN_NS))
        return;
    atomic_store(&queue->wanted, queue->reaped + n);
    atomic_store(&queue->client_sleeps, 1);
    while ((seen = atomic_load(&queue->completed)) - queue->reaped < n)
        nkv_futex_wait(&queue->completed, seen);
    atomic_store(&queue->client_sleeps, 0);
}

int nkv_cpu_queue_reap(struct nkv_cpu_queue *queue, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    uint32_t n;

    if (min_n > max_n || min_n > nkv_cpu_queue_in_flight(queue))
        FAIL(NKV_EINVAL, "cannot wait for %u completions: %u commands are in flight, and there is room for %u", min_n,
             nkv_cpu_queue_in_flight(queue), max_n);
    if (min_n > 0)
        wait_completions(queue, min_n);
    n = atomic_load_explicit(&queue->completed, memory_order_acquire) - queue->reaped;
    n = n < max_n ? n : max_n;
    for (uint32_t i = 0; i < n; i++, queue->reaped++) {
        cqes_out[i] = queue->cqes[queue->reaped & MASK];
        if (cqes_out[i].res < 0)
            nkv_fail(cqes_out[i].res, "%s", queue->messages[queue->reaped & MASK]);
    }
    return (int)n;
}

void nkv_cpu_queue_stop(struct nkv_cpu_queue *queue)
{
    atomic_store(&queue->stop, 1);
    atomic_fetch_add(&queue->doorbell, 1);
    nkv_futex_wake(&queue->doorbell);
}

static void wait_doorbell(struct nkv_cpu_queue *queue, uint32_t seen)
{
    if (!nkv_spin_below(&queue->doorbell, seen, 1, LEADER_SPIN_NS))
        return;
    atomic_store(&queue->leader_sleeps, 1);
    if (atomic_load(&queue->doorbell) == seen)
        nkv_futex_wait(&queue->doorbell, seen);
    atomic_store(&queue->leader_sleeps, 0);
}

bool nkv_cpu_queue_next(struct nkv_cpu_queue *queue, struct nkv_cmd *cmd_out)
{
    for (;;) {
        uint32_t seen = atomic_load(&queue->doorbell);

        if (atomic_load_explicit(&queue->submitted, memory_order_acquire) != queue->taken) {
            *cmd_out = queue->cmds[queue->taken++ & MASK];
            return true;
        }
        if (atomic_load(&queue->stop))
            return false;
        wait_doorbell(queue, seen);
    }
}

void nkv_cpu_queue_complete(struct nkv_cpu_queue *queue, const struct nkv_cqe *cqe, const char *message)
{
    uint32_t at = atomic_load_explicit(&queue->completed, memory_order_relaxed);

    queue->cqes[at & MASK] = *cqe;
    if (cqe->res < 0) {
        strncpy(queue->messages[at & MASK], message, NKV_CPU_MESSAGE_BYTES - 1);
        queue->messages[at & MASK][NKV_CPU_MESSAGE_BYTES - 1] = '\0';
    }
    atomic_store(&queue->completed, at + 1);
    if (atomic_load(&queue->client_sleeps) && (int32_t)(at + 1 - atomic_load(&queue->wanted)) >= 0)
        nkv_futex_wake(&queue->completed);
}
