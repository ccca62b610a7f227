/* SPDX-License-Identifier: Apache-2.0 */
/* sim/validate.h: what validate.c assembles. Each part adds its checks to a list. */
#ifndef NKV_SIM_VALIDATE_H
#define NKV_SIM_VALIDATE_H

#include "base/status.h"
#include "sim/machine.h"

#define SIM_MAX_CHECKS 64u

struct sim_checks {
    uint32_t n;
    struct nkv_sim_check all[SIM_MAX_CHECKS];
};

/* Adds a check without a name; whether it holds is set here. pre: fewer than SIM_MAX_CHECKS are there. returns: it. */
struct nkv_sim_check *sim_check_add(struct sim_checks *checks, const struct nkv_sim_check *check);

int sim_check_anchors(const struct nkv_sim_machine *server, struct sim_checks *checks);
int sim_check_ratios(struct sim_checks *checks);
int sim_check_memory(struct sim_checks *checks);
int sim_check_closed(struct sim_checks *checks);

#endif
