/* SPDX-License-Identifier: Apache-2.0 */
/* sim.h: what the simulator's subcommands share: options that describe a configuration. */
#ifndef NKV_CLI_SIM_H
#define NKV_CLI_SIM_H

#include <jansson.h>
#include <nearkv/sim.h>

#define SIM_MAX_SETS 32u

int sim_main(int argc, char **argv);
int sim_run_main(int argc, char **argv);
int sim_sweep_main(int argc, char **argv);
int sim_paper_main(int argc, char **argv);
int sim_ablate_main(int argc, char **argv);
int sim_validate_main(int argc, char **argv);

/* Makes dir, which must be writable, unless it is there. returns: CLI_OK or CLI_FAILED after a message. */
int sim_figures_prepare(const char *dir);
/* Writes the data and pictures of the paper's figures into dir. returns: CLI_OK or CLI_FAILED after a message. */
int sim_figures_write(const struct nkv_sim_paper *paper, const char *dir);

/* A configuration as the command line describes it. The machine is opened by sim_options_open. */
struct sim_options {
    const char *machine, *model;    /* names or paths */
    const char *sets[SIM_MAX_SETS]; /* "key=value" */
    uint32_t n_sets;
    bool has_context, has_page, has_select, has_steps; /* given; else they follow a trace */
    bool has_layers;                                   /* given; else at most the model's */
    const char *locality_flag; /* given, of the locality model, which a trace replaces; or NULL */
    struct nkv_sim_config config;
    struct nkv_sim_trace_info trace; /* of config.trace; read by sim_options_open */
};

/* A flag that takes a value, and what it does with it. */
struct sim_flag {
    const char *name; /* without "--" */
    const char *what; /* for the usage text */
    /* returns: CLI_OK or CLI_USAGE after a message. */
    int (*read)(struct sim_options *o, const char *flag, const char *arg);
};
extern const struct sim_flag sim_flags[];
extern const uint32_t sim_n_flags;
const struct sim_flag *sim_flag_find(const char *name);
/* Lists the flags. */
void sim_flags_print(FILE *file);

void sim_options_init(struct sim_options *o);
/* Opens machine and model, and looks into the trace. returns: CLI_OK, CLI_FAILED or CLI_USAGE after a message. */
int sim_options_open(struct sim_options *o, struct nkv_sim_machine **machine_out);

/* "reproduced", "off", "not simulated". */
const char *sim_verdict_name(enum nkv_sim_verdict verdict);

/* Every number of a machine, with unit and source. */
json_t *sim_machine_json(const struct nkv_sim_machine *machine);
/* What a configuration takes for granted: every number of the machine, the scores, the rules; and what of it a whole
 * grid shares. Batch and groups are those that were simulated. */
json_t *sim_shared_assumptions(const struct sim_options *o, const struct nkv_sim_machine *machine);
json_t *sim_assumptions(const struct sim_options *o, const struct nkv_sim_machine *machine,
                        const struct nkv_sim_report *report);

#endif
