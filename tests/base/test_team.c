/* SPDX-License-Identifier: Apache-2.0 */
/* Every rank runs once per job, every task exactly once, jobs do not overlap, and a team that cannot start leaves
 * nothing behind. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/team.h"

#define N_TASKS 1000u

struct count {
    _Atomic uint32_t ranks[8];
    _Atomic uint32_t tasks[N_TASKS];
};

static void count_rank(void *arg, uint32_t rank, uint32_t n_ranks)
{
    struct count *count = arg;

    (void)n_ranks;
    atomic_fetch_add(&count->ranks[rank], 1);
}

static void count_task(void *arg, uint32_t task, uint32_t rank)
{
    struct count *count = arg;

    (void)rank;
    atomic_fetch_add(&count->tasks[task], 1);
}

static void run_team(uint32_t n_threads)
{
    struct nkv_team *team;
    struct count count = {0};

    assert_int_equal(nkv_team_open(n_threads, NULL, NULL, &team), 0);
    assert_int_equal(nkv_team_size(team), n_threads);
    for (uint32_t job = 1; job <= 200; job++) {
        nkv_team_run(team, count_rank, &count);
        for (uint32_t r = 0; r < n_threads; r++)
            assert_int_equal(count.ranks[r], job);
        if (job % 50 == 0)
            usleep(1000); /* long enough for the workers to fall asleep */
    }
    nkv_team_tasks(team, N_TASKS, count_task, &count);
    nkv_team_tasks(team, 0, count_task, &count);
    nkv_team_tasks(team, 1, count_task, &count);
    assert_int_equal(count.tasks[0], 2);
    for (uint32_t i = 1; i < N_TASKS; i++)
        assert_int_equal(count.tasks[i], 1);
    nkv_team_close(team);
}

static void every_rank_and_task_runs_once(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 4; n++)
        run_team(n);
}

static void note_rank(void *arg, uint32_t rank)
{
    atomic_fetch_or((_Atomic uint32_t *)arg, 1u << rank);
}

static void workers_are_bound(void **state)
{
    struct nkv_team *team;
    _Atomic uint32_t bound = 0;

    (void)state;
    assert_int_equal(nkv_team_open(3, note_rank, &bound, &team), 0);
    nkv_team_close(team);
    assert_int_equal(bound, 6);
}

static void bad_sizes_and_failed_allocations(void **state)
{
    struct nkv_team *team = NULL;

    (void)state;
    assert_int_equal(nkv_team_open(0, NULL, NULL, &team), NKV_EINVAL);
    assert_int_equal(nkv_team_open(100000, NULL, NULL, &team), NKV_EINVAL);
    for (uint64_t n = 1; n <= 2; n++) {
        nkv_mem_fail_at(n);
        assert_int_equal(nkv_team_open(2, NULL, NULL, &team), NKV_ENOMEM);
    }
    nkv_mem_fail_at(0);
    assert_null(team);
    nkv_team_close(NULL);
    assert_true(nkv_cpu_count() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rank_and_task_runs_once),
        cmocka_unit_test(workers_are_bound),
        cmocka_unit_test(bad_sizes_and_failed_allocations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
