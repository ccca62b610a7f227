/* SPDX-License-Identifier: Apache-2.0 */
/* base/status.h: how library code reports a failure: one message, written by the first detector. */
#ifndef NKV_BASE_STATUS_H
#define NKV_BASE_STATUS_H

#include <nearkv/types.h>

/* Formats the message of this thread's last failure and returns status. */
int nkv_fail(int status, const char *format, ...) NKV_PRINTF(2, 3);
/* Messages written on this thread so far: tells whether a call that failed has left one. */
uint64_t nkv_fail_count(void);

/* The only two control-flow macros of the project. */
#define TRY(expr)                                                                                                      \
    do {                                                                                                               \
        int try_status_ = (expr);                                                                                      \
        if (try_status_ < 0)                                                                                           \
            return try_status_;                                                                                        \
    } while (0)
#define FAIL(status, ...) return nkv_fail((status), __VA_ARGS__)

#endif
