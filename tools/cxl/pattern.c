/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pattern write|check PATH SEED: whether a DAX device keeps what is written to it.
 *
 * Every word of four stretches of the device (at its beginning, its thirds and its end) gets a value of its own, made
 * from the seed and its offset. The guest writes to all devices before it checks any: two windows that lead to the same
 * memory are found, too. A check that succeeds leaves zeros behind, so that nobody takes the pattern for contents.
 *
 * Rejected: dd, because a DAX device can only be mapped; daxio, which would be one more package and copies files.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define STRETCHES     4u
#define STRETCH_BYTES ((uint64_t)1 << 20)
#define ALIGNMENT     ((uint64_t)2 << 20) /* of a DAX device's mappings */

/* The device's size, which fstat does not tell. 0: not known. */
static uint64_t dax_bytes(int fd)
{
    unsigned long long bytes = 0;
    struct stat stat;
    char path[96];
    FILE *file;

    if (fstat(fd, &stat) != 0)
        return 0;
    snprintf(path, sizeof path, "/sys/dev/char/%u:%u/size", major(stat.st_rdev), minor(stat.st_rdev));
    file = fopen(path, "r");
    if (!file)
        return 0;
    if (fscanf(file, "%llu", &bytes) != 1)
        bytes = 0;
    fclose(file);
    return bytes;
}

/* A bijection (splitmix64's): no two words are alike. */
static uint64_t word_at(uint64_t offset, uint64_t seed)
{
    uint64_t z = (seed << 48) + offset + 1;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void write_stretch(volatile uint64_t *words, uint64_t offset, uint64_t seed)
{
    for (uint64_t i = 0; i < STRETCH_BYTES / 8; i++)
        words[i] = word_at(offset + 8 * i, seed);
}

/* returns: the number of wrong words; tells the first. */
static uint64_t check_stretch(const volatile uint64_t *words, uint64_t offset, uint64_t seed, const char *path)
{
    uint64_t wrong = 0;

    for (uint64_t i = 0; i < STRETCH_BYTES / 8; i++) {
        uint64_t got = words[i], want = word_at(offset + 8 * i, seed);

        if (got != want && wrong++ == 0)
            fprintf(stderr, "%s at 0x%" PRIx64 ": wrote %016" PRIx64 ", read %016" PRIx64 "\n", path, offset + 8 * i,
                    want, got);
    }
    return wrong;
}

/* returns: the number of wrong words, or -1: a stretch cannot be mapped. */
static int64_t visit(int fd, uint64_t bytes, bool checks, uint64_t seed, const char *path)
{
    uint64_t wrong = 0;

    for (unsigned i = 0; i < STRETCHES; i++) {
        uint64_t offset = (bytes - STRETCH_BYTES) / (STRETCHES - 1) * i / ALIGNMENT * ALIGNMENT;
        void *at = mmap(NULL, ALIGNMENT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);

        if (at == MAP_FAILED)
            return -1;
        if (!checks)
            write_stretch(at, offset, seed);
        else
            wrong += check_stretch(at, offset, seed, path);
        if (checks && wrong == 0)
            memset(at, 0, STRETCH_BYTES);
        munmap(at, ALIGNMENT);
    }
    return (int64_t)wrong;
}

int main(int argc, char **argv)
{
    bool checks = argc == 4 && strcmp(argv[1], "check") == 0;
    uint64_t bytes;
    int64_t wrong;
    int fd;

    if (argc != 4 || (!checks && strcmp(argv[1], "write") != 0)) {
        fprintf(stderr, "usage: pattern write|check PATH SEED\n");
        return 2;
    }
    fd = open(argv[2], O_RDWR);
    bytes = fd < 0 ? 0 : dax_bytes(fd);
    if (bytes < STRETCHES * ALIGNMENT) {
        fprintf(stderr, "%s: %s\n", argv[2], fd < 0 ? strerror(errno) : "not a DAX device of at least 8 MiB");
        return 1;
    }
    wrong = visit(fd, bytes, checks, strtoull(argv[3], NULL, 10), argv[2]);
    if (wrong < 0)
        perror(argv[2]);
    else if (wrong > 0)
        fprintf(stderr, "%s: %" PRId64 " of %" PRIu64 " words are not what was written\n", argv[2], wrong,
                STRETCHES * STRETCH_BYTES / 8);
    return wrong != 0;
}
