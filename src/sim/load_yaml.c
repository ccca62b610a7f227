/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two passes over a document. The first is a walk over libyaml's events that refuses what no machine or model file
 * needs (anchors, aliases, lists, several documents, deep nesting, NUL characters), so that the second, libcyaml, is
 * given nothing but scalars in a few mappings. libcyaml then sorts the values into structs as a schema has it and
 * refuses unknown and repeated keys.
 *
 * libcyaml reports through a log: its first error is the reason, and the fields of its backtrace, innermost first,
 * are the key. The lines it gives are those where a mapping starts, not where the key is; the walk, run again, finds
 * the key's own. Keeping the line of every key from the first walk on was rejected: it is needed once per failure.
 *
 * libcyaml's memory comes from nkv_alloc behind a header that holds the size, which its realloc-like interface needs.
 * libyaml's comes from malloc: it has no hook.
 */
#define _POSIX_C_SOURCE 200809L
#include "sim/load.h"

#include <stdio.h>
#include <string.h>

#include <cyaml/cyaml.h>
#include <yaml.h>

#include "base/mem.h"

#define MAX_DEPTH     4u
#define NO_MATCH      SIZE_MAX
#define KEY_BYTES     64u
#define LISTED_FIELDS 10u /* as many allowed keys are listed; of more, the nearest */

/* ---- The walk */

struct walk {
    const struct sim_doc *doc;
    const char *wanted;            /* a key whose line is looked for, or NULL */
    bool last;                     /* which of several: the last, or the first */
    uint32_t line, line_depth;     /* of the deepest part of it */
    size_t matched[MAX_DEPTH + 1]; /* bytes of wanted that the keys down to a depth make up, or NO_MATCH */
    bool at_value[MAX_DEPTH + 1];
    uint32_t depth, n_documents;
};

static int fail_at(const struct sim_doc *doc, uint32_t line, const char *what)
{
    FAIL(NKV_EFORMAT, "%s:%u: %s", doc->name, line, what);
}

static int fail_parse(const struct sim_doc *doc, const yaml_parser_t *parser)
{
    uint32_t line = (uint32_t)parser->problem_mark.line + 1;

    if (parser->error == YAML_MEMORY_ERROR)
        FAIL(NKV_ENOMEM, "%s: out of memory", doc->name);
    if (parser->error == YAML_READER_ERROR) { /* it has an offset only */
        line = 1;
        for (size_t i = 0; i < parser->problem_offset && i < doc->bytes; i++)
            line += doc->text[i] == '\n';
    }
    return fail_at(doc, line, parser->problem ? parser->problem : "not YAML");
}

/* A key at the depth the walk is at: does it go on with what is wanted? */
static void match_key(struct walk *w, const char *key, size_t bytes, uint32_t line)
{
    size_t from = w->matched[w->depth - 1];
    const char *rest = w->wanted && from != NO_MATCH ? w->wanted + from : "";
    bool same = bytes > 0 && strncmp(rest, key, bytes) == 0 && (rest[bytes] == '.' || rest[bytes] == 0);

    w->matched[w->depth] = same ? from + bytes + (rest[bytes] == '.') : NO_MATCH;
    if (same && w->depth + w->last > w->line_depth) {
        w->line_depth = w->depth;
        w->line = line;
    }
}

static int check_scalar(struct walk *w, const yaml_event_t *event, uint32_t line)
{
    const char *value = (const char *)event->data.scalar.value;

    if (event->data.scalar.anchor)
        return fail_at(w->doc, line, "anchors are not allowed");
    if (w->depth == 0)
        return fail_at(w->doc, line, *value ? "the file must be a mapping: KEY: VALUE" : "the file is empty");
    if (strlen(value) != event->data.scalar.length)
        return fail_at(w->doc, line, "a NUL character");
    if (!w->at_value[w->depth])
        match_key(w, value, event->data.scalar.length, line);
    w->at_value[w->depth] = !w->at_value[w->depth];
    return 0;
}

static int check_mapping(struct walk *w, const yaml_event_t *event, uint32_t line)
{
    if (event->data.mapping_start.anchor)
        return fail_at(w->doc, line, "anchors are not allowed");
    if (w->depth > 0 && !w->at_value[w->depth])
        return fail_at(w->doc, line, "a key must be a word");
    if (w->depth == MAX_DEPTH)
        return fail_at(w->doc, line, "mappings are nested too deep");
    w->at_value[w->depth] = false; /* for when this one ends */
    w->depth++;
    w->at_value[w->depth] = false;
    return 0;
}

static int check_event(struct walk *w, const yaml_event_t *event)
{
    uint32_t line = (uint32_t)event->start_mark.line + 1;

    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (++w->n_documents > 1)
            return fail_at(w->doc, line, "a second document: a file holds one");
        return 0;
    case YAML_ALIAS_EVENT:
        return fail_at(w->doc, line, "aliases are not allowed");
    case YAML_SEQUENCE_START_EVENT:
        return fail_at(w->doc, line, "lists are not allowed");
    case YAML_SCALAR_EVENT:
        return check_scalar(w, event, line);
    case YAML_MAPPING_START_EVENT:
        return check_mapping(w, event, line);
    case YAML_MAPPING_END_EVENT:
        w->depth--;
        return 0;
    case YAML_STREAM_END_EVENT:
        if (w->n_documents == 0)
            return fail_at(w->doc, 1, "the file is empty");
        return 0;
    default:
        return 0;
    }
}

static int walk_events(struct walk *w, yaml_parser_t *parser)
{
    yaml_event_type_t type;
    yaml_event_t event;

    do {
        int status;

        if (!yaml_parser_parse(parser, &event))
            return fail_parse(w->doc, parser);
        status = check_event(w, &event);
        type = event.type;
        yaml_event_delete(&event);
        TRY(status);
    } while (type != YAML_STREAM_END_EVENT);
    return 0;
}

static int walk(struct walk *w)
{
    yaml_parser_t parser;
    int status;

    if (!yaml_parser_initialize(&parser))
        FAIL(NKV_ENOMEM, "%s: out of memory", w->doc->name);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)w->doc->text, w->doc->bytes);
    status = walk_events(w, &parser);
    yaml_parser_delete(&parser);
    return status;
}

static int blame(int status, const struct sim_doc *doc, const char *key, bool last)
{
    struct walk w = {.doc = doc, .wanted = key, .last = last};
    char message[512];

    snprintf(message, sizeof message, "%s", nkv_last_error());
    (void)walk(&w); /* only its line matters; it may fail where the document does */
    if (w.line == 0)
        FAIL(status, "%s: %s", doc->name, message);
    FAIL(status, "%s:%u: %s", doc->name, w.line, message);
}

int sim_load_blame(int status, const struct sim_doc *doc, const char *key)
{
    char first[128];

    snprintf(first, sizeof first, "%.*s", (int)strcspn(nkv_last_error(), " :"), nkv_last_error());
    return blame(status, doc, key ? key : first, false);
}

/* ---- libcyaml */

static void *resize(void *context, void *memory, size_t bytes)
{
    uint8_t *old = memory ? (uint8_t *)memory - NKV_CACHE_LINE : NULL, *new = NULL;
    size_t old_bytes = 0;

    (void)context;
    if (bytes && nkv_alloc(bytes + NKV_CACHE_LINE, 1, &new) < 0)
        return NULL;
    if (new)
        memcpy(new, &bytes, sizeof bytes);
    if (old)
        memcpy(&old_bytes, old, sizeof old_bytes);
    if (new &&old)
        memcpy(new + NKV_CACHE_LINE, memory, old_bytes < bytes ? old_bytes : bytes);
    nkv_free(old);
    return new ? new + NKV_CACHE_LINE : NULL;
}

/* What the log says of a failure. */
struct report {
    char reason[128];
    char key[4 * KEY_BYTES];
};

/* "price" before "unit" is "price.unit". Fields are names of a schema, so they always fit. */
static void prepend(char *key, size_t key_bytes, const char *field)
{
    size_t bytes = strlen(field), rest = strlen(key);

    if (bytes + rest + 2 > key_bytes)
        return;
    memmove(key + bytes + (rest > 0), key, rest + 1);
    memcpy(key, field, bytes);
    key[bytes] = rest > 0 ? '.' : 0;
}

/* libcyaml's lines: "Load: REASON", "Load: Backtrace:", "  in mapping field 'KEY' (line: 3, column: 3)". */
static void take_log(cyaml_log_t level, void *context, const char *format, va_list args)
{
    static const char in_field[] = "in mapping field '";
    struct report *report = context;
    char text[256];
    char *field, *end;

    (void)level;
    vsnprintf(text, sizeof text, format, args);
    field = strstr(text, in_field);
    if (field && strncmp(text, "Load:", 5) != 0) {
        field += sizeof in_field - 1;
        end = strchr(field, '\'');
        if (end)
            *end = 0;
        prepend(report->key, sizeof report->key, field);
    } else if (!report->reason[0] && strncmp(text, "Load: ", 6) == 0 && !strstr(text, "Backtrace")) {
        text[strcspn(text, "\n")] = 0;
        snprintf(report->reason, sizeof report->reason, "%.*s", (int)sizeof report->reason - 1, text + 6);
    }
}

static cyaml_config_t config(struct report *report)
{
    return (cyaml_config_t){.log_fn = take_log,
                            .log_ctx = report,
                            .mem_fn = resize,
                            .log_level = CYAML_LOG_ERROR,
                            .flags = CYAML_CFG_NO_ALIAS};
}

/* The fields of the mapping at a key ("", "gpu", "gpu.price"). */
static const cyaml_schema_field_t *fields_at(const cyaml_schema_value_t *schema, const char *key)
{
    const cyaml_schema_field_t *field = schema->mapping.fields;

    while (*key && field->key) {
        size_t bytes = strcspn(key, ".");

        if (strlen(field->key) != bytes || memcmp(field->key, key, bytes) != 0) {
            field++;
            continue;
        }
        field = field->value.mapping.fields;
        key += bytes + (key[bytes] == '.');
    }
    return field;
}

static void list_fields(const cyaml_schema_field_t *fields, char *list, size_t bytes)
{
    size_t used = 0;

    for (uint32_t i = 0; fields[i].key && used < bytes; i++)
        used += (size_t)snprintf(list + used, bytes - used, "%s%s", i ? ", " : "", fields[i].key);
}

static int fail_unknown(const struct sim_doc *doc, const cyaml_schema_value_t *schema, struct report *report)
{
    const cyaml_schema_field_t *fields = fields_at(schema, report->key), *nearest = fields;
    const char *unknown = strchr(report->reason, ':') + 2;
    char where[5 * KEY_BYTES], list[256] = "";
    uint32_t n = 0;

    for (; fields[n].key; n++)
        if (sim_edit_distance(fields[n].key, unknown) < sim_edit_distance(nearest->key, unknown))
            nearest = &fields[n];
    if (n <= LISTED_FIELDS)
        list_fields(fields, list, sizeof list);
    snprintf(where, sizeof where, "%s%s%.*s", report->key, report->key[0] ? "." : "", (int)KEY_BYTES - 1, unknown);
    return sim_load_blame(nkv_fail(NKV_EFORMAT, "unknown key '%s': %s %s", where,
                                   n <= LISTED_FIELDS ? "the keys here are" : "the nearest is",
                                   n <= LISTED_FIELDS ? list : nearest->key),
                          doc, where);
}

static int fail_load(const struct sim_doc *doc, const cyaml_schema_value_t *schema, cyaml_err_t error,
                     struct report *report)
{
    if (error == CYAML_ERR_OOM)
        FAIL(NKV_ENOMEM, "%s: out of memory", doc->name);
    if (error == CYAML_ERR_INVALID_KEY && strchr(report->reason, ':'))
        return fail_unknown(doc, schema, report);
    if (error == CYAML_ERR_UNEXPECTED_EVENT)
        return blame(nkv_fail(NKV_EFORMAT, "%s is given twice", report->key), doc, report->key, true);
    if (error == CYAML_ERR_INVALID_VALUE)
        return blame(nkv_fail(NKV_EFORMAT, "%s: %s", report->key, report->reason), doc, report->key, false);
    FAIL(NKV_EFORMAT, "%s: %s: %s", doc->name, cyaml_strerror(error), report->reason);
}

void sim_yaml_word(struct cyaml_schema_field *field, const char *key, size_t offset)
{
    *field = (cyaml_schema_field_t){
        .key = key,
        .data_offset = (uint32_t)offset,
        .value = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, char, 0, CYAML_UNLIMITED)}};
}

int sim_yaml_load(const struct sim_doc *doc, const struct cyaml_schema_value *schema, void **data_out)
{
    struct report report = {0};
    cyaml_config_t cyaml = config(&report);
    struct walk w = {.doc = doc};
    cyaml_data_t *data = NULL;
    cyaml_err_t error;

    TRY(walk(&w));
    error = cyaml_load_data((const uint8_t *)doc->text, doc->bytes, &cyaml, schema, &data, NULL);
    if (error != CYAML_OK)
        return fail_load(doc, schema, error, &report);
    *data_out = data;
    return 0;
}

void sim_yaml_free(const struct cyaml_schema_value *schema, void *data)
{
    struct report report = {0};
    cyaml_config_t cyaml = config(&report);

    (void)cyaml_free(&cyaml, schema, data, 0);
}
