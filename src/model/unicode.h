/* SPDX-License-Identifier: Apache-2.0 */
/* model/unicode.h: what the tokenizers need to know about UTF-8 and about GPT-2's byte alphabet. */
#ifndef NKV_MODEL_UNICODE_H
#define NKV_MODEL_UNICODE_H

#include <stddef.h>
#include <stdint.h>

/* Bytes (1-4) of the well-formed UTF-8 character at text, 0 when there is none. pre: bytes > 0. */
size_t nkv_utf8_next(const char *text, size_t bytes);

#define NKV_ALPHABET_FOREIGN SIZE_MAX

/*
 * Turns a token as GPT-2 vocabularies spell it (one printable character per byte) into its bytes, at most `bytes` of
 * them. returns: their number, or NKV_ALPHABET_FOREIGN when a character is not of the alphabet.
 */
size_t nkv_alphabet_decode(const char *text, size_t bytes, char *bytes_out);

#endif
