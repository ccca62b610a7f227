/* SPDX-License-Identifier: Apache-2.0 */
/* output.h: what is asked of a file before a subcommand writes it. */
#ifndef NKV_CLI_OUTPUT_H
#define NKV_CLI_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

/* Whether path, which `flag` wants written, is another file than the one that `other_flag` names ("-": standard input).
 * Nothing but regular files counts: /dev/null is read and written by many. returns: CLI_OK, or CLI_USAGE with a message
 * that names both. */
int output_is_other(const char *flag, const char *path, const char *other_flag, const char *other);
/* The same where the other is the memory of a device: file:PATH[:SIZE]; anything else is no file. */
int output_is_no_memory(const char *flag, const char *path, const char *other_flag, const char *memory);
/* Whether no process has path as the memory of a device. returns: CLI_OK, or CLI_USAGE with a message. */
int output_is_free(const char *flag, const char *path);

/* Bytes of file:PATH[:SIZE] without the size: what follows the last colon is one if it begins with a digit and has no
 * slash, as the library reads it. And its PATH; returns: false: it is no file, or longer than bytes. */
int output_memory_length(const char *memory);
bool output_memory_path(const char *memory, char *path_out, size_t bytes);

#endif
