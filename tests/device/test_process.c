/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device behind a socket: the same results, bit by bit, as the device in this process; clients that do not see each
 * other; and what a client sees when the device dies, is stopped, is full, has another shape or speaks another version.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/mem.h"
#include "device/hostile.h"
#include "device/server.h"
#include "device/wire.h"

#define CAPACITY ((uint64_t)300 << 10)

static const struct nkv_kv_shape large = {
    .n_layers = 1, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128, .page_tokens = 32, .dtype = NKV_F16};

static void attach(struct rig *rig, const struct server *server, const struct nkv_kv_shape *shape)
{
    struct nkv_device_config config = rig_config(shape, 1);

    rig_open(rig, server->spec, &config);
}

/* Runs random commands of all ops here and there: results, messages and the whole window are the same. */
static void compare_runs(bool process)
{
    struct nkv_device_config config = rig_config(&hostile_shape, 2);
    uint32_t n_good[NKV_OP_COUNT] = {0};
    struct rig here, there;
    struct server server;
    uint64_t random = 7;
    char message[256];

    config.capacity_bytes = CAPACITY;
    server_open(&server, process, CAPACITY);
    rig_open(&here, "cpu", &config);
    attach(&there, &server, &hostile_shape);
    for (uint32_t i = 0; i < 8000; i++) {
        struct nkv_cmd cmd = likely(&random);
        int res;

        tidy(&cmd, &random);
        if (i % 32 == 0) /* makes room for forks */
            cmd = (struct nkv_cmd){.op = NKV_OP_SEQ_CLOSE, .seq = 1 + pick(&random, 6)};
        if (cmd.op == NKV_OP_SEQ_FORK && pick(&random, 2)) /* no sequence is too short for that */
            cmd.pos = 0;
        scribble(here.window, &random);
        memcpy(there.window, here.window, HOSTILE_BYTES);
        res = rig_run(&here, cmd);
        snprintf(message, sizeof message, "%.191s", nkv_last_error());
        assert_int_equal(rig_run(&there, cmd), res);
        assert_memory_equal(there.window, here.window, HOSTILE_BYTES);
        if (res < 0)
            assert_string_equal(nkv_last_error(), message);
        else
            n_good[cmd.op]++;
    }
    for (uint32_t op = 1; op < NKV_OP_COUNT; op++)
        if (n_good[op] <= 5)
            fail_msg("op %u succeeded %u times", op, n_good[op]);
    assert_true(rig_stat(&here).used_bytes == rig_stat(&there).used_bytes && rig_stat(&here).used_bytes > 0);
    assert_int_equal(rig_stat(&here).n_sequences, rig_stat(&there).n_sequences);
    assert_true(rig_stat(&here).read_bytes == rig_stat(&there).read_bytes && rig_stat(&here).read_bytes > 0);
    assert_true(rig_stat(&here).written_bytes == rig_stat(&there).written_bytes && rig_stat(&here).written_bytes > 0);
    rig_close(&here);
    rig_close(&there);
    server_await_clients(&server, 0);
    attach(&there, &server, &hostile_shape);
    remove_published(&there);
    rig_close(&there);
    server_await_clients(&server, 0);
    assert_true(server_stat(&server).used_bytes == 0);
    server_close(&server);
}

static void results_are_those_of_the_device_in_this_process(void **state)
{
    (void)state;
    compare_runs(false);
    compare_runs(true);
}

static void clients_do_not_see_each_other(void **state)
{
    uint64_t random[2] = {1, 2}, bytes;
    struct server server;
    struct nkv_serve_stat stat;
    struct model models[2];
    struct rig rigs[2];

    (void)state;
    server_open(&server, false, 2 * CAPACITY);
    for (uint32_t round = 0; round < 3; round++) { /* the ids are used again */
        for (uint32_t i = 0; i < 2; i++) {
            attach(&rigs[i], &server, &hostile_shape);
            fill_victim(&rigs[i], &models[i], &random[i]);
        }
        stat = server_stat(&server);
        assert_int_equal(stat.n_clients, 2);
        assert_true(stat.clients[0].used_bytes > 0 && stat.clients[0].used_bytes == stat.clients[1].used_bytes);
        assert_true(stat.used_bytes == 2 * stat.clients[0].used_bytes && stat.clients[0].n_sequences == 1);
        assert_int_equal(rig_seq_open(&rigs[0], 5, 8, 0), 0);
        bytes = rig_stat(&rigs[1]).used_bytes;
        assert_int_equal(rig_seq_close(&rigs[1], 5), NKV_ENOENT);
        assert_non_null(strstr(nkv_last_error(), "no sequence 5"));
        assert_int_equal(rig_run(&rigs[1], (struct nkv_cmd){.op = NKV_OP_SEQ_FORK, .seq = 6, .arg = 5, .n_tokens = 8}),
                         NKV_ENOENT);
        assert_int_equal(rig_run(&rigs[1], (struct nkv_cmd){.op = NKV_OP_APPEND, .seq = 5, .n_tokens = 1}), NKV_ENOENT);
        assert_true(rig_stat(&rigs[1]).used_bytes == bytes);
        assert_int_equal(rig_seq_close(&rigs[0], 5), 0);
        for (uint32_t i = 0; i < 2; i++)
            check_victim(&rigs[i], &models[i]);
        rig_close(&rigs[0]); /* with its sequence open */
        server_await_clients(&server, 1);
        check_victim(&rigs[1], &models[1]);
        rig_close(&rigs[1]);
        server_await_clients(&server, 0);
        assert_true(server_stat(&server).used_bytes == 0 && server_stat(&server).n_sequences == 0);
        model_close(&models[0]);
        model_close(&models[1]);
    }
    server_close(&server);
}

static void the_window_grows(void **state)
{
    struct nkv_cmd append = {.op = NKV_OP_APPEND, .seq = 1, .n_tokens = 1, .in_offset = WINDOW_BYTES};
    struct server server;
    struct rig rig;
    void *window;

    (void)state;
    server_open(&server, false, CAPACITY);
    attach(&rig, &server, &hostile_shape);
    assert_int_equal(rig_seq_open(&rig, 1, 10, 0), 0);
    assert_int_equal(rig_run(&rig, append), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "window"));
    assert_int_equal(rig.device->ops->map(rig.device, WINDOW_BYTES + 4096, &window), 0);
    assert_int_equal((uintptr_t)window % 64, 0);
    memset(window, 0, WINDOW_BYTES + 4096);
    assert_int_equal(rig_run(&rig, append), 0);
    assert_int_equal(rig.device->ops->map(rig.device, 0, &window), NKV_EINVAL);
    assert_int_equal(rig.device->ops->map(rig.device, UINT64_MAX, &window), NKV_EINVAL);
    append.pos = 1;
    assert_int_equal(rig_run(&rig, append), 0); /* the old window still serves */
    rig_close(&rig);
    server_close(&server);
}

static void the_queue_holds_what_it_says(void **state)
{
    static struct nkv_cmd cmds[4096];
    static struct nkv_cqe cqes[4096];
    struct server server;
    struct rig rig;
    void *window;
    int n, status;

    (void)state;
    server_open(&server, false, CAPACITY);
    attach(&rig, &server, &hostile_shape);
    for (uint32_t i = 0; i < 4096; i++)
        cmds[i] = (struct nkv_cmd){.op = NKV_OP_COMPUTE, .user_data = i};
    for (uint32_t round = 0; round < 20; round++) {
        assert_int_equal(rig.device->ops->submit(rig.device, cmds, 256), 0);
        assert_int_equal(rig.device->ops->map(rig.device, 4096, &window), NKV_ESTATE);
        assert_int_equal(rig.device->ops->reap(rig.device, cqes, 256, 257), NKV_EINVAL);
        for (uint32_t got = 0; got < 256; got += (uint32_t)n) {
            n = rig.device->ops->reap(rig.device, cqes, 100, 256 - got < 7 ? 256 - got : 7);
            assert_true(n > 0);
            for (int i = 0; i < n; i++)
                assert_true(cqes[i].user_data == got + (uint32_t)i && cqes[i].res == 0);
        }
        assert_int_equal(rig.device->ops->reap(rig.device, cqes, 1, 0), 0);
    }
    for (n = 0; (status = rig.device->ops->submit(rig.device, cmds, 100)) == 0; n += 100)
        ;
    assert_int_equal(status, NKV_ENOSPC);
    assert_true(n >= 256);
    assert_int_equal(rig.device->ops->reap(rig.device, cqes, 4096, (uint32_t)n), n);
    rig_close(&rig);
    server_close(&server);
}

static void a_full_device_says_so(void **state)
{
    struct server server;
    struct rig rigs[2];

    (void)state;
    server_open(&server, false, CAPACITY);
    attach(&rigs[0], &server, &hostile_shape);
    attach(&rigs[1], &server, &hostile_shape);
    assert_int_equal(rig_seq_open(&rigs[0], 1, 1000, 0), 0);
    assert_int_equal(rig_seq_open(&rigs[1], 1, 1000, 0), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "are missing"));
    assert_int_equal(rig_seq_open(&rigs[1], 1, 4, 0), 0);
    rig_close(&rigs[0]);
    server_await_clients(&server, 1);
    assert_int_equal(rig_seq_open(&rigs[1], 2, 1000, 0), 0);
    rig_close(&rigs[1]);
    server_close(&server);
}

static void the_shape_is_that_of_the_first_client(void **state)
{
    struct nkv_device_config config = rig_config(&large, 1);
    struct nkv_device *device = NULL;
    struct server server;
    struct rig rig;

    (void)state;
    server_open(&server, false, (uint64_t)64 << 20);
    attach(&rig, &server, &hostile_shape);
    assert_int_equal(nkv_device_open(server.spec, &config, &device), NKV_ESTATE);
    assert_non_null(strstr(nkv_last_error(), "2 layers, 4:2 heads of 8"));
    assert_non_null(strstr(nkv_last_error(), "1 layers, 32:8 heads of 128"));
    assert_non_null(strstr(nkv_last_error(), server.spec));
    assert_int_equal(rig_seq_open(&rig, 1, 100, 0), 0);
    rig_close(&rig);
    server_await_clients(&server, 0);
    attach(&rig, &server, &large); /* nobody is left who needs the other one */
    assert_int_equal(rig_seq_open(&rig, 1, 100, 0), 0);
    rig_close(&rig);
    server_await_clients(&server, 0);
    config.shape.n_layers = NKV_MAX_LAYERS;
    config.shape.page_tokens = NKV_MAX_PAGE_TOKENS;
    assert_int_equal(nkv_device_open(server.spec, &config, &device), NKV_EINVAL); /* not one page fits */
    assert_non_null(strstr(nkv_last_error(), "one page of this shape"));
    attach(&rig, &server, &large);
    rig_close(&rig);
    server_close(&server);
}

static void another_version_is_refused_by_name(void **state)
{
    struct nkv_wire_request hello = {.head = nkv_wire_head(NKV_WIRE_HELLO), .abi = NKV_DEVICE_ABI, .id = 1};
    struct nkv_wire_answer answer;
    struct server server;
    int fd = -1;

    (void)state;
    server_open(&server, false, CAPACITY);
    hello.shape = hostile_shape;
    hello.head.version = 99;
    assert_int_equal(nkv_wire_connect(server.path, &fd), 0);
    assert_int_equal(nkv_wire_ask(fd, &hello, &answer, sizeof answer, NULL), NKV_EDEVICE);
    assert_non_null(strstr(nkv_last_error(), "version 99"));
    close(fd);
    hello.head.version = NKV_WIRE_VERSION;
    hello.abi++;
    assert_int_equal(nkv_wire_connect(server.path, &fd), 0);
    assert_int_equal(nkv_wire_ask(fd, &hello, &answer, sizeof answer, NULL), NKV_ENOTSUP);
    close(fd);
    server_close(&server);
}

/* A socket that a killed process left behind, a live one, a file. */
static void stale_sockets_are_replaced_live_ones_are_not(void **state)
{
    struct nkv_serve_options options = {.size = sizeof options, .capacity_bytes = CAPACITY};
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    struct nkv_device *device = NULL;
    struct nkv_serve *serve = NULL;
    struct server server;
    struct rig rig;
    char path[200];
    FILE *file;

    (void)state;
    server_open(&server, true, CAPACITY);
    options.listen = server.path;
    assert_int_equal(nkv_serve_open(&options, &serve), NKV_ESTATE);
    assert_non_null(strstr(nkv_last_error(), server.path));
    kill(server.pid, SIGKILL);
    assert_int_equal(server_wait(&server), -SIGKILL);
    assert_int_equal(access(server.path, F_OK), 0);
    assert_int_equal(nkv_device_open(server.spec, &config, &device), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "no device listens"));
    server_open_at(&server, true, CAPACITY);
    attach(&rig, &server, &hostile_shape);
    rig_close(&rig);
    snprintf(path, sizeof path, "%s/file", server.dir);
    file = fopen(path, "w");
    assert_non_null(file);
    fclose(file);
    options.listen = path;
    assert_int_equal(nkv_serve_open(&options, &serve), NKV_EINVAL);
    assert_int_equal(unlink(path), 0); /* it was left alone */
    snprintf(path, sizeof path, "/tmp/%0150d", 0);
    assert_int_equal(nkv_serve_open(&options, &serve), NKV_EINVAL);
    snprintf(path, sizeof path, "unix:/tmp/%0150d", 0);
    assert_int_equal(nkv_device_open(path, &config, &device), NKV_EINVAL);
    assert_null(serve);
    assert_null(device);
    server_close(&server);
}

/* Fills a sequence whose ATTENDs take milliseconds, and submits n of them. */
static void submit_slow(struct rig *rig, uint32_t n)
{
    struct nkv_cmd attend = {
        .op = NKV_OP_ATTEND, .seq = 1, .flags = NKV_ALL_PAGES, .n_tokens = 8, .out_offset = 8 << 20};

    assert_int_equal(rig_seq_open(rig, 1, 4096, 0), 0);
    for (uint32_t pos = 0; pos < 4096; pos += 512)
        rig_do(rig, (struct nkv_cmd){.op = NKV_OP_APPEND, .seq = 1, .n_tokens = 512, .pos = pos});
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(rig->device->ops->submit(rig->device, &attend, 1), 0);
}

/* A client with a long queue does not keep another waiting, not even one that has yet to come. */
static void clients_take_turns(void **state)
{
    static struct nkv_cqe cqes[60];
    struct server server;
    struct rig busy, other;
    int n;

    (void)state;
    server_open(&server, false, (uint64_t)64 << 20);
    attach(&busy, &server, &large);
    submit_slow(&busy, 60);
    attach(&other, &server, &large);
    assert_int_equal(rig_do(&other, (struct nkv_cmd){.op = NKV_OP_COMPUTE}), 0);
    n = busy.device->ops->reap(busy.device, cqes, 60, 0);
    assert_in_range(n, 0, 59);
    assert_true(server_stat(&server).queue_depth > 0);
    assert_int_equal(busy.device->ops->reap(busy.device, cqes, 60, 60 - (uint32_t)n), 60 - n);
    rig_close(&busy);
    rig_close(&other);
    server_close(&server);
}

static void *kill_soon(void *arg)
{
    nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
    kill(*(const pid_t *)arg, SIGKILL);
    return NULL;
}

static void a_killed_device_fails_what_is_in_flight_at_once(void **state)
{
    static struct nkv_cqe cqes[1000];
    struct nkv_cmd cmd = {.op = NKV_OP_COMPUTE};
    struct nkv_device_stat stat;
    struct server server;
    struct rig rig;
    pthread_t killer;
    uint64_t begin_ns;
    void *window;

    (void)state;
    server_open(&server, true, (uint64_t)64 << 20);
    attach(&rig, &server, &large);
    submit_slow(&rig, 1000);
    assert_int_equal(pthread_create(&killer, NULL, kill_soon, &server.pid), 0);
    begin_ns = nkv_now_ns();
    assert_int_equal(rig.device->ops->reap(rig.device, cqes, 1000, 1000), NKV_EDEVICE);
    assert_true(nkv_now_ns() - begin_ns < 1000000000u);
    pthread_join(killer, NULL);
    assert_non_null(strstr(nkv_last_error(), "pnm0"));
    assert_non_null(strstr(nkv_last_error(), server.spec));
    assert_non_null(strstr(nkv_last_error(), "its process ended with"));
    assert_int_equal(rig.device->ops->submit(rig.device, &cmd, 1), NKV_EDEVICE);
    assert_int_equal(rig.device->ops->stat(rig.device, &stat), NKV_EDEVICE);
    assert_in_range(rig.device->ops->reap(rig.device, cqes, 1000, 0), 0, 999); /* what was done before */
    assert_int_equal(rig.device->ops->reap(rig.device, cqes, 1000, 1), NKV_EDEVICE);
    assert_true(rig.device->ops->map(rig.device, 4096, &window) < 0);
    rig_close(&rig);
    assert_int_equal(server_wait(&server), -SIGKILL);
    unlink(server.path);
    rmdir(server.dir);
}

static void a_stopped_device_finishes_what_is_queued(void **state)
{
    static struct nkv_cqe cqes[40];
    struct nkv_cmd cmd = {.op = NKV_OP_COMPUTE};
    struct nkv_device_stat stat;
    struct server server;
    struct rig rig;

    (void)state;
    server_open(&server, true, (uint64_t)64 << 20);
    attach(&rig, &server, &large);
    submit_slow(&rig, 40);
    kill(server.pid, SIGTERM);
    assert_int_equal(rig.device->ops->reap(rig.device, cqes, 40, 40), 40);
    for (uint32_t i = 0; i < 40; i++)
        assert_int_equal(cqes[i].res, 4096);
    assert_int_equal(server_wait(&server), 0);
    assert_true(access(server.path, F_OK) != 0);
    assert_int_equal(rig.device->ops->stat(rig.device, &stat), NKV_EDEVICE);
    assert_non_null(strstr(nkv_last_error(), "it was stopped"));
    assert_int_equal(rig.device->ops->submit(rig.device, &cmd, 1), NKV_EDEVICE);
    rig_close(&rig);
    rmdir(server.dir);
}

static void pages_of_a_killed_client_come_back(void **state)
{
    struct server server;
    struct model model;
    struct rig rig;
    uint64_t random = 3, own;
    int status = 0;
    pid_t pid;

    (void)state;
    server_open(&server, false, 2 * CAPACITY);
    attach(&rig, &server, &hostile_shape);
    fill_victim(&rig, &model, &random);
    own = rig_stat(&rig).used_bytes;
    pid = server_spawn("client", server.path, "");
    assert_true(pid > 0);
    for (int i = 0; i < 5000 && server_stat(&server).n_sequences < 2; i++)
        server_pause();
    assert_true(rig_stat(&rig).used_bytes > own);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    server_await_clients(&server, 1);
    assert_true(rig_stat(&rig).used_bytes == own);
    check_victim(&rig, &model);
    model_close(&model);
    rig_close(&rig);
    server_close(&server);
}

static size_t http(const struct server *server, const char *query, char *answer, size_t room)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    size_t n = 0;
    ssize_t got;

    strncpy(address.sun_path, server->metrics, sizeof address.sun_path - 1);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(send(fd, query, strlen(query), MSG_NOSIGNAL), strlen(query));
    while (n < room - 1 && (got = recv(fd, answer + n, room - 1 - n, 0)) > 0)
        n += (size_t)got;
    answer[n] = '\0';
    close(fd);
    return n;
}

static void the_metrics_page_is_served(void **state)
{
    static char answer[64 << 10], query[4096];
    struct server server;
    struct rig rig;
    uint64_t begin_ns;

    (void)state;
    server_open(&server, false, CAPACITY);
    attach(&rig, &server, &hostile_shape);
    assert_int_equal(rig_seq_open(&rig, 1, 100, 0), 0);
    http(&server, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", answer, sizeof answer);
    assert_int_equal(strncmp(answer, "HTTP/1.0 200 OK\r\n", 17), 0);
    assert_non_null(strstr(answer, "\r\n\r\n# HELP nearkv_pnm_info "));
    assert_non_null(strstr(answer, "\nnearkv_pnm_capacity_bytes 307200\n"));
    assert_non_null(strstr(answer, "\n# TYPE nearkv_pnm_commands_total counter\nnearkv_pnm_commands_total 1\n"));
    assert_non_null(strstr(answer, "\nnearkv_pnm_client_used_bytes{client=\"1\",pid=\""));
    http(&server, "POST /metrics HTTP/1.1\r\n\r\n", answer, sizeof answer);
    assert_int_equal(strncmp(answer, "HTTP/1.0 405", 12), 0);
    memset(query, 'x', sizeof query - 1);
    assert_int_equal(http(&server, query, answer, sizeof answer), 0); /* longer than a query may be */
    begin_ns = nkv_now_ns();
    assert_int_equal(http(&server, "GET /", answer, sizeof answer), 0); /* never ends: is hung up on */
    assert_in_range(nkv_now_ns() - begin_ns, 1000000000u, 10000000000u);
    rig_close(&rig);
    server_close(&server);
}

static void every_failed_allocation_is_survived(void **state)
{
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    struct nkv_device *device;
    struct server server;
    uint64_t n = 0;
    void *window;
    int status;

    (void)state;
    do {
        server_open(&server, false, CAPACITY);
        nkv_mem_fail_at(++n);
        device = NULL;
        status = nkv_device_open(server.spec, &config, &device);
        if (status == 0)
            status = device->ops->map(device, 1 << 20, &window);
        assert_true(nkv_mem_fail_at(0) > 0);
        assert_true(status == 0 || status == NKV_ENOMEM || status == NKV_EDEVICE);
        nkv_device_close(device);
        assert_int_equal(nkv_device_open(server.spec, &config, &device), 0); /* the device goes on */
        nkv_device_close(device);
        server_close(&server);
    } while (status < 0);
    assert_true(n > 8);
}

/* "client PATH": holds a sequence until it is killed. */
static int client_role(char **argv)
{
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    struct nkv_cmd open = {.op = NKV_OP_SEQ_OPEN, .seq = 1, .n_tokens = 100};
    struct nkv_device *device;
    struct nkv_cqe cqe;
    char spec[80];

    snprintf(spec, sizeof spec, "unix:%s", argv[2]);
    if (nkv_device_open(spec, &config, &device) < 0 || device->ops->submit(device, &open, 1) < 0 ||
        device->ops->reap(device, &cqe, 1, 1) < 0)
        return 1;
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_are_those_of_the_device_in_this_process),
        cmocka_unit_test(clients_do_not_see_each_other),
        cmocka_unit_test(the_window_grows),
        cmocka_unit_test(the_queue_holds_what_it_says),
        cmocka_unit_test(a_full_device_says_so),
        cmocka_unit_test(the_shape_is_that_of_the_first_client),
        cmocka_unit_test(another_version_is_refused_by_name),
        cmocka_unit_test(stale_sockets_are_replaced_live_ones_are_not),
        cmocka_unit_test(clients_take_turns),
        cmocka_unit_test(a_killed_device_fails_what_is_in_flight_at_once),
        cmocka_unit_test(a_stopped_device_finishes_what_is_queued),
        cmocka_unit_test(pages_of_a_killed_client_come_back),
        cmocka_unit_test(the_metrics_page_is_served),
        cmocka_unit_test(every_failed_allocation_is_survived),
    };

    if (argc == 4)
        return strcmp(argv[1], "serve") == 0 ? server_role(argv) : client_role(argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
