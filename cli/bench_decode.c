/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv bench decode: token time of a model of a known shape with random weights over synthetic caches of several
 * lengths, split into dense layers, selection, attention and the rest. The lengths take turns (one step each), so that
 * a noisy neighbour disturbs all alike and their ratio holds.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <jansson.h>
#include <nearkv/model.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "progress.h"
#include "text.h"

#define MAX_CONTEXTS BENCH_MAX_SEQS

struct options {
    struct bench_decoder_options decoder;
    uint32_t ctx_tokens[MAX_CONTEXTS], n_ctx, n_steps;
    bool json;
};

struct bench {
    struct options opt;
    struct bench_decoder decoder;
    struct bench_times *samples;                   /* [n_ctx][n_steps] */
    double slice_gb_per_s[BENCH_SLICES], gb_per_s; /* read bandwidth, and the median of the slices */
};

static const char usage[] =
    "usage: nearkv bench decode [options]\n"
    "Token time of a model with random weights over a synthetic, filled cache.\n"
    "\n"
    "  --shape NAME       llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, needle-256 or tiny-256 (llama-3.2-1b)\n"
    "  --ctx N[,N...]     tokens in the cache; several lengths take turns step by step (4096,131072)\n"
    "  --batch N          sequences of each length, which step together (1)\n"
    "  --micro-batches N  1, or 2: the dense layers of one half of the batch under the attention of the other (1)\n"
    "  --weights TYPE     f32, f16, bf16 or q8_0 (bf16)\n"
    "  --kv TYPE          f32, f16, bf16 or q8_0 (q8_0)\n"
    "  --mode MODE        full, recall, pnm or png (pnm)\n"
    "  --budget TOKENS    attended per step in the sparse modes (2048)\n"
    "  --page TOKENS      tokens per page (32)\n"
    "  --digest KIND      minmax or cuboid-mean (minmax)\n"
    "  --select UNIT      layer or kv-head (layer)\n"
    "  --resident TOKENS  copies per layer on the compute side (the mode's default)\n"
    "  --steps N          timed steps of each length, at least 5 (20)\n"
    "  --threads N        threads (one per CPU)\n"
    "  --json             one JSON object on stdout\n";

enum {
    SHAPE = 256,
    CTX,
    BATCH,
    MICRO_BATCHES,
    WEIGHTS,
    KV,
    MODE,
    BUDGET,
    PAGE,
    DIGEST,
    SELECT,
    RESIDENT,
    STEPS,
    THREADS,
    JSON,
    HELP
};

static const struct option long_options[] = {
    {"shape", required_argument, NULL, SHAPE},
    {"ctx", required_argument, NULL, CTX},
    {"batch", required_argument, NULL, BATCH},
    {"micro-batches", required_argument, NULL, MICRO_BATCHES},
    {"weights", required_argument, NULL, WEIGHTS},
    {"kv", required_argument, NULL, KV},
    {"mode", required_argument, NULL, MODE},
    {"budget", required_argument, NULL, BUDGET},
    {"page", required_argument, NULL, PAGE},
    {"digest", required_argument, NULL, DIGEST},
    {"select", required_argument, NULL, SELECT},
    {"resident", required_argument, NULL, RESIDENT},
    {"steps", required_argument, NULL, STEPS},
    {"threads", required_argument, NULL, THREADS},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static const struct arguments arguments = {.usage = usage, .options = long_options, .help = HELP};

static int read_contexts(const char *arg, struct options *o)
{
    char copy[256], *rest = copy, *word;
    int rc;

    snprintf(copy, sizeof copy, "%s", arg);
    for (o->n_ctx = 0; (word = strsep(&rest, ",")) != NULL; o->n_ctx++) {
        if (o->n_ctx == MAX_CONTEXTS)
            return cli_usage("--ctx %s: at most %u lengths", arg, MAX_CONTEXTS);
        rc = cli_u32("--ctx", word, 1, 1u << 28, &o->ctx_tokens[o->n_ctx]);
        if (rc != CLI_OK)
            return rc;
    }
    return CLI_OK;
}

static int read_name(int flag, const char *arg, struct options *o)
{
    int status = 0;

    switch (flag) {
    case WEIGHTS:
        status = nkv_dtype_parse(arg, &o->decoder.weights);
        break;
    case KV:
        status = nkv_dtype_parse(arg, &o->decoder.kv);
        break;
    case MODE:
        status = nkv_mode_parse(arg, &o->decoder.seq.mode);
        break;
    case DIGEST:
        status = nkv_digest_parse(arg, &o->decoder.digest);
        break;
    case SELECT:
        status = nkv_granularity_parse(arg, &o->decoder.seq.granularity);
        break;
    default:
        return cli_usage("see nearkv bench decode --help for the options");
    }
    return status < 0 ? cli_usage("%s", nkv_last_error()) : CLI_OK;
}

static int read_flag(int flag, const char *arg, void *read_arg)
{
    struct options *o = read_arg;
    switch (flag) {
    case SHAPE:
        o->decoder.shape = arg;
        return CLI_OK;
    case CTX:
        return read_contexts(arg, o);
    case BATCH:
        return cli_u32("--batch", arg, 1, BENCH_MAX_BATCH, &o->decoder.batch);
    case MICRO_BATCHES:
        return cli_u32("--micro-batches", arg, 1, 2, &o->decoder.n_micro_batches);
    case BUDGET:
        return cli_u32("--budget", arg, 1, 1u << 28, &o->decoder.seq.budget_tokens);
    case PAGE:
        return cli_u32("--page", arg, 1, NKV_MAX_PAGE_TOKENS, &o->decoder.page_tokens);
    case RESIDENT:
        return cli_u32("--resident", arg, 0, 1u << 28, &o->decoder.seq.resident_tokens);
    case STEPS:
        return cli_u32("--steps", arg, BENCH_SLICES, 100000, &o->n_steps);
    case THREADS:
        return cli_u32("--threads", arg, 1, 1024, &o->decoder.n_threads);
    case JSON:
        o->json = true;
        return CLI_OK;
    default:
        return read_name(flag, arg, o);
    }
}

static int bench_open(struct bench *b)
{
    int rc;

    b->opt.decoder.n_seqs = b->opt.n_ctx;
    for (uint32_t i = 0; i < b->opt.n_ctx; i++)
        b->opt.decoder.max_tokens[i] = b->opt.ctx_tokens[i] + b->opt.n_steps + 1;
    rc = bench_decoder_open(&b->opt.decoder, &b->decoder);
    progress_catch_interrupt(); /* no sooner: making the weights does not look */
    for (uint32_t i = 0; rc == CLI_OK && i < b->opt.n_ctx; i++)
        rc = bench_decoder_fill(&b->decoder, i, b->opt.ctx_tokens[i]);
    if (rc != CLI_OK)
        return rc;
    b->samples = calloc((size_t)b->opt.n_ctx * b->opt.n_steps, sizeof *b->samples);
    return b->samples ? CLI_OK : cli_fail("out of memory");
}

static void bench_close(struct bench *b)
{
    bench_decoder_close(&b->decoder);
    free(b->samples);
}

/* The steps of one slice, the lengths in turn, after a look at what the memory gives just now. */
static int measure_slice(struct bench *b, uint32_t slice)
{
    uint32_t begin = slice * b->opt.n_steps / BENCH_SLICES, end = (slice + 1) * b->opt.n_steps / BENCH_SLICES;

    if (bench_decoder_bandwidth(&b->decoder, &b->slice_gb_per_s[slice]) != CLI_OK)
        return CLI_FAILED;
    for (uint32_t s = begin; s < end; s++)
        for (uint32_t i = 0; i < b->opt.n_ctx; i++)
            if (bench_decoder_step(&b->decoder, i, s, &b->samples[(size_t)i * b->opt.n_steps + s]) != CLI_OK)
                return CLI_FAILED;
    return CLI_OK;
}

static int measure(struct bench *b)
{
    struct bench_times warm_up;
    double least;

    for (uint32_t i = 0; i < b->opt.n_ctx; i++)
        if (bench_decoder_step(&b->decoder, i, 0, &warm_up) != CLI_OK)
            return CLI_FAILED;
    for (uint32_t slice = 0; slice < BENCH_SLICES; slice++)
        if (measure_slice(b, slice) != CLI_OK)
            return CLI_FAILED;
    b->gb_per_s = bench_median(b->slice_gb_per_s, BENCH_SLICES, &least);
    return CLI_OK;
}

/* Share of the read bandwidth at which a step with dense layers of fc_ms streams the weights. */
static double weight_stream(const struct bench *b, double fc_ms)
{
    return (double)bench_decoder_stream_bytes(&b->decoder) / (fc_ms * 1e6) / b->gb_per_s;
}

/* Medians of each part over the steps of length i. */
static int medians(const struct bench *b, uint32_t i, struct bench_times *out, double *min_token_out)
{
    return bench_times_median(b->samples + (size_t)i * b->opt.n_steps, b->opt.n_steps, out, min_token_out);
}

static json_t *context_json(const struct bench *b, uint32_t ctx, const struct bench_times *m, double min_ms,
                            double ratio)
{
    return json_pack("{s:I, s:{s:f, s:f, s:f, s:f, s:f, s:f, s:f}, s:f, s:f}", "ctx", (json_int_t)ctx, "ms", "median",
                     m->token, "min", min_ms, "fc", m->fc, "select", m->select, "attend", m->attend, "wait", m->wait,
                     "rest", m->rest, "weight_stream_share", weight_stream(b, m->fc), "ratio_to_first", ratio);
}

static int print(const struct bench *b)
{
    json_t *rows = json_array(), *object;
    struct bench_times first = {0}, m = {0};
    double min_ms = 0;

    if (!b->opt.json)
        printf("%s, weights %s (%s), KV %s, mode %s, budget %u, page %u, batch %u in %u micro-batch%s, %u threads, "
               "kernels %s, read bandwidth %.2f "
               "GB/s\n"
               "%10s %10s %10s %10s %10s %10s %10s %10s %8s %8s\n",
               b->opt.decoder.shape, nkv_dtype_name(b->opt.decoder.weights), cli_bytes(b->decoder.info.weight_bytes),
               nkv_dtype_name(b->opt.decoder.kv), nkv_mode_name(b->opt.decoder.seq.mode),
               b->opt.decoder.seq.budget_tokens, b->opt.decoder.page_tokens, b->opt.decoder.batch,
               b->opt.decoder.n_micro_batches, b->opt.decoder.n_micro_batches > 1 ? "es" : "", b->opt.decoder.n_threads,
               nkv_kernels_name(), b->gb_per_s, "tokens", "ms/step", "least", "dense", "select", "attend", "wait",
               "rest", "weights", "ratio");
    for (uint32_t i = 0; i < b->opt.n_ctx; i++) {
        if (medians(b, i, &m, &min_ms) != CLI_OK)
            return CLI_FAILED;
        if (i == 0)
            first = m;
        if (b->opt.json)
            json_array_append_new(rows, context_json(b, b->opt.ctx_tokens[i], &m, min_ms, m.token / first.token));
        else
            printf("%10u %10.2f %10.2f %10.2f %10.2f %10.2f %10.2f %10.2f %6.0f %% %8.2f\n", b->opt.ctx_tokens[i],
                   m.token, min_ms, m.fc, m.select, m.attend, m.wait, m.rest, 100 * weight_stream(b, m.fc),
                   m.token / first.token);
    }
    if (!b->opt.json) {
        json_decref(rows);
        return CLI_OK;
    }
    object = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:f, s:I, s:o}", "schema",
        "nearkv.bench.decode/1", "shape", b->opt.decoder.shape, "weights", nkv_dtype_name(b->opt.decoder.weights), "kv",
        nkv_dtype_name(b->opt.decoder.kv), "mode", nkv_mode_name(b->opt.decoder.seq.mode), "budget_tokens",
        (json_int_t)b->opt.decoder.seq.budget_tokens, "page_tokens", (json_int_t)b->opt.decoder.page_tokens, "batch",
        (json_int_t)b->opt.decoder.batch, "micro_batches", (json_int_t)b->opt.decoder.n_micro_batches, "threads",
        (json_int_t)b->opt.decoder.n_threads, "steps", (json_int_t)b->opt.n_steps, "kernels", nkv_kernels_name(),
        "read_bandwidth_gb_s", b->gb_per_s, "weight_bytes", (json_int_t)b->decoder.info.weight_bytes, "contexts", rows);
    return text_print_json(object);
}

int bench_decode_main(int argc, char **argv)
{
    struct bench b = {.opt = {.decoder = {.shape = "llama-3.2-1b",
                                          .weights = NKV_BF16,
                                          .kv = NKV_Q8_0,
                                          .page_tokens = 32,
                                          .batch = 1,
                                          .n_micro_batches = 1,
                                          .n_threads = cli_cpus()},
                              .ctx_tokens = {4096, 131072},
                              .n_ctx = 2,
                              .n_steps = 20}};
    int rc;

    nkv_seq_options_init(&b.opt.decoder.seq);
    rc = bench_read_options(argc, argv, &arguments, read_flag, &b.opt);
    if (rc == CLI_OK)
        rc = bench_open(&b);
    if (rc == CLI_OK)
        rc = measure(&b);
    if (rc == CLI_OK)
        rc = print(&b);
    bench_close(&b);
    return rc < 0 ? CLI_OK : rc;
}
