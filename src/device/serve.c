/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device process: one thread that is the leader of the team, takes commands from the rings of its clients in turn,
 * one each, and between them looks at its sockets. With nothing to do it spins for a few microseconds, then announces
 * in every ring that it sleeps, looks once more, and sleeps in poll() on all sockets together.
 *
 * A thread per client was rejected: the store and the team serve one command at a time anyway, and one thread needs no
 * locks. A second thread for the sockets was, too: it would share every client's state with the first for the sake of
 * what happens a few times per client's life; so a handshake waits for the command that runs.
 */
#define _GNU_SOURCE
#include "device/serve.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/futex.h"

#define SPIN_NS   20000u
#define POLL_NS   500000u /* while commands come, the sockets are looked at this often */
#define SCRAPE_MS 500

void nkv_serve_log(const struct nkv_serve *serve, const char *format, ...)
{
    char line[512];
    va_list args;

    if (!serve->options.log)
        return;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    serve->options.log(serve->options.log_arg, line);
}

/* ---- Commands ---- */

/* returns: whether the client had a command. */
static bool run_one(struct nkv_serve *serve, struct serve_client *client)
{
    struct nkv_wire_head bell = nkv_wire_head(NKV_WIRE_BELL);
    struct nkv_cmd cmd;
    struct nkv_cqe cqe;
    int status;

    if (!client->attached || client->lost || (serve->stopping && client->ring.done == client->last))
        return false;
    status = nkv_ring_next(&client->ring, &cmd);
    if (status < 0)
        nkv_serve_drop(serve, client, nkv_last_error());
    if (status <= 0)
        return false;
    cqe = nkv_cpu_run(serve->cpu, client->number, client->window.base, client->window_bytes, &cmd);
    if (cqe.res == NKV_ENOSPC)
        nkv_serve_explain_absent(serve);
    client->n_commands++;
    client->busy_ns += cqe.end_ns - cqe.start_ns;
    client->read_bytes += serve->cpu->read_bytes;
    client->written_bytes += serve->cpu->written_bytes;
    if (nkv_ring_complete(&client->ring, &cqe, nkv_last_error()))
        (void)nkv_wire_send(client->fd, &bell, sizeof bell, -1); /* not read: then it is awake; gone: poll will tell */
    return true;
}

/* One command of each client. returns: whether there was any. */
static bool run_round(struct nkv_serve *serve)
{
    bool any = false;

    for (uint32_t i = 0; i < serve->n_clients; i++)
        any |= run_one(serve, serve->clients[i]);
    return any;
}

static bool any_waits(const struct nkv_serve *serve, uint32_t *n_attached_out)
{
    *n_attached_out = 0;
    for (uint32_t i = 0; i < serve->n_clients; i++) {
        const struct serve_client *client = serve->clients[i];

        if (client->attached && nkv_ring_waiting(&client->ring) > 0)
            return true;
        *n_attached_out += client->attached;
    }
    return false;
}

/* ---- Sockets ---- */

static void handle(struct nkv_serve *serve, const struct pollfd *waits, uint32_t n_clients)
{
    if (waits[2].revents)
        nkv_serve_metrics_accept(serve);
    for (uint32_t i = 0; i < NKV_SERVE_SCRAPERS; i++)
        if (waits[3 + i].revents)
            nkv_serve_metrics_read(serve, &serve->scrapers[i]);
    for (uint32_t i = 0; i < n_clients; i++)
        if (waits[3 + NKV_SERVE_SCRAPERS + i].revents)
            nkv_serve_listen_to(serve, serve->clients[i]);
    nkv_serve_sweep(serve);
    if (waits[1].revents) /* when those who left have made room */
        nkv_serve_accept(serve);
}

/* Waits for events and serves them. returns: 0, NKV_EIO. */
static int poll_sockets(struct nkv_serve *serve, int timeout_ms)
{
    struct pollfd waits[3 + NKV_SERVE_SCRAPERS + NKV_SERVE_MAX_CLIENTS];
    uint32_t n = 0, n_clients = serve->n_clients;
    int n_events;

    waits[n++] = (struct pollfd){.fd = serve->stop_fd, .events = POLLIN};
    waits[n++] = (struct pollfd){.fd = serve->socket.fd, .events = POLLIN}; /* poll passes over -1 */
    waits[n++] = (struct pollfd){.fd = serve->metrics.fd, .events = POLLIN};
    for (uint32_t i = 0; i < NKV_SERVE_SCRAPERS; i++)
        waits[n++] = (struct pollfd){.fd = serve->scrapers[i].fd, .events = POLLIN};
    for (uint32_t i = 0; i < n_clients; i++)
        waits[n++] = (struct pollfd){.fd = serve->clients[i]->fd, .events = POLLIN};
    n_events = poll(waits, n, timeout_ms);
    if (n_events < 0 && errno != EINTR)
        FAIL(NKV_EIO, "cannot wait for clients: %s", strerror(errno));
    if (n_events > 0) {
        (void)run_round(serve); /* a bell's command first: what else came can wait for it */
        handle(serve, waits, n_clients);
    }
    serve->polled_ns = nkv_now_ns();
    (void)nkv_serve_metrics_expire(serve, serve->polled_ns);
    nkv_serve_expire_absent(serve, serve->polled_ns);
    nkv_serve_sweep(serve);
    return 0;
}

static void announce_sleep(struct nkv_serve *serve, bool sleeps)
{
    for (uint32_t i = 0; i < serve->n_clients; i++)
        if (serve->clients[i]->attached)
            nkv_ring_sleep(&serve->clients[i]->ring, sleeps);
}

/* How long nothing but an event has to be looked at, for poll. */
static int quiet_ms(struct nkv_serve *serve)
{
    uint64_t now_ns = nkv_now_ns();
    int absent_ms = nkv_serve_absent_ms(serve, now_ns);

    if (nkv_serve_metrics_expire(serve, now_ns) && (absent_ms < 0 || absent_ms > SCRAPE_MS))
        return SCRAPE_MS;
    return absent_ms;
}

/* Nothing to run: spins, then sleeps until a bell or another event. */
static int idle(struct nkv_serve *serve)
{
    uint64_t deadline_ns = nkv_now_ns() + SPIN_NS;
    uint32_t n_attached;
    int status = 0;

    for (uint32_t i = 1;; i++) {
        if (any_waits(serve, &n_attached))
            return 0;
        if (n_attached == 0 || (i % 32 == 0 && nkv_now_ns() > deadline_ns))
            break;
        if (i % 32 == 0)
            sched_yield();
        nkv_spin_pause();
    }
    announce_sleep(serve, true);
    if (!any_waits(serve, &n_attached))
        status = poll_sockets(serve, quiet_ms(serve));
    announce_sleep(serve, false);
    return status;
}

/* ---- Life ---- */

static int listen_at(const char *path, int type, struct serve_socket *socket_out)
{
    struct stat file;
    int fd = -1;

    TRY(nkv_wire_listen(path, type, &fd));
    *socket_out = (struct serve_socket){.fd = fd};
    strncpy(socket_out->path, path, sizeof socket_out->path - 1);
    if (stat(path, &file) == 0) {
        socket_out->device = file.st_dev;
        socket_out->inode = file.st_ino;
    }
    return 0;
}

static void close_socket(struct serve_socket *socket)
{
    struct stat file;

    if (socket->fd < 0)
        return;
    close(socket->fd);
    socket->fd = -1;
    if (stat(socket->path, &file) == 0 && file.st_dev == socket->device && file.st_ino == socket->inode)
        (void)unlink(socket->path);
}

/* Nobody is let in any more; what is queued now is still run. */
static void begin_stop(struct nkv_serve *serve)
{
    serve->stopping = true;
    close_socket(&serve->socket);
    for (uint32_t i = 0; i < serve->n_clients; i++) {
        struct serve_client *client = serve->clients[i];

        if (client->attached)
            client->last = client->ring.done + nkv_ring_waiting(&client->ring);
    }
}

static int serve_until_stopped(struct nkv_serve *serve)
{
    for (;;) {
        bool worked;

        if (!serve->stopping && atomic_load(&serve->stop))
            begin_stop(serve);
        worked = run_round(serve);
        nkv_serve_sweep(serve);
        if (serve->stopping && !worked)
            return 0;
        if (!worked && !serve->stopping)
            TRY(idle(serve));
        else if (nkv_now_ns() - serve->polled_ns > POLL_NS)
            TRY(poll_sockets(serve, 0));
    }
}

int nkv_serve_run(struct nkv_serve *serve)
{
    int status = serve_until_stopped(serve);

    nkv_affinity_restore(&serve->affinity); /* the thread was bound when the first client came */
    return status;
}

void nkv_serve_stop(struct nkv_serve *serve)
{
    uint64_t one = 1;
    int saved = errno;

    atomic_store(&serve->stop, 1);
    (void)!write(serve->stop_fd, &one, sizeof one);
    errno = saved;
}

static int read_options(const struct nkv_serve_options *options, struct nkv_serve *serve)
{
    const char *name = options->name ? options->name : "pnm";
    size_t length = strlen(name);

    if (options->size != sizeof *options)
        FAIL(NKV_EINVAL, "nkv_serve_options.size is %u: it must be %zu", options->size, sizeof *options);
    if (!options->listen)
        FAIL(NKV_EINVAL, "a device process needs a socket to listen on");
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("-_.", name[i]))
            length = sizeof serve->name;
    if (length == 0 || length >= sizeof serve->name)
        FAIL(NKV_EINVAL, "device name '%.70s': use from 1 to %zu letters, digits and -_.", name,
             sizeof serve->name - 1);
    serve->options = *options;
    memcpy(serve->name, name, length);
    return 0;
}

/* What the memory holds is served from the beginning; what holds nothing gets its shape from the first client. */
static int open_memory(struct nkv_serve *serve)
{
    struct nkv_image_options options;
    struct nkv_kv_shape shape;
    char path[NKV_MEMORY_PATH_BYTES];
    int held;

    if (!serve->options.memory)
        return 0;
    TRY(nkv_memory_parse(serve->options.memory, &options, path));
    TRY(nkv_image_lock(&options, &serve->memory_fd));
    options.fd = serve->memory_fd;
    TRY(nkv_image_bytes(&options, &serve->memory_bytes));
    if (serve->options.format)
        return 0;
    options.is_locked = true;
    held = nkv_image_peek(&options, &shape);
    TRY(held);
    if (held == 0)
        return 0;
    TRY(nkv_serve_open_core(serve, &shape));
    nkv_serve_log(serve, "%s holds %u sequences", serve->options.memory, nkv_cpu_read_stat(serve->cpu).n_sequences);
    if (nkv_store_n_lost(serve->cpu->store))
        nkv_serve_log(serve, "%u sequences did not survive the crash of the system",
                      nkv_store_n_lost(serve->cpu->store));
    return 0;
}

/* The core comes with the first client; who started the device with a node that is not there wants to know now. */
static int check_node(const struct nkv_serve_options *options)
{
    struct nkv_cpu_binding *binding;
    uint32_t n_cpus;

    if (!options->on_node)
        return 0;
    TRY(nkv_cpu_binding_open((int)options->node, &binding, &n_cpus));
    nkv_cpu_binding_close(binding);
    return 0;
}

static int open_parts(struct nkv_serve *serve, const struct nkv_serve_options *options)
{
    TRY(read_options(options, serve));
    TRY(check_node(options));
    TRY(open_memory(serve));
    serve->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (serve->stop_fd < 0)
        FAIL(NKV_EIO, "cannot open an eventfd: %s", strerror(errno));
    TRY(listen_at(options->listen, SOCK_SEQPACKET, &serve->socket));
    if (options->metrics)
        TRY(listen_at(options->metrics, SOCK_STREAM, &serve->metrics));
    return 0;
}

int nkv_serve_open(const struct nkv_serve_options *options, struct nkv_serve **serve_out)
{
    struct nkv_serve *serve;
    int status;

    TRY(nkv_alloc(1, sizeof *serve, &serve));
    serve->socket.fd = serve->metrics.fd = serve->stop_fd = serve->memory_fd = -1;
    for (uint32_t i = 0; i < NKV_SERVE_SCRAPERS; i++)
        serve->scrapers[i].fd = -1;
    serve->begin_ns = nkv_now_ns();
    status = open_parts(serve, options);
    if (status < 0) {
        nkv_serve_close(serve);
        return status;
    }
    *serve_out = serve;
    return 0;
}

void nkv_serve_close(struct nkv_serve *serve)
{
    if (!serve)
        return;
    close_socket(&serve->socket);
    close_socket(&serve->metrics);
    nkv_serve_metrics_close(serve);
    serve->closing = true;
    for (uint32_t i = 0; i < serve->n_clients; i++)
        nkv_serve_drop(serve, serve->clients[i], "it was stopped");
    nkv_serve_sweep(serve);
    if (serve->cpu) {
        nkv_cpu_core_close(serve->cpu);
        nkv_free(serve->cpu);
    }
    if (serve->stop_fd >= 0)
        close(serve->stop_fd);
    if (serve->memory_fd >= 0)
        close(serve->memory_fd);
    nkv_free(serve);
}
