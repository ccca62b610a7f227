/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pinning by the system's own call. hwloc would do, but reading its topology takes longer than opening a device, and
 * nothing of it is needed to count to n. What the system refuses is not an error: everything works, less evenly.
 */
#define _GNU_SOURCE
#include "base/affinity.h"

#include <sched.h>
#include <string.h>

_Static_assert(sizeof(((struct nkv_affinity *)0)->cpus) == sizeof(cpu_set_t), "a set of CPUs is 1,024 bits");

void nkv_affinity_pin(uint32_t rank, uint32_t n_threads, struct nkv_affinity *before_out)
{
    cpu_set_t allowed, own;
    size_t next = 0;
    bool pinned = sched_getaffinity(0, sizeof allowed, &allowed) == 0 && rank < n_threads &&
                  (uint32_t)CPU_COUNT(&allowed) == n_threads;

    if (pinned) {
        for (uint32_t seen = 0; seen <= rank; next++)
            seen += CPU_ISSET(next, &allowed) != 0;
        CPU_ZERO(&own);
        CPU_SET(next - 1, &own);
        pinned = sched_setaffinity(0, sizeof own, &own) == 0;
    }
    if (!before_out)
        return;
    *before_out = (struct nkv_affinity){.pinned = pinned};
    if (pinned)
        memcpy(before_out->cpus, &allowed, sizeof allowed);
}

void nkv_affinity_restore(const struct nkv_affinity *before)
{
    cpu_set_t allowed;

    if (!before->pinned)
        return;
    memcpy(&allowed, before->cpus, sizeof allowed);
    (void)sched_setaffinity(0, sizeof allowed, &allowed);
}
