/* SPDX-License-Identifier: Apache-2.0 */
/* device/mpi_job.h: what the files that speak MPI share: the job, polite waiting, messages that are being sent. */
#ifndef NKV_DEVICE_MPI_JOB_H
#define NKV_DEVICE_MPI_JOB_H

#include <mpi.h>
#include <nearkv/parallel.h>
#include <stdatomic.h>

#include "base/mem.h"

struct nkv_mpi {
    MPI_Comm world; /* our own copy */
    uint32_t rank, size, n_local;
    struct nkv_mpi_traffic traffic;
    struct nkv_mpi_bells *bells;
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
/* Wakes a rank, of which this one knows that something is there for it; all ranks below n. */
void nkv_mpi_ring(const struct nkv_mpi *mpi, uint32_t rank);
void nkv_mpi_ring_all(const struct nkv_mpi *mpi, uint32_t n);
/* A loop that polls takes its first turn before it looks for the first time, and pauses after each look in vain. */
struct nkv_mpi_turn {
    uint64_t begin_ns;
    uint32_t seen; /* rings before the look */
    bool is_rung;  /* whoever is waited for will ring */
};
struct nkv_mpi_turn nkv_mpi_first_turn(const struct nkv_mpi *mpi);
void nkv_mpi_pause(const struct nkv_mpi *mpi, struct nkv_mpi_turn *turn);
/* Waits for a request. returns: 0 or NKV_EDEVICE. */
int nkv_mpi_wait(const struct nkv_mpi *mpi, MPI_Request *request, const char *what);
/* The same for an exchange between all ranks below n, of so many bytes each. */
int nkv_mpi_finish(const struct nkv_mpi *mpi, MPI_Request *request, uint32_t n, uint64_t bytes, const char *what);

/* ---- mpi_job.c ---- */

/* Messages to one peer, each in a buffer of its own until it is on its way. */
#define NKV_MPI_SLOTS 4u
struct nkv_mpi_outbox {
    const struct nkv_mpi *mpi;
    int peer, tag;
    uint32_t next;
    MPI_Request requests[NKV_MPI_SLOTS];
    struct nkv_region buffers[NKV_MPI_SLOTS];
};
void nkv_mpi_outbox_init(struct nkv_mpi_outbox *outbox, const struct nkv_mpi *mpi, int peer, int tag);
/* Room for messages of so many bytes; memory is taken as it is used. pre: nothing is on its way. */
int nkv_mpi_outbox_reserve(struct nkv_mpi_outbox *outbox, uint64_t bytes);
/* returns: 1 with a free buffer, 0: all are on their way, or NKV_EDEVICE. */
int nkv_mpi_outbox_take(struct nkv_mpi_outbox *outbox, void **buffer_out);
/* Sends the buffer taken last. */
int nkv_mpi_outbox_send(struct nkv_mpi_outbox *outbox, uint64_t bytes);
/* Waits until everything is on its way (a peer that is gone is not waited for) and frees the buffers. */
void nkv_mpi_outbox_close(struct nkv_mpi_outbox *outbox);

/* Receives the next message of a tag, if there is one. returns: its bytes; 0: there is none; NKV_EDEVICE, also when it
 * is larger than the buffer. */
int64_t nkv_mpi_receive(const struct nkv_mpi *mpi, int source, int tag, const struct nkv_region *buffer);

#endif
