/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batches, tickets, forks, truncation, statistics and the plan log: sequences are isolated from each other whatever
 * they share a step with, and a step allocates nothing.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/mem.h"
#include "runtime/rig.h"

#define N_SEQS 4u

static const enum nkv_mode modes[N_SEQS] = {NKV_MODE_FULL, NKV_MODE_RECALL, NKV_MODE_PNM, NKV_MODE_PNG};

static struct nkv_seq_options small_budget(enum nkv_mode mode)
{
    return rig_seq_options(mode, 800, 192, mode == NKV_MODE_RECALL ? NKV_SELECT_KV_HEAD : NKV_SELECT_LAYER);
}

static void open_seq(struct rig *rig, const struct nkv_seq_options *options, uint32_t seed, struct rig_seq *s)
{
    struct nkv_seq *seq = NULL;

    assert_int_equal(nkv_seq_open(rig->context, options, &seq), 0);
    rig_seq_init(s, seq, seed);
}

static void close_seq(struct rig_seq *s)
{
    nkv_seq_close(s->seq);
    rig_seq_free(s);
}

/* Output of one sequence alone: prefill, then steps. [steps][layers][row] */
static void run_alone(enum nkv_mode mode, uint32_t seed, uint32_t length, uint32_t steps, float *outputs)
{
    struct rig_options options = {.dtype = NKV_F16};
    struct nkv_seq_options so = small_budget(mode);
    struct rig_seq s;
    struct rig rig;

    assert_int_equal(rig_open(&rig, &options), 0);
    open_seq(&rig, &so, seed, &s);
    assert_int_equal(rig_prefill(&rig, &s, length, 512), 0);
    for (uint32_t step = 0; step < steps; step++) {
        assert_int_equal(rig_decode(&rig, &s), 0);
        memcpy(outputs + step * RIG_LAYERS * RIG_ROW, s.last, RIG_LAYERS * RIG_ROW * sizeof(float));
    }
    close_seq(&s);
    rig_close(&rig);
}

#define N_STEPS 12u

/* Unequal lengths and all modes in one batch, on 1 to 3 devices: each sequence as if it were alone. */
static void test_batch_is_isolated(void **state)
{
    static const uint32_t lengths[N_SEQS] = {650, 700, 31, 64};
    static float alone[N_SEQS][N_STEPS * RIG_LAYERS * RIG_ROW];
    const uint32_t ones[N_SEQS] = {1, 1, 1, 1};

    (void)state;
    for (uint32_t i = 0; i < N_SEQS; i++)
        run_alone(modes[i], 10 + i, lengths[i], N_STEPS, alone[i]);
    for (uint32_t n_devices = 1; n_devices <= RIG_DEVICES; n_devices++) {
        struct rig_options options = {.dtype = NKV_F16, .n_devices = n_devices, .n_threads = 2};
        struct rig_seq s[N_SEQS], *batch[N_SEQS];
        struct rig rig;
        uint32_t devices = 0;

        assert_int_equal(rig_open(&rig, &options), 0);
        for (uint32_t i = 0; i < N_SEQS; i++) {
            struct nkv_seq_options so = small_budget(modes[i]);

            open_seq(&rig, &so, 10 + i, &s[i]);
            assert_int_equal(rig_prefill(&rig, &s[i], lengths[i], 512), 0);
            batch[i] = &s[i];
            devices |= 1u << nkv_seq_device(s[i].seq);
        }
        assert_int_equal(devices, (1u << n_devices) - 1); /* spread over all */
        for (uint32_t step = 0; step < N_STEPS; step++) {
            assert_int_equal(rig_step(&rig, batch, ones, N_SEQS), 0);
            for (uint32_t i = 0; i < N_SEQS; i++)
                assert_memory_equal(s[i].last, alone[i] + step * RIG_LAYERS * RIG_ROW,
                                    RIG_LAYERS * RIG_ROW * sizeof(float));
        }
        for (uint32_t i = 0; i < N_SEQS; i++)
            close_seq(&s[i]);
        assert_true(rig_empty(&rig));
        rig_close(&rig);
    }
}

/* A decode step and a chunk of prefill in one call. */
static void test_prefill_beside_decode(void **state)
{
    static float alone[2][RIG_LAYERS * RIG_ROW];
    struct rig_options options = {.dtype = NKV_F16};
    struct nkv_seq_options so = small_budget(NKV_MODE_PNG);
    struct rig_seq s[2], *batch[2] = {&s[0], &s[1]};
    const uint32_t mixed[2] = {1, 100};
    struct rig rig;

    (void)state;
    run_alone(NKV_MODE_PNG, 20, 400, 1, alone[0]);
    run_alone(NKV_MODE_PNG, 21, 100, 1, alone[1]);
    assert_int_equal(rig_open(&rig, &options), 0);
    for (uint32_t i = 0; i < 2; i++)
        open_seq(&rig, &so, 20 + i, &s[i]);
    assert_int_equal(rig_prefill(&rig, &s[0], 400, 512), 0);
    assert_int_equal(rig_step(&rig, batch, mixed, 2), 0);
    assert_memory_equal(s[0].last, alone[0], sizeof alone[0]);
    assert_int_equal(rig_decode(&rig, &s[1]), 0);
    assert_memory_equal(s[1].last, alone[1], sizeof alone[1]);
    for (uint32_t i = 0; i < 2; i++)
        close_seq(&s[i]);
    rig_close(&rig);
}

/* Two micro-batches under each other. */
static void test_two_tickets(void **state)
{
    static float alone[2][N_STEPS * RIG_LAYERS * RIG_ROW];
    struct rig_options options = {.dtype = NKV_F16, .n_devices = 2};
    struct rig rig;

    (void)state;
    for (uint32_t m = 0; m < N_SEQS; m++) {
        struct nkv_seq_options so = small_budget(modes[m]);
        struct nkv_attend_item items[2];
        struct nkv_ticket *tickets[2], *third;
        struct rig_seq s[2];

        assert_int_equal(rig_open(&rig, &options), 0);
        for (uint32_t i = 0; i < 2; i++) {
            run_alone(modes[m], 30 + i, 300 + 40 * i, N_STEPS, alone[i]);
            open_seq(&rig, &so, 30 + i, &s[i]);
            assert_int_equal(rig_prefill(&rig, &s[i], 300 + 40 * i, 512), 0);
        }
        for (uint32_t step = 0; step < N_STEPS; step++) {
            for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
                for (uint32_t i = 0; i < 2; i++) {
                    items[i] = rig_item(&s[i], layer, 1);
                    assert_int_equal(nkv_attend_begin(rig.context, layer, &items[i], 1, &tickets[i]), 0);
                }
                assert_int_equal(nkv_attend_begin(rig.context, layer, items, 1, &third), NKV_ESTATE);
                assert_non_null(strstr(nkv_last_error(), "2 tickets are in flight"));
                for (uint32_t i = 0; i < 2; i++) { /* ended in either order */
                    uint32_t which = (step + i) % 2;

                    assert_int_equal(nkv_attend_end(tickets[which]), 0);
                    assert_memory_equal(s[which].out, alone[which] + (step * RIG_LAYERS + layer) * RIG_ROW,
                                        RIG_ROW * sizeof(float));
                }
            }
            assert_int_equal(nkv_step_end(rig.context, items, 2), 0);
            for (uint32_t i = 0; i < 2; i++)
                s[i].length++;
        }
        for (uint32_t i = 0; i < 2; i++)
            close_seq(&s[i]);
        assert_true(rig_empty(&rig));
        rig_close(&rig);
    }
}

/* Wrong calls are refused and queue nothing: the step goes on as if they had not been made. */
static void test_misuse(void **state)
{
    struct rig_options options = {.dtype = NKV_F32, .max_batch = 2, .max_tokens = 64};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 40, 128, NKV_SELECT_LAYER);
    struct nkv_attend_item items[3];
    struct nkv_ticket *ticket;
    struct rig_seq s, t;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    open_seq(&rig, &so, 1, &s);
    so.max_tokens = 200;
    open_seq(&rig, &so, 2, &t);
    items[0] = rig_item(&s, 0, 1);
    items[1] = items[0];
    items[2] = rig_item(&t, 0, 65);
    assert_int_equal(nkv_attend_begin(rig.context, 0, items, 2, &ticket), NKV_EINVAL); /* twice the same */
    assert_int_equal(nkv_attend_begin(rig.context, 0, items, 3, &ticket), NKV_EINVAL); /* max_batch */
    assert_int_equal(nkv_attend_begin(rig.context, 0, items, 0, &ticket), NKV_EINVAL);
    assert_int_equal(nkv_attend_begin(rig.context, 0, items + 2, 1, &ticket), NKV_EINVAL); /* max_tokens */
    assert_non_null(strstr(nkv_last_error(), "65 tokens"));
    assert_int_equal(nkv_attend_begin(rig.context, RIG_LAYERS, items, 1, &ticket), NKV_EINVAL);
    assert_int_equal(nkv_attend_begin(rig.context, 1, items, 1, &ticket), NKV_ESTATE);
    items[0].n_tokens = 41;
    assert_int_equal(nkv_attend_begin(rig.context, 0, items, 1, &ticket), NKV_ENOSPC); /* max_tokens of the sequence */
    items[0].n_tokens = 0;
    assert_int_equal(nkv_attend_begin(rig.context, 0, items, 1, &ticket), NKV_EINVAL);
    items[0].n_tokens = 1;
    items[0].k = NULL;
    assert_int_equal(nkv_attend_begin(rig.context, 0, items, 1, &ticket), NKV_EINVAL);
    items[0].k = items[1].k;
    assert_int_equal(nkv_attend_begin(rig.context, 0, items, 1, &ticket), 0);
    assert_int_equal(nkv_attend_begin(rig.context, 0, items, 1, &(struct nkv_ticket *){NULL}), NKV_ESTATE);
    assert_int_equal(nkv_seq_truncate(s.seq, 0), NKV_ESTATE);
    assert_int_equal(nkv_step_end(rig.context, items, 1), NKV_ESTATE);
    assert_int_equal(nkv_attend_end(ticket), 0);
    assert_int_equal(nkv_attend_end(ticket), NKV_ESTATE);
    assert_int_equal(nkv_step_end(rig.context, items, 1), NKV_ESTATE);
    items[0].n_tokens = 2;
    assert_int_equal(nkv_attend_begin(rig.context, 1, items, 1, &ticket), NKV_EINVAL); /* the step began with 1 */
    items[0].n_tokens = 1;
    assert_int_equal(nkv_attend_begin(rig.context, 1, items, 1, &ticket), 0);
    assert_int_equal(nkv_attend_end(ticket), 0);
    assert_int_equal(nkv_attend_begin(rig.context, 0, items, 1, &ticket), NKV_ESTATE);
    assert_non_null(strstr(nkv_last_error(), "end the step"));
    assert_int_equal(nkv_step_end(rig.context, items, 1), 0);
    assert_int_equal(nkv_seq_length(s.seq), 1);
    assert_int_equal(nkv_seq_truncate(s.seq, 2), NKV_EINVAL);
    close_seq(&s);
    close_seq(&t);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

static void check_options(struct rig *rig, const struct nkv_seq_options *so, const char *message)
{
    struct nkv_seq *seq = NULL;

    assert_int_equal(nkv_seq_open(rig->context, so, &seq), NKV_EINVAL);
    if (!strstr(nkv_last_error(), message))
        fail_msg("'%s' does not contain '%s'", nkv_last_error(), message);
    assert_null(seq);
}

static void test_bad_options(void **state)
{
    struct rig_options options = {.dtype = NKV_F32};
    struct nkv_seq_options so = small_budget(NKV_MODE_RECALL);
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    so.resident_tokens = 160;
    check_options(&rig, &so, "attends 6 pages");
    check_options(&rig, &so, "only 5 pages");
    so = small_budget(NKV_MODE_PNG);
    so.budget_tokens = 64;
    check_options(&rig, &so, "a budget of 64 tokens is less than what is always attended: 1 sink + 2 recent");
    so = small_budget(NKV_MODE_FULL);
    so.sparse_prefill = true;
    so.prefill_budget_tokens = 1;
    check_options(&rig, &so, "a prefill budget of 1 tokens");
    so = small_budget(NKV_MODE_PNM);
    so.max_tokens = 1u << 31;
    check_options(&rig, &so, "must be from 1 to 2147483647");
    so = small_budget(NKV_MODE_PNM);
    so.recent_pages = 0;
    check_options(&rig, &so, "recent from 1 to 255");
    so = small_budget(NKV_MODE_PNM);
    so.sink_pages = 256;
    check_options(&rig, &so, "sink must be from 0 to 255");
    so = small_budget(NKV_MODE_PNM);
    so.max_tokens = 0;
    check_options(&rig, &so, "max_tokens of a sequence is 0");
    so = small_budget(NKV_MODE_PNM);
    so.n_dense_layers = 3;
    check_options(&rig, &so, "3 dense layers");
    so = small_budget((enum nkv_mode)7);
    check_options(&rig, &so, "mode is 7");
    so = small_budget(NKV_MODE_PNM);
    so.size = 3;
    check_options(&rig, &so, "size of the sequence options is 3");
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

static void test_step_allocates_nothing(void **state)
{
    (void)state;
    for (uint32_t m = 0; m < N_SEQS; m++) {
        struct rig_options options = {.dtype = NKV_BF16, .n_threads = 2};
        struct nkv_seq_options so = small_budget(modes[m]);
        struct rig_seq s;
        struct rig rig;

        so.sparse_prefill = true;
        assert_int_equal(rig_open(&rig, &options), 0);
        open_seq(&rig, &so, 40, &s);
        nkv_mem_fail_at(0);
        assert_int_equal(rig_prefill(&rig, &s, 600, 200), 0);
        for (uint32_t step = 0; step < 70; step++)
            assert_int_equal(rig_decode(&rig, &s), 0);
        assert_int_equal(nkv_mem_fail_at(0), 0);
        close_seq(&s);
        rig_close(&rig);
    }
}

static void expect_same_steps(struct rig *rig, struct rig_seq *a, struct rig_seq *b, uint32_t steps)
{
    for (uint32_t step = 0; step < steps; step++) {
        assert_int_equal(rig_decode(rig, a), 0);
        assert_int_equal(rig_decode(rig, b), 0);
        assert_int_equal(nkv_seq_status(a->seq), 0);
        assert_int_equal(nkv_seq_status(b->seq), 0);
        assert_true(rig_difference(a->last, b->last, RIG_LAYERS * RIG_ROW) < 2e-5f);
    }
}

/* A fork continues as a sequence that was fed its tokens; parent and child then go separate ways. */
static void test_fork(void **state)
{
    static const uint32_t at[] = {0, 1, 32, 97, 130};

    (void)state;
    for (uint32_t m = 0; m < N_SEQS; m++) {
        for (uint32_t i = 0; i < sizeof at / sizeof *at; i++) {
            struct rig_options options = {.dtype = NKV_Q8_0};
            struct nkv_seq_options so = rig_seq_options(modes[m], 400, 128, NKV_SELECT_KV_HEAD);
            struct rig_seq parent, child, fresh;
            struct nkv_seq *seq;
            struct rig rig;

            assert_int_equal(rig_open(&rig, &options), 0);
            open_seq(&rig, &so, 50, &parent);
            assert_int_equal(rig_prefill(&rig, &parent, 120, 120), 0);
            for (uint32_t step = 0; step < 10; step++)
                assert_int_equal(rig_decode(&rig, &parent), 0);
            assert_int_equal(nkv_seq_fork(parent.seq, 131, NULL, &seq), NKV_EINVAL);
            assert_int_equal(nkv_seq_fork(parent.seq, at[i], NULL, &seq), 0);
            rig_seq_init(&child, seq, 51); /* other tokens from here on */
            child.length = at[i];
            open_seq(&rig, &so, 50, &fresh);
            assert_int_equal(rig_prefill(&rig, &fresh, at[i], 512), 0);
            fresh.seed = 51;
            expect_same_steps(&rig, &child, &fresh, 70);
            nkv_seq_close(parent.seq);
            expect_same_steps(&rig, &child, &fresh, 3);
            rig_seq_free(&parent);
            close_seq(&child);
            close_seq(&fresh);
            assert_true(rig_empty(&rig));
            rig_close(&rig);
        }
    }
}

/* A prompt is filled once and forked into each mode. */
static void test_fork_into_modes(void **state)
{
    struct rig_options options = {.dtype = NKV_F16};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, 400, 128, NKV_SELECT_LAYER);
    struct rig_seq parent, child, fresh;
    struct nkv_seq *seq = NULL;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    open_seq(&rig, &so, 60, &parent);
    so.mode = NKV_MODE_PNM;
    assert_int_equal(nkv_seq_fork(parent.seq, 0, &so, &seq), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "keep_digests"));
    close_seq(&parent);
    so.mode = NKV_MODE_FULL;
    so.keep_digests = true;
    open_seq(&rig, &so, 60, &parent);
    assert_int_equal(rig_prefill(&rig, &parent, 300, 512), 0);
    for (uint32_t m = 0; m < N_SEQS; m++) {
        so.mode = modes[m];
        so.keep_digests = false;
        assert_int_equal(nkv_seq_fork(parent.seq, 300, &so, &seq), 0);
        rig_seq_init(&child, seq, 60);
        child.length = 300;
        open_seq(&rig, &so, 60, &fresh);
        assert_int_equal(rig_prefill(&rig, &fresh, 300, 512), 0);
        expect_same_steps(&rig, &child, &fresh, 5);
        close_seq(&child);
        close_seq(&fresh);
    }
    close_seq(&parent);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

/* Truncated in the middle of a history, and in the middle of a step: what follows is as if the rest had never been. */
static void test_truncate(void **state)
{
    static const uint32_t at[] = {0, 1, 31, 32, 96, 127, 150};

    (void)state;
    for (uint32_t m = 0; m < N_SEQS; m++) {
        for (uint32_t i = 0; i < 2 * (sizeof at / sizeof *at); i++) {
            struct rig_options options = {.dtype = NKV_F32};
            struct nkv_seq_options so = rig_seq_options(modes[m], 400, 128, (enum nkv_granularity)(i % 2));
            uint32_t n = at[i / 2];
            struct nkv_attend_item item;
            struct nkv_ticket *ticket;
            struct rig_seq s, fresh;
            struct rig rig;

            assert_int_equal(rig_open(&rig, &options), 0);
            open_seq(&rig, &so, 70, &s);
            assert_int_equal(rig_prefill(&rig, &s, 110, 110), 0);
            for (uint32_t step = 0; step < 40; step++)
                assert_int_equal(rig_decode(&rig, &s), 0);
            if (i % 3 == 0) { /* a step that is not carried through */
                item = rig_item(&s, 0, 1);
                assert_int_equal(nkv_attend_begin(rig.context, 0, &item, 1, &ticket), 0);
                assert_int_equal(nkv_attend_end(ticket), 0);
            }
            assert_int_equal(nkv_seq_truncate(s.seq, n), 0);
            assert_int_equal(nkv_seq_length(s.seq), n);
            s.length = n;
            open_seq(&rig, &so, 70, &fresh);
            assert_int_equal(rig_prefill(&rig, &fresh, n, 512), 0);
            s.seed = fresh.seed = 71;
            expect_same_steps(&rig, &s, &fresh, 40);
            assert_int_equal(rig_prefill(&rig, &s, 50, 50), 0); /* another turn: prefill after decode */
            assert_int_equal(rig_prefill(&rig, &fresh, 50, 50), 0);
            expect_same_steps(&rig, &s, &fresh, 5);
            close_seq(&s);
            close_seq(&fresh);
            assert_true(rig_empty(&rig));
            rig_close(&rig);
        }
    }
}

/* Closing in the middle of everything returns every page. */
static void test_close_in_flight(void **state)
{
    (void)state;
    for (uint32_t m = 0; m < N_SEQS; m++) {
        struct rig_options options = {.dtype = NKV_F32, .n_threads = 2};
        struct nkv_seq_options so = small_budget(modes[m]);
        struct nkv_attend_item items[2];
        struct nkv_ticket *ticket;
        struct rig_seq s[2];
        struct rig rig;

        assert_int_equal(rig_open(&rig, &options), 0);
        for (uint32_t i = 0; i < 2; i++) {
            open_seq(&rig, &so, 80 + i, &s[i]);
            assert_int_equal(rig_prefill(&rig, &s[i], 500, 500), 0);
            items[i] = rig_item(&s[i], 0, 1);
        }
        assert_int_equal(nkv_attend_begin(rig.context, 0, items, 2, &ticket), 0);
        nkv_seq_close(s[0].seq);
        assert_int_equal(nkv_attend_end(ticket), 0);
        assert_int_equal(nkv_seq_status(s[1].seq), 0);
        nkv_seq_close(s[1].seq);
        assert_true(rig_empty(&rig));
        rig_seq_free(&s[0]);
        rig_seq_free(&s[1]);
        open_seq(&rig, &so, 82, &s[0]);
        assert_int_equal(rig_prefill(&rig, &s[0], 100, 100), 0);
        rig_seq_free(&s[0]);
        rig_close(&rig); /* with a sequence open */
    }
}

/* Items without a query fill the cache as prefill does; windows that must grow wait for open tickets. */
static void test_append_only(void **state)
{
    struct rig_options options = {.dtype = NKV_F16};

    (void)state;
    for (uint32_t m = 0; m < N_SEQS; m++) {
        struct nkv_seq_options so = small_budget(modes[m]);
        struct nkv_seq_stats stats;
        struct nkv_attend_item item;
        struct nkv_ticket *ticket;
        struct rig_seq s, t;
        struct rig rig;

        assert_int_equal(rig_open(&rig, &options), 0);
        open_seq(&rig, &so, 90, &s);
        open_seq(&rig, &so, 90, &t);
        for (uint32_t chunk = 0; chunk < 3; chunk++) {
            uint32_t n = chunk == 2 ? 1 : 150;

            for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
                item = rig_item(&s, layer, n);
                item.q = item.out = NULL;
                assert_int_equal(nkv_attend_begin(rig.context, layer, &item, 1, &ticket), 0);
                assert_int_equal(nkv_attend_end(ticket), 0);
            }
            assert_int_equal(nkv_step_end(rig.context, &item, 1), 0);
            s.length = nkv_seq_length(s.seq);
        }
        nkv_seq_stats(s.seq, &stats);
        assert_int_equal(stats.n_steps, 0);
        assert_int_equal(stats.to_device_bytes, 301 * RIG_LAYERS * 8 * RIG_KV_ROW);
        assert_int_equal(stats.from_device_bytes, m == 1 ? stats.from_device_bytes : 0); /* recall: its mirror */
        assert_int_equal(rig_prefill(&rig, &t, 301, 301), 0);
        expect_same_steps(&rig, &s, &t, 5);
        close_seq(&s);
        close_seq(&t);
        assert_true(rig_empty(&rig));
        rig_close(&rig);
    }
}

static void test_windows_grow(void **state)
{
    struct rig_options options = {.dtype = NKV_F32};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, 400, 160, NKV_SELECT_LAYER);
    struct nkv_device_report before, after;
    struct nkv_attend_item item;
    struct nkv_ticket *ticket;
    struct nkv_seq *seq = NULL;
    struct rig_seq s, t;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    open_seq(&rig, &so, 1, &s);
    item = rig_item(&s, 0, 1);
    assert_int_equal(nkv_attend_begin(rig.context, 0, &item, 1, &ticket), 0);
    so = rig_seq_options(NKV_MODE_PNG, 4000, 4000, NKV_SELECT_KV_HEAD);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), NKV_ESTATE);
    assert_non_null(strstr(nkv_last_error(), "a ticket is in flight"));
    assert_int_equal(nkv_attend_end(ticket), 0);
    assert_int_equal(nkv_context_device(rig.context, 0, &before), 0);
    open_seq(&rig, &so, 2, &t);
    assert_int_equal(nkv_context_device(rig.context, 0, &after), 0);
    assert_true(after.window_bytes > before.window_bytes);
    assert_int_equal(nkv_seq_truncate(s.seq, 0), 0);
    for (uint32_t step = 0; step < 3; step++) {
        assert_int_equal(rig_decode(&rig, &s), 0);
        assert_int_equal(rig_decode(&rig, &t), 0);
    }
    assert_int_equal(nkv_seq_status(s.seq), 0);
    assert_int_equal(nkv_seq_status(t.seq), 0);
    close_seq(&s);
    close_seq(&t);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_is_isolated),
        cmocka_unit_test(test_prefill_beside_decode),
        cmocka_unit_test(test_two_tickets),
        cmocka_unit_test(test_misuse),
        cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_step_allocates_nothing),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_fork_into_modes),
        cmocka_unit_test(test_truncate),
        cmocka_unit_test(test_close_in_flight),
        cmocka_unit_test(test_append_only),
        cmocka_unit_test(test_windows_grow),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
