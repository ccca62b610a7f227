/* SPDX-License-Identifier: Apache-2.0 */
/* Specs, wrappers, the queue and the window: opening, growing, recording, failing on request, running out of memory. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "device/backend.h"
#include "device/rig.h"

static const struct nkv_kv_shape small = {
    .n_layers = 1, .n_heads = 2, .n_kv_heads = 1, .head_dim = 8, .page_tokens = 4, .dtype = NKV_F32};

static void specs_are_parsed(void **state)
{
    static const char *const bad[] = {
        "",
        "gpu",
        "cpu:threads",
        "cpu:threads=",
        "cpu:threads=0x2",
        "cpu:threads=5000",
        "cpu:a=1",
        "cpu:capacity=",
        "cpu:capacity=9Q",
        "cpu:capacity=K",
        "cpu:capacity=1",
        "cpu:node=4095",
        "record",
        "record:",
        "record::cpu",
        "record:/no/such/dir/x:cpu",
        "record:x:",
        "fault:cpu",
        "fault:n=0:cpu",
        "fault:op=none:cpu",
        "fault:op=attend,m=3:cpu",
        "cpu:capacity=99999999999999999999",
        "fault:n=1:fault:n=1:fault:n=1:fault:n=1:fault:n=1:fault:n=1:fault:n=1:fault:n=1:fault:n=1:cpu",
    };
    struct nkv_device_config config = rig_config(&small, 1);
    struct nkv_device_caps caps;
    struct nkv_device *device = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_true(nkv_device_open(bad[i], &config, &device) < 0);
        assert_null(device);
        assert_true(nkv_last_error()[0] != '\0');
    }
    assert_int_equal(nkv_device_open("cpu:threads=3,capacity=2M,node=0", &config, &device), 0);
    assert_int_equal(device->ops->caps(device, &caps), 0);
    assert_int_equal(caps.n_threads, 3);
    assert_true(caps.capacity_bytes == 2 << 20);
    assert_string_equal(caps.name, "cpu");
    nkv_device_close(device);
    config.name = "pnm1";
    assert_int_equal(nkv_device_open("fault:op=any,n=9:fault:n=2:cpu", &config, &device), 0);
    assert_int_equal(device->ops->caps(device, &caps), 0);
    assert_string_equal(caps.name, "pnm1");
    nkv_device_close(device);
    nkv_device_close(NULL);
}

static void bad_configurations_are_refused(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    struct nkv_device *device = NULL;

    (void)state;
    config.size--;
    assert_int_equal(nkv_device_open("cpu", &config, &device), NKV_EINVAL);
    config.size++;
    config.shape.head_dim = 7;
    assert_int_equal(nkv_device_open("cpu", &config, &device), NKV_EINVAL);
    config.shape.head_dim = 8;
    config.n_threads = 5000;
    assert_int_equal(nkv_device_open("cpu", &config, &device), NKV_EINVAL);
    assert_int_equal(nkv_device_open(NULL, &config, &device), NKV_EINVAL);
    assert_null(device);
    config.n_threads = 0;
    config.capacity_bytes = 0; /* most of the free memory, one thread per CPU */
    assert_int_equal(nkv_device_open("cpu", &config, &device), 0);
    nkv_device_close(device);
}

static void the_queue_holds_256_and_refuses_what_it_cannot(void **state)
{
    struct nkv_device_config config = rig_config(&small, 2);
    static struct nkv_cmd cmds[4096];
    static struct nkv_cqe cqes[4096];
    struct rig rig;
    void *window;
    int n, status;

    (void)state;
    rig_open(&rig, "cpu", &config);
    for (uint32_t i = 0; i < 4096; i++)
        cmds[i] = (struct nkv_cmd){.op = NKV_OP_COMPUTE, .user_data = i};
    for (uint32_t round = 0; round < 20; round++) {
        assert_int_equal(rig.device->ops->submit(rig.device, cmds, 256), 0);
        assert_int_equal(rig.device->ops->map(rig.device, 4096, &window), NKV_ESTATE);
        assert_int_equal(rig.device->ops->reap(rig.device, cqes, 256, 257), NKV_EINVAL);
        assert_int_equal(rig.device->ops->reap(rig.device, cqes, 100, 101), NKV_EINVAL);
        for (uint32_t got = 0; got < 256; got += (uint32_t)n) {
            n = rig.device->ops->reap(rig.device, cqes, 100, 256 - got < 7 ? 256 - got : 7);
            assert_true(n > 0);
            for (int i = 0; i < n; i++)
                assert_true(cqes[i].user_data == got + (uint32_t)i && cqes[i].res == 0 &&
                            cqes[i].end_ns >= cqes[i].start_ns);
        }
        assert_int_equal(rig.device->ops->reap(rig.device, cqes, 1, 0), 0);
    }
    assert_int_equal(rig.device->ops->submit(rig.device, cmds, 4096), NKV_ENOSPC);
    for (n = 0; (status = rig.device->ops->submit(rig.device, cmds, 100)) == 0; n += 100)
        ;
    assert_int_equal(status, NKV_ENOSPC);
    assert_true(n >= 256);
    assert_int_equal(rig.device->ops->reap(rig.device, cqes, 4096, (uint32_t)n), n);
    assert_true(rig_stat(&rig).n_commands == (uint64_t)n + 20 * 256);
    rig_close(&rig);
}

static void the_window_grows(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    struct nkv_cmd append = {.op = NKV_OP_APPEND, .seq = 1, .n_tokens = 1, .in_offset = 1 << 20};
    struct rig rig;
    void *window = NULL;

    (void)state;
    rig_open(&rig, "cpu", &config);
    assert_int_equal(rig_seq_open(&rig, 1, 10, 0), 0);
    assert_int_equal(rig.device->ops->map(rig.device, 1 << 20, &window), 0);
    assert_int_equal(rig_run(&rig, append), NKV_EINVAL);
    assert_int_equal(rig.device->ops->map(rig.device, (1 << 20) + 1, &window), 0);
    assert_int_equal((uintptr_t)window % 64, 0);
    assert_int_equal(rig_run(&rig, append), 0);
    assert_int_equal(rig.device->ops->map(rig.device, 0, &window), NKV_EINVAL);
    assert_int_equal(rig.device->ops->map(rig.device, UINT64_MAX, &window), NKV_EINVAL);
    nkv_mem_fail_at(2);
    assert_int_equal(rig.device->ops->map(rig.device, 2 * WINDOW_BYTES, &window), NKV_ENOMEM);
    nkv_mem_fail_at(0);
    append.pos = 1;
    assert_int_equal(rig_run(&rig, append), 0); /* the old window still serves */
    rig_close(&rig);
}

static void commands_without_a_window_fail(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    struct rig rig = {.shape = small};

    (void)state;
    assert_int_equal(nkv_device_open("cpu", &config, &rig.device), 0);
    assert_int_equal(rig_seq_open(&rig, 1, 10, 0), 0);
    assert_int_equal(rig_run(&rig, (struct nkv_cmd){.op = NKV_OP_APPEND, .seq = 1, .n_tokens = 1}), NKV_EINVAL);
    rig_close(&rig);
}

static void closing_waits_for_what_is_in_flight(void **state)
{
    struct nkv_device_config config = rig_config(&small, 2);
    struct nkv_cmd cmds[100];
    struct rig rig;

    (void)state;
    rig_open(&rig, "cpu", &config);
    for (uint32_t i = 0; i < 100; i++)
        cmds[i] = (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN, .seq = i, .n_tokens = 100};
    assert_int_equal(rig.device->ops->submit(rig.device, cmds, 100), 0);
    rig_close(&rig);
}

static void the_nth_command_fails(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    struct nkv_cmd cmds[6] = {
        {.op = NKV_OP_SEQ_OPEN, .seq = 1, .n_tokens = 8},
        {.op = NKV_OP_APPEND, .seq = 1, .n_tokens = 1},
        {.op = NKV_OP_COMPUTE},
        {.op = NKV_OP_APPEND, .seq = 1, .n_tokens = 1, .pos = 1},
        {.op = NKV_OP_APPEND, .seq = 1, .n_tokens = 1, .pos = 1},
        {.op = NKV_OP_SEQ_CLOSE, .seq = 1},
    };
    struct nkv_cqe cqes[6];
    struct rig rig;

    (void)state;
    rig_open(&rig, "fault:op=append,n=2:cpu", &config);
    for (uint32_t i = 0; i < 6; i++)
        cmds[i].user_data = 5; /* not unique, and returned all the same */
    assert_int_equal(rig.device->ops->submit(rig.device, cmds, 6), 0);
    assert_int_equal(rig.device->ops->reap(rig.device, cqes, 6, 6), 6);
    for (uint32_t i = 0; i < 6; i++) {
        assert_true(cqes[i].user_data == 5);
        assert_int_equal(cqes[i].res, i == 3 ? NKV_EDEVICE : 0); /* the fourth did not run: the fifth fits */
    }
    assert_non_null(strstr(nkv_last_error(), "injected"));
    assert_int_equal(rig_seq_open(&rig, 2, 8, 0), 0);
    rig_close(&rig);
    rig_open(&rig, "fault:op=append,n=1:cpu", &config);
    cmds[2] = (struct nkv_cmd){.op = NKV_OP_SEQ_CLOSE, .seq = 9}; /* fails by itself, after the injected fault */
    assert_int_equal(rig.device->ops->submit(rig.device, cmds, 3), 0);
    assert_int_equal(rig.device->ops->reap(rig.device, cqes, 3, 3), 3);
    assert_int_equal(cqes[1].res, NKV_EDEVICE);
    assert_int_equal(cqes[2].res, NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "no sequence 9")); /* the last one's message */
    rig_close(&rig);
    rig_open(&rig, "fault:n=1:cpu", &config);
    assert_int_equal(rig_seq_open(&rig, 2, 8, 0), NKV_EDEVICE);
    assert_int_equal(rig_seq_open(&rig, 2, 8, 0), 0);
    rig_close(&rig);
}

static char *read_file(const char *path)
{
    static char text[64 << 10];
    FILE *file = fopen(path, "r");
    size_t n;

    assert_non_null(file);
    n = fread(text, 1, sizeof text - 1, file);
    text[n] = '\0';
    fclose(file);
    return text;
}

static void a_trace_tells_commands_results_and_selections(void **state)
{
    static const char *const expected[] = {
        "{\"schema\":\"nearkv.trace/1\",\"backend\":\"cpu\",\"shape\":{\"n_layers\":1,",
        "\"n_heads\":2,\"n_kv_heads\":1,\"head_dim\":8,\"page_tokens\":4,\"dtype\":\"f32\",\"digest\":\"minmax\"},",
        "\"capacity_bytes\":",
        "{\"cmd\":0,\"op\":\"seq_open\"",
        "\"seq\":1,\"n_tokens\":40}\n",
        "{\"cmd\":1,\"op\":\"append\"",
        "{\"cmd\":2,\"op\":\"select\",\"order\":2,\"sink\":1,\"recent\":1,\"flags\":4,",
        "{\"cqe\":2,\"res\":3,",
        "\"chosen\":[[0,",
        "\"device\":[[0,",
        "\"scores\":[[null,",
        "{\"cqe\":3,\"res\":-7,",
    };
    struct nkv_device_config config = rig_config(&small, 1);
    char path[] = "/tmp/nkv-trace-XXXXXX", spec[64];
    uint64_t random = 1;
    struct model model;
    struct rig rig;
    const char *at;
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    close(fd);
    snprintf(spec, sizeof spec, "record:%s:cpu", path);
    rig_open(&rig, spec, &config);
    model_open(&model, &small, 40);
    assert_int_equal(rig_seq_open(&rig, 1, 40, 0), 0);
    rig_append(&rig, &model, 1, 0, 30, &random);
    rig_do(&rig, (struct nkv_cmd){.op = NKV_OP_SELECT,
                                  .seq = 1,
                                  .sink = 1,
                                  .recent = 1,
                                  .flags = NKV_SCORES,
                                  .out_offset = 4096,
                                  .n_tokens = 1,
                                  .n_pages = 3,
                                  .pos = 29});
    assert_int_equal(rig_seq_close(&rig, 3), NKV_ENOENT);
    assert_true(rig_stat(&rig).n_commands == 4);
    model_close(&model);
    rig_close(&rig);
    at = read_file(path);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        at = strstr(at, expected[i]);
        if (!at)
            fail_msg("the trace lacks, or has out of order: %s", expected[i]);
    }
    unlink(path);
}

static void a_full_disk_ends_a_recording(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    struct nkv_cmd cmd = {.op = NKV_OP_COMPUTE};
    struct nkv_device_stat stat;
    struct nkv_cqe cqe;
    struct rig rig;
    int status = 0;

    (void)state;
    if (access("/dev/full", W_OK))
        skip();
    rig_open(&rig, "record:/dev/full:cpu", &config);
    for (uint32_t i = 0; i < 5000 && status == 0; i++) {
        status = rig.device->ops->submit(rig.device, &cmd, 1);
        if (status == 0)
            assert_int_equal(rig.device->ops->reap(rig.device, &cqe, 1, 1), 1);
    }
    assert_int_equal(status, NKV_EIO);
    assert_non_null(strstr(nkv_last_error(), "the trace '/dev/full': No space left on device: free some space"));
    rig_close(&rig);
    rig_open(&rig, "record:/dev/full:cpu", &config); /* what is still buffered is written out when stat asks */
    assert_int_equal(rig_run(&rig, cmd), 0);
    assert_int_equal(rig.device->ops->stat(rig.device, &stat), NKV_EIO);
    assert_non_null(strstr(nkv_last_error(), "the trace '/dev/full': No space left on device: free some space"));
    rig_close(&rig);
}

/* A backend that answers with a user_data of its own. */
static int stray_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    (void)device;
    (void)cmds;
    (void)n;
    return 0;
}

static int stray_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    (void)device;
    *caps_out = (struct nkv_device_caps){.size = sizeof *caps_out, .name = "stray"};
    return 0;
}

static uint64_t stray_user_data;

static int stray_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    (void)device;
    (void)max_n;
    (void)min_n;
    *cqes_out = (struct nkv_cqe){.user_data = stray_user_data};
    return 1;
}

static void stray_close(struct nkv_device *device)
{
    (void)device;
}

static void stray_completions_are_errors(void **state)
{
    static const struct nkv_device_ops ops = {.abi = NKV_DEVICE_ABI,
                                              .backend = "stray",
                                              .caps = stray_caps,
                                              .submit = stray_submit,
                                              .reap = stray_reap,
                                              .close = stray_close};
    static const uint64_t strays[] = {0, 1022, 1024, UINT64_C(1) << 32 | 1023, UINT64_MAX};
    struct nkv_device_config config = rig_config(&small, 1);
    struct nkv_device stray = {&ops}, *device;
    struct nkv_cmd cmd = {.op = NKV_OP_COMPUTE};
    struct nkv_cqe cqe;

    (void)state;
    for (uint32_t i = 0; i < 2 * sizeof strays / sizeof *strays; i++) {
        int status = i % 2 ? nkv_fault_open("n=99", &config, &stray, &device)
                           : nkv_record_open("/dev/null", &config, &stray, &device);

        assert_int_equal(status, 0);
        assert_int_equal(device->ops->submit(device, &cmd, 1), 0); /* under the last tag, 1023 */
        stray_user_data = strays[i / 2];
        assert_int_equal(device->ops->reap(device, &cqe, 1, 1), NKV_EDEVICE);
        assert_non_null(strstr(nkv_last_error(), "device 'stray' completed user_data 0x"));
        stray_user_data = 1023;
        assert_int_equal(device->ops->reap(device, &cqe, 1, 1), 1);
        assert_int_equal(device->ops->reap(device, &cqe, 1, 1), NKV_EDEVICE); /* twice */
        nkv_device_close(device);
    }
}

static int scenario(void)
{
    struct nkv_device_config config = rig_config(&small, 2);
    struct nkv_cmd cmd = {.op = NKV_OP_SEQ_OPEN, .seq = 1, .n_tokens = 40};
    struct nkv_device *device;
    struct nkv_cqe cqe = {0};
    void *window;
    int status = nkv_device_open("fault:n=99:record:/dev/null:cpu", &config, &device);

    if (status < 0)
        return status;
    status = device->ops->map(device, 1 << 20, &window);
    if (status == 0) {
        assert_int_equal(device->ops->submit(device, &cmd, 1), 0);
        assert_int_equal(device->ops->reap(device, &cqe, 1, 1), 1);
        status = cqe.res;
    }
    nkv_device_close(device);
    return status;
}

static void every_failed_allocation_is_survived(void **state)
{
    uint64_t n = 0;
    int status;

    (void)state;
    do {
        nkv_mem_fail_at(++n);
        status = scenario();
        nkv_mem_fail_at(0);
        assert_true(status == 0 || status == NKV_ENOMEM);
    } while (status < 0);
    assert_true(n > 10);
}

/* After open, map and the first commands, nothing allocates. */
static void the_decode_path_allocates_nothing(void **state)
{
    struct nkv_device_config config = rig_config(&small, 2);
    uint64_t random = 1;
    struct model model;
    struct rig rig;

    (void)state;
    rig_open(&rig, "cpu", &config);
    model_open(&model, &small, 3000);
    assert_int_equal(rig_seq_open(&rig, 1, 3000, 0), 0);
    rig_append(&rig, &model, 1, 0, 1500, &random);
    nkv_mem_fail_at(0);
    for (uint32_t i = 0; i < 50; i++) {
        struct nkv_cmd select = {.op = NKV_OP_SELECT,
                                 .seq = 1,
                                 .sink = 1,
                                 .recent = 1,
                                 .out_offset = 1 << 20,
                                 .n_tokens = 1,
                                 .n_pages = 20,
                                 .pos = 1500 + i};
        struct nkv_cmd attend = {.op = NKV_OP_ATTEND,
                                 .seq = 1,
                                 .flags = NKV_CAUSAL,
                                 .out_offset = 2 << 20,
                                 .n_tokens = 1,
                                 .n_pages = 20,
                                 .pos = 1500 + i};

        attend.list_offset = select.out_offset + nkv_select_layout(1, 20, 0, 0).device;
        rig_append(&rig, &model, 1, 0, 1, &random);
        rig_do(&rig, select);
        rig_do(&rig, attend);
    }
    assert_true(nkv_mem_fail_at(0) == 0);
    model_close(&model);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(specs_are_parsed),
        cmocka_unit_test(bad_configurations_are_refused),
        cmocka_unit_test(the_queue_holds_256_and_refuses_what_it_cannot),
        cmocka_unit_test(the_window_grows),
        cmocka_unit_test(commands_without_a_window_fail),
        cmocka_unit_test(closing_waits_for_what_is_in_flight),
        cmocka_unit_test(the_nth_command_fails),
        cmocka_unit_test(a_trace_tells_commands_results_and_selections),
        cmocka_unit_test(a_full_disk_ends_a_recording),
        cmocka_unit_test(stray_completions_are_errors),
        cmocka_unit_test(every_failed_allocation_is_survived),
        cmocka_unit_test(the_decode_path_allocates_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
