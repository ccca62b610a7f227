/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model/gguf.h: read-only view of a GGUF file (v2, v3) in memory. Nothing in the file is trusted: every length, offset
 * and count is checked against the file's size when it is opened, so that accessors cannot fail for format reasons
 * later.
 */
#ifndef NKV_MODEL_GGUF_H
#define NKV_MODEL_GGUF_H

#include <nearkv/types.h>

struct nkv_gguf;

/* GGUF's metadata value types. */
enum nkv_gguf_type {
    NKV_GGUF_U8,
    NKV_GGUF_I8,
    NKV_GGUF_U16,
    NKV_GGUF_I16,
    NKV_GGUF_U32,
    NKV_GGUF_I32,
    NKV_GGUF_FLOAT,
    NKV_GGUF_BOOL,
    NKV_GGUF_STRING,
    NKV_GGUF_ARRAY,
    NKV_GGUF_U64,
    NKV_GGUF_I64,
    NKV_GGUF_DOUBLE,
};

struct nkv_str {
    const char *data; /* in the file, not terminated */
    size_t bytes;
};

/* An array of the metadata. Numbers are unaligned little-endian at `data`; strings are walked with nkv_gguf_next_str.
 */
struct nkv_gguf_array {
    enum nkv_gguf_type type; /* of the elements */
    uint64_t n;
    const uint8_t *data;
};

struct nkv_gguf_tensor {
    struct nkv_str name;
    uint32_t n_dims;
    uint64_t dims[4]; /* dims[0] is the row length (contiguous); unused ones are 1 */
    enum nkv_dtype dtype;
    const void *data;
    uint64_t bytes;
};

/* Maps a file. returns: 0; NKV_EIO, NKV_EFORMAT (file, offset, defect), NKV_ENOTSUP (version, tensor type, both named),
 * NKV_ENOMEM. */
int nkv_gguf_open(const char *path, struct nkv_gguf **gguf_out);
/* The same on borrowed memory; name is for messages. */
int nkv_gguf_open_memory(const void *data, size_t bytes, const char *name, struct nkv_gguf **gguf_out);
void nkv_gguf_close(struct nkv_gguf *gguf);
const char *nkv_gguf_name(const struct nkv_gguf *gguf);

bool nkv_gguf_has(const struct nkv_gguf *gguf, const char *key);
/* Any integer type (or bool) whose value fits. returns: 0; NKV_ENOENT: no such key; NKV_EFORMAT: another type or out of
 * range. Messages name file and key. */
int nkv_gguf_u32(const struct nkv_gguf *gguf, const char *key, uint32_t *value_out);
int nkv_gguf_f32(const struct nkv_gguf *gguf, const char *key, float *value_out);
int nkv_gguf_bool(const struct nkv_gguf *gguf, const char *key, bool *value_out);
int nkv_gguf_str(const struct nkv_gguf *gguf, const char *key, struct nkv_str *value_out);
int nkv_gguf_array(const struct nkv_gguf *gguf, const char *key, enum nkv_gguf_type type,
                   struct nkv_gguf_array *array_out);
/* Walks a string array: *cursor starts as array->data. pre: fewer than array->n calls so far. */
struct nkv_str nkv_gguf_next_str(const uint8_t **cursor);

uint64_t nkv_gguf_n_tensors(const struct nkv_gguf *gguf);
const struct nkv_gguf_tensor *nkv_gguf_tensor_at(const struct nkv_gguf *gguf, uint64_t i);
/* NULL when there is none. */
const struct nkv_gguf_tensor *nkv_gguf_tensor(const struct nkv_gguf *gguf, const char *name);

#endif
