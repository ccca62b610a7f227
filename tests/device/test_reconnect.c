/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device processes that end and are started again on the same file: whoever says its id again has its sequences, nobody
 * else sees them, and what nobody comes back for is freed.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/hostile.h"
#include "device/server.h"

#define IMAGE_BYTES ((uint64_t)4 << 20)
#define N_CLIENTS   NKV_SERVE_MAX_CLIENTS

static void attach(struct rig *rig, const struct server *server)
{
    struct nkv_device_config config = rig_config(&hostile_shape, 1);

    rig_open(rig, server->spec, &config);
}

static void restart(struct server *server, int signal)
{
    assert_int_equal(kill(server->pid, signal), 0);
    assert_int_equal(server_wait(server), signal == SIGKILL ? -SIGKILL : 0);
    server_open_at(server, true, IMAGE_BYTES);
}

/* returns: what mapping says. */
static int come_back(struct rig *rig)
{
    struct nkv_device_stat stat;
    void *window = NULL;
    int status;

    assert_int_equal(rig->device->ops->stat(rig->device, &stat), NKV_EDEVICE);
    status = rig->device->ops->map(rig->device, WINDOW_BYTES, &window);
    if (status == 0)
        rig->window = window;
    return status;
}

static void the_id_brings_back_the_sequences(void **state)
{
    static const int signals[] = {SIGKILL, SIGTERM};
    struct nkv_serve_stat before, after;
    struct rig mine, other;
    struct model model;
    struct server server;
    uint64_t random = 3;

    (void)state;
    server_open_on_file(&server, IMAGE_BYTES);
    attach(&mine, &server);
    fill_victim(&mine, &model, &random);
    for (uint32_t i = 0; i < 2; i++) {
        before = server_stat(&server);
        restart(&server, signals[i]);
        assert_int_equal(server_stat(&server).n_absent, 1);
        assert_int_equal(server_stat(&server).n_clients, 0);
        attach(&other, &server); /* has an id of its own */
        assert_int_equal(rig_seq_close(&other, VICTIM), NKV_ENOENT);
        assert_int_equal(
            rig_run(&other, (struct nkv_cmd){.op = NKV_OP_SEQ_FORK, .seq = 6, .arg = VICTIM, .n_tokens = 8}),
            NKV_ENOENT);
        assert_true(rig_stat(&other).n_absent_pages > 0 && rig_stat(&other).absent_ms > 10000);
        assert_int_equal(rig_seq_open(&other, 6, 1u << 24, 0), NKV_ENOSPC);
        assert_non_null(strstr(nkv_last_error(), "are missing; 1 absent clients hold "));
        assert_non_null(strstr(nkv_last_error(), " s (--keep)"));
        rig_close(&other);
        server_await_clients(&server, 0);
        assert_int_equal(come_back(&mine), 0);
        assert_true(rig_stat(&mine).n_absent_pages == 0 && rig_stat(&mine).absent_ms == 0);
        after = server_stat(&server);
        assert_true(after.n_absent == 0 && after.n_clients == 1 && after.n_sequences == 1);
        assert_true(after.used_bytes == before.used_bytes && after.clients[0].used_bytes == after.used_bytes);
        assert_int_equal(after.clients[0].n_sequences, 1);
        assert_int_equal(after.clients[0].number, before.clients[0].number);
        check_victim(&mine, &model);
    }
    rig_close(&mine); /* now it goes for good */
    server_await_clients(&server, 0);
    assert_true(server_stat(&server).used_bytes == 0);
    restart(&server, SIGKILL);
    assert_int_equal(server_stat(&server).n_absent, 0);
    model_close(&model);
    server_close(&server);
}

/* Runs a command whose operand is a name. */
static int run_named(struct rig *rig, struct nkv_cmd cmd, const char *name)
{
    struct nkv_seq_name operand = {.model = 1};

    strncpy(operand.name, name, sizeof operand.name - 1);
    memcpy(rig_at(rig, 0), &operand, sizeof operand);
    return rig_run(rig, cmd);
}

static void a_published_sequence_does_not_wait_for_an_absent_client(void **state)
{
    const struct nkv_cmd open = {.op = NKV_OP_SEQ_OPEN, .seq = 1, .flags = NKV_NAMED, .n_tokens = 8};
    struct rig mine, other;
    struct server server;

    (void)state;
    server_open_on_file(&server, IMAGE_BYTES);
    attach(&mine, &server);
    assert_int_equal(rig_seq_open(&mine, 5, 8, 0), 0);
    assert_int_equal(run_named(&mine, (struct nkv_cmd){.op = NKV_OP_SEQ_PUBLISH, .seq = 5}, "book"), 0);
    restart(&server, SIGKILL);
    attach(&other, &server);
    assert_int_equal(run_named(&other, open, "book"), 0);
    assert_int_equal(come_back(&mine), 0);
    assert_int_equal(rig_seq_close(&mine, 5), NKV_ENOENT); /* it is the other's */
    assert_int_equal(run_named(&mine, open, "book"), NKV_ESTATE);
    rig_close(&mine);
    rig_close(&other);
    server_close(&server);
}

static void memory_serves_one_process_even_while_it_is_empty(void **state)
{
    struct nkv_serve_options options = {.size = sizeof options, .listen = "/tmp/nkv-second.sock"};
    struct nkv_serve *second = NULL;
    struct server server;

    (void)state;
    server_open_on_file(&server, IMAGE_BYTES);
    options.memory = server.memory;
    assert_int_equal(nkv_serve_open(&options, &second), NKV_ESTATE);
    assert_non_null(strstr(nkv_last_error(), "in use by another process"));
    server_close(&server);
}

static void who_does_not_come_back_is_forgotten(void **state)
{
    struct nkv_seq_name name = {.name = "kept", .model = 1};
    uint64_t deadline_ns, random = 4;
    struct rig mine;
    struct model model;
    struct server server;

    (void)state;
    setenv("NKV_TEST_KEEP_MS", "400", 1);
    server_open_on_file(&server, IMAGE_BYTES);
    attach(&mine, &server);
    fill_victim(&mine, &model, &random);
    assert_int_equal(rig_seq_open(&mine, 5, 20, 0), 0);
    memcpy(rig_at(&mine, 0), &name, sizeof name);
    rig_do(&mine, (struct nkv_cmd){.op = NKV_OP_SEQ_PUBLISH, .seq = 5});
    restart(&server, SIGKILL);
    assert_int_equal(server_stat(&server).n_absent, 1);
    assert_int_equal(server_stat(&server).n_sequences, 2);
    deadline_ns = nkv_now_ns() + 5000000000u;
    while (server_stat(&server).n_absent > 0 && nkv_now_ns() < deadline_ns)
        server_pause();
    assert_int_equal(server_stat(&server).n_absent, 0);
    assert_int_equal(server_stat(&server).n_sequences, 1);
    assert_int_equal(come_back(&mine), 0);
    assert_int_equal(rig_seq_close(&mine, VICTIM), NKV_ENOENT);
    memcpy(rig_at(&mine, 0), &name, sizeof name);
    rig_do(&mine, (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN, .seq = 9, .n_tokens = 20, .flags = NKV_NAMED});
    assert_int_equal(rig_run(&mine, (struct nkv_cmd){.op = NKV_OP_SEQ_CLOSE, .seq = 9, .flags = NKV_NAMED}), 0);
    assert_true(rig_stat(&mine).used_bytes == 0);
    rig_close(&mine);
    model_close(&model);
    unsetenv("NKV_TEST_KEEP_MS");
    server_close(&server);
}

/* Absent clients take places and keep the shape. */
static void there_are_as_many_absent_as_there_were_clients(void **state)
{
    static struct rig rigs[N_CLIENTS];
    struct nkv_kv_shape other_shape = hostile_shape;
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    struct nkv_device *device = NULL;
    struct server server;

    (void)state;
    server_open_on_file(&server, IMAGE_BYTES);
    for (uint32_t i = 0; i < N_CLIENTS - 1; i++) {
        attach(&rigs[i], &server);
        assert_int_equal(rig_seq_open(&rigs[i], 1, 4 + i, NKV_NO_DIGEST), 0);
    }
    restart(&server, SIGKILL);
    assert_int_equal(server_stat(&server).n_absent, N_CLIENTS - 1);
    other_shape.n_kv_heads = 4;
    config.shape = other_shape;
    assert_int_equal(nkv_device_open(server.spec, &config, &device), NKV_ESTATE);
    attach(&rigs[N_CLIENTS - 1], &server);
    config.shape = hostile_shape;
    assert_int_equal(nkv_device_open(server.spec, &config, &device), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "64 clients"));
    rig_close(&rigs[N_CLIENTS - 1]);
    for (uint32_t i = 0; i < N_CLIENTS - 1; i++) {
        assert_int_equal(come_back(&rigs[i]), 0);
        rig_do(&rigs[i], (struct nkv_cmd){.op = NKV_OP_SEQ_FORK, .seq = 2, .arg = 1, .n_tokens = 4});
    }
    assert_int_equal(server_stat(&server).n_absent, 0);
    for (uint32_t i = 0; i < N_CLIENTS - 1; i++)
        rig_close(&rigs[i]);
    server_await_clients(&server, 0);
    assert_true(server_stat(&server).used_bytes == 0);
    server_close(&server);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_id_brings_back_the_sequences),
        cmocka_unit_test(a_published_sequence_does_not_wait_for_an_absent_client),
        cmocka_unit_test(memory_serves_one_process_even_while_it_is_empty),
        cmocka_unit_test(who_does_not_come_back_is_forgotten),
        cmocka_unit_test(there_are_as_many_absent_as_there_were_clients),
    };

    if (argc == 4)
        return server_role(argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
