/* SPDX-License-Identifier: Apache-2.0 */
/* model/decoder.h: what an engine must know of the decoder that it drives. */
#ifndef NKV_MODEL_DECODER_H
#define NKV_MODEL_DECODER_H

#include <nearkv/model.h>

struct nkv_decoder_parts {
    const struct nkv_model *model;
    struct nkv_context *context;
    uint32_t max_batch, chunk_tokens;
};
struct nkv_decoder_parts nkv_decoder_parts(const struct nkv_decoder *decoder);

#endif
