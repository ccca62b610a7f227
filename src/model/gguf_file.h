/* SPDX-License-Identifier: Apache-2.0 */
/* model/gguf_file.h: a parsed GGUF file, as gguf.c builds it and gguf_get.c reads it. */
#ifndef NKV_MODEL_GGUF_FILE_H
#define NKV_MODEL_GGUF_FILE_H

#include <string.h>

#include "model/gguf.h"

struct nkv_gguf_entry {
    struct nkv_str key;
    enum nkv_gguf_type type;
    const uint8_t *value;        /* of a scalar */
    struct nkv_str string;       /* of a string */
    struct nkv_gguf_array array; /* of an array */
};

struct nkv_gguf {
    char *name;
    const uint8_t *base;
    size_t bytes;
    bool is_mapped;
    uint64_t n_entries, n_tensors;
    struct nkv_gguf_entry *entries;
    struct nkv_gguf_tensor *tensors;
    const struct nkv_gguf_entry **entry_index;   /* by key */
    const struct nkv_gguf_tensor **tensor_index; /* by name */
};

static inline uint32_t nkv_gguf_load_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t nkv_gguf_load_u64(const uint8_t *p)
{
    return (uint64_t)nkv_gguf_load_u32(p) | (uint64_t)nkv_gguf_load_u32(p + 4) << 32;
}

static inline int nkv_gguf_str_compare(struct nkv_str a, struct nkv_str b)
{
    size_t n = a.bytes < b.bytes ? a.bytes : b.bytes;
    int order = n ? memcmp(a.data, b.data, n) : 0;

    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

/* Bytes of a scalar of this type; 0: not a scalar's type. */
uint32_t nkv_gguf_scalar_bytes(uint32_t type);

#endif
