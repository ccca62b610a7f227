/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences: open, close, fork, truncate. A sequence is up to three sequences of devices: its pages on the home device,
 * its resident pages (slots) and, in recall, its digests (mirror) on the compute device. All memory is reserved when it
 * opens; the compute side is filled by the first decode steps.
 *
 * The device keeps no more state about residency than what the slots hold: the table of which page a slot holds lives
 * here and travels with every SELECT, so that forgetting (truncate, failure) is a change of the table.
 */
#include "runtime/runtime.h"

#include <stdio.h>
#include <string.h>

#define CLOSE_ATTEMPTS 3u

void nkv_seq_options_init(struct nkv_seq_options *options)
{
    *options = (struct nkv_seq_options){.size = sizeof *options,
                                        .mode = NKV_MODE_PNM,
                                        .budget_tokens = 2048,
                                        .sink_pages = NKV_DEFAULT,
                                        .recent_pages = NKV_DEFAULT,
                                        .resident_tokens = NKV_DEFAULT,
                                        .prefill_budget_tokens = NKV_DEFAULT};
}

uint32_t *seq_resident(const struct nkv_seq *seq, uint32_t layer, uint32_t unit)
{
    return seq->resident + ((size_t)layer * seq->n_units + unit) * seq->n_slots;
}

static size_t n_resident(const struct nkv_seq *seq)
{
    return (size_t)seq->context->shape.n_layers * seq->n_units * seq->n_slots;
}

void seq_mark_failed(struct nkv_seq *seq, int status, const char *error)
{
    if (seq->status < 0)
        return;
    seq->status = status;
    snprintf(seq->error, sizeof seq->error, "%s", error);
}

/* A close that a device refuses would leak the pages, so it is tried again: when the device is lost, once it is back.
 */
static void close_on(struct nkv_context *context, struct port *port, uint16_t flags, uint32_t *id)
{
    struct nkv_cmd cmd = {.op = NKV_OP_SEQ_CLOSE, .seq = *id, .flags = flags};
    int status = NKV_EDEVICE;

    for (uint32_t i = 0; *id && status < 0 && i < CLOSE_ATTEMPTS; i++)
        status = port_control(context, port, &cmd);
    if (*id && status < 0 && port->status < 0)
        port_note_orphan(port, *id, flags);
    *id = 0;
}

static bool id_taken(const struct nkv_context *context, uint32_t id)
{
    for (uint32_t p = 0; p < context->n_ports; p++)
        for (uint32_t i = 0; i < context->ports[p].n_orphans; i++)
            if (context->ports[p].orphans[i].id == id)
                return true;
    for (const struct nkv_seq *seq = context->sequences; seq; seq = seq->next)
        if (seq->id == id || seq->mirror_id == id || seq->slots_id == id)
            return true;
    return id == 0;
}

/* The next id that no open sequence has: after 2^32 they begin anew. */
static uint32_t free_id(struct nkv_context *context)
{
    while (id_taken(context, context->next_id))
        context->next_id++;
    return context->next_id;
}

/* Runs a command that opens sequence next_id. Of a device that goes meanwhile nobody knows whether it did. */
static int open_next(struct nkv_context *context, struct port *port, const struct nkv_cmd *cmd, uint32_t *id_out)
{
    int res = port_control(context, port, cmd);

    if (res >= 0)
        *id_out = context->next_id++;
    else if (port->status < 0)
        port_note_orphan(port, context->next_id++, 0);
    return res;
}

/* OPEN or FORK. returns: tokens that the device says it holds. */
static int open_on(struct nkv_context *context, struct port *port, struct nkv_cmd cmd, uint32_t n_tokens,
                   uint32_t *id_out)
{
    int n_kept;

    cmd.seq = free_id(context);
    cmd.n_tokens = n_tokens;
    n_kept = open_next(context, port, &cmd, id_out);
    TRY(n_kept);
    if ((uint32_t)n_kept > n_tokens)
        FAIL(NKV_EDEVICE, "%s says that a sequence of at most %u tokens holds %d", port->label, n_tokens, n_kept);
    return n_kept;
}

static void close_devices(struct nkv_seq *seq)
{
    close_on(seq->context, seq->home, seq->removes ? NKV_NAMED : 0, &seq->id);
    close_on(seq->context, seq->context->compute, 0, &seq->mirror_id);
    close_on(seq->context, seq->context->compute, 0, &seq->slots_id);
}

/* Closing may fail, too; the message that the caller gets is that of the failure before. */
static int close_after(struct nkv_seq *seq, int status)
{
    char message[512];

    strncpy(message, nkv_last_error(), sizeof message - 1);
    message[sizeof message - 1] = '\0';
    close_devices(seq);
    return nkv_fail(status, "%s", message);
}

static int open_compute(struct nkv_seq *seq)
{
    struct nkv_context *context = seq->context;
    const struct nkv_cmd mirror = {.op = NKV_OP_SEQ_OPEN, .flags = NKV_NO_PAGES};
    const struct nkv_cmd slots = {.op = NKV_OP_SEQ_OPEN, .flags = NKV_SLOTS};

    if (seq->options.mode == NKV_MODE_RECALL)
        TRY(open_on(context, context->compute, mirror, seq->options.max_tokens, &seq->mirror_id));
    if (seq->n_slots)
        TRY(open_on(context, context->compute, slots, seq->n_slots * context->shape.page_tokens, &seq->slots_id));
    if (context->compute)
        seq->compute_epoch = context->compute->epoch;
    return 0;
}

static int open_home(struct nkv_seq *seq, const struct nkv_cmd *open)
{
    struct nkv_context *context = seq->context;
    int n_kept = open_on(context, seq->home, *open, seq->options.max_tokens, &seq->id);

    if (n_kept == NKV_ENOSPC && seq->home->status == 0) {
        seq->home->refused = true;
        snprintf(context->refusal, sizeof context->refusal, "%s", nkv_last_error());
    }
    TRY(n_kept);
    seq->length = open->op == NKV_OP_SEQ_FORK ? open->pos : (uint32_t)n_kept;
    return 0;
}

static void link_seq(struct nkv_seq *seq)
{
    seq->next = seq->context->sequences;
    if (seq->next)
        seq->next->previous = seq;
    seq->context->sequences = seq;
}

static void unlink_seq(struct nkv_seq *seq)
{
    if (seq->next)
        seq->next->previous = seq->previous;
    if (seq->previous)
        seq->previous->next = seq->next;
    else
        seq->context->sequences = seq->next;
}

int seq_create(const struct nkv_seq *draft, const struct nkv_cmd *open, struct nkv_seq **seq_out)
{
    struct nkv_seq *seq;
    int status;

    TRY(context_reserve(draft->context, draft));
    TRY(nkv_alloc(1, sizeof *seq, &seq));
    *seq = *draft;
    status = nkv_alloc(n_resident(seq), sizeof *seq->resident, &seq->resident);
    if (status < 0)
        goto free_seq;
    memset(seq->resident, 0xff, n_resident(seq) * sizeof *seq->resident);
    status = open_home(seq, open);
    if (status >= 0)
        status = open_compute(seq);
    if (status < 0)
        goto close_devices;
    link_seq(seq);
    *seq_out = seq;
    return 0;

close_devices:
    status = close_after(seq, status);
    nkv_free(seq->resident);
free_seq:
    nkv_free(seq);
    return status;
}

/* Another client may have taken the room meanwhile, or there is none of something that no count tells of: then the next
 * device is asked. */
int seq_open(struct nkv_context *context, const struct nkv_seq_options *options, bool whole, struct nkv_seq **seq_out)
{
    struct nkv_seq draft = {.context = context};
    struct nkv_cmd open = {.op = NKV_OP_SEQ_OPEN};
    int status;

    TRY(seq_resolve(&context->shape, options, &draft));
    open.flags = seq_has_digests(&draft) ? 0 : NKV_NO_DIGEST;
    for (uint32_t i = 0; i < context->n_ports; i++)
        context->ports[i].refused = false;
    do {
        TRY(seq_place(context, &draft, whole));
        status = seq_create(&draft, &open, seq_out);
    } while (status == NKV_ENOSPC && draft.home->refused);
    return status;
}

int nkv_seq_open(struct nkv_context *context, const struct nkv_seq_options *options, struct nkv_seq **seq_out)
{
    return seq_open(context, options, false, seq_out);
}

static int check_fork(const struct nkv_seq *parent, uint32_t n_tokens, const struct nkv_seq *draft)
{
    if (n_tokens > parent->length)
        FAIL(NKV_EINVAL, "a fork of %u tokens of a sequence that has %u", n_tokens, parent->length);
    if (n_tokens > draft->options.max_tokens)
        FAIL(NKV_EINVAL, "a fork of %u tokens into a sequence of at most %u: raise max_tokens", n_tokens,
             draft->options.max_tokens);
    if (seq_has_digests(draft) && !seq_has_digests(parent))
        FAIL(NKV_EINVAL, "the parent has no digests, which selection needs: open it with keep_digests");
    return 0;
}

int nkv_seq_fork(struct nkv_seq *parent, uint32_t n_tokens, const struct nkv_seq_options *options,
                 struct nkv_seq **seq_out)
{
    struct nkv_seq draft = {.context = parent->context, .home = parent->home};
    struct nkv_cmd open = {.op = NKV_OP_SEQ_FORK, .arg = parent->id, .pos = n_tokens};

    TRY(seq_resolve(&parent->context->shape, options ? options : &parent->options, &draft));
    TRY(check_fork(parent, n_tokens, &draft));
    draft.options.keep_digests |= seq_has_digests(parent); /* the copy has what its parent has */
    TRY(seq_check_compute(parent->context, &draft));
    return seq_create(&draft, &open, seq_out);
}

void nkv_seq_close(struct nkv_seq *seq)
{
    if (!seq)
        return;
    if (seq->ticket)
        lane_finish_work(seq->ticket, seq);
    context_drain(seq->context, seq, ANY_LAYER);
    close_devices(seq);
    unlink_seq(seq);
    nkv_free(seq->resident);
    nkv_free(seq->ids);
    nkv_free(seq);
}

int seq_discard(struct nkv_seq *seq, int status)
{
    char message[512];

    strncpy(message, nkv_last_error(), sizeof message - 1);
    message[sizeof message - 1] = '\0';
    seq->removes = seq->ids != NULL;
    nkv_seq_close(seq);
    return nkv_fail(status, "%s", message);
}

/* Resident pages that are no longer whole are given up; after a failure, all. */
static void forget_resident(struct nkv_seq *seq, uint32_t n_pages)
{
    for (size_t i = 0; i < n_resident(seq); i++)
        if (seq->resident[i] >= n_pages)
            seq->resident[i] = NKV_PAGE_NONE;
}

/* A compute device that was lost may have come back without what it held. */
static int renew_compute(struct nkv_seq *seq)
{
    struct nkv_context *context = seq->context;

    if (!context->compute || seq->compute_epoch == context->compute->epoch)
        return 0;
    close_on(context, context->compute, 0, &seq->mirror_id);
    close_on(context, context->compute, 0, &seq->slots_id);
    forget_resident(seq, 0);
    seq->mirror_tokens = 0;
    seq->mirror_stale = true;
    return open_compute(seq);
}

/* Cuts the pages at home. When the device goes meanwhile, nobody knows what it holds behind the cut: those tokens are
 * given up. */
static int truncate_home(struct nkv_seq *seq, uint32_t n_tokens)
{
    struct nkv_cmd cmd = {.op = NKV_OP_SEQ_TRUNCATE, .seq = seq->id, .pos = n_tokens};
    bool was_lost = seq->home->status < 0;
    int status = port_control(seq->context, seq->home, &cmd);

    if (status >= 0 || was_lost || seq->home->status == 0)
        return status;
    seq_mark_failed(seq, seq->home->status, seq->home->error);
    seq->length = n_tokens;
    return status;
}

int nkv_seq_truncate(struct nkv_seq *seq, uint32_t n_tokens)
{
    uint32_t page_tokens = seq->context->shape.page_tokens;
    bool trusted;

    if (seq->ticket)
        FAIL(NKV_ESTATE, "a sequence cannot be truncated while its ticket is in flight: end it first");
    if (n_tokens > seq->length)
        FAIL(NKV_EINVAL, "cannot truncate to %u tokens a sequence that has %u", n_tokens, seq->length);
    context_drain(seq->context, seq, ANY_LAYER);
    TRY(renew_compute(seq));
    TRY(truncate_home(seq, n_tokens));
    trusted = seq->status == 0;
    forget_resident(seq, trusted ? n_tokens / page_tokens : 0);
    if (seq->mirror_tokens > n_tokens / page_tokens * page_tokens)
        seq->mirror_tokens = n_tokens / page_tokens * page_tokens;
    if (!trusted)
        seq->mirror_tokens = 0;
    seq->mirror_stale = true;
    seq->length = n_tokens;
    seq->next_layer = seq->step_tokens = seq->n_ids = 0;
    seq->status = 0;
    seq->error[0] = '\0';
    return 0;
}

uint32_t nkv_seq_length(const struct nkv_seq *seq)
{
    return seq->length;
}

int nkv_seq_status(const struct nkv_seq *seq)
{
    return seq->status;
}

const char *nkv_seq_error(const struct nkv_seq *seq)
{
    return seq->error;
}

uint32_t nkv_seq_device(const struct nkv_seq *seq)
{
    return seq_is_spread(seq) ? NKV_ALL_DEVICES : seq->home->index;
}
