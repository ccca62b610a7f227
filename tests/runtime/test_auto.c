/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contexts that place each sequence by itself, on one device or over all: where they go, that their outputs are those
 * of contexts that place all the one way or the other, to the bit, and that the two kinds share devices, queues and
 * windows without loss.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "runtime/rig.h"
#include "runtime/runtime.h"

#define N_DEVICES 3u
#define N_SEQS    6u
#define CHUNK     96u
#define N_STEPS   10u

/* What is opened, in this order, and what becomes of it. */
struct kind {
    enum nkv_mode mode;
    enum nkv_granularity granularity;
    bool sparse_prefill;
    uint32_t n_tokens;   /* fed */
    uint32_t max_tokens; /* of one that is spread, which asks for more, so that it is long; 0: it is not */
};

static const struct kind kinds[N_SEQS] = {
    {NKV_MODE_PNG, NKV_SELECT_LAYER, false, 900, 6000},    {NKV_MODE_PNM, NKV_SELECT_KV_HEAD, true, 790, 8000},
    {NKV_MODE_RECALL, NKV_SELECT_LAYER, true, 650, 12000}, {NKV_MODE_PNM, NKV_SELECT_LAYER, true, 500, 0},
    {NKV_MODE_FULL, NKV_SELECT_LAYER, false, 333, 0},      {NKV_MODE_PNG, NKV_SELECT_KV_HEAD, false, 700, 0},
};

/* Long, though it selects: in one layer it reads all. */
static struct nkv_seq_options spread_options(enum nkv_mode mode, enum nkv_granularity granularity, uint32_t max_tokens)
{
    struct nkv_seq_options so = rig_seq_options(mode, max_tokens, 256, granularity);

    so.n_dense_layers = 1;
    return so;
}

static struct nkv_seq_options options_of(const struct kind *kind)
{
    struct nkv_seq_options so = kind->max_tokens
                                    ? spread_options(kind->mode, kind->granularity, kind->max_tokens)
                                    : rig_seq_options(kind->mode, kind->n_tokens + N_STEPS, 256, kind->granularity);

    so.sparse_prefill = kind->sparse_prefill;
    return so;
}

/* Every output, one sequence after the other. */
struct record {
    float *outputs[N_SEQS];
    size_t n[N_SEQS];
};

static void note(struct record *record, uint32_t i, const float *outputs, size_t n)
{
    record->outputs[i] = realloc(record->outputs[i], (record->n[i] + n) * sizeof(float));
    assert_non_null(record->outputs[i]);
    memcpy(record->outputs[i] + record->n[i], outputs, n * sizeof(float));
    record->n[i] += n;
}

static void record_free(struct record *record)
{
    for (uint32_t i = 0; i < N_SEQS; i++)
        free(record->outputs[i]);
}

/* One step of n sequences in as many tickets as may be open; each[i] tokens of i. */
static void step(struct rig *rig, struct rig_seq *s, const uint32_t *each, const uint32_t *which, uint32_t n,
                 struct record *record)
{
    struct nkv_attend_item items[N_SEQS];
    struct nkv_ticket *tickets[2];
    uint32_t half = n / 2;

    for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
        for (uint32_t i = 0; i < n; i++)
            items[i] = rig_item(&s[which[i]], layer, each[i]);
        if (half)
            assert_int_equal(nkv_attend_begin(rig->context, layer, items, half, &tickets[0]), 0);
        assert_int_equal(nkv_attend_begin(rig->context, layer, items + half, n - half, &tickets[1]), 0);
        assert_int_equal(nkv_attend_end(tickets[1]), 0);
        if (half)
            assert_int_equal(nkv_attend_end(tickets[0]), 0);
        for (uint32_t i = 0; i < n; i++) {
            assert_string_equal(nkv_seq_error(s[which[i]].seq), "");
            note(record, which[i], s[which[i]].out, each[i] * RIG_ROW);
        }
    }
    assert_int_equal(nkv_step_end(rig->context, items, n), 0);
    for (uint32_t i = 0; i < n; i++)
        s[which[i]].length = nkv_seq_length(s[which[i]].seq);
}

/* Chunks and decode steps of all that are taken, together. returns: whether there was something to do. */
static bool feed(struct rig *rig, struct rig_seq *s, const bool *takes, uint32_t n_steps, struct record *record)
{
    static const uint32_t order[N_SEQS] = {3, 4, 1, 5, 0, 2}; /* whole ones before others, also of one mode */
    uint32_t each[N_SEQS], which[N_SEQS], n = 0;

    for (uint32_t j = 0; j < N_SEQS; j++) {
        uint32_t i = order[j], n_prompt = kinds[i].n_tokens;

        if (!takes[i] || s[i].length >= n_prompt + n_steps)
            continue;
        each[n] = s[i].length >= n_prompt ? 1 : n_prompt - s[i].length < CHUNK ? n_prompt - s[i].length : CHUNK;
        which[n++] = i;
    }
    if (n)
        step(rig, s, each, which, n, record);
    return n > 0;
}

/* Prefill, decode, truncate, decode, fork, decode the fork. */
static void play(enum nkv_kv_parallel kv_parallel, const bool *takes, struct record *record)
{
    struct rig_options options = {
        .n_devices = N_DEVICES, .max_batch = N_SEQS, .kv_parallel = kv_parallel, .capacity_bytes = 32u << 20};
    struct rig_seq s[N_SEQS] = {0};
    struct nkv_seq *parents[N_SEQS] = {0};
    struct rig rig;

    *record = (struct record){0};
    assert_int_equal(rig_open(&rig, &options), 0);
    for (uint32_t i = 0; i < N_SEQS; i++) {
        struct nkv_seq_options so = options_of(&kinds[i]);
        struct nkv_seq *seq;

        if (!takes[i])
            continue;
        assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
        if (kv_parallel == NKV_KV_AUTO)
            assert_true((nkv_seq_device(seq) == NKV_ALL_DEVICES) == (kinds[i].max_tokens > 0));
        rig_seq_init(&s[i], seq, 40 + i);
    }
    while (feed(&rig, s, takes, N_STEPS, record))
        ;
    for (uint32_t i = 0; i < N_SEQS; i++) {
        if (!takes[i])
            continue;
        assert_int_equal(nkv_seq_truncate(s[i].seq, kinds[i].n_tokens - 40), 0);
        s[i].length = nkv_seq_length(s[i].seq);
        parents[i] = s[i].seq;
        assert_int_equal(nkv_seq_fork(parents[i], kinds[i].n_tokens - 50, NULL, &s[i].seq), 0);
        assert_int_equal(nkv_seq_device(s[i].seq), nkv_seq_device(parents[i]));
        s[i].length = nkv_seq_length(s[i].seq);
    }
    while (feed(&rig, s, takes, N_STEPS, record))
        ;
    for (uint32_t i = 0; i < N_SEQS; i++) {
        nkv_seq_close(s[i].seq);
        nkv_seq_close(parents[i]);
        rig_seq_free(&s[i]);
    }
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

/* Both kinds in every batch, in both tickets, against the same sequences where there is one kind only. */
static void test_same_bits(void **state)
{
    bool all[N_SEQS], whole[N_SEQS], parts[N_SEQS];
    struct record both, dp, cp;

    (void)state;
    for (uint32_t i = 0; i < N_SEQS; i++) {
        all[i] = true;
        parts[i] = kinds[i].max_tokens > 0;
        whole[i] = !parts[i];
    }
    play(NKV_KV_AUTO, all, &both);
    play(NKV_KV_DATA, whole, &dp);
    play(NKV_KV_CONTEXT, parts, &cp);
    for (uint32_t i = 0; i < N_SEQS; i++) {
        const struct record *one = parts[i] ? &cp : &dp;

        assert_int_equal(both.n[i], one->n[i]);
        assert_memory_equal(both.outputs[i], one->outputs[i], one->n[i] * sizeof(float));
    }
    record_free(&both);
    record_free(&dp);
    record_free(&cp);
}

static uint32_t device_of(struct rig *rig, const struct nkv_seq_options *so)
{
    struct nkv_seq *seq;

    assert_int_equal(nkv_seq_open(rig->context, so, &seq), 0);
    return nkv_seq_device(seq);
}

/* Long ones are spread while there are few of them; short ones, and those of modes that cannot be, never are. */
static void test_choice(void **state)
{
    struct nkv_seq_options longer = rig_seq_options(NKV_MODE_FULL, 4000, 256, NKV_SELECT_LAYER);
    struct nkv_seq_options shorter = rig_seq_options(NKV_MODE_FULL, 400, 256, NKV_SELECT_LAYER);
    struct nkv_seq_options recall = rig_seq_options(NKV_MODE_RECALL, 4000, 512, NKV_SELECT_LAYER);
    struct rig_options options = {.n_devices = N_DEVICES, .kv_parallel = NKV_KV_AUTO, .capacity_bytes = 32u << 20};
    struct nkv_kv_parallel_report report;
    uint32_t device, n_spread = 0;
    struct nkv_seq *seq;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(device_of(&rig, &shorter), 0);
    assert_int_equal(device_of(&rig, &recall), 1);
    assert_int_equal(device_of(&rig, &shorter), 2);
    assert_int_equal(device_of(&rig, &shorter), 0); /* recall reads more */
    assert_true(rig.context->loads[1] > 0);
    assert_int_equal(device_of(&rig, &longer), NKV_ALL_DEVICES);
    seq = rig.context->sequences;
    while ((device = device_of(&rig, &longer)) == NKV_ALL_DEVICES)
        n_spread++;
    assert_in_range(n_spread, 0, N_DEVICES);
    assert_true(device < N_DEVICES);
    /* A sequence that is everywhere stays, those on one device move as ever. */
    assert_int_equal(nkv_seq_migrate(seq, 0, NULL, NULL), NKV_ENOTSUP);
    assert_non_null(strstr(nkv_last_error(), "all devices"));
    assert_int_equal(nkv_seq_migrate(rig.context->sequences, (device + 1) % N_DEVICES, NULL, NULL), 0);
    assert_true(nkv_context_rebalance(rig.context, 100000) >= 0);
    assert_int_equal(nkv_seq_device(seq), NKV_ALL_DEVICES);
    nkv_context_kv_parallel(rig.context, &report);
    assert_int_equal(report.kv_parallel, NKV_KV_AUTO);
    assert_int_equal(report.n_devices, N_DEVICES);
    while (rig.context->sequences)
        nkv_seq_close(rig.context->sequences);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

/* returns: how it was opened, or its failure. */
static int open_session(struct rig *rig, const struct nkv_seq_options *so, struct nkv_seq **seq_out)
{
    static const int32_t ids[40];
    struct nkv_session_options session = {.size = sizeof session, .n_tokens = 40, .tokens = ids, .name = "s"};
    struct nkv_session_result result;
    int status = nkv_session_open(rig->context, so, &session, seq_out, &result);

    return status < 0 ? status : (int)result.how;
}

/* A session stays whole, and is found again, whatever else lies on its device. */
static void test_session(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, 4000, 256, NKV_SELECT_LAYER);
    struct rig_options options = {.n_devices = 2, .kv_parallel = NKV_KV_AUTO};
    struct nkv_seq *spread, *seq;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &spread), 0);
    assert_int_equal(nkv_seq_device(spread), NKV_ALL_DEVICES);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(open_session(&rig, &so, &seq), i ? NKV_SESSION_RESUMED : NKV_SESSION_NEW);
        assert_int_equal(nkv_seq_device(seq), 0);
        nkv_seq_close(seq);
    }
    assert_int_equal(nkv_session_remove(rig.context, "s"), 0);
    nkv_seq_close(spread);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

/* One device, or scores that are recorded: nothing is ever spread. */
static void test_dp_only(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, 4000, 256, NKV_SELECT_LAYER);
    struct nkv_kv_parallel_report report;
    struct rig rig;

    (void)state;
    for (uint32_t i = 0; i < 2; i++) {
        struct rig_options options = {.n_devices = 1 + i, .kv_parallel = NKV_KV_AUTO};
        struct nkv_context_options again = {
            .size = sizeof again, .n_devices = 1 + i, .kv_parallel = NKV_KV_AUTO, .record_scores = i == 1};

        assert_int_equal(rig_open(&rig, &options), 0);
        nkv_context_close(rig.context);
        again.shape = rig.shape;
        again.devices = rig.devices;
        assert_int_equal(nkv_context_open(&again, &rig.context), 0);
        assert_int_equal(device_of(&rig, &so), 0);
        nkv_context_kv_parallel(rig.context, &report);
        assert_int_equal(report.kv_parallel, NKV_KV_DATA);
        rig_close(&rig);
    }
}

/* What none of the devices could hold is served beside what they hold each, and all memory is accounted for. */
static void test_larger_than_a_device(void **state)
{
    struct rig_options options = {
        .dtype = NKV_F16, .n_devices = N_DEVICES, .capacity_bytes = 1u << 20, .kv_parallel = NKV_KV_AUTO};
    struct nkv_seq_options large = rig_seq_options(NKV_MODE_PNM, 6000, 1024, NKV_SELECT_LAYER);
    struct nkv_seq_options small = rig_seq_options(NKV_MODE_FULL, 500, 256, NKV_SELECT_LAYER);
    struct rig_seq s[3], *all[3] = {&s[0], &s[1], &s[2]};
    const uint32_t chunk[3] = {64, 128, 64}, ones[3] = {1, 1, 1};
    float expected[RIG_ROW];
    struct nkv_seq *seq;
    struct rig rig;

    (void)state;
    large.mode = NKV_MODE_FULL;
    assert_int_equal(rig_open(&rig, &options), 0);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(nkv_seq_open(rig.context, i == 1 ? &large : &small, &seq), 0);
        assert_int_equal(nkv_seq_device(seq), i == 1 ? NKV_ALL_DEVICES : i / 2);
        rig_seq_init(&s[i], seq, 60 + i);
    }
    assert_int_equal(nkv_seq_open(rig.context, &large, &seq), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "over 3 devices (cp)"));
    assert_int_equal(nkv_seq_can_fit(rig.context, &large), 0);
    large.max_tokens = 30000;
    assert_int_equal(nkv_seq_can_fit(rig.context, &large), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "over 3 devices (cp)"));
    assert_int_equal(rig_prefill(&rig, &s[1], 3700, 512), 0);
    for (uint32_t i = 0; i < 7; i++)
        assert_int_equal(rig_step(&rig, all, chunk, 3), 0);
    for (uint32_t i = 0; i < 40; i++)
        assert_int_equal(rig_step(&rig, all, ones, 3), 0);
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
            assert_int_equal(nkv_seq_status(s[i].seq), 0);
            rig_oracle(60 + i, layer, s[i].length - 1, NULL, 0, expected);
            assert_true(rig_difference(s[i].last + layer * RIG_ROW, expected, RIG_ROW) <= rig_bound(NKV_F16));
        }
    /* A half of a device is taken by its part of the large one: what no device has room for now is spread, too. */
    small.max_tokens = 2200;
    assert_int_equal(device_of(&rig, &small), NKV_ALL_DEVICES);
    nkv_seq_close(rig.context->sequences);
    assert_int_equal(open_session(&rig, &small, &seq), NKV_ENOSPC); /* or refused, if it has to be whole */
    assert_non_null(strstr(nkv_last_error(), "on one device"));
    nkv_seq_close(s[1].seq);
    assert_int_equal(open_session(&rig, &small, &seq), 0);
    assert_int_equal(nkv_seq_device(seq), 2);
    nkv_seq_close(seq);
    assert_int_equal(nkv_session_remove(rig.context, "s"), 0);
    nkv_seq_close(s[0].seq);
    nkv_seq_close(s[2].seq);
    assert_true(rig_empty(&rig));
    for (uint32_t i = 0; i < 3; i++)
        rig_seq_free(&s[i]);
    rig_close(&rig);
}

/* A device's queue that both kinds fill to the brim: 256 commands of either at once. */
static void test_full_queue(void **state)
{
    struct rig_options options = {
        .n_devices = 2, .max_batch = 128, .kv_parallel = NKV_KV_AUTO, .capacity_bytes = 64u << 20};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, 6000, 256, NKV_SELECT_LAYER);
    static struct rig_seq s[128];
    static struct nkv_attend_item items[128];
    float expected[RIG_ROW];
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    for (uint32_t i = 0; i < 128; i++) {
        struct nkv_seq *seq;

        so.max_tokens = i < 2 ? 6000 : 40;
        assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
        assert_int_equal(nkv_seq_device(seq) == NKV_ALL_DEVICES, i < 2);
        rig_seq_init(&s[i], seq, i);
    }
    for (uint32_t t = 0; t < 40; t++) {
        struct nkv_ticket *tickets[2];

        for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
            for (uint32_t i = 0; i < 128; i++)
                items[i] = rig_item(&s[i], layer, 1);
            for (uint32_t i = 0; i < 2; i++)
                assert_int_equal(nkv_attend_begin(rig.context, layer, items + i * 64, 64, &tickets[i]), 0);
            for (uint32_t i = 0; i < 2; i++)
                assert_int_equal(nkv_attend_end(tickets[i]), 0);
        }
        assert_int_equal(nkv_step_end(rig.context, items, 128), 0);
        for (uint32_t i = 0; i < 128; i++)
            s[i].length++;
    }
    for (uint32_t i = 0; i < 128; i++) {
        assert_int_equal(nkv_seq_status(s[i].seq), 0);
        rig_oracle(i, RIG_LAYERS - 1, 39, NULL, 0, expected);
        assert_true(rig_difference(s[i].out, expected, RIG_ROW) <= rig_bound(NKV_F32));
        nkv_seq_close(s[i].seq);
        rig_seq_free(&s[i]);
    }
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

/* A window that grows for either kind in turn, between steps of the other. */
static void test_windows_grow(void **state)
{
    struct rig_options options = {.n_devices = 2, .kv_parallel = NKV_KV_AUTO, .max_tokens = 600};
    struct nkv_seq_options so[4] = {
        rig_seq_options(NKV_MODE_FULL, 3000, 256, NKV_SELECT_LAYER),
        rig_seq_options(NKV_MODE_FULL, 300, 256, NKV_SELECT_LAYER),
        rig_seq_options(NKV_MODE_PNM, 9000, 8000, NKV_SELECT_KV_HEAD),
        rig_seq_options(NKV_MODE_PNG, 300, 256, NKV_SELECT_KV_HEAD),
    };
    struct nkv_device_report before, after;
    struct nkv_ticket *ticket;
    float expected[RIG_ROW];
    struct rig_seq s[4];
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    for (uint32_t i = 0; i < 4; i++) {
        struct nkv_attend_item item;
        struct nkv_seq *seq;

        assert_int_equal(nkv_context_device(rig.context, 0, &before), 0);
        if (i == 2) { /* not while a ticket is in flight, of either kind */
            for (uint32_t j = 0; j < 2; j++) {
                item = rig_item(&s[j], 0, 1);
                assert_int_equal(nkv_attend_begin(rig.context, 0, &item, 1, &ticket), 0);
                assert_int_equal(nkv_seq_open(rig.context, &so[i], &seq), NKV_ESTATE);
                assert_int_equal(nkv_attend_end(ticket), 0);
                assert_int_equal(nkv_seq_truncate(s[j].seq, s[j].length), 0);
            }
        }
        assert_int_equal(nkv_seq_open(rig.context, &so[i], &seq), 0);
        assert_int_equal(nkv_seq_device(seq) == NKV_ALL_DEVICES, i % 2 == 0);
        assert_int_equal(nkv_context_device(rig.context, 0, &after), 0);
        if (i % 2 == 0)
            assert_true(after.window_bytes > before.window_bytes);
        rig_seq_init(&s[i], seq, 80 + i);
        for (uint32_t j = 0; j <= i; j++) {
            assert_int_equal(rig_prefill(&rig, &s[j], j % 2 ? 40 : 500, 500), 0);
            assert_int_equal(rig_decode(&rig, &s[j]), 0);
            assert_int_equal(nkv_seq_status(s[j].seq), 0);
            rig_oracle(80 + j, 1, s[j].length - 1, NULL, 0, expected);
            assert_true(rig_difference(s[j].last + RIG_ROW, expected, RIG_ROW) <= rig_bound(NKV_F32));
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        nkv_seq_close(s[i].seq);
        rig_seq_free(&s[i]);
    }
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

/* A failed command ends the sequence that it was for, of either kind, and no other. */
static void test_command_fails(void **state)
{
    static const char *const specs[] = {"fault:op=append,n=20:cpu", "fault:op=attend,n=15:cpu",
                                        "fault:op=select,n=1:cpu"};
    struct nkv_seq_options so[2] = {spread_options(NKV_MODE_PNM, NKV_SELECT_LAYER, 8000),
                                    rig_seq_options(NKV_MODE_FULL, 400, 256, NKV_SELECT_LAYER)};

    (void)state;
    for (uint32_t f = 0; f < 3; f++) {
        struct rig_options options = {.n_devices = 2, .kv_parallel = NKV_KV_AUTO, .spec = specs[f]};
        struct rig_seq s[3], *all[3] = {&s[0], &s[1], &s[2]};
        const uint32_t each[3] = {100, 5, 5}, ones[3] = {1, 1, 1};
        uint32_t n_failed = 0;
        float expected[RIG_ROW];
        struct rig rig;

        assert_int_equal(rig_open(&rig, &options), 0);
        for (uint32_t i = 0; i < 3; i++) {
            struct nkv_seq *seq;

            assert_int_equal(nkv_seq_open(rig.context, &so[i > 0], &seq), 0);
            assert_int_equal(nkv_seq_device(seq), i ? i - 1 : NKV_ALL_DEVICES);
            rig_seq_init(&s[i], seq, 90 + i);
        }
        for (uint32_t round = 0; round < 16; round++) {
            uint32_t n_now = 0;

            assert_int_equal(rig_step(&rig, all, round < 12 ? each : ones, 3), 0);
            for (uint32_t i = 0; i < 3; i++) {
                if (nkv_seq_status(s[i].seq) == 0)
                    continue;
                n_now++;
                assert_non_null(strstr(nkv_seq_error(s[i].seq), "injected fault"));
                assert_int_equal(nkv_seq_truncate(s[i].seq, s[i].length), 0);
            }
            assert_in_range(n_now, 0, 2); /* at most one on each of the two devices */
            n_failed += n_now;
        }
        assert_in_range(n_failed, 1, 2);
        for (uint32_t i = 1; i < 3; i++) {
            rig_oracle(90 + i, 1, s[i].length - 1, NULL, 0, expected);
            assert_true(rig_difference(s[i].last + RIG_ROW, expected, RIG_ROW) <= rig_bound(NKV_F32));
        }
        for (uint32_t i = 0; i < 3; i++) {
            nkv_seq_close(s[i].seq);
            rig_seq_free(&s[i]);
        }
        assert_true(rig_empty(&rig));
        rig_close(&rig);
    }
}

/* Without memory for any part of it a context is not opened, and nothing is lost or left. */
static void test_no_memory(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, 4000, 256, NKV_SELECT_LAYER);
    struct rig rig;

    (void)state;
    assert_true(rig_open_without_memory(&rig, NKV_KV_AUTO, &so) > 15);
    assert_int_equal(nkv_seq_device(rig.context->sequences), NKV_ALL_DEVICES);
    nkv_seq_close(rig.context->sequences);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_session),
        cmocka_unit_test(test_dp_only),
        cmocka_unit_test(test_larger_than_a_device),
        cmocka_unit_test(test_full_queue),
        cmocka_unit_test(test_windows_grow),
        cmocka_unit_test(test_command_fails),
        cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
