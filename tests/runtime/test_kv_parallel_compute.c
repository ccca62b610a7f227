/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences over several devices in the modes that have a compute side: a group's Steady-Select, pages and digests are
 * those of one device that holds the whole sequence, to the bit, and so is what becomes resident in which slot.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "runtime/kv_parallel.h"

#ifdef __SANITIZE_THREAD__ /* slow: for every other variant the largest number of devices alone */
#define FEW true
#else
#define FEW false
#endif

/* Modes with a compute side: what is resident in which slot is the same after every step, too. */
static void check_compute_side(enum nkv_kv_parallel kv_parallel, uint32_t max_devices)
{
    for (uint32_t variant = 0; variant < 6; variant++) {
        struct nkv_seq_options so = rig_seq_options(variant % 3 == 2 ? NKV_MODE_RECALL : NKV_MODE_PNG, N_TOKENS + 100,
                                                    256, variant / 3 ? NKV_SELECT_KV_HEAD : NKV_SELECT_LAYER);

        so.same_step_recall = variant % 3 == 1;
        so.n_dense_layers = variant == 5;
        check_range(kv_parallel, FEW && variant % 2 ? max_devices : 1, max_devices, &so,
                    (enum nkv_dtype)((variant + 3) % NKV_DTYPE_COUNT));
    }
}

static void test_compute_side_context_parallel(void **state)
{
    (void)state;
    check_compute_side(NKV_KV_CONTEXT, RIG_DEVICES);
}

static void test_compute_side_head_parallel(void **state)
{
    (void)state;
    check_compute_side(NKV_KV_HEADS, RIG_KV);
}

/* ---- Commands by themselves ---- */

#define AT_Q        0u /* in the window */
#define AT_RESIDENT 4096u
#define AT_LIST     8192u
#define AT_SELECT   12288u
#define AT_RECALLED 65536u
#define AT_PAGES    131072u
#define AT_DIGESTS  262144u
#define WINDOW      524288u
#define LENGTH      (22 * RIG_PAGE + 7)
#define BUDGET      12u
#define SLOTS       6u
#define LISTED      5u
#define FIRST       2u /* of the digests */
#define DIGESTS     17u

static void put_operands(uint8_t *window, uint32_t n_units)
{
    static const uint32_t resident[SLOTS] = {21, NKV_PAGE_NONE, 2, 9, 13, NKV_PAGE_NONE}, n_slots = SLOTS;
    static const uint32_t list[1 + LISTED] = {LISTED, 22, 3, 0, 19, 4}; /* the open one, too */
    float q[RIG_ROW], kv[2][RIG_KV_ROW];

    memset(window, 0xaa, WINDOW);
    rig_fill(6, 1, LENGTH - 1, 1, q, kv[0], kv[1]);
    memcpy(window + AT_Q, q, sizeof q);
    for (uint32_t unit = 0; unit < n_units; unit++) {
        uint32_t *at = list_at(window, AT_LIST, unit, LISTED);

        memcpy(list_at(window, AT_RESIDENT, unit, SLOTS), &n_slots, sizeof n_slots);
        memcpy(list_at(window, AT_RESIDENT, unit, SLOTS) + 1, resident, sizeof resident);
        memcpy(at, list, sizeof list);
        at[0] -= unit; /* lists of several lengths */
        at[1 + unit] -= unit;
    }
}

/* Fills a layer and asks for all that a compute side asks for, in one go. */
static void answer(struct rig_options options, uint16_t flags, uint8_t *window_out, int32_t res_out[4])
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 800, 256, NKV_SELECT_LAYER);
    uint32_t n_units = flags ? RIG_KV : 1;
    struct nkv_cmd cmds[4] = {
        {.op = NKV_OP_SELECT, .flags = flags | NKV_STEADY, .sink = 1, .recent = 2, .pos = LENGTH - 1, .n_tokens = 1},
        {.op = NKV_OP_READ, .flags = flags, .after = 1, .n_pages = SLOTS, .out_offset = AT_RECALLED},
        {.op = NKV_OP_READ, .flags = flags, .n_pages = LISTED, .list_offset = AT_LIST, .out_offset = AT_PAGES},
        {.op = NKV_OP_READ, .flags = NKV_DIGEST, .n_pages = DIGESTS, .pos = FIRST, .out_offset = AT_DIGESTS}};
    struct nkv_cqe cqes[4];
    const struct port *port;
    struct nkv_seq *seq;
    struct rig_seq s;
    struct rig rig;

    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_seq_init(&s, seq, 6);
    assert_int_equal(rig_prefill(&rig, &s, LENGTH, 300), 0);
    port = &rig.context->ports[0];
    assert_true(port->window_bytes >= WINDOW);
    put_operands(port->window, n_units);
    cmds[0].n_pages = BUDGET;
    cmds[0].arg = SLOTS;
    cmds[0].in_offset = AT_Q;
    cmds[0].list_offset = AT_RESIDENT;
    cmds[0].out_offset = AT_SELECT;
    cmds[1].list_offset = AT_SELECT + nkv_select_layout(n_units, BUDGET, SLOTS, 0).recall;
    for (uint32_t i = 0; i < 4; i++) {
        cmds[i].seq = seq->id;
        cmds[i].layer = 1;
        cmds[i].user_data = i;
    }
    assert_int_equal(port->device->ops->submit(port->device, cmds, 4), 0);
    assert_int_equal(port->device->ops->reap(port->device, cqes, 4, 4), 4);
    for (uint32_t i = 0; i < 4; i++)
        res_out[cqes[i].user_data] = cqes[i].res;
    memcpy(window_out, port->window, WINDOW);
    rig_seq_free(&s);
    rig_close(&rig);
}

static void compare_lists(uint8_t *a, uint8_t *b, uint64_t at, uint32_t n_units, uint32_t cap)
{
    for (uint32_t unit = 0; unit < n_units; unit++) {
        const uint32_t *list = list_at(a, at, unit, cap);

        assert_in_range(list[0], 0, cap);
        assert_memory_equal(list, list_at(b, at, unit, cap), (1 + list[0]) * sizeof *list);
    }
}

static void compare_answers(uint8_t *a, uint8_t *b, const int32_t res[4], const struct nkv_kv_shape *shape,
                            uint32_t n_units)
{
    struct nkv_select_layout at = nkv_select_layout(n_units, BUDGET, SLOTS, 0);
    uint64_t page_bytes = nkv_page_bytes(shape, RIG_KV / n_units);

    compare_lists(a, b, AT_SELECT + at.chosen, n_units, BUDGET);
    compare_lists(a, b, AT_SELECT + at.device, n_units, BUDGET);
    compare_lists(a, b, AT_SELECT + at.steady, n_units, SLOTS);
    compare_lists(a, b, AT_SELECT + at.recall, n_units, SLOTS);
    compare_lists(a, b, AT_SELECT + at.slots, n_units, SLOTS);
    assert_memory_equal(a + AT_RECALLED, b + AT_RECALLED, (uint32_t)res[1] * page_bytes);
    assert_memory_equal(a + AT_PAGES, b + AT_PAGES, (uint32_t)res[2] * page_bytes);
    assert_memory_equal(a + AT_DIGESTS, b + AT_DIGESTS, DIGESTS * RIG_KV * nkv_digest_bytes(shape));
}

/* Whoever reads the window cannot tell a group from a device. */
static void test_answers_of_one_device(void **state)
{
    static const struct {
        enum nkv_kv_parallel kv_parallel;
        uint32_t n_devices;
    } groups[] = {{NKV_KV_CONTEXT, 1}, {NKV_KV_CONTEXT, 3}, {NKV_KV_CONTEXT, 4}, {NKV_KV_HEADS, 1}, {NKV_KV_HEADS, 2}};
    static uint8_t one[WINDOW], many[WINDOW];

    (void)state;
    for (uint32_t i = 0; i < 2 * NKV_DTYPE_COUNT; i++) {
        struct rig_options options = {.dtype = (enum nkv_dtype)(i / 2)};
        struct nkv_kv_shape shape = rig_shape(options.dtype);
        uint16_t flags = i % 2 ? NKV_PER_HEAD : 0;
        int32_t res_one[4], res_many[4];

        answer(options, flags, one, res_one);
        assert_true(res_one[0] == BUDGET && res_one[1] > 0 && res_one[2] >= (int)LISTED && res_one[3] == DIGESTS);
        for (uint32_t g = 0; g < sizeof groups / sizeof *groups; g++) {
            options.kv_parallel = groups[g].kv_parallel;
            options.n_devices = groups[g].n_devices;
            answer(options, flags, many, res_many);
            assert_memory_equal(res_one, res_many, sizeof res_one);
            compare_answers(one, many, res_one, &shape, flags ? RIG_KV : 1);
        }
    }
}

/* png's step has a READ more, which moves the recalled pages and their list and nothing else. */
static void test_recalled_bytes(void **state)
{
    struct rig_options options = {.n_devices = 4, .kv_parallel = NKV_KV_CONTEXT};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNG, 2000, 16 * RIG_PAGE, NKV_SELECT_LAYER);
    struct nkv_kv_parallel_report before, after;
    struct nkv_seq_stats stats;
    struct nkv_seq *seq;
    struct rig_seq s;
    struct rig rig;
    uint64_t most = 4 * RIG_LAYERS * 4 * (2 * 13 + 1 + RIG_ROW + 2 * RIG_HEADS); /* of what is not recalled */

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_seq_init(&s, seq, 9);
    assert_int_equal(rig_prefill(&rig, &s, 900, 300), 0);
    nkv_context_kv_parallel(rig.context, &before);
    assert_int_equal(rig_decode(&rig, &s), 0);
    nkv_seq_stats(seq, &stats);
    nkv_context_kv_parallel(rig.context, &after);
    assert_int_equal(after.n_commands - before.n_commands, 4 * RIG_LAYERS);
    assert_true(stats.recalled_bytes > 0);
    assert_in_range(after.from_device_bytes - before.from_device_bytes, stats.recalled_bytes + 1,
                    stats.recalled_bytes + most);
    rig_seq_free(&s);
    rig_close(&rig);
}

/* A list that a failed SELECT has left may name more pages than there is room for. */
static void check_end_of_window(enum nkv_kv_parallel kv_parallel, uint16_t flags)
{
    struct rig_options options = {.n_devices = 2, .kv_parallel = kv_parallel};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 800, 256, NKV_SELECT_LAYER);
    struct nkv_cmd cmd = {
        .op = NKV_OP_READ, .flags = flags, .layer = 1, .n_pages = LISTED, .list_offset = flags ? 0 : AT_LIST};
    uint64_t end, bytes;
    struct nkv_seq *seq;
    struct rig_seq s;
    struct rig rig;

    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_seq_init(&s, seq, 6);
    assert_int_equal(rig_prefill(&rig, &s, LENGTH, 300), 0);
    put_operands(rig.context->ports[0].window, 1);
    end = ((const struct group *)(const void *)rig.context->ports[0].device)->window.bytes / 64 * 64;
    bytes = group_read_bytes(&rig.shape, &cmd, LISTED);
    cmd.seq = seq->id;
    for (uint32_t beyond = 0; beyond < 3; beyond++) {
        const struct nkv_device_ops *ops = rig.context->ports[0].device->ops;
        struct nkv_cqe cqe;

        cmd.out_offset = beyond == 2 ? UINT64_MAX - 63 : end - bytes + 64 * beyond;
        assert_int_equal(ops->submit(rig.context->ports[0].device, &cmd, 1), 0);
        assert_int_equal(ops->reap(rig.context->ports[0].device, &cqe, 1, 1), 1);
        assert_int_equal(cqe.res, beyond ? NKV_EINVAL : (int)LISTED);
    }
    rig_seq_free(&s);
    rig_close(&rig);
}

static void test_end_of_window(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 2; i++) {
        check_end_of_window(NKV_KV_CONTEXT, i ? NKV_DIGEST : 0);
        check_end_of_window(NKV_KV_HEADS, i ? NKV_DIGEST : 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compute_side_context_parallel),
        cmocka_unit_test(test_compute_side_head_parallel),
        cmocka_unit_test(test_answers_of_one_device),
        cmocka_unit_test(test_recalled_bytes),
        cmocka_unit_test(test_end_of_window),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
