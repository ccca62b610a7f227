/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compute ranks' communicator (struct nkv_comm) on MPI.
 *
 * A sum is two exchanges: every rank gets its slice of every other's vector, adds the slices in the order of ranks, and
 * gives the result to all. MPI_Allreduce was rejected: the order in which it adds is the implementation's, may change
 * with the size and with who comes first, and results must be the same bits in every run. The exchanges move what the
 * best algorithms for long vectors do, 2 (N - 1) / N of it per rank.
 */
#include <limits.h>
#include <string.h>

#include "device/mpi_job.h"

struct mpi_comm {
    struct nkv_comm comm; /* first */
    MPI_Comm group;
    struct nkv_mpi *job;
    struct nkv_region slices; /* [2][size * slice] floats: what the others sent, and x when its slices are uneven */
};

static struct mpi_comm *comm_of(struct nkv_comm *comm)
{
    return (struct mpi_comm *)(void *)comm;
}

static int count_of(uint64_t bytes, int *count_out)
{
    if (bytes > INT_MAX)
        FAIL(NKV_EINVAL, "%llu bytes in one exchange: MPI carries at most %d", (unsigned long long)bytes, INT_MAX);
    *count_out = (int)bytes;
    return 0;
}

/* Bytes of x in whole slices. */
static uint64_t padded_bytes(const struct nkv_comm *comm, uint64_t n)
{
    return (n + comm->size - 1) / comm->size * comm->size * sizeof(float);
}

static int mpi_reserve(struct nkv_comm *comm, uint64_t bytes)
{
    struct mpi_comm *m = comm_of(comm);
    uint64_t need = 2 * padded_bytes(comm, (bytes + sizeof(float) - 1) / sizeof(float));
    struct nkv_region region;

    if (need <= m->slices.bytes)
        return 0;
    TRY(nkv_region_open_sparse(need, &region));
    nkv_region_close(&m->slices);
    m->slices = region;
    return 0;
}

static int finish(struct mpi_comm *m, int code, MPI_Request *request, uint64_t bytes, const char *what)
{
    TRY(nkv_mpi_check(code, what));
    TRY(nkv_mpi_finish(m->job, request, m->comm.size, bytes, what));
    m->job->traffic.n_exchanges++;
    m->job->traffic.exchange_bytes += bytes;
    return 0;
}

static int mpi_broadcast(struct nkv_comm *comm, void *data, uint64_t bytes)
{
    struct mpi_comm *m = comm_of(comm);
    MPI_Request request;
    int n = 0;

    TRY(count_of(bytes, &n));
    return finish(m, MPI_Ibcast(data, n, MPI_BYTE, 0, m->group, &request), &request, bytes, "broadcast");
}

static int mpi_gather(struct nkv_comm *comm, const void *part, uint64_t bytes, void *all_out)
{
    struct mpi_comm *m = comm_of(comm);
    uint64_t moved = comm->rank == 0 ? (comm->size - 1) * bytes : bytes;
    MPI_Request request;
    int n = 0;

    TRY(count_of(bytes, &n));
    return finish(m, MPI_Igather(part, n, MPI_BYTE, all_out, n, MPI_BYTE, 0, m->group, &request), &request, moved,
                  "gather");
}

static int mpi_scatter(struct nkv_comm *comm, const void *all, uint64_t bytes, void *part_out)
{
    struct mpi_comm *m = comm_of(comm);
    uint64_t moved = comm->rank == 0 ? (comm->size - 1) * bytes : bytes;
    MPI_Request request;
    int n = 0;

    TRY(count_of(bytes, &n));
    return finish(m, MPI_Iscatter(all, n, MPI_BYTE, part_out, n, MPI_BYTE, 0, m->group, &request), &request, moved,
                  "scatter");
}

/* sum[i] = others[0][i] + others[1][i] + ...; the first slice is where the sum goes. */
static void add_slices(float *others, uint64_t slice, uint32_t n)
{
    for (uint32_t r = 1; r < n; r++)
        for (uint64_t i = 0; i < slice; i++)
            others[i] += others[r * slice + i];
}

static int mpi_sum(struct nkv_comm *comm, float *x, uint64_t n)
{
    struct mpi_comm *m = comm_of(comm);
    uint64_t slice = (n + comm->size - 1) / comm->size, padded = slice * comm->size;
    float *others, *even;
    MPI_Request request;
    int count = 0;

    TRY(count_of(padded * sizeof *x, &count));
    TRY(mpi_reserve(comm, n * sizeof *x));
    others = m->slices.base;
    even = n == padded ? x : others + padded;
    if (even != x)
        memcpy(even, x, n * sizeof *x); /* what lies behind is never looked at */
    count = (int)slice;
    TRY(nkv_mpi_check(MPI_Ialltoall(even, count, MPI_FLOAT, others, count, MPI_FLOAT, m->group, &request), "sum"));
    TRY(nkv_mpi_finish(m->job, &request, comm->size, n * sizeof *x, "sum"));
    add_slices(others, slice, comm->size);
    TRY(nkv_mpi_check(MPI_Iallgather(others, count, MPI_FLOAT, even, count, MPI_FLOAT, m->group, &request), "sum"));
    TRY(nkv_mpi_finish(m->job, &request, comm->size, n * sizeof *x, "sum"));
    if (even != x)
        memcpy(x, even, n * sizeof *x);
    m->job->traffic.n_sums++;
    m->job->traffic.sum_bytes += 2 * (padded - slice) * sizeof *x;
    return 0;
}

static const struct nkv_comm_ops mpi_ops = {mpi_reserve, mpi_broadcast, mpi_gather, mpi_scatter, mpi_sum};

static int open_group(struct nkv_mpi *mpi, bool is_member, struct mpi_comm *m)
{
    int rank, size;

    TRY(nkv_mpi_check(MPI_Comm_split(mpi->world, is_member ? 0 : MPI_UNDEFINED, (int)mpi->rank, &m->group),
                      "forming the group of compute ranks"));
    if (!is_member)
        return 0;
    MPI_Comm_rank(m->group, &rank);
    MPI_Comm_size(m->group, &size);
    m->job = mpi;
    m->comm = (struct nkv_comm){&mpi_ops, (uint32_t)rank, (uint32_t)size};
    return 0;
}

int nkv_mpi_comm(struct nkv_mpi *mpi, uint32_t n, struct nkv_comm **comm_out)
{
    struct mpi_comm *m;
    int status;

    if (mpi->comm || n == 0 || n > mpi->size)
        FAIL(NKV_EINVAL, "a group of %u of %u ranks, or a second one", n, mpi->size);
    TRY(nkv_alloc(1, sizeof *m, &m));
    status = open_group(mpi, mpi->rank < n, m);
    if (status < 0 || mpi->rank >= n) {
        nkv_free(m);
        m = NULL;
    }
    TRY(status);
    mpi->comm = m ? &m->comm : NULL;
    *comm_out = mpi->comm;
    return 0;
}

void nkv_mpi_comm_close(struct nkv_comm *comm)
{
    struct mpi_comm *m = comm_of(comm);

    if (!comm)
        return;
    nkv_region_close(&m->slices);
    MPI_Comm_free(&m->group);
    nkv_free(m);
}
