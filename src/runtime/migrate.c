/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moves a sequence from one PNM device to another between two steps. Its pages are read and written in pieces of about
 * 4 MB through the control areas of both windows, layer by layer; WRITE builds the digests from the same bytes, so they
 * are the same.
 *
 * Invariant: the sequence is whole on one device at any time. The copy is a sequence of its own until its last page is
 * written; then the two exchange their places, and the old one is closed. What ends a move before (no room, a device's
 * error, the caller) closes the copy, and nothing has happened. The compute side stays as it is: resident pages and
 * mirror are known by page numbers, which do not change.
 *
 * Moving page by page while decoding goes on was rejected: a step would attend on two devices, for a move that takes a
 * few steps' time.
 */
#include "runtime/runtime.h"

#include "policy/place.h"

#define PIECE_BYTES ((uint64_t)4 << 20)

struct migration {
    struct nkv_context *context;
    const struct nkv_seq *from, *to;
    uint32_t n_pages, piece_pages;
    uint64_t page_bytes, n_done;
    nkv_progress_fn progress;
    void *progress_arg;
};

static uint64_t held_bytes(const struct nkv_seq *seq)
{
    const struct nkv_kv_shape *shape = &seq->context->shape;
    uint64_t n_pages = seq->length / shape->page_tokens + (seq->length % shape->page_tokens != 0);

    return n_pages * nkv_page_bytes(shape, shape->n_kv_heads) * shape->n_layers;
}

static int carry_piece(struct migration *m, uint32_t layer, uint32_t first, uint32_t n)
{
    uint32_t page_tokens = m->context->shape.page_tokens, end = (first + n) * page_tokens;
    struct nkv_cmd read = port_name_pages(m->from->home, m->from->id, layer, first, n);
    struct nkv_cmd write = port_name_pages(m->to->home, m->to->id, layer, first, n);
    const uint8_t *data;

    read.op = NKV_OP_READ;
    read.out_offset = read.list_offset + nkv_list_stride(n);
    data = m->from->home->window + read.out_offset;
    write.op = NKV_OP_WRITE;
    write.in_offset = write.list_offset + nkv_list_stride(n);
    write.n_tokens = (end < m->from->length ? end : m->from->length) - first * page_tokens;
    TRY(port_control(m->context, m->from->home, &read));
    TRY(port_copy(m->to->home, write.in_offset, data, n * m->page_bytes));
    TRY(port_control(m->context, m->to->home, &write));
    m->n_done += n * m->page_bytes;
    if (m->progress && m->progress(m->progress_arg, m->n_done, held_bytes(m->from)))
        FAIL(NKV_ECANCELED, "stopped after %llu of %llu bytes", (unsigned long long)m->n_done,
             (unsigned long long)held_bytes(m->from));
    return 0;
}

static int carry(struct migration *m)
{
    for (uint32_t layer = 0; layer < m->context->shape.n_layers; layer++)
        for (uint32_t first = 0; first < m->n_pages; first += m->piece_pages) {
            uint32_t rest = m->n_pages - first;

            TRY(carry_piece(m, layer, first, rest < m->piece_pages ? rest : m->piece_pages));
        }
    return 0;
}

/* The same memory, without a compute side. */
static int open_copy(const struct nkv_seq *seq, struct port *home, struct nkv_seq **copy_out)
{
    struct nkv_seq draft = {.context = seq->context, .home = home};
    struct nkv_cmd open = {.op = NKV_OP_SEQ_OPEN, .flags = seq_has_digests(seq) ? 0 : NKV_NO_DIGEST};
    struct nkv_seq_options options;

    nkv_seq_options_init(&options);
    options.mode = NKV_MODE_FULL;
    options.keep_digests = seq_has_digests(seq);
    options.max_tokens = seq->options.max_tokens;
    TRY(seq_resolve(&seq->context->shape, &options, &draft));
    return seq_create(&draft, &open, copy_out);
}

static bool can_move(const struct nkv_seq *seq)
{
    return !seq->ticket && seq->next_layer == 0 && seq->status == 0 && !seq->ids && !seq_is_spread(seq);
}

static int check(const struct nkv_seq *seq, uint32_t device)
{
    const struct nkv_context *context = seq->context;

    if (device >= context->options.n_devices)
        FAIL(NKV_EINVAL, "device %u of a context with %u", device, context->options.n_devices);
    if (seq->ids)
        FAIL(NKV_ENOTSUP, "a session stays on its device: export it, and import it on another");
    if (seq_is_spread(seq))
        FAIL(NKV_ENOTSUP, "a sequence that lies on all devices (cp) has none to leave: it stays as it was opened");
    if (seq->status < 0)
        FAIL(NKV_ESTATE, "a sequence that failed (%s) cannot be moved: truncate it first", seq->error);
    if (!can_move(seq))
        FAIL(NKV_ESTATE, "a sequence cannot be moved in the middle of a step: end the step first");
    return 0;
}

static int check_room(const struct nkv_seq *seq, const struct port *target)
{
    uint64_t home = 0, compute = 0, room = 0;

    if (target->status < 0)
        FAIL(target->status, "%s", target->error);
    TRY(seq_bytes(&seq->context->shape, seq, &home, &compute));
    TRY(port_free(target, home / seq->max_pages, &room));
    if (home > room)
        FAIL(NKV_ENOSPC,
             "%u tokens need %llu bytes on device %u (%s), which has %llu left: close other sequences there",
             seq->options.max_tokens, (unsigned long long)home, target->index, target->caps.name,
             (unsigned long long)room);
    return 0;
}

static void exchange(struct nkv_seq *a, struct nkv_seq *b)
{
    struct port *home = a->home;
    uint32_t id = a->id;

    a->home = b->home;
    a->id = b->id;
    b->home = home;
    b->id = id;
}

int nkv_seq_migrate(struct nkv_seq *seq, uint32_t device, nkv_progress_fn progress, void *progress_arg)
{
    struct nkv_context *context = seq->context;
    uint32_t page_tokens = context->shape.page_tokens;
    struct migration m = {
        .context = context,
        .from = seq,
        .n_pages = seq->length / page_tokens + (seq->length % page_tokens != 0),
        .page_bytes = nkv_page_bytes(&context->shape, context->shape.n_kv_heads),
        .progress = progress,
        .progress_arg = progress_arg,
    };
    struct nkv_seq *copy = NULL;
    uint64_t control_bytes;
    int status;

    TRY(check(seq, device));
    if (seq->home->index == device)
        return 0;
    TRY(check_room(seq, &context->ports[device]));
    m.piece_pages = m.page_bytes > PIECE_BYTES ? 1 : (uint32_t)(PIECE_BYTES / m.page_bytes);
    m.piece_pages = m.piece_pages > m.n_pages ? m.n_pages : m.piece_pages;
    context_drain(context, seq, ANY_LAYER);
    control_bytes = nkv_list_stride(m.piece_pages) + m.piece_pages * m.page_bytes;
    TRY(context_reserve_control(context, seq->home, control_bytes));
    TRY(context_reserve_control(context, &context->ports[device], control_bytes));
    TRY(open_copy(seq, &context->ports[device], &copy));
    m.to = copy;
    status = carry(&m);
    if (status < 0)
        return seq_discard(copy, status);
    exchange(seq, copy);
    nkv_seq_close(copy);
    return 0;
}

/* ---- Which one */

static int plan_move(struct nkv_context *context, struct nkv_seq **seqs, struct nkv_placed *placed, uint32_t n_steps,
                     struct nkv_move *move_out)
{
    uint32_t n = 0;

    for (struct nkv_seq *seq = context->sequences; seq; seq = seq->next) {
        uint64_t compute = 0;

        if (!can_move(seq))
            continue;
        TRY(seq_bytes(&context->shape, seq, &placed[n].need_bytes, &compute));
        placed[n].load = seq_load(&context->shape, seq, 1);
        placed[n].held_bytes = held_bytes(seq);
        placed[n].device = seq->home->index;
        seqs[n++] = seq;
    }
    return nkv_migrate_plan(placed, n, context->loads, context->free_bytes, context->options.n_devices, n_steps,
                            move_out);
}

int nkv_context_rebalance(struct nkv_context *context, uint32_t n_steps)
{
    struct nkv_placed *placed = NULL;
    struct nkv_seq **seqs = NULL;
    struct nkv_move move;
    uint32_t n = 0;
    int status;

    TRY(context_survey(context, nkv_page_bytes(&context->shape, context->shape.n_kv_heads) * context->shape.n_layers));
    if (!nkv_unbalanced(context->loads, context->options.n_devices))
        return 0;
    for (const struct nkv_seq *seq = context->sequences; seq; seq = seq->next)
        n++;
    TRY(nkv_alloc(n, sizeof(struct nkv_seq *), &seqs));
    status = nkv_alloc(n, sizeof *placed, &placed);
    if (status == 0)
        status = plan_move(context, seqs, placed, n_steps, &move);
    if (status > 0) {
        status = nkv_seq_migrate(seqs[move.seq], move.device, NULL, NULL);
        status = status < 0 ? status : 1;
    }
    nkv_free(placed);
    nkv_free(seqs);
    return status;
}
