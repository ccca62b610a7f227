/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A replay: a real context on simulated devices does what the recorded one did (sim/script.h), with the recorded
 * scores. Everything between the calls and the devices is the code of the real run, so the plan is the same plan; what
 * differs is who computes the scores and how long commands take.
 *
 * Numbers that do not show in a plan (q, k, v, outputs) are zeros. Feeding recorded commands to devices without a
 * runtime was rejected: it would repeat the trace, whatever the runtime did.
 */
#include <string.h>

#include <nearkv/nearkv.h>

#include "sim/cluster.h"
#include "sim/script.h"

struct replay {
    const struct nkv_sim_replay_options *options;
    struct sim_trace *trace;
    struct sim_script script;
    struct sim_trace_source *source;
    struct sim_cluster cluster;
    struct nkv_device **devices, *compute;
    struct nkv_context *context;
    struct nkv_seq **seqs; /* [n_actors] */
    struct nkv_attend_item *items;
    uint32_t max_items, max_tokens, n_calls; /* of a call: items, tokens together */
    float *in, *out;
};

static int check_options(const struct nkv_sim_replay_options *o)
{
    if (o->size != sizeof *o)
        FAIL(NKV_EINVAL, "nkv_sim_replay_options.size is %u: it must be %zu", o->size, sizeof *o);
    if (!o->machine || !o->trace)
        FAIL(NKV_EINVAL, "a replay needs a machine and a trace");
    return 0;
}

/* The largest call. */
static void size_calls(struct replay *r)
{
    for (uint32_t i = 0; i < r->script.n_events; i++) {
        const struct sim_event *event = &r->script.events[i];
        uint64_t n_tokens = 0;

        for (uint32_t j = 0; j < event->n_items; j++)
            n_tokens += r->script.items[event->first + j].n_tokens;
        if (event->n_items > r->max_items)
            r->max_items = event->n_items;
        if (n_tokens > r->max_tokens)
            r->max_tokens = n_tokens < UINT32_MAX ? (uint32_t)n_tokens : UINT32_MAX;
    }
}

static int open_script(struct replay *r)
{
    TRY(sim_trace_open(r->options->trace, &r->trace));
    TRY(sim_script_open(r->trace, &r->script));
    if (r->script.n_actors > r->options->n_sequences)
        FAIL(NKV_EINVAL, "%s: %u sequences were opened: options are given for %u", r->options->trace,
             r->script.n_actors, r->options->n_sequences);
    size_calls(r);
    return 0;
}

static int open_pick(struct replay *r)
{
    struct sim_pick_options pick = {.shape = r->trace->shape, .max_pages = 1, .digest_levels = 1};

    for (uint32_t i = 0; i < r->script.n_actors; i++) {
        uint32_t n_pages = r->options->sequences[i].max_tokens / r->trace->shape.page_tokens + 2;

        pick.max_pages = n_pages > pick.max_pages ? n_pages : pick.max_pages;
    }
    TRY(sim_trace_source_open_replay(r->trace, &r->source));
    pick.source = sim_trace_source(r->source);
    return sim_pick_open(&pick, &r->cluster.pick);
}

static int open_devices(struct replay *r)
{
    const struct sim_trace *trace = r->trace;
    struct sim_device_options options = {.kind = SIM_KIND_PNM, .max_sequences = r->script.n_actors + 1};

    TRY(nkv_alloc(trace->n_devices, sizeof(struct nkv_device *), &r->devices));
    for (options.index = 0; options.index < trace->n_devices; options.index++) {
        uint64_t recorded = trace->capacity[options.index];

        options.capacity_bytes = recorded ? recorded : UINT64_MAX / 2;
        TRY(sim_device_open(&r->cluster, &options, &r->devices[options.index]));
    }
    options = (struct sim_device_options){
        .kind = SIM_KIND_GPU, .max_sequences = 2 * r->script.n_actors + 1, .capacity_bytes = UINT64_MAX / 2};
    return sim_device_open(&r->cluster, &options, &r->compute);
}

static int open_context(struct replay *r)
{
    struct nkv_context_options options = {.size = sizeof options,
                                          .shape = r->trace->shape,
                                          .devices = r->devices,
                                          .n_devices = r->trace->n_devices,
                                          .compute = r->compute,
                                          .max_batch = r->max_items,
                                          .max_tokens = r->max_tokens,
                                          .now_ns = sim_cluster_now,
                                          .clock_arg = &r->cluster,
                                          .plan_log = r->options->plan_log,
                                          .plan_log_arg = r->options->plan_log_arg,
                                          .record_scores = r->script.scores};

    return nkv_context_open(&options, &r->context);
}

static int open_buffers(struct replay *r)
{
    size_t row = (size_t)r->trace->shape.n_heads * r->trace->shape.head_dim;

    TRY(nkv_alloc(r->script.n_actors, sizeof(struct nkv_seq *), &r->seqs));
    TRY(nkv_alloc(r->max_items, sizeof *r->items, &r->items));
    TRY(nkv_alloc(r->max_tokens, row * sizeof *r->in, &r->in));
    return nkv_alloc(r->max_tokens, row * sizeof *r->out, &r->out);
}

static int replay_open(struct replay *r)
{
    uint32_t n_gpus = r->options->n_gpus ? r->options->n_gpus : 1;

    TRY(open_script(r));
    r->cluster = (struct sim_cluster){.values = &r->options->machine->values,
                                      .shape = r->trace->shape,
                                      .n_gpus = n_gpus,
                                      .tp = n_gpus,
                                      .pp = 1,
                                      .n_pnm = r->trace->n_devices,
                                      .interleave = 1};
    sim_cluster_set_rates(&r->cluster, 2);
    TRY(sim_cluster_open(&r->cluster));
    TRY(open_pick(r));
    TRY(open_devices(r));
    TRY(open_context(r));
    return open_buffers(r);
}

static void replay_close(struct replay *r)
{
    nkv_context_close(r->context);
    for (uint32_t i = 0; r->devices && i < r->trace->n_devices; i++)
        if (r->devices[i])
            r->devices[i]->ops->close(r->devices[i]);
    if (r->compute)
        r->compute->ops->close(r->compute);
    sim_pick_close(r->cluster.pick);
    sim_trace_source_close(r->source);
    sim_cluster_close(&r->cluster);
    sim_script_close(&r->script);
    sim_trace_close(r->trace);
    nkv_free(r->devices);
    nkv_free(r->seqs);
    nkv_free(r->items);
    nkv_free(r->in);
    nkv_free(r->out);
}

/* ---- Events ---- */

static int check_seqs(const struct replay *r, uint32_t n_items)
{
    for (uint32_t i = 0; i < n_items; i++)
        if (nkv_seq_status(r->items[i].seq) < 0)
            FAIL(nkv_seq_status(r->items[i].seq), "%s", nkv_seq_error(r->items[i].seq));
    return 0;
}

static int run_call(struct replay *r, const struct sim_event *event)
{
    struct nkv_ticket *ticket;

    for (uint32_t i = 0; i < event->n_items; i++) {
        const struct sim_item *item = &r->script.items[event->first + i];

        if (!r->seqs[item->seq])
            FAIL(NKV_EFORMAT, "%s: tokens of sequence number %u after it was closed", r->trace->name, item->seq);
        r->items[i] = (struct nkv_attend_item){
            r->seqs[item->seq], item->n_tokens, item->attends ? r->in : NULL, r->in, r->in, r->out};
    }
    r->n_calls++;
    sim_world_mark(&r->cluster.world); /* nobody asks for the critical path: stages before need not be kept */
    TRY(nkv_attend_begin(r->context, event->layer, r->items, event->n_items, &ticket));
    TRY(nkv_attend_end(ticket));
    TRY(check_seqs(r, event->n_items));
    if (event->layer + 1 == r->trace->shape.n_layers)
        TRY(nkv_step_end(r->context, r->items, event->n_items));
    return 0;
}

static int run_event(struct replay *r, const struct sim_event *event)
{
    struct nkv_seq **seq = event->kind == SIM_CALL ? NULL : &r->seqs[event->seq];

    if (event->kind == SIM_CALL)
        return run_call(r, event);
    if (event->kind == SIM_OPEN)
        return nkv_seq_open(r->context, &r->options->sequences[event->seq], seq);
    if (event->kind == SIM_FORK ? !r->seqs[event->parent] : !*seq)
        FAIL(NKV_EFORMAT, "%s: sequence number %u is used after it was closed", r->trace->name, event->seq);
    if (event->kind == SIM_FORK)
        return nkv_seq_fork(r->seqs[event->parent], event->n_tokens, &r->options->sequences[event->seq], seq);
    if (event->kind == SIM_TRUNCATE)
        return nkv_seq_truncate(*seq, event->n_tokens);
    nkv_seq_close(*seq);
    *seq = NULL;
    return 0;
}

static int replay_run(struct replay *r, struct nkv_sim_replay_report *report_out)
{
    TRY(replay_open(r));
    for (uint32_t i = 0; i < r->script.n_events; i++)
        TRY(run_event(r, &r->script.events[i]));
    TRY(r->cluster.world.status);
    *report_out = (struct nkv_sim_replay_report){.n_sequences = r->script.n_actors,
                                                 .n_calls = r->n_calls,
                                                 .attention_ms = (double)r->cluster.world.now.ns / 1e6};
    return 0;
}

int nkv_sim_replay(const struct nkv_sim_replay_options *options, struct nkv_sim_replay_report *report_out)
{
    struct replay r = {.options = options};
    int status;

    TRY(check_options(options));
    status = replay_run(&r, report_out);
    replay_close(&r);
    return status;
}
