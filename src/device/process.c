/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "unix:PATH": a device that another process owns (nearkv pnmd). Commands and completions go through a ring, operands
 * through the window, both in memory that the device made and passed over its socket; the socket carries what is rare:
 * the handshake, a new window, statistics, bells for sleepers.
 *
 * The device may die at any instant. The client sleeps on the socket only, whose end the system reports at once; from
 * then on every call fails with NKV_EDEVICE and names the device. Completions that were there before are still
 * delivered. `map` connects anew and says hello with the same id, so that a device that kept its memory gives the
 * client its sequences back; ring and window are new ones. Connecting in any other call was rejected: whoever has
 * commands in flight must first learn that they are lost.
 *
 * The capacity, the threads and the name are the device's own: what the configuration says of them is not used.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/futex.h"
#include "device/backend.h"
#include "device/ring.h"
#include "device/wire.h"

#define SPIN_NS 4000u

struct process {
    struct nkv_device device; /* first */
    struct nkv_device_caps caps;
    struct nkv_kv_shape shape;
    uint64_t id; /* what the device knows this client by */
    char path[108];
    int fd;
    struct nkv_region memory, window;
    struct nkv_ring_user ring;
    char lost[256]; /* why the device is gone; "": it is not */
};

static struct process *process_of(struct nkv_device *device)
{
    return (struct process *)(void *)device;
}

static int fail_lost(const struct process *p)
{
    FAIL(NKV_EDEVICE, "device %s at unix:%s is gone: %s", p->caps.name, p->path, p->lost);
}

/* After a failure that ends the connection. The message becomes the reason. */
static int lose(struct process *p)
{
    if (!*p->lost) {
        int n_in_flight = (int)nkv_ring_in_flight(&p->ring);

        snprintf(p->lost, sizeof p->lost, "%s with %d commands in flight", nkv_last_error(), n_in_flight);
    }
    return fail_lost(p);
}

static int ask(struct process *p, struct nkv_wire_request request, struct nkv_wire_answer *answer_out, int *fd_out)
{
    int status;

    if (*p->lost)
        return fail_lost(p);
    status = nkv_wire_ask(p->fd, &request, answer_out, sizeof *answer_out, fd_out);
    if (status == NKV_EDEVICE)
        return lose(p);
    return status;
}

static int process_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    *caps_out = process_of(device)->caps;
    return 0;
}

/* Takes what the handshake gives into *p, which has a path, an id and a shape. */
static int say_hello(struct process *p)
{
    struct nkv_wire_request hello = {
        .head = nkv_wire_head(NKV_WIRE_HELLO), .abi = NKV_DEVICE_ABI, .shape = p->shape, .id = p->id};
    struct nkv_wire_answer answer;
    int fd = -1, status;

    TRY(nkv_wire_connect(p->path, &p->fd));
    TRY(nkv_wire_ask(p->fd, &hello, &answer, sizeof answer, &fd));
    status = nkv_region_attach(fd, sizeof(struct nkv_ring), &p->memory);
    close(fd);
    TRY(status);
    p->caps = (struct nkv_device_caps){
        .size = sizeof p->caps, .capacity_bytes = answer.capacity_bytes, .n_threads = answer.n_threads};
    memcpy(p->caps.name, answer.name, sizeof p->caps.name - 1);
    return nkv_ring_join(p->memory.base, &p->ring);
}

static void close_link(struct process *p)
{
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
    nkv_region_close(&p->window);
    nkv_region_close(&p->memory);
}

/* Ring and window of before stay until there are new ones: completions in them may still be read. */
static int reconnect(struct process *p)
{
    struct process fresh = {.device = p->device, .caps = p->caps, .shape = p->shape, .id = p->id, .fd = -1};
    char reason[256];
    int status;

    if (p->fd >= 0)
        close(p->fd); /* first: one that lives must not find its client attached */
    p->fd = -1;
    memcpy(fresh.path, p->path, sizeof fresh.path);
    status = say_hello(&fresh);
    if (status < 0) {
        snprintf(reason, sizeof reason, "%s", nkv_last_error());
        close_link(&fresh);
        FAIL(status == NKV_ENOENT || status == NKV_EIO ? NKV_EDEVICE : status,
             "device %s at unix:%s was lost (%s) and cannot be reached again: %s", p->caps.name, p->path, p->lost,
             reason);
    }
    close_link(p);
    *p = fresh;
    return 0;
}

static int process_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    struct process *p = process_of(device);
    struct nkv_wire_answer answer;
    struct nkv_region window;
    int fd = -1, status;

    if (*p->lost)
        TRY(reconnect(p));
    if (nkv_ring_in_flight(&p->ring))
        FAIL(NKV_ESTATE, "the window cannot grow while %u commands are in flight: reap them first",
             nkv_ring_in_flight(&p->ring));
    TRY(ask(p, (struct nkv_wire_request){.head = nkv_wire_head(NKV_WIRE_MAP), .bytes = bytes}, &answer, &fd));
    status = answer.bytes >= bytes
                 ? nkv_region_attach(fd, answer.bytes, &window)
                 : nkv_fail(NKV_EDEVICE, "it made a window of %" PRIu64 " bytes, not of %" PRIu64, answer.bytes, bytes);
    close(fd);
    if (status < 0) /* it uses the new one already */
        return lose(p);
    nkv_region_close(&p->window);
    p->window = window;
    *window_out = window.base;
    return 0;
}

static int process_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    struct process *p = process_of(device);
    struct nkv_wire_head bell = nkv_wire_head(NKV_WIRE_BELL);
    int sleeps;

    if (*p->lost)
        return fail_lost(p);
    sleeps = nkv_ring_submit(&p->ring, cmds, n);
    TRY(sleeps);
    if (sleeps)
        (void)nkv_wire_send(p->fd, &bell, sizeof bell, -1); /* if it is dead, reap finds out */
    return 0;
}

/* Sleeps until n completions are there. returns: 0; NKV_EDEVICE. */
static int wait_completions(struct process *p, uint32_t n)
{
    int ready, status = 0;

    if (!nkv_spin_below(&p->ring.ring->completed, p->ring.reaped, n, SPIN_NS))
        return 0;
    nkv_ring_await(&p->ring, n);
    while ((ready = nkv_ring_ready(&p->ring)) >= 0 && (uint32_t)ready < n && status == 0)
        status = *p->lost ? NKV_EDEVICE : nkv_wire_sleep(p->fd);
    nkv_ring_await(&p->ring, 0);
    return ready >= 0 && (uint32_t)ready >= n ? 0 : lose(p);
}

static int process_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    struct process *p = process_of(device);
    uint32_t n_in_flight = nkv_ring_in_flight(&p->ring);
    int n;

    if (min_n > max_n || min_n > n_in_flight)
        FAIL(NKV_EINVAL, "cannot wait for %u completions: %u commands are in flight, and there is room for %u", min_n,
             n_in_flight, max_n);
    if (min_n > 0)
        TRY(wait_completions(p, min_n));
    n = nkv_ring_ready(&p->ring);
    if (n < 0)
        return lose(p);
    n = (uint32_t)n < max_n ? n : (int)max_n;
    nkv_ring_reap(&p->ring, cqes_out, (uint32_t)n);
    return n;
}

static int process_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    struct nkv_wire_answer answer;

    TRY(ask(process_of(device), (struct nkv_wire_request){.head = nkv_wire_head(NKV_WIRE_STAT)}, &answer, NULL));
    *stat_out = answer.stat;
    return 0;
}

static void free_parts(struct process *p)
{
    close_link(p);
    nkv_free(p);
}

static void process_close(struct nkv_device *device)
{
    struct process *p = process_of(device);

    if (nkv_ring_in_flight(&p->ring))
        (void)wait_completions(p, nkv_ring_in_flight(&p->ring));
    free_parts(p);
}

static const struct nkv_device_ops process_ops = {
    .abi = NKV_DEVICE_ABI,
    .backend = "unix",
    .caps = process_caps,
    .map = process_map,
    .submit = process_submit,
    .reap = process_reap,
    .stat = process_stat,
    .close = process_close,
};

static int make_id(uint64_t *id_out)
{
    ssize_t n;

    do
        n = getrandom(id_out, sizeof *id_out, 0);
    while ((n < 0 && errno == EINTR) || (n == sizeof *id_out && *id_out == 0));
    if (n != sizeof *id_out)
        FAIL(NKV_EIO, "the system gives no random number for this client's id");
    return 0;
}

static int open_parts(struct process *p, const char *args)
{
    if (strlen(args) >= sizeof p->path)
        FAIL(NKV_EINVAL, "socket path '%.120s' is too long", args);
    snprintf(p->path, sizeof p->path, "%s", args);
    TRY(make_id(&p->id));
    return say_hello(p);
}

int nkv_process_open(const char *args, const struct nkv_device_config *config, struct nkv_device **device_out)
{
    struct process *p;
    int status;

    TRY(nkv_alloc(1, sizeof *p, &p));
    p->device.ops = &process_ops;
    p->shape = config->shape;
    p->fd = -1;
    status = open_parts(p, args);
    if (status < 0) {
        char reason[400];

        snprintf(reason, sizeof reason, "%s", nkv_last_error());
        free_parts(p);
        FAIL(status, "device 'unix:%.108s': %s", args, reason);
    }
    *device_out = &p->device;
    return 0;
}
