/* SPDX-License-Identifier: Apache-2.0 */
/*
 * At the limits of a call: more commands than the queue has entries, a slow device, a failure while room is made,
 * blocks of one token, the hungriest sequences together, ids that begin anew.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <nearkv/device.h>

#include "runtime/rig.h"
#include "runtime/runtime.h"

#define BATCH 256u
#define PAGES 2u

/* Shows a completion only to who waits for one. */
struct slow {
    struct nkv_device device; /* first */
    struct nkv_device *inner;
};

static struct nkv_device *inner_of(struct nkv_device *device)
{
    return ((struct slow *)(void *)device)->inner;
}

static int slow_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    return inner_of(device)->ops->caps(inner_of(device), caps_out);
}

static int slow_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    return inner_of(device)->ops->map(inner_of(device), bytes, window_out);
}

static int slow_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    return inner_of(device)->ops->submit(inner_of(device), cmds, n);
}

static int slow_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    (void)max_n;
    return min_n ? inner_of(device)->ops->reap(inner_of(device), cqes_out, min_n, min_n) : 0;
}

static int slow_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    return inner_of(device)->ops->stat(inner_of(device), stat_out);
}

static void slow_close(struct nkv_device *device)
{
    (void)device; /* the rig owns the inner one */
}

static const struct nkv_device_ops slow_ops = {
    .abi = NKV_DEVICE_ABI,
    .backend = "slow",
    .caps = slow_caps,
    .map = slow_map,
    .submit = slow_submit,
    .reap = slow_reap,
    .stat = slow_stat,
    .close = slow_close,
};

/* n_tokens of every sequence, as many sequences per call as the context takes. */
static void step_all(struct nkv_context *context, struct nkv_seq *const *seqs, uint32_t pos, uint32_t n_tokens,
                     float *out)
{
    static float q[BATCH * RIG_ROW], k[BATCH * RIG_KV_ROW], v[BATCH * RIG_KV_ROW];
    static struct nkv_attend_item items[BATCH];
    uint32_t n = BATCH / n_tokens;

    for (uint32_t first = 0; first < BATCH; first += n) {
        for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
            struct nkv_ticket *ticket = NULL;

            for (uint32_t i = 0; i < n; i++) {
                size_t at = (size_t)i * n_tokens;

                rig_fill(first + i, layer, pos, n_tokens, q + at * RIG_ROW, k + at * RIG_KV_ROW, v + at * RIG_KV_ROW);
                items[i] = (struct nkv_attend_item){seqs[first + i],     n_tokens,
                                                    q + at * RIG_ROW,    k + at * RIG_KV_ROW,
                                                    v + at * RIG_KV_ROW, out + at * RIG_ROW};
            }
            assert_int_equal(nkv_attend_begin(context, layer, items, n, &ticket), 0);
            assert_int_equal(nkv_attend_end(ticket), 0);
        }
        assert_int_equal(nkv_step_end(context, items, n), 0);
    }
}

/* Planning from one SELECT's result fills the queue; making room reaps the next SELECT. */
static void test_slow_device(void **state)
{
    static float out[BATCH * RIG_ROW], expected[RIG_ROW];
    static struct nkv_seq *seqs[BATCH];
    struct rig_options ro = {.dtype = NKV_F32, .capacity_bytes = 64u << 20};
    struct nkv_seq_options so =
        rig_seq_options(NKV_MODE_PNG, (PAGES + 1) * RIG_PAGE, (PAGES + 1) * RIG_PAGE, NKV_SELECT_LAYER);
    struct slow slow = {.device.ops = &slow_ops};
    struct nkv_device *device = &slow.device;
    struct nkv_context_options co = {
        .size = sizeof co, .devices = &device, .n_devices = 1, .max_batch = BATCH, .max_tokens = BATCH};
    struct nkv_context *context = NULL;
    struct rig rig;

    (void)state;
    so.same_step_recall = true;
    so.resident_tokens = PAGES * RIG_PAGE;
    assert_int_equal(rig_open(&rig, &ro), 0);
    nkv_context_close(rig.context);
    rig.context = NULL;
    slow.inner = rig.devices[0];
    co.shape = rig.shape;
    co.compute = rig.compute;
    assert_int_equal(nkv_context_open(&co, &context), 0);
    for (uint32_t i = 0; i < BATCH; i++)
        assert_int_equal(nkv_seq_open(context, &so, &seqs[i]), 0);
    for (uint32_t page = 0; page < PAGES; page++)
        step_all(context, seqs, page * RIG_PAGE, RIG_PAGE, out);
    for (uint32_t pos = PAGES * RIG_PAGE; pos < PAGES * RIG_PAGE + 2; pos++) {
        step_all(context, seqs, pos, 1, out);
        for (uint32_t i = 0; i < BATCH; i++) {
            assert_int_equal(nkv_seq_status(seqs[i]), 0);
            rig_oracle(i, RIG_LAYERS - 1, pos, NULL, 0, expected);
            assert_true(rig_difference(out + (size_t)i * RIG_ROW, expected, RIG_ROW) < rig_bound(NKV_F32));
        }
    }
    nkv_context_close(context);
    rig_close(&rig);
}

/* One sequence in blocks of one token; chosen: sink and recent pages only. */
static struct nkv_seq_options single_blocks(uint32_t max_tokens)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, max_tokens, 0, NKV_SELECT_LAYER);

    so.sparse_prefill = true;
    so.sink_pages = 1;
    so.recent_pages = 2;
    so.prefill_budget_tokens = 3 * RIG_PAGE;
    return so;
}

/* The failure is reaped while the same sequence's later commands wait for room. */
static void test_failure_makes_room(void **state)
{
    struct rig_options ro = {.dtype = NKV_F32, .spec = "fault:op=select,n=1:cpu"};
    struct nkv_seq_options so = single_blocks(RIG_CHUNK);
    struct nkv_seq *seq = NULL;
    struct rig_seq s;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &ro), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_seq_init(&s, seq, 5);
    assert_int_equal(rig_prefill(&rig, &s, 400, 400), 0);
    assert_int_equal(nkv_seq_status(seq), NKV_EDEVICE);
    assert_int_equal(nkv_seq_truncate(seq, 0), 0);
    assert_int_equal(rig_prefill(&rig, &s, 400, 400), 0);
    assert_int_equal(nkv_seq_status(seq), 0);
    nkv_seq_close(seq);
    assert_true(rig_empty(&rig));
    rig_seq_free(&s);
    rig_close(&rig);
}

/* A block of one token does not see the tokens of its page that were appended with it. */
static void test_single_token_blocks_are_causal(void **state)
{
    struct rig_options ro = {.dtype = NKV_F32};
    struct nkv_seq_options so = single_blocks(RIG_CHUNK);
    struct nkv_seq *seq = NULL;
    float expected[RIG_ROW];
    struct rig_seq s;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &ro), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_seq_init(&s, seq, 6);
    assert_int_equal(rig_prefill(&rig, &s, 3 * RIG_PAGE, RIG_CHUNK), 0);
    for (uint32_t t = 0; t < 3 * RIG_PAGE; t++) {
        rig_oracle(6, RIG_LAYERS - 1, t, NULL, 0, expected);
        assert_true(rig_difference(s.out + (size_t)t * RIG_ROW, expected, RIG_ROW) < rig_bound(NKV_F32));
    }
    rig_seq_free(&s);
    rig_close(&rig);
}

/* Decode works with many recalled pages beside a prefill with many long lists: more than either alone. */
static void test_windows_fit_mixtures(void **state)
{
    struct rig_options ro = {.dtype = NKV_F32, .capacity_bytes = 64u << 20};
    struct nkv_seq_options blocks = rig_seq_options(NKV_MODE_FULL, 510 * RIG_PAGE, 0, NKV_SELECT_KV_HEAD);
    struct nkv_seq_options png = rig_seq_options(NKV_MODE_PNG, 128 * RIG_PAGE, 128 * RIG_PAGE, NKV_SELECT_KV_HEAD);
    const uint32_t n_tokens[4] = {1, 1, 1, 500};
    struct nkv_attend_item items[4];
    struct nkv_ticket *ticket = NULL;
    struct rig_seq s[4];
    struct rig rig;

    (void)state;
    blocks.sparse_prefill = true;
    blocks.sink_pages = blocks.recent_pages = 255;
    blocks.prefill_budget_tokens = 510 * RIG_PAGE;
    assert_int_equal(rig_open(&rig, &ro), 0);
    for (uint32_t i = 0; i < 4; i++) {
        struct nkv_seq *seq = NULL;

        assert_int_equal(nkv_seq_open(rig.context, i < 3 ? &png : &blocks, &seq), 0);
        rig_seq_init(&s[i], seq, 20 + i);
        items[i] = rig_item(&s[i], 0, n_tokens[i]);
    }
    assert_int_equal(nkv_attend_begin(rig.context, 0, items, 4, &ticket), 0);
    assert_true(ticket->window_used[0] <= rig.context->ports[0].lane_bytes);
    assert_int_equal(nkv_attend_end(ticket), 0);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(nkv_seq_status(s[i].seq), 0);
        rig_seq_free(&s[i]);
    }
    rig_close(&rig);
}

/* No sequence gets id 0, which means none, or the id of one that is open. */
static void test_ids_begin_anew(void **state)
{
    struct rig_options ro = {.dtype = NKV_F32};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_RECALL, 4 * RIG_PAGE, 4 * RIG_PAGE, NKV_SELECT_LAYER);
    struct nkv_seq *seqs[4] = {NULL};
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &ro), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seqs[0]), 0); /* ids 1, 2, 3 */
    rig.context->next_id = UINT32_MAX;
    assert_int_equal(nkv_seq_open(rig.context, &so, &seqs[1]), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seqs[2]), 0);
    rig.context->next_id = 0;
    assert_int_equal(nkv_seq_fork(seqs[2], 0, NULL, &seqs[3]), 0);
    for (uint32_t i = 0; i < 4; i++) {
        assert_true(seqs[i]->id && seqs[i]->mirror_id && seqs[i]->slots_id);
        nkv_seq_close(seqs[i]);
    }
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slow_device),
        cmocka_unit_test(test_failure_makes_room),
        cmocka_unit_test(test_single_token_blocks_are_causal),
        cmocka_unit_test(test_windows_fit_mixtures),
        cmocka_unit_test(test_ids_begin_anew),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
