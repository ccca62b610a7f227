/* SPDX-License-Identifier: Apache-2.0 */
/* Resident memory of a filled sequence is what the estimate says; memory of closed sequences is used again. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "device/rig.h"

#define N_TOKENS 16384u

static const struct nkv_kv_shape shape = {
    .n_layers = 4, .n_heads = 16, .n_kv_heads = 8, .head_dim = 64, .page_tokens = 32, .dtype = NKV_BF16};

static uint64_t resident_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    unsigned long long total, resident = 0;

    assert_non_null(file);
    assert_int_equal(fscanf(file, "%llu %llu", &total, &resident), 2);
    fclose(file);
    return resident * 4096;
}

static void fill(struct rig *rig, uint32_t seq)
{
    assert_int_equal(rig_seq_open(rig, seq, N_TOKENS, 0), 0);
    for (uint16_t layer = 0; layer < shape.n_layers; layer++)
        for (uint32_t pos = 0; pos < N_TOKENS; pos += 512)
            rig_do(rig, (struct nkv_cmd){.op = NKV_OP_APPEND, .seq = seq, .layer = layer, .n_tokens = 512, .pos = pos});
}

static void resident_memory_is_the_estimate(void **state)
{
    struct nkv_device_config config = rig_config(&shape, 2);
    struct nkv_kv_estimate estimate;
    uint64_t before, used, again, random = 1;
    struct rig rig;

    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* shadow memory counts as resident */
#endif
    config.capacity_bytes = (uint64_t)1 << 30;
    assert_int_equal(nkv_kv_estimate(&shape, N_TOKENS, &estimate), 0);
    rig_open(&rig, "cpu", &config);
    random_floats(&random, rig_at(&rig, 0), 2 * 512 * 8 * 64);
    before = resident_bytes();
    fill(&rig, 1);
    used = resident_bytes() - before;
    assert_in_range(used, estimate.total_bytes / 100 * 95, estimate.total_bytes / 100 * 105);
    assert_int_equal(rig_seq_close(&rig, 1), 0);
    fill(&rig, 2);
    again = resident_bytes() - before;
    assert_in_range(again, used, used + used / 50);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resident_memory_is_the_estimate),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
