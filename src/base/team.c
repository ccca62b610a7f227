/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fork-join teams on pthreads and futexes. A job is published by a new generation number; workers
 * spin for it for a few microseconds (the gap between two phases of one command), then sleep on
 * it. The caller works as rank 0 and then waits for the count of busy workers to reach zero.
 *
 * OpenMP was rejected: a library must not fight its host's OpenMP runtime for threads, and every
 * device needs a team of its own beside its memory.
 */
#define _GNU_SOURCE
#include "base/team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/futex.h"
#include "base/mem.h"

#define SPIN_NS     20000u
#define MAX_THREADS 1024u

struct worker {
    struct nkv_team *team;
    pthread_t thread;
    uint32_t rank;
};

struct nkv_team {
    _Alignas(NKV_CACHE_LINE) _Atomic uint32_t generation; /* futex: a new job, or stop */
    _Alignas(NKV_CACHE_LINE) _Atomic uint32_t busy;       /* futex: workers still in the job */
    _Alignas(NKV_CACHE_LINE) _Atomic uint32_t next_task;
    nkv_team_fn fn;
    void *arg;
    bool stop;
    uint32_t n_threads;
    void (*bind)(void *arg, uint32_t rank);
    void *bind_arg;
    struct worker *workers; /* ranks 1..n_threads-1 */
};

/* Returns once *word != value. */
static void wait_change(_Atomic uint32_t *word, uint32_t value)
{
    uint64_t deadline_ns = nkv_now_ns() + SPIN_NS;

    for (uint32_t i = 0; atomic_load_explicit(word, memory_order_acquire) == value; i++) {
        nkv_spin_pause();
        if (i % 64 == 63 && nkv_now_ns() > deadline_ns)
            nkv_futex_wait(word, value);
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct nkv_team *team = w->team;
    uint32_t seen = 0;

    if (team->bind)
        team->bind(team->bind_arg, w->rank);
    for (;;) {
        wait_change(&team->generation, seen);
        seen++;
        if (team->stop)
            return NULL;
        team->fn(team->arg, w->rank, team->n_threads);
        if (atomic_fetch_sub_explicit(&team->busy, 1, memory_order_acq_rel) == 1)
            nkv_futex_wake(&team->busy);
    }
}

static void publish(struct nkv_team *team)
{
    atomic_fetch_add_explicit(&team->generation, 1, memory_order_acq_rel);
    nkv_futex_wake(&team->generation);
}

void nkv_team_run(struct nkv_team *team, nkv_team_fn fn, void *arg)
{
    uint32_t busy;

    if (team->n_threads > 1) {
        team->fn = fn;
        team->arg = arg;
        atomic_store_explicit(&team->busy, team->n_threads - 1, memory_order_relaxed);
        publish(team);
    }
    fn(arg, 0, team->n_threads);
    while (team->n_threads > 1 && (busy = atomic_load_explicit(&team->busy, memory_order_acquire)) > 0)
        wait_change(&team->busy, busy);
}

struct tasks {
    struct nkv_team *team;
    uint32_t n;
    nkv_task_fn fn;
    void *arg;
};

static void run_tasks(void *arg, uint32_t rank, uint32_t n_ranks)
{
    struct tasks *tasks = arg;
    uint32_t i;

    (void)n_ranks;
    while ((i = atomic_fetch_add_explicit(&tasks->team->next_task, 1, memory_order_relaxed)) < tasks->n)
        tasks->fn(tasks->arg, i, rank);
}

void nkv_team_tasks(struct nkv_team *team, uint32_t n_tasks, nkv_task_fn fn, void *arg)
{
    struct tasks tasks = {team, n_tasks, fn, arg};

    if (n_tasks == 1 || team->n_threads == 1) {
        for (uint32_t i = 0; i < n_tasks; i++)
            fn(arg, i, 0);
        return;
    }
    atomic_store_explicit(&team->next_task, 0, memory_order_relaxed);
    nkv_team_run(team, run_tasks, &tasks);
}

uint32_t nkv_team_size(const struct nkv_team *team)
{
    return team->n_threads;
}

static void stop_workers(struct nkv_team *team, uint32_t n_started)
{
    team->stop = true;
    publish(team);
    for (uint32_t i = 0; i < n_started; i++)
        pthread_join(team->workers[i].thread, NULL);
}

int nkv_team_open(uint32_t n_threads, void (*bind)(void *arg, uint32_t rank), void *bind_arg,
                  struct nkv_team **team_out)
{
    struct nkv_team *team;
    int status;

    if (n_threads == 0 || n_threads > MAX_THREADS)
        FAIL(NKV_EINVAL, "number of threads is %u: it must be from 1 to %u", n_threads, MAX_THREADS);
    TRY(nkv_alloc(1, sizeof *team, &team));
    status = nkv_alloc(n_threads, sizeof *team->workers, &team->workers);
    if (status < 0)
        goto free_team;
    team->n_threads = n_threads;
    team->bind = bind;
    team->bind_arg = bind_arg;
    for (uint32_t i = 0; i + 1 < n_threads; i++) {
        team->workers[i] = (struct worker){.team = team, .rank = i + 1};
        if (pthread_create(&team->workers[i].thread, NULL, worker_main, &team->workers[i])) {
            stop_workers(team, i);
            status = nkv_fail(NKV_ENOMEM, "cannot start thread %u of %u", i + 1, n_threads);
            goto free_workers;
        }
    }
    *team_out = team;
    return 0;

free_workers:
    nkv_free(team->workers);
free_team:
    nkv_free(team);
    return status;
}

void nkv_team_close(struct nkv_team *team)
{
    if (!team)
        return;
    stop_workers(team, team->n_threads - 1);
    nkv_free(team->workers);
    nkv_free(team);
}

/* CPUs that the cgroup's quota (v2) pays for; UINT32_MAX when there is none. */
static uint32_t quota_cpus(void)
{
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    unsigned long long quota, period;
    uint32_t cpus = UINT32_MAX;

    if (!file)
        return cpus;
    if (fscanf(file, "%llu %llu", &quota, &period) == 2 && period > 0 && quota / period < UINT32_MAX)
        cpus = (uint32_t)((quota + period - 1) / period);
    fclose(file);
    return cpus;
}

uint32_t nkv_cpu_count(void)
{
    cpu_set_t set;
    uint32_t n = 1, quota = quota_cpus();

    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        n = (uint32_t)CPU_COUNT(&set);
    n = n < quota ? n : quota;
    return n ? n : 1;
}
