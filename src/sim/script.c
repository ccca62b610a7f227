/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From commands back to calls. Commands of all devices are put in the order of their submission; then
 *
 *   SEQ_OPEN, FORK, TRUNCATE, CLOSE on a PNM device   are calls of their own; those on the compute device, and the
 * READs and WRITEs of a mirror, follow from them APPEND on a PNM device                            is an item of an
 * attend call any command of the plan                           tells that the item's sequence has a query
 *
 * The runtime sends a call's commands from one lane (user_data, upper half) with their numbers in the plan (lower
 * half). A device gets the APPENDs of a call first, in the order of the plan, and no number is used twice; an APPEND
 * that cannot be of the lane's call under way begins its next one. Two tickets that were in flight at once are two
 * lanes: their calls come out one after the other, in the order in which they began.
 */
#include "sim/script.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"

#define N_LANES   4u
#define N_DEVICES 65u
#define N_SEEN    4096u

/* The call that a lane is at. */
struct lane {
    bool begun;
    uint32_t call;
    bool beyond[N_DEVICES];     /* the device has got more than APPENDs */
    int64_t last[N_DEVICES];    /* number in the plan of its latest APPEND */
    uint64_t seen[N_SEEN / 64]; /* numbers in the plan that were used, those below N_SEEN */
};

struct writer {
    const struct sim_trace *trace;
    struct sim_script *script;
    struct lane lanes[N_LANES];
};

static int add_event(struct writer *w, struct sim_event event)
{
    struct sim_script *s = w->script;

    TRY(sim_trace_grow(&s->events, s->n_events, &s->max_events, sizeof *s->events));
    s->events[s->n_events++] = event;
    return 0;
}

/* ---- Sequences ---- */

static uint32_t actor_of(const struct sim_script *s, uint32_t id)
{
    for (uint32_t i = s->n_actors; i-- > 0;)
        if (s->actors[i].id == id || s->actors[i].mirror_id == id || s->actors[i].slots_id == id)
            return i;
    return SIM_TRACE_NONE;
}

static int find_actor(const struct writer *w, uint32_t id, uint32_t *actor_out)
{
    *actor_out = actor_of(w->script, id);
    if (*actor_out == SIM_TRACE_NONE)
        FAIL(NKV_EFORMAT, "%s: a command for sequence %u, which was not opened", w->trace->name, id);
    return 0;
}

static int add_actor(struct writer *w, const struct sim_trace_cmd *cmd)
{
    struct sim_script *s = w->script;
    struct sim_event event = {.kind = cmd->op == NKV_OP_SEQ_FORK ? SIM_FORK : SIM_OPEN, .n_tokens = cmd->pos};

    if (actor_of(s, cmd->seq) != SIM_TRACE_NONE || cmd->seq == 0)
        FAIL(NKV_EFORMAT, "%s: sequence %u is opened again: the devices served several contexts", w->trace->name,
             cmd->seq);
    if (event.kind == SIM_FORK)
        TRY(find_actor(w, cmd->arg, &event.parent));
    TRY(sim_trace_grow(&s->actors, s->n_actors, &s->max_actors, sizeof *s->actors));
    event.seq = s->n_actors;
    s->actors[s->n_actors++] = (struct sim_actor){.id = cmd->seq};
    return add_event(w, event);
}

/* What a sequence opens on the compute device comes right behind its opening at home. */
static int add_compute_part(struct writer *w, const struct sim_trace_cmd *cmd)
{
    struct sim_script *s = w->script;

    if (s->n_actors == 0)
        FAIL(NKV_EFORMAT, "%s: the compute device opens sequence %u before any other device does", w->trace->name,
             cmd->seq);
    if (cmd->flags & NKV_SLOTS)
        s->actors[s->n_actors - 1].slots_id = cmd->seq;
    else
        s->actors[s->n_actors - 1].mirror_id = cmd->seq;
    return 0;
}

static int end_actor(struct writer *w, const struct sim_trace_cmd *cmd)
{
    struct sim_event event = {.kind = cmd->op == NKV_OP_SEQ_CLOSE ? SIM_CLOSE : SIM_TRUNCATE, .n_tokens = cmd->pos};

    TRY(find_actor(w, cmd->seq, &event.seq));
    w->script->actors[event.seq].closed |= event.kind == SIM_CLOSE;
    return add_event(w, event);
}

/* ---- Calls ---- */

static bool in_call(const struct sim_script *s, uint32_t call, uint32_t seq)
{
    for (uint32_t i = s->n_items; i-- > 0 && s->items[i].call >= call;)
        if (s->items[i].call == call && s->items[i].seq == seq)
            return true;
    return false;
}

/* A call's numbers begin at 0 and have no gaps, so those of the next one were used. */
static bool was_seen(const struct lane *lane, uint32_t number)
{
    return number < N_SEEN && lane->seen[number / 64] >> number % 64 & 1;
}

static void see(struct lane *lane, uint32_t number)
{
    if (number < N_SEEN)
        lane->seen[number / 64] |= UINT64_C(1) << number % 64;
}

static bool begins_call(const struct writer *w, const struct lane *lane, const struct sim_trace_cmd *cmd, uint32_t seq)
{
    return !lane->begun || w->script->events[lane->call].layer != cmd->layer || lane->beyond[cmd->device] ||
           (int64_t)(uint32_t)cmd->user_data <= lane->last[cmd->device] || was_seen(lane, (uint32_t)cmd->user_data) ||
           in_call(w->script, lane->call, seq);
}

static int add_item(struct writer *w, struct lane *lane, const struct sim_trace_cmd *cmd)
{
    struct sim_script *s = w->script;
    uint32_t seq;

    TRY(find_actor(w, cmd->seq, &seq));
    if (begins_call(w, lane, cmd, seq)) {
        *lane = (struct lane){.begun = true, .call = s->n_events};
        memset(lane->last, 0xff, sizeof lane->last);
        TRY(add_event(w, (struct sim_event){.kind = SIM_CALL, .layer = cmd->layer}));
    }
    TRY(sim_trace_grow(&s->items, s->n_items, &s->max_items, sizeof *s->items));
    s->items[s->n_items++] =
        (struct sim_item){.call = lane->call, .index = (uint32_t)cmd->user_data, .seq = seq, .n_tokens = cmd->n_tokens};
    s->events[lane->call].n_items++;
    lane->last[cmd->device] = (int64_t)(uint32_t)cmd->user_data;
    return 0;
}

static int mark_query(struct writer *w, struct lane *lane, const struct sim_trace_cmd *cmd)
{
    struct sim_script *s = w->script;
    uint32_t seq;

    TRY(find_actor(w, cmd->seq, &seq));
    for (uint32_t i = s->n_items; lane->begun && i-- > 0 && s->items[i].call >= lane->call;)
        if (s->items[i].call == lane->call && s->items[i].seq == seq)
            s->items[i].attends = true;
    lane->beyond[cmd->device] = true;
    return 0;
}

static int add_planned(struct writer *w, const struct sim_trace_cmd *cmd)
{
    bool compute = cmd->device == w->trace->n_devices;
    struct lane *lane;

    if (cmd->user_data >> 32 >= N_LANES)
        FAIL(NKV_EFORMAT, "%s: sequence %u, position %u: the tag of no command of a context", w->trace->name, cmd->seq,
             cmd->pos);
    lane = &w->lanes[cmd->user_data >> 32];
    if (cmd->op == NKV_OP_APPEND && !compute)
        TRY(add_item(w, lane, cmd));
    see(lane, (uint32_t)cmd->user_data);
    if (cmd->op == NKV_OP_APPEND)
        return 0;
    w->script->scores |= !compute && cmd->flags & NKV_SCORES;
    return mark_query(w, lane, cmd);
}

/* ---- The whole ---- */

static int add_cmd(struct writer *w, const struct sim_trace_cmd *cmd)
{
    bool compute = cmd->device == w->trace->n_devices;

    if (cmd->res < 0)
        FAIL(NKV_EFORMAT, "%s: device %u failed a command of sequence %u (%s): only what succeeded can be replayed",
             w->trace->name, cmd->device, cmd->seq, nkv_status_name(cmd->res));
    if (cmd->user_data != UINT64_MAX)
        return add_planned(w, cmd);
    if (cmd->flags & NKV_NAMED && cmd->op != NKV_OP_SEQ_CLOSE)
        FAIL(NKV_ENOTSUP, "%s: sequence %u was resumed: what it held before is not in the trace", w->trace->name,
             cmd->seq);
    switch (cmd->op) {
    case NKV_OP_SEQ_OPEN:
        return compute ? add_compute_part(w, cmd) : add_actor(w, cmd);
    case NKV_OP_SEQ_FORK:
        return add_actor(w, cmd);
    case NKV_OP_SEQ_TRUNCATE:
    case NKV_OP_SEQ_CLOSE:
        return compute ? 0 : end_actor(w, cmd);
    case NKV_OP_COMPUTE:
        FAIL(NKV_EFORMAT, "%s: FC work was announced (nkv_fc), which a trace does not tell in full", w->trace->name);
    default:
        return 0;
    }
}

static int by_order(const void *a, const void *b)
{
    const struct sim_trace_cmd *x = *(const struct sim_trace_cmd *const *)a,
                               *y = *(const struct sim_trace_cmd *const *)b;

    if (x->order != y->order)
        return x->order < y->order ? -1 : 1;
    return (x > y) - (x < y);
}

static int by_call(const void *a, const void *b)
{
    const struct sim_item *x = a, *y = b;

    if (x->call != y->call)
        return x->call < y->call ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

static void sort_items(struct sim_script *s)
{
    if (s->n_items > 1)
        qsort(s->items, s->n_items, sizeof *s->items, by_call);
    for (uint32_t i = s->n_items; i-- > 0;)
        s->events[s->items[i].call].first = i;
}

static int write_script(struct writer *w, const struct sim_trace_cmd **sorted)
{
    const struct sim_trace *trace = w->trace;

    for (uint32_t i = 0; i < trace->n_cmds; i++) {
        sorted[i] = &trace->cmds[i];
        if (trace->cmds[i].order == UINT64_MAX && trace->n_devices + trace->has_compute > 1)
            FAIL(NKV_EFORMAT, "%s: commands have no order, without which several devices cannot be replayed",
                 trace->name);
    }
    if (trace->n_cmds > 1)
        qsort(sorted, trace->n_cmds, sizeof *sorted, by_order);
    for (uint32_t i = 0; i < trace->n_cmds; i++)
        TRY(add_cmd(w, sorted[i]));
    sort_items(w->script);
    return 0;
}

int sim_script_open(const struct sim_trace *trace, struct sim_script *script_out)
{
    struct sim_script script = {0};
    struct writer w = {.trace = trace, .script = &script};
    const struct sim_trace_cmd **sorted;
    int status;

    TRY(nkv_alloc(trace->n_cmds, sizeof *sorted, &sorted));
    status = write_script(&w, sorted);
    nkv_free(sorted);
    if (status < 0) {
        sim_script_close(&script);
        return status;
    }
    *script_out = script;
    return 0;
}

void sim_script_close(struct sim_script *script)
{
    nkv_free(script->events);
    nkv_free(script->items);
    nkv_free(script->actors);
}
