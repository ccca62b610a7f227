/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/affinity.h: a CPU of its own for each thread of a team that has one thread per CPU. It measured a little faster
 * and steadier (bench attend, pnm); that the scheduler had put two threads on one CPU is our guess, not traced. A
 * smaller team stays free: another device or process may want the CPU that it would choose.
 */
#ifndef NKV_BASE_AFFINITY_H
#define NKV_BASE_AFFINITY_H

#include <stdbool.h>
#include <stdint.h>

/* The CPUs that a thread might use before it was pinned. */
struct nkv_affinity {
    bool pinned;
    uint64_t cpus[16]; /* of 1,024 CPUs; on a larger machine nothing is pinned */
};

/*
 * If the calling thread may use exactly n_threads CPUs, it gets the rank-th of them for its own. What it could use
 * before goes to before_out (may be NULL).
 */
void nkv_affinity_pin(uint32_t rank, uint32_t n_threads, struct nkv_affinity *before_out);
/* Undoes nkv_affinity_pin on the calling thread. */
void nkv_affinity_restore(const struct nkv_affinity *before);

#endif
