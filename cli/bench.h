/* SPDX-License-Identifier: Apache-2.0 */
/* bench.h: what the benchmarks share: a synthetic cache, timing, and the machine's read bandwidth measured between the
 * timed steps. */
#ifndef NKV_CLI_BENCH_H
#define NKV_CLI_BENCH_H

#include <nearkv/model.h>
#include <nearkv/nearkv.h>

#include "arguments.h"
#include "estimate.h"

#define BENCH_FILL_TOKENS 256u /* per step that fills a cache */
#define BENCH_SLICES      5    /* the bandwidth is measured before each slice of the steps */

int bench_main(int argc, char **argv);
int bench_attend_main(int argc, char **argv);
int bench_decode_main(int argc, char **argv);
int bench_device_main(int argc, char **argv);
int bench_prefill_main(int argc, char **argv);
int bench_serve_main(int argc, char **argv);

/*
 * A source of synthetic keys, values and queries for one layer with a heavy-tailed score distribution: each KV head has
 * a direction u; a key is noise + a u, where a is log-normal and shared by a page; a query is noise + c u.
 */
struct bench_source {
    struct nkv_kv_shape shape;
    uint64_t random;  /* state of text_random */
    float *direction; /* [n_kv_heads][head_dim] */
    float *noise;     /* a pool of normals that keys and values are drawn from */
    uint32_t n_noise;
};
/* Prints an error and returns -1 when memory is short. */
int bench_source_open(const struct nkv_kv_shape *shape, uint64_t seed, struct bench_source *source);
void bench_source_close(struct bench_source *source);
/* k and v [n_tokens][n_kv_heads][head_dim]; a new popularity begins where (first + t) % page_tokens == 0. */
void bench_source_kv(struct bench_source *source, uint32_t first, uint32_t n_tokens, float *k, float *v);
/* q [n_heads][head_dim]. */
void bench_source_query(struct bench_source *source, float *q);

/* Between steps, after progress_catch_interrupt. returns: CLI_OK, or CLI_FAILED after a message. */
int bench_check_interrupt(void);

/* Appends n_tokens synthetic tokens to every layer, without attention. Progress on stderr when it is a terminal.
 * returns: CLI_OK, or CLI_FAILED after a message. */
int bench_fill(struct nkv_context *context, struct nkv_seq *seq, struct bench_source *source, uint32_t n_tokens);
/* The same in one step, silently. returns: 0 or a negative status. k, v: room for n_tokens [n_kv_heads][head_dim] each.
 */
int bench_fill_chunk(struct nkv_context *context, struct nkv_seq *seq, struct bench_source *source, uint32_t n_tokens,
                     float *k, float *v);

/* Bytes of a benchmark's caches and of what it holds beside, for a model. returns: CLI_OK; CLI_USAGE after a message.
 */
typedef int (*bench_bytes_fn)(void *arg, const struct nkv_kv_shape *shape, const struct nkv_model_info *info,
                              uint64_t *bytes_out);
/*
 * Opens a model of a known shape after checking that there is memory for its weights, for a decoder of these options,
 * for the program (its shape is filled in: that of the model with the pages, type and digest given there) and for
 * bench_bytes: before the first weight is made, which takes a while. returns: CLI_OK; CLI_USAGE, CLI_FAILED after a
 * message.
 */
int bench_open_model(const char *shape, enum nkv_dtype weights, const struct nkv_decoder_options *decoder,
                     struct estimate *program, bench_bytes_fn bench_bytes, void *arg, struct nkv_model **model_out);

/* Sorts the n values and returns their median; *min_out is the least. */
double bench_median(double *values, uint32_t n, double *min_out);

/* ---- Decoding with a model of random weights (bench_decoder.c). All but close return CLI_*, after a message. ---- */

#define BENCH_MAX_SEQS  8u
#define BENCH_MAX_BATCH 64u

struct bench_decoder_options {
    const char *shape;
    enum nkv_dtype weights, kv;
    enum nkv_digest digest;
    struct nkv_seq_options seq; /* but for max_tokens */
    uint32_t max_tokens[BENCH_MAX_SEQS], n_seqs, page_tokens, n_threads;
    uint32_t batch; /* sequences of each length, which step together */
    uint32_t n_micro_batches;
};

struct bench_decoder {
    struct bench_decoder_options options;
    struct nkv_kv_shape shape;
    struct nkv_model_info info;
    struct nkv_model *model;
    struct nkv_device *device, *compute;
    struct nkv_context *context;
    struct nkv_decoder *decoder;
    struct nkv_seq *seqs[BENCH_MAX_SEQS][BENCH_MAX_BATCH];
    struct bench_source source;
    float *logits; /* [batch][n_vocab] */
};

/* What a step took, in ms. select and attend: the devices' time; wait: for attention, from begin and in end. With two
 * micro-batches the devices work while dense layers run: then rest, what is left of the token, may be negative. */
struct bench_times {
    double token, fc, select, attend, wait, rest;
};

int bench_decoder_open(const struct bench_decoder_options *options, struct bench_decoder *d);
void bench_decoder_close(struct bench_decoder *d);
/* Fills the caches of the i-th length up to n_tokens. */
int bench_decoder_fill(struct bench_decoder *d, uint32_t i, uint32_t n_tokens);
/* One token of each sequence of the i-th length. */
int bench_decoder_step(struct bench_decoder *d, uint32_t i, uint32_t number, struct bench_times *times_out);
/* What the memory gives just now. */
int bench_decoder_bandwidth(const struct bench_decoder *d, double *gb_per_s_out);
/* Weights that a step reads: of the layers once per micro-batch; not an embedding that is not also the output matrix.
 */
uint64_t bench_decoder_stream_bytes(const struct bench_decoder *d);
/* Medians of each part; *min_token_out: the least token. */
int bench_times_median(const struct bench_times *times, uint32_t n, struct bench_times *median_out,
                       double *min_token_out);

/*
 * As arguments_options, but an argument that is no option is wrong.
 */
int bench_read_options(int argc, char **argv, const struct arguments *arguments,
                       int (*read_flag)(int flag, const char *arg, void *read_arg), void *read_arg);

#endif
