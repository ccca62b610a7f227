/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A PNM rank: the CPU device's core behind messages. One thread, the leader of the team, takes a message, copies its
 * operands into this side's window, runs its commands in order and sends completions with what they wrote. Receiving
 * while a command runs would win nothing: the next message's operands may lie where this one's commands still write.
 *
 * Completions wait for the end of their message, but for one: what a SELECT with NKV_STEADY finds out starts the host's
 * half of the attention, so it goes up at once. The rule looks at commands only, never at the clock, so that the number
 * of messages is the same in every run. Outputs may overlap, so that together they are larger than the window: what
 * would not fit is sent before.
 *
 * Nothing is believed: counts, offsets and sizes of a message are checked against it and the window; commands are the
 * core's to check.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device/cpu.h"
#include "device/mpi_channel.h"
#include "device/mpi_wire.h"
#include "device/operands.h"

#define OWNER 1u

struct service {
    struct nkv_mpi *job;
    struct nkv_mpi_channel channel;
    struct nkv_region window;
    uint64_t window_bytes;
    struct nkv_cpu *cpu; /* NULL: not open */
    struct nkv_affinity affinity;
    /* What waits to go up. */
    uint32_t n_done;
    uint64_t output_bytes; /* at most the window's */
    struct nkv_cmd cmds[NKV_MPI_ENTRIES];
    struct nkv_cqe cqes[NKV_MPI_ENTRIES];
    char texts[NKV_MPI_ENTRIES][NKV_MPI_TEXT_BYTES];
};

/* ---- Up ---- */

static int take_buffer(struct service *s, enum nkv_mpi_kind kind, void **buffer_out)
{
    struct nkv_mpi_turn turn = nkv_mpi_channel_turn(&s->channel);
    int free;

    while ((free = nkv_mpi_channel_take(&s->channel, kind, buffer_out)) == 0)
        nkv_mpi_pause(s->job, &turn);
    return free < 0 ? free : 0;
}

static char *put(char *at, const void *bytes, size_t n)
{
    memcpy(at, bytes, n);
    return at + n;
}

static char *put_outputs(const struct service *s, char *at, uint32_t i)
{
    struct nkv_operand outs[NKV_MAX_OPERANDS];
    uint32_t n = nkv_operands_out(&s->cpu->shape, &s->cmds[i], s->cqes[i].res, s->window_bytes, outs);

    for (uint32_t o = 0; o < n; o++)
        at = put(at, (const char *)s->window.base + outs[o].offset, outs[o].bytes);
    return at;
}

static int send_completions(struct service *s)
{
    struct nkv_mpi_head *head = NULL;
    char *at;

    if (s->n_done == 0)
        return 0;
    TRY(take_buffer(s, NKV_MPI_COMMANDS, (void **)&head));
    *head = nkv_mpi_head(NKV_MPI_COMMANDS);
    head->n_records = s->n_done;
    at = put((char *)(head + 1), s->cqes, s->n_done * sizeof *s->cqes);
    for (uint32_t i = 0; i < s->n_done; i++)
        if (s->cqes[i].res < 0)
            at = put(at, s->texts[i], sizeof s->texts[i]);
    for (uint32_t i = 0; i < s->n_done; i++)
        at = put_outputs(s, at, i);
    s->n_done = 0;
    s->output_bytes = 0;
    return nkv_mpi_channel_send(&s->channel, (uint64_t)(at - (char *)head));
}

/* Sends what waits if a message has no room for the outputs of this command besides. */
static int make_room(struct service *s, const struct nkv_cmd *cmd)
{
    struct nkv_operand outs[NKV_MAX_OPERANDS];
    uint32_t n = nkv_operands_out(&s->cpu->shape, cmd, NKV_RES_UNKNOWN, s->window_bytes, outs);
    uint64_t bytes = 0;

    for (uint32_t o = 0; o < n; o++)
        bytes += outs[o].bytes;
    if (bytes > s->window_bytes - s->output_bytes)
        TRY(send_completions(s));
    s->output_bytes += bytes;
    return 0;
}

static int reply(struct service *s, enum nkv_mpi_kind kind, int status, bool has_lane)
{
    struct nkv_mpi_reply answer = {.status = status, .has_lane = has_lane};
    struct nkv_mpi_head *head = NULL;
    char host[48] = "";

    if (status < 0)
        strncpy(answer.text, nkv_last_error(), sizeof answer.text - 1);
    if (status == 0 && s->cpu) {
        answer.n_threads = s->cpu->n_threads;
        answer.capacity_bytes = s->cpu->capacity_bytes;
        answer.stat = nkv_cpu_read_stat(s->cpu);
        (void)gethostname(host, sizeof host - 1);
        snprintf(answer.name, sizeof answer.name, "rank%u@%s", s->job->rank, host);
    }
    TRY(take_buffer(s, kind, (void **)&head));
    *head = nkv_mpi_head(kind);
    memcpy(head + 1, &answer, sizeof answer);
    return nkv_mpi_channel_send(&s->channel, sizeof *head + sizeof answer);
}

/* ---- Commands ---- */

static int bad_message(const struct service *s, const char *what)
{
    FAIL(NKV_EDEVICE, "rank %u got a message that makes no sense: %s", s->job->rank, what);
}

/* Copies the operands into the window. */
static int take_operands(struct service *s, const struct nkv_mpi_head *head, const char *at, const char *end)
{
    const struct nkv_mpi_segment *segments = (const struct nkv_mpi_segment *)(const void *)at;

    if (head->n_segments > NKV_MPI_SEGMENTS || head->n_segments * sizeof *segments > (size_t)(end - at))
        return bad_message(s, "its operands are not in it");
    at += head->n_segments * sizeof *segments;
    for (uint32_t i = 0; i < head->n_segments; i++) {
        uint64_t offset = segments[i].offset, bytes = segments[i].bytes;

        if (offset > s->window_bytes || bytes > s->window_bytes - offset || bytes > (uint64_t)(end - at))
            return bad_message(s, "an operand does not lie in the window");
        memcpy((char *)s->window.base + offset, at, bytes);
        at += bytes;
    }
    return 0;
}

static int run_commands(struct service *s, const struct nkv_mpi_head *head, const char *at, const char *end)
{
    uint32_t n = head->n_records;
    struct nkv_cmd cmd;

    if (!s->cpu || n == 0 || n > NKV_MPI_ENTRIES || n * sizeof cmd > (size_t)(end - at))
        return bad_message(s, "its commands are not in it, or the device is not open");
    TRY(take_operands(s, head, at + n * sizeof cmd, end));
    for (uint32_t i = 0; i < n; i++) {
        memcpy(&cmd, at + i * sizeof cmd, sizeof cmd);
        TRY(make_room(s, &cmd));
        s->cmds[s->n_done] = cmd;
        s->cqes[s->n_done] = nkv_cpu_run(s->cpu, OWNER, s->window.base, s->window_bytes, &cmd);
        if (s->cqes[s->n_done].res < 0)
            strncpy(s->texts[s->n_done], nkv_last_error(), NKV_MPI_TEXT_BYTES - 1);
        s->n_done++;
        if (cmd.op == NKV_OP_SELECT && (cmd.flags & NKV_STEADY))
            TRY(send_completions(s));
    }
    return send_completions(s);
}

/* ---- Life of the device ---- */

static void close_device(struct service *s)
{
    if (s->cpu) {
        nkv_cpu_core_close(s->cpu);
        nkv_free(s->cpu);
        nkv_affinity_restore(&s->affinity);
    }
    s->cpu = NULL;
    nkv_region_close(&s->window);
    s->window_bytes = 0;
    nkv_mpi_channel_use(&s->channel, NULL);
}

static int open_device(struct service *s, const struct nkv_mpi_request *request)
{
    struct nkv_cpu_config config = {
        .shape = request->shape, .capacity_bytes = request->bytes, .n_threads = request->n_threads, .node = -1};
    int status;

    if (s->cpu)
        FAIL(NKV_ESTATE, "device mpi:%u is open already", s->job->rank);
    if (request->abi != NKV_DEVICE_ABI)
        FAIL(NKV_ENOTSUP, "rank %u serves device ABI %u, not %u: use the same nearkv everywhere", s->job->rank,
             NKV_DEVICE_ABI, request->abi);
    TRY(nkv_kv_shape_check(&config.shape));
    if (request->bytes > nkv_cpu_available_bytes()) /* memory is committed as it is used: too late to say no */
        FAIL(NKV_ENOMEM, "device mpi:%u is to hold %.1f MiB, but its machine has %.1f MiB of memory left", s->job->rank,
             (double)request->bytes / 0x1p20, (double)nkv_cpu_available_bytes() / 0x1p20);
    TRY(nkv_alloc(1, sizeof *s->cpu, &s->cpu));
    status = nkv_cpu_core_open(s->cpu, &config);
    if (status < 0) {
        close_device(s);
        return status;
    }
    nkv_cpu_bind_thread(s->cpu->binding, 0, s->cpu->n_threads, &s->affinity);
    return 0;
}

static int map_window(struct service *s, uint64_t bytes)
{
    struct nkv_region window;

    if (!s->cpu)
        FAIL(NKV_ESTATE, "device mpi:%u is not open", s->job->rank);
    TRY(nkv_cpu_window_reserve(s->cpu, bytes));
    TRY(nkv_mpi_channel_reserve(&s->channel, bytes + NKV_MPI_FRAME_BYTES));
    TRY(nkv_region_open_sparse(bytes, &window));
    nkv_region_close(&s->window);
    s->window = window;
    s->window_bytes = bytes;
    return 0;
}

/* NULL: the host has offered none, it is not to be reached from here, or the user wants none. */
static struct nkv_mpi_lane *join_lane(const struct nkv_mpi_request *request)
{
    const char *wanted = getenv("NEARKV_MPI_LANE");
    struct nkv_mpi_lane *lane = NULL;

    if (request->lane.nonce && !(wanted && strcmp(wanted, "0") == 0))
        (void)nkv_mpi_lane_join(&request->lane, request->bytes + NKV_MPI_FRAME_BYTES, &lane);
    return lane;
}

static int change_window(struct service *s, const struct nkv_mpi_request *request)
{
    struct nkv_mpi_lane *lane = NULL;
    int status = map_window(s, request->bytes), sent;

    if (status == 0)
        lane = join_lane(request);
    sent = reply(s, NKV_MPI_MAP, status, lane != NULL);
    if (status == 0)
        nkv_mpi_channel_use(&s->channel, lane);
    return sent;
}

static int answer(struct service *s, enum nkv_mpi_kind kind, const struct nkv_mpi_request *request)
{
    switch (kind) {
    case NKV_MPI_BYE:
        close_device(s);
        return 0;
    case NKV_MPI_HELLO:
        return reply(s, kind, open_device(s, request), false);
    case NKV_MPI_MAP:
        return change_window(s, request);
    default:
        return reply(s, NKV_MPI_STAT, 0, false);
    }
}

/* returns: 1: go on, 0: stop, or NKV_EDEVICE. */
static int handle(struct service *s, const char *message, uint64_t bytes)
{
    struct nkv_mpi_head head;
    struct nkv_mpi_request request = {0};
    const char *at = message + sizeof head, *end = message + bytes;

    if (bytes < sizeof head)
        return bad_message(s, "it is too short");
    memcpy(&head, message, sizeof head);
    if (head.magic != NKV_MPI_MAGIC || head.version != NKV_MPI_VERSION)
        return bad_message(s, "it is not of this version of nearkv");
    if (head.kind == NKV_MPI_STOP)
        return 0;
    if (head.kind == NKV_MPI_COMMANDS) {
        TRY(run_commands(s, &head, at, end));
        nkv_mpi_channel_let_go(&s->channel);
        return 1;
    }
    if ((size_t)(end - at) != sizeof request)
        return bad_message(s, "a request has another size");
    memcpy(&request, at, sizeof request);
    nkv_mpi_channel_let_go(&s->channel);
    TRY(answer(s, head.kind, &request));
    return 1;
}

static int serve(struct service *s)
{
    struct nkv_mpi_turn turn;
    int status = 1;

    nkv_mpi_channel_init(&s->channel, s->job, 0, NKV_MPI_TAG_UP, NKV_MPI_TAG_DOWN);
    TRY(nkv_mpi_channel_reserve(&s->channel, NKV_MPI_FRAME_BYTES));
    turn = nkv_mpi_channel_turn(&s->channel);
    while (status > 0) {
        const void *message = NULL;
        int64_t bytes = nkv_mpi_channel_receive(&s->channel, &message);

        if (bytes < 0)
            return (int)bytes;
        if (bytes == 0) {
            nkv_mpi_pause(s->job, &turn);
            continue;
        }
        status = handle(s, message, (uint64_t)bytes);
        turn = nkv_mpi_channel_turn(&s->channel);
    }
    return status;
}

int nkv_mpi_serve(struct nkv_mpi *mpi)
{
    struct service *s;
    int status;

    if (mpi->rank == 0)
        FAIL(NKV_EINVAL, "rank 0 drives the devices: it cannot be one");
    TRY(nkv_alloc(1, sizeof *s, &s));
    s->job = mpi;
    status = serve(s);
    close_device(s);
    nkv_mpi_channel_close(&s->channel);
    nkv_free(s);
    return status;
}
