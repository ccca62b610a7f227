/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/team.h: a team of threads for fork-join work. The caller is rank 0; workers wait between
 * jobs (a short spin, then sleep).
 */
#ifndef NKV_BASE_TEAM_H
#define NKV_BASE_TEAM_H

#include <stdint.h>

#include "base/status.h"

struct nkv_team;

typedef void (*nkv_team_fn)(void *arg, uint32_t rank, uint32_t n_ranks);
typedef void (*nkv_task_fn)(void *arg, uint32_t task, uint32_t rank);

/*
 * Starts n_threads - 1 workers. `bind`, when not NULL, is called first on every worker with its
 * rank (a device binds its threads to its memory there).
 * returns: 0, NKV_EINVAL (n_threads 0 or above 1024), NKV_ENOMEM.
 */
int nkv_team_open(uint32_t n_threads, void (*bind)(void *arg, uint32_t rank), void *bind_arg,
                  struct nkv_team **team_out);
void nkv_team_close(struct nkv_team *team);
uint32_t nkv_team_size(const struct nkv_team *team);

/* Runs fn once on every rank and returns when all have ended. One caller at a time. blocks. */
void nkv_team_run(struct nkv_team *team, nkv_team_fn fn, void *arg);

/*
 * Runs fn for tasks 0..n_tasks-1, handed out one at a time in order to whichever rank is free:
 * a task's result must not depend on its rank. blocks.
 */
void nkv_team_tasks(struct nkv_team *team, uint32_t n_tasks, nkv_task_fn fn, void *arg);

/* Number of CPUs this process may run on (affinity and cgroup quota), at least 1. */
uint32_t nkv_cpu_count(void);

#endif
