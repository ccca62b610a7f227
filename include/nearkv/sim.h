/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv/sim.h: what hardware that does not exist yet would give.
 *
 * The mental model. A *machine* is a set of numbers with sources (a YAML file, or a built-in name). A *configuration*
 * puts a model, a context and a batch on some of its GPUs and PNM devices. nkv_sim_run() opens a real context
 * (nearkv.h) on simulated devices and decodes a few steps in virtual time: admission, placement, the plan of each step,
 * Steady-Select and ArkVale's recall are the code that real runs use; only the devices' times and the pages' scores are
 * modelled. docs/simulator.md has every formula.
 *
 * Determinism: the same configuration and seed give the same report, whatever else runs. Threads: a machine is constant
 * while runs use it; runs are independent.
 */
#ifndef NEARKV_SIM_H
#define NEARKV_SIM_H

#include <nearkv/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Machines ---- */

struct nkv_sim_machine;

/*
 * Opens a machine: the name of a built-in one ("paper-server"), or the path of a YAML file.
 * returns: 0; NKV_ENOENT with the built-in names; NKV_EIO; NKV_EFORMAT naming file, line, key and the allowed range.
 */
NKV_API int nkv_sim_machine_open(const char *name_or_path, struct nkv_sim_machine **machine_out);
NKV_API int nkv_sim_machine_copy(const struct nkv_sim_machine *machine, struct nkv_sim_machine **copy_out);
/* NULL is allowed. */
NKV_API void nkv_sim_machine_close(struct nkv_sim_machine *machine);
/* "gpu.memory_bandwidth=2 TB/s". returns: NKV_ENOENT or NKV_EINVAL with what is allowed. */
NKV_API int nkv_sim_machine_set(struct nkv_sim_machine *machine, const char *assignment);
NKV_API const char *nkv_sim_machine_name(const struct nkv_sim_machine *machine);
/* The i-th built-in machine's name; NULL after the last. */
NKV_API const char *nkv_sim_machine_builtin(uint32_t i);

struct nkv_sim_number {
    const char *key, *what, *unit, *source;
    double value; /* in `unit`, a base unit ("B/s") */
};
/* The i-th number. returns: 0, or NKV_ENOENT after the last. */
NKV_API int nkv_sim_machine_number(const struct nkv_sim_machine *machine, uint32_t i,
                                   struct nkv_sim_number *number_out);

/* ---- Models ---- */

struct nkv_sim_model {
    char name[64];
    uint32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, vocab;
    bool tied; /* output weights are the embedding's */
};
/* A built-in shape ("llama-3.1-70b") or a YAML file with the fields above. returns: as nkv_sim_machine_open. */
NKV_API int nkv_sim_model_open(const char *name_or_path, struct nkv_sim_model *model_out);
NKV_API const char *nkv_sim_model_builtin(uint32_t i);
/* Parameters of the dense layers, all of them (embedding left out, output weights counted). */
NKV_API uint64_t nkv_sim_model_parameters(const struct nkv_sim_model *model);

/* ---- Runs ---- */

/* Page scores (docs/simulator.md, "Locality"): standard deviations and correlation of log scores. */
struct nkv_sim_locality {
    double drift;       /* share of the variance that wanders, 0..1; the rest is a page's lasting popularity */
    double correlation; /* of the wandering part from one step to the next */
};

/* How attention is mapped to PNM devices; docs/simulator.md, "Mappings". */
enum nkv_sim_mapping {
    NKV_SIM_DP,   /* a sequence on one device, as the runtime places it */
    NKV_SIM_TP,   /* its KV heads over the devices of a group */
    NKV_SIM_CP,   /* its pages over the devices of a group */
    NKV_SIM_AUTO, /* dp, or cp over all devices: what most requests of the batch get from the runtime's policy */
    NKV_SIM_MAPPING_COUNT
};
/* "dp", "tp", "cp", "auto". */
NKV_API const char *nkv_sim_mapping_name(enum nkv_sim_mapping mapping);
/* returns: 0, or NKV_EINVAL with the names. */
NKV_API int nkv_sim_mapping_parse(const char *name, enum nkv_sim_mapping *mapping_out);

struct nkv_sim_config {
    uint32_t size; /* sizeof(struct nkv_sim_config) */
    const struct nkv_sim_machine *machine;
    struct nkv_sim_model model;
    enum nkv_mode mode;
    uint32_t context_tokens; /* of every request when it begins to generate */
    uint32_t output_tokens;  /* that it generates: memory is reserved for both, steps are those half way through */
    uint32_t n_gpus, n_pnm;  /* n_pnm 0: pages live in the GPUs' memory, modes full and pnm */
    uint32_t tp; /* GPUs of a tensor-parallel group; 0: all, at most a node's; the groups are pipeline stages */
    /* tp and cp are modelled without the runtime: modes pnm, png and full, no trace, no second micro-batch or digest
     * level, no prompts in flight, no plan log. */
    enum nkv_sim_mapping mapping;
    /* Devices that share a sequence; groups share the batch. 0: all, in tp at most one per KV head. Must divide n_pnm,
     * in tp the KV heads too. */
    uint32_t mapping_group;
    uint32_t batch;  /* 0: as many as admission takes, at most 4096 */
    char budget[64]; /* tokens, or a rule: "context/4", "0.3*context", "4096" */
    double steady;   /* png: share of the budget kept on the GPUs; NAN: GPUs/(GPUs+PNM); -1: the best modelled one */
    uint32_t page_tokens; /* default 32 */
    enum nkv_granularity granularity;
    bool same_step_recall;   /* png: as the paper */
    uint32_t micro_batches;  /* 1, or 2: FC of one under the attention of the other */
    uint32_t digest_levels;  /* 1, or 2: a digest over 16 pages first */
    double weight_bytes;     /* per parameter: 2; at most 1 also doubles the GPUs' rate (fp8) */
    enum nkv_dtype kv_dtype; /* of K and V: default f16; q8_0 stands in for fp8 */
    /*
     * Steady load with in-flight batching: a request that is done gives way to the next, whose whole prompt of
     * context_tokens is computed within a step of the others, which wait for it. Of output_tokens steps, batch - 1 hold
     * such a prompt of another request; the report is the mean over steps with and without one.
     */
    bool in_flight_prefill;
    uint32_t n_steps;  /* measured; default 4 */
    uint32_t n_layers; /* simulated, the rest scaled; at most the model's; default 4 */
    uint32_t
        n_streams; /* sequences per layer that have page scores of their own; 0: from 4 down to 1 as contexts grow */
    uint64_t seed;
    struct nkv_sim_locality locality;
    const char *trace; /* page scores from a recorded trace (see below); NULL: from the locality model */
    void (*plan_log)(void *arg, const char *line); /* the plan of the run, as in nearkv.h; NULL: none */
    void *plan_log_arg;
    const char *timeline; /* a Chrome trace file is written there; NULL: none */
    bool full_activity;   /* activity account with every static term */
};
/* Defaults: mode pnm, budget "context/4", the calibrated locality, seed 1. */
NKV_API void nkv_sim_config_init(struct nkv_sim_config *config);

/* Parts of a step: what its critical path went through. */
enum nkv_sim_part {
    NKV_SIM_FC,
    NKV_SIM_ALLREDUCE,
    NKV_SIM_SCORE,
    NKV_SIM_TOPK,
    NKV_SIM_ATTEND_PNM,
    NKV_SIM_ATTEND_GPU,
    NKV_SIM_RECALL,
    NKV_SIM_LINK, /* q, k, v, outputs, lists, commands */
    NKV_SIM_APPEND,
    NKV_SIM_OTHER, /* fixed costs of a step */
    NKV_SIM_PART_COUNT
};
NKV_API const char *nkv_sim_part_name(enum nkv_sim_part part);

/* Energy accounts, J per token; docs/simulator.md has the terms of each. */
enum nkv_sim_account {
    NKV_SIM_ACTIVITY,   /* bits, FLOPs and idle power */
    NKV_SIM_POWER_TIME, /* busy and idle power x time, cards at card power */
    NKV_SIM_PAPER,      /* GPUs by power x time, PNM devices by activity without static power */
    NKV_SIM_POWER_BUSY, /* busy power x busy time only */
    NKV_SIM_ACCOUNT_COUNT
};
NKV_API const char *nkv_sim_account_name(enum nkv_sim_account account);

struct nkv_sim_report {
    uint32_t batch;
    uint32_t n_fit; /* requests that fit; more than batch where fewer are asked for, or than a context can have */
    uint32_t tp;    /* GPUs of a tensor-parallel group */
    uint32_t budget_tokens; /* attended per step; mode full: all of the context */
    uint32_t steady_tokens;
    double tokens_per_s, step_ms;
    double breakdown_ms[NKV_SIM_PART_COUNT]; /* sums to step_ms */
    double busy_ms[NKV_SIM_PART_COUNT];      /* per step, all resources of that part together: may exceed step_ms */
    double gpu_utilisation, pnm_utilisation; /* busy share of the step, mean over devices */
    double energy_j[NKV_SIM_ACCOUNT_COUNT];  /* per token */
    double energy_gpu_j[NKV_SIM_ACCOUNT_COUNT], energy_pnm_j[NKV_SIM_ACCOUNT_COUNT];
    double attention_j[NKV_SIM_ACCOUNT_COUNT]; /* of score, recall and attention */
    double fc_j[NKV_SIM_ACCOUNT_COUNT];
    double usd_per_hour, tokens_per_usd, usd_per_mtoken;                /* the paper's table: GPUs and cards */
    double full_usd_per_hour, full_tokens_per_usd, full_usd_per_mtoken; /* host, switch, memory, PUE */
    double recalled_pages;                                              /* per layer and request */
    double recalled_pages_error; /* standard error of that mean over the sampled (sequence, layer) pairs and steps */
    uint32_t n_samples;          /* pairs x steps behind it */
    double steady_hit;           /* share of the chosen pages found resident */
    double link_bytes_per_token; /* both directions, recall included */
    double recall_bytes_per_token;
    double pnm_bytes_per_token, pnm_flops_per_token, gpu_bytes_per_token, gpu_flops_per_token;
    double kv_capacity_used;             /* share of the PNM devices' capacity */
    double attended_bytes_per_token;     /* K and V that PNM devices attend to, all layers */
    double gpu_attended_bytes_per_token; /* K and V that GPUs attend to, all layers */
    enum nkv_sim_mapping mapping;        /* that was simulated */
    uint32_t n_whole, n_spread; /* mapping auto: requests that the policy would leave on one device, and spread */
    uint32_t mapping_group;     /* devices that share a sequence */
    /* Per token and layer: transfers over links to and from devices, sorts on devices. A selection over several devices
     * besides: messages with scores or candidates, and with lists; their bytes from device to device. */
    double layer_transfers, layer_sorts, layer_reduce_messages, layer_list_messages, layer_select_bytes;
    double layer_select_ms; /* per layer and step: from the last score to the last list */
};

/*
 * Simulates a configuration. blocks. returns: 0; NKV_EINVAL; NKV_ENOSPC: not one request fits (the message says what is
 * missing), or fewer than asked; NKV_ENOMEM; NKV_EFORMAT, NKV_EIO: the trace.
 */
NKV_API int nkv_sim_run(const struct nkv_sim_config *config, struct nkv_sim_report *report_out);

/* ---- Traces ----
 *
 * A trace is what "record:" devices wrote: FILE of the only PNM device or FILE.0, FILE.1, .. of several, and
 * FILE.compute of the compute device (nearkv run --trace FILE writes them). With nkv_sim_config.trace a run's page
 * scores are the recorded ones, position by position: the run's steps must be recorded, and page size, granularity,
 * sink and recent pages are the trace's. The model may be another one: its layers take the recorded layers' scores in
 * turn. Without recorded scores (nkv_context_options.record_scores) the rank of the chosen pages serves, which answers
 * no larger budget than the recorded one.
 */

struct nkv_sim_trace_info {
    struct nkv_kv_shape shape;
    enum nkv_granularity granularity;
    uint32_t n_sequences; /* that decode and select */
    /* Of the one with the most steps: */
    uint32_t context_tokens, n_steps; /* its last position is context_tokens - 1 */
    uint32_t n_run_steps;             /* of n_steps, that a run can measure: the others warm it up */
    uint32_t budget_tokens, sink_pages, recent_pages;
    bool has_scores;
};
/* returns: 0; NKV_ENOENT, NKV_EIO; NKV_EFORMAT naming file and line, or: no step that selects is recorded. */
NKV_API int nkv_sim_trace_info(const char *trace, struct nkv_sim_trace_info *info_out);

struct nkv_seq_options;

struct nkv_sim_replay_options {
    uint32_t size;
    const struct nkv_sim_machine *machine;
    const char *trace;
    /* Of each recorded sequence, in the order in which they were opened and forked. */
    const struct nkv_seq_options *sequences;
    uint32_t n_sequences;
    uint32_t n_gpus;                               /* of the compute side; 0: 1 */
    void (*plan_log)(void *arg, const char *line); /* as in nearkv.h; NULL: none */
    void *plan_log_arg;
};

struct nkv_sim_replay_report {
    uint32_t n_sequences, n_calls; /* calls: of nkv_attend_begin */
    double attention_ms;           /* virtual time of all of them, one after the other */
};

/*
 * Does on simulated devices what a context did on those that were recorded: opens, forks, truncates, closes and steps
 * in the recorded order, pages chosen by the recorded scores. The plan log is the recorded run's, line by line, if its
 * tickets ended in the order in which they began and nothing failed. The compute device's trace is needed by recall.
 * blocks. returns: 0; NKV_EINVAL: fewer options than sequences; NKV_EFORMAT: the trace, or what it does not tell;
 * NKV_ENOMEM; what the runtime returns when the options are not those of the recorded sequences.
 */
NKV_API int nkv_sim_replay(const struct nkv_sim_replay_options *options, struct nkv_sim_replay_report *report_out);

/* ---- The paper ---- */

/* One configuration and its report. */
struct nkv_sim_point {
    const char *model; /* static storage */
    uint32_t context_tokens, n_gpus, n_pnm;
    enum nkv_mode mode;
    bool adaptive; /* png with the best modelled share */
    bool rack;     /* on the rack, else in the server */
    int status;    /* < 0: it could not be simulated, see error */
    struct nkv_sim_report report;
    char error[512];
};

enum nkv_sim_verdict {
    NKV_SIM_REPRODUCED, /* a number within 25 %, or a statement that holds */
    NKV_SIM_OFF,        /* a number farther away, or a statement that does not hold */
    NKV_SIM_UNKNOWN,    /* not every point that the claim is about could be simulated: ours is NAN */
};

/* One number or statement of the paper (docs/simulator.md, R1-R13). */
struct nkv_sim_claim {
    const char *id, *text; /* static storage */
    bool numeric;          /* else paper and ours are 1 (holds) or 0 */
    double paper, ours;
    enum nkv_sim_verdict verdict;
    const char *note;             /* "", or why it cannot hold together with others */
    uint32_t mover;               /* the assumption that moves it most */
    double mover_low, mover_high; /* ours with that assumption at its low and high end; NAN: none was varied for it */
};

/* What the paper leaves open, or what decides its numbers: the value chosen and the range of the tornado table. */
struct nkv_sim_assumption {
    const char *name, *why; /* static storage */
    char chosen[64];
    const char *low, *high;
};

struct nkv_sim_paper {
    uint32_t n_claims, n_points, n_assumptions;
    struct nkv_sim_claim *claims;
    struct nkv_sim_point *points;
    struct nkv_sim_assumption *assumptions;
    double *tornado; /* [n_assumptions][2][n_claims]: claims with an assumption at its low and high end */
    /* The sample behind each of those, smaller than that of the claims: with an assumption at its chosen value they
     * differ from the claims by the two samples' difference. */
    uint32_t tornado_layers, tornado_steps, tornado_streams;
    double mean_abs_log;                         /* over the numbers of R1-R10 that are known; NAN: none is */
    double energy_ratios[NKV_SIM_ACCOUNT_COUNT]; /* R3 in every account */
};

struct nkv_sim_paper_options {
    uint32_t size;
    const struct nkv_sim_machine *server, *rack;
    struct nkv_sim_config config; /* what all points share: budget rule, locality, recall, sample sizes */
    uint32_t n_threads;
    bool tornado;
    /* Told after each point; a value other than 0 stops. May be NULL. */
    int (*progress)(void *arg, uint64_t n_done, uint64_t n_total);
    void *progress_arg;
};

/* The configuration that all of the paper's points share. */
NKV_API void nkv_sim_paper_config_init(struct nkv_sim_config *config);
/*
 * Runs every in-server and rack configuration and evaluates R1-R13. blocks. returns: 0; NKV_EINVAL: a machine's numbers
 * contradict each other; what the first point failed with, if none can be simulated; NKV_ECANCELED; NKV_ENOMEM.
 */
NKV_API int nkv_sim_paper_run(const struct nkv_sim_paper_options *options, struct nkv_sim_paper **paper_out);
/* NULL is allowed. */
NKV_API void nkv_sim_paper_close(struct nkv_sim_paper *paper);

/* ---- Validation ---- */

enum nkv_sim_check_group {
    NKV_SIM_CHECK_ANCHOR, /* decode latencies that others measured */
    NKV_SIM_CHECK_KIND,   /* published ratios whose set-up is known in outline only */
    NKV_SIM_CHECK_MEMORY, /* efficiency of LPDDR channels by access pattern */
    NKV_SIM_CHECK_CLOSED, /* machines so small that a formula has the answer */
    NKV_SIM_CHECK_GROUP_COUNT
};
NKV_API const char *nkv_sim_check_group_name(enum nkv_sim_check_group group);

/* One number that is known from elsewhere, and ours. It holds when low <= simulated <= high. */
struct nkv_sim_check {
    enum nkv_sim_check_group group;
    char name[96];
    const char *source, *unit; /* static storage */
    double expected;           /* measured, published, tabulated or by formula; NAN: there are only the limits */
    double simulated;
    double low, high;
    bool holds;
};

struct nkv_sim_validation {
    uint32_t n_checks;
    struct nkv_sim_check *checks;
    double anchor_mean_error, anchor_max_error; /* |simulated / measured - 1| */
};

/*
 * Compares the simulator with what is known: decode anchors on `server` (H100s, all with its one set of numbers), the
 * table of LPDDR efficiencies, closed forms. blocks. returns: 0; NKV_ENOMEM; what nkv_sim_run returns.
 */
NKV_API int nkv_sim_validate(const struct nkv_sim_machine *server, struct nkv_sim_validation **validation_out);
/* NULL is allowed. */
NKV_API void nkv_sim_validation_close(struct nkv_sim_validation *validation);

/* The budget of a rule at a context. returns: 0, or NKV_EINVAL saying what a rule looks like. */
NKV_API int nkv_sim_budget(const char *rule, uint32_t context_tokens, uint32_t *budget_out);

#ifdef __cplusplus
}
#endif
#endif
