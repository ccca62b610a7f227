/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The synthetic cache of the benchmarks. Keys are drawn from a pool of normals at a random offset instead of one by
 * one: filling a million tokens then costs about as much as storing them, and no benchmark depends on more of the
 * distribution than the page scores.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "arguments.h"
#include "cli.h"
#include "progress.h"
#include "text.h"

#define POOL_FLOATS (1u << 20)

/* About normal: mean 0, variance 1 (the sum of four 16-bit uniforms). */
static float normal(uint64_t *random)
{
    uint64_t x = text_random(random);
    uint32_t sum =
        (uint32_t)(x & 0xffff) + (uint32_t)(x >> 16 & 0xffff) + (uint32_t)(x >> 32 & 0xffff) + (uint32_t)(x >> 48);

    return ((float)sum / 65536.0f - 2.0f) * 1.7320508f;
}

int bench_source_open(const struct nkv_kv_shape *shape, uint64_t seed, struct bench_source *source)
{
    uint32_t n_direction = shape->n_kv_heads * shape->head_dim;

    *source = (struct bench_source){.shape = *shape, .random = seed, .n_noise = POOL_FLOATS};
    source->direction = malloc(n_direction * sizeof(float));
    source->noise = malloc((POOL_FLOATS + shape->head_dim) * sizeof(float));
    if (!source->direction || !source->noise) {
        fprintf(stderr, "nearkv: out of memory\n");
        bench_source_close(source);
        return -1;
    }
    for (uint32_t i = 0; i < n_direction; i++)
        source->direction[i] = normal(&source->random) / sqrtf((float)shape->head_dim);
    for (uint32_t i = 0; i < POOL_FLOATS + shape->head_dim; i++)
        source->noise[i] = normal(&source->random);
    return 0;
}

void bench_source_close(struct bench_source *source)
{
    free(source->direction);
    free(source->noise);
    *source = (struct bench_source){0};
}

void bench_source_kv(struct bench_source *source, uint32_t first, uint32_t n_tokens, float *k, float *v)
{
    uint32_t dim = source->shape.head_dim, heads = source->shape.n_kv_heads;

    for (uint32_t t = 0; t < n_tokens; t++) {
        uint64_t page = (first + t) / source->shape.page_tokens;

        for (uint32_t h = 0; h < heads; h++) {
            float popularity = expf(1.5f * normal(&page));
            const float *u = source->direction + h * dim;
            const float *x = source->noise + text_random(&source->random) % source->n_noise;
            const float *y = source->noise + text_random(&source->random) % source->n_noise;

            for (uint32_t d = 0; d < dim; d++) {
                *k++ = x[d] + popularity * u[d];
                *v++ = y[d];
            }
        }
    }
}

void bench_source_query(struct bench_source *source, float *q)
{
    uint32_t dim = source->shape.head_dim, group = source->shape.n_heads / source->shape.n_kv_heads;

    for (uint32_t h = 0; h < source->shape.n_heads; h++)
        for (uint32_t d = 0; d < dim; d++)
            *q++ = normal(&source->random) + 2.0f * source->direction[h / group * dim + d];
}

int bench_fill_chunk(struct nkv_context *context, struct nkv_seq *seq, struct bench_source *source, uint32_t n_tokens,
                     float *k, float *v)
{
    struct nkv_attend_item item = {.seq = seq, .n_tokens = n_tokens, .k = k, .v = v};
    struct nkv_ticket *ticket;
    int status;

    bench_source_kv(source, nkv_seq_length(seq), n_tokens, k, v);
    for (uint32_t layer = 0; layer < source->shape.n_layers; layer++) {
        status = nkv_attend_begin(context, layer, &item, 1, &ticket);
        if (status >= 0)
            status = nkv_attend_end(ticket);
        if (status < 0)
            return status;
    }
    status = nkv_step_end(context, &item, 1);
    return status < 0 ? status : nkv_seq_status(seq);
}

int bench_check_interrupt(void)
{
    return progress_interrupted() ? cli_fail("interrupted") : CLI_OK;
}

int bench_fill(struct nkv_context *context, struct nkv_seq *seq, struct bench_source *source, uint32_t n_tokens)
{
    size_t floats = (size_t)BENCH_FILL_TOKENS * source->shape.n_kv_heads * source->shape.head_dim;
    float *k = malloc(floats * sizeof *k), *v = malloc(floats * sizeof *v);
    bool show = isatty(STDERR_FILENO);
    int status = k && v ? 0 : NKV_ENOMEM, rc;

    for (uint32_t done = 0; status >= 0 && done < n_tokens && !progress_interrupted(); done += BENCH_FILL_TOKENS) {
        uint32_t n = n_tokens - done < BENCH_FILL_TOKENS ? n_tokens - done : BENCH_FILL_TOKENS;

        status = bench_fill_chunk(context, seq, source, n, k, v);
        if (show && done % (64 * BENCH_FILL_TOKENS) == 0)
            fprintf(stderr, "\rfilling the cache: %3u %%", (uint32_t)(100.0 * done / n_tokens));
    }
    if (show)
        fprintf(stderr, "\r\033[K");
    if (!k || !v)
        rc = cli_fail("out of memory");
    else
        rc = status < 0 ? cli_fail("%s", nkv_last_error()) : bench_check_interrupt();
    free(k);
    free(v);
    return rc;
}

static int check_memory(const struct nkv_model *model, const struct nkv_decoder_options *decoder,
                        struct estimate *program, bench_bytes_fn bench_bytes, void *arg)
{
    struct nkv_model_info info;
    uint64_t decoder_bytes, own_bytes;
    char what[160];
    int rc;

    nkv_model_info(model, &info);
    nkv_model_kv_shape(model, program->shape.page_tokens, program->shape.dtype, program->shape.digest, &program->shape);
    if (nkv_kv_shape_check(&program->shape) < 0 || nkv_decoder_estimate(model, decoder, &decoder_bytes) < 0)
        return cli_usage("%s", nkv_last_error());
    rc = bench_bytes(arg, &program->shape, &info, &own_bytes);
    if (rc != CLI_OK)
        return rc;
    snprintf(what, sizeof what, "%s, %s of weights, with %s of caches and buffers,", info.name,
             cli_bytes(info.weight_bytes), cli_bytes(own_bytes));
    return cli_check_memory(what, info.weight_bytes + decoder_bytes + estimate_program_bytes(program) + own_bytes);
}

int bench_open_model(const char *shape, enum nkv_dtype weights, const struct nkv_decoder_options *decoder,
                     struct estimate *program, bench_bytes_fn bench_bytes, void *arg, struct nkv_model **model_out)
{
    struct nkv_model *blank;
    int rc, status = nkv_model_open_blank(shape, weights, &blank);

    if (status < 0)
        return cli_refused("--shape", status);
    rc = check_memory(blank, decoder, program, bench_bytes, arg);
    nkv_model_close(blank);
    if (rc == CLI_OK && nkv_model_open_random(shape, weights, 1, model_out) < 0)
        rc = cli_fail("%s", nkv_last_error());
    return rc;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

double bench_median(double *values, uint32_t n, double *min_out)
{
    qsort(values, n, sizeof *values, compare);
    *min_out = values[0];
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

int bench_read_options(int argc, char **argv, const struct arguments *arguments,
                       int (*read_flag)(int flag, const char *arg, void *read_arg), void *read_arg)
{
    int rc = arguments_options(argc, argv, arguments, read_flag, read_arg);

    if (rc != CLI_OK)
        return rc;
    return optind < argc ? cli_usage("unexpected argument '%s': see --help", argv[optind]) : CLI_OK;
}
