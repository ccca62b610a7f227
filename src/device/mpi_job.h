/* SPDX-License-Identifier: Apache-2.0 */
/* device/mpi_job.h: what the files that speak MPI share: the job, polite waiting, messages that are being sent. */
#ifndef NKV_DEVICE_MPI_JOB_H
#define NKV_DEVICE_MPI_JOB_H

#include <mpi.h>
#include <nearkv/parallel.h>

#include "base/mem.h"

struct nkv_mpi {
    MPI_Comm world; /* our own copy */
    uint32_t rank, size, n_local;
    struct nkv_mpi_traffic traffic;
    struct nkv_comm *comm; /* of nkv_mpi_comm, NULL: none */
};

/* The job that this process has joined; NULL: none. */
struct nkv_mpi *nkv_mpi_current(void);
/* NULL is allowed. */
void nkv_mpi_comm_close(struct nkv_comm *comm);
/* A return code of MPI. returns: 0, or NKV_EDEVICE with a message that says what failed. */
int nkv_mpi_check(int code, const char *what);

/*
 * One turn of a loop that polls, from its first turn at begin_ns on: first it spins, then yields, then sleeps for a
 * 32nd of the time that it has waited: whoever waits costs the others on its CPU little, and is late by little.
 */
void nkv_mpi_pause(uint64_t begin_ns);
/* Waits for a request. returns: 0 or NKV_EDEVICE. */
int nkv_mpi_wait(MPI_Request *request, const char *what);

/* Messages to one peer, each in a buffer of its own until it is on its way. */
#define NKV_MPI_SLOTS 4u
struct nkv_mpi_outbox {
    MPI_Comm comm;
    int peer, tag;
    uint32_t next;
    MPI_Request requests[NKV_MPI_SLOTS];
    struct nkv_region buffers[NKV_MPI_SLOTS];
};
void nkv_mpi_outbox_init(struct nkv_mpi_outbox *outbox, MPI_Comm comm, int peer, int tag);
/* Room for messages of so many bytes; memory is taken as it is used. pre: nothing is on its way. */
int nkv_mpi_outbox_reserve(struct nkv_mpi_outbox *outbox, uint64_t bytes);
/* returns: 1 with a free buffer, 0: all are on their way, or NKV_EDEVICE. */
int nkv_mpi_outbox_take(struct nkv_mpi_outbox *outbox, void **buffer_out);
/* Sends the buffer taken last. */
int nkv_mpi_outbox_send(struct nkv_mpi_outbox *outbox, uint64_t bytes);
/* Waits until everything is on its way (a peer that is gone is not waited for) and frees the buffers. */
void nkv_mpi_outbox_close(struct nkv_mpi_outbox *outbox);

/*
 * Receives the next message of a tag, if there is one. returns: its bytes; 0: there is none; NKV_EDEVICE, also when it
 * is larger than the buffer.
 */
int64_t nkv_mpi_receive(MPI_Comm comm, int source, int tag, const struct nkv_region *buffer);

#endif
