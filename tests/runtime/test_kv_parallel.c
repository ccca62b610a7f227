/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences over several devices against the same sequence on one: the page sets are identical, outputs differ by
 * rounding at most (by nothing with one device), in every mode, granularity and way of feeding; what does not fit on
 * one device is served; and faults, forks and truncation leave nothing behind.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/mem.h"
#include "runtime/kv_parallel.h"

static void check_kind(enum nkv_kv_parallel kv_parallel, uint32_t max_devices)
{
    for (uint32_t variant = 0; variant < 6; variant++) {
        struct nkv_seq_options so = rig_seq_options(variant % 3 ? NKV_MODE_PNM : NKV_MODE_FULL, N_TOKENS + 100, 256,
                                                    variant / 3 ? NKV_SELECT_KV_HEAD : NKV_SELECT_LAYER);

        so.sparse_prefill = variant % 3 == 2;
        so.n_dense_layers = variant == 4;
        check_range(kv_parallel, 1, max_devices, &so, (enum nkv_dtype)((kv_parallel + variant) % NKV_DTYPE_COUNT));
    }
}

static void test_context_parallel(void **state)
{
    (void)state;
    check_kind(NKV_KV_CONTEXT, RIG_DEVICES);
}

static void test_head_parallel(void **state)
{
    (void)state;
    check_kind(NKV_KV_HEADS, RIG_KV);
}

/* Budgets at the edges: nothing competes, one page does, everything is chosen; many recent pages; no sinks. */
static void test_budgets(void **state)
{
    static const uint32_t edges[][3] = {{1, 2, 3}, {1, 2, 4}, {0, 1, 1}, {7, 9, 20}, {0, 5, 64}, {2, 1, 31}};

    (void)state;
    for (uint32_t i = 0; i < sizeof edges / sizeof *edges; i++) {
        struct nkv_seq_options so =
            rig_seq_options(NKV_MODE_PNM, N_TOKENS + 100, edges[i][2] * RIG_PAGE, (enum nkv_granularity)(i % 2));

        so.sink_pages = edges[i][0];
        so.recent_pages = edges[i][1];
        check_equal(NKV_KV_CONTEXT, 3, &so, NKV_F32);
        check_equal(NKV_KV_HEADS, 2, &so, NKV_F32);
        so.mode = NKV_MODE_PNG;
        so.resident_tokens = (1 + 5 * i) * RIG_PAGE; /* less and more than a budget */
        check_equal(NKV_KV_CONTEXT, 3, &so, NKV_Q8_0);
    }
}

/* Equal pages tie, on one device or between two: the lower page is chosen, as on one device. */
static void test_ties(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 700, 5 * RIG_PAGE, NKV_SELECT_LAYER);
    struct record record[2] = {{0}, {0}};
    float k[RIG_PAGE * RIG_KV_ROW] = {0}, q[RIG_PAGE * RIG_ROW] = {0}, out[RIG_PAGE * RIG_ROW];

    (void)state;
    for (uint32_t i = 0; i < 2; i++) {
        struct rig_options options = {.n_devices = i ? 4 : 1,
                                      .kv_parallel = i ? NKV_KV_CONTEXT : NKV_KV_DATA,
                                      .plan_log = note_set,
                                      .plan_log_arg = &record[i]};
        struct rig rig;
        struct nkv_seq *seq;

        assert_int_equal(rig_open(&rig, &options), 0);
        assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
        for (uint32_t step = 0; step < 22; step++) {
            struct nkv_attend_item item = {seq, step < 20 ? RIG_PAGE : 1, q, k, k, out};
            struct nkv_ticket *ticket;

            for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
                assert_int_equal(nkv_attend_begin(rig.context, layer, &item, 1, &ticket), 0);
                assert_int_equal(nkv_attend_end(ticket), 0);
            }
            assert_int_equal(nkv_step_end(rig.context, &item, 1), 0);
        }
        assert_int_equal(nkv_seq_status(seq), 0);
        rig_close(&rig);
    }
    assert_string_equal(record[0].sets, record[1].sets);
    assert_non_null(strstr(record[0].sets, "pos=640 unit=0: 0 1 2 19 20\n"));
    record_free(&record[0]);
    record_free(&record[1]);
}

/*
 * A batch and two tickets in flight. The third time the members' windows are said to be smaller than they are: they
 * fill up, commands wait for them, and what needs more has larger ones mapped.
 */
static void check_batches(enum nkv_mode mode, enum nkv_kv_parallel kv_parallel, uint32_t n_devices)
{
    static float outputs[3][4][RIG_LAYERS * RIG_ROW];

    for (uint32_t i = 0; i < 3; i++) {
        struct rig_options options = {.n_devices = i ? n_devices : 1, .kv_parallel = i ? kv_parallel : NKV_KV_DATA};
        struct nkv_seq_options so = rig_seq_options(mode, 500, 160, NKV_SELECT_LAYER);
        struct nkv_ticket *tickets[2];
        struct nkv_attend_item items[4];
        struct nkv_seq *seqs[4];
        struct rig_seq s[4];
        struct rig rig;

        assert_int_equal(rig_open(&rig, &options), 0);
        for (uint32_t j = 0; j < 4; j++) {
            if (i == 2)
                rig.context->group->member_bytes = 1024;
            assert_int_equal(nkv_seq_open(rig.context, &so, &seqs[j]), 0);
            rig_seq_init(&s[j], seqs[j], 20 + j);
            assert_int_equal(rig_prefill(&rig, &s[j], 300 + 31 * j, 200), 0);
        }
        for (uint32_t step = 0; step < 5; step++) {
            for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
                for (uint32_t j = 0; j < 4; j++)
                    items[j] = rig_item(&s[j], layer, 1);
                assert_int_equal(nkv_attend_begin(rig.context, layer, items, 2, &tickets[0]), 0);
                assert_int_equal(nkv_attend_begin(rig.context, layer, items + 2, 2, &tickets[1]), 0);
                assert_int_equal(nkv_attend_end(tickets[0]), 0);
                assert_int_equal(nkv_attend_end(tickets[1]), 0);
                for (uint32_t j = 0; j < 4; j++)
                    memcpy(outputs[i][j] + layer * RIG_ROW, s[j].out, RIG_ROW * sizeof(float));
            }
            assert_int_equal(nkv_step_end(rig.context, items, 4), 0);
            for (uint32_t j = 0; j < 4; j++)
                s[j].length++;
        }
        for (uint32_t j = 0; j < 4; j++) {
            assert_int_equal(nkv_seq_status(seqs[j]), 0);
            rig_seq_free(&s[j]);
        }
        if (i == 2)
            assert_true(rig.context->group->member_bytes > 1024);
        rig_close(&rig);
    }
    assert_memory_equal(outputs[1], outputs[2], sizeof outputs[1]);
    assert_true(rig_difference(&outputs[0][0][0], &outputs[1][0][0], 4 * RIG_LAYERS * RIG_ROW) <= ROUNDING);
}

static void test_batches(void **state)
{
    (void)state;
    check_batches(NKV_MODE_PNM, NKV_KV_CONTEXT, 3);
    check_batches(NKV_MODE_PNG, NKV_KV_CONTEXT, 3);
    check_batches(NKV_MODE_PNG, NKV_KV_HEADS, 2);
    check_batches(NKV_MODE_RECALL, NKV_KV_CONTEXT, 2);
}

/* Three devices serve what none of them could, and refuse what all of them cannot. */
static void test_larger_than_a_device(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 6000, 1024, NKV_SELECT_LAYER);
    struct rig_options options = {.dtype = NKV_F16, .n_devices = 3, .capacity_bytes = 768u << 10};
    float expected[RIG_ROW];
    struct nkv_seq *seq;
    struct rig_seq s;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), NKV_ENOSPC);
    rig_close(&rig);
    options.kv_parallel = NKV_KV_CONTEXT;
    assert_int_equal(rig_open(&rig, &options), 0);
    so.mode = NKV_MODE_FULL;
    so.keep_digests = true;
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_seq_init(&s, seq, 3);
    assert_int_equal(rig_prefill(&rig, &s, 5990, 512), 0);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(rig_decode(&rig, &s), 0);
    assert_int_equal(nkv_seq_status(seq), 0);
    for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
        rig_oracle(3, layer, 5999, NULL, 0, expected);
        assert_true(rig_difference(s.last + layer * RIG_ROW, expected, RIG_ROW) <= rig_bound(NKV_F16));
    }
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "over 3 devices (cp)"));
    assert_int_equal(nkv_seq_can_fit(rig.context, &so), 0);
    so.max_tokens = 20000;
    assert_int_equal(nkv_seq_can_fit(rig.context, &so), NKV_ENOSPC);
    rig_seq_free(&s);
    rig_close(&rig);
}

/* A budget of all tokens is full attention. */
static void test_whole_budget(void **state)
{
    struct rig_options options = {.n_devices = 4, .kv_parallel = NKV_KV_CONTEXT};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, N_TOKENS + 100, N_TOKENS + 100, NKV_SELECT_LAYER);
    struct record sparse, full;

    (void)state;
    run(options, &so, &sparse);
    so.mode = NKV_MODE_FULL;
    so.keep_digests = true;
    run(options, &so, &full);
    assert_true(rig_difference(sparse.outputs, full.outputs, (uint32_t)full.n_outputs) <= ROUNDING);
    record_free(&sparse);
    record_free(&full);
}

/* A command that one member fails ends its sequence, which is usable again when it is cut to what it has. */
static void test_command_fails(void **state)
{
    static const struct {
        const char *spec;
        enum nkv_mode mode;
    } cases[] = {{"fault:op=append,n=5:cpu", NKV_MODE_PNM}, {"fault:op=select,n=2:cpu", NKV_MODE_PNM},
                 {"fault:op=attend,n=9:cpu", NKV_MODE_PNM}, {"fault:op=select,n=7:cpu", NKV_MODE_PNG},
                 {"fault:op=read,n=2:cpu", NKV_MODE_PNG},   {"fault:op=read,n=2:cpu", NKV_MODE_RECALL}};

    (void)state;
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rig_options options = {.n_devices = 2, .kv_parallel = NKV_KV_CONTEXT, .spec = cases[i].spec};
        struct nkv_seq_options so = rig_seq_options(cases[i].mode, 600, 160, NKV_SELECT_LAYER);
        float expected[RIG_ROW];
        struct nkv_seq *seq;
        struct rig_seq s;
        struct rig rig;
        uint32_t n_failed = 0;

        assert_int_equal(rig_open(&rig, &options), 0);
        assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
        rig_seq_init(&s, seq, 5);
        while (s.length < 500) {
            uint32_t n = s.length < 450 ? 90 : 1;

            assert_int_equal(rig_prefill(&rig, &s, n, n), 0);
            if (nkv_seq_status(seq) == 0)
                continue;
            n_failed++;
            assert_non_null(strstr(nkv_seq_error(seq), "all devices (cp over 2) failed "));
            assert_non_null(strstr(nkv_seq_error(seq), "(cpu"));
            assert_int_equal(nkv_seq_truncate(seq, s.length), 0);
        }
        assert_in_range(n_failed, 1, 2);
        so.mode = NKV_MODE_FULL;
        assert_int_equal(nkv_seq_fork(seq, 500, &so, &s.seq), 0);
        assert_int_equal(rig_decode(&rig, &s), 0);
        rig_oracle(5, 1, 500, NULL, 0, expected);
        assert_true(rig_difference(s.last + RIG_ROW, expected, RIG_ROW) <= rig_bound(NKV_F32));
        nkv_seq_close(s.seq);
        nkv_seq_close(seq);
        assert_true(rig_empty(&rig));
        rig_seq_free(&s);
        rig_close(&rig);
    }
}

/* Without memory for any part of it a group is not opened, and nothing is lost or left. */
static void test_no_memory(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 600, 160, NKV_SELECT_LAYER);
    struct rig rig;

    (void)state;
    assert_true(rig_open_without_memory(&rig, NKV_KV_CONTEXT, &so) > 10);
    nkv_seq_close(rig.context->sequences);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

/* What one member cannot open, none keeps. */
static void test_open_fails(void **state)
{
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F32), .capacity_bytes = 8u << 20, .n_threads = 1};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 600, 160, NKV_SELECT_LAYER);
    struct rig rig = {.shape = config.shape, .n_devices = 2};
    struct nkv_context_options options = {.size = sizeof options,
                                          .shape = config.shape,
                                          .devices = rig.devices,
                                          .n_devices = 2,
                                          .kv_parallel = NKV_KV_CONTEXT};
    struct nkv_seq *seq;

    (void)state;
    assert_int_equal(nkv_device_open("cpu", &config, &rig.devices[0]), 0);
    assert_int_equal(nkv_device_open("fault:op=seq_open,n=1:cpu", &config, &rig.devices[1]), 0);
    assert_int_equal(nkv_device_open("cpu", &config, &rig.compute), 0);
    options.compute = rig.compute;
    assert_int_equal(nkv_context_open(&options, &rig.context), 0);
    assert_true(nkv_seq_open(rig.context, &so, &seq) < 0);
    assert_non_null(strstr(nkv_last_error(), "device 1 (cpu"));
    assert_true(rig_empty(&rig));
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    nkv_seq_close(seq);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

/* The compute side has no room, or there is none. */
static void test_no_compute(void **state)
{
    struct rig_options options = {.n_devices = 2, .kv_parallel = NKV_KV_CONTEXT, .compute_bytes = 64u << 10};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNG, 6000, 4096, NKV_SELECT_LAYER);
    struct nkv_context_options none = {.size = sizeof none, .n_devices = 2, .kv_parallel = NKV_KV_CONTEXT};
    struct nkv_seq *seq;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "on the compute device"));
    assert_int_equal(nkv_seq_can_fit(rig.context, &so), NKV_ENOSPC);
    nkv_context_close(rig.context);
    none.shape = rig.shape;
    none.devices = rig.devices;
    assert_int_equal(nkv_context_open(&none, &rig.context), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "compute device"));
    rig_close(&rig);
}

static void test_refusals(void **state)
{
    struct rig_options options = {.n_devices = 2, .kv_parallel = NKV_KV_CONTEXT};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 600, 160, NKV_SELECT_LAYER);
    const int32_t ids[4] = {1, 2, 3, 4};
    struct nkv_session_options session = {.size = sizeof session, .n_tokens = 4, .tokens = ids, .name = "s"};
    struct nkv_session_result result;
    struct nkv_context_options none = {.size = sizeof none, .n_devices = 3, .kv_parallel = NKV_KV_HEADS};
    struct nkv_context *context;
    struct nkv_seq *seq;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_session_open(rig.context, &so, &session, &seq, &result), NKV_ENOTSUP);
    assert_non_null(strstr(nkv_last_error(), "session"));
    rig_close(&rig);
    options.n_devices = 3;
    assert_int_equal(rig_open(&rig, &options), 0);
    none.shape = rig.shape;
    none.devices = rig.devices;
    assert_int_equal(nkv_context_open(&none, &context), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "2 KV heads over 3 devices"));
    rig_close(&rig);
}

/* A decode step of one sequence and layer: an append to one device, a question to each, an attention on each. */
static void test_messages(void **state)
{
    struct rig_options options = {.n_devices = 4, .kv_parallel = NKV_KV_CONTEXT};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 2000, 16 * RIG_PAGE, NKV_SELECT_LAYER);
    struct nkv_kv_parallel_report before, after;
    struct nkv_seq *seq;
    struct rig_seq s;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_seq_init(&s, seq, 9);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(rig_prefill(&rig, &s, 900, 300), 0);
        nkv_context_kv_parallel(rig.context, &before);
        assert_int_equal(rig_decode(&rig, &s), 0);
        nkv_context_kv_parallel(rig.context, &after);
        assert_int_equal(after.n_devices, 4);
        assert_int_equal(after.n_commands - before.n_commands, 3 * RIG_LAYERS);
        assert_int_equal(after.n_select_rounds - before.n_select_rounds, RIG_LAYERS);
        assert_in_range(after.n_messages - before.n_messages, (1 + 4 + 1) * RIG_LAYERS, (1 + 4 + 4) * RIG_LAYERS);
        /* Whatever the context: q to each for either question, the set once, k, v; at most as many candidates from each
         * as could be chosen. */
        assert_in_range(after.to_device_bytes - before.to_device_bytes, 1,
                        4 * RIG_LAYERS * (2 * RIG_KV_ROW + 8 * RIG_ROW + 16 + 4));
        assert_in_range(after.from_device_bytes - before.from_device_bytes, 1,
                        4 * RIG_LAYERS * 4 * (2 * 13 + 1 + RIG_ROW + 2 * RIG_HEADS));
    }
    rig_seq_free(&s);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_context_parallel), cmocka_unit_test(test_head_parallel),
        cmocka_unit_test(test_budgets),          cmocka_unit_test(test_ties),
        cmocka_unit_test(test_batches),          cmocka_unit_test(test_larger_than_a_device),
        cmocka_unit_test(test_whole_budget),     cmocka_unit_test(test_command_fails),
        cmocka_unit_test(test_open_fails),       cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_no_compute),       cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_messages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
