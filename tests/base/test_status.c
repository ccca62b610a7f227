/* SPDX-License-Identifier: Apache-2.0 */
/* Names parse back to their values; a bad name or shape is refused with a message that names it and the remedy. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/status.h"

static void names_round_trip(void **state)
{
    (void)state;
    for (int i = 0; i < NKV_DTYPE_COUNT; i++) {
        enum nkv_dtype dtype;
        assert_int_equal(nkv_dtype_parse(nkv_dtype_name((enum nkv_dtype)i), &dtype), 0);
        assert_int_equal((int)dtype, i);
    }
    for (int i = 0; i < NKV_MODE_COUNT; i++) {
        enum nkv_mode mode;
        assert_int_equal(nkv_mode_parse(nkv_mode_name((enum nkv_mode)i), &mode), 0);
        assert_int_equal((int)mode, i);
    }
    enum nkv_digest digest;
    assert_int_equal(nkv_digest_parse("cuboid-mean", &digest), 0);
    assert_int_equal(digest, NKV_DIGEST_CUBOID_MEAN);
    enum nkv_granularity granularity;
    assert_int_equal(nkv_granularity_parse("kv-head", &granularity), 0);
    assert_int_equal(granularity, NKV_SELECT_KV_HEAD);
}

static void bad_name_is_named(void **state)
{
    enum nkv_mode mode = NKV_MODE_PNG;

    (void)state;
    assert_int_equal(nkv_mode_parse("fast", &mode), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "'fast'"));
    assert_non_null(strstr(nkv_last_error(), "full, recall, pnm, png"));
    assert_int_equal(mode, NKV_MODE_PNG);
    assert_int_equal(nkv_mode_parse(NULL, &mode), NKV_EINVAL);
}

static void every_status_has_a_name(void **state)
{
    (void)state;
    for (int status = NKV_OK; status >= NKV_ECANCELED; status--)
        assert_memory_equal(nkv_status_name(status), "NKV_", 4);
    assert_string_equal(nkv_status_name(NKV_ECANCELED), "NKV_ECANCELED");
    assert_string_equal(nkv_status_name(-1000), "unknown status");
}

static const struct nkv_kv_shape good = {
    .n_layers = 2, .n_heads = 8, .n_kv_heads = 2, .head_dim = 64, .page_tokens = 32};

static void check_bad(struct nkv_kv_shape shape, const char *word)
{
    assert_int_equal(nkv_kv_shape_check(&shape), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), word));
}

static void shape_fields_are_checked(void **state)
{
    struct nkv_kv_shape s;

    (void)state;
    assert_int_equal(nkv_kv_shape_check(&good), 0);
    s = good, s.page_tokens = 0, check_bad(s, "page size");
    s = good, s.n_layers = NKV_MAX_LAYERS + 1, check_bad(s, "layers");
    s = good, s.n_kv_heads = 3, check_bad(s, "multiple");
    s = good, s.n_kv_heads = 16, check_bad(s, "KV heads");
    s = good, s.head_dim = 12, check_bad(s, "multiple of 8");
    s = good, s.dtype = (enum nkv_dtype)9, check_bad(s, "element type");
    s = good, s.scale = -1.0f, check_bad(s, "scale");
    s = good, s.scale = __builtin_nanf(""), check_bad(s, "scale");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_round_trip),
        cmocka_unit_test(bad_name_is_named),
        cmocka_unit_test(every_status_has_a_name),
        cmocka_unit_test(shape_fields_are_checked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
