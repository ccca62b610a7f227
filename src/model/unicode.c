/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing above U+10FFFF. PCRE2 and Rust's strings draw
 * the same line, so a run that passes here may go to PCRE2 unchecked.
 *
 * GPT-2's byte alphabet gives each byte a printable character: bytes that are printable Latin-1 stand for themselves,
 * the other 68 become U+0100, U+0101, ... in order. So every character of it has one or two bytes.
 */
#include "model/unicode.h"

#include <stdbool.h>

static bool is_continuation(uint8_t byte)
{
    return (byte & 0xc0) == 0x80;
}

/* The second byte carries what the lead byte alone cannot exclude: overlong forms, surrogates, beyond U+10FFFF. */
static bool second_fits(uint8_t lead, uint8_t second)
{
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;

    return second >= low && second <= high;
}

size_t nkv_utf8_next(const char *text, size_t bytes)
{
    const uint8_t *p = (const uint8_t *)text;
    size_t n;

    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return 0;
    n = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (bytes < n || !second_fits(p[0], p[1]))
        return 0;
    for (size_t i = 2; i < n; i++)
        if (!is_continuation(p[i]))
            return 0;
    return n;
}

static bool stands_for_itself(uint32_t byte)
{
    return (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
}

/* The byte that a character stands for, or -1. The 68 others are 0x00-0x20, 0x7f-0xa0 and 0xad. */
static int alphabet_byte(uint32_t character)
{
    if (character < 0x100)
        return stands_for_itself(character) ? (int)character : -1;
    if (character < 0x121)
        return (int)(character - 0x100);
    if (character < 0x143)
        return (int)(character - 0x121 + 0x7f);
    return character == 0x143 ? 0xad : -1;
}

size_t nkv_alphabet_decode(const char *text, size_t bytes, char *bytes_out)
{
    size_t n = 0;

    for (size_t i = 0, step; i < bytes; i += step) {
        uint32_t character = (uint8_t)text[i];
        int byte;

        step = nkv_utf8_next(text + i, bytes - i);
        if (step == 0 || step > 2)
            return NKV_ALPHABET_FOREIGN;
        if (step == 2)
            character = (character & 0x1f) << 6 | ((uint8_t)text[i + 1] & 0x3f);
        byte = alphabet_byte(character);
        if (byte < 0)
            return NKV_ALPHABET_FOREIGN;
        bytes_out[n++] = (char)byte;
    }
    return n;
}
