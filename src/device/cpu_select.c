/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SELECT in three phases, each a fixed set of tasks: sums of the query rows per KV head; scores, one task per digest
 * chunk; ranking, one task per unit.
 *
 * Because sum_d max(q_d lo_d, q_d hi_d) splits by the sign of q_d, the mean over any number of query rows is one pass
 * over the digests with two summed vectors: a block of 64 tokens costs as much as one. A chunk holds the digests of
 * one layer for all KV heads in a row, so a task is one sequential stream for either granularity; for the whole layer
 * its KV heads are added in head order, which fixes the rounding.
 *
 * Scoring only what could beat the current k-th best was rejected: bounds are as long as digests.
 */
#include <math.h>
#include <string.h>

#include "device/cpu.h"
#include "policy/select.h"
#include "policy/steady.h"

struct select {
    struct nkv_cpu *cpu;
    const struct nkv_cmd *cmd;
    const struct nkv_kv_seq *seq;
    const struct nkv_kernels *kernels;
    struct nkv_select_rule rule;
    uint32_t begin, end;                     /* pages that compete */
    uint32_t n_units, n_scores, first_chunk; /* n_scores: written per unit */
    struct nkv_select_layout layout;
    const float *q;
    char *out;
    struct nkv_cpu_lists resident; /* NKV_STEADY */
    uint32_t open_page;
};

static void sum_task(void *arg, uint32_t head, uint32_t rank)
{
    const struct select *s = arg;
    const struct nkv_kv_shape *shape = &s->cpu->shape;
    uint32_t dim = shape->head_dim, group = s->cpu->group;
    uint64_t n_rows = (uint64_t)s->cmd->n_tokens * (s->n_units == 1 ? shape->n_heads : group);
    float *pos = s->cpu->q_sums + 2 * (size_t)head * dim, *neg = pos + dim, share = 1.0f / (float)n_rows;

    (void)rank;
    memset(pos, 0, 2 * dim * sizeof *pos);
    for (size_t token = 0; token < s->cmd->n_tokens; token++) {
        const float *q = s->q + (token * shape->n_heads + (size_t)head * group) * dim;

        for (uint32_t h = 0; h < group; h++, q += dim)
            for (uint32_t d = 0; d < dim; d++) {
                pos[d] += q[d] > 0 ? q[d] : 0;
                neg[d] += q[d] > 0 ? 0 : q[d];
            }
    }
    for (uint32_t d = 0; d < 2 * dim; d++)
        pos[d] *= share;
}

static float *unit_scores(const struct select *s, uint32_t unit)
{
    return s->cpu->scores + (size_t)unit * (s->end - s->begin);
}

static void score_task(void *arg, uint32_t task, uint32_t rank)
{
    const struct select *s = arg;
    const struct nkv_kv_shape *shape = &s->cpu->shape;
    enum nkv_dtype dtype = nkv_digest_dtype(shape->dtype);
    uint32_t chunk = s->first_chunk + task, page0 = chunk * NKV_DIGEST_CHUNK_PAGES;
    uint32_t from = page0 > s->begin ? page0 : s->begin;
    uint32_t to = s->end - page0 < NKV_DIGEST_CHUNK_PAGES ? s->end : page0 + NKV_DIGEST_CHUNK_PAGES;
    size_t skip = (from - page0) * nkv_digest_bytes(shape);

    (void)rank;
    for (uint32_t head = 0; head < shape->n_kv_heads; head++) {
        const float *sums = s->cpu->q_sums + 2 * (size_t)head * shape->head_dim;
        const char *digests = nkv_store_digests(s->cpu->store, s->seq, s->cmd->layer, chunk, head);
        uint32_t unit = s->n_units == 1 ? 0 : head;

        s->kernels->score[dtype](to - from, shape->head_dim, sums, sums + shape->head_dim, digests + skip, unit != head,
                                 unit_scores(s, unit) + (from - s->begin));
    }
}

static uint32_t *put_list(char *lists, uint32_t cap, uint32_t unit, uint32_t n)
{
    uint32_t *list = (uint32_t *)(void *)(lists + unit * nkv_list_stride(cap));

    *list = n;
    return list + 1;
}

static void put_steady(const struct select *s, uint32_t unit, const uint32_t *chosen, uint32_t n_chosen)
{
    uint32_t cap = s->cmd->n_pages, n_slots = s->cmd->arg;
    uint32_t *scratch = s->resident.free + (size_t)unit * (cap + 2 * (size_t)n_slots);
    uint32_t *device = put_list(s->out + s->layout.device, cap, unit, 0);
    uint32_t *steady = put_list(s->out + s->layout.steady, n_slots, unit, 0);
    uint32_t *recall = put_list(s->out + s->layout.recall, n_slots, unit, 0);
    uint32_t *slots = put_list(s->out + s->layout.slots, n_slots, unit, 0);
    struct nkv_recall_plan plan = nkv_steady_select(chosen, n_chosen, s->resident.ids[unit], n_slots, s->open_page,
                                                    scratch, device, steady, recall, slots);

    device[-1] = n_chosen - plan.n_steady;
    steady[-1] = plan.n_steady;
    recall[-1] = slots[-1] = plan.n_recall;
}

/* ranked: the unit's set, best first. */
static void put_scores(const struct select *s, uint32_t unit, const uint32_t *ranked, uint32_t n)
{
    float *out = (float *)(void *)(s->out + s->layout.scores) + (size_t)unit * s->n_scores;

    for (uint32_t i = 0; i < s->n_scores; i++)
        out[i] = NAN;
    if (s->cmd->flags & NKV_CANDIDATES) {
        for (uint32_t i = 0; i < n; i++)
            out[i] = unit_scores(s, unit)[ranked[i] - s->begin];
        return;
    }
    if (s->begin < s->end)
        memcpy(out + s->begin, unit_scores(s, unit), (s->end - s->begin) * sizeof *out);
}

/* The best of the pages that compete, and nothing else. */
static uint32_t rank_candidates(const struct select *s, uint32_t unit, uint32_t *scratch, uint32_t *chosen)
{
    uint32_t n = s->end - s->begin;

    return nkv_topk(unit_scores(s, unit), n, n < s->cmd->n_pages ? n : s->cmd->n_pages, s->begin, scratch, chosen);
}

static void rank_task(void *arg, uint32_t unit, uint32_t rank)
{
    const struct select *s = arg;
    uint32_t cap = s->cmd->n_pages, n, *list;
    uint32_t *chosen = s->cpu->chosen + (size_t)unit * s->cpu->max_pages;
    uint32_t *ranked = s->cpu->ranked + (size_t)unit * s->cpu->max_pages;

    (void)rank;
    n = s->cmd->flags & NKV_CANDIDATES ? rank_candidates(s, unit, ranked, chosen)
                                       : nkv_select_pages(&s->rule, unit_scores(s, unit), ranked, chosen);
    list = put_list(s->out + s->layout.chosen, cap, unit, n);
    memcpy(list, chosen, n * sizeof *list);
    if (s->cmd->flags & NKV_SCORES)
        put_scores(s, unit, chosen, n);
    if (s->cmd->flags & NKV_STEADY) {
        put_steady(s, unit, chosen, n);
    } else {
        list = put_list(s->out + s->layout.device, cap, unit, n);
        nkv_sort_ids(chosen, n);
        memcpy(list, chosen, n * sizeof *list);
    }
}

static int check_candidates(struct select *s)
{
    const struct nkv_cmd *cmd = s->cmd;
    uint32_t length = s->seq->lengths[cmd->layer], page_tokens = s->cpu->shape.page_tokens;

    if (cmd->flags & NKV_STEADY || cmd->recent)
        FAIL(NKV_EINVAL, "select: candidates have no recent pages and no residents");
    if (cmd->n_tokens == 0 || cmd->pos > length || cmd->pos % page_tokens || cmd->sink > cmd->pos / page_tokens)
        FAIL(NKV_EINVAL, "select: candidates from page %u to token %u of %u, %u query tokens", cmd->sink, cmd->pos,
             length, cmd->n_tokens);
    s->begin = cmd->sink;
    s->end = cmd->pos / page_tokens;
    s->n_scores = cmd->n_pages;
    return 0;
}

static int check_rule(struct select *s)
{
    const struct nkv_cmd *cmd = s->cmd;
    uint32_t length = s->seq->lengths[cmd->layer], page_tokens = s->cpu->shape.page_tokens;

    if (s->seq->flags & (NKV_NO_DIGEST | NKV_SLOTS))
        FAIL(NKV_EINVAL, "select: sequence %u has no digests", cmd->seq);
    if (cmd->flags & NKV_CANDIDATES)
        return check_candidates(s);
    if (cmd->n_tokens == 0 || cmd->pos > length || cmd->n_tokens > length - cmd->pos)
        FAIL(NKV_EINVAL, "select: query tokens %u+%u, but layer %u of sequence %u holds %u tokens", cmd->pos,
             cmd->n_tokens, cmd->layer, cmd->seq, length);
    s->rule = (struct nkv_select_rule){
        .n_total = (cmd->pos + (cmd->n_tokens - 1)) / page_tokens + 1,
        .first_query_page = cmd->pos / page_tokens,
        .n_budget = cmd->n_pages,
        .n_sink = cmd->sink,
        .n_recent = cmd->recent,
    };
    s->n_scores = s->rule.n_total;
    s->open_page = length % page_tokens ? length / page_tokens : NKV_PAGE_NONE;
    return nkv_select_range(&s->rule, &s->begin, &s->end);
}

static int check_operands(struct select *s)
{
    const struct nkv_cmd *cmd = s->cmd;
    const struct nkv_kv_shape *shape = &s->cpu->shape;
    uint64_t q_bytes = nkv_cpu_times((uint64_t)cmd->n_tokens * shape->n_heads, shape->head_dim * sizeof(float));
    uint64_t list_bytes = s->n_units * nkv_list_stride(cmd->arg);

    s->layout = nkv_select_layout(s->n_units, cmd->n_pages, cmd->arg, cmd->flags & NKV_SCORES ? s->n_scores : 0);
    TRY(nkv_cpu_check_operand(s->cpu, "select: q", cmd->in_offset, q_bytes, &s->q));
    TRY(nkv_cpu_check_operand(s->cpu, "select: output", cmd->out_offset, s->layout.bytes, &s->out));
    TRY(nkv_cpu_check_disjoint(cmd->out_offset, s->layout.bytes, cmd->in_offset, q_bytes));
    if (!(cmd->flags & NKV_STEADY))
        return 0;
    TRY(nkv_cpu_take_lists(s->cpu, cmd, cmd->arg, &s->resident));
    TRY(nkv_cpu_check_disjoint(cmd->out_offset, s->layout.bytes, cmd->list_offset, list_bytes));
    for (uint32_t unit = 0; unit < s->n_units; unit++)
        if (s->resident.n[unit] != cmd->arg)
            FAIL(NKV_EINVAL, "select: %u resident slots listed of %u", s->resident.n[unit], cmd->arg);
    return 0;
}

int nkv_cpu_select(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq)
{
    struct select s = {
        .cpu = cpu, .cmd = cmd, .seq = seq, .kernels = nkv_kernels(), .n_units = nkv_cpu_units(cpu, cmd)};
    const struct nkv_kv_shape *shape = &cpu->shape;
    uint64_t n_scored, row_bytes = (uint64_t)shape->n_heads * shape->head_dim * sizeof(float);

    TRY(check_rule(&s));
    TRY(check_operands(&s));
    n_scored = s.end - s.begin;
    cpu->read_bytes = n_scored * shape->n_kv_heads * nkv_digest_bytes(shape);
    if (n_scored) {
        uint32_t last_chunk = (s.end - 1) / NKV_DIGEST_CHUNK_PAGES;

        s.first_chunk = s.begin / NKV_DIGEST_CHUNK_PAGES;
        nkv_cpu_tasks(cpu, cmd->n_tokens * row_bytes, shape->n_kv_heads, sum_task, &s);
        nkv_cpu_tasks(cpu, cpu->read_bytes, last_chunk - s.first_chunk + 1, score_task, &s);
    }
    nkv_cpu_tasks(cpu, n_scored * s.n_units * sizeof(float), s.n_units, rank_task, &s);
    n_scored = cmd->flags & NKV_CANDIDATES ? n_scored : s.rule.n_total;
    return (int)(n_scored < cmd->n_pages ? n_scored : cmd->n_pages);
}
