/* SPDX-License-Identifier: Apache-2.0 */
/* cli.h: what the subcommands share: exit codes, error messages, numbers on the command line, memory that is free. */
#ifndef NKV_CLI_CLI_H
#define NKV_CLI_CLI_H

#include <nearkv/nearkv.h>

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* Print "nearkv: ..." on stderr and return CLI_FAILED / CLI_USAGE. */
int cli_fail(const char *format, ...) NKV_PRINTF(1, 2);
int cli_usage(const char *format, ...) NKV_PRINTF(1, 2);
/* Prints why a call of the library failed with status, behind `what`, if that is not NULL. returns: CLI_USAGE if its
 * arguments are wrong (NKV_EINVAL), else CLI_FAILED. */
int cli_refused(const char *what, int status);

/* From now on messages are not printed; the last one is kept. tell: prints it, with the number of this rank. */
void cli_hold_messages(void);
void cli_tell_message(uint32_t rank);

/*
 * A whole number with an optional suffix K, M or G (powers of 1024) from low to high. returns: CLI_OK or CLI_USAGE with
 * a message that names flag, value and range.
 */
int cli_u64(const char *flag, const char *text, uint64_t low, uint64_t high, uint64_t *value_out);
int cli_u32(const char *flag, const char *text, uint32_t low, uint32_t high, uint32_t *value_out);
/* The same without a message, for a number that is a part of a value. */
bool cli_number(const char *text, uint64_t low, uint64_t high, uint64_t *value_out);
/* A finite decimal number from low to high. */
int cli_float(const char *flag, const char *text, double low, double high, float *value_out);

/* Where the percentile lies in n sorted values: its nearest rank, the least that percent of them do not exceed. */
uint32_t cli_nearest_rank(uint32_t n, uint32_t percent);

/* Memory that can be had without swapping, in bytes (MemAvailable, and the cgroup's limit when it is lower). */
uint64_t cli_available_bytes(void);
/* returns: CLI_OK, or CLI_FAILED with a message that says how much is missing for `what`. */
int cli_check_memory(const char *what, uint64_t need_bytes);

/* "3.2 GB" (powers of 1000) into a static buffer, one of four in turn. */
const char *cli_bytes(uint64_t bytes);
/* Whether a device spec names a device of another process: its pages are not this one's memory. */
bool cli_is_remote(const char *spec);
/* CPUs that this process may use. */
uint32_t cli_cpus(void);

#endif
