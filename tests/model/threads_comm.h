/* SPDX-License-Identifier: Apache-2.0 */
/* tests/model/threads_comm.h: a struct nkv_comm between threads of one process, for tests that have no MPI. */
#ifndef NKV_TESTS_MODEL_THREADS_COMM_H
#define NKV_TESTS_MODEL_THREADS_COMM_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <nearkv/parallel.h>

#define COMM_MAX 8u

struct threads_group {
    pthread_barrier_t barrier;
    uint32_t size;
    const void *shown[COMM_MAX]; /* what each thread lets the others read, between two barriers */
};

struct threads_comm {
    struct nkv_comm comm; /* first */
    struct threads_group *group;
};

static inline struct threads_group *group_of(struct nkv_comm *comm)
{
    return ((struct threads_comm *)(void *)comm)->group;
}

static inline void show(struct nkv_comm *comm, const void *data)
{
    group_of(comm)->shown[comm->rank] = data;
    pthread_barrier_wait(&group_of(comm)->barrier);
}

static inline int comm_reserve(struct nkv_comm *comm, uint64_t bytes)
{
    (void)comm, (void)bytes;
    return 0;
}

static inline int comm_broadcast(struct nkv_comm *comm, void *data, uint64_t bytes)
{
    show(comm, data);
    if (comm->rank > 0)
        memcpy(data, group_of(comm)->shown[0], bytes);
    pthread_barrier_wait(&group_of(comm)->barrier);
    return 0;
}

static inline int comm_gather(struct nkv_comm *comm, const void *part, uint64_t bytes, void *all_out)
{
    show(comm, part);
    for (uint32_t r = 0; comm->rank == 0 && r < comm->size; r++)
        memcpy((char *)all_out + r * bytes, group_of(comm)->shown[r], bytes);
    pthread_barrier_wait(&group_of(comm)->barrier);
    return 0;
}

static inline int comm_scatter(struct nkv_comm *comm, const void *all, uint64_t bytes, void *part_out)
{
    show(comm, all);
    memcpy(part_out, (const char *)group_of(comm)->shown[0] + comm->rank * bytes, bytes);
    pthread_barrier_wait(&group_of(comm)->barrier);
    return 0;
}

static inline int comm_sum(struct nkv_comm *comm, float *x, uint64_t n)
{
    float *sum = malloc(n * sizeof *sum);

    show(comm, x);
    memcpy(sum, group_of(comm)->shown[0], n * sizeof *sum);
    for (uint32_t r = 1; r < comm->size; r++)
        for (uint64_t i = 0; i < n; i++)
            sum[i] += ((const float *)group_of(comm)->shown[r])[i];
    pthread_barrier_wait(&group_of(comm)->barrier);
    memcpy(x, sum, n * sizeof *sum);
    free(sum);
    return 0;
}

static inline void comm_init(struct threads_comm *comm, struct threads_group *group, uint32_t rank)
{
    static const struct nkv_comm_ops ops = {comm_reserve, comm_broadcast, comm_gather, comm_scatter, comm_sum};

    *comm = (struct threads_comm){.comm = {&ops, rank, group->size}, .group = group};
}

#endif
