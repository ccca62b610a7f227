/* SPDX-License-Identifier: Apache-2.0 */
/* The backend of docs/device.md: taken out of the page, compiled without warnings, loaded and driven. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

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
    assert_in_range(extract(code), 40, 80);
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

static void the_example_compiles_and_runs(void **state)
{
    static const struct nkv_kv_shape shape = {
        .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .page_tokens = 8};
    struct nkv_cmd attend = {.op = NKV_OP_ATTEND, .seq = 1, .flags = NKV_ALL_PAGES, .out_offset = 4096, .n_tokens = 3};
    struct nkv_partial_layout at = nkv_partial_layout(&shape, 3);
    struct nkv_device *(*open_device)(const struct nkv_kv_shape *);
    struct rig rig = {.shape = shape, .window_bytes = 64 << 10};
    void *library, *symbol, *window;

    (void)state;
    if (system("cc --version >/dev/null 2>&1"))
        skip();
    library = build();
    symbol = dlsym(library, "tiny_open");
    assert_non_null(symbol);
    memcpy(&open_device, &symbol, sizeof symbol);
    rig.device = open_device(&shape);
    assert_non_null(rig.device);
    assert_int_equal(rig.device->ops->abi, NKV_DEVICE_ABI);
    assert_int_equal(rig.device->ops->map(rig.device, rig.window_bytes, &window), 0);
    rig.window = window;
    assert_int_equal(rig_seq_open(&rig, 1, 100, 0), 0);
    memset(window, 0xff, rig.window_bytes);
    assert_int_equal(rig_run(&rig, attend), 0);
    for (uint32_t row = 0; row < 12; row++) {
        assert_true(((float *)rig_at(&rig, 4096 + at.m))[row] == -INFINITY);
        assert_true(((float *)rig_at(&rig, 4096 + at.l))[row] == 0);
    }
    attend.out_offset = rig.window_bytes - 64;
    assert_int_equal(rig_run(&rig, attend), NKV_EINVAL);
    assert_int_equal(rig_run(&rig, (struct nkv_cmd){.op = NKV_OP_SELECT, .seq = 1}), NKV_ENOTSUP);
    assert_int_equal(rig_seq_close(&rig, 1), 0);
    rig_close(&rig);
    dlclose(library);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_example_compiles_and_runs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
