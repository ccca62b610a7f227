/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stores in images: what a process that was killed at any instant leaves; what a crash of the whole system leaves; what
 * is refused. NKV_SOAK_KILLS and NKV_SOAK_OPS set how much is tried.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "kv/image.h"
#include "kv/world.h"

#define IMAGE_BYTES ((uint64_t)768 << 10)

static char path[64];

static struct nkv_image_options image_options(uint64_t bytes)
{
    return (struct nkv_image_options){.path = path, .bytes = bytes};
}

static void open_store(struct world *w)
{
    struct nkv_image_options options = image_options(0);
    int status = nkv_store_open_image(&world_shape, &options, &w->store);

    if (status < 0)
        fail_msg("%s", nkv_last_error());
}

static void make_store(struct world *w, uint64_t bytes)
{
    struct nkv_image_options options = image_options(bytes);

    (void)unlink(path);
    if (nkv_store_open_image(&world_shape, &options, &w->store) < 0)
        fail_msg("%s", nkv_last_error());
}

static uint32_t setting(const char *name, uint32_t fallback)
{
    const char *text = getenv(name);

    return text ? (uint32_t)strtoul(text, NULL, 10) : fallback;
}

/* ---- The file ---- */

static char *read_image(size_t *bytes_out)
{
    int fd = open(path, O_RDONLY);
    struct stat file;
    char *bytes;

    assert_true(fd >= 0 && fstat(fd, &file) == 0);
    *bytes_out = (size_t)file.st_size;
    bytes = malloc(*bytes_out);
    assert_non_null(bytes);
    assert_true(read(fd, bytes, *bytes_out) == (ssize_t)*bytes_out);
    close(fd);
    return bytes;
}

static void write_image(const char *bytes, size_t n)
{
    int fd = open(path, O_WRONLY | O_TRUNC);

    assert_true(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
    close(fd);
}

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

static void append_rows(struct nkv_store *store, uint64_t key, uint32_t layer, uint32_t n)
{
    struct nkv_kv_seq *seq = nkv_store_find(store, key);
    float rows[8 * 16] = {0};

    for (uint32_t head = 0; head < world_shape.n_kv_heads; head++)
        nkv_store_put(store, seq, layer, head, seq->lengths[layer], n, rows, rows, 8);
    nkv_store_extend(store, seq, layer, n, true);
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

/* ---- Crashes of the system ---- */

/* As if the system had been started since, and had never been told to close. */
static void forget_boot(char *bytes)
{
    struct image_state *state = (struct image_state *)(void *)(bytes + NKV_IMAGE_PAGE);

    state->clean = 0;
    memcpy(state->boot_id, "another", 8);
}

/* Runs n operations; history (may be NULL): [n], the world after each. */
static void run_ops(struct world *w, uint32_t n, struct world *history)
{
    struct world_op op;

    for (uint32_t done = 0; done < n;) {
        if (!world_plan(w, &op))
            continue;
        if (world_apply_store(w, &op) >= 0)
            world_apply_model(w, &op);
        for (uint32_t i = 0; i < WORLD_SEQS; i++)
            assert_true(!w->seqs[i].open || world_learn_key(w, &w->seqs[i]));
        if (history)
            history[done] = *w;
        done++;
    }
}

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
        cmocka_unit_test(recovery_needs_no_room),
        cmocka_unit_test(records_are_those_of_the_newest_pages),
        cmocka_unit_test(clients_that_cannot_be_are_struck_out),
        cmocka_unit_test(torn_writes_cut_sequences_and_mix_nothing_up),
        cmocka_unit_test(damaged_images_are_refused_as_they_are),
        cmocka_unit_test(checks_find_what_was_changed),
        cmocka_unit_test(an_image_serves_one_process_and_one_shape),
        cmocka_unit_test(every_room_can_run_out),
        cmocka_unit_test(every_failed_allocation_is_survived),
    };
    int n_failed;

    snprintf(path, sizeof path, "%s/nkv-image-%d", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", (int)getpid());
    n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)unlink(path);
    return n_failed;
}
