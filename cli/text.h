/* SPDX-License-Identifier: Apache-2.0 */
/* text.h: text from files and directories, and text that goes into JSON and CSV. */
#ifndef NKV_CLI_TEXT_H
#define NKV_CLI_TEXT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Grows as it is appended to; freed with text_free. */
struct text {
    char *data; /* zero terminated when not NULL */
    size_t bytes, capacity;
};

/* returns: CLI_OK, or CLI_FAILED with a message (memory). */
int text_append(struct text *text, const void *data, size_t bytes);
void text_free(struct text *text);

/* Appends a whole file; "-" is the standard input. returns: CLI_OK, CLI_FAILED naming the file and why
 * (memory, Ctrl-C). */
int text_read(struct text *text, const char *path);
/*
 * Appends a file, or the text files below a directory in alphabetical order, until text holds max_bytes. Hidden files,
 * links and files with a zero byte near their beginning are passed over. returns: as text_read.
 */
int text_collect(struct text *text, const char *path, size_t max_bytes);
/* Appends about max_bytes of generated sentences, the same for the same seed. */
int text_generate(struct text *text, size_t max_bytes, uint64_t seed);

/* Bytes without the beginning of a UTF-8 character at their end whose other bytes are still to come. */
size_t text_whole_characters(const char *data, size_t bytes);

/* splitmix64: the next number. */
uint64_t text_random(uint64_t *state);

/* A JSON string; what is not UTF-8 becomes U+FFFD. NULL when memory is short. */
json_t *text_json(const char *data, size_t bytes);
/* Prints the object (NULL: memory was short) as one line on standard output and frees it. returns: CLI_OK, CLI_FAILED.
 */
int text_print_json(json_t *object);
/* A CSV field: quoted, quotes doubled, when it needs to be. */
void text_put_csv(FILE *file, const char *text);

#endif
