/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim/locality.h: page scores of requests that nobody ran. Per page, log score x = sqrt(1-w) a + sqrt(w) z(t): a, drawn
 * once, is the page's lasting popularity; z is an Ornstein-Uhlenbeck process, z(t+1) = rho z(t) + sqrt(1-rho^2) noise;
 * both standard normal. Scores exp(x) are then log-normal: a heavy tail, drifting by factors. Selection ranks, so x
 * itself serves.
 */
#ifndef NKV_SIM_LOCALITY_H
#define NKV_SIM_LOCALITY_H

#include "sim/pick.h"

#include <nearkv/sim.h>

struct sim_locality;

/* n_units: page sets per layer; max_pages: of a sequence. */
int sim_locality_open(const struct nkv_sim_locality *parameters, uint64_t seed, uint32_t n_streams, uint32_t n_layers,
                      uint32_t n_units, uint32_t max_pages, struct sim_locality **locality_out);
void sim_locality_close(struct sim_locality *locality);
struct sim_source *sim_locality_source(struct sim_locality *locality);

#endif
