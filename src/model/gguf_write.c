/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GGUF writer. A GGUF file is
 *
 *   "GGUF", u32 version, u64 n_tensors, u64 n_keys      header
 *   key, u32 type, value                                n_keys times; strings are u64 length, bytes
 *   name, u32 n_dims, u64 dims[], u32 type, u64 offset  n_tensors times
 *   padding to 32; tensor data, each padded to 32
 *
 * The three parts whose sizes are not known before the end grow in three buffers, which nkv_gguf_finish joins. Writing
 * to a stream in one pass was rejected: it needs all counts and names first, thus every caller's list twice.
 */
#include "model/gguf_write.h"

#include <string.h>

#include "base/mem.h"
#include "kernels/kernels.h"

#define GGUF_ALIGNMENT 32u

struct buffer {
    uint8_t *data;
    size_t bytes, capacity;
};

struct nkv_gguf_writer {
    struct buffer keys, tensors, data;
    uint64_t n_keys, n_tensors;
    int status; /* of the first put that failed */
};

int nkv_gguf_writer_open(struct nkv_gguf_writer **writer_out)
{
    struct nkv_gguf_writer *writer;

    TRY(nkv_alloc(1, sizeof *writer, &writer));
    *writer_out = writer;
    return 0;
}

void nkv_gguf_writer_close(struct nkv_gguf_writer *writer)
{
    if (!writer)
        return;
    nkv_free(writer->keys.data);
    nkv_free(writer->tensors.data);
    nkv_free(writer->data.data);
    nkv_free(writer);
}

static int grow(struct buffer *buffer, size_t bytes)
{
    size_t capacity = buffer->capacity ? buffer->capacity : 4096;
    uint8_t *data;

    while (capacity - buffer->bytes < bytes)
        capacity *= 2;
    if (capacity == buffer->capacity)
        return 0;
    TRY(nkv_alloc(capacity, 1, &data));
    if (buffer->bytes)
        memcpy(data, buffer->data, buffer->bytes);
    nkv_free(buffer->data);
    buffer->data = data;
    buffer->capacity = capacity;
    return 0;
}

static void put(struct nkv_gguf_writer *writer, struct buffer *buffer, const void *data, size_t bytes)
{
    if (writer->status == 0)
        writer->status = grow(buffer, bytes);
    if (writer->status < 0 || bytes == 0)
        return;
    memcpy(buffer->data + buffer->bytes, data, bytes);
    buffer->bytes += bytes;
}

static void put_u32(struct nkv_gguf_writer *writer, struct buffer *buffer, uint32_t value)
{
    put(writer, buffer, &value, sizeof value);
}

static void put_u64(struct nkv_gguf_writer *writer, struct buffer *buffer, uint64_t value)
{
    put(writer, buffer, &value, sizeof value);
}

static void put_str(struct nkv_gguf_writer *writer, struct buffer *buffer, const char *data, size_t bytes)
{
    put_u64(writer, buffer, bytes);
    put(writer, buffer, data, bytes);
}

static void put_padding(struct nkv_gguf_writer *writer, struct buffer *buffer)
{
    static const uint8_t zeros[GGUF_ALIGNMENT];

    put(writer, buffer, zeros, nkv_round_up(buffer->bytes, GGUF_ALIGNMENT) - buffer->bytes);
}

static void put_key(struct nkv_gguf_writer *writer, const char *key, enum nkv_gguf_type type)
{
    put_str(writer, &writer->keys, key, strlen(key));
    put_u32(writer, &writer->keys, (uint32_t)type);
    writer->n_keys++;
}

void nkv_gguf_put_u32(struct nkv_gguf_writer *writer, const char *key, uint32_t value)
{
    put_key(writer, key, NKV_GGUF_U32);
    put_u32(writer, &writer->keys, value);
}

void nkv_gguf_put_f32(struct nkv_gguf_writer *writer, const char *key, float value)
{
    put_key(writer, key, NKV_GGUF_FLOAT);
    put(writer, &writer->keys, &value, sizeof value);
}

void nkv_gguf_put_bool(struct nkv_gguf_writer *writer, const char *key, bool value)
{
    uint8_t byte = value;

    put_key(writer, key, NKV_GGUF_BOOL);
    put(writer, &writer->keys, &byte, 1);
}

void nkv_gguf_put_str(struct nkv_gguf_writer *writer, const char *key, const char *value)
{
    put_key(writer, key, NKV_GGUF_STRING);
    put_str(writer, &writer->keys, value, strlen(value));
}

static void put_array_key(struct nkv_gguf_writer *writer, const char *key, enum nkv_gguf_type type, uint64_t n)
{
    put_key(writer, key, NKV_GGUF_ARRAY);
    put_u32(writer, &writer->keys, (uint32_t)type);
    put_u64(writer, &writer->keys, n);
}

void nkv_gguf_put_array(struct nkv_gguf_writer *writer, const char *key, enum nkv_gguf_type type, uint64_t n,
                        const void *data)
{
    static const uint8_t size[] = {
        [NKV_GGUF_U8] = 1,    [NKV_GGUF_I8] = 1,   [NKV_GGUF_U16] = 2,    [NKV_GGUF_I16] = 2,
        [NKV_GGUF_U32] = 4,   [NKV_GGUF_I32] = 4,  [NKV_GGUF_U64] = 8,    [NKV_GGUF_I64] = 8,
        [NKV_GGUF_FLOAT] = 4, [NKV_GGUF_BOOL] = 1, [NKV_GGUF_DOUBLE] = 8,
    };

    put_array_key(writer, key, type, n);
    put(writer, &writer->keys, data, n * size[type]);
}

void nkv_gguf_put_strs(struct nkv_gguf_writer *writer, const char *key, uint64_t n, const struct nkv_str *strs)
{
    put_array_key(writer, key, NKV_GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++)
        put_str(writer, &writer->keys, strs[i].data, strs[i].bytes);
}

static uint32_t ggml_type(enum nkv_dtype dtype)
{
    static const uint32_t type[NKV_DTYPE_COUNT] = {[NKV_F32] = 0, [NKV_F16] = 1, [NKV_BF16] = 30, [NKV_Q8_0] = 8};

    return type[dtype];
}

void nkv_gguf_put_tensor(struct nkv_gguf_writer *writer, const char *name, uint32_t n_dims, const uint64_t *dims,
                         enum nkv_dtype dtype, const void *data)
{
    struct buffer *info = &writer->tensors;
    size_t bytes = nkv_weight_row_bytes(dtype, dims[0]);

    put_str(writer, info, name, strlen(name));
    put_u32(writer, info, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) {
        put_u64(writer, info, dims[i]);
        bytes *= i ? dims[i] : 1;
    }
    put_u32(writer, info, ggml_type(dtype));
    put_u64(writer, info, writer->data.bytes);
    put(writer, &writer->data, data, bytes);
    put_padding(writer, &writer->data);
    writer->n_tensors++;
}

int nkv_gguf_finish(struct nkv_gguf_writer *writer, void **data_out, size_t *bytes_out)
{
    struct buffer file = {0};

    put(writer, &file, "GGUF", 4);
    put_u32(writer, &file, 3);
    put_u64(writer, &file, writer->n_tensors);
    put_u64(writer, &file, writer->n_keys);
    put(writer, &file, writer->keys.data, writer->keys.bytes);
    put(writer, &file, writer->tensors.data, writer->tensors.bytes);
    put_padding(writer, &file);
    put(writer, &file, writer->data.data, writer->data.bytes);
    if (writer->status < 0) {
        nkv_free(file.data);
        return writer->status;
    }
    *data_out = file.data;
    *bytes_out = file.bytes;
    return 0;
}
