/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv bench prefill: prefill of a model of a known shape with random weights, against the rate that the FC library
 * reaches on this machine for a matrix product of the model's own shape, measured in the same run, before and after.
 */
#include "bench.h"

#include <jansson.h>
#include <nearkv/model.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "progress.h"
#include "text.h"

struct options {
    const char *shape;
    enum nkv_dtype weights, kv;
    struct nkv_seq_options seq;
    uint32_t ctx_tokens, chunk_tokens, n_threads;
    bool json;
};

struct bench {
    struct options opt;
    struct nkv_kv_shape shape;
    struct nkv_model_info info;
    struct nkv_model *model;
    struct nkv_device *device;
    struct nkv_context *context;
    struct nkv_decoder *decoder;
    struct nkv_seq *seq;
    int32_t *tokens;
    double seconds, gflops[2]; /* of the library, before and after */
};

static const char usage[] =
    "usage: nearkv bench prefill [options]\n"
    "Prefill of a model with random weights, against the matrix product rate of this machine's FC library.\n"
    "\n"
    "  --shape NAME      llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, needle-256 or tiny-256 (llama-3.2-1b)\n"
    "  --ctx N           tokens to prefill (2048)\n"
    "  --chunk N         tokens per chunk (512)\n"
    "  --weights TYPE    f32, f16, bf16 or q8_0 (bf16)\n"
    "  --kv TYPE         f32, f16, bf16 or q8_0 (bf16)\n"
    "  --prefill KIND    dense or sparse (dense)\n"
    "  --budget TOKENS   attended per block of queries when sparse (2048)\n"
    "  --threads N       threads (one per CPU)\n"
    "  --json            one JSON object on stdout\n";

enum { SHAPE = 256, CTX, CHUNK, WEIGHTS, KV, PREFILL, BUDGET, THREADS, JSON, HELP };

static const struct option long_options[] = {
    {"shape", required_argument, NULL, SHAPE},
    {"ctx", required_argument, NULL, CTX},
    {"chunk", required_argument, NULL, CHUNK},
    {"weights", required_argument, NULL, WEIGHTS},
    {"kv", required_argument, NULL, KV},
    {"prefill", required_argument, NULL, PREFILL},
    {"budget", required_argument, NULL, BUDGET},
    {"threads", required_argument, NULL, THREADS},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static const struct arguments arguments = {.usage = usage, .options = long_options, .help = HELP};

static int read_flag(int flag, const char *arg, void *read_arg)
{
    struct options *o = read_arg;
    int status = 0;

    switch (flag) {
    case SHAPE:
        o->shape = arg;
        break;
    case CTX:
        return cli_u32("--ctx", arg, 1, 1u << 28, &o->ctx_tokens);
    case CHUNK:
        return cli_u32("--chunk", arg, 1, 4096, &o->chunk_tokens);
    case BUDGET:
        return cli_u32("--budget", arg, 1, 1u << 28, &o->seq.budget_tokens);
    case THREADS:
        return cli_u32("--threads", arg, 1, 1024, &o->n_threads);
    case WEIGHTS:
        status = nkv_dtype_parse(arg, &o->weights);
        break;
    case KV:
        status = nkv_dtype_parse(arg, &o->kv);
        break;
    case PREFILL:
        if (strcmp(arg, "dense") != 0 && strcmp(arg, "sparse") != 0)
            return cli_usage("--prefill %s: use dense or sparse", arg);
        o->seq.sparse_prefill = strcmp(arg, "sparse") == 0;
        break;
    case JSON:
        o->json = true;
        break;
    default:
        return cli_usage("see nearkv bench prefill --help for the options");
    }
    return status < 0 ? cli_usage("%s", nkv_last_error()) : CLI_OK;
}

/* Of the cache, and of the operands of the library's product, which is measured before and after. */
static int own_bytes(void *arg, const struct nkv_kv_shape *shape, const struct nkv_model_info *info,
                     uint64_t *bytes_out)
{
    const struct bench *b = arg;
    uint64_t m = b->opt.chunk_tokens, n = info->n_ff, k = info->n_embd;
    struct nkv_kv_estimate estimate;

    if (nkv_kv_estimate(shape, b->opt.ctx_tokens, &estimate) < 0)
        return cli_usage("%s", nkv_last_error());
    *bytes_out = estimate.total_bytes + b->opt.ctx_tokens * sizeof *b->tokens + (m * k + n * k + m * n) * sizeof(float);
    return CLI_OK;
}

static int bench_open(struct bench *b)
{
    struct nkv_device_config device = {.size = sizeof device, .n_threads = b->opt.n_threads};
    struct nkv_context_options context = {.size = sizeof context, .n_devices = 1, .max_batch = 1};
    struct nkv_decoder_options decoder = {
        .size = sizeof decoder, .n_threads = b->opt.n_threads, .max_batch = 1, .chunk_tokens = b->opt.chunk_tokens};
    struct estimate program = {
        .shape = {.page_tokens = 32, .dtype = b->opt.kv},
        .chunk_tokens = b->opt.chunk_tokens,
        .n_devices = 1,
        .n_threads = b->opt.n_threads,
    };
    struct nkv_kv_estimate estimate;
    int rc = bench_open_model(b->opt.shape, b->opt.weights, &decoder, &program, own_bytes, b, &b->model), status;

    if (rc != CLI_OK)
        return rc;
    b->opt.seq.max_tokens = b->opt.ctx_tokens;
    nkv_model_info(b->model, &b->info);
    b->shape = program.shape;
    if (nkv_kv_estimate(&b->shape, b->opt.ctx_tokens, &estimate) < 0)
        return cli_fail("%s", nkv_last_error());
    device.shape = context.shape = b->shape;
    device.capacity_bytes = estimate.total_bytes;
    context.devices = &b->device;
    context.max_tokens = b->opt.chunk_tokens;
    if (nkv_device_open("cpu", &device, &b->device) < 0 || nkv_context_open(&context, &b->context) < 0)
        return cli_fail("%s", nkv_last_error());
    status = nkv_seq_open(b->context, &b->opt.seq, &b->seq);
    if (status < 0)
        return cli_refused(NULL, status);
    if (nkv_decoder_open(b->model, b->context, &decoder, &b->decoder) < 0)
        return cli_fail("%s", nkv_last_error());
    b->tokens = malloc(b->opt.ctx_tokens * sizeof *b->tokens);
    if (!b->tokens)
        return cli_fail("out of memory");
    for (uint32_t i = 0; i < b->opt.ctx_tokens; i++)
        b->tokens[i] = (int32_t)(i * 7919u % b->info.n_vocab);
    return CLI_OK;
}

static void bench_close(struct bench *b)
{
    nkv_decoder_close(b->decoder);
    nkv_context_close(b->context);
    nkv_device_close(b->device);
    nkv_model_close(b->model);
    free(b->tokens);
}

static int rate(struct bench *b, double *gflops_out)
{
    if (nkv_matmul_rate(b->opt.weights, b->opt.n_threads, b->opt.chunk_tokens, b->info.n_ff, b->info.n_embd,
                        gflops_out) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

static int measure(struct bench *b)
{
    struct progress progress;
    uint64_t start_ns;
    int status;

    if (rate(b, &b->gflops[0]) != CLI_OK)
        return CLI_FAILED;
    progress_catch_interrupt();
    progress_start(&progress, "prefill", "tokens");
    start_ns = progress_now_ns();
    status = nkv_prefill(b->decoder, b->seq, b->tokens, b->opt.ctx_tokens, NULL, progress_update, &progress);
    b->seconds = (double)(progress_now_ns() - start_ns) * 1e-9;
    progress_end(&progress);
    if (status < 0)
        return status == NKV_ECANCELED ? bench_check_interrupt() : cli_fail("%s", nkv_last_error());
    return rate(b, &b->gflops[1]) == CLI_OK ? bench_check_interrupt() : CLI_FAILED;
}

/* Multiply-adds count 2. Dense layers without the output matrix, which runs for the last token only; attention of all
 * pairs (dense) or of the budget. */
static void count_flops(const struct bench *b, double *dense_out, double *attention_out)
{
    const struct nkv_model_info *m = &b->info;
    double n = b->opt.ctx_tokens, seen = (n + 1) / 2;
    double qkvo = 2.0 * m->n_embd * m->head_dim * (2.0 * m->n_heads + 2.0 * m->n_kv_heads);
    double ffn = 2.0 * 3.0 * m->n_embd * m->n_ff;

    if (b->opt.seq.sparse_prefill && seen > b->opt.seq.budget_tokens)
        seen = b->opt.seq.budget_tokens;
    *dense_out = n * m->n_layers * (qkvo + ffn);
    *attention_out = n * m->n_layers * 4.0 * m->n_heads * m->head_dim * seen;
}

static int print(const struct bench *b)
{
    double dense, attention, library = (b->gflops[0] + b->gflops[1]) / 2, ours;
    json_t *object;

    count_flops(b, &dense, &attention);
    ours = (dense + attention) / b->seconds * 1e-9;
    if (!b->opt.json) {
        printf("%s, weights %s, KV %s, %s prefill of %u tokens in chunks of %u, %u threads\n", b->opt.shape,
               nkv_dtype_name(b->opt.weights), nkv_dtype_name(b->opt.kv),
               b->opt.seq.sparse_prefill ? "sparse" : "dense", b->opt.ctx_tokens, b->opt.chunk_tokens,
               b->opt.n_threads);
        printf("time          %8.2f s, %.1f tokens/s\n", b->seconds, b->opt.ctx_tokens / b->seconds);
        printf("rate          %8.1f GFLOP/s (%.1f %% of the work is attention)\n", ours,
               100 * attention / (dense + attention));
        printf("FC library    %8.1f GFLOP/s (%u x %u x %u)\n", library, b->opt.chunk_tokens, b->info.n_ff,
               b->info.n_embd);
        printf("ratio         %8.2f\n", ours / library);
        return CLI_OK;
    }
    object = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "schema",
                       "nearkv.bench.prefill/1", "shape", b->opt.shape, "weights", nkv_dtype_name(b->opt.weights), "kv",
                       nkv_dtype_name(b->opt.kv), "prefill", b->opt.seq.sparse_prefill ? "sparse" : "dense", "ctx",
                       (json_int_t)b->opt.ctx_tokens, "chunk_tokens", (json_int_t)b->opt.chunk_tokens, "threads",
                       (json_int_t)b->opt.n_threads, "seconds", b->seconds, "tokens_per_s",
                       b->opt.ctx_tokens / b->seconds, "gflop_per_s", ours, "attention_share",
                       attention / (dense + attention), "library_gflop_per_s", library, "ratio", ours / library);
    return text_print_json(object);
}

int bench_prefill_main(int argc, char **argv)
{
    struct bench b = {.opt = {.shape = "llama-3.2-1b",
                              .weights = NKV_BF16,
                              .kv = NKV_BF16,
                              .ctx_tokens = 2048,
                              .chunk_tokens = 512,
                              .n_threads = cli_cpus()}};
    int rc;

    nkv_seq_options_init(&b.opt.seq);
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
