/* SPDX-License-Identifier: Apache-2.0 */
/* sim/account.h: energy and money of a step, from what it did. Formulas: docs/simulator.md, "Accounts". */
#ifndef NKV_SIM_ACCOUNT_H
#define NKV_SIM_ACCOUNT_H

#include "sim/machine.h"

/* One step of the whole batch, all layers. */
struct sim_step {
    double seconds;
    double gpu_engine_s;         /* FC, scoring and attention of the group */
    double gpu_busy_s;           /* the same, and kernels that fetch recalled pages and wait for them */
    double gpu_fc_s;             /* FC and all-reduce */
    double pnm_busy_s;           /* summed over devices */
    double gpu_bytes, gpu_flops; /* all GPUs together */
    double gpu_fc_bytes, gpu_fc_flops;
    double pnm_bytes, pnm_flops, link_bytes;
    uint32_t batch, n_gpus, n_pnm, n_nodes, n_hosts;
    bool plain_memory; /* the cards compute nothing: the baseline's plain CXL memory */
    bool full_activity;
};

/* Fills energy_j and its parts. */
void sim_account_energy(const struct sim_values *values, const struct sim_step *step, struct nkv_sim_report *report);
/* Fills the costs. */
void sim_account_cost(const struct sim_values *values, const struct sim_step *step, struct nkv_sim_report *report);

#endif
