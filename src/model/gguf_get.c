/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lookups in a parsed GGUF file. Every place was checked when the file was opened (gguf.c), so a failure here is about
 * what the caller expected of a key: its presence, type or range. Integers are accepted in any width, since writers
 * differ (u32 against u64 for the same key); numbers never convert between integer and floating point.
 */
#include <inttypes.h>

#include "base/status.h"
#include "model/gguf_file.h"

uint32_t nkv_gguf_scalar_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {
        [NKV_GGUF_U8] = 1,  [NKV_GGUF_I8] = 1,    [NKV_GGUF_U16] = 2,   [NKV_GGUF_I16] = 2,    [NKV_GGUF_U32] = 4,
        [NKV_GGUF_I32] = 4, [NKV_GGUF_FLOAT] = 4, [NKV_GGUF_BOOL] = 1,  [NKV_GGUF_STRING] = 0, [NKV_GGUF_ARRAY] = 0,
        [NKV_GGUF_U64] = 8, [NKV_GGUF_I64] = 8,   [NKV_GGUF_DOUBLE] = 8};

    return type < sizeof bytes ? bytes[type] : 0;
}

static const struct nkv_gguf_entry *find(const struct nkv_gguf *gguf, const char *key)
{
    struct nkv_str wanted = {key, strlen(key)};
    uint64_t lo = 0, hi = gguf->n_entries;

    while (lo < hi) {
        uint64_t mid = lo + (hi - lo) / 2;
        int order = nkv_gguf_str_compare(gguf->entry_index[mid]->key, wanted);

        if (order == 0)
            return gguf->entry_index[mid];
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

bool nkv_gguf_has(const struct nkv_gguf *gguf, const char *key)
{
    return find(gguf, key) != NULL;
}

static int get(const struct nkv_gguf *gguf, const char *key, const struct nkv_gguf_entry **entry_out)
{
    const struct nkv_gguf_entry *e = find(gguf, key);

    if (!e)
        FAIL(NKV_ENOENT, "%s: key %s is missing", gguf->name, key);
    *entry_out = e;
    return 0;
}

static const char *type_name(uint32_t type)
{
    static const char *const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32",   "f32",
                                        "bool", "string", "array", "u64", "i64", "double"};

    return type < sizeof names / sizeof *names ? names[type] : "unknown";
}

/* Reads an integer as a magnitude and a sign. returns: false when it is no integer. */
static bool integer_of(const struct nkv_gguf_entry *e, uint64_t *magnitude_out, bool *negative_out)
{
    uint32_t size = nkv_gguf_scalar_bytes(e->type);
    bool is_signed =
        e->type == NKV_GGUF_I8 || e->type == NKV_GGUF_I16 || e->type == NKV_GGUF_I32 || e->type == NKV_GGUF_I64;
    uint64_t x = 0;

    if (size == 0 || e->type == NKV_GGUF_FLOAT || e->type == NKV_GGUF_DOUBLE)
        return false;
    for (uint32_t i = 0; i < size; i++)
        x |= (uint64_t)e->value[i] << (8 * i);
    *negative_out = is_signed && (x >> (8 * size - 1)) & 1;
    if (*negative_out && size < 8)
        x |= UINT64_MAX << (8 * size);
    *magnitude_out = *negative_out ? 0 - x : x;
    return true;
}

int nkv_gguf_u32(const struct nkv_gguf *gguf, const char *key, uint32_t *value_out)
{
    const struct nkv_gguf_entry *e = NULL;
    uint64_t magnitude;
    bool negative;

    TRY(get(gguf, key, &e));
    if (!integer_of(e, &magnitude, &negative))
        FAIL(NKV_EFORMAT, "%s: key %s is of type %s, not an integer", gguf->name, key, type_name(e->type));
    if (negative || magnitude > UINT32_MAX)
        FAIL(NKV_EFORMAT, "%s: key %s is %s%" PRIu64 ": it must be from 0 to 4294967295", gguf->name, key,
             negative ? "-" : "", magnitude);
    *value_out = (uint32_t)magnitude;
    return 0;
}

int nkv_gguf_f32(const struct nkv_gguf *gguf, const char *key, float *value_out)
{
    const struct nkv_gguf_entry *e = NULL;
    double d;

    TRY(get(gguf, key, &e));
    if (e->type == NKV_GGUF_FLOAT) {
        uint32_t bits = nkv_gguf_load_u32(e->value);

        memcpy(value_out, &bits, sizeof bits);
    } else if (e->type == NKV_GGUF_DOUBLE) {
        uint64_t bits = nkv_gguf_load_u64(e->value);

        memcpy(&d, &bits, sizeof bits);
        *value_out = (float)d;
    } else {
        FAIL(NKV_EFORMAT, "%s: key %s is of type %s, not a floating-point number", gguf->name, key, type_name(e->type));
    }
    return 0;
}

int nkv_gguf_bool(const struct nkv_gguf *gguf, const char *key, bool *value_out)
{
    const struct nkv_gguf_entry *e = NULL;

    TRY(get(gguf, key, &e));
    if (e->type != NKV_GGUF_BOOL)
        FAIL(NKV_EFORMAT, "%s: key %s is of type %s, not a bool", gguf->name, key, type_name(e->type));
    *value_out = *e->value != 0;
    return 0;
}

int nkv_gguf_str(const struct nkv_gguf *gguf, const char *key, struct nkv_str *value_out)
{
    const struct nkv_gguf_entry *e = NULL;

    TRY(get(gguf, key, &e));
    if (e->type != NKV_GGUF_STRING)
        FAIL(NKV_EFORMAT, "%s: key %s is of type %s, not a string", gguf->name, key, type_name(e->type));
    *value_out = e->string;
    return 0;
}

int nkv_gguf_array(const struct nkv_gguf *gguf, const char *key, enum nkv_gguf_type type,
                   struct nkv_gguf_array *array_out)
{
    const struct nkv_gguf_entry *e = NULL;

    TRY(get(gguf, key, &e));
    if (e->type != NKV_GGUF_ARRAY)
        FAIL(NKV_EFORMAT, "%s: key %s is of type %s, not an array", gguf->name, key, type_name(e->type));
    if (e->array.type != type)
        FAIL(NKV_EFORMAT, "%s: key %s is an array of %s, not of %s", gguf->name, key, type_name(e->array.type),
             type_name(type));
    *array_out = e->array;
    return 0;
}

struct nkv_str nkv_gguf_next_str(const uint8_t **cursor)
{
    struct nkv_str s = {(const char *)*cursor + 8, (size_t)nkv_gguf_load_u64(*cursor)};

    *cursor += 8 + s.bytes;
    return s;
}

uint64_t nkv_gguf_n_tensors(const struct nkv_gguf *gguf)
{
    return gguf->n_tensors;
}

const struct nkv_gguf_tensor *nkv_gguf_tensor_at(const struct nkv_gguf *gguf, uint64_t i)
{
    return &gguf->tensors[i];
}

const struct nkv_gguf_tensor *nkv_gguf_tensor(const struct nkv_gguf *gguf, const char *name)
{
    struct nkv_str wanted = {name, strlen(name)};
    uint64_t lo = 0, hi = gguf->n_tensors;

    while (lo < hi) {
        uint64_t mid = lo + (hi - lo) / 2;
        int order = nkv_gguf_str_compare(gguf->tensor_index[mid]->name, wanted);

        if (order == 0)
            return gguf->tensor_index[mid];
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}
