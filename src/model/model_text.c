/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text of a model: the public calls over the tokenizer. A model without one (random weights, or a file that carries
 * none) can still be fed token ids; asking it for text is the caller's mistake and is answered as such.
 */
#include "base/status.h"
#include "model/weights.h"

static int need_tokenizer(const struct nkv_model *model)
{
    if (!model->tokenizer)
        FAIL(NKV_ESTATE, "%s: the model has no tokenizer: feed it token ids", model->info.name);
    return 0;
}

int nkv_tokenize(const struct nkv_model *model, const char *text, size_t bytes, unsigned flags, int32_t **tokens_out,
                 size_t *n_out)
{
    TRY(need_tokenizer(model));
    return nkv_tokenizer_encode(model->tokenizer, text, bytes, flags, tokens_out, n_out);
}

void nkv_tokens_free(int32_t *tokens)
{
    nkv_free(tokens);
}

int nkv_detokenize(const struct nkv_model *model, const int32_t *tokens, size_t n, unsigned flags, char **text_out,
                   size_t *bytes_out)
{
    TRY(need_tokenizer(model));
    return nkv_tokenizer_decode(model->tokenizer, tokens, n, flags, text_out, bytes_out);
}

void nkv_text_free(char *text)
{
    nkv_free(text);
}

bool nkv_token_is_end(const struct nkv_model *model, int32_t token)
{
    return model->tokenizer && nkv_tokenizer_is_end(model->tokenizer, token);
}
