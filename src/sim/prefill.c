/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoding under steady load, where prompts of new requests are computed between the tokens of the others.
 *
 * A request generates output_tokens; while it does, each of the batch - 1 others ends once, and its successor's prompt
 * is computed whole, in one step of all. So of the steps that a request waits for, n = (batch - 1) / output_tokens hold
 * such a prompt. Two runs, of steps with ceil(n) prompts and with none, are averaged with the weights that make it n.
 *
 * Invariant: everything that a step or a token takes is the mean of the two; shares of a step are weighted by its time.
 *
 * Rejected: n x prompt tokens spread evenly over all steps. It hides prompts behind the weights' streaming, which the
 * measured latencies under load contradict (they would be up to 37 % too low): schedulers take a prompt in one piece.
 */
#include <math.h>
#include <stddef.h>

#include "sim/work.h"

#define MOST_ROWS 16777216.0 /* of prompts in a step: their FLOPs fit 64 bits */

/* What is averaged as it is: per step, or per token of equal batches. */
static const struct {
    size_t offset;
    uint32_t n;
} means[] = {
    {offsetof(struct nkv_sim_report, step_ms), 1},
    {offsetof(struct nkv_sim_report, breakdown_ms), NKV_SIM_PART_COUNT},
    {offsetof(struct nkv_sim_report, busy_ms), NKV_SIM_PART_COUNT},
    {offsetof(struct nkv_sim_report, energy_j), NKV_SIM_ACCOUNT_COUNT},
    {offsetof(struct nkv_sim_report, energy_gpu_j), NKV_SIM_ACCOUNT_COUNT},
    {offsetof(struct nkv_sim_report, energy_pnm_j), NKV_SIM_ACCOUNT_COUNT},
    {offsetof(struct nkv_sim_report, attention_j), NKV_SIM_ACCOUNT_COUNT},
    {offsetof(struct nkv_sim_report, fc_j), NKV_SIM_ACCOUNT_COUNT},
    {offsetof(struct nkv_sim_report, usd_per_mtoken), 1},
    {offsetof(struct nkv_sim_report, full_usd_per_mtoken), 1},
    {offsetof(struct nkv_sim_report, gpu_bytes_per_token), 1},
    {offsetof(struct nkv_sim_report, gpu_flops_per_token), 1},
};

static double mean(double a, double b, double share)
{
    return a + share * (b - a);
}

/* `report` becomes the mean of itself and, by `share` of the steps, `other`. */
static void mix(struct nkv_sim_report *report, const struct nkv_sim_report *other, double share)
{
    double time_share = share * other->step_ms / mean(report->step_ms, other->step_ms, share);

    report->gpu_utilisation = mean(report->gpu_utilisation, other->gpu_utilisation, time_share);
    report->pnm_utilisation = mean(report->pnm_utilisation, other->pnm_utilisation, time_share);
    for (size_t i = 0; i < sizeof means / sizeof *means; i++) {
        double *to = (double *)(void *)((char *)report + means[i].offset);
        const double *from = (const double *)(const void *)((const char *)other + means[i].offset);

        for (uint32_t k = 0; k < means[i].n; k++)
            to[k] = mean(to[k], from[k], share);
    }
    report->tokens_per_s = 1e3 * report->batch / report->step_ms;
    report->tokens_per_usd = 1e6 / report->usd_per_mtoken;
    report->full_tokens_per_usd = 1e6 / report->full_usd_per_mtoken;
}

int sim_run_loaded(const struct nkv_sim_config *config, struct sim_trace *trace, struct nkv_sim_report *report_out)
{
    struct nkv_sim_config c = *config;
    struct nkv_sim_report with;
    double n, whole;

    TRY(sim_run_steps(&c, trace, 0, report_out));
    n = (report_out->batch - 1.0) / c.output_tokens;
    whole = ceil(n);
    if (whole == 0)
        return 0;
    if (whole * c.context_tokens > MOST_ROWS)
        FAIL(NKV_EINVAL,
             "a step with %.0f prompts of %u tokens: at most %.0f tokens; let requests generate more than %u", whole,
             c.context_tokens, MOST_ROWS, c.output_tokens);
    c.timeline = NULL; /* it shows the steps without prompts */
    c.plan_log = NULL;
    TRY(sim_run_steps(&c, trace, (uint32_t)whole, &with));
    mix(report_out, &with, n / whole);
    return 0;
}
