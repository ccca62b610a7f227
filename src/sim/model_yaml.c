/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model file: the fields of struct nkv_sim_model by their names, one a line:
 *
 *   name: my-model
 *   n_layers: 32
 *   ...
 *   tied: false            the one that may be missing
 *
 * Values come as strings: libcyaml's own integers take octal and hexadecimal, and name the C type where a person wants
 * the range.
 */
#include <stdio.h>
#include <string.h>

#include <cyaml/cyaml.h>

#include "base/status.h"
#include "sim/load.h"
#include "sim/model.h"

struct loaded {
    char *name, *tied;
    char *numbers[SIM_MODEL_FIELDS]; /* as sim_model_fields */
};

#define N_WORDS 2u

struct schema {
    cyaml_schema_field_t fields[N_WORDS + SIM_MODEL_FIELDS + 1];
    cyaml_schema_value_t root;
};

static void make_schema(struct schema *schema)
{
    memset(schema, 0, sizeof *schema);
    sim_yaml_word(&schema->fields[0], "name", offsetof(struct loaded, name));
    sim_yaml_word(&schema->fields[1], "tied", offsetof(struct loaded, tied));
    for (uint32_t i = 0; i < SIM_MODEL_FIELDS; i++)
        sim_yaml_word(&schema->fields[N_WORDS + i], sim_model_fields[i].name,
                      offsetof(struct loaded, numbers) + i * sizeof(char *));
    schema->root = (cyaml_schema_value_t){CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct loaded, schema->fields)};
}

static int read_number(const struct sim_model_field *field, const char *text, struct nkv_sim_model *model)
{
    uint64_t value = 0;

    if (!text)
        FAIL(NKV_EFORMAT, "%s is missing: it must be from %u to %u", field->name, field->low, field->high);
    for (const char *at = text; *at; at++) {
        if (*at < '0' || *at > '9')
            FAIL(NKV_EFORMAT, "%s is '%.60s': it must be a whole number from %u to %u", field->name, text, field->low,
                 field->high);
        value = value > UINT32_MAX ? value : value * 10 + (uint64_t)(*at - '0');
    }
    if (!*text || value > UINT32_MAX)
        FAIL(NKV_EFORMAT, "%s is '%.60s': it must be from %u to %u", field->name, text, field->low, field->high);
    memcpy((char *)model + field->offset, &(uint32_t){(uint32_t)value}, sizeof(uint32_t));
    return 0;
}

static int read_words(const struct loaded *loaded, struct nkv_sim_model *model)
{
    const char *tied = loaded->tied ? loaded->tied : "false";

    if (!loaded->name || !*loaded->name)
        FAIL(NKV_EFORMAT, "name is missing: a model has one");
    if (strlen(loaded->name) >= sizeof model->name)
        FAIL(NKV_EFORMAT, "name is %zu bytes long: at most %zu are allowed", strlen(loaded->name),
             sizeof model->name - 1);
    snprintf(model->name, sizeof model->name, "%s", loaded->name);
    model->tied = strcmp(tied, "true") == 0;
    if (!model->tied && strcmp(tied, "false") != 0)
        FAIL(NKV_EFORMAT, "tied is '%.60s': it must be true or false", tied);
    return 0;
}

static int fill(const struct loaded *loaded, struct nkv_sim_model *model)
{
    TRY(read_words(loaded, model));
    for (uint32_t i = 0; i < SIM_MODEL_FIELDS; i++)
        TRY(read_number(&sim_model_fields[i], loaded->numbers[i], model));
    return sim_model_check(model);
}

int sim_model_read(const char *text, size_t bytes, const char *name, struct nkv_sim_model *model_out)
{
    const struct sim_doc doc = {name, text, bytes};
    struct nkv_sim_model model = {0};
    struct schema schema;
    void *data = NULL;
    int status;

    make_schema(&schema);
    TRY(sim_yaml_load(&doc, &schema.root, &data));
    status = fill(data, &model);
    sim_yaml_free(&schema.root, data);
    if (status < 0)
        return sim_load_blame(NKV_EFORMAT, &doc, NULL);
    *model_out = model;
    return 0;
}
