/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An engine whose prompts somebody else puts into the cache: it asks for the prompt's tokens in order, in chunks, goes
 * on as if it had computed them, and treats what fails as it treats a prefill that fails.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <nearkv/engine.h>

#include "model_fixture.h"

#define N_PROMPT 50u
#define N_NEW    6u
#define CHUNK    16u

/* How a call fails: before it does anything, between two layers, or without saying so. */
enum how { AT_ONCE, HALF_WAY, SHORT, SILENT };

struct heard {
    struct rig rig;
    int32_t prompt[N_PROMPT], tokens[N_NEW];
    uint32_t n_filled, n_calls, n_tokens, n_ends;
    uint32_t fails; /* this call, counted from 1; 0: none */
    enum how how;
    int status;
};

static void hear(void *arg, const struct nkv_engine_event *event)
{
    struct heard *h = arg;

    if (event->kind == NKV_ENGINE_TOKEN)
        h->tokens[h->n_tokens++] = event->token;
    if (event->kind != NKV_ENGINE_END)
        return;
    h->n_ends++;
    h->status = event->status;
}

static int fail_as_told(struct heard *h, struct nkv_seq *seq, const int32_t *tokens, uint32_t n)
{
    static const float kv[N_PROMPT * 256];
    struct nkv_attend_item item = {.seq = seq, .n_tokens = n, .k = kv, .v = kv};
    struct nkv_ticket *ticket;

    if (h->how == SHORT)
        return nkv_prefill(h->rig.decoder, seq, tokens, n - 1, NULL, NULL, NULL);
    if (h->how != HALF_WAY)
        return h->how == SILENT ? 0 : NKV_EIO;
    assert_ok(nkv_attend_begin(h->rig.context, 0, &item, 1, &ticket));
    assert_ok(nkv_attend_end(ticket));
    return NKV_EIO;
}

/* Somebody else is the same decoder. */
static int fill(void *arg, struct nkv_seq *seq, const int32_t *tokens, uint32_t n)
{
    struct heard *h = arg;

    if (++h->n_calls == h->fails)
        return fail_as_told(h, seq, tokens, n);
    assert_int_equal(nkv_seq_length(seq), h->n_filled);
    assert_true(n <= CHUNK && h->n_filled + n < N_PROMPT);
    assert_memory_equal(tokens, h->prompt + h->n_filled, n * sizeof *tokens);
    h->n_filled += n;
    return nkv_prefill(h->rig.decoder, seq, tokens, n, NULL, NULL, NULL);
}

static void start(struct heard *h, struct nkv_model *model, bool fills, struct nkv_engine **engine_out)
{
    struct nkv_engine_options options = {.size = sizeof options,
                                         .chunk_tokens = CHUNK,
                                         .event = hear,
                                         .event_arg = h,
                                         .fill = fills ? fill : NULL,
                                         .fill_arg = h};
    struct nkv_request request = {.size = sizeof request,
                                  .prompt = h->prompt,
                                  .n_prompt = N_PROMPT,
                                  .max_new_tokens = N_NEW,
                                  .ignores_end = true,
                                  .sampler = {.size = sizeof request.sampler, .top_p = 1}};
    uint64_t id;

    *h = (struct heard){0};
    for (uint32_t t = 0; t < N_PROMPT; t++)
        h->prompt[t] = (int32_t)(t * 5 % 7);
    rig_open(model, "cpu", NKV_F16, 16, 2, &h->rig);
    nkv_seq_options_init(&request.seq);
    assert_ok(nkv_engine_open(h->rig.decoder, &options, engine_out));
    assert_ok(nkv_engine_submit(*engine_out, &request, &id));
}

static void run_out(struct nkv_engine *engine)
{
    int n = 1;

    while (n > 0) {
        n = nkv_engine_step(engine);
        assert_ok(n);
    }
}

static struct nkv_model *open_model(void)
{
    struct nkv_model *model;
    char path[512];

    fixture_path("llama", "gguf", path);
    assert_ok(nkv_model_open(path, &model));
    return model;
}

static void filled_prompts_are_prompts(void **state)
{
    struct nkv_model *model = open_model();
    struct nkv_engine_stats stats;
    struct nkv_engine *engine;
    struct heard own, other;

    (void)state;
    start(&own, model, false, &engine);
    run_out(engine);
    nkv_engine_close(engine);
    start(&other, model, true, &engine);
    run_out(engine);
    nkv_engine_stats(engine, &stats);
    nkv_engine_close(engine);
    assert_int_equal(own.n_calls, 0);
    assert_int_equal(other.n_filled, N_PROMPT - 1);
    assert_int_equal(stats.prefill_tokens, N_PROMPT - 1);
    assert_true(other.n_tokens == N_NEW && other.n_ends == 1 && other.status == 0);
    assert_memory_equal(own.tokens, other.tokens, sizeof own.tokens);
    rig_close(&own.rig);
    rig_close(&other.rig);
    nkv_model_close(model);
}

/* The sequence is well: the step is what failed, and the next one asks for the same tokens. */
static void a_chunk_that_fails_is_asked_for_again(void **state)
{
    struct nkv_model *model = open_model();
    struct nkv_engine *engine;
    struct heard own, h;
    int n;

    (void)state;
    start(&own, model, false, &engine);
    run_out(engine);
    nkv_engine_close(engine);
    for (enum how how = AT_ONCE; how <= SILENT; how++) {
        start(&h, model, true, &engine);
        h.fails = 3;
        h.how = how;
        for (n = 1; n > 0;)
            n = nkv_engine_step(engine);
        assert_int_equal(n, how < SHORT ? NKV_EIO : NKV_ESTATE);
        assert_true(how < SHORT || strstr(nkv_last_error(), "16 tokens to the 32 of"));
        assert_true(h.n_filled == 2 * CHUNK && h.n_ends == 0);
        run_out(engine);
        assert_true(h.n_filled == N_PROMPT - 1 && h.n_tokens == N_NEW && h.n_ends == 1 && h.status == 0);
        assert_memory_equal(own.tokens, h.tokens, sizeof own.tokens);
        nkv_engine_close(engine);
        rig_close(&h.rig);
    }
    rig_close(&own.rig);
    nkv_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(filled_prompts_are_prompts),
        cmocka_unit_test(a_chunk_that_fails_is_asked_for_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
