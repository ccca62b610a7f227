/* SPDX-License-Identifier: Apache-2.0 */
/* A thread is pinned only where there is a CPU for every thread of its team, and gets back what it had. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>

#include "base/affinity.h"

static cpu_set_t current(void)
{
    cpu_set_t set;

    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    return set;
}

static void each_rank_has_its_own_cpu_and_gives_it_back(void **state)
{
    cpu_set_t before = current(), seen, now;
    uint32_t n = (uint32_t)CPU_COUNT(&before);
    struct nkv_affinity saved;

    (void)state;
    CPU_ZERO(&seen);
    for (uint32_t rank = 0; rank < n; rank++) {
        nkv_affinity_pin(rank, n, &saved);
        assert_true(saved.pinned);
        now = current();
        assert_int_equal(CPU_COUNT(&now), 1);
        CPU_OR(&seen, &seen, &now);
        nkv_affinity_restore(&saved);
        now = current();
        assert_true(CPU_EQUAL(&now, &before));
    }
    assert_true(CPU_EQUAL(&seen, &before));
}

static void other_teams_are_left_alone(void **state)
{
    cpu_set_t before = current(), now;
    uint32_t n = (uint32_t)CPU_COUNT(&before);
    struct nkv_affinity saved;

    (void)state;
    nkv_affinity_pin(0, n + 1, &saved);
    assert_false(saved.pinned);
    nkv_affinity_pin(n, n, &saved);
    assert_false(saved.pinned);
    nkv_affinity_restore(&saved);
    now = current();
    assert_true(CPU_EQUAL(&now, &before));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_rank_has_its_own_cpu_and_gives_it_back),
        cmocka_unit_test(other_teams_are_left_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
