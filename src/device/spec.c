/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device/spec.c: "key=value,..." in device specs, and the names of ops. Values are taken as they stand: no quoting, so
 * a value holds neither ',' nor ':'.
 */
#include <string.h>

#include "base/status.h"
#include "device/backend.h"

static const char *const op_names[NKV_OP_COUNT] = {
    "any",    "seq_open", "seq_close", "seq_fork", "seq_truncate", "append",   "select",
    "attend", "read",     "write",     "compute",  "seq_publish",  "seq_list",
};

const char *nkv_op_name(uint32_t op)
{
    return op > 0 && op < NKV_OP_COUNT ? op_names[op] : "?";
}

uint32_t nkv_op_parse(const char *name, size_t length)
{
    for (uint32_t op = 1; op < NKV_OP_COUNT; op++)
        if (strlen(op_names[op]) == length && memcmp(op_names[op], name, length) == 0)
            return op;
    return 0;
}

int nkv_option_next(const char **args, struct nkv_option *option_out)
{
    struct nkv_option option = {.key = *args};
    const char *end = option.key + strcspn(option.key, ",");

    if (*option.key == '\0')
        return 0;
    option.key_length = strcspn(option.key, "=,");
    if (option.key[option.key_length] != '=' || option.key_length == 0)
        FAIL(NKV_EINVAL, "device option '%.*s': write it as key=value", (int)(end - option.key), option.key);
    option.value = option.key + option.key_length + 1;
    option.value_length = (size_t)(end - option.value);
    *args = *end ? end + 1 : end;
    *option_out = option;
    return 1;
}

bool nkv_option_is(const struct nkv_option *option, const char *key)
{
    return strlen(key) == option->key_length && memcmp(key, option->key, option->key_length) == 0;
}

static int shift_of(char suffix)
{
    static const char suffixes[] = "KMGT";
    const char *at = suffix ? strchr(suffixes, suffix) : NULL;

    return at ? 10 * (int)(at - suffixes + 1) : -1;
}

int nkv_option_number(const struct nkv_option *option, bool suffix, uint64_t max, uint64_t *number_out)
{
    size_t n = option->value_length, i = 0;
    uint64_t number = 0, unit = 1;
    bool good = n > 0;

    if (suffix && n > 1 && shift_of(option->value[n - 1]) > 0)
        unit <<= shift_of(option->value[--n]);
    for (; good && i < n; i++)
        good = option->value[i] >= '0' && option->value[i] <= '9' &&
               !__builtin_mul_overflow(number, (uint64_t)10, &number) &&
               !__builtin_add_overflow(number, (uint64_t)(option->value[i] - '0'), &number);
    if (!good || __builtin_mul_overflow(number, unit, &number) || number > max)
        FAIL(NKV_EINVAL, "device option %.*s: '%.*s' is not a number up to %llu%s", (int)option->key_length,
             option->key, (int)option->value_length, option->value, (unsigned long long)max,
             suffix ? " (suffix K, M, G or T)" : "");
    *number_out = number;
    return 0;
}

int nkv_option_unknown(const struct nkv_option *option, const char *known)
{
    FAIL(NKV_EINVAL, "unknown device option '%.*s': use %s", (int)option->key_length, option->key, known);
}
