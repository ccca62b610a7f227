/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The needle model as a GGUF image: metadata, a byte-level SPM vocabulary, the circuit's weights; and as a file
 * (base/output.h). The image is made in memory first: its tensor table comes before the tensors.
 */
#include <nearkv/model.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/output.h"
#include "kernels/kernels.h"
#include "model/gguf_write.h"
#include "model/needle.h"
#include "model/needle_net.h"

static void put_tokens(struct nkv_gguf_writer *writer)
{
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    char spelling[256][8];
    struct nkv_str strs[N_VOCAB];
    int32_t types[N_VOCAB]; /* 1 normal, 2 unknown, 3 control, 6 byte */
    float scores[N_VOCAB] = {0};

    for (uint32_t t = 0; t < TOKEN_BYTE; t++) {
        strs[t] = (struct nkv_str){special[t], strlen(special[t])};
        types[t] = t == TOKEN_UNK ? 2 : 3;
    }
    for (uint32_t b = 0; b < 256; b++) {
        snprintf(spelling[b], sizeof spelling[b], "<0x%02X>", b);
        strs[TOKEN_BYTE + b] = (struct nkv_str){spelling[b], 6};
        types[TOKEN_BYTE + b] = 6;
    }
    strs[TOKEN_SPACE] = (struct nkv_str){"\xe2\x96\x81", 3};
    types[TOKEN_SPACE] = 1;
    nkv_gguf_put_str(writer, "tokenizer.ggml.model", "llama");
    nkv_gguf_put_str(writer, "tokenizer.ggml.pre", "default");
    nkv_gguf_put_strs(writer, "tokenizer.ggml.tokens", N_VOCAB, strs);
    nkv_gguf_put_array(writer, "tokenizer.ggml.scores", NKV_GGUF_FLOAT, N_VOCAB, scores);
    nkv_gguf_put_array(writer, "tokenizer.ggml.token_type", NKV_GGUF_I32, N_VOCAB, types);
    nkv_gguf_put_u32(writer, "tokenizer.ggml.bos_token_id", TOKEN_BOS);
    nkv_gguf_put_u32(writer, "tokenizer.ggml.eos_token_id", TOKEN_EOS);
    nkv_gguf_put_u32(writer, "tokenizer.ggml.unknown_token_id", TOKEN_UNK);
    nkv_gguf_put_bool(writer, "tokenizer.ggml.add_bos_token", true);
    nkv_gguf_put_bool(writer, "tokenizer.ggml.add_eos_token", false);
    nkv_gguf_put_bool(writer, "tokenizer.ggml.add_space_prefix", false);
}

static void put_metadata(struct nkv_gguf_writer *writer, enum nkv_dtype dtype)
{
    nkv_gguf_put_str(writer, "general.architecture", "llama");
    nkv_gguf_put_str(writer, "general.name", "needle");
    nkv_gguf_put_u32(writer, "general.file_type", dtype == NKV_F16);
    nkv_gguf_put_u32(writer, "llama.context_length", CONTEXT_LENGTH);
    nkv_gguf_put_u32(writer, "llama.embedding_length", N_EMBD);
    nkv_gguf_put_u32(writer, "llama.block_count", N_LAYERS);
    nkv_gguf_put_u32(writer, "llama.feed_forward_length", N_FF);
    nkv_gguf_put_u32(writer, "llama.attention.head_count", N_HEADS);
    nkv_gguf_put_u32(writer, "llama.attention.head_count_kv", N_KV_HEADS);
    nkv_gguf_put_u32(writer, "llama.attention.key_length", HEAD_DIM);
    nkv_gguf_put_u32(writer, "llama.attention.value_length", HEAD_DIM);
    nkv_gguf_put_u32(writer, "llama.rope.dimension_count", HEAD_DIM);
    nkv_gguf_put_f32(writer, "llama.rope.freq_base", NEEDLE_ROPE_BASE);
    nkv_gguf_put_f32(writer, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    nkv_gguf_put_u32(writer, "llama.vocab_size", N_VOCAB);
    put_tokens(writer);
}

struct output {
    struct nkv_gguf_writer *writer;
    enum nkv_dtype dtype;
    uint16_t *halves; /* room for the largest matrix */
};

static void put_matrix(struct output *out, const char *name, size_t rows, size_t cols, const float *w)
{
    uint64_t dims[2] = {cols, rows};

    if (out->dtype == NKV_F32) {
        nkv_gguf_put_tensor(out->writer, name, 2, dims, NKV_F32, w);
        return;
    }
    for (size_t i = 0; i < rows * cols; i++)
        out->halves[i] = nkv_f32_to_f16(w[i]);
    nkv_gguf_put_tensor(out->writer, name, 2, dims, NKV_F16, out->halves);
}

static void put_norm(struct output *out, const char *name)
{
    float rms[N_EMBD];

    for (uint32_t i = 0; i < N_EMBD; i++)
        rms[i] = nkv_needle_norm();
    nkv_gguf_put_tensor(out->writer, name, 1, (const uint64_t[]){N_EMBD}, NKV_F32, rms);
}

static const char *layer_name(char *buffer, size_t size, uint32_t layer, const char *part)
{
    snprintf(buffer, size, "blk.%u.%s.weight", layer, part);
    return buffer;
}

static void put_layer(struct output *out, uint32_t l, const struct needle_layer *layer)
{
    const struct {
        const char *part;
        size_t rows, cols;
        const float *w;
    } matrices[] = {
        {"attn_q", Q_ROWS, N_EMBD, layer->q},    {"attn_k", KV_ROWS, N_EMBD, layer->k},
        {"attn_v", KV_ROWS, N_EMBD, layer->v},   {"attn_output", N_EMBD, Q_ROWS, layer->o},
        {"ffn_gate", N_FF, N_EMBD, layer->gate}, {"ffn_up", N_FF, N_EMBD, layer->up},
        {"ffn_down", N_EMBD, N_FF, layer->down},
    };
    char name[64];

    put_norm(out, layer_name(name, sizeof name, l, "attn_norm"));
    put_norm(out, layer_name(name, sizeof name, l, "ffn_norm"));
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        put_matrix(out, layer_name(name, sizeof name, l, matrices[i].part), matrices[i].rows, matrices[i].cols,
                   matrices[i].w);
}

static void put_net(struct output *out, const struct needle_net *net)
{
    put_metadata(out->writer, out->dtype);
    put_matrix(out, "token_embd.weight", N_VOCAB, N_EMBD, net->embd);
    put_norm(out, "output_norm.weight");
    put_matrix(out, "output.weight", N_VOCAB, N_EMBD, net->output);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        put_layer(out, l, &net->layers[l]);
}

int nkv_needle_build(enum nkv_dtype dtype, void **data_out, size_t *bytes_out)
{
    struct needle_net net = {0};
    struct output out = {.dtype = dtype};
    int status;

    if (dtype != NKV_F16 && dtype != NKV_F32)
        FAIL(NKV_EINVAL, "the needle model exists in f16 and f32, not in %s", nkv_dtype_name(dtype));
    TRY(nkv_needle_net_open(&net));
    status = nkv_alloc(Q_ROWS * N_EMBD, sizeof *out.halves, &out.halves);
    if (status < 0)
        goto free_net;
    status = nkv_gguf_writer_open(&out.writer);
    if (status < 0)
        goto free_halves;
    put_net(&out, &net);
    status = nkv_gguf_finish(out.writer, data_out, bytes_out);
    nkv_gguf_writer_close(out.writer);
free_halves:
    nkv_free(out.halves);
free_net:
    nkv_free(net.block);
    return status;
}

static int write_file(const char *path, const void *data, size_t bytes)
{
    struct nkv_output output;
    int status = nkv_output_open(path, 0666, &output);

    if (status == 0)
        status = nkv_output_put(&output, data, bytes);
    if (status == 0)
        status = nkv_output_finish(&output);
    nkv_output_close(&output);
    return status;
}

int nkv_needle_write(const char *path, enum nkv_dtype dtype)
{
    void *data;
    size_t bytes;
    int status;

    if (!path || !*path)
        FAIL(NKV_EINVAL, "no file name for the needle model");
    TRY(nkv_needle_build(dtype, &data, &bytes));
    status = write_file(path, data, bytes);
    nkv_free(data);
    return status;
}
