/* SPDX-License-Identifier: Apache-2.0 */
/* bench_serve.h: what the parts of `bench serve` share: the load, what became of each request, the report. */
#ifndef NKV_CLI_BENCH_SERVE_H
#define NKV_CLI_BENCH_SERVE_H

#include <nearkv/engine.h>

#include "bench.h"
#include "session.h"

enum serve_lengths { SERVE_FIXED, SERVE_UNIFORM, SERVE_LOG_UNIFORM };

struct serve_options {
    struct session_options session;
    const char *shape; /* NULL: session.model */
    enum nkv_dtype weights;
    const char *arrivals_text, *lengths_text;
    float rate; /* requests per second; 0: all at once */
    enum serve_lengths lengths;
    uint32_t min_length, max_length;
    uint32_t min_outputs, max_outputs, n_requests, batch, step_tokens, move_steps;
    uint64_t seed;
    bool fill, json, has_model, has_weights;
};

/* Times in ns: of arrival after the start, the others on the clock; 0: not yet. */
struct serve_request {
    uint64_t arrival_ns, admitted_ns, first_ns, last_ns;
    uint64_t id;
    uint32_t n_prompt, n_outputs, n_tokens; /* n_tokens: of n_outputs, so far */
    int status;
    bool ended;
};

struct serve_work {
    uint64_t busy_ns, read_bytes, written_bytes;
};

struct serve_device {
    struct serve_work work; /* of the run, without what filled in prompts; until its end: what is not to count */
    uint64_t fill_ns, prefill_tokens, output_tokens;
    uint32_t n_sequences; /* that were admitted there */
    bool is_lost;         /* and nobody can say what it has worked */
};

struct serve {
    struct serve_options opt;
    struct session session;
    struct nkv_engine *engine;
    struct serve_request *requests;                           /* [n_requests], by arrival */
    struct serve_device devices[SESSION_MAX_DEVICES], spread; /* spread: what lies on all of them, without times */
    int32_t *prompt;                                          /* [the longest] */
    struct bench_source source;                               /* of --fill; k, v: a chunk of its own */
    float *k, *v;
    uint32_t longest, n_submitted, n_ended, n_failed;
    uint64_t start_ns, end_ns;
    char error[256]; /* of the first that failed */
};

/* Draws lengths and arrivals. returns: CLI_OK, CLI_FAILED (memory). */
int serve_draw(struct serve *s);
/* N or A-B. returns: CLI_OK, CLI_USAGE with a message. */
int serve_read_outputs(const char *arg, struct serve_options *o);
/* "poisson:R" or "all"; "uniform:A-B", "loguniform:A-B" or "fixed:N". returns: CLI_OK, CLI_USAGE with a message. */
int serve_read_arrivals(const char *arg, struct serve_options *o);
int serve_read_lengths(const char *arg, struct serve_options *o);
/* returns: CLI_OK, CLI_FAILED. */
int serve_print(const struct serve *s);

#endif
