/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the options of a mode change, and what not: residency and same-step recall never change the set, dense layers
 * and ArkVale's attention to everything resident do as they say. The invariants over every place are test_product.c.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "runtime/rig.h"

#define N_DECODE 3u

static void check_against_oracle(struct rig *rig, struct rig_seq *s, float bound)
{
    float expected[RIG_ROW];

    for (uint32_t step = 0; step < N_DECODE; step++) {
        assert_int_equal(rig_decode(rig, s), 0);
        assert_int_equal(nkv_seq_status(s->seq), 0);
        for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
            rig_oracle(s->seed, layer, s->length - 1, NULL, 0, expected);
            assert_true(rig_difference(s->last + layer * RIG_ROW, expected, RIG_ROW) <= bound);
        }
    }
}

/* Outputs of N steps in one mode: [steps][layers][row]. */
static void run_mode(const struct rig_options *options, const struct nkv_seq_options *so, uint32_t length,
                     uint32_t steps, float *outputs)
{
    struct nkv_seq *seq;
    struct rig_seq s;
    struct rig rig;

    assert_int_equal(rig_open(&rig, options), 0);
    assert_int_equal(nkv_seq_open(rig.context, so, &seq), 0);
    rig_seq_init(&s, seq, 7);
    assert_int_equal(rig_prefill(&rig, &s, length, 512), 0);
    for (uint32_t step = 0; step < steps; step++) {
        assert_int_equal(rig_decode(&rig, &s), 0);
        memcpy(outputs + step * RIG_LAYERS * RIG_ROW, s.last, RIG_LAYERS * RIG_ROW * sizeof(float));
    }
    assert_int_equal(nkv_seq_status(seq), 0);
    rig_seq_free(&s);
    rig_close(&rig);
}

#define N_STEPS   40u
#define N_OUTPUTS (N_STEPS * RIG_LAYERS * RIG_ROW)

/* At any budget the sparse modes attend to the same set. */
static void test_modes_agree(void **state)
{
    static float pnm[N_OUTPUTS], other[N_OUTPUTS], full[N_OUTPUTS];

    (void)state;
    for (uint32_t variant = 0; variant < 2 * NKV_DTYPE_COUNT; variant++) {
        struct rig_options options = {.dtype = (enum nkv_dtype)(variant / 2), .n_threads = 1};
        struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 1100, 192, (enum nkv_granularity)(variant % 2));

        run_mode(&options, &so, 1000, N_STEPS, pnm);
        so.mode = NKV_MODE_FULL;
        run_mode(&options, &so, 1000, N_STEPS, full);
        assert_true(rig_difference(pnm, full, N_OUTPUTS) > 0.01f); /* the budget does cut something off */
        so.mode = NKV_MODE_RECALL;
        run_mode(&options, &so, 1000, N_STEPS, other);
        assert_true(rig_difference(pnm, other, N_OUTPUTS) < 2e-5f);
        so.mode = NKV_MODE_PNG;
        run_mode(&options, &so, 1000, N_STEPS, other);
        assert_true(rig_difference(pnm, other, N_OUTPUTS) < 2e-5f);
        so.same_step_recall = true;
        run_mode(&options, &so, 1000, N_STEPS, other);
        assert_true(rig_difference(pnm, other, N_OUTPUTS) < 2e-5f);
        so.resident_tokens = 0;
        run_mode(&options, &so, 1000, N_STEPS, other);
        assert_memory_equal(pnm, other, sizeof pnm); /* nothing resident: the same commands */
        so.resident_tokens = 2048;                   /* more slots than pages */
        so.same_step_recall = false;
        run_mode(&options, &so, 1000, N_STEPS, other);
        assert_true(rig_difference(pnm, other, N_OUTPUTS) < 2e-5f);
    }
}

/* Dense layers attend to everything in every mode. */
static void test_dense_layers(void **state)
{
    static float full[N_OUTPUTS], sparse[N_OUTPUTS];

    (void)state;
    for (uint32_t mode = NKV_MODE_RECALL; mode < NKV_MODE_COUNT; mode++) {
        struct rig_options options = {.dtype = NKV_F32};
        struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, 1100, 128, NKV_SELECT_LAYER);

        run_mode(&options, &so, 500, 4, full);
        so.mode = (enum nkv_mode)mode;
        so.n_dense_layers = 1;
        run_mode(&options, &so, 500, 4, sparse);
        for (uint32_t step = 0; step < 4; step++) {
            assert_true(rig_difference(full + step * 2 * RIG_ROW, sparse + step * 2 * RIG_ROW, RIG_ROW) < 1e-6f);
            assert_true(rig_difference(full + (step * 2 + 1) * RIG_ROW, sparse + (step * 2 + 1) * RIG_ROW, RIG_ROW) >
                        1e-3f);
        }
    }
}

/* Blocks with the whole context in their budget see what dense prefill sees; a small budget still gives a result. */
static void test_sparse_prefill(void **state)
{
    static float dense[N_OUTPUTS], sparse[N_OUTPUTS];

    (void)state;
    for (uint32_t granularity = 0; granularity < 2; granularity++) {
        struct rig_options options = {.dtype = NKV_F32, .n_threads = 2};
        struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 1100, 256, (enum nkv_granularity)granularity);
        struct rig rig;
        struct nkv_seq *seq[2];
        struct rig_seq s[2];

        assert_int_equal(rig_open(&rig, &options), 0);
        assert_int_equal(nkv_seq_open(rig.context, &so, &seq[0]), 0);
        so.sparse_prefill = true;
        so.prefill_budget_tokens = 1100;
        assert_int_equal(nkv_seq_open(rig.context, &so, &seq[1]), 0);
        for (uint32_t i = 0; i < 2; i++)
            rig_seq_init(&s[i], seq[i], 5);
        for (uint32_t chunk = 0; chunk < 3; chunk++) {
            uint32_t n = 333;

            assert_int_equal(rig_prefill(&rig, &s[0], n, n), 0);
            assert_int_equal(rig_prefill(&rig, &s[1], n, n), 0);
            assert_true(rig_difference(s[0].out, s[1].out, n * RIG_ROW) < 2e-5f);
        }
        assert_int_equal(nkv_seq_status(seq[1]), 0);
        for (uint32_t i = 0; i < 2; i++) {
            rig_seq_free(&s[i]);
            nkv_seq_close(seq[i]);
        }
        rig_close(&rig);
        so.prefill_budget_tokens = 5 * RIG_PAGE; /* shorter blocks */
        run_mode(&options, &so, 1000, 4, sparse);
        so.sparse_prefill = false;
        run_mode(&options, &so, 1000, 4, dense);
        assert_memory_equal(dense, sparse, 4 * RIG_LAYERS * RIG_ROW * sizeof(float)); /* keys are the caller's */
    }
}

/* ArkVale's attention over everything resident: with slots for all, it comes to be full attention. */
static void test_attend_resident(void **state)
{
    struct rig_options options = {.dtype = NKV_F32};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_RECALL, 320, 160, NKV_SELECT_LAYER);
    struct nkv_seq_stats stats;
    struct nkv_seq *seq;
    struct rig_seq s;
    struct rig rig;
    uint32_t step;

    (void)state;
    so.attend_resident = true;
    so.resident_tokens = 320;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_seq_init(&s, seq, 3);
    assert_int_equal(rig_prefill(&rig, &s, 220, 220), 0);
    for (step = 0; step < 80; step++) {
        assert_int_equal(rig_decode(&rig, &s), 0);
        nkv_seq_stats(seq, &stats);
        if (stats.resident_pages == RIG_LAYERS * (s.length / RIG_PAGE))
            break;
    }
    assert_true(step < 80);
    check_against_oracle(&rig, &s, 2e-5f);
    rig_seq_free(&s);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modes_agree),
        cmocka_unit_test(test_dense_layers),
        cmocka_unit_test(test_sparse_prefill),
        cmocka_unit_test(test_attend_resident),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
