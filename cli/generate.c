/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoding. A prompt's last token is fed by a decode step, not by prefill: all answers of a batch then begin with the
 * same step, and the first token comes from the mode's own selection. Figures of decoding leave that first step out.
 *
 * A step that lost a device gives its sequences no token: they are fed the same one again when it is back, so there may
 * be more steps than tokens.
 */
#include "generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "progress.h"
#include "reconnect.h"

struct batch {
    struct answer **answers; /* those that go on */
    struct nkv_seq **seqs;
    int32_t *tokens;
    float *logits;
    uint32_t n;
};

static void batch_free(struct batch *batch)
{
    free(batch->answers);
    free(batch->seqs);
    free(batch->tokens);
    free(batch->logits);
}

static int batch_open(const struct generation *g, struct batch *batch)
{
    uint32_t n = g->n_answers;

    *batch = (struct batch){
        .answers = calloc(n, sizeof(struct answer *)),
        .seqs = calloc(n, sizeof(struct nkv_seq *)),
        .tokens = calloc(n, sizeof(int32_t)),
        .logits = calloc(n, g->session->info.n_vocab * sizeof(float)),
    };
    if (!batch->answers || !batch->seqs || !batch->tokens || !batch->logits)
        return cli_fail("out of memory for the logits of %u sequences", n);
    for (uint32_t i = 0; i < n; i++) {
        free(g->answers[i].tokens);
        g->answers[i].tokens = calloc(g->max_tokens, sizeof(int32_t));
        if (!g->answers[i].tokens)
            return cli_fail("out of memory for %u tokens", g->max_tokens);
    }
    return CLI_OK;
}

void answer_fail(struct answer *answer, int status, const char *message)
{
    answer->done = true;
    answer->status = status;
    snprintf(answer->error, sizeof answer->error, "%s", message);
}

static bool is_lost(const struct generation *g, const struct answer *answer)
{
    return !answer->done && reconnect_may_help(g->session, nkv_seq_status(answer->seq));
}

static bool any_lost(const struct generation *g)
{
    for (uint32_t i = 0; i < g->n_answers; i++)
        if (is_lost(g, &g->answers[i]))
            return true;
    return false;
}

/* Brings back the sequences whose device was lost; again, if it is lost meanwhile. */
static void revive(const struct generation *g)
{
    while (any_lost(g) && reconnect_devices(g->session))
        for (uint32_t i = 0; i < g->n_answers; i++)
            if (is_lost(g, &g->answers[i]))
                (void)reconnect_seq(g->answers[i].seq);
}

static void batch_fill(const struct generation *g, struct batch *batch)
{
    batch->n = 0;
    revive(g);
    for (uint32_t i = 0; i < g->n_answers; i++) {
        struct answer *a = &g->answers[i];

        if (!a->done && nkv_seq_status(a->seq) < 0)
            answer_fail(a, nkv_seq_status(a->seq), nkv_seq_error(a->seq));
        if (a->done)
            continue;
        batch->answers[batch->n] = a;
        batch->seqs[batch->n] = a->seq;
        batch->tokens[batch->n++] = a->n_tokens ? a->tokens[a->n_tokens - 1] : a->last_prompt_token;
    }
}

static void finish(struct answer *answer)
{
    answer->done = true;
    nkv_seq_stats(answer->seq, &answer->stats);
}

/* Takes the step's logits of one answer: its next token, its end or its failure. */
static void take_token(const struct generation *g, struct answer *answer, const float *logits)
{
    bool is_first = answer->n_tokens == 0;
    int32_t token;
    int status = nkv_seq_status(answer->seq);

    if (reconnect_may_help(g->session, status)) /* before the next step */
        return;
    if (status < 0) {
        answer_fail(answer, status, nkv_seq_error(answer->seq));
        return;
    }
    status = nkv_sample(answer->sampler, logits, g->session->info.n_vocab, &token);
    if (status < 0) {
        answer_fail(answer, status, nkv_last_error());
        return;
    }
    if (is_first) {
        answer->ttft_ns = progress_now_ns() - answer->start_ns;
        nkv_seq_stats_reset(answer->seq);
    } else {
        answer->n_steps++;
    }
    if (nkv_token_is_end(g->session->model, token)) {
        finish(answer);
        return;
    }
    answer->tokens[answer->n_tokens++] = token;
    if (g->on_token)
        g->on_token(g->on_token_arg, answer);
    if (answer->n_tokens == g->max_tokens)
        finish(answer);
}

static int run_step(const struct generation *g, struct batch *batch, uint32_t step)
{
    uint64_t start_ns = progress_now_ns();
    uint32_t n_vocab = g->session->info.n_vocab;

    if (progress_interrupted())
        return cli_fail("interrupted after %u tokens", step);
    if (nkv_decode(g->session->decoder, batch->seqs, batch->tokens, batch->n, batch->logits) < 0)
        return cli_fail("%s", nkv_last_error());
    for (uint32_t i = 0; i < batch->n; i++)
        take_token(g, batch->answers[i], batch->logits + (size_t)i * n_vocab);
    if (step < g->max_tokens)
        g->step_ns[step] = progress_now_ns() - start_ns;
    return CLI_OK;
}

int generate(struct generation *g)
{
    struct batch batch;
    int rc = batch_open(g, &batch);

    for (uint32_t step = 0; rc == CLI_OK; step++) {
        batch_fill(g, &batch);
        if (batch.n == 0)
            break;
        rc = run_step(g, &batch, step);
    }
    batch_free(&batch);
    return rc;
}

void answer_free(struct answer *answer)
{
    free(answer->tokens);
    answer->tokens = NULL;
}

/* What a token adds depends on the token before it and on nothing else: the text of both without that of the one. */
int answer_append_newest(const struct session *session, const struct answer *answer, struct text *text)
{
    uint32_t n = answer->n_tokens, n_before = n > 1 ? 1 : 0;
    const int32_t *tokens = answer->tokens + n - 1 - n_before;
    char *before = NULL, *both = NULL;
    size_t before_bytes = 0, both_bytes = 0;
    int rc;

    if (nkv_detokenize(session->model, tokens, n_before, 0, &before, &before_bytes) < 0 ||
        nkv_detokenize(session->model, tokens, n_before + 1, 0, &both, &both_bytes) < 0)
        rc = cli_fail("%s", nkv_last_error());
    else
        rc = text_append(text, both + before_bytes, both_bytes - before_bytes);
    nkv_text_free(before);
    nkv_text_free(both);
    return rc;
}

int answer_text(const struct session *session, const struct answer *answer, char **text_out, size_t *bytes_out)
{
    if (nkv_detokenize(session->model, answer->tokens, answer->n_tokens, 0, text_out, bytes_out) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

struct step_times step_times(const uint64_t *step_ns, uint32_t n)
{
    struct step_times times = {0};
    uint64_t *sorted = n ? malloc(n * sizeof *sorted) : NULL;
    double sum = 0;

    if (!sorted)
        return times;
    memcpy(sorted, step_ns, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare);
    for (uint32_t i = 0; i < n; i++)
        sum += (double)sorted[i];
    times.mean_ms = sum / n / 1e6;
    times.p50_ms = (double)sorted[(n - 1) / 2] / 1e6;
    times.p99_ms = (double)sorted[(uint64_t)(n - 1) * 99 / 100] / 1e6;
    free(sorted);
    return times;
}
