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

#define MAX_CONTEXTS    8u
#define BANDWIDTH_BYTES ((uint64_t)1 << 30)

struct options {
    const char *shape;
    enum nkv_dtype weights, kv;
    enum nkv_digest digest;
    struct nkv_seq_options seq;
    uint32_t ctx_tokens[MAX_CONTEXTS], n_ctx, page_tokens, n_threads, n_steps;
    bool json;
};

/* What one step of one length took, in ms. */
struct sample {
    double token, fc, select, attend, rest;
};

struct bench {
    struct options opt;
    struct nkv_kv_shape shape;
    struct nkv_model_info info;
    struct nkv_model *model;
    struct nkv_device *device, *compute;
    struct nkv_context *context;
    struct nkv_decoder *decoder;
    struct nkv_seq *seqs[MAX_CONTEXTS];
    struct sample *samples; /* [n_ctx][n_steps] */
    float *logits;
    double slice_gb_per_s[BENCH_SLICES], gb_per_s; /* read bandwidth, and the median of the slices */
};

static const char usage[] =
    "usage: nearkv bench decode [options]\n"
    "Token time of a model with random weights over a synthetic, filled cache.\n"
    "\n"
    "  --shape NAME       llama-3.2-1b, llama-3.2-3b, llama-3.1-8b or needle-256 (llama-3.2-1b)\n"
    "  --ctx N[,N...]     tokens in the cache; several lengths take turns step by step (4096,131072)\n"
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

enum { SHAPE = 256, CTX, WEIGHTS, KV, MODE, BUDGET, PAGE, DIGEST, SELECT, RESIDENT, STEPS, THREADS, JSON, HELP };

static const struct option long_options[] = {
    {"shape", required_argument, NULL, SHAPE},
    {"ctx", required_argument, NULL, CTX},
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
        status = nkv_dtype_parse(arg, &o->weights);
        break;
    case KV:
        status = nkv_dtype_parse(arg, &o->kv);
        break;
    case MODE:
        status = nkv_mode_parse(arg, &o->seq.mode);
        break;
    case DIGEST:
        status = nkv_digest_parse(arg, &o->digest);
        break;
    case SELECT:
        status = nkv_granularity_parse(arg, &o->seq.granularity);
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
        o->shape = arg;
        return CLI_OK;
    case CTX:
        return read_contexts(arg, o);
    case BUDGET:
        return cli_u32("--budget", arg, 1, 1u << 28, &o->seq.budget_tokens);
    case PAGE:
        return cli_u32("--page", arg, 1, NKV_MAX_PAGE_TOKENS, &o->page_tokens);
    case RESIDENT:
        return cli_u32("--resident", arg, 0, 1u << 28, &o->seq.resident_tokens);
    case STEPS:
        return cli_u32("--steps", arg, BENCH_SLICES, 100000, &o->n_steps);
    case THREADS:
        return cli_u32("--threads", arg, 1, 1024, &o->n_threads);
    case JSON:
        o->json = true;
        return CLI_OK;
    default:
        return read_name(flag, arg, o);
    }
}

/* Capacity that the sequences of all lengths need on the device and on the compute side. */
static int cache_bytes(const struct bench *b, const struct nkv_kv_shape *shape, uint64_t *device_bytes_out,
                       uint64_t *compute_bytes_out)
{
    *device_bytes_out = *compute_bytes_out = 0;
    for (uint32_t i = 0; i < b->opt.n_ctx; i++) {
        struct nkv_kv_estimate kv;
        struct nkv_seq_options seq = b->opt.seq;
        uint64_t compute_bytes;

        seq.max_tokens = b->opt.ctx_tokens[i] + b->opt.n_steps + 1;
        if (nkv_kv_estimate(shape, seq.max_tokens, &kv) < 0 || nkv_compute_estimate(shape, &seq, &compute_bytes) < 0)
            return cli_usage("%s", nkv_last_error());
        *device_bytes_out += kv.total_bytes;
        *compute_bytes_out += compute_bytes;
    }
    return CLI_OK;
}

/* Of the caches and of the buffer that the bandwidth is measured on. */
static int own_bytes(void *arg, const struct nkv_kv_shape *shape, const struct nkv_model_info *info,
                     uint64_t *bytes_out)
{
    uint64_t device_bytes, compute_bytes;
    int rc = cache_bytes(arg, shape, &device_bytes, &compute_bytes);

    (void)info;
    if (rc == CLI_OK)
        *bytes_out = device_bytes + compute_bytes + BANDWIDTH_BYTES;
    return rc;
}

static int open_devices(struct bench *b)
{
    struct nkv_device_config config = {.size = sizeof config, .shape = b->shape, .n_threads = b->opt.n_threads};
    uint64_t compute_bytes;
    int rc = cache_bytes(b, &b->shape, &config.capacity_bytes, &compute_bytes);

    if (rc != CLI_OK)
        return rc;
    if (nkv_device_open("cpu", &config, &b->device) < 0)
        return cli_fail("%s", nkv_last_error());
    config.capacity_bytes = compute_bytes;
    if (compute_bytes > 0 && nkv_device_open("cpu", &config, &b->compute) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

static int open_sequences(struct bench *b)
{
    struct bench_source source;
    int rc = bench_source_open(&b->shape, 1, &source) < 0 ? CLI_FAILED : CLI_OK;

    for (uint32_t i = 0; rc == CLI_OK && i < b->opt.n_ctx; i++) {
        struct nkv_seq_options seq = b->opt.seq;

        seq.max_tokens = b->opt.ctx_tokens[i] + b->opt.n_steps + 1;
        if (nkv_seq_open(b->context, &seq, &b->seqs[i]) < 0 ||
            bench_fill(b->context, b->seqs[i], &source, b->opt.ctx_tokens[i]) < 0)
            rc = cli_fail("%s", nkv_last_error());
    }
    bench_source_close(&source);
    return rc;
}

static int bench_open(struct bench *b)
{
    struct nkv_context_options context = {.size = sizeof context, .n_devices = 1, .max_batch = 1};
    struct nkv_decoder_options decoder = {.size = sizeof decoder, .n_threads = b->opt.n_threads, .max_batch = 1};
    struct estimate program = {
        .shape = {.page_tokens = b->opt.page_tokens, .dtype = b->opt.kv, .digest = b->opt.digest},
        .mode = b->opt.seq.mode,
        .budget_tokens = b->opt.seq.budget_tokens,
        .chunk_tokens = BENCH_FILL_TOKENS,
        .n_devices = 1,
        .n_threads = b->opt.n_threads,
    };
    int rc = bench_open_model(b->opt.shape, b->opt.weights, &decoder, &program, own_bytes, b, &b->model);

    if (rc != CLI_OK)
        return rc;
    nkv_model_info(b->model, &b->info);
    b->shape = program.shape;
    rc = open_devices(b);
    if (rc != CLI_OK)
        return rc;
    context.shape = b->shape;
    context.devices = &b->device;
    context.compute = b->compute;
    if (nkv_context_open(&context, &b->context) < 0 ||
        nkv_decoder_open(b->model, b->context, &decoder, &b->decoder) < 0)
        return cli_fail("%s", nkv_last_error());
    b->logits = malloc(b->info.n_vocab * sizeof(float));
    b->samples = calloc((size_t)b->opt.n_ctx * b->opt.n_steps, sizeof *b->samples);
    if (!b->logits || !b->samples)
        return cli_fail("out of memory");
    return open_sequences(b);
}

static void bench_close(struct bench *b)
{
    nkv_decoder_close(b->decoder);
    nkv_context_close(b->context);
    nkv_device_close(b->device);
    nkv_device_close(b->compute);
    nkv_model_close(b->model);
    free(b->logits);
    free(b->samples);
}

static int step(struct bench *b, uint32_t i, int32_t token, struct sample *sample_out)
{
    struct nkv_decode_times times;
    struct nkv_seq_stats stats;
    uint64_t start_ns = progress_now_ns();

    nkv_seq_stats_reset(b->seqs[i]);
    if (nkv_decode(b->decoder, &b->seqs[i], &token, 1, b->logits) < 0)
        return cli_fail("%s", nkv_last_error());
    if (nkv_seq_status(b->seqs[i]) < 0)
        return cli_fail("%s", nkv_seq_error(b->seqs[i]));
    sample_out->token = (double)(progress_now_ns() - start_ns) * 1e-6;
    nkv_decoder_times(b->decoder, &times);
    nkv_seq_stats(b->seqs[i], &stats);
    sample_out->fc = (double)times.fc_ns * 1e-6;
    sample_out->select = (double)stats.select_ns * 1e-6;
    sample_out->attend = (double)stats.attend_ns * 1e-6;
    sample_out->rest = sample_out->token - sample_out->fc - sample_out->select - sample_out->attend;
    return CLI_OK;
}

/* The steps of one slice, the lengths in turn, after a look at what the memory gives just now. */
static int measure_slice(struct bench *b, uint32_t slice)
{
    uint32_t begin = slice * b->opt.n_steps / BENCH_SLICES, end = (slice + 1) * b->opt.n_steps / BENCH_SLICES;

    if (nkv_read_bandwidth(BANDWIDTH_BYTES, b->opt.n_threads, 2, &b->slice_gb_per_s[slice]) < 0)
        return cli_fail("%s", nkv_last_error());
    for (uint32_t s = begin; s < end; s++)
        for (uint32_t i = 0; i < b->opt.n_ctx; i++)
            if (step(b, i, (int32_t)(s % b->info.n_vocab), &b->samples[(size_t)i * b->opt.n_steps + s]) != CLI_OK)
                return CLI_FAILED;
    return CLI_OK;
}

static int measure(struct bench *b)
{
    struct sample warm_up;
    double least;

    for (uint32_t i = 0; i < b->opt.n_ctx; i++)
        if (step(b, i, 0, &warm_up) != CLI_OK)
            return CLI_FAILED;
    for (uint32_t slice = 0; slice < BENCH_SLICES; slice++)
        if (measure_slice(b, slice) != CLI_OK)
            return CLI_FAILED;
    b->gb_per_s = bench_median(b->slice_gb_per_s, BENCH_SLICES, &least);
    return CLI_OK;
}

/* Share of the read bandwidth at which a step with dense layers of fc_ms streams the weights (an embedding that is not
 * also the output matrix is not read). */
static double weight_stream(const struct bench *b, double fc_ms)
{
    static const double element_bytes[NKV_DTYPE_COUNT] = {4, 2, 2, 34.0 / 32};
    double bytes = (double)b->info.weight_bytes;

    if (!b->info.tied_embeddings)
        bytes -= (double)b->info.n_vocab * b->info.n_embd * element_bytes[b->opt.weights];
    return bytes / (fc_ms * 1e6) / b->gb_per_s;
}

/* Medians of each part over the steps of length i. */
static int medians(const struct bench *b, uint32_t i, struct sample *out, double *min_token_out)
{
    uint32_t n = b->opt.n_steps;
    const struct sample *s = b->samples + (size_t)i * n;
    double *column = malloc(n * sizeof *column), least;
    double parts[5];

    if (!column)
        return cli_fail("out of memory");
    for (int part = 4; part >= 0; part--) {
        for (uint32_t k = 0; k < n; k++)
            memcpy(&column[k], (const char *)&s[k] + (size_t)part * sizeof(double), sizeof(double));
        parts[part] = bench_median(column, n, &least);
    }
    *min_token_out = least;
    *out = (struct sample){parts[0], parts[1], parts[2], parts[3], parts[4]};
    free(column);
    return CLI_OK;
}

static json_t *context_json(const struct bench *b, uint32_t ctx, const struct sample *m, double min_ms, double ratio)
{
    return json_pack("{s:I, s:{s:f, s:f, s:f, s:f, s:f, s:f}, s:f, s:f}", "ctx", (json_int_t)ctx, "ms", "median",
                     m->token, "min", min_ms, "fc", m->fc, "select", m->select, "attend", m->attend, "rest", m->rest,
                     "weight_stream_share", weight_stream(b, m->fc), "ratio_to_first", ratio);
}

static int print(const struct bench *b)
{
    json_t *rows = json_array(), *object;
    struct sample first = {0}, m = {0};
    double min_ms = 0;

    if (!b->opt.json)
        printf("%s, weights %s (%s), KV %s, mode %s, budget %u, page %u, %u threads, kernels %s, read bandwidth %.2f "
               "GB/s\n"
               "%10s %10s %10s %10s %10s %10s %10s %8s %8s\n",
               b->opt.shape, nkv_dtype_name(b->opt.weights), cli_bytes(b->info.weight_bytes), nkv_dtype_name(b->opt.kv),
               nkv_mode_name(b->opt.seq.mode), b->opt.seq.budget_tokens, b->opt.page_tokens, b->opt.n_threads,
               nkv_kernels_name(), b->gb_per_s, "tokens", "ms/token", "least", "dense", "select", "attend", "rest",
               "weights", "ratio");
    for (uint32_t i = 0; i < b->opt.n_ctx; i++) {
        if (medians(b, i, &m, &min_ms) != CLI_OK)
            return CLI_FAILED;
        if (i == 0)
            first = m;
        if (b->opt.json)
            json_array_append_new(rows, context_json(b, b->opt.ctx_tokens[i], &m, min_ms, m.token / first.token));
        else
            printf("%10u %10.2f %10.2f %10.2f %10.2f %10.2f %10.2f %6.0f %% %8.2f\n", b->opt.ctx_tokens[i], m.token,
                   min_ms, m.fc, m.select, m.attend, m.rest, 100 * weight_stream(b, m.fc), m.token / first.token);
    }
    if (!b->opt.json) {
        json_decref(rows);
        return CLI_OK;
    }
    object = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:f, s:I, s:o}", "schema",
                       "nearkv.bench.decode/1", "shape", b->opt.shape, "weights", nkv_dtype_name(b->opt.weights), "kv",
                       nkv_dtype_name(b->opt.kv), "mode", nkv_mode_name(b->opt.seq.mode), "budget_tokens",
                       (json_int_t)b->opt.seq.budget_tokens, "threads", (json_int_t)b->opt.n_threads, "steps",
                       (json_int_t)b->opt.n_steps, "kernels", nkv_kernels_name(), "read_bandwidth_gb_s", b->gb_per_s,
                       "weight_bytes", (json_int_t)b->info.weight_bytes, "contexts", rows);
    return text_print_json(object);
}

int bench_decode_main(int argc, char **argv)
{
    struct bench b = {.opt = {.shape = "llama-3.2-1b",
                              .weights = NKV_BF16,
                              .kv = NKV_Q8_0,
                              .ctx_tokens = {4096, 131072},
                              .n_ctx = 2,
                              .page_tokens = 32,
                              .n_steps = 20,
                              .n_threads = cli_cpus()}};
    int rc;

    nkv_seq_options_init(&b.opt.seq);
    rc = bench_read_options(argc, argv, usage, long_options, HELP, read_flag, &b.opt);
    if (rc == CLI_OK)
        rc = bench_open(&b);
    if (rc == CLI_OK)
        rc = measure(&b);
    if (rc == CLI_OK)
        rc = print(&b);
    bench_close(&b);
    return rc < 0 ? CLI_OK : rc;
}
