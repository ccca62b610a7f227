/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The built-in shapes against what is published of each (size of the KV cache, parameters); a file round trip; files
 * with one defect; every allocation failing.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "sim/model.h"

static int read_text(const char *text, size_t bytes, struct nkv_sim_model *model_out)
{
    char *copy = malloc(bytes ? bytes : 1); /* exactly its size, for AddressSanitizer */
    int status;

    assert_non_null(copy);
    memcpy(copy, text, bytes);
    status = sim_model_read(copy, bytes, "m.yaml", model_out);
    free(copy);
    return status;
}

/* ---- Built-in shapes */

struct published {
    const char *name;
    uint32_t kv_bytes;   /* per token, 2-byte elements */
    uint64_t parameters; /* all but the embedding lookup and the norms */
    bool tied;
};

static void test_builtins(void **state)
{
    static const struct published published[] = {
        {"llama-3.1-8b", 131072, 7504658432, false},     {"llama-3.1-70b", 327680, 69501714432, false},
        {"llama-3.1-405b", 516096, 403747897344, false}, {"llama-3.2-1b", 32768, 1235746816, true},
        {"llama-3.2-3b", 114688, 3212574720, true},      {"qwen2.5-7b-1m", 57344, 7070285824, false},
        {"llama-2-7b", 524288, 6607077376, false},
    };
    uint32_t n = sizeof published / sizeof *published;

    (void)state;
    for (uint32_t i = 0; i < n; i++) {
        struct nkv_sim_model model = {0};

        assert_string_equal(nkv_sim_model_builtin(i), published[i].name);
        assert_int_equal(nkv_sim_model_open(published[i].name, &model), 0);
        assert_string_equal(model.name, published[i].name);
        assert_int_equal(sim_model_check(&model), 0);
        assert_int_equal(4 * model.n_layers * model.n_kv_heads * model.head_dim, published[i].kv_bytes);
        assert_int_equal(nkv_sim_model_parameters(&model), published[i].parameters);
        assert_int_equal(model.tied, published[i].tied);
    }
    assert_null(nkv_sim_model_builtin(n));
}

/* ---- Files */

static const char good[] = "# a comment\n"
                           "name: small\n"
                           "n_layers: 2\n"
                           "hidden: 64\n"
                           "n_heads: 4\n"
                           "n_kv_heads: 2\n"
                           "head_dim: 16\n"
                           "ffn: 128\n"
                           "vocab: 100\n"
                           "tied: true\n";

static void check_small(const struct nkv_sim_model *model)
{
    assert_string_equal(model->name, "small");
    assert_int_equal(model->n_layers, 2);
    assert_int_equal(model->hidden, 64);
    assert_int_equal(model->n_heads, 4);
    assert_int_equal(model->n_kv_heads, 2);
    assert_int_equal(model->head_dim, 16);
    assert_int_equal(model->ffn, 128);
    assert_int_equal(model->vocab, 100);
    assert_int_equal(nkv_sim_model_parameters(model), 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128) + 64 * 100);
}

static void test_file(void **state)
{
    struct nkv_sim_model model = {0}, untouched = {.hidden = 7};
    char path[] = "/tmp/nkv-model-XXXXXX";
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, good, sizeof good - 1), sizeof good - 1);
    close(fd);
    assert_int_equal(nkv_sim_model_open(path, &model), 0);
    check_small(&model);
    assert_true(model.tied);
    unlink(path);
    assert_int_equal(nkv_sim_model_open(path, &untouched), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "the built-in models are llama-3.1-8b, llama-3.1-70b"));
    assert_int_equal(nkv_sim_model_open("/tmp", &untouched), NKV_EIO);
    assert_int_equal(nkv_sim_model_open(NULL, &untouched), NKV_EINVAL);
    assert_int_equal(untouched.hidden, 7);
}

static void test_tied(void **state)
{
    struct nkv_sim_model model = {.tied = true};

    (void)state;
    assert_int_equal(read_text(good, strlen(good) - strlen("tied: true\n"), &model), 0);
    check_small(&model);
    assert_false(model.tied);
}

struct defect {
    const char *find, *with;
    uint32_t line; /* 0: none */
    const char *message;
};

static const struct defect defects[] = {
    {"n_layers: 2", "n_layers: 0", 3, "n_layers is 0: it must be from 1 to 1024"},
    {"n_layers: 2", "n_layers: 1025", 3, "n_layers is 1025: it must be from 1 to 1024"},
    {"n_layers: 2", "n_layers: -2", 3, "n_layers is '-2': it must be a whole number from 1 to 1024"},
    {"n_layers: 2", "n_layers: 2.5", 3, "n_layers is '2.5': it must be a whole number from 1 to 1024"},
    {"n_layers: 2", "n_layers: 0x2", 3, "n_layers is '0x2': it must be a whole number from 1 to 1024"},
    {"n_layers: 2", "n_layers: two", 3, "n_layers is 'two': it must be a whole number from 1 to 1024"},
    {"n_layers: 2", "n_layers:", 3, "n_layers is '': it must be from 1 to 1024"},
    {"n_layers: 2", "n_layers: 4294967298", 3, "n_layers is '4294967298': it must be from 1 to 1024"},
    {"n_layers: 2", "n_layers: 99999999999999999999999", 3,
     "n_layers is '99999999999999999999999': it must be from 1 to 1024"},
    {"n_layers: 2\n", "", 0, "n_layers is missing: it must be from 1 to 1024"},
    {"hidden: 64", "hidden: 4", 4, "hidden is 4: it must be from 8 to 1048576"},
    {"n_heads: 4", "n_heads: 5", 6, "n_kv_heads is 2: n_heads, which is 5, must be a multiple of it"},
    {"n_heads: 4", "n_heads: 1", 6, "n_kv_heads is 2: n_heads, which is 1, must be a multiple of it"},
    {"n_kv_heads: 2", "n_kv_heads: 0", 6, "n_kv_heads is 0: it must be from 1 to 1024"},
    {"head_dim: 16", "head_dim: 20", 7, "head_dim is 20: it must be a multiple of 8"},
    {"head_dim: 16", "head_dim: 520", 7, "head_dim is 520: it must be from 8 to 512"},
    {"ffn: 128", "ffn: 0", 8, "ffn is 0: it must be from 1 to 4194304"},
    {"vocab: 100", "vocab: 16777217", 9, "vocab is 16777217: it must be from 1 to 16777216"},
    {"tied: true", "tied: maybe", 10, "tied is 'maybe': it must be true or false"},
    {"name: small\n", "", 0, "name is missing: a model has one"},
    {"small", "0123456789012345678901234567890123456789012345678901234567890123", 2,
     "name is 64 bytes long: at most 63 are allowed"},
    {"ffn: 128", "fnn: 128", 8, "unknown key 'fnn': the keys here are name, tied, n_layers, hidden, n_heads"},
    {"ffn: 128", "vocab: 128", 9, "vocab is given twice"},
    {"ffn: 128", "ffn: {value: 128}", 8, "ffn: Expecting STRING, got event: MAPPING_START"},
    {"ffn: 128", "ffn: [128]", 8, "lists are not allowed"},
    {"ffn: 128", "ffn: &a 128", 8, "anchors are not allowed"},
    {"ffn: 128", "ffn: *a", 8, "aliases are not allowed"},
    {"ffn: 128", "ffn: \"128", 11, "found unexpected end of stream"},
};

static void test_defects(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof defects / sizeof *defects; i++) {
        const struct defect *d = &defects[i];
        struct nkv_sim_model model = {.hidden = 7};
        const char *at = strstr(good, d->find);
        char text[512], start[256], line[16] = "";
        int status;

        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, d->with, at + strlen(d->find));
        status = read_text(text, strlen(text), &model);
        if (d->line)
            snprintf(line, sizeof line, "%u:", d->line);
        snprintf(start, sizeof start, "m.yaml:%s %s", line, d->message);
        if (strncmp(nkv_last_error(), start, strlen(start)) != 0)
            fail_msg("expected '%s', got '%s'", start, nkv_last_error());
        assert_int_equal(status, NKV_EFORMAT);
        assert_int_equal(model.hidden, 7);
    }
}

static void test_allocations(void **state)
{
    uint64_t n = 0;
    int status;

    (void)state;
    do {
        struct nkv_sim_model model = {0};

        nkv_mem_fail_at(++n);
        status = sim_model_read(good, strlen(good), "m.yaml", &model);
        nkv_mem_fail_at(0);
        assert_true(status == 0 || status == NKV_ENOMEM);
        assert_int_equal(model.hidden, status == 0 ? 64 : 0);
    } while (status < 0);
    assert_true(n > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_builtins), cmocka_unit_test(test_file),        cmocka_unit_test(test_tied),
        cmocka_unit_test(test_defects),  cmocka_unit_test(test_allocations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
