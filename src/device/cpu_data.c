/* SPDX-License-Identifier: Apache-2.0 */
/*
 * APPEND, READ and WRITE: data between the window and the pages. A task is one KV head of one page (APPEND: of the
 * tokens that fall into it), so that a page's digest is built by whoever wrote its last token, while it is in cache.
 */
#include <string.h>

#include "device/cpu.h"
#include "policy/select.h"

struct append {
    struct nkv_cpu *cpu;
    const struct nkv_cmd *cmd;
    const struct nkv_kv_seq *seq;
    const float *k, *v;
    uint32_t n_segments; /* pages touched; NKV_NO_PAGES: 1, as they share one slot and must be filled in turn */
};

/* The tokens of cmd that fall into one segment: first (counted from 0) and how many. */
static uint32_t segment_tokens(const struct append *a, uint32_t segment, uint32_t *first_out)
{
    uint32_t page_tokens = a->cpu->shape.page_tokens, pos = a->cmd->pos, n = a->cmd->n_tokens;
    uint64_t begin = segment ? ((uint64_t)pos / page_tokens + segment) * page_tokens - pos : 0;
    uint64_t end = ((uint64_t)pos / page_tokens + segment + 1) * page_tokens - pos;

    *first_out = (uint32_t)begin;
    if (a->n_segments == 1)
        return n;
    return (uint32_t)((end < n ? end : n) - begin);
}

static void append_task(void *arg, uint32_t task, uint32_t rank)
{
    const struct append *a = arg;
    const struct nkv_kv_shape *shape = &a->cpu->shape;
    uint32_t head = task % shape->n_kv_heads, first, n = segment_tokens(a, task / shape->n_kv_heads, &first);
    size_t stride = (size_t)shape->n_kv_heads * shape->head_dim, at = first * stride + head * shape->head_dim;

    (void)rank;
    nkv_store_put(a->cpu->store, a->seq, a->cmd->layer, head, a->cmd->pos + first, n, a->k + at, a->v + at, stride);
}

static int check_growth(const struct nkv_kv_seq *seq, uint32_t layer, uint64_t n_tokens)
{
    if (n_tokens > seq->max_tokens - seq->lengths[layer])
        FAIL(NKV_ENOSPC, "sequence %u holds %u tokens of at most %u in layer %u: no room for %llu more", seq->id,
             seq->lengths[layer], seq->max_tokens, layer, (unsigned long long)n_tokens);
    return 0;
}

int nkv_cpu_append(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq)
{
    const struct nkv_kv_shape *shape = &cpu->shape;
    struct append a = {cpu, cmd, seq, NULL, NULL, 1};
    uint64_t floats = nkv_cpu_times(cmd->n_tokens, (uint64_t)shape->n_kv_heads * shape->head_dim);
    uint32_t n_pages;

    if (seq->flags & NKV_SLOTS)
        FAIL(NKV_EINVAL, "append: sequence %u holds page slots: use write", seq->id);
    if (cmd->n_tokens == 0)
        FAIL(NKV_EINVAL, "append: 0 tokens");
    if (cmd->pos != seq->lengths[cmd->layer])
        FAIL(NKV_EINVAL, "append: position %u, but layer %u of sequence %u holds %u tokens", cmd->pos, cmd->layer,
             seq->id, seq->lengths[cmd->layer]);
    TRY(check_growth(seq, cmd->layer, cmd->n_tokens));
    TRY(nkv_cpu_check_operand(cpu, "append: k, v", cmd->in_offset, nkv_cpu_times(floats, 2 * sizeof(float)), &a.k));
    a.v = a.k + floats;
    n_pages = (cmd->pos + (cmd->n_tokens - 1)) / shape->page_tokens - cmd->pos / shape->page_tokens + 1;
    if (!seq->held)
        a.n_segments = n_pages;
    nkv_cpu_tasks(cpu, 2 * sizeof(float) * floats, a.n_segments * shape->n_kv_heads, append_task, &a);
    nkv_store_extend(cpu->store, seq, cmd->layer, cmd->n_tokens, true);
    cpu->written_bytes = nkv_page_bytes(shape, shape->n_kv_heads) * cmd->n_tokens / shape->page_tokens;
    return 0;
}

/* READ and WRITE of pages: task = (list entry), all units in a row. */
struct transfer {
    struct nkv_cpu *cpu;
    const struct nkv_cmd *cmd;
    const struct nkv_kv_seq *seq;
    struct nkv_cpu_lists lists;
    uint32_t heads_per_unit;
    uint64_t page_bytes;
    char *packed;
    uint32_t n_full; /* WRITE: pages from the first of the list that get digests */
};

static void find_entry(const struct transfer *t, uint32_t task, uint32_t *unit_out, uint32_t *page_out)
{
    uint32_t unit = 0;

    while (task >= t->lists.n[unit])
        task -= t->lists.n[unit++];
    *unit_out = unit;
    *page_out = t->lists.ids[unit][task];
}

static void read_task(void *arg, uint32_t task, uint32_t rank)
{
    const struct transfer *t = arg;
    uint32_t unit, page;

    (void)rank;
    find_entry(t, task, &unit, &page);
    nkv_store_page_copy(t->cpu->store, t->seq, t->cmd->layer, page, unit * t->heads_per_unit, t->heads_per_unit,
                        t->packed + task * t->page_bytes);
}

static void write_task(void *arg, uint32_t task, uint32_t rank)
{
    const struct transfer *t = arg;
    uint32_t unit, page;

    (void)rank;
    find_entry(t, task, &unit, &page);
    nkv_store_page_fill(t->cpu->store, t->seq, t->cmd->layer, page, unit * t->heads_per_unit, t->heads_per_unit,
                        t->packed + task * t->page_bytes);
    for (uint32_t head = 0; task < t->n_full && head < t->heads_per_unit; head++)
        nkv_store_seal(t->cpu->store, t->seq, t->cmd->layer, head, page);
}

/* Takes the lists and finds the packed pages at `offset`. */
static int prepare(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, const struct nkv_kv_seq *seq, uint64_t offset,
                   struct transfer *t_out)
{
    struct transfer t = {.cpu = cpu, .cmd = cmd, .seq = seq};

    TRY(nkv_cpu_take_lists(cpu, cmd, cmd->n_pages, &t.lists));
    t.heads_per_unit = cpu->shape.n_kv_heads / t.lists.n_units;
    t.page_bytes = nkv_page_bytes(&cpu->shape, t.heads_per_unit);
    TRY(nkv_cpu_check_operand(cpu, "packed pages", offset, nkv_cpu_times(t.lists.n_all, t.page_bytes), &t.packed));
    *t_out = t;
    return 0;
}

static int check_digests(const struct nkv_kv_seq *seq)
{
    if (seq->flags & (NKV_NO_DIGEST | NKV_SLOTS))
        FAIL(NKV_EINVAL, "sequence %u has no digests", seq->id);
    return 0;
}

static int read_digests(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, const struct nkv_kv_seq *seq)
{
    uint32_t n_full = seq->lengths[cmd->layer] / cpu->shape.page_tokens;
    uint64_t head_bytes = nkv_digest_bytes(&cpu->shape) * cmd->n_pages;
    char *out = NULL;

    TRY(check_digests(seq));
    if (cmd->pos > n_full || cmd->n_pages > n_full - cmd->pos)
        FAIL(NKV_EINVAL, "read: digests of %u pages from %u on, but layer %u of sequence %u has %u full pages",
             cmd->n_pages, cmd->pos, cmd->layer, seq->id, n_full);
    TRY(nkv_cpu_check_operand(cpu, "read: digests", cmd->out_offset, nkv_cpu_times(head_bytes, cpu->shape.n_kv_heads),
                              &out));
    for (uint32_t head = 0; head < cpu->shape.n_kv_heads; head++)
        nkv_store_digest_copy(cpu->store, seq, cmd->layer, head, cmd->pos, cmd->n_pages, out + head * head_bytes);
    cpu->read_bytes = head_bytes * cpu->shape.n_kv_heads;
    return (int)cmd->n_pages;
}

int nkv_cpu_read(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq)
{
    struct transfer t;

    if (cmd->flags & NKV_DIGEST)
        return read_digests(cpu, cmd, seq);
    TRY(prepare(cpu, cmd, seq, cmd->out_offset, &t));
    TRY(nkv_cpu_check_ids(cpu, seq, cmd->layer, &t.lists, false));
    TRY(nkv_cpu_check_disjoint(cmd->out_offset, t.lists.n_all * t.page_bytes, cmd->list_offset,
                               t.lists.n_units * nkv_list_stride(cmd->n_pages)));
    nkv_cpu_tasks(cpu, t.lists.n_all * t.page_bytes, (uint32_t)t.lists.n_all, read_task, &t);
    cpu->read_bytes = t.lists.n_all * t.page_bytes;
    return (int)t.lists.n_all;
}

static int write_digests(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq)
{
    uint32_t length = seq->lengths[cmd->layer], page_tokens = cpu->shape.page_tokens;
    uint64_t head_bytes = nkv_digest_bytes(&cpu->shape) * cmd->n_pages;
    const char *in = NULL;

    if (!seq->held)
        FAIL(NKV_EINVAL, "write: digests alone are for sequences without pages, sequence %u has pages", seq->id);
    if (length % page_tokens || cmd->pos != length / page_tokens)
        FAIL(NKV_EINVAL, "write: digests from page %u on, but layer %u of sequence %u ends at token %u", cmd->pos,
             cmd->layer, seq->id, length);
    TRY(check_growth(seq, cmd->layer, nkv_cpu_times(cmd->n_pages, page_tokens)));
    TRY(nkv_cpu_check_operand(cpu, "write: digests", cmd->in_offset, nkv_cpu_times(head_bytes, cpu->shape.n_kv_heads),
                              &in));
    for (uint32_t head = 0; head < cpu->shape.n_kv_heads; head++)
        nkv_store_digest_fill(cpu->store, seq, cmd->layer, head, cmd->pos, cmd->n_pages, in + head * head_bytes);
    nkv_store_extend(cpu->store, seq, cmd->layer, cmd->n_pages * page_tokens, false);
    cpu->written_bytes = head_bytes * cpu->shape.n_kv_heads;
    return (int)cmd->n_pages;
}

/* Two tasks must not write one slot. */
static int check_no_repeats(struct nkv_cpu_lists *lists)
{
    for (uint32_t unit = 0; unit < lists->n_units; unit++) {
        memcpy(lists->free, lists->ids[unit], lists->n[unit] * sizeof *lists->free);
        nkv_sort_ids(lists->free, lists->n[unit]);
        for (uint32_t i = 1; i < lists->n[unit]; i++)
            if (lists->free[i] == lists->free[i - 1])
                FAIL(NKV_EINVAL, "write: slot %u is listed twice", lists->free[i]);
    }
    return 0;
}

static int write_slots(struct transfer *t)
{
    if (t->cmd->n_tokens)
        FAIL(NKV_EINVAL, "write: %u tokens for page slots: must be 0", t->cmd->n_tokens);
    TRY(nkv_cpu_check_ids(t->cpu, t->seq, t->cmd->layer, &t->lists, false));
    TRY(check_no_repeats(&t->lists));
    nkv_cpu_tasks(t->cpu, t->lists.n_all * t->page_bytes, (uint32_t)t->lists.n_all, write_task, t);
    return (int)t->lists.n_all;
}

/* Pages at the end of a layer. */
static int write_tail(struct transfer *t, struct nkv_kv_seq *seq)
{
    const struct nkv_cmd *cmd = t->cmd;
    uint32_t page_tokens = t->cpu->shape.page_tokens, length = seq->lengths[cmd->layer];
    uint64_t n_pages = ((uint64_t)cmd->n_tokens + page_tokens - 1) / page_tokens;

    if (cmd->flags & NKV_PER_HEAD)
        FAIL(NKV_EINVAL, "write: PER_HEAD is for page slots");
    if (length % page_tokens || cmd->n_tokens == 0)
        FAIL(NKV_EINVAL, "write: %u tokens after token %u: must begin a page", cmd->n_tokens, length);
    if (t->lists.n[0] != n_pages || (seq->held && n_pages != 1))
        FAIL(NKV_EINVAL, "write: %u pages listed for %u tokens%s", t->lists.n[0], cmd->n_tokens,
             seq->held ? " of a sequence that holds one page" : "");
    for (uint32_t i = 0; i < n_pages; i++)
        if (t->lists.ids[0][i] != length / page_tokens + i)
            FAIL(NKV_EINVAL, "write: page %u, but layer %u of sequence %u goes on with page %u", t->lists.ids[0][i],
                 cmd->layer, seq->id, length / page_tokens + i);
    TRY(check_growth(seq, cmd->layer, cmd->n_tokens));
    t->n_full = cmd->n_tokens / page_tokens;
    nkv_cpu_tasks(t->cpu, t->lists.n_all * t->page_bytes, (uint32_t)n_pages, write_task, t);
    nkv_store_extend(t->cpu->store, seq, cmd->layer, cmd->n_tokens, true);
    return (int)n_pages;
}

int nkv_cpu_write(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq)
{
    struct transfer t;

    if (cmd->flags & NKV_DIGEST)
        return write_digests(cpu, cmd, seq);
    TRY(prepare(cpu, cmd, seq, cmd->in_offset, &t));
    cpu->written_bytes = t.lists.n_all * t.page_bytes;
    return seq->flags & NKV_SLOTS ? write_slots(&t) : write_tail(&t, seq);
}
