/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a work's operands lie in the windows, and how large the windows must be for that.
 *
 * Windows are sized for the worst that the context's limits and its sequences allow, so that a step never has to ask:
 * max_batch decode works of the hungriest sequence, plus max_tokens of prefill in the hungriest blocks. They grow when
 * a sequence is opened that needs more. Sizing per step was rejected: it would map memory, or fail, in the middle of a
 * decode.
 *
 * A recalled page's bytes appear in two windows (READ's output, WRITE's input): the host carries it, as it does between
 * two CXL devices.
 */
#include "runtime/runtime.h"

/* Room for the 64-byte alignment of the parts of one block or one work. */
#define ALIGN_SLACK 1024u

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t take(uint64_t *bytes, uint64_t n)
{
    uint64_t at = *bytes;

    *bytes += nkv_align64(n);
    return at;
}

static uint64_t rows_bytes(const struct nkv_kv_shape *shape, uint32_t n_tokens, uint32_t n_heads)
{
    return 4u * (uint64_t)n_tokens * n_heads * shape->head_dim;
}

/* Most pages that one step reads in each unit. No more than the budget are recalled, but a READ that png sends with its
 * SELECT takes the list as it lies there, and where the SELECT fails that is an older one. */
static uint32_t recall_limit(const struct nkv_seq *seq)
{
    if (seq->options.mode == NKV_MODE_PNG)
        return seq->n_slots;
    return seq->n_slots < seq->budget_pages ? seq->n_slots : seq->budget_pages;
}

static uint64_t recall_bytes(const struct nkv_kv_shape *shape, const struct nkv_seq *seq)
{
    return (uint64_t)recall_limit(seq) * seq->n_units * nkv_page_bytes(shape, shape->n_kv_heads / seq->n_units);
}

static uint64_t select_bytes(const struct nkv_seq *seq, enum method method)
{
    uint32_t n_scored = seq->context->options.record_scores ? seq->max_pages : 0;

    switch (method) {
    case METHOD_BLOCKS:
        return nkv_select_layout(seq->n_units, seq->prefill_pages, 0, 0).bytes;
    case METHOD_PNM:
        return nkv_select_layout(seq->n_units, seq->budget_pages, 0, n_scored).bytes;
    case METHOD_PNG:
    case METHOD_PNG_SAME_STEP:
        return nkv_select_layout(seq->n_units, seq->budget_pages, seq->n_slots, n_scored).bytes;
    default:
        return 0;
    }
}

static void home_layout(const struct nkv_kv_shape *shape, const struct nkv_seq *seq, enum method method,
                        uint32_t n_tokens, uint32_t block_tokens, struct home_layout *at)
{
    uint32_t n_blocks = (n_tokens + block_tokens - 1) / block_tokens;
    uint64_t set = seq->n_units * nkv_list_stride(seq->budget_pages);
    uint64_t last = n_tokens - (uint64_t)(n_blocks - 1) * block_tokens;

    *at = (struct home_layout){.q_stride = nkv_align64(rows_bytes(shape, block_tokens, shape->n_heads)),
                               .partial_stride = nkv_partial_layout(shape, block_tokens).bytes,
                               .select_stride = select_bytes(seq, method)};
    at->kv = take(&at->bytes, 2 * rows_bytes(shape, n_tokens, shape->n_kv_heads));
    at->ids = take(&at->bytes, n_tokens * sizeof *seq->ids); /* sessions use it */
    at->select = take(&at->bytes, n_blocks * at->select_stride);
    if (method == METHOD_PNG || method == METHOD_PNG_SAME_STEP)
        at->resident = take(&at->bytes, seq->n_units * nkv_list_stride(seq->n_slots));
    if (method == METHOD_PNG_SAME_STEP || method == METHOD_RECALL)
        at->list = take(&at->bytes, set);
    if (method >= METHOD_PNG)
        at->pages = take(&at->bytes, recall_bytes(shape, seq));
    if (method == METHOD_RECALL)
        return;
    at->q = take(&at->bytes, (n_blocks - 1) * at->q_stride + rows_bytes(shape, (uint32_t)last, shape->n_heads));
    at->partial =
        take(&at->bytes, (n_blocks - 1) * at->partial_stride + nkv_partial_layout(shape, (uint32_t)last).bytes);
}

static void compute_layout(const struct nkv_kv_shape *shape, const struct nkv_seq *seq, enum method method,
                           struct compute_layout *at)
{
    uint32_t limit = method == METHOD_RECALL ? seq->budget_pages : seq->n_slots;

    *at = (struct compute_layout){0};
    if (seq->options.mode == NKV_MODE_RECALL) /* dense layers are mirrored, too */
        at->kv = take(&at->bytes, 2 * rows_bytes(shape, 1, shape->n_kv_heads));
    if (method < METHOD_PNG)
        return;
    if (method == METHOD_RECALL) {
        at->select = take(&at->bytes, nkv_select_layout(seq->n_units, seq->budget_pages, 0, seq->max_pages).bytes);
        at->open_list = take(&at->bytes, nkv_list_stride(1));
        at->open_partial = take(&at->bytes, nkv_partial_layout(shape, 1).bytes);
    }
    at->q = take(&at->bytes, rows_bytes(shape, 1, shape->n_heads));
    at->slot_list = take(&at->bytes, seq->n_units * nkv_list_stride(seq->n_slots));
    at->slot_partial = take(&at->bytes, nkv_partial_layout(shape, 1).bytes);
    at->write_list = take(&at->bytes, seq->n_units * nkv_list_stride(limit));
    at->pages = take(&at->bytes, recall_bytes(shape, seq));
}

void work_layout(const struct nkv_kv_shape *shape, const struct nkv_seq *seq, enum method method, uint32_t n_tokens,
                 uint32_t block_tokens, struct home_layout *home_out, struct compute_layout *compute_out)
{
    home_layout(shape, seq, method, n_tokens, block_tokens, home_out);
    compute_layout(shape, seq, method, compute_out);
}

/* Digests that one command moves when a mirror is brought up to date, or one whole page. */
static uint64_t move_bytes(const struct nkv_kv_shape *shape)
{
    return max_u64((uint64_t)MOVE_PAGES * shape->n_kv_heads * nkv_digest_bytes(shape),
                   nkv_page_bytes(shape, shape->n_kv_heads)) +
           ALIGN_SLACK;
}

/*
 * A group whose members have other users cannot have their windows grow in the middle of a step, which it does
 * elsewhere. A command's operands lie in its members' windows as they do in its own, but for the lists: one for each
 * run of query tokens of one page.
 */
static uint64_t list_bytes(const struct nkv_context *context, const struct nkv_seq *seq)
{
    const struct nkv_kv_shape *shape = &context->shape;
    uint32_t most_pages = seq->max_pages / group_size(context->group) + 1;
    uint64_t n_runs = context->options.max_tokens / shape->page_tokens + 2;
    uint64_t n_block_runs = seq->block_tokens / shape->page_tokens + 2;

    return max_u64(n_runs * (nkv_list_stride(most_pages) + ALIGN_SLACK),
                   n_block_runs * (seq->n_units * nkv_list_stride(seq->prefill_pages) + ALIGN_SLACK));
}

/* Each part of what the sequences seen so far and seq need, by itself: a call may mix the hungriest of each kind. */
static struct lane_need lane_need(const struct nkv_context *context, const struct nkv_seq *seq)
{
    struct lane_need need = context->need;
    struct home_layout home;
    struct compute_layout compute;

    need.block = max_u64(need.block, ALIGN_SLACK);
    if (!seq)
        return need;
    work_layout(&context->shape, seq, work_method(seq, seq->options.n_dense_layers, 1), 1, 1, &home, &compute);
    need.home = max_u64(need.home, home.bytes);
    need.compute = max_u64(need.compute, compute.bytes);
    if (seq->options.sparse_prefill) {
        uint64_t n_blocks = context->options.max_tokens / seq->block_tokens + 1;
        uint64_t block = ALIGN_SLACK + select_bytes(seq, METHOD_BLOCKS);

        need.block = max_u64(need.block, block);
        need.blocks = max_u64(need.blocks, n_blocks * block);
    }
    if (seq_is_spread(seq))
        need.lists = max_u64(need.lists, list_bytes(context, seq));
    return need;
}

static void lane_bytes(const struct nkv_context *context, const struct lane_need *need, uint64_t *home_out,
                       uint64_t *compute_out)
{
    const struct nkv_kv_shape *shape = &context->shape;
    uint64_t n_works = context->options.max_batch, n_tokens = context->options.max_tokens;
    uint64_t token_bytes = rows_bytes(shape, 1, 2 * shape->n_kv_heads + 2 * shape->n_heads) + 8u * shape->n_heads +
                           sizeof(int32_t); /* a session's id */
    uint64_t prefill = n_tokens * token_bytes + need->blocks + n_works * need->block;

    *home_out = max_u64(prefill + n_works * (need->home + ALIGN_SLACK), move_bytes(shape));
    *compute_out = max_u64(n_works * (need->compute + ALIGN_SLACK), move_bytes(shape));
    *home_out = (*home_out + 4095u) & ~(uint64_t)4095u;
    *compute_out = (*compute_out + 4095u) & ~(uint64_t)4095u;
}

static uint64_t port_lane_bytes(const struct nkv_context *context, const struct lane_need *need,
                                const struct port *port)
{
    uint64_t home, compute;

    lane_bytes(context, need, &home, &compute);
    if (port == context->group_port)
        home += (need->lists + 4095u) & ~(uint64_t)4095u;
    return port == context->compute ? compute : home;
}

uint64_t context_lane_bytes(const struct nkv_context *context, const struct port *port)
{
    return max_u64(port_lane_bytes(context, &context->need, port), port->lane_bytes);
}

/* Maps a larger window; what lies in it is lost. A device that is gone is lost from now on: mapping it again would
 * bring it back without a word, and what it forgot would be missed later. */
static int remap(struct nkv_context *context, struct port *port, uint64_t bytes, uint64_t control_bytes)
{
    uint64_t n_messages;
    int status;

    if (context_open_tickets(context))
        FAIL(NKV_ESTATE, "this sequence needs larger I/O windows, but a ticket is in flight: end it first");
    context_drain(context, NULL, ANY_LAYER);
    if (context->shares && context->group_port->status < 0)
        group_drain(context->group); /* it failed with one member: the others may not have done yet */
    n_messages = nkv_fail_count();
    status = port_map(port, bytes, control_bytes);
    if (status == NKV_EDEVICE)
        port_fail(context, port, status, port_message_since(n_messages));
    return status;
}

int context_reserve_control(struct nkv_context *context, struct port *port, uint64_t bytes)
{
    if (port->status < 0)
        FAIL(port->status, "%s", port->error);
    return port->control_bytes < bytes ? remap(context, port, port->lane_bytes, bytes) : 0;
}

static int reserve_windows(struct nkv_context *context, const struct nkv_seq *seq)
{
    struct lane_need lane = lane_need(context, seq);

    for (uint32_t i = 0; i < context->n_ports; i++) {
        struct port *port = &context->ports[i];
        uint64_t bytes = port_lane_bytes(context, &lane, port);

        if (bytes > port->lane_bytes && port->status == 0) /* one that is lost gets its window when it comes back */
            TRY(remap(context, port, bytes, port->control_bytes));
    }
    context->need = lane;
    return 0;
}

/* Replaces a buffer by a larger one; its contents are not kept. */
static int grow(void *buffer, uint64_t *n, uint64_t need, size_t size)
{
    void **old = buffer, *larger;

    if (need <= *n)
        return 0;
    TRY(nkv_alloc(need, size, &larger));
    nkv_free(*old);
    *old = larger;
    *n = need;
    return 0;
}

int context_reserve(struct nkv_context *context, const struct nkv_seq *seq)
{
    uint64_t set = seq ? max_u64(seq->budget_pages, seq->prefill_pages) : 0;
    uint64_t n_slots = seq ? seq->n_slots : 0;

    TRY(grow(&context->scratch, &context->n_scratch, 4 * (set + n_slots) + 64, sizeof *context->scratch));
    if (context->options.plan_log)
        TRY(grow(&context->line, &context->line_bytes, 256 + 11 * set, 1));
    return reserve_windows(context, seq);
}
