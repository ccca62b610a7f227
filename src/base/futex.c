/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The futex system call, which libc does not wrap. Condition variables were rejected: they need a lock that the waking
 * side would take on every command, sleeper or not.
 */
#define _GNU_SOURCE
#include "base/futex.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

void nkv_futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

void nkv_futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void nkv_futex_wait_shared(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns)
{
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                               .tv_nsec = (long)(timeout_ns % 1000000000u)};

    syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, NULL, 0);
}

void nkv_futex_wake_shared(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

bool nkv_spin_below(_Atomic uint32_t *word, uint32_t base, uint32_t distance, uint64_t spin_ns)
{
    uint64_t deadline_ns = nkv_now_ns() + spin_ns;

    for (uint32_t i = 0; atomic_load_explicit(word, memory_order_acquire) - base < distance; i++) {
        if (i % 32 == 31) {
            if (nkv_now_ns() > deadline_ns)
                return true;
            sched_yield();
        }
        nkv_spin_pause();
    }
    return false;
}
