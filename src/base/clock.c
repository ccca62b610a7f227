/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Monotonic time. Code that decides anything by time takes it from an injected clock; this is the
 * one real source.
 */
#define _GNU_SOURCE
#include "base/clock.h"

#include <time.h>

uint64_t nkv_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void nkv_sleep_ms(uint32_t ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

    nanosleep(&t, NULL);
}
