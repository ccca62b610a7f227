/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What reading machines and models shares and YAML does not matter to: the file's bytes, and how far a name is from
 * another (Levenshtein, one row of the table at a time). Files are read into memory before they are parsed, so that a
 * parser sees one buffer of known size whatever the path is; a stream was rejected: a pipe has no size to refuse.
 */
#define _POSIX_C_SOURCE 200809L
#include "sim/load.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

#define NAME_BYTES 63u

static int read_open(const char *path, FILE *file, char **text_out, size_t *bytes_out)
{
    char *text = NULL;
    size_t bytes;

    TRY(nkv_alloc(SIM_FILE_BYTES + 1, 1, &text));
    bytes = fread(text, 1, SIM_FILE_BYTES + 1, file);
    if (ferror(file)) {
        nkv_free(text);
        FAIL(NKV_EIO, "%s: cannot read: %s", path, strerror(errno));
    }
    if (bytes > SIM_FILE_BYTES) {
        nkv_free(text);
        FAIL(NKV_EFORMAT, "%s: larger than 1 MiB: this is no machine or model file", path);
    }
    *text_out = text;
    *bytes_out = bytes;
    return 0;
}

int sim_file_read(const char *path, char **text_out, size_t *bytes_out)
{
    FILE *file = fopen(path, "rb");
    int status;

    if (!file)
        FAIL(errno == ENOENT ? NKV_ENOENT : NKV_EIO, "%s: cannot open: %s", path, strerror(errno));
    status = read_open(path, file, text_out, bytes_out);
    fclose(file);
    return status;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint32_t sim_edit_distance(const char *a, const char *b)
{
    uint32_t row[NAME_BYTES + 1];
    uint32_t n_b = (uint32_t)strnlen(b, NAME_BYTES);

    for (uint32_t j = 0; j <= n_b; j++)
        row[j] = j;
    for (uint32_t i = 0; i < NAME_BYTES && a[i]; i++) {
        uint32_t diagonal = row[0];

        row[0] = i + 1;
        for (uint32_t j = 0; j < n_b; j++) {
            uint32_t changed = diagonal + (a[i] != b[j]);

            diagonal = row[j + 1];
            row[j + 1] = least(changed, least(diagonal, row[j]) + 1);
        }
    }
    return row[n_b];
}
