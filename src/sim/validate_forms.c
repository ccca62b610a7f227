/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must be exact: the table of LPDDR efficiencies, and machines so small that a formula has the answer.
 *
 * A closed form here is written from the machine's numbers, not from the simulator's functions: one request, one layer,
 * everything fast and free but what the case is about. A run is whole (context, admission, commands, clock); its time,
 * or that of one part of its critical path, must be the formula's within 1e-6 or two nanoseconds, which is what
 * rounding every stage up may add.
 */
#include <math.h>
#include <stdio.h>

#include "sim/validate.h"

/* ---- LPDDR */

#define RAMULATOR "cycle-level run of Ramulator 2.1, LPDDR5X-8533"
#define BETWEEN   "between its neighbours in the table"

static const struct {
    const char *name;
    double bytes, write_share, efficiency;
} patterns[] = {
    {"sequential", INFINITY, 0, 0.927},
    {"random 4096 B", 4096, 0, 0.902},
    {"random 512 B", 512, 0, 0.899},
    {"random 256 B", 256, 0, 0.902},
    {"random 64 B", 64, 0, 0.673},
    {"random 32 B", 32, 0, 0.394},
    {"sequential, 10 % writes", INFINITY, 0.1, 0.892},
    {"sequential, 50 % writes", INFINITY, 0.5, 0.751},
};

/* Two patterns of the table, and one between them. */
static const struct {
    uint32_t a, b;
    const char *name;
    double bytes, write_share;
} between[] = {
    {1, 2, "random 2048 B", 2048, 0},
    {1, 2, "random 1024 B", 1024, 0},
    {2, 3, "random 384 B", 384, 0},
    {3, 4, "random 128 B", 128, 0},
    {4, 5, "random 48 B", 48, 0},
    {0, 6, "sequential, 5 % writes", INFINITY, 0.05},
    {6, 7, "sequential, 30 % writes", INFINITY, 0.3},
};

static void add_memory(struct sim_checks *checks, const char *name, const char *source,
                       const struct nkv_sim_check *check)
{
    struct nkv_sim_check *added = sim_check_add(checks, check);

    added->group = NKV_SIM_CHECK_MEMORY;
    added->unit = "";
    added->source = source;
    snprintf(added->name, sizeof added->name, "%s", name);
}

int sim_check_memory(struct sim_checks *checks)
{
    const double rounding = 1e-12;
    struct nkv_sim_machine *machine;

    TRY(sim_machine_read_builtin("paper-server", &machine));
    for (uint32_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        double known = patterns[i].efficiency;

        add_memory(checks, patterns[i].name, RAMULATOR,
                   &(struct nkv_sim_check){
                       .expected = known,
                       .simulated = sim_pnm_efficiency(&machine->values, patterns[i].bytes, patterns[i].write_share),
                       .low = known - rounding,
                       .high = known + rounding});
    }
    for (uint32_t i = 0; i < sizeof between / sizeof *between; i++) {
        double a = patterns[between[i].a].efficiency, b = patterns[between[i].b].efficiency;

        add_memory(checks, between[i].name, BETWEEN,
                   &(struct nkv_sim_check){
                       .expected = NAN,
                       .simulated = sim_pnm_efficiency(&machine->values, between[i].bytes, between[i].write_share),
                       .low = fmin(a, b),
                       .high = fmax(a, b)});
    }
    nkv_sim_machine_close(machine);
    return 0;
}

/* ---- Closed forms */

#define HEADS       64.0
#define KV_HEADS    16.0
#define DIM         128.0
#define HIDDEN      4096.0
#define FFN         8192.0
#define VOCAB       1024.0
#define TOKENS      65536.0 /* of context; a run's mean over its four steps is 1.5 less */
#define ATTENDED    (TOKENS - 1.5)
#define TOKEN_BYTES (2 * KV_HEADS * DIM * 2)

#define LAYER_PARAMETERS (HIDDEN * (HEADS + 2 * KV_HEADS) * DIM + HEADS * DIM * HIDDEN + 3 * HIDDEN * FFN)
#define HEAD_PARAMETERS  (HIDDEN * VOCAB)

#define WHOLE_STEP NKV_SIM_PART_COUNT

struct form {
    const char *name, *formula;
    enum nkv_sim_part part; /* whose time on the critical path it is, or WHOLE_STEP */
    /* Sets what the case is about. returns: the time by formula, in seconds. */
    double (*set)(struct nkv_sim_config *config, struct sim_values *values);
};

/* Everything fast and free. */
static void set_ideal(struct sim_values *v)
{
    v->gpu.memory_capacity = v->pnm.memory_capacity = 1e12;
    v->gpu.memory_bandwidth = 1e15;
    v->gpu.compute_rate = 1e18;
    v->gpu.weight_efficiency = v->gpu.gemm_efficiency = v->gpu.attention_efficiency = 1;
    v->gpu.attention_floor = v->gpu.layer_overhead = v->gpu.step_overhead = v->gpu.allreduce_latency = 0;
    v->pnm.memory_bandwidth = 1e14;
    v->pnm.compute_rate = v->pnm.exp_rate = v->pnm.sort_rate = 1e17;
    v->pnm.compute_efficiency = 1;
    v->pnm.access_latency = v->pnm.command_overhead = 0;
    v->link.device_bandwidth = v->link.host_bandwidth = v->link.recall_bandwidth = 1e14;
    v->link.latency = 0;
    v->link.element_bytes = 2;
}

static void on_gpus(struct nkv_sim_config *config, uint32_t n_gpus)
{
    config->n_gpus = n_gpus;
    config->n_pnm = 0;
}

static double set_link(struct nkv_sim_config *config, struct sim_values *v)
{
    double kv = 2 * KV_HEADS * DIM * 2, q = HEADS * DIM * 2, partial = HEADS * DIM * 2 + HEADS * 8;

    (void)config;
    v->link.device_bandwidth = 1e8;
    v->link.latency = 2e-3;
    return (kv + q + partial) / 1e8 + 2 * 2e-3;
}

static double set_channel(struct nkv_sim_config *config, struct sim_values *v)
{
    (void)config;
    v->pnm.memory_bandwidth = 1e10;
    v->pnm.access_latency = 65e-9;
    v->pnm.command_overhead = 5e-7;
    return ATTENDED * TOKEN_BYTES / (1e10 * v->pnm.efficiency_4096) + 65e-9 + 5e-7; /* 32 keys of a head: 8 KiB */
}

static double set_vectors(struct nkv_sim_config *config, struct sim_values *v)
{
    (void)config;
    v->pnm.compute_rate = 1e10;
    v->pnm.compute_efficiency = 0.7;
    return ATTENDED * 4 * HEADS * DIM / (1e10 * 0.7);
}

static double set_softmax(struct nkv_sim_config *config, struct sim_values *v)
{
    (void)config;
    v->pnm.exp_rate = 1e8;
    return ATTENDED * HEADS / 1e8;
}

static double set_stream(struct nkv_sim_config *config, struct sim_values *v)
{
    double rate = 1e11;

    on_gpus(config, 1);
    v->gpu.memory_bandwidth = rate;
    v->gpu.weight_efficiency = 0.8;
    v->gpu.attention_efficiency = 0.9;
    v->gpu.layer_overhead = 3e-5;
    v->gpu.step_overhead = 2e-4;
    return (LAYER_PARAMETERS + HEAD_PARAMETERS) * 2 / (rate * 0.8) + ATTENDED * TOKEN_BYTES / (rate * 0.9) + 2 * 3e-5 +
           2e-4;
}

static double set_multiply(struct nkv_sim_config *config, struct sim_values *v)
{
    on_gpus(config, 1);
    config->batch = 64;
    v->gpu.compute_rate = 1e12;
    v->gpu.gemm_efficiency = 0.7;
    return 64 * 2 * (LAYER_PARAMETERS + HEAD_PARAMETERS) / (1e12 * 0.7);
}

static double set_halves(struct nkv_sim_config *config, struct sim_values *v)
{
    on_gpus(config, 2);
    v->gpu.memory_bandwidth = 1e11;
    v->gpu.weight_efficiency = 0.8;
    return (LAYER_PARAMETERS + HEAD_PARAMETERS) * 2 / (2 * 1e11 * 0.8);
}

/* Two all-reduces of a layer; each moves twice (n - 1) / n of the data over every link. */
static double set_allreduce(struct nkv_sim_config *config, struct sim_values *v)
{
    on_gpus(config, 2);
    config->batch = 64;
    v->gpu.link_bandwidth = 1e9;
    v->gpu.allreduce_latency = 1e-5;
    return 2 * (1e-5 + 2 * 0.5 * 64 * HIDDEN * 2 / 1e9);
}

static const struct form forms[] = {
    {"one link", "(k, v, q and output) / bandwidth + 2 latencies", NKV_SIM_LINK, set_link},
    {"one channel, bound by memory", "bytes / (bandwidth x efficiency) + overheads", NKV_SIM_ATTEND_PNM, set_channel},
    {"one channel, bound by its vector units", "FLOPs / (rate x efficiency)", NKV_SIM_ATTEND_PNM, set_vectors},
    {"one channel, bound by its softmax unit", "exponentials / rate", NKV_SIM_ATTEND_PNM, set_softmax},
    {"one GPU, bound by memory", "(weights, K and V) / (bandwidth x efficiency) + overheads", WHOLE_STEP, set_stream},
    {"one GPU, bound by its matrix units", "FLOPs / (rate x efficiency)", NKV_SIM_FC, set_multiply},
    {"two GPUs: dense layers", "weights / (2 x bandwidth x efficiency)", NKV_SIM_FC, set_halves},
    {"two GPUs: all-reduce", "2 x (latency + data / bandwidth)", NKV_SIM_ALLREDUCE, set_allreduce},
};

static int check_form(const struct form *form, struct nkv_sim_machine *machine, struct sim_checks *checks)
{
    struct nkv_sim_config config;
    struct nkv_sim_report report;
    struct nkv_sim_check *check;
    double expected, simulated, error;

    nkv_sim_config_init(&config);
    config.machine = machine;
    config.model = (struct nkv_sim_model){.name = "tiny",
                                          .n_layers = 1,
                                          .hidden = (uint32_t)HIDDEN,
                                          .n_heads = (uint32_t)HEADS,
                                          .n_kv_heads = (uint32_t)KV_HEADS,
                                          .head_dim = (uint32_t)DIM,
                                          .ffn = (uint32_t)FFN,
                                          .vocab = (uint32_t)VOCAB};
    config.mode = NKV_MODE_FULL;
    config.context_tokens = (uint32_t)TOKENS;
    config.batch = config.n_layers = 1;
    set_ideal(&machine->values);
    expected = form->set(&config, &machine->values);
    TRY(nkv_sim_run(&config, &report));
    simulated = (form->part == WHOLE_STEP ? report.step_ms : report.breakdown_ms[form->part]) / 1e3;
    error = fmax(1e-6 * expected, 2e-9);
    check = sim_check_add(checks, &(struct nkv_sim_check){.group = NKV_SIM_CHECK_CLOSED,
                                                          .source = form->formula,
                                                          .unit = "ms",
                                                          .expected = expected * 1e3,
                                                          .simulated = simulated * 1e3,
                                                          .low = (expected - error) * 1e3,
                                                          .high = (expected + error) * 1e3});
    snprintf(check->name, sizeof check->name, "%s", form->name);
    return 0;
}

int sim_check_closed(struct sim_checks *checks)
{
    struct nkv_sim_machine *machine;
    int status;

    TRY(sim_machine_read_builtin("paper-server", &machine));
    status = 0;
    for (uint32_t i = 0; status == 0 && i < sizeof forms / sizeof *forms; i++)
        status = check_form(&forms[i], machine, checks);
    nkv_sim_machine_close(machine);
    return status;
}
