/* SPDX-License-Identifier: Apache-2.0 */
/* model/needle.h: the built-in needle model (the construction is described in needle.c), as a GGUF image. */
#ifndef NKV_MODEL_NEEDLE_H
#define NKV_MODEL_NEEDLE_H

#include <nearkv/types.h>

/* dtype of the matrices: NKV_F16 or NKV_F32. *data_out from nkv_alloc. Deterministic: the same bytes every time. */
int nkv_needle_build(enum nkv_dtype dtype, void **data_out, size_t *bytes_out);

#endif
