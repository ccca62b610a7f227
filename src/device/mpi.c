/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "mpi:RANK": a device that another process of the MPI job is (nkv_mpi_serve). Commands and completions are the same
 * records as everywhere; what is different is that there is no memory between the two. The window is doubled, and a
 * message carries the operands that the other side's copy lacks.
 *
 * Invariant: for every command that is not reaped yet, both windows agree on what it reads and writes, as of its turn.
 * The host leaves these bytes alone until it reaps, so an operand that lies within one of them is there already, or
 * will be when its turn comes: the list that a SELECT writes for an ATTEND behind it never travels down, q for both of
 * them travels once. Sending it all the same would not only be waste: the host's copy of that list is still the old
 * one.
 *
 * One message goes down for a submit. Completions come up together with what their commands wrote, as few messages as
 * the other side's rule makes of them (mpi_serve.c). A window in memory that both map was rejected, also for ranks of
 * one machine: messages are the same whichever way they go (mpi_channel.c), so what is counted and tested holds for
 * both; the copies that it would spare take a few us of a step of one layer.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/backend.h"
#include "device/mpi_channel.h"
#include "device/mpi_wire.h"
#include "device/operands.h"

struct flight {
    struct nkv_cmd cmd;
    uint32_t n_operands; /* read and written */
    struct nkv_operand operands[2 * NKV_MAX_OPERANDS];
    struct nkv_cqe cqe;
    char text[NKV_MPI_TEXT_BYTES]; /* of a failure */
};

struct mpi_device {
    struct nkv_device device; /* first */
    struct nkv_mpi *job;
    int peer;
    struct nkv_device_caps caps;
    struct nkv_region window;
    uint64_t window_bytes;
    struct nkv_mpi_channel channel;
    uint32_t submitted, completed, reaped; /* modulo 2^32; number n is in flights[n % NKV_MPI_ENTRIES] */
    struct flight *flights;
    bool answered;
    struct nkv_mpi_reply reply;
    char lost[256]; /* why the device is gone; "": it is not */
};

/* A message of commands while it is put together. */
struct letter {
    char *base, *data; /* data: where the next operand's bytes go */
    struct nkv_mpi_head *head;
    struct nkv_mpi_segment segments[NKV_MPI_SEGMENTS];
    uint64_t operand_bytes;
};

static struct mpi_device *mpi_of(struct nkv_device *device)
{
    return (struct mpi_device *)(void *)device;
}

static struct flight *flight_at(const struct mpi_device *m, uint32_t number)
{
    return &m->flights[number % NKV_MPI_ENTRIES];
}

static int fail_lost(const struct mpi_device *m)
{
    FAIL(NKV_EDEVICE, "device %s at mpi:%d is gone: %s", m->caps.name, m->peer, m->lost);
}

/* After a failure that ends the connection. The message becomes the reason. */
static int lose(struct mpi_device *m)
{
    if (!*m->lost)
        snprintf(m->lost, sizeof m->lost, "%s", nkv_last_error());
    return fail_lost(m);
}

/* ---- Up ---- */

static uint64_t *counter_of(struct nkv_mpi_traffic *traffic, enum nkv_operand_kind kind, bool down)
{
    switch (kind) {
    case NKV_OPERAND_QKV:
        return &traffic->qkv_bytes;
    case NKV_OPERAND_OUTPUT:
        return &traffic->output_bytes;
    case NKV_OPERAND_SCALES:
        return &traffic->scale_bytes;
    case NKV_OPERAND_LISTS:
        return down ? &traffic->list_down_bytes : &traffic->list_up_bytes;
    default:
        return down ? &traffic->page_down_bytes : &traffic->page_up_bytes;
    }
}

/* Puts what a command wrote into the window. returns: where the next one's begins; NULL: the message is too short. */
static const char *take_outputs(struct mpi_device *m, const struct flight *f, const char *at, const char *end)
{
    struct nkv_operand outs[NKV_MAX_OPERANDS];
    uint32_t n = nkv_operands_out(&m->caps.shape, &f->cmd, f->cqe.res, m->window_bytes, outs);

    for (uint32_t i = 0; i < n; i++) {
        if (outs[i].bytes > (uint64_t)(end - at))
            return NULL;
        memcpy((char *)m->window.base + outs[i].offset, at, outs[i].bytes);
        *counter_of(&m->job->traffic, outs[i].kind, false) += outs[i].bytes;
        at += outs[i].bytes;
    }
    return at;
}

static int take_completions(struct mpi_device *m, uint32_t n, const char *at, const char *end)
{
    const struct nkv_cqe *cqes = (const struct nkv_cqe *)(const void *)at;
    const char *texts = at + (size_t)n * sizeof *cqes, *data = texts;

    if (n > m->submitted - m->completed || texts > end)
        FAIL(NKV_EDEVICE, "it completed %u commands, %u are in flight", n, m->submitted - m->completed);
    for (uint32_t i = 0; i < n; i++)
        data += cqes[i].res < 0 ? NKV_MPI_TEXT_BYTES : 0;
    m->job->traffic.n_up++;
    m->job->traffic.control_bytes += (uint64_t)(data - at) + sizeof(struct nkv_mpi_head);
    for (uint32_t i = 0; i < n; i++) {
        struct flight *f = flight_at(m, m->completed);

        f->cqe = cqes[i];
        if (f->cqe.res < 0 && texts + NKV_MPI_TEXT_BYTES <= end) {
            memcpy(f->text, texts, NKV_MPI_TEXT_BYTES - 1);
            texts += NKV_MPI_TEXT_BYTES;
        }
        data = data <= end ? take_outputs(m, f, data, end) : NULL;
        if (!data)
            FAIL(NKV_EDEVICE, "it sent completions without what their commands wrote");
        m->completed++;
    }
    return 0;
}

static int take_message(struct mpi_device *m, const char *message, uint64_t bytes)
{
    struct nkv_mpi_head head = {0};
    const char *at = message + sizeof head, *end = message + bytes;

    if (bytes >= sizeof head)
        memcpy(&head, message, sizeof head);
    if (head.magic != NKV_MPI_MAGIC || head.version != NKV_MPI_VERSION)
        FAIL(NKV_EDEVICE, "it sent a message that is none of nearkv's, version %u", NKV_MPI_VERSION);
    if (head.kind == NKV_MPI_COMMANDS)
        return take_completions(m, head.n_records, at, end);
    if ((size_t)(end - at) != sizeof m->reply)
        FAIL(NKV_EDEVICE, "it sent an answer of %zu bytes instead of %zu", (size_t)(end - at), sizeof m->reply);
    memcpy(&m->reply, at, sizeof m->reply);
    m->reply.text[sizeof m->reply.text - 1] = m->reply.name[sizeof m->reply.name - 1] = '\0';
    m->answered = true;
    return 0;
}

/* Takes what has arrived. returns: whether anything had, or NKV_EDEVICE. */
static int progress(struct mpi_device *m)
{
    const void *message = NULL;
    int64_t bytes = nkv_mpi_channel_receive(&m->channel, &message);

    if (bytes == 0)
        return 0;
    if (bytes < 0 || take_message(m, message, (uint64_t)bytes) < 0)
        return lose(m);
    nkv_mpi_channel_let_go(&m->channel);
    return 1;
}

/* ---- Down ---- */

/* A buffer for a message. The other side may wait for us to take its own, hence the progress. */
static int take_buffer(struct mpi_device *m, enum nkv_mpi_kind kind, void **buffer_out)
{
    struct nkv_mpi_turn turn = nkv_mpi_channel_turn(&m->channel);
    int free;

    while ((free = nkv_mpi_channel_take(&m->channel, kind, buffer_out)) == 0) {
        int came = progress(m);

        TRY(came);
        if (!came)
            nkv_mpi_pause(m->job, &turn);
    }
    return free < 0 ? lose(m) : 0;
}

/* Sends a request and, unless reply_out is NULL, waits for its answer. */
static int ask(struct mpi_device *m, enum nkv_mpi_kind kind, const struct nkv_mpi_request *request,
               struct nkv_mpi_reply *reply_out)
{
    struct nkv_mpi_head *head = NULL;
    struct nkv_mpi_turn turn = nkv_mpi_first_turn(m->job);

    if (*m->lost)
        return fail_lost(m);
    TRY(take_buffer(m, kind, (void **)&head));
    *head = nkv_mpi_head(kind);
    memcpy(head + 1, request, sizeof *request);
    m->answered = false;
    if (nkv_mpi_channel_send(&m->channel, sizeof *head + sizeof *request) < 0)
        return lose(m);
    while (reply_out && !m->answered) {
        int came = progress(m);

        TRY(came);
        if (!came)
            nkv_mpi_pause(m->job, &turn);
    }
    if (reply_out && m->reply.status < 0)
        FAIL(m->reply.status, "%s", m->reply.text);
    if (reply_out)
        *reply_out = m->reply;
    return 0;
}

static int add_segment(struct mpi_device *m, struct letter *letter, uint64_t offset, uint64_t bytes,
                       enum nkv_operand_kind kind)
{
    if (letter->head->n_segments == NKV_MPI_SEGMENTS)
        FAIL(NKV_ENOSPC, "more than %u operands in one submit", NKV_MPI_SEGMENTS);
    letter->segments[letter->head->n_segments++] = (struct nkv_mpi_segment){offset, bytes};
    memcpy(letter->data, (const char *)m->window.base + offset, bytes);
    letter->data += bytes;
    letter->operand_bytes += bytes;
    *counter_of(&m->job->traffic, kind, true) += bytes;
    return 0;
}

/* Sends the parts of [offset, offset + bytes) that no command in flight, from number `from` on, reads or writes. */
static int add_missing(struct mpi_device *m, struct letter *letter, struct nkv_operand part, uint32_t from)
{
    for (; from != m->submitted; from++) {
        const struct flight *f = flight_at(m, from);

        for (uint32_t i = 0; i < f->n_operands; i++) {
            const struct nkv_operand *have = &f->operands[i];
            uint64_t end = part.offset + part.bytes, have_end = have->offset + have->bytes;

            if (have->offset >= end || have_end <= part.offset)
                continue;
            if (have->offset > part.offset) {
                struct nkv_operand before = {part.offset, have->offset - part.offset, part.kind};

                TRY(add_missing(m, letter, before, from));
            }
            if (have_end >= end)
                return 0;
            part.offset = have_end;
            part.bytes = end - have_end;
        }
    }
    return add_segment(m, letter, part.offset, part.bytes, part.kind);
}

static int add_command(struct mpi_device *m, struct letter *letter, const struct nkv_cmd *cmd)
{
    struct flight *f = flight_at(m, m->submitted);
    struct nkv_operand ins[NKV_MAX_OPERANDS];
    uint32_t n = nkv_operands_in(&m->caps.shape, cmd, m->window_bytes, ins);

    for (uint32_t i = 0; i < n; i++)
        TRY(add_missing(m, letter, ins[i], m->reaped));
    f->cmd = *cmd;
    f->n_operands = n + nkv_operands_out(&m->caps.shape, cmd, NKV_RES_UNKNOWN, m->window_bytes, f->operands + n);
    memcpy(f->operands, ins, n * sizeof *ins);
    *f->text = '\0';
    if (cmd->op == NKV_OP_APPEND)
        m->job->traffic.token_layers += cmd->n_tokens;
    m->submitted++;
    return 0;
}

/* The segments' bytes are put behind room for as many segments as there may be; then the gap is closed. */
static int write_letter(struct mpi_device *m, struct letter *letter, const struct nkv_cmd *cmds, uint32_t n)
{
    uint64_t table = sizeof *letter->head + n * sizeof *cmds;
    char *data = letter->base + table + sizeof letter->segments;

    letter->head = (struct nkv_mpi_head *)(void *)letter->base;
    *letter->head = nkv_mpi_head(NKV_MPI_COMMANDS);
    letter->head->n_records = n;
    memcpy(letter->head + 1, cmds, n * sizeof *cmds);
    letter->data = data;
    for (uint32_t i = 0; i < n; i++)
        TRY(add_command(m, letter, &cmds[i]));
    memcpy(letter->base + table, letter->segments, letter->head->n_segments * sizeof *letter->segments);
    table += letter->head->n_segments * sizeof *letter->segments;
    memmove(letter->base + table, data, letter->operand_bytes);
    m->job->traffic.n_down++;
    m->job->traffic.control_bytes += table;
    return nkv_mpi_channel_send(&m->channel, table + letter->operand_bytes);
}

static int mpi_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    struct mpi_device *m = mpi_of(device);
    struct letter letter = {0};
    uint32_t submitted = m->submitted;
    int status;

    if (*m->lost)
        return fail_lost(m);
    if (n > NKV_MPI_ENTRIES - (m->submitted - m->reaped))
        FAIL(NKV_ENOSPC, "%u commands, but the queue has %u free entries", n,
             NKV_MPI_ENTRIES - (m->submitted - m->reaped));
    if (n == 0)
        return 0;
    TRY(take_buffer(m, NKV_MPI_COMMANDS, (void **)&letter.base));
    status = write_letter(m, &letter, cmds, n);
    if (status == NKV_EDEVICE)
        return lose(m);
    if (status < 0)
        m->submitted = submitted;
    return status;
}

/* Waits until n completions are there. returns: 0 or NKV_EDEVICE. */
static int await(struct mpi_device *m, uint32_t n)
{
    struct nkv_mpi_turn turn = nkv_mpi_channel_turn(&m->channel);

    while (m->completed - m->reaped < n) {
        int came = *m->lost ? fail_lost(m) : progress(m);

        TRY(came);
        if (!came)
            nkv_mpi_pause(m->job, &turn);
    }
    return 0;
}

static int mpi_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    struct mpi_device *m = mpi_of(device);
    uint32_t n = 0, n_in_flight = m->submitted - m->reaped;

    if (min_n > max_n || min_n > n_in_flight)
        FAIL(NKV_EINVAL, "cannot wait for %u completions: %u commands are in flight, and there is room for %u", min_n,
             n_in_flight, max_n);
    TRY(await(m, min_n));
    while (m->completed - m->reaped < max_n && !*m->lost && progress(m) > 0)
        continue;
    for (; n < max_n && m->reaped != m->completed; n++) {
        const struct flight *f = flight_at(m, m->reaped++);

        cqes_out[n] = f->cqe;
        if (f->cqe.res < 0)
            nkv_fail(f->cqe.res, "%s", f->text);
    }
    return (int)n;
}

/* ---- The rest ---- */

static int mpi_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    *caps_out = mpi_of(device)->caps;
    return 0;
}

/* Where both sides are on one machine, messages are to go through memory. What fails here leaves them to MPI. */
static struct nkv_mpi_lane *make_lane(const struct mpi_device *m, uint64_t message_bytes,
                                      struct nkv_mpi_lane_place *place_out)
{
    struct nkv_mpi_lane *lane = NULL;

    if (nkv_mpi_is_near(m->job, (uint32_t)m->peer))
        (void)nkv_mpi_lane_make(message_bytes, &lane, place_out);
    return lane;
}

/* Tells the other side of a window of so many bytes, and changes over to the lane if it says so. */
static int ask_map(struct mpi_device *m, uint64_t bytes)
{
    struct nkv_mpi_request request = {.bytes = bytes};
    struct nkv_mpi_lane *lane = make_lane(m, bytes + NKV_MPI_FRAME_BYTES, &request.lane);
    struct nkv_mpi_reply reply;
    int status = ask(m, NKV_MPI_MAP, &request, &reply);

    nkv_mpi_lane_hide(&request.lane);
    if (status < 0 || !reply.has_lane) {
        nkv_mpi_lane_close(lane);
        lane = NULL;
    }
    if (status == 0)
        nkv_mpi_channel_use(&m->channel, lane);
    return status;
}

static int mpi_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    struct mpi_device *m = mpi_of(device);
    struct nkv_region window;
    int status;

    bytes = nkv_align64(bytes);
    if (m->submitted != m->reaped)
        FAIL(NKV_ESTATE, "the window cannot grow while %u commands are in flight: reap them first",
             m->submitted - m->reaped);
    TRY(nkv_mpi_channel_reserve(&m->channel, bytes + NKV_MPI_FRAME_BYTES));
    TRY(nkv_region_open_sparse(bytes, &window));
    status = ask_map(m, bytes);
    if (status < 0) {
        nkv_region_close(&window);
        return status;
    }
    nkv_region_close(&m->window);
    m->window = window;
    m->window_bytes = bytes;
    *window_out = window.base;
    return 0;
}

static int mpi_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    struct nkv_mpi_reply reply;

    TRY(ask(mpi_of(device), NKV_MPI_STAT, &(struct nkv_mpi_request){0}, &reply));
    *stat_out = reply.stat;
    return 0;
}

static void free_parts(struct mpi_device *m)
{
    m->job->is_open[m->peer] = false;
    nkv_mpi_channel_close(&m->channel);
    nkv_region_close(&m->window);
    nkv_free(m->flights);
    nkv_free(m);
}

static void mpi_close(struct nkv_device *device)
{
    struct mpi_device *m = mpi_of(device);

    (void)await(m, m->submitted - m->reaped);
    (void)ask(m, NKV_MPI_BYE, &(struct nkv_mpi_request){0}, NULL);
    free_parts(m);
}

static const struct nkv_device_ops mpi_ops = {
    .abi = NKV_DEVICE_ABI,
    .backend = "mpi",
    .caps = mpi_caps,
    .map = mpi_map,
    .submit = mpi_submit,
    .reap = mpi_reap,
    .stat = mpi_stat,
    .close = mpi_close,
};

static int say_hello(struct mpi_device *m, const struct nkv_device_config *config)
{
    struct nkv_mpi_request hello = {
        .abi = NKV_DEVICE_ABI, .n_threads = config->n_threads, .bytes = config->capacity_bytes, .shape = config->shape};
    struct nkv_mpi_reply reply;

    TRY(nkv_alloc(NKV_MPI_ENTRIES, sizeof *m->flights, &m->flights));
    TRY(nkv_mpi_channel_reserve(&m->channel, NKV_MPI_FRAME_BYTES));
    TRY(ask(m, NKV_MPI_HELLO, &hello, &reply));
    m->caps = (struct nkv_device_caps){.size = sizeof m->caps,
                                       .capacity_bytes = reply.capacity_bytes,
                                       .n_threads = reply.n_threads,
                                       .shape = config->shape};
    memcpy(m->caps.name, reply.name, sizeof m->caps.name);
    return 0;
}

static int parse_rank(const char *args, const struct nkv_mpi *job, int *rank_out)
{
    char *end;
    unsigned long rank = strtoul(args, &end, 10);

    if (end == args || *end || *args == '-' || *args == '+' || rank >= job->size || rank == job->rank)
        FAIL(NKV_EINVAL, "device mpi:%.32s: give the number of another rank of the job's %u, as in mpi:1", args,
             job->size);
    *rank_out = (int)rank;
    return 0;
}

int nkv_mpi_device_open(const char *args, const struct nkv_device_config *config, struct nkv_device **device_out)
{
    struct nkv_mpi *job = nkv_mpi_current();
    struct mpi_device *m;
    int status, peer = 0;

    if (!job)
        FAIL(NKV_ESTATE, "device mpi:%.32s: this process has joined no MPI job: start it with mpirun", args);
    if (config->memory)
        FAIL(NKV_ENOTSUP, "device mpi:%.32s: its pages are in its process' own memory, not in %s", args,
             config->memory);
    TRY(parse_rank(args, job, &peer));
    if (job->is_open[peer])
        FAIL(NKV_ESTATE, "device mpi:%d is open already: close it first", peer);
    TRY(nkv_alloc(1, sizeof *m, &m));
    m->device.ops = &mpi_ops;
    m->job = job;
    m->peer = peer;
    job->is_open[peer] = true;
    snprintf(m->caps.name, sizeof m->caps.name, "rank%d", peer);
    nkv_mpi_channel_init(&m->channel, job, peer, NKV_MPI_TAG_DOWN, NKV_MPI_TAG_UP);
    status = say_hello(m, config);
    if (status < 0) {
        free_parts(m);
        return status;
    }
    *device_out = &m->device;
    return 0;
}
