/* SPDX-License-Identifier: Apache-2.0 */
/* The backend of docs/device.md: taken out of the page, compiled without warnings, loaded and driven, by hand and by a
 * context. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#include <nearkv/nearkv.h>

#include "device/rig.h"

#define ROOT NKV_TEST_DIR "/.."

static char dir[] = "/tmp/nkv-doc-XXXXXX";

/* Writes the page's one C block to path. returns: its lines. */
static uint32_t extract(const char *path)
{
    FILE *page = fopen(ROOT "/docs/device.md", "r"), *code = fopen(path, "w");
    bool inside = false;
    uint32_t n = 0;
    char line[512];

    assert_non_null(page);
    assert_non_null(code);
    while (fgets(line, sizeof line, page)) {
        if (strncmp(line, "```", 3) == 0) {
            inside = !inside && strcmp(line, "```c\n") == 0;
        } else if (inside) {
            fputs(line, code);
            n++;
        }
    }
    fclose(page);
    fclose(code);
    return n;
}

static void *build(void)
{
    char code[64], object[64], command[1024];
    void *library;

    assert_non_null(mkdtemp(dir));
    snprintf(code, sizeof code, "%s/tiny.c", dir);
    snprintf(object, sizeof object, "%s/tiny.so", dir);
    assert_in_range(extract(code), 30, 60); /* what the page promises */
    snprintf(command, sizeof command,
             "cc -std=c17 -O1 -Wall -Wextra -Wshadow -Wconversion -Werror -fPIC -shared -I%s/include %s -o %s", ROOT,
             code, object);
    assert_int_equal(system(command), 0);
    library = dlopen(object, RTLD_NOW);
    if (!library)
        fail_msg("%s", dlerror());
    unlink(code);
    unlink(object);
    rmdir(dir);
    return library;
}

static const struct nkv_kv_shape shape = {
    .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .page_tokens = 8};

static void drive_by_hand(struct nkv_device *device)
{
    struct nkv_cmd attend = {.op = NKV_OP_ATTEND, .seq = 1, .flags = NKV_ALL_PAGES, .out_offset = 4096, .n_tokens = 3};
    struct nkv_partial_layout at = nkv_partial_layout(&shape, 3);
    struct rig rig = {.shape = shape, .window_bytes = 64 << 20, .device = device};
    void *window;

    assert_int_equal(device->ops->abi, NKV_DEVICE_ABI);
    assert_int_equal(device->ops->map(device, rig.window_bytes, &window), 0);
    rig.window = window;
    assert_int_equal(rig_seq_open(&rig, 1, 100, 0), 0);
    memset(window, 0xff, 64 << 10);
    assert_int_equal(rig_run(&rig, attend), 0);
    for (uint32_t row = 0; row < 12; row++) {
        assert_true(((float *)rig_at(&rig, 4096 + at.m))[row] == -INFINITY);
        assert_true(((float *)rig_at(&rig, 4096 + at.l))[row] == 0);
    }
    attend.out_offset = rig.window_bytes - 64;
    assert_int_equal(rig_run(&rig, attend), NKV_EINVAL);
    attend.out_offset = 4096;
    attend.n_tokens = UINT32_MAX;
    assert_int_equal(rig_run(&rig, attend), NKV_EINVAL);
    assert_int_equal(rig_run(&rig, (struct nkv_cmd){.op = NKV_OP_SELECT, .seq = 1}), NKV_ENOTSUP);
    assert_int_equal(rig_seq_close(&rig, 1), 0);
}

/* A sequence that attends to everything sees nothing; one that selects ends, with the device's error. */
static void drive_by_context(struct nkv_device *device, enum nkv_mode mode)
{
    float q[4 * 16] = {1}, kv[2 * 16] = {1}, out[4 * 16];
    struct nkv_context_options options = {.size = sizeof options, .shape = shape, .devices = &device, .n_devices = 1};
    struct nkv_seq_options seq_options;
    struct nkv_attend_item item = {.n_tokens = 1, .q = q, .k = kv, .v = kv, .out = out};
    struct nkv_context *context = NULL;
    struct nkv_device_report report;
    struct nkv_ticket *ticket;

    nkv_seq_options_init(&seq_options);
    seq_options.mode = mode;
    seq_options.max_tokens = 1000000;
    if (nkv_context_open(&options, &context) < 0 || nkv_seq_open(context, &seq_options, &item.seq) < 0)
        fail_msg("%s", nkv_last_error());
    memset(out, 0xff, sizeof out);
    assert_int_equal(nkv_attend_begin(context, 0, &item, 1, &ticket), 0);
    assert_int_equal(nkv_attend_end(ticket), 0);
    for (uint32_t i = 0; i < sizeof out / sizeof *out; i++)
        assert_true(out[i] == 0);
    assert_int_equal(nkv_seq_status(item.seq), mode == NKV_MODE_FULL ? 0 : NKV_ENOTSUP);
    assert_int_equal(nkv_context_device(context, 0, &report), 0);
    assert_string_equal(report.name, "tiny");
    nkv_context_close(context);
}

static void the_example_compiles_and_runs(void **state)
{
    struct nkv_device *(*open_device)(const struct nkv_kv_shape *);
    struct nkv_device *device;
    void *library, *symbol;

    (void)state;
    if (system("cc --version >/dev/null 2>&1"))
        skip();
    library = build();
    symbol = dlsym(library, "tiny_open");
    assert_non_null(symbol);
    memcpy(&open_device, &symbol, sizeof symbol);
    device = open_device(&shape);
    drive_by_hand(device);
    drive_by_context(device, NKV_MODE_FULL);
    drive_by_context(device, NKV_MODE_PNM);
    nkv_device_close(device);
    dlclose(library);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_example_compiles_and_runs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
