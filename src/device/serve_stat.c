/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Statistics of the device process: what it counts, and how another process asks for it. Bytes of a client are those of
 * the sequences that it has now, sessions that it took over among them, without what others share; so the sum over the
 * clients can be less than what is used. They are counted when they are asked for: a session comes and goes without
 * a change of what the device holds.
 */
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "device/serve.h"
#include "kv/store.h"

static struct nkv_serve_client client_stat(const struct nkv_serve *serve, const struct serve_client *client)
{
    uint32_t waiting = client->attached ? nkv_ring_waiting(&client->ring) : 0, n_sequences = 0;
    uint64_t bytes = 0;

    (void)nkv_store_owner_usage(serve->cpu->store, client->number, &bytes, &n_sequences); /* without memory: 0 */
    return (struct nkv_serve_client){
        .number = client->number,
        .pid = client->pid,
        .used_bytes = bytes,
        .window_bytes = client->window_bytes,
        .n_commands = client->n_commands,
        .busy_ns = client->busy_ns,
        .read_bytes = client->read_bytes,
        .written_bytes = client->written_bytes,
        .n_sequences = n_sequences,
        .queue_depth = waiting < NKV_RING_ENTRIES ? waiting : NKV_RING_ENTRIES,
    };
}

void nkv_serve_fill_stat(const struct nkv_serve *serve, struct nkv_serve_stat *stat_out)
{
    struct nkv_serve_stat stat = {.capacity_bytes =
                                      serve->options.memory ? serve->memory_bytes : serve->options.capacity_bytes,
                                  .n_threads = serve->options.n_threads,
                                  .uptime_ns = nkv_now_ns() - serve->begin_ns};

    memcpy(stat.name, serve->name, sizeof stat.name);
    if (serve->cpu) {
        struct nkv_device_stat device = nkv_cpu_read_stat(serve->cpu);
        const struct nkv_kv_shape *shape = &serve->cpu->shape;

        stat.shape = *shape;
        stat.capacity_bytes = serve->cpu->capacity_bytes;
        stat.n_threads = serve->cpu->n_threads;
        stat.used_bytes = device.used_bytes;
        stat.resident_bytes = device.resident_bytes;
        stat.page_bytes = nkv_page_bytes(shape, shape->n_kv_heads) * shape->n_layers;
        stat.n_commands = device.n_commands;
        stat.busy_ns = device.busy_ns;
        stat.read_bytes = device.read_bytes;
        stat.written_bytes = device.written_bytes;
        stat.n_sequences = device.n_sequences;
        stat.n_free_pages = device.n_free_pages;
        stat.n_total_pages = device.n_total_pages;
    }
    /* Who only asks for statistics is no client. */
    for (uint32_t i = 0; i < serve->n_clients; i++) {
        if (!serve->clients[i]->attached || serve->clients[i]->lost)
            continue;
        stat.clients[stat.n_clients] = client_stat(serve, serve->clients[i]);
        stat.queue_depth += stat.clients[stat.n_clients++].queue_depth;
    }
    stat.n_absent = nkv_serve_count_absent(serve);
    *stat_out = stat;
}

int nkv_serve_stat(const char *path, struct nkv_serve_stat *stat_out)
{
    struct nkv_wire_request request = {.head = nkv_wire_head(NKV_WIRE_STATUS)};
    struct nkv_wire_status answer;
    int fd = -1, status;

    if (!path || !stat_out)
        FAIL(NKV_EINVAL, "nkv_serve_stat: path and stat_out must not be NULL");
    TRY(nkv_wire_connect(path, &fd));
    status = nkv_wire_ask(fd, &request, &answer, sizeof answer, NULL);
    close(fd);
    TRY(status);
    if (answer.stat.n_clients > NKV_SERVE_MAX_CLIENTS)
        FAIL(NKV_EDEVICE, "%s says that it has %u clients", path, answer.stat.n_clients);
    answer.stat.name[sizeof answer.stat.name - 1] = '\0';
    *stat_out = answer.stat;
    return 0;
}
