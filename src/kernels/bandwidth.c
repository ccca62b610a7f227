/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/bandwidth.c: how fast this machine reads memory, which is what attention over a large cache is held against.
 *
 * Each thread sums its own contiguous share of one large mapping (huge pages where the system has them), the pages
 * having been touched by the thread that reads them, so that on a NUMA machine they lie beside it. The best round
 * counts: anything slower was disturbed.
 *
 * The sum comes from the table in use, so that the figure is what the same instructions can reach; it adds 64-bit
 * words, because the compiler may not drop the loads and an adder never limits them.
 */
#include <nearkv/nearkv.h>

#include "base/affinity.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/team.h"
#include "kernels/kernels.h"

struct job {
    const struct nkv_kernels *kernels;
    char *base;
    uint64_t bytes_per_rank;
    uint64_t *sums; /* [n_ranks][8]: a cache line each */
    struct nkv_affinity caller;
};

/* Two readers on one CPU would measure half a machine. */
static void pin(void *arg, uint32_t rank, uint32_t n_ranks)
{
    struct job *job = arg;
    nkv_affinity_pin(rank, n_ranks, rank == 0 ? &job->caller : NULL);
}

static void touch(void *arg, uint32_t rank, uint32_t n_ranks)
{
    const struct job *job = arg;
    (void)n_ranks;
    char *share = job->base + rank * job->bytes_per_rank;
    for (uint64_t i = 0; i < job->bytes_per_rank; i += 4096)
        share[i] = 1;
}

static void read_share(void *arg, uint32_t rank, uint32_t n_ranks)
{
    const struct job *job = arg;
    (void)n_ranks;
    job->sums[rank * 8] = job->kernels->read(job->bytes_per_rank, job->base + rank * job->bytes_per_rank);
}

static double best_rate(struct nkv_team *team, struct job *job, uint32_t rounds)
{
    double best = 0;
    nkv_team_run(team, pin, job);
    nkv_team_run(team, touch, job);
    for (uint32_t i = 0; i < rounds; i++) {
        uint64_t start = nkv_now_ns();
        nkv_team_run(team, read_share, job);
        uint64_t ns = nkv_now_ns() - start;
        double rate = (double)(job->bytes_per_rank * nkv_team_size(team)) / (double)(ns ? ns : 1);
        best = rate > best ? rate : best;
    }
    nkv_affinity_restore(&job->caller);
    return best;
}

int nkv_read_bandwidth(uint64_t bytes, uint32_t n_threads, uint32_t rounds, double *gb_per_s_out)
{
    struct nkv_team *team;
    struct nkv_region region;
    struct job job = {.kernels = nkv_kernels()};
    int status;

    if (n_threads == 0 || rounds == 0 || bytes / n_threads < 4096 || bytes > SIZE_MAX)
        FAIL(NKV_EINVAL, "read bandwidth: %llu bytes, %u threads, %u rounds; give each thread 4096 bytes or more",
             (unsigned long long)bytes, n_threads, rounds);
    TRY(nkv_team_open(n_threads, NULL, NULL, &team));
    status = nkv_region_open((size_t)bytes, &region);
    if (status < 0)
        goto close_team;
    status = nkv_alloc(n_threads, NKV_CACHE_LINE, &job.sums);
    if (status < 0)
        goto close_region;
    job.base = region.base;
    job.bytes_per_rank = bytes / n_threads / 4096 * 4096;
    *gb_per_s_out = best_rate(team, &job, rounds);
    nkv_free(job.sums);
close_region:
    nkv_region_close(&region);
close_team:
    nkv_team_close(team);
    return status;
}
