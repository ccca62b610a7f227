/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hostile commands: valid ones with mutated fields and lists, and pure noise. The device answers every one, never
 * crashes, and a sequence that no command named keeps its data. (Run it under ASan and UBSan to see what it proves.)
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/rig.h"

#define VICTIM 77u
#define N_CMDS 20000u

static const struct nkv_kv_shape small = {
    .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8, .page_tokens = 4, .dtype = NKV_F16};

static const uint64_t window_bytes = 256 << 10;

static uint32_t pick(uint64_t *random, uint32_t n)
{
    return (uint32_t)(next_random(random) % n);
}

/* A command that is likely right for sequences 1..6. */
static struct nkv_cmd likely(uint64_t *random)
{
    uint32_t n_tokens = 1 + pick(random, 12), n_pages = 4 + pick(random, 8);
    struct nkv_cmd cmd = {.op = (uint8_t)(1 + pick(random, NKV_OP_COUNT - 1)), .seq = 1 + pick(random, 6)};

    switch (cmd.op) {
    case NKV_OP_SEQ_OPEN:
        cmd.n_tokens = 4 * (1 + pick(random, 40));
        cmd.flags = (uint16_t)((uint16_t[]){0, 0, NKV_NO_DIGEST, NKV_NO_PAGES, NKV_SLOTS}[pick(random, 5)]);
        break;
    case NKV_OP_SEQ_FORK:
        cmd.arg = 1 + pick(random, 6);
        cmd.pos = pick(random, 40);
        cmd.n_tokens = cmd.pos + n_tokens;
        break;
    case NKV_OP_SEQ_TRUNCATE:
        cmd.pos = pick(random, 60);
        break;
    case NKV_OP_SEQ_CLOSE:
        cmd.seq = 1 + pick(random, 20); /* rarely one that is open */
        break;
    default:
        cmd.layer = (uint16_t)pick(random, 2);
        cmd.n_tokens = n_tokens;
        cmd.pos = pick(random, 4) ? 0 : pick(random, 60);
        cmd.in_offset = 64 * pick(random, 512);
        cmd.out_offset = (64 << 10) + 64 * pick(random, 512);
        cmd.list_offset = (128 << 10) + 64 * pick(random, 512);
        cmd.n_pages = n_pages;
        break;
    }
    return cmd;
}

/* Makes it fit its op, most of the time. */
static void tidy(struct nkv_cmd *cmd, uint64_t *random)
{
    if (cmd->op == NKV_OP_SELECT) {
        cmd->recent = 1;
        cmd->sink = (uint8_t)pick(random, 2);
        cmd->flags = (uint16_t)(pick(random, 8));
        if (cmd->flags & NKV_STEADY)
            cmd->arg = pick(random, 8);
        else
            cmd->list_offset = 0;
    }
    if (cmd->op == NKV_OP_ATTEND) {
        cmd->flags = (uint16_t)((pick(random, 2) ? NKV_PER_HEAD : 0) | (pick(random, 2) ? NKV_CAUSAL : 0) |
                                (pick(random, 3) ? 0 : NKV_ALL_PAGES));
        if (cmd->flags & NKV_ALL_PAGES)
            cmd->list_offset = cmd->n_pages = 0;
    }
    if (cmd->op == NKV_OP_APPEND)
        cmd->out_offset = cmd->list_offset = cmd->n_pages = 0;
    if (cmd->op == NKV_OP_READ)
        cmd->in_offset = cmd->n_tokens = cmd->pos = 0;
    if (cmd->op == NKV_OP_WRITE)
        cmd->out_offset = cmd->pos = 0;
    if ((cmd->op == NKV_OP_READ || cmd->op == NKV_OP_WRITE) && !pick(random, 3)) {
        cmd->flags = NKV_DIGEST;
        cmd->list_offset = cmd->n_tokens = 0;
        cmd->n_pages = pick(random, 4);
    }
}

static void mutate(struct nkv_cmd *cmd, uint64_t *random)
{
    static const uint64_t extremes[] = {0, 1, 63, 64, 0x7fffffff, 0xffffffff, 0xffffffffffffffc0, 0x8000000000000000};
    unsigned char *bytes = (unsigned char *)cmd;
    uint64_t value = extremes[pick(random, 8)];
    size_t at = pick(random, sizeof *cmd);

    if (pick(random, 2))
        bytes[at] ^= (unsigned char)(1u << pick(random, 8));
    else if (pick(random, 2))
        memcpy(bytes + at / 4 * 4, &value, 4);
    else
        memcpy(bytes + at / 8 * 8, &value, 8);
    if (cmd->seq == VICTIM)
        cmd->seq = 0;
}

/* Lists of all kinds where list_offset likely points; floats of all bits elsewhere. */
static void scribble(struct rig *rig, uint64_t *random)
{
    uint32_t *words = rig_at(rig, 0), n_words = (uint32_t)(window_bytes / 4);
    uint32_t begin = pick(random, n_words - 64), n = pick(random, 12);

    for (uint32_t i = 0; i < 64; i++)
        words[begin + i] = (uint32_t)next_random(random);
    begin = (128 << 8) + 16 * pick(random, 600); /* words */
    words[begin] = n;
    for (uint32_t i = 0; i < n; i++)
        words[begin + 1 + i] = pick(random, 8) ? i : pick(random, 20);
}

static void fill_victim(struct rig *rig, struct model *model, uint64_t *random)
{
    model_open(model, &small, 50);
    assert_int_equal(rig_seq_open(rig, VICTIM, 50, 0), 0);
    for (uint32_t layer = 0; layer < 2; layer++)
        rig_append(rig, model, VICTIM, layer, 50, random);
}

static void check_victim(struct rig *rig, const struct model *model)
{
    float *q = rig_at(rig, 0), *o = rig_at(rig, 4096);
    struct nkv_partial_layout at = nkv_partial_layout(&small, 1);
    uint32_t pages[13];
    uint64_t random = 1;
    double want[8];

    for (uint32_t i = 0; i < 13; i++)
        pages[i] = i;
    random_floats(&random, q, 4 * 8);
    for (uint16_t layer = 0; layer < 2; layer++) {
        assert_int_equal(rig_do(rig, (struct nkv_cmd){.op = NKV_OP_ATTEND,
                                                      .seq = VICTIM,
                                                      .layer = layer,
                                                      .flags = NKV_ALL_PAGES,
                                                      .out_offset = 4096,
                                                      .n_tokens = 1}),
                         50);
        for (uint32_t h = 0; h < 4; h++) {
            const float *l = rig_at(rig, 4096 + at.l);

            model_attend(model, layer, h / 2, q + h * 8, pages, 13, UINT32_MAX, want);
            for (uint32_t d = 0; d < 8; d++)
                assert_float_equal(o[h * 8 + d] / l[h], want[d], 1e-5);
        }
    }
}

static void hostile_run(uint64_t seed, uint32_t n_threads, uint32_t *n_good)
{
    struct nkv_device_config config = rig_config(&small, n_threads);
    uint64_t random = seed;
    struct model model;
    struct rig rig;
    void *window;

    config.capacity_bytes = 300 << 10;
    rig_open(&rig, "cpu", &config);
    assert_int_equal(rig.device->ops->map(rig.device, window_bytes, &window), 0);
    rig.window = window;
    fill_victim(&rig, &model, &random);
    for (uint32_t i = 0; i < N_CMDS; i++) {
        struct nkv_cmd cmd = likely(&random);

        tidy(&cmd, &random);
        if (pick(&random, 3) == 0)
            mutate(&cmd, &random);
        if (pick(&random, 50) == 0)
            for (size_t b = 0; b < sizeof cmd; b++)
                ((unsigned char *)&cmd)[b] = (unsigned char)next_random(&random);
        scribble(&rig, &random);
        if (rig_run(&rig, cmd) >= 0)
            n_good[cmd.op]++;
        else
            assert_true(nkv_last_error()[0] != '\0');
        if (i % 2000 == 1999)
            check_victim(&rig, &model);
    }
    model_close(&model);
    rig_close(&rig);
}

static void hostile_commands_never_crash(void **state)
{
    uint32_t n_good[256] = {0};

    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++)
        hostile_run(seed, (uint32_t)seed, n_good);
    for (uint32_t op = 1; op < NKV_OP_COUNT; op++)
        assert_true(n_good[op] > 20); /* the likely ones do run: the mutations start from valid commands */
}

static void limits_are_named(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    struct nkv_cmd attend = {.op = NKV_OP_ATTEND, .seq = 1, .flags = NKV_ALL_PAGES, .n_tokens = 1, .out_offset = 4096};
    static const uint32_t descending[] = {2, 1, 0}, repeated[] = {2, 1, 1}, absent[] = {2, 0, 5},
                          too_long[] = {3, 0, 1};
    const uint32_t *lists[] = {descending, repeated, absent, too_long};
    uint64_t random = 1;
    struct model model;
    struct rig rig;

    (void)state;
    rig_open(&rig, "cpu", &config);
    model_open(&model, &small, 20);
    assert_int_equal(rig_seq_open(&rig, 1, 20, 0), 0);
    rig_append(&rig, &model, 1, 0, 20, &random);
    assert_int_equal(rig_run(&rig, attend), 20);
    attend.out_offset = 64;
    assert_int_equal(rig_run(&rig, attend), NKV_EINVAL); /* overlaps q */
    attend.out_offset = 4096 + 4;
    assert_int_equal(rig_run(&rig, attend), NKV_EINVAL);
    attend.out_offset = rig.window_bytes;
    assert_int_equal(rig_run(&rig, attend), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "window"));
    attend.out_offset = 4096;
    attend.layer = 2;
    assert_int_equal(rig_run(&rig, attend), NKV_EINVAL);
    attend.layer = 0;
    attend.seq = 2;
    assert_int_equal(rig_run(&rig, attend), NKV_ENOENT);
    attend = (struct nkv_cmd){
        .op = NKV_OP_ATTEND, .seq = 1, .n_tokens = 1, .n_pages = 2, .out_offset = 4096, .list_offset = 8192};
    for (size_t i = 0; i < 4; i++) {
        memcpy(rig_at(&rig, 8192), lists[i], 3 * sizeof(uint32_t));
        assert_int_equal(rig_run(&rig, attend), NKV_EINVAL);
    }
    model_close(&model);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_commands_never_crash),
        cmocka_unit_test(limits_are_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
