/* SPDX-License-Identifier: Apache-2.0 */
/* APPEND, READ, WRITE, fork and truncate on the device: packed pages move between sequences without changing a bit. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/rig.h"

#define LIST_AT ((uint64_t)3 << 20)
#define OUT_AT  ((uint64_t)4 << 20)
#define Q_AT    ((uint64_t)15 << 20)

static const struct nkv_kv_shape small = {
    .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .page_tokens = 8, .dtype = NKV_F32};

/* One list of n ids for each of n_units units. returns: their cap. */
static uint32_t put_lists(struct rig *rig, uint32_t n_units, uint32_t n, const uint32_t *ids)
{
    for (uint32_t unit = 0; unit < n_units; unit++) {
        uint32_t *list = rig_at(rig, LIST_AT + unit * nkv_list_stride(n));

        list[0] = n;
        memcpy(list + 1, ids, n * sizeof *ids);
    }
    return n;
}

static struct nkv_cmd read_cmd(uint32_t seq, uint32_t layer, uint32_t n_pages, uint16_t flags)
{
    return (struct nkv_cmd){.op = NKV_OP_READ,
                            .seq = seq,
                            .layer = (uint16_t)layer,
                            .flags = flags,
                            .out_offset = OUT_AT,
                            .list_offset = flags & NKV_DIGEST ? 0 : LIST_AT,
                            .n_pages = n_pages};
}

static struct nkv_cmd write_cmd(uint32_t seq, uint32_t layer, uint32_t n_pages, uint32_t n_tokens, uint16_t flags)
{
    return (struct nkv_cmd){.op = NKV_OP_WRITE,
                            .seq = seq,
                            .layer = (uint16_t)layer,
                            .flags = flags,
                            .in_offset = OUT_AT,
                            .list_offset = flags & NKV_DIGEST ? 0 : LIST_AT,
                            .n_pages = n_pages,
                            .n_tokens = n_tokens};
}

/* The packed page at OUT_AT of one unit against the model. */
static void check_packed(struct rig *rig, const struct model *model, uint32_t layer, uint32_t page, uint32_t head0,
                         uint32_t n_heads, const char *packed)
{
    const struct nkv_kv_shape *shape = &rig->shape;
    const struct nkv_kernels *kernels = nkv_kernels();
    size_t row_bytes = nkv_kv_row_bytes(shape->dtype, shape->head_dim), rows = (size_t)n_heads * shape->page_tokens;
    const float *scales = (const float *)(const void *)(packed + 2 * rows * row_bytes);

    for (uint32_t h = 0; h < n_heads; h++)
        for (uint32_t t = 0; t < shape->page_tokens; t++) {
            size_t row = (size_t)h * shape->page_tokens + t;
            uint32_t token = page * shape->page_tokens + t;
            float k[64], v[64];

            kernels->load[shape->dtype](1, shape->head_dim, packed + row * row_bytes, scales + row, k);
            kernels->load[shape->dtype](1, shape->head_dim, packed + (rows + row) * row_bytes, scales + rows + row, v);
            for (uint32_t d = 0; d < shape->head_dim; d++) {
                bool held = token < model->lengths[layer];
                size_t at = held ? model_row(model, layer, token, head0 + h) + d : 0;

                assert_true(k[d] == (held ? model->k[at] : 0) && v[d] == (held ? model->v[at] : 0));
            }
        }
}

static void open_filled(struct rig *rig, struct model *model, const struct nkv_kv_shape *shape, uint32_t length)
{
    struct nkv_device_config config = rig_config(shape, 2);
    uint64_t random = 4;

    rig_open(rig, "cpu", &config);
    model_open(model, shape, 200);
    assert_int_equal(rig_seq_open(rig, 1, 200, 0), 0);
    for (uint32_t layer = 0; layer < shape->n_layers; layer++)
        rig_append(rig, model, 1, layer, length, &random);
}

static void pages_are_read_in_list_order(void **state)
{
    static const uint32_t ids[] = {5, 0, 9, 2, 12};
    struct nkv_kv_shape shape = small;

    (void)state;
    for (uint32_t dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++)
        for (uint32_t per_head = 0; per_head < 2; per_head++) {
            uint32_t n_units = per_head ? 2 : 1, cap;
            uint64_t page_bytes;
            struct model model;
            struct rig rig;

            shape.dtype = (enum nkv_dtype)dtype;
            page_bytes = nkv_page_bytes(&shape, 2 / n_units);
            open_filled(&rig, &model, &shape, 99);
            cap = put_lists(&rig, n_units, 5, ids);
            assert_int_equal(rig_do(&rig, read_cmd(1, 1, cap, per_head ? NKV_PER_HEAD : 0)), 5 * n_units);
            for (uint32_t i = 0; i < 5 * n_units; i++)
                check_packed(&rig, &model, 1, ids[i % 5], i / 5 * (2 / n_units), 2 / n_units,
                             rig_at(&rig, OUT_AT + i * page_bytes));
            model_close(&model);
            rig_close(&rig);
        }
}

static void attend_row(struct rig *rig, uint32_t seq, uint32_t layer, uint16_t flags, uint32_t n_pages, float *out)
{
    uint64_t random = 8, at = Q_AT + 4096;

    random_floats(&random, rig_at(rig, Q_AT), 4 * 16);
    rig_do(rig, (struct nkv_cmd){.op = NKV_OP_ATTEND,
                                 .seq = seq,
                                 .layer = (uint16_t)layer,
                                 .flags = flags,
                                 .in_offset = Q_AT,
                                 .out_offset = at,
                                 .list_offset = flags & NKV_ALL_PAGES ? 0 : LIST_AT,
                                 .n_pages = n_pages,
                                 .n_tokens = 1});
    memcpy(out, rig_at(rig, at), nkv_partial_layout(&rig->shape, 1).bytes);
}

/* Pages copied to slots attend like the pages themselves. */
static void slots_hold_copies(void **state)
{
    static const uint32_t pages[] = {1, 4, 7}, slots[] = {0, 1, 2}, twice[] = {1, 1}, none[] = {3};
    static float want[512], got[512];
    struct nkv_kv_shape shape = small;

    (void)state;
    for (uint32_t dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
        struct model model;
        struct rig rig;

        shape.dtype = (enum nkv_dtype)dtype;
        open_filled(&rig, &model, &shape, 99);
        assert_int_equal(rig_seq_open(&rig, 2, 4 * 8, NKV_SLOTS), 0);
        put_lists(&rig, 2, 3, pages);
        attend_row(&rig, 1, 0, NKV_PER_HEAD, 3, want);
        rig_do(&rig, read_cmd(1, 0, 3, NKV_PER_HEAD));
        put_lists(&rig, 2, 3, slots);
        assert_int_equal(rig_do(&rig, write_cmd(2, 0, 3, 0, NKV_PER_HEAD)), 6);
        attend_row(&rig, 2, 0, NKV_PER_HEAD, 3, got);
        assert_memory_equal(want, got, nkv_partial_layout(&shape, 1).bytes);
        put_lists(&rig, 1, 2, twice);
        assert_int_equal(rig_run(&rig, write_cmd(2, 0, 2, 0, 0)), NKV_EINVAL);
        put_lists(&rig, 1, 1, none);
        rig_do(&rig, read_cmd(2, 1, 1, 0)); /* never filled: zeros */
        for (uint64_t b = 0; b < nkv_page_bytes(&shape, 2); b++)
            assert_int_equal(rig.window[OUT_AT + b], 0);
        model_close(&model);
        rig_close(&rig);
    }
}

/* A sequence rebuilt on another by READ and WRITE, its digests included. */
static void a_sequence_moves_by_read_and_write(void **state)
{
    static float want[512], got[512];
    static char digests[64 << 10];
    uint32_t ids[13];
    struct model model;
    struct rig rig;
    size_t digest_bytes = 12 * 2 * nkv_digest_bytes(&small);

    (void)state;
    open_filled(&rig, &model, &small, 99);
    for (uint32_t i = 0; i < 13; i++)
        ids[i] = i;
    assert_int_equal(rig_seq_open(&rig, 2, 120, 0), 0);
    assert_int_equal(rig_seq_open(&rig, 3, 120, NKV_NO_PAGES), 0);
    for (uint32_t layer = 0; layer < 2; layer++) {
        put_lists(&rig, 1, 13, ids);
        assert_int_equal(rig_do(&rig, read_cmd(1, layer, 13, 0)), 13);
        assert_int_equal(rig_do(&rig, write_cmd(2, layer, 13, 99, 0)), 13);
        attend_row(&rig, 1, layer, NKV_ALL_PAGES, 0, want);
        attend_row(&rig, 2, layer, NKV_ALL_PAGES, 0, got);
        assert_memory_equal(want, got, nkv_partial_layout(&small, 1).bytes);

        assert_int_equal(rig_do(&rig, read_cmd(1, layer, 12, NKV_DIGEST)), 12);
        memcpy(digests, rig_at(&rig, OUT_AT), digest_bytes);
        assert_int_equal(rig_do(&rig, write_cmd(3, layer, 12, 0, NKV_DIGEST)), 12);
        rig_do(&rig, read_cmd(2, layer, 12, NKV_DIGEST));
        assert_memory_equal(digests, rig_at(&rig, OUT_AT), digest_bytes);
        rig_do(&rig, read_cmd(3, layer, 12, NKV_DIGEST));
        assert_memory_equal(digests, rig_at(&rig, OUT_AT), digest_bytes);

        put_lists(&rig, 1, 1, &ids[12]); /* the open page follows */
        rig_do(&rig, read_cmd(1, layer, 1, 0));
        assert_int_equal(rig_do(&rig, write_cmd(3, layer, 1, 3, 0)), 1);
        attend_row(&rig, 1, layer, 0, 1, want);
        attend_row(&rig, 3, layer, 0, 1, got);
        assert_memory_equal(want, got, nkv_partial_layout(&small, 1).bytes);
        assert_int_equal(rig_run(&rig, write_cmd(2, layer, 1, 3, 0)), NKV_EINVAL); /* inside a page */
    }
    model_close(&model);
    rig_close(&rig);
}

/* Without pages: appends pass through the one slot, digests stay, the page of the newest token can be attended. */
static void sequences_without_pages(void **state)
{
    static float want[512], got[512];
    uint64_t random = 4, again = 4;
    uint32_t open_page[] = {12}, full_page[] = {11};
    struct model model, twin;
    struct rig rig;

    (void)state;
    open_filled(&rig, &model, &small, 99);
    model_open(&twin, &small, 200);
    assert_int_equal(rig_seq_open(&rig, 2, 200, NKV_NO_PAGES), 0);
    for (uint32_t layer = 0; layer < 2; layer++)
        rig_append(&rig, &twin, 2, layer, 99, &again);
    put_lists(&rig, 1, 1, open_page);
    attend_row(&rig, 1, 1, 0, 1, want);
    attend_row(&rig, 2, 1, 0, 1, got);
    assert_memory_equal(want, got, nkv_partial_layout(&small, 1).bytes);
    put_lists(&rig, 1, 1, full_page);
    assert_int_equal(rig_run(&rig, read_cmd(2, 1, 1, 0)), NKV_EINVAL);
    assert_int_equal(rig_run(&rig, (struct nkv_cmd){.op = NKV_OP_SEQ_TRUNCATE, .seq = 2, .pos = 97}), 0);
    assert_int_equal(rig_run(&rig, (struct nkv_cmd){.op = NKV_OP_SEQ_TRUNCATE, .seq = 2, .pos = 95}), NKV_EINVAL);
    assert_int_equal(
        rig_run(&rig, (struct nkv_cmd){.op = NKV_OP_SEQ_FORK, .seq = 3, .arg = 2, .pos = 97, .n_tokens = 120}), 0);
    assert_int_equal(rig_run(&rig, (struct nkv_cmd){.op = NKV_OP_SEQ_TRUNCATE, .seq = 2, .pos = 88}), 0);
    twin.lengths[0] = twin.lengths[1] = 88;
    rig_append(&rig, &twin, 2, 0, 5, &random);
    rig_run(&rig, (struct nkv_cmd){.op = NKV_OP_SEQ_TRUNCATE, .seq = 1, .pos = 97});
    put_lists(&rig, 1, 1, open_page);
    attend_row(&rig, 1, 1, 0, 1, want);
    attend_row(&rig, 3, 1, 0, 1, got); /* the fork's copy is its own */
    assert_memory_equal(want, got, nkv_partial_layout(&small, 1).bytes);
    model_close(&model);
    model_close(&twin);
    rig_close(&rig);
}

static void forks_and_truncated_sequences_go_their_own_ways(void **state)
{
    struct model model, child;
    struct rig rig;
    uint64_t random = 11;

    (void)state;
    for (uint32_t at = 0; at <= 99; at += 11) {
        uint32_t ids[1];

        open_filled(&rig, &model, &small, 99);
        model_open(&child, &small, 200);
        rig_do(&rig, (struct nkv_cmd){.op = NKV_OP_SEQ_FORK, .seq = 2, .arg = 1, .pos = at, .n_tokens = 150});
        for (uint32_t layer = 0; layer < 2; layer++) {
            size_t floats = model_row(&model, layer, at, 0) - model_row(&model, layer, 0, 0);

            memcpy(child.k + model_row(&child, layer, 0, 0), model.k + model_row(&model, layer, 0, 0), floats * 4);
            memcpy(child.v + model_row(&child, layer, 0, 0), model.v + model_row(&model, layer, 0, 0), floats * 4);
            child.lengths[layer] = at;
            rig_append(&rig, &child, 2, layer, 50, &random);
        }
        rig_do(&rig, (struct nkv_cmd){.op = NKV_OP_SEQ_TRUNCATE, .seq = 1, .pos = at / 2});
        for (uint32_t layer = 0; layer < 2; layer++) {
            model.lengths[layer] = at / 2;
            rig_append(&rig, &model, 1, layer, 20, &random);
        }
        for (uint32_t layer = 0; layer < 2; layer++)
            for (uint32_t seq = 1; seq <= 2; seq++) {
                const struct model *m = seq == 1 ? &model : &child;

                for (ids[0] = 0; ids[0] * 8 < m->lengths[layer]; ids[0]++) {
                    put_lists(&rig, 1, 1, ids);
                    rig_do(&rig, read_cmd(seq, layer, 1, 0));
                    check_packed(&rig, m, layer, ids[0], 0, 2, rig_at(&rig, OUT_AT));
                }
            }
        assert_int_equal(rig_seq_close(&rig, 1), 0);
        assert_int_equal(rig_seq_close(&rig, 2), 0);
        assert_true(rig_stat(&rig).used_bytes == 0);
        model_close(&child);
        model_close(&model);
        rig_close(&rig);
    }
}

/* What statistics count of one command. */
static void check_bytes(struct rig *rig, struct nkv_cmd cmd, uint64_t n_read, uint64_t n_written)
{
    struct nkv_device_stat before = rig_stat(rig), after;

    rig_do(rig, cmd);
    after = rig_stat(rig);
    assert_int_equal(after.read_bytes - before.read_bytes, n_read);
    assert_int_equal(after.written_bytes - before.written_bytes, n_written);
}

static void bytes_are_counted(void **state)
{
    const uint32_t ids[] = {1, 4, 11}, first[] = {0, 1};
    uint64_t page = nkv_page_bytes(&small, 2), head = nkv_page_bytes(&small, 1), digest = 2 * nkv_digest_bytes(&small);
    struct nkv_cmd attend = {
        .op = NKV_OP_ATTEND, .seq = 1, .in_offset = Q_AT, .out_offset = Q_AT + 65536, .n_tokens = 1};
    struct nkv_cmd select = {.op = NKV_OP_SELECT, .seq = 1, .in_offset = Q_AT, .out_offset = OUT_AT, .n_tokens = 1};
    struct nkv_cmd digests = read_cmd(1, 0, 5, NKV_DIGEST);
    struct nkv_device_stat before;
    struct model model;
    struct rig rig;

    (void)state;
    open_filled(&rig, &model, &small, 99); /* 12 full pages of 8 tokens and 3 tokens */
    random_floats(&(uint64_t){3}, rig_at(&rig, Q_AT), 90 * 4 * 16);
    check_bytes(&rig, (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN, .seq = 2, .n_tokens = 99}, 0, 0);
    check_bytes(&rig, (struct nkv_cmd){.op = NKV_OP_APPEND, .seq = 2, .n_tokens = 16}, 0, 2 * page);

    put_lists(&rig, 1, 2, first);
    check_bytes(&rig, write_cmd(2, 1, 2, 16, 0), 0, 2 * page);
    put_lists(&rig, 1, 3, ids);
    check_bytes(&rig, read_cmd(1, 0, 3, 0), 3 * page, 0);
    attend.list_offset = LIST_AT;
    attend.n_pages = 3;
    check_bytes(&rig, attend, 3 * page, 0);
    attend.flags = NKV_CAUSAL;
    attend.pos = 40; /* the last of the pages lies behind it */
    check_bytes(&rig, attend, 2 * page, 0);
    put_lists(&rig, 2, 3, ids);
    attend.flags = NKV_PER_HEAD;
    attend.pos = 0;
    check_bytes(&rig, attend, 6 * head, 0);
    attend = (struct nkv_cmd){.op = NKV_OP_ATTEND,
                              .seq = 1,
                              .in_offset = Q_AT,
                              .out_offset = Q_AT + 65536,
                              .n_tokens = 90,
                              .flags = NKV_ALL_PAGES | NKV_CAUSAL,
                              .pos = 9};
    check_bytes(&rig, attend, (10 + 13) * page, 0); /* blocks of 64 tokens: to token 72, to token 98 */

    select.n_pages = 4;
    select.sink = select.recent = 1;
    select.pos = 98;
    check_bytes(&rig, select, 11 * digest, 0); /* neither the first page nor the open one competes */
    check_bytes(&rig, digests, 5 * digest, 0);

    before = rig_stat(&rig);
    attend.pos = 10; /* there is no token 99 */
    assert_int_equal(rig_run(&rig, attend), NKV_EINVAL);
    assert_int_equal(rig_stat(&rig).read_bytes, before.read_bytes);
    model_close(&model);
    rig_close(&rig);
}

static void reserved_room_is_never_short(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    struct nkv_kv_estimate estimate;
    struct nkv_device_stat stat;
    uint64_t random = 2;
    struct model model;
    struct rig rig;

    (void)state;
    assert_int_equal(nkv_kv_estimate(&small, 150, &estimate), 0);
    config.capacity_bytes = estimate.total_bytes;
    rig_open(&rig, "cpu", &config);
    model_open(&model, &small, 151);
    assert_int_equal(rig_seq_open(&rig, 1, 150, 0), 0);
    assert_int_equal(rig_seq_open(&rig, 2, 1, 0), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "missing"));
    for (uint32_t layer = 0; layer < 2; layer++)
        for (uint32_t i = 0; i < 5; i++)
            rig_append(&rig, &model, 1, layer, 30, &random);
    stat = rig_stat(&rig);
    assert_true(stat.used_bytes == estimate.total_bytes && stat.resident_bytes == estimate.total_bytes);
    assert_int_equal(rig_run(&rig, (struct nkv_cmd){.op = NKV_OP_APPEND, .seq = 1, .n_tokens = 1, .pos = 150}),
                     NKV_ENOSPC);
    assert_int_equal(rig_run(&rig, (struct nkv_cmd){.op = NKV_OP_APPEND, .seq = 1, .n_tokens = 1, .pos = 149}),
                     NKV_EINVAL);
    model_close(&model);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_read_in_list_order),
        cmocka_unit_test(slots_hold_copies),
        cmocka_unit_test(a_sequence_moves_by_read_and_write),
        cmocka_unit_test(sequences_without_pages),
        cmocka_unit_test(forks_and_truncated_sequences_go_their_own_ways),
        cmocka_unit_test(bytes_are_counted),
        cmocka_unit_test(reserved_room_is_never_short),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
