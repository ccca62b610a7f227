/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A backend is not trusted: completions of what is not in flight, or more and fewer of them than were asked for, end
 * what the device holds with an error that says so, and the other device goes on. Devices of another shape are refused.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <nearkv/device.h>

#include "runtime/rig.h"

enum lie {
    LIE_LANE,    /* user_data of a ticket that cannot be */
    LIE_INDEX,   /* of a command that was never planned */
    LIE_TWICE,   /* of a command that is complete */
    LIE_CONTROL, /* of an open or close, when none is in flight */
    LIE_NONE,    /* no completion where one was asked for */
    LIE_MORE,    /* two completions where there is room for one */
    LIE_SILENT,  /* the queue's failure, without a word */
    LIE_COUNT
};

static const char *const reasons[LIE_COUNT] = {"not in flight there", "not in flight there",    "not in flight there",
                                               "not in flight there", "0 completions where 1 ", "2 completions where ",
                                               "NKV_EDEVICE"};

/* A CPU device whose n-th completion is wrong. */
struct liar {
    struct nkv_device device; /* first */
    struct nkv_device *inner;
    enum lie lie;
    uint32_t n_left;
    uint64_t last; /* user_data of the completion before */
};

static struct liar *liar_of(struct nkv_device *device)
{
    return (struct liar *)(void *)device;
}

static int liar_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    return liar_of(device)->inner->ops->caps(liar_of(device)->inner, caps_out);
}

static int liar_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    return liar_of(device)->inner->ops->map(liar_of(device)->inner, bytes, window_out);
}

static int liar_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    return liar_of(device)->inner->ops->submit(liar_of(device)->inner, cmds, n);
}

static int liar_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    struct liar *liar = liar_of(device);
    uint64_t last = liar->last;
    int n = 0;

    if (liar->lie == LIE_NONE && min_n == 0) /* it has nothing that is not waited for */
        return 0;
    n = liar->inner->ops->reap(liar->inner, cqes_out, max_n, min_n);
    if (n <= 0 || cqes_out->user_data == UINT64_MAX) /* opening succeeds */
        return n;
    liar->last = cqes_out->user_data;
    if (liar->n_left == 0 || --liar->n_left > 0)
        return n;
    if (liar->lie == LIE_LANE)
        cqes_out->user_data = UINT64_C(0x7fffffff) << 32;
    else if (liar->lie == LIE_INDEX)
        cqes_out->user_data |= 0x7fffffff;
    else if (liar->lie == LIE_TWICE)
        cqes_out->user_data = last;
    else if (liar->lie == LIE_CONTROL)
        cqes_out->user_data = UINT64_MAX;
    return liar->lie == LIE_NONE ? 0 : liar->lie == LIE_MORE ? 2 : liar->lie == LIE_SILENT ? NKV_EDEVICE : n;
}

static int liar_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    return liar_of(device)->inner->ops->stat(liar_of(device)->inner, stat_out);
}

static const struct nkv_device_ops liar_ops = {
    .abi = NKV_DEVICE_ABI,
    .backend = "liar",
    .caps = liar_caps,
    .map = liar_map,
    .submit = liar_submit,
    .reap = liar_reap,
    .stat = liar_stat,
};

/* A silent one's error ends with the status: a message of before is not its. */
static bool tells(const char *error, enum lie lie)
{
    const char *reason = strstr(error, reasons[lie]);
    const char *end = error + strlen(error) - strlen(reasons[lie]);

    return reason && (lie != LIE_SILENT || strcmp(end, reasons[lie]) == 0);
}

/* Two devices, which may share sequences, and a compute side; number `which` lies at its n-th completion. */
static void run_liar(enum nkv_kv_parallel kv_parallel, enum nkv_mode mode, enum lie lie, uint32_t n, uint32_t which)
{
    bool shared = kv_parallel != NKV_KV_DATA;
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F32), .capacity_bytes = 8u << 20, .n_threads = 1};
    struct nkv_device *inner[3], *devices[3];
    struct liar liar = {.device = {&liar_ops}, .lie = lie, .n_left = n};
    struct nkv_context_options options = {
        .size = sizeof options, .shape = config.shape, .devices = devices, .n_devices = 2, .kv_parallel = kv_parallel};
    struct nkv_seq_options so = rig_seq_options(mode, 400, 160, NKV_SELECT_LAYER);
    struct rig_seq s[2] = {{0}, {0}}, *batch[2] = {&s[0], &s[1]};
    struct rig rig = {.shape = config.shape, .n_devices = 2};
    const uint32_t ones[2] = {1, 1};
    uint32_t n_failed = 0;

    for (uint32_t i = 0; i < 3; i++) {
        config.shape.n_heads = options.shape.n_heads / (kv_parallel == NKV_KV_HEADS && i < 2 ? 2 : 1);
        config.shape.n_kv_heads = options.shape.n_kv_heads / (kv_parallel == NKV_KV_HEADS && i < 2 ? 2 : 1);
        assert_int_equal(nkv_device_open("cpu", &config, &inner[i]), 0);
        devices[i] = i == which ? &liar.device : inner[i];
    }
    liar.inner = inner[which];
    options.compute = devices[2];
    assert_int_equal(nkv_context_open(&options, &rig.context), 0);
    for (uint32_t i = 0; i < 2; i++) {
        struct nkv_seq *seq = NULL;

        assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
        rig_seq_init(&s[i], seq, 1 + i);
    }
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(rig_prefill(&rig, &s[i], 200, 200), 0);
    for (uint32_t step = 0; step < 10; step++)
        assert_int_equal(rig_step(&rig, batch, ones, 2), 0);
    for (uint32_t i = 0; i < 2; i++) {
        if (nkv_seq_status(s[i].seq) == 0)
            continue;
        n_failed++;
        assert_int_equal(nkv_seq_status(s[i].seq), NKV_EDEVICE);
        if (!tells(nkv_seq_error(s[i].seq), lie))
            fail_msg("'%s' does not contain '%s'", nkv_seq_error(s[i].seq), reasons[lie]);
        assert_true(which == 2 || shared || nkv_seq_device(s[i].seq) == which);
    }
    assert_true(n_failed > (shared && which < 2));
    for (uint32_t i = 0; i < 2; i++)
        rig_seq_free(&s[i]);
    nkv_context_close(rig.context);
    for (uint32_t i = 0; i < 3; i++)
        nkv_device_close(inner[i]);
}

/* A command that was complete may be in flight again, under the same number: then nobody can tell the lie, and the host
 * reads what the device still writes. */
static bool is_race(enum lie lie)
{
#ifdef __SANITIZE_THREAD__
    return lie == LIE_TWICE;
#else
    (void)lie;
    return false;
#endif
}

static void test_wrong_completions(void **state)
{
    (void)state;
    for (uint32_t mode = 0; mode < NKV_MODE_COUNT; mode++)
        for (uint32_t lie = 0; lie < LIE_COUNT; lie++)
            for (uint32_t n = 2; n < 20 && !is_race((enum lie)lie); n += 5) {
                run_liar(NKV_KV_DATA, (enum nkv_mode)mode, (enum lie)lie, n, 0);
                run_liar(NKV_KV_DATA, (enum nkv_mode)mode, (enum lie)lie, n, 1);
                if (mode == NKV_MODE_RECALL || mode == NKV_MODE_PNG)
                    run_liar(NKV_KV_DATA, (enum nkv_mode)mode, (enum lie)lie, n, 2);
            }
}

/* Every device has a part of both sequences. Its commands are numbered anew whenever nothing is in flight: one that is
 * named twice may be the right one. Opening takes two completions. */
static void test_wrong_completions_of_a_part(void **state)
{
    (void)state;
    for (uint32_t mode = 0; mode < NKV_MODE_COUNT; mode++)
        for (uint32_t lie = 0; lie < LIE_COUNT; lie++)
            for (uint32_t n = 3; n < 30 && lie != LIE_TWICE; n += 7) {
                run_liar(NKV_KV_CONTEXT, (enum nkv_mode)mode, (enum lie)lie, n, n % 2);
                run_liar(NKV_KV_HEADS, (enum nkv_mode)mode, (enum lie)lie, n, n % 2);
            }
}

static void expect_refused(const struct nkv_kv_shape *shape, bool compute, const char *message)
{
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F16), .capacity_bytes = 1u << 20, .n_threads = 1};
    struct nkv_device *devices[2] = {NULL, NULL};
    struct nkv_context_options options = {.size = sizeof options, .shape = config.shape, .devices = devices};
    struct nkv_context *context = NULL;

    assert_int_equal(nkv_device_open("cpu", &config, &devices[0]), 0);
    config.shape = *shape;
    config.name = "other";
    assert_int_equal(nkv_device_open("fault:n=100:cpu", &config, &devices[1]), 0);
    options.n_devices = compute ? 1 : 2;
    options.compute = compute ? devices[1] : NULL;
    assert_int_equal(nkv_context_open(&options, &context), message ? NKV_EINVAL : 0);
    if (message && !strstr(nkv_last_error(), message))
        fail_msg("'%s' does not contain '%s'", nkv_last_error(), message);
    nkv_context_close(context);
    nkv_device_close(devices[0]);
    nkv_device_close(devices[1]);
}

static void test_other_shapes(void **state)
{
    struct nkv_kv_shape shapes[9];

    (void)state;
    for (uint32_t i = 0; i < 9; i++)
        shapes[i] = rig_shape(NKV_F16);
    shapes[0].n_layers = 3;
    expect_refused(&shapes[0], false, "device 1 (other) was opened with number of layers 3, the context with 2");
    shapes[1].n_heads = 8;
    expect_refused(&shapes[1], false, "query heads 8, the context with 4");
    shapes[2].n_kv_heads = 4;
    expect_refused(&shapes[2], true, "KV heads 4, the context with 2");
    shapes[3].head_dim = 32;
    expect_refused(&shapes[3], true, "head dimension 32, the context with 16");
    shapes[4].page_tokens = 16;
    expect_refused(&shapes[4], false, "page size in tokens 16, the context with 32");
    shapes[5].dtype = NKV_Q8_0;
    expect_refused(&shapes[5], true, "KV type q8_0, the context with f16");
    shapes[6].digest = NKV_DIGEST_CUBOID_MEAN;
    expect_refused(&shapes[6], false, "digest cuboid-mean, the context with minmax");
    shapes[7].scale = 0.5f;
    expect_refused(&shapes[7], false, "scale 0.5, the context with 0.25: give both the same shape");
    shapes[8].scale = 0.25f; /* the default of 16 dimensions, spelled out */
    expect_refused(&shapes[8], false, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrong_completions),
        cmocka_unit_test(test_wrong_completions_of_a_part),
        cmocka_unit_test(test_other_shapes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
