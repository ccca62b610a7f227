/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decode latencies that others measured, simulated with one machine's numbers: no anchor has a number of its own.
 *
 * NIM's are of a server under steady load: prompts of new requests are computed between the tokens of the others
 * (prefill.c). Its fp8 engines keep K and V in fp8, for which q8_0 stands in with 3 % more bytes. NIM takes memory page
 * by page and these runs reserve whole requests, so the GPUs' memory counts in full here; times do not depend on it.
 *
 * ArkVale and Quest publish ratios, and their set-ups in outline: what is checked is that the ratio is of that kind.
 */
#include <math.h>
#include <stdio.h>

#include "sim/validate.h"

#define NIM     "NVIDIA NIM performance, DGX H100, inter-token latency"
#define ARKVALE "ArkVale (NeurIPS 2024), A100-80 PCIe, Llama-2-7B"
#define QUEST   "Quest (ICML 2024, arXiv 2406.10774)"

#define ANCHOR_ERROR 0.15

static const struct {
    const char *model, *type;
    uint32_t tp, input, output, concurrency;
    double ms;
} anchors[] = {
    {"llama-3.1-8b", "bf16", 1, 1000, 1000, 1, 6.52},   {"llama-3.1-70b", "bf16", 8, 1000, 1000, 1, 10.25},
    {"llama-3.1-70b", "bf16", 4, 1000, 1000, 1, 15.49}, {"llama-3.1-70b", "fp8", 2, 5000, 500, 5, 21.83},
    {"llama-3.1-70b", "fp8", 2, 5000, 500, 25, 38.75},  {"llama-3.1-70b", "fp8", 2, 5000, 500, 50, 59.73},
    {"llama-3.1-70b", "fp8", 2, 5000, 500, 100, 92.91}, {"llama-3.1-8b", "fp8", 1, 1000, 1000, 1, 4.63},
    {"llama-3.1-8b", "fp8", 1, 1000, 1000, 25, 5.19},   {"llama-3.1-8b", "fp8", 1, 1000, 1000, 50, 5.91},
    {"llama-3.1-8b", "fp8", 1, 1000, 1000, 100, 7.57},  {"llama-3.1-8b", "fp8", 1, 1000, 1000, 250, 16.14},
};

/* All pages in the GPUs' memory. */
static int gpu_config(const char *model, const struct nkv_sim_machine *machine, struct nkv_sim_config *config)
{
    nkv_sim_config_init(config);
    config->machine = machine;
    config->mode = NKV_MODE_FULL;
    config->n_pnm = 0;
    return nkv_sim_model_open(model, &config->model);
}

static int check_anchor(const struct nkv_sim_machine *machine, uint32_t i, struct sim_checks *checks)
{
    struct nkv_sim_config config;
    struct nkv_sim_report report;
    struct nkv_sim_check *check;
    double ms = anchors[i].ms;

    TRY(gpu_config(anchors[i].model, machine, &config));
    config.n_gpus = anchors[i].tp;
    config.batch = anchors[i].concurrency;
    config.context_tokens = anchors[i].input;
    config.output_tokens = anchors[i].output;
    config.in_flight_prefill = true;
    if (anchors[i].type[0] == 'f') {
        config.weight_bytes = 1;
        config.kv_dtype = NKV_Q8_0;
    }
    TRY(nkv_sim_run(&config, &report));
    check = sim_check_add(checks, &(struct nkv_sim_check){.group = NKV_SIM_CHECK_ANCHOR,
                                                          .source = NIM,
                                                          .unit = "ms",
                                                          .expected = ms,
                                                          .simulated = report.step_ms,
                                                          .low = ms * (1 - ANCHOR_ERROR),
                                                          .high = ms * (1 + ANCHOR_ERROR)});
    snprintf(check->name, sizeof check->name, "%s %s TP%u, %u in, %u out, concurrency %u", anchors[i].model,
             anchors[i].type, anchors[i].tp, anchors[i].input, anchors[i].output, anchors[i].concurrency);
    return 0;
}

int sim_check_anchors(const struct nkv_sim_machine *server, struct sim_checks *checks)
{
    struct nkv_sim_machine *machine;
    int status;

    TRY(nkv_sim_machine_copy(server, &machine));
    status = nkv_sim_machine_set(machine, "gpu.memory_usable=1");
    for (uint32_t i = 0; status == 0 && i < sizeof anchors / sizeof *anchors; i++)
        status = check_anchor(machine, i, checks);
    nkv_sim_machine_close(machine);
    return status;
}

/* ---- Ratios */

static void add_ratio(struct sim_checks *checks, const char *name, const char *source,
                      const struct nkv_sim_check *check)
{
    struct nkv_sim_check *added = sim_check_add(checks, check);

    added->group = NKV_SIM_CHECK_KIND;
    added->source = source;
    snprintf(added->name, sizeof added->name, "%s", name);
}

/* Full attention against recall at 28K (at 30K four requests leave no room) and a middling budget: "up to 2.2x". */
static int check_arkvale(struct nkv_sim_machine *machine, struct sim_checks *checks)
{
    static const char *const pcie[] = {"gpu.memory_bandwidth=1935 GB/s", "link.device_bandwidth=25 GB/s",
                                       "link.host_bandwidth=25 GB/s", "link.recall_bandwidth=25 GB/s"};
    struct nkv_sim_config config;
    struct nkv_sim_report full, recall;

    for (uint32_t i = 0; i < sizeof pcie / sizeof *pcie; i++)
        TRY(nkv_sim_machine_set(machine, pcie[i]));
    TRY(gpu_config("llama-2-7b", machine, &config));
    config.batch = 4;
    config.context_tokens = 28672;
    TRY(nkv_sim_run(&config, &full));
    config.mode = NKV_MODE_RECALL;
    config.n_pnm = 1;
    config.granularity = NKV_SELECT_KV_HEAD;
    config.same_step_recall = true;
    snprintf(config.budget, sizeof config.budget, "2048");
    TRY(nkv_sim_run(&config, &recall));
    add_ratio(checks, "decode latency, full / recall with a budget of 2048, batch 4, 28K tokens (\"up to\")", ARKVALE,
              &(struct nkv_sim_check){
                  .unit = "x", .expected = 2.2, .simulated = full.step_ms / recall.step_ms, .low = 1.5, .high = 2.75});
    add_ratio(checks, "pages recalled per step (\"fewer than 10\")", ARKVALE,
              &(struct nkv_sim_check){
                  .unit = "pages", .expected = NAN, .simulated = recall.recalled_pages, .low = 0, .high = 10});
    return 0;
}

static double attention_ms(const struct nkv_sim_report *report)
{
    return report->busy_ms[NKV_SIM_SCORE] + report->busy_ms[NKV_SIM_ATTEND_GPU];
}

/* Selection within the GPU's memory. End to end is not compared: that was with 4-bit weights on another GPU. */
static int check_quest(const struct nkv_sim_machine *machine, struct sim_checks *checks)
{
    struct nkv_sim_config config;
    struct nkv_sim_report full, sparse;

    TRY(gpu_config("llama-2-7b", machine, &config));
    config.batch = 1;
    config.context_tokens = 32768;
    config.page_tokens = 16;
    TRY(nkv_sim_run(&config, &full));
    config.mode = NKV_MODE_PNM;
    config.granularity = NKV_SELECT_KV_HEAD;
    snprintf(config.budget, sizeof config.budget, "2048");
    TRY(nkv_sim_run(&config, &sparse));
    add_ratio(checks, "attention, full / selected with a budget of 2048, page 16, 32K tokens", QUEST,
              &(struct nkv_sim_check){.unit = "x",
                                      .expected = 7.03,
                                      .simulated = attention_ms(&full) / attention_ms(&sparse),
                                      .low = 7.03 * 0.75,
                                      .high = 7.03 * 1.25});
    return 0;
}

int sim_check_ratios(struct sim_checks *checks)
{
    struct nkv_sim_machine *machine;
    int status;

    TRY(sim_machine_read_builtin("paper-server", &machine));
    status = check_quest(machine, checks);
    if (status == 0)
        status = check_arkvale(machine, checks);
    nkv_sim_machine_close(machine);
    return status;
}
