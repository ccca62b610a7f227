/* SPDX-License-Identifier: Apache-2.0 */
/* Models that contradict themselves, weights that are not numbers, memory that runs out, devices that fail. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "model_fixture.h"

/* ---- A minimal llama, with one thing changed */

struct recipe {
    const char *architecture;
    uint32_t n_embd, n_heads, n_kv_heads, key_length, n_rot, n_ff, n_layers;
    const char *drop;         /* a tensor or key that is left out */
    const char *extra_tensor; /* of 8 elements */
    const char *u32_key;      /* an extra key, of value 3 */
    const char *scaling;      /* llama.rope.scaling.type */
    uint32_t bad_rows;        /* added to the rows of ffn_up */
    float rope_freq;          /* every element of rope_freqs.weight; 0: no such tensor */
    enum nkv_dtype vector_dtype;
};

static const struct recipe good = {"llama", 32, 4, 2, 8, 8, 32, 1, NULL, NULL, NULL, NULL, 0, 0, NKV_F32};

static bool dropped(const struct recipe *r, const char *name)
{
    return r->drop && strcmp(r->drop, name) == 0;
}

static void put_u32(struct nkv_gguf_writer *w, const struct recipe *r, const char *key, uint32_t value)
{
    if (!dropped(r, key))
        nkv_gguf_put_u32(w, key, value);
}

static void put_tensor(struct nkv_gguf_writer *w, const struct recipe *r, const char *name, uint64_t n_cols,
                       uint64_t n_rows, enum nkv_dtype dtype)
{
    static const float ones[64 * 64] = {1};

    if (!dropped(r, name))
        nkv_gguf_put_tensor(w, name, n_rows ? 2 : 1, (const uint64_t[]){n_cols, n_rows}, dtype, ones);
}

static void put_keys(struct nkv_gguf_writer *w, const struct recipe *r)
{
    if (!dropped(r, "general.architecture"))
        nkv_gguf_put_str(w, "general.architecture", r->architecture);
    put_u32(w, r, "llama.block_count", r->n_layers);
    put_u32(w, r, "llama.embedding_length", r->n_embd);
    put_u32(w, r, "llama.feed_forward_length", r->n_ff);
    put_u32(w, r, "llama.attention.head_count", r->n_heads);
    put_u32(w, r, "llama.attention.head_count_kv", r->n_kv_heads);
    put_u32(w, r, "llama.attention.key_length", r->key_length);
    put_u32(w, r, "llama.rope.dimension_count", r->n_rot);
    if (r->u32_key)
        nkv_gguf_put_u32(w, r->u32_key, 3);
    if (r->scaling)
        nkv_gguf_put_str(w, "llama.rope.scaling.type", r->scaling);
}

static void put_tensors(struct nkv_gguf_writer *w, const struct recipe *r)
{
    float freqs[16];

    put_tensor(w, r, "token_embd.weight", 32, 40, NKV_F32);
    put_tensor(w, r, "output_norm.weight", 32, 0, r->vector_dtype);
    put_tensor(w, r, "blk.0.attn_norm.weight", 32, 0, NKV_F32);
    put_tensor(w, r, "blk.0.ffn_norm.weight", 32, 0, NKV_F32);
    put_tensor(w, r, "blk.0.attn_q.weight", 32, 32, NKV_F32);
    put_tensor(w, r, "blk.0.attn_k.weight", 32, 16, NKV_F32);
    put_tensor(w, r, "blk.0.attn_v.weight", 32, 16, NKV_F32);
    put_tensor(w, r, "blk.0.attn_output.weight", 32, 32, NKV_F32);
    put_tensor(w, r, "blk.0.ffn_gate.weight", 32, 32, NKV_F32);
    put_tensor(w, r, "blk.0.ffn_up.weight", 32, 32 + r->bad_rows, NKV_F32);
    put_tensor(w, r, "blk.0.ffn_down.weight", 32, 32, NKV_F32);
    for (size_t i = 0; i < 16; i++)
        freqs[i] = r->rope_freq;
    if (r->rope_freq < 0 || r->rope_freq > 0 || isnan(r->rope_freq))
        nkv_gguf_put_tensor(w, "rope_freqs.weight", 1, (const uint64_t[]){4}, NKV_F32, freqs);
    if (r->extra_tensor)
        put_tensor(w, r, r->extra_tensor, 8, 0, NKV_F32);
}

static int open_recipe(const struct recipe *r, void **data_out, struct nkv_model **model_out)
{
    struct nkv_gguf_writer *w;
    size_t bytes;

    assert_ok(nkv_gguf_writer_open(&w));
    put_keys(w, r);
    put_tensors(w, r);
    assert_ok(nkv_gguf_finish(w, data_out, &bytes));
    nkv_gguf_writer_close(w);
    return nkv_model_open_memory(*data_out, bytes, "recipe.gguf", model_out);
}

static void refuse(struct recipe r, int status, const char *part)
{
    struct nkv_model *model = NULL;
    void *data;
    int got = open_recipe(&r, &data, &model);

    if (got != status || !strstr(nkv_last_error(), part))
        fail_msg("got %s \"%s\", wanted %s with \"%s\"", nkv_status_name(got), nkv_last_error(),
                 nkv_status_name(status), part);
    assert_null(model);
    nkv_free(data);
}

static void test_contradictions(void **state)
{
    static const char *const needed[] = {
        "general.architecture", "llama.block_count",     "llama.embedding_length", "llama.feed_forward_length",
        "token_embd.weight",    "output_norm.weight",    "blk.0.attn_norm.weight", "llama.attention.head_count",
        "blk.0.attn_q.weight",  "blk.0.attn_k.weight",   "blk.0.attn_v.weight",    "blk.0.attn_output.weight",
        "blk.0.ffn_up.weight",  "blk.0.ffn_gate.weight", "blk.0.ffn_down.weight",
    };
    struct nkv_model *model;
    struct recipe r;
    void *data;

    (void)state;
    assert_ok(open_recipe(&good, &data, &model));
    nkv_model_close(model);
    nkv_free(data);
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        r = good, r.drop = needed[i];
        refuse(r, NKV_EFORMAT, needed[i]);
    }
    r = good, r.n_layers = 2;
    refuse(r, NKV_EFORMAT, "blk.1.attn_q.weight is missing");
    r = good, r.n_layers = 0;
    refuse(r, NKV_EFORMAT, "0 layers");
    r = good, r.n_layers = UINT32_MAX;
    refuse(r, NKV_EFORMAT, "4294967295 layers");
    r = good, r.n_heads = 0;
    refuse(r, NKV_EFORMAT, "head_count is 0");
    r = good, r.n_heads = UINT32_MAX;
    refuse(r, NKV_EFORMAT, "4294967295 heads");
    r = good, r.n_kv_heads = 3;
    refuse(r, NKV_EFORMAT, "3 KV heads");
    r = good, r.n_kv_heads = 0;
    refuse(r, NKV_EFORMAT, "0 KV heads");
    r = good, r.n_embd = 64;
    refuse(r, NKV_EFORMAT, "token_embd.weight is 32 x 40");
    r = good, r.n_embd = UINT32_MAX;
    refuse(r, NKV_EFORMAT, "embedding length");
    r = good, r.bad_rows = 1;
    refuse(r, NKV_EFORMAT, "ffn_up.weight is 32 x 33");
    r = good, r.n_rot = 7;
    refuse(r, NKV_EFORMAT, "7 rotary dimensions");
    r = good, r.n_rot = 10;
    refuse(r, NKV_EFORMAT, "10 rotary dimensions");
    r = good, r.rope_freq = -1;
    refuse(r, NKV_EFORMAT, "rope_freqs.weight");
    r = good, r.rope_freq = NAN;
    refuse(r, NKV_EFORMAT, "rope_freqs.weight");
}

static void test_unsupported(void **state)
{
    struct recipe r;

    (void)state;
    r = good, r.architecture = "mamba";
    refuse(r, NKV_ENOTSUP, "architecture mamba");
    r = good, r.scaling = "yarn";
    refuse(r, NKV_ENOTSUP, "rope.scaling.type is yarn");
    r = good, r.u32_key = "llama.expert_count";
    refuse(r, NKV_ENOTSUP, "llama.expert_count is 3");
    r = good, r.u32_key = "llama.attention.value_length";
    refuse(r, NKV_ENOTSUP, "they must be equal");
    r = good, r.extra_tensor = "blk.0.attn_q_norm.weight";
    refuse(r, NKV_ENOTSUP, "blk.0.attn_q_norm.weight");
    r = good, r.vector_dtype = NKV_Q8_0;
    refuse(r, NKV_ENOTSUP, "output_norm.weight is a vector of type Q8_0");
}

/* ---- Running */

static void open_fixture(const char *name, struct nkv_model **model_out)
{
    char path[512];

    fixture_path(name, "gguf", path);
    assert_ok(nkv_model_open(path, model_out));
}

static void test_info(void **state)
{
    struct nkv_model *model;
    struct nkv_model_info info;
    struct nkv_kv_shape shape;
    uint64_t bytes = 0;

    (void)state;
    open_fixture("qwen2", &model);
    nkv_model_info(model, &info);
    assert_string_equal(info.architecture, "qwen2");
    assert_string_equal(info.name, "fixture qwen2");
    assert_int_equal(info.n_layers, 2);
    assert_int_equal(info.n_vocab, 256);
    assert_int_equal(info.weight_dtype, NKV_F16);
    assert_true(info.tied_embeddings);
    assert_int_equal(info.n_parameters, 256 * 64 + 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 64 + 2 * 64 + 128));
    nkv_model_kv_shape(model, 32, NKV_Q8_0, NKV_DIGEST_MINMAX, &shape);
    assert_ok(nkv_kv_shape_check(&shape));
    assert_int_equal(shape.head_dim, 16);
    assert_ok(nkv_decoder_estimate(model, NULL, &bytes));
    assert_true(bytes > 512 * 64 * 4);
    nkv_model_close(model);
}

static void test_no_such_model(void **state)
{
    struct nkv_model *model = NULL;

    (void)state;
    assert_int_equal(nkv_model_open("/nonexistent.gguf", &model), NKV_ENOENT);
    assert_int_equal(nkv_model_open_random("llama-99b", NKV_F16, 1, &model), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "llama-3.2-1b"));
    assert_null(model);
}

static void test_random_model_runs(void **state)
{
    static const int32_t tokens[40] = {1, 2, 3};

    (void)state;
    for (int dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
        struct nkv_model *model;
        struct nkv_seq *seq;
        struct rig rig;
        float logits[260];

        assert_ok(nkv_model_open_random("needle-256", (enum nkv_dtype)dtype, 5, &model));
        rig_open(model, "cpu", NKV_F16, 32, 2, &rig);
        seq = open_seq(&rig, NKV_MODE_PNM, 128);
        assert_ok(nkv_prefill(rig.decoder, seq, tokens, 40, logits, NULL, NULL));
        assert_ok(nkv_decode(rig.decoder, &seq, tokens, 1, logits));
        for (int i = 0; i < 260; i++)
            assert_true(fabsf(logits[i]) < 1e3f);
        rig_close(&rig);
        nkv_model_close(model);
    }
}

/* A blank model has the sizes of a random one and can be run; without running, its weights take no memory. */
static void test_blank_model(void **state)
{
    static const int32_t tokens[4] = {1, 2, 3};
    struct nkv_model *random, *blank;
    struct nkv_model_info a, b;
    struct rig rig;
    float logits[260];

    (void)state;
    assert_ok(nkv_model_open_random("needle-256", NKV_Q8_0, 5, &random));
    assert_ok(nkv_model_open_blank("needle-256", NKV_Q8_0, &blank));
    nkv_model_info(random, &a);
    nkv_model_info(blank, &b);
    assert_true(b.weight_bytes > 500000 && a.weight_bytes == b.weight_bytes && a.n_parameters == b.n_parameters);
    rig_open(blank, "cpu", NKV_F16, 32, 2, &rig);
    assert_ok(nkv_prefill(rig.decoder, open_seq(&rig, NKV_MODE_PNM, 128), tokens, 4, logits, NULL, NULL));
    for (int i = 0; i < 260; i++)
        assert_true(logits[i] == 0);
    rig_close(&rig);
    nkv_model_close(blank);
    nkv_model_close(random);
    assert_ok(nkv_model_open_blank("llama-3.1-8b", NKV_F32, &blank));
    nkv_model_info(blank, &b);
    assert_true(b.weight_bytes > UINT64_C(32000000000)); /* more than most machines that run this have */
    nkv_model_close(blank);
    assert_int_equal(nkv_model_open_blank("llama-99b", NKV_F16, &blank), NKV_EINVAL);
}

static void poison(const char *name, float *x, size_t n)
{
    if (strcmp(name, "blk.1.ffn_up.weight") == 0)
        x[n / 2] = NAN;
}

static void test_nan_in_weights(void **state)
{
    static const struct nkv_sampler_options greedy = {sizeof greedy, 0, 0, 1, 0};
    static const int32_t tokens[40] = {5, 6, 7};

    (void)state;
    for (int mode = 0; mode < NKV_MODE_COUNT; mode++) {
        struct nkv_model *model;
        struct nkv_sampler *sampler;
        struct nkv_seq *seq;
        struct rig rig;
        float logits[256];
        int32_t token = 0;
        size_t bytes;
        void *data;

        convert_fixture("llama", NKV_F32, poison, &data, &bytes);
        assert_ok(nkv_model_open_memory(data, bytes, "poisoned", &model));
        assert_ok(nkv_sampler_open(&greedy, &sampler));
        rig_open(model, "cpu", NKV_F32, 8, 2, &rig);
        seq = open_seq(&rig, (enum nkv_mode)mode, 32);
        assert_ok(nkv_prefill(rig.decoder, seq, tokens, 40, logits, NULL, NULL));
        assert_int_equal(nkv_sample(sampler, logits, 256, &token), NKV_EINVAL);
        assert_non_null(strstr(nkv_last_error(), "NaN"));
        assert_ok(nkv_decode(rig.decoder, &seq, tokens, 1, logits));
        rig_close(&rig);
        nkv_sampler_close(sampler);
        nkv_model_close(model);
        nkv_free(data);
    }
}

static int stop_at_two(void *arg, uint64_t n_done, uint64_t n_total)
{
    (void)n_total;
    *(uint64_t *)arg = n_done;
    return n_done >= 112;
}

static void test_bad_calls(void **state)
{
    int32_t tokens[150] = {0};
    struct nkv_decoder_options bad = {.size = 3};
    struct nkv_decoder *decoder = NULL;
    struct nkv_model *model, *other;
    struct nkv_seq *seq, *five[5];
    struct rig rig;
    float logits[5 * 256];
    uint64_t done = 0;

    (void)state;
    open_fixture("llama", &model);
    rig_open(model, "cpu", NKV_F16, 16, 1, &rig);
    seq = open_seq(&rig, NKV_MODE_PNM, 64);
    assert_int_equal(nkv_prefill(rig.decoder, seq, tokens, 0, logits, NULL, NULL), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "empty"));
    tokens[7] = 256;
    assert_int_equal(nkv_prefill(rig.decoder, seq, tokens, 20, logits, NULL, NULL), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "token 7 is 256"));
    tokens[7] = -1;
    assert_int_equal(nkv_decode(rig.decoder, &seq, tokens + 7, 1, logits), NKV_EINVAL);
    tokens[7] = 0;
    for (int i = 0; i < 5; i++)
        five[i] = seq;
    assert_int_equal(nkv_decode(rig.decoder, five, tokens, 5, logits), NKV_EINVAL);
    assert_int_equal(nkv_decode(rig.decoder, five, tokens, 0, logits), NKV_EINVAL);
    assert_true(nkv_decode(rig.decoder, five, tokens, 2, logits) < 0); /* twice the same sequence */
    assert_int_equal(nkv_seq_length(seq), 0);
    assert_int_equal(nkv_prefill(rig.decoder, seq, tokens, 150, NULL, stop_at_two, &done), NKV_ECANCELED);
    assert_int_equal(done, 112);
    assert_int_equal(nkv_seq_length(seq), 112);
    assert_true(nkv_prefill(rig.decoder, seq, tokens, 150, NULL, NULL, NULL) < 0); /* 262 of 256 tokens */
    assert_int_equal(nkv_seq_length(seq), 224);
    assert_int_equal(nkv_decoder_open(model, rig.context, &bad, &decoder), NKV_EINVAL);
    bad.size = sizeof bad, bad.chunk_tokens = 1u << 30;
    assert_int_equal(nkv_decoder_open(model, rig.context, &bad, &decoder), NKV_EINVAL);
    open_fixture("llama-tied", &other);
    assert_int_equal(nkv_decoder_open(other, rig.context, NULL, &decoder), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "the context is for 2 layers"));
    nkv_model_close(other);
    rig_close(&rig);
    nkv_model_close(model);
}

/* The device fails one command of one sequence: the others go on, and give what they give without it. */
static void test_device_that_fails(void **state)
{
    static const int32_t tokens[60] = {9, 8, 7, 6, 5};
    float alone[256], batch[2 * 256];
    struct nkv_model *model;
    struct nkv_seq *seqs[2];
    struct rig rig;

    (void)state;
    open_fixture("llama", &model);
    rig_open(model, "cpu", NKV_F16, 16, 1, &rig);
    seqs[0] = open_seq(&rig, NKV_MODE_PNM, 64);
    assert_ok(nkv_prefill(rig.decoder, seqs[0], tokens, 60, NULL, NULL, NULL));
    assert_ok(nkv_decode(rig.decoder, seqs, tokens, 1, alone));
    rig_close(&rig);

    rig_open(model, "fault:op=select,n=2:cpu", NKV_F16, 16, 1, &rig); /* the second SELECT: of the second sequence */
    for (int i = 0; i < 2; i++) {
        seqs[i] = open_seq(&rig, NKV_MODE_PNM, 64);
        assert_ok(nkv_prefill(rig.decoder, seqs[i], tokens, 60, NULL, NULL, NULL));
    }
    assert_ok(nkv_decode(rig.decoder, seqs, tokens, 2, batch));
    assert_int_equal(nkv_seq_status(seqs[0]), 0);
    assert_int_equal(nkv_seq_status(seqs[1]), NKV_EDEVICE);
    assert_true(cosine(alone, batch, 256) > 0.999999);
    for (int i = 0; i < 256; i++)
        assert_true(fabsf(batch[256 + i]) <= 0);
    assert_int_equal(nkv_prefill(rig.decoder, seqs[1], tokens, 5, NULL, NULL, NULL), NKV_EDEVICE);
    assert_ok(nkv_decode(rig.decoder, seqs, tokens, 1, batch));
    rig_close(&rig);
    nkv_model_close(model);
}

/* ---- Memory that runs out */

static int open_and_run(struct nkv_context *context, struct nkv_seq *seq)
{
    static const int32_t tokens[30] = {1};
    struct nkv_decoder_options options = {.size = sizeof options, .n_threads = 2, .max_batch = 2, .chunk_tokens = 64};
    struct nkv_model *model = NULL;
    struct nkv_decoder *decoder = NULL;
    float logits[256];
    char path[512];
    int status;

    fixture_path("llama-rope", "gguf", path);
    status = nkv_model_open(path, &model);
    if (status == 0)
        status = nkv_decoder_open(model, context, &options, &decoder);
    if (status == 0)
        status = nkv_prefill(decoder, seq, tokens, 30, logits, NULL, NULL);
    if (status == 0)
        status = nkv_decode(decoder, &seq, tokens, 1, logits);
    nkv_decoder_close(decoder);
    nkv_model_close(model);
    return status;
}

static void test_every_allocation_failing(void **state)
{
    struct nkv_model *model;
    struct nkv_seq *seq;
    struct rig rig;
    int status = NKV_ENOMEM;
    uint64_t n;

    (void)state;
    open_fixture("llama-rope", &model);
    rig_open(model, "cpu", NKV_F16, 16, 1, &rig);
    seq = open_seq(&rig, NKV_MODE_FULL, 64);
    for (n = 1; status == NKV_ENOMEM; n++) {
        nkv_mem_fail_at(n);
        status = open_and_run(rig.context, seq);
        nkv_mem_fail_at(0);
        assert_true(status == 0 || nkv_seq_length(seq) == 0);
    }
    assert_int_equal(status, 0);
    assert_true(n > 30);
    assert_int_equal(nkv_seq_length(seq), 31);
    rig_close(&rig);
    nkv_model_close(model);
}

static void test_decode_allocates_nothing(void **state)
{
    static const int32_t tokens[60] = {1};
    struct nkv_model *model;
    struct nkv_seq *seq;
    struct rig rig;
    float logits[256];

    (void)state;
    open_fixture("qwen2", &model);
    for (int mode = 0; mode < NKV_MODE_COUNT; mode++) {
        rig_open(model, "cpu", NKV_F16, 16, 2, &rig);
        seq = open_seq(&rig, (enum nkv_mode)mode, 64);
        assert_ok(nkv_prefill(rig.decoder, seq, tokens, 60, NULL, NULL, NULL));
        nkv_mem_fail_at(0);
        for (int i = 0; i < 20; i++)
            assert_ok(nkv_decode(rig.decoder, &seq, tokens, 1, logits));
        assert_int_equal(nkv_mem_fail_at(0), 0);
        rig_close(&rig);
    }
    nkv_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contradictions),
        cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_no_such_model),
        cmocka_unit_test(test_random_model_runs),
        cmocka_unit_test(test_blank_model),
        cmocka_unit_test(test_nan_in_weights),
        cmocka_unit_test(test_bad_calls),
        cmocka_unit_test(test_device_that_fails),
        cmocka_unit_test(test_every_allocation_failing),
        cmocka_unit_test(test_decode_allocates_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
