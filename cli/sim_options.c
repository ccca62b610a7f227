/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options of a simulated configuration are a table, because `sim run` reads one value of each and `sim sweep` a
 * list. A model is a built-in shape, a YAML file, or a GGUF file, of which only the header matters.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nearkv/model.h>

#include "cli.h"
#include "sim.h"

static int read_double(const char *flag, const char *arg, double low, double high, double *value_out)
{
    char *end;
    double value = strtod(arg, &end);

    if (end == arg || *end || !(value >= low && value <= high))
        return cli_usage("--%s %s: give a number from %g to %g", flag, arg, low, high);
    *value_out = value;
    return CLI_OK;
}

static int read_u32(const char *flag, const char *arg, uint32_t low, uint32_t high, uint32_t *value_out)
{
    char name[40];

    snprintf(name, sizeof name, "--%s", flag);
    return cli_u32(name, arg, low, high, value_out);
}

static int read_machine(struct sim_options *o, const char *flag, const char *arg)
{
    (void)flag;
    o->machine = arg;
    return CLI_OK;
}

static int read_model(struct sim_options *o, const char *flag, const char *arg)
{
    (void)flag;
    o->model = arg;
    return CLI_OK;
}

static int read_context(struct sim_options *o, const char *flag, const char *arg)
{
    o->has_context = true;
    return read_u32(flag, arg, 64, 1u << 28, &o->config.context_tokens);
}

static int read_mode(struct sim_options *o, const char *flag, const char *arg)
{
    (void)flag;
    return nkv_mode_parse(arg, &o->config.mode) < 0 ? cli_usage("%s", nkv_last_error()) : CLI_OK;
}

static int read_gpus(struct sim_options *o, const char *flag, const char *arg)
{
    return read_u32(flag, arg, 1, 4096, &o->config.n_gpus);
}

static int read_pnm(struct sim_options *o, const char *flag, const char *arg)
{
    return read_u32(flag, arg, 0, 8192, &o->config.n_pnm);
}

static int read_kv_parallel(struct sim_options *o, const char *flag, const char *arg)
{
    return nkv_sim_mapping_parse(arg, &o->config.mapping) < 0 ? cli_usage("--%s: %s", flag, nkv_last_error()) : CLI_OK;
}

static int read_kv_group(struct sim_options *o, const char *flag, const char *arg)
{
    o->config.mapping_group = 0;
    return strcmp(arg, "max") == 0 ? CLI_OK : read_u32(flag, arg, 1, 8192, &o->config.mapping_group);
}

static int read_tp(struct sim_options *o, const char *flag, const char *arg)
{
    return read_u32(flag, arg, 1, 4096, &o->config.tp);
}

static int read_batch(struct sim_options *o, const char *flag, const char *arg)
{
    o->config.batch = 0;
    return strcmp(arg, "max") == 0 ? CLI_OK : read_u32(flag, arg, 1, 4096, &o->config.batch);
}

static int read_budget(struct sim_options *o, const char *flag, const char *arg)
{
    uint32_t tokens;

    if (strlen(arg) >= sizeof o->config.budget || nkv_sim_budget(arg, 1u << 20, &tokens) < 0)
        return cli_usage("--%s %s: write tokens, or a rule like context/4, 0.3*context, 2*context^0.8", flag, arg);
    snprintf(o->config.budget, sizeof o->config.budget, "%s", arg);
    return CLI_OK;
}

static int read_steady(struct sim_options *o, const char *flag, const char *arg)
{
    o->config.steady = strcmp(arg, "auto") == 0 ? -1 : NAN;
    return strcmp(arg, "auto") == 0 || strcmp(arg, "paper") == 0 ? CLI_OK
                                                                 : read_double(flag, arg, 0, 1, &o->config.steady);
}

static int read_page(struct sim_options *o, const char *flag, const char *arg)
{
    o->has_page = true;
    return read_u32(flag, arg, 1, NKV_MAX_PAGE_TOKENS, &o->config.page_tokens);
}

static int read_select(struct sim_options *o, const char *flag, const char *arg)
{
    (void)flag;
    o->has_select = true;
    return nkv_granularity_parse(arg, &o->config.granularity) < 0 ? cli_usage("%s", nkv_last_error()) : CLI_OK;
}

static int read_recall(struct sim_options *o, const char *flag, const char *arg)
{
    o->config.same_step_recall = strcmp(arg, "same-step") == 0;
    if (!o->config.same_step_recall && strcmp(arg, "next-step") != 0)
        return cli_usage("--%s %s: write next-step or same-step", flag, arg);
    return CLI_OK;
}

static int read_micro_batches(struct sim_options *o, const char *flag, const char *arg)
{
    return read_u32(flag, arg, 1, 2, &o->config.micro_batches);
}

static int read_digest_levels(struct sim_options *o, const char *flag, const char *arg)
{
    return read_u32(flag, arg, 1, 2, &o->config.digest_levels);
}

static int read_weights(struct sim_options *o, const char *flag, const char *arg)
{
    static const struct {
        const char *name;
        double bytes;
    } types[] = {{"bf16", 2}, {"fp8", 1}, {"q8_0", 34.0 / 32}};

    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(arg, types[i].name) == 0) {
            o->config.weight_bytes = types[i].bytes;
            return CLI_OK;
        }
    return cli_usage("--%s %s: write bf16, fp8 or q8_0", flag, arg);
}

static int read_kv(struct sim_options *o, const char *flag, const char *arg)
{
    (void)flag;
    return nkv_dtype_parse(arg, &o->config.kv_dtype) < 0 ? cli_usage("%s", nkv_last_error()) : CLI_OK;
}

static int read_prefill(struct sim_options *o, const char *flag, const char *arg)
{
    o->config.in_flight_prefill = strcmp(arg, "in-flight") == 0;
    if (!o->config.in_flight_prefill && strcmp(arg, "none") != 0)
        return cli_usage("--%s %s: write none or in-flight", flag, arg);
    return CLI_OK;
}

static int read_steps(struct sim_options *o, const char *flag, const char *arg)
{
    o->has_steps = true;
    return read_u32(flag, arg, 1, 10000, &o->config.n_steps);
}

static int read_layers(struct sim_options *o, const char *flag, const char *arg)
{
    o->has_layers = true;
    return read_u32(flag, arg, 1, NKV_MAX_LAYERS, &o->config.n_layers);
}

static int read_streams(struct sim_options *o, const char *flag, const char *arg)
{
    return read_u32(flag, arg, 1, 4096, &o->config.n_streams);
}

static int read_seed(struct sim_options *o, const char *flag, const char *arg)
{
    char name[40];

    o->locality_flag = "seed";
    snprintf(name, sizeof name, "--%s", flag);
    return cli_u64(name, arg, 0, UINT64_MAX, &o->config.seed);
}

static int read_drift(struct sim_options *o, const char *flag, const char *arg)
{
    o->locality_flag = "drift";
    return read_double(flag, arg, 0, 1, &o->config.locality.drift);
}

static int read_correlation(struct sim_options *o, const char *flag, const char *arg)
{
    o->locality_flag = "correlation";
    return read_double(flag, arg, 0, 1, &o->config.locality.correlation);
}

static int read_output(struct sim_options *o, const char *flag, const char *arg)
{
    return read_u32(flag, arg, 0, 1u << 28, &o->config.output_tokens);
}

static int read_trace(struct sim_options *o, const char *flag, const char *arg)
{
    (void)flag;
    o->config.trace = arg;
    return CLI_OK;
}

static int read_set(struct sim_options *o, const char *flag, const char *arg)
{
    if (o->n_sets == SIM_MAX_SETS)
        return cli_usage("--%s: at most %u of them", flag, SIM_MAX_SETS);
    o->sets[o->n_sets++] = arg;
    return CLI_OK;
}

const struct sim_flag sim_flags[] = {
    {"machine", "a built-in machine or a YAML file (paper-server)", read_machine},
    {"model", "a model shape, a YAML file or a GGUF file (llama-3.1-70b)", read_model},
    {"context", "tokens of every request (131072)", read_context},
    {"mode", "recall, pnm, png or full (png)", read_mode},
    {"gpus", "GPUs (2)", read_gpus},
    {"pnm", "PNM devices; 0: pages in the GPUs' memory (8)", read_pnm},
    {"kv-parallel",
     "dp, tp, cp: a request on one PNM device, its KV heads over several, or its pages; auto: dp or cp; tp, cp and "
     "auto model pnm, png and full (dp)",
     read_kv_parallel},
    {"kv-group", "tp, cp: PNM devices that share a request, or max; groups share the batch (max)", read_kv_group},
    {"tp", "GPUs of a tensor-parallel group; the groups are pipeline stages (a node's)", read_tp},
    {"batch", "requests, or max: as many as are admitted, at most 4096 (max)", read_batch},
    {"budget", "tokens attended per step, or a rule (52*context^0.5)", read_budget},
    {"output", "tokens that a request generates: its context grows by them (0)", read_output},
    {"steady", "share of the budget kept on the GPUs, paper or auto (paper: GPUs/(GPUs+PNM))", read_steady},
    {"page", "tokens per page (32)", read_page},
    {"select", "layer or kv-head (layer)", read_select},
    {"recall", "next-step or same-step: when recalled pages count (next-step)", read_recall},
    {"micro-batches", "1, or 2: the FC of one under the attention of the other (1)", read_micro_batches},
    {"digest-levels", "1, or 2: a digest over 16 pages first (1)", read_digest_levels},
    {"weights", "bf16, fp8 or q8_0 (bf16)", read_weights},
    {"kv", "f32, f16, bf16 or q8_0: K and V (f16)", read_kv},
    {"prefill", "none, or in-flight: prompts of new requests are computed between the tokens of the others (none)",
     read_prefill},
    {"set", "KEY=VALUE: a number of the machine, like pnm.memory_bandwidth=2 TB/s", read_set},
    {"steps", "measured steps (4)", read_steps},
    {"layers", "simulated layers, which stand for all; at most the model's (4)", read_layers},
    {"streams", "sequences with page scores of their own, which stand for all (by context)", read_streams},
    {"seed", "of the page scores (1)", read_seed},
    {"trace", "FILE of nearkv run --trace: page scores are the recorded ones (from the locality model)", read_trace},
    {"drift", "share of the variance of log scores that wanders (0.1)", read_drift},
    {"correlation", "of the wandering part from step to step (0.96)", read_correlation},
};
const uint32_t sim_n_flags = sizeof sim_flags / sizeof *sim_flags;

const struct sim_flag *sim_flag_find(const char *name)
{
    for (uint32_t i = 0; i < sim_n_flags; i++)
        if (strcmp(name, sim_flags[i].name) == 0)
            return &sim_flags[i];
    return NULL;
}

void sim_flags_print(FILE *file)
{
    for (uint32_t i = 0; i < sim_n_flags; i++)
        fprintf(file, "  --%-15s %s\n", sim_flags[i].name, sim_flags[i].what);
}

void sim_options_init(struct sim_options *o)
{
    *o = (struct sim_options){.machine = "paper-server", .model = "llama-3.1-70b"};
    nkv_sim_config_init(&o->config);
    o->config.mode = NKV_MODE_PNG;
    o->config.n_gpus = 2;
    o->config.n_pnm = 8;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

static int open_gguf(const char *path, struct nkv_sim_model *model_out)
{
    struct nkv_model *model;
    struct nkv_model_info info;

    if (nkv_model_open(path, &model) < 0)
        return cli_fail("%s", nkv_last_error());
    nkv_model_info(model, &info);
    nkv_model_close(model);
    *model_out = (struct nkv_sim_model){.n_layers = info.n_layers,
                                        .hidden = info.n_embd,
                                        .n_heads = info.n_heads,
                                        .n_kv_heads = info.n_kv_heads,
                                        .head_dim = info.head_dim,
                                        .ffn = info.n_ff,
                                        .vocab = info.n_vocab,
                                        .tied = info.tied_embeddings};
    snprintf(model_out->name, sizeof model_out->name, "%s", info.name[0] ? info.name : path);
    return CLI_OK;
}

/* What is not asked for is as it was recorded. */
static int follow_trace(struct sim_options *o)
{
    struct nkv_sim_config *c = &o->config;
    struct nkv_sim_trace_info *info = &o->trace;

    if (!c->trace)
        return CLI_OK;
    if (o->locality_flag)
        return cli_usage("--%s with --trace, whose recorded scores take the place of modelled ones: leave one out",
                         o->locality_flag);
    if (nkv_sim_trace_info(c->trace, info) < 0)
        return cli_fail("%s", nkv_last_error());
    if (info->n_run_steps == 0)
        return cli_fail("%s: %u recorded steps are too few to warm up and measure one", c->trace, info->n_steps);
    if (!o->has_context)
        c->context_tokens = info->context_tokens;
    if (!o->has_page)
        c->page_tokens = info->shape.page_tokens;
    if (!o->has_select)
        c->granularity = info->granularity;
    if (!o->has_steps && c->n_steps > info->n_run_steps)
        c->n_steps = info->n_run_steps;
    return CLI_OK;
}

int sim_options_open(struct sim_options *o, struct nkv_sim_machine **machine_out)
{
    struct nkv_sim_machine *machine;
    int rc = follow_trace(o);

    if (rc != CLI_OK)
        return rc;
    if (ends_with(o->model, ".gguf")) {
        if (open_gguf(o->model, &o->config.model) != CLI_OK)
            return CLI_FAILED;
    } else if (nkv_sim_model_open(o->model, &o->config.model) < 0) {
        return cli_fail("%s", nkv_last_error());
    }
    if (!o->has_layers && o->config.n_layers > o->config.model.n_layers)
        o->config.n_layers = o->config.model.n_layers;
    if (nkv_sim_machine_open(o->machine, &machine) < 0)
        return cli_fail("%s", nkv_last_error());
    for (uint32_t i = 0; i < o->n_sets; i++)
        if (nkv_sim_machine_set(machine, o->sets[i]) < 0) {
            nkv_sim_machine_close(machine);
            return cli_usage("--set %s: %s", o->sets[i], nkv_last_error());
        }
    o->config.machine = machine;
    *machine_out = machine;
    return CLI_OK;
}

json_t *sim_machine_json(const struct nkv_sim_machine *machine)
{
    json_t *object = json_object();
    struct nkv_sim_number number;

    json_object_set_new(object, "name", json_string(nkv_sim_machine_name(machine)));
    for (uint32_t i = 0; nkv_sim_machine_number(machine, i, &number) == 0; i++)
        json_object_set_new(
            object, number.key,
            json_pack("{s:f, s:s, s:s}", "value", number.value, "unit", number.unit, "source", number.source));
    return object;
}

/* Where page scores come from. */
static json_t *scores_json(const struct sim_options *o)
{
    const struct nkv_sim_trace_info *info = &o->trace;

    if (!o->config.trace)
        return json_pack("{s:{s:f, s:f}}", "locality", "drift", o->config.locality.drift, "correlation",
                         o->config.locality.correlation);
    return json_pack("{s:{s:s, s:I, s:I, s:I, s:I, s:b}}", "trace", "file", o->config.trace, "layers",
                     (json_int_t)info->shape.n_layers, "sequences", (json_int_t)info->n_sequences, "context",
                     (json_int_t)info->context_tokens, "budget_tokens", (json_int_t)info->budget_tokens, "scores",
                     info->has_scores);
}

/* What a configuration shares with the others of a grid. */
json_t *sim_shared_assumptions(const struct sim_options *o, const struct nkv_sim_machine *machine)
{
    const struct nkv_sim_config *c = &o->config;
    json_t *object =
        json_pack("{s:s, s:s, s:I, s:s, s:I, s:I, s:f, s:s, s:I, s:I, s:I, s:o}", "budget", c->budget, "recall",
                  c->same_step_recall ? "same-step" : "next-step", "page_tokens", (json_int_t)c->page_tokens, "select",
                  nkv_granularity_name(c->granularity), "micro_batches", (json_int_t)c->micro_batches, "digest_levels",
                  (json_int_t)c->digest_levels, "weight_bytes", c->weight_bytes, "kv", nkv_dtype_name(c->kv_dtype),
                  "steps", (json_int_t)c->n_steps, "layers", (json_int_t)c->n_layers, "seed", (json_int_t)c->seed,
                  "machine", sim_machine_json(machine));

    json_object_update_new(object, scores_json(o));
    return object;
}

/* "paper", "auto" or a number, as --steady takes it. */
static json_t *steady_json(double steady)
{
    if (isnan(steady))
        return json_string("paper");
    return steady < 0 ? json_string("auto") : json_real(steady);
}

json_t *sim_assumptions(const struct sim_options *o, const struct nkv_sim_machine *machine,
                        const struct nkv_sim_report *report)
{
    const struct nkv_sim_config *c = &o->config;
    json_t *object = sim_shared_assumptions(o, machine);

    json_object_update_new(
        object,
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:b, s:b}", "model", c->model.name, "mode",
                  nkv_mode_name(c->mode), "kv_parallel", nkv_sim_mapping_name(c->mapping), "kv_group",
                  (json_int_t)report->mapping_group, "context", (json_int_t)c->context_tokens, "output",
                  (json_int_t)c->output_tokens, "gpus", (json_int_t)c->n_gpus, "pnm", (json_int_t)c->n_pnm, "tp",
                  (json_int_t)report->tp, "batch", (json_int_t)report->batch, "steady", steady_json(c->steady),
                  "in_flight_prefill", (int)c->in_flight_prefill, "full_activity", (int)c->full_activity));
    return object;
}
