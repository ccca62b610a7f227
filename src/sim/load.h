/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim/load.h: reading the YAML files of machines and models, and saying where one is wrong. A check elsewhere fails
 * with a message that starts with the key; sim_load_blame() puts the file and the key's line before it.
 */
#ifndef NKV_SIM_LOAD_H
#define NKV_SIM_LOAD_H

#include <stddef.h>
#include <stdint.h>

#define SIM_FILE_BYTES ((size_t)1 << 20) /* the largest file */

/* A file in memory. */
struct sim_doc {
    const char *name; /* for messages */
    const char *text;
    size_t bytes;
};

/* The whole file, to be freed with nkv_free. returns: NKV_ENOENT, NKV_EIO, NKV_EFORMAT (too large), NKV_ENOMEM. */
int sim_file_read(const char *path, char **text_out, size_t *bytes_out);

struct cyaml_schema_value;
struct cyaml_schema_field;
/* A field of a schema: an optional string (char *) at an offset of the struct. */
void sim_yaml_word(struct cyaml_schema_field *field, const char *key, size_t offset);
/* Loads a document as a schema has it. returns: NKV_EFORMAT with file and line; NKV_ENOMEM. */
int sim_yaml_load(const struct sim_doc *doc, const struct cyaml_schema_value *schema, void **data_out);
/* NULL is allowed. */
void sim_yaml_free(const struct cyaml_schema_value *schema, void *data);

/*
 * Puts "file:line: " before this thread's message: the line of a key ("gpu.price.unit"), or of the deepest part of it
 * that the document has; NULL: the key is the message's first word. returns: status.
 */
int sim_load_blame(int status, const struct sim_doc *doc, const char *key);

/* Letters to insert, delete or change between two names, of which the first 63 letters count. */
uint32_t sim_edit_distance(const char *a, const char *b);

#endif
