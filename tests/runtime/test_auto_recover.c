/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices with two users, killed with commands of both in flight. A device process is stopped before the commands go
 * down, so that they are in flight for certain; or it is killed at any moment of a step, and whoever it was, everything
 * that comes after recovery is as if nothing had been.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <nearkv/device.h>

#include "device/server.h"
#include "runtime/rig.h"

#define CAPACITY ((uint64_t)8 << 20)
#define LENGTH   300u
#define STEPS    6u
#define N_SEQS   3u    /* one on all devices, one on each */
#define ROUNDING 2e-5f /* of sums in another order */

struct world {
    struct rig rig;
    struct server servers[2];
    struct rig_seq s[N_SEQS];
};

typedef float outputs_t[STEPS][N_SEQS][RIG_LAYERS * RIG_ROW];

static struct nkv_seq_options options_of(enum nkv_mode mode, uint32_t i)
{
    struct nkv_seq_options so = rig_seq_options(mode, i ? 400 : 6000, 160, NKV_SELECT_LAYER);

    so.n_dense_layers = i == 0; /* so that it is long */
    return so;
}

static void open_seqs(struct world *w, enum nkv_mode mode)
{
    for (uint32_t i = 0; i < N_SEQS; i++) {
        struct nkv_seq_options so = options_of(mode, i);
        struct nkv_seq *seq = NULL;

        if (nkv_seq_open(w->rig.context, &so, &seq) < 0)
            fail_msg("%s", nkv_last_error());
        assert_int_equal(nkv_seq_device(seq), i ? i - 1 : NKV_ALL_DEVICES);
        rig_seq_init(&w->s[i], seq, 1 + i);
        assert_int_equal(rig_prefill(&w->rig, &w->s[i], LENGTH, 128), 0);
    }
}

/* n_remote of the two devices are processes. */
static void open_world(struct world *w, enum nkv_mode mode, uint32_t n_remote)
{
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F16), .capacity_bytes = 2 * CAPACITY, .n_threads = 1};
    struct nkv_context_options options = {.size = sizeof options,
                                          .shape = config.shape,
                                          .devices = w->rig.devices,
                                          .n_devices = 2,
                                          .kv_parallel = NKV_KV_AUTO};

    *w = (struct world){.rig = {.shape = config.shape, .n_devices = 2}};
    for (uint32_t i = 0; i < 2; i++) {
        struct nkv_device_caps caps = {.size = sizeof caps};

        if (i < n_remote)
            server_open_on_file(&w->servers[i], 2 * CAPACITY);
        if (nkv_device_open(i < n_remote ? w->servers[i].spec : "cpu", &config, &w->rig.devices[i]) < 0)
            fail_msg("%s", nkv_last_error());
        assert_int_equal(w->rig.devices[i]->ops->caps(w->rig.devices[i], &caps), 0);
        config.capacity_bytes = caps.capacity_bytes; /* so that they are filled in turn */
    }
    assert_int_equal(nkv_device_open("cpu", &config, &w->rig.compute), 0);
    options.compute = w->rig.compute;
    assert_int_equal(nkv_context_open(&options, &w->rig.context), 0);
    open_seqs(w, mode);
}

static void close_world(struct world *w, uint32_t n_remote)
{
    for (uint32_t i = 0; i < N_SEQS; i++) {
        nkv_seq_close(w->s[i].seq);
        rig_seq_free(&w->s[i]);
    }
    assert_true(rig_empty(&w->rig));
    rig_close(&w->rig);
    for (uint32_t i = 0; i < n_remote; i++) {
        assert_int_equal(server_stat(&w->servers[i]).n_sequences, 0);
        server_close(&w->servers[i]);
    }
}

static void step_all(struct world *w)
{
    static const uint32_t ones[N_SEQS] = {1, 1, 1};
    struct rig_seq *batch[N_SEQS] = {&w->s[0], &w->s[1], &w->s[2]};

    assert_int_equal(rig_step(&w->rig, batch, ones, N_SEQS), 0);
}

static void record(enum nkv_mode mode, outputs_t out)
{
    struct world w;

    open_world(&w, mode, 0);
    for (uint32_t step = 0; step < STEPS; step++) {
        step_all(&w);
        for (uint32_t i = 0; i < N_SEQS; i++)
            memcpy(out[step][i], w.s[i].last, sizeof out[step][i]);
    }
    close_world(&w, 0);
}

static void check_outputs(const struct world *w, enum nkv_mode mode, uint32_t i, uint32_t step, outputs_t out)
{
    if (mode == NKV_MODE_PNG || mode == NKV_MODE_RECALL) /* what is resident is another part of the same set */
        assert_true(rig_difference(w->s[i].last, out[step][i], RIG_LAYERS * RIG_ROW) < ROUNDING);
    else
        assert_memory_equal(w->s[i].last, out[step][i], sizeof out[step][i]);
}

static void restart(struct server *server)
{
    server_open_at(server, true, 2 * CAPACITY);
}

/* Cuts back those that failed. returns: how many. */
static uint32_t cut_back(struct world *w)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < N_SEQS; i++) {
        struct nkv_seq *seq = w->s[i].seq;

        n += nkv_seq_status(seq) < 0;
        if (nkv_seq_truncate(seq, nkv_seq_length(seq)) < 0)
            fail_msg("%s", nkv_last_error());
        w->s[i].length = nkv_seq_length(seq);
    }
    return n;
}

/* Steps of each, alone or together, up to the same length. */
static void finish(struct world *w, enum nkv_mode mode, outputs_t out)
{
    for (uint32_t i = 0; i < N_SEQS; i++)
        while (w->s[i].length < LENGTH + STEPS) {
            uint32_t step = w->s[i].length - LENGTH;

            assert_int_equal(rig_decode(&w->rig, &w->s[i]), 0);
            if (nkv_seq_status(w->s[i].seq) < 0)
                fail_msg("%s", nkv_seq_error(w->s[i].seq));
            check_outputs(w, mode, i, step, out);
        }
}

/* In two tickets, the spread one in the first or the second, or in one; the device stands still when they go down. */
static void lose_in_flight(enum nkv_mode mode, uint32_t how, outputs_t out)
{
    struct nkv_ticket *tickets[2] = {NULL};
    struct nkv_attend_item items[N_SEQS];
    uint32_t n_tickets = how < 2 ? 2 : 1;
    struct world w;

    open_world(&w, mode, 1);
    step_all(&w);
    assert_int_equal(kill(w.servers[0].pid, SIGSTOP), 0);
    for (uint32_t i = 0; i < N_SEQS; i++)
        items[i] = rig_item(&w.s[i], 0, 1);
    if (n_tickets == 1)
        assert_int_equal(nkv_attend_begin(w.rig.context, 0, items, N_SEQS, &tickets[0]), 0);
    else
        for (uint32_t t = 0; t < 2; t++)
            assert_int_equal(
                nkv_attend_begin(w.rig.context, 0, t == how ? items : items + 1, t == how ? 1 : 2, &tickets[t]), 0);
    server_kill(&w.servers[0]);
    assert_int_equal(nkv_context_recover(w.rig.context, 0), NKV_ESTATE);
    for (uint32_t t = n_tickets; t-- > 0;)
        assert_int_equal(nkv_attend_end(tickets[t]), 0);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(nkv_seq_status(w.s[i].seq), NKV_EDEVICE);
        assert_non_null(strstr(nkv_seq_error(w.s[i].seq), "pnm0"));
    }
    assert_int_equal(nkv_seq_status(w.s[2].seq), 0);
    assert_int_equal(nkv_context_recover(w.rig.context, 0), NKV_EDEVICE);
    restart(&w.servers[0]);
    assert_int_equal(nkv_context_recover(w.rig.context, 5000), 1);
    assert_int_equal(nkv_context_recover(w.rig.context, 0), 0);
    assert_int_equal(cut_back(&w), 2);
    finish(&w, mode, out);
    close_world(&w, 1);
}

static void both_kinds_are_in_flight(void **state)
{
    static outputs_t out;

    (void)state;
    for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++) {
        record(mode, out);
        for (uint32_t how = 0; how < 3; how++)
            lose_in_flight(mode, how, out);
    }
}

struct killer {
    pid_t pid;
    long after_ns;
};

static void *kill_later(void *arg)
{
    const struct killer *killer = arg;

    nanosleep(&(struct timespec){.tv_nsec = killer->after_ns}, NULL);
    kill(killer->pid, SIGKILL);
    return NULL;
}

/* Whatever was under way. */
static void lose_at_any_time(enum nkv_mode mode, long after_ns, outputs_t out)
{
    struct killer killer = {.after_ns = after_ns};
    pthread_t thread;
    struct world w;

    open_world(&w, mode, 1);
    killer.pid = w.servers[0].pid;
    assert_int_equal(pthread_create(&thread, NULL, kill_later, &killer), 0);
    for (uint32_t step = 0; step < STEPS && nkv_seq_status(w.s[0].seq) == 0; step++)
        step_all(&w);
    pthread_join(thread, NULL);
    (void)server_wait(&w.servers[0]);
    restart(&w.servers[0]);
    if (nkv_seq_status(w.s[0].seq) == 0) /* after the last step: closing a sequence may not see it either */
        step_all(&w);
    assert_int_equal(nkv_context_recover(w.rig.context, 5000), 1);
    (void)cut_back(&w);
    finish(&w, mode, out);
    close_world(&w, 1);
}

static void a_device_goes_at_any_time(void **state)
{
    static outputs_t out;

    (void)state;
    for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++) {
        record(mode, out);
        for (long i = 0; i < 6; i++)
            lose_at_any_time(mode, 50000 + 130000 * i, out);
    }
}

/* Both are lost, one is back first: those that lie on it alone go on, those on all wait for the other. */
static void devices_come_back_one_by_one(void **state)
{
    static outputs_t out;
    float last[RIG_LAYERS * RIG_ROW];
    struct world w;

    (void)state;
    record(NKV_MODE_PNM, out);
    for (uint32_t first = 0; first < 2; first++) {
        open_world(&w, NKV_MODE_PNM, 2);
        for (uint32_t i = 0; i < 2; i++)
            server_kill(&w.servers[i]);
        step_all(&w);
        for (uint32_t i = 0; i < N_SEQS; i++)
            assert_int_equal(nkv_seq_status(w.s[i].seq), NKV_EDEVICE);
        restart(&w.servers[first]);
        assert_int_equal(nkv_context_recover(w.rig.context, 0), NKV_EDEVICE);
        assert_int_equal(nkv_seq_truncate(w.s[1 + first].seq, LENGTH), 0);
        assert_int_equal(nkv_seq_truncate(w.s[2 - first].seq, LENGTH), NKV_EDEVICE);
        assert_int_equal(nkv_seq_truncate(w.s[0].seq, LENGTH), NKV_EDEVICE);
        assert_int_equal(rig_decode(&w.rig, &w.s[1 + first]), 0);
        memcpy(last, w.s[1 + first].last, sizeof last);
        assert_memory_equal(last, out[0][1 + first], sizeof last);
        restart(&w.servers[1 - first]);
        assert_int_equal(nkv_context_recover(w.rig.context, 5000), 1);
        assert_int_equal(cut_back(&w), 2);
        finish(&w, NKV_MODE_PNM, out);
        close_world(&w, 2);
    }
}

/* What is opened, forked and closed of both kinds while the device stands still or is away leaves nothing there. */
static void nothing_is_left_behind(void **state)
{
    static outputs_t out;

    (void)state;
    record(NKV_MODE_PNM, out);
    for (uint32_t which = 0; which < 2; which++) {
        struct nkv_seq *forks[4], *lost = NULL;
        struct killer killer = {.after_ns = 20000000};
        pthread_t thread;
        struct world w;

        open_world(&w, NKV_MODE_PNM, 1);
        for (uint32_t i = 0; i < 4; i++)
            assert_int_equal(nkv_seq_fork(w.s[i % 2].seq, LENGTH, NULL, &forks[i]), 0);
        killer.pid = w.servers[0].pid;
        assert_int_equal(kill(killer.pid, SIGSTOP), 0);
        assert_int_equal(pthread_create(&thread, NULL, kill_later, &killer), 0);
        assert_int_equal(nkv_seq_fork(w.s[which].seq, LENGTH, NULL, &lost), NKV_EDEVICE);
        pthread_join(thread, NULL);
        (void)server_wait(&w.servers[0]);
        for (uint32_t i = 0; i < 4; i++)
            nkv_seq_close(forks[i]);
        restart(&w.servers[0]);
        assert_int_equal(nkv_context_recover(w.rig.context, 5000), 1);
        assert_int_equal(server_stat(&w.servers[0]).n_sequences, 2);
        (void)cut_back(&w);
        finish(&w, NKV_MODE_PNM, out);
        close_world(&w, 1);
    }
}

/* A device that is found gone when its window is to grow is lost like any other, for both kinds. */
static void a_window_grows_on_a_dead_device(void **state)
{
    static outputs_t out;

    (void)state;
    record(NKV_MODE_PNM, out);
    for (uint32_t which = 0; which < 2; which++) {
        struct nkv_seq_options so = options_of(NKV_MODE_PNM, which);
        struct nkv_seq *fork = NULL;
        struct world w;

        if (which)
            so.budget_tokens = so.max_tokens = 4000; /* longer sets: every window */
        else
            so.max_tokens = 60000; /* longer lists of all pages: the group's */
        open_world(&w, NKV_MODE_PNM, 1);
        server_kill(&w.servers[0]);
        assert_int_equal(nkv_seq_fork(w.s[which].seq, LENGTH, &so, &fork), NKV_EDEVICE);
        assert_non_null(strstr(nkv_last_error(), "pnm0"));
        restart(&w.servers[0]);
        assert_int_equal(nkv_context_recover(w.rig.context, 5000), 1);
        (void)cut_back(&w);
        finish(&w, NKV_MODE_PNM, out);
        close_world(&w, 1);
    }
}

/* A device that comes back with other memory is taken for what it is now. */
static void a_device_comes_back_smaller(void **state)
{
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F16), .capacity_bytes = CAPACITY, .n_threads = 1};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, 40000, 160, NKV_SELECT_LAYER);

    (void)state;
    for (uint32_t k = 0; k < 2; k++) {
        struct rig rig = {.shape = config.shape, .n_devices = 2};
        struct nkv_context_options options = {.size = sizeof options,
                                              .shape = config.shape,
                                              .devices = rig.devices,
                                              .n_devices = 2,
                                              .kv_parallel = k ? NKV_KV_AUTO : NKV_KV_CONTEXT};
        struct nkv_device_report report;
        struct nkv_seq *seq = NULL;
        struct server server;

        server_open(&server, true, CAPACITY);
        assert_int_equal(nkv_device_open(server.spec, &config, &rig.devices[0]), 0);
        assert_int_equal(nkv_device_open("cpu", &config, &rig.devices[1]), 0);
        assert_int_equal(nkv_context_open(&options, &rig.context), 0);
        assert_int_equal(nkv_seq_can_fit(rig.context, &so), 0);
        server_kill(&server);
        assert_true(nkv_seq_open(rig.context, &so, &seq) < 0); /* which is how it is found out */
        server_open_at(&server, true, CAPACITY / 4);
        assert_int_equal(nkv_context_recover(rig.context, 5000), 1);
        assert_int_equal(nkv_context_device(rig.context, 0, &report), 0);
        assert_true(report.capacity_bytes <= CAPACITY / 4);
        assert_int_equal(nkv_seq_can_fit(rig.context, &so), NKV_ENOSPC);
        rig_close(&rig);
        server_close(&server);
    }
}

/* ---- A device whose window does not grow ---- */

struct narrow {
    struct nkv_device device; /* first */
    struct nkv_device *inner;
    bool refuses;
};

static struct nkv_device *inner_of(struct nkv_device *device)
{
    return ((struct narrow *)(void *)device)->inner;
}
static int narrow_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    return inner_of(device)->ops->caps(inner_of(device), caps_out);
}
static int narrow_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    if (((struct narrow *)(void *)device)->refuses)
        return NKV_ENOMEM;
    return inner_of(device)->ops->map(inner_of(device), bytes, window_out);
}
static int narrow_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    return inner_of(device)->ops->submit(inner_of(device), cmds, n);
}
static int narrow_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    return inner_of(device)->ops->reap(inner_of(device), cqes_out, max_n, min_n);
}
static int narrow_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    return inner_of(device)->ops->stat(inner_of(device), stat_out);
}
static const struct nkv_device_ops narrow_ops = {.abi = NKV_DEVICE_ABI,
                                                 .backend = "narrow",
                                                 .caps = narrow_caps,
                                                 .map = narrow_map,
                                                 .submit = narrow_submit,
                                                 .reap = narrow_reap,
                                                 .stat = narrow_stat};

/* No memory for a larger window is no loss: who wanted it is refused, all others go on. */
static void a_window_cannot_grow(void **state)
{
    struct rig_options options = {.n_devices = 2, .kv_parallel = NKV_KV_AUTO, .capacity_bytes = 2 * CAPACITY};

    (void)state;
    for (uint32_t which = 0; which < 2; which++) {
        struct nkv_context_options again = {
            .size = sizeof again, .n_devices = 2, .kv_parallel = NKV_KV_AUTO, .max_batch = 4};
        struct narrow narrow[2] = {0};
        struct nkv_device *devices[2];
        struct nkv_seq *seq = NULL;
        struct world w = {0};

        assert_int_equal(rig_open(&w.rig, &options), 0);
        nkv_context_close(w.rig.context);
        for (uint32_t i = 0; i < 2; i++) {
            narrow[i] = (struct narrow){{&narrow_ops}, w.rig.devices[i], false};
            devices[i] = &narrow[i].device;
        }
        again.shape = w.rig.shape;
        again.devices = devices;
        again.compute = w.rig.compute;
        assert_int_equal(nkv_context_open(&again, &w.rig.context), 0);
        open_seqs(&w, NKV_MODE_PNM);
        for (uint32_t i = 0; i < 2; i++) {
            struct nkv_seq_options so = options_of(NKV_MODE_PNM, i);

            if (i)
                so.budget_tokens = so.max_tokens = 4000;
            else
                so.max_tokens = 30000;
            narrow[which].refuses = true;
            assert_int_equal(nkv_seq_fork(w.s[i].seq, LENGTH, &so, &seq), NKV_ENOMEM);
            step_all(&w);
            for (uint32_t j = 0; j < N_SEQS; j++)
                assert_int_equal(nkv_seq_status(w.s[j].seq), 0);
            narrow[which].refuses = false;
            assert_int_equal(nkv_seq_fork(w.s[i].seq, LENGTH, &so, &seq), 0);
            nkv_seq_close(seq);
        }
        close_world(&w, 0);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_kinds_are_in_flight),        cmocka_unit_test(a_device_goes_at_any_time),
        cmocka_unit_test(devices_come_back_one_by_one),    cmocka_unit_test(nothing_is_left_behind),
        cmocka_unit_test(a_window_grows_on_a_dead_device), cmocka_unit_test(a_window_cannot_grow),
        cmocka_unit_test(a_device_comes_back_smaller),
    };

    if (argc == 4)
        return server_role(argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
