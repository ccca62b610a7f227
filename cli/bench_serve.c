/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv bench serve: an engine under a load of requests that come at random or all at once. One loop submits what has
 * arrived and makes steps; between arrivals, when nothing runs, it sleeps. Prompts are random tokens, and end tokens
 * are passed over, so that every request gives as many tokens as it was asked for. With --fill a prompt is not computed
 * but its cache is there, as if another machine had made it: what is then measured is decoding, and with long prompts
 * only that can be measured in minutes. Everything else is as ever: admission, placement, moves, batches.
 *
 * Time is the machine's: a run with arrivals takes as long as they do. A virtual clock belongs to the simulator.
 */
#define _GNU_SOURCE
#include "bench_serve.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "parallel.h"
#include "progress.h"
#include "text.h"

#define CHUNK_TOKENS 512u
#define MAX_SLEEP_NS 50000000u
/* With --fill a step takes all prompts that it finds. */
#define FILL_STEP_TOKENS (1u << 30)

static const char usage[] =
    "usage: nearkv bench serve [--arrivals A] [--lengths L] [options]\n"
    "Latencies, throughput and the devices' load while requests come, run together and go.\n"
    "\n"
    "  --arrivals A            poisson:R (R requests per second) or all (at once; all)\n"
    "  --lengths L             of prompts: uniform:A-B, loguniform:A-B or fixed:N tokens (uniform:128-1024)\n"
    "  --outputs N|A-B         tokens that each request gets, from A to B at random; at least 2 (32)\n"
    "  --fill                  prompts are not computed: random keys and values are put into the cache\n"
    "  --requests N            how many requests (16)\n"
    "  --batch N               requests that run at a time (8)\n"
    "  --micro-batches N       1, or 2: dense layers of one half of a decode step under attention of the other (1)\n"
    "  --step-tokens N         tokens of a step, prompts and decoding together (a chunk of 512 beside the batch)\n"
    "  --kv-parallel auto|dp|cp|tp  as in run (dp: who else is served never changes the rounding of a text)\n"
    "  --move-steps N          a sequence moves to another device when that pays within N steps; 0: never (256)\n"
    "  --seed S                of lengths, outputs, arrivals and prompts (0)\n"
    "  --shape NAME            random weights of a known shape instead of a model, as in bench decode\n"
    "  --weights TYPE          of these: f32, f16, bf16 or q8_0 (bf16)\n"
    "  --json                  one JSON object on stdout (schema nearkv.bench.serve/1)\n" SESSION_MODE_HELP
        SESSION_TRACE_HELP;

enum {
    ARRIVALS = SESSION_END,
    LENGTHS,
    OUTPUTS,
    FILL,
    REQUESTS,
    BATCH,
    MICRO_BATCHES,
    STEP_TOKENS,
    MOVE_STEPS,
    SEED,
    SHAPE,
    WEIGHTS,
    JSON,
    HELP
};

static const struct option long_options[] = {
    SESSION_LONG_OPTIONS,
    {"arrivals", required_argument, NULL, ARRIVALS},
    {"kv-parallel", required_argument, NULL, SESSION_KV_PARALLEL},
    {"lengths", required_argument, NULL, LENGTHS},
    {"outputs", required_argument, NULL, OUTPUTS},
    {"fill", no_argument, NULL, FILL},
    {"requests", required_argument, NULL, REQUESTS},
    {"batch", required_argument, NULL, BATCH},
    {"micro-batches", required_argument, NULL, MICRO_BATCHES},
    {"step-tokens", required_argument, NULL, STEP_TOKENS},
    {"move-steps", required_argument, NULL, MOVE_STEPS},
    {"seed", required_argument, NULL, SEED},
    {"shape", required_argument, NULL, SHAPE},
    {"weights", required_argument, NULL, WEIGHTS},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static const struct arguments arguments = {
    .usage = usage, .more_usage = session_help, .options = long_options, .help = HELP};

static int read_flag(int flag, const char *arg, void *read_arg)
{
    struct serve_options *o = read_arg;

    switch (flag) {
    case 'm':
        o->has_model = true;
        return session_option(&o->session, flag, arg);
    case ARRIVALS:
        return serve_read_arrivals(arg, o);
    case LENGTHS:
        return serve_read_lengths(arg, o);
    case OUTPUTS:
        return serve_read_outputs(arg, o);
    case FILL:
        o->fill = true;
        return CLI_OK;
    case REQUESTS:
        return cli_u32("--requests", arg, 1, 1000000, &o->n_requests);
    case BATCH:
        return cli_u32("--batch", arg, 1, 4096, &o->batch);
    case MICRO_BATCHES:
        return cli_u32("--micro-batches", arg, 1, 2, &o->session.n_micro_batches);
    case STEP_TOKENS:
        return cli_u32("--step-tokens", arg, 1, 1u << 28, &o->step_tokens);
    case MOVE_STEPS:
        return cli_u32("--move-steps", arg, 0, UINT32_MAX, &o->move_steps);
    case SEED:
        return cli_u64("--seed", arg, 0, INT64_MAX, &o->seed);
    case SHAPE:
        o->shape = arg;
        return CLI_OK;
    case WEIGHTS:
        o->has_weights = true;
        return nkv_dtype_parse(arg, &o->weights) < 0 ? cli_usage("--weights: %s", nkv_last_error()) : CLI_OK;
    case JSON:
        o->json = true;
        return CLI_OK;
    default:
        return session_option(&o->session, flag, arg);
    }
}

/* ---- Opening */

static struct nkv_seq_options seq_options(const struct serve *s, const struct serve_request *r)
{
    struct nkv_seq_options seq;

    session_seq_options(&s->session, r->n_prompt, r->n_prompt + r->n_outputs - 1, &seq);
    return seq;
}

/* Room for a batch of the longest, spread over the devices. */
static int need_of(const struct serve *s, struct session_need *need_out)
{
    const struct serve_request longest = {.n_prompt = s->longest, .n_outputs = s->opt.max_outputs};
    struct nkv_seq_options seq = seq_options(s, &longest);
    uint32_t n_devices = session_device_count(&s->opt.session), n_homes = session_home_count(&s->opt.session);
    struct session_need need = {.max_batch = s->opt.batch};
    uint64_t bytes, part = 0, compute_bytes;
    int rc = session_device_bytes(&s->session, 0, seq.max_tokens, &bytes);

    if (rc == CLI_OK && session_kv_parallel(&s->opt.session) == NKV_KV_AUTO)
        rc = session_part_bytes(&s->session, 0, seq.max_tokens, &part);
    if (rc == CLI_OK)
        rc = session_compute_bytes(&s->session, &seq, &compute_bytes);
    if (rc != CLI_OK)
        return rc;
    need.device_bytes = (s->opt.batch + n_homes - 1) / n_homes * bytes;
    if (need.device_bytes < s->opt.batch * part) /* all of them spread, with pages that parts are rounded up to */
        need.device_bytes = s->opt.batch * part;
    need.total_bytes = n_devices * need.device_bytes;
    need.compute_bytes = s->opt.batch * compute_bytes;
    *need_out = need;
    return CLI_OK;
}

static int cache_bytes(void *arg, const struct nkv_kv_shape *shape, const struct nkv_model_info *info,
                       uint64_t *bytes_out)
{
    struct serve *s = arg;
    struct session_need need;
    int rc;

    (void)info;
    s->session.shape = *shape;
    rc = session_check_shape(&s->opt.session, shape);
    if (rc == CLI_OK)
        rc = need_of(s, &need);
    if (rc == CLI_OK)
        *bytes_out = need.total_bytes + need.compute_bytes;
    return rc;
}

static int open_shape(struct serve *s)
{
    const struct session_options *o = &s->opt.session;
    struct nkv_decoder_options decoder = {.size = sizeof decoder,
                                          .n_threads = o->n_threads,
                                          .max_batch = s->opt.batch,
                                          .chunk_tokens = CHUNK_TOKENS,
                                          .n_micro_batches = o->n_micro_batches};
    struct estimate program = {
        .shape = {.page_tokens = o->page_tokens, .dtype = o->kv, .digest = o->digest},
        .mode = o->seq.mode,
        .budget_tokens = o->seq.budget_tokens,
        .chunk_tokens = CHUNK_TOKENS,
        .n_devices = session_device_count(o),
        .n_more_windows = session_more_windows(o),
        .n_threads = o->n_threads,
    };
    struct session_need need;
    int rc;

    s->session.options = *o;
    rc = bench_open_model(s->opt.shape, s->opt.weights, &decoder, &program, cache_bytes, s, &s->session.model);
    if (rc != CLI_OK)
        return rc;
    nkv_model_info(s->session.model, &s->session.info);
    rc = need_of(s, &need);
    return rc == CLI_OK ? session_open_checked(&s->session, &need) : rc;
}

static int open_model(struct serve *s)
{
    struct session_need need;
    int rc = session_open_model(&s->session, &s->opt.session);

    if (rc == CLI_OK)
        rc = session_check_context(&s->session, "--lengths", s->longest, s->opt.max_outputs);
    if (rc == CLI_OK)
        rc = need_of(s, &need);
    return rc == CLI_OK ? session_open_devices(&s->session, &need) : rc;
}

/* ---- Running */

static struct serve_request *find(struct serve *s, uint64_t id)
{
    for (uint32_t i = 0; i < s->n_submitted; i++)
        if (s->requests[i].id == id)
            return &s->requests[i];
    return NULL;
}

static void end_request(struct serve *s, struct serve_request *r, int status, const char *error)
{
    r->ended = true;
    r->status = status;
    s->n_ended++;
    if (status < 0 && s->n_failed++ == 0)
        snprintf(s->error, sizeof s->error, "%s", error);
}

static struct serve_device *place_of(struct serve *s, uint32_t device)
{
    enum nkv_kv_parallel kv_parallel = session_kv_parallel(&s->opt.session);

    return kv_parallel == NKV_KV_CONTEXT || kv_parallel == NKV_KV_HEADS || device == NKV_ALL_DEVICES
               ? &s->spread
               : &s->devices[device];
}

static void on_event(void *arg, const struct nkv_engine_event *event)
{
    struct serve *s = arg;
    struct serve_request *r = find(s, event->id);
    uint64_t now = progress_now_ns();

    switch (event->kind) {
    case NKV_ENGINE_ADMITTED:
        r->admitted_ns = now;
        place_of(s, event->device)->n_sequences++;
        break;
    case NKV_ENGINE_PREFILLED:
        place_of(s, event->device)->prefill_tokens += event->n;
        break;
    case NKV_ENGINE_TOKEN:
        place_of(s, event->device)->output_tokens++;
        r->first_ns = r->first_ns ? r->first_ns : now;
        r->last_ns = now;
        r->n_tokens = event->n;
        break;
    case NKV_ENGINE_END:
        end_request(s, r, event->status, event->error);
        break;
    }
}

static void submit(struct serve *s, uint32_t i)
{
    struct serve_request *r = &s->requests[i];
    struct nkv_request request = {.size = sizeof request,
                                  .prompt = s->prompt,
                                  .n_prompt = r->n_prompt,
                                  .max_new_tokens = r->n_outputs,
                                  .ignores_end = true,
                                  .seq = seq_options(s, r),
                                  .sampler = {.size = sizeof request.sampler, .top_p = 1}};
    uint64_t random = s->opt.seed + 1 + i;

    for (uint32_t t = 0; t < r->n_prompt; t++)
        s->prompt[t] = (int32_t)(text_random(&random) % s->session.info.n_vocab);
    s->n_submitted = i + 1;
    if (nkv_engine_submit(s->engine, &request, &r->id) < 0)
        end_request(s, r, NKV_ENOSPC, nkv_last_error());
}

static void submit_arrived(struct serve *s)
{
    while (s->n_submitted < s->opt.n_requests &&
           progress_now_ns() - s->start_ns >= s->requests[s->n_submitted].arrival_ns)
        submit(s, s->n_submitted);
}

/* Until the next arrival, or a little while: then Ctrl-C is looked at. */
static void sleep_until_arrival(const struct serve *s)
{
    uint64_t elapsed = progress_now_ns() - s->start_ns, next = s->requests[s->n_submitted].arrival_ns;
    uint64_t left = next > elapsed ? next - elapsed : 0;

    progress_sleep_ms((uint32_t)((left < MAX_SLEEP_NS ? left : MAX_SLEEP_NS) / 1000000 + 1));
}

static int drive(struct serve *s, struct progress *progress)
{
    while (s->n_ended < s->opt.n_requests) {
        int n_left;

        submit_arrived(s);
        n_left = nkv_engine_step(s->engine);
        if (n_left < 0)
            return cli_fail("%s", nkv_last_error());
        if (n_left == 0 && s->n_submitted < s->opt.n_requests)
            sleep_until_arrival(s);
        if (progress_update(progress, s->n_ended, s->opt.n_requests))
            return cli_fail("stopped after %u of %u requests", s->n_ended, s->opt.n_requests);
    }
    return CLI_OK;
}

/* What a device has worked since it was opened. returns: 0, or a negative code: NKV_EDEVICE where it is lost. */
static int read_work(const struct serve *s, uint32_t i, struct serve_work *work_out)
{
    struct nkv_device_report report;
    int status = nkv_context_device(s->session.context, i, &report);

    if (status == 0)
        *work_out = (struct serve_work){report.busy_ns, report.read_bytes, report.written_bytes};
    return status;
}

static int begin_work(struct serve *s)
{
    for (uint32_t i = 0; i < s->session.n_devices; i++)
        if (read_work(s, i, &s->devices[i].work) < 0)
            return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

/* A device that went in the middle took its counts with it, and the others' still tell something. */
static int end_work(struct serve *s)
{
    for (uint32_t i = 0; i < s->session.n_devices; i++) {
        struct serve_device *d = &s->devices[i];
        struct serve_work now = d->work;
        int status = read_work(s, i, &now);

        d->is_lost = status == NKV_EDEVICE;
        if (status < 0 && !d->is_lost)
            return cli_fail("%s", nkv_last_error());
        d->work = (struct serve_work){now.busy_ns - d->work.busy_ns, now.read_bytes - d->work.read_bytes,
                                      now.written_bytes - d->work.written_bytes};
    }
    return CLI_OK;
}

/* What putting a prompt in takes, first touches of memory among it, is not the load's, which has it from elsewhere. */
static void leave_out(struct serve *s, const struct serve_work *before)
{
    for (uint32_t i = 0; i < s->session.n_devices; i++) {
        struct serve_device *d = &s->devices[i];
        struct serve_work after = before[i];

        (void)read_work(s, i, &after); /* a lost one is told of at the end */
        d->fill_ns += after.busy_ns - before[i].busy_ns;
        d->work.busy_ns += after.busy_ns - before[i].busy_ns;
        d->work.read_bytes += after.read_bytes - before[i].read_bytes;
        d->work.written_bytes += after.written_bytes - before[i].written_bytes;
    }
}

static int fill(void *arg, struct nkv_seq *seq, const int32_t *tokens, uint32_t n)
{
    struct serve *s = arg;
    struct serve_work before[SESSION_MAX_DEVICES] = {0};
    int status;

    (void)tokens;
    for (uint32_t i = 0; i < s->session.n_devices; i++)
        (void)read_work(s, i, &before[i]);
    status = bench_fill_chunk(s->session.context, seq, &s->source, n, s->k, s->v);
    leave_out(s, before);
    return status;
}

static int open_fill(struct serve *s)
{
    const struct nkv_kv_shape *shape = &s->session.shape;
    size_t floats = (size_t)CHUNK_TOKENS * shape->n_kv_heads * shape->head_dim;

    if (!s->opt.fill)
        return CLI_OK;
    s->k = malloc(floats * sizeof *s->k);
    s->v = malloc(floats * sizeof *s->v);
    if (!s->k || !s->v)
        return cli_fail("out of memory");
    return bench_source_open(shape, s->opt.seed, &s->source) < 0 ? CLI_FAILED : CLI_OK;
}

static int run(struct serve *s)
{
    const struct nkv_engine_options options = {.size = sizeof options,
                                               .max_running = s->opt.batch,
                                               .chunk_tokens = CHUNK_TOKENS,
                                               .step_tokens = s->opt.step_tokens,
                                               .move_steps = s->opt.move_steps,
                                               .event = on_event,
                                               .event_arg = s,
                                               .fill = s->opt.fill ? fill : NULL,
                                               .fill_arg = s};
    const struct serve_request longest = {.n_prompt = s->longest, .n_outputs = s->opt.max_outputs};
    struct nkv_seq_options seq = seq_options(s, &longest);
    struct progress progress;
    int rc;

    if (nkv_engine_open(s->session.decoder, &options, &s->engine) < 0)
        return cli_usage("%s", nkv_last_error());
    rc = begin_work(s);
    if (rc != CLI_OK)
        return rc;
    if (nkv_seq_can_fit(s->session.context, &seq) < 0)
        return cli_usage("--lengths %s: %s", s->opt.lengths_text, nkv_last_error());
    progress_catch_interrupt();
    progress_start(&progress, "serving", "requests");
    s->start_ns = progress_now_ns();
    rc = drive(s, &progress);
    s->end_ns = progress_now_ns();
    progress_end(&progress);
    return rc == CLI_OK ? end_work(s) : rc;
}

static void set_defaults(struct serve_options *o)
{
    *o = (struct serve_options){.weights = NKV_BF16,
                                .arrivals_text = "all",
                                .lengths_text = "uniform:128-1024",
                                .lengths = SERVE_UNIFORM,
                                .min_length = 128,
                                .max_length = 1024,
                                .min_outputs = 32,
                                .max_outputs = 32,
                                .n_requests = 16,
                                .batch = 8,
                                .move_steps = 256};
    session_defaults(&o->session);
    o->session.n_micro_batches = 1;
}

/* What is wrong between the options. */
static int check_options(const struct serve_options *o)
{
    if (o->shape && o->has_model)
        return cli_usage("-m %s and --shape %s: each is what runs, give one", o->session.model, o->shape);
    if (o->has_weights && !o->shape)
        return cli_usage("--weights is the type of random weights: give their --shape, or leave it out");
    if (o->step_tokens && o->step_tokens < o->batch + CHUNK_TOKENS)
        return cli_usage("--step-tokens %u: %u requests that decode (--batch) and a chunk of %u need at least %u, or "
                         "prompts would wait for ever",
                         o->step_tokens, o->batch, CHUNK_TOKENS, o->batch + CHUNK_TOKENS);
    if (o->session.n_micro_batches > o->batch)
        return cli_usage("--micro-batches %u: a batch of %u has no halves: raise --batch", o->session.n_micro_batches,
                         o->batch);
    return session_check(&o->session);
}

/* The session's options follow the benchmark's own. */
static int read_options(int argc, char **argv, struct serve_options *o)
{
    int rc;

    set_defaults(o);
    rc = bench_read_options(argc, argv, &arguments, read_flag, o);
    if (o->fill && !o->step_tokens)
        o->step_tokens = FILL_STEP_TOKENS;
    return rc == CLI_OK ? check_options(o) : rc;
}

int bench_serve_main(int argc, char **argv)
{
    struct serve s = {0};
    int rc = read_options(argc, argv, &s.opt);

    if (rc != CLI_OK)
        return rc < 0 ? CLI_OK : rc;
    parallel_tell_binding(s.opt.session.n_threads);
    rc = serve_draw(&s);
    if (rc == CLI_OK)
        rc = s.opt.shape ? open_shape(&s) : open_model(&s);
    if (rc == CLI_OK)
        rc = open_fill(&s);
    if (rc == CLI_OK)
        rc = run(&s);
    if (rc == CLI_OK)
        rc = serve_print(&s);
    nkv_engine_close(s.engine);
    session_close(&s.session);
    bench_source_close(&s.source);
    free(s.k);
    free(s.v);
    free(s.requests);
    free(s.prompt);
    return rc;
}
