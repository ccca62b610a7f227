/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clients of the device process: coming, saying hello, mapping windows, leaving. The first hello gives the device
 * its KV shape and opens the core; the shape may change only while it holds nothing, because the sequences of all
 * clients live in one store of one shape.
 *
 * A client is a file descriptor, a number and two shared regions. When it ends, be it by closing, dying or nonsense,
 * its sequences are found by the number, which is half of their keys; when the device ends, they stay for it
 * (serve_absent.c). Nothing that it says is believed: requests are copied, of exactly their size; descriptors that it
 * sends are closed unseen.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "device/serve.h"

#define MESSAGES_AT_ONCE 16u

static void put_text(struct nkv_wire_result *result, int status, const char *text)
{
    result->status = status;
    if (status < 0)
        strncpy(result->text, text, sizeof result->text - 1);
}

static struct nkv_wire_result make_result(enum nkv_wire_kind kind, int status, const char *text)
{
    struct nkv_wire_result result = {.head = nkv_wire_head(kind)};

    put_text(&result, status, text);
    return result;
}

void nkv_serve_drop(struct nkv_serve *serve, struct serve_client *client, const char *why)
{
    struct nkv_wire_result result = make_result(NKV_WIRE_GONE, NKV_EDEVICE, why);

    if (client->lost)
        return;
    client->lost = true;
    nkv_serve_log(serve, "client %u (process %d) is disconnected: %s", client->number, (int)client->pid, result.text);
    (void)nkv_wire_send(client->fd, &result, sizeof result, -1);
}

static void free_client(struct nkv_serve *serve, struct serve_client *client)
{
    close(client->fd);
    if (client->attached && !serve->closing) {
        uint64_t before = nkv_cpu_read_stat(serve->cpu).used_bytes;
        uint32_t n = nkv_serve_forget(serve, client->number);

        nkv_serve_log(serve, "client %u left: %u sequences, %llu bytes freed", client->number, n,
                      (unsigned long long)(before - nkv_cpu_read_stat(serve->cpu).used_bytes));
    }
    nkv_region_close(&client->window);
    nkv_region_close(&client->ring_memory);
    nkv_free(client);
}

void nkv_serve_sweep(struct nkv_serve *serve)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < serve->n_clients; i++) {
        if (serve->clients[i]->lost)
            free_client(serve, serve->clients[i]);
        else
            serve->clients[kept++] = serve->clients[i];
    }
    serve->n_clients = kept;
}

static int add_client(struct nkv_serve *serve, int fd)
{
    struct ucred peer = {0};
    socklen_t length = sizeof peer;
    struct serve_client *client;

    if (serve->n_clients == NKV_SERVE_MAX_CLIENTS)
        FAIL(NKV_ENOSPC, "it has %u clients already", NKV_SERVE_MAX_CLIENTS);
    TRY(nkv_alloc(1, sizeof *client, &client));
    client->fd = fd;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0)
        client->pid = peer.pid;
    serve->clients[serve->n_clients++] = client;
    return 0;
}

void nkv_serve_accept(struct nkv_serve *serve)
{
    int fd = accept4(serve->socket.fd, NULL, NULL, SOCK_CLOEXEC);
    struct nkv_wire_result result;

    if (fd < 0 || add_client(serve, fd) >= 0)
        return;
    result = make_result(NKV_WIRE_GONE, NKV_ENOSPC, nkv_last_error());
    (void)nkv_wire_send(fd, &result, sizeof result, -1);
    close(fd);
}

/* ---- Hello ---- */

static void describe(const struct nkv_kv_shape *shape, char text_out[128])
{
    snprintf(text_out, 128, "%u layers, %u:%u heads of %u, pages of %u, %s, %s, scale %g", shape->n_layers,
             shape->n_heads, shape->n_kv_heads, shape->head_dim, shape->page_tokens, nkv_dtype_name(shape->dtype),
             nkv_digest_name(shape->digest), (double)shape->scale);
}

static uint32_t count_attached(const struct nkv_serve *serve)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < serve->n_clients; i++)
        n += serve->clients[i]->attached && !serve->clients[i]->lost;
    return n;
}

/* What was counted goes on. */
static void replace_core(struct nkv_serve *serve, struct nkv_cpu *cpu)
{
    if (serve->cpu) {
        serve->before = nkv_cpu_read_stat(serve->cpu);
        nkv_cpu_core_close(serve->cpu);
        nkv_free(serve->cpu);
    }
    if (cpu) {
        atomic_store(&cpu->stat.n_commands, serve->before.n_commands);
        atomic_store(&cpu->stat.busy_ns, serve->before.busy_ns);
        atomic_store(&cpu->stat.read_bytes, serve->before.read_bytes);
        atomic_store(&cpu->stat.written_bytes, serve->before.written_bytes);
    }
    serve->cpu = cpu;
}

int nkv_serve_open_core(struct nkv_serve *serve, const struct nkv_kv_shape *shape)
{
    const struct nkv_serve_options *o = &serve->options;
    struct nkv_cpu_config config = {.shape = *shape,
                                    .capacity_bytes = o->capacity_bytes,
                                    .n_threads = o->n_threads,
                                    .node = o->on_node ? (int)o->node : -1,
                                    .memory = o->memory,
                                    .is_locked = o->memory != NULL,
                                    .memory_fd = serve->memory_fd,
                                    .format = o->format};
    struct nkv_cpu *cpu;
    int status;

    if (o->memory)
        replace_core(serve, NULL); /* it cannot be mapped twice */
    TRY(nkv_alloc(1, sizeof *cpu, &cpu));
    nkv_affinity_restore(&serve->affinity); /* threads inherit what their creator may use */
    status = nkv_cpu_core_open(cpu, &config);
    if (status < 0) {
        nkv_cpu_core_close(cpu);
        nkv_free(cpu);
    } else {
        nkv_store_close_strangers(cpu->store);
        nkv_cpu_publish(cpu);
        serve->options.format = false; /* once */
        replace_core(serve, cpu);
        nkv_serve_await_absent(serve);
    }
    if (serve->cpu)
        nkv_cpu_bind_thread(serve->cpu->binding, 0, serve->cpu->n_threads, &serve->affinity);
    return status;
}

static int adopt_shape(struct nkv_serve *serve, const struct nkv_kv_shape *shape)
{
    char have[128], want[128];

    if (serve->cpu && memcmp(&serve->cpu->shape, shape, sizeof *shape) == 0)
        return 0;
    if (serve->cpu &&
        (count_attached(serve) + nkv_serve_count_absent(serve) > 0 || nkv_cpu_read_stat(serve->cpu).n_sequences > 0)) {
        describe(&serve->cpu->shape, have);
        describe(shape, want);
        FAIL(NKV_ESTATE,
             "it holds %s for others: %s has to wait until they leave and sessions are removed (nearkv pnm list, "
             "remove)",
             have, want);
    }
    TRY(nkv_serve_open_core(serve, shape));
    describe(shape, have);
    nkv_serve_log(serve, "shape: %s; room for %u pages", have, nkv_store_total_pages(serve->cpu->store));
    return 0;
}

static int check_hello(const struct serve_client *client, const struct nkv_wire_request *request)
{
    if (client->attached)
        FAIL(NKV_ESTATE, "hello was said already");
    if (request->abi != NKV_DEVICE_ABI)
        FAIL(NKV_ENOTSUP, "it serves device ABI %u, not %u: use the same nearkv on both sides", NKV_DEVICE_ABI,
             request->abi);
    if (request->id == 0)
        FAIL(NKV_EINVAL, "a client must say an id other than 0");
    return nkv_kv_shape_check(&request->shape);
}

static int say_hello(struct nkv_serve *serve, struct serve_client *client, const struct nkv_wire_request *request,
                     int *fd_out)
{
    int fd = -1, status;

    TRY(check_hello(client, request));
    TRY(adopt_shape(serve, &request->shape));
    TRY(nkv_region_share("nearkv-ring", sizeof(struct nkv_ring), &client->ring_memory, &fd));
    status = nkv_serve_identify(serve, client, request->id);
    if (status < 0) {
        nkv_region_close(&client->ring_memory);
        close(fd);
        return status;
    }
    *fd_out = fd;
    nkv_ring_init(client->ring_memory.base, &client->ring);
    client->attached = true;
    nkv_serve_log(serve, "client %u (process %d) attached", client->number, (int)client->pid);
    return 0;
}

static int map_window(struct nkv_serve *serve, struct serve_client *client, uint64_t bytes, int *fd_out)
{
    struct nkv_region window;

    if (!client->attached)
        FAIL(NKV_ESTATE, "say hello first");
    if (nkv_ring_waiting(&client->ring))
        FAIL(NKV_ESTATE, "the window cannot grow while %u commands wait", nkv_ring_waiting(&client->ring));
    TRY(nkv_cpu_window_reserve(serve->cpu, bytes));
    TRY(nkv_region_share("nearkv-window", nkv_align64(bytes), &window, fd_out));
    nkv_cpu_bind_memory(serve->cpu->binding, window.base, window.bytes);
    nkv_region_close(&client->window);
    client->window = window;
    client->window_bytes = nkv_align64(bytes);
    return 0;
}

/* ---- Messages ---- */

static void answer(struct nkv_serve *serve, struct serve_client *client, const struct nkv_wire_request *request)
{
    struct nkv_wire_answer answer = {.result = make_result(request->head.kind, 0, "")};
    int fd = -1, status = 0;

    if (request->head.kind == NKV_WIRE_HELLO)
        status = say_hello(serve, client, request, &fd);
    else if (request->head.kind == NKV_WIRE_MAP)
        status = map_window(serve, client, request->bytes, &fd);
    else if (!client->attached)
        status = nkv_fail(NKV_ESTATE, "say hello first");
    put_text(&answer.result, status, nkv_last_error());
    if (status >= 0) {
        answer.number = client->number;
        answer.n_threads = serve->cpu->n_threads;
        answer.capacity_bytes = serve->cpu->capacity_bytes;
        answer.bytes = request->head.kind == NKV_WIRE_HELLO ? sizeof(struct nkv_ring) : client->window_bytes;
        answer.stat = nkv_cpu_read_stat(serve->cpu);
        nkv_serve_fill_absent(serve, &answer.stat);
        memcpy(answer.name, serve->name, sizeof answer.name);
    }
    if (nkv_wire_send(client->fd, &answer, sizeof answer, fd) < 0)
        nkv_serve_drop(serve, client, "it does not take answers");
    if (fd >= 0)
        close(fd);
}

static void answer_status(struct nkv_serve *serve, struct serve_client *client)
{
    struct nkv_wire_status status = {.result = make_result(NKV_WIRE_STATUS, 0, "")};

    nkv_serve_fill_stat(serve, &status.stat);
    if (nkv_wire_send(client->fd, &status, sizeof status, -1) < 0)
        nkv_serve_drop(serve, client, "it does not take answers");
}

/* A message of n bytes, of which `request` holds what fits. */
static void obey(struct nkv_serve *serve, struct serve_client *client, const struct nkv_wire_request *request, size_t n)
{
    char why[128];

    if (n < sizeof request->head || request->head.magic != NKV_WIRE_MAGIC) {
        nkv_serve_drop(serve, client, "it does not speak this protocol");
    } else if (request->head.version != NKV_WIRE_VERSION) {
        snprintf(why, sizeof why, "the client speaks version %u, the device version %u: use the same nearkv on both",
                 request->head.version, NKV_WIRE_VERSION);
        nkv_serve_drop(serve, client, why);
    } else if (request->head.kind == NKV_WIRE_BELL && n == sizeof request->head) {
        return; /* the rings are looked at anyway */
    } else if (n != sizeof *request || request->head.kind < NKV_WIRE_HELLO || request->head.kind > NKV_WIRE_STATUS) {
        snprintf(why, sizeof why, "its message has %zu bytes and kind %u, which this device does not know", n,
                 request->head.kind);
        nkv_serve_drop(serve, client, why);
    } else if (request->head.kind == NKV_WIRE_STATUS) {
        answer_status(serve, client);
    } else {
        answer(serve, client, request);
    }
}

void nkv_serve_listen_to(struct nkv_serve *serve, struct serve_client *client)
{
    for (uint32_t i = 0; i < MESSAGES_AT_ONCE && !client->lost; i++) {
        struct nkv_wire_request request = {0};
        int n = nkv_wire_receive(client->fd, &request, sizeof request, NULL);

        if (n == 0)
            client->lost = true;
        if (n <= 0)
            return;
        obey(serve, client, &request, (size_t)n);
    }
}
