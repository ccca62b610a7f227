/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Continuous batching: a list of requests in the order of their submission, each waiting, prefilling or decoding. A
 * step admits from the front of those that wait, decodes one token of every request whose prompt is fed, and feeds
 * whole chunks of prompts with what is left of the step's tokens.
 *
 * Invariant: what a request computes does not depend on who else runs. Its chunks begin at multiples of chunk_tokens of
 * its own prompt, whatever the budget, and are passes of their own; its last prompt token and all that follow are fed
 * by decode passes, whose rows do not know each other. Up to 16 rows a pass the dense layers treat each row the same to
 * the bit (model/fc.c); above that the library rounds as it likes.
 *
 * One pass for decode rows and chunk together was rejected: it would read the weights once less per step, and let a
 * request's rounding, hence its text, depend on its neighbours.
 *
 * A decoder with two micro-batches splits each decode pass in halves (model/layers.c), which the engine does not see. A
 * chunk beside a decode pass as the other half was rejected: tokens would be told only when the chunk is through.
 *
 * No request overtakes another: one that waits for room keeps those behind it waiting, so that a long one is not
 * starved.
 */
#include <nearkv/engine.h>

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/decoder.h"
#include "model/weights.h"

/* After a move that failed none is tried for so many steps. */
#define MOVE_PAUSE 256u

enum state { WAITING, RUNNING, ENDED };

struct request {
    struct request *next;
    uint64_t id;
    enum state state;
    struct nkv_seq_options seq_options;
    struct nkv_seq *seq;
    struct nkv_sampler *sampler;
    int32_t *prompt;
    uint32_t n_prompt, n_fed; /* n_fed: of the sequence, prompt and what followed */
    uint32_t max_new, n_new;
    uint32_t device;
    int32_t token; /* the newest */
    bool ignores_end;
};

struct nkv_engine {
    struct nkv_decoder *decoder;
    struct nkv_decoder_parts parts;
    struct nkv_engine_options options;
    struct request *first, **last; /* where the next one is linked */
    struct request **batch;        /* [max_running], and of it: */
    struct nkv_seq **seqs;
    int32_t *tokens;
    float *logits; /* [max_running][n_vocab] */
    uint32_t n_vocab, move_pause;
    uint64_t next_id;
    bool stepping, changed; /* changed: who runs, since moves were considered */
    struct nkv_engine_stats stats;
};

/* ---- Open and close */

static int resolve(const struct nkv_decoder_parts *parts, const struct nkv_engine_options *options,
                   struct nkv_engine_options *o)
{
    *o = (struct nkv_engine_options){.size = sizeof *o};
    if (options && options->size != sizeof *options)
        FAIL(NKV_EINVAL, "nkv_engine_options.size is %u: it must be %zu", options->size, sizeof *options);
    if (options)
        *o = *options;
    o->max_running = o->max_running ? o->max_running : parts->max_batch;
    o->chunk_tokens = o->chunk_tokens ? o->chunk_tokens : parts->chunk_tokens;
    if (o->max_running > parts->max_batch || o->chunk_tokens > parts->chunk_tokens)
        FAIL(NKV_EINVAL, "%u requests and chunks of %u tokens: the decoder was opened for %u and %u", o->max_running,
             o->chunk_tokens, parts->max_batch, parts->chunk_tokens);
    o->step_tokens = o->step_tokens ? o->step_tokens : o->max_running + o->chunk_tokens;
    if (o->step_tokens < o->max_running + o->chunk_tokens)
        FAIL(NKV_EINVAL,
             "%u tokens a step: %u requests that decode and a chunk of %u need at least %u, or prompts would wait for "
             "ever",
             o->step_tokens, o->max_running, o->chunk_tokens, o->max_running + o->chunk_tokens);
    return 0;
}

static int allocate(struct nkv_engine *e)
{
    uint32_t n = e->options.max_running;

    TRY(nkv_alloc(n, sizeof(struct request *), &e->batch));
    TRY(nkv_alloc(n, sizeof(struct nkv_seq *), &e->seqs));
    TRY(nkv_alloc(n, sizeof *e->tokens, &e->tokens));
    return nkv_alloc((size_t)n * e->n_vocab, sizeof *e->logits, &e->logits);
}

int nkv_engine_open(struct nkv_decoder *decoder, const struct nkv_engine_options *options,
                    struct nkv_engine **engine_out)
{
    struct nkv_decoder_parts parts = nkv_decoder_parts(decoder);
    struct nkv_engine_options resolved;
    struct nkv_engine *e;
    int status;

    if (!parts.context)
        FAIL(NKV_EINVAL, "an engine needs a decoder with a context: rank 0's");
    TRY(resolve(&parts, options, &resolved));
    TRY(nkv_alloc(1, sizeof *e, &e));
    e->decoder = decoder;
    e->parts = parts;
    e->options = resolved;
    e->last = &e->first;
    e->n_vocab = parts.model->info.n_vocab;
    e->next_id = 1;
    status = allocate(e);
    if (status < 0) {
        nkv_engine_close(e);
        return status;
    }
    *engine_out = e;
    return 0;
}

static void free_request(struct request *r)
{
    nkv_seq_close(r->seq);
    nkv_sampler_close(r->sampler);
    nkv_free(r->prompt);
    nkv_free(r);
}

void nkv_engine_close(struct nkv_engine *e)
{
    struct request *next;

    if (!e)
        return;
    for (struct request *r = e->first; r; r = next) {
        next = r->next;
        free_request(r);
    }
    nkv_free(e->logits);
    nkv_free(e->tokens);
    nkv_free(e->seqs);
    nkv_free(e->batch);
    nkv_free(e);
}

/* ---- Requests */

static void tell(struct nkv_engine *e, const struct request *r, struct nkv_engine_event event)
{
    event.id = r->id;
    event.device = r->device;
    if (e->options.event)
        e->options.event(e->options.event_arg, &event);
}

/* Its memory is free when its last event is told; sweep() frees the rest. */
static void end(struct nkv_engine *e, struct request *r, int status, const char *error)
{
    char message[512];

    snprintf(message, sizeof message, "%s", status < 0 ? error : "");
    if (r->state == WAITING)
        e->stats.n_waiting--;
    else
        e->stats.n_running--;
    r->state = ENDED;
    e->changed = true;
    nkv_seq_close(r->seq);
    r->seq = NULL;
    tell(e, r, (struct nkv_engine_event){.kind = NKV_ENGINE_END, .n = r->n_new, .status = status, .error = message});
}

/* Takes those that have ended out of the list. Not within a step: its batch names them. */
static void sweep(struct nkv_engine *e)
{
    struct request **at = &e->first;

    while (*at) {
        struct request *r = *at;

        if (r->state == ENDED) {
            *at = r->next;
            free_request(r);
        } else {
            at = &r->next;
        }
    }
    e->last = at;
}

static int check(const struct nkv_engine *e, const struct nkv_request *q, struct nkv_seq_options *seq_out)
{
    if (q->size != sizeof *q)
        FAIL(NKV_EINVAL, "nkv_request.size is %u: it must be %zu", q->size, sizeof *q);
    if (q->n_prompt == 0 || q->max_new_tokens == 0)
        FAIL(NKV_EINVAL, "a prompt of %u tokens and %u to follow: there must be at least one of each", q->n_prompt,
             q->max_new_tokens);
    if (q->max_new_tokens > UINT32_MAX - q->n_prompt)
        FAIL(NKV_EINVAL, "%u tokens of prompt and %u to follow: positions end at %u", q->n_prompt, q->max_new_tokens,
             UINT32_MAX);
    for (uint32_t i = 0; i < q->n_prompt; i++)
        if (q->prompt[i] < 0 || (uint32_t)q->prompt[i] >= e->n_vocab)
            FAIL(NKV_EINVAL, "token %u of the prompt is %d: the model's vocabulary is 0 to %u", i, q->prompt[i],
                 e->n_vocab - 1);
    *seq_out = q->seq;
    seq_out->max_tokens = q->n_prompt + q->max_new_tokens - 1;
    return nkv_seq_can_fit(e->parts.context, seq_out);
}

static int fill(struct request *r, const struct nkv_request *q)
{
    TRY(nkv_alloc(q->n_prompt, sizeof *r->prompt, &r->prompt));
    memcpy(r->prompt, q->prompt, q->n_prompt * sizeof *r->prompt);
    r->n_prompt = q->n_prompt;
    r->max_new = q->max_new_tokens;
    r->ignores_end = q->ignores_end;
    r->device = UINT32_MAX;
    return nkv_sampler_open(&q->sampler, &r->sampler);
}

int nkv_engine_submit(struct nkv_engine *e, const struct nkv_request *request, uint64_t *id_out)
{
    struct nkv_seq_options seq_options;
    struct request *r;
    int status;

    TRY(check(e, request, &seq_options));
    TRY(nkv_alloc(1, sizeof *r, &r));
    status = fill(r, request);
    if (status < 0) {
        free_request(r);
        return status;
    }
    r->seq_options = seq_options;
    r->id = e->next_id++;
    *e->last = r;
    e->last = &r->next;
    e->stats.n_waiting++;
    *id_out = r->id;
    return 0;
}

int nkv_engine_cancel(struct nkv_engine *e, uint64_t id)
{
    for (struct request *r = e->first; r; r = r->next) {
        if (r->id != id || r->state == ENDED)
            continue;
        end(e, r, NKV_ECANCELED, "the request was cancelled");
        if (!e->stepping)
            sweep(e);
        return 0;
    }
    FAIL(NKV_ENOENT, "no request %llu waits or runs", (unsigned long long)id);
}

/* ---- A step */

/* returns: 1: it runs, or has failed; 0: it waits for others to leave. */
static int admit_one(struct nkv_engine *e, struct request *r)
{
    int status = nkv_seq_open(e->parts.context, &r->seq_options, &r->seq);

    if (status == NKV_ENOSPC && e->stats.n_running > 0)
        return 0;
    if (status == NKV_ENOMEM)
        return status;
    if (status < 0) { /* nobody here will make room for it */
        end(e, r, status, nkv_last_error());
        return 1;
    }
    r->state = RUNNING;
    r->device = nkv_seq_device(r->seq);
    e->changed = true;
    e->stats.n_waiting--;
    if (++e->stats.n_running > e->stats.most_running)
        e->stats.most_running = e->stats.n_running;
    tell(e, r, (struct nkv_engine_event){.kind = NKV_ENGINE_ADMITTED});
    return 1;
}

static int admit(struct nkv_engine *e)
{
    int more = 1;

    for (struct request *r = e->first; r && more > 0 && e->stats.n_running < e->options.max_running; r = r->next)
        if (r->state == WAITING)
            more = admit_one(e, r);
    return more;
}

/* A move that fails changes nothing: the step goes on where the sequences are. */
static void move(struct nkv_engine *e)
{
    int status = 0;

    e->move_pause -= e->move_pause > 0;
    if (e->options.move_steps == 0 || !e->changed || e->move_pause > 0)
        return;
    status = nkv_context_rebalance(e->parts.context, e->options.move_steps);
    e->stats.n_moves += status > 0;
    e->stats.n_failed_moves += status < 0;
    e->move_pause = status < 0 ? MOVE_PAUSE : 0;
    e->changed = status != 0;
    for (struct request *r = e->first; status > 0 && r; r = r->next)
        if (r->state == RUNNING)
            r->device = nkv_seq_device(r->seq);
}

static bool decodes(const struct request *r)
{
    return r->state == RUNNING && r->n_fed >= r->n_prompt - 1;
}

static uint32_t fill_batch(struct nkv_engine *e)
{
    uint32_t n = 0;

    for (struct request *r = e->first; r; r = r->next)
        if (decodes(r)) {
            e->batch[n] = r;
            e->seqs[n] = r->seq;
            e->tokens[n++] = r->n_new ? r->token : r->prompt[r->n_prompt - 1];
        }
    return n;
}

/* The logits of a token that was fed may be what failed: it is taken back, to be fed again. */
static int undo(struct nkv_engine *e, uint32_t n, int status)
{
    char message[512];

    snprintf(message, sizeof message, "%s", nkv_last_error());
    for (uint32_t i = 0; i < n; i++) {
        struct request *r = e->batch[i];

        if (nkv_seq_length(r->seq) > r->n_fed && nkv_seq_truncate(r->seq, r->n_fed) < 0)
            end(e, r, NKV_EDEVICE, nkv_last_error());
    }
    return nkv_fail(status, "%s", message);
}

static void take_token(struct nkv_engine *e, struct request *r, const float *logits)
{
    int status = nkv_seq_status(r->seq);

    if (status < 0) {
        end(e, r, status, nkv_seq_error(r->seq));
        return;
    }
    r->n_fed++;
    status = nkv_sample(r->sampler, logits, e->n_vocab, &r->token);
    if (status < 0) {
        end(e, r, status, nkv_last_error());
        return;
    }
    r->n_new++;
    tell(e, r, (struct nkv_engine_event){.kind = NKV_ENGINE_TOKEN, .n = r->n_new, .token = r->token});
    if (r->state == RUNNING &&
        (r->n_new == r->max_new || (!r->ignores_end && nkv_token_is_end(e->parts.model, r->token))))
        end(e, r, 0, NULL);
}

/* returns: rows fed, or what the pass failed with. */
static int decode(struct nkv_engine *e)
{
    uint32_t n = fill_batch(e);
    int status;

    if (n == 0)
        return 0;
    status = nkv_decode(e->decoder, e->seqs, e->tokens, n, e->logits);
    if (status < 0)
        return undo(e, n, status);
    e->stats.decode_tokens += n;
    for (uint32_t i = 0; i < n; i++)
        if (e->batch[i]->state == RUNNING) /* else it was cancelled by a callback just now */
            take_token(e, e->batch[i], e->logits + (size_t)i * e->n_vocab);
    return (int)n;
}

/* What a chunk that was not put there, or not all of it, left behind is cut off: it is asked for again. A sequence that
 * was cut further than that stays as it is, and every step fails. */
static int fill_chunk(struct nkv_engine *e, struct request *r, uint32_t n)
{
    int status = e->options.fill(e->options.fill_arg, r->seq, r->prompt + r->n_fed, n);
    uint32_t length = nkv_seq_length(r->seq);
    char message[512];

    if (nkv_seq_status(r->seq) < 0)
        return nkv_seq_status(r->seq);
    if (status >= 0 && length == r->n_fed + n)
        return 0;
    if (status >= 0)
        status = nkv_fail(NKV_ESTATE,
                          "engine: fill was to append %u tokens to the %u of a sequence, which has %u now: append as "
                          "many, and end the step",
                          n, r->n_fed, length);
    snprintf(message, sizeof message, "%s", nkv_last_error());
    (void)nkv_seq_truncate(r->seq, r->n_fed);
    return nkv_fail(status, "%s", message);
}

static int feed(struct nkv_engine *e, struct request *r, uint32_t n)
{
    return e->options.fill ? fill_chunk(e, r, n)
                           : nkv_prefill(e->decoder, r->seq, r->prompt + r->n_fed, n, NULL, NULL, NULL);
}

static int prefill_chunk(struct nkv_engine *e, struct request *r, uint32_t n)
{
    int status = feed(e, r, n);

    if (status < 0 && nkv_seq_status(r->seq) == 0)
        return status;
    if (status < 0) {
        end(e, r, status, nkv_seq_error(r->seq));
        return 0;
    }
    r->n_fed += n;
    e->stats.prefill_tokens += n;
    tell(e, r, (struct nkv_engine_event){.kind = NKV_ENGINE_PREFILLED, .n = n});
    return 0;
}

/* Whole chunks only, each request's next one when that of the request before did fit. */
static int prefill(struct nkv_engine *e, uint32_t n_tokens)
{
    for (struct request *r = e->first; r; r = r->next)
        while (r->state == RUNNING && r->n_fed < r->n_prompt - 1) {
            uint32_t rest = r->n_prompt - 1 - r->n_fed;
            uint32_t n = rest < e->options.chunk_tokens ? rest : e->options.chunk_tokens;

            if (n > n_tokens)
                return 0;
            TRY(prefill_chunk(e, r, n));
            n_tokens -= n;
        }
    return 0;
}

static int run(struct nkv_engine *e)
{
    int n_decoded;

    TRY(admit(e));
    move(e);
    n_decoded = decode(e);
    TRY(n_decoded);
    return prefill(e, e->options.step_tokens - (uint32_t)n_decoded);
}

int nkv_engine_step(struct nkv_engine *e)
{
    int status;

    if (e->stepping)
        FAIL(NKV_ESTATE, "a step was called from the callback of another: call it when that has returned");
    e->stepping = true;
    status = run(e);
    e->stepping = false;
    e->stats.n_steps++;
    sweep(e);
    return status < 0 ? status : (int)(e->stats.n_waiting + e->stats.n_running);
}

void nkv_engine_stats(const struct nkv_engine *e, struct nkv_engine_stats *stats_out)
{
    *stats_out = e->stats;
}
