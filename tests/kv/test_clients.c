/* SPDX-License-Identifier: Apache-2.0 */
/* The table of clients, and what an owner's sequences take when pages are shared. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "kv/store.h"

static const struct nkv_kv_shape shape = {
    .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8, .page_tokens = 4, .dtype = NKV_F16};

static void clients_are_found_by_id(void **state)
{
    uint32_t numbers[NKV_STORE_CLIENTS];
    struct nkv_store *store = NULL;

    (void)state;
    assert_int_equal(nkv_store_open(&shape, 1 << 20, &store), 0);
    assert_int_equal(nkv_store_client_numbers(store, numbers), 0);
    assert_int_equal(nkv_store_client_find(store, 0), 0); /* no entry is one of id 0 */
    assert_int_equal(nkv_store_client_add(store, 7, 0x1234567890abcdefu), 0);
    assert_int_equal(nkv_store_client_add(store, 9, 1), 0);
    assert_int_equal(nkv_store_client_find(store, 0x1234567890abcdefu), 7);
    assert_int_equal(nkv_store_client_find(store, 0x1234567890abcdeeu), 0);
    assert_int_equal(nkv_store_client_add(store, 7, 2), NKV_EINVAL);
    assert_int_equal(nkv_store_client_add(store, 0, 2), NKV_EINVAL);
    assert_int_equal(nkv_store_client_add(store, NKV_OWNER_NONE, 2), NKV_EINVAL);
    nkv_store_client_remove(store, 7);
    nkv_store_client_remove(store, 7);
    nkv_store_client_remove(store, 0);
    assert_int_equal(nkv_store_client_find(store, 0x1234567890abcdefu), 0);
    assert_int_equal(nkv_store_client_numbers(store, numbers), 1);
    assert_int_equal(numbers[0], 9);
    nkv_store_close(store);
}

static void the_table_has_an_end(void **state)
{
    uint32_t numbers[NKV_STORE_CLIENTS];
    struct nkv_store *store = NULL;

    (void)state;
    assert_int_equal(nkv_store_open(&shape, 1 << 20, &store), 0);
    for (uint32_t i = 0; i < NKV_STORE_CLIENTS; i++)
        assert_int_equal(nkv_store_client_add(store, i + 1, 100 + i), 0);
    assert_int_equal(nkv_store_client_add(store, 1000, 1000), NKV_ENOSPC);
    assert_int_equal(nkv_store_client_numbers(store, numbers), NKV_STORE_CLIENTS);
    nkv_store_client_remove(store, 33);
    assert_int_equal(nkv_store_client_add(store, 1000, 1000), 0);
    for (uint32_t i = 0; i < NKV_STORE_CLIENTS; i++)
        assert_int_equal(nkv_store_client_find(store, 100 + i), i + 1 == 33 ? 0 : i + 1);
    nkv_store_close(store);
}

static uint64_t usage(const struct nkv_store *store, uint32_t owner, uint32_t n_want)
{
    uint64_t bytes = 0;
    uint32_t n = 0;

    assert_int_equal(nkv_store_owner_usage(store, owner, &bytes, &n), 0);
    assert_int_equal(n, n_want);
    return bytes;
}

/* What is told is what closing frees, however pages are shared. */
static void usage_is_what_closing_frees(void **state)
{
    struct nkv_store *store = NULL;
    struct nkv_device_stat before, after;
    uint64_t bytes[3];

    (void)state;
    assert_int_equal(nkv_store_open(&shape, 1 << 20, &store), 0);
    assert_int_equal(nkv_store_seq_open(store, nkv_seq_key(1, 5), 40, 0), 0);
    assert_int_equal(nkv_store_seq_open(store, nkv_seq_key(2, 5), 40, NKV_NO_DIGEST), 0);
    for (uint32_t owner = 1; owner <= 2; owner++)
        for (uint32_t layer = 0; layer < shape.n_layers; layer++)
            nkv_store_extend(store, nkv_store_find(store, nkv_seq_key(owner, 5)), layer, 30, true);
    assert_int_equal(nkv_store_seq_fork(store, nkv_seq_key(1, 6), nkv_seq_key(1, 5), 29, 40), 0);
    assert_int_equal(nkv_store_seq_fork(store, nkv_seq_key(1, 7), nkv_seq_key(2, 5), 29, 40), 0);
    assert_true(usage(store, 3, 0) == 0);
    bytes[1] = usage(store, 1, 3);
    bytes[2] = usage(store, 2, 1);
    nkv_store_stat(store, &before);
    assert_true(bytes[1] + bytes[2] < before.used_bytes); /* what both share is freed by neither */
    assert_int_equal(nkv_store_close_owner(store, 1), 3);
    nkv_store_stat(store, &after);
    assert_true(before.used_bytes - after.used_bytes == bytes[1]);
    assert_true(usage(store, 2, 1) == after.used_bytes && after.used_bytes > bytes[2]);
    nkv_mem_fail_at(1);
    assert_int_equal(nkv_store_owner_usage(store, 2, &bytes[2], &(uint32_t){0}), NKV_ENOMEM);
    assert_true(nkv_mem_fail_at(0) > 0);
    nkv_store_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clients_are_found_by_id),
        cmocka_unit_test(the_table_has_an_end),
        cmocka_unit_test(usage_is_what_closing_frees),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
