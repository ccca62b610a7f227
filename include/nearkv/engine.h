/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv/engine.h: many requests at a time on one decoder. They are submitted whenever they come, join and leave
 * between steps, and take memory only while they run.
 *
 *   nkv_engine_open(decoder, &options, &engine);
 *   nkv_engine_submit(engine, &request, &id);           at any time, also from the callback
 *   while (nkv_engine_step(engine) > 0)                 one decode step and some chunks of prompts
 *       ...                                             the callback is told of every token and every end
 *
 * Threads: one at a time for engine, decoder and context together.
 */
#ifndef NEARKV_ENGINE_H
#define NEARKV_ENGINE_H

#include <nearkv/model.h>

#ifdef __cplusplus
extern "C" {
#endif

struct nkv_engine;

enum nkv_engine_event_kind {
    NKV_ENGINE_ADMITTED = 0,  /* it has its memory */
    NKV_ENGINE_PREFILLED = 1, /* n more tokens of its prompt were fed */
    NKV_ENGINE_TOKEN = 2,     /* a token, which may be the end token */
    NKV_ENGINE_END = 3,       /* its memory is free; the last event of a request */
};
struct nkv_engine_event {
    enum nkv_engine_event_kind kind;
    uint64_t id;
    uint32_t device; /* of the sequence (nkv_seq_device); END: where it was last, UINT32_MAX: it was never admitted */
    uint32_t n;      /* PREFILLED; TOKEN and END: tokens made so far */
    int32_t token;
    int status;        /* END: 0; NKV_ECANCELED; what it failed with */
    const char *error; /* END: the message; valid during the call */
};

struct nkv_engine_options {
    uint32_t size;         /* sizeof(struct nkv_engine_options) */
    uint32_t max_running;  /* requests that have memory at a time: at most the decoder's max_batch, the default */
    uint32_t chunk_tokens; /* of a prompt at a time: at most the decoder's, the default */
    uint32_t step_tokens;  /* of a step: at least max_running + chunk_tokens, the default */
    /* A sequence moves to another device when that pays within so many steps (nkv_context_rebalance); 0: none moves. */
    uint32_t move_steps;
    void (*event)(void *arg, const struct nkv_engine_event *event); /* may submit and cancel */
    void *event_arg;
    /*
     * In place of nkv_prefill: appends the keys and values of n tokens of a prompt, computed elsewhere, to every layer
     * of a sequence (nkv_attend_begin without q, nkv_step_end), and calls nothing of the engine. NULL: the decoder
     * computes them. returns: 0 or what failed; the engine then cuts off what is there of them, unless the sequence's
     * status says that it failed. Other than n tokens more: the step fails with NKV_ESTATE.
     */
    int (*fill)(void *arg, struct nkv_seq *seq, const int32_t *tokens, uint32_t n);
    void *fill_arg;
};

/* The decoder and its context are borrowed until close. options: NULL or zero fields mean the defaults. returns: 0,
 * NKV_EINVAL, NKV_ENOMEM. */
NKV_API int nkv_engine_open(struct nkv_decoder *decoder, const struct nkv_engine_options *options,
                            struct nkv_engine **engine_out);
/* Drops what waits or runs, without an event. NULL is allowed. Not from the callback. */
NKV_API void nkv_engine_close(struct nkv_engine *engine);

struct nkv_request {
    uint32_t size; /* sizeof(struct nkv_request) */
    uint32_t n_prompt;
    const int32_t *prompt; /* copied */
    uint32_t max_new_tokens;
    bool ignores_end;           /* goes on behind an end token */
    struct nkv_seq_options seq; /* but for max_tokens, which is n_prompt + max_new_tokens - 1 */
    struct nkv_sampler_options sampler;
};
/*
 * Queues a request. returns: 0; NKV_ENOSPC: it can never fit, with what is missing; NKV_EINVAL: of the request, or a
 * token that the model does not have; NKV_ENOMEM.
 */
NKV_API int nkv_engine_submit(struct nkv_engine *engine, const struct nkv_request *request, uint64_t *id_out);
/* Ends a request that waits or runs, with an event and NKV_ECANCELED. returns: 0; NKV_ENOENT: there is none. */
NKV_API int nkv_engine_cancel(struct nkv_engine *engine, uint64_t id);
/*
 * Admits, in the order of submission, what there is room for; decodes one token of each request whose prompt is fed;
 * then spends the rest of the step's tokens on whole chunks of prompts, the oldest request first. A request that its
 * device fails, that cannot be sampled (logits that are no numbers, no memory), or that finds no room though no other
 * of the engine's runs, ends alone. returns: how many wait or run; NKV_ESTATE: called from the
 * callback; else what the whole step failed with: every request is as before it, and the step can be tried again.
 */
NKV_API int nkv_engine_step(struct nkv_engine *engine);

struct nkv_engine_stats {
    uint32_t n_waiting, n_running;
    uint64_t n_steps, n_moves, n_failed_moves;
    uint64_t prefill_tokens, decode_tokens; /* fed */
    uint32_t most_running;
};
NKV_API void nkv_engine_stats(const struct nkv_engine *engine, struct nkv_engine_stats *stats_out);

#ifdef __cplusplus
}
#endif
#endif
