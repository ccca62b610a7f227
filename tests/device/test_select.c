/* SPDX-License-Identifier: Apache-2.0 */
/* SELECT against scores by their definition: both granularities, all KV types, blocks, limits, Steady-Select, threads.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/rig.h"

#define Q_AT    ((uint64_t)4 << 20)
#define OUT_AT  ((uint64_t)6 << 20)
#define LIST_AT ((uint64_t)10 << 20)
#define MAX_N   512u

static const struct nkv_kv_shape small = {
    .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .page_tokens = 8, .dtype = NKV_F32};

/* lo and hi of one page as the model holds its tokens; exact for f32, else rounded outwards by at most one step. */
static void page_bounds(const struct model *model, uint32_t layer, uint32_t page, uint32_t head, double *lo, double *hi)
{
    const struct nkv_kv_shape *shape = &model->shape;

    for (uint32_t d = 0; d < shape->head_dim; d++) {
        double least = INFINITY, most = -INFINITY, mean = 0, centre;

        for (uint32_t t = page * shape->page_tokens; t < (page + 1) * shape->page_tokens; t++) {
            double k = (double)model->k[model_row(model, layer, t, head) + d];

            least = k < least ? k : least;
            most = k > most ? k : most;
        }
        centre = (least + most) / 2;
        for (uint32_t t = page * shape->page_tokens; t < (page + 1) * shape->page_tokens; t++)
            mean += fabs((double)model->k[model_row(model, layer, t, head) + d] - centre) / shape->page_tokens;
        lo[d] = shape->digest == NKV_DIGEST_MINMAX ? least : centre - mean;
        hi[d] = shape->digest == NKV_DIGEST_MINMAX ? most : centre + mean;
    }
}

/* Mean over the query rows of the unit's heads. */
static double page_score(const struct model *model, uint32_t layer, uint32_t page, const float *q, uint32_t n_tokens,
                         uint32_t head0, uint32_t n_heads)
{
    const struct nkv_kv_shape *shape = &model->shape;
    uint32_t group = shape->n_heads / shape->n_kv_heads;
    double lo[NKV_MAX_HEAD_DIM], hi[NKV_MAX_HEAD_DIM], sum = 0;

    for (uint32_t head = head0; head < head0 + n_heads; head++) {
        page_bounds(model, layer, page, head, lo, hi);
        for (uint32_t t = 0; t < n_tokens; t++)
            for (uint32_t h = head * group; h < (head + 1) * group; h++)
                for (uint32_t d = 0; d < shape->head_dim; d++) {
                    double x = (double)q[((size_t)t * shape->n_heads + h) * shape->head_dim + d];

                    sum += fmax(x * lo[d], x * hi[d]);
                }
    }
    return sum / (n_tokens * n_heads * group);
}

static double tolerance(enum nkv_dtype dtype)
{
    static const double bounds[] = {1e-4, 2e-2, 1e-1, 1e-1}; /* digests are rounded to 24, 11, 8 and 8 bits */

    return bounds[dtype];
}

static const uint32_t *list_of(struct rig *rig, uint64_t at, uint32_t cap, uint32_t unit)
{
    return rig_at(rig, OUT_AT + at + unit * nkv_list_stride(cap));
}

/* Checks the scores against the definition and the set against the scores. */
static void check_unit(struct rig *rig, const struct model *model, const struct nkv_cmd *cmd, uint32_t unit)
{
    uint32_t n_units = cmd->flags & NKV_PER_HEAD ? rig->shape.n_kv_heads : 1, page_tokens = rig->shape.page_tokens;
    uint32_t n_total = (cmd->pos + cmd->n_tokens - 1) / page_tokens + 1, first = cmd->pos / page_tokens;
    uint32_t recent = first + 1 > cmd->recent ? first + 1 - cmd->recent : 0;
    struct nkv_select_layout at = nkv_select_layout(n_units, cmd->n_pages, cmd->arg, n_total);
    const float *scores = rig_at(rig, OUT_AT + at.scores);
    const uint32_t *chosen = list_of(rig, at.chosen, cmd->n_pages, unit);
    const uint32_t *device = list_of(rig, at.device, cmd->n_pages, unit);
    uint32_t n = n_total < cmd->n_pages ? n_total : cmd->n_pages, heads = n_units == 1 ? rig->shape.n_kv_heads : 1;
    bool in_set[MAX_N] = {0};
    float worst = INFINITY;

    scores += (size_t)unit * n_total;
    assert_int_equal(chosen[0], n);
    for (uint32_t i = 1; i <= n; i++) {
        assert_true(chosen[i] < n_total && !in_set[chosen[i]]);
        in_set[chosen[i]] = true;
        if (!isnan(scores[chosen[i]]))
            worst = fminf(worst, scores[chosen[i]]);
    }
    for (uint32_t page = 0; page < n_total; page++) {
        bool competes = n_total > cmd->n_pages && page >= cmd->sink && page < recent;

        assert_int_equal(isnan(scores[page]), !competes);
        if (!competes) {
            assert_true(in_set[page]);
            continue;
        }
        assert_float_equal(scores[page],
                           page_score(model, cmd->layer, page, rig_at(rig, Q_AT), cmd->n_tokens, unit * heads, heads),
                           tolerance(rig->shape.dtype));
        if (!in_set[page])
            assert_true(scores[page] <= worst);
    }
    if (!(cmd->flags & NKV_STEADY)) {
        assert_int_equal(device[0], n);
        for (uint32_t i = 1; i <= n; i++)
            assert_true(in_set[device[i]] && (i == 1 || device[i] > device[i - 1]));
    }
}

static struct nkv_cmd select_cmd(uint32_t layer, uint32_t pos, uint32_t n_tokens, uint32_t n_pages, uint16_t flags)
{
    return (struct nkv_cmd){.op = NKV_OP_SELECT,
                            .seq = 1,
                            .layer = (uint16_t)layer,
                            .flags = flags,
                            .sink = 1,
                            .recent = 2,
                            .in_offset = Q_AT,
                            .out_offset = OUT_AT,
                            .n_tokens = n_tokens,
                            .n_pages = n_pages,
                            .pos = pos};
}

static void open_filled(struct rig *rig, struct model *model, const struct nkv_kv_shape *shape, uint32_t length,
                        uint32_t n_threads, uint16_t flags)
{
    struct nkv_device_config config = rig_config(shape, n_threads);
    uint64_t random = length;

    rig_open(rig, "cpu", &config);
    model_open(model, shape, length + 1);
    assert_int_equal(rig_seq_open(rig, 1, length + 1, flags), 0);
    for (uint32_t layer = 0; layer < shape->n_layers; layer++)
        for (uint32_t n = 1; model->lengths[layer] < length; n = n * 2 + 1)
            rig_append(rig, model, 1, layer, n < length - model->lengths[layer] ? n : length - model->lengths[layer],
                       &random);
}

static void select_all_ways(const struct nkv_kv_shape *shape, uint32_t length, uint16_t seq_flags)
{
    static const uint32_t blocks[] = {1, 5, 64};
    uint64_t random = 1;
    struct model model;
    struct rig rig;

    open_filled(&rig, &model, shape, length, 2, seq_flags);
    for (size_t b = 0; b < sizeof blocks / sizeof *blocks && blocks[b] <= length; b++)
        for (uint32_t budget = 12; budget < 2000; budget *= 5)
            for (uint32_t per_head = 0; per_head < 2; per_head++) {
                uint32_t units = per_head ? shape->n_kv_heads : 1;
                struct nkv_cmd cmd = select_cmd(shape->n_layers - 1, length - blocks[b], blocks[b], budget,
                                                (uint16_t)(NKV_SCORES | (per_head ? NKV_PER_HEAD : 0)));
                int res;

                random_floats(&random, rig_at(&rig, Q_AT), (size_t)blocks[b] * shape->n_heads * shape->head_dim);
                res = rig_do(&rig, cmd);
                for (uint32_t unit = 0; unit < units; unit++)
                    check_unit(&rig, &model, &cmd, unit);
                assert_int_equal(res, list_of(&rig, 0, budget, 0)[0]);
            }
    model_close(&model);
    rig_close(&rig);
}

static void scores_and_sets_follow_the_definition(void **state)
{
    static const uint32_t lengths[] = {1, 7, 8, 9, 1000, 1041};
    struct nkv_kv_shape shape = small;

    (void)state;
    for (uint32_t dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            shape.dtype = (enum nkv_dtype)dtype;
            shape.digest = i % 2 ? NKV_DIGEST_CUBOID_MEAN : NKV_DIGEST_MINMAX;
            select_all_ways(&shape, lengths[i], i % 3 == 0 ? NKV_NO_PAGES : 0);
        }
}

static void a_budget_below_what_is_always_chosen_is_refused(void **state)
{
    struct model model;
    struct rig rig;
    struct nkv_cmd cmd;

    (void)state;
    open_filled(&rig, &model, &small, 200, 1, 0);
    cmd = select_cmd(0, 199, 1, 2, 0);
    assert_int_equal(rig_run(&rig, cmd), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "budget"));
    cmd.n_pages = 3;
    assert_int_equal(rig_run(&rig, cmd), 3);
    cmd.recent = 0;
    assert_int_equal(rig_run(&rig, cmd), NKV_EINVAL);
    cmd = select_cmd(0, 200, 1, 9, 0);
    assert_int_equal(rig_run(&rig, cmd), NKV_EINVAL); /* a token that the layer does not hold yet */
    model_close(&model);
    rig_close(&rig);
}

/* Candidates are the best of a range of pages by the scores that an ordinary selection tells, and bring theirs. */
static void candidates_are_the_best_of_their_range(void **state)
{
    enum { LENGTH = 1003, FIRST = 5, END = 120 };
    uint64_t random = 3;
    struct model model;
    struct rig rig;

    (void)state;
    open_filled(&rig, &model, &small, LENGTH, 2, 0);
    for (uint32_t per_head = 0; per_head < 2; per_head++)
        for (uint32_t cap = 1; cap < 200; cap = cap * 3 + 1) {
            uint16_t flags = (uint16_t)(NKV_SCORES | (per_head ? NKV_PER_HEAD : 0));
            uint32_t n_units = per_head ? small.n_kv_heads : 1, n = cap < END - FIRST ? cap : END - FIRST;
            struct nkv_cmd cmd = select_cmd(1, LENGTH - 3, 3, 12, flags);
            struct nkv_select_layout all = nkv_select_layout(n_units, 12, 0, 126);
            struct nkv_select_layout best = nkv_select_layout(n_units, cap, 0, cap);
            float scores[2 * 126];

            random_floats(&random, rig_at(&rig, Q_AT), 3u * small.n_heads * small.head_dim);
            assert_int_equal(rig_run(&rig, cmd), 12);
            memcpy(scores, rig_at(&rig, OUT_AT + all.scores), n_units * 126 * sizeof *scores);
            cmd.flags |= NKV_CANDIDATES;
            cmd.sink = FIRST;
            cmd.recent = 0;
            cmd.pos = END * small.page_tokens;
            cmd.n_pages = cap;
            assert_int_equal(rig_run(&rig, cmd), (int)n);
            for (uint32_t unit = 0; unit < n_units; unit++) {
                const uint32_t *chosen = list_of(&rig, best.chosen, cap, unit);
                const float *told = (const float *)rig_at(&rig, OUT_AT + best.scores) + unit * cap;
                uint32_t n_better = 0;

                assert_int_equal(chosen[0], n);
                for (uint32_t i = 0; i < n; i++) {
                    assert_in_range(chosen[1 + i], FIRST, END - 1);
                    assert_true(told[i] == scores[unit * 126 + chosen[1 + i]] && (i == 0 || told[i] <= told[i - 1]));
                }
                for (uint32_t page = FIRST; page < END; page++)
                    n_better += scores[unit * 126 + page] > told[n - 1];
                assert_true(n_better < n);
                assert_true(n == cap || isnan(told[n]));
            }
        }
    model_close(&model);
    rig_close(&rig);
}

static void candidates_lie_in_full_pages(void **state)
{
    struct model model;
    struct rig rig;
    struct nkv_cmd cmd;

    (void)state;
    open_filled(&rig, &model, &small, 203, 1, 0);
    cmd = select_cmd(0, 200, 7, 4, NKV_CANDIDATES);
    cmd.recent = 0;
    assert_int_equal(rig_run(&rig, cmd), 4);
    cmd.sink = 25;
    assert_int_equal(rig_run(&rig, cmd), 0);
    cmd.sink = 26;
    assert_int_equal(rig_run(&rig, cmd), NKV_EINVAL);
    cmd.sink = 0;
    cmd.pos = 201;
    assert_int_equal(rig_run(&rig, cmd), NKV_EINVAL);
    cmd.pos = 208;
    assert_int_equal(rig_run(&rig, cmd), NKV_EINVAL);
    cmd.pos = 200;
    cmd.recent = 1;
    assert_int_equal(rig_run(&rig, cmd), NKV_EINVAL);
    cmd.recent = 0;
    cmd.flags |= NKV_STEADY;
    cmd.list_offset = LIST_AT;
    assert_int_equal(rig_run(&rig, cmd), NKV_EINVAL);
    model_close(&model);
    rig_close(&rig);
}

/* The lists of Steady-Select: device and steady part the set; recalled pages are in the set, full and not resident. */
static void check_steady(struct rig *rig, const struct nkv_cmd *cmd, const uint32_t *resident, uint32_t unit)
{
    uint32_t n_units = cmd->flags & NKV_PER_HEAD ? rig->shape.n_kv_heads : 1;
    struct nkv_select_layout at = nkv_select_layout(n_units, cmd->n_pages, cmd->arg, 0);
    const uint32_t *chosen = list_of(rig, at.chosen, cmd->n_pages, unit);
    const uint32_t *device = list_of(rig, at.device, cmd->n_pages, unit);
    const uint32_t *steady = list_of(rig, at.steady, cmd->arg, unit);
    const uint32_t *recall = list_of(rig, at.recall, cmd->arg, unit), *slots = list_of(rig, at.slots, cmd->arg, unit);
    uint32_t open_page = cmd->pos / rig->shape.page_tokens, seen[MAX_N] = {0}, n_left = 0;

    for (uint32_t i = 1; i <= chosen[0]; i++)
        seen[chosen[i]] = 1;
    assert_int_equal(device[0] + steady[0], chosen[0]);
    for (uint32_t i = 1; i <= steady[0]; i++) {
        assert_int_equal(seen[resident[steady[i]]], 1);
        seen[resident[steady[i]]] = 2;
    }
    for (uint32_t i = 1; i <= device[0]; i++)
        assert_int_equal(seen[device[i]], 1);
    assert_int_equal(recall[0], slots[0]);
    for (uint32_t slot = 0; slot < cmd->arg; slot++)
        n_left += resident[slot] == NKV_PAGE_NONE || seen[resident[slot]] == 0;
    assert_true(recall[0] <= n_left);
    for (uint32_t i = 1; i <= recall[0]; i++) {
        assert_true(recall[i] != open_page);
        assert_int_equal(seen[recall[i]], 1);
        assert_true(resident[slots[i]] == NKV_PAGE_NONE || seen[resident[slots[i]]] == 0);
    }
}

static void steady_select_runs_on_the_device(void **state)
{
    uint32_t n_slots = 7;
    uint64_t random = 5;
    struct model model;
    struct rig rig;

    (void)state;
    open_filled(&rig, &model, &small, 403, 2, 0);
    for (uint32_t round = 0; round < 40; round++) {
        bool per_head = round % 2;
        struct nkv_cmd cmd =
            select_cmd(1, 402, 1, 12, (uint16_t)(NKV_STEADY | NKV_SCORES | (per_head ? NKV_PER_HEAD : 0)));
        uint32_t *lists = rig_at(&rig, LIST_AT), n_units = per_head ? 2 : 1, resident[2][8];
        size_t stride = nkv_list_stride(n_slots) / sizeof *lists;

        for (uint32_t unit = 0; unit < n_units; unit++) {
            lists[unit * stride] = n_slots;
            for (uint32_t i = 0; i < n_slots; i++)
                lists[unit * stride + 1 + i] = resident[unit][i] =
                    next_random(&random) % 4 ? i * 7 + (uint32_t)(next_random(&random) % 7) : NKV_PAGE_NONE;
        }
        cmd.list_offset = LIST_AT;
        cmd.arg = n_slots;
        random_floats(&random, rig_at(&rig, Q_AT), 4 * 16);
        rig_do(&rig, cmd);
        for (uint32_t unit = 0; unit < n_units; unit++) {
            check_unit(&rig, &model, &cmd, unit);
            check_steady(&rig, &cmd, resident[unit], unit);
        }
    }
    model_close(&model);
    rig_close(&rig);
}

static void same_bits_for_any_number_of_threads(void **state)
{
    struct nkv_kv_shape shape = small;
    static char bits[3][64 << 10];

    (void)state;
    shape.head_dim = 64;
    for (uint32_t per_head = 0; per_head < 2; per_head++) {
        for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
            struct nkv_cmd cmd = select_cmd(0, 3999, 1, 50, (uint16_t)(NKV_SCORES | (per_head ? NKV_PER_HEAD : 0)));
            uint64_t random = 77;
            struct model model;
            struct rig rig;

            open_filled(&rig, &model, &shape, 4000, n_threads, 0);
            random_floats(&random, rig_at(&rig, Q_AT), 4 * 64);
            rig_do(&rig, cmd);
            memcpy(bits[n_threads - 1], rig_at(&rig, OUT_AT), sizeof bits[0]);
            model_close(&model);
            rig_close(&rig);
        }
        assert_memory_equal(bits[0], bits[1], sizeof bits[0]);
        assert_memory_equal(bits[0], bits[2], sizeof bits[0]);
    }
}

static void a_selection_within_budget_attends_like_all_pages(void **state)
{
    struct model model;
    struct rig rig;
    struct nkv_cmd attend = {.op = NKV_OP_ATTEND,
                             .seq = 1,
                             .flags = NKV_CAUSAL | NKV_ALL_PAGES,
                             .in_offset = Q_AT,
                             .out_offset = LIST_AT,
                             .n_tokens = 1,
                             .pos = 299};
    struct nkv_partial_layout at = nkv_partial_layout(&small, 1);
    static float all[4 * 16], some[4 * 16];
    uint64_t random = 3;

    (void)state;
    open_filled(&rig, &model, &small, 300, 2, 0);
    random_floats(&random, rig_at(&rig, Q_AT), 4 * 16);
    assert_int_equal(rig_do(&rig, attend), 300);
    memcpy(all, rig_at(&rig, LIST_AT), sizeof all);
    for (uint32_t per_head = 0; per_head < 2; per_head++) {
        struct nkv_cmd select = select_cmd(0, 299, 1, 64, per_head ? NKV_PER_HEAD : 0);

        attend.flags = (uint16_t)(NKV_CAUSAL | select.flags);
        attend.n_pages = 64;
        attend.list_offset = OUT_AT + nkv_select_layout(per_head ? 2 : 1, 64, 0, 0).device;
        assert_int_equal(rig_do(&rig, select), 38);
        assert_int_equal(rig_do(&rig, attend), 300);
        memcpy(some, rig_at(&rig, LIST_AT), sizeof some);
        for (size_t i = 0; i < at.m / sizeof(float); i++)
            assert_float_equal(all[i], some[i], 1e-5);
    }
    model_close(&model);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_and_sets_follow_the_definition),
        cmocka_unit_test(a_budget_below_what_is_always_chosen_is_refused),
        cmocka_unit_test(candidates_are_the_best_of_their_range),
        cmocka_unit_test(candidates_lie_in_full_pages),
        cmocka_unit_test(steady_select_runs_on_the_device),
        cmocka_unit_test(same_bits_for_any_number_of_threads),
        cmocka_unit_test(a_selection_within_budget_attends_like_all_pages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
