/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the world may do: a device fails its n-th command, an allocation fails, there is no room. One sequence ends with
 * the device's error, the others go on with the right numbers, and every page comes back.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <nearkv/device.h>

#include "base/mem.h"
#include "runtime/rig.h"

#define LENGTH 300u
#define STEPS  4u

struct fault {
    const char *op;
    bool on_compute;
};

static bool is_zero(const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (x[i] != 0)
            return false;
    return true;
}

/* Two sequences in each step; returns how many have failed. Those alive are as they would be without the fault. */
static uint32_t run_pair(struct rig *rig, struct rig_seq *s, const float *expected)
{
    struct rig_seq *batch[2] = {&s[0], &s[1]};
    uint32_t chunk[2] = {LENGTH, LENGTH}, one[2] = {1, 1};

    for (uint32_t step = 0; step < 1 + STEPS; step++) {
        assert_int_equal(rig_step(rig, batch, step ? one : chunk, 2), 0);
        for (uint32_t i = 0; i < 2; i++) {
            /* what was delivered before the failure stays right; after it, everything is zero */
            if (nkv_seq_status(s[i].seq) == 0)
                assert_true(rig_difference(s[i].last, expected + (step * 2 + i) * RIG_LAYERS * RIG_ROW,
                                           RIG_LAYERS * RIG_ROW) < 1e-6f);
            else
                assert_true(is_zero(s[i].last + (RIG_LAYERS - 1) * RIG_ROW, RIG_ROW) ||
                            rig_difference(s[i].last, expected + (step * 2 + i) * RIG_LAYERS * RIG_ROW,
                                           RIG_LAYERS * RIG_ROW) < 1e-6f);
        }
    }
    return (nkv_seq_status(s[0].seq) < 0 ? 1u : 0u) + (nkv_seq_status(s[1].seq) < 0 ? 1u : 0u);
}

static struct nkv_seq_options fault_options(enum nkv_mode mode, bool same_step)
{
    struct nkv_seq_options so = rig_seq_options(mode, 400, 160, NKV_SELECT_KV_HEAD);

    so.same_step_recall = same_step;
    return so;
}

static void record_expected(enum nkv_mode mode, bool same_step, float *expected)
{
    struct rig_options options = {.dtype = NKV_F32, .max_tokens = 2 * LENGTH};
    struct nkv_seq_options so = fault_options(mode, same_step);
    struct rig_seq s[2], *batch[2] = {&s[0], &s[1]};
    uint32_t chunk[2] = {LENGTH, LENGTH}, one[2] = {1, 1};
    struct rig rig;

    assert_int_equal(rig_open(&rig, &options), 0);
    for (uint32_t i = 0; i < 2; i++) {
        struct nkv_seq *seq = NULL;

        assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
        rig_seq_init(&s[i], seq, 90 + i);
    }
    for (uint32_t step = 0; step < 1 + STEPS; step++) {
        assert_int_equal(rig_step(&rig, batch, step ? one : chunk, 2), 0);
        for (uint32_t i = 0; i < 2; i++)
            memcpy(expected + (step * 2 + i) * RIG_LAYERS * RIG_ROW, s[i].last, RIG_LAYERS * RIG_ROW * sizeof(float));
    }
    for (uint32_t i = 0; i < 2; i++)
        rig_seq_free(&s[i]);
    rig_close(&rig);
}

/* The failed sequence, cut back to what it had committed, works again. */
static void revive(struct rig *rig, struct rig_seq *s, const float *expected, uint32_t which)
{
    const char *error = nkv_seq_error(s->seq);
    uint32_t length = nkv_seq_length(s->seq);

    assert_true(strlen(error) > 0);
    assert_non_null(strstr(error, "device"));
    assert_int_equal(nkv_seq_truncate(s->seq, length), 0);
    assert_int_equal(nkv_seq_status(s->seq), 0);
    s->length = length;
    if (length < LENGTH) {
        assert_int_equal(rig_prefill(rig, s, LENGTH - length, LENGTH), 0);
    } else if (length < LENGTH + STEPS) {
        assert_int_equal(rig_decode(rig, s), 0);
        assert_int_equal(nkv_seq_status(s->seq), 0);
        assert_true(rig_difference(s->last, expected + ((length - LENGTH + 1) * 2 + which) * RIG_LAYERS * RIG_ROW,
                                   RIG_LAYERS * RIG_ROW) < 2e-5f);
    }
}

static uint32_t run_fault(enum nkv_mode mode, bool same_step, const struct fault *fault, uint32_t n,
                          const float *expected)
{
    struct rig_options options = {.dtype = NKV_F32, .max_tokens = 2 * LENGTH, .n_threads = 1 + n % 2};
    struct nkv_seq_options so = fault_options(mode, same_step);
    struct rig_seq s[2] = {{0}, {0}};
    uint32_t n_failed = 0, n_open = 0;
    struct rig rig;
    char spec[64];

    snprintf(spec, sizeof spec, "fault:op=%s,n=%u:cpu", fault->op, n);
    *(fault->on_compute ? &options.compute_spec : &options.spec) = spec;
    assert_int_equal(rig_open(&rig, &options), 0);
    for (; n_open < 2; n_open++) {
        struct nkv_seq *seq = NULL;

        if (nkv_seq_open(rig.context, &so, &seq) < 0)
            break;
        rig_seq_init(&s[n_open], seq, 90 + n_open);
    }
    if (n_open == 2) {
        n_failed = run_pair(&rig, s, expected);
        assert_true(n_failed <= 1);
        for (uint32_t i = 0; i < 2; i++)
            if (nkv_seq_status(s[i].seq) < 0)
                revive(&rig, &s[i], expected, i);
    }
    for (uint32_t i = 0; i < n_open; i++) {
        nkv_seq_close(s[i].seq);
        rig_seq_free(&s[i]);
    }
    assert_true(rig_empty(&rig));
    rig_close(&rig);
    return n_failed + (n_open < 2);
}

static void test_command_fails(void **state)
{
    static const struct fault faults[] = {
        {"append", false},   {"select", false},  {"attend", false},    {"read", false},     {"any", false},
        {"append", true},    {"select", true},   {"attend", true},     {"write", true},     {"any", true},
        {"seq_open", false}, {"seq_open", true}, {"seq_close", false}, {"seq_close", true}, {"seq_truncate", true},
    };
    static float expected[(1 + STEPS) * 2 * RIG_LAYERS * RIG_ROW];
    uint32_t n_total = 0;

    (void)state;
    for (uint32_t mode = 0; mode <= NKV_MODE_COUNT; mode++) {
        enum nkv_mode m = mode == NKV_MODE_COUNT ? NKV_MODE_PNG : (enum nkv_mode)mode;
        bool same_step = mode == NKV_MODE_COUNT;

        record_expected(m, same_step, expected);
        for (uint32_t f = 0; f < sizeof faults / sizeof *faults; f++)
            for (uint32_t n = 1; n < 30; n += 1 + n / 2)
                n_total += run_fault(m, same_step, &faults[f], n, expected);
    }
    assert_true(n_total > 100); /* the faults did hit something */
}

/* Fails every allocation of a scenario in turn. */
static void test_allocation_fails(void **state)
{
    (void)state;
    for (uint32_t mode = 0; mode < NKV_MODE_COUNT; mode++) {
        struct nkv_seq_options so = rig_seq_options((enum nkv_mode)mode, 400, 160, NKV_SELECT_KV_HEAD);
        bool passed = false;

        so.keep_digests = true;
        for (uint64_t n = 1; !passed; n++) {
            struct rig_options options = {.dtype = NKV_F32};
            struct nkv_seq *seq = NULL, *fork = NULL;
            struct rig_seq s = {0};
            struct rig rig;
            uint64_t made;
            int status;

            assert_true(n < 500);
            nkv_mem_fail_at(n);
            status = rig_open(&rig, &options);
            if (status == 0)
                status = nkv_seq_open(rig.context, &so, &seq);
            if (status == 0) {
                rig_seq_init(&s, seq, 1);
                status = rig_prefill(&rig, &s, 100, 100);
            }
            if (status == 0)
                status = nkv_seq_fork(seq, 50, NULL, &fork);
            made = nkv_mem_fail_at(0);
            passed = made < n;
            assert_int_equal(status, passed ? 0 : NKV_ENOMEM);
            if (rig.context) {
                nkv_seq_close(fork);
                nkv_seq_close(seq);
                assert_true(rig_empty(&rig));
            } else {
                assert_null(seq);
            }
            rig_seq_free(&s);
            rig_close(&rig);
        }
    }
}

/* A device whose queue as such gives out at the n-th submit: a wrapper around a CPU device. */
struct broken {
    struct nkv_device device;
    struct nkv_device *inner;
    uint32_t n_left;
    bool in_reap;
};

static struct broken *broken_of(struct nkv_device *device)
{
    return (struct broken *)(void *)device;
}

static int broken_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    return broken_of(device)->inner->ops->caps(broken_of(device)->inner, caps_out);
}

static int broken_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    return broken_of(device)->inner->ops->map(broken_of(device)->inner, bytes, window_out);
}

static int broken_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    struct broken *b = broken_of(device);

    if (!b->in_reap && (b->n_left == 0 || --b->n_left == 0))
        return NKV_EIO;
    return b->inner->ops->submit(b->inner, cmds, n);
}

static int broken_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    struct broken *b = broken_of(device);

    if (b->in_reap && (b->n_left == 0 || --b->n_left == 0))
        return NKV_EIO;
    return b->inner->ops->reap(b->inner, cqes_out, max_n, min_n);
}

static int broken_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    return broken_of(device)->inner->ops->stat(broken_of(device)->inner, stat_out);
}

static void run_broken(enum nkv_mode mode, uint32_t n, bool in_reap, uint32_t which)
{
    static const struct nkv_device_ops ops = {.abi = NKV_DEVICE_ABI,
                                              .backend = "broken",
                                              .caps = broken_caps,
                                              .map = broken_map,
                                              .submit = broken_submit,
                                              .reap = broken_reap,
                                              .stat = broken_stat};
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F32), .capacity_bytes = 8u << 20, .n_threads = 1};
    struct nkv_device *inner[3], *devices[3];
    struct broken broken = {.device = {&ops}, .n_left = n, .in_reap = in_reap};
    struct nkv_context_options options = {
        .size = sizeof options, .shape = config.shape, .devices = devices, .n_devices = 2};
    struct nkv_seq_options so = rig_seq_options(mode, 400, 160, NKV_SELECT_LAYER);
    struct rig rig = {.shape = config.shape, .n_devices = 2};
    struct rig_seq s[2] = {{0}, {0}}, *batch[2] = {&s[0], &s[1]};
    uint32_t one[2] = {1, 1};

    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(nkv_device_open("cpu", &config, &inner[i]), 0);
        devices[i] = i == which ? &broken.device : inner[i];
    }
    broken.inner = inner[which];
    options.compute = devices[2];
    assert_int_equal(nkv_context_open(&options, &rig.context), 0);
    for (uint32_t i = 0; i < 2; i++) {
        struct nkv_seq *seq = NULL;
        int status = nkv_seq_open(rig.context, &so, &seq);

        if (status < 0)
            assert_non_null(strstr(nkv_last_error(), "stopped: "));
        rig_seq_init(&s[i], seq, 1 + i);
    }
    for (uint32_t step = 0; s[0].seq && s[1].seq && step < 10; step++)
        assert_int_equal(rig_step(&rig, batch, one, 2), 0);
    for (uint32_t i = 0; i < 2; i++)
        if (s[i].seq && nkv_seq_status(s[i].seq) < 0) {
            assert_int_equal(nkv_seq_status(s[i].seq), NKV_EIO);
            assert_non_null(strstr(nkv_seq_error(s[i].seq), "stopped: "));
            assert_true(which == 2 || nkv_seq_device(s[i].seq) == which); /* the other device's goes on */
        }
    for (uint32_t i = 0; i < 2; i++)
        rig_seq_free(&s[i]);
    nkv_context_close(rig.context);
    for (uint32_t i = 0; i < 3; i++)
        nkv_device_close(inner[i]);
}

static void test_queue_fails(void **state)
{
    (void)state;
    for (uint32_t mode = 0; mode < NKV_MODE_COUNT; mode++)
        for (uint32_t n = 1; n < 20; n += 1 + n / 4)
            for (uint32_t which = 0; which < 3; which++) {
                run_broken((enum nkv_mode)mode, n, false, which);
                run_broken((enum nkv_mode)mode, n, true, which);
            }
}

static void check_refused(struct rig *rig, const struct nkv_seq_options *so, int status, const char *const *parts)
{
    struct nkv_seq *seq = NULL;

    assert_int_equal(nkv_seq_open(rig->context, so, &seq), status);
    assert_null(seq);
    for (; *parts; parts++)
        if (!strstr(nkv_last_error(), *parts))
            fail_msg("'%s' does not contain '%s'", nkv_last_error(), *parts);
}

static void test_admission(void **state)
{
    /* a page of both layers takes 16 KiB */
    struct rig_options options = {
        .dtype = NKV_F32, .n_devices = 2, .capacity_bytes = 1u << 20, .compute_bytes = 256u << 10};
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_FULL, 40 * RIG_PAGE, 160, NKV_SELECT_LAYER);
    struct nkv_seq *seqs[2] = {NULL, NULL};
    struct nkv_kv_estimate estimate;
    uint64_t compute_bytes = 0;
    struct rig rig;

    (void)state;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_kv_estimate(&rig.shape, so.max_tokens, &estimate), 0);
    assert_int_equal(estimate.kv_bytes, 40 * (16 << 10));
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(nkv_seq_open(rig.context, &so, &seqs[i]), 0);
        assert_int_equal(nkv_seq_device(seqs[i]), i);
    }
    check_refused(&rig, &so, NKV_ENOSPC,
                  (const char *const[]){"1280 tokens need 0.6 MiB", "most that is free is 0.4 MiB",
                                        "0.2 MiB are missing", "it fits when other sequences are closed", NULL});
    so.max_tokens = 100 * RIG_PAGE;
    check_refused(&rig, &so, NKV_ENOSPC,
                  (const char *const[]){"can never fit", "the largest has 1.0 MiB", "0.6 MiB are missing", NULL});
    so.max_tokens = 20 * RIG_PAGE;
    so.mode = NKV_MODE_PNG;
    so.resident_tokens = 18 * RIG_PAGE;
    check_refused(&rig, &so, NKV_ENOSPC, (const char *const[]){"compute device", "it can never fit", NULL});
    assert_int_equal(nkv_compute_estimate(&rig.shape, &so, &compute_bytes), 0);
    assert_int_equal(compute_bytes, 18 * (16 << 10));
    so.mode = NKV_MODE_FULL;
    assert_int_equal(nkv_compute_estimate(&rig.shape, &so, &compute_bytes), 0);
    assert_int_equal(compute_bytes, 0);
    nkv_seq_close(seqs[1]);
    so.max_tokens = 40 * RIG_PAGE;
    assert_int_equal(nkv_seq_open(rig.context, &so, &seqs[1]), 0);
    nkv_seq_close(seqs[0]);
    nkv_seq_close(seqs[1]);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

/* The estimate of the compute side is what its device is charged. */
static void test_compute_estimate_is_exact(void **state)
{
    (void)state;
    for (uint32_t mode = 0; mode < NKV_MODE_COUNT; mode++) {
        struct rig_options options = {.dtype = NKV_Q8_0};
        struct nkv_seq_options so = rig_seq_options((enum nkv_mode)mode, 777, 160, NKV_SELECT_KV_HEAD);
        struct nkv_device_report report;
        struct nkv_kv_estimate estimate;
        struct nkv_seq *seq;
        uint64_t bytes = 0;
        struct rig rig;

        assert_int_equal(rig_open(&rig, &options), 0);
        assert_int_equal(nkv_compute_estimate(&rig.shape, &so, &bytes), 0);
        assert_int_equal(nkv_kv_estimate(&rig.shape, so.max_tokens, &estimate), 0);
        assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
        assert_int_equal(nkv_context_device(rig.context, 1, &report), 0);
        assert_int_equal(report.used_bytes, bytes);
        assert_int_equal(nkv_context_device(rig.context, 0, &report), 0);
        assert_int_equal(report.used_bytes, mode == NKV_MODE_FULL ? estimate.kv_bytes : estimate.total_bytes);
        assert_true(report.window_bytes > 0);
        assert_int_equal(nkv_context_device(rig.context, 2, &report), NKV_EINVAL);
        rig_close(&rig);
    }
}

static void test_context_options(void **state)
{
    struct nkv_device_config config = {
        .size = sizeof config, .shape = rig_shape(NKV_F32), .capacity_bytes = 1u << 20, .n_threads = 1};
    struct nkv_device *devices[2] = {NULL, NULL};
    struct nkv_context_options options = {.size = sizeof options, .shape = config.shape, .n_devices = 1};
    struct nkv_context *context = NULL;
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNG, 320, 160, NKV_SELECT_LAYER);
    struct nkv_seq *seq = NULL;

    (void)state;
    assert_int_equal(nkv_device_open("cpu", &config, &devices[0]), 0);
    assert_int_equal(nkv_context_open(&options, &context), NKV_EINVAL); /* no device array */
    options.devices = devices;
    options.compute = devices[0];
    assert_int_equal(nkv_context_open(&options, &context), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "also the compute device"));
    options.compute = NULL;
    options.n_devices = 2;
    assert_int_equal(nkv_context_open(&options, &context), NKV_EINVAL); /* the second is NULL */
    devices[1] = devices[0];
    assert_int_equal(nkv_context_open(&options, &context), NKV_EINVAL);
    options.n_devices = 0;
    assert_int_equal(nkv_context_open(&options, &context), NKV_EINVAL);
    options.n_devices = 1;
    options.max_batch = 1u << 20;
    assert_int_equal(nkv_context_open(&options, &context), NKV_EINVAL);
    options.max_batch = 0;
    options.shape.page_tokens = 0;
    assert_int_equal(nkv_context_open(&options, &context), NKV_EINVAL);
    options.shape.page_tokens = RIG_PAGE;
    options.size = 1;
    assert_int_equal(nkv_context_open(&options, &context), NKV_EINVAL);
    assert_null(context);
    options.size = sizeof options;
    assert_int_equal(nkv_context_open(&options, &context), 0);
    assert_int_equal(nkv_seq_open(context, &so, &seq), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "compute device"));
    nkv_seq_close(NULL);
    nkv_context_close(context);
    nkv_context_close(NULL);
    nkv_device_close(devices[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queue_fails),
        cmocka_unit_test(test_command_fails),
        cmocka_unit_test(test_allocation_fails),
        cmocka_unit_test(test_admission),
        cmocka_unit_test(test_compute_estimate_is_exact),
        cmocka_unit_test(test_context_options),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
