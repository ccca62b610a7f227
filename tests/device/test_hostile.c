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

#include "device/hostile.h"

#define N_CMDS 20000u

static void hostile_run(uint64_t seed, uint32_t n_threads, uint32_t *n_good)
{
    struct nkv_device_config config = rig_config(&hostile_shape, n_threads);
    uint64_t random = seed;
    struct model model;
    struct rig rig;
    void *window;

    config.capacity_bytes = 300 << 10;
    rig_open(&rig, "cpu", &config);
    assert_int_equal(rig.device->ops->map(rig.device, HOSTILE_BYTES, &window), 0);
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
        scribble(rig.window, &random);
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
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    struct nkv_cmd attend = {.op = NKV_OP_ATTEND, .seq = 1, .flags = NKV_ALL_PAGES, .n_tokens = 1, .out_offset = 4096};
    static const uint32_t descending[] = {2, 1, 0}, repeated[] = {2, 1, 1}, absent[] = {2, 0, 5},
                          too_long[] = {3, 0, 1};
    const uint32_t *lists[] = {descending, repeated, absent, too_long};
    uint64_t random = 1;
    struct model model;
    struct rig rig;

    (void)state;
    rig_open(&rig, "cpu", &config);
    model_open(&model, &hostile_shape, 20);
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
