/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page scores from a trace. Recorded scores are handed out as they are: the same rule then chooses the same pages in
 * the same order, and any budget can be asked for. Where only the chosen pages are recorded their rank becomes the
 * score and every other page gets 0: the set and its order are the same at the recorded budget and right below it;
 * above it nobody knows which page comes next, and a run that asks is refused.
 *
 * A what-if looks picks up by position, among those that no TRUNCATE took back. A replay takes them in the order of
 * their recording, so that a position that was decoded twice has both answers.
 */
#include "sim/trace.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"
#include "policy/select.h"

struct sim_trace_source {
    struct sim_source source; /* first */
    struct sim_trace *trace;
    uint32_t *streams; /* [source.n_streams] of the trace */
    bool replay;
};

static struct sim_trace_source *source_of(struct sim_source *source)
{
    return (struct sim_trace_source *)(void *)source;
}

static bool answers(const struct sim_trace_source *s, const struct sim_query *query, uint32_t pick)
{
    const struct sim_trace_cmd *cmd = sim_trace_pick_cmd(s->trace, pick);

    return cmd->pos == query->pos && cmd->n_tokens == query->n_tokens &&
           (s->replay || !s->trace->picks[pick].forgotten);
}

/* The pick of the track that answers a query; SIM_TRACE_NONE: there is none. */
static uint32_t find_pick(const struct sim_trace_source *s, const struct sim_query *query,
                          struct sim_trace_track *track)
{
    const struct sim_trace_pick *picks = s->trace->picks;
    uint32_t pick = track->at;

    if (s->replay) {
        if (query->unit > 0) /* the other units of the SELECT that the first one has found */
            return pick;
        pick = pick == SIM_TRACE_NONE ? track->first : picks[pick].next;
    } else if (pick == SIM_TRACE_NONE || sim_trace_pick_cmd(s->trace, pick)->pos > query->pos) {
        pick = track->first;
    }
    while (pick != SIM_TRACE_NONE && !answers(s, query, pick))
        pick = picks[pick].next;
    return pick;
}

static int fail_missing(const struct sim_trace_source *s, const struct sim_query *query, uint32_t stream,
                        uint32_t layer)
{
    const struct sim_trace_stream *recorded = &s->trace->streams[stream];

    FAIL(NKV_EINVAL,
         "%s: %s of sequence %u, layer %u at position %u is not recorded: %u decode steps are, the last at %u",
         s->trace->name, query->n_tokens > 1 ? "a block" : "a step", recorded->seq, layer, query->pos,
         recorded->end - recorded->begin, recorded->end - 1);
}

static int copy_scores(const struct sim_trace_source *s, const struct sim_query *query,
                       const struct sim_trace_pick *pick, uint32_t unit, float *scores_out)
{
    const float *scores = pick->scores + (size_t)unit * pick->n_total;

    for (uint32_t page = query->begin; page < query->end; page++) {
        if (isnan(scores[page]))
            FAIL(NKV_EINVAL,
                 "%s: position %u: page %u has no score: the recorded run had %u sink and %u recent pages, "
                 "or attended to every page",
                 s->trace->name, query->pos, page, s->trace->cmds[pick->cmd].sink, s->trace->cmds[pick->cmd].recent);
        scores_out[page - query->begin] = scores[page];
    }
    return 0;
}

static int rank_scores(const struct sim_trace_source *s, const struct sim_query *query,
                       const struct sim_trace_pick *pick, uint32_t unit, float *scores_out)
{
    const struct sim_trace_cmd *cmd = &s->trace->cmds[pick->cmd];
    const uint32_t *chosen = pick->chosen + (size_t)unit * pick->n_chosen;
    struct nkv_select_rule rule = {.n_total = pick->n_total,
                                   .first_query_page = cmd->pos / s->trace->shape.page_tokens,
                                   .n_budget = cmd->n_pages,
                                   .n_sink = cmd->sink,
                                   .n_recent = cmd->recent};
    uint32_t begin, end;

    TRY(nkv_select_range(&rule, &begin, &end));
    if (query->n_pages > cmd->n_pages || begin != query->begin || end != query->end)
        FAIL(NKV_EINVAL,
             "%s: position %u: %u pages are asked for, and the trace has no scores, only the %u pages that were chosen "
             "(%u sink, %u recent): use at most that budget, or record with scores",
             s->trace->name, query->pos, query->n_pages, pick->n_chosen, cmd->sink, cmd->recent);
    memset(scores_out, 0, (end - begin) * sizeof *scores_out);
    for (uint32_t i = 0; i < pick->n_chosen; i++)
        if (chosen[i] >= begin && chosen[i] < end)
            scores_out[chosen[i] - begin] = (float)(pick->n_chosen - i);
    return 0;
}

static int trace_scores(struct sim_source *source, const struct sim_query *query, float *scores_out)
{
    struct sim_trace_source *s = source_of(source);
    uint32_t first = s->replay ? 0 : s->trace->first_layer, stream = s->streams[query->stream], at, unit;
    uint32_t layer = first + query->layer % (s->trace->shape.n_layers - first);
    struct sim_trace_track *track = sim_trace_track(s->trace, stream, layer);
    const struct sim_trace_pick *pick;

    at = find_pick(s, query, track);
    if (at == SIM_TRACE_NONE)
        return fail_missing(s, query, stream, layer);
    track->at = at;
    pick = &s->trace->picks[at];
    unit = query->unit % pick->n_units;
    if (query->end > pick->n_total)
        return fail_missing(s, query, stream, layer);
    return pick->scores ? copy_scores(s, query, pick, unit, scores_out) : rank_scores(s, query, pick, unit, scores_out);
}

/* Ids are given out once by a context, so that one finds its stream whatever device it is on. */
static int stream_of(struct sim_source *source, uint32_t seq)
{
    const struct sim_trace *trace = source_of(source)->trace;

    for (uint32_t i = 0; i < trace->n_streams; i++)
        if (trace->streams[i].seq == seq)
            return (int)i;
    FAIL(NKV_EINVAL, "%s: no sequence %u is recorded: the options differ from those of the recorded run", trace->name,
         seq);
}

static int source_new(struct sim_trace *trace, struct sim_trace_source **source_out)
{
    struct sim_trace_source *s;
    int status;

    TRY(nkv_alloc(1, sizeof *s, &s));
    s->trace = trace;
    s->source.scores = trace_scores;
    status = nkv_alloc(trace->n_streams, sizeof *s->streams, &s->streams);
    if (status < 0) {
        nkv_free(s);
        return status;
    }
    for (uint32_t i = 0; i < trace->n_streams * trace->shape.n_layers; i++)
        trace->tracks[i].at = SIM_TRACE_NONE;
    *source_out = s;
    return 0;
}

int sim_trace_source_open_replay(struct sim_trace *trace, struct sim_trace_source **source_out)
{
    struct sim_trace_source *s;

    TRY(source_new(trace, &s));
    s->replay = true;
    s->source.stream_of = stream_of;
    s->source.n_streams = trace->n_streams;
    for (uint32_t i = 0; i < trace->n_streams; i++)
        s->streams[i] = i;
    *source_out = s;
    return 0;
}

int sim_trace_source_open(struct sim_trace *trace, uint32_t begin, uint32_t end, uint32_t n_streams,
                          struct sim_trace_source **source_out)
{
    struct sim_trace_source *s;

    TRY(source_new(trace, &s));
    s->source.n_before = UINT32_MAX;
    for (uint32_t i = 0; i < trace->n_streams; i++) {
        const struct sim_trace_stream *recorded = &trace->streams[i];

        if (recorded->begin > begin || recorded->end < end || (n_streams && s->source.n_streams == n_streams))
            continue;
        s->streams[s->source.n_streams++] = i;
        if (begin - recorded->begin < s->source.n_before)
            s->source.n_before = begin - recorded->begin;
    }
    if (s->source.n_streams == 0) {
        struct nkv_sim_trace_info info;

        sim_trace_source_close(s);
        TRY(sim_trace_describe(trace, &info));
        FAIL(NKV_EINVAL,
             "%s: the run decodes positions %u to %u, and %u steps are recorded, at %u to %u: use --context %u (and "
             "--output 0) and at most %u steps with the warm-up",
             trace->name, begin, end - 1, info.n_steps, info.context_tokens - info.n_steps, info.context_tokens - 1,
             info.context_tokens, info.n_steps);
    }
    *source_out = s;
    return 0;
}

void sim_trace_source_close(struct sim_trace_source *source)
{
    if (!source)
        return;
    nkv_free(source->streams);
    nkv_free(source);
}

struct sim_source *sim_trace_source(struct sim_trace_source *source)
{
    return &source->source;
}
