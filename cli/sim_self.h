/* SPDX-License-Identifier: Apache-2.0 */
/* sim_self.h: this machine, described by what it measures of itself, and its own predictions. */
#ifndef NKV_CLI_SIM_SELF_H
#define NKV_CLI_SIM_SELF_H

#include <jansson.h>
#include <stdint.h>

#include "bench.h"

#define SELF_CONTEXTS 4u

/* One context: what the machine was found to be while it was measured, and the token time both ways. */
struct self_row {
    uint32_t ctx_tokens;
    struct bench_times measured; /* the least of the steps, ms */
    struct bench_times simulated;
    /* The machine, from the calibration contexts. */
    double gb_per_s, weight_gb_per_s, score_gb_per_s, attend_gflop_per_s, command_us, layer_us;
};

struct self {
    uint32_t n_steps, n_threads; /* given */
    struct self_row rows[SELF_CONTEXTS];
    uint32_t calibration[2]; /* contexts */
    double max_error;        /* of the tokens' times */
};

/* Measures and predicts. returns: CLI_OK, or CLI_FAILED after a message. Progress on stderr. */
int self_run(struct self *self);
void self_print(const struct self *self);
json_t *self_json(const struct self *self);

#endif
