/* SPDX-License-Identifier: Apache-2.0 */
/* device/mpi_job.h: what the files that speak MPI share: the job and polite waiting. */
#ifndef NKV_DEVICE_MPI_JOB_H
#define NKV_DEVICE_MPI_JOB_H

#include <mpi.h>
#include <nearkv/parallel.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/mem.h"

struct nkv_mpi {
    MPI_Comm world; /* our own copy */
    uint32_t rank, size, n_local;
    struct nkv_mpi_traffic traffic;
    struct nkv_mpi_bells *bells;
    bool *is_open;         /* by rank: it is a device here */
    struct nkv_comm *comm; /* of nkv_mpi_comm, NULL: none */
};

/* The job that this process has joined; NULL: none. */
struct nkv_mpi *nkv_mpi_current(void);
/* NULL is allowed. */
void nkv_mpi_comm_close(struct nkv_comm *comm);
/* A return code of MPI. returns: 0, or NKV_EDEVICE with a message that says what failed. */
int nkv_mpi_check(int code, const char *what);

/* ---- mpi_bell.c ---- */

/* Collective over the ranks of this machine, `local`. State after a failure: bells_close is right if they are there. */
int nkv_mpi_bells_open(struct nkv_mpi *mpi, MPI_Comm local, uint32_t n_local);
void nkv_mpi_bells_close(struct nkv_mpi *mpi);
/* Whether it is of this machine. */
bool nkv_mpi_is_near(const struct nkv_mpi *mpi, uint32_t rank);
/* Wakes a rank, of which this one knows that something is there for it; all ranks below n. */
void nkv_mpi_ring(const struct nkv_mpi *mpi, uint32_t rank);
void nkv_mpi_ring_all(const struct nkv_mpi *mpi, uint32_t n);
/* A loop that polls takes its first turn before it looks for the first time, and pauses after each look in vain. */
struct nkv_mpi_turn {
    uint64_t begin_ns;
    uint32_t seen;   /* rings before the look */
    bool is_rung;    /* whoever is waited for will ring */
    bool is_certain; /* when all is there that is waited for */
};
struct nkv_mpi_turn nkv_mpi_first_turn(const struct nkv_mpi *mpi);
void nkv_mpi_pause(const struct nkv_mpi *mpi, struct nkv_mpi_turn *turn);
/* Waits for a request. returns: 0 or NKV_EDEVICE. */
int nkv_mpi_wait(const struct nkv_mpi *mpi, MPI_Request *request, const char *what);
/* The same for an exchange between all ranks below n, of so many bytes each. */
int nkv_mpi_finish(const struct nkv_mpi *mpi, MPI_Request *request, uint32_t n, uint64_t bytes, const char *what);

#endif
