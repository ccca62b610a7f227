/* SPDX-License-Identifier: Apache-2.0 */
/* A small configuration on the paper's server, and random variations of machines. */
#ifndef NKV_TESTS_SIM_RIG_H
#define NKV_TESTS_SIM_RIG_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <nearkv/sim.h>

#include "sim/machine.h"

static inline struct nkv_sim_machine *rig_machine(void)
{
    struct nkv_sim_machine *machine;

    assert_int_equal(nkv_sim_machine_open("paper-server", &machine), 0);
    return machine;
}

/* 8B at 64K on 1 GPU and 2 PNM devices: quick, and in every mode. */
static inline struct nkv_sim_config rig_config(const struct nkv_sim_machine *machine, enum nkv_mode mode)
{
    struct nkv_sim_config config;

    nkv_sim_config_init(&config);
    config.machine = machine;
    assert_int_equal(nkv_sim_model_open("llama-3.1-8b", &config.model), 0);
    config.mode = mode;
    config.context_tokens = 65536;
    config.n_gpus = 1;
    config.n_pnm = 2;
    config.batch = 6;
    config.steady = 0.25;
    config.n_layers = 2;
    config.n_steps = 2;
    config.n_streams = 2;
    return config;
}

static inline struct nkv_sim_report rig_run(const struct nkv_sim_config *config)
{
    struct nkv_sim_report report;
    int status = nkv_sim_run(config, &report);

    if (status < 0)
        fail_msg("%s", nkv_last_error());
    return report;
}

static inline uint64_t rig_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* In [low, high). */
static inline double rig_uniform(uint64_t *state, double low, double high)
{
    return low + (high - low) * (double)(rig_random(state) >> 11) * 0x1p-53;
}

/* a and b agree to `share` of b. */
static inline void rig_near(double a, double b, double share)
{
    if (!(fabs(a - b) <= share * fabs(b)))
        fail_msg("%.15g, wanted %.15g (to %g of it)", a, b, share);
}

#endif
