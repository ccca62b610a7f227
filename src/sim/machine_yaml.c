/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine file:
 *
 *   name: paper-server
 *   about: one line
 *   base: h100-server      a built-in machine whose numbers stand where this file gives none
 *   gpu:
 *     memory_capacity: {value: 80, unit: GB, source: "where it is written"}
 *
 * Numbers are nested by section, the part of the key before its dot. The schema is made from the table of keys at run
 * time, so that table is the only list there is. Values come as strings: libcyaml's own floats follow the locale, take
 * "nan", and know neither units nor ranges.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <cyaml/cyaml.h>

#include "base/status.h"
#include "sim/load.h"
#include "sim/machine.h"

#define N_KEYS       (sizeof(struct sim_values) / sizeof(double))
#define MAX_SECTIONS 8u
#define N_WORDS      3u /* name, about, base */

struct loaded_number {
    char *value, *unit, *source;
};

struct loaded {
    char *name, *about, *base;
    struct loaded_number numbers[N_KEYS];
};

struct schema {
    cyaml_schema_field_t number[4];
    cyaml_schema_field_t keys[N_KEYS + MAX_SECTIONS]; /* section by section, each with its end */
    cyaml_schema_field_t top[N_WORDS + MAX_SECTIONS + 1];
    char sections[MAX_SECTIONS][16];
    cyaml_schema_value_t root;
};

/* ---- The schema */

static cyaml_schema_field_t mapping(const char *key, size_t offset, const cyaml_schema_field_t *fields)
{
    return (cyaml_schema_field_t){.key = key,
                                  .data_offset = (uint32_t)offset,
                                  .value = {.type = CYAML_MAPPING,
                                            .flags = CYAML_FLAG_OPTIONAL,
                                            .data_size = sizeof(struct loaded),
                                            .mapping = {.fields = fields}}};
}

/* The sections lie at offset 0 of struct loaded: the offsets of their numbers count from its start. */
static void make_sections(struct schema *schema)
{
    cyaml_schema_field_t *field = schema->keys;
    uint32_t n = 0;

    for (uint32_t i = 0; i < N_KEYS; i++) {
        const char *name = sim_keys[i].name, *dot = strchr(name, '.');
        size_t bytes = (size_t)(dot - name);

        if (n == 0 || strncmp(schema->sections[n - 1], name, bytes) != 0 || schema->sections[n - 1][bytes]) {
            if (n > 0)
                field++; /* past the end of the section before, which is zero */
            memcpy(schema->sections[n], name, bytes);
            schema->top[N_WORDS + n] = mapping(schema->sections[n], 0, field);
            n++;
        }
        *field++ =
            mapping(dot + 1, offsetof(struct loaded, numbers) + i * sizeof(struct loaded_number), schema->number);
    }
}

static void make_schema(struct schema *schema)
{
    memset(schema, 0, sizeof *schema);
    sim_yaml_word(&schema->number[0], "value", offsetof(struct loaded_number, value));
    sim_yaml_word(&schema->number[1], "unit", offsetof(struct loaded_number, unit));
    sim_yaml_word(&schema->number[2], "source", offsetof(struct loaded_number, source));
    sim_yaml_word(&schema->top[0], "name", offsetof(struct loaded, name));
    sim_yaml_word(&schema->top[1], "about", offsetof(struct loaded, about));
    sim_yaml_word(&schema->top[2], "base", offsetof(struct loaded, base));
    make_sections(schema);
    schema->root = (cyaml_schema_value_t){CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct loaded, schema->top)};
}

/* ---- Words */

static int copy_word(const char *key, const char *word, char *copy, size_t bytes)
{
    if (strlen(word) >= bytes)
        FAIL(NKV_EFORMAT, "%s is %zu bytes long: at most %zu are allowed", key, strlen(word), bytes - 1);
    snprintf(copy, bytes, "%s", word);
    return 0;
}

static int read_words(const struct loaded *loaded, struct nkv_sim_machine *machine)
{
    if (!loaded->name || !*loaded->name)
        FAIL(NKV_EFORMAT, "name is missing: a machine has one");
    TRY(copy_word("name", loaded->name, machine->name, sizeof machine->name));
    return copy_word("about", loaded->about ? loaded->about : "", machine->about, sizeof machine->about);
}

/* ---- Numbers */

static bool given(const char *word)
{
    return word && word[strspn(word, " ")];
}

static int check_given(const struct sim_key *key, const struct loaded_number *number)
{
    if (!given(number->value))
        FAIL(NKV_EFORMAT, "%s has no value", key->name);
    if (!given(number->unit) && key->unit != UNIT_ONE)
        FAIL(NKV_EFORMAT, "%s has no unit: its base unit is %s", key->name, sim_unit_base(key->unit));
    if (!given(number->source))
        FAIL(NKV_EFORMAT, "%s has no source: every number says where it comes from", key->name);
    return 0;
}

static int take_number(uint32_t i, const struct loaded_number *number, struct nkv_sim_machine *machine)
{
    const struct sim_key *key = &sim_keys[i];
    double *value = sim_value(&machine->values, i);
    char text[64], source[64], reason[256];
    int bytes;

    TRY(check_given(key, number));
    bytes = snprintf(text, sizeof text, "%s%s%s", number->value, given(number->unit) ? " " : "",
                     given(number->unit) ? number->unit : "");
    if (bytes >= (int)sizeof text)
        FAIL(NKV_EFORMAT, "%s: '%.30s...' is too long for a number", key->name, text);
    if (sim_number_parse(text, key->unit, value) < 0) {
        snprintf(reason, sizeof reason, "%s", nkv_last_error());
        FAIL(NKV_EFORMAT, "%s: %s", key->name, reason);
    }
    TRY(sim_key_check(i, *value, text));
    snprintf(source, sizeof source, "%s.source", key->name);
    return copy_word(source, number->source, machine->sources[i], SIM_SOURCE_BYTES);
}

/* A number that the file does not give: the base's, or the key's own. */
static int take_default(uint32_t i, struct nkv_sim_machine *machine)
{
    double *value = sim_value(&machine->values, i);

    if (!isnan(*value))
        return 0;
    if (isnan(sim_keys[i].fallback))
        FAIL(NKV_EFORMAT, "%s is missing (%s)", sim_keys[i].name, sim_keys[i].what);
    *value = sim_keys[i].fallback;
    return copy_word(sim_keys[i].name, "default", machine->sources[i], SIM_SOURCE_BYTES);
}

/* ---- Machines */

static int fill(const struct loaded *loaded, struct nkv_sim_machine *machine)
{
    TRY(read_words(loaded, machine));
    for (uint32_t i = 0; i < N_KEYS; i++) {
        const struct loaded_number *number = &loaded->numbers[i];

        if (number->value || number->unit || number->source)
            TRY(take_number(i, number, machine));
        else
            TRY(take_default(i, machine));
    }
    return sim_machine_check(machine);
}

static int make_machine(const struct sim_doc *doc, const struct loaded *loaded, struct nkv_sim_machine **machine_out)
{
    struct nkv_sim_machine *machine = NULL;
    int status = loaded->base ? sim_machine_read_builtin(loaded->base, &machine) : sim_machine_new(&machine);

    if (status == NKV_ENOENT)
        return sim_load_blame(NKV_EFORMAT, doc, "base");
    TRY(status);
    if (fill(loaded, machine) < 0) {
        nkv_sim_machine_close(machine);
        return sim_load_blame(NKV_EFORMAT, doc, NULL);
    }
    *machine_out = machine;
    return 0;
}

int sim_machine_read(const char *text, size_t bytes, const char *name, struct nkv_sim_machine **machine_out)
{
    const struct sim_doc doc = {name, text, bytes};
    struct schema schema;
    void *data = NULL;
    int status;

    make_schema(&schema);
    TRY(sim_yaml_load(&doc, &schema.root, &data));
    status = make_machine(&doc, data, machine_out);
    sim_yaml_free(&schema.root, data);
    return status;
}
