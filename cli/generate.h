/* SPDX-License-Identifier: Apache-2.0 */
/* generate.h: decodes answers for a batch of sequences. */
#ifndef NKV_CLI_GENERATE_H
#define NKV_CLI_GENERATE_H

#include "session.h"
#include "text.h"

/* One sequence and what came out of it. The caller owns seq and sampler and frees the rest with answer_free. */
struct answer {
    struct nkv_seq *seq; /* holds the prompt without its last token */
    struct nkv_sampler *sampler;
    int32_t last_prompt_token;
    uint64_t start_ns; /* when its prompt was begun: TTFT counts from here */

    int32_t *tokens; /* without the end token */
    uint32_t n_tokens;
    uint32_t n_steps; /* decode steps after the first */
    uint64_t ttft_ns;
    bool done;
    int status; /* negative: it failed, and why: */
    char error[512];
    struct nkv_seq_stats stats; /* of the decode steps after the first */
};

struct generation {
    struct session *session;
    struct answer *answers;
    uint32_t n_answers;
    uint32_t max_tokens; /* of each answer */
    /* Called after each new token of an answer; may be NULL. */
    void (*on_token)(void *arg, const struct answer *answer);
    void *on_token_arg;
    uint64_t *step_ns; /* [max_tokens], out: wall time of each step of the batch; the first gives the first tokens */
};

/*
 * Runs until every answer has ended, failed or is full. A sequence that its device fails ends; the others go on.
 * returns: CLI_OK, or CLI_FAILED with a message (an error that is no sequence's own, or Ctrl-C).
 */
int generate(struct generation *generation);
/* Ends an answer with a negative status and its message. */
void answer_fail(struct answer *answer, int status, const char *message);
void answer_free(struct answer *answer);

/* Appends what the newest token adds to the answer's text. returns: CLI_OK, or CLI_FAILED with a message. */
int answer_append_newest(const struct session *session, const struct answer *answer, struct text *text);
/* The answer's text so far; freed with nkv_text_free. */
int answer_text(const struct session *session, const struct answer *answer, char **text_out, size_t *bytes_out);

/* Mean, median and 99th percentile (by nearest rank) of n step times in milliseconds; zeros when n is 0. */
struct step_times {
    double mean_ms, p50_ms, p99_ms;
};
struct step_times step_times(const uint64_t *step_ns, uint32_t n);

#endif
