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
#define MIN_RATE   1e-6f
#define MAX_RATE   1e6f

int serve_read_arrivals(const char *arg, struct serve_options *o)
{
    static const char kind[] = "poisson:";
    char *end;

    o->arrivals_text = arg;
    o->rate = 0;
    if (strcmp(arg, "all") == 0)
        return CLI_OK;
    if (strncmp(arg, kind, sizeof kind - 1) == 0) {
        o->rate = strtof(arg + sizeof kind - 1, &end);
        if (end > arg + sizeof kind - 1 && !*end && o->rate >= MIN_RATE && o->rate <= MAX_RATE)
            return CLI_OK;
    }
    return cli_usage("--arrivals %s: give poisson:R, R requests per second from %g to %g, or all", arg,
                     (double)MIN_RATE, (double)MAX_RATE);
}

/* A-B, or N alone: A and B are the same. returns: whether text is that, from least to MAX_LENGTH. */
static bool read_range(const char *text, uint32_t least, uint32_t *low_out, uint32_t *high_out)
{
    char low[32];
    const char *dash = strchr(text, '-');
    size_t n = dash ? (size_t)(dash - text) : strlen(text);
    uint64_t a, b;

    if (n >= sizeof low)
        return false;
    snprintf(low, sizeof low, "%.*s", (int)n, text);
    if (!cli_number(low, least, MAX_LENGTH, &a) || !cli_number(dash ? dash + 1 : low, a, MAX_LENGTH, &b))
        return false;
    *low_out = (uint32_t)a;
    *high_out = (uint32_t)b;
    return true;
}

int serve_read_lengths(const char *arg, struct serve_options *o)
{
    static const char *const names[] = {"fixed:", "uniform:", "loguniform:"};

    o->lengths_text = arg;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        const char *range = arg + strlen(names[i]);

        if (strncmp(arg, names[i], strlen(names[i])) != 0)
            continue;
        o->lengths = (enum serve_lengths)i;
        if ((strchr(range, '-') != NULL) == (o->lengths != SERVE_FIXED) &&
            read_range(range, 1, &o->min_length, &o->max_length))
            return CLI_OK;
    }
    return cli_usage(
        "--lengths %s: give uniform:A-B, loguniform:A-B or fixed:N, whole numbers from 1 to %u, A not more "
        "than B",
        arg, MAX_LENGTH);
}

int serve_read_outputs(const char *arg, struct serve_options *o)
{
    if (read_range(arg, 2, &o->min_outputs, &o->max_outputs))
        return CLI_OK;
    return cli_usage("--outputs %s: give N or A-B, whole numbers from 2 to %u, A not more than B", arg, MAX_LENGTH);
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
