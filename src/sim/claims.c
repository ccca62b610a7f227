/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each claim is one function of the grid. Averages are geometric means over the in-server configurations with 1, 2, 4
 * and 8 PNM devices: the paper does not name its mean, and ratios call for this one. Energy is by the account "paper",
 * the only one near R3 (account.c); the others are shown beside it.
 *
 * Invariant: a claim is NAN unless every point that it is about was simulated. Rejected: averages over those that were,
 * which compare another set of configurations with the paper's number.
 */
#include "sim/claims.h"

#include <math.h>
#include <string.h>

#define K 1024u

typedef const struct nkv_sim_report *report_ptr;

/* ---- Points */

static report_ptr server(const struct sim_grid *grid, const struct sim_server_config *c, uint32_t n_pnm,
                         enum nkv_mode mode)
{
    return sim_grid_find(grid, c->model, c->context_tokens, c->n_gpus, n_pnm, mode);
}

/* R1's configuration: 70B, 128K, 2 GPUs, 8 PNM devices. */
static report_ptr first(const struct sim_grid *grid, enum nkv_mode mode)
{
    return sim_grid_find(grid, "llama-3.1-70b", 128 * K, 2, 8, mode);
}

static report_ptr small_baseline(const struct sim_grid *grid, uint32_t n_gpus)
{
    return sim_grid_find(grid, "llama-3.1-8b", 128 * K, n_gpus, 8, NKV_MODE_RECALL);
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : NAN;
}

/* ---- Averages and extremes over the sweep */

typedef double (*pair_fn)(report_ptr png, report_ptr other);

struct sweep {
    double mean, least, most;
};

/* Of fn(png, other) where other is of `mode`, over all configurations and numbers of devices (equal: #PNM = #GPU only).
 * All are NAN if a point is missing. */
static struct sweep sweep(const struct sim_grid *grid, enum nkv_mode mode, bool equal, pair_fn fn)
{
    struct sweep s = {.least = INFINITY, .most = -INFINITY};
    double sum = 0;
    uint32_t n = 0;

    for (uint32_t i = 0; i < sim_n_server_configs; i++)
        for (uint32_t j = 0; j < sim_n_server_pnm; j++) {
            const struct sim_server_config *c = &sim_server_configs[i];
            report_ptr png = server(grid, c, sim_server_pnm[j], NKV_MODE_PNG), other;
            double x;

            if (equal && sim_server_pnm[j] != c->n_gpus)
                continue;
            other = server(grid, c, sim_server_pnm[j], mode);
            if (!png || !other)
                return (struct sweep){NAN, NAN, NAN};
            x = fn(png, other);
            sum += log(x);
            n++;
            s.least = fmin(s.least, x);
            s.most = fmax(s.most, x);
        }
    s.mean = exp(sum / n);
    return s;
}

static double faster(report_ptr png, report_ptr other)
{
    return ratio(png->tokens_per_s, other->tokens_per_s);
}

static double hungrier(report_ptr png, report_ptr other)
{
    return ratio(png->energy_j[NKV_SIM_PAPER], other->energy_j[NKV_SIM_PAPER]);
}

static double thriftier(report_ptr png, report_ptr other)
{
    return ratio(other->energy_j[NKV_SIM_PAPER], png->energy_j[NKV_SIM_PAPER]);
}

/* ---- The claims */

static double r1_base(const struct sim_grid *grid)
{
    report_ptr base = first(grid, NKV_MODE_RECALL);

    return base ? (double)base->batch : (double)NAN;
}

static double r1_png(const struct sim_grid *grid)
{
    report_ptr png = first(grid, NKV_MODE_PNG);

    return png ? (double)png->batch : (double)NAN;
}

static double of_first(const struct sim_grid *grid, enum nkv_mode mode, pair_fn fn)
{
    report_ptr base = first(grid, NKV_MODE_RECALL), other = first(grid, mode);

    return base && other ? fn(other, base) : NAN;
}

static double r2(const struct sim_grid *grid)
{
    return of_first(grid, NKV_MODE_PNG, faster);
}

static double r3(const struct sim_grid *grid)
{
    return of_first(grid, NKV_MODE_PNG, thriftier);
}

static double fc_energy(report_ptr other, report_ptr base)
{
    return ratio(base->fc_j[NKV_SIM_PAPER], other->fc_j[NKV_SIM_PAPER]);
}

/* Score, recall and attention on the baseline's GPUs, against what the PNM devices spend. */
static double attention_energy(report_ptr other, report_ptr base)
{
    return ratio(base->attention_j[NKV_SIM_PAPER], other->energy_pnm_j[NKV_SIM_PAPER]);
}

static double r4_fc(const struct sim_grid *grid)
{
    return of_first(grid, NKV_MODE_PNG, fc_energy);
}

static double r4_attention(const struct sim_grid *grid)
{
    return of_first(grid, NKV_MODE_PNM, attention_energy);
}

static double r5(const struct sim_grid *grid)
{
    return sweep(grid, NKV_MODE_PNM, false, faster).mean;
}

static double r6(const struct sim_grid *grid)
{
    return sweep(grid, NKV_MODE_PNM, false, hungrier).most;
}

static double r7_faster(const struct sim_grid *grid)
{
    return sweep(grid, NKV_MODE_RECALL, false, faster).mean;
}

static double r7_energy(const struct sim_grid *grid)
{
    return sweep(grid, NKV_MODE_RECALL, false, thriftier).mean;
}

/* PNM-KV and PnG-KV both count: the text says "throughput can be below". */
static double r8(const struct sim_grid *grid)
{
    double least = sweep(grid, NKV_MODE_RECALL, true, faster).least;

    for (uint32_t i = 0; i < sim_n_server_configs && !isnan(least); i++) {
        const struct sim_server_config *c = &sim_server_configs[i];
        report_ptr base = server(grid, c, 8, NKV_MODE_RECALL), pnm = server(grid, c, c->n_gpus, NKV_MODE_PNM);

        least = base && pnm ? fmin(least, faster(pnm, base)) : NAN;
    }
    return isnan(least) ? NAN : least < 1;
}

static double r9(const struct sim_grid *grid)
{
    report_ptr eight = small_baseline(grid, 8), one = small_baseline(grid, 1);

    return eight && one ? ratio(eight->tokens_per_usd, one->tokens_per_usd) : NAN;
}

static double r10(const struct sim_grid *grid)
{
    report_ptr eight = small_baseline(grid, 8), png = sim_grid_find(grid, "llama-3.1-8b", 128 * K, 1, 8, NKV_MODE_PNG);

    return eight && png ? ratio(png->tokens_per_usd, eight->tokens_per_usd) : NAN;
}

static double small_share(report_ptr png, report_ptr other)
{
    (void)other;
    return (png->breakdown_ms[NKV_SIM_LINK] + png->breakdown_ms[NKV_SIM_TOPK]) / png->step_ms;
}

/* Hidden states and Top-K together are at most a twentieth of the critical path. */
static double r11(const struct sim_grid *grid)
{
    double most = sweep(grid, NKV_MODE_PNM, false, small_share).most;

    return isnan(most) ? NAN : most <= 0.05;
}

/* From the least to the most devices recalls at least halve in every configuration, and the GPUs' utilisation rises on
 * average. */
static double r12(const struct sim_grid *grid)
{
    double rise = 0;
    bool falls = true;

    for (uint32_t i = 0; i < sim_n_server_configs; i++) {
        report_ptr few = NULL, many = NULL;

        for (uint32_t j = 0; j < sim_n_server_pnm; j++) {
            report_ptr png = server(grid, &sim_server_configs[i], sim_server_pnm[j], NKV_MODE_PNG);

            if (!png)
                return NAN;
            few = few ? few : png;
            many = png;
        }
        falls &= many->recalled_pages <= 0.5 * few->recalled_pages;
        rise += log(many->gpu_utilisation / few->gpu_utilisation);
    }
    return falls && rise > 0;
}

/* Four nodes serve at least 3.4 times the tokens of one per unit of attention and FC time. */
static double r13(const struct sim_grid *grid)
{
    report_ptr one = sim_grid_find(grid, SIM_RACK_MODEL, SIM_RACK_CONTEXT, SIM_RACK_GPUS, SIM_RACK_NODE, NKV_MODE_PNM);
    report_ptr four =
        sim_grid_find(grid, SIM_RACK_MODEL, SIM_RACK_CONTEXT, SIM_RACK_GPUS, 4 * SIM_RACK_NODE, NKV_MODE_PNM);

    return one && four ? ratio(four->tokens_per_s, one->tokens_per_s) >= 3.4 : NAN;
}

static const struct {
    const char *id, *text;
    bool numeric;
    double paper;
    double (*ours)(const struct sim_grid *grid);
    const char *note;
} table[] = {
    {"R1a", "batch, 70B 128K, 2 GPUs", true, 1, r1_base, ""},
    {"R1b", "batch, 70B 128K, 2 GPUs + 8 PNM", true, 96, r1_png, ""},
    {"R2", "throughput, PnG-KV to baseline, 70B 128K, 2 GPUs + 8 PNM", true, 21.9, r2, ""},
    {"R3", "energy per token, baseline to PnG-KV, the same", true, 60, r3, ""},
    {"R4a", "FC energy per token, baseline to PnG-KV, the same", true, 96, r4_fc, ""},
    {"R4b", "attention energy per token, baseline to PNM-KV's devices, the same", true, 20, r4_attention, ""},
    {"R5", "throughput, PnG-KV to PNM-KV, in-server mean", true, 1.283, r5, ""},
    {"R6", "energy, PnG-KV to PNM-KV, most", true, 2.2, r6, ""},
    {"R7a", "throughput, PnG-KV to baseline, in-server mean", true, 2.7, r7_faster, ""},
    {"R7b", "energy, baseline to PnG-KV, in-server mean", true, 4.9, r7_energy, ""},
    {"R8", "throughput can be below the baseline where #PNM = #GPU", false, 1, r8,
     "with the default parameters it holds only where the baseline recalls cheaply: with no shared host link (then R9 "
     "is "
     "1.1 and R10 2.7), or with a budget of 4,096 tokens (then R2 is 15 and R7 1.1 and 2.1)"},
    {"R9", "tokens per dollar, baseline, 8B 128K, 8 GPUs to 1", true, 0.4, r9, ""},
    {"R10", "tokens per dollar, 8B 128K, PnG-KV 1 GPU + 8 PNM to 8-GPU baseline", true, 7.3, r10, ""},
    {"R11", "hidden-state traffic and Top-K are negligible", false, 1, r11, ""},
    {"R12", "more PNM devices per GPU: recalls fall sharply, GPU utilisation rises", false, 1, r12, ""},
    {"R13", "rack: attention and FC time nearly linear in PNM nodes", false, 1, r13, ""},
};

const uint32_t sim_n_claims = sizeof table / sizeof *table;

static enum nkv_sim_verdict verdict(const struct nkv_sim_claim *claim)
{
    bool holds;

    if (isnan(claim->ours))
        return NKV_SIM_UNKNOWN;
    holds = claim->numeric ? fabs(log(claim->ours / claim->paper)) <= log(1.25) : claim->ours == claim->paper;

    return holds ? NKV_SIM_REPRODUCED : NKV_SIM_OFF;
}

void sim_claims_evaluate(const struct sim_grid *grid, struct nkv_sim_claim *claims_out)
{
    for (uint32_t i = 0; i < sim_n_claims; i++) {
        struct nkv_sim_claim *claim = &claims_out[i];

        *claim = (struct nkv_sim_claim){.id = table[i].id,
                                        .text = table[i].text,
                                        .numeric = table[i].numeric,
                                        .paper = table[i].paper,
                                        .ours = table[i].ours(grid),
                                        .note = table[i].note};
        claim->verdict = verdict(claim);
    }
}

double sim_claims_error(const struct nkv_sim_claim *claims)
{
    double sum = 0;
    uint32_t n = 0;

    for (uint32_t i = 0; i < sim_n_claims; i++)
        if (claims[i].numeric && claims[i].verdict != NKV_SIM_UNKNOWN) {
            sum += fabs(log(claims[i].ours / claims[i].paper));
            n++;
        }
    return n ? sum / n : NAN;
}

void sim_claims_energy(const struct sim_grid *grid, double ratios_out[NKV_SIM_ACCOUNT_COUNT])
{
    report_ptr base = first(grid, NKV_MODE_RECALL), png = first(grid, NKV_MODE_PNG);

    for (uint32_t i = 0; i < NKV_SIM_ACCOUNT_COUNT; i++)
        ratios_out[i] = base && png ? ratio(base->energy_j[i], png->energy_j[i]) : NAN;
}
