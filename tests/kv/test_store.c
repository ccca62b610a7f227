/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store against a naive model under random open, append, fork, truncate and close; exact capacity; shared pages;
 * sequences without pages or digests; failing allocations.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "kernels/kernels.h"
#include "kv/rows.h"
#include "kv/store.h"

#define MAX_SEQS 12u

static const struct nkv_kv_shape small = {
    .n_layers = 3, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8, .page_tokens = 2, .dtype = NKV_F32};

/* A sequence of the model: which number each token of each layer is. K and V rows are made from it. */
struct model_seq {
    bool open;
    uint16_t flags;
    uint32_t id, max_tokens, *lengths, *held_from; /* [layer]; NKV_NO_PAGES: first token whose page the slot holds */
    uint32_t *numbers;                             /* [layer][max_tokens] */
};

struct world {
    struct nkv_store *store;
    struct nkv_kv_shape shape;
    struct model_seq seqs[MAX_SEQS];
    uint64_t random;
    uint32_t next_number, n_no_space;
};

static uint32_t *number_at(const struct model_seq *seq, uint32_t layer, uint32_t token)
{
    return &seq->numbers[(size_t)layer * seq->max_tokens + token];
}

static void append(struct world *world, struct model_seq *seq, uint32_t layer, uint32_t n)
{
    struct nkv_kv_seq *in_store = nkv_store_find(world->store, seq->id);
    uint32_t dim = world->shape.head_dim, pos = seq->lengths[layer];
    float k[64 * 16], v[64 * 16];

    for (uint32_t i = 0; i < n; i++)
        *number_at(seq, layer, pos + i) = world->next_number++;
    for (uint32_t head = 0; head < world->shape.n_kv_heads; head++) {
        for (uint32_t i = 0; i < n; i++)
            fill_rows(*number_at(seq, layer, pos + i), head, world->shape.head_dim, k + i * dim, v + i * dim);
        nkv_store_put(world->store, in_store, layer, head, pos, n, k, v, dim);
    }
    nkv_store_extend(world->store, in_store, layer, n, true);
    seq->lengths[layer] += n;
    seq->held_from[layer] = (seq->lengths[layer] - 1) / world->shape.page_tokens * world->shape.page_tokens;
}

static void check_digest(const struct world *world, const struct model_seq *seq, const struct nkv_kv_seq *in_store,
                         uint32_t layer, uint32_t page, uint32_t head)
{
    const float *lo = nkv_store_digests(world->store, in_store, layer, page / NKV_DIGEST_CHUNK_PAGES, head);
    uint32_t dim = world->shape.head_dim, page_tokens = world->shape.page_tokens;

    lo += (size_t)(page % NKV_DIGEST_CHUNK_PAGES) * 2 * dim;
    for (uint32_t d = 0; d < dim; d++) {
        float least = 1e9f, most = -1e9f;

        for (uint32_t t = page * page_tokens; t < (page + 1) * page_tokens; t++) {
            float k = cell(*number_at(seq, layer, t), head, d, false);

            least = k < least ? k : least;
            most = k > most ? k : most;
        }
        assert_true(lo[d] == least && lo[dim + d] == most);
    }
}

static void check_page(const struct world *world, const struct model_seq *seq, const struct nkv_kv_seq *in_store,
                       uint32_t layer, uint32_t page, uint32_t head)
{
    struct nkv_page_view view = nkv_store_page(world->store, in_store, layer, page, head);
    const float *k = view.k, *v = view.v;
    uint32_t dim = world->shape.head_dim, n = nkv_seq_page_tokens(world->store, in_store, layer, page);
    float want_k[64], want_v[64];

    for (uint32_t t = 0; t < n; t++) {
        fill_rows(*number_at(seq, layer, page * world->shape.page_tokens + t), head, world->shape.head_dim, want_k,
                  want_v);
        assert_memory_equal(k + t * dim, want_k, dim * sizeof *k);
        assert_memory_equal(v + t * dim, want_v, dim * sizeof *v);
    }
}

/* Everything that the store should hold for one sequence. */
static void check_seq(const struct world *world, const struct model_seq *seq)
{
    const struct nkv_kv_seq *in_store = nkv_store_find(world->store, seq->id);
    uint32_t page_tokens = world->shape.page_tokens;

    assert_non_null(in_store);
    for (uint32_t layer = 0; layer < world->shape.n_layers; layer++) {
        uint32_t length = seq->lengths[layer];

        assert_int_equal(in_store->lengths[layer], length);
        assert_int_equal(nkv_seq_layer_pages(world->store, in_store, layer), (length + page_tokens - 1) / page_tokens);
        for (uint32_t head = 0; head < world->shape.n_kv_heads; head++) {
            for (uint32_t page = 0; page * page_tokens < length; page++)
                if (!(seq->flags & NKV_NO_PAGES) || in_store->held[layer] == page)
                    check_page(world, seq, in_store, layer, page, head);
            for (uint32_t page = 0; !(seq->flags & NKV_NO_DIGEST) && page < length / page_tokens; page++)
                check_digest(world, seq, in_store, layer, page, head);
        }
        if (seq->flags & NKV_NO_PAGES)
            assert_int_equal(in_store->held[layer],
                             seq->held_from[layer] == UINT32_MAX ? NKV_PAGE_NONE : seq->held_from[layer] / page_tokens);
    }
}

/* What the store must charge: every slot and chunk that some sequence refers to, once. */
static void check_account(const struct world *world)
{
    struct nkv_device_stat stat = {0};
    struct nkv_kv_estimate unit;
    uint64_t pages = 0, chunks = 0, chunk_bytes;
    uint32_t n_seqs = 0;
    static uint8_t slot_seen[1 << 16], chunk_seen[1 << 16];

    memset(slot_seen, 0, sizeof slot_seen);
    memset(chunk_seen, 0, sizeof chunk_seen);
    for (uint32_t i = 0; i < MAX_SEQS; i++) {
        const struct nkv_kv_seq *seq = world->seqs[i].open ? nkv_store_find(world->store, world->seqs[i].id) : NULL;

        n_seqs += seq != NULL;
        for (uint32_t j = 0; seq && j < seq->n_slots; j++)
            pages += !slot_seen[seq->slots[j]]++;
        for (uint32_t j = 0; seq && j < seq->n_chunks; j++)
            chunks += !chunk_seen[seq->chunks[j]]++;
    }
    assert_int_equal(nkv_kv_estimate(&world->shape, world->shape.page_tokens, &unit), 0);
    chunk_bytes = unit.digest_bytes;
    nkv_store_stat(world->store, &stat);
    assert_true(stat.used_bytes == pages * unit.page_bytes + chunks * chunk_bytes);
    assert_true(stat.resident_bytes <= stat.used_bytes);
    assert_int_equal(stat.n_sequences, n_seqs);
}

static struct model_seq *pick(struct world *world, bool open)
{
    uint32_t first = below(&world->random, MAX_SEQS);

    for (uint32_t i = 0; i < MAX_SEQS; i++)
        if (world->seqs[(first + i) % MAX_SEQS].open == open)
            return &world->seqs[(first + i) % MAX_SEQS];
    return NULL;
}

static void model_begin(struct world *world, struct model_seq *seq, uint32_t id, uint32_t max_tokens, uint16_t flags)
{
    uint32_t n_layers = world->shape.n_layers;

    *seq = (struct model_seq){.open = true, .flags = flags, .id = id, .max_tokens = max_tokens};
    seq->lengths = calloc(n_layers, sizeof *seq->lengths);
    seq->held_from = malloc(n_layers * sizeof *seq->held_from);
    seq->numbers = calloc((size_t)n_layers * max_tokens, sizeof *seq->numbers);
    assert_non_null(seq->numbers);
    memset(seq->held_from, 0xff, n_layers * sizeof *seq->held_from);
}

static void model_end(struct model_seq *seq)
{
    free(seq->lengths);
    free(seq->held_from);
    free(seq->numbers);
    seq->open = false;
}

static void try_open(struct world *world)
{
    static const uint16_t flags[] = {0, 0, NKV_NO_DIGEST, NKV_NO_PAGES};
    struct model_seq *seq = pick(world, false);
    uint32_t id = (uint32_t)(seq - world->seqs) * 0x10000u + 7, max_tokens = 1 + below(&world->random, 400);
    uint16_t flag = flags[below(&world->random, 4)];
    int status = nkv_store_seq_open(world->store, id, max_tokens, flag);

    if (status == NKV_ENOSPC) {
        world->n_no_space++;
        return;
    }
    assert_int_equal(status, 0);
    model_begin(world, seq, id, max_tokens, flag);
}

static void try_fork(struct world *world, struct model_seq *parent)
{
    struct model_seq *seq = pick(world, false);
    uint32_t id, n = UINT32_MAX, max_tokens, page_tokens = world->shape.page_tokens;
    int status;

    for (uint32_t layer = 0; layer < world->shape.n_layers; layer++)
        n = parent->lengths[layer] < n ? parent->lengths[layer] : n;
    n = below(&world->random, n + 1);
    if (parent->flags & NKV_NO_PAGES)
        n = n / page_tokens * page_tokens;
    max_tokens = n + 1 + below(&world->random, 200);
    id = (uint32_t)(seq - world->seqs) * 0x10000u + 7;
    status = nkv_store_seq_fork(world->store, id, parent->id, n, max_tokens);
    if (status == NKV_ENOSPC) {
        world->n_no_space++;
        return;
    }
    assert_int_equal(status, 0);
    model_begin(world, seq, id, max_tokens, parent->flags);
    for (uint32_t layer = 0; layer < world->shape.n_layers; layer++) {
        seq->lengths[layer] = n;
        memcpy(number_at(seq, layer, 0), number_at(parent, layer, 0), n * sizeof *seq->numbers);
    }
}

static void try_truncate(struct world *world, struct model_seq *seq)
{
    uint32_t n = below(&world->random, seq->lengths[0] + 2), page_tokens = world->shape.page_tokens;
    int status;

    if (seq->flags & NKV_NO_PAGES)
        n = n / page_tokens * page_tokens;
    status = nkv_store_seq_truncate(world->store, seq->id, n);
    if (status == NKV_ENOSPC) {
        world->n_no_space++;
        return;
    }
    assert_int_equal(status, 0);
    for (uint32_t layer = 0; layer < world->shape.n_layers; layer++)
        if (seq->lengths[layer] > n) {
            seq->lengths[layer] = n;
            seq->held_from[layer] = UINT32_MAX;
        }
}

static void try_append(struct world *world, struct model_seq *seq)
{
    uint32_t n = 1 + below(&world->random, 60);

    for (uint32_t layer = 0; layer < world->shape.n_layers; layer++) {
        uint32_t left = seq->max_tokens - seq->lengths[layer];

        if (left > 0)
            append(world, seq, layer, n < left ? n : left);
        if (below(&world->random, 20) == 0)
            return; /* a step that failed between layers */
    }
}

static void one_action(struct world *world)
{
    struct model_seq *seq = pick(world, true);
    uint32_t action = below(&world->random, 100);

    if (action < 15 || !seq) {
        if (pick(world, false))
            try_open(world);
    } else if (action < 65) {
        try_append(world, seq);
    } else if (action < 78) {
        if (pick(world, false))
            try_fork(world, seq);
    } else if (action < 90) {
        try_truncate(world, seq);
    } else {
        assert_int_equal(nkv_store_seq_close(world->store, seq->id), 0);
        model_end(seq);
    }
}

static void random_histories_match_the_model(void **state)
{
    struct nkv_device_stat stat = {0};

    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct world world = {.shape = small, .random = seed};

        assert_int_equal(nkv_store_open(&small, 200 << 10, &world.store), 0);
        for (uint32_t step = 0; step < 400; step++) {
            one_action(&world);
            for (uint32_t i = 0; step % 8 == 7 && i < MAX_SEQS; i++)
                if (world.seqs[i].open)
                    check_seq(&world, &world.seqs[i]);
            check_account(&world);
        }
        assert_true(world.n_no_space > 0); /* the capacity was reached */
        for (uint32_t i = 0; i < MAX_SEQS; i++)
            if (world.seqs[i].open) {
                assert_int_equal(nkv_store_seq_close(world.store, world.seqs[i].id), 0);
                model_end(&world.seqs[i]);
            }
        nkv_store_stat(world.store, &stat);
        assert_true(stat.used_bytes == 0 && stat.resident_bytes == 0 && stat.n_sequences == 0);
        assert_int_equal(stat.n_free_pages, stat.n_total_pages);
        nkv_store_close(world.store);
    }
}

static void capacity_is_exact(void **state)
{
    struct nkv_kv_estimate estimate;
    struct nkv_store *store;

    (void)state;
    assert_int_equal(nkv_kv_estimate(&small, 1000, &estimate), 0);
    assert_true(estimate.total_bytes == estimate.kv_bytes + estimate.digest_bytes);
    assert_true(estimate.kv_bytes == 500 * estimate.page_bytes);
    assert_int_equal(nkv_store_open(&small, estimate.total_bytes, &store), 0);
    assert_int_equal(nkv_store_seq_open(store, 1, 1000, 0), 0);
    assert_int_equal(nkv_store_seq_open(store, 2, 1, 0), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "missing"));
    assert_int_equal(nkv_store_seq_close(store, 1), 0);
    assert_int_equal(nkv_store_seq_close(store, 1), NKV_ENOENT);
    assert_int_equal(nkv_store_seq_open(store, 1, 1001, 0), NKV_ENOSPC);
    assert_int_equal(nkv_store_seq_open(store, 1, UINT32_MAX, 0), NKV_ENOSPC);
    assert_int_equal(nkv_store_seq_open(store, 1, 1000, 0), 0);
    nkv_store_close(store);
    assert_int_equal(nkv_store_open(&small, estimate.page_bytes - 1, &store), NKV_EINVAL);
}

static void bad_requests_are_refused(void **state)
{
    struct nkv_store *store;

    (void)state;
    assert_int_equal(nkv_store_open(&small, 1 << 20, &store), 0);
    assert_int_equal(nkv_store_seq_open(store, 1, 0, 0), NKV_EINVAL);
    assert_int_equal(nkv_store_seq_open(store, 1, 5, NKV_SLOTS), NKV_EINVAL);
    assert_int_equal(nkv_store_seq_open(store, 1, 4, NKV_SLOTS | NKV_NO_DIGEST), NKV_EINVAL);
    assert_int_equal(nkv_store_seq_open(store, 1, 4, NKV_CAUSAL), NKV_EINVAL);
    assert_int_equal(nkv_store_seq_open(store, 1, 4, NKV_SLOTS), 0);
    assert_int_equal(nkv_store_seq_open(store, 1, 4, 0), NKV_EINVAL);
    assert_int_equal(nkv_store_seq_open(store, 2, 40, 0), 0);
    assert_int_equal(nkv_store_seq_fork(store, 3, 9, 0, 40), NKV_ENOENT);
    assert_int_equal(nkv_store_seq_fork(store, 3, 1, 0, 40), NKV_EINVAL);
    assert_int_equal(nkv_store_seq_fork(store, 2, 2, 0, 40), NKV_EINVAL);
    assert_int_equal(nkv_store_seq_fork(store, 3, 2, 1, 40), NKV_EINVAL);
    assert_int_equal(nkv_store_seq_fork(store, 3, 2, 0, 0), NKV_EINVAL);
    assert_int_equal(nkv_store_seq_truncate(store, 1, 0), NKV_EINVAL);
    assert_int_equal(nkv_store_seq_truncate(store, 7, 0), NKV_ENOENT);
    nkv_store_close(store);
}

/* The same ids of several owners are different sequences, and one owner's go all at once. */
static void owners_do_not_share_ids(void **state)
{
    struct nkv_device_stat stat;
    struct nkv_store *store;
    uint64_t one, all;

    (void)state;
    assert_int_equal(nkv_store_open(&small, 64 << 20, &store), 0);
    for (uint32_t id = 0; id < 300; id++)
        for (uint32_t owner = 0; owner < 4; owner++)
            assert_int_equal(nkv_store_seq_open(store, nkv_seq_key(owner, id * 7919), 4, 0), 0);
    nkv_store_stat(store, &stat);
    assert_int_equal(stat.n_sequences, 1200);
    all = stat.used_bytes;
    one = all / 4;
    assert_int_equal(nkv_store_seq_fork(store, nkv_seq_key(1, 1), nkv_seq_key(1, 3), 0, 4), NKV_ENOENT);
    assert_int_equal(nkv_store_close_owner(store, 9), 0);
    assert_int_equal(nkv_store_close_owner(store, 2), 300);
    for (uint32_t id = 0; id < 300; id++)
        for (uint32_t owner = 0; owner < 4; owner++) {
            const struct nkv_kv_seq *seq = nkv_store_find(store, nkv_seq_key(owner, id * 7919));

            assert_true(owner == 2 ? !seq : seq && seq->id == id * 7919 && seq->key >> 32 == owner);
        }
    nkv_store_stat(store, &stat);
    assert_true(stat.n_sequences == 900 && stat.used_bytes == all - one);
    nkv_store_close(store);
}

/* A fork shares full pages: the second sequence of 100 pages costs only what it does not share. */
static void forks_share_and_truncate_takes_its_own(void **state)
{
    struct world world = {.shape = small, .random = 3};
    struct model_seq *parent = &world.seqs[0], *child = &world.seqs[1];
    struct nkv_device_stat before = {0}, after = {0};
    struct nkv_kv_estimate estimate;

    (void)state;
    assert_int_equal(nkv_kv_estimate(&small, 200, &estimate), 0);
    assert_int_equal(
        nkv_store_open(&small, estimate.total_bytes + 40 * estimate.page_bytes + estimate.digest_bytes, &world.store),
        0);
    assert_int_equal(nkv_store_seq_open(world.store, 10, 200, 0), 0);
    model_begin(&world, parent, 10, 200, 0);
    for (uint32_t layer = 0; layer < small.n_layers; layer++)
        for (uint32_t i = 0; i < 5; i++)
            append(&world, parent, layer, 39);
    nkv_store_stat(world.store, &before);
    assert_int_equal(nkv_store_seq_fork(world.store, 11, 10, 161, 200), 0); /* 80 pages shared, 20 of its own */
    nkv_store_stat(world.store, &after);
    assert_true(after.used_bytes == before.used_bytes + 20 * estimate.page_bytes + estimate.digest_bytes / 2);
    model_begin(&world, child, 11, 200, 0);
    for (uint32_t layer = 0; layer < small.n_layers; layer++) {
        memcpy(number_at(child, layer, 0), number_at(parent, layer, 0), 161 * sizeof *child->numbers);
        child->lengths[layer] = 161;
        append(&world, child, layer, 20);
    }
    check_seq(&world, parent);
    check_seq(&world, child);
    assert_int_equal(nkv_store_seq_truncate(world.store, 11, 99), NKV_ENOSPC); /* needs 31 pages, 20 are free */
    check_seq(&world, child);
    assert_int_equal(nkv_store_seq_truncate(world.store, 11, 139), 0); /* 11 pages, the first one copied */
    for (uint32_t layer = 0; layer < small.n_layers; layer++) {
        child->lengths[layer] = 139;
        append(&world, child, layer, 10);
    }
    check_seq(&world, parent);
    check_seq(&world, child);
    check_account(&world);
    model_end(parent);
    model_end(child);
    nkv_store_close(world.store);
}

static void estimates_are_checked(void **state)
{
    static const struct nkv_kv_shape huge = {
        .n_layers = 1024, .n_heads = 1024, .n_kv_heads = 1024, .head_dim = 512, .page_tokens = 1024, .dtype = NKV_F32};
    struct nkv_kv_shape shape = small;
    struct nkv_kv_estimate estimate;

    (void)state;
    assert_int_equal(nkv_kv_estimate(&huge, 1u << 30, &estimate), 0);
    assert_true(estimate.kv_bytes == (uint64_t)1 << 62);
    assert_int_equal(nkv_kv_estimate(&huge, UINT32_MAX, &estimate), NKV_EINVAL);
    shape.page_tokens = 0;
    assert_int_equal(nkv_kv_estimate(&shape, 1, &estimate), NKV_EINVAL);
    shape.page_tokens = 2;
    assert_int_equal(nkv_kv_estimate(&shape, 0, &estimate), 0);
    assert_true(estimate.total_bytes == 0);
    assert_true(nkv_page_bytes(&small, 2) * small.n_layers == estimate.page_bytes);
    shape.dtype = NKV_Q8_0;
    shape.page_tokens = 32;
    assert_true(nkv_page_bytes(&shape, 1) == 2 * 32 * (8 + 4));
    assert_true(nkv_digest_bytes(&shape) == 2 * 8 * 2);
}

/* Packs a half-full page of a reused slot: what it does not hold is zero, whatever lay there before. */
static void packed_pages_show_only_what_they_hold(void **state)
{
    static const enum nkv_dtype types[] = {NKV_F32, NKV_F16, NKV_BF16, NKV_Q8_0};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct nkv_kv_shape shape = small;
        struct nkv_store *store;
        struct nkv_kv_seq *seq;
        float rows[8] = {1, 2, 3, 4, 5, 6, 7, 8};
        unsigned char packed[1024];
        size_t row_bytes, half;

        shape.dtype = types[i];
        shape.page_tokens = 4;
        row_bytes = nkv_kv_row_bytes(shape.dtype, 8);
        half = 2 * row_bytes;
        assert_int_equal(nkv_store_open(&shape, 1 << 20, &store), 0);
        for (uint32_t n = 4; n > 0; n -= 2) {
            assert_int_equal(nkv_store_seq_open(store, 1, 4, 0), 0);
            seq = nkv_store_find(store, 1);
            for (uint32_t head = 0; head < 2; head++)
                nkv_store_put(store, seq, 0, head, 0, n, rows, rows, 0);
            nkv_store_extend(store, seq, 0, n, true);
            assert_true(nkv_page_bytes(&shape, 1) <= sizeof packed);
            nkv_store_page_copy(store, seq, 0, 0, 1, 1, packed);
            if (n == 2) { /* tokens 2 and 3 of K, then of V */
                for (size_t b = half; b < 2 * half; b++)
                    assert_true(packed[b] == 0 && packed[b + 2 * half] == 0);
                assert_memory_equal(packed, packed + 2 * half, half);
                assert_true(packed[1] || packed[2] || packed[3]);
            }
            assert_int_equal(nkv_store_seq_close(store, 1), 0);
        }
        nkv_store_close(store);
    }
}

static int scenario(void)
{
    struct nkv_store *store;
    int status = nkv_store_open(&small, 1 << 20, &store);

    if (status < 0)
        return status;
    for (uint32_t id = 1; status == 0 && id < 20; id++)
        status = nkv_store_seq_open(store, id, 8, 0);
    for (uint32_t id = 1; status == 0 && id < 20; id += 3)
        status = nkv_store_seq_fork(store, 100 + id, id, 0, 8);
    nkv_store_close(store);
    return status;
}

static void every_failed_allocation_is_survived(void **state)
{
    uint64_t n = 0;
    int status;

    (void)state;
    do {
        nkv_mem_fail_at(++n);
        status = scenario();
        nkv_mem_fail_at(0);
        assert_true(status == 0 || status == NKV_ENOMEM);
    } while (status < 0);
    assert_true(n > 25);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_histories_match_the_model),
        cmocka_unit_test(capacity_is_exact),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(owners_do_not_share_ids),
        cmocka_unit_test(forks_share_and_truncate_takes_its_own),
        cmocka_unit_test(estimates_are_checked),
        cmocka_unit_test(packed_pages_show_only_what_they_hold),
        cmocka_unit_test(every_failed_allocation_is_survived),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
