/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine: every request gets the tokens that it gets alone, whoever runs beside it, in whatever order they come and
 * leave, wherever they are moved; memory is free when a request ends; one that fails, or is cancelled, ends alone. With
 * one micro-batch, then with two.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <nearkv/engine.h>

#include "many_fixture.h"

#define N_REQUESTS 7u
#define MAX_NEW    24u
#define CHUNK      16u

static const uint32_t prompts[N_REQUESTS] = {40, 1, 150, 17, 16, 90, 2};
static const uint32_t news[N_REQUESTS] = {12, 24, 3, 20, 1, 9, 16};

static uint64_t used_bytes(const struct many *m)
{
    struct nkv_device_report report;
    uint64_t bytes = 0;

    for (uint32_t i = 0; i <= N_DEVICES; i++) {
        assert_ok(nkv_context_device(m->context, i, &report));
        bytes += report.used_bytes;
    }
    return bytes;
}

/* ---- What was told */

struct heard {
    const struct many *many;
    struct nkv_engine *engine;
    uint64_t ids[N_REQUESTS];
    int32_t tokens[N_REQUESTS][MAX_NEW];
    uint32_t n_tokens[N_REQUESTS], n_admitted[N_REQUESTS], n_ends[N_REQUESTS], devices[N_REQUESTS];
    uint32_t n_prefilled[N_REQUESTS];
    int status[N_REQUESTS];
    uint32_t step_tokens;  /* of the step under way */
    uint32_t order[64], n; /* of admission */
    uint64_t cancel_id;    /* when any token is told */
};

static uint32_t index_of(const struct heard *h, uint64_t id)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        if (h->ids[i] == id)
            return i;
    fail_msg("no request %llu", (unsigned long long)id);
    return 0;
}

static void hear(void *arg, const struct nkv_engine_event *event)
{
    struct heard *h = arg;
    uint32_t i = index_of(h, event->id);

    assert_int_equal(h->n_ends[i], 0);
    switch (event->kind) {
    case NKV_ENGINE_ADMITTED:
        h->order[h->n++] = i;
        h->n_admitted[i]++;
        break;
    case NKV_ENGINE_PREFILLED:
        h->n_prefilled[i] += event->n;
        h->step_tokens += event->n;
        break;
    case NKV_ENGINE_TOKEN:
        h->tokens[i][h->n_tokens[i]++] = event->token;
        assert_int_equal(event->n, h->n_tokens[i]);
        h->step_tokens++;
        assert_int_equal(nkv_engine_step(h->engine), NKV_ESTATE);
        if (h->cancel_id)
            assert_int_equal(nkv_engine_cancel(h->engine, h->cancel_id), 0);
        h->cancel_id = 0;
        break;
    case NKV_ENGINE_END:
        h->n_ends[i]++;
        h->status[i] = event->status;
        assert_int_equal(event->n, h->n_tokens[i]);
        assert_true(event->error && (event->error[0] != '\0') == (event->status < 0));
        break;
    }
    h->devices[i] = event->device;
}

static struct nkv_engine_options options_of(struct heard *h)
{
    return (struct nkv_engine_options){
        .size = sizeof(struct nkv_engine_options), .chunk_tokens = CHUNK, .event = hear, .event_arg = h};
}

static void start(const struct many *m, struct nkv_engine_options options, struct heard *h)
{
    *h = (struct heard){.many = m};
    assert_ok(nkv_engine_open(m->decoder, &options, &h->engine));
}

static int submit(struct heard *h, enum nkv_mode mode, uint32_t i)
{
    int32_t prompt[160];
    struct nkv_request request = {
        .size = sizeof request,
        .prompt = prompt,
        .n_prompt = prompts[i],
        .max_new_tokens = news[i],
        .ignores_end = true,
        .sampler = {.size = sizeof request.sampler, .temperature = i % 2 ? 1.0f : 0.0f, .top_p = 1, .seed = i}};

    nkv_seq_options_init(&request.seq);
    request.seq.mode = mode;
    request.seq.budget_tokens = 64;
    request.seq.sparse_prefill = i == 2 && mode != NKV_MODE_FULL;
    for (uint32_t t = 0; t < prompts[i]; t++)
        prompt[t] = (int32_t)((t * 7 + i * 31 + t * t % 5) % h->many->n_vocab);
    return nkv_engine_submit(h->engine, &request, &h->ids[i]);
}

static void run_out(struct heard *h)
{
    int n = 1;

    while (n > 0) {
        n = nkv_engine_step(h->engine);
        assert_ok(n);
    }
}

static void alone(const struct many *m, enum nkv_mode mode, struct heard *all)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        struct heard h;

        start(m, options_of(&h), &h);
        assert_ok(submit(&h, mode, i));
        run_out(&h);
        assert_int_equal(h.n_tokens[i], news[i]);
        memcpy(all->tokens[i], h.tokens[i], sizeof h.tokens[i]);
        nkv_engine_close(h.engine);
        assert_int_equal(used_bytes(m), 0);
    }
}

static void same(const struct heard *a, const struct heard *b, uint32_t i)
{
    for (uint32_t t = 0; t < news[i]; t++)
        if (a->tokens[i][t] != b->tokens[i][t])
            fail_msg("request %u, token %u: %d, alone %d", i, t, a->tokens[i][t], b->tokens[i][t]);
}

/* ---- Tests */

/* Against prefill and decode by hand: chunks of the engine's size, the last token by a decode step. */
static void alone_is_the_decoder(void **state)
{
    struct heard h;
    struct many m;
    float *logits;

    (void)state;
    open_many("cpu", 16u << 20, &m);
    logits = malloc(m.n_vocab * sizeof *logits);
    alone(&m, NKV_MODE_PNM, &h);
    for (uint32_t i = 0; i < N_REQUESTS; i += 4) { /* greedy, dense prefill */
        struct nkv_seq_options so;
        struct nkv_seq *seq = NULL;
        int32_t token = 0;

        nkv_seq_options_init(&so);
        so.budget_tokens = 64;
        so.max_tokens = 256;
        assert_ok(nkv_seq_open(m.context, &so, &seq));
        for (uint32_t t = 0; t < prompts[i] + news[i] - 1; t++) {
            if (t < prompts[i])
                token = (int32_t)((t * 7 + i * 31 + t * t % 5) % m.n_vocab);
            if (t + 1 < prompts[i])
                assert_ok(nkv_prefill(m.decoder, seq, &token, 1, NULL, NULL, NULL));
            else
                assert_ok(nkv_decode(m.decoder, &seq, &token, 1, logits));
            if (t + 1 < prompts[i])
                continue;
            token = argmax(logits, m.n_vocab);
            assert_int_equal(token, h.tokens[i][t + 1 - prompts[i]]);
        }
        nkv_seq_close(seq);
    }
    free(logits);
    close_many(&m);
}

static void together_as_alone(void **state)
{
    struct heard h, a;
    struct many m;

    (void)state;
    open_many("cpu", 16u << 20, &m);
    for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++) {
        alone(&m, mode, &a);
        for (uint32_t variant = 0; variant < 4; variant++) {
            struct nkv_engine_options options = options_of(&h);

            options.max_running = variant == 0 ? 8 : 3;
            options.step_tokens = variant == 1 ? 19 : variant == 2 ? 64 : 0;
            options.move_steps = variant == 3 ? 1000000 : 0;
            start(&m, options, &h);
            for (uint32_t i = 0; i < N_REQUESTS; i++) {
                assert_ok(submit(&h, mode, i));
                for (uint32_t s = 0; s < i * variant; s++)
                    assert_ok(nkv_engine_step(h.engine));
            }
            run_out(&h);
            for (uint32_t i = 0; i < N_REQUESTS; i++) {
                assert_true(h.n_ends[i] == 1 && h.status[i] == 0 && h.n_tokens[i] == news[i]);
                assert_int_equal(h.n_prefilled[i], prompts[i] - 1);
                same(&h, &a, i);
            }
            nkv_engine_close(h.engine);
            assert_int_equal(used_bytes(&m), 0);
        }
    }
    close_many(&m);
}

/* Rows of a decode pass do not know each other: to the bit. */
static void logits_do_not_depend_on_the_batch(void **state)
{
    struct nkv_seq *seqs[8], *other;
    float *batch, *one;
    struct many m;

    (void)state;
    open_many("cpu", 16u << 20, &m);
    batch = malloc(8 * m.n_vocab * sizeof *batch);
    one = malloc(m.n_vocab * sizeof *one);
    for (uint32_t n = 1; n <= 8; n++) {
        struct nkv_seq_options so;
        int32_t tokens[8], prompt[30];

        nkv_seq_options_init(&so);
        so.max_tokens = 64;
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t t = 0; t < 30; t++)
                prompt[t] = (int32_t)((t * 3 + i) % m.n_vocab);
            tokens[i] = (int32_t)i;
            assert_ok(nkv_seq_open(m.context, &so, &seqs[i]));
            assert_ok(nkv_prefill(m.decoder, seqs[i], prompt, 20 + i, NULL, NULL, NULL));
        }
        assert_ok(nkv_decode(m.decoder, seqs, tokens, n, batch));
        for (uint32_t i = 0; i < n; i++) {
            assert_ok(nkv_seq_fork(seqs[i], 20 + i, NULL, &other));
            assert_ok(nkv_decode(m.decoder, &other, &tokens[i], 1, one));
            assert_memory_equal(one, batch + (size_t)i * m.n_vocab, m.n_vocab * sizeof *one);
            nkv_seq_close(other);
        }
        for (uint32_t i = 0; i < n; i++)
            nkv_seq_close(seqs[i]);
    }
    free(batch);
    free(one);
    close_many(&m);
}

/* Decode is never held up by prompts, and no step takes more than its tokens. */
static void a_budget(void **state)
{
    struct nkv_engine_options options;
    struct nkv_engine_stats stats;
    struct heard h;
    struct many m;
    int n = 1;

    (void)state;
    open_many("cpu", 16u << 20, &m);
    options = options_of(&h);
    options.max_running = 4;
    options.step_tokens = 25;
    start(&m, options, &h);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        assert_ok(submit(&h, NKV_MODE_PNM, i));
    while (n > 0) {
        struct heard before = h;

        h.step_tokens = 0;
        n = nkv_engine_step(h.engine);
        assert_ok(n);
        assert_true(h.step_tokens <= 25);
        nkv_engine_stats(h.engine, &stats);
        assert_true(stats.n_running <= 4 && (int)(stats.n_running + stats.n_waiting) == n);
        for (uint32_t i = 0; i < N_REQUESTS; i++)
            if (before.n_prefilled[i] == prompts[i] - 1 && before.n_admitted[i] && !before.n_ends[i])
                assert_int_equal(h.n_tokens[i], before.n_tokens[i] + 1);
    }
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        assert_int_equal(h.order[i], i); /* in the order of submission */
    assert_int_equal(stats.most_running, 4);
    assert_int_equal(stats.n_waiting + stats.n_running, 0);
    nkv_engine_close(h.engine);
    close_many(&m);
}

/* A device holds one of the longer ones at a time: the others wait, and get what they get alone. */
static void waiting_for_room(void **state)
{
    struct nkv_kv_estimate kv;
    struct nkv_kv_shape shape;
    struct heard h, a;
    struct many m;
    uint32_t most = 0;
    int n = 1;

    (void)state;
    open_many("cpu", 16u << 20, &m);
    alone(&m, NKV_MODE_PNM, &a);
    nkv_context_shape(m.context, &shape);
    close_many(&m);
    assert_ok(nkv_kv_estimate(&shape, 100, &kv));
    open_many("cpu", kv.total_bytes, &m);
    start(&m, options_of(&h), &h);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        if (i == 2) { /* 152 tokens */
            assert_int_equal(submit(&h, NKV_MODE_PNM, i), NKV_ENOSPC);
            assert_non_null(strstr(nkv_last_error(), "can never fit"));
        } else {
            assert_ok(submit(&h, NKV_MODE_PNM, i));
        }
    while (n > 0) {
        struct nkv_engine_stats stats;

        n = nkv_engine_step(h.engine);
        assert_ok(n);
        nkv_engine_stats(h.engine, &stats);
        most = stats.n_waiting > most ? stats.n_waiting : most;
    }
    assert_true(most > 0);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        if (i != 2)
            same(&h, &a, i);
    assert_int_equal(used_bytes(&m), 0);
    nkv_engine_close(h.engine);
    close_many(&m);
}

static void cancelling(void **state)
{
    struct heard h, a;
    struct many m;

    (void)state;
    open_many("cpu", 16u << 20, &m);
    alone(&m, NKV_MODE_PNM, &a);
    for (uint32_t victim = 0; victim < N_REQUESTS; victim++)
        for (uint32_t when = 0; when < 3; when++) {
            struct nkv_engine_options options = options_of(&h);

            options.max_running = 3;
            start(&m, options, &h);
            for (uint32_t i = 0; i < N_REQUESTS; i++)
                assert_ok(submit(&h, NKV_MODE_PNM, i));
            if (when == 1)
                assert_ok(nkv_engine_step(h.engine));
            if (when == 2) /* from the callback, in the middle of a step */
                h.cancel_id = h.ids[victim];
            else
                assert_int_equal(nkv_engine_cancel(h.engine, h.ids[victim]), 0);
            run_out(&h);
            assert_int_equal(nkv_engine_cancel(h.engine, h.ids[victim]), NKV_ENOENT);
            for (uint32_t i = 0; i < N_REQUESTS; i++) {
                assert_int_equal(h.n_ends[i], 1);
                assert_int_equal(h.status[i], i == victim ? NKV_ECANCELED : 0);
                if (i != victim)
                    same(&h, &a, i);
            }
            nkv_engine_close(h.engine);
            assert_int_equal(used_bytes(&m), 0);
        }
    close_many(&m);
}

/* The n-th command of a kind fails on device 0. */
static void one_fails_alone(void **state)
{
    static const struct {
        const char *op;
        uint32_t n;
    } faults[] = {{"append", 1}, {"append", 40}, {"attend", 30}, {"select", 9}, {"seq_open", 2}};
    struct heard h, a;
    struct many m;

    (void)state;
    open_many("cpu", 16u << 20, &m);
    alone(&m, NKV_MODE_PNM, &a);
    close_many(&m);
    for (size_t f = 0; f < sizeof faults / sizeof *faults; f++) {
        uint32_t n_failed = 0;
        char spec[64];

        snprintf(spec, sizeof spec, "fault:op=%s,n=%u:cpu", faults[f].op, faults[f].n);
        open_many(spec, 16u << 20, &m);
        start(&m, options_of(&h), &h);
        for (uint32_t i = 0; i < N_REQUESTS; i++)
            assert_ok(submit(&h, NKV_MODE_PNM, i));
        run_out(&h);
        for (uint32_t i = 0; i < N_REQUESTS; i++) {
            assert_int_equal(h.n_ends[i], 1);
            n_failed += h.status[i] == NKV_EDEVICE;
            if (h.status[i] == 0)
                same(&h, &a, i);
        }
        assert_int_equal(n_failed, 1);
        assert_int_equal(used_bytes(&m), 0);
        nkv_engine_close(h.engine);
        close_many(&m);
    }
}

/* Every allocation in turn fails: the call says so, and the same tokens come when it is made again; or one request
 * ends. */
static void memory_runs_out(void **state)
{
    struct heard h, a;
    struct many m;
    uint32_t n_failures = 0, n_ended = 0;

    (void)state;
    open_many("cpu", 16u << 20, &m);
    alone(&m, NKV_MODE_PNM, &a);
    start(&m, options_of(&h), &h);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        uint64_t nth = 1;
        int n = NKV_ENOMEM;

        for (; n < 0; nth++) {
            nkv_mem_fail_at(nth);
            n = submit(&h, NKV_MODE_PNM, i);
            nkv_mem_fail_at(0);
            assert_true(n == 0 || n == NKV_ENOMEM);
            n_failures += n < 0;
        }
        for (nth = 1, n = NKV_ENOMEM; n < 0 && nth < 100; nth++) {
            nkv_mem_fail_at(nth);
            n = nkv_engine_step(h.engine);
            nkv_mem_fail_at(0);
            assert_true(n >= 0 || n == NKV_ENOMEM);
            n_failures += n < 0;
        }
    }
    run_out(&h);
    assert_true(n_failures > N_REQUESTS);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        assert_true(h.n_ends[i] == 1 && (h.status[i] == 0 || h.status[i] == NKV_ENOMEM));
        if (h.status[i] == 0)
            same(&h, &a, i);
        n_ended += h.status[i] < 0;
    }
    assert_true(n_ended <= 2); /* whose sampler, in its first step, got none */
    assert_int_equal(used_bytes(&m), 0);
    nkv_engine_close(h.engine);
    close_many(&m);
}

/* Departures leave one device busy: sequences move, and go on with the same tokens. */
static void moving(void **state)
{
    struct nkv_engine_options options;
    struct nkv_engine_stats stats;
    struct heard h, a;
    struct many m;

    (void)state;
    open_many("cpu", 16u << 20, &m);
    alone(&m, NKV_MODE_FULL, &a);
    options = options_of(&h);
    options.move_steps = 1000000;
    start(&m, options, &h);
    for (uint32_t i = 0; i < 4; i++)
        assert_ok(submit(&h, NKV_MODE_FULL, i));
    for (uint32_t s = 0; s < 3; s++)
        assert_ok(nkv_engine_step(h.engine));
    for (uint32_t i = 0; i < 4; i++)
        if (h.devices[i] == h.devices[1] && i != 1)
            assert_ok(nkv_engine_cancel(h.engine, h.ids[i]));
    assert_ok(nkv_engine_cancel(h.engine, h.ids[1]));
    run_out(&h);
    nkv_engine_stats(h.engine, &stats);
    assert_true(stats.n_moves > 0 && stats.n_failed_moves == 0);
    for (uint32_t i = 0; i < 4; i++)
        if (h.status[i] == 0)
            same(&h, &a, i);
    nkv_engine_close(h.engine);
    assert_int_equal(used_bytes(&m), 0);
    close_many(&m);
}

static void what_is_refused(void **state)
{
    const int32_t tokens[] = {1, -1};
    struct nkv_request request = {.size = sizeof request, .prompt = tokens, .n_prompt = 1, .max_new_tokens = 1};
    struct nkv_engine_options options;
    struct heard h;
    struct many m;
    uint64_t id;

    (void)state;
    open_many("cpu", 16u << 20, &m);
    options = options_of(&h);
    options.max_running = 9;
    assert_int_equal(nkv_engine_open(m.decoder, &options, &h.engine), NKV_EINVAL);
    options.max_running = 8, options.chunk_tokens = 41;
    assert_int_equal(nkv_engine_open(m.decoder, &options, &h.engine), NKV_EINVAL);
    options.chunk_tokens = 40, options.step_tokens = 47;
    assert_int_equal(nkv_engine_open(m.decoder, &options, &h.engine), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "48"));
    options.step_tokens = 48;
    start(&m, options, &h);
    nkv_seq_options_init(&request.seq);
    request.sampler.size = sizeof request.sampler;
    request.sampler.top_p = 1;
    request.n_prompt = 2;
    assert_int_equal(nkv_engine_submit(h.engine, &request, &id), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "token 1 of the prompt is -1"));
    request.n_prompt = 0;
    assert_int_equal(nkv_engine_submit(h.engine, &request, &id), NKV_EINVAL);
    request.n_prompt = 1, request.max_new_tokens = 0;
    assert_int_equal(nkv_engine_submit(h.engine, &request, &id), NKV_EINVAL);
    request.max_new_tokens = UINT32_MAX;
    assert_int_equal(nkv_engine_submit(h.engine, &request, &id), NKV_EINVAL);
    assert_int_equal(nkv_engine_step(h.engine), 0);
    nkv_engine_close(h.engine);
    close_many(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alone_is_the_decoder),
        cmocka_unit_test(together_as_alone),
        cmocka_unit_test(logits_do_not_depend_on_the_batch),
        cmocka_unit_test(a_budget),
        cmocka_unit_test(waiting_for_room),
        cmocka_unit_test(cancelling),
        cmocka_unit_test(one_fails_alone),
        cmocka_unit_test(memory_runs_out),
        cmocka_unit_test(moving),
        cmocka_unit_test(what_is_refused),
    };
    int n_failed = cmocka_run_group_tests_name("one micro-batch", tests, NULL, NULL);

    n_micro_batches = 2;
    return n_failed + cmocka_run_group_tests_name("two micro-batches", tests, NULL, NULL);
}
