/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile client of the device process: 20,000 commands, most of them likely or spoilt, among them noise in the
 * ring's header and entries, messages of any size and kind, descriptors nobody asked for, windows of any size, and a
 * second thread that writes over window and commands all the while. The device goes on, another client's data stay
 * right, and what the hostile one held comes back. (Run it under ASan and UBSan to see what it proves.)
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <sched.h>

#include "base/mem.h"
#include "device/hostile.h"
#include "device/ring.h"
#include "device/server.h"
#include "device/wire.h"

#define N_CMDS 20000u

/* Everything is mapped twice: the second thread has addresses of its own, as another process would. */
struct attacker {
    const struct server *server;
    uint64_t random;
    int fd;
    struct nkv_region ring_memory, window, other_ring, other_window;
    struct nkv_ring *ring;
    uint32_t submitted;
    uint32_t n_drops, n_done;
    pthread_t thread;
    _Atomic bool stop;
};

static void *scribble_on(void *arg)
{
    struct attacker *a = arg;
    struct nkv_ring *ring = a->other_ring.base;
    _Atomic uint32_t *words = a->other_window.base, *cmds = (_Atomic uint32_t *)(void *)ring->cmds;
    uint64_t random = 99;

    while (!atomic_load(&a->stop)) {
        uint32_t value = (uint32_t)next_random(&random);

        atomic_store_explicit(&words[pick(&random, HOSTILE_BYTES / 4)], value % 32, memory_order_relaxed);
        if (value % 64 == 0)
            atomic_store_explicit(&cmds[pick(&random, sizeof ring->cmds / 4)], value, memory_order_relaxed);
        if (value % 1024 == 1)
            server_pause();
    }
    return NULL;
}

static int ask(struct attacker *a, enum nkv_wire_kind kind, uint64_t bytes, struct nkv_region *first,
               struct nkv_region *second)
{
    struct nkv_wire_request request = {
        .head = nkv_wire_head(kind), .abi = NKV_DEVICE_ABI, .bytes = bytes, .shape = hostile_shape};
    struct nkv_wire_answer answer;
    int fd = -1, status;

    request.id = kind == NKV_WIRE_HELLO ? next_random(&a->random) : 0;
    status = nkv_wire_ask(a->fd, &request, &answer, sizeof answer, &fd);
    if (status < 0)
        return status;
    assert_int_equal(nkv_region_attach(fd, answer.bytes, first), 0);
    assert_int_equal(nkv_region_attach(fd, answer.bytes, second), 0);
    close(fd);
    return 0;
}

static void come(struct attacker *a)
{
    assert_int_equal(nkv_wire_connect(a->server->path, &a->fd), 0);
    if (ask(a, NKV_WIRE_HELLO, 0, &a->ring_memory, &a->other_ring))
        fail_msg("%s", nkv_last_error());
    assert_int_equal(ask(a, NKV_WIRE_MAP, HOSTILE_BYTES, &a->window, &a->other_window), 0);
    a->ring = a->ring_memory.base;
    a->submitted = 0;
    atomic_store(&a->stop, false);
    assert_int_equal(pthread_create(&a->thread, NULL, scribble_on, a), 0);
}

static void go(struct attacker *a)
{
    atomic_store(&a->stop, true);
    pthread_join(a->thread, NULL);
    close(a->fd);
    nkv_region_close(&a->ring_memory);
    nkv_region_close(&a->other_ring);
    nkv_region_close(&a->window);
    nkv_region_close(&a->other_window);
}

/* Whether the device has hung up. */
static bool is_dropped(struct attacker *a)
{
    char message[512];
    int n;

    do
        n = nkv_wire_receive(a->fd, message, sizeof message, NULL);
    while (n > 0);
    return n == 0;
}

static void bell(struct attacker *a)
{
    struct nkv_wire_head head = nkv_wire_head(NKV_WIRE_BELL);

    (void)nkv_wire_send(a->fd, &head, sizeof head, -1);
}

/* Queues one command by the rules and waits until it is done or the device has hung up. */
static void one_command(struct attacker *a)
{
    struct nkv_cmd cmd = likely(&a->random);
    uint64_t deadline_ns = nkv_now_ns() + 5000000000u;

    tidy(&cmd, &a->random);
    if (pick(&a->random, 3) == 0)
        mutate(&cmd, &a->random);
    if (pick(&a->random, 50) == 0)
        for (size_t b = 0; b < sizeof cmd; b++)
            ((unsigned char *)&cmd)[b] = (unsigned char)next_random(&a->random);
    scribble(a->window.base, &a->random);
    a->ring->cmds[a->submitted % NKV_RING_ENTRIES] = cmd;
    atomic_store(&a->ring->submitted, ++a->submitted);
    bell(a);
    while (atomic_load(&a->ring->completed) != a->submitted && !is_dropped(a) && nkv_now_ns() < deadline_ns)
        sched_yield();
    assert_true(nkv_now_ns() < deadline_ns);
    a->n_done++;
}

static void noise_in_the_ring(struct attacker *a)
{
    static const uint32_t steps[] = {1, 2, 100, NKV_RING_ENTRIES, NKV_RING_ENTRIES + 1, 0x80000000u, 0xffffffffu};
    unsigned char *bytes = (unsigned char *)a->ring;
    uint32_t step = steps[pick(&a->random, 7)];

    for (uint32_t i = 0; i < 64; i++) /* entries, completions, messages; then header words the client may write */
        bytes[192 + pick(&a->random, sizeof *a->ring - 192)] = (unsigned char)next_random(&a->random);
    atomic_store(&a->ring->wanted, (uint32_t)next_random(&a->random));
    atomic_store(&a->ring->client_sleeps, pick(&a->random, 2));
    atomic_store(&a->ring->device_sleeps, pick(&a->random, 2));
    atomic_store(&a->ring->completed, (uint32_t)next_random(&a->random));
    a->submitted += step;
    atomic_store(&a->ring->submitted, a->submitted);
    bell(a);
}

static void noise_on_the_socket(struct attacker *a)
{
    unsigned char message[1024];
    struct nkv_wire_request request = {.head = nkv_wire_head(NKV_WIRE_HELLO), .abi = NKV_DEVICE_ABI};
    size_t n = pick(&a->random, sizeof message);

    for (size_t i = 0; i < sizeof message; i++)
        message[i] = (unsigned char)next_random(&a->random);
    if (pick(&a->random, 2)) {
        request.head.kind = (uint16_t)pick(&a->random, 8);
        request.head.version = (uint16_t)(NKV_WIRE_VERSION + (pick(&a->random, 8) == 0));
        request.bytes = next_random(&a->random) >> pick(&a->random, 64);
        request.id = pick(&a->random, 4);
        memcpy(&request.shape, message, sizeof request.shape);
        memcpy(message, &request, sizeof request);
        n = pick(&a->random, 4) ? sizeof request : pick(&a->random, sizeof request);
    }
    (void)nkv_wire_send(a->fd, message, n, pick(&a->random, 2) ? a->fd : -1);
}

static uint32_t count_files(void)
{
    DIR *dir = opendir("/proc/self/fd");
    uint32_t n = 0;

    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static void a_hostile_client_harms_nobody(void **state)
{
    struct attacker a = {.random = 11};
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    struct server server;
    struct model model;
    struct rig rig;
    uint64_t random = 1, own;
    uint32_t n_files;

    (void)state;
    server_open(&server, false, 300 << 10);
    rig_open(&rig, server.spec, &config);
    fill_victim(&rig, &model, &random);
    own = rig_stat(&rig).used_bytes;
    n_files = count_files();
    a.server = &server;
    come(&a);
    for (uint32_t i = 0; a.n_done < N_CMDS; i++) {
        uint32_t what = pick(&a.random, 100);

        if (what == 0)
            noise_in_the_ring(&a);
        else if (what == 1)
            noise_on_the_socket(&a);
        else
            one_command(&a);
        if (what < 2) { /* whatever it led to, begin anew */
            server_pause();
            a.n_drops += is_dropped(&a);
            go(&a);
            server_await_clients(&server, 1);
            remove_published(&rig);
            assert_true(rig_stat(&rig).used_bytes == own);
            come(&a);
        }
        if (i % 2000 == 0)
            check_victim(&rig, &model);
    }
    go(&a);
    server_await_clients(&server, 1);
    assert_true(a.n_drops > 20);                              /* nonsense is noticed */
    for (int i = 0; i < 500 && count_files() != n_files; i++) /* the device closes in its own time */
        server_pause();
    assert_int_equal(count_files(), n_files);
    check_victim(&rig, &model);
    remove_published(&rig);
    assert_true(rig_stat(&rig).used_bytes == own);
    model_close(&model);
    rig_close(&rig);
    server_close(&server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hostile_client_harms_nobody),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
