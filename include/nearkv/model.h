/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv/model.h: a Llama-family model that runs its dense layers on this machine's CPU and its attention through a
 * nearkv context.
 *
 *   nkv_model_open("model.gguf", &model_options, &model);      weights stay in the file (mmap)
 *   nkv_tokenize(model, text, n, flags, &tokens, &n_tokens);
 *   nkv_decoder_open(model, context, &decoder_options, &decoder);
 *   nkv_prefill(decoder, seq, tokens, n_tokens, logits, progress, arg);
 *   nkv_decode(decoder, seqs, tokens, n_seqs, logits);
 *   nkv_sample(sampler, logits, n_vocab);
 */
#ifndef NEARKV_MODEL_H
#define NEARKV_MODEL_H

#include <nearkv/nearkv.h>
#include <nearkv/parallel.h>

#ifdef __cplusplus
extern "C" {
#endif

struct nkv_model;
struct nkv_decoder;
struct nkv_sampler;

struct nkv_model_info {
    char name[64];
    char architecture[16]; /* "llama", "qwen2" */
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab;
    uint32_t context_length; /* as the file says; 0: not stated */
    float rope_base, rms_eps;
    enum nkv_dtype weight_dtype; /* of the largest share of the weights */
    uint64_t weight_bytes;       /* of all tensors */
    uint64_t n_parameters;
    bool tied_embeddings;
};

/*
 * Opens a GGUF file (v2, v3) or, for path "needle", the built-in needle model (docs/formats.md). The file is mapped and
 * must stay unchanged. returns: 0; NKV_EIO; NKV_EFORMAT naming file, offset or tensor and defect; NKV_ENOTSUP naming
 * architecture, tensor type or pre-tokenizer; NKV_ENOMEM.
 */
NKV_API int nkv_model_open(const char *path, struct nkv_model **model_out);
/* The same from memory; data is borrowed until close. */
NKV_API int nkv_model_open_memory(const void *data, size_t bytes, const char *name, struct nkv_model **model_out);
/* A model of a known shape ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "needle-256", "tiny-256") with random
 * weights of `dtype` and no tokenizer, for benchmarks. */
NKV_API int nkv_model_open_random(const char *shape, enum nkv_dtype dtype, uint64_t seed, struct nkv_model **model_out);
/* The same with weights of zero, which take no memory before they are read: to ask what it would need. */
NKV_API int nkv_model_open_blank(const char *shape, enum nkv_dtype dtype, struct nkv_model **model_out);
NKV_API void nkv_model_close(struct nkv_model *model);
/*
 * Keeps of the dense layers the part of process comm->rank of comm->size: rows of q, k, v, gate, up and the output
 * matrix, columns of o and down, which are copied; the file's other rows are never read. With more processes than KV
 * heads each has one, some the same. Once per model, before a decoder is opened on it.
 * returns: 0; NKV_EINVAL: heads or widths cannot be divided so, with the numbers of processes that they can;
 * NKV_ENOMEM.
 */
NKV_API int nkv_model_shard(struct nkv_model *model, const struct nkv_comm *comm);
NKV_API void nkv_model_info(const struct nkv_model *model, struct nkv_model_info *info_out);
/*
 * A number that stands for the weights and what is computed with them: a hash of a file's metadata and tensor table and
 * of samples of every tensor. Models that differ only between the samples have the same one.
 */
NKV_API uint64_t nkv_model_fingerprint(const struct nkv_model *model);
/* Writes the needle model as a GGUF file (f16 or f32), atomically: path appears whole or not at all. */
NKV_API int nkv_needle_write(const char *path, enum nkv_dtype dtype);

/* ---- Text
 * -----------------------------------------------------------------------------------------------------------------------
 */

enum nkv_tokenize_flag {
    NKV_TOKENIZE_BOS = 1u << 0,     /* begin-of-sequence where the model wants it (tokenizer.ggml.add_bos_token) */
    NKV_TOKENIZE_SPECIAL = 1u << 1, /* special tokens spelled in the text ("<|eot_id|>") become themselves */
};
/* Any bytes, valid UTF-8 or not. *tokens_out: to be freed with nkv_tokens_free. */
NKV_API int nkv_tokenize(const struct nkv_model *model, const char *text, size_t bytes, unsigned flags,
                         int32_t **tokens_out, size_t *n_out);
NKV_API void nkv_tokens_free(int32_t *tokens);
/* Bytes of the tokens' text, without special tokens unless NKV_TOKENIZE_SPECIAL. Zero terminated; *text_out freed with
 * nkv_text_free. */
NKV_API int nkv_detokenize(const struct nkv_model *model, const int32_t *tokens, size_t n, unsigned flags,
                           char **text_out, size_t *bytes_out);
NKV_API void nkv_text_free(char *text);
NKV_API bool nkv_token_is_end(const struct nkv_model *model, int32_t token);

/* ---- Forward
 * --------------------------------------------------------------------------------------------------------------------
 */

enum nkv_prefill { NKV_PREFILL_DENSE = 0, NKV_PREFILL_SPARSE = 1, NKV_PREFILL_AUTO = 2 };

struct nkv_decoder_options {
    uint32_t size;         /* sizeof(struct nkv_decoder_options) */
    uint32_t n_threads;    /* for the dense layers; 0: one per CPU */
    uint32_t max_batch;    /* sequences per decode step; default 16 */
    uint32_t chunk_tokens; /* of prefill; default 512; the context's max_tokens must be at least this */
    struct nkv_comm *comm; /* the processes that the model is sharded over (nkv_model_shard); NULL: this one alone */
    /* 2: a decode step's rows go through the layers in two halves, so that the devices attend for one while the dense
     * layers of the other run; weights are then read twice per step. Up to 16 rows logits stay the same to the bit.
     * 1: all rows together, the default. */
    uint32_t n_micro_batches;
};

/* The KV shape for a model. */
NKV_API void nkv_model_kv_shape(const struct nkv_model *model, uint32_t page_tokens, enum nkv_dtype dtype,
                                enum nkv_digest digest, struct nkv_kv_shape *shape_out);
/* Bytes of activations and scratch that nkv_decoder_open takes for these options (NULL: the defaults). returns: 0 or
 * NKV_EINVAL. */
NKV_API int nkv_decoder_estimate(const struct nkv_model *model, const struct nkv_decoder_options *options,
                                 uint64_t *bytes_out);
/*
 * options: NULL or zero fields mean the defaults. The model and the context are borrowed until close. With comm, rank 0
 * has the context and makes all calls; the others have none (NULL) and call nkv_decoder_follow. They must be opened
 * with the same options, but for threads.
 */
NKV_API int nkv_decoder_open(struct nkv_model *model, struct nkv_context *context,
                             const struct nkv_decoder_options *options, struct nkv_decoder **decoder_out);
NKV_API void nkv_decoder_close(struct nkv_decoder *decoder);

/*
 * Does this process' part of what rank 0's decoder does, until nkv_follow_end. blocks. returns: 0; NKV_EDEVICE: a
 * process is gone; NKV_ENOMEM: then the others wait for what never comes, so the job must end.
 */
NKV_API int nkv_decoder_follow(struct nkv_decoder *decoder);
/* Rank 0, when its decoder is not in use any more: the other ranks return from nkv_decoder_follow. */
NKV_API int nkv_follow_end(struct nkv_comm *comm);

/*
 * Feeds tokens to one sequence (dense or sparse as the sequence was opened). logits_out: [n_vocab] of the last token,
 * may be NULL. progress is called after each chunk; stopped, the sequence keeps the chunks that are done. Failing
 * leaves the sequence at the last whole chunk (or ended, with its device's error).
 */
NKV_API int nkv_prefill(struct nkv_decoder *decoder, struct nkv_seq *seq, const int32_t *tokens, size_t n_tokens,
                        float *logits_out, nkv_progress_fn progress, void *progress_arg);
/*
 * One step: feeds tokens[i] to seqs[i]. logits_out [n_seqs][n_vocab]. A sequence that its device fails is marked
 * (nkv_seq_status) and its logits are zero.
 */
NKV_API int nkv_decode(struct nkv_decoder *decoder, struct nkv_seq *const *seqs, const int32_t *tokens, uint32_t n_seqs,
                       float *logits_out);

/* Wall time of the last nkv_decode or nkv_prefill by part. */
struct nkv_decode_times {
    uint64_t fc_ns, attend_ns, rest_ns;
};
NKV_API void nkv_decoder_times(const struct nkv_decoder *decoder, struct nkv_decode_times *times_out);

/* ---- Sampling
 * -------------------------------------------------------------------------------------------------------------------
 */

struct nkv_sampler_options {
    uint32_t size;
    float temperature; /* 0: greedy (ties to the lower id) */
    uint32_t top_k;    /* 0: all */
    float top_p;       /* 1: all */
    uint64_t seed;
};
NKV_API int nkv_sampler_open(const struct nkv_sampler_options *options, struct nkv_sampler **sampler_out);
NKV_API void nkv_sampler_close(struct nkv_sampler *sampler);
/* The next token. NKV_EINVAL when a logit is NaN or all are -inf (the message says so). */
NKV_API int nkv_sample(struct nkv_sampler *sampler, const float *logits, uint32_t n_vocab, int32_t *token_out);

/* ---- Rates of this machine's FC library, for benchmarks
 * ------------------------------------------------------------------------- */

/* "oneDNN 2.6.3 bf16" and GFLOP/s of an m x n x k matrix product in the type used for weights of dtype. blocks. */
NKV_API int nkv_matmul_rate(enum nkv_dtype dtype, uint32_t n_threads, uint32_t m, uint32_t n, uint32_t k,
                            double *gflops_out);

#ifdef __cplusplus
}
#endif
#endif
