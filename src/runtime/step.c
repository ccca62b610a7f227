/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend_begin, attend_end, step_end. Everything that can be wrong with a call is checked before anything is queued;
 * after that a failure belongs to one sequence: it is marked, its output is zero, the others go on.
 *
 * Partials are merged in a fixed order (home device, then compute side; slots, then the open page), whatever completed
 * first.
 */
#include "runtime/runtime.h"

#include <assert.h>
#include <string.h>

#include "kernels/kernels.h"

static int check_item(const struct nkv_context *context, uint32_t layer, const struct nkv_attend_item *item, uint32_t i)
{
    const struct nkv_seq *seq = item->seq;

    if (!seq || seq->context != context)
        FAIL(NKV_EINVAL, "item %u: %s", i, seq ? "its sequence belongs to another context" : "no sequence");
    if (item->n_tokens == 0 || !item->k || !item->v || (item->q && !item->out))
        FAIL(NKV_EINVAL, "item %u: it needs at least one token, k, v and, with q, out", i);
    if (seq->batch == context->n_batches)
        FAIL(NKV_EINVAL, "item %u: its sequence appears twice in this call", i);
    if (seq->status < 0)
        return 0;
    if (seq->ticket)
        FAIL(NKV_ESTATE, "item %u: its sequence is in a ticket that has not ended", i);
    if (layer != seq->next_layer)
        FAIL(NKV_ESTATE, "item %u: layer %u comes next, not %u%s", i, seq->next_layer, layer,
             seq->next_layer == context->shape.n_layers ? " (end the step)" : "");
    if (layer > 0 && item->n_tokens != seq->step_tokens)
        FAIL(NKV_EINVAL, "item %u: %u tokens in layer %u of a step that began with %u", i, item->n_tokens, layer,
             seq->step_tokens);
    if (layer == 0 && seq->ids && item->n_tokens != seq->n_ids)
        FAIL(NKV_ESTATE, "item %u: %u tokens of a session with the ids of %u: call nkv_seq_note_tokens before", i,
             item->n_tokens, seq->n_ids);
    if (item->n_tokens > seq->options.max_tokens - seq->length)
        FAIL(NKV_ENOSPC, "item %u: %u tokens more than the %u that its sequence has, of at most %u", i, item->n_tokens,
             seq->length, seq->options.max_tokens);
    return 0;
}

static int check_call(struct nkv_context *context, uint32_t layer, const struct nkv_attend_item *items,
                      uint32_t n_items)
{
    uint64_t n_tokens = 0;

    if (context_open_tickets(context) == MAX_TICKETS)
        FAIL(NKV_ESTATE, "%u tickets are in flight: end one first", MAX_TICKETS);
    if (layer >= context->shape.n_layers)
        FAIL(NKV_EINVAL, "layer %u of %u", layer, context->shape.n_layers);
    if (n_items == 0 || n_items > context->options.max_batch)
        FAIL(NKV_EINVAL, "%u items: from 1 to %u (max_batch of the context)", n_items, context->options.max_batch);
    context->n_batches++;
    for (uint32_t i = 0; i < n_items; i++) {
        TRY(check_item(context, layer, &items[i], i));
        items[i].seq->batch = context->n_batches;
        n_tokens += items[i].n_tokens;
    }
    if (n_tokens > context->options.max_tokens)
        FAIL(NKV_EINVAL, "%llu tokens in one call: at most %u (max_tokens of the context)",
             (unsigned long long)n_tokens, context->options.max_tokens);
    return 0;
}

static void place_work(struct nkv_ticket *lane, struct work *work)
{
    struct nkv_context *context = lane->context;
    struct port *home = work->seq->home, *compute = context->compute;

    work_layout(&context->shape, work->seq, work->method, work->item.n_tokens, work->block_tokens, &work->home,
                &work->compute);
    work->home_base = lane->index * home->lane_bytes + lane->window_used[home->index];
    lane->window_used[home->index] += work->home.bytes;
    assert(lane->window_used[home->index] <= home->lane_bytes);
    if (!work->compute.bytes)
        return;
    work->compute_base = lane->index * compute->lane_bytes + lane->window_used[compute->index];
    lane->window_used[compute->index] += work->compute.bytes;
    assert(lane->window_used[compute->index] <= compute->lane_bytes);
}

static void work_init(struct nkv_ticket *lane, uint32_t index, const struct nkv_attend_item *item)
{
    struct work *work = &lane->works[index];
    struct nkv_seq *seq = item->seq->status < 0 ? NULL : item->seq;

    *work = (struct work){.seq = seq, .item = *item};
    memset(work->last, 0xff, sizeof work->last);
    if (!seq)
        return;
    work->method = item->q ? work_method(seq, lane->layer, item->n_tokens) : METHOD_APPEND;
    work->stage = work->method >= METHOD_PNG ? STAGE_SELECT : STAGE_FINAL;
    work->pos = seq->length;
    work->block_tokens = item->n_tokens;
    if (work->method == METHOD_BLOCKS && seq->block_tokens < item->n_tokens)
        work->block_tokens = seq->block_tokens;
    work->n_blocks = (item->n_tokens + work->block_tokens - 1) / work->block_tokens;
    seq->ticket = lane;
    seq->step_tokens = item->n_tokens;
    place_work(lane, work);
}

/* A mirror that cannot be brought up to date ends its sequence before the step. */
static void attach_mirrors(struct nkv_ticket *lane, const struct nkv_attend_item *items, uint32_t n_items)
{
    for (uint32_t i = 0; i < n_items; i++) {
        struct nkv_seq *seq = items[i].seq;
        bool current = !seq->mirror_stale && seq->mirror_tokens == seq->length;
        int status;

        if (seq->status < 0 || seq->options.mode != NKV_MODE_RECALL || items[i].n_tokens > 1 || current)
            continue;
        status = mirror_attach(lane->context, lane, seq);
        if (status < 0)
            seq_mark_failed(seq, status, nkv_last_error());
    }
}

int nkv_attend_begin(struct nkv_context *context, uint32_t layer, const struct nkv_attend_item *items, uint32_t n_items,
                     struct nkv_ticket **ticket_out)
{
    struct nkv_ticket *lane;

    context_poll(context);
    TRY(check_call(context, layer, items, n_items));
    for (uint32_t i = 0; i < n_items; i++)
        context_drain(context, items[i].seq, layer);
    lane = lane_take(context);
    lane->layer = layer;
    lane->begin_ns = context->options.now_ns(context->options.clock_arg);
    lane->n_planned = 0;
    memset(lane->window_used, 0, context->n_ports * sizeof *lane->window_used);
    if (layer == 0)
        attach_mirrors(lane, items, n_items);
    for (uint32_t i = 0; i < n_items; i++)
        work_init(lane, i, &items[i]);
    lane->n_works = n_items;
    lane->state = LANE_OPEN;
    for (uint32_t phase = 0; phase < WORK_PHASES; phase++)
        for (uint32_t i = 0; i < n_items; i++)
            work_begin(lane, i, phase);
    for (uint32_t i = 0; i < context->n_ports; i++)
        port_flush(context, &context->ports[i]);
    *ticket_out = lane;
    return 0;
}

static void merge(const struct nkv_kv_shape *shape, struct partial a, struct partial b)
{
    nkv_kernels()->merge(shape->n_heads, shape->head_dim, a.o, a.m, a.l, b.o, b.m, b.l);
}

static void finish_blocks(const struct nkv_kv_shape *shape, const struct work *work)
{
    for (uint32_t b = 0; b < work->n_blocks; b++) {
        uint32_t n_tokens = block_length(work, b);
        struct partial p = partial_at(shape, work->seq->home->window,
                                      work->home_base + work->home.partial + b * work->home.partial_stride, n_tokens);

        nkv_kernels()->finish((size_t)n_tokens * shape->n_heads, shape->head_dim, p.o, p.l,
                              work->item.out + (size_t)b * work->block_tokens * shape->n_heads * shape->head_dim);
    }
}

static void finish_recall(const struct nkv_kv_shape *shape, const struct port *compute, const struct work *work)
{
    struct partial open = partial_at(shape, compute->window, work->compute_base + work->compute.open_partial, 1);
    struct partial sum = partial_at(shape, compute->window, work->compute_base + work->compute.slot_partial, 1);

    if (work->last[ROLE_ATTEND_SLOTS] < 0)
        sum = open;
    else if (work->last[ROLE_ATTEND_OPEN] >= 0)
        merge(shape, sum, open);
    nkv_kernels()->finish(shape->n_heads, shape->head_dim, sum.o, sum.l, work->item.out);
}

static void deliver(struct nkv_ticket *lane, struct work *work)
{
    const struct nkv_kv_shape *shape = &lane->context->shape;
    const struct port *compute = lane->context->compute;

    if (!work->seq || work->status < 0) {
        if (work->item.q)
            memset(work->item.out, 0, 4u * (size_t)work->item.n_tokens * shape->n_heads * shape->head_dim);
        return;
    }
    if (work->method == METHOD_RECALL) {
        finish_recall(shape, compute, work);
    } else if (work->method != METHOD_APPEND) {
        if (work->last[ROLE_ATTEND_SLOTS] >= 0)
            merge(shape, partial_at(shape, work->seq->home->window, work->home_base + work->home.partial, 1),
                  partial_at(shape, compute->window, work->compute_base + work->compute.slot_partial, 1));
        finish_blocks(shape, work);
    }
    stats_count(lane, work);
}

int nkv_attend_end(struct nkv_ticket *lane)
{
    struct nkv_context *context = lane->context;
    uint64_t wall_ns;

    if (lane->state != LANE_OPEN)
        FAIL(NKV_ESTATE, "this ticket has ended already");
    lane_wait(lane, false);
    log_lane(lane);
    for (uint32_t i = 0; i < lane->n_works; i++)
        deliver(lane, &lane->works[i]);
    wall_ns = context->options.now_ns(context->options.clock_arg) - lane->begin_ns;
    for (uint32_t i = 0; i < lane->n_works; i++) {
        struct work *work = &lane->works[i];

        if (!work->seq)
            continue;
        work->seq->ticket = NULL;
        work->seq->next_layer = lane->layer + 1;
        work->seq->stats.wall_ns += work_decodes(work) ? wall_ns : 0;
        if (work->status < 0)
            seq_mark_failed(work->seq, work->status, work->error);
    }
    lane->state = LANE_DRAINING;
    context_poll(context);
    return 0;
}

static int check_step(const struct nkv_context *context, const struct nkv_seq *seq, uint32_t i)
{
    if (!seq || seq->context != context)
        FAIL(NKV_EINVAL, "item %u: %s", i, seq ? "its sequence belongs to another context" : "no sequence");
    if (seq->status == 0 && (seq->ticket || seq->next_layer != context->shape.n_layers))
        FAIL(NKV_ESTATE, "item %u: its step has ended %u of %u layers", i, seq->next_layer, context->shape.n_layers);
    return 0;
}

int nkv_step_end(struct nkv_context *context, const struct nkv_attend_item *items, uint32_t n_items)
{
    for (uint32_t i = 0; i < n_items; i++)
        TRY(check_step(context, items[i].seq, i));
    for (uint32_t i = 0; i < n_items; i++) {
        struct nkv_seq *seq = items[i].seq;

        if (seq->status < 0)
            continue;
        if (seq->options.mode == NKV_MODE_RECALL && seq->step_tokens == 1 && seq->mirror_tokens == seq->length)
            seq->mirror_tokens++;
        seq->length += seq->step_tokens;
        seq->next_layer = seq->step_tokens = seq->n_ids = 0;
    }
    return 0;
}
