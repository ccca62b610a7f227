/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kills at random moments. First of the device, whose pages are in a file, under a context that appends, attends,
 * truncates, forks, closes and opens: after each kill it recovers and goes on, and every output has the bits of an
 * undisturbed device in this process. Then of clients, one after the other, that continue the same published sequence
 * and leave others behind. Nothing is lost, nothing leaks, nothing hangs (alarm).
 *
 * 50 kills of each; NKV_SOAK_KILLS says another number (tools/soak.sh), NKV_SOAK_SEED another seed.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <nearkv/device.h>
#include <sys/mman.h>

#include "device/server.h"
#include "runtime/rig.h"

#define IMAGE_BYTES ((uint64_t)16 << 20)
#define MAX_TOKENS  400u
#define N_SEQS      4u
#define WINDOW      ((uint64_t)1 << 20)
#define ROUNDING    2e-5f /* of sums in another order */
#define BOOK        1u
#define SCRAP       2u

static const enum nkv_mode modes[N_SEQS] = {NKV_MODE_PNM, NKV_MODE_FULL, NKV_MODE_PNG, NKV_MODE_PNM};

/* What each mode's decode step gives at each position: [mode][pos]. */
static float reference[NKV_MODE_COUNT][MAX_TOKENS][RIG_LAYERS * RIG_ROW];
static uint64_t random_state;
static uint32_t n_kills = 50;

static uint32_t pick(uint32_t n)
{
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) % n);
}

/* Up to 32 ms, more often short than long. */
static struct timespec random_delay(void)
{
    return (struct timespec){.tv_nsec = 1000 * (long)(100 + pick(1u << (8 + pick(8))))};
}

static struct nkv_seq_options options_of(enum nkv_mode mode)
{
    return rig_seq_options(mode, MAX_TOKENS, 128, NKV_SELECT_KV_HEAD);
}

/* ---- Kills of the device ---- */

struct world {
    struct rig rig;
    struct rig_seq s[N_SEQS];
    bool open[N_SEQS];
    uint32_t n_checked;
    _Atomic uint32_t n_recovered;
};

static void open_world(struct world *w, const char *spec)
{
    struct rig_options o = {.dtype = NKV_F16, .spec = spec};

    memset(w, 0, sizeof *w);
    if (rig_open(&w->rig, &o) < 0)
        fail_msg("%s", nkv_last_error());
}

/* Whether a call failed because the device was killed; any other failure is one of the test. */
static bool was_killed(int status)
{
    if (status < 0 && status != NKV_EDEVICE)
        fail_msg("%s: %s", nkv_status_name(status), nkv_last_error());
    return status < 0;
}

static bool heal_sequence(struct nkv_seq *seq)
{
    if (nkv_seq_status(seq) == 0)
        return true;
    if (nkv_seq_status(seq) != NKV_EDEVICE)
        fail_msg("%s", nkv_seq_error(seq));
    return !was_killed(nkv_seq_truncate(seq, nkv_seq_length(seq)));
}

/* Until the device is there and every sequence is usable; it may be killed again meanwhile. */
static void heal(struct world *w)
{
    bool well;

    do {
        int n = nkv_context_recover(w->rig.context, 20000);

        if (n < 0)
            fail_msg("%s", nkv_last_error());
        w->n_recovered += (uint32_t)n;
        well = true;
        for (uint32_t i = 0; i < N_SEQS; i++)
            if (w->open[i])
                well &= heal_sequence(w->s[i].seq);
    } while (!well);
    for (uint32_t i = 0; i < N_SEQS; i++)
        if (w->open[i])
            w->s[i].length = nkv_seq_length(w->s[i].seq);
}

static bool check_output(const struct rig_seq *s, uint32_t i, uint32_t pos)
{
    const float *want = reference[modes[i]][pos];

    if (modes[i] == NKV_MODE_PNG)
        return rig_difference(s->last, want, RIG_LAYERS * RIG_ROW) < ROUNDING;
    return memcmp(s->last, want, sizeof reference[0][0]) == 0;
}

/* One decode step of all sequences that have room. */
static void decode(struct world *w)
{
    struct rig_seq *batch[N_SEQS];
    uint32_t one[N_SEQS], index[N_SEQS], before[N_SEQS], n = 0;

    for (uint32_t i = 0; i < N_SEQS; i++) {
        if (!w->open[i] || w->s[i].length == MAX_TOKENS)
            continue;
        before[n] = w->s[i].length;
        one[n] = 1;
        index[n] = i;
        batch[n++] = &w->s[i];
    }
    if (n == 0)
        return;
    if (rig_step(&w->rig, batch, one, n) < 0)
        fail_msg("%s", nkv_last_error());
    for (uint32_t k = 0; k < n; k++) {
        if (nkv_seq_status(batch[k]->seq) < 0)
            continue;
        assert_int_equal(batch[k]->length, before[k] + 1);
        if (!check_output(batch[k], index[k], before[k]))
            fail_msg("sequence %u, token %u: another output", index[k], before[k]);
        w->n_checked++;
    }
}

static void open_one(struct world *w, uint32_t i)
{
    struct nkv_seq_options so = options_of(modes[i]);
    struct nkv_seq *seq = NULL;
    int status;

    /* A fork of another, or a new one. */
    if (i > 0 && w->open[0] && pick(2))
        status = nkv_seq_fork(w->s[0].seq, pick(w->s[0].length + 1), &so, &seq);
    else
        status = nkv_seq_open(w->rig.context, &so, &seq);
    if (was_killed(status))
        return;
    w->s[i].seq = seq;
    w->s[i].length = nkv_seq_length(seq);
    w->open[i] = true;
}

static void do_something(struct world *w)
{
    uint32_t i = pick(N_SEQS), what = pick(20), n;

    if (!w->open[i]) {
        open_one(w, i);
    } else if (what < 12) {
        decode(w);
    } else if (what < 15 && w->s[i].length < MAX_TOKENS) {
        n = 1 + pick(MAX_TOKENS - w->s[i].length < 48 ? MAX_TOKENS - w->s[i].length : 48);
        if (rig_prefill(&w->rig, &w->s[i], n, 16) < 0)
            fail_msg("%s", nkv_last_error());
    } else if (what < 18 || w->s[i].length == MAX_TOKENS) {
        (void)was_killed(nkv_seq_truncate(w->s[i].seq, pick(w->s[i].length + 1)));
        w->s[i].length = nkv_seq_length(w->s[i].seq);
    } else {
        nkv_seq_close(w->s[i].seq);
        w->open[i] = false;
    }
}

struct supervisor {
    struct server *server;
    struct world *world;
    _Atomic uint32_t n_killed;
    _Atomic bool over;
    struct timespec *delays; /* [n_kills] */
};

/* Most kills hit a device at work, some one that has just begun. */
static void *kill_and_restart(void *arg)
{
    struct supervisor *v = arg;

    for (uint32_t i = 0, before = 0; i < n_kills; i++, before = v->world->n_recovered) {
        while (i > 0 && i % 4 && v->world->n_recovered == before)
            server_pause();
        nanosleep(&v->delays[i], NULL);
        server_kill(v->server);
        v->server->pid = server_spawn("serve", v->server->path, v->server->memory);
        v->n_killed = i + 1;
    }
    while (!v->over) /* a process ends with the thread that spawned it */
        server_pause();
    return NULL;
}

static void make_reference(void)
{
    for (uint32_t m = 0; m < N_SEQS; m++) {
        struct nkv_seq_options so = options_of(modes[m]);
        struct nkv_seq *seq = NULL;
        struct world w;

        open_world(&w, "cpu");
        assert_int_equal(nkv_seq_open(w.rig.context, &so, &seq), 0);
        rig_seq_init(&w.s[0], seq, 7);
        for (uint32_t pos = 0; pos < MAX_TOKENS; pos++) {
            assert_int_equal(rig_decode(&w.rig, &w.s[0]), 0);
            memcpy(reference[modes[m]][pos], w.s[0].last, sizeof reference[0][0]);
        }
        rig_seq_free(&w.s[0]);
        rig_close(&w.rig);
    }
}

static void close_world(struct world *w)
{
    for (uint32_t i = 0; i < N_SEQS; i++) {
        if (w->open[i])
            nkv_seq_close(w->s[i].seq);
        rig_seq_free(&w->s[i]);
    }
    for (uint32_t i = 0; i < 2; i++) { /* the compute side, too */
        struct nkv_device_report report;

        assert_int_equal(nkv_context_device(w->rig.context, i, &report), 0);
        assert_true(report.used_bytes == 0 && report.n_sequences == 0);
    }
    rig_close(&w->rig);
}

static void a_killed_device_loses_nothing(void **state)
{
    struct server server;
    struct world w;
    struct supervisor supervisor = {.server = &server, .world = &w};
    pthread_t thread;

    (void)state;
    server_open_on_file(&server, IMAGE_BYTES);
    supervisor.delays = calloc(n_kills, sizeof *supervisor.delays);
    assert_non_null(supervisor.delays);
    for (uint32_t i = 0; i < n_kills; i++)
        supervisor.delays[i] = random_delay();
    open_world(&w, server.spec);
    for (uint32_t i = 0; i < N_SEQS; i++)
        rig_seq_init(&w.s[i], NULL, 7);
    assert_int_equal(pthread_create(&thread, NULL, kill_and_restart, &supervisor), 0);
    while (supervisor.n_killed < n_kills) {
        do_something(&w);
        heal(&w);
    }
    for (uint32_t i = 0; i < 40; i++) {
        do_something(&w);
        heal(&w);
    }
    print_message("%u kills, %u recoveries, %u outputs compared\n", n_kills, w.n_recovered, w.n_checked);
    assert_true(w.n_recovered >= n_kills / 2 && w.n_checked > n_kills);
    close_world(&w);
    server_await_clients(&server, 0);
    assert_true(server_stat(&server).used_bytes == 0 && server_stat(&server).n_sequences == 0);
    server_close(&server);
    supervisor.over = true;
    pthread_join(thread, NULL);
    free(supervisor.delays);
}

/* ---- Kills of clients ---- */

/* What clients tell the test, in memory that both see. */
struct progress {
    uint32_t n_done; /* tokens of the book that surely are there */
    uint32_t n_steps;
};

struct client {
    struct nkv_device *device;
    char *window;
    struct progress *progress;
};

static int client_run(struct client *c, struct nkv_cmd cmd)
{
    struct nkv_cqe cqe;

    if (c->device->ops->submit(c->device, &cmd, 1) < 0 || c->device->ops->reap(c->device, &cqe, 1, 1) != 1)
        _exit(10);
    return cqe.res;
}

static void client_do(struct client *c, struct nkv_cmd cmd, int want)
{
    int res = client_run(c, cmd);

    if (res != want) {
        fprintf(stderr, "client: op %u: %d, not %d: %s\n", cmd.op, res, want, nkv_last_error());
        _exit(11);
    }
}

static void name_book(struct client *c)
{
    struct nkv_seq_name name = {.name = "book", .model = 5};

    memcpy(c->window, &name, sizeof name);
}

static uint32_t id_of(uint32_t pos)
{
    return pos * 2654435761u;
}

/* Takes the book over, or makes it. returns: its tokens. */
static uint32_t take_book(struct client *c)
{
    const uint32_t *ids = (const uint32_t *)(void *)(c->window + 4096);
    int n;

    name_book(c);
    n = client_run(c, (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN, .seq = BOOK, .flags = NKV_NAMED, .n_tokens = MAX_TOKENS});
    if (n == NKV_ENOENT) {
        client_do(c, (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN, .seq = BOOK, .n_tokens = MAX_TOKENS}, 0);
        client_do(c, (struct nkv_cmd){.op = NKV_OP_SEQ_PUBLISH, .seq = BOOK}, 0);
        n = 0;
    }
    if (n < 0 || (uint32_t)n < c->progress->n_done || ((uint32_t)n > c->progress->n_done + 1 && n != MAX_TOKENS)) {
        fprintf(stderr, "client: the book has %d tokens, not %u\n", n, c->progress->n_done);
        _exit(12);
    }
    if (n > 0)
        client_do(c,
                  (struct nkv_cmd){
                      .op = NKV_OP_READ, .seq = BOOK, .flags = NKV_TOKENS, .out_offset = 4096, .n_tokens = (uint32_t)n},
                  n);
    for (uint32_t i = 0; i < (uint32_t)n; i++)
        if (ids[i] != id_of(i))
            _exit(13);
    return (uint32_t)n;
}

/* Appends token pos in every layer and looks at what it attends to. */
static void write_token(struct client *c, uint32_t seq, uint32_t pos)
{
    struct nkv_partial_layout at =
        nkv_partial_layout(&(struct nkv_kv_shape){.n_heads = RIG_HEADS, .head_dim = RIG_DIM}, 1);
    float *q = (float *)(void *)c->window, *k = q + RIG_ROW, *v = k + RIG_KV_ROW;
    float *o = (float *)(void *)(c->window + 8192), *l = (float *)(void *)(c->window + 8192 + at.l);

    for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
        const float *want = reference[NKV_MODE_FULL][pos] + layer * RIG_ROW;

        rig_fill(7, layer, pos, 1, q, k, v);
        client_do(c,
                  (struct nkv_cmd){.op = NKV_OP_APPEND,
                                   .seq = seq,
                                   .layer = (uint16_t)layer,
                                   .n_tokens = 1,
                                   .pos = pos,
                                   .in_offset = RIG_ROW * sizeof(float)},
                  0);
        client_do(c,
                  (struct nkv_cmd){.op = NKV_OP_ATTEND,
                                   .seq = seq,
                                   .layer = (uint16_t)layer,
                                   .flags = NKV_CAUSAL | NKV_ALL_PAGES,
                                   .n_tokens = 1,
                                   .pos = pos,
                                   .out_offset = 8192},
                  (int)pos + 1);
        for (uint32_t i = 0; i < RIG_ROW; i++)
            if (o[i] / l[i / RIG_DIM] - want[i] > ROUNDING || want[i] - o[i] / l[i / RIG_DIM] > ROUNDING)
                _exit(14);
    }
}

static _Noreturn void be_client(const char *spec, struct progress *progress)
{
    struct nkv_device_config config = {.size = sizeof config, .shape = rig_shape(NKV_F16)};
    struct client c = {.progress = progress};
    uint32_t pos, scrap = 0;
    void *window;

    if (nkv_device_open(spec, &config, &c.device) < 0 || c.device->ops->map(c.device, WINDOW, &window) < 0)
        _exit(9);
    c.window = window;
    progress->n_done = pos = take_book(&c);
    client_do(&c, (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN, .seq = SCRAP, .n_tokens = MAX_TOKENS}, 0);
    for (;; pos++, progress->n_steps++) {
        if (pos == MAX_TOKENS) {
            progress->n_done = pos = 0;
            client_do(&c, (struct nkv_cmd){.op = NKV_OP_SEQ_TRUNCATE, .seq = BOOK}, 0);
        }
        *(uint32_t *)(void *)c.window = id_of(pos);
        client_do(&c, (struct nkv_cmd){.op = NKV_OP_WRITE, .seq = BOOK, .flags = NKV_TOKENS, .pos = pos, .n_tokens = 1},
                  1);
        write_token(&c, BOOK, pos);
        progress->n_done = pos + 1;
        if (scrap < MAX_TOKENS)
            write_token(&c, SCRAP, scrap++);
    }
}

static void check_left_behind(const struct server *server, uint64_t *book_bytes)
{
    struct nkv_serve_stat stat;

    server_await_clients(server, 0);
    stat = server_stat(server);
    assert_true(stat.n_sequences <= 1);
    if (stat.n_sequences == 0)
        assert_true(stat.used_bytes == 0 && *book_bytes == 0);
    else if (*book_bytes == 0)
        *book_bytes = stat.used_bytes;
    assert_true(stat.used_bytes == *book_bytes);
}

static void remove_book(const char *spec)
{
    struct nkv_device_config config = {.size = sizeof config, .shape = rig_shape(NKV_F16)};
    struct progress progress = {0};
    struct client c = {.progress = &progress};
    void *window;

    assert_int_equal(nkv_device_open(spec, &config, &c.device), 0);
    assert_int_equal(c.device->ops->map(c.device, WINDOW, &window), 0);
    c.window = window;
    name_book(&c);
    assert_true(
        client_run(&c, (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN, .seq = BOOK, .flags = NKV_NAMED, .n_tokens = 1}) >= 0);
    assert_int_equal(client_run(&c, (struct nkv_cmd){.op = NKV_OP_SEQ_CLOSE, .seq = BOOK, .flags = NKV_NAMED}), 0);
    nkv_device_close(c.device);
}

static void a_killed_client_leaves_what_it_published(void **state)
{
    struct progress *progress = mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t book_bytes = 0;
    struct server server;

    (void)state;
    assert_true(progress != MAP_FAILED);
    server_open_on_file(&server, IMAGE_BYTES);
    for (uint32_t i = 0; i < n_kills; i++) {
        struct timespec delay = random_delay();
        int status = 0;
        pid_t pid = fork();

        assert_true(pid >= 0);
        if (pid == 0)
            be_client(server.spec, progress);
        nanosleep(&delay, NULL);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFSIGNALED(status))
            fail_msg("client %u ended with %d", i, WEXITSTATUS(status));
        check_left_behind(&server, &book_bytes);
    }
    print_message("%u kills, %u tokens of the book written\n", n_kills, progress->n_steps);
    assert_true(progress->n_steps > n_kills && book_bytes > 0);
    remove_book(server.spec);
    server_await_clients(&server, 0);
    assert_true(server_stat(&server).used_bytes == 0);
    munmap(progress, sizeof *progress);
    server_close(&server);
}

static int read_environment(void **state)
{
    const char *kills = getenv("NKV_SOAK_KILLS"), *seed = getenv("NKV_SOAK_SEED");

    (void)state;
    n_kills = kills ? (uint32_t)strtoul(kills, NULL, 10) : n_kills;
    random_state = seed ? strtoull(seed, NULL, 10) : 1;
    alarm(60 + n_kills);
    make_reference();
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_device_loses_nothing),
        cmocka_unit_test(a_killed_client_leaves_what_it_published),
    };

    if (argc == 4)
        return server_role(argv);
    return cmocka_run_group_tests(tests, read_environment, NULL);
}
