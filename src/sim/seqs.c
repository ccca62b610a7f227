/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences without data. What they hold is counted to the byte as a real device counts it, since placement follows it:
 * a sequence is charged nkv_kv_estimate() when it opens; a fork shares the full pages (and full chunks of digests) of
 * its beginning and is charged the rest.
 *
 * Who shares what is a forest: the first n_shared pages of a sequence are also its parent's, where "parent" is any
 * sequence that has these pages, not always the one it was forked from. Each page is charged to the one sequence that
 * does not share it upwards:
 *
 *   used = sum over sequences of  whole(max_tokens) - shared(n_shared)
 *
 * When a sequence closes or is cut back, the child that shares most of it becomes the parent of the others. A count per
 * page, as a real device has, was rejected: a simulated batch has a hundred million pages, and few forks.
 */
#include "sim/seqs.h"

#include <nearkv/nearkv.h>
#include <string.h>

#include "base/mem.h"

#define NO_PARENT UINT32_MAX

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

int sim_seqs_init(const struct nkv_kv_shape *shape, uint64_t capacity_bytes, uint32_t max, struct sim_seqs *seqs_out)
{
    struct sim_seqs seqs = {.shape = *shape, .capacity_bytes = capacity_bytes, .max = max};
    struct nkv_kv_estimate page = {0};
    int status;

    TRY(nkv_kv_estimate(shape, shape->page_tokens, &page));
    seqs.page_bytes = page.page_bytes;
    seqs.chunk_bytes = page.digest_bytes; /* a page's digest takes a whole chunk */
    seqs.chunk_pages =
        (uint32_t)(page.digest_bytes / ((uint64_t)shape->n_layers * shape->n_kv_heads * nkv_digest_bytes(shape)));
    TRY(nkv_alloc(max, sizeof *seqs.all, &seqs.all));
    status = nkv_alloc((size_t)max * shape->n_layers, sizeof *seqs.lengths, &seqs.lengths);
    if (status < 0) {
        nkv_free(seqs.all);
        return status;
    }
    for (uint32_t i = 0; i < max; i++)
        seqs.all[i].lengths = seqs.lengths + (size_t)i * shape->n_layers;
    *seqs_out = seqs;
    return 0;
}

void sim_seqs_free(struct sim_seqs *seqs)
{
    nkv_free(seqs->all);
    nkv_free(seqs->lengths);
}

int sim_seqs_find(struct sim_seqs *seqs, uint32_t id, struct sim_seq **seq_out)
{
    for (uint32_t i = 0; i < seqs->max; i++)
        if (seqs->all[i].open && seqs->all[i].id == id) {
            *seq_out = &seqs->all[i];
            return 0;
        }
    FAIL(NKV_ENOENT, "no sequence %u on this device", id);
}

/* ---- Bytes ---- */

static bool has_digests(uint16_t flags)
{
    return !(flags & (NKV_SLOTS | NKV_NO_DIGEST));
}

static uint64_t whole_bytes(const struct sim_seqs *seqs, uint32_t max_tokens, uint16_t flags)
{
    struct nkv_kv_estimate estimate = {0};

    if (nkv_kv_estimate(&seqs->shape, max_tokens, &estimate) < 0)
        return UINT64_MAX;
    if (!has_digests(flags))
        return estimate.kv_bytes;
    return flags & NKV_NO_PAGES ? estimate.digest_bytes + estimate.page_bytes : estimate.total_bytes;
}

static uint64_t shared_bytes(const struct sim_seqs *seqs, uint16_t flags, uint32_t n_shared)
{
    return n_shared * seqs->page_bytes + (has_digests(flags) ? n_shared / seqs->chunk_pages * seqs->chunk_bytes : 0);
}

static int charge(struct sim_seqs *seqs, uint64_t bytes)
{
    if (bytes > seqs->capacity_bytes - seqs->used_bytes)
        FAIL(NKV_ENOSPC, "%llu bytes for a sequence, %llu are free", (unsigned long long)bytes,
             (unsigned long long)(seqs->capacity_bytes - seqs->used_bytes));
    seqs->used_bytes += bytes;
    return 0;
}

/* What a sequence shares changes, and with it what it is charged. */
static void share(struct sim_seqs *seqs, struct sim_seq *seq, uint32_t parent, uint32_t n_shared)
{
    seqs->used_bytes += shared_bytes(seqs, seq->flags, seq->n_shared);
    seqs->used_bytes -= shared_bytes(seqs, seq->flags, n_shared);
    seq->parent = n_shared ? parent : NO_PARENT;
    seq->n_shared = n_shared;
}

/* The child that shares most of a sequence. */
static struct sim_seq *heir(struct sim_seqs *seqs, uint32_t index)
{
    struct sim_seq *best = NULL;

    for (uint32_t i = 0; i < seqs->max; i++) {
        struct sim_seq *seq = &seqs->all[i];

        if (seq->open && seq->parent == index && (!best || seq->n_shared > best->n_shared))
            best = seq;
    }
    return best;
}

/*
 * seq gives up its pages from n_pages on: children that share some of them hang on its heir instead, and the heir on
 * seq's parent as far as that shares them, too.
 */
static void give_up(struct sim_seqs *seqs, struct sim_seq *seq, uint32_t n_pages)
{
    uint32_t index = (uint32_t)(seq - seqs->all);
    struct sim_seq *next = heir(seqs, index);
    bool upwards = seq->n_shared > n_pages;

    if (!next || next->n_shared <= n_pages)
        return;
    for (uint32_t i = 0; i < seqs->max; i++) {
        struct sim_seq *child = &seqs->all[i];

        if (child != next && child->open && child->parent == index && child->n_shared > n_pages)
            child->parent = (uint32_t)(next - seqs->all);
    }
    share(seqs, next, upwards ? seq->parent : index, upwards ? min_u32(next->n_shared, seq->n_shared) : n_pages);
}

/* ---- Commands ---- */

static int take(struct sim_seqs *seqs, const struct nkv_cmd *cmd, uint64_t bytes, struct sim_seq **seq_out)
{
    struct sim_seq *seq = NULL;

    for (uint32_t i = 0; i < seqs->max; i++) {
        if (seqs->all[i].open && seqs->all[i].id == cmd->seq)
            FAIL(NKV_EINVAL, "sequence %u is open already", cmd->seq);
        if (!seqs->all[i].open && !seq)
            seq = &seqs->all[i];
    }
    if (!seq)
        FAIL(NKV_ENOSPC, "more than %u sequences on a simulated device", seqs->max);
    TRY(charge(seqs, bytes));
    *seq = (struct sim_seq){.id = cmd->seq,
                            .open = true,
                            .max_tokens = cmd->n_tokens,
                            .lengths = seq->lengths,
                            .parent = NO_PARENT,
                            .q_offset = UINT64_MAX};
    seqs->n_open++;
    *seq_out = seq;
    return 0;
}

static void set_lengths(const struct sim_seqs *seqs, struct sim_seq *seq, uint32_t n_tokens)
{
    for (uint32_t layer = 0; layer < seqs->shape.n_layers; layer++)
        seq->lengths[layer] = n_tokens;
}

int sim_seqs_add(struct sim_seqs *seqs, const struct nkv_cmd *cmd, uint32_t n_kept, struct sim_seq **seq_out)
{
    TRY(take(seqs, cmd, whole_bytes(seqs, cmd->n_tokens, cmd->flags), seq_out));
    (*seq_out)->flags = cmd->flags;
    set_lengths(seqs, *seq_out, n_kept);
    return 0;
}

int sim_seqs_fork(struct sim_seqs *seqs, const struct nkv_cmd *cmd, struct sim_seq **seq_out)
{
    uint32_t n_shared = cmd->pos / seqs->shape.page_tokens;
    struct sim_seq *parent = NULL;
    uint64_t bytes;

    TRY(sim_seqs_find(seqs, cmd->arg, &parent));
    if (parent->flags & (NKV_SLOTS | NKV_NO_PAGES))
        FAIL(NKV_ENOTSUP, "a fork of slots or of digests alone on a simulated device");
    for (uint32_t layer = 0; layer < seqs->shape.n_layers; layer++)
        TRY(sim_seq_check(parent, layer, 0, cmd->pos));
    if (cmd->pos > cmd->n_tokens)
        FAIL(NKV_EINVAL, "a copy of %u tokens does not fit a sequence of at most %u", cmd->pos, cmd->n_tokens);
    bytes = whole_bytes(seqs, cmd->n_tokens, parent->flags);
    if (bytes < UINT64_MAX)
        bytes -= shared_bytes(seqs, parent->flags, n_shared);
    TRY(take(seqs, cmd, bytes, seq_out));
    (*seq_out)->flags = parent->flags;
    (*seq_out)->n_shared = n_shared;
    (*seq_out)->parent = n_shared ? (uint32_t)(parent - seqs->all) : NO_PARENT;
    set_lengths(seqs, *seq_out, cmd->pos);
    return 0;
}

/* Pages that a sequence must get of its own when it is cut back, because others go on with those that it has. */
static uint64_t replaced_bytes(struct sim_seqs *seqs, struct sim_seq *seq, uint32_t n_pages)
{
    const struct sim_seq *next = heir(seqs, (uint32_t)(seq - seqs->all));
    uint32_t most = next && next->n_shared > seq->n_shared ? next->n_shared : seq->n_shared;

    if (most <= n_pages)
        return 0;
    return shared_bytes(seqs, seq->flags, most) - shared_bytes(seqs, seq->flags, n_pages);
}

int sim_seqs_truncate(struct sim_seqs *seqs, struct sim_seq *seq, uint32_t n_tokens)
{
    uint32_t n_pages = n_tokens / seqs->shape.page_tokens;

    if (seq->flags & NKV_SLOTS)
        FAIL(NKV_EINVAL, "sequence %u holds page slots: it cannot be truncated", seq->id);
    if (replaced_bytes(seqs, seq, n_pages) > seqs->capacity_bytes - seqs->used_bytes)
        FAIL(NKV_ENOSPC, "no room for the pages of sequence %u that its forks go on with", seq->id);
    give_up(seqs, seq, n_pages);
    if (seq->n_shared > n_pages)
        share(seqs, seq, seq->parent, n_pages);
    for (uint32_t layer = 0; layer < seqs->shape.n_layers; layer++)
        seq->lengths[layer] = min_u32(seq->lengths[layer], n_tokens);
    return 0;
}

void sim_seqs_remove(struct sim_seqs *seqs, struct sim_seq *seq)
{
    give_up(seqs, seq, 0);
    seqs->used_bytes -= whole_bytes(seqs, seq->max_tokens, seq->flags) - shared_bytes(seqs, seq->flags, seq->n_shared);
    seq->open = false;
    seqs->n_open--;
}

int sim_seq_extend(struct sim_seq *seq, uint32_t layer, uint32_t pos, uint32_t n_tokens)
{
    if (pos != seq->lengths[layer] || n_tokens > seq->max_tokens - pos)
        FAIL(NKV_EINVAL, "%u tokens at %u of sequence %u, layer %u, which holds %u of at most %u", n_tokens, pos,
             seq->id, layer, seq->lengths[layer], seq->max_tokens);
    seq->lengths[layer] += n_tokens;
    return 0;
}

int sim_seq_check(const struct sim_seq *seq, uint32_t layer, uint32_t pos, uint32_t n_tokens)
{
    if (pos > seq->lengths[layer] || n_tokens > seq->lengths[layer] - pos)
        FAIL(NKV_EINVAL, "tokens %u+%u of sequence %u, layer %u, which holds %u", pos, n_tokens, seq->id, layer,
             seq->lengths[layer]);
    return 0;
}
