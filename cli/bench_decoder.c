/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model of a known shape with random weights that decodes over synthetic caches: what `bench decode` and
 * `sim validate` take their times from. Several lengths are open at once, each a batch of sequences, and take turns,
 * one step each, so that a noisy neighbour disturbs all alike; a batch can be filled further between steps.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "cli.h"
#include "progress.h"

#define BANDWIDTH_BYTES ((uint64_t)1 << 30)

/* Capacity that all sequences need on the device and on the compute side. */
static int cache_bytes(const struct bench_decoder *d, const struct nkv_kv_shape *shape, uint64_t *device_bytes_out,
                       uint64_t *compute_bytes_out)
{
    *device_bytes_out = *compute_bytes_out = 0;
    for (uint32_t i = 0; i < d->options.n_seqs; i++) {
        struct nkv_kv_estimate kv;
        struct nkv_seq_options seq = d->options.seq;
        uint64_t compute_bytes;

        seq.max_tokens = d->options.max_tokens[i];
        if (nkv_kv_estimate(shape, seq.max_tokens, &kv) < 0 || nkv_compute_estimate(shape, &seq, &compute_bytes) < 0)
            return cli_usage("%s", nkv_last_error());
        *device_bytes_out += d->options.batch * kv.total_bytes;
        *compute_bytes_out += d->options.batch * compute_bytes;
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

static int open_devices(struct bench_decoder *d)
{
    struct nkv_device_config config = {.size = sizeof config, .shape = d->shape, .n_threads = d->options.n_threads};
    uint64_t compute_bytes;
    int rc = cache_bytes(d, &d->shape, &config.capacity_bytes, &compute_bytes);

    if (rc != CLI_OK)
        return rc;
    if (nkv_device_open("cpu", &config, &d->device) < 0)
        return cli_fail("%s", nkv_last_error());
    config.capacity_bytes = compute_bytes;
    if (compute_bytes > 0 && nkv_device_open("cpu", &config, &d->compute) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

static int open_model(struct bench_decoder *d, const struct nkv_decoder_options *decoder)
{
    const struct bench_decoder_options *o = &d->options;
    struct estimate program = {
        .shape = {.page_tokens = o->page_tokens, .dtype = o->kv, .digest = o->digest},
        .mode = o->seq.mode,
        .budget_tokens = o->seq.budget_tokens,
        .chunk_tokens = BENCH_FILL_TOKENS,
        .n_devices = 1,
        .n_threads = o->n_threads,
    };
    int rc = bench_open_model(o->shape, o->weights, decoder, &program, own_bytes, d, &d->model);

    if (rc != CLI_OK)
        return rc;
    nkv_model_info(d->model, &d->info);
    d->shape = program.shape;
    return CLI_OK;
}

static int open_sequences(struct bench_decoder *d)
{
    for (uint32_t i = 0; i < d->options.n_seqs; i++) {
        struct nkv_seq_options seq = d->options.seq;

        seq.max_tokens = d->options.max_tokens[i];
        for (uint32_t b = 0; b < d->options.batch; b++)
            if (nkv_seq_open(d->context, &seq, &d->seqs[i][b]) < 0)
                return cli_fail("%s", nkv_last_error());
    }
    return CLI_OK;
}

int bench_decoder_open(const struct bench_decoder_options *options, struct bench_decoder *d)
{
    struct nkv_context_options context = {.size = sizeof context, .n_devices = 1, .max_batch = options->batch};
    struct nkv_decoder_options decoder = {.size = sizeof decoder,
                                          .n_threads = options->n_threads,
                                          .max_batch = options->batch,
                                          .n_micro_batches = options->n_micro_batches};
    int rc;

    *d = (struct bench_decoder){.options = *options};
    rc = open_model(d, &decoder);
    if (rc == CLI_OK)
        rc = open_devices(d);
    if (rc != CLI_OK)
        return rc;
    context.shape = d->shape;
    context.devices = &d->device;
    context.compute = d->compute;
    if (nkv_context_open(&context, &d->context) < 0 ||
        nkv_decoder_open(d->model, d->context, &decoder, &d->decoder) < 0)
        return cli_fail("%s", nkv_last_error());
    d->logits = malloc((size_t)options->batch * d->info.n_vocab * sizeof(float));
    if (!d->logits)
        return cli_fail("out of memory");
    if (bench_source_open(&d->shape, 1, &d->source) < 0)
        return CLI_FAILED;
    return open_sequences(d);
}

void bench_decoder_close(struct bench_decoder *d)
{
    nkv_decoder_close(d->decoder);
    nkv_context_close(d->context);
    nkv_device_close(d->device);
    nkv_device_close(d->compute);
    nkv_model_close(d->model);
    bench_source_close(&d->source);
    free(d->logits);
}

int bench_decoder_fill(struct bench_decoder *d, uint32_t i, uint32_t n_tokens)
{
    for (uint32_t b = 0; b < d->options.batch; b++) {
        uint32_t n_held = nkv_seq_length(d->seqs[i][b]);

        if (bench_fill(d->context, d->seqs[i][b], &d->source, n_tokens - n_held) != CLI_OK)
            return CLI_FAILED;
    }
    return CLI_OK;
}

int bench_decoder_step(struct bench_decoder *d, uint32_t i, uint32_t number, struct bench_times *times_out)
{
    struct nkv_decode_times times;
    struct nkv_seq_stats stats;
    int32_t tokens[BENCH_MAX_BATCH];
    uint64_t start_ns;

    if (bench_check_interrupt() != CLI_OK)
        return CLI_FAILED;
    for (uint32_t b = 0; b < d->options.batch; b++) {
        tokens[b] = (int32_t)((number + b) % d->info.n_vocab);
        nkv_seq_stats_reset(d->seqs[i][b]);
    }
    start_ns = progress_now_ns();
    if (nkv_decode(d->decoder, d->seqs[i], tokens, d->options.batch, d->logits) < 0)
        return cli_fail("%s", nkv_last_error());
    *times_out = (struct bench_times){.token = (double)(progress_now_ns() - start_ns) * 1e-6};
    for (uint32_t b = 0; b < d->options.batch; b++) {
        if (nkv_seq_status(d->seqs[i][b]) < 0)
            return cli_fail("%s", nkv_seq_error(d->seqs[i][b]));
        nkv_seq_stats(d->seqs[i][b], &stats);
        times_out->select += (double)stats.select_ns * 1e-6;
        times_out->attend += (double)stats.attend_ns * 1e-6;
    }
    nkv_decoder_times(d->decoder, &times);
    times_out->fc = (double)times.fc_ns * 1e-6;
    times_out->wait = (double)times.attend_ns * 1e-6;
    times_out->rest = times_out->token - times_out->fc - times_out->select - times_out->attend;
    return CLI_OK;
}

int bench_decoder_bandwidth(const struct bench_decoder *d, double *gb_per_s_out)
{
    if (nkv_read_bandwidth(BANDWIDTH_BYTES, d->options.n_threads, 2, gb_per_s_out) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

uint64_t bench_decoder_stream_bytes(const struct bench_decoder *d)
{
    static const double element_bytes[NKV_DTYPE_COUNT] = {4, 2, 2, 34.0 / 32};
    double embedding = (double)d->info.n_vocab * d->info.n_embd * element_bytes[d->options.weights];
    uint64_t head = (uint64_t)embedding, layers = d->info.weight_bytes - head * (d->info.tied_embeddings ? 1 : 2);

    return layers * (d->options.batch > 1 ? d->options.n_micro_batches : 1) + head;
}

int bench_times_median(const struct bench_times *times, uint32_t n, struct bench_times *median_out,
                       double *min_token_out)
{
    double *column = malloc(n * sizeof *column), least;
    double parts[sizeof *times / sizeof(double)];

    if (!column)
        return cli_fail("out of memory");
    for (size_t part = sizeof parts / sizeof *parts; part-- > 0;) {
        for (uint32_t k = 0; k < n; k++)
            memcpy(&column[k], (const char *)&times[k] + part * sizeof(double), sizeof(double));
        parts[part] = bench_median(column, n, &least);
    }
    *min_token_out = least; /* of the last part: the first one of the struct, a token's time */
    memcpy(median_out, parts, sizeof parts);
    free(column);
    return CLI_OK;
}
