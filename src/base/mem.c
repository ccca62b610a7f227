/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory primitives. Every allocation passes the same counter, so that a fault test can fail the
 * n-th one until its scenario passes (SQLite's method). Regions are anonymous mappings with a
 * huge-page hint: a region of gigabytes read at memory speed would otherwise wait for the TLB.
 */
#define _GNU_SOURCE
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <sys/stat.h>
#include <unistd.h>

#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define SIZE_SEALS      (F_SEAL_SHRINK | F_SEAL_GROW)

static _Atomic uint64_t alloc_count;
static _Atomic uint64_t fail_at;

uint64_t nkv_mem_fail_at(uint64_t n)
{
    uint64_t seen = atomic_exchange(&alloc_count, 0);

    atomic_store(&fail_at, n);
    return seen;
}

static bool must_fail(void)
{
    uint64_t n = atomic_fetch_add(&alloc_count, 1) + 1;

    return n == atomic_load(&fail_at);
}

int nkv_alloc(size_t count, size_t size, void *memory_out)
{
    size_t bytes;
    void *memory = NULL;

    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX - NKV_CACHE_LINE)
        FAIL(NKV_ENOMEM, "out of memory: %zu elements of %zu bytes", count, size);
    bytes = nkv_round_up(bytes ? bytes : 1, NKV_CACHE_LINE);
    if (!must_fail())
        memory = aligned_alloc(NKV_CACHE_LINE, bytes);
    if (!memory)
        FAIL(NKV_ENOMEM, "out of memory: cannot allocate %zu bytes", bytes);
    memset(memory, 0, bytes);
    memcpy(memory_out, &memory, sizeof memory);
    return 0;
}

void nkv_free(void *memory)
{
    free(memory);
}

static int region_open(size_t bytes, int advice, struct nkv_region *region_out)
{
    size_t rounded;
    void *base = MAP_FAILED;

    if (bytes == 0 || bytes > SIZE_MAX - 2 * HUGE_PAGE_BYTES)
        FAIL(NKV_EINVAL, "cannot map a region of %zu bytes", bytes);
    rounded = nkv_round_up(bytes, bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 4096);
    if (!must_fail())
        base = mmap(NULL, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        FAIL(NKV_ENOMEM, "out of memory: cannot map %zu bytes", rounded);
    if (rounded >= HUGE_PAGE_BYTES)
        (void)madvise(base, rounded, advice); /* a hint: without it everything works, slower or in more memory */
    *region_out = (struct nkv_region){base, rounded};
    return 0;
}

int nkv_region_open(size_t bytes, struct nkv_region *region_out)
{
    return region_open(bytes, MADV_HUGEPAGE, region_out);
}

int nkv_region_open_sparse(size_t bytes, struct nkv_region *region_out)
{
    return region_open(bytes, MADV_NOHUGEPAGE, region_out);
}

/* No huge-page rounding: the file's size is what the other side sees. */
static int map_file(int fd, size_t bytes, bool writable, struct nkv_region *region_out)
{
    size_t rounded = nkv_round_up(bytes, 4096);
    void *base = MAP_FAILED;

    if (!must_fail())
        base = mmap(NULL, rounded, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        FAIL(NKV_ENOMEM, "out of memory: cannot map %zu shared bytes", rounded);
    if (rounded >= HUGE_PAGE_BYTES)
        (void)madvise(base, rounded, MADV_HUGEPAGE);
    *region_out = (struct nkv_region){base, rounded};
    return 0;
}

int nkv_region_share(const char *name, size_t bytes, struct nkv_region *region_out, int *fd_out)
{
    int status = 0, fd;

    if (bytes == 0 || bytes > SIZE_MAX / 2)
        FAIL(NKV_EINVAL, "cannot share a region of %zu bytes", bytes);
    fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        FAIL(NKV_EIO, "cannot create shared memory: %s", strerror(errno));
    if (ftruncate(fd, (off_t)nkv_round_up(bytes, 4096)) || fcntl(fd, F_ADD_SEALS, SIZE_SEALS | F_SEAL_SEAL))
        status = nkv_fail(NKV_ENOMEM, "cannot create %zu bytes of shared memory: %s", bytes, strerror(errno));
    if (status == 0)
        status = map_file(fd, bytes, true, region_out);
    if (status < 0) {
        close(fd);
        return status;
    }
    *fd_out = fd;
    return 0;
}

int nkv_region_attach(int fd, size_t bytes, struct nkv_region *region_out)
{
    struct stat file;
    int seals = fcntl(fd, F_GET_SEALS);

    if (fstat(fd, &file) || file.st_size < 0 || (size_t)file.st_size < bytes || bytes == 0)
        FAIL(NKV_EFORMAT, "shared memory of fewer than %zu bytes", bytes);
    if (seals < 0 || (seals & SIZE_SEALS) != SIZE_SEALS)
        FAIL(NKV_EFORMAT, "shared memory whose size may still change");
    return map_file(fd, bytes, true, region_out);
}

void nkv_region_keep_sparse(const struct nkv_region *region)
{
    (void)madvise(region->base, region->bytes, MADV_NOHUGEPAGE);
}

/* A file in memory has its pages: entering them all at once spares the faults later, which cost more than a commit. */
static void populate_memory_file(int fd, const struct nkv_region *region)
{
#ifdef MADV_POPULATE_READ
    struct statfs system;

    if (fstatfs(fd, &system) == 0 && system.f_type == TMPFS_MAGIC)
        (void)madvise(region->base, region->bytes, MADV_POPULATE_READ);
#else
    (void)fd;
    (void)region;
#endif
}

int nkv_region_map(int fd, size_t bytes, bool writable, struct nkv_region *region_out)
{
    if (bytes == 0 || bytes > SIZE_MAX / 2)
        FAIL(NKV_EINVAL, "cannot map %zu bytes of a file", bytes);
    TRY(map_file(fd, bytes, writable, region_out));
    populate_memory_file(fd, region_out);
    return 0;
}

int nkv_region_sync(const struct nkv_region *region, size_t bytes)
{
    if (msync(region->base, bytes, MS_SYNC))
        FAIL(NKV_EIO, "cannot write %zu bytes to the medium: %s", bytes, strerror(errno));
    return 0;
}

void nkv_region_close(struct nkv_region *region)
{
    if (region->base)
        munmap(region->base, region->bytes);
    *region = (struct nkv_region){0};
}
