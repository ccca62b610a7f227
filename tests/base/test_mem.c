/* SPDX-License-Identifier: Apache-2.0 */
/* Memory is zeroed and aligned, absurd sizes are errors, and the fault hook fails exactly the allocation it names. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"

static void memory_is_zeroed_and_aligned(void **state)
{
    unsigned char *p = NULL;

    (void)state;
    assert_int_equal(nkv_alloc(1000, 3, &p), 0);
    assert_int_equal((uintptr_t)p % NKV_CACHE_LINE, 0);
    for (size_t i = 0; i < 3000; i++)
        assert_int_equal(p[i], 0);
    nkv_free(p);
    assert_int_equal(nkv_alloc(0, 8, &p), 0);
    nkv_free(p);
}

static void absurd_sizes_are_errors(void **state)
{
    void *p = &p;
    void *before = p;
    struct nkv_region region = {0};

    (void)state;
    assert_int_equal(nkv_alloc(SIZE_MAX, 2, &p), NKV_ENOMEM);
    assert_int_equal(nkv_alloc(SIZE_MAX - 1, 1, &p), NKV_ENOMEM);
    assert_int_equal(nkv_alloc((size_t)1 << 60, 1, &p), NKV_ENOMEM);
    assert_ptr_equal(p, before);
    assert_int_equal(nkv_region_open(0, &region), NKV_EINVAL);
    assert_int_equal(nkv_region_open(SIZE_MAX, &region), NKV_EINVAL);
    assert_null(region.base);
}

static void regions_open_and_close(void **state)
{
    struct nkv_region region;

    (void)state;
    assert_int_equal(nkv_region_open(5 << 20, &region), 0);
    assert_true(region.bytes >= 5 << 20);
    ((char *)region.base)[region.bytes - 1] = 1;
    nkv_region_close(&region);
    assert_null(region.base);
    nkv_region_close(&region);
}

static void shared_regions_are_sealed(void **state)
{
    struct nkv_region one, two;
    int fd = -1, loose = memfd_create("loose", MFD_CLOEXEC);

    (void)state;
    assert_int_equal(nkv_region_share("test", 5000, &one, &fd), 0);
    assert_int_equal(nkv_region_attach(fd, 5000, &two), 0);
    assert_true(one.base != two.base);
    ((char *)one.base)[4999] = 7;
    assert_int_equal(((char *)two.base)[4999], 7);
    assert_int_not_equal(ftruncate(fd, 4096), 0); /* else the other side would die of SIGBUS */
    assert_int_not_equal(ftruncate(fd, 1 << 20), 0);
    nkv_region_close(&two);
    assert_int_equal(nkv_region_attach(fd, 10000, &two), NKV_EFORMAT);
    close(fd);
    assert_true(loose >= 0 && ftruncate(loose, 8192) == 0);
    assert_int_equal(nkv_region_attach(loose, 4096, &two), NKV_EFORMAT);
    close(loose);
    assert_int_equal(nkv_region_attach(-1, 4096, &two), NKV_EFORMAT);
    assert_int_equal(nkv_region_share("test", 0, &two, &fd), NKV_EINVAL);
    nkv_region_close(&one);
}

static void the_nth_allocation_fails(void **state)
{
    void *p[3] = {0};
    struct nkv_region region;

    (void)state;
    nkv_mem_fail_at(2);
    assert_int_equal(nkv_alloc(1, 1, &p[0]), 0);
    assert_int_equal(nkv_alloc(1, 1, &p[1]), NKV_ENOMEM);
    assert_int_equal(nkv_alloc(1, 1, &p[2]), 0);
    assert_int_equal(nkv_mem_fail_at(1), 3);
    assert_int_equal(nkv_region_open(4096, &region), NKV_ENOMEM);
    assert_int_equal(nkv_mem_fail_at(0), 1);
    nkv_free(p[0]);
    nkv_free(p[2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zeroed_and_aligned), cmocka_unit_test(absurd_sizes_are_errors),
        cmocka_unit_test(regions_open_and_close),       cmocka_unit_test(shared_regions_are_sealed),
        cmocka_unit_test(the_nth_allocation_fails),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
