/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model/gguf_write.h: builds a GGUF v3 file in memory, in the order of the calls.
 *
 * Putting cannot fail visibly: a writer remembers its first failure (memory) and nkv_gguf_finish returns it, so that
 * forty puts need no forty checks.
 */
#ifndef NKV_MODEL_GGUF_WRITE_H
#define NKV_MODEL_GGUF_WRITE_H

#include "model/gguf.h"

struct nkv_gguf_writer;

int nkv_gguf_writer_open(struct nkv_gguf_writer **writer_out);
void nkv_gguf_writer_close(struct nkv_gguf_writer *writer);

void nkv_gguf_put_u32(struct nkv_gguf_writer *writer, const char *key, uint32_t value);
void nkv_gguf_put_f32(struct nkv_gguf_writer *writer, const char *key, float value);
void nkv_gguf_put_bool(struct nkv_gguf_writer *writer, const char *key, bool value);
void nkv_gguf_put_str(struct nkv_gguf_writer *writer, const char *key, const char *value);
/* n numbers of `type`, little endian at data. */
void nkv_gguf_put_array(struct nkv_gguf_writer *writer, const char *key, enum nkv_gguf_type type, uint64_t n,
                        const void *data);
void nkv_gguf_put_strs(struct nkv_gguf_writer *writer, const char *key, uint64_t n, const struct nkv_str *strs);
/* dims[0] is the row length; data holds the encoded elements (q8_0: blocks) and is copied. */
void nkv_gguf_put_tensor(struct nkv_gguf_writer *writer, const char *name, uint32_t n_dims, const uint64_t *dims,
                         enum nkv_dtype dtype, const void *data);

/* The file. *data_out from nkv_alloc; the writer is to be closed still. returns: 0, or the first failure of any put. */
int nkv_gguf_finish(struct nkv_gguf_writer *writer, void **data_out, size_t *bytes_out);

#endif
