/* SPDX-License-Identifier: Apache-2.0 */
/* Placement: most free bytes, ties to the lower number, nothing where nothing fits. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "policy/place.h"

static void test_place(void **state)
{
    const uint64_t bytes[] = {10, 30, 30, 20, 0};

    (void)state;
    assert_int_equal(nkv_place(bytes, 5, 20), 1);
    assert_int_equal(nkv_place(bytes, 1, 10), 0);
    assert_int_equal(nkv_place(bytes, 5, 30), 1);
    assert_int_equal(nkv_place(bytes, 5, 31), NKV_ENOSPC);
    assert_int_equal(nkv_place(bytes + 4, 1, 0), 0);
    assert_int_equal(nkv_place(bytes, 0, 0), NKV_ENOSPC);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_place)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
