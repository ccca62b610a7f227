/* SPDX-License-Identifier: Apache-2.0 */
/*
 * parallel.h: a run of several processes: `mpirun -n N nearkv run --tp T --pnm-ranks P`. Ranks below T compute, rank 0
 * leads and is the only one that prints; the others are PNM devices. Where something can be wrong in one process alone,
 * all agree before they go on: a failure is told once, and every process ends with its status.
 */
#ifndef NKV_CLI_PARALLEL_H
#define NKV_CLI_PARALLEL_H

#include <jansson.h>
#include <nearkv/model.h>

#include "session.h"

struct parallel_options {
    uint32_t n_tp, n_pnm; /* 0: not given */
};

struct parallel {
    struct parallel_options options;
    struct nkv_mpi *mpi; /* NULL: one process */
    uint32_t rank, size;
    struct nkv_comm *comm; /* of the compute ranks */
    bool busy;             /* ranks do different things: the others wait for what rank 0 does */
    char specs[SESSION_MAX_DEVICES][16];
};

/* Before the command line is read: joins the job that the launcher started, if there is one; all but rank 0 fall silent
 * from here on. returns: CLI_OK or CLI_FAILED. */
int parallel_begin(struct parallel *parallel);
/* Whether a launcher started this process as one of several. */
bool parallel_launched(void);
/* Rank 0: says so where threads share CPUs because the launcher bound this process. */
void parallel_tell_binding(uint32_t n_threads);
/* The value of --tp or --pnm-ranks. */
int parallel_option(const char *flag, const char *arg, uint32_t *n_out);
/* What is wrong between the flags and the job; then the roles. rc: of reading the command line. Puts the PNM ranks into
 * session. returns: the same in every process. */
int parallel_roles(struct parallel *parallel, int rc, struct session_options *session);
static inline bool parallel_is_device(const struct parallel *parallel)
{
    return parallel->mpi && !parallel->comm;
}
static inline bool parallel_follows(const struct parallel *parallel)
{
    return parallel->comm && parallel->comm->rank > 0;
}
/* Cuts the model, which was opened with rc (PNM ranks: NULL); then all agree. returns: the same in every process. */
int parallel_shard(struct parallel *parallel, int rc, struct nkv_model *model);
/* What the others do until rank 0 has ended. */
int parallel_serve(struct parallel *parallel);
int parallel_follow(struct parallel *parallel, struct nkv_decoder *decoder);
/* Runs a benchmark in rank 0; the other processes are devices that it may open (mpi:RANK). */
int parallel_bench(int argc, char **argv, int (*bench)(int argc, char **argv));
/* What the processes exchanged, for the report. pre: there are several. */
json_t *parallel_json(const struct parallel *parallel);
/* The end of a run. After a failure every process is ended here; else returns rc, the same in every process. */
int parallel_end(struct parallel *parallel, int rc);

#endif
