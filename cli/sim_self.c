/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulator predicts `nearkv bench decode` on this machine (llama-3.2-1b, q8_0, pnm, budget 2048) at four contexts.
 *
 * The machine is described from two other contexts, which take turns with the predicted one, step by step, so that both
 * see the same machine: the rate at which weights stream, the rate of scoring (by the difference between the two), a
 * fixed time per command, the rate of attention, a fixed time per layer. No number is taken from the predicted steps.
 *
 * Times are the least of the steps, as neighbours only ever add to them: the least token, the least of each part, and
 * as the rest what is left of the token. Medians were rejected: where cores are shared they measure the neighbours,
 * each part another one.
 *
 * The predicted sequence grows from context to context; four of them side by side would need 20 GB. Rejected: kernel
 * benchmarks of one layer, whose digests stay in the CPU's cache, as those of 16 layers with weights between do not.
 */
#include "sim_self.h"

#include <math.h>
#include <nearkv/device.h>
#include <nearkv/sim.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli.h"
#include "progress.h"

#define SHAPE       "llama-3.2-1b"
#define BUDGET      2048u
#define PAGE_TOKENS 32u
#define N_SEQS      3u /* two to calibrate with, and the predicted one */

static const uint32_t contexts[SELF_CONTEXTS] = {4096, 65536, 262144, 524288};
static const uint32_t calibration[2] = {16384, 131072};

/* The least times of a phase. */
struct phase {
    struct bench_times near, far, target; /* of the calibration contexts and of the predicted one */
    double gb_per_s;
};

/* ---- Measuring */

static int open_decoder(const struct self *self, struct bench_decoder *d)
{
    struct bench_decoder_options options = {.shape = SHAPE,
                                            .weights = NKV_BF16,
                                            .kv = NKV_Q8_0,
                                            .n_seqs = N_SEQS,
                                            .batch = 1,
                                            .n_micro_batches = 1,
                                            .page_tokens = PAGE_TOKENS,
                                            .n_threads = self->n_threads};
    uint32_t more = SELF_CONTEXTS * (self->n_steps + 1);
    int rc;

    nkv_seq_options_init(&options.seq);
    options.seq.budget_tokens = BUDGET;
    options.max_tokens[0] = calibration[0] + more;
    options.max_tokens[1] = calibration[1] + more;
    options.max_tokens[2] = contexts[SELF_CONTEXTS - 1] + more;
    rc = bench_decoder_open(&options, d);
    for (uint32_t i = 0; rc == CLI_OK && i < 2; i++)
        rc = bench_decoder_fill(d, i, calibration[i]);
    return rc;
}

static int steps(struct bench_decoder *d, uint32_t n_steps, struct bench_times *times, double *gb_per_s)
{
    struct bench_times warm_up;

    for (uint32_t i = 0; i < N_SEQS; i++)
        if (bench_decoder_step(d, i, 0, &warm_up) != CLI_OK)
            return CLI_FAILED;
    for (uint32_t s = 0; s < n_steps; s++) {
        uint32_t slice = s * BENCH_SLICES / n_steps;

        if (s == (slice * n_steps + BENCH_SLICES - 1) / BENCH_SLICES &&
            bench_decoder_bandwidth(d, &gb_per_s[slice]) != CLI_OK)
            return CLI_FAILED;
        for (uint32_t i = 0; i < N_SEQS; i++)
            if (bench_decoder_step(d, i, s, &times[i * n_steps + s]) != CLI_OK)
                return CLI_FAILED;
    }
    return bench_check_interrupt();
}

static struct bench_times least_of(const struct bench_times *times, uint32_t n)
{
    struct bench_times least = times[0];

    for (uint32_t i = 1; i < n; i++) {
        least.token = fmin(least.token, times[i].token);
        least.fc = fmin(least.fc, times[i].fc);
        least.select = fmin(least.select, times[i].select);
        least.attend = fmin(least.attend, times[i].attend);
    }
    least.rest = least.token - least.fc - least.select - least.attend;
    return least;
}

static int measure_phase(struct bench_decoder *d, uint32_t n_steps, struct phase *phase)
{
    struct bench_times *times = calloc((size_t)N_SEQS * n_steps, sizeof *times);
    double gb_per_s[BENCH_SLICES], least;
    int rc = times ? steps(d, n_steps, times, gb_per_s) : cli_fail("out of memory");

    if (rc == CLI_OK)
        *phase = (struct phase){least_of(times, n_steps), least_of(times + n_steps, n_steps),
                                least_of(times + 2 * n_steps, n_steps), bench_median(gb_per_s, BENCH_SLICES, &least)};
    free(times);
    return rc;
}

/* ---- Describing the machine */

/* From the calibration contexts alone. Rates in base units, times in seconds. */
static void describe(const struct bench_decoder *d, const struct phase *phase, struct self_row *row)
{
    double layers = d->info.n_layers, ms = 1e-3 / layers; /* of all layers, to seconds of one */
    double pages = (calibration[1] - calibration[0]) / (double)PAGE_TOKENS;
    double per_page = (phase->far.select - phase->near.select) * ms / pages;
    double command = phase->near.select * ms - per_page * calibration[0] / PAGE_TOKENS;
    double attend = (phase->near.attend + phase->far.attend) / 2 * ms, rest = (phase->near.rest + phase->far.rest) / 2;
    double flops = 4.0 * d->info.n_heads * d->info.head_dim * BUDGET;
    double page_bytes = (double)nkv_digest_bytes(&d->shape) * d->info.n_kv_heads;

    command = fmin(fmax(command, 0), attend / 2); /* noise may put it beyond either */
    row->gb_per_s = phase->gb_per_s;
    row->weight_gb_per_s = (double)bench_decoder_stream_bytes(d) / ((phase->near.fc + phase->far.fc) / 2 * 1e6);
    row->score_gb_per_s = per_page > 0 ? page_bytes / per_page * 1e-9 : phase->gb_per_s;
    row->attend_gflop_per_s = flops / (attend - command) * 1e-9;
    row->command_us = command * 1e6;
    row->layer_us = fmax(rest * ms - command, 0) * layers / (layers + 1) * 1e6; /* the head has it, too */
}

static int set(struct nkv_sim_machine *machine, const char *key, double value, const char *unit)
{
    char assignment[96];

    snprintf(assignment, sizeof assignment, "%s=%.9g %s", key, value, unit);
    return nkv_sim_machine_set(machine, assignment) < 0 ? cli_fail("%s", nkv_last_error()) : CLI_OK;
}

/* Where a rate is measured as a whole, what it is made of counts as free: softmax within attention, the sorter and the
 * products within scoring. */
static int set_machine(struct nkv_sim_machine *machine, const struct self_row *row)
{
    double fastest = fmax(row->gb_per_s, fmax(row->weight_gb_per_s, row->score_gb_per_s));
    const struct {
        const char *key, *unit;
        double value;
    } sets[] = {
        {"gpu.memory_bandwidth", "GB/s", fastest},
        {"gpu.weight_efficiency", "", row->weight_gb_per_s / fastest},
        {"gpu.layer_overhead", "us", row->layer_us},
        {"gpu.step_overhead", "us", 0},
        {"pnm.memory_bandwidth", "GB/s", fastest},
        {"pnm.efficiency_sequential", "", row->score_gb_per_s / fastest},
        {"pnm.efficiency_4096", "", 1},
        {"pnm.efficiency_512", "", 1},
        {"pnm.compute_rate", "GFLOP/s", row->attend_gflop_per_s},
        {"pnm.compute_efficiency", "", 1},
        {"pnm.score_flops", "", 1},
        {"pnm.exp_rate", "G/s", 1e6},
        {"pnm.sort_rate", "G/s", 1e6},
        {"pnm.access_latency", "us", 0},
        {"pnm.command_overhead", "us", row->command_us},
    };

    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (set(machine, sets[i].key, sets[i].value, sets[i].unit) != CLI_OK)
            return CLI_FAILED;
    return CLI_OK;
}

/* ---- Predicting */

static int predict_on(const struct nkv_sim_machine *machine, const struct self *self, struct self_row *row)
{
    struct nkv_sim_config config;
    struct nkv_sim_report report;

    nkv_sim_config_init(&config);
    config.machine = machine;
    config.mode = NKV_MODE_PNM;
    config.context_tokens = row->ctx_tokens + self->n_steps / 2;
    config.batch = 1;
    config.page_tokens = PAGE_TOKENS;
    config.kv_dtype = NKV_Q8_0;
    snprintf(config.budget, sizeof config.budget, "%u", BUDGET);
    if (nkv_sim_model_open(SHAPE, &config.model) < 0 || nkv_sim_run(&config, &report) < 0)
        return cli_fail("%s", nkv_last_error());
    row->simulated.token = report.step_ms;
    row->simulated.fc = report.breakdown_ms[NKV_SIM_FC] - row->layer_us * 1e-3 * (config.model.n_layers + 1);
    row->simulated.select = report.breakdown_ms[NKV_SIM_SCORE] + report.breakdown_ms[NKV_SIM_TOPK];
    row->simulated.attend = report.breakdown_ms[NKV_SIM_ATTEND_PNM];
    row->simulated.rest = row->simulated.token - row->simulated.fc - row->simulated.select - row->simulated.attend;
    return CLI_OK;
}

static int predict(const struct self *self, struct self_row *row)
{
    struct nkv_sim_machine *machine;
    int rc;

    if (nkv_sim_machine_open("cpu-socket", &machine) < 0)
        return cli_fail("%s", nkv_last_error());
    rc = set_machine(machine, row);
    if (rc == CLI_OK)
        rc = predict_on(machine, self, row);
    nkv_sim_machine_close(machine);
    return rc;
}

static int run_row(struct self *self, uint32_t i, struct bench_decoder *d)
{
    struct self_row *row = &self->rows[i];
    struct phase phase;
    int rc;

    row->ctx_tokens = contexts[i];
    fprintf(stderr, "nearkv: sim validate: this machine at %u tokens, %u of %u\n", contexts[i], i + 1, SELF_CONTEXTS);
    rc = bench_decoder_fill(d, 2, contexts[i]);
    if (rc == CLI_OK)
        rc = measure_phase(d, self->n_steps, &phase);
    if (rc != CLI_OK)
        return rc;
    row->measured = phase.target;
    describe(d, &phase, row);
    rc = predict(self, row);
    self->max_error = fmax(self->max_error, fabs(row->simulated.token / row->measured.token - 1));
    return rc;
}

int self_run(struct self *self)
{
    struct bench_decoder d;
    int rc;

    self->calibration[0] = calibration[0];
    self->calibration[1] = calibration[1];
    self->max_error = 0;
    fprintf(stderr, "nearkv: sim validate: opening %s and filling two caches to calibrate with\n", SHAPE);
    rc = open_decoder(self, &d);
    for (uint32_t i = 0; rc == CLI_OK && i < SELF_CONTEXTS; i++)
        rc = run_row(self, i, &d);
    bench_decoder_close(&d);
    return rc;
}

/* ---- Showing */

void self_print(const struct self *self)
{
    printf("\nThis machine: nearkv bench decode --shape %s --kv q8_0 --mode pnm --budget %u, the least of %u steps\n"
           "  described from %u and %u tokens, taken in turn with the predicted context\n"
           "  %10s %14s %14s %10s   %s\n",
           SHAPE, BUDGET, self->n_steps, self->calibration[0], self->calibration[1], "tokens", "measured ms",
           "simulated ms", "error", "dense, select, attend, rest: measured | simulated");
    for (uint32_t i = 0; i < SELF_CONTEXTS; i++) {
        const struct self_row *r = &self->rows[i];
        const struct bench_times *m = &r->measured, *s = &r->simulated;

        printf("  %10u %14.2f %14.2f %+8.1f %%   %.2f, %.2f, %.2f, %.2f | %.2f, %.2f, %.2f, %.2f\n", r->ctx_tokens,
               m->token, s->token, 100 * (s->token / m->token - 1), m->fc, m->select, m->attend, m->rest, s->fc,
               s->select, s->attend, s->rest);
    }
    printf("  largest error %.1f %%\n  the machine, measured:\n", 100 * self->max_error);
    for (uint32_t i = 0; i < SELF_CONTEXTS; i++) {
        const struct self_row *r = &self->rows[i];

        printf(
            "  %10u reads %.1f GB/s, weights %.1f GB/s, scores %.1f GB/s, attends %.0f GFLOP/s; %.1f us per command, "
            "%.1f us per layer\n",
            r->ctx_tokens, r->gb_per_s, r->weight_gb_per_s, r->score_gb_per_s, r->attend_gflop_per_s, r->command_us,
            r->layer_us);
    }
}

static json_t *times_json(const struct bench_times *t)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "token", t->token, "fc", t->fc, "select", t->select, "attend",
                     t->attend, "rest", t->rest);
}

static json_t *row_json(const struct self_row *r)
{
    return json_pack("{s:I, s:o, s:o, s:f, s:{s:f, s:f, s:f, s:f, s:f, s:f}}", "ctx", (json_int_t)r->ctx_tokens,
                     "measured_ms", times_json(&r->measured), "simulated_ms", times_json(&r->simulated),
                     "error_percent", 100 * (r->simulated.token / r->measured.token - 1), "machine", "read_gb_s",
                     r->gb_per_s, "weight_gb_s", r->weight_gb_per_s, "score_gb_s", r->score_gb_per_s, "attend_gflop_s",
                     r->attend_gflop_per_s, "command_us", r->command_us, "layer_us", r->layer_us);
}

json_t *self_json(const struct self *self)
{
    json_t *rows = json_array();

    for (uint32_t i = 0; i < SELF_CONTEXTS; i++)
        json_array_append_new(rows, row_json(&self->rows[i]));
    return json_pack("{s:s, s:I, s:I, s:[I, I], s:f, s:o}", "shape", SHAPE, "steps", (json_int_t)self->n_steps,
                     "threads", (json_int_t)self->n_threads, "calibration", (json_int_t)self->calibration[0],
                     (json_int_t)self->calibration[1], "max_error_percent", 100 * self->max_error, "contexts", rows);
}
