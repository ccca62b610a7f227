/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "file:PATH[:SIZE]" and "dax:PATH": memory that outlives the process. What follows the last colon is a size if it
 * reads as one; a path that ends like that is written with its size behind it.
 */
#include <stdio.h>
#include <string.h>

#include "device/backend.h"
#include "device/cpu.h"

static int parse_file(const char *text, struct nkv_image_options *options, char path_out[NKV_MEMORY_PATH_BYTES])
{
    const char *colon = strrchr(text, ':');
    struct nkv_option size = {.key = "SIZE", .key_length = 4};
    size_t length = strlen(text);

    if (colon && colon[1] >= '0' && colon[1] <= '9' && !strchr(colon, '/')) {
        size.value = colon + 1;
        size.value_length = strlen(colon + 1);
        TRY(nkv_option_number(&size, true, UINT64_MAX, &options->bytes));
        if (options->bytes == 0)
            FAIL(NKV_EINVAL, "memory file:%.100s: SIZE 0 is no size: give one like 64M, or none if the file is there",
                 text);
        length = (size_t)(colon - text);
    }
    if (length == 0 || length >= NKV_MEMORY_PATH_BYTES)
        FAIL(NKV_EINVAL, "memory file:%.100s: give file:PATH or file:PATH:SIZE", text);
    memcpy(path_out, text, length);
    path_out[length] = '\0';
    return 0;
}

int nkv_memory_parse(const char *memory, struct nkv_image_options *options_out, char path_out[NKV_MEMORY_PATH_BYTES])
{
    struct nkv_image_options options = {.path = path_out};

    if (strncmp(memory, "file:", 5) == 0) {
        TRY(parse_file(memory + 5, &options, path_out));
    } else if (strncmp(memory, "dax:", 4) == 0 && memory[4] && strlen(memory + 4) < NKV_MEMORY_PATH_BYTES) {
        strcpy(path_out, memory + 4);
        options.is_dax = true;
    } else {
        FAIL(NKV_EINVAL, "memory '%.100s': give file:PATH, file:PATH:SIZE or dax:/dev/daxX.Y", memory);
    }
    *options_out = options;
    return 0;
}

int nkv_memory_shape(const char *memory, struct nkv_kv_shape *shape_out)
{
    struct nkv_image_options options;
    char path[NKV_MEMORY_PATH_BYTES];

    TRY(nkv_memory_parse(memory, &options, path));
    return nkv_image_peek(&options, shape_out);
}

int nkv_memory_check(const char *memory, void (*say)(void *arg, const char *line), void *arg,
                     struct nkv_memory_report *report_out)
{
    struct nkv_image_options options;
    char path[NKV_MEMORY_PATH_BYTES];

    TRY(nkv_memory_parse(memory, &options, path));
    return nkv_image_check(&options, say, arg, report_out);
}
