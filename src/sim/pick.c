/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SELECT without data: a source gives the scores that a device would compute from digests; everything after that is the
 * code that real devices run (policy/select.h, policy/steady.h).
 *
 * A pair is one (stream, layer). Sequences that share a stream have the same scores, hence the same sets and, from the
 * same beginning, the same resident pages: the first of them is computed, the others get a copy of its answer. A
 * sequence whose resident pages differ is computed by itself.
 *
 * A simulation begins in the middle of a request: where a pair's slots are all empty, Steady-Select is first run over
 * some of the n_before steps that came before, denser towards the end, and what it then holds is the answer's recall
 * list, in place of the best pages. Starting from the best pages was rejected: they take hundreds of steps to give way
 * to those that the rule settles on.
 */
#include "sim/pick.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"
#include "policy/select.h"
#include "policy/steady.h"

#define GROUP_PAGES 16u /* of a digest of the second level */

/* How long before the first step Steady-Select is run. */
static const uint32_t steps_before[] = {512, 384, 256, 192, 144, 112, 88, 72, 60, 50, 42, 36, 31, 27, 23,
                                        20,  17,  15,  13,  11,  9,   8,  7,  6,  5,  4,  3,  2,  1};

struct pair {
    bool begun, valid;
    uint32_t pos;
    int res;
    double n_scored;
    uint64_t in_bytes, out_bytes;
    uint8_t *in, *out;
};

struct sim_pick {
    struct sim_pick_options options;
    uint32_t n_pairs, max_units;
    struct pair *pairs;
    float *scores;     /* [max_pages] */
    uint32_t *ranked;  /* [max_pages] */
    uint32_t *chosen;  /* [max_pages] */
    uint32_t *scratch; /* [4 * max_pages] */
    uint32_t *lists;   /* [4 * max_pages]: what steps before the first one answer */
    uint32_t *table;   /* [max_pages]: their slots */
    uint32_t *groups;  /* [max_pages / GROUP_PAGES + 1] */
};

/* One SELECT: the command, its pair, where its answer goes. */
struct job {
    struct sim_pick *pick;
    const struct nkv_cmd *cmd;
    struct pair *pair;
    uint32_t stream, n_units, pos, begin, end, open_page;
    struct nkv_select_rule rule;
    struct nkv_select_layout layout;
    const uint8_t *resident;
    uint8_t *out;
};

static int alloc_parts(struct sim_pick *pick)
{
    uint32_t n = pick->options.max_pages;

    TRY(nkv_alloc(pick->n_pairs, sizeof *pick->pairs, &pick->pairs));
    TRY(nkv_alloc(n, sizeof *pick->scores, &pick->scores));
    TRY(nkv_alloc(n, sizeof *pick->ranked, &pick->ranked));
    TRY(nkv_alloc(n, sizeof *pick->chosen, &pick->chosen));
    TRY(nkv_alloc(4 * (size_t)n, sizeof *pick->scratch, &pick->scratch));
    TRY(nkv_alloc(4 * (size_t)n, sizeof *pick->lists, &pick->lists));
    TRY(nkv_alloc(n, sizeof *pick->table, &pick->table));
    return nkv_alloc(n / GROUP_PAGES + 1, sizeof *pick->groups, &pick->groups);
}

int sim_pick_open(const struct sim_pick_options *options, struct sim_pick **pick_out)
{
    struct sim_pick *pick;
    int status;

    TRY(nkv_alloc(1, sizeof *pick, &pick));
    pick->options = *options;
    pick->n_pairs = options->source->n_streams * options->shape.n_layers;
    status = alloc_parts(pick);
    if (status < 0) {
        sim_pick_close(pick);
        return status;
    }
    *pick_out = pick;
    return 0;
}

void sim_pick_close(struct sim_pick *pick)
{
    if (!pick)
        return;
    for (uint32_t i = 0; pick->pairs && i < pick->n_pairs; i++) {
        nkv_free(pick->pairs[i].in);
        nkv_free(pick->pairs[i].out);
    }
    nkv_free(pick->pairs);
    nkv_free(pick->scores);
    nkv_free(pick->ranked);
    nkv_free(pick->chosen);
    nkv_free(pick->scratch);
    nkv_free(pick->lists);
    nkv_free(pick->table);
    nkv_free(pick->groups);
    nkv_free(pick);
}

uint32_t sim_pick_streams(const struct sim_pick *pick)
{
    return pick->options.source->n_streams;
}

static uint32_t *list_at(uint8_t *lists, uint32_t cap, uint32_t unit)
{
    return (uint32_t *)(void *)(lists + unit * nkv_list_stride(cap));
}

static void rule_at(struct job *job, uint32_t pos)
{
    const struct nkv_cmd *cmd = job->cmd;
    uint32_t page_tokens = job->pick->options.shape.page_tokens, n_held = pos + cmd->n_tokens;

    job->pos = pos;
    job->open_page = n_held % page_tokens ? n_held / page_tokens : NKV_PAGE_NONE;
    job->rule = (struct nkv_select_rule){.n_total = (n_held - 1) / page_tokens + 1,
                                         .first_query_page = pos / page_tokens,
                                         .n_budget = cmd->n_pages,
                                         .n_sink = cmd->sink,
                                         .n_recent = cmd->recent};
}

/* The set of one unit at job->pos, in pick->chosen. returns: its size, or an error. */
static int choose(struct job *job, uint32_t unit)
{
    struct sim_pick *pick = job->pick;
    struct sim_source *source = pick->options.source;

    struct sim_query query = {.stream = job->stream,
                              .layer = job->cmd->layer,
                              .unit = unit,
                              .pos = job->pos,
                              .n_tokens = job->cmd->n_tokens,
                              .n_pages = job->cmd->n_pages};

    TRY(nkv_select_range(&job->rule, &job->begin, &job->end));
    query.begin = job->begin;
    query.end = job->end;
    if (job->begin < job->end)
        TRY(source->scores(source, &query, pick->scores));
    return (int)nkv_select_pages(&job->rule, pick->scores, pick->ranked, pick->chosen);
}

/* Runs Steady-Select over the steps before the first one. Leaves the slots' pages in pick->table. */
static int run_before(struct job *job, uint32_t unit)
{
    struct sim_pick *pick = job->pick;
    uint32_t n_slots = job->cmd->arg, pos = job->cmd->pos, max = pick->options.max_pages;
    uint32_t *device = pick->lists, *steady = device + max, *recall = steady + max, *slots = recall + max;

    for (uint32_t slot = 0; slot < n_slots; slot++)
        pick->table[slot] = NKV_PAGE_NONE;
    for (uint32_t i = 0; i < sizeof steps_before / sizeof *steps_before; i++) {
        struct nkv_recall_plan plan;
        int n;

        if (steps_before[i] > pick->options.source->n_before || steps_before[i] > pos)
            continue;
        rule_at(job, pos - steps_before[i]);
        n = choose(job, unit);
        TRY(n);
        plan = nkv_steady_select(pick->chosen, (uint32_t)n, pick->table, n_slots, job->open_page, pick->scratch, device,
                                 steady, recall, slots);
        for (uint32_t r = 0; r < plan.n_recall; r++)
            pick->table[slots[r]] = recall[r];
    }
    rule_at(job, pos);
    return 0;
}

static bool slots_empty(const struct job *job)
{
    for (uint32_t unit = 0; unit < job->n_units; unit++) {
        const uint8_t *list = job->resident + unit * nkv_list_stride(job->cmd->arg);

        for (uint32_t slot = 0; slot < job->cmd->arg; slot++) {
            uint32_t page;

            memcpy(&page, list + 4 * (slot + 1u), sizeof page);
            if (page != NKV_PAGE_NONE)
                return false;
        }
    }
    return true;
}

/* The first answer's recall list: what the steps before have left in the slots. */
static void put_settled(const struct job *job, uint32_t unit)
{
    const uint32_t *table = job->pick->table;
    uint32_t n_slots = job->cmd->arg, n = 0;
    uint32_t *recall = list_at(job->out + job->layout.recall, n_slots, unit);
    uint32_t *slots = list_at(job->out + job->layout.slots, n_slots, unit);

    for (uint32_t slot = 0; slot < n_slots; slot++)
        if (table[slot] != NKV_PAGE_NONE) {
            recall[1 + n] = table[slot];
            slots[1 + n++] = slot;
        }
    recall[0] = slots[0] = n;
}

static void put_steady(const struct job *job, uint32_t unit, uint32_t n)
{
    const struct nkv_cmd *cmd = job->cmd;
    uint32_t n_slots = cmd->arg;
    const uint32_t *resident = (const uint32_t *)(const void *)(job->resident + unit * nkv_list_stride(n_slots)) + 1;
    uint32_t *device = list_at(job->out + job->layout.device, cmd->n_pages, unit);
    uint32_t *steady = list_at(job->out + job->layout.steady, n_slots, unit);
    uint32_t *recall = list_at(job->out + job->layout.recall, n_slots, unit);
    uint32_t *slots = list_at(job->out + job->layout.slots, n_slots, unit);
    struct nkv_recall_plan plan = nkv_steady_select(job->pick->chosen, n, resident, n_slots, job->open_page,
                                                    job->pick->scratch, device + 1, steady + 1, recall + 1, slots + 1);

    device[0] = n - plan.n_steady;
    steady[0] = plan.n_steady;
    recall[0] = slots[0] = plan.n_recall;
}

static void put_scores(const struct job *job, uint32_t unit)
{
    float *out = (float *)(void *)(job->out + job->layout.scores) + (size_t)unit * job->rule.n_total;

    for (uint32_t page = 0; page < job->rule.n_total; page++)
        out[page] = page >= job->begin && page < job->end ? job->pick->scores[page - job->begin] : NAN;
}

/* Digests that are scanned: all, or one of every group and those of the groups that hold a chosen page. */
static double n_scanned(const struct job *job, uint32_t n)
{
    const struct sim_pick *pick = job->pick;
    uint32_t n_scored = job->end - job->begin, n_groups = n_scored / GROUP_PAGES + 1, n_open = 0;

    if (pick->options.digest_levels < 2 || n_scored == 0)
        return n_scored;
    memset(pick->groups, 0, n_groups * sizeof *pick->groups);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t group = (pick->chosen[i] - job->begin) / GROUP_PAGES;

        if (pick->chosen[i] >= job->begin && pick->chosen[i] < job->end && !pick->groups[group]) {
            pick->groups[group] = 1;
            n_open++;
        }
    }
    return (double)n_groups + fmin((double)n_open * GROUP_PAGES, n_scored);
}

static int answer_unit(struct job *job, uint32_t unit, bool settle)
{
    struct sim_pick *pick = job->pick;
    uint32_t *chosen = list_at(job->out + job->layout.chosen, job->cmd->n_pages, unit);
    uint32_t *device = list_at(job->out + job->layout.device, job->cmd->n_pages, unit);
    int n;

    if (settle)
        TRY(run_before(job, unit));
    n = choose(job, unit);
    TRY(n);
    chosen[0] = (uint32_t)n;
    memcpy(chosen + 1, pick->chosen, (size_t)n * sizeof *chosen);
    job->pair->n_scored += n_scanned(job, (uint32_t)n) / job->n_units;
    if (job->cmd->flags & NKV_STEADY) {
        put_steady(job, unit, (uint32_t)n);
    } else {
        nkv_sort_ids(pick->chosen, (uint32_t)n);
        device[0] = (uint32_t)n;
        memcpy(device + 1, pick->chosen, (size_t)n * sizeof *device);
    }
    if (settle)
        put_settled(job, unit);
    if (job->cmd->flags & NKV_SCORES)
        put_scores(job, unit);
    return n;
}

static int grow(uint8_t **buffer, uint64_t *bytes, uint64_t need)
{
    if (*bytes != need) {
        nkv_free(*buffer);
        *buffer = NULL;
        *bytes = 0;
        TRY(nkv_alloc(need, 1, buffer));
        *bytes = need;
    }
    return 0;
}

/* Keeps the answer for the other sequences of the stream. */
static int keep(struct job *job, uint64_t in_bytes)
{
    struct pair *pair = job->pair;

    TRY(grow(&pair->in, &pair->in_bytes, in_bytes));
    TRY(grow(&pair->out, &pair->out_bytes, job->layout.bytes));
    if (in_bytes)
        memcpy(pair->in, job->resident, in_bytes);
    memcpy(pair->out, job->out, job->layout.bytes);
    pair->pos = job->pos;
    pair->valid = pair->begun = true;
    return 0;
}

static bool kept(const struct job *job, uint64_t in_bytes)
{
    const struct pair *pair = job->pair;

    return !job->pick->options.source->stream_of && pair->valid && pair->pos == job->pos &&
           pair->in_bytes == in_bytes && pair->out_bytes == job->layout.bytes &&
           (in_bytes == 0 || memcmp(pair->in, job->resident, in_bytes) == 0);
}

int sim_pick_select(struct sim_pick *pick, const struct nkv_cmd *cmd, uint32_t ordinal, const uint8_t *resident,
                    uint8_t *out, double *n_scored_out)
{
    struct sim_source *source = pick->options.source;
    int stream = source->stream_of ? source->stream_of(source, cmd->seq) : (int)(ordinal % source->n_streams);
    struct job job = {.pick = pick,
                      .cmd = cmd,
                      .stream = (uint32_t)stream,
                      .n_units = cmd->flags & NKV_PER_HEAD ? pick->options.shape.n_kv_heads : 1,
                      .resident = resident,
                      .out = out};
    uint64_t in_bytes = resident ? job.n_units * nkv_list_stride(cmd->arg) : 0;
    bool settle;

    TRY(stream);
    job.pair = &pick->pairs[job.stream * pick->options.shape.n_layers + cmd->layer];
    rule_at(&job, cmd->pos);
    job.layout = nkv_select_layout(job.n_units, cmd->n_pages, cmd->arg, cmd->flags & NKV_SCORES ? job.rule.n_total : 0);
    if (kept(&job, in_bytes)) {
        memcpy(out, job.pair->out, job.layout.bytes);
        *n_scored_out = job.pair->n_scored;
        return job.pair->res;
    }
    settle = resident && source->n_before > 0 && !job.pair->begun && slots_empty(&job);
    job.pair->n_scored = 0;
    for (uint32_t unit = 0; unit < job.n_units; unit++) {
        job.pair->res = answer_unit(&job, unit, settle);
        TRY(job.pair->res);
    }
    *n_scored_out = job.pair->n_scored;
    TRY(keep(&job, in_bytes));
    return job.pair->res;
}
