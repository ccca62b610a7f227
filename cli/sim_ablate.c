/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv sim ablate: one choice at a time. Each study is a base configuration and variants of it, written as options of
 * `sim run`, so that any row can be run by itself.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "progress.h"
#include "sim.h"
#include "text.h"

#define MAX_VARIANTS 10u

struct study {
    const char *name, *question;
    const char *base;                   /* options of every row */
    const char *variants[MAX_VARIANTS]; /* options of a row; the first is what the others are compared with */
};

#define SMALL_1M   "--model=llama-3.1-8b --context=1M --gpus=8 --pnm=8"
#define SMALL_128K "--model=llama-3.1-8b --context=128K --gpus=1 --pnm=8"
#define LARGE_128K "--model=llama-3.1-70b --context=128K --gpus=2 --pnm=8"
#define LARGE_512K "--model=llama-3.1-70b --context=512K --gpus=8 --pnm=8"
#define RACK       "--machine=paper-rack --model=llama-3.1-405b --context=1000000 --gpus=16 --pnm=64"

static const struct study studies[] = {
    {"recall-8b",
     "recalled pages in the next step or in the same? 8B, 1M, 8+8",
     SMALL_1M,
     {"--mode=pnm", "--mode=png --recall=same-step", "--mode=png --recall=next-step", "--mode=png --steady=auto"}},
    {"recall-70b",
     "the same, 70B, 512K, 8+8",
     LARGE_512K,
     {"--mode=pnm", "--mode=png --recall=same-step", "--mode=png --recall=next-step", "--mode=png --steady=auto"}},
    {"few-devices",
     "few PNM devices for many GPUs, 70B, 512K, 8+1",
     "--model=llama-3.1-70b --context=512K --gpus=8 --pnm=1",
     {"--mode=recall", "--mode=pnm", "--mode=png --recall=same-step", "--mode=png --recall=next-step",
      "--mode=png --steady=auto"}},
    {"micro-batches",
     "FC of one micro-batch under the attention of the other, without and with steady pages, 70B, 128K, 2+8",
     LARGE_128K,
     {"--mode=pnm", "--mode=pnm --micro-batches=2", "--mode=png", "--mode=png --micro-batches=2"}},
    {"micro-batches-512k",
     "the same, 70B, 512K, 8+8",
     LARGE_512K,
     {"--mode=pnm", "--mode=pnm --micro-batches=2", "--mode=png", "--mode=png --micro-batches=2"}},
    {"granularity",
     "page sets per layer or per KV head, 8B, 1M, 8+8",
     SMALL_1M,
     {"--mode=png --select=layer", "--mode=png --select=kv-head"}},
    {"page", "page size, 8B, 1M, 8+8", SMALL_1M " --mode=pnm", {"--page=32", "--page=16", "--page=64", "--page=128"}},
    {"budget",
     "budget, 8B, 1M, 8+8",
     SMALL_1M " --mode=pnm",
     {"--budget=52*context^0.5", "--budget=2048", "--budget=4096", "--budget=8192", "--budget=16384",
      "--budget=context/8", "--budget=context/4"}},
    {"digests",
     "one level of digests or two, 8B, 1M, 8+8, and a budget of 4096",
     SMALL_1M " --mode=pnm --budget=4096",
     {"--digest-levels=1", "--digest-levels=2"}},
    {"vpu-405b",
     "vector units for 405B, rack, 64 devices",
     RACK " --mode=pnm",
     {"--set=pnm.compute_rate=8.19TFLOP/s", "--set=pnm.compute_rate=16.4TFLOP/s", "--set=pnm.compute_rate=26.1TFLOP/s",
      "--set=pnm.compute_rate=32.8TFLOP/s"}},
    {"gpus",
     "the GPUs beside the same cards, 70B, 128K, 2+8",
     LARGE_128K " --mode=png",
     {"--machine=paper-server", "--machine=h100-server", "--machine=h200-server"}},
    {"gpu-baseline",
     "the same GPUs with 8 plain memory cards in place of PNM: recall over the link, 70B, 128K, 2 GPUs",
     LARGE_128K " --mode=recall",
     {"--machine=paper-server", "--machine=h100-server", "--machine=h200-server"}},
    {"card",
     "the paper's card or the real one of 2025 (4 TB, 200 GB/s), 8B, 128K, 1+8",
     SMALL_128K " --mode=png",
     {"--machine=paper-server", "--machine=samsung-2025 --batch=248", "--machine=samsung-2025 --batch=1000"}},
};
#define N_STUDIES (sizeof studies / sizeof *studies)

static void print_usage(FILE *file)
{
    fputs("usage: nearkv sim ablate [STUDY ...] [--json]\n"
          "Simulates one choice at a time; without names, all studies:\n\n",
          file);
    for (size_t i = 0; i < N_STUDIES; i++)
        fprintf(file, "  %-20s %s\n", studies[i].name, studies[i].question);
}

/* Reads "--flag=value --flag=value". Texts are ours: a mistake is a bug, told all the same. */
static int read_flags(struct sim_options *o, char *text)
{
    for (char *save, *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        char *equals = strchr(word, '=');
        const struct sim_flag *flag;

        *equals = '\0';
        flag = sim_flag_find(word + 2);
        if (!flag || flag->read(o, word + 2, equals + 1) != CLI_OK)
            return cli_fail("cannot read option %s", word);
    }
    return CLI_OK;
}

static int run_variant(const struct study *study, const char *variant, struct nkv_sim_report *report_out)
{
    struct sim_options o;
    struct nkv_sim_machine *machine;
    char base[256], more[256];
    int rc;

    sim_options_init(&o);
    snprintf(base, sizeof base, "%s", study->base);
    snprintf(more, sizeof more, "%s", variant);
    rc = read_flags(&o, base);
    if (rc == CLI_OK)
        rc = read_flags(&o, more);
    if (rc == CLI_OK)
        rc = sim_options_open(&o, &machine);
    if (rc != CLI_OK)
        return rc;
    if (nkv_sim_run(&o.config, report_out) < 0)
        rc = cli_fail("%s %s: %s", study->base, variant, nkv_last_error());
    nkv_sim_machine_close(machine);
    return rc;
}

static void print_row(const char *variant, const struct nkv_sim_report *r, const struct nkv_sim_report *first)
{
    printf("  %-42s %6u %9.1f %8.3f %8.2f %9.2f %7.2f %9.3f %6.0f %6.0f\n", variant, r->batch, r->tokens_per_s,
           r->tokens_per_s / first->tokens_per_s, r->step_ms, r->recalled_pages, r->energy_j[NKV_SIM_ACTIVITY],
           r->full_usd_per_mtoken, 100 * r->gpu_utilisation, 100 * r->pnm_utilisation);
}

static json_t *row_json(const char *variant, const struct nkv_sim_report *r, const struct nkv_sim_report *first)
{
    return json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "options", variant, "batch",
                     (json_int_t)r->batch, "tokens_per_s", r->tokens_per_s, "ratio",
                     r->tokens_per_s / first->tokens_per_s, "step_ms", r->step_ms, "recalled_pages_per_layer_request",
                     r->recalled_pages, "activity_j_per_token", r->energy_j[NKV_SIM_ACTIVITY], "full_usd_per_mtoken",
                     r->full_usd_per_mtoken, "gpu_utilisation", r->gpu_utilisation, "pnm_utilisation",
                     r->pnm_utilisation);
}

/* rows: a JSON array to append to, or NULL for text. */
static int run_study(const struct study *study, json_t *rows)
{
    struct nkv_sim_report first = {0}, report = {0};

    if (!rows)
        printf("%s: %s (simulated)\n  %s\n  %-42s %6s %9s %8s %8s %9s %7s %9s %6s %6s\n", study->name, study->question,
               study->base, "", "batch", "tokens/s", "ratio", "step ms", "recalls", "J/token", "$/Mtoken", "GPU %",
               "PNM %");
    for (uint32_t i = 0; i < MAX_VARIANTS && study->variants[i]; i++) {
        if (progress_interrupted())
            return cli_fail("interrupted");
        if (run_variant(study, study->variants[i], &report) != CLI_OK)
            return CLI_FAILED;
        if (i == 0)
            first = report;
        if (rows)
            json_array_append_new(rows, row_json(study->variants[i], &report, &first));
        else
            print_row(study->variants[i], &report, &first);
    }
    if (!rows)
        putchar('\n');
    return CLI_OK;
}

static bool is_named(int argc, char **argv, const char *name)
{
    bool any = false;

    for (int i = 1; i < argc; i++) {
        any |= strncmp(argv[i], "--", 2) != 0;
        if (strcmp(argv[i], name) == 0)
            return true;
    }
    return !any;
}

static int check_names(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        bool known = strcmp(argv[i], "--json") == 0;

        for (size_t s = 0; s < N_STUDIES; s++)
            known |= strcmp(argv[i], studies[s].name) == 0;
        if (!known)
            return cli_usage("no study or option '%s': see nearkv sim ablate --help", argv[i]);
    }
    return CLI_OK;
}

static bool has(int argc, char **argv, const char *option)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], option) == 0)
            return true;
    return false;
}

int sim_ablate_main(int argc, char **argv)
{
    json_t *all = NULL;
    int rc;

    if (has(argc, argv, "--help") || has(argc, argv, "-h")) {
        print_usage(stdout);
        return CLI_OK;
    }
    rc = check_names(argc, argv);
    if (rc == CLI_OK && has(argc, argv, "--json"))
        all = json_object();
    progress_catch_interrupt();
    for (size_t s = 0; rc == CLI_OK && s < N_STUDIES; s++) {
        json_t *rows = all ? json_array() : NULL;

        if (!is_named(argc, argv, studies[s].name)) {
            json_decref(rows);
            continue;
        }
        rc = run_study(&studies[s], rows);
        if (all)
            json_object_set_new(
                all, studies[s].name,
                json_pack("{s:s, s:s, s:o}", "question", studies[s].question, "base", studies[s].base, "rows", rows));
    }
    if (rc == CLI_OK && all)
        return text_print_json(
            json_pack("{s:s, s:s, s:o}", "schema", "nearkv.sim.ablate/1", "kind", "simulated", "studies", all));
    json_decref(all);
    return rc;
}
