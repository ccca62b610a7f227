/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions: taken up again in every mode they give the bits of a run that was never interrupted; a prompt that differs
 * cuts them; one that begins alike forks pages and frees none that others count; what is refused, and why.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include <nearkv/device.h>

#include "base/mem.h"
#include "device/server.h"
#include "runtime/rig.h"

#define LENGTH 300u
#define STEPS  5u
#define MODEL  77u

/* The id of a token is its position, but that prompts with another `branch` differ from position `at` on. */
struct prompt {
    uint32_t branch, at;
};

static void fill_ids(struct prompt prompt, uint32_t first, int32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)(first + i + (first + i >= prompt.at ? 100000 * prompt.branch : 0));
}

static int open_session(struct rig *rig, const char *name, uint64_t model, struct prompt prompt, uint32_t n,
                        const struct nkv_seq_options *seq_options, struct nkv_seq **seq_out,
                        struct nkv_session_result *result_out)
{
    static int32_t ids[4096];
    struct nkv_session_options options = {
        .size = sizeof options, .name = name, .model = model, .tokens = ids, .n_tokens = n};

    fill_ids(prompt, 0, ids, n);
    return nkv_session_open(rig->context, seq_options, &options, seq_out, result_out);
}

/* Feeds tokens up to `length`, in chunks and then one by one. */
static void feed(struct rig *rig, struct rig_seq *s, struct prompt prompt, uint32_t length, uint32_t chunk)
{
    int32_t ids[RIG_CHUNK];

    s->length = nkv_seq_length(s->seq);
    while (s->length < length) {
        uint32_t n = length - s->length < chunk ? length - s->length : chunk;

        fill_ids(prompt, s->length, ids, n);
        assert_int_equal(nkv_seq_note_tokens(s->seq, ids, n), 0);
        if (rig_step(rig, &s, &n, 1))
            fail_msg("%s", nkv_last_error());
        assert_int_equal(nkv_seq_status(s->seq), 0);
    }
}

static void open_rig(struct rig *rig, const char *spec)
{
    struct rig_options options = {.dtype = NKV_F16, .spec = spec};

    if (rig_open(rig, &options))
        fail_msg("%s", nkv_last_error());
}

static void check_ids(struct nkv_seq *seq, struct prompt prompt)
{
    static int32_t got[4096], want[4096];
    uint32_t n = nkv_seq_length(seq);

    fill_ids(prompt, 0, want, n);
    assert_int_equal(nkv_session_tokens(seq, 0, got, n), 0);
    assert_memory_equal(got, want, n * sizeof *got);
    assert_int_equal(nkv_session_tokens(seq, n, got, 1), NKV_EINVAL);
}

static void record(enum nkv_mode mode, float out[STEPS][RIG_LAYERS * RIG_ROW])
{
    struct nkv_seq_options so = rig_seq_options(mode, 400, 160, NKV_SELECT_LAYER);
    struct nkv_seq *seq = NULL;
    struct rig_seq s;
    struct rig rig;

    open_rig(&rig, NULL);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_seq_init(&s, seq, 1);
    assert_int_equal(rig_prefill(&rig, &s, LENGTH, 128), 0);
    for (uint32_t step = 0; step < STEPS; step++) {
        assert_int_equal(rig_decode(&rig, &s), 0);
        memcpy(out[step], s.last, sizeof out[step]);
    }
    nkv_seq_close(seq);
    rig_seq_free(&s);
    rig_close(&rig);
}

/* A session begun in mode `begin` by a client that goes, and taken up in every mode by others. */
static void every_mode_goes_on_as_if_nothing_had_been(void **state)
{
    static float out[STEPS][RIG_LAYERS * RIG_ROW];
    const struct prompt prompt = {0, 0};
    struct nkv_session_result result;
    struct server server;
    struct rig rig;

    (void)state;
    server_open(&server, false, (uint64_t)32 << 20);
    for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++) {
        enum nkv_mode begin = (mode + 1) % NKV_MODE_COUNT;
        struct nkv_seq_options first = rig_seq_options(begin, 350, 160, NKV_SELECT_LAYER);
        struct nkv_seq_options second = rig_seq_options(mode, 400, 160, NKV_SELECT_LAYER);
        struct nkv_seq *seq = NULL;
        struct rig_seq s;

        record(mode, out);
        open_rig(&rig, server.spec);
        assert_int_equal(open_session(&rig, "s", MODEL, prompt, LENGTH + 2, &first, &seq, &result), 0);
        assert_true(result.how == NKV_SESSION_NEW && result.n_reused == 0 && nkv_seq_length(seq) == 0);
        rig_seq_init(&s, seq, 1);
        feed(&rig, &s, prompt, LENGTH - 50, 128);
        rig_close(&rig); /* the context closes it: it is detached */
        rig_seq_free(&s);
        server_await_clients(&server, 0);

        open_rig(&rig, server.spec);
        if (open_session(&rig, "s", MODEL, prompt, LENGTH + 2, &second, &seq, &result))
            fail_msg("%s", nkv_last_error());
        assert_true(result.how == NKV_SESSION_RESUMED && result.n_reused == LENGTH - 50);
        rig_seq_init(&s, seq, 1);
        feed(&rig, &s, prompt, LENGTH, 30);
        for (uint32_t step = 0; step < STEPS; step++) {
            feed(&rig, &s, prompt, LENGTH + 1 + step, 1);
            assert_memory_equal(s.last, out[step], sizeof out[step]);
        }
        check_ids(seq, prompt);
        nkv_seq_close(seq);
        rig_seq_free(&s);
        assert_int_equal(nkv_session_remove(rig.context, "s"), 0);
        assert_true(rig_empty(&rig));
        rig_close(&rig);
        server_await_clients(&server, 0);
    }
    server_close(&server);
}

static uint64_t used_bytes(struct rig *rig)
{
    struct nkv_device_report report;

    assert_int_equal(nkv_context_device(rig->context, 0, &report), 0);
    return report.used_bytes;
}

static void a_prompt_that_differs_cuts_a_session(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNG, 200, 160, NKV_SELECT_LAYER);
    const struct prompt one = {0, 0}, two = {1, 130};
    struct nkv_session_result result;
    struct nkv_seq *seq = NULL;
    float out[RIG_LAYERS * RIG_ROW];
    struct rig_seq s;
    struct rig rig;

    (void)state;
    open_rig(&rig, NULL);
    assert_int_equal(open_session(&rig, "s", MODEL, one, 190, &so, &seq, &result), 0);
    rig_seq_init(&s, seq, 1);
    feed(&rig, &s, one, 190, 64);
    memcpy(out, s.last, sizeof out);
    nkv_seq_close(seq);
    assert_true(used_bytes(&rig) > 0);

    so.max_tokens = 100; /* less than it holds: enough for what stays */
    assert_int_equal(open_session(&rig, "s", MODEL, two, 190, &so, &seq, &result), 0);
    assert_true(result.how == NKV_SESSION_RESUMED && result.n_reused == 130 && nkv_seq_length(seq) == 130);
    s.seq = seq;
    feed(&rig, &s, two, 150, 64);
    check_ids(seq, two);
    nkv_seq_close(seq);

    so.max_tokens = 2000; /* more than it was opened for */
    assert_int_equal(open_session(&rig, "s", MODEL, one, 190, &so, &seq, &result), 0);
    assert_int_equal(result.n_reused, 130);
    s.seq = seq;
    feed(&rig, &s, one, 190, 60);
    assert_memory_equal(s.last, out, sizeof out);
    feed(&rig, &s, one, 1900, 512);
    nkv_seq_close(seq);

    /* The same prompt again: all but its last token are reused. Decoding allocates nothing. */
    assert_int_equal(open_session(&rig, "s", MODEL, one, 1900, &so, &seq, &result), 0);
    assert_int_equal(result.n_reused, 1899);
    s.seq = seq;
    nkv_mem_fail_at(0);
    feed(&rig, &s, one, 1910, 1);
    assert_int_equal(nkv_mem_fail_at(0), 0);
    nkv_seq_close(seq);
    assert_int_equal(nkv_session_remove(rig.context, "s"), 0);
    assert_int_equal(nkv_session_remove(rig.context, "s"), NKV_ENOENT);
    assert_true(rig_empty(&rig));
    rig_seq_free(&s);
    rig_close(&rig);
}

static void a_common_beginning_is_forked_and_counted(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 800, 160, NKV_SELECT_LAYER);
    const struct prompt mother = {0, 0}, daughter = {1, 500}, stranger = {2, RIG_PAGE - 1};
    struct nkv_kv_shape shape = rig_shape(NKV_F16);
    uint64_t page_bytes = nkv_page_bytes(&shape, RIG_KV) * RIG_LAYERS;
    struct nkv_session_result result;
    struct nkv_session_info infos[4];
    struct nkv_seq *seq[3] = {NULL};
    uint64_t one;
    struct rig_seq s[2];
    struct rig rig;

    (void)state;
    open_rig(&rig, NULL);
    assert_int_equal(open_session(&rig, "mother", MODEL, mother, 700, &so, &seq[0], &result), 0);
    rig_seq_init(&s[0], seq[0], 1);
    feed(&rig, &s[0], mother, 700, 200);
    one = used_bytes(&rig);

    /* In use by somebody, as it is. 500 common tokens are 15 full pages. */
    assert_int_equal(open_session(&rig, "daughter", MODEL, daughter, 600, &so, &seq[1], &result), 0);
    assert_true(result.how == NKV_SESSION_FORKED && result.n_reused == 500);
    assert_string_equal(result.from, "mother");
    assert_int_equal(result.shared_bytes, 500 / RIG_PAGE * page_bytes);
    assert_int_equal(used_bytes(&rig), 2 * one - result.shared_bytes);
    rig_seq_init(&s[1], seq[1], 1);
    feed(&rig, &s[1], daughter, 700, 64);
    assert_memory_equal(s[1].last, s[0].last, sizeof *s[1].last * RIG_ROW); /* made-up tokens know no branches */
    check_ids(seq[1], daughter);

    /* Less than a page in common, or another model: a new one. */
    assert_int_equal(open_session(&rig, "stranger", MODEL, stranger, 600, &so, &seq[2], &result), 0);
    assert_true(result.how == NKV_SESSION_NEW && result.shared_bytes == 0);
    nkv_seq_close(seq[2]);
    assert_int_equal(nkv_session_remove(rig.context, "stranger"), 0);
    assert_int_equal(open_session(&rig, "stranger", MODEL + 1, mother, 600, &so, &seq[2], &result), 0);
    assert_int_equal(result.how, NKV_SESSION_NEW);
    nkv_seq_close(seq[2]);
    assert_int_equal(nkv_session_remove(rig.context, "stranger"), 0);

    assert_int_equal(nkv_session_list(rig.context, 0, infos, 4), 2);
    assert_string_equal(infos[0].name, "daughter");
    assert_true(infos[0].is_attached && infos[0].n_tokens == 700 && infos[0].max_tokens == 800);
    assert_true(infos[1].shared_bytes == infos[0].shared_bytes && infos[1].used_bytes == one);
    assert_int_equal(nkv_session_list(rig.context, 1, infos, 4), 1);
    assert_int_equal(nkv_session_list(rig.context, 2, infos, 4), 0);
    assert_int_equal(nkv_session_find(rig.context, "mother", infos), 0);
    assert_int_equal(nkv_session_find(rig.context, "sister", infos), NKV_ENOENT);

    /* The mother goes; what her daughter counts stays. */
    nkv_seq_close(seq[0]);
    assert_int_equal(nkv_session_remove(rig.context, "mother"), 0);
    assert_int_equal(used_bytes(&rig), one);
    feed(&rig, &s[1], daughter, 710, 1);
    nkv_seq_close(seq[1]);
    assert_int_equal(nkv_session_remove(rig.context, "daughter"), 0);
    assert_true(rig_empty(&rig));
    rig_seq_free(&s[0]);
    rig_seq_free(&s[1]);
    rig_close(&rig);
}

static void what_does_not_fit_is_refused(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, 100, 160, NKV_SELECT_LAYER);
    const struct prompt prompt = {0, 0};
    struct nkv_session_options more = {.size = sizeof more, .name = "none", .model = MODEL, .continues = true};
    struct nkv_session_result result;
    struct nkv_seq *seq = NULL, *other = NULL;
    struct rig_seq s;
    struct rig rig;
    int32_t ids[64] = {0};
    uint32_t n = 50;

    (void)state;
    open_rig(&rig, NULL);
    assert_int_equal(open_session(&rig, "", MODEL, prompt, 60, &so, &seq, &result), NKV_EINVAL);
    assert_int_equal(open_session(&rig, "a/b", MODEL, prompt, 60, &so, &seq, &result), NKV_EINVAL);
    assert_int_equal(open_session(&rig, "s", MODEL, prompt, 0, &so, &seq, &result), NKV_EINVAL);
    assert_int_equal(nkv_session_open(rig.context, &so, &more, &seq, &result), NKV_ENOENT);
    assert_true(rig_empty(&rig));
    assert_int_equal(open_session(&rig, "s", MODEL, prompt, 60, &so, &seq, &result), 0);
    rig_seq_init(&s, seq, 1);

    /* A step without its ids, or with those of other tokens, is not done. */
    assert_int_equal(rig_step(&rig, &(struct rig_seq *){&s}, &n, 1), NKV_ESTATE);
    assert_non_null(strstr(nkv_last_error(), "nkv_seq_note_tokens"));
    assert_int_equal(nkv_seq_note_tokens(seq, ids, 49), 0);
    assert_int_equal(rig_step(&rig, &(struct rig_seq *){&s}, &n, 1), NKV_ESTATE);
    feed(&rig, &s, prompt, 50, 50);
    assert_int_equal(rig_step(&rig, &(struct rig_seq *){&s}, &n, 1), NKV_ESTATE); /* those of the step before */

    assert_int_equal(open_session(&rig, "s", MODEL, prompt, 60, &so, &other, &result), NKV_ESTATE);
    assert_non_null(strstr(nkv_last_error(), "in use"));
    assert_int_equal(nkv_session_remove(rig.context, "s"), NKV_ESTATE);
    nkv_seq_close(seq);
    assert_int_equal(open_session(&rig, "s", MODEL + 1, prompt, 60, &so, &other, &result), NKV_EFORMAT);
    assert_non_null(strstr(nkv_last_error(), "another name"));
    so.max_tokens = 10000000;
    assert_int_equal(open_session(&rig, "s", MODEL, prompt, 60, &so, &other, &result), NKV_ENOSPC);
    assert_int_equal(open_session(&rig, "t", MODEL, prompt, 60, &so, &other, &result), NKV_ENOSPC);
    so.max_tokens = 100;

    /* Going on keeps all, whatever the tokens. */
    more.name = "s";
    assert_int_equal(nkv_session_open(rig.context, &so, &more, &seq, &result), 0);
    assert_true(result.how == NKV_SESSION_RESUMED && result.n_reused == 50 && nkv_seq_length(seq) == 50);
    nkv_seq_close(seq);
    assert_int_equal(nkv_session_remove(rig.context, "s"), 0);
    assert_true(rig_empty(&rig));
    rig_seq_free(&s);
    rig_close(&rig);
}

/* A device that fails a command of an opening keeps what it had before, and nothing more. */
static void a_failed_opening_leaves_things_as_they_were(void **state)
{
    static const char *const ops[] = {"seq_publish", "seq_list", "seq_fork", "seq_truncate", "read", "seq_open"};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNG, 300, 160, NKV_SELECT_LAYER);
    const struct prompt one = {0, 0}, two = {1, 130};
    struct nkv_session_result result;
    struct nkv_session_info infos[3];
    char spec[64];

    (void)state;
    for (size_t op = 0; op < sizeof ops / sizeof *ops; op++)
        for (uint32_t nth = 1; nth < 9; nth++) {
            struct nkv_seq *seq = NULL;
            struct rig_seq s;
            struct rig rig;
            int status, n;

            snprintf(spec, sizeof spec, "fault:op=%s,n=%u:cpu", ops[op], nth);
            open_rig(&rig, spec);
            status = open_session(&rig, "one", MODEL, one, 200, &so, &seq, &result);
            if (status == 0) {
                rig_seq_init(&s, seq, 1);
                feed(&rig, &s, one, 200, 200);
                rig_seq_free(&s);
                nkv_seq_close(seq);
                status = open_session(&rig, "two", MODEL, two, 200, &so, &seq, &result);
                assert_true(status == 0 ? result.how == NKV_SESSION_FORKED : status == NKV_EDEVICE);
                if (status == 0)
                    nkv_seq_close(seq);
                status = open_session(&rig, "one", MODEL, two, 200, &so, &seq, &result);
                assert_true(status == 0 || status == NKV_EDEVICE);
                if (status == 0)
                    nkv_seq_close(seq);
            }
            n = nkv_session_list(rig.context, 0, infos, 3);
            if (n < 0) /* the fault was still to come */
                n = nkv_session_list(rig.context, 0, infos, 3);
            for (int i = 0; i < n; i++) {
                assert_false(infos[i].is_attached);
                if (nkv_session_remove(rig.context, infos[i].name) < 0)
                    assert_int_equal(nkv_session_remove(rig.context, infos[i].name), 0);
            }
            assert_true(rig_empty(&rig));
            rig_close(&rig);
        }
}

static void every_failed_allocation_of_an_opening_is_survived(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_RECALL, 300, 160, NKV_SELECT_LAYER);
    const struct prompt one = {0, 0}, two = {1, 130};
    struct nkv_session_result result;
    struct nkv_seq *seq = NULL;
    struct rig_seq s;
    struct rig rig;

    (void)state;
    open_rig(&rig, NULL);
    assert_int_equal(open_session(&rig, "mother", MODEL, one, 200, &so, &seq, &result), 0);
    rig_seq_init(&s, seq, 1);
    feed(&rig, &s, one, 200, 200);
    nkv_seq_close(seq);
    rig_seq_free(&s);
    for (uint32_t i = 0; i < 3; i++) { /* a fork, a new one, one that is taken over and grown */
        const char *name = i == 0 ? "daughter" : i == 1 ? "stranger" : "mother";
        uint64_t used = used_bytes(&rig), n = 0;
        int status;

        so.max_tokens += 100;
        do {
            nkv_mem_fail_at(++n);
            status = open_session(&rig, name, MODEL + (i == 1), two, 200, &so, &seq, &result);
            nkv_mem_fail_at(0);
            assert_true(status == 0 || (status == NKV_ENOMEM && (used_bytes(&rig) == used || i == 2)));
        } while (status < 0);
        assert_true(n > 3 && result.how == (i == 0   ? NKV_SESSION_FORKED
                                            : i == 1 ? NKV_SESSION_NEW
                                                     : NKV_SESSION_RESUMED));
        assert_int_equal(result.n_reused, i == 1 ? 0 : 130);
        nkv_seq_close(seq);
        assert_int_equal(nkv_session_remove(rig.context, name), 0);
        if (i == 0)
            assert_int_equal(used_bytes(&rig), used);
    }
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mode_goes_on_as_if_nothing_had_been),
        cmocka_unit_test(a_prompt_that_differs_cuts_a_session),
        cmocka_unit_test(a_common_beginning_is_forked_and_counted),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(a_failed_opening_leaves_things_as_they_were),
        cmocka_unit_test(every_failed_allocation_of_an_opening_is_survived),
    };

    if (argc == 4)
        return server_role(argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
