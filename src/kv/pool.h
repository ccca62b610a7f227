/* SPDX-License-Identifier: Apache-2.0 */
/* kv/pool.h: numbered things of equal size with reference counts; private to kv. */
#ifndef NKV_KV_POOL_H
#define NKV_KV_POOL_H

#include "base/mem.h"

struct nkv_pool {
    struct nkv_region memory;
    uint32_t *refs;    /* [n]: references; the top bit says that it holds data */
    uint32_t n;        /* things there are */
    uint32_t n_used;   /* with references */
    uint32_t n_data;   /* of these, holding data */
    uint32_t high;     /* nothing from here on was ever taken */
    uint32_t low_free; /* nothing below is free */
};

/* returns: 0 or NKV_ENOMEM. n = 0 is allowed: such a pool is always full. */
int nkv_pool_open(uint32_t n, struct nkv_pool *pool_out);
void nkv_pool_close(struct nkv_pool *pool);

/* Takes n things with one reference each, consecutive where possible. pre: n <= pool->n - pool->n_used. */
void nkv_pool_take(struct nkv_pool *pool, uint32_t n, uint32_t *things_out);
/* Takes n consecutive things. returns: whether there were so many. */
bool nkv_pool_take_run(struct nkv_pool *pool, uint32_t n, uint32_t *first_out);
/* One more reference, also to a free thing, which is then taken. */
void nkv_pool_claim(struct nkv_pool *pool, uint32_t thing);
void nkv_pool_share(struct nkv_pool *pool, uint32_t thing);
/* Drops one reference; the last one frees. */
void nkv_pool_drop(struct nkv_pool *pool, uint32_t thing);
uint32_t nkv_pool_refs(const struct nkv_pool *pool, uint32_t thing);
bool nkv_pool_is_shared(const struct nkv_pool *pool, uint32_t thing);
/* Says whether a thing holds data (for resident_bytes). */
void nkv_pool_mark(struct nkv_pool *pool, uint32_t thing, bool holds_data);

#endif
