/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mirror of a recall sequence: its digests and its open page on the compute device, where recall selects.
 *
 * Decode keeps the mirror up to date with one APPEND per step. Prefill, fork and truncate leave it behind; the first
 * decode step after them cuts it back to the last page boundary that is surely right and copies the digests from there
 * on, layer by layer, through the lane that the step is about to use. Mirroring every prefill chunk was rejected: the
 * digests would be built twice and the keys would cross the link twice.
 */
#include "runtime/runtime.h"

#include <string.h>

struct move {
    struct nkv_context *context;
    struct nkv_seq *seq;
    const uint8_t *from;
    uint64_t home_base, compute_base;
};

/* One READ at home, the bytes carried over, one WRITE on the compute side. */
static int move(const struct move *m, struct nkv_cmd *read, struct nkv_cmd *write, uint64_t bytes)
{
    read->op = NKV_OP_READ;
    read->seq = m->seq->id;
    read->out_offset = m->home_base;
    write->op = NKV_OP_WRITE;
    write->seq = m->seq->mirror_id;
    write->in_offset = m->compute_base;
    TRY(port_control(m->context, m->seq->home, read));
    TRY(port_copy(m->context->compute, m->compute_base, m->from, bytes));
    TRY(port_control(m->context, m->context->compute, write));
    m->seq->stats.from_device_bytes += bytes;
    return 0;
}

static int move_digests(const struct move *m, uint32_t layer, uint32_t begin, uint32_t end)
{
    const struct nkv_kv_shape *shape = &m->context->shape;

    for (uint32_t page = begin; page < end; page += MOVE_PAGES) {
        uint32_t n = end - page < MOVE_PAGES ? end - page : MOVE_PAGES;
        struct nkv_cmd read = {.flags = NKV_DIGEST, .layer = (uint16_t)layer, .pos = page, .n_pages = n};
        struct nkv_cmd write = read;

        TRY(move(m, &read, &write, (uint64_t)n * shape->n_kv_heads * nkv_digest_bytes(shape)));
    }
    return 0;
}

static int move_open_page(const struct move *m, uint32_t layer, uint32_t page, uint32_t n_tokens)
{
    const struct nkv_kv_shape *shape = &m->context->shape;
    uint64_t bytes = nkv_page_bytes(shape, shape->n_kv_heads);
    uint32_t list[2] = {1, page};
    struct nkv_cmd read = {.layer = (uint16_t)layer, .n_pages = 1, .list_offset = m->home_base + nkv_align64(bytes)};
    struct nkv_cmd write = {.layer = (uint16_t)layer,
                            .n_pages = 1,
                            .n_tokens = n_tokens,
                            .list_offset = m->compute_base + nkv_align64(bytes)};

    memcpy(m->seq->home->window + read.list_offset, list, sizeof list);
    memcpy(m->context->compute->window + write.list_offset, list, sizeof list);
    return move(m, &read, &write, bytes);
}

int mirror_attach(struct nkv_context *context, struct nkv_ticket *lane, struct nkv_seq *seq)
{
    uint32_t page_tokens = context->shape.page_tokens, end = seq->length / page_tokens;
    uint32_t begin = seq->mirror_tokens / page_tokens, n_open = seq->length % page_tokens;
    struct move m = {context, seq, NULL, lane->index * seq->home->lane_bytes,
                     lane->index * context->compute->lane_bytes};
    struct nkv_cmd cut = {.op = NKV_OP_SEQ_TRUNCATE, .seq = seq->mirror_id, .pos = begin * page_tokens};

    m.from = seq->home->window + m.home_base;
    seq->mirror_stale = true;
    if (seq->home->status < 0) /* before the host writes operands there: what it was given may still run */
        FAIL(seq->home->status, "%s", seq->home->error);
    TRY(port_control(context, context->compute, &cut));
    for (uint32_t layer = 0; layer < context->shape.n_layers; layer++) {
        TRY(move_digests(&m, layer, begin, end));
        if (n_open)
            TRY(move_open_page(&m, layer, end, n_open));
    }
    seq->mirror_tokens = seq->length;
    seq->mirror_stale = false;
    return 0;
}
