/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load of `bench serve`: how long the prompts are and when they come, drawn before anything runs, from one seed, so
 * that two runs differ in nothing but what they measure.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_serve.h"
#include "cli.h"
#include "text.h"

#define MAX_LENGTH (1u << 28)

int serve_read_arrivals(const char *arg, struct serve_options *o)
{
    o->arrivals_text = arg;
    o->rate = 0;
    if (strcmp(arg, "all") == 0)
        return CLI_OK;
    if (strncmp(arg, "poisson:", 8) != 0)
        return cli_usage("--arrivals %s: give poisson:R (requests per second) or all", arg);
    return cli_float("--arrivals poisson:", arg + 8, 1e-6, 1e6, &o->rate);
}

static int read_range(const char *arg, struct serve_options *o)
{
    char low[32];
    const char *dash = strchr(arg, '-');
    int rc;

    if (!dash || (size_t)(dash - arg) >= sizeof low)
        return cli_usage("--lengths %s: give a range A-B", o->lengths_text);
    snprintf(low, sizeof low, "%.*s", (int)(dash - arg), arg);
    rc = cli_u32("--lengths A-B: A", low, 1, MAX_LENGTH, &o->min_length);
    return rc == CLI_OK ? cli_u32("--lengths A-B: B", dash + 1, o->min_length, MAX_LENGTH, &o->max_length) : rc;
}

int serve_read_lengths(const char *arg, struct serve_options *o)
{
    static const char *const names[] = {"fixed:", "uniform:", "loguniform:"};
    int rc;

    o->lengths_text = arg;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        if (strncmp(arg, names[i], strlen(names[i])) != 0)
            continue;
        o->lengths = (enum serve_lengths)i;
        if (o->lengths != SERVE_FIXED)
            return read_range(arg + strlen(names[i]), o);
        rc = cli_u32("--lengths fixed:", arg + strlen(names[i]), 1, MAX_LENGTH, &o->min_length);
        o->max_length = o->min_length;
        return rc;
    }
    return cli_usage("--lengths %s: give uniform:A-B, loguniform:A-B or fixed:N", arg);
}

int serve_read_outputs(const char *arg, struct serve_options *o)
{
    char low[32];
    const char *dash = strchr(arg, '-');
    int rc;

    if (!dash || dash == arg || (size_t)(dash - arg) >= sizeof low) {
        rc = cli_u32("--outputs", arg, 2, MAX_LENGTH, &o->min_outputs);
        o->max_outputs = o->min_outputs;
        return rc;
    }
    snprintf(low, sizeof low, "%.*s", (int)(dash - arg), arg);
    rc = cli_u32("--outputs A-B: A", low, 2, MAX_LENGTH, &o->min_outputs);
    return rc == CLI_OK ? cli_u32("--outputs A-B: B", dash + 1, o->min_outputs, MAX_LENGTH, &o->max_outputs) : rc;
}

/* From 0 to below 1. */
static double uniform(uint64_t *random)
{
    return (double)(text_random(random) >> 11) * 0x1p-53;
}

static uint32_t draw_length(const struct serve_options *o, uint64_t *random)
{
    double u = uniform(random), low = o->min_length, high = o->max_length;
    double length = o->lengths == SERVE_LOG_UNIFORM ? low * pow(high / low, u) : low + floor(u * (high - low + 1));

    return length < high ? (uint32_t)length : o->max_length;
}

static uint32_t draw_outputs(const struct serve_options *o, uint64_t *random)
{
    if (o->min_outputs == o->max_outputs)
        return o->min_outputs;
    return o->min_outputs + (uint32_t)(uniform(random) * (o->max_outputs - o->min_outputs + 1));
}

int serve_draw(struct serve *s)
{
    const struct serve_options *o = &s->opt;
    uint64_t random = o->seed;
    double at_s = 0;

    s->requests = calloc(o->n_requests, sizeof *s->requests);
    if (!s->requests)
        return cli_fail("out of memory");
    for (uint32_t i = 0; i < o->n_requests; i++) {
        s->requests[i].n_prompt = draw_length(o, &random);
        if (s->requests[i].n_prompt > s->longest)
            s->longest = s->requests[i].n_prompt;
        if (o->rate > 0)
            at_s -= log1p(-uniform(&random)) / (double)o->rate;
        s->requests[i].arrival_ns = (uint64_t)(at_s * 1e9);
        s->requests[i].n_outputs = draw_outputs(o, &random);
    }
    s->prompt = malloc(s->longest * sizeof *s->prompt);
    return s->prompt ? CLI_OK : cli_fail("out of memory");
}
