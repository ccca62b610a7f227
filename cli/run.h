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
    uint32_t n_bases;  /* sequences that hold them, one per device in use; 0: no sharing */
    struct nkv_seq *bases[SESSION_MAX_DEVICES];
    uint64_t start_ns, prefill_ns, decode_ns;
    uint64_t *step_ns;
    struct text unprinted; /* of the only answer: the beginning of a character whose other bytes are still to come */
    bool printed;          /* something of it is on stdout */
};

/* Prints the JSON object. returns: CLI_OK or CLI_FAILED with a message. */
int run_report_json(const struct run *run);
/* Prints what streaming did not: several answers, and figures on stderr when it is a terminal. */
int run_report_text(const struct run *run);

#endif
