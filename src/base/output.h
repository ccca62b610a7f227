/* SPDX-License-Identifier: Apache-2.0 */
/* base/output.h: a file that appears whole or not at all. */
#ifndef NKV_BASE_OUTPUT_H
#define NKV_BASE_OUTPUT_H

#include <stdint.h>
#include <sys/types.h>

#include "base/status.h"

#define NKV_OUTPUT_PATH 4096 /* PATH_MAX of Linux, which a header has only with _GNU_SOURCE */

struct nkv_output {
    int fd;                        /* -1: none */
    char path[NKV_OUTPUT_PATH];    /* what takes the bytes in the end: links are resolved */
    char written[NKV_OUTPUT_PATH]; /* what is written: a new file beside it; or path itself, where that is no regular
                                      file */
};

/*
 * Begins a file. What is no regular file (a pipe, a character device, a descriptor as /dev/stdout names it) is written
 * straight. returns: 0, with *output to be closed; NKV_EINVAL: no name, too long a name, a directory, a link that leads
 * nowhere; NKV_EIO.
 */
int nkv_output_open(const char *path, mode_t mode, struct nkv_output *output);
/* returns: 0, or NKV_EIO. */
int nkv_output_put(struct nkv_output *output, const void *data, uint64_t bytes);
/* Forces the bytes to the disk and gives the file its name. returns: 0, or NKV_EIO. */
int nkv_output_finish(struct nkv_output *output);
/* Removes what was not finished. */
void nkv_output_close(struct nkv_output *output);

#endif
