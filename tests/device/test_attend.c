/* SPDX-License-Identifier: Apache-2.0 */
/* ATTEND against attention by its definition: KV types, lengths around page boundaries, lists, causal blocks, threads.
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

static const struct nkv_kv_shape small = {
    .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .page_tokens = 32, .dtype = NKV_F32};

/* Pages of each unit that are attended; `pages` [unit][1000]. */
struct choice {
    uint32_t n_units;
    uint32_t n[8], pages[8][1024];
    uint32_t cap;
};

/* Some ascending pages of 0 .. n_pages-1 for each unit. */
static void choose_pages(struct choice *choice, uint32_t n_units, uint32_t n_pages, uint64_t *random)
{
    *choice = (struct choice){.n_units = n_units, .cap = n_pages};
    for (uint32_t unit = 0; unit < n_units; unit++)
        for (uint32_t page = 0; page < n_pages; page++)
            if (next_random(random) % 3)
                choice->pages[unit][choice->n[unit]++] = page;
}

static void put_choice(struct rig *rig, const struct choice *choice)
{
    for (uint32_t unit = 0; unit < choice->n_units; unit++) {
        uint32_t *list = rig_at(rig, LIST_AT + unit * nkv_list_stride(choice->cap));

        list[0] = choice->n[unit];
        memcpy(list + 1, choice->pages[unit], choice->n[unit] * sizeof *list);
    }
}

static float tolerance(const struct nkv_kv_shape *shape)
{
    (void)shape;
    return 2e-5f; /* the model holds rounded K and V, so only sums differ */
}

/* Compares the partials at OUT_AT with the definition. choice NULL: all pages. returns: tokens of the last row, mean.
 */
static uint32_t compare(struct rig *rig, const struct model *model, uint32_t layer, const struct nkv_cmd *cmd,
                        const struct choice *choice)
{
    const struct nkv_kv_shape *shape = &rig->shape;
    struct nkv_partial_layout at = nkv_partial_layout(shape, cmd->n_tokens);
    const float *q = rig_at(rig, Q_AT), *o = rig_at(rig, OUT_AT), *l = rig_at(rig, OUT_AT + at.l);
    uint32_t group = shape->n_heads / shape->n_kv_heads, all[1024], n_all = 0, seen = 0, last_seen = 0;
    double want[NKV_MAX_HEAD_DIM];

    for (; n_all * shape->page_tokens < model->lengths[layer]; n_all++)
        all[n_all] = n_all;
    for (uint32_t t = 0; t < cmd->n_tokens; t++) {
        for (uint32_t h = 0, last = 0; h < shape->n_heads; h++) {
            size_t row = (size_t)t * shape->n_heads + h;
            uint32_t unit = choice && choice->n_units > 1 ? h / group : 0;
            uint32_t limit = cmd->flags & NKV_CAUSAL ? cmd->pos + t + 1 : UINT32_MAX;

            seen = model_attend(model, layer, h / group, q + row * shape->head_dim, choice ? choice->pages[unit] : all,
                                choice ? choice->n[unit] : n_all, limit, want);
            last += seen;
            last_seen = last / shape->n_heads;
            for (uint32_t d = 0; d < shape->head_dim; d++) {
                double got = seen ? (double)(o[row * shape->head_dim + d] / l[row]) : (double)o[row * shape->head_dim];

                if (!(fabs(got - want[d]) < (double)tolerance(shape)))
                    fail_msg("token %u head %u dim %u: %g, must be %g", t, h, d, got, want[d]);
            }
            if (!seen)
                assert_true(l[row] == 0);
        }
    }
    return last_seen;
}

static void attend_case(struct rig *rig, const struct model *model, uint32_t layer, uint32_t n_tokens, uint16_t flags,
                        uint32_t units, uint64_t *random)
{
    uint32_t length = model->lengths[layer], n_pages = (length + rig->shape.page_tokens - 1) / rig->shape.page_tokens;
    struct nkv_cmd cmd = {.op = NKV_OP_ATTEND,
                          .seq = 1,
                          .layer = (uint16_t)layer,
                          .flags = flags,
                          .in_offset = Q_AT,
                          .out_offset = OUT_AT,
                          .n_tokens = n_tokens,
                          .pos = length >= n_tokens ? length - n_tokens : 0};
    struct choice choice;
    uint32_t seen;
    int res;

    random_floats(random, rig_at(rig, Q_AT), (size_t)n_tokens * rig->shape.n_heads * rig->shape.head_dim);
    if (!(flags & NKV_ALL_PAGES)) {
        choose_pages(&choice, units, n_pages, random);
        put_choice(rig, &choice);
        cmd.n_pages = choice.cap;
        cmd.list_offset = LIST_AT;
    }
    res = rig_do(rig, cmd);
    seen = compare(rig, model, layer, &cmd, flags & NKV_ALL_PAGES ? NULL : &choice);
    assert_int_equal(res, seen);
}

static void attend_all_ways(const struct nkv_kv_shape *shape, uint32_t length)
{
    struct nkv_device_config config = rig_config(shape, 2);
    uint64_t random = 7 + length;
    struct model model;
    struct rig rig;

    rig_open(&rig, "cpu", &config);
    model_open(&model, shape, length + 1);
    assert_int_equal(rig_seq_open(&rig, 1, length + 1, NKV_NO_DIGEST), 0);
    for (uint32_t layer = 0; length && layer < shape->n_layers; layer++)
        rig_append(&rig, &model, 1, layer, length, &random);
    for (uint32_t layer = 0; layer < shape->n_layers; layer++) {
        attend_case(&rig, &model, layer, 1, NKV_ALL_PAGES, 1, &random);
        attend_case(&rig, &model, layer, 1, 0, 1, &random);
        attend_case(&rig, &model, layer, 1, NKV_PER_HEAD, shape->n_kv_heads, &random);
        attend_case(&rig, &model, layer, 3, 0, 1, &random);
        for (uint32_t n = 1; n <= length && n <= (length > 200 ? 4u : 150u); n = n * 3 + 1) {
            attend_case(&rig, &model, layer, n, NKV_ALL_PAGES | NKV_CAUSAL, 1, &random);
            attend_case(&rig, &model, layer, n, NKV_CAUSAL, 1, &random);
            attend_case(&rig, &model, layer, n, NKV_CAUSAL | NKV_PER_HEAD, shape->n_kv_heads, &random);
        }
    }
    model_close(&model);
    rig_close(&rig);
}

static const uint32_t lengths[] = {0, 1, 31, 32, 33, 1000};

static void every_type_and_length(void **state)
{
    struct nkv_kv_shape shape = small;

    (void)state;
    for (uint32_t dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            shape.dtype = (enum nkv_dtype)dtype;
            attend_all_ways(&shape, lengths[i]);
        }
}

static void odd_shapes(void **state)
{
    static const struct nkv_kv_shape shapes[] = {
        {.n_layers = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 8, .page_tokens = 1, .dtype = NKV_Q8_0},
        {.n_layers = 3, .n_heads = 5, .n_kv_heads = 5, .head_dim = 24, .page_tokens = 7, .dtype = NKV_F16},
        {.n_layers = 1, .n_heads = 16, .n_kv_heads = 1, .head_dim = 64, .page_tokens = 16, .dtype = NKV_BF16},
        {.n_layers = 1, .n_heads = 3, .n_kv_heads = 1, .head_dim = 40, .page_tokens = 5, .scale = 0.5f},
        {.n_layers = 1, .n_heads = 300, .n_kv_heads = 1, .head_dim = 8, .page_tokens = 32},
    };

    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        attend_all_ways(&shapes[i], 150);
}

/* One attend of each kind, large enough for the team, on a device of n_threads threads; the output's bits. */
static void attend_bits(uint32_t n_threads, uint32_t n_tokens, uint16_t flags, char *out, size_t bytes)
{
    struct nkv_kv_shape shape = small;
    struct nkv_device_config config;
    uint64_t random = 99;
    struct choice choice;
    struct model model;
    struct rig rig;

    shape.head_dim = 64;
    shape.n_layers = 1;
    config = rig_config(&shape, n_threads);
    rig_open(&rig, "cpu", &config);
    model_open(&model, &shape, 4000);
    assert_int_equal(rig_seq_open(&rig, 1, 4000, 0), 0);
    for (uint32_t i = 0; i < 2; i++)
        rig_append(&rig, &model, 1, 0, 1999, &random);
    choose_pages(&choice, flags & NKV_PER_HEAD ? 2 : 1, 124, &random);
    put_choice(&rig, &choice);
    random_floats(&random, rig_at(&rig, Q_AT), (size_t)n_tokens * shape.n_heads * shape.head_dim);
    rig_do(&rig, (struct nkv_cmd){.op = NKV_OP_ATTEND,
                                  .seq = 1,
                                  .flags = flags,
                                  .in_offset = Q_AT,
                                  .out_offset = OUT_AT,
                                  .list_offset = flags & NKV_ALL_PAGES ? 0 : LIST_AT,
                                  .n_pages = flags & NKV_ALL_PAGES ? 0 : choice.cap,
                                  .n_tokens = n_tokens,
                                  .pos = 3998 - n_tokens});
    assert_true(nkv_partial_layout(&shape, n_tokens).bytes <= bytes);
    memcpy(out, rig_at(&rig, OUT_AT), bytes);
    model_close(&model);
    rig_close(&rig);
}

static void same_bits_for_any_number_of_threads(void **state)
{
    static const uint16_t flags[] = {NKV_ALL_PAGES, 0, NKV_PER_HEAD, NKV_CAUSAL, NKV_CAUSAL | NKV_PER_HEAD};
    static const uint32_t tokens[] = {1, 100};
    static char one[256 << 10], other[256 << 10];

    (void)state;
    for (size_t f = 0; f < sizeof flags / sizeof *flags; f++)
        for (size_t t = 0; t < 2; t++) {
            attend_bits(1, tokens[t], flags[f], one, sizeof one);
            for (uint32_t n_threads = 2; n_threads <= 3; n_threads++) {
                attend_bits(n_threads, tokens[t], flags[f], other, sizeof other);
                assert_memory_equal(one, other, sizeof one);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_and_length),
        cmocka_unit_test(odd_shapes),
        cmocka_unit_test(same_bits_for_any_number_of_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
