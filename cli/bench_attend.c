/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv bench attend: one layer's decode attention of one sequence on a synthetic cache, against the floor: the bytes
 * that must be read over the read bandwidth of this machine, measured between the slices of the timed steps, so that
 * both see the same neighbours.
 */
#include "bench.h"

#include <jansson.h>
#include <nearkv/device.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli.h"
#include "parallel.h"
#include "progress.h"
#include "text.h"

#define BANDWIDTH_BYTES ((uint64_t)1 << 30)

struct options {
    struct nkv_kv_shape shape;
    enum nkv_mode mode;
    enum nkv_granularity granularity;
    uint32_t ctx_tokens, n_pages, n_threads, n_steps;
    const char *device;
    bool fresh_queries, json;
};

struct bench {
    struct options opt;
    struct bench_source source;
    struct nkv_device *device, *compute;
    struct nkv_context *context;
    struct nkv_seq *seq;
    float *q, *k, *v, *out;
    double *ms, gb_per_s[BENCH_SLICES];
};

static const char usage[] =
    "usage: nearkv bench attend [options]\n"
    "Times one layer's decode attention of one sequence on a synthetic cache, and compares it with the floor:\n"
    "the bytes that must be read over the read bandwidth of this machine, measured in the same run.\n"
    "\n"
    "  --heads N           query heads (32)\n"
    "  --kv-heads N        KV heads (8)\n"
    "  --dim N             head dimension (128)\n"
    "  --ctx N             tokens in the cache (131072)\n"
    "  --kv TYPE           f32, f16, bf16 or q8_0 (f16)\n"
    "  --page N            tokens per page (32)\n"
    "  --pages N           pages attended per step in the sparse modes (64)\n"
    "  --mode MODE         full, recall, pnm or png (full)\n"
    "  --digest KIND       minmax or cuboid-mean (minmax)\n"
    "  --select UNIT       kv-head or layer (kv-head)\n"
    "  --fresh-queries     a new random query each step (else one query: what it selects stays in the CPU's cache)\n"
    "  --steps N           timed steps (50)\n"
    "  --threads N         threads of the device (one per CPU)\n"
    "  --device SPEC       the PNM device: cpu, unix:PATH, under mpirun mpi:RANK (cpu)\n"
    "  --json              one JSON object on stdout\n";

enum {
    HEADS = 256,
    KV_HEADS,
    DIM,
    CTX,
    KV,
    PAGE,
    PAGES,
    MODE,
    DIGEST,
    SELECT,
    FRESH,
    STEPS,
    THREADS,
    DEVICE,
    JSON,
    HELP
};

static const struct option long_options[] = {
    {"heads", required_argument, NULL, HEADS},
    {"kv-heads", required_argument, NULL, KV_HEADS},
    {"dim", required_argument, NULL, DIM},
    {"ctx", required_argument, NULL, CTX},
    {"kv", required_argument, NULL, KV},
    {"page", required_argument, NULL, PAGE},
    {"pages", required_argument, NULL, PAGES},
    {"mode", required_argument, NULL, MODE},
    {"digest", required_argument, NULL, DIGEST},
    {"select", required_argument, NULL, SELECT},
    {"fresh-queries", no_argument, NULL, FRESH},
    {"steps", required_argument, NULL, STEPS},
    {"threads", required_argument, NULL, THREADS},
    {"device", required_argument, NULL, DEVICE | ARGUMENTS_ONCE},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static const struct arguments arguments = {.usage = usage, .options = long_options, .help = HELP};

static int read_flag(int flag, const char *arg, void *read_arg)
{
    struct options *o = read_arg;
    struct nkv_kv_shape *shape = &o->shape;
    int status = 0;

    switch (flag) {
    case HEADS:
        return cli_u32("--heads", arg, 1, NKV_MAX_HEADS, &shape->n_heads);
    case KV_HEADS:
        return cli_u32("--kv-heads", arg, 1, NKV_MAX_HEADS, &shape->n_kv_heads);
    case DIM:
        return cli_u32("--dim", arg, 8, NKV_MAX_HEAD_DIM, &shape->head_dim);
    case CTX:
        return cli_u32("--ctx", arg, 1, 1u << 30, &o->ctx_tokens);
    case PAGE:
        return cli_u32("--page", arg, 1, NKV_MAX_PAGE_TOKENS, &shape->page_tokens);
    case PAGES:
        return cli_u32("--pages", arg, 4, 65535, &o->n_pages);
    case STEPS:
        return cli_u32("--steps", arg, BENCH_SLICES, 100000, &o->n_steps);
    case THREADS:
        return cli_u32("--threads", arg, 1, 1024, &o->n_threads);
    case KV:
        status = nkv_dtype_parse(arg, &shape->dtype);
        break;
    case MODE:
        status = nkv_mode_parse(arg, &o->mode);
        break;
    case DIGEST:
        status = nkv_digest_parse(arg, &shape->digest);
        break;
    case SELECT:
        status = nkv_granularity_parse(arg, &o->granularity);
        break;
    case DEVICE:
        o->device = arg;
        break;
    case FRESH:
        o->fresh_queries = true;
        break;
    case JSON:
        o->json = true;
        break;
    default:
        return cli_usage("see nearkv bench attend --help for the options");
    }
    return status < 0 ? cli_usage("%s", nkv_last_error()) : CLI_OK;
}

/* returns: CLI_OK, CLI_USAGE, or -1: help was printed. */
static int read_options(int argc, char **argv, struct options *o)
{
    int rc = bench_read_options(argc, argv, &arguments, read_flag, o);

    if (rc != CLI_OK)
        return rc;
    return nkv_kv_shape_check(&o->shape) < 0 ? cli_usage("%s", nkv_last_error()) : CLI_OK;
}

/* What one step must read: K and V of what it attends to and, in the sparse modes, every digest. */
static uint64_t floor_bytes(const struct options *o)
{
    const struct nkv_kv_shape *shape = &o->shape;
    uint64_t token = nkv_page_bytes(shape, shape->n_kv_heads) / shape->page_tokens;
    uint64_t pages = (o->ctx_tokens + shape->page_tokens - 1) / shape->page_tokens;

    if (o->mode == NKV_MODE_FULL || pages <= o->n_pages)
        return token * o->ctx_tokens;
    return pages * shape->n_kv_heads * nkv_digest_bytes(shape) + (uint64_t)o->n_pages * shape->page_tokens * token;
}

static int open_devices(struct bench *b, const struct nkv_seq_options *seq_options)
{
    struct nkv_kv_estimate estimate;
    struct nkv_device_config config = {.size = sizeof config, .shape = b->opt.shape, .n_threads = b->opt.n_threads};
    struct estimate program = {
        .shape = b->opt.shape,
        .mode = b->opt.mode,
        .budget_tokens = seq_options->budget_tokens,
        .chunk_tokens = BENCH_FILL_TOKENS,
        .n_devices = 1,
        .n_threads = b->opt.n_threads,
    };
    uint64_t compute_bytes, device_bytes;
    int status;

    if (nkv_kv_estimate(&b->opt.shape, seq_options->max_tokens, &estimate) < 0 ||
        nkv_compute_estimate(&b->opt.shape, seq_options, &compute_bytes) < 0)
        return cli_fail("%s", nkv_last_error());
    device_bytes = cli_is_remote(b->opt.device) ? 0 : estimate.total_bytes;
    if (cli_check_memory("the synthetic cache",
                         device_bytes + compute_bytes + BANDWIDTH_BYTES + estimate_program_bytes(&program)) != CLI_OK)
        return CLI_FAILED;
    config.capacity_bytes = estimate.total_bytes;
    status = nkv_device_open(b->opt.device, &config, &b->device);
    if (status < 0)
        return cli_refused("--device", status);
    config.capacity_bytes = compute_bytes;
    if (compute_bytes > 0 && nkv_device_open("cpu", &config, &b->compute) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

static int bench_open(struct bench *b)
{
    const struct nkv_kv_shape *shape = &b->opt.shape;
    struct nkv_context_options context = {.size = sizeof context, .shape = *shape, .n_devices = 1, .max_batch = 1};
    struct nkv_seq_options seq;
    size_t q_floats = (size_t)shape->n_heads * shape->head_dim, kv_floats = (size_t)shape->n_kv_heads * shape->head_dim;
    int rc;

    nkv_seq_options_init(&seq);
    seq.max_tokens = b->opt.ctx_tokens + b->opt.n_steps + 1;
    seq.mode = b->opt.mode;
    seq.granularity = b->opt.granularity;
    seq.budget_tokens = b->opt.n_pages * shape->page_tokens;
    rc = open_devices(b, &seq);
    if (rc != CLI_OK)
        return rc;
    context.devices = &b->device;
    context.compute = b->compute;
    if (nkv_context_open(&context, &b->context) < 0)
        return cli_fail("%s", nkv_last_error());
    if (nkv_seq_can_fit(b->context, &seq) < 0)
        return cli_usage("--ctx %u: %s", b->opt.ctx_tokens, nkv_last_error());
    if (nkv_seq_open(b->context, &seq, &b->seq) < 0)
        return cli_fail("%s", nkv_last_error());
    b->q = malloc(q_floats * sizeof(float));
    b->out = malloc(q_floats * sizeof(float));
    b->k = malloc(kv_floats * sizeof(float));
    b->v = malloc(kv_floats * sizeof(float));
    b->ms = malloc(b->opt.n_steps * sizeof(double));
    if (!b->q || !b->out || !b->k || !b->v || !b->ms)
        return cli_fail("out of memory");
    if (bench_source_open(shape, 1, &b->source) < 0)
        return CLI_FAILED;
    return bench_fill(b->context, b->seq, &b->source, b->opt.ctx_tokens);
}

static void bench_close(struct bench *b)
{
    nkv_context_close(b->context);
    nkv_device_close(b->device);
    nkv_device_close(b->compute);
    bench_source_close(&b->source);
    free(b->q);
    free(b->k);
    free(b->v);
    free(b->out);
    free(b->ms);
}

static int step(struct bench *b, bool new_query, double *ms_out)
{
    struct nkv_attend_item item = {.seq = b->seq, .n_tokens = 1, .q = b->q, .k = b->k, .v = b->v, .out = b->out};
    struct nkv_ticket *ticket;
    uint64_t start_ns;

    if (bench_check_interrupt() != CLI_OK)
        return CLI_FAILED;
    bench_source_kv(&b->source, nkv_seq_length(b->seq), 1, b->k, b->v);
    if (new_query)
        bench_source_query(&b->source, b->q);
    start_ns = progress_now_ns();
    if (nkv_attend_begin(b->context, 0, &item, 1, &ticket) < 0 || nkv_attend_end(ticket) < 0)
        return cli_fail("%s", nkv_last_error());
    *ms_out = (double)(progress_now_ns() - start_ns) * 1e-6;
    if (nkv_step_end(b->context, &item, 1) < 0)
        return cli_fail("%s", nkv_last_error());
    return nkv_seq_status(b->seq) < 0 ? cli_fail("%s", nkv_seq_error(b->seq)) : CLI_OK;
}

static int measure(struct bench *b)
{
    uint32_t done = 0;
    double warm_up;

    if (step(b, true, &warm_up) != CLI_OK)
        return CLI_FAILED;
    nkv_seq_stats_reset(b->seq);
    for (uint32_t slice = 0; slice < BENCH_SLICES; slice++) {
        uint32_t end = (slice + 1) * b->opt.n_steps / BENCH_SLICES;

        if (nkv_read_bandwidth(BANDWIDTH_BYTES, b->opt.n_threads, 2, &b->gb_per_s[slice]) < 0)
            return cli_fail("%s", nkv_last_error());
        for (; done < end; done++)
            if (step(b, b->opt.fresh_queries, &b->ms[done]) != CLI_OK)
                return CLI_FAILED;
    }
    return CLI_OK;
}

static double mean_ms(const struct bench *b)
{
    double sum = 0;

    for (uint32_t i = 0; i < b->opt.n_steps; i++)
        sum += b->ms[i];
    return sum / b->opt.n_steps;
}

static void print_text(const struct bench *b, double min_ms, double median_ms, double gb_per_s, double floor_ms)
{
    struct nkv_seq_stats stats;
    const struct nkv_kv_shape *shape = &b->opt.shape;

    nkv_seq_stats(b->seq, &stats);
    printf("%s, %u tokens, %u:%u heads of %u, %s, page %u, kernels %s, %u threads\n", nkv_mode_name(b->opt.mode),
           b->opt.ctx_tokens, shape->n_heads, shape->n_kv_heads, shape->head_dim, nkv_dtype_name(shape->dtype),
           shape->page_tokens, nkv_kernels_name(), b->opt.n_threads);
    printf("time            %8.3f ms median, %.3f ms mean, %.3f ms least of %u steps\n", median_ms, mean_ms(b), min_ms,
           b->opt.n_steps);
    printf("read bandwidth  %8.2f GB/s\n", gb_per_s);
    printf("floor           %8.3f ms (%s)\n", floor_ms, cli_bytes(floor_bytes(&b->opt)));
    printf("ratio to floor  %8.2f\n", median_ms / floor_ms);
    printf("of the mean     %8.3f ms select, %.3f ms attend, %.3f ms append%s\n",
           (double)stats.select_ns * 1e-6 / b->opt.n_steps, (double)stats.attend_ns * 1e-6 / b->opt.n_steps,
           (double)stats.append_ns * 1e-6 / b->opt.n_steps,
           b->compute ? " (device and compute side added up: they work at the same time)" : "");
}

static int print_json(const struct bench *b, double min_ms, double median_ms, double gb_per_s, double floor_ms)
{
    const struct nkv_kv_shape *shape = &b->opt.shape;
    struct nkv_seq_stats stats;
    json_t *object;

    nkv_seq_stats(b->seq, &stats);
    object = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:I, s:I, s:s, s:s, s:b, s:s, s:s, s:I, s:I, s:{s:f, s:f, s:f, s:f, s:f, "
        "s:f}, s:f, s:I, s:f, s:f}",
        "schema", "nearkv.bench.attend/1", "mode", nkv_mode_name(b->opt.mode), "ctx", (json_int_t)b->opt.ctx_tokens,
        "heads", (json_int_t)shape->n_heads, "kv_heads", (json_int_t)shape->n_kv_heads, "dim",
        (json_int_t)shape->head_dim, "kv", nkv_dtype_name(shape->dtype), "page_tokens", (json_int_t)shape->page_tokens,
        "pages", (json_int_t)b->opt.n_pages, "digest", nkv_digest_name(shape->digest), "select",
        nkv_granularity_name(b->opt.granularity), "fresh_queries", (int)b->opt.fresh_queries, "kernels",
        nkv_kernels_name(), "device", b->opt.device, "threads", (json_int_t)b->opt.n_threads, "steps",
        (json_int_t)b->opt.n_steps, "ms", "min", min_ms, "median", median_ms, "mean", mean_ms(b), "select",
        (double)stats.select_ns * 1e-6 / b->opt.n_steps, "attend", (double)stats.attend_ns * 1e-6 / b->opt.n_steps,
        "append", (double)stats.append_ns * 1e-6 / b->opt.n_steps, "read_bandwidth_gb_s", gb_per_s, "floor_bytes",
        (json_int_t)floor_bytes(&b->opt), "floor_ms", floor_ms, "ratio_to_floor", median_ms / floor_ms);

    return text_print_json(object);
}

int bench_attend_main(int argc, char **argv)
{
    struct bench b = {
        .opt = {
            .shape =
                {.n_layers = 1, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128, .page_tokens = 32, .dtype = NKV_F16},
            .granularity = NKV_SELECT_KV_HEAD,
            .device = "cpu",
            .ctx_tokens = 131072,
            .n_pages = 64,
            .n_steps = 50,
            .n_threads = cli_cpus()}};
    double min_ms, median_ms, min_gb, gb_per_s, floor_ms;
    int rc = read_options(argc, argv, &b.opt);

    if (rc == CLI_OK) {
        parallel_tell_binding(b.opt.n_threads);
        progress_catch_interrupt();
        rc = bench_open(&b);
    }
    if (rc == CLI_OK)
        rc = measure(&b);
    if (rc == CLI_OK) {
        median_ms = bench_median(b.ms, b.opt.n_steps, &min_ms);
        gb_per_s = bench_median(b.gb_per_s, BENCH_SLICES, &min_gb);
        floor_ms = (double)floor_bytes(&b.opt) / gb_per_s * 1e-6;
        if (b.opt.json)
            rc = print_json(&b, min_ms, median_ms, gb_per_s, floor_ms);
        else
            print_text(&b, min_ms, median_ms, gb_per_s, floor_ms);
    }
    bench_close(&b);
    return rc < 0 ? CLI_OK : rc;
}
