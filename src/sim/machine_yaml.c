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

#include "base/mem.h"
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

/* What reading needs everywhere. */
struct reading {
    const struct sim_doc *doc;
    const struct loaded *loaded;
    struct nkv_sim_machine *machine;
};

/* ---- The schema */

static cyaml_schema_field_t word(const char *key, size_t offset)
{
    return (cyaml_schema_field_t){
        .key = key,
        .data_offset = (uint32_t)offset,
        .value = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, char, 0, CYAML_UNLIMITED)}};
}

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
    schema->number[0] = word("value", offsetof(struct loaded_number, value));
    schema->number[1] = word("unit", offsetof(struct loaded_number, unit));
    schema->number[2] = word("source", offsetof(struct loaded_number, source));
    schema->top[0] = word("name", offsetof(struct loaded, name));
    schema->top[1] = word("about", offsetof(struct loaded, about));
    schema->top[2] = word("base", offsetof(struct loaded, base));
    make_sections(schema);
    schema->root = (cyaml_schema_value_t){CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct loaded, schema->top)};
}

/* ---- Words */

static int copy_word(const struct sim_doc *doc, const char *key, const char *word, char *copy, size_t bytes)
{
    if (strlen(word) >= bytes)
        return sim_load_blame(
            nkv_fail(NKV_EFORMAT, "%s is %zu bytes long: at most %zu are allowed", key, strlen(word), bytes - 1), doc,
            key);
    snprintf(copy, bytes, "%s", word);
    return 0;
}

static int read_words(const struct reading *r)
{
    const struct loaded *loaded = r->loaded;

    if (!loaded->name || !*loaded->name)
        return sim_load_blame(nkv_fail(NKV_EFORMAT, "name is missing: a machine has one"), r->doc, "name");
    TRY(copy_word(r->doc, "name", loaded->name, r->machine->name, sizeof r->machine->name));
    r->machine->about[0] = 0;
    if (loaded->about)
        TRY(copy_word(r->doc, "about", loaded->about, r->machine->about, sizeof r->machine->about));
    return 0;
}

/* ---- Numbers */

static bool given(const char *word)
{
    return word && word[strspn(word, " ")];
}

static int check_given(uint32_t i, const struct loaded_number *number)
{
    const struct sim_key *key = &sim_keys[i];

    if (!given(number->value))
        FAIL(NKV_EFORMAT, "%s has no value", key->name);
    if (!given(number->unit) && key->unit != UNIT_ONE)
        FAIL(NKV_EFORMAT, "%s has no unit: its base unit is %s", key->name, sim_unit_base(key->unit));
    if (!given(number->source))
        FAIL(NKV_EFORMAT, "%s has no source: every number says where it comes from", key->name);
    if (strlen(number->value) + (number->unit ? strlen(number->unit) : 0) > 60)
        FAIL(NKV_EFORMAT, "%s: value and unit are too long for a number", key->name);
    return 0;
}

static int take_number(const struct reading *r, uint32_t i)
{
    const struct loaded_number *number = &r->loaded->numbers[i];
    double *value = sim_value(&r->machine->values, i);
    char text[64];

    TRY(check_given(i, number));
    snprintf(text, sizeof text, "%s%s%s", number->value, given(number->unit) ? " " : "",
             given(number->unit) ? number->unit : "");
    if (sim_number_parse(text, sim_keys[i].unit, value) < 0) {
        char reason[256];

        snprintf(reason, sizeof reason, "%s", nkv_last_error());
        FAIL(NKV_EFORMAT, "%s: %s", sim_keys[i].name, reason);
    }
    return sim_key_check(i, *value, text);
}

static int read_number(const struct reading *r, uint32_t i)
{
    const struct loaded_number *number = &r->loaded->numbers[i];
    double *value = sim_value(&r->machine->values, i);
    char key[64];

    if (!number->value && !number->unit && !number->source) {
        if (!isnan(*value)) /* the base's */
            return 0;
        if (isnan(sim_keys[i].fallback))
            return sim_load_blame(nkv_fail(NKV_EFORMAT, "%s is missing (%s)", sim_keys[i].name, sim_keys[i].what),
                                  r->doc, sim_keys[i].name);
        *value = sim_keys[i].fallback;
        snprintf(r->machine->sources[i], SIM_SOURCE_BYTES, "default");
        return 0;
    }
    if (take_number(r, i) < 0)
        return sim_load_blame(NKV_EFORMAT, r->doc, sim_keys[i].name);
    snprintf(key, sizeof key, "%s.source", sim_keys[i].name);
    return copy_word(r->doc, key, number->source, r->machine->sources[i], SIM_SOURCE_BYTES);
}

/* ---- Machines */

static int new_machine(const struct sim_doc *doc, const char *base, struct nkv_sim_machine **machine_out)
{
    int status;

    if (!base)
        return sim_machine_new(machine_out);
    status = sim_machine_read_builtin(base, machine_out);
    if (status == NKV_ENOENT)
        return sim_load_blame(NKV_EFORMAT, doc, "base");
    return status;
}

static int fill(const struct reading *r)
{
    TRY(read_words(r));
    for (uint32_t i = 0; i < sim_n_keys; i++)
        TRY(read_number(r, i));
    if (sim_machine_check(r->machine) < 0) {
        char key[64];

        snprintf(key, sizeof key, "%.*s", (int)strcspn(nkv_last_error(), " "), nkv_last_error());
        return sim_load_blame(NKV_EFORMAT, r->doc, key);
    }
    return 0;
}

int sim_machine_read(const char *text, size_t bytes, const char *name, struct nkv_sim_machine **machine_out)
{
    const struct sim_doc doc = {name, text, bytes};
    struct nkv_sim_machine *machine = NULL;
    struct schema schema;
    void *data = NULL;
    int status;

    make_schema(&schema);
    TRY(sim_yaml_load(&doc, &schema.root, &data));
    status = new_machine(&doc, ((struct loaded *)data)->base, &machine);
    if (status == 0)
        status = fill(&(struct reading){&doc, data, machine});
    sim_yaml_free(&schema.root, data);
    if (status < 0) {
        nkv_sim_machine_close(machine);
        return status;
    }
    *machine_out = machine;
    return 0;
}
