/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim/work.h: one configuration in the making: sizes that follow from it (size.c), then a context on simulated devices
 * that decodes (run.c).
 */
#ifndef NKV_SIM_WORK_H
#define NKV_SIM_WORK_H

#include <nearkv/nearkv.h>

#include "sim/cluster.h"
#include "sim/locality.h"
#include "sim/trace.h"

#define SIM_WARM_STEPS 2u
#define SIM_BATCH_MAX  4096u /* of a context */

struct sim_work {
    const struct nkv_sim_config *config;
    const struct sim_values *values;
    struct sim_trace *trace;   /* borrowed; NULL: scores come from the locality model */
    struct nkv_kv_shape shape; /* of the simulated layers */
    uint32_t tp, pp;
    uint32_t n_devices;               /* that hold pages: PNM devices, or the GPUs' memory */
    uint32_t group;                   /* devices that share a sequence */
    uint32_t n_steps;                 /* warm-up and measured */
    uint32_t max_tokens, kept_tokens; /* of a request: at most, and when the simulation begins */
    uint32_t n_streams;
    uint32_t budget_tokens, budget_pages;
    uint32_t sink_pages, recent_pages;
    uint32_t batch, n_slots;           /* n_slots: resident pages per sequence, layer and unit */
    uint32_t n_fit;                    /* requests that fit */
    uint32_t n_prompts;                /* computed within each step */
    double share;                      /* of the layers that are simulated */
    uint64_t device_bytes, pool_bytes; /* capacity of a device, and of the GPUs for pages, for the simulated layers */
    uint64_t request_bytes;            /* of one request on a device that has a part of it, for the simulated layers */
};

/* Resolves a configuration; trace: opened from config->trace, or NULL. returns: 0; NKV_EINVAL; NKV_ENOSPC: weights or
 * not one request fit. */
int sim_work_size(const struct nkv_sim_config *config, struct sim_trace *trace, struct sim_work *work_out);

/* One run, of steps that each compute n_prompts prompts beside the batch. */
int sim_run_steps(const struct nkv_sim_config *config, struct sim_trace *trace, uint32_t n_prompts,
                  struct nkv_sim_report *report_out);
/* The mean over steps with and without the prompts of other requests (nkv_sim_config.in_flight_prefill). */
int sim_run_loaded(const struct nkv_sim_config *config, struct sim_trace *trace, struct nkv_sim_report *report_out);

/* The shape of what a device has of a sequence: tp: a part of the heads. */
struct nkv_kv_shape sim_work_part(const struct sim_work *work);

/* Parameters of one layer. */
double sim_layer_parameters(const struct nkv_sim_model *model);

#endif
