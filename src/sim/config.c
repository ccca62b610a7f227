/* SPDX-License-Identifier: Apache-2.0 */
/* Defaults of a configuration, and the names of what a report counts. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <nearkv/sim.h>

#include "base/status.h"

void nkv_sim_config_init(struct nkv_sim_config *config)
{
    *config = (struct nkv_sim_config){.size = sizeof *config,
                                      .mode = NKV_MODE_PNM,
                                      .context_tokens = 131072,
                                      .n_gpus = 1,
                                      .n_pnm = 1,
                                      .budget = "52*context^0.5",
                                      .steady = NAN,
                                      .page_tokens = 32,
                                      .micro_batches = 1,
                                      .digest_levels = 1,
                                      .weight_bytes = 2,
                                      .kv_dtype = NKV_F16,
                                      .n_steps = 4,
                                      .n_layers = 4,
                                      .seed = 1,
                                      .locality = {.drift = 0.1, .correlation = 0.96}};
}

const char *nkv_sim_part_name(enum nkv_sim_part part)
{
    static const char *const names[NKV_SIM_PART_COUNT] = {"fc",         "allreduce", "score", "topk",   "attend_pnm",
                                                          "attend_gpu", "recall",    "link",  "append", "other"};

    return (unsigned)part < NKV_SIM_PART_COUNT ? names[part] : "?";
}

static const char *const mappings[NKV_SIM_MAPPING_COUNT] = {"dp", "tp", "cp", "auto"};

const char *nkv_sim_mapping_name(enum nkv_sim_mapping mapping)
{
    return (unsigned)mapping < NKV_SIM_MAPPING_COUNT ? mappings[mapping] : "?";
}

int nkv_sim_mapping_parse(const char *name, enum nkv_sim_mapping *mapping_out)
{
    for (int i = 0; i < NKV_SIM_MAPPING_COUNT; i++)
        if (strcmp(name, mappings[i]) == 0) {
            *mapping_out = (enum nkv_sim_mapping)i;
            return 0;
        }
    FAIL(NKV_EINVAL, "no mapping '%.40s': write dp, tp, cp or auto", name);
}

const char *nkv_sim_account_name(enum nkv_sim_account account)
{
    static const char *const names[NKV_SIM_ACCOUNT_COUNT] = {"activity", "power_time", "paper", "power_busy"};

    return (unsigned)account < NKV_SIM_ACCOUNT_COUNT ? names[account] : "?";
}
