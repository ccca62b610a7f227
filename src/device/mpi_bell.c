/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How ranks wait. MPI's own waiting calls are not used: they poll without end, and a rank that waits would take a core
 * from the one that it waits for when both share it. (Progress threads were not an option: Debian's MPI has none.)
 * Everything is the nonblocking call in a loop, and between two looks a turn: first it spins, then it yields, then it
 * sleeps.
 *
 * Ranks of one machine wake each other: each has a bell, two words of memory that all of them map. Who sleeps says so,
 * looks at the bell's counter once more and sleeps on it (a futex); who has sent something counts the bell up, and
 * wakes the sleeper if there is one. What takes several steps of MPI's on both sides (a long exchange), or comes from
 * another machine, does not ring: then the sleep ends by itself after a 32nd of the time waited so far. Else it ends
 * seldom: every look takes time from the device's team, which works on the same cores. What comes through a lane
 * (mpi_lane.c) is there when its bell rings, so that sleep hardly ever ends by itself. If someone needs a step of MPI's
 * from this rank meanwhile, they ring it (finish_receiving, nkv_mpi_finish).
 */
#define _GNU_SOURCE
#include <sched.h>

#include "base/clock.h"
#include "base/futex.h"
#include "device/mpi_job.h"

#define SPIN_NS    4000u
#define YIELD_NS   20000u
#define CERTAIN_NS 50000000u
#define BULK       (64u << 10) /* bytes of an exchange from which on MPI may need several steps for it */

struct bell {
    _Alignas(NKV_CACHE_LINE) _Atomic uint32_t rings;
    _Atomic uint32_t sleeps;
};

struct nkv_mpi_bells {
    MPI_Win window;
    struct bell *own;
    bool all_near;     /* every rank of the job has one here */
    struct bell *of[]; /* by rank; NULL: on another machine */
};

/* MPI gives memory without alignment, at the same place within a page for all who map it. */
static struct bell *aligned(void *memory)
{
    return (struct bell *)nkv_round_up((uintptr_t)memory, NKV_CACHE_LINE);
}

static int map_bells(struct nkv_mpi *mpi, MPI_Comm local, uint32_t n_local, struct nkv_mpi_bells *bells)
{
    int *ranks, rank = (int)mpi->rank, unit, code;
    void *memory = NULL;
    MPI_Aint bytes;

    TRY(nkv_alloc(n_local, sizeof *ranks, &ranks));
    code = MPI_Allgather(&rank, 1, MPI_INT, ranks, 1, MPI_INT, local);
    for (uint32_t i = 0; code == MPI_SUCCESS && i < n_local; i++) {
        code = MPI_Win_shared_query(bells->window, (int)i, &bytes, &unit, &memory);
        bells->of[ranks[i]] = aligned(memory);
    }
    nkv_free(ranks);
    bells->own = bells->of[rank];
    bells->all_near = n_local == mpi->size;
    return nkv_mpi_check(code, "mapping memory for bells");
}

int nkv_mpi_bells_open(struct nkv_mpi *mpi, MPI_Comm local, uint32_t n_local)
{
    struct nkv_mpi_bells *bells;
    void *memory = NULL;
    struct bell *own;

    TRY(nkv_alloc(1, sizeof *bells + mpi->size * sizeof *bells->of, &bells));
    mpi->bells = bells;
    TRY(nkv_mpi_check(MPI_Win_allocate_shared(2 * sizeof *own, 1, MPI_INFO_NULL, local, &memory, &bells->window),
                      "making memory for bells"));
    own = aligned(memory);
    atomic_store(&own->rings, 0);
    atomic_store(&own->sleeps, 0);
    return map_bells(mpi, local, n_local, bells);
}

void nkv_mpi_bells_close(struct nkv_mpi *mpi)
{
    MPI_Win_free(&mpi->bells->window);
    nkv_free(mpi->bells);
}

bool nkv_mpi_is_near(const struct nkv_mpi *mpi, uint32_t rank)
{
    return mpi->bells->of[rank] != NULL;
}

void nkv_mpi_ring(const struct nkv_mpi *mpi, uint32_t rank)
{
    struct bell *bell = mpi->bells->of[rank];

    if (!bell)
        return;
    atomic_fetch_add(&bell->rings, 1);
    if (atomic_load(&bell->sleeps))
        nkv_futex_wake_shared(&bell->rings);
}

void nkv_mpi_ring_all(const struct nkv_mpi *mpi, uint32_t n)
{
    for (uint32_t rank = 0; rank < n; rank++)
        if (rank != mpi->rank)
            nkv_mpi_ring(mpi, rank);
}

struct nkv_mpi_turn nkv_mpi_first_turn(const struct nkv_mpi *mpi)
{
    return (struct nkv_mpi_turn){nkv_now_ns(), atomic_load(&mpi->bells->own->rings), mpi->bells->all_near, false};
}

static uint64_t clamp(uint64_t x, uint64_t low, uint64_t high)
{
    return x < low ? low : x < high ? x : high;
}

static uint64_t sleep_ns(const struct nkv_mpi_turn *turn, uint64_t waited_ns)
{
    if (!turn->is_rung)
        return clamp(waited_ns / 32, 5000, 1000000);
    return turn->is_certain ? CERTAIN_NS : clamp(waited_ns / 4, 500000, 5000000);
}

void nkv_mpi_pause(const struct nkv_mpi *mpi, struct nkv_mpi_turn *turn)
{
    struct bell *own = mpi->bells->own;
    uint64_t waited_ns = nkv_now_ns() - turn->begin_ns;

    if (waited_ns < SPIN_NS) {
        nkv_spin_pause();
    } else if (waited_ns < YIELD_NS) {
        sched_yield();
    } else {
        atomic_store(&own->sleeps, 1);
        nkv_futex_wait_shared(&own->rings, turn->seen, sleep_ns(turn, waited_ns));
        atomic_store(&own->sleeps, 0);
    }
    turn->seen = atomic_load(&own->rings);
}

static int wait_from(const struct nkv_mpi *mpi, MPI_Request *request, struct nkv_mpi_turn turn, const char *what)
{
    int done = 0;

    for (;;) {
        TRY(nkv_mpi_check(MPI_Test(request, &done, MPI_STATUS_IGNORE), what));
        if (done)
            return 0;
        nkv_mpi_pause(mpi, &turn);
    }
}

int nkv_mpi_wait(const struct nkv_mpi *mpi, MPI_Request *request, const char *what)
{
    return wait_from(mpi, request, nkv_mpi_first_turn(mpi), what);
}

/* Whoever waits for a part of it may have to pass it on: all are woken when it begins and when it is done here. */
int nkv_mpi_finish(const struct nkv_mpi *mpi, MPI_Request *request, uint32_t n, uint64_t bytes, const char *what)
{
    struct nkv_mpi_turn turn = nkv_mpi_first_turn(mpi);

    turn.is_rung &= bytes < BULK;
    nkv_mpi_ring_all(mpi, n);
    TRY(wait_from(mpi, request, turn, what));
    nkv_mpi_ring_all(mpi, n);
    return 0;
}
