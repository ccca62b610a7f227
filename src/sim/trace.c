/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A trace as a whole: its files, and what follows from their commands. Sequences become streams; each SELECT is hung on
 * the track of its stream and layer. A TRUNCATE marks the picks that it takes back: a what-if follows the tokens that
 * stayed, a replay everything.
 *
 * A position is recorded when every layer that selects at all has a decode step there. Of each stream the last unbroken
 * run of such positions counts; the gaps before it are chunks of prefill between turns.
 */
#define _POSIX_C_SOURCE 200809L
#include "sim/trace.h"

#include <errno.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"
#include "sim/work.h"

#define MAX_DEVICES 64u
#define MAX_STREAMS 4096u
#define NAME_BYTES  4096u

int sim_trace_grow(void *array, uint32_t n, uint32_t *max, size_t size)
{
    void **old = array, *larger;
    uint32_t room = *max ? 2 * *max : 64;

    if (n < *max)
        return 0;
    if (room < *max)
        FAIL(NKV_ENOMEM, "more than %u commands in a trace", *max);
    TRY(nkv_alloc(room, size, &larger));
    if (n)
        memcpy(larger, *old, n * size);
    nkv_free(*old);
    *old = larger;
    *max = room;
    return 0;
}

int sim_trace_new(const char *name, struct sim_trace **trace_out)
{
    struct sim_trace *trace;
    int status;

    TRY(nkv_alloc(1, sizeof *trace, &trace));
    trace->name = name;
    status = nkv_alloc(MAX_DEVICES + 1, sizeof *trace->capacity, &trace->capacity);
    if (status < 0) {
        nkv_free(trace);
        return status;
    }
    *trace_out = trace;
    return 0;
}

void sim_trace_close(struct sim_trace *trace)
{
    if (!trace)
        return;
    for (uint32_t i = 0; i < trace->n_picks; i++) {
        nkv_free(trace->picks[i].chosen);
        nkv_free(trace->picks[i].scores);
    }
    nkv_free(trace->capacity);
    nkv_free(trace->cmds);
    nkv_free(trace->picks);
    nkv_free(trace->streams);
    nkv_free(trace->tracks);
    nkv_free(trace);
}

/* ---- Streams ---- */

static bool opens(const struct sim_trace_cmd *cmd)
{
    return cmd->res >= 0 && (cmd->op == NKV_OP_SEQ_OPEN || cmd->op == NKV_OP_SEQ_FORK);
}

static int alloc_streams(struct sim_trace *trace)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < trace->n_cmds; i++)
        n += opens(&trace->cmds[i]);
    if (n > MAX_STREAMS)
        FAIL(NKV_EFORMAT, "%s: %u sequences were recorded: at most %u can be read", trace->name, n, MAX_STREAMS);
    TRY(nkv_alloc(n, sizeof *trace->streams, &trace->streams));
    TRY(nkv_alloc((size_t)n * trace->shape.n_layers, sizeof *trace->tracks, &trace->tracks));
    for (uint32_t i = 0; i < n * trace->shape.n_layers; i++)
        trace->tracks[i] = (struct sim_trace_track){SIM_TRACE_NONE, SIM_TRACE_NONE, SIM_TRACE_NONE};
    return 0;
}

/* The stream that a command is of; of equal ids the one opened last. */
static uint32_t stream_of(const struct sim_trace *trace, const struct sim_trace_cmd *cmd)
{
    for (uint32_t i = trace->n_streams; i-- > 0;)
        if (trace->streams[i].open && trace->streams[i].device == cmd->device && trace->streams[i].seq == cmd->seq)
            return i;
    return SIM_TRACE_NONE;
}

static void hang_pick(struct sim_trace *trace, uint32_t stream, const struct sim_trace_cmd *cmd)
{
    struct sim_trace_track *track = sim_trace_track(trace, stream, cmd->layer);

    if (track->first == SIM_TRACE_NONE)
        track->first = cmd->pick;
    else
        trace->picks[track->last].next = cmd->pick;
    track->last = cmd->pick;
}

static void forget_picks(struct sim_trace *trace, uint32_t stream, uint32_t pos)
{
    for (uint32_t layer = 0; layer < trace->shape.n_layers; layer++)
        for (uint32_t i = sim_trace_track(trace, stream, layer)->first; i != SIM_TRACE_NONE; i = trace->picks[i].next)
            trace->picks[i].forgotten |= sim_trace_pick_cmd(trace, i)->pos >= pos;
}

static int follow(struct sim_trace *trace, const struct sim_trace_cmd *cmd)
{
    uint32_t stream = stream_of(trace, cmd);

    if (opens(cmd))
        trace->streams[trace->n_streams++] =
            (struct sim_trace_stream){.device = cmd->device, .seq = cmd->seq, .open = true};
    else if (cmd->pick != SIM_TRACE_NONE && stream == SIM_TRACE_NONE)
        FAIL(NKV_EFORMAT, "%s: a SELECT of sequence %u, which is not open on device %u", trace->name, cmd->seq,
             cmd->device);
    else if (cmd->pick != SIM_TRACE_NONE)
        hang_pick(trace, stream, cmd);
    else if (cmd->op == NKV_OP_SEQ_TRUNCATE && cmd->res >= 0 && stream != SIM_TRACE_NONE)
        forget_picks(trace, stream, cmd->pos);
    else if (cmd->op == NKV_OP_SEQ_CLOSE && cmd->res >= 0 && stream != SIM_TRACE_NONE)
        trace->streams[stream].open = false;
    return 0;
}

/* ---- Positions ---- */

static uint32_t next_decode(const struct sim_trace *trace, uint32_t pick)
{
    while (pick != SIM_TRACE_NONE && (trace->picks[pick].forgotten || sim_trace_pick_cmd(trace, pick)->n_tokens != 1))
        pick = trace->picks[pick].next;
    return pick;
}

/* The last run of consecutive positions of a track. */
static void last_run(const struct sim_trace *trace, const struct sim_trace_track *track, uint32_t *begin, uint32_t *end)
{
    *begin = *end = 0;
    for (uint32_t i = next_decode(trace, track->first); i != SIM_TRACE_NONE;
         i = next_decode(trace, trace->picks[i].next)) {
        uint32_t pos = sim_trace_pick_cmd(trace, i)->pos;

        if (pos != *end)
            *begin = pos;
        *end = pos + 1;
    }
}

static void find_positions(struct sim_trace *trace, uint32_t stream)
{
    struct sim_trace_stream *s = &trace->streams[stream];

    for (uint32_t layer = trace->first_layer; layer < trace->shape.n_layers; layer++) {
        uint32_t begin, end;

        last_run(trace, sim_trace_track(trace, stream, layer), &begin, &end);
        s->begin = layer == trace->first_layer || begin > s->begin ? begin : s->begin;
        s->end = layer == trace->first_layer || end < s->end ? end : s->end;
    }
    if (s->begin > s->end)
        s->begin = s->end;
}

static uint32_t first_layer(const struct sim_trace *trace)
{
    uint32_t first = trace->shape.n_layers;

    for (uint32_t i = 0; i < trace->n_picks; i++) {
        const struct sim_trace_cmd *cmd = sim_trace_pick_cmd(trace, i);

        if (cmd->pick != SIM_TRACE_NONE && cmd->n_tokens == 1 && cmd->layer < first)
            first = cmd->layer;
    }
    return first;
}

int sim_trace_index(struct sim_trace *trace)
{
    TRY(alloc_streams(trace));
    for (uint32_t i = 0; i < trace->n_cmds; i++)
        TRY(follow(trace, &trace->cmds[i]));
    trace->first_layer = first_layer(trace);
    for (uint32_t i = 0; i < trace->n_streams; i++)
        find_positions(trace, i);
    return 0;
}

/* ---- Files ---- */

/* returns: 1; 0: there is no such file; an error. */
static int read_device(struct sim_trace *trace, const char *path)
{
    uint32_t device = trace->n_devices + trace->has_compute;
    FILE *file = fopen(path, "rb");
    int status;

    if (!file && errno == ENOENT)
        return 0;
    if (!file)
        FAIL(NKV_EIO, "%s: cannot open: %s", path, strerror(errno));
    status = sim_trace_read(trace, file, path, device);
    fclose(file);
    return status < 0 ? status : 1;
}

static int read_files(struct sim_trace *trace)
{
    char path[NAME_BYTES];
    int found = read_device(trace, trace->name);

    TRY(found);
    trace->n_devices = (uint32_t)found;
    for (uint32_t i = 0; trace->n_devices == i; i++) { /* NAME.0 and so on, up to the first that is not there */
        if (i == MAX_DEVICES)
            FAIL(NKV_EFORMAT, "%s: more than %u devices", trace->name, MAX_DEVICES);
        snprintf(path, sizeof path, "%s.%u", trace->name, i);
        found = read_device(trace, path);
        TRY(found);
        trace->n_devices += (uint32_t)found;
    }
    if (trace->n_devices == 0)
        FAIL(NKV_ENOENT, "%s: no such trace (nor %s.0): nearkv run --trace FILE records one", trace->name, trace->name);
    snprintf(path, sizeof path, "%s.compute", trace->name);
    found = read_device(trace, path);
    TRY(found);
    trace->has_compute = found;
    return 0;
}

int sim_trace_open(const char *name, struct sim_trace **trace_out)
{
    struct sim_trace *trace;
    int status;

    if (strlen(name) >= NAME_BYTES - 16)
        FAIL(NKV_EINVAL, "the name of a trace has at most %u letters", NAME_BYTES - 16);
    TRY(sim_trace_new(name, &trace));
    status = read_files(trace);
    if (status == 0)
        status = sim_trace_index(trace);
    if (status < 0) {
        sim_trace_close(trace);
        return status;
    }
    *trace_out = trace;
    return 0;
}

/* ---- What it holds ---- */

/* The stream with the most steps; of equal ones the first. */
static const struct sim_trace_stream *longest(const struct sim_trace *trace)
{
    const struct sim_trace_stream *best = NULL;

    for (uint32_t i = 0; i < trace->n_streams; i++) {
        const struct sim_trace_stream *s = &trace->streams[i];

        if (s->end > s->begin && (!best || s->end - s->begin > best->end - best->begin))
            best = s;
    }
    return best;
}

int sim_trace_describe(const struct sim_trace *trace, struct nkv_sim_trace_info *info_out)
{
    const struct sim_trace_stream *s = longest(trace);
    const struct sim_trace_track *track;
    const struct sim_trace_cmd *cmd;

    if (!s)
        FAIL(NKV_EFORMAT, "%s: no decode step that selects pages is recorded (mode full? recall without %s.compute?)",
             trace->name, trace->name);
    track = sim_trace_track(trace, (uint32_t)(s - trace->streams), trace->first_layer);
    cmd = sim_trace_pick_cmd(trace, track->last);
    *info_out = (struct nkv_sim_trace_info){
        .shape = trace->shape,
        .granularity = cmd->flags & NKV_PER_HEAD ? NKV_SELECT_KV_HEAD : NKV_SELECT_LAYER,
        .context_tokens = s->end,
        .n_steps = s->end - s->begin,
        .n_run_steps = s->end - s->begin > SIM_WARM_STEPS ? s->end - s->begin - SIM_WARM_STEPS : 0,
        .budget_tokens = cmd->n_pages * trace->shape.page_tokens,
        .sink_pages = cmd->sink,
        .recent_pages = cmd->recent,
        .has_scores = cmd->flags & NKV_SCORES,
    };
    for (uint32_t i = 0; i < trace->n_streams; i++)
        info_out->n_sequences += trace->streams[i].end > trace->streams[i].begin;
    return 0;
}

int nkv_sim_trace_info(const char *trace, struct nkv_sim_trace_info *info_out)
{
    struct sim_trace *t = NULL;
    int status;

    TRY(sim_trace_open(trace, &t));
    status = sim_trace_describe(t, info_out);
    sim_trace_close(t);
    return status;
}
