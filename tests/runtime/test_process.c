/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A context over a device process and a device of this process, in every mode: the process is killed, between steps or
 * in the middle of one. The sequence that lives there ends with the device's error at once, the other goes on with the
 * same bits as ever, and new sequences go to the device that is left.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/server.h"
#include "runtime/rig.h"

#define CAPACITY ((uint64_t)8 << 20)
#define LENGTH   300u
#define STEPS    6u

struct killer {
    pid_t pid;
    long delay_ns;
};

static void *kill_later(void *arg)
{
    const struct killer *killer = arg;

    nanosleep(&(struct timespec){.tv_nsec = killer->delay_ns}, NULL);
    kill(killer->pid, SIGKILL);
    return NULL;
}

/* spec of device 0; device 1 and the compute side are of this process. */
static void open_context(struct rig *rig, const char *spec)
{
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F16), .capacity_bytes = CAPACITY, .n_threads = 1};
    struct nkv_context_options options = {
        .size = sizeof options, .shape = config.shape, .devices = rig->devices, .n_devices = 2};

    *rig = (struct rig){.shape = config.shape, .n_devices = 2};
    if (nkv_device_open(spec, &config, &rig->devices[0]))
        fail_msg("%s", nkv_last_error());
    assert_int_equal(nkv_device_open("cpu", &config, &rig->devices[1]), 0);
    assert_int_equal(nkv_device_open("cpu", &config, &rig->compute), 0);
    options.compute = rig->compute;
    assert_int_equal(nkv_context_open(&options, &rig->context), 0);
}

static void open_pair(struct rig *rig, enum nkv_mode mode, uint32_t max_tokens, struct rig_seq s[2])
{
    struct nkv_seq_options so = rig_seq_options(mode, max_tokens, 160, NKV_SELECT_LAYER);

    for (uint32_t i = 0; i < 2; i++) {
        struct nkv_seq *seq = NULL;

        assert_int_equal(nkv_seq_open(rig->context, &so, &seq), 0);
        assert_int_equal(nkv_seq_device(seq), i);
        rig_seq_init(&s[i], seq, 1 + i);
        assert_int_equal(rig_prefill(rig, &s[i], LENGTH, 128), 0);
    }
}

static void close_pair(struct rig *rig, struct rig_seq s[2])
{
    for (uint32_t i = 0; i < 2; i++) {
        nkv_seq_close(s[i].seq);
        rig_seq_free(&s[i]);
    }
    rig_close(rig);
}

/* Outputs of STEPS decode steps of both sequences, without any process. */
static void record(enum nkv_mode mode, float out[STEPS][2][RIG_LAYERS * RIG_ROW])
{
    struct rig_seq s[2], *batch[2] = {&s[0], &s[1]};
    const uint32_t one[2] = {1, 1};
    struct rig rig;

    open_context(&rig, "cpu");
    open_pair(&rig, mode, 400, s);
    for (uint32_t step = 0; step < STEPS; step++) {
        assert_int_equal(rig_step(&rig, batch, one, 2), 0);
        for (uint32_t i = 0; i < 2; i++)
            memcpy(out[step][i], s[i].last, sizeof out[step][i]);
    }
    close_pair(&rig, s);
}

static void killed_between_steps(enum nkv_mode mode)
{
    static float out[STEPS][2][RIG_LAYERS * RIG_ROW];
    struct nkv_seq_options so = rig_seq_options(mode, 400, 160, NKV_SELECT_LAYER);
    struct rig_seq s[2], *batch[2] = {&s[0], &s[1]};
    const uint32_t one[2] = {1, 1};
    struct nkv_seq *seq = NULL;
    struct server server;
    uint64_t begin_ns;
    struct rig rig;

    record(mode, out);
    server_open(&server, true, CAPACITY);
    open_context(&rig, server.spec);
    open_pair(&rig, mode, 400, s);
    for (uint32_t step = 0; step < STEPS; step++) {
        if (step == STEPS / 2) {
            kill(server.pid, SIGKILL);
            assert_int_equal(server_wait(&server), -SIGKILL);
        }
        begin_ns = nkv_now_ns();
        assert_int_equal(rig_step(&rig, batch, one, 2), 0);
        assert_true(nkv_now_ns() - begin_ns < 1000000000u);
        assert_memory_equal(s[1].last, out[step][1], sizeof out[step][1]);
        if (step < STEPS / 2)
            assert_memory_equal(s[0].last, out[step][0], sizeof out[step][0]);
        assert_int_equal(nkv_seq_status(s[0].seq), step < STEPS / 2 ? 0 : NKV_EDEVICE);
        assert_int_equal(nkv_seq_status(s[1].seq), 0);
    }
    assert_non_null(strstr(nkv_seq_error(s[0].seq), "pnm0"));
    assert_non_null(strstr(nkv_seq_error(s[0].seq), server.spec));
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    assert_int_equal(nkv_seq_device(seq), 1);
    close_pair(&rig, s);
    unlink(server.path);
    rmdir(server.dir);
}

static void killed_within_a_step(enum nkv_mode mode, long delay_ns)
{
    struct rig_seq s[2], *batch[2] = {&s[0], &s[1]};
    const uint32_t one[2] = {1, 1};
    struct server server;
    struct killer killer;
    pthread_t thread;
    struct rig rig;
    uint64_t deadline_ns;

    server_open(&server, true, CAPACITY);
    open_context(&rig, server.spec);
    open_pair(&rig, mode, 20000, s);
    killer = (struct killer){server.pid, delay_ns};
    assert_int_equal(pthread_create(&thread, NULL, kill_later, &killer), 0);
    deadline_ns = nkv_now_ns() + 20000000000u;
    while (nkv_seq_status(s[0].seq) == 0 && nkv_now_ns() < deadline_ns)
        assert_int_equal(rig_step(&rig, batch, one, 2), 0);
    assert_int_equal(nkv_seq_status(s[0].seq), NKV_EDEVICE);
    assert_int_equal(nkv_seq_status(s[1].seq), 0);
    assert_int_equal(rig_step(&rig, batch, one, 2), 0);
    pthread_join(thread, NULL);
    close_pair(&rig, s);
    assert_int_equal(server_wait(&server), -SIGKILL);
    unlink(server.path);
    rmdir(server.dir);
}

static void the_other_device_goes_on(void **state)
{
    (void)state;
    for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++) {
        killed_between_steps(mode);
        for (long i = 0; i < 3; i++)
            killed_within_a_step(mode, 700000 + i * 1234567);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_other_device_goes_on),
    };

    if (argc == 4)
        return server_role(argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
