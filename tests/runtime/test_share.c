/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device with two users: what goes down for either, whose completions and messages come back, windows that grow and
 * move, and a device that lies or is lost. The device is made up: it keeps what it is given and completes it when told.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "base/status.h"
#include "runtime/runtime.h"
#include "runtime/share.h"

#define WINDOW_BYTES 65536u

struct fake {
    struct nkv_device device; /* first */
    struct nkv_cmd cmds[QUEUE_COMMANDS];
    uint32_t n; /* in flight, oldest first */
    uint32_t n_maps;
    int32_t res; /* of what completes */
    bool lies, is_lost;
    uint64_t mapped;
    _Alignas(64) uint8_t windows[2][WINDOW_BYTES];
};

static struct fake fake;

static int fake_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    (void)device;
    assert_true(bytes <= WINDOW_BYTES);
    if (fake.is_lost)
        FAIL(NKV_EDEVICE, "still away");
    fake.n = 0;
    fake.mapped = bytes;
    *window_out = fake.windows[fake.n_maps++ % 2];
    return 0;
}

static int fake_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    (void)device;
    assert_true(fake.n + n <= QUEUE_COMMANDS);
    if (fake.is_lost)
        FAIL(NKV_EDEVICE, "pulled out");
    memcpy(fake.cmds + fake.n, cmds, n * sizeof *cmds);
    fake.n += n;
    return 0;
}

/* The newest first, to have an order of its own. */
static int fake_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    (void)device;
    assert_true(max_n == 1 && min_n <= 1);
    if (fake.n == 0)
        return 0;
    fake.n--;
    *cqes_out = (struct nkv_cqe){.user_data = fake.cmds[fake.n].user_data + (fake.lies ? 7 : 0), .res = fake.res};
    if (fake.res < 0)
        (void)nkv_fail(fake.res, "sequence %u is ill", fake.cmds[fake.n].seq);
    return 1;
}

static int fake_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    (void)device;
    if (fake.is_lost)
        FAIL(NKV_EDEVICE, "pulled out");
    *stat_out = (struct nkv_device_stat){.size = sizeof *stat_out, .used_bytes = 99};
    return 0;
}

static const struct nkv_device_ops fake_ops = {.abi = NKV_DEVICE_ABI,
                                               .backend = "fake",
                                               .map = fake_map,
                                               .submit = fake_submit,
                                               .reap = fake_reap,
                                               .stat = fake_stat};

struct users {
    struct shares *shares;
    struct nkv_device *face[FACE_COUNT];
    uint8_t *window[FACE_COUNT];
};

static int map(struct users *u, enum face_kind kind, uint64_t bytes)
{
    void *window;

    TRY(u->face[kind]->ops->map(u->face[kind], bytes, &window));
    u->window[kind] = window;
    return 0;
}

static void begin(struct users *u)
{
    struct nkv_device *devices[] = {&fake.device};

    memset(&fake, 0, sizeof fake);
    fake.device.ops = &fake_ops;
    assert_int_equal(shares_open(devices, 1, &u->shares), 0);
    for (uint32_t f = 0; f < FACE_COUNT; f++) {
        u->face[f] = shares_faces(u->shares, (enum face_kind)f)[0];
        share_watch(u->face[f], &u->window[f]);
    }
    assert_int_equal(map(u, FACE_WHOLE, 8192), 0);
    assert_int_equal(map(u, FACE_PART, 100), 0);
}

static int submit(struct users *u, enum face_kind kind, struct nkv_cmd cmd)
{
    return u->face[kind]->ops->submit(u->face[kind], &cmd, 1);
}

static int reap(struct users *u, enum face_kind kind, struct nkv_cqe *cqe_out, uint32_t min_n)
{
    return u->face[kind]->ops->reap(u->face[kind], cqe_out, 1, min_n);
}

/* Offsets of the second user's operands, and nothing else, are moved; `after` counts in the device's queue. */
static void test_down(void **state)
{
    static const struct {
        uint8_t op;
        uint16_t flags;
        bool in, out, list;
    } ops[] = {
        {NKV_OP_SEQ_OPEN, NKV_NO_DIGEST, false, false, false},
        {NKV_OP_SEQ_OPEN, NKV_NAMED, true, false, false},
        {NKV_OP_SEQ_CLOSE, NKV_NAMED, false, false, false},
        {NKV_OP_SEQ_TRUNCATE, 0, false, false, false},
        {NKV_OP_APPEND, 0, true, false, false},
        {NKV_OP_SELECT, NKV_SCORES, true, true, false},
        {NKV_OP_SELECT, NKV_STEADY, true, true, true},
        {NKV_OP_ATTEND, 0, true, true, true},
        {NKV_OP_ATTEND, NKV_ALL_PAGES, true, true, false},
        {NKV_OP_READ, 0, false, true, true},
        {NKV_OP_READ, NKV_DIGEST, false, true, false},
        {NKV_OP_WRITE, 0, true, false, true},
        {NKV_OP_COMPUTE, 0, false, false, false},
    };
    struct users u;

    (void)state;
    begin(&u);
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        const struct nkv_cmd *got = &fake.cmds[2 * i];

        for (uint32_t f = 0; f < FACE_COUNT; f++)
            assert_int_equal(submit(&u, (enum face_kind)f, (struct nkv_cmd){.op = ops[i].op, .flags = ops[i].flags}),
                             0);
        assert_true(got[0].in_offset == 0 && got[0].out_offset == 0 && got[0].list_offset == 0);
        assert_int_equal(got[1].in_offset, ops[i].in ? 8192 : 0);
        assert_int_equal(got[1].out_offset, ops[i].out ? 8192 : 0);
        assert_int_equal(got[1].list_offset, ops[i].list ? 8192 : 0);
        assert_true(got[0].after == 0 && got[1].after == 0);
    }
    /* 13 commands of each, in turn; one more of the first, then the second's that needs its last but one. */
    assert_int_equal(submit(&u, FACE_WHOLE, (struct nkv_cmd){.op = NKV_OP_APPEND, .after = 1}), 0);
    assert_int_equal(fake.cmds[26].after, 2);
    assert_int_equal(submit(&u, FACE_PART, (struct nkv_cmd){.op = NKV_OP_APPEND, .after = 2}), 0);
    assert_int_equal(fake.cmds[27].after, 4);
    assert_int_equal(submit(&u, FACE_PART, (struct nkv_cmd){.op = NKV_OP_APPEND, .after = 1000}), 0);
    assert_int_equal(fake.cmds[28].after, 0); /* before its time */
    shares_close(u.shares);
}

/* Each gets its own completions under its own names, with their messages, whoever waits; and waits for its own only. */
static void test_up(void **state)
{
    struct nkv_cqe cqe;
    struct users u;

    (void)state;
    begin(&u);
    assert_int_equal(reap(&u, FACE_WHOLE, &cqe, 0), 0);
    assert_int_equal(reap(&u, FACE_WHOLE, &cqe, 1), NKV_EINVAL);
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t f = 0; f < FACE_COUNT; f++)
            assert_int_equal(submit(&u, (enum face_kind)f,
                                    (struct nkv_cmd){.op = NKV_OP_APPEND, .user_data = 5 - i, .seq = 10 * f + i}),
                             0);
    fake.res = NKV_ENOSPC;
    assert_int_equal(reap(&u, FACE_WHOLE, &cqe, 1), 1); /* behind one of the other's */
    assert_true(cqe.user_data == 3 && cqe.res == NKV_ENOSPC && fake.n == 4);
    assert_string_equal(nkv_last_error(), "sequence 2 is ill");
    fake.res = 0;
    assert_int_equal(reap(&u, FACE_PART, &cqe, 0), 1);
    assert_true(cqe.user_data == 3 && cqe.res == NKV_ENOSPC && fake.n == 4);
    assert_string_equal(nkv_last_error(), "sequence 12 is ill");
    for (uint32_t i = 2; i-- > 0;)
        for (uint32_t f = 0; f < FACE_COUNT; f++) {
            assert_int_equal(reap(&u, (enum face_kind)f, &cqe, 1), 1);
            assert_true(cqe.user_data == 5 - i && cqe.res == 0);
        }
    assert_int_equal(reap(&u, FACE_PART, &cqe, 1), NKV_EINVAL);
    /* The queue is one: 256 of one user are there, the other's make room among them and lose none. */
    for (uint32_t i = 0; i < QUEUE_COMMANDS; i++)
        assert_int_equal(submit(&u, FACE_WHOLE, (struct nkv_cmd){.op = NKV_OP_APPEND, .user_data = i}), 0);
    assert_int_equal(submit(&u, FACE_WHOLE, (struct nkv_cmd){.op = NKV_OP_APPEND}), NKV_ENOSPC);
    for (uint32_t i = 0; i < QUEUE_COMMANDS; i++)
        assert_int_equal(submit(&u, FACE_PART, (struct nkv_cmd){.op = NKV_OP_APPEND, .user_data = i}), 0);
    for (uint32_t f = 0; f < FACE_COUNT; f++) {
        uint64_t sum = 0;

        for (uint32_t i = 0; i < QUEUE_COMMANDS; i++) {
            assert_int_equal(reap(&u, (enum face_kind)f, &cqe, 1), 1);
            sum += cqe.user_data;
        }
        assert_int_equal(sum, QUEUE_COMMANDS * (QUEUE_COMMANDS - 1) / 2);
    }
    shares_close(u.shares);
}

/* A part that grows moves the other, whose user is told; not while anything is in flight or not asked for. */
static void test_window(void **state)
{
    struct nkv_cqe cqe;
    struct users u;
    uint8_t *before;

    (void)state;
    begin(&u);
    assert_int_equal(fake.mapped, 8192 + 4096);
    assert_ptr_equal(u.window[FACE_PART], u.window[FACE_WHOLE] + 8192);
    before = u.window[FACE_WHOLE];
    assert_int_equal(map(&u, FACE_WHOLE, 8000), 0); /* it is as large already */
    assert_ptr_equal(u.window[FACE_WHOLE], before);
    assert_int_equal(submit(&u, FACE_PART, (struct nkv_cmd){.op = NKV_OP_APPEND}), 0);
    assert_int_equal(map(&u, FACE_WHOLE, 9000), NKV_ESTATE);
    assert_int_equal(map(&u, FACE_PART, 9000), NKV_ESTATE);
    assert_int_equal(reap(&u, FACE_PART, &cqe, 1), 1);
    assert_int_equal(map(&u, FACE_WHOLE, 9000), 0);
    assert_int_equal(fake.mapped, 12288 + 4096);
    assert_ptr_not_equal(u.window[FACE_WHOLE], before);
    assert_ptr_equal(u.window[FACE_PART], u.window[FACE_WHOLE] + 12288);
    assert_int_equal(submit(&u, FACE_PART, (struct nkv_cmd){.op = NKV_OP_APPEND, .in_offset = 64}), 0);
    assert_int_equal(fake.cmds[0].in_offset, 12288 + 64);
    assert_int_equal(u.face[FACE_PART]->ops->copy(u.face[FACE_PART], 128, "abc", 3), 0);
    assert_memory_equal(u.window[FACE_WHOLE] + 12288 + 128, "abc", 3);
    shares_close(u.shares);
}

/* What one user sees lost is lost for both, with the same words, until either maps it again. */
static void test_loss(void **state)
{
    struct nkv_device_stat stat = {.size = sizeof stat};
    struct nkv_cqe cqe;

    (void)state;
    for (uint32_t how = 0; how < 4; how++) {
        const char *words = how == 1 ? "not in flight there" : how == 3 ? "still away" : "pulled out", *why;
        struct users u;

        begin(&u);
        assert_int_equal(u.face[FACE_PART]->ops->stat(u.face[FACE_PART], &stat), 0);
        assert_int_equal(stat.used_bytes, 99);
        if (how < 3)
            assert_int_equal(submit(&u, FACE_PART, (struct nkv_cmd){.op = NKV_OP_APPEND}), 0);
        fake.lies = how == 1;
        fake.is_lost = how != 1;
        if (how == 0)
            assert_int_equal(submit(&u, FACE_WHOLE, (struct nkv_cmd){.op = NKV_OP_APPEND}), NKV_EDEVICE);
        else if (how == 1)
            assert_int_equal(reap(&u, FACE_PART, &cqe, 1), NKV_EDEVICE);
        else if (how == 3) /* found out by one that wants a larger window */
            assert_int_equal(map(&u, FACE_WHOLE, 9000), NKV_EDEVICE);
        else
            assert_int_equal(u.face[FACE_WHOLE]->ops->stat(u.face[FACE_WHOLE], &stat), NKV_EDEVICE);
        for (uint32_t f = 0; f < FACE_COUNT; f++) {
            assert_int_equal(share_check(u.face[f], &why), NKV_EDEVICE);
            assert_non_null(strstr(why, words));
            assert_int_equal(reap(&u, (enum face_kind)f, &cqe, 0), NKV_EDEVICE);
            assert_non_null(strstr(nkv_last_error(), words));
            assert_int_equal(submit(&u, (enum face_kind)f, (struct nkv_cmd){.op = NKV_OP_APPEND}), NKV_EDEVICE);
        }
        if (how != 1)
            assert_int_equal(map(&u, FACE_WHOLE, 8192), NKV_EDEVICE);
        fake.lies = fake.is_lost = false;
        assert_int_equal(map(&u, how == 1 ? FACE_PART : FACE_WHOLE, 4096), 0);
        assert_int_equal(fake.mapped, 8192 + 4096);
        assert_ptr_equal(u.window[FACE_PART], u.window[FACE_WHOLE] + 8192);
        for (uint32_t f = 0; f < FACE_COUNT; f++) { /* what was in flight is forgotten */
            assert_int_equal(reap(&u, (enum face_kind)f, &cqe, 1), NKV_EINVAL);
            assert_int_equal(submit(&u, (enum face_kind)f, (struct nkv_cmd){.op = NKV_OP_APPEND, .user_data = f}), 0);
            assert_int_equal(reap(&u, (enum face_kind)f, &cqe, 1), 1);
            assert_int_equal(cqe.user_data, f);
        }
        shares_close(u.shares);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_down),
        cmocka_unit_test(test_up),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_loss),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
