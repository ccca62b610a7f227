/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A decoder: its buffers, and the steps that it takes. A chunk of prefill and a batch of decode are the same thing
 * here: rows of tokens that belong to items (one sequence with many tokens, or many with one each) and go through the
 * layers (layers.c); only nkv_attend_begin sees the difference.
 *
 * Every buffer is sized at open for the larger of a chunk and a batch; a decode step allocates nothing.
 *
 * With several processes (options.comm) all of them run the same passes over their part of the heads and units. Rank 0
 * announces each step; the others are nkv_decoder_follow, this file's loop.
 *
 * Failure: when a step stops half way through the layers (memory), the sequences that it touched are cut back to their
 * committed length.
 */
#include "model/decoder.h"

#include <string.h>

#include "base/clock.h"
#include "base/status.h"
#include "model/layers.h"

#define DEFAULT_BATCH 16u
#define DEFAULT_CHUNK 512u
#define MAX_ROWS      65536u

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* ---- Open and close */

static uint32_t rows_of(const struct nkv_decoder *d)
{
    return max_u32(d->max_batch, d->chunk_tokens);
}

/* Zero fields get their defaults. */
static int resolve_options(const struct nkv_decoder_options *options, struct nkv_decoder *d)
{
    static const struct nkv_decoder_options defaults = {.size = sizeof defaults};

    options = options ? options : &defaults;
    if (options->size != sizeof *options)
        FAIL(NKV_EINVAL, "nkv_decoder_options.size is %u: it must be %zu", options->size, sizeof *options);
    d->n_threads = options->n_threads ? options->n_threads : nkv_cpu_count();
    d->max_batch = options->max_batch ? options->max_batch : DEFAULT_BATCH;
    d->chunk_tokens = options->chunk_tokens ? options->chunk_tokens : DEFAULT_CHUNK;
    d->comm = options->comm;
    d->max_micro = options->n_micro_batches ? options->n_micro_batches : 1;
    if (d->max_micro > NKV_MAX_MICRO_BATCHES)
        FAIL(NKV_EINVAL, "%u micro-batches: it must be 1 or %u", d->max_micro, NKV_MAX_MICRO_BATCHES);
    if (rows_of(d) > MAX_ROWS)
        FAIL(NKV_EINVAL, "a batch of %u sequences or a chunk of %u tokens: they must be at most %u", d->max_batch,
             d->chunk_tokens, MAX_ROWS);
    return 0;
}

static uint32_t max_cols(const struct nkv_model_info *info)
{
    return max_u32(max_u32(info->n_embd, info->n_ff), nkv_q_rows(info));
}

struct buffer {
    float **at;
    uint64_t width;
};

#define N_BUFFERS 9

/* The activations, each [rows][width]. Who follows has no use for those of all heads. */
static void list_buffers(struct nkv_decoder *d, const struct nkv_model *model, struct buffer buffers_out[N_BUFFERS])
{
    const struct nkv_model_info *info = &model->info;
    const bool leads = !d->comm || d->comm->rank == 0;
    const uint32_t nq = leads ? nkv_q_rows(info) : 0, nkv = leads ? nkv_kv_rows(info) : 0;
    const struct buffer buffers[N_BUFFERS] = {
        {&d->cos_sin, model->n_rot}, {&d->x, info->n_embd}, {&d->h, info->n_embd}, {&d->q, nq},
        {&d->attended, nq},          {&d->k, nkv},          {&d->v, nkv},          {&d->gate, model->shard.n_ff},
        {&d->up, model->shard.n_ff},
    };

    memcpy(buffers_out, buffers, sizeof buffers);
}

int nkv_decoder_estimate(const struct nkv_model *model, const struct nkv_decoder_options *options, uint64_t *bytes_out)
{
    struct nkv_decoder d = {0};
    struct buffer buffers[N_BUFFERS];
    uint64_t bytes;

    TRY(resolve_options(options, &d));
    list_buffers(&d, model, buffers);
    bytes = nkv_fc_bytes(d.n_threads, rows_of(&d), max_cols(&model->info)) +
            nkv_tp_bytes(model, d.comm, rows_of(&d), d.max_batch);
    for (size_t i = 0; i < N_BUFFERS; i++)
        bytes += buffers[i].width * rows_of(&d) * sizeof(float);
    *bytes_out = bytes;
    return 0;
}

static int allocate(struct nkv_decoder *d)
{
    const uint32_t rows = rows_of(d);
    struct buffer buffers[N_BUFFERS];

    TRY(nkv_team_open(d->n_threads, NULL, NULL, &d->team));
    TRY(nkv_fc_open(d->team, rows, max_cols(&d->model->info), &d->fc));
    TRY(nkv_alloc(d->max_batch, sizeof *d->items, &d->items));
    TRY(nkv_alloc(rows, sizeof *d->positions, &d->positions));
    TRY(nkv_alloc(rows, sizeof *d->tokens, &d->tokens));
    list_buffers(d, d->model, buffers);
    for (size_t i = 0; i < N_BUFFERS; i++)
        if (buffers[i].width)
            TRY(nkv_alloc((size_t)(rows * buffers[i].width), sizeof(float), buffers[i].at));
    return nkv_tp_open(d->model, d->comm, rows, d->max_batch, &d->tp);
}

/* Rows of q, k, v and out have the model's sizes: a context of another shape would read and write past them. */
static int check_context(const struct nkv_model_info *info, const struct nkv_context *context)
{
    struct nkv_kv_shape shape;

    nkv_context_shape(context, &shape);
    if (shape.n_layers != info->n_layers || shape.n_heads != info->n_heads || shape.n_kv_heads != info->n_kv_heads ||
        shape.head_dim != info->head_dim)
        FAIL(NKV_EINVAL,
             "the context is for %u layers, %u heads, %u KV heads of %u elements, but the model has %u, %u, %u, %u: "
             "open it with nkv_model_kv_shape",
             shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.head_dim, info->n_layers, info->n_heads,
             info->n_kv_heads, info->head_dim);
    return 0;
}

int nkv_decoder_open(struct nkv_model *model, struct nkv_context *context, const struct nkv_decoder_options *options,
                     struct nkv_decoder **decoder_out)
{
    struct nkv_decoder resolved = {.model = model, .context = context}, *d;
    int status;

    TRY(resolve_options(options, &resolved));
    if (!context && (!resolved.comm || resolved.comm->rank == 0))
        FAIL(NKV_EINVAL, "a decoder needs a context, unless it follows another process' (comm)");
    if (context)
        TRY(check_context(&model->info, context));
    TRY(nkv_alloc(1, sizeof *d, &d));
    *d = resolved;
    status = allocate(d);
    if (status < 0) {
        nkv_decoder_close(d);
        return status;
    }
    *decoder_out = d;
    return 0;
}

void nkv_decoder_close(struct nkv_decoder *d)
{
    struct buffer buffers[N_BUFFERS];

    if (!d)
        return;
    list_buffers(d, d->model, buffers);
    for (size_t i = 0; i < N_BUFFERS; i++)
        nkv_free(*buffers[i].at);
    nkv_tp_close(&d->tp);
    nkv_free(d->tokens);
    nkv_free(d->positions);
    nkv_free(d->items);
    nkv_fc_close(d->fc);
    nkv_team_close(d->team);
    nkv_free(d);
}

struct nkv_decoder_parts nkv_decoder_parts(const struct nkv_decoder *d)
{
    return (struct nkv_decoder_parts){d->model, d->context, d->max_batch, d->chunk_tokens};
}

void nkv_decoder_times(const struct nkv_decoder *d, struct nkv_decode_times *times_out)
{
    *times_out = d->times;
}

/* ---- A step */

/* Of all processes. */
static int lead_layers(struct nkv_decoder *d, uint32_t n_items, uint32_t n_rows, const int32_t *tokens)
{
    const uint32_t n_micro = d->max_micro < n_items ? d->max_micro : n_items;
    struct nkv_tp_step step = {.kind = NKV_TP_LAYERS, .n_rows = n_rows, .n_micro = n_micro};

    memcpy(d->tokens, tokens, n_rows * sizeof *tokens);
    TRY(nkv_tp_announce(&d->tp, &step));
    TRY(nkv_tp_tokens(&d->tp, n_rows, d->tokens, d->positions));
    TRY(nkv_layers_run(d, n_micro, n_items, n_rows, tokens));
    return nkv_step_end(d->context, d->items, n_items);
}

/* Ends what is in flight and cuts the items' sequences back to their committed length. The first failure's message is
 * the one to keep. */
static int roll_back(struct nkv_decoder *d, uint32_t n_items, int status)
{
    char message[512];

    strncpy(message, nkv_last_error(), sizeof message - 1);
    message[sizeof message - 1] = '\0';
    nkv_layers_abandon(d);
    for (uint32_t i = 0; i < n_items; i++)
        if (nkv_seq_status(d->items[i].seq) == 0)
            (void)nkv_seq_truncate(d->items[i].seq, nkv_seq_length(d->items[i].seq));
    return nkv_fail(status, "%s", message);
}

/* pre: items and positions are set. Leaves the normed output of every row in d->h. */
static int run_step(struct nkv_decoder *d, uint32_t n_items, uint32_t n_rows, const int32_t *tokens)
{
    int status = lead_layers(d, n_items, n_rows, tokens);

    return status < 0 ? roll_back(d, n_items, status) : 0;
}

/* Item i takes rows `row` .. row + n - 1. */
static int set_item(struct nkv_decoder *d, uint32_t i, struct nkv_seq *seq, const int32_t *tokens, uint32_t row,
                    uint32_t n)
{
    const size_t nq = nkv_q_rows(&d->model->info), nkv = nkv_kv_rows(&d->model->info);
    const uint32_t position = nkv_seq_length(seq);

    d->items[i] = (struct nkv_attend_item){.seq = seq,
                                           .n_tokens = n,
                                           .q = d->q + row * nq,
                                           .k = d->k + row * nkv,
                                           .v = d->v + row * nkv,
                                           .out = d->attended + row * nq};
    for (uint32_t t = 0; t < n; t++)
        d->positions[row + t] = position + t;
    return nkv_seq_note_tokens(seq, tokens, n);
}

static int check_tokens(const struct nkv_decoder *d, const int32_t *tokens, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= d->model->info.n_vocab)
            FAIL(NKV_EINVAL, "token %zu is %d: the model's vocabulary is 0 to %u", i, tokens[i],
                 d->model->info.n_vocab - 1);
    return 0;
}

/* Of this process' part of the vocabulary; rank 0 puts all parts together in logits_out. */
static int run_logits(struct nkv_decoder *d, uint32_t first_row, uint32_t n_rows, float *logits_out)
{
    float *y = d->tp.comm ? nkv_tp_rows(&d->tp, n_rows).logits : logits_out;
    const struct nkv_fc_part part = {&d->model->output, y};

    TRY(nkv_layers_fc(d, &part, 1, n_rows, d->h + (size_t)first_row * d->model->info.n_embd));
    return nkv_tp_logits(&d->tp, n_rows, logits_out);
}

static int logits_of(struct nkv_decoder *d, uint32_t first_row, uint32_t n_rows, float *logits_out)
{
    struct nkv_tp_step step = {.kind = NKV_TP_LOGITS, .n_rows = n_rows, .first_row = first_row};

    TRY(nkv_tp_announce(&d->tp, &step));
    return run_logits(d, first_row, n_rows, logits_out);
}

static int prefill_chunk(struct nkv_decoder *d, struct nkv_seq *seq, const int32_t *tokens, uint32_t n)
{
    TRY(set_item(d, 0, seq, tokens, 0, n));
    TRY(run_step(d, 1, n, tokens));
    if (nkv_seq_status(seq) < 0)
        FAIL(nkv_seq_status(seq), "%s", nkv_seq_error(seq));
    return 0;
}

int nkv_prefill(struct nkv_decoder *d, struct nkv_seq *seq, const int32_t *tokens, size_t n_tokens, float *logits_out,
                nkv_progress_fn progress, void *progress_arg)
{
    uint64_t start = nkv_now_ns();
    uint32_t n = 0;
    int status = 0;

    if (n_tokens == 0)
        FAIL(NKV_EINVAL, "the prompt is empty: it must have at least one token");
    if (n_tokens > UINT32_MAX - nkv_seq_length(seq))
        FAIL(NKV_EINVAL, "the prompt has %zu tokens: positions end at %u", n_tokens, UINT32_MAX);
    TRY(check_tokens(d, tokens, n_tokens));
    d->times = (struct nkv_decode_times){0};
    for (size_t done = 0; done < n_tokens; done += n) {
        n = n_tokens - done < d->chunk_tokens ? (uint32_t)(n_tokens - done) : d->chunk_tokens;
        TRY(prefill_chunk(d, seq, tokens + done, n));
        if (progress && progress(progress_arg, done + n, n_tokens))
            FAIL(NKV_ECANCELED, "stopped after %zu of %zu tokens", done + n, n_tokens);
    }
    if (logits_out)
        status = logits_of(d, n - 1, 1, logits_out);
    d->times.rest_ns = nkv_now_ns() - start - d->times.fc_ns - d->times.attend_ns;
    return status;
}

int nkv_decode(struct nkv_decoder *d, struct nkv_seq *const *seqs, const int32_t *tokens, uint32_t n_seqs,
               float *logits_out)
{
    const uint32_t n_vocab = d->model->info.n_vocab;
    uint64_t start = nkv_now_ns();

    if (n_seqs < 1 || n_seqs > d->max_batch)
        FAIL(NKV_EINVAL, "a decode step of %u sequences: it must be 1 to %u", n_seqs, d->max_batch);
    TRY(check_tokens(d, tokens, n_seqs));
    d->times = (struct nkv_decode_times){0};
    for (uint32_t i = 0; i < n_seqs; i++)
        TRY(set_item(d, i, seqs[i], tokens + i, i, 1));
    TRY(run_step(d, n_seqs, n_seqs, tokens));
    TRY(logits_of(d, 0, n_seqs, logits_out));
    for (uint32_t i = 0; i < n_seqs; i++)
        if (nkv_seq_status(seqs[i]) < 0)
            memset(logits_out + (size_t)i * n_vocab, 0, n_vocab * sizeof *logits_out);
    d->times.rest_ns = nkv_now_ns() - start - d->times.fc_ns - d->times.attend_ns;
    return 0;
}

/* ---- Following ---- */

/* A step that failed in rank 0 is over here, too: what it left is overwritten by the next. */
static int follow_layers(struct nkv_decoder *d, uint32_t n_rows, uint32_t n_micro)
{
    int status;

    TRY(nkv_tp_tokens(&d->tp, n_rows, d->tokens, d->positions));
    status = nkv_layers_run(d, n_micro, 0, n_rows, d->tokens);
    return d->attend_status < 0 ? 0 : status;
}

int nkv_decoder_follow(struct nkv_decoder *d)
{
    struct nkv_tp_step step = {0};

    if (nkv_tp_leads(&d->tp))
        FAIL(NKV_EINVAL, "rank 0 leads: it has nobody to follow");
    for (;;) {
        TRY(nkv_tp_announce(&d->tp, &step));
        if (step.kind == NKV_TP_END)
            return 0;
        if (step.n_rows > rows_of(d) || step.first_row > rows_of(d) - step.n_rows)
            FAIL(NKV_EINVAL, "a step of %u rows, but this process' decoder is open for %u: give all the same options",
                 step.n_rows, rows_of(d));
        if (step.kind == NKV_TP_LAYERS && (step.n_micro == 0 || step.n_micro > NKV_MAX_MICRO_BATCHES))
            FAIL(NKV_EINVAL, "a step in %u micro-batches, of at most %u: run the same version everywhere", step.n_micro,
                 NKV_MAX_MICRO_BATCHES);
        if (step.kind == NKV_TP_LAYERS)
            TRY(follow_layers(d, step.n_rows, step.n_micro));
        else
            TRY(run_logits(d, step.first_row, step.n_rows, NULL));
    }
}
