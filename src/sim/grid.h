/* SPDX-License-Identifier: Apache-2.0 */
/* sim/grid.h: the paper's configurations as a list of points that are simulated side by side. */
#ifndef NKV_SIM_GRID_H
#define NKV_SIM_GRID_H

#include <nearkv/sim.h>

#include "base/team.h"

struct sim_grid {
    uint32_t n_points, max_points;
    struct nkv_sim_point *points;
};

/* Which of the paper's points: what claims need, or what figures show, too. */
enum sim_grid_part { SIM_GRID_CLAIMS, SIM_GRID_ALL };

int sim_grid_open(enum sim_grid_part part, struct sim_grid *grid_out);
void sim_grid_close(struct sim_grid *grid);

struct sim_grid_run {
    const struct nkv_sim_machine *server, *rack;
    struct nkv_sim_config config;
    struct nkv_team *team;
    int (*progress)(void *arg, uint64_t n_done, uint64_t n_total);
    void *progress_arg;
    uint64_t n_before, n_total; /* points done before this grid, and in all */
};
/* Simulates every point; a point that cannot be simulated keeps its error. returns: 0 or NKV_ECANCELED. */
int sim_grid_simulate(struct sim_grid *grid, const struct sim_grid_run *run);

/* The report of a point, or NULL when it is not there or was not simulated. */
const struct nkv_sim_report *sim_grid_find(const struct sim_grid *grid, const char *model, uint32_t context_tokens,
                                           uint32_t n_gpus, uint32_t n_pnm, enum nkv_mode mode);

/* The in-server configurations of the paper's section 6. */
struct sim_server_config {
    const char *model;
    uint32_t context_tokens, n_gpus;
};
extern const struct sim_server_config sim_server_configs[];
extern const uint32_t sim_n_server_configs;
/* PNM devices in a server. */
extern const uint32_t sim_server_pnm[];
extern const uint32_t sim_n_server_pnm;
#define SIM_RACK_MODEL   "llama-3.1-405b"
#define SIM_RACK_CONTEXT 1000000u /* 2^20 tokens would take 558 GB, more than the 550 GB of a card */
#define SIM_RACK_GPUS    16u
#define SIM_RACK_NODE    16u /* PNM devices of a node; 1 to 4 nodes */

#endif
