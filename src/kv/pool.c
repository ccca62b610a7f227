/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reference counts of slots and chunks. A request takes the lowest run of free things that is long enough, so that a
 * sequence is a sequential stream in memory and closed sequences' memory is used again before fresh memory is touched;
 * when no run is long enough it takes the lowest free ones. The counts live in a region that is committed on first
 * touch: a store of a terabyte costs only what is used of it.
 *
 * A free list was rejected: it hands out the most recently freed things, in an order that scatters sequences.
 */
#include "kv/pool.h"

#define HOLDS_DATA 0x80000000u

int nkv_pool_open(uint32_t n, struct nkv_pool *pool_out)
{
    struct nkv_pool pool = {.n = n};

    TRY(nkv_region_open(((size_t)n + 1) * sizeof *pool.refs, &pool.memory));
    pool.refs = pool.memory.base;
    *pool_out = pool;
    return 0;
}

void nkv_pool_close(struct nkv_pool *pool)
{
    nkv_region_close(&pool->memory);
}

/* The start of the lowest run of n free things; pool->n when there is none. */
static uint32_t find_run(const struct nkv_pool *pool, uint32_t n)
{
    uint32_t start = pool->low_free;

    for (uint32_t i = start; i < pool->high && i - start < n; i++)
        if (pool->refs[i])
            start = i + 1;
    return pool->n - start >= n ? start : pool->n;
}

static void skip_used(struct nkv_pool *pool)
{
    while (pool->low_free < pool->high && pool->refs[pool->low_free])
        pool->low_free++;
}

void nkv_pool_take(struct nkv_pool *pool, uint32_t n, uint32_t *things_out)
{
    uint32_t at = find_run(pool, n);

    if (at == pool->n)
        at = pool->low_free;
    for (uint32_t i = 0; i < n; at++) {
        if (pool->refs[at])
            continue;
        pool->refs[at] = 1;
        things_out[i++] = at;
        if (at >= pool->high)
            pool->high = at + 1;
    }
    pool->n_used += n;
    skip_used(pool);
}

bool nkv_pool_take_run(struct nkv_pool *pool, uint32_t n, uint32_t *first_out)
{
    uint32_t at = find_run(pool, n);

    if (at == pool->n)
        return false;
    for (uint32_t i = 0; i < n; i++)
        nkv_pool_claim(pool, at + i);
    *first_out = at;
    return true;
}

void nkv_pool_claim(struct nkv_pool *pool, uint32_t thing)
{
    pool->n_used += pool->refs[thing] == 0;
    pool->refs[thing]++;
    if (thing >= pool->high)
        pool->high = thing + 1;
    skip_used(pool);
}

void nkv_pool_share(struct nkv_pool *pool, uint32_t thing)
{
    pool->refs[thing]++;
}

void nkv_pool_drop(struct nkv_pool *pool, uint32_t thing)
{
    if (nkv_pool_is_shared(pool, thing)) {
        pool->refs[thing]--;
        return;
    }
    nkv_pool_mark(pool, thing, false);
    pool->refs[thing] = 0;
    pool->n_used--;
    if (thing < pool->low_free)
        pool->low_free = thing;
}

uint32_t nkv_pool_refs(const struct nkv_pool *pool, uint32_t thing)
{
    return pool->refs[thing] & ~HOLDS_DATA;
}

bool nkv_pool_is_shared(const struct nkv_pool *pool, uint32_t thing)
{
    return nkv_pool_refs(pool, thing) > 1;
}

void nkv_pool_mark(struct nkv_pool *pool, uint32_t thing, bool holds_data)
{
    bool before = pool->refs[thing] & HOLDS_DATA;

    if (before == holds_data)
        return;
    pool->refs[thing] ^= HOLDS_DATA;
    pool->n_data = holds_data ? pool->n_data + 1 : pool->n_data - 1;
}
