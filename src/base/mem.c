/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory primitives. Every allocation passes the same counter, so that a fault test can fail the
 * n-th one until its scenario passes (SQLite's method). Regions are anonymous mappings with a
 * huge-page hint: a region of gigabytes read at memory speed would otherwise wait for the TLB.
 */
#define _GNU_SOURCE
#include "base/mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

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

void nkv_region_close(struct nkv_region *region)
{
    if (region->base)
        munmap(region->base, region->bytes);
    *region = (struct nkv_region){0};
}
