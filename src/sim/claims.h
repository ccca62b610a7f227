/* SPDX-License-Identifier: Apache-2.0 */
/* sim/claims.h: the paper's claims R1-R13, evaluated on a grid of its configurations. */
#ifndef NKV_SIM_CLAIMS_H
#define NKV_SIM_CLAIMS_H

#include "sim/grid.h"

extern const uint32_t sim_n_claims;

/* Fills claims_out [sim_n_claims]. Statements about the rack hold only if the grid has it. */
void sim_claims_evaluate(const struct sim_grid *grid, struct nkv_sim_claim *claims_out);
/* Mean |log(ours / paper)| over the numbers of R1-R10 that are known; NAN: none is. */
double sim_claims_error(const struct nkv_sim_claim *claims);
/* R3 by every account. */
void sim_claims_energy(const struct sim_grid *grid, double ratios_out[NKV_SIM_ACCOUNT_COUNT]);

#endif
