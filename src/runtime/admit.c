/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admission: what a sequence asks for, and whether and where there is room.
 *
 * A sequence is admitted with all the memory that it can ever need (max_tokens), so that no step runs out of it. What
 * counts is the capacity of the PNM devices; the compute device holds only resident pages and, in recall, digests.
 * Admitting optimistically and evicting sequences later was rejected: a cache of a million tokens is not worth filling
 * twice.
 */
#include "runtime/runtime.h"

#include <stdio.h>
#include <string.h>

#include "policy/place.h"

#define MAX_SEQ_TOKENS 0x7fffffffu /* a completion of ATTEND counts tokens in an int32 */

static uint32_t ceil_div(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static bool selects(const struct nkv_seq_options *options)
{
    return options->mode != NKV_MODE_FULL || options->sparse_prefill;
}

bool seq_has_digests(const struct nkv_seq *seq)
{
    return selects(&seq->options) || seq->options.keep_digests;
}

/* Twice or half the budget where nothing is asked. */
static uint32_t default_resident(const struct nkv_seq_options *options)
{
    if (options->mode == NKV_MODE_PNG)
        return options->budget_tokens / 2;
    return options->budget_tokens > UINT32_MAX / 2 ? UINT32_MAX - 1 : options->budget_tokens * 2;
}

/* An older caller's struct is shorter; what it lacks keeps its default. */
static int read_options(const struct nkv_seq_options *options, struct nkv_seq_options *options_out)
{
    nkv_seq_options_init(options_out);
    if (options->size < offsetof(struct nkv_seq_options, mode) || options->size > sizeof *options)
        FAIL(NKV_EINVAL, "size of the sequence options is %u: set it to sizeof(struct nkv_seq_options), %zu",
             options->size, sizeof *options);
    memcpy(options_out, options, options->size);
    options_out->size = sizeof *options_out;
    return 0;
}

static int check_options(const struct nkv_kv_shape *shape, const struct nkv_seq_options *options)
{
    if (options->max_tokens == 0 || options->max_tokens > MAX_SEQ_TOKENS)
        FAIL(NKV_EINVAL, "max_tokens of a sequence is %u: it must be from 1 to %u", options->max_tokens,
             MAX_SEQ_TOKENS);
    if ((unsigned)options->mode >= NKV_MODE_COUNT)
        FAIL(NKV_EINVAL, "mode is %d: it must be below %d", (int)options->mode, NKV_MODE_COUNT);
    if ((unsigned)options->granularity > NKV_SELECT_KV_HEAD)
        FAIL(NKV_EINVAL, "granularity is %d: it must be 0 or 1", (int)options->granularity);
    if (options->sink_pages > UINT8_MAX || options->recent_pages > UINT8_MAX || options->recent_pages == 0)
        FAIL(NKV_EINVAL, "%u sink and %u recent pages: sink must be from 0 to 255, recent from 1 to 255",
             options->sink_pages, options->recent_pages);
    if (options->n_dense_layers > shape->n_layers)
        FAIL(NKV_EINVAL, "%u dense layers of a model with %u: lower n_dense_layers (--dense-layers)",
             options->n_dense_layers, shape->n_layers);
    return 0;
}

static int check_budget(const struct nkv_kv_shape *shape, const char *what, uint32_t tokens,
                        const struct nkv_seq_options *options)
{
    uint32_t always = options->sink_pages + options->recent_pages;

    if (ceil_div(tokens, shape->page_tokens) < always)
        FAIL(NKV_EINVAL,
             "%s of %u tokens is less than what is always attended: %u sink + %u recent pages of %u tokens = %u "
             "tokens; raise the budget",
             what, tokens, options->sink_pages, options->recent_pages, shape->page_tokens, always * shape->page_tokens);
    return 0;
}

/* Blocks as long as the prefill budget allows: the block's own pages are always chosen. */
static uint32_t block_tokens(const struct nkv_kv_shape *shape, const struct nkv_seq *seq)
{
    uint32_t spare = ceil_div(seq->options.prefill_budget_tokens, shape->page_tokens) - seq->options.sink_pages -
                     seq->options.recent_pages;

    return spare >= MAX_BLOCK_TOKENS ? MAX_BLOCK_TOKENS : min_u32(MAX_BLOCK_TOKENS, 1 + spare * shape->page_tokens);
}

static int check_resident(const struct nkv_kv_shape *shape, const struct nkv_seq *seq)
{
    if (seq->options.mode == NKV_MODE_RECALL && seq->n_slots < seq->budget_pages)
        FAIL(NKV_EINVAL,
             "recall attends %u pages per step on the compute side, but %u resident tokens are only %u pages: raise "
             "resident_tokens (--resident) to %u or lower the budget",
             seq->budget_pages, seq->options.resident_tokens, seq->n_slots, seq->budget_pages * shape->page_tokens);
    return 0;
}

int seq_resolve(const struct nkv_kv_shape *shape, const struct nkv_seq_options *options, struct nkv_seq *seq_out)
{
    struct nkv_seq_options *o = &seq_out->options;
    bool resides;

    TRY(read_options(options, o));
    if (o->sink_pages == NKV_DEFAULT)
        o->sink_pages = 1;
    if (o->recent_pages == NKV_DEFAULT)
        o->recent_pages = 2;
    if (o->prefill_budget_tokens == NKV_DEFAULT)
        o->prefill_budget_tokens = o->budget_tokens;
    if (o->resident_tokens == NKV_DEFAULT)
        o->resident_tokens = default_resident(o);
    TRY(check_options(shape, o));
    if (o->mode != NKV_MODE_FULL)
        TRY(check_budget(shape, "a budget", o->budget_tokens, o));
    if (o->sparse_prefill)
        TRY(check_budget(shape, "a prefill budget", o->prefill_budget_tokens, o));
    resides = o->mode == NKV_MODE_RECALL || o->mode == NKV_MODE_PNG;
    seq_out->n_units = o->granularity == NKV_SELECT_KV_HEAD ? shape->n_kv_heads : 1;
    seq_out->max_pages = ceil_div(o->max_tokens, shape->page_tokens);
    seq_out->budget_pages = min_u32(ceil_div(o->budget_tokens, shape->page_tokens), seq_out->max_pages);
    seq_out->prefill_pages = min_u32(ceil_div(o->prefill_budget_tokens, shape->page_tokens), seq_out->max_pages);
    seq_out->block_tokens = o->sparse_prefill ? block_tokens(shape, seq_out) : MAX_BLOCK_TOKENS;
    seq_out->n_slots = resides ? min_u32(ceil_div(o->resident_tokens, shape->page_tokens), seq_out->max_pages) : 0;
    return check_resident(shape, seq_out);
}

int seq_bytes(const struct nkv_kv_shape *shape, const struct nkv_seq *seq, uint64_t *home_out, uint64_t *compute_out)
{
    struct nkv_kv_estimate estimate;

    TRY(nkv_kv_estimate(shape, seq->options.max_tokens, &estimate));
    *home_out = seq_has_digests(seq) ? estimate.total_bytes : estimate.kv_bytes;
    *compute_out = seq->n_slots * estimate.page_bytes; /* no more than all pages */
    if (seq->options.mode == NKV_MODE_RECALL)
        *compute_out += estimate.digest_bytes + estimate.page_bytes;
    return 0;
}

int nkv_compute_estimate(const struct nkv_kv_shape *shape, const struct nkv_seq_options *options, uint64_t *bytes_out)
{
    struct nkv_seq seq = {0};
    uint64_t home = 0, compute = 0;

    TRY(nkv_kv_shape_check(shape));
    TRY(seq_resolve(shape, options, &seq));
    TRY(seq_bytes(shape, &seq, &home, &compute));
    *bytes_out = compute;
    return 0;
}

/* Memory that outlives a process keeps room for digests that pages cannot have: there pages run out before bytes. */
int port_free(const struct port *port, uint64_t page_bytes, uint64_t *bytes_out)
{
    struct nkv_device_stat stat;
    uint64_t bytes;

    TRY(port_stat(port, &stat));
    bytes = port->caps.capacity_bytes > stat.used_bytes ? port->caps.capacity_bytes - stat.used_bytes : 0;
    if (stat.n_total_pages > 0 && page_bytes > 0 && stat.n_free_pages < bytes / page_bytes)
        bytes = stat.n_free_pages * page_bytes;
    *bytes_out = bytes;
    return 0;
}

static uint64_t per_page(uint64_t bytes, uint32_t n_pages)
{
    return bytes / n_pages + (bytes % n_pages != 0);
}

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

/* What the largest device holds. */
static uint64_t largest(const struct nkv_context *context)
{
    uint64_t most = 0;

    for (uint32_t i = 0; i < context->options.n_devices; i++)
        if (context->ports[i].caps.capacity_bytes > most)
            most = context->ports[i].caps.capacity_bytes;
    return most;
}

/* Room that a restarted device keeps is no sequence's that anybody could close. */
static const char *kept(const struct port *ports, uint32_t n, char text_out[160])
{
    struct nkv_device_stat stat;

    text_out[0] = '\0';
    for (uint32_t i = 0; i < n && !*text_out; i++)
        if (port_stat(&ports[i], &stat) == 0 && stat.n_absent_pages)
            snprintf(text_out, 160, "; device %u (%s) keeps %u pages for clients that are gone, for up to %u s",
                     ports[i].index, ports[i].caps.name, stat.n_absent_pages, stat.absent_ms / 1000 + 1);
    return text_out;
}

static int refuse(const struct nkv_context *context, const struct nkv_seq *seq, uint64_t need, uint64_t most_free)
{
    uint64_t most = largest(context);
    char note[160];

    if (need <= most_free || (need > most && context->group && context->group_port->refused))
        FAIL(NKV_ENOSPC, "%s", context->refusal); /* there is room by what the devices count */
    if (need > most)
        FAIL(NKV_ENOSPC,
             "%u tokens need %.1f MiB on one device and can never fit: the largest has %.1f MiB, %.1f MiB are missing; "
             "give it more capacity, ask for fewer tokens or a smaller KV type",
             seq->options.max_tokens, mib(need), mib(most), mib(need - most));
    FAIL(NKV_ENOSPC,
         "%u tokens need %.1f MiB on one device: the most that is free is %.1f MiB, %.1f MiB are missing; it fits when "
         "other sequences are closed (the largest device has %.1f MiB)%s",
         seq->options.max_tokens, mib(need), mib(most_free), mib(need - most_free), mib(most),
         kept(context->ports, context->options.n_devices, note));
}

static int check_compute(const struct nkv_context *context, uint64_t need)
{
    uint64_t have = 0;

    if (need == 0)
        return 0;
    if (!context->compute)
        FAIL(NKV_EINVAL, "this mode attends on a compute device: open the context with one");
    TRY(port_free(context->compute, 0, &have));
    if (need > have)
        FAIL(NKV_ENOSPC,
             "resident pages and digests need %.1f MiB on the compute device (%s): %.1f MiB of %.1f MiB are free, %.1f "
             "MiB are missing; %s",
             mib(need), context->compute->caps.name, mib(have), mib(context->compute->caps.capacity_bytes),
             mib(need - have),
             need > context->compute->caps.capacity_bytes
                 ? "it can never fit: lower resident_tokens (--resident)"
                 : "lower resident_tokens (--resident) or close other sequences");
    return 0;
}

static enum nkv_kv_parallel group_kind_of(const struct nkv_context *context)
{
    return context->shares ? NKV_KV_CONTEXT : context->options.kv_parallel;
}

/* Bytes of it on a member, and of one page of them. */
static int part_bytes(const struct nkv_context *context, const struct nkv_seq *seq, uint32_t member, uint64_t *need_out,
                      uint64_t *page_out)
{
    struct nkv_seq part = *seq;
    struct nkv_kv_shape shape;
    uint64_t compute = 0;
    uint32_t n_tokens = group_local(context->group, member, seq->max_pages * context->shape.page_tokens, &shape);

    part.options.max_tokens = n_tokens ? n_tokens : shape.page_tokens;
    TRY(seq_bytes(&shape, &part, need_out, &compute));
    *page_out = per_page(*need_out, ceil_div(part.options.max_tokens, shape.page_tokens));
    return 0;
}

/* Every device of a group holds a part of every sequence. ever: as if nothing else were there. */
static int check_group(const struct nkv_context *context, const struct nkv_seq *seq, bool ever)
{
    const struct group *group = context->group;
    const char *name = nkv_kv_parallel_name(group_kind_of(context));

    for (uint32_t i = 0; i < group_size(group); i++) {
        const struct port *port = group_member(group, i);
        uint64_t need = 0, page = 0, have = 0;
        char note[160];

        TRY(part_bytes(context, seq, i, &need, &page));
        have = port->caps.capacity_bytes;
        if (!ever)
            TRY(port_free(port, page, &have));
        if (need > have)
            FAIL(NKV_ENOSPC,
                 "%u tokens over %u devices (%s) need %.1f MiB on device %u (%s): %.1f MiB of %.1f MiB are free, %.1f "
                 "MiB are missing; close other sequences, give more capacity or more devices%s",
                 seq->options.max_tokens, group_size(group), name, mib(need), i, port->caps.name, mib(have),
                 mib(port->caps.capacity_bytes), mib(need - have), ever ? "" : kept(port, 1, note));
    }
    return 0;
}

uint64_t seq_load(const struct nkv_kv_shape *shape, const struct nkv_seq *seq, uint32_t n_devices)
{
    const struct nkv_step_work work = {
        .mode = seq->options.mode,
        .n_layers = shape->n_layers,
        .n_dense_layers = seq->options.n_dense_layers,
        .n_tokens = seq->options.max_tokens,
        .budget_tokens = seq->options.budget_tokens,
        .page_tokens = shape->page_tokens,
        .page_bytes = nkv_page_bytes(shape, shape->n_kv_heads),
        .digest_bytes = shape->n_kv_heads * nkv_digest_bytes(shape),
    };

    return nkv_spread_bytes(&work, n_devices);
}

static void add_load(struct nkv_context *context, const struct nkv_seq *seq)
{
    uint32_t n = seq_is_spread(seq) ? context->options.n_devices : 1, first = n > 1 ? 0 : seq->home->index;

    for (uint32_t i = 0; i < n; i++)
        context->loads[first + i] += seq_load(&context->shape, seq, n);
}

int context_survey(struct nkv_context *context, uint64_t page_bytes)
{
    uint64_t most = 0;
    int gone = 0;

    for (uint32_t i = 0; i < context->options.n_devices; i++) {
        int status;

        context->free_bytes[i] = context->loads[i] = 0;
        status = port_free(&context->ports[i], page_bytes, &context->free_bytes[i]);
        if (status < 0 && status != NKV_EDEVICE)
            return status;
        if (status < 0) { /* it is gone: it has no room */
            gone = status;
            if (context->ports[i].status == 0)
                port_fail(context, &context->ports[i], status, nkv_last_error());
        }
        if (context->free_bytes[i] > most)
            most = context->free_bytes[i];
    }
    for (const struct nkv_seq *seq = context->sequences; seq; seq = seq->next)
        add_load(context, seq);
    return most == 0 ? gone : 0;
}

static uint64_t most_free(const struct nkv_context *context)
{
    uint64_t most = 0;

    for (uint32_t i = 0; i < context->options.n_devices; i++)
        if (context->free_bytes[i] > most)
            most = context->free_bytes[i];
    return most;
}

/* The number of the port, or NKV_ENOSPC. One that refused has less than what was asked for. */
static int choose(struct nkv_context *context, const struct nkv_seq *seq, uint64_t need_bytes, bool whole)
{
    uint32_t n = context->options.n_devices;
    struct nkv_share all = {need_bytes, seq_load(&context->shape, seq, 1)}, part = {0};

    for (uint32_t i = 0; i < n; i++)
        if (context->ports[i].refused && context->free_bytes[i] >= need_bytes)
            context->free_bytes[i] = need_bytes - 1;
    if (whole || !context->shares || context->group_port->status < 0 || context->group_port->refused)
        return nkv_place(context->loads, context->free_bytes, n, need_bytes);
    part.load = seq_load(&context->shape, seq, n);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t need = 0, page = 0;

        TRY(part_bytes(context, seq, i, &need, &page));
        part.need_bytes = need > part.need_bytes ? need : part.need_bytes;
    }
    return nkv_place_or_spread(context->loads, context->free_bytes, n, &all, &part);
}

/* Who asks a device for its room may be the first to learn that it is gone; unless that is noted, nobody recovers it.
 */
static int note_loss(struct nkv_context *context, struct port *port, int status)
{
    if (status == NKV_EDEVICE && port->status == 0)
        port_fail(context, port, status, nkv_last_error());
    return status;
}

int seq_place(struct nkv_context *context, struct nkv_seq *seq, bool whole)
{
    uint64_t home = 0, compute = 0, most;
    int port;

    TRY(seq_bytes(&context->shape, seq, &home, &compute));
    if (context->group && !context->shares) {
        seq->home = context->group_port;
        TRY(note_loss(context, context->group_port, check_group(context, seq, false)));
        if (seq->home->refused)
            FAIL(NKV_ENOSPC, "%s", context->refusal);
        return note_loss(context, context->compute, check_compute(context, compute));
    }
    TRY(context_survey(context, per_page(home, seq->max_pages)));
    most = most_free(context);
    port = choose(context, seq, home, whole);
    if (port < 0 && port != NKV_ENOSPC)
        return port;
    if (port < 0 && home > largest(context) && !whole && context->shares)
        TRY(check_group(context, seq, false));
    if (port < 0)
        return refuse(context, seq, home, most);
    TRY(note_loss(context, context->compute, check_compute(context, compute)));
    seq->home = &context->ports[port];
    return 0;
}

/* Where a sequence can lie at best. */
static int check_ever(const struct nkv_context *context, const struct nkv_seq *seq, uint64_t home)
{
    if (context->group && (!context->shares || home > largest(context)))
        return check_group(context, seq, true);
    return home > largest(context) ? refuse(context, seq, home, largest(context)) : 0;
}

int nkv_seq_can_fit(const struct nkv_context *context, const struct nkv_seq_options *options)
{
    const struct port *side = context->compute;
    uint64_t home = 0, compute = 0;
    struct nkv_seq seq = {0};

    TRY(seq_resolve(&context->shape, options, &seq));
    TRY(seq_bytes(&context->shape, &seq, &home, &compute));
    TRY(check_ever(context, &seq, home));
    return compute > 0 && (!side || compute > side->caps.capacity_bytes) ? check_compute(context, compute) : 0;
}

int seq_check_compute(struct nkv_context *context, const struct nkv_seq *seq)
{
    uint64_t home = 0, compute = 0;

    TRY(seq_bytes(&context->shape, seq, &home, &compute));
    return note_loss(context, context->compute, check_compute(context, compute));
}
