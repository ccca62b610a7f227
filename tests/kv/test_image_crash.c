/* SPDX-License-Identifier: Apache-2.0 */
/* Stores in images after a crash of the whole system, which leaves a mixture of times. NKV_SOAK_TORN sets how much is
 * tried. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "kv/image_rig.h"

/* Does the store hold the beginning of this? */
static bool begins(const struct world *w, const struct world_seq *model, const struct nkv_kv_seq *seq)
{
    uint32_t n = seq->lengths[0];

    if (!model->open || model->flags != seq->flags || n > world_shortest(model))
        return false;
    for (uint32_t layer = 0; layer < WORLD_LAYERS; layer++)
        if (!world_holds(w, model, seq, layer, n))
            return false;
    return !seq->tokens || (model->name.name[0] && memcmp(seq->tokens, model->ids, n * sizeof *model->ids) == 0);
}

static bool was_once(const struct world *w, const struct world *times, uint32_t n, const struct nkv_kv_seq *seq)
{
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t place = 0; place < WORLD_SEQS; place++)
            if (begins(w, &times[t].seqs[place], seq))
                return true;
    return false;
}

/* Each sequence of the store is the beginning of what one was at one of n times: nothing else is ever read from it.
 * returns: how many have tokens. */
static uint32_t check_beginnings(const struct world *w, const struct world *times, uint32_t n)
{
    uint32_t n_full = 0;

    for (uint32_t i = 0; i < 1u << w->store->table_shift; i++) {
        const struct nkv_kv_seq *seq = w->store->table[i];

        if (!seq)
            continue;
        for (uint32_t layer = 0; layer < WORLD_LAYERS; layer++)
            assert_true(seq->lengths[layer] == seq->lengths[0] && seq->lengths[0] % world_shape.page_tokens == 0);
        assert_true(nkv_seq_is_published(seq) && seq->key >> 32 == NKV_OWNER_NONE);
        assert_true(seq->lengths[0] == 0 || was_once(w, times, n, seq));
        n_full += seq->lengths[0] > 0;
    }
    return n_full;
}

/* A published sequence that was not touched since the sync has all its full pages. */
static void check_synced(const struct world *w, const struct world *times, uint32_t n)
{
    for (uint32_t i = 0; i < WORLD_SEQS; i++) {
        const struct world_seq *model = &times[0].seqs[i];
        const struct nkv_kv_seq *seq;
        bool touched = !model->open || !model->name.name[0];
        uint64_t key = 0;

        for (uint32_t t = 1; t < n && !touched; t++)
            touched = memcmp(model, &times[t].seqs[i], sizeof *model) != 0;
        if (touched)
            continue;
        assert_int_equal(nkv_store_find_named(w->store, &model->name, &key), 0);
        seq = nkv_store_find(w->store, key);
        assert_true(seq->lengths[0] == world_shortest(model) / world_shape.page_tokens * world_shape.page_tokens);
    }
}

/* After recovery, what one sequence gets does not show in another. */
static void check_alone(struct world *w, const struct world *times, uint32_t n)
{
    float k[8] = {-1, -1, -1, -1, -1, -1, -1, -1};

    for (uint32_t i = 0; i < 1u << w->store->table_shift; i++) {
        const struct nkv_kv_seq *seq = w->store->table[i];

        for (uint32_t layer = 0; seq && layer < WORLD_LAYERS; layer++) {
            uint32_t n_tokens = seq->lengths[layer], left = seq->max_tokens - n_tokens;

            for (uint32_t head = 0; head < world_shape.n_kv_heads && left; head++)
                nkv_store_put(w->store, seq, layer, head, n_tokens, left, k, k, 0); /* it is as long as before */
        }
    }
    (void)check_beginnings(w, times, n);
}

static void crash_the_system(struct world *w)
{
    size_t n = 0;
    char *bytes = read_image(&n);

    nkv_store_close(w->store);
    forget_boot(bytes);
    write_image(bytes, n);
    free(bytes);
    open_store(w);
}

/* Sessions that share a long beginning have tables of their own: more than half of the blocks. */
static void recovery_needs_no_room(void **state)
{
    struct nkv_seq_name name = {.name = "0"};
    struct world w = {0};
    uint32_t n = 1, max_tokens;

    (void)state;
    make_store(&w, IMAGE_BYTES);
    max_tokens = w.store->slot_pool.n / 100 * 100; /* half of the pages */
    assert_int_equal(nkv_store_seq_open(w.store, 1, max_tokens, NKV_NO_DIGEST), 0);
    for (uint32_t layer = 0; layer < WORLD_LAYERS; layer++)
        for (uint32_t i = 0; i < 100; i++)
            append_rows(w.store, 1, layer, max_tokens / 100);
    do {
        snprintf(name.name, sizeof name.name, "%u", n);
        assert_int_equal(nkv_store_publish(w.store, n, &name, NULL, 0), 0);
        n++;
    } while (nkv_store_seq_fork(w.store, n, 1, max_tokens, max_tokens) == 0 &&
             w.store->image->block_pool.n_used * 10 < w.store->image->block_pool.n * 7);
    assert_true(w.store->image->block_pool.n_used * 2 > w.store->image->block_pool.n);
    crash_the_system(&w);
    assert_int_equal(w.store->n_seqs, n - 1); /* the last fork has no name */
    assert_int_equal(nkv_store_n_lost(w.store), 1);
    nkv_store_close(w.store);
}

/* One layer: the pages of a truncation come back in one append. */
static void records_are_those_of_the_newest_pages(void **state)
{
    struct nkv_kv_shape shape = world_shape;
    struct nkv_image_options options = image_options(IMAGE_BYTES);
    struct nkv_seq_name name = {.name = "a"};
    struct world w = {0};
    uint64_t key = 0;
    size_t n = 0;
    char *bytes;

    (void)state;
    shape.n_layers = 1;
    (void)unlink(path);
    assert_int_equal(nkv_store_open_image(&shape, &options, &w.store), 0);
    assert_int_equal(nkv_store_seq_open(w.store, 1, 40, 0), 0);
    assert_int_equal(nkv_store_publish(w.store, 1, &name, NULL, 0), 0);
    append_rows(w.store, 1, 0, 10);
    assert_int_equal(nkv_store_seq_truncate(w.store, 1, 4), 0);
    append_rows(w.store, 1, 0, 12);
    bytes = read_image(&n);
    nkv_store_close(w.store);
    forget_boot(bytes);
    write_image(bytes, n);
    free(bytes);
    options.bytes = 0;
    assert_int_equal(nkv_store_open_image(&shape, &options, &w.store), 0);
    assert_int_equal(nkv_store_find_named(w.store, &name, &key), 0);
    assert_int_equal(nkv_store_find(w.store, key)->lengths[0], 16);
    nkv_store_close(w.store);
}

/*
 * The medium holds a mixture: each piece of it as it was at the last sync or as it was when the system went down.
 * piece: its bytes, of at least 8, below which nothing is torn. returns: sequences with tokens that came back.
 */
static uint32_t torn(uint64_t seed, size_t piece)
{
    uint64_t random = seed * 1000 + piece;
    uint32_t n_ops = 1 + below(&random, 60), n_full;
    struct world *w = calloc(1, sizeof *w), *times = calloc(n_ops + 1, sizeof *times);
    size_t n = 0;
    char *synced, *last;

    assert_true(w && times);
    w->random = seed;
    make_store(w, IMAGE_BYTES);
    run_ops(w, 150, NULL);
    assert_int_equal(nkv_store_sync(w->store), 0);
    synced = read_image(&n);
    times[0] = *w;
    run_ops(w, n_ops, times + 1);
    last = read_image(&n);
    nkv_store_close(w->store);
    for (size_t at = 0; at < n; at += piece)
        if (below(&random, 2))
            memcpy(last + at, synced + at, piece < n - at ? piece : n - at);
    forget_boot(last);
    write_image(last, n);
    open_store(w);
    n_full = check_beginnings(w, times, n_ops + 1);
    check_synced(w, times, n_ops + 1);
    nkv_store_close(w->store);
    open_store(w); /* what recovery wrote is sound by itself */
    check_beginnings(w, times, n_ops + 1);
    check_alone(w, times, n_ops + 1);
    nkv_store_close(w->store);
    free(synced);
    free(last);
    free(w);
    free(times);
    return n_full;
}

static void torn_writes_cut_sequences_and_mix_nothing_up(void **state)
{
    static const size_t pieces[] = {8, 64, 512, 4096};
    uint32_t n_seeds = setting("NKV_SOAK_TORN", 10), n_full = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= n_seeds; seed++)
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
            n_full += torn(seed, pieces[i]);
    print_message("%u crashes, %u sequences came back\n", 4 * n_seeds, n_full);
    assert_true(n_full > 4 * n_seeds); /* more than one of ten each time */
}
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recovery_needs_no_room),
        cmocka_unit_test(records_are_those_of_the_newest_pages),
        cmocka_unit_test(torn_writes_cut_sequences_and_mix_nothing_up),
    };
    int n_failed;

    choose_path();
    n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)unlink(path);
    return n_failed;
}
