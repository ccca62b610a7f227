/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The invariants as one product: every mode x granularity x KV type x 1 to 3 devices x 1 to 2 threads. In each place a
 * batch of six sequences whose lengths lie around page boundaries; each has tokens of its own, so that one that read
 * another's pages would be found out. References are computed once: naive attention for a budget of the whole context,
 * mode pnm for a small one, a sequence that was never forked or cut for the one that was.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/mem.h"
#include "runtime/rig.h"

#define N_LENGTHS 6u
#define N_STEPS   4u
#define N_STEP    (RIG_LAYERS * RIG_ROW) /* floats that a sequence puts out per step */
#define EQUAL     2e-5f                  /* the same set attended in another order */

static const uint32_t lengths[N_LENGTHS] = {0, 1, 31, 32, 33, 1000};

/* Where a variant of the product runs; the results must be the same bits. */
struct place {
    uint32_t n_devices, n_threads;
};
static const struct place places[] = {{1, 1}, {1, 2}, {2, 1}, {2, 2}, {3, 1}, {3, 2}};
#define N_PLACES (sizeof places / sizeof *places)

/* One context in each place, for every variant of a KV type: the next ones find the pages of those before. */
static void open_places(enum nkv_dtype dtype, struct rig *rigs)
{
    for (uint32_t p = 0; p < N_PLACES; p++) {
        struct rig_options options = {
            .dtype = dtype, .n_devices = places[p].n_devices, .n_threads = places[p].n_threads, .max_batch = N_LENGTHS};

        assert_int_equal(rig_open(&rigs[p], &options), 0);
    }
}

static void close_places(struct rig *rigs)
{
    for (uint32_t p = 0; p < N_PLACES; p++)
        rig_close(&rigs[p]);
}

/* Mode and granularity number v. */
#define N_VARIANTS (2u * NKV_MODE_COUNT)
static struct nkv_seq_options variant(uint32_t v, uint32_t max_tokens, uint32_t budget_tokens)
{
    return rig_seq_options((enum nkv_mode)(v / 2), max_tokens, budget_tokens, (enum nkv_granularity)(v % 2));
}

static void open_seq(struct rig *rig, const struct nkv_seq_options *so, uint32_t seed, struct rig_seq *s)
{
    struct nkv_seq *seq = NULL;

    assert_int_equal(nkv_seq_open(rig->context, so, &seq), 0);
    rig_seq_init(s, seq, seed);
}

static void close_seq(struct rig_seq *s)
{
    nkv_seq_close(s->seq);
    rig_seq_free(s);
}

/* The first n_tokens of a sequence, without queries: only the cache is wanted. */
static void feed(struct rig *rig, struct rig_seq *s, uint32_t n_tokens)
{
    while (s->length < n_tokens) {
        uint32_t n = n_tokens - s->length < RIG_CHUNK ? n_tokens - s->length : RIG_CHUNK;
        struct nkv_attend_item item;
        struct nkv_ticket *ticket;

        for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
            item = rig_item(s, layer, n);
            item.q = item.out = NULL;
            assert_int_equal(nkv_attend_begin(rig->context, layer, &item, 1, &ticket), 0);
            assert_int_equal(nkv_attend_end(ticket), 0);
        }
        assert_int_equal(nkv_step_end(rig->context, &item, 1), 0);
        s->length = nkv_seq_length(s->seq);
    }
}

/* `steps` decode steps of a batch, which allocate nothing; outputs [n][steps][N_STEP]. */
static void decode(struct rig *rig, struct rig_seq *s, uint32_t n, uint32_t steps, float *outputs)
{
    const uint32_t ones[N_LENGTHS] = {1, 1, 1, 1, 1, 1};
    struct rig_seq *batch[N_LENGTHS];

    for (uint32_t i = 0; i < n; i++)
        batch[i] = &s[i];
    nkv_mem_fail_at(0);
    for (uint32_t step = 0; step < steps; step++) {
        assert_int_equal(rig_step(rig, batch, ones, n), 0);
        for (uint32_t i = 0; i < n; i++)
            memcpy(outputs + (i * steps + step) * N_STEP, s[i].last, N_STEP * sizeof(float));
    }
    assert_int_equal(nkv_mem_fail_at(0), 0);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(nkv_seq_status(s[i].seq), 0);
}

static void check_used_devices(const struct rig *rig, const struct rig_seq *s, uint32_t n)
{
    uint32_t used = 0;

    for (uint32_t i = 0; i < n; i++)
        used |= 1u << nkv_seq_device(s[i].seq);
    assert_int_equal(used, (1u << rig->n_devices) - 1);
}

#define N_OUTPUTS (N_LENGTHS * N_STEPS * N_STEP)

/* The six lengths in one batch. */
static void run_lengths(struct rig *rig, const struct nkv_seq_options *so, float *outputs)
{
    struct rig_seq s[N_LENGTHS];

    for (uint32_t i = 0; i < N_LENGTHS; i++) {
        open_seq(rig, so, 1 + i, &s[i]);
        feed(rig, &s[i], lengths[i]);
    }
    check_used_devices(rig, s, N_LENGTHS);
    decode(rig, s, N_LENGTHS, N_STEPS, outputs);
    for (uint32_t i = 0; i < N_LENGTHS; i++)
        close_seq(&s[i]);
    assert_true(rig_empty(rig));
}

/* In every place the same bits; leaves them in `outputs`. */
static void run_places(struct rig *rigs, const struct nkv_seq_options *so, float *outputs)
{
    static float again[N_OUTPUTS];

    run_lengths(&rigs[0], so, outputs);
    for (uint32_t p = 1; p < N_PLACES; p++) {
        run_lengths(&rigs[p], so, again);
        assert_memory_equal(outputs, again, sizeof again);
    }
}

/* budget >= context: every mode is attention to everything. */
static void test_whole_budget(void **state)
{
    static float expected[N_OUTPUTS], outputs[N_OUTPUTS];
    struct rig rigs[N_PLACES];

    (void)state;
    for (uint32_t i = 0; i < N_LENGTHS; i++)
        for (uint32_t step = 0; step < N_STEPS; step++)
            for (uint32_t layer = 0; layer < RIG_LAYERS; layer++)
                rig_oracle(1 + i, layer, lengths[i] + step, NULL, 0,
                           expected + (i * N_STEPS + step) * N_STEP + layer * RIG_ROW);
    for (uint32_t dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
        open_places((enum nkv_dtype)dtype, rigs);
        for (uint32_t v = 0; v < N_VARIANTS; v++) {
            struct nkv_seq_options so = variant(v, 1024, 1024);

            run_places(rigs, &so, outputs);
            assert_true(rig_difference(outputs, expected, N_OUTPUTS) <= rig_bound((enum nkv_dtype)dtype));
        }
        close_places(rigs);
    }
}

/* At a small budget the sparse modes attend to the same set, and it is not everything. */
static void check_small_budget(struct rig *rigs, enum nkv_granularity granularity)
{
    static float pnm[N_OUTPUTS], other[N_OUTPUTS];
    const uint32_t longest = (N_LENGTHS - 1) * N_STEPS * N_STEP;
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 1024, 192, granularity);

    run_places(rigs, &so, pnm);
    so.mode = NKV_MODE_FULL;
    run_lengths(&rigs[0], &so, other);
    assert_true(rig_difference(pnm, other, longest) <= EQUAL);
    assert_true(rig_difference(pnm + longest, other + longest, N_STEPS * N_STEP) > 0.01f);
    so.mode = NKV_MODE_RECALL;
    run_places(rigs, &so, other);
    assert_true(rig_difference(pnm, other, N_OUTPUTS) <= EQUAL);
    so.mode = NKV_MODE_PNG;
    run_places(rigs, &so, other);
    assert_true(rig_difference(pnm, other, N_OUTPUTS) <= EQUAL);
    so.same_step_recall = true;
    run_places(rigs, &so, other);
    assert_true(rig_difference(pnm, other, N_OUTPUTS) <= EQUAL);
}

static void test_small_budget(void **state)
{
    struct rig rigs[N_PLACES];

    (void)state;
    for (uint32_t dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
        open_places((enum nkv_dtype)dtype, rigs);
        check_small_budget(rigs, NKV_SELECT_LAYER);
        check_small_budget(rigs, NKV_SELECT_KV_HEAD);
        close_places(rigs);
    }
}

/* ---- Fork and truncate in the middle ---- */

#define N_FAMILIES 3u   /* one for each device */
#define FED        196u /* tokens of a parent before: all but 20 prefilled */
#define SEED       50u
#define OTHER_SEED 51u                     /* of the tokens behind the cut */
#define N_FRESH    (2u * N_STEPS * N_STEP) /* floats */

/* In the open page, on a boundary, and in a page that is full. */
static const uint32_t cuts[N_FAMILIES] = {193, 128, 65};

struct family_outputs {
    float parents[N_FAMILIES][N_STEPS * N_STEP]; /* going on beside their children */
    float children[N_FAMILIES][N_FRESH];         /* forked at cuts[i]; the last ends half way */
    float cut[N_FAMILIES][N_STEPS * N_STEP];     /* the parents, truncated to cuts[(i + 1) % 3] then */
};

/* What a sequence that was fed n tokens and no others says next. */
static void run_fresh(struct rig *rig, const struct nkv_seq_options *so, uint32_t n, uint32_t next_seed, float *outputs)
{
    struct rig_seq s;

    open_seq(rig, so, SEED, &s);
    assert_int_equal(rig_prefill(rig, &s, n, 512), 0);
    s.seed = next_seed;
    decode(rig, &s, 1, 2 * N_STEPS, outputs);
    close_seq(&s);
}

static void expect_fresh(struct rig *rig, const struct nkv_seq_options *so, struct family_outputs *out)
{
    float parent[N_FRESH];

    run_fresh(rig, so, FED, SEED, parent);
    for (uint32_t i = 0; i < N_FAMILIES; i++) {
        run_fresh(rig, so, cuts[i], OTHER_SEED, out->children[i]);
        memcpy(out->parents[i], parent, sizeof out->parents[i]);
        memcpy(out->cut[(i + N_FAMILIES - 1) % N_FAMILIES], out->children[i], sizeof out->cut[0]);
    }
    memset(out->children[N_FAMILIES - 1] + N_STEPS * N_STEP, 0, sizeof out->cut[0]);
}

/* Sequences 0-2 are the parents, 3-5 the children. */
static void open_families(struct rig *rig, const struct nkv_seq_options *so, struct rig_seq *s)
{
    static float ignored[N_FAMILIES * 20 * N_STEP];

    for (uint32_t i = 0; i < N_FAMILIES; i++) {
        open_seq(rig, so, SEED, &s[i]);
        assert_int_equal(rig_prefill(rig, &s[i], FED - 20, 100), 0);
    }
    check_used_devices(rig, s, N_FAMILIES);
    decode(rig, s, N_FAMILIES, 20, ignored);
    for (uint32_t i = 0; i < N_FAMILIES; i++) {
        struct nkv_seq *seq = NULL;

        assert_int_equal(nkv_seq_fork(s[i].seq, cuts[i], NULL, &seq), 0);
        rig_seq_init(&s[N_FAMILIES + i], seq, OTHER_SEED);
        s[N_FAMILIES + i].length = cuts[i];
    }
}

static void run_families(struct rig *rig, const struct nkv_seq_options *so, struct family_outputs *out)
{
    static float outputs[2 * N_FAMILIES][N_STEPS * N_STEP];
    struct rig_seq s[2 * N_FAMILIES];

    memset(out, 0, sizeof *out);
    open_families(rig, so, s);
    decode(rig, s, 2 * N_FAMILIES, N_STEPS, outputs[0]);
    memcpy(out->parents, outputs, sizeof out->parents);
    for (uint32_t i = 0; i < N_FAMILIES; i++)
        memcpy(out->children[i], outputs[N_FAMILIES + i], sizeof outputs[0]);
    close_seq(&s[2 * N_FAMILIES - 1]);
    for (uint32_t i = 0; i < N_FAMILIES; i++) {
        s[i].length = cuts[(i + 1) % N_FAMILIES];
        s[i].seed = OTHER_SEED;
        assert_int_equal(nkv_seq_truncate(s[i].seq, s[i].length), 0);
    }
    decode(rig, s, 2 * N_FAMILIES - 1, N_STEPS, outputs[0]);
    memcpy(out->cut, outputs, sizeof out->cut);
    for (uint32_t i = 0; i + 1 < N_FAMILIES; i++)
        memcpy(out->children[i] + N_STEPS * N_STEP, outputs[N_FAMILIES + i], sizeof outputs[0]);
    for (uint32_t i = 0; i < 2 * N_FAMILIES - 1; i++)
        close_seq(&s[i]);
    assert_true(rig_empty(rig));
}

static void test_fork_and_truncate(void **state)
{
    static struct family_outputs expected, first, again;
    struct rig rigs[N_PLACES];

    (void)state;
    for (uint32_t dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
        open_places((enum nkv_dtype)dtype, rigs);
        for (uint32_t v = 0; v < N_VARIANTS; v++) {
            struct nkv_seq_options so = variant(v, 300, 128);

            expect_fresh(&rigs[0], &so, &expected);
            run_families(&rigs[0], &so, &first);
            assert_true(rig_difference(first.parents[0], expected.parents[0], N_FAMILIES * N_STEPS * N_STEP) <= EQUAL);
            assert_true(rig_difference(first.children[0], expected.children[0], N_FAMILIES * N_FRESH) <= EQUAL);
            assert_true(rig_difference(first.cut[0], expected.cut[0], N_FAMILIES * N_STEPS * N_STEP) <= EQUAL);
            for (uint32_t p = 1; p < N_PLACES; p++) {
                run_families(&rigs[p], &so, &again);
                assert_memory_equal(&first, &again, sizeof first);
            }
        }
        close_places(rigs);
    }
}

/* ---- Threads ---- */

/* A device hands only large commands to its team: these are large enough, in every KV type. */
#define LONG        9000u
#define LONG_BUDGET 8192u

static void run_long(struct rig *rig, const struct nkv_seq_options *so, float *outputs)
{
    struct rig_seq s;

    open_seq(rig, so, 3, &s);
    feed(rig, &s, LONG);
    decode(rig, &s, 1, N_STEPS, outputs);
    close_seq(&s);
    assert_true(rig_empty(rig));
}

static void test_teams_at_work(void **state)
{
    static float one[N_STEPS * N_STEP], two[N_STEPS * N_STEP];
    struct rig rigs[N_PLACES];

    (void)state;
    for (uint32_t dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
        open_places((enum nkv_dtype)dtype, rigs);
        for (uint32_t v = 0; v < N_VARIANTS; v++) {
            struct nkv_seq_options so = variant(v, LONG + N_STEPS, LONG_BUDGET);

            run_long(&rigs[0], &so, one);
            run_long(&rigs[1], &so, two);
            assert_memory_equal(one, two, sizeof one);
        }
        close_places(rigs);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_budget),
        cmocka_unit_test(test_small_budget),
        cmocka_unit_test(test_fork_and_truncate),
        cmocka_unit_test(test_teams_at_work),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
