/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Model shapes: a table of the built-in ones, the ranges of their fields, and how many parameters a step multiplies
 * with. Shapes are in C and not in files, as machines are: they have no numbers to argue about and no sources to name
 * but the model's own configuration.
 */
#include "sim/model.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "sim/load.h"

#define FIELD(name, low, high)                                                                                         \
    {                                                                                                                  \
#name, offsetof(struct nkv_sim_model, name), (low), (high)                                                     \
    }

const struct sim_model_field sim_model_fields[SIM_MODEL_FIELDS] = {
    FIELD(n_layers, 1, NKV_MAX_LAYERS),  FIELD(hidden, 8, 1u << 20),           FIELD(n_heads, 1, NKV_MAX_HEADS),
    FIELD(n_kv_heads, 1, NKV_MAX_HEADS), FIELD(head_dim, 8, NKV_MAX_HEAD_DIM), FIELD(ffn, 1, 1u << 22),
    FIELD(vocab, 1, 1u << 24),
};

/* name, layers, hidden, heads, KV heads, head dimension, ffn, vocabulary, tied: of each model's config.json. */
static const struct nkv_sim_model builtins[] = {
    {"llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, false},
    {"llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256, false},
    {"llama-3.1-405b", 126, 16384, 128, 8, 128, 53248, 128256, false},
    {"llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, true},
    {"llama-3.2-3b", 28, 3072, 24, 8, 128, 8192, 128256, true},
    {"qwen2.5-7b-1m", 28, 3584, 28, 4, 128, 18944, 152064, false},
    {"llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000, false},
};

#define N_BUILTINS (sizeof builtins / sizeof *builtins)

const char *nkv_sim_model_builtin(uint32_t i)
{
    return i < N_BUILTINS ? builtins[i].name : NULL;
}

int sim_model_check(const struct nkv_sim_model *model)
{
    for (uint32_t i = 0; i < SIM_MODEL_FIELDS; i++) {
        const struct sim_model_field *field = &sim_model_fields[i];
        uint32_t value;

        memcpy(&value, (const char *)model + field->offset, sizeof value);
        if (value < field->low || value > field->high)
            FAIL(NKV_EINVAL, "%s is %u: it must be from %u to %u", field->name, value, field->low, field->high);
    }
    if (model->n_heads % model->n_kv_heads)
        FAIL(NKV_EINVAL, "n_kv_heads is %u: n_heads, which is %u, must be a multiple of it", model->n_kv_heads,
             model->n_heads);
    if (model->head_dim % 8)
        FAIL(NKV_EINVAL, "head_dim is %u: it must be a multiple of 8", model->head_dim);
    return 0;
}

static void list_builtins(char *list, size_t bytes)
{
    size_t used = 0;

    for (uint32_t i = 0; i < N_BUILTINS && used < bytes; i++)
        used += (size_t)snprintf(list + used, bytes - used, "%s%s", i ? ", " : "", builtins[i].name);
}

int nkv_sim_model_open(const char *name_or_path, struct nkv_sim_model *model_out)
{
    char list[256] = "", *text = NULL;
    size_t bytes = 0;
    int status;

    if (!name_or_path || !model_out)
        FAIL(NKV_EINVAL, "a model needs a name or a path, and a place to go");
    for (uint32_t i = 0; i < N_BUILTINS; i++)
        if (strcmp(name_or_path, builtins[i].name) == 0) {
            *model_out = builtins[i];
            return 0;
        }
    status = sim_file_read(name_or_path, &text, &bytes);
    if (status == NKV_ENOENT) {
        list_builtins(list, sizeof list);
        FAIL(NKV_ENOENT, "no model '%.100s': there is no such file, and the built-in models are %s", name_or_path,
             list);
    }
    TRY(status);
    status = sim_model_read(text, bytes, name_or_path, model_out);
    nkv_free(text);
    return status;
}

uint64_t nkv_sim_model_parameters(const struct nkv_sim_model *model)
{
    uint64_t hidden = model->hidden;
    uint64_t q_and_o = 2 * hidden * model->n_heads * model->head_dim;
    uint64_t k_and_v = 2 * hidden * model->n_kv_heads * model->head_dim;
    uint64_t ffn = 3 * hidden * model->ffn; /* gate, up and down */

    return model->n_layers * (q_and_o + k_and_v + ffn) + hidden * model->vocab;
}
