/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The paper's configurations. In a server every (model, context, GPUs) of its section 6 meets 1, 2, 4 and 8 PNM
 * devices; the rack has 1 to 4 PNM nodes. The baseline's plain memory cards count as 8, which only the full cost
 * account sees.
 */
#include "sim/grid.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

#define K 1024u

const struct sim_server_config sim_server_configs[] = {
    {"llama-3.1-8b", 128 * K, 1},  {"llama-3.1-8b", 256 * K, 2},  {"llama-3.1-8b", 512 * K, 4},
    {"llama-3.1-8b", 1024 * K, 8}, {"llama-3.1-70b", 128 * K, 2}, {"llama-3.1-70b", 256 * K, 4},
    {"llama-3.1-70b", 512 * K, 8},
};
const uint32_t sim_n_server_configs = sizeof sim_server_configs / sizeof *sim_server_configs;
const uint32_t sim_server_pnm[] = {1, 2, 4, 8};
const uint32_t sim_n_server_pnm = sizeof sim_server_pnm / sizeof *sim_server_pnm;

#define BASELINE_CARDS 8u
#define MAX_POINTS     256u

static void add(struct sim_grid *grid, struct nkv_sim_point point)
{
    if (grid->n_points < grid->max_points)
        grid->points[grid->n_points++] = point;
}

static void add_server(struct sim_grid *grid, const struct sim_server_config *c, bool adaptive)
{
    struct nkv_sim_point point = {.model = c->model,
                                  .context_tokens = c->context_tokens,
                                  .n_gpus = c->n_gpus,
                                  .n_pnm = BASELINE_CARDS,
                                  .mode = NKV_MODE_RECALL};

    add(grid, point);
    for (uint32_t i = 0; i < sim_n_server_pnm; i++) {
        point.n_pnm = sim_server_pnm[i];
        point.mode = NKV_MODE_PNM;
        add(grid, point);
        point.mode = NKV_MODE_PNG;
        add(grid, point);
        point.adaptive = adaptive;
        if (adaptive)
            add(grid, point);
        point.adaptive = false;
    }
}

static void add_rack(struct sim_grid *grid, bool adaptive)
{
    struct nkv_sim_point point = {.model = SIM_RACK_MODEL,
                                  .context_tokens = SIM_RACK_CONTEXT,
                                  .n_gpus = SIM_RACK_GPUS,
                                  .n_pnm = SIM_RACK_NODE,
                                  .rack = true};

    point.mode = NKV_MODE_RECALL;
    add(grid, point);
    for (point.n_pnm = SIM_RACK_NODE; point.n_pnm <= 4 * SIM_RACK_NODE; point.n_pnm += SIM_RACK_NODE) {
        point.mode = NKV_MODE_PNM;
        add(grid, point);
        point.mode = NKV_MODE_PNG;
        add(grid, point);
        point.adaptive = adaptive;
        if (adaptive)
            add(grid, point);
        point.adaptive = false;
    }
}

/* The baseline against GPUs at 8B, 128K (cost), and against the context (figure 3). */
static void add_baselines(struct sim_grid *grid, bool figures)
{
    struct nkv_sim_point point = {
        .model = "llama-3.1-8b", .context_tokens = 128 * K, .n_pnm = BASELINE_CARDS, .mode = NKV_MODE_RECALL};

    for (point.n_gpus = 8; point.n_gpus > 1; point.n_gpus /= 2)
        if (figures || point.n_gpus == 8)
            add(grid, point);
    for (point.context_tokens = 32 * K, point.n_gpus = 1; figures && point.context_tokens <= 1024 * K;
         point.context_tokens *= 2)
        if (point.context_tokens != 128 * K)
            add(grid, point);
}

int sim_grid_open(enum sim_grid_part part, struct sim_grid *grid_out)
{
    struct sim_grid grid = {.max_points = MAX_POINTS};
    bool all = part == SIM_GRID_ALL;

    TRY(nkv_alloc(grid.max_points, sizeof *grid.points, &grid.points));
    for (uint32_t i = 0; i < sim_n_server_configs; i++)
        add_server(&grid, &sim_server_configs[i], all);
    add_baselines(&grid, all);
    if (all)
        add_rack(&grid, true);
    *grid_out = grid;
    return 0;
}

void sim_grid_close(struct sim_grid *grid)
{
    nkv_free(grid->points);
    *grid = (struct sim_grid){0};
}

struct batch {
    struct sim_grid *grid;
    const struct sim_grid_run *run;
    _Atomic uint32_t n_done;
    _Atomic bool stop;
};

static void simulate(const struct sim_grid_run *run, struct nkv_sim_point *point)
{
    struct nkv_sim_config config = run->config;

    config.machine = point->rack ? run->rack : run->server;
    config.context_tokens = point->context_tokens;
    config.n_gpus = point->n_gpus;
    config.n_pnm = point->n_pnm;
    config.mode = point->mode;
    if (point->adaptive)
        config.steady = -1;
    point->status = nkv_sim_model_open(point->model, &config.model);
    if (config.n_layers > config.model.n_layers)
        config.n_layers = config.model.n_layers;
    if (point->status == 0)
        point->status = nkv_sim_run(&config, &point->report);
    if (point->status < 0)
        snprintf(point->error, sizeof point->error, "%s", nkv_last_error());
}

static void simulate_task(void *arg, uint32_t task, uint32_t rank)
{
    struct batch *batch = arg;
    const struct sim_grid_run *run = batch->run;
    uint32_t n_done;

    if (atomic_load(&batch->stop))
        return;
    simulate(run, &batch->grid->points[batch->grid->n_points - 1 - task]); /* the longest come last */
    n_done = atomic_fetch_add(&batch->n_done, 1) + 1;
    if (rank == 0 && run->progress && run->progress(run->progress_arg, run->n_before + n_done, run->n_total))
        atomic_store(&batch->stop, true);
}

int sim_grid_simulate(struct sim_grid *grid, const struct sim_grid_run *run)
{
    struct batch batch = {.grid = grid, .run = run};

    nkv_team_tasks(run->team, grid->n_points, simulate_task, &batch);
    if (atomic_load(&batch.stop))
        FAIL(NKV_ECANCELED, "interrupted");
    return 0;
}

const struct nkv_sim_report *sim_grid_find(const struct sim_grid *grid, const char *model, uint32_t context_tokens,
                                           uint32_t n_gpus, uint32_t n_pnm, enum nkv_mode mode)
{
    for (uint32_t i = 0; i < grid->n_points; i++) {
        const struct nkv_sim_point *p = &grid->points[i];

        if (strcmp(p->model, model) == 0 && p->context_tokens == context_tokens && p->n_gpus == n_gpus &&
            p->mode == mode && !p->adaptive && (mode == NKV_MODE_RECALL || p->n_pnm == n_pnm))
            return p->status == 0 ? &p->report : NULL;
    }
    return NULL;
}
