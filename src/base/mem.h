/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/mem.h: all memory of the library comes from here (malloc and mmap are confined to mem.c), so
 * that a test can make any allocation fail.
 */
#ifndef NKV_BASE_MEM_H
#define NKV_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define NKV_CACHE_LINE 64u

/* Rounds bytes up to a multiple of align (a power of two). */
static inline size_t nkv_round_up(size_t bytes, size_t align)
{
    return (bytes + align - 1) & ~(align - 1);
}

/*
 * Zeroed memory for count elements of size bytes, aligned to 64 bytes, to be freed with nkv_free.
 * returns: 0, or NKV_ENOMEM (also when count * size overflows) with the amount in the message.
 */
int nkv_alloc(size_t count, size_t size, void *memory_out /* void ** */);
void nkv_free(void *memory);

/* A zeroed, page-aligned anonymous mapping, in huge pages where the system has them. */
struct nkv_region {
    void *base;
    size_t bytes;
};

/* returns: 0, NKV_EINVAL (bytes 0) or NKV_ENOMEM. Memory is committed on first touch. */
int nkv_region_open(size_t bytes, struct nkv_region *region_out);
/* The same for memory of which little is ever touched: no huge pages. */
int nkv_region_open_sparse(size_t bytes, struct nkv_region *region_out);
/*
 * Memory that two processes can map: a file without a name whose size is sealed, so that neither can take pages away
 * under the other. The caller passes fd_out on and closes it; the region stays. attach: maps such a file of at least
 * `bytes`; NKV_EFORMAT: it is smaller, or its size can still change.
 */
int nkv_region_share(const char *name, size_t bytes, struct nkv_region *region_out, int *fd_out);
int nkv_region_attach(int fd, size_t bytes, struct nkv_region *region_out);
/* Of such a region little is ever touched: no huge pages from now on. */
void nkv_region_keep_sparse(const struct nkv_region *region);
/* Maps a file or device so that what is written (if writable) stays in it; the caller keeps fd. returns: 0, NKV_EINVAL,
 * NKV_ENOMEM.
 */
int nkv_region_map(int fd, size_t bytes, bool writable, struct nkv_region *region_out);
/* Writes the first `bytes` bytes of such a region to the medium; blocks. returns: 0, NKV_EIO. */
int nkv_region_sync(const struct nkv_region *region, size_t bytes);
void nkv_region_close(struct nkv_region *region);

/*
 * Tests only: the n-th allocation from now on (1 = the next) fails, and only that one; 0 disarms.
 * Counts nkv_alloc and nkv_region_open on all threads. Returns how many were made since it was last armed.
 */
uint64_t nkv_mem_fail_at(uint64_t n);

#endif
