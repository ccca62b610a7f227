/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target over every file of the directories given, without libFuzzer: the committed corpus as a regression
 * test. A directory that is missing or empty is a failure, since it would test nothing. Each input is copied into
 * memory of exactly its size, so that AddressSanitizer sees the first byte beyond it.
 */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static int read_file(const char *path, uint8_t **data_out, size_t *bytes_out)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    long bytes = -1;

    if (!file)
        return -1;
    if (fseek(file, 0, SEEK_END) == 0)
        bytes = ftell(file);
    rewind(file);
    if (bytes >= 0)
        data = malloc(bytes ? (size_t)bytes : 1);
    if (data && fread(data, 1, (size_t)bytes, file) != (size_t)bytes) {
        free(data);
        data = NULL;
    }
    fclose(file);
    *data_out = data;
    *bytes_out = (size_t)bytes;
    return data ? 0 : -1;
}

static int replay_file(const char *path)
{
    uint8_t *data = NULL;
    size_t bytes = 0;

    if (read_file(path, &data, &bytes) < 0) {
        fprintf(stderr, "%s: cannot read: %s\n", path, strerror(errno));
        return -1;
    }
    (void)LLVMFuzzerTestOneInput(data, bytes);
    free(data);
    return 0;
}

/* The number of files replayed, negative on failure. */
static int replay_directory(const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    char name[4096];
    int n = 0;

    if (!directory) {
        fprintf(stderr, "%s: cannot open: %s\n", path, strerror(errno));
        return -1;
    }
    while (n >= 0 && (entry = readdir(directory))) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        n = replay_file(name) < 0 ? -1 : n + 1;
    }
    closedir(directory);
    if (n == 0)
        fprintf(stderr, "%s: no inputs\n", path);
    return n > 0 ? n : -1;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s DIRECTORY...\n", argv[0]);
        return 2;
    }
    for (int i = 1; i < argc; i++) {
        int n = replay_directory(argv[i]);

        if (n < 0)
            return 1;
        printf("%s: %d inputs\n", argv[i], n);
    }
    return 0;
}
