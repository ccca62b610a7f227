/* SPDX-License-Identifier: Apache-2.0 */
/* run.h: a run of `nearkv run`, between what does it (run.c) and what reports it (run_report.c). */
#ifndef NKV_CLI_RUN_H
#define NKV_CLI_RUN_H

#include "generate.h"
#include "parallel.h"
#include "text.h"

#define RUN_MAX_PROMPTS 64u

struct run_options {
    struct session_options session;
    struct parallel_options parallel;
    const char *file;
    const char *prompts[RUN_MAX_PROMPTS];
    uint32_t n_prompts;
    uint32_t max_tokens;
    const char *session_name; /* --session; NULL: none */
    bool continues;
    struct nkv_sampler_options sampler;
    bool json;
};

struct prompt {
    int32_t *tokens;
    size_t n_tokens;
};

struct run {
    struct run_options options;
    struct parallel parallel;
    struct session session;
    uint32_t n; /* sequences */
    struct prompt prompts[RUN_MAX_PROMPTS];
    struct answer answers[RUN_MAX_PROMPTS];
    uint32_t n_prefix; /* tokens that all prompts begin with and that are fed once per base */
    uint32_t n_bases;  /* sequences that hold them, one per device in use, or one on all; 0: no sharing */
    struct nkv_seq *bases[SESSION_MAX_DEVICES];
    uint32_t n_held; /* tokens that the session held before this run */
    struct nkv_session_result resumed;
    uint64_t start_ns, prefill_ns, decode_ns;
    uint64_t *step_ns;
    struct text unprinted; /* of the only answer: the beginning of a character whose other bytes are still to come */
    bool printed;          /* something of it is on stdout */
};

/* ---- run_plan.c ---- */

/* Tokens that sequence i may grow to. */
uint32_t run_max_tokens(const struct run *run, uint32_t i);
/* What the sequences have in common, and what they need. returns: CLI_OK, or another with a message. */
int run_plan(struct run *run, struct session_need *need);
int run_check_capacity(const struct run *run);

/* ---- run_session.c: --session ---- */

/* What is wrong between options. returns: CLI_OK, or CLI_USAGE with a message. */
int run_session_check(const struct run_options *options);
/* Opens the devices and asks what the session holds. returns: CLI_OK, or another with a message. */
int run_session_look(struct run *run);
/* Tokens that the session must have room for, with n_prompt tokens of prompt. */
uint32_t run_session_tokens(const struct run *run, uint32_t n_prompt);
/* Opens it. returns: 0, or an enum nkv_status. */
int run_session_open(struct run *run, const struct nkv_seq_options *seq, struct nkv_seq **seq_out);
/* Prompt tokens that it holds already. */
uint32_t run_session_reused(const struct run *run);
/* After the last step: makes it hold the whole answer. */
int run_session_finish(struct run *run);
/* Says why sequence i ended, and where to look if that may come from damaged memory. returns: CLI_FAILED. */
int run_session_ended(const struct run *run, uint32_t i);
json_t *run_session_json(const struct run *run);
void run_session_report(const struct run *run);

/* ---- run_report.c ---- */

/* Prints the JSON object. returns: CLI_OK or CLI_FAILED with a message. */
int run_report_json(const struct run *run);
/* Prints what streaming did not: several answers, and figures on stderr when it is a terminal. */
int run_report_text(const struct run *run);

#endif
