/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The report of `bench serve`. A percentile is the value at its nearest rank, of the requests that ended well.
 * Latencies count from a request's arrival, also where a step under way kept it from being submitted at once.
 */
#include <jansson.h>
#include <nearkv/device.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench_serve.h"
#include "cli.h"
#include "text.h"

struct percentiles {
    double p50, p90, p99;
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double ttft_ms(const struct serve *s, const struct serve_request *r)
{
    return (double)(r->first_ns - s->start_ns - r->arrival_ns) * 1e-6;
}

static double tpot_ms(const struct serve *s, const struct serve_request *r)
{
    (void)s;
    return (double)(r->last_ns - r->first_ns) * 1e-6 / (r->n_tokens - 1);
}

static double queue_ms(const struct serve *s, const struct serve_request *r)
{
    return (double)(r->admitted_ns - s->start_ns - r->arrival_ns) * 1e-6;
}

static int percentiles_of(const struct serve *s, double (*value)(const struct serve *, const struct serve_request *),
                          struct percentiles *out)
{
    double *values = malloc(s->opt.n_requests * sizeof *values);
    uint32_t n = 0;

    if (!values)
        return cli_fail("out of memory");
    for (uint32_t i = 0; i < s->opt.n_requests; i++)
        if (s->requests[i].ended && s->requests[i].status == 0)
            values[n++] = value(s, &s->requests[i]);
    qsort(values, n, sizeof *values, compare);
    *out = (struct percentiles){values[cli_nearest_rank(n, 50)], values[cli_nearest_rank(n, 90)],
                                values[cli_nearest_rank(n, 99)]};
    free(values);
    return CLI_OK;
}

static uint64_t busy_ns(const struct serve_device *d)
{
    return d->work.busy_ns;
}

static uint64_t moved_bytes(const struct serve_device *d)
{
    return d->work.read_bytes + d->work.written_bytes;
}

/* The busiest device's work over the mean, of those that are there. */
static double imbalance(const struct serve *s, uint64_t (*work)(const struct serve_device *d))
{
    uint64_t most = 0, sum = 0;
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->session.n_devices; i++) {
        uint64_t own = work(&s->devices[i]);

        sum += own;
        most = own > most ? own : most;
        n += !s->devices[i].is_lost;
    }
    return sum ? (double)most * n / (double)sum : 1;
}

static json_t *percentiles_json(const struct percentiles *p)
{
    return json_pack("{s:f, s:f, s:f}", "p50", p->p50, "p90", p->p90, "p99", p->p99);
}

static json_t *devices_json(const struct serve *s, double wall_s)
{
    json_t *array = json_array();

    for (uint32_t i = 0; array && i < s->session.n_devices; i++) {
        const struct serve_device *d = &s->devices[i];

        struct nkv_device *device = s->session.devices[i];
        struct nkv_device_caps caps = {.size = sizeof caps};

        (void)device->ops->caps(device, &caps); /* what fails leaves the name empty */
        json_array_append_new(
            array, json_pack("{s:I, s:s, s:b, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I}", "device", (json_int_t)i, "name",
                             caps.name, "lost", d->is_lost, "busy_s", (double)d->work.busy_ns * 1e-9, "busy_share",
                             (double)d->work.busy_ns * 1e-9 / wall_s, "fill_s", (double)d->fill_ns * 1e-9, "read_bytes",
                             (json_int_t)d->work.read_bytes, "written_bytes", (json_int_t)d->work.written_bytes,
                             "sequences", (json_int_t)d->n_sequences, "prefill_tokens", (json_int_t)d->prefill_tokens,
                             "output_tokens", (json_int_t)d->output_tokens));
    }
    return array;
}

static json_t *kv_parallel_json(const struct serve *s)
{
    return json_pack("{s:s, s:I, s:I, s:I}", "mapping", nkv_kv_parallel_name(s->opt.session.kv_parallel), "sequences",
                     (json_int_t)s->spread.n_sequences, "prefill_tokens", (json_int_t)s->spread.prefill_tokens,
                     "output_tokens", (json_int_t)s->spread.output_tokens);
}

struct totals {
    struct percentiles ttft, tpot, queue;
    double wall_s;
    uint64_t n_prompt, n_output;
    struct nkv_engine_stats engine;
};

static int add_up(const struct serve *s, struct totals *t)
{
    *t = (struct totals){.wall_s = (double)(s->end_ns - s->start_ns) * 1e-9,
                         .n_prompt = s->spread.prefill_tokens,
                         .n_output = s->spread.output_tokens};
    for (uint32_t i = 0; i < s->session.n_devices; i++) {
        t->n_prompt += s->devices[i].prefill_tokens;
        t->n_output += s->devices[i].output_tokens;
    }
    nkv_engine_stats(s->engine, &t->engine);
    if (percentiles_of(s, ttft_ms, &t->ttft) != CLI_OK || percentiles_of(s, tpot_ms, &t->tpot) != CLI_OK)
        return CLI_FAILED;
    return percentiles_of(s, queue_ms, &t->queue);
}

static json_t *report_json(const struct serve *s, const struct totals *t)
{
    const struct serve_options *o = &s->opt;
    json_t *load =
        json_pack("{s:s, s:s, s:b, s:I, s:I, s:I, s:I}", "arrivals", o->arrivals_text, "lengths", o->lengths_text,
                  "filled", o->fill, "requests", (json_int_t)o->n_requests, "outputs", (json_int_t)o->max_outputs,
                  "least_outputs", (json_int_t)o->min_outputs, "seed", (json_int_t)o->seed);
    bool spreads = session_kv_parallel(&o->session) != NKV_KV_DATA;
    json_t *rates =
        json_pack("{s:f, s:f, s:f}", "requests_per_s", (s->n_ended - s->n_failed) / t->wall_s, "prompt_tokens_per_s",
                  (double)t->n_prompt / t->wall_s, "output_tokens_per_s", (double)t->n_output / t->wall_s);

    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:I, s:I, s:o, s:I, s:f, s:o, s:o, s:o, s:o, s:I, s:I, "
                     "s:I, s:f, s:f, s:o, s:o*}",
                     "schema", "nearkv.bench.serve/1", "model", s->session.info.name, "mode",
                     nkv_mode_name(o->session.seq.mode), "kv", nkv_dtype_name(o->session.kv), "budget_tokens",
                     (json_int_t)o->session.seq.budget_tokens, "page_tokens", (json_int_t)o->session.page_tokens,
                     "threads", (json_int_t)o->session.n_threads, "kernels", nkv_kernels_name(), "batch",
                     (json_int_t)o->batch, "micro_batches", (json_int_t)o->session.n_micro_batches, "load", load,
                     "failed", (json_int_t)s->n_failed, "wall_s", t->wall_s, "ttft_ms", percentiles_json(&t->ttft),
                     "tpot_ms", percentiles_json(&t->tpot), "queue_ms", percentiles_json(&t->queue), "throughput",
                     rates, "steps", (json_int_t)t->engine.n_steps, "moves", (json_int_t)t->engine.n_moves,
                     "most_running", (json_int_t)t->engine.most_running, "busiest_to_mean", imbalance(s, busy_ns),
                     "busiest_to_mean_bytes", imbalance(s, moved_bytes), "devices", devices_json(s, t->wall_s),
                     "kv_parallel", spreads ? kv_parallel_json(s) : NULL);
}

static void print_row(const char *what, const struct percentiles *p)
{
    printf("%-10s %10.2f %10.2f %10.2f\n", what, p->p50, p->p90, p->p99);
}

/* Whether some sequences lie on one device. */
static bool has_own(const struct serve *s)
{
    enum nkv_kv_parallel kv_parallel = session_kv_parallel(&s->opt.session);

    return kv_parallel == NKV_KV_DATA || kv_parallel == NKV_KV_AUTO;
}

static void print_load(const struct serve_device *d)
{
    printf("%u sequence%s, %llu prompt and %llu output tokens\n", d->n_sequences, d->n_sequences == 1 ? "" : "s",
           (unsigned long long)d->prefill_tokens, (unsigned long long)d->output_tokens);
}

static void print_device(const struct serve *s, uint32_t i, double wall_s)
{
    const struct serve_device *d = &s->devices[i];

    if (d->is_lost)
        printf("device %-3u lost in the middle", i);
    else
        printf("device %-3u busy %8.3f s (%5.1f %%), read %s, wrote %s", i, (double)d->work.busy_ns * 1e-9,
               (double)d->work.busy_ns * 1e-7 / wall_s, cli_bytes(d->work.read_bytes),
               cli_bytes(d->work.written_bytes));
    fputs(has_own(s) ? ", " : "\n", stdout);
    if (has_own(s))
        print_load(d);
}

/* What lies on all devices, then each; where all lies on all, what a device has of its own is nothing to tell. */
static void print_devices(const struct serve *s, double wall_s)
{
    if (session_kv_parallel(&s->opt.session) != NKV_KV_DATA) {
        printf("all devices (%s): ", nkv_kv_parallel_name(s->opt.session.kv_parallel));
        print_load(&s->spread);
    }
    for (uint32_t i = 0; i < s->session.n_devices; i++)
        print_device(s, i, wall_s);
}

static void print_text(const struct serve *s, const struct totals *t)
{
    const struct serve_options *o = &s->opt;

    printf("%s, mode %s: %u request%s, %s, prompts %s%s, ", s->session.info.name, nkv_mode_name(o->session.seq.mode),
           o->n_requests, o->n_requests == 1 ? "" : "s", o->arrivals_text, o->lengths_text,
           o->fill ? " (filled in, not computed)" : "");
    if (o->min_outputs < o->max_outputs)
        printf("%u to ", o->min_outputs);
    printf("%u tokens each, at most %u at a time (%u seen) in %u micro-batch%s, seed %llu\n", o->max_outputs, o->batch,
           t->engine.most_running, o->session.n_micro_batches, o->session.n_micro_batches > 1 ? "es" : "",
           (unsigned long long)o->seed);
    printf("%-10s %10s %10s %10s\n", "ms", "p50", "p90", "p99");
    print_row("TTFT", &t->ttft);
    print_row("TPOT", &t->tpot);
    print_row("queue", &t->queue);
    printf("%.2f s: %.2f requests, %.1f prompt tokens%s, %.1f output tokens per second; %llu steps, %llu moves\n",
           t->wall_s, (s->n_ended - s->n_failed) / t->wall_s, (double)t->n_prompt / t->wall_s,
           o->fill ? " filled in" : "", (double)t->n_output / t->wall_s, (unsigned long long)t->engine.n_steps,
           (unsigned long long)t->engine.n_moves);
    print_devices(s, t->wall_s);
    printf("busiest device %.2f x the mean by time, %.3f x by bytes read and written\n", imbalance(s, busy_ns),
           imbalance(s, moved_bytes));
}

int serve_print(const struct serve *s)
{
    struct totals t;
    int rc;

    if (s->n_failed == s->n_ended)
        return cli_fail("every request failed: %s", s->error);
    rc = add_up(s, &t);
    if (rc == CLI_OK && s->opt.json)
        rc = text_print_json(report_json(s, &t));
    else if (rc == CLI_OK)
        print_text(s, &t);
    return rc == CLI_OK && s->n_failed
               ? cli_fail("%u request%s failed: %s", s->n_failed, s->n_failed == 1 ? "" : "s", s->error)
               : rc;
}
