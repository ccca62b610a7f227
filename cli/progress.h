/* SPDX-License-Identifier: Apache-2.0 */
/* progress.h: time, the progress bar on a terminal, and Ctrl-C. */
#ifndef NKV_CLI_PROGRESS_H
#define NKV_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* Monotonic nanoseconds. */
uint64_t progress_now_ns(void);

struct progress {
    const char *what, *unit; /* "prefill", "tokens" */
    uint64_t start_ns, shown_ns;
    bool is_terminal;
};
void progress_start(struct progress *progress, const char *what, const char *unit);
/* An nkv_progress_fn; arg: a struct progress. returns: nonzero after Ctrl-C. */
int progress_update(void *arg, uint64_t n_done, uint64_t n_total);
/* For loops that only watch others work. */
void progress_sleep_ms(uint32_t ms);
/* Wipes the bar. */
void progress_end(struct progress *progress);

/* From now on SIGINT and SIGTERM set a flag that ends the work cleanly; a second one kills as usual. */
void progress_catch_interrupt(void);
/* From now on they end the program at once, with a message and CLI_FAILED: while it does what never looks at that flag
 * (making weights, measuring the memory), and has nothing to leave in order. */
void progress_end_on_interrupt(void);
bool progress_interrupted(void);
/* Waits until fd can be read. returns: false after Ctrl-C. */
bool progress_wait_readable(int fd);

#endif
