/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store as a whole: one region, two pools, a table of sequences.
 *
 * The region is address space for the capacity twice, as page slots and as digest chunks; both draw on one account of
 * bytes (nkv_store_charge), so that sequences with pages only, digests only and both share a capacity without a fixed
 * split, and only touched memory is real. A buddy allocator over one range was rejected: pages and chunks of odd sizes
 * would fragment it, and the kernel's page tables already do this job.
 */
#include "kv/image.h"

#define EXTENT_STREAM_BYTES ((size_t)256 << 10) /* of one layer in one extent: long enough to prefetch */
#define MAX_EXTENT_SHIFT    16u
#define MAX_POOL            0x7fffffffu
#define CHUNK_ALIGN         ((size_t)2 << 20)
#define FIRST_TABLE_SHIFT   4u

static uint32_t pool_size(uint64_t capacity_bytes, uint64_t thing_bytes)
{
    uint64_t n = capacity_bytes / thing_bytes;

    return n < MAX_POOL ? (uint32_t)n : MAX_POOL;
}

uint32_t nkv_store_extent_shift(size_t frame_bytes)
{
    uint32_t shift = 0;

    while ((frame_bytes << shift) < EXTENT_STREAM_BYTES && shift < MAX_EXTENT_SHIFT)
        shift++;
    return shift;
}

static double gib(uint64_t bytes)
{
    return (double)bytes / 0x1p30;
}

static int map_memory(struct nkv_store *store, uint32_t n_slots, uint32_t n_chunks)
{
    size_t n_extents, extent_bytes, slots_bytes, chunks_bytes, bytes;

    store->extent_shift = nkv_store_extent_shift(store->frame_bytes);
    n_extents = ((size_t)n_slots >> store->extent_shift) + 1;
    extent_bytes = store->page_bytes << store->extent_shift;
    chunks_bytes = n_chunks * store->chunk_bytes;
    if (__builtin_mul_overflow(n_extents, extent_bytes, &slots_bytes) || slots_bytes > SIZE_MAX / 2 ||
        __builtin_add_overflow(nkv_round_up(slots_bytes, CHUNK_ALIGN), chunks_bytes, &bytes))
        FAIL(NKV_ENOMEM, "a capacity of %.1f GiB is more than any machine can address: give less",
             gib(store->capacity_bytes));
    if (nkv_region_open(bytes, &store->memory) < 0)
        FAIL(NKV_ENOMEM, "a capacity of %.1f GiB: so much address space cannot be had: give less",
             gib(store->capacity_bytes));
    store->frames = store->memory.base;
    store->chunks = store->frames + nkv_round_up(slots_bytes, CHUNK_ALIGN);
    return 0;
}

int nkv_store_open_tables(struct nkv_store *store, uint32_t n_slots, uint32_t n_chunks)
{
    TRY(nkv_pool_open(n_slots, &store->slot_pool));
    TRY(nkv_pool_open(n_chunks, &store->chunk_pool));
    store->table_shift = FIRST_TABLE_SHIFT;
    return nkv_alloc((size_t)1 << FIRST_TABLE_SHIFT, sizeof(struct nkv_kv_seq *), &store->table);
}

static int open_parts(struct nkv_store *store)
{
    uint32_t n_slots = pool_size(store->capacity_bytes, store->page_bytes);
    uint32_t n_chunks = pool_size(store->capacity_bytes, store->chunk_bytes);

    if (n_slots == 0)
        FAIL(NKV_EINVAL, "capacity is %llu bytes: one page of this shape takes %zu",
             (unsigned long long)store->capacity_bytes, store->page_bytes);
    TRY(map_memory(store, n_slots, n_chunks));
    return nkv_store_open_tables(store, n_slots, n_chunks);
}

int nkv_store_open(const struct nkv_kv_shape *shape, uint64_t capacity_bytes, struct nkv_store **store_out)
{
    struct nkv_store *store;
    int status;

    TRY(nkv_kv_shape_check(shape));
    TRY(nkv_alloc(1, sizeof *store, &store));
    nkv_store_size(shape, store);
    store->capacity_bytes = capacity_bytes;
    store->clients = store->own_clients;
    status = open_parts(store);
    if (status < 0) {
        nkv_store_free(store);
        return status;
    }
    *store_out = store;
    return 0;
}

void nkv_store_free(struct nkv_store *store)
{
    for (uint32_t i = 0; store->table && i < 1u << store->table_shift; i++)
        nkv_free(store->table[i]);
    nkv_free(store->table);
    nkv_pool_close(&store->chunk_pool);
    nkv_pool_close(&store->slot_pool);
    nkv_image_close(store);
    nkv_region_close(&store->memory);
    nkv_free(store);
}

void nkv_store_close(struct nkv_store *store)
{
    if (!store)
        return;
    if (store->image)
        nkv_image_close_clean(store);
    nkv_store_free(store);
}

void nkv_store_memory(const struct nkv_store *store, void **base_out, size_t *bytes_out)
{
    const struct nkv_region *memory = store->image ? &store->image->memory : &store->memory;

    *base_out = memory->base;
    *bytes_out = memory->bytes;
}

const struct nkv_kv_shape *nkv_store_shape(const struct nkv_store *store)
{
    return &store->shape;
}

uint64_t nkv_store_capacity(const struct nkv_store *store)
{
    return store->capacity_bytes;
}

uint32_t nkv_store_n_lost(const struct nkv_store *store)
{
    return store->n_lost;
}

uint32_t nkv_store_max_pages(const struct nkv_store *store)
{
    uint64_t scored = (uint64_t)store->chunk_pool.n * NKV_DIGEST_CHUNK_PAGES + 1;

    if (scored > UINT32_MAX)
        scored = UINT32_MAX;
    return scored > store->slot_pool.n ? (uint32_t)scored : store->slot_pool.n;
}

uint32_t nkv_store_total_pages(const struct nkv_store *store)
{
    return store->slot_pool.n;
}

uint64_t nkv_store_used_bytes(const struct nkv_store *store)
{
    return store->slot_pool.n_used * store->page_bytes + store->chunk_pool.n_used * store->chunk_bytes;
}

void nkv_store_stat(const struct nkv_store *store, struct nkv_device_stat *stat_out)
{
    uint64_t used = nkv_store_used_bytes(store);

    stat_out->used_bytes = used;
    stat_out->resident_bytes =
        store->slot_pool.n_data * store->page_bytes + store->chunk_pool.n_data * store->chunk_bytes;
    stat_out->n_sequences = store->n_seqs;
    stat_out->n_total_pages = store->slot_pool.n;
    stat_out->n_free_pages = pool_size(store->capacity_bytes - used, store->page_bytes);
    if (stat_out->n_free_pages > store->slot_pool.n - store->slot_pool.n_used)
        stat_out->n_free_pages = store->slot_pool.n - store->slot_pool.n_used;
}

int nkv_store_charge(const struct nkv_store *store, uint64_t n_slots, uint64_t n_chunks)
{
    uint64_t slot_bytes, chunk_bytes, need, left = store->capacity_bytes - nkv_store_used_bytes(store);

    if (__builtin_mul_overflow(n_slots, store->page_bytes, &slot_bytes) ||
        __builtin_mul_overflow(n_chunks, store->chunk_bytes, &chunk_bytes) ||
        __builtin_add_overflow(slot_bytes, chunk_bytes, &need))
        need = UINT64_MAX;
    if (need > left)
        FAIL(NKV_ENOSPC, "%llu pages and %llu digest chunks take %llu bytes, %llu of %llu are free: %llu are missing",
             (unsigned long long)n_slots, (unsigned long long)n_chunks, (unsigned long long)need,
             (unsigned long long)left, (unsigned long long)store->capacity_bytes, (unsigned long long)(need - left));
    if (n_slots > store->slot_pool.n - store->slot_pool.n_used ||
        n_chunks > store->chunk_pool.n - store->chunk_pool.n_used)
        FAIL(NKV_ENOSPC, "%llu pages and %llu digest chunks: %u of %u pages and %u of %u chunks are free",
             (unsigned long long)n_slots, (unsigned long long)n_chunks, store->slot_pool.n - store->slot_pool.n_used,
             store->slot_pool.n, store->chunk_pool.n - store->chunk_pool.n_used, store->chunk_pool.n);
    return 0;
}

/* Fibonacci hashing: ids are often consecutive, sometimes multiples of a power of two. */
static uint32_t home(uint64_t key, uint32_t shift)
{
    return (uint32_t)((key * 0x9e3779b97f4a7c15u) >> (64 - shift));
}

static uint32_t probe(struct nkv_kv_seq *const *table, uint32_t shift, uint64_t key)
{
    uint32_t mask = (1u << shift) - 1, i = home(key, shift);

    while (table[i] && table[i]->key != key)
        i = (i + 1) & mask;
    return i;
}

struct nkv_kv_seq *nkv_store_find(const struct nkv_store *store, uint64_t key)
{
    return store->table[probe(store->table, store->table_shift, key)];
}

int nkv_store_table_reserve(struct nkv_store *store)
{
    struct nkv_kv_seq **table;
    uint32_t shift = store->table_shift + 1;

    if (2 * (store->n_seqs + 1) <= 1u << store->table_shift)
        return 0;
    TRY(nkv_alloc((size_t)1 << shift, sizeof *table, &table));
    for (uint32_t i = 0; i < 1u << store->table_shift; i++)
        if (store->table[i])
            table[probe(table, shift, store->table[i]->key)] = store->table[i];
    nkv_free(store->table);
    store->table = table;
    store->table_shift = shift;
    return 0;
}

void nkv_store_table_insert(struct nkv_store *store, struct nkv_kv_seq *seq)
{
    store->table[probe(store->table, store->table_shift, seq->key)] = seq;
    store->n_seqs++;
}

void nkv_store_table_remove(struct nkv_store *store, uint64_t key)
{
    uint32_t mask = (1u << store->table_shift) - 1, hole = probe(store->table, store->table_shift, key);

    /* Entries after the hole move up, unless their home lies between the hole and them. */
    for (uint32_t i = (hole + 1) & mask; store->table[i]; i = (i + 1) & mask) {
        uint32_t from_home = (i - home(store->table[i]->key, store->table_shift)) & mask;

        if (from_home >= ((i - hole) & mask)) {
            store->table[hole] = store->table[i];
            hole = i;
        }
    }
    store->table[hole] = NULL;
    store->n_seqs--;
}
