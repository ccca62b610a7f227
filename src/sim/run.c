/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A run: a real context on simulated devices decodes a few steps of a few layers.
 *
 *   for each layer: nkv_fc (the layer's dense work), nkv_attend_begin, nkv_attend_end; then the head's nkv_fc,
 * nkv_step_end
 *
 * With two micro-batches, each half's FC goes before the other half's attention is waited for. Warm-up steps fill
 * resident slots and queues; the measured ones are scaled from the simulated layers to all of them, the head counted
 * once.
 */
#include <math.h>
#include <string.h>

#include "sim/account.h"
#include "sim/mapping.h"
#include "sim/timeline.h"
#include "sim/work.h"

struct sim_run {
    struct sim_work work;
    struct sim_cluster cluster;
    struct sim_locality *locality;     /* or, */
    struct sim_trace_source *recorded; /* with a trace */
    struct nkv_device **devices, *compute;
    struct nkv_context *context;
    struct sim_mapping *mapping; /* tp and cp: in place of the context and its devices */
    struct nkv_seq **seqs;
    struct nkv_attend_item *items;
    float *q, *kv, *out;    /* of no meaning, shared by all items */
    struct sim_span *heads; /* [config->n_steps]: when the head ran */
    uint32_t n_heads;
    bool measuring; /* behind the warm-up */
    struct sim_charge head;
};

static int open_source(struct sim_run *r)
{
    const struct nkv_sim_config *c = r->work.config;
    uint32_t n_units = c->granularity == NKV_SELECT_KV_HEAD ? r->work.shape.n_kv_heads : 1;
    uint32_t max_pages = r->work.max_tokens / c->page_tokens + 2;
    struct sim_pick_options pick = {.shape = r->work.shape, .max_pages = max_pages, .digest_levels = c->digest_levels};

    if (r->work.trace) {
        TRY(sim_trace_source_open(r->work.trace, r->work.kept_tokens, r->work.kept_tokens + r->work.n_steps,
                                  c->n_streams, &r->recorded));
        pick.source = sim_trace_source(r->recorded);
        r->work.n_streams = pick.source->n_streams;
    } else {
        TRY(sim_locality_open(&c->locality, c->seed, r->work.n_streams, r->work.shape.n_layers, n_units, max_pages,
                              &r->locality));
        pick.source = sim_locality_source(r->locality);
    }
    return sim_pick_open(&pick, &r->cluster.pick);
}

static int open_devices(struct sim_run *r)
{
    const struct sim_work *w = &r->work;
    struct sim_device_options options = {.kind = w->config->n_pnm ? SIM_KIND_PNM : SIM_KIND_GPU,
                                         .capacity_bytes = w->device_bytes,
                                         .kept_tokens = w->kept_tokens,
                                         .max_sequences = w->batch};

    TRY(nkv_alloc(w->n_devices, sizeof(struct nkv_device *), &r->devices));
    for (options.index = 0; options.index < w->n_devices; options.index++)
        TRY(sim_device_open(&r->cluster, &options, &r->devices[options.index]));
    options.kind = SIM_KIND_GPU;
    options.index = 0;
    options.capacity_bytes = w->pool_bytes;
    options.max_sequences = 2 * w->batch;
    return sim_device_open(&r->cluster, &options, &r->compute);
}

static int open_context(struct sim_run *r)
{
    const struct sim_work *w = &r->work;
    struct nkv_context_options options = {.size = sizeof options,
                                          .shape = w->shape,
                                          .devices = r->devices,
                                          .n_devices = w->n_devices,
                                          .compute = r->compute,
                                          .max_batch = w->batch,
                                          .max_tokens = w->batch,
                                          .now_ns = sim_cluster_now,
                                          .clock_arg = &r->cluster,
                                          .plan_log = w->config->plan_log,
                                          .plan_log_arg = w->config->plan_log_arg};

    return nkv_context_open(&options, &r->context);
}

static int open_seqs(struct sim_run *r)
{
    const struct sim_work *w = &r->work;
    uint32_t page_tokens = w->shape.page_tokens;
    struct nkv_seq_options options;

    nkv_seq_options_init(&options);
    options.max_tokens = w->max_tokens;
    options.mode = w->config->mode;
    options.budget_tokens = w->budget_tokens;
    options.granularity = w->config->granularity;
    options.resident_tokens = w->n_slots * page_tokens;
    options.same_step_recall = w->config->same_step_recall;
    options.sink_pages = w->sink_pages;
    options.recent_pages = w->recent_pages;
    TRY(nkv_alloc(w->batch, sizeof(struct nkv_seq *), &r->seqs));
    TRY(nkv_alloc(w->batch, sizeof *r->items, &r->items));
    TRY(nkv_alloc((size_t)w->shape.n_heads * w->shape.head_dim, sizeof *r->q, &r->q));
    TRY(nkv_alloc((size_t)w->shape.n_kv_heads * w->shape.head_dim, sizeof *r->kv, &r->kv));
    TRY(nkv_alloc((size_t)w->shape.n_heads * w->shape.head_dim, sizeof *r->out, &r->out));
    for (uint32_t i = 0; i < w->batch; i++) {
        TRY(nkv_seq_open(r->context, &options, &r->seqs[i]));
        r->items[i] = (struct nkv_attend_item){r->seqs[i], 1, r->q, r->kv, r->kv, r->out};
    }
    return 0;
}

static int run_open(struct sim_run *r)
{
    const struct sim_work *w = &r->work;

    r->cluster = (struct sim_cluster){.values = w->values,
                                      .shape = w->shape,
                                      .n_gpus = w->config->n_gpus,
                                      .tp = w->tp,
                                      .pp = w->pp,
                                      .n_pnm = w->config->n_pnm,
                                      .interleave = w->config->mode == NKV_MODE_RECALL ? w->config->n_pnm : 1};
    sim_cluster_set_rates(&r->cluster, w->config->weight_bytes);
    TRY(nkv_alloc(w->config->n_steps, sizeof *r->heads, &r->heads));
    TRY(sim_cluster_open(&r->cluster));
    TRY(open_source(r));
    if (w->config->mapping != NKV_SIM_DP)
        return sim_mapping_open(w, &r->cluster, &r->mapping);
    TRY(open_devices(r));
    TRY(open_context(r));
    return open_seqs(r);
}

static void close_device(struct nkv_device *device)
{
    if (device)
        device->ops->close(device);
}

static void run_close(struct sim_run *r)
{
    nkv_context_close(r->context);
    sim_mapping_close(r->mapping);
    for (uint32_t i = 0; r->devices && i < r->work.n_devices; i++)
        close_device(r->devices[i]);
    close_device(r->compute);
    sim_pick_close(r->cluster.pick);
    sim_locality_close(r->locality);
    sim_trace_source_close(r->recorded);
    sim_cluster_close(&r->cluster);
    nkv_free(r->devices);
    nkv_free(r->heads);
    nkv_free(r->seqs);
    nkv_free(r->items);
    nkv_free(r->q);
    nkv_free(r->kv);
    nkv_free(r->out);
}

/* ---- A step ---- */

/* Causal attention of a prompt in one layer: half of all pairs of tokens. */
static double prompt_flops(const struct nkv_sim_config *c)
{
    return 2.0 * c->model.n_heads * c->model.head_dim * c->context_tokens * c->context_tokens;
}

static int dense(struct sim_run *r, const struct nkv_fc_work *work)
{
    if (!r->mapping)
        return nkv_fc(r->context, work);
    sim_mapping_fc(r->mapping, work);
    return 0;
}

/* Prompts add their rows, and their attention, which runs at the rate of the matrix products. */
static int layer_fc(struct sim_run *r, uint32_t n_seqs, uint32_t n_prompts)
{
    const struct nkv_sim_config *c = r->work.config;
    double parameters = sim_layer_parameters(&c->model);
    uint32_t n_rows = n_seqs + n_prompts * c->context_tokens;
    struct nkv_fc_work work = {.n_rows = n_rows,
                               .flops = (uint64_t)(2 * parameters * n_rows + n_prompts * prompt_flops(c)),
                               .bytes = (uint64_t)(parameters * c->weight_bytes),
                               .n_sums = 2,
                               .sum_bytes = (uint64_t)n_rows * c->model.hidden * 2};

    return dense(r, &work);
}

static struct sim_charge charge_since(const struct sim_charge *now, const struct sim_charge *then)
{
    return (struct sim_charge){.pnm_bytes = now->pnm_bytes - then->pnm_bytes,
                               .pnm_flops = now->pnm_flops - then->pnm_flops,
                               .gpu_bytes = now->gpu_bytes - then->gpu_bytes,
                               .gpu_flops = now->gpu_flops - then->gpu_flops,
                               .gpu_attend_bytes = now->gpu_attend_bytes - then->gpu_attend_bytes,
                               .gpu_attend_flops = now->gpu_attend_flops - then->gpu_attend_flops,
                               .link_bytes = now->link_bytes - then->link_bytes,
                               .recall_bytes = now->recall_bytes - then->recall_bytes};
}

static int head_fc(struct sim_run *r)
{
    const struct nkv_sim_config *c = r->work.config;
    double parameters = (double)c->model.vocab * c->model.hidden;
    uint32_t n_rows = r->work.batch + r->work.n_prompts; /* of a prompt, its last token */
    struct nkv_fc_work work = {.n_rows = n_rows,
                               .flops = (uint64_t)(2 * parameters * n_rows),
                               .bytes = (uint64_t)(parameters * c->weight_bytes)};
    struct sim_charge before = r->cluster.charge, spent;
    uint64_t begin_ns = r->cluster.world.now.ns;

    TRY(dense(r, &work));
    if (r->measuring)
        r->heads[r->n_heads++] = (struct sim_span){begin_ns, r->cluster.world.now.ns};
    spent = charge_since(&r->cluster.charge, &before);
    r->head.gpu_bytes += spent.gpu_bytes;
    r->head.gpu_flops += spent.gpu_flops;
    return 0;
}

static int check_seqs(const struct sim_run *r)
{
    for (uint32_t i = 0; i < r->work.batch; i++)
        if (nkv_seq_status(r->seqs[i]) < 0)
            FAIL(nkv_seq_status(r->seqs[i]), "%s", nkv_seq_error(r->seqs[i]));
    return 0;
}

/* Layers of two halves in turn: the FC of one runs while the other attends. */
static int run_layers(struct sim_run *r)
{
    uint32_t n_halves = r->work.config->micro_batches <= r->work.batch ? r->work.config->micro_batches : 1;
    uint32_t first[3] = {0, n_halves == 2 ? r->work.batch / 2 : r->work.batch, r->work.batch};
    struct nkv_ticket *tickets[2] = {NULL, NULL};

    for (uint32_t layer = 0; layer < r->work.shape.n_layers; layer++)
        for (uint32_t half = 0; half < n_halves; half++) {
            uint32_t n = first[half + 1] - first[half];

            if (tickets[half])
                TRY(nkv_attend_end(tickets[half]));
            TRY(layer_fc(r, n, half == 0 ? r->work.n_prompts : 0));
            TRY(nkv_attend_begin(r->context, layer, r->items + first[half], n, &tickets[half]));
            if (n_halves == 1) {
                TRY(nkv_attend_end(tickets[half]));
                tickets[half] = NULL;
            }
        }
    for (uint32_t half = 0; half < n_halves; half++)
        if (tickets[half])
            TRY(nkv_attend_end(tickets[half]));
    return 0;
}

static int run_mapped(struct sim_run *r, uint32_t pos)
{
    for (uint32_t layer = 0; layer < r->work.shape.n_layers; layer++) {
        TRY(layer_fc(r, r->work.batch, 0));
        TRY(sim_mapping_attend(r->mapping, layer, pos));
    }
    return head_fc(r);
}

static int run_step(struct sim_run *r, uint32_t step)
{
    if (r->mapping)
        return run_mapped(r, r->work.kept_tokens + step);
    TRY(run_layers(r));
    TRY(head_fc(r));
    TRY(nkv_step_end(r->context, r->items, r->work.batch));
    return check_seqs(r);
}

static int run_steps(struct sim_run *r)
{
    for (uint32_t i = 0; i < SIM_WARM_STEPS; i++)
        TRY(run_step(r, i));
    for (uint32_t i = 0; r->seqs && i < r->work.batch; i++)
        nkv_seq_stats_reset(r->seqs[i]); /* waits for pages on their way, so that both begin with none */
    if (r->mapping)
        sim_mapping_drain(r->mapping);
    sim_world_mark(&r->cluster.world);
    r->cluster.charge = r->head = (struct sim_charge){0};
    r->cluster.sample_sum = r->cluster.sample_squares = 0;
    r->measuring = true;
    for (uint32_t i = 0; i < r->work.config->n_steps; i++)
        TRY(run_step(r, SIM_WARM_STEPS + i));
    return r->cluster.world.status;
}

/* ---- The report ---- */

/* From what the simulated layers took in all measured steps to a step of all layers. */
static double scaled(const struct sim_run *r, double all, double head)
{
    return ((all - head) / r->work.share + head) / r->work.config->n_steps;
}

static double head_ns(const struct sim_run *r)
{
    double ns = 0;

    for (uint32_t i = 0; i < r->n_heads; i++)
        ns += (double)(r->heads[i].end_ns - r->heads[i].begin_ns);
    return ns;
}

/*
 * What a resource is busy per step of all layers; no step is shorter for long. Work that is still under way when the
 * measured steps end (pages recalled for the next step) is counted here though nothing has waited for it yet.
 */
static double busiest_ms(const struct sim_run *r, enum nkv_sim_part *part_out)
{
    static const enum nkv_sim_part parts[] = {[SIM_GPU_ENGINE] = NKV_SIM_FC,
                                              [SIM_PNM_ENGINE] = NKV_SIM_ATTEND_PNM,
                                              [SIM_LINK] = NKV_SIM_LINK,
                                              [SIM_RECALL_LINK] = NKV_SIM_RECALL};
    double most = 0;

    for (uint32_t i = 0; i < r->cluster.world.n_resources; i++) {
        const struct sim_resource *resource = &r->cluster.world.resources[i];
        double ms = scaled(r, (double)resource->busy_ns, resource->kind == SIM_GPU_ENGINE ? head_ns(r) : 0) / 1e6;

        if (ms > most) {
            most = ms;
            *part_out = parts[resource->kind];
        }
    }
    return most;
}

static void report_times(const struct sim_run *r, struct nkv_sim_report *report)
{
    const struct sim_world *world = &r->cluster.world;
    uint64_t all_ns[NKV_SIM_PART_COUNT], head_path_ns[NKV_SIM_PART_COUNT];
    struct sim_path path = {r->heads, r->n_heads, all_ns, head_path_ns};
    enum nkv_sim_part busiest = NKV_SIM_OTHER;
    double other_ms = r->work.values->gpu.step_overhead * 1e3, wait_ms;

    sim_world_path(world, &path);
    report->step_ms = scaled(r, (double)(world->now.ns - world->mark_ns), head_ns(r)) / 1e6 + other_ms;
    for (uint32_t part = 0; part < NKV_SIM_PART_COUNT; part++) {
        report->breakdown_ms[part] = scaled(r, (double)all_ns[part], (double)head_path_ns[part]) / 1e6;
        report->busy_ms[part] = scaled(r, (double)world->busy_ns[part], part == NKV_SIM_FC ? head_ns(r) : 0) / 1e6;
    }
    report->breakdown_ms[NKV_SIM_OTHER] += other_ms;
    wait_ms = busiest_ms(r, &busiest) - report->step_ms;
    if (wait_ms > 0) {
        report->breakdown_ms[busiest] += wait_ms;
        report->step_ms += wait_ms;
    }
    report->tokens_per_s = 1e3 * r->work.batch / report->step_ms;
}

static double pnm_busy_s(const struct sim_run *r)
{
    double ns = 0;

    for (uint32_t i = 0; i < r->cluster.world.n_resources; i++)
        if (r->cluster.world.resources[i].kind == SIM_PNM_ENGINE)
            ns += (double)r->cluster.world.resources[i].busy_ns;
    return scaled(r, ns, 0) / 1e9;
}

/* Kernels that fetch recalled pages keep the GPUs busy; copies behind the step's back (next-step recall) do not. */
static double gather_s(const struct sim_run *r)
{
    const struct nkv_sim_config *c = r->work.config;
    uint64_t most = 0;

    if (c->mode != NKV_MODE_RECALL && !c->same_step_recall)
        return 0;
    for (uint32_t i = 0; i < r->cluster.world.n_resources; i++) {
        const struct sim_resource *resource = &r->cluster.world.resources[i];

        if (resource->kind == SIM_RECALL_LINK && resource->busy_ns > most)
            most = resource->busy_ns;
    }
    return scaled(r, (double)most, 0) / 1e9;
}

static struct sim_step step_of(const struct sim_run *r, const struct nkv_sim_report *report)
{
    const struct sim_charge *all = &r->cluster.charge, *head = &r->head;
    const struct nkv_sim_config *c = r->work.config;
    double attend_bytes = scaled(r, all->gpu_attend_bytes, 0), attend_flops = scaled(r, all->gpu_attend_flops, 0);
    struct sim_step step = {
        .seconds = report->step_ms / 1e3,
        .gpu_engine_s = scaled(r, (double)r->cluster.world.resources[r->cluster.gpu].busy_ns, head_ns(r)) / 1e9,
        .gpu_fc_s = (report->busy_ms[NKV_SIM_FC] + report->busy_ms[NKV_SIM_ALLREDUCE]) / 1e3,
        .pnm_busy_s = pnm_busy_s(r),
        .gpu_bytes = scaled(r, all->gpu_bytes, head->gpu_bytes),
        .gpu_flops = scaled(r, all->gpu_flops, head->gpu_flops),
        .pnm_bytes = scaled(r, all->pnm_bytes, 0),
        .pnm_flops = scaled(r, all->pnm_flops, 0),
        .link_bytes = scaled(r, all->link_bytes, 0),
        .batch = r->work.batch,
        .n_gpus = c->n_gpus,
        .n_pnm = c->n_pnm,
        .n_nodes = r->cluster.n_nodes,
        .n_hosts = (c->n_gpus + (uint32_t)r->work.values->node.gpus_per_node - 1) /
                   (uint32_t)r->work.values->node.gpus_per_node,
        .plain_memory = c->mode == NKV_MODE_RECALL,
        .full_activity = c->full_activity,
    };

    step.gpu_busy_s = fmin(step.seconds, step.gpu_engine_s + gather_s(r));
    step.gpu_fc_bytes = step.gpu_bytes - attend_bytes;
    step.gpu_fc_flops = step.gpu_flops - attend_flops;
    return step;
}

static void report_work(const struct sim_run *r, const struct sim_step *step, struct nkv_sim_report *report)
{
    const struct sim_work *w = &r->work;

    report->gpu_utilisation = step->gpu_engine_s / step->seconds;
    report->pnm_utilisation = w->config->n_pnm ? step->pnm_busy_s / step->seconds / w->config->n_pnm : 0;
    report->link_bytes_per_token = step->link_bytes / w->batch;
    report->recall_bytes_per_token = scaled(r, r->cluster.charge.recall_bytes, 0) / w->batch;
    report->pnm_bytes_per_token = step->pnm_bytes / w->batch;
    report->pnm_flops_per_token = step->pnm_flops / w->batch;
    report->gpu_bytes_per_token = step->gpu_bytes / w->batch;
    report->gpu_flops_per_token = step->gpu_flops / w->batch;
    report->kv_capacity_used =
        (double)w->batch * w->group * (double)w->request_bytes / ((double)w->n_devices * (double)w->device_bytes);
}

/* What devices and links do for a token's attention in a layer. */
static void report_mapping(const struct sim_run *r, struct nkv_sim_report *report)
{
    const struct sim_charge *charge = &r->cluster.charge;
    double n_layers = (double)r->work.shape.n_layers * r->work.config->n_steps, n = n_layers * r->work.batch;

    report->attended_bytes_per_token = scaled(r, charge->pnm_attend_bytes, 0) / r->work.batch;
    report->gpu_attended_bytes_per_token = scaled(r, charge->gpu_kv_bytes, 0) / r->work.batch;
    report->mapping_group = r->work.group;
    report->layer_transfers = charge->n_transfers / n;
    report->layer_sorts = charge->n_sorts / n;
    report->layer_reduce_messages = charge->n_reduce_messages / n;
    report->layer_list_messages = charge->n_list_messages / n;
    report->layer_select_bytes = charge->select_bytes / n;
    report->layer_select_ms = 1e3 * charge->select_seconds / n_layers;
}

/* Recalls per layer and request, and how well the sampled pairs pin them down. */
static void report_recall(const struct sim_run *r, struct nkv_sim_report *report)
{
    const struct sim_work *w = &r->work;
    uint32_t n_streams = w->n_streams < w->batch ? w->n_streams : w->batch;
    double n = (double)n_streams * w->shape.n_layers * w->config->n_steps;
    double mean = r->cluster.sample_sum / n, variance = r->cluster.sample_squares / n - mean * mean;
    double chosen = r->cluster.charge.n_chosen, steady = r->cluster.charge.n_steady;

    for (uint32_t i = 0; r->seqs && i < w->batch; i++) {
        struct nkv_seq_stats stats;

        nkv_seq_stats(r->seqs[i], &stats);
        chosen += (double)stats.chosen_pages;
        steady += (double)stats.steady_pages;
    }
    report->recalled_pages = mean;
    report->recalled_pages_error = n > 1 ? sqrt(fmax(variance, 0) / (n - 1)) : 0;
    report->n_samples = (uint32_t)n;
    report->steady_hit = chosen > 0 ? steady / chosen : 0;
}

static int run_report(struct sim_run *r, struct nkv_sim_report *report_out)
{
    struct nkv_sim_report report = {.batch = r->work.batch,
                                    .n_fit = r->work.n_fit,
                                    .tp = r->work.tp,
                                    .budget_tokens = r->work.config->mode == NKV_MODE_FULL
                                                         ? r->work.kept_tokens + r->work.n_steps
                                                         : r->work.budget_tokens,
                                    .steady_tokens = r->work.n_slots * r->work.shape.page_tokens};
    struct sim_step step;

    report_times(r, &report);
    step = step_of(r, &report);
    report_work(r, &step, &report);
    report_recall(r, &report);
    report_mapping(r, &report);
    sim_account_energy(r->work.values, &step, &report);
    sim_account_cost(r->work.values, &step, &report);
    if (r->work.config->timeline)
        TRY(sim_timeline_write(&r->cluster.world, r->work.config->timeline));
    *report_out = report;
    return 0;
}

int sim_run_steps(const struct nkv_sim_config *config, struct sim_trace *trace, uint32_t n_prompts,
                  struct nkv_sim_report *report_out)
{
    struct sim_run *r;
    int status;

    TRY(nkv_alloc(1, sizeof *r, &r));
    status = sim_work_size(config, trace, &r->work);
    r->work.n_prompts = n_prompts;
    if (status == 0)
        status = run_open(r);
    if (status == 0)
        status = run_steps(r);
    if (status == 0)
        status = run_report(r, report_out);
    run_close(r);
    nkv_free(r);
    return status;
}

static int run_once(const struct nkv_sim_config *config, struct sim_trace *trace, struct nkv_sim_report *report_out)
{
    return config->in_flight_prefill ? sim_run_loaded(config, trace, report_out)
                                     : sim_run_steps(config, trace, 0, report_out);
}

/*
 * The adaptive steady share: the best modelled one of a grid that contains 0, which is pnm, and the fixed rule. The
 * paper's fixed ratio can lose: where recall or the GPUs' floor costs more than the PNM devices save. Trials leave no
 * trace; the best is run again only for its timeline or its plan.
 */
static int run_adaptive(const struct nkv_sim_config *config, struct sim_trace *trace, struct nkv_sim_report *report_out)
{
    static const double shares[] = {NAN, 0, 1.0 / 16, 1.0 / 8, 1.0 / 4, 3.0 / 8, 1.0 / 2, 3.0 / 4};
    struct nkv_sim_config c = *config;
    struct nkv_sim_report best = {0}, report;
    double share = 0;

    c.timeline = NULL;
    c.plan_log = NULL;
    for (uint32_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        c.steady = shares[i];
        TRY(run_once(&c, trace, &report));
        if (report.tokens_per_s > best.tokens_per_s) {
            best = report;
            share = c.steady;
        }
    }
    *report_out = best;
    if (!config->timeline && !config->plan_log)
        return 0;
    c = *config;
    c.steady = share;
    return run_once(&c, trace, report_out);
}

static int run_mapping(const struct nkv_sim_config *config, struct nkv_sim_report *report_out)
{
    struct sim_trace *trace = NULL;
    int status;

    if (config->trace)
        TRY(sim_trace_open(config->trace, &trace));
    if (config->mode == NKV_MODE_PNG && config->steady == -1)
        status = run_adaptive(config, trace, report_out);
    else
        status = run_once(config, trace, report_out);
    sim_trace_close(trace);
    if (status == 0)
        report_out->mapping = config->mapping;
    return status;
}

int nkv_sim_run(const struct nkv_sim_config *config, struct nkv_sim_report *report_out)
{
    struct sim_mapping_choice choice;
    struct nkv_sim_config chosen;

    if (config->size != sizeof *config || config->mapping != NKV_SIM_AUTO)
        return run_mapping(config, report_out);
    TRY(sim_mapping_choose(config, &choice));
    chosen = *config;
    chosen.mapping = choice.mapping;
    TRY(run_mapping(&chosen, report_out));
    report_out->n_whole = choice.n_whole;
    report_out->n_spread = choice.n_spread;
    return 0;
}
