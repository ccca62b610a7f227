/* SPDX-License-Identifier: Apache-2.0 */
/* bench.h: what the benchmarks share: a synthetic cache, timing, and the machine's read bandwidth measured between the
 * timed steps. */
#ifndef NKV_CLI_BENCH_H
#define NKV_CLI_BENCH_H

#include <getopt.h>
#include <nearkv/nearkv.h>

#define BENCH_SLICES 5 /* the bandwidth is measured before each slice of the steps */

int bench_main(int argc, char **argv);
int bench_attend_main(int argc, char **argv);
int bench_decode_main(int argc, char **argv);
int bench_device_main(int argc, char **argv);
int bench_prefill_main(int argc, char **argv);

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

/* Appends n_tokens synthetic tokens to every layer, without attention. Progress on stderr when it is a terminal.
 * returns: 0 or a negative status. */
int bench_fill(struct nkv_context *context, struct nkv_seq *seq, struct bench_source *source, uint32_t n_tokens);

/* Sorts the n values and returns their median; *min_out is the least. */
double bench_median(double *values, uint32_t n, double *min_out);

/*
 * Reads long options: read_flag takes each but `help`, which prints usage. returns: CLI_OK, CLI_USAGE after a message,
 * or -1: help was printed.
 */
int bench_read_options(int argc, char **argv, const char *usage, const struct option *options, int help,
                       int (*read_flag)(int flag, const char *arg, void *read_arg), void *read_arg);

#endif
