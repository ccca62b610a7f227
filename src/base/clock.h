/* SPDX-License-Identifier: Apache-2.0 */
/* base/clock.h: monotonic time and waiting; clock_gettime is confined to clock.c. */
#ifndef NKV_BASE_CLOCK_H
#define NKV_BASE_CLOCK_H

#include <stdint.h>

/* Monotonic nanoseconds from an arbitrary origin. */
uint64_t nkv_now_ns(void);
/* blocks. */
void nkv_sleep_ms(uint32_t ms);

#endif
