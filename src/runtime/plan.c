/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lane's plan: every command of one attend call, in an order that depends on the items and on what was selected and
 * on nothing else. Commands are planned first and submitted when their operands exist; a failed work gives up what it
 * has not submitted.
 *
 * The plan is logged when the outputs are delivered, not when a command is submitted: submission follows completions
 * of several devices, whose order depends on their speed. Lines carry neither times nor window offsets.
 */
#include "runtime/runtime.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int32_t plan_add(struct nkv_ticket *lane, uint32_t work, enum role role, struct port *port, struct nkv_cmd cmd,
                 int32_t after)
{
    uint32_t index = lane->n_planned++;

    assert(index < lane->max_planned);
    cmd.user_data = (uint64_t)lane->index << 32 | index;
    cmd.layer = (uint16_t)lane->layer;
    lane->plan[index] = (struct planned){
        .cmd = cmd, .work = work, .port = (uint16_t)port->index, .role = (uint8_t)role, .after = after};
    lane->works[work].waiting[role]++;
    lane->works[work].last[role] = (int32_t)index;
    return (int32_t)index;
}

/* `after` counts back in the queue, across whatever other lanes have put between. */
static uint32_t queue_distance(const struct nkv_ticket *lane, const struct planned *planned, uint64_t number)
{
    const struct planned *needed = planned->after < 0 ? NULL : &lane->plan[planned->after];

    if (!needed || needed->port != planned->port)
        return 0;
    return (uint32_t)(number - needed->number);
}

void plan_submit(struct nkv_ticket *lane, int32_t index)
{
    struct nkv_context *context = lane->context;
    struct planned *planned = &lane->plan[index];
    struct port *port = &context->ports[planned->port];
    struct work *work = &lane->works[planned->work];

    if (port->n_staged == STAGED_COMMANDS)
        port_flush(context, port);
    if (port->status < 0) {
        work_fail(lane, planned->work, (uint32_t)index, port->status, "%s", port->error);
        return;
    }
    if (work->status < 0) { /* maybe just now: making room in the queue reaps completions */
        plan_cancel(lane, planned->work);
        return;
    }
    work->waiting[planned->role]--;
    work->in_flight[planned->role]++;
    planned->submitted = true;
    planned->number = port->n_queued;
    planned->cmd.after = queue_distance(lane, planned, planned->number);
    port_stage(context, port, &planned->cmd);
}

bool plan_in_flight(const struct nkv_ticket *lane, uint32_t index, const struct port *port)
{
    const struct planned *planned = index < lane->n_planned ? &lane->plan[index] : NULL;

    return planned && planned->port == port->index && planned->submitted && !planned->completed;
}

void plan_complete(struct nkv_ticket *lane, uint32_t index, const struct nkv_cqe *cqe)
{
    struct planned *planned = &lane->plan[index];
    struct work *work = &lane->works[planned->work];
    const struct port *port = &lane->context->ports[planned->port];

    planned->res = cqe->res;
    planned->completed = true;
    work->in_flight[planned->role]--;
    work->ns[planned->role] += cqe->end_ns - cqe->start_ns;
    if (cqe->res < 0)
        work_fail(lane, planned->work, index, cqe->res, "%s failed %s of sequence %u, layer %u: %s: %s", port->label,
                  op_name(planned->cmd.op), planned->cmd.seq, lane->layer, nkv_status_name(cqe->res), nkv_last_error());
}

bool plan_port_lost(struct nkv_ticket *lane, uint32_t index)
{
    const struct work *work = &lane->works[index];
    const struct port *home = work->seq->home, *compute = work->compute.bytes ? lane->context->compute : home;
    const struct port *lost = home->status < 0 ? home : compute;

    if (lost->status < 0)
        work_fail(lane, index, lane->n_planned, lost->status, "%s", lost->error);
    return lost->status < 0;
}

void plan_cancel(struct nkv_ticket *lane, uint32_t work)
{
    memset(lane->works[work].waiting, 0, sizeof lane->works[work].waiting);
    lane->works[work].stage = STAGE_FINAL;
}

/* Of several failures the one planned first is the cause: those behind it found a state that it left unchanged. */
void work_fail(struct nkv_ticket *lane, uint32_t index, uint32_t at, int status, const char *format, ...)
{
    struct work *work = &lane->works[index];
    va_list args;

    if (work->status == 0 || at < work->failed_at) {
        work->status = status;
        work->failed_at = at;
        va_start(args, format);
        vsnprintf(work->error, sizeof work->error, format, args);
        va_end(args);
    }
    plan_cancel(lane, index);
}

/* ---- The log ---- */

struct text {
    char *at;
    uint64_t n, room;
};

static void NKV_PRINTF(2, 3) put(struct text *text, const char *format, ...)
{
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(text->at + text->n, text->room - text->n, format, args);
    va_end(args);
    text->n += n > 0 ? (uint64_t)n : 0;
    if (text->n >= text->room)
        text->n = text->room - 1;
}

static struct text text_begin(struct nkv_context *context)
{
    return (struct text){context->line, 0, context->line_bytes};
}

static void put_command(struct text *text, const struct nkv_cmd *cmd)
{
    static const char *const flags[] = {"per-head",  "steady",   "scores", "causal", "all-pages", "digest",
                                        "no-digest", "no-pages", "slots",  "named",  "tokens",    "candidates"};

    put(text, "%s seq=%u", op_name(cmd->op), cmd->seq);
    if (cmd->op >= NKV_OP_APPEND)
        put(text, " layer=%u", cmd->layer);
    put(text, " pos=%u tokens=%u pages=%u", cmd->pos, cmd->n_tokens, cmd->n_pages);
    if (cmd->op == NKV_OP_SELECT)
        put(text, " sink=%u recent=%u", cmd->sink, cmd->recent);
    if (cmd->arg)
        put(text, " arg=%u", cmd->arg);
    for (uint32_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (cmd->flags >> i & 1)
            put(text, " %s", flags[i]);
}

void log_command(struct nkv_context *context, const struct port *port, const struct nkv_cmd *cmd)
{
    struct text text = text_begin(context);

    if (!context->options.plan_log)
        return;
    put(&text, "dev=%u ", port->index);
    put_command(&text, cmd);
    context->options.plan_log(context->options.plan_log_arg, context->line);
}

static void log_set(struct nkv_context *context, const struct planned *planned, uint32_t unit, const uint32_t *list)
{
    struct text text = text_begin(context);
    uint32_t n = list[0] < planned->cmd.n_pages ? list[0] : planned->cmd.n_pages;

    put(&text, "set seq=%u layer=%u pos=%u unit=%u:", planned->cmd.seq, planned->cmd.layer, planned->cmd.pos, unit);
    for (uint32_t i = 0; i < n; i++)
        put(&text, " %u", list[1 + i]);
    context->options.plan_log(context->options.plan_log_arg, context->line);
}

static void log_planned(struct nkv_ticket *lane, uint32_t index)
{
    struct nkv_context *context = lane->context;
    const struct planned *planned = &lane->plan[index];
    const struct port *port = &context->ports[planned->port];
    const struct work *work = &lane->works[planned->work];
    struct text text = text_begin(context);

    put(&text, "#%u dev=%u ", index, planned->port);
    put_command(&text, &planned->cmd);
    if (planned->after >= 0)
        put(&text, " after=#%" PRId32, planned->after);
    context->options.plan_log(context->options.plan_log_arg, context->line);
    if (planned->cmd.op != NKV_OP_SELECT || work->status < 0 || !work->seq)
        return;
    for (uint32_t unit = 0; unit < work->seq->n_units; unit++)
        log_set(context, planned, unit,
                (const uint32_t *)(const void *)(port->window + planned->cmd.out_offset +
                                                 unit * nkv_list_stride(planned->cmd.n_pages)));
}

void log_lane(struct nkv_ticket *lane)
{
    if (!lane->context->options.plan_log)
        return;
    for (uint32_t i = 0; i < lane->n_planned; i++)
        log_planned(lane, i);
}
