/* SPDX-License-Identifier: Apache-2.0 */
/* Which table is in use: NEARKV_KERNELS, the names, the errors; and the read bandwidth, with every allocation failing.
 */
#define _DEFAULT_SOURCE /* setenv */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <nearkv/nearkv.h>

#include "base/mem.h"
#include "kernels/kernels.h"

static void the_environment_chooses_first(void **state)
{
    (void)state;
    assert_string_equal(nkv_kernels_name(), "ref");
    assert_ptr_equal(nkv_kernels(), nkv_kernels_find("ref"));
}

static void names_choose_and_unknown_ones_are_errors(void **state)
{
    static const char *const names[] = {"ref", "avx2", "avx512"};
    const struct nkv_kernels *before;
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        bool exists = nkv_kernels_find(names[i]) != NULL;
        assert_int_equal(nkv_kernels_choose(names[i]), exists ? 0 : NKV_ENOTSUP);
        if (exists)
            assert_string_equal(nkv_kernels_name(), names[i]);
    }
    before = nkv_kernels();
    assert_int_equal(nkv_kernels_use("sse9"), NKV_ENOTSUP);
    assert_non_null(strstr(nkv_last_error(), "sse9"));
    assert_int_equal(nkv_kernels_use(NULL), NKV_EINVAL);
    assert_ptr_equal(nkv_kernels(), before);
    assert_int_equal(nkv_kernels_use("auto"), 0);
}

static void no_entry_is_missing(void **state)
{
    static const char *const names[] = {"ref", "avx2", "avx512"};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        const struct nkv_kernels *k = nkv_kernels_find(names[i]);
        for (enum nkv_dtype t = 0; k != NULL && t < NKV_DTYPE_COUNT; t++) {
            assert_true(k->attend[t] && k->store[t] && k->load[t] && k->matvec[t] && k->digest[t]);
            assert_int_equal(k->dot[t] != NULL, t != NKV_Q8_0);
            assert_int_equal(k->score[t] != NULL, t != NKV_Q8_0);
        }
        assert_true(k == NULL || (k->merge && k->finish && k->read));
    }
}

static void read_sums_every_word(void **state)
{
    enum { WORDS = 4096 };
    static uint64_t words[WORDS];
    static const char *const names[] = {"ref", "avx2", "avx512"};
    uint64_t sum = 0;
    (void)state;
    for (uint64_t i = 0; i < WORDS; i++)
        sum += words[i] = i * i * UINT64_C(0x9e3779b97f4a7c15);
    for (size_t i = 0; i < 3; i++)
        if (nkv_kernels_find(names[i]) != NULL)
            assert_int_equal(nkv_kernels_find(names[i])->read(sizeof words, words), sum);
}

static void bandwidth_is_measured_or_refused(void **state)
{
    double rate = -1;
    (void)state;
    assert_int_equal(nkv_read_bandwidth(0, 1, 1, &rate), NKV_EINVAL);
    assert_int_equal(nkv_read_bandwidth(1 << 20, 0, 1, &rate), NKV_EINVAL);
    assert_int_equal(nkv_read_bandwidth(1 << 20, 1, 0, &rate), NKV_EINVAL);
    assert_int_equal(nkv_read_bandwidth(1 << 20, 1000, 1, &rate), NKV_EINVAL);
    for (uint64_t n = 1;; n++) {
        nkv_mem_fail_at(n);
        int status = nkv_read_bandwidth(8 << 20, 2, 2, &rate);
        nkv_mem_fail_at(0);
        if (status == 0)
            break;
        assert_int_equal(status, NKV_ENOMEM);
        assert_true(rate < 0 && n < 100);
    }
    assert_true(rate > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_environment_chooses_first),
        cmocka_unit_test(names_choose_and_unknown_ones_are_errors),
        cmocka_unit_test(no_entry_is_missing),
        cmocka_unit_test(read_sums_every_word),
        cmocka_unit_test(bandwidth_is_measured_or_refused),
    };
    setenv("NEARKV_KERNELS", "ref", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
