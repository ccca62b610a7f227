/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stores in images: what a process that was killed at any instant leaves; what is refused. NKV_SOAK_KILLS and
 * NKV_SOAK_OPS set how much is tried.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "base/mem.h"
#include "kv/image_rig.h"

/* ---- Killed processes ---- */

/* What the process that works tells the one that kills it. */
struct log_entry {
    struct world_op op;
    uint64_t random;
    uint32_t next_number;
    int status;
};
struct log {
    _Atomic uint32_t n_planned, n_done;
    struct log_entry entries[4096];
};

static _Noreturn void work_until_killed(struct world *w, struct log *log)
{
    uint32_t n = 0;

    open_store(w);
    while (n < 4096) {
        struct log_entry *entry = &log->entries[n];
        bool planned = world_plan(w, &entry->op);

        entry->random = w->random;
        entry->next_number = w->next_number;
        if (!planned)
            continue;
        if (entry->op.kind == WORLD_ATTACH && !world_learn_key(w, &w->seqs[entry->op.seq]))
            _exit(3);
        atomic_store(&log->n_planned, n + 1);
        entry->status = world_apply_store(w, &entry->op);
        atomic_store(&log->n_done, ++n);
        if (entry->status >= 0)
            world_apply_model(w, &entry->op);
        else if (entry->status != NKV_ENOSPC) {
            fprintf(stderr, "operation of kind %d: %s\n", (int)entry->op.kind, nkv_last_error());
            _exit(2);
        }
        for (uint32_t i = 0; i < WORLD_SEQS; i++)
            if (w->seqs[i].open && !world_learn_key(w, &w->seqs[i]))
                _exit(4);
    }
    for (;;)
        pause();
}

/* Brings the model to where the killed process certainly was. */
static void follow(struct world *w, const struct log *log)
{
    for (uint32_t i = 0; i < atomic_load(&log->n_done); i++)
        if (log->entries[i].status >= 0)
            world_apply_model(w, &log->entries[i].op);
    if (atomic_load(&log->n_planned)) {
        w->random = log->entries[atomic_load(&log->n_planned) - 1].random;
        w->next_number = log->entries[atomic_load(&log->n_planned) - 1].next_number;
    }
}

/* Is the store what it would be, had the operation in flight come so far? layers: of an append. */
static bool happened(const struct world *before, struct world *w, const struct world_op *op, uint32_t layers)
{
    struct world_op part = *op;
    struct nkv_store *store = w->store;

    part.layers = layers;
    *w = *before;
    w->store = store;
    world_apply_model(w, &part);
    world_restart(w);
    return world_matches(w);
}

/* The operation in flight happened, or did not; an append may have come to any layer. */
static void check_after_kill(struct world *w, const struct log *log, uint32_t kill_number)
{
    uint32_t n_done = atomic_load(&log->n_done), n_planned = atomic_load(&log->n_planned), layers = 0;
    const struct world_op *op = &log->entries[n_done].op;
    struct world *before = malloc(sizeof *before);

    assert_non_null(before);
    open_store(w);
    *before = *w;
    world_restart(w);
    if (!world_matches(w)) {
        if (n_planned == n_done)
            fail_msg("kill %u: the store is not what %u operations made", kill_number, n_done);
        layers = op->kind == WORLD_APPEND ? 1 : op->layers;
        while (!happened(before, w, op, layers))
            if (++layers > op->layers)
                fail_msg("kill %u: neither before nor after operation %u of kind %d", kill_number, n_done,
                         (int)op->kind);
    }
    free(before);
    nkv_store_close(w->store);
}

/* returns: operations done. */
static uint32_t one_life(struct world *w, struct log *log, uint64_t *random, uint32_t kill_number)
{
    pid_t pid;
    int status = 0;
    uint32_t n;

    atomic_store(&log->n_planned, 0);
    atomic_store(&log->n_done, 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        work_until_killed(w, log);
    for (int i = 0; i < 20000 && atomic_load(&log->n_planned) == 0 && waitpid(pid, &status, WNOHANG) == 0; i++)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    nanosleep(&(struct timespec){.tv_nsec = below(random, 1500000)}, NULL);
    kill(pid, SIGKILL);
    if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status))
        fail_msg("kill %u: the process ended by itself, status %x", kill_number, (unsigned)status);
    n = atomic_load(&log->n_done);
    follow(w, log);
    check_after_kill(w, log, kill_number);
    return n;
}

static void killed_processes_lose_nothing(void **state)
{
    uint32_t n_kills = setting("NKV_SOAK_KILLS", 50), n_ops = 0, n_min = setting("NKV_SOAK_OPS", 2000), lives = 0;
    struct world *w = calloc(1, sizeof *w);
    struct log *log = mmap(NULL, sizeof *log, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t random = 41;

    (void)state;
    assert_non_null(w);
    assert_true(log != MAP_FAILED);
    w->random = 17;
    make_store(w, IMAGE_BYTES);
    nkv_store_close(w->store);
    while (lives < n_kills || n_ops < n_min)
        n_ops += one_life(w, log, &random, ++lives);
    print_message("%u kills, %u operations\n", lives, n_ops);
    open_store(w);
    for (uint32_t i = 0; i < WORLD_SEQS; i++)
        if (w->seqs[i].open) {
            uint64_t key = world_key(i);

            assert_true(world_learn_key(w, &w->seqs[i]));
            if (w->seqs[i].detached)
                assert_true(nkv_store_attach(w->store, key, &w->seqs[i].name, 1) >= 0);
            assert_int_equal(w->seqs[i].name.name[0] ? nkv_store_remove(w->store, key)
                                                     : nkv_store_seq_close(w->store, w->seqs[i].key),
                             0);
            w->seqs[i].open = false;
        }
    assert_true(world_account_matches(w)); /* nothing is used */
    assert_int_equal(w->store->image->block_pool.n_used, 0);
    nkv_store_close(w->store);
    munmap(log, sizeof *log);
    free(w);
}

static void steps_that_failed_do_not_come_back(void **state)
{
    struct world w = {0};
    const struct nkv_kv_seq *seq;
    size_t n = 0;
    char *bytes;

    (void)state;
    make_store(&w, IMAGE_BYTES);
    assert_int_equal(nkv_store_seq_open(w.store, 1, 20, 0), 0);
    append_rows(w.store, 1, 0, 5);
    append_rows(w.store, 1, 1, 3);
    for (int life = 0; life < 2; life++) { /* layer 0 goes back to 3; layer 1 goes on to 5 */
        bytes = read_image(&n);            /* as a process leaves it that is killed here */
        nkv_store_close(w.store);
        write_image(bytes, n);
        free(bytes);
        open_store(&w);
        seq = nkv_store_find(w.store, 1);
        assert_true(seq && seq->lengths[0] == 3 && seq->lengths[1] == 3);
        append_rows(w.store, 1, 1, 2);
    }
    nkv_store_close(w.store);
}

static void growing_gives_back_what_it_replaces(void **state)
{
    struct nkv_seq_name name = {.name = "grows"};
    struct world w = {0};
    uint32_t n_blocks;

    (void)state;
    make_store(&w, IMAGE_BYTES);
    assert_int_equal(nkv_store_seq_open(w.store, 1, 20, 0), 0);
    assert_int_equal(nkv_store_publish(w.store, 1, &name, NULL, 0), 0);
    for (uint32_t i = 0; i < 100; i++) {
        assert_int_equal(nkv_store_seq_close(w.store, 1), 0);
        assert_int_equal(nkv_store_attach(w.store, 1, &name, 22 + 2 * i), 0);
        n_blocks = nkv_store_find(w.store, 1)->place.n_blocks;
        assert_int_equal(w.store->image->block_pool.n_used, n_blocks);
    }
    nkv_store_close(w.store);
}

static void clients_that_cannot_be_are_struck_out(void **state)
{
    const struct nkv_kv_client bad[] = {{9, NKV_OWNER_NONE, 0}, {0, 3, 0}, {7, 4, 0}, {7, 5, 0}, {8, 4, 0}};
    struct world w = {0};
    uint32_t numbers[NKV_STORE_CLIENTS];
    size_t n = 0;
    char *bytes;

    (void)state;
    make_store(&w, IMAGE_BYTES);
    nkv_store_close(w.store);
    bytes = read_image(&n);
    memcpy(bytes + 2 * NKV_IMAGE_PAGE, bad, sizeof bad);
    write_image(bytes, n);
    free(bytes);
    open_store(&w);
    assert_int_equal(nkv_store_client_numbers(w.store, numbers), 1);
    assert_int_equal(numbers[0], 4);
    assert_int_equal(nkv_store_close_owner(w.store, NKV_OWNER_NONE), 0);
    nkv_store_close(w.store);
}

/* ---- What is refused ---- */

static void expect_refused(const char *bytes, size_t n, int status, const char *words)
{
    struct nkv_image_options options = image_options(0);
    struct nkv_store *store = NULL;
    char *after;
    size_t n_after;

    write_image(bytes, n);
    assert_int_equal(nkv_store_open_image(&world_shape, &options, &store), status);
    if (!strstr(nkv_last_error(), words))
        fail_msg("'%s' is not in: %s", words, nkv_last_error());
    after = read_image(&n_after);
    assert_true(n_after == n && memcmp(after, bytes, n) == 0); /* nothing was changed */
    free(after);
}

/* The last slot of one sequence becomes that of another, too, with checksums that are right. */
static void share_what_is_to_be_written(char *bad, const char *good, size_t n)
{
    struct nkv_image image = {.memory = {bad, n}};
    struct image_seq_view views[2];
    uint32_t n_views = 0, root = 0;

    memcpy(bad, good, n);
    memcpy(&image.super, bad, sizeof image.super);
    nkv_image_map_parts(&image);
    for (uint32_t i = 0; i < image.super.n_roots && n_views < 2; i++)
        if (image.roots[i]) {
            views[n_views++] = nkv_image_view(&image, (uint32_t)image.roots[i] - 1);
            root = i;
        }
    assert_int_equal(n_views, 2);
    views[1].slots[views[1].head->n_slots - 1] = views[0].slots[views[0].head->n_slots - 1];
    views[1].head->sum = nkv_image_seq_sum(&views[1]);
    image.roots[root] = views[1].head->sum << 32 | (uint32_t)image.roots[root];
}

static void damaged_images_are_refused_as_they_are(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    size_t n = 0;
    char *good, *bad;
    const struct image_super *super;
    struct nkv_store *store = NULL;
    uint64_t *roots, random = 3;

    (void)state;
    assert_non_null(w);
    w->random = 5;
    make_store(w, IMAGE_BYTES);
    run_ops(w, 150, NULL);
    nkv_store_close(w->store);
    good = read_image(&n);
    bad = malloc(n);
    assert_non_null(bad);
    super = (const struct image_super *)(const void *)good;
    memcpy(bad, good, n);
    expect_refused(bad, n / 2, NKV_EFORMAT, "cut off");
    bad[8] = 2;
    expect_refused(bad, n, NKV_ENOTSUP, "version 2");
    memcpy(bad, good, n);
    bad[50] ^= 1;
    expect_refused(bad, n, NKV_EFORMAT, "superblock is damaged");
    memcpy(bad, good, n);
    memcpy(bad, "#!/bin/sh", 9);
    expect_refused(bad, n, NKV_EFORMAT, "something else");
    for (uint32_t i = 0; i < 2000; i++) { /* any bit of the tables */
        size_t tables = super->sums_at - super->roots_at, at = super->roots_at + next_random(&random) % tables;
        struct nkv_image_options options = image_options(0);

        memcpy(bad, good, n);
        bad[at] ^= (char)(1u << below(&random, 8));
        write_image(bad, n);
        if (nkv_store_open_image(&world_shape, &options, &store) == 0)
            nkv_store_close(store); /* it was in no sequence's tables, or in ids or a key, which have no checksum */
    }
    memcpy(bad, good, n);
    roots = (uint64_t *)(void *)(bad + super->roots_at);
    roots[super->n_roots - 1] = 0xffffffff;
    expect_refused(bad, n, NKV_EFORMAT, "damaged");
    share_what_is_to_be_written(bad, good, n);
    expect_refused(bad, n, NKV_EFORMAT, "two sequences");
    free(good);
    free(bad);
    free(w);
}

static uint32_t count_problems(void)
{
    struct nkv_image_options options = image_options(0);
    struct nkv_memory_report report;

    if (nkv_image_check(&options, NULL, NULL, &report) < 0)
        fail_msg("%s", nkv_last_error());
    assert_memory_equal(&report.shape, &world_shape, sizeof world_shape);
    return report.n_problems;
}

/* Of each sequence: a byte of its first page, of that page's digest, of its tables. returns: how many. */
static uint32_t find_places(const struct world *w, size_t at_out[3 * WORLD_SEQS])
{
    const struct nkv_store *store = w->store;
    const char *base = store->image->memory.base;
    uint32_t n = 0;

    for (uint32_t i = 0; i < 1u << store->table_shift; i++) {
        const struct nkv_kv_seq *seq = store->table[i];

        if (!seq || nkv_seq_shortest_layer(store, seq) < world_shape.page_tokens || !seq->n_chunks)
            continue;
        at_out[n++] = (size_t)((char *)nkv_store_page(store, seq, 1, 0, 1).v - base);
        at_out[n++] = (size_t)((char *)nkv_store_digests(store, seq, 1, 0, 1) - base);
        at_out[n++] = store->image->super.blocks_at + seq->place.block * NKV_IMAGE_BLOCK_BYTES + 130;
    }
    return n;
}

static void checks_find_what_was_changed(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    size_t n = 0, n_after = 0, at[3 * WORLD_SEQS];
    uint32_t n_places;
    char *bytes, *after;

    (void)state;
    assert_non_null(w);
    w->random = 9;
    make_store(w, IMAGE_BYTES);
    run_ops(w, 150, NULL);
    n_places = find_places(w, at);
    assert_true(n_places >= 6);
    nkv_store_close(w->store);
    assert_int_equal(count_problems(), 0);
    bytes = read_image(&n);
    for (uint32_t i = 0; i < n_places; i++) {
        bytes[at[i]] ^= 4;
        write_image(bytes, n);
        assert_true(count_problems() > 0);
        after = read_image(&n_after);
        assert_true(n_after == n && memcmp(after, bytes, n) == 0);
        free(after);
        bytes[at[i]] ^= 4;
    }
    free(bytes);
    free(w);
}

static void an_image_serves_one_process_and_one_shape(void **state)
{
    struct nkv_image_options options = image_options(0);
    struct nkv_kv_shape other = world_shape, peeked;
    struct nkv_store *store = NULL;
    struct world w = {0};

    (void)state;
    make_store(&w, IMAGE_BYTES);
    assert_int_equal(nkv_store_open_image(&world_shape, &options, &store), NKV_ESTATE);
    assert_non_null(strstr(nkv_last_error(), "another process"));
    assert_int_equal(nkv_store_seq_open(w.store, 1, 10, 0), 0);
    nkv_store_close(w.store);
    other.page_tokens = 4;
    assert_int_equal(nkv_store_open_image(&other, &options, &store), NKV_ESTATE);
    assert_int_equal(nkv_image_peek(&options, &peeked), 1);
    assert_memory_equal(&peeked, &world_shape, sizeof peeked);
    open_store(&w);
    assert_int_equal(nkv_store_seq_close(w.store, 1), 0);
    nkv_store_close(w.store);
    assert_int_equal(nkv_image_peek(&options, &peeked), 0);
    assert_int_equal(nkv_store_open_image(&other, &options, &store), 0); /* it was empty */
    nkv_store_close(store);
    options.bytes = 2 * IMAGE_BYTES;
    assert_int_equal(nkv_store_open_image(&other, &options, &store), NKV_EINVAL);
    (void)unlink(path);
    options.bytes = 0;
    assert_int_equal(nkv_store_open_image(&other, &options, &store), NKV_ENOENT);
    options.bytes = (uint64_t)1 << 60;
    assert_true(nkv_store_open_image(&other, &options, &store) < 0);
    assert_int_equal(access(path, F_OK), -1); /* what could not be made whole is not left behind */
    options.bytes = 100 << 10;
    other.n_layers = 512;
    assert_int_equal(nkv_image_peek(&options, &peeked), 0);
    assert_int_equal(nkv_store_open_image(&other, &options, &store), NKV_EINVAL);
    assert_int_equal(access(path, F_OK), -1);
}

/* Sequences that the tables have no room for are refused, and what is there goes on. */
static void every_room_can_run_out(void **state)
{
    struct world w = {0};
    uint32_t n = 0;
    int status;

    (void)state;
    make_store(&w, IMAGE_BYTES);
    while ((status = nkv_store_seq_open(w.store, ++n, 1, NKV_NO_DIGEST)) == 0)
        ;
    assert_int_equal(status, NKV_ENOSPC);
    nkv_store_close(w.store);
    open_store(&w);
    for (uint32_t i = 1; i < n; i++)
        assert_int_equal(nkv_store_seq_close(w.store, i), 0);
    assert_true(world_account_matches(&w));
    nkv_store_close(w.store);
}

static int open_and_use(void)
{
    struct nkv_image_options options = image_options(0);
    struct nkv_seq_name name = {.name = "a"};
    struct nkv_store *store;
    int status = nkv_store_open_image(&world_shape, &options, &store);

    if (status < 0)
        return status;
    status = nkv_store_seq_open(store, 50, 30, 0);
    if (status == 0)
        status = nkv_store_publish(store, 50, &name, NULL, 0);
    if (status == 0)
        status = nkv_store_remove(store, 50);
    else
        (void)nkv_store_seq_close(store, 50);
    nkv_store_close(store);
    return status;
}

static void every_failed_allocation_is_survived(void **state)
{
    struct world w = {.random = 2};
    size_t n = 0, n_after;
    char *bytes, *after;
    uint64_t at = 0;
    int status;

    (void)state;
    make_store(&w, IMAGE_BYTES);
    run_ops(&w, 60, NULL);
    world_restart(&w);
    nkv_store_close(w.store);
    for (uint32_t crashed = 0; crashed < 2; crashed++) {
        bytes = read_image(&n);
        if (crashed)
            forget_boot(bytes);
        do {
            write_image(bytes, n);
            nkv_mem_fail_at(++at);
            status = open_and_use();
            nkv_mem_fail_at(0);
            assert_true(status == 0 || status == NKV_ENOMEM);
            open_store(&w);
            for (uint32_t i = 0; crashed && i < WORLD_SEQS; i++) {
                w.seqs[i].open &= w.seqs[i].name.name[0] != '\0';
                w.seqs[i].detached = w.seqs[i].open;
                world_cut(&w.seqs[i], world_shortest(&w.seqs[i]) / world_shape.page_tokens * world_shape.page_tokens);
            }
            assert_true(world_matches(&w));
            nkv_store_close(w.store);
        } while (status < 0);
        assert_true(at > 8);
        at = 0;
        after = read_image(&n_after);
        assert_true(n_after == n);
        free(after);
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_processes_lose_nothing),
        cmocka_unit_test(steps_that_failed_do_not_come_back),
        cmocka_unit_test(growing_gives_back_what_it_replaces),
        cmocka_unit_test(clients_that_cannot_be_are_struck_out),
        cmocka_unit_test(damaged_images_are_refused_as_they_are),
        cmocka_unit_test(checks_find_what_was_changed),
        cmocka_unit_test(an_image_serves_one_process_and_one_shape),
        cmocka_unit_test(every_room_can_run_out),
        cmocka_unit_test(every_failed_allocation_is_survived),
    };
    int n_failed;

    choose_path();
    n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)unlink(path);
    return n_failed;
}
