/* SPDX-License-Identifier: Apache-2.0 */
/* base/clock.h: monotonic time; clock_gettime is confined to clock.c. */
#ifndef NKV_BASE_CLOCK_H
#define NKV_BASE_CLOCK_H

#include <stdint.h>

/* Monotonic nanoseconds from an arbitrary origin. */
uint64_t nkv_now_ns(void);

#endif
