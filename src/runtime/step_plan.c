/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first commands of a work: those that need nothing but the caller's q, k and v.
 *
 *   method          home device                                       compute device
 *   append          APPEND
 *   dense           APPEND, ATTEND all pages
 *   blocks          APPEND, per block: SELECT, ATTEND its list
 *   pnm             APPEND, SELECT, ATTEND its list
 *   png             APPEND, SELECT (steady), ATTEND its `device`      later: ATTEND steady slots, WRITE
 *                   list, READ its `recall` list
 *   png same step   APPEND, SELECT (steady); later: ATTEND, READ      later: WRITE, ATTEND steady and recalled slots
 *   recall          APPEND; later: READ                               APPEND, SELECT, ATTEND open page; later: WRITE,
 *                                                                     ATTEND slots
 *
 * An ATTEND or READ whose list is a SELECT's output goes down together with the SELECT: the device never waits for
 * the host between the two. Equal commands of a batch are planned next to each other (phases), so that a device can
 * run them as one.
 */
#include "runtime/runtime.h"

#include <string.h>

enum method work_method(const struct nkv_seq *seq, uint32_t layer, uint32_t n_tokens)
{
    const struct nkv_seq_options *options = &seq->options;

    if (layer < options->n_dense_layers)
        return METHOD_DENSE;
    if (n_tokens > 1)
        return options->sparse_prefill ? METHOD_BLOCKS : METHOD_DENSE;
    if (options->mode == NKV_MODE_RECALL)
        return METHOD_RECALL;
    if (options->mode == NKV_MODE_PNM || (options->mode == NKV_MODE_PNG && seq->n_slots == 0))
        return METHOD_PNM;
    if (options->mode == NKV_MODE_PNG)
        return options->same_step_recall ? METHOD_PNG_SAME_STEP : METHOD_PNG;
    return METHOD_DENSE;
}

uint16_t unit_flag(const struct nkv_seq *seq)
{
    return seq->options.granularity == NKV_SELECT_KV_HEAD ? NKV_PER_HEAD : 0;
}

static bool mirrors(const struct nkv_seq *seq, const struct work *work)
{
    return seq->options.mode == NKV_MODE_RECALL && work->item.n_tokens == 1;
}

static void copy_kv(const struct nkv_context *context, const struct work *work, const struct port *port, uint64_t at)
{
    size_t bytes = 4u * (size_t)work->item.n_tokens * context->shape.n_kv_heads * context->shape.head_dim;

    memcpy(port->window + at, work->item.k, bytes);
    memcpy(port->window + at + bytes, work->item.v, bytes);
}

void copy_q(const struct nkv_context *context, const struct work *work, const struct port *port, uint64_t at,
            uint32_t first, uint32_t n_tokens)
{
    size_t row = (size_t)context->shape.n_heads * context->shape.head_dim;

    memcpy(port->window + at, work->item.q + first * row, 4u * n_tokens * row);
}

uint32_t block_length(const struct work *work, uint32_t block)
{
    uint32_t first = block * work->block_tokens, left = work->item.n_tokens - first;

    return left < work->block_tokens ? left : work->block_tokens;
}

/* A session's token has its id on the device before it is there itself, so that no crash leaves one without. */
static void begin_ids(struct nkv_ticket *lane, uint32_t index)
{
    const struct work *work = &lane->works[index];
    const struct nkv_seq *seq = work->seq;
    struct nkv_cmd cmd = {.op = NKV_OP_WRITE,
                          .flags = NKV_TOKENS,
                          .seq = seq->id,
                          .pos = work->pos,
                          .n_tokens = seq->n_ids,
                          .in_offset = work->home_base + work->home.ids};

    memcpy(seq->home->window + cmd.in_offset, seq->ids, seq->n_ids * sizeof *seq->ids);
    plan_submit(lane, plan_add(lane, index, ROLE_IDS, seq->home, cmd, -1));
}

static void begin_append(struct nkv_ticket *lane, uint32_t index)
{
    struct nkv_context *context = lane->context;
    struct work *work = &lane->works[index];
    struct nkv_seq *seq = work->seq;
    struct nkv_cmd cmd = {.op = NKV_OP_APPEND,
                          .seq = seq->id,
                          .pos = work->pos,
                          .n_tokens = work->item.n_tokens,
                          .in_offset = work->home_base + work->home.kv};

    if (lane->layer == 0 && seq->ids)
        begin_ids(lane, index);
    copy_kv(context, work, seq->home, cmd.in_offset);
    plan_submit(lane, plan_add(lane, index, ROLE_APPEND, seq->home, cmd, work->last[ROLE_IDS]));
    if (!mirrors(seq, work))
        return;
    cmd.seq = seq->mirror_id;
    cmd.in_offset = work->compute_base + work->compute.kv;
    copy_kv(context, work, context->compute, cmd.in_offset);
    plan_submit(lane, plan_add(lane, index, ROLE_MIRROR, context->compute, cmd, -1));
}

static struct nkv_cmd select_cmd(const struct work *work, uint32_t n_pages)
{
    const struct nkv_seq *seq = work->seq;

    return (struct nkv_cmd){.op = NKV_OP_SELECT,
                            .sink = (uint8_t)seq->options.sink_pages,
                            .recent = (uint8_t)seq->options.recent_pages,
                            .flags = unit_flag(seq),
                            .seq = seq->id,
                            .pos = work->pos,
                            .n_tokens = 1,
                            .n_pages = n_pages};
}

/* lists(n_slots) of the pages in the slots, for Steady-Select on the device. */
static void copy_resident(const struct nkv_ticket *lane, const struct work *work, const struct port *port, uint64_t at)
{
    const struct nkv_seq *seq = work->seq;

    for (uint32_t unit = 0; unit < seq->n_units; unit++) {
        uint8_t *list = port->window + at + unit * nkv_list_stride(seq->n_slots);

        memcpy(list, &seq->n_slots, sizeof seq->n_slots);
        memcpy(list + 4, seq_resident(seq, lane->layer, unit), 4u * (size_t)seq->n_slots);
    }
}

static void begin_select_home(struct nkv_ticket *lane, uint32_t index)
{
    struct work *work = &lane->works[index];
    const struct nkv_seq *seq = work->seq;
    bool steady = work->method == METHOD_PNG || work->method == METHOD_PNG_SAME_STEP;

    for (uint32_t b = 0; b < work->n_blocks; b++) {
        struct nkv_cmd cmd = select_cmd(work, work->method == METHOD_BLOCKS ? seq->prefill_pages : seq->budget_pages);

        cmd.pos += b * work->block_tokens;
        cmd.n_tokens = block_length(work, b);
        cmd.in_offset = work->home_base + work->home.q + b * work->home.q_stride;
        cmd.out_offset = work->home_base + work->home.select + b * work->home.select_stride;
        copy_q(lane->context, work, seq->home, cmd.in_offset, b * work->block_tokens, cmd.n_tokens);
        if (work->method != METHOD_BLOCKS && lane->context->options.record_scores)
            cmd.flags |= NKV_SCORES;
        if (steady) {
            cmd.flags |= NKV_STEADY;
            cmd.arg = seq->n_slots;
            cmd.list_offset = work->home_base + work->home.resident;
            copy_resident(lane, work, seq->home, cmd.list_offset);
        }
        plan_submit(lane, plan_add(lane, index, ROLE_SELECT, seq->home, cmd, work->last[ROLE_APPEND]));
    }
}

static void begin_select_compute(struct nkv_ticket *lane, uint32_t index)
{
    struct work *work = &lane->works[index];
    const struct nkv_seq *seq = work->seq;
    struct port *port = lane->context->compute;
    struct nkv_cmd cmd = select_cmd(work, seq->budget_pages);

    cmd.seq = seq->mirror_id;
    cmd.flags |= NKV_SCORES;
    cmd.in_offset = work->compute_base + work->compute.q;
    cmd.out_offset = work->compute_base + work->compute.select;
    copy_q(lane->context, work, port, cmd.in_offset, 0, 1);
    plan_submit(lane, plan_add(lane, index, ROLE_SELECT, port, cmd, work->last[ROLE_MIRROR]));
}

/* The page that is still being written; its copy is the mirror's. NKV_PAGE_NONE: the last page is full. */
uint32_t open_page(const struct nkv_kv_shape *shape, const struct work *work)
{
    uint32_t n_tokens = work->pos + work->item.n_tokens;

    return n_tokens % shape->page_tokens ? n_tokens / shape->page_tokens : NKV_PAGE_NONE;
}

static void begin_attend_open(struct nkv_ticket *lane, uint32_t index)
{
    struct work *work = &lane->works[index];
    struct port *port = lane->context->compute;
    uint32_t list[2] = {1, open_page(&lane->context->shape, work)};
    struct nkv_cmd cmd = {.op = NKV_OP_ATTEND,
                          .seq = work->seq->mirror_id,
                          .pos = work->pos,
                          .n_tokens = 1,
                          .n_pages = 1,
                          .in_offset = work->compute_base + work->compute.q,
                          .list_offset = work->compute_base + work->compute.open_list,
                          .out_offset = work->compute_base + work->compute.open_partial};

    if (list[1] == NKV_PAGE_NONE)
        return;
    memcpy(port->window + cmd.list_offset, list, sizeof list);
    plan_submit(lane, plan_add(lane, index, ROLE_ATTEND_OPEN, port, cmd, work->last[ROLE_MIRROR]));
}

static void begin_attend(struct nkv_ticket *lane, uint32_t index)
{
    struct work *work = &lane->works[index];
    const struct nkv_seq *seq = work->seq;
    uint32_t n_pages = work->method == METHOD_BLOCKS ? seq->prefill_pages : seq->budget_pages;
    int32_t select = work->last[ROLE_SELECT];

    for (uint32_t b = 0; b < work->n_blocks; b++) {
        struct nkv_cmd cmd = {.op = NKV_OP_ATTEND,
                              .seq = seq->id,
                              .pos = work->pos + b * work->block_tokens,
                              .n_tokens = block_length(work, b),
                              .in_offset = work->home_base + work->home.q + b * work->home.q_stride,
                              .out_offset = work->home_base + work->home.partial + b * work->home.partial_stride};
        int32_t after = work->last[ROLE_APPEND];

        if (work->item.n_tokens > 1) /* a block of one token has later ones behind it, too */
            cmd.flags |= NKV_CAUSAL;
        if (work->method == METHOD_DENSE) {
            cmd.flags |= NKV_ALL_PAGES;
            copy_q(lane->context, work, seq->home, cmd.in_offset, 0, cmd.n_tokens);
        } else {
            after = select - (int32_t)(work->n_blocks - 1 - b);
            cmd.flags |= unit_flag(seq);
            cmd.n_pages = n_pages;
            cmd.list_offset = work->home_base + work->home.select + b * work->home.select_stride +
                              nkv_select_layout(seq->n_units, n_pages, 0, 0).device;
        }
        plan_submit(lane, plan_add(lane, index, ROLE_ATTEND, seq->home, cmd, after));
    }
}

void plan_read(struct nkv_ticket *lane, uint32_t index, uint64_t list_offset, uint32_t n_pages, int32_t after)
{
    struct work *work = &lane->works[index];
    struct nkv_cmd cmd = {.op = NKV_OP_READ,
                          .seq = work->seq->id,
                          .flags = unit_flag(work->seq),
                          .n_pages = n_pages,
                          .list_offset = list_offset,
                          .out_offset = work->home_base + work->home.pages};

    plan_submit(lane, plan_add(lane, index, ROLE_READ, work->seq->home, cmd, after));
}

static void begin_read(struct nkv_ticket *lane, uint32_t index)
{
    struct work *work = &lane->works[index];
    const struct nkv_seq *seq = work->seq;
    uint64_t recall = nkv_select_layout(seq->n_units, seq->budget_pages, seq->n_slots, 0).recall;

    plan_read(lane, index, work->home_base + work->home.select + recall, seq->n_slots, work->last[ROLE_SELECT]);
}

void work_begin(struct nkv_ticket *lane, uint32_t index, uint32_t phase)
{
    struct work *work = &lane->works[index];
    enum method method = work->method;

    if (!work->seq || work->status < 0 || plan_port_lost(lane, index))
        return;
    if (phase == 0)
        begin_append(lane, index);
    else if (method == METHOD_APPEND)
        return;
    else if (phase == 1 && method == METHOD_RECALL)
        begin_select_compute(lane, index);
    else if (phase == 1 && method != METHOD_DENSE)
        begin_select_home(lane, index);
    else if (phase == 2 && method == METHOD_RECALL)
        begin_attend_open(lane, index);
    else if (phase == 2 && method != METHOD_PNG_SAME_STEP)
        begin_attend(lane, index);
    else if (phase == 3 && method == METHOD_PNG)
        begin_read(lane, index);
}
