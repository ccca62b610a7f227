/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nkv_sim_paper_run: the grid once with everything, then once for each end of each assumption with the points that the
 * claims need and a smaller sample (the tornado table). An assumption is a number of the machine or a setting of the
 * configuration.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "sim/claims.h"
#include "sim/machine.h"

/* name: a machine's key, or one of the settings below. */
static const struct {
    const char *name, *low, *high, *why;
} table[] = {
    {"budget", "30*context^0.5", "context/4", "not stated; decides batch, attention time and recalls"},
    {"recall", "next-step", "same-step", "the paper recalls within the step"},
    {"page", "16", "64", "not stated; ArkVale uses 32"},
    {"drift", "0.05", "0.2", "how many pages change between steps; calibrated to ArkVale's fewer than 10"},
    {"gpu.memory_usable", "0.87", "0.95", "what activations and buffers leave"},
    {"gpu.weight_efficiency", "0.72", "0.81", "public profiles of A100"},
    {"gpu.gemm_efficiency", "0.66", "0.77", "public profiles of A100"},
    {"gpu.attention_efficiency", "0.77", "0.95", "public profiles of A100"},
    {"gpu.layer_overhead", "25 us", "40 us", "public profiles of A100"},
    {"gpu.busy_power", "276 W", "400 W", "0.69 TDP was measured while decoding"},
    {"gpu.idle_power", "60 W", "100 W", "0.15-0.25 TDP"},
    {"pnm.compute_efficiency", "0.5", "1", "not stated; at 0.54 attention of 70B is bound by the vector units"},
    {"pnm.memory_energy", "4 pJ/bit", "5 pJ/bit", "LPDDR5X; the paper's 40 W are 4.55"},
    {"pnm.compute_energy", "0.2 pJ/FLOP", "1 pJ/FLOP", "not stated"},
    {"link.recall_bandwidth", "26 GB/s", "55 GB/s", "how fast one GPU reads CXL memory; 26 was measured on PCIe 5"},
    {"link.host_bandwidth", "55 GB/s", "110 GB/s", "what all of them share; PCIe 5 or 6 x16"},
    {"link.shared_recall", "0", "1", "whether all GPUs share one host link"},
};

#define N_ASSUMPTIONS (sizeof table / sizeof *table)

/* The tornado table's sample. */
#define TORNADO_LAYERS  1u
#define TORNADO_STEPS   2u
#define TORNADO_STREAMS 1u

void nkv_sim_paper_config_init(struct nkv_sim_config *config)
{
    nkv_sim_config_init(config);
    config->same_step_recall = true;
}

static bool is_key(uint32_t i)
{
    return strchr(table[i].name, '.') != NULL;
}

static void set_config(struct nkv_sim_config *config, const char *name, const char *value)
{
    if (strcmp(name, "budget") == 0)
        snprintf(config->budget, sizeof config->budget, "%s", value);
    else if (strcmp(name, "recall") == 0)
        config->same_step_recall = strcmp(value, "same-step") == 0;
    else if (strcmp(name, "page") == 0)
        config->page_tokens = (uint32_t)strtoul(value, NULL, 10);
    else
        config->locality.drift = strtod(value, NULL);
}

static void chosen_value(const struct nkv_sim_paper_options *o, uint32_t i, char *text, size_t bytes)
{
    const struct nkv_sim_config *c = &o->config;
    const char *name = table[i].name;

    if (is_key(i))
        sim_number_show(*sim_value((struct sim_values *)&o->server->values, (uint32_t)sim_key_find(name)),
                        sim_keys[sim_key_find(name)].unit, text, bytes);
    else if (strcmp(name, "budget") == 0)
        snprintf(text, bytes, "%s", c->budget);
    else if (strcmp(name, "recall") == 0)
        snprintf(text, bytes, "%s", c->same_step_recall ? "same-step" : "next-step");
    else if (strcmp(name, "page") == 0)
        snprintf(text, bytes, "%u", c->page_tokens);
    else
        snprintf(text, bytes, "%g", c->locality.drift);
}

/* A machine with one number changed; its sources are the original's. */
static int changed_machine(const struct nkv_sim_machine *machine, const char *name, const char *value,
                           struct nkv_sim_machine **machine_out)
{
    char assignment[96];
    int status;

    TRY(nkv_sim_machine_copy(machine, machine_out));
    snprintf(assignment, sizeof assignment, "%s=%s", name, value);
    status = nkv_sim_machine_set(*machine_out, assignment);
    if (status < 0)
        nkv_sim_machine_close(*machine_out);
    return status;
}

/* The claims with one assumption at one end. */
static int run_end(const struct sim_grid_run *base, uint32_t i, const char *value, struct sim_grid *grid,
                   struct nkv_sim_claim *claims, double *ours_out)
{
    struct sim_grid_run run = *base;
    struct nkv_sim_machine *server = NULL;
    int status;

    run.config.n_layers = TORNADO_LAYERS;
    run.config.n_steps = TORNADO_STEPS;
    run.config.n_streams = TORNADO_STREAMS;
    if (is_key(i)) {
        TRY(changed_machine(base->server, table[i].name, value, &server));
        run.server = server;
    } else {
        set_config(&run.config, table[i].name, value);
    }
    status = sim_grid_simulate(grid, &run);
    nkv_sim_machine_close(server);
    TRY(status);
    sim_claims_evaluate(grid, claims);
    for (uint32_t c = 0; c < sim_n_claims; c++)
        ours_out[c] = claims[c].ours;
    return 0;
}

static void find_movers(struct nkv_sim_paper *paper)
{
    for (uint32_t c = 0; c < paper->n_claims; c++) {
        struct nkv_sim_claim *claim = &paper->claims[c];
        double widest = -1;

        claim->mover_low = claim->mover_high = NAN;
        for (uint32_t i = 0; i < paper->n_assumptions; i++) {
            double low = paper->tornado[2 * i * paper->n_claims + c];
            double high = paper->tornado[(2 * i + 1) * paper->n_claims + c];
            double width = claim->numeric ? fabs(log(high / low)) : fabs(high - low);

            if (width > widest) {
                widest = width;
                claim->mover = i;
                claim->mover_low = low;
                claim->mover_high = high;
            }
        }
    }
}

static int run_tornado(struct nkv_sim_paper *paper, struct sim_grid_run *run)
{
    struct nkv_sim_claim *claims;
    struct sim_grid grid;
    int status;

    TRY(nkv_alloc(sim_n_claims, sizeof *claims, &claims));
    status = sim_grid_open(SIM_GRID_CLAIMS, &grid);
    if (status < 0) {
        nkv_free(claims);
        return status;
    }
    for (uint32_t i = 0; status == 0 && i < N_ASSUMPTIONS; i++)
        for (uint32_t end = 0; status == 0 && end < 2; end++) {
            status = run_end(run, i, end ? table[i].high : table[i].low, &grid, claims,
                             paper->tornado + (2 * i + end) * sim_n_claims);
            run->n_before += grid.n_points;
        }
    sim_grid_close(&grid);
    nkv_free(claims);
    if (status == 0)
        find_movers(paper);
    return status;
}

static int alloc_parts(struct nkv_sim_paper *paper)
{
    paper->n_claims = sim_n_claims;
    paper->n_assumptions = N_ASSUMPTIONS;
    paper->tornado_layers = TORNADO_LAYERS;
    paper->tornado_steps = TORNADO_STEPS;
    paper->tornado_streams = TORNADO_STREAMS;
    TRY(nkv_alloc(sim_n_claims, sizeof *paper->claims, &paper->claims));
    TRY(nkv_alloc(N_ASSUMPTIONS, sizeof *paper->assumptions, &paper->assumptions));
    return nkv_alloc(2 * N_ASSUMPTIONS * sim_n_claims, sizeof *paper->tornado, &paper->tornado);
}

static uint32_t n_points(enum sim_grid_part part)
{
    struct sim_grid grid;
    uint32_t n = 0;

    if (sim_grid_open(part, &grid) == 0) {
        n = grid.n_points;
        sim_grid_close(&grid);
    }
    return n;
}

/* An option that makes every point wrong, or leaves no room for any, is told, not 16 claims without a number. */
static int check_points(const struct sim_grid *grid)
{
    for (uint32_t i = 0; i < grid->n_points; i++)
        if (grid->points[i].status == 0)
            return 0;
    FAIL(grid->points[0].status, "none of %u points can be simulated; the first: %s", grid->n_points,
         grid->points[0].error);
}

static int fill(struct nkv_sim_paper *paper, const struct nkv_sim_paper_options *o, struct nkv_team *team)
{
    struct sim_grid_run run = {.server = o->server,
                               .rack = o->rack,
                               .config = o->config,
                               .team = team,
                               .progress = o->progress,
                               .progress_arg = o->progress_arg};
    struct sim_grid grid;

    TRY(alloc_parts(paper));
    for (uint32_t i = 0; i < N_ASSUMPTIONS; i++) {
        paper->assumptions[i] = (struct nkv_sim_assumption){
            .name = table[i].name, .why = table[i].why, .low = table[i].low, .high = table[i].high};
        chosen_value(o, i, paper->assumptions[i].chosen, sizeof paper->assumptions[i].chosen);
    }
    run.n_total = n_points(SIM_GRID_ALL) + (o->tornado ? 2 * N_ASSUMPTIONS * n_points(SIM_GRID_CLAIMS) : 0);
    TRY(sim_grid_open(SIM_GRID_ALL, &grid));
    paper->points = grid.points;
    paper->n_points = grid.n_points;
    TRY(sim_grid_simulate(&grid, &run));
    TRY(check_points(&grid));
    run.n_before = grid.n_points;
    sim_claims_evaluate(&grid, paper->claims);
    sim_claims_energy(&grid, paper->energy_ratios);
    paper->mean_abs_log = sim_claims_error(paper->claims);
    return o->tornado ? run_tornado(paper, &run) : 0;
}

int nkv_sim_paper_run(const struct nkv_sim_paper_options *options, struct nkv_sim_paper **paper_out)
{
    struct nkv_sim_paper *paper;
    struct nkv_team *team;
    int status;

    if (options->size != sizeof *options)
        FAIL(NKV_EINVAL, "nkv_sim_paper_options.size is %u: it must be %zu", options->size, sizeof *options);
    if (!options->server || !options->rack)
        FAIL(NKV_EINVAL, "no %s", options->server ? "rack" : "server");
    TRY(sim_machine_check(options->server));
    TRY(sim_machine_check(options->rack));
    TRY(nkv_team_open(options->n_threads ? options->n_threads : nkv_cpu_count(), NULL, NULL, &team));
    status = nkv_alloc(1, sizeof *paper, &paper);
    if (status == 0) {
        status = fill(paper, options, team);
        if (status == 0)
            *paper_out = paper;
        else
            nkv_sim_paper_close(paper);
    }
    nkv_team_close(team);
    return status;
}

void nkv_sim_paper_close(struct nkv_sim_paper *paper)
{
    if (!paper)
        return;
    nkv_free(paper->claims);
    nkv_free(paper->points);
    nkv_free(paper->assumptions);
    nkv_free(paper->tornado);
    nkv_free(paper);
}
