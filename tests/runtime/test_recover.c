/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices that are killed and started again: what the context says while they are away, what goes on beside them, and
 * what is there when they are back.
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
#define STEPS    8u
#define ROUNDING 2e-5f /* of sums in another order */

struct run {
    struct rig rig;
    struct server server;
    struct rig_seq s[2];
};

/* Two PNM devices and a compute side; NULL: of this process. */
static void open_rig_as(struct rig *rig, const char *home, const char *compute, enum nkv_kv_parallel kv_parallel)
{
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F16), .capacity_bytes = CAPACITY, .n_threads = 1};
    struct nkv_context_options options = {.size = sizeof options,
                                          .shape = config.shape,
                                          .devices = rig->devices,
                                          .n_devices = 2,
                                          .kv_parallel = kv_parallel};
    struct nkv_device_caps caps = {.size = sizeof caps};

    *rig = (struct rig){.shape = config.shape, .n_devices = 2};
    if (nkv_device_open(home ? home : "cpu", &config, &rig->devices[0]) < 0)
        fail_msg("%s", nkv_last_error());
    assert_int_equal(rig->devices[0]->ops->caps(rig->devices[0], &caps), 0);
    config.capacity_bytes = caps.capacity_bytes; /* so that they are filled in turn */
    assert_int_equal(nkv_device_open("cpu", &config, &rig->devices[1]), 0);
    assert_int_equal(nkv_device_open(compute ? compute : "cpu", &config, &rig->compute), 0);
    options.compute = rig->compute;
    assert_int_equal(nkv_context_open(&options, &rig->context), 0);
}

static void open_rig(struct rig *rig, const char *home, const char *compute)
{
    open_rig_as(rig, home, compute, NKV_KV_DATA);
}

/* Sequence i on device i, both fed. */
static void open_pair(struct run *run, enum nkv_mode mode)
{
    struct nkv_seq_options so = rig_seq_options(mode, 400, 160, NKV_SELECT_LAYER);

    for (uint32_t i = 0; i < 2; i++) {
        struct nkv_seq *seq = NULL;

        assert_int_equal(nkv_seq_open(run->rig.context, &so, &seq), 0);
        assert_int_equal(nkv_seq_device(seq), i);
        rig_seq_init(&run->s[i], seq, 1 + i);
        assert_int_equal(rig_prefill(&run->rig, &run->s[i], LENGTH, 128), 0);
    }
}

static void close_pair(struct run *run)
{
    for (uint32_t i = 0; i < 2; i++) {
        nkv_seq_close(run->s[i].seq);
        rig_seq_free(&run->s[i]);
    }
}

static void step_both(struct run *run)
{
    struct rig_seq *batch[2] = {&run->s[0], &run->s[1]};
    const uint32_t one[2] = {1, 1};

    assert_int_equal(rig_step(&run->rig, batch, one, 2), 0);
}

/* Outputs of STEPS steps of both sequences, undisturbed. */
static void record(enum nkv_mode mode, float out[STEPS][2][RIG_LAYERS * RIG_ROW])
{
    struct run run;

    open_rig(&run.rig, NULL, NULL);
    open_pair(&run, mode);
    for (uint32_t step = 0; step < STEPS; step++) {
        step_both(&run);
        for (uint32_t i = 0; i < 2; i++)
            memcpy(out[step][i], run.s[i].last, sizeof out[step][i]);
    }
    close_pair(&run);
    rig_close(&run.rig);
}

static void restart(struct server *server)
{
    server_open_at(server, true, CAPACITY);
}

/* One step of both; then the device comes back if it was killed meanwhile. returns: whether it was. */
static bool step_and_recover(struct run *run)
{
    struct nkv_seq *seq = run->s[0].seq;

    step_both(run);
    assert_int_equal(nkv_seq_status(run->s[1].seq), 0);
    if (nkv_seq_status(seq) == 0)
        return false;
    assert_int_equal(nkv_seq_status(seq), NKV_EDEVICE);
    server_wait(&run->server);
    restart(&run->server);
    assert_int_equal(nkv_context_recover(run->rig.context, 5000), 1);
    if (nkv_seq_truncate(seq, nkv_seq_length(seq)) < 0)
        fail_msg("%s", nkv_last_error());
    assert_int_equal(nkv_seq_status(seq), 0);
    run->s[0].length = nkv_seq_length(seq);
    return true;
}

static void *kill_later(void *arg)
{
    const pid_t *pid = arg;

    nanosleep(&(struct timespec){.tv_nsec = 400000}, NULL);
    kill(*pid, SIGKILL);
    return NULL;
}

/* Killed after `before` steps, while more are under way: every output is that of an undisturbed run. */
static void goes_on(enum nkv_mode mode, uint32_t before)
{
    static float out[STEPS][2][RIG_LAYERS * RIG_ROW];
    uint32_t n_lost = 0;
    pthread_t thread;
    struct run run;
    pid_t victim;

    record(mode, out);
    server_open_on_file(&run.server, 2 * CAPACITY);
    open_rig(&run.rig, run.server.spec, NULL);
    open_pair(&run, mode);
    for (uint32_t turns = 0; run.s[0].length < LENGTH + STEPS; turns++) {
        uint32_t step = run.s[0].length - LENGTH;

        if (turns == before) {
            victim = run.server.pid;
            assert_int_equal(pthread_create(&thread, NULL, kill_later, &victim), 0);
        }
        if (turns == STEPS - 1 && n_lost == 0) { /* it was too quick */
            pthread_join(thread, NULL);
            thread = pthread_self();
        }
        if (step_and_recover(&run)) {
            n_lost++;
            continue;
        }
        if (mode == NKV_MODE_PNG || mode == NKV_MODE_RECALL)
            assert_true(rig_difference(run.s[0].last, out[step][0], RIG_LAYERS * RIG_ROW) < ROUNDING);
        else
            assert_memory_equal(run.s[0].last, out[step][0], sizeof out[step][0]);
        if (turns < STEPS && step == turns) /* they were fed together */
            assert_memory_equal(run.s[1].last, out[step][1], sizeof out[step][1]);
    }
    if (!pthread_equal(thread, pthread_self()))
        pthread_join(thread, NULL);
    assert_int_equal(n_lost, 1);
    close_pair(&run);
    assert_int_equal(server_stat(&run.server).n_sequences, 0);
    rig_close(&run.rig);
    server_close(&run.server);
}

static void a_device_that_kept_its_memory_goes_on(void **state)
{
    (void)state;
    for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++)
        for (uint32_t before = 0; before < 3; before++)
            goes_on(mode, before);
}

static void goes_on_spread(enum nkv_mode mode)
{
    struct nkv_seq_options so = rig_seq_options(mode, 400, 160, NKV_SELECT_LAYER);
    float expected[RIG_LAYERS * RIG_ROW];
    struct nkv_seq *other;
    struct run run;

    for (uint32_t i = 0; i < 2; i++) {
        struct rig_seq *s = &run.s[0];
        struct nkv_seq *seq;

        if (i)
            server_open_on_file(&run.server, 2 * CAPACITY);
        open_rig_as(&run.rig, i ? run.server.spec : NULL, NULL, NKV_KV_CONTEXT);
        assert_int_equal(nkv_seq_open(run.rig.context, &so, &seq), 0);
        rig_seq_init(s, seq, 1);
        assert_int_equal(rig_prefill(&run.rig, s, LENGTH, 128), 0);
        if (i) {
            server_kill(&run.server);
            assert_int_equal(rig_decode(&run.rig, s), 0);
            assert_int_equal(nkv_seq_status(seq), NKV_EDEVICE);
            assert_non_null(strstr(nkv_seq_error(seq), "device 0 (pnm0)"));
            assert_int_equal(nkv_seq_open(run.rig.context, &so, &other), NKV_EDEVICE);
            restart(&run.server);
            assert_int_equal(nkv_context_recover(run.rig.context, 5000), 1);
            assert_int_equal(nkv_seq_truncate(seq, LENGTH), 0);
            s->length = LENGTH;
        }
        assert_int_equal(rig_decode(&run.rig, s), 0);
        assert_int_equal(nkv_seq_status(seq), 0);
        if (i)
            assert_memory_equal(s->last, expected, sizeof expected);
        memcpy(expected, s->last, sizeof expected);
        nkv_seq_close(seq);
        rig_seq_free(s);
        rig_close(&run.rig);
    }
    assert_int_equal(server_stat(&run.server).n_sequences, 0);
    server_close(&run.server);
}

/* A sequence on two devices ends with either, and goes on when that one is back. */
static void a_sequence_on_two_devices_goes_on(void **state)
{
    (void)state;
    goes_on_spread(NKV_MODE_PNM);
    goes_on_spread(NKV_MODE_PNG);
    goes_on_spread(NKV_MODE_RECALL);
}

/* ---- Sequences of both kinds over the same devices ---- */

#define N_MIXED 3u

/* One on all devices, one on each, all fed. */
static void open_mixed(struct rig *rig, struct rig_seq *s)
{
    static const uint32_t devices[N_MIXED] = {NKV_ALL_DEVICES, 0, 1};

    for (uint32_t i = 0; i < N_MIXED; i++) {
        struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, i ? 400 : 4000, i ? 160 : 4000, NKV_SELECT_LAYER);
        struct nkv_seq *seq = NULL;

        assert_int_equal(nkv_seq_open(rig->context, &so, &seq), 0);
        assert_int_equal(nkv_seq_device(seq), devices[i]);
        rig_seq_init(&s[i], seq, 1 + i);
        assert_int_equal(rig_prefill(rig, &s[i], LENGTH, 128), 0);
    }
}

/* A step of those whose bit is set. */
static void step_mixed(struct rig *rig, struct rig_seq *s, uint32_t which)
{
    static const uint32_t ones[N_MIXED] = {1, 1, 1};
    struct rig_seq *batch[N_MIXED];
    uint32_t n = 0;

    for (uint32_t i = 0; i < N_MIXED; i++)
        if (which >> i & 1)
            batch[n++] = &s[i];
    assert_int_equal(rig_step(rig, batch, ones, n), 0);
}

/* The device is gone when those of `which` come to it; `keeps`: it comes back with what it held. */
static void lose_mixed(uint32_t which, bool keeps, float expected[STEPS][N_MIXED][RIG_LAYERS * RIG_ROW])
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNG, 2000, 1900, NKV_SELECT_KV_HEAD);
    struct nkv_device_report before, after;
    struct rig_seq s[N_MIXED];
    struct server server;
    struct nkv_seq *seq;
    struct rig rig;

    if (keeps)
        server_open_on_file(&server, 2 * CAPACITY);
    else
        server_open(&server, true, CAPACITY);
    open_rig_as(&rig, server.spec, NULL, NKV_KV_AUTO);
    open_mixed(&rig, s);
    step_mixed(&rig, s, 7);
    server_kill(&server);
    step_mixed(&rig, s, which);
    for (uint32_t i = 0; i < N_MIXED; i++)
        assert_int_equal(nkv_seq_status(s[i].seq), which >> i & 1 && i < 2 ? NKV_EDEVICE : 0);
    /* What stays has a window that can still grow, whatever the other device's loss left in its queue. */
    assert_int_equal(nkv_context_device(rig.context, 1, &before), 0);
    if (nkv_seq_open(rig.context, &so, &seq) < 0)
        fail_msg("%s", nkv_last_error());
    assert_int_equal(nkv_seq_device(seq), 1);
    assert_int_equal(nkv_context_device(rig.context, 1, &after), 0);
    assert_true(after.window_bytes > before.window_bytes);
    nkv_seq_close(seq);
    assert_int_equal(nkv_context_recover(rig.context, 0), NKV_EDEVICE);
    restart(&server);
    assert_int_equal(nkv_context_recover(rig.context, 5000), 1);
    assert_int_equal(nkv_context_recover(rig.context, 0), 0);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(nkv_seq_truncate(s[i].seq, nkv_seq_length(s[i].seq)), keeps ? 0 : NKV_ENOENT);
    for (uint32_t i = 0; i < N_MIXED; i++) {
        while (s[i].length < LENGTH + STEPS && (keeps || i == 2)) {
            uint32_t step = s[i].length - LENGTH;

            step_mixed(&rig, s, 1u << i);
            assert_int_equal(nkv_seq_status(s[i].seq), 0);
            assert_memory_equal(s[i].last, expected[step][i], sizeof expected[step][i]);
        }
        nkv_seq_close(s[i].seq);
        rig_seq_free(&s[i]);
    }
    assert_true(rig_empty(&rig));
    open_mixed(&rig, s); /* and serves anew */
    step_mixed(&rig, s, 7);
    for (uint32_t i = 0; i < N_MIXED; i++) {
        assert_memory_equal(s[i].last, expected[0][i], sizeof expected[0][i]);
        nkv_seq_close(s[i].seq);
        rig_seq_free(&s[i]);
    }
    assert_int_equal(server_stat(&server).n_sequences, 0);
    rig_close(&rig);
    server_close(&server);
}

/* Whoever notices first, those on one device or those on all: both end with it and go on when it is back. */
static void both_kinds_lose_their_device(void **state)
{
    static float expected[STEPS][N_MIXED][RIG_LAYERS * RIG_ROW];
    struct rig_seq s[N_MIXED];
    struct rig rig;

    (void)state;
    open_rig_as(&rig, NULL, NULL, NKV_KV_AUTO);
    open_mixed(&rig, s);
    for (uint32_t step = 0; step < STEPS; step++) {
        step_mixed(&rig, s, 7);
        for (uint32_t i = 0; i < N_MIXED; i++)
            memcpy(expected[step][i], s[i].last, sizeof expected[step][i]);
    }
    for (uint32_t i = 0; i < N_MIXED; i++) {
        nkv_seq_close(s[i].seq);
        rig_seq_free(&s[i]);
    }
    rig_close(&rig);
    for (uint32_t which = 1; which < 8; which++) {
        if (which == 4) /* nobody comes to it */
            continue;
        lose_mixed(which, true, expected);
    }
    lose_mixed(7, false, expected);
}

/* What is closed while the device is away is closed when it is back; what is open stays. */
static void closed_sequences_do_not_come_back(void **state)
{
    struct nkv_seq *forks[40] = {0};
    struct run run;

    (void)state;
    server_open_on_file(&run.server, 2 * CAPACITY);
    open_rig(&run.rig, run.server.spec, NULL);
    open_pair(&run, NKV_MODE_PNM);
    for (uint32_t i = 0; i < 40; i++)
        assert_int_equal(nkv_seq_fork(run.s[0].seq, LENGTH, NULL, &forks[i]), 0);
    server_kill(&run.server);
    step_both(&run);
    for (uint32_t i = 0; i < 40; i++)
        nkv_seq_close(forks[i]);
    restart(&run.server);
    assert_int_equal(server_stat(&run.server).n_sequences, 41);
    assert_int_equal(nkv_context_recover(run.rig.context, 5000), 1);
    assert_int_equal(server_stat(&run.server).n_sequences, 1);
    assert_int_equal(nkv_seq_truncate(run.s[0].seq, LENGTH), 0);
    step_both(&run);
    assert_int_equal(nkv_seq_status(run.s[0].seq), 0);
    close_pair(&run);
    assert_int_equal(server_stat(&run.server).n_sequences, 0);
    rig_close(&run.rig);
    server_close(&run.server);
}

static void a_device_that_kept_nothing_says_so(void **state)
{
    static float out[STEPS][2][RIG_LAYERS * RIG_ROW];
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 400, 160, NKV_SELECT_LAYER);
    struct nkv_seq *seq = NULL;
    struct run run;
    uint64_t begin_ns;

    (void)state;
    record(NKV_MODE_PNM, out);
    server_open(&run.server, true, CAPACITY);
    open_rig(&run.rig, run.server.spec, NULL);
    open_pair(&run, NKV_MODE_PNM);
    step_both(&run);
    assert_int_equal(nkv_context_recover(run.rig.context, 0), 0);
    server_kill(&run.server);
    step_both(&run);
    assert_int_equal(nkv_seq_status(run.s[0].seq), NKV_EDEVICE);
    assert_memory_equal(run.s[1].last, out[1][1], sizeof out[1][1]);
    begin_ns = nkv_now_ns();
    assert_int_equal(nkv_context_recover(run.rig.context, 100), NKV_EDEVICE);
    assert_in_range(nkv_now_ns() - begin_ns, 100000000u, 2000000000u);
    assert_non_null(strstr(nkv_last_error(), run.server.spec));
    assert_int_equal(nkv_seq_truncate(run.s[0].seq, LENGTH), NKV_EDEVICE);
    assert_int_equal(nkv_seq_status(run.s[0].seq), NKV_EDEVICE);
    restart(&run.server);
    assert_int_equal(nkv_context_recover(run.rig.context, 1000), 1);
    assert_int_equal(nkv_seq_truncate(run.s[0].seq, nkv_seq_length(run.s[0].seq)), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "pnm0"));
    step_both(&run); /* the sequence stays out of it */
    assert_memory_equal(run.s[1].last, out[2][1], sizeof out[2][1]);
    nkv_seq_close(run.s[0].seq);
    assert_int_equal(nkv_seq_open(run.rig.context, &so, &seq), 0);
    assert_int_equal(nkv_seq_device(seq), 0);
    rig_seq_free(&run.s[0]);
    rig_seq_init(&run.s[0], seq, 1);
    assert_int_equal(rig_prefill(&run.rig, &run.s[0], LENGTH, 128), 0);
    assert_int_equal(rig_decode(&run.rig, &run.s[0]), 0);
    assert_memory_equal(run.s[0].last, out[0][0], sizeof out[0][0]);
    close_pair(&run);
    assert_true(rig_empty(&run.rig));
    rig_close(&run.rig);
    server_close(&run.server);
}

/* The compute side is renewed whatever it kept: pages at home are what counts. */
static void a_lost_compute_side_is_filled_again(void **state)
{
    static float out[STEPS][2][RIG_LAYERS * RIG_ROW];

    (void)state;
    for (uint32_t m = 0; m < 2; m++) {
        enum nkv_mode mode = m ? NKV_MODE_RECALL : NKV_MODE_PNG;
        struct run run;

        record(mode, out);
        server_open(&run.server, true, CAPACITY);
        open_rig(&run.rig, NULL, run.server.spec);
        open_pair(&run, mode);
        for (uint32_t step = 0; step < STEPS; step++) {
            if (step == STEPS / 2) {
                server_kill(&run.server);
                step_both(&run);
                restart(&run.server);
                assert_int_equal(nkv_context_recover(run.rig.context, 1000), 1);
                for (uint32_t i = 0; i < 2; i++) {
                    assert_int_equal(nkv_seq_status(run.s[i].seq), NKV_EDEVICE);
                    assert_int_equal(nkv_seq_truncate(run.s[i].seq, nkv_seq_length(run.s[i].seq)), 0);
                }
            }
            step_both(&run);
            for (uint32_t i = 0; i < 2; i++) {
                assert_int_equal(nkv_seq_status(run.s[i].seq), 0);
                assert_true(rig_difference(run.s[i].last, out[step][i], RIG_LAYERS * RIG_ROW) < ROUNDING);
            }
        }
        close_pair(&run);
        assert_true(rig_empty(&run.rig));
        rig_close(&run.rig);
        server_close(&run.server);
    }
}

/* With a device away windows grow for the others, tickets keep it from being recovered, sequences can be closed. */
static void the_context_lives_without_it(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 2000, 1000, NKV_SELECT_KV_HEAD);
    struct nkv_attend_item item;
    struct nkv_ticket *ticket = NULL;
    struct rig_seq large;
    struct nkv_seq *seq = NULL;
    struct run run;

    (void)state;
    server_open(&run.server, true, CAPACITY);
    open_rig(&run.rig, run.server.spec, NULL);
    open_pair(&run, NKV_MODE_PNM);
    item = rig_item(&run.s[0], 0, 1);
    assert_int_equal(nkv_attend_begin(run.rig.context, 0, &item, 1, &ticket), 0);
    server_kill(&run.server);
    assert_int_equal(nkv_context_recover(run.rig.context, 0), NKV_ESTATE);
    assert_int_equal(nkv_attend_end(ticket), 0);
    assert_int_equal(nkv_seq_open(run.rig.context, &so, &seq), 0);
    assert_int_equal(nkv_seq_device(seq), 1);
    rig_seq_init(&large, seq, 3);
    assert_int_equal(rig_prefill(&run.rig, &large, 200, 128), 0);
    assert_int_equal(nkv_seq_status(seq), 0);
    restart(&run.server);
    assert_int_equal(nkv_context_recover(run.rig.context, 1000), 1);
    nkv_seq_close(run.s[0].seq);
    assert_int_equal(nkv_seq_open(run.rig.context, &so, &run.s[0].seq), 0);
    assert_int_equal(nkv_seq_device(run.s[0].seq), 0);
    run.s[0].length = 0;
    assert_int_equal(rig_prefill(&run.rig, &run.s[0], 200, 128), 0); /* in a window of the size that it needs now */
    assert_int_equal(nkv_seq_status(run.s[0].seq), 0);
    nkv_seq_close(seq);
    rig_seq_free(&large);
    close_pair(&run);
    assert_true(rig_empty(&run.rig));
    rig_close(&run.rig);
    server_close(&run.server);
}

/* A wrapper forgets what was in flight: lost again and again, its queue does not fill up. */
static void wrappers_come_back_with_their_device(void **state)
{
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F16), .capacity_bytes = CAPACITY, .n_threads = 1};
    struct nkv_cmd cmds[200] = {{0}};
    struct nkv_cqe cqes[200];
    struct nkv_device *device = NULL;
    struct server server;
    char spec[160];
    void *window;

    (void)state;
    for (uint32_t i = 0; i < 200; i++)
        cmds[i] = (struct nkv_cmd){.op = NKV_OP_COMPUTE};
    server_open(&server, true, CAPACITY);
    snprintf(spec, sizeof spec, "record:/dev/null:fault:op=read:%s", server.spec);
    if (nkv_device_open(spec, &config, &device) < 0)
        fail_msg("%s", nkv_last_error());
    assert_int_equal(device->ops->map(device, 4096, &window), 0);
    for (uint32_t round = 0; round < 8; round++) {
        server_kill(&server);
        while (device->ops->submit(device, cmds, 200) == 0 && device->ops->reap(device, cqes, 200, 200) == 200)
            fail_msg("a dead device works");
        assert_int_equal(device->ops->map(device, 4096, &window), NKV_EDEVICE);
        restart(&server);
        assert_int_equal(device->ops->map(device, 4096, &window), 0);
        assert_int_equal(device->ops->submit(device, cmds, 200), 0);
        assert_int_equal(device->ops->reap(device, cqes, 200, 200), 200);
    }
    nkv_device_close(device);
    server_close(&server);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_that_kept_its_memory_goes_on), cmocka_unit_test(a_sequence_on_two_devices_goes_on),
        cmocka_unit_test(closed_sequences_do_not_come_back),     cmocka_unit_test(a_device_that_kept_nothing_says_so),
        cmocka_unit_test(a_lost_compute_side_is_filled_again),   cmocka_unit_test(the_context_lives_without_it),
        cmocka_unit_test(wrappers_come_back_with_their_device),  cmocka_unit_test(both_kinds_lose_their_device),
    };

    if (argc == 4)
        return server_role(argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
