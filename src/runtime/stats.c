/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Statistics: bytes are those of the formats that cross the link between the compute side and the home device (f32 q,
 * k, v and partials, u32 lists, pages), computed from what was planned, not sampled. Recall's commands on the compute
 * device cross nothing.
 */
#include "runtime/runtime.h"

/* What the statistics call a decode step. */
bool work_decodes(const struct work *work)
{
    return work->item.n_tokens == 1 && work->method != METHOD_APPEND;
}

static const uint32_t *home_list(const struct work *work, uint64_t offset, uint32_t unit, uint32_t cap)
{
    return (const uint32_t *)(const void *)(work->seq->home->window + offset + unit * nkv_list_stride(cap));
}

/* Pages in the sets that the step's SELECT chose, all units together. */
static uint64_t n_chosen(const struct nkv_ticket *lane, const struct work *work)
{
    const struct nkv_seq *seq = work->seq;
    const struct planned *select = &lane->plan[work->last[ROLE_SELECT]];

    return (uint64_t)select->res * seq->n_units; /* every unit chooses as many as unit 0 */
}

static void count_lists(struct work *work)
{
    struct nkv_seq *seq = work->seq;
    struct nkv_select_layout at = nkv_select_layout(seq->n_units, seq->budget_pages, seq->n_slots, 0);
    uint64_t base = work->home_base + work->home.select;

    if (work->method == METHOD_RECALL)
        seq->stats.to_device_bytes += 4u * ((uint64_t)seq->n_units + work->n_recalled);
    if (work->method != METHOD_PNG && work->method != METHOD_PNG_SAME_STEP)
        return;
    seq->stats.to_device_bytes += 4u * (uint64_t)seq->n_units * (seq->n_slots + 1u);
    for (uint32_t unit = 0; unit < seq->n_units; unit++) {
        uint64_t n_steady = home_list(work, base + at.steady, unit, seq->n_slots)[0];

        seq->stats.from_device_bytes += 4u * (n_steady + 3u);
        if (work->method == METHOD_PNG_SAME_STEP) /* the list comes back, and goes down without what was recalled */
            seq->stats.to_device_bytes +=
                4u * (1u + (uint64_t)home_list(work, work->home_base + work->home.list, unit, seq->budget_pages)[0]);
    }
    seq->stats.from_device_bytes += 8u * (uint64_t)work->n_recalled;
}

static void count_link(const struct nkv_kv_shape *shape, struct work *work)
{
    struct nkv_seq *seq = work->seq;
    uint64_t n_tokens = work->item.n_tokens, dim = shape->head_dim;

    seq->stats.to_device_bytes += 8u * n_tokens * shape->n_kv_heads * dim;
    if (work->last[ROLE_IDS] >= 0)
        seq->stats.to_device_bytes += 4u * n_tokens;
    if (work->method != METHOD_RECALL && work->method != METHOD_APPEND) {
        seq->stats.to_device_bytes += 4u * n_tokens * shape->n_heads * dim;
        seq->stats.from_device_bytes += 4u * n_tokens * shape->n_heads * (dim + 2u);
    }
    count_lists(work);
    if (work->n_recalled) {
        uint64_t bytes = work->n_recalled * nkv_page_bytes(shape, shape->n_kv_heads / seq->n_units);

        seq->recalled_units += work->n_recalled;
        seq->stats.recalled_bytes += bytes;
        seq->stats.from_device_bytes += bytes;
    }
}

/* Tokens attended by a decode step's query, mean over units. */
static uint64_t n_attended(const struct nkv_ticket *lane, const struct work *work)
{
    const struct nkv_seq *seq = work->seq;
    uint64_t page_tokens = lane->context->shape.page_tokens, n_tokens = (uint64_t)work->pos + 1;
    uint64_t n_open = n_tokens % page_tokens;

    if (work->method == METHOD_DENSE)
        return n_tokens;
    if (work->method == METHOD_RECALL && seq->options.attend_resident)
        return work->n_attended * page_tokens / seq->n_units + n_open;
    return n_chosen(lane, work) / seq->n_units * page_tokens - (n_open ? page_tokens - n_open : 0);
}

void stats_count(const struct nkv_ticket *lane, struct work *work)
{
    struct nkv_seq_stats *stats = &work->seq->stats;

    count_link(&lane->context->shape, work);
    if (!work_decodes(work))
        return;
    stats->n_steps += lane->layer == 0;
    stats->n_layer_steps++;
    stats->attended_tokens += n_attended(lane, work);
    if (work->method == METHOD_DENSE)
        return;
    stats->n_sparse_layer_steps += work->seq->n_units;
    stats->chosen_pages += n_chosen(lane, work);
}

void stats_count_times(struct work *work)
{
    struct nkv_seq_stats *stats = &work->seq->stats;

    if (!work_decodes(work))
        return;
    stats->append_ns += work->ns[ROLE_IDS] + work->ns[ROLE_APPEND] + work->ns[ROLE_MIRROR];
    stats->select_ns += work->ns[ROLE_SELECT];
    stats->attend_ns += work->ns[ROLE_ATTEND] + work->ns[ROLE_ATTEND_SLOTS] + work->ns[ROLE_ATTEND_OPEN];
    stats->recall_ns += work->ns[ROLE_READ] + work->ns[ROLE_WRITE];
}

static uint32_t resident_pages(const struct nkv_seq *seq)
{
    uint64_t n = (uint64_t)seq->context->shape.n_layers * seq->n_units * seq->n_slots, held = 0;

    for (uint64_t i = 0; i < n; i++)
        held += seq->resident[i] != NKV_PAGE_NONE;
    return (uint32_t)(held / seq->n_units);
}

void nkv_seq_stats(const struct nkv_seq *seq, struct nkv_seq_stats *stats_out)
{
    const struct nkv_kv_shape *shape = &seq->context->shape;
    uint64_t page_bytes = nkv_page_bytes(shape, shape->n_kv_heads) * shape->n_layers;
    uint64_t digest_bytes = nkv_digest_bytes(shape) * shape->n_kv_heads * shape->n_layers;

    context_drain(seq->context, seq, ANY_LAYER); /* the times of recalls that are under way */
    *stats_out = seq->stats;
    stats_out->recalled_pages = seq->recalled_units / seq->n_units;
    stats_out->resident_pages = resident_pages(seq);
    stats_out->pages = (seq->length + shape->page_tokens - 1) / shape->page_tokens;
    stats_out->kv_bytes = stats_out->pages * page_bytes;
    stats_out->digest_bytes = seq_has_digests(seq) ? seq->length / shape->page_tokens * digest_bytes : 0;
}

void nkv_seq_stats_reset(struct nkv_seq *seq)
{
    context_drain(seq->context, seq, ANY_LAYER);
    seq->stats = (struct nkv_seq_stats){0};
    seq->recalled_units = 0;
}

void nkv_context_shape(const struct nkv_context *context, struct nkv_kv_shape *shape_out)
{
    *shape_out = context->shape;
}

int nkv_context_device(const struct nkv_context *context, uint32_t i, struct nkv_device_report *report_out)
{
    struct nkv_device_stat stat;
    struct nkv_device_report report = {0};
    const struct port *port;
    uint32_t n = context->group ? group_size(context->group) : context->options.n_devices;

    if (i >= n + (context->compute != NULL))
        FAIL(NKV_EINVAL, "device %u of a context with %u", i, n + (context->compute != NULL));
    port = context->group ? group_member(context->group, i < n ? i : 0) : &context->ports[i];
    port = i == n ? context->compute : port;
    TRY(port_stat(port, &stat));
    for (size_t c = 0; c + 1 < sizeof report.name; c++)
        report.name[c] = port->caps.name[c];
    report.capacity_bytes = port->caps.capacity_bytes;
    report.used_bytes = stat.used_bytes;
    report.busy_ns = stat.busy_ns;
    report.n_sequences = stat.n_sequences;
    report.n_free_pages = stat.n_free_pages;
    report.n_total_pages = stat.n_total_pages;
    report.window_bytes = port->window_bytes + (context->shares && i < n ? context->ports[i].window_bytes : 0);
    report.read_bytes = stat.read_bytes;
    report.written_bytes = stat.written_bytes;
    *report_out = report;
    return 0;
}

void nkv_context_kv_parallel(const struct nkv_context *context, struct nkv_kv_parallel_report *report_out)
{
    *report_out = (struct nkv_kv_parallel_report){0};
    if (context->group)
        group_report(context->group, report_out);
    report_out->kv_parallel = context->options.kv_parallel;
}
