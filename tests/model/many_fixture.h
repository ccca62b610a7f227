/* SPDX-License-Identifier: Apache-2.0 */
/* tests/model/many_fixture.h: a model over two devices and a compute device, with a decoder for many sequences. */
#ifndef NKV_TESTS_MANY_FIXTURE_H
#define NKV_TESTS_MANY_FIXTURE_H

#include "model_fixture.h"

#define N_DEVICES 2u

/* Of what is opened next. */
static uint32_t n_micro_batches = 1, many_batch = 8;
static uint64_t (*many_clock)(void *);

struct many {
    struct nkv_model *model;
    struct nkv_device *devices[N_DEVICES], *compute;
    struct nkv_context *context;
    struct nkv_decoder *decoder;
    uint32_t n_vocab;
};

static inline void open_many(const char *spec, uint64_t capacity_bytes, struct many *m)
{
    struct nkv_device_config config = {.size = sizeof config, .capacity_bytes = capacity_bytes, .n_threads = 1};
    struct nkv_context_options context = {.size = sizeof context,
                                          .n_devices = N_DEVICES,
                                          .max_batch = many_batch,
                                          .max_tokens = 64,
                                          .now_ns = many_clock};
    struct nkv_decoder_options decoder = {.size = sizeof decoder,
                                          .n_threads = 2,
                                          .max_batch = many_batch,
                                          .chunk_tokens = 40,
                                          .n_micro_batches = n_micro_batches};
    struct nkv_model_info info;
    char path[512];

    *m = (struct many){0};
    fixture_path("llama", "gguf", path);
    assert_ok(nkv_model_open(path, &m->model));
    nkv_model_info(m->model, &info);
    m->n_vocab = info.n_vocab;
    nkv_model_kv_shape(m->model, 16, NKV_F16, NKV_DIGEST_MINMAX, &config.shape);
    for (uint32_t i = 0; i < N_DEVICES; i++)
        assert_ok(nkv_device_open(i == 0 ? spec : "cpu", &config, &m->devices[i]));
    config.capacity_bytes = 16u << 20;
    assert_ok(nkv_device_open("cpu", &config, &m->compute));
    context.shape = config.shape;
    context.devices = m->devices;
    context.compute = m->compute;
    assert_ok(nkv_context_open(&context, &m->context));
    assert_ok(nkv_decoder_open(m->model, m->context, &decoder, &m->decoder));
}

static inline void close_many(struct many *m)
{
    nkv_decoder_close(m->decoder);
    nkv_context_close(m->context);
    for (uint32_t i = 0; i < N_DEVICES; i++)
        nkv_device_close(m->devices[i]);
    nkv_device_close(m->compute);
    nkv_model_close(m->model);
}

#endif
