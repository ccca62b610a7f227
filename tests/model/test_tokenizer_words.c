/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words against those of the `tokenizers` package: a small vocabulary seldom has a merge across a border, so that
 * tokens alone would not show a border in the wrong place. Then what no package answers: malformed UTF-8 is a word by
 * itself.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>

#include "model/pretok.h"
#include "model/tokenizer_fixture.h"
#include "model/unicode.h"

static const char *const pretok_names[] = {"gpt-2", "llama-bpe", "qwen2"}; /* of fixture_names[0..2] */
#define N_PRETOKS (sizeof pretok_names / sizeof *pretok_names)

static struct nkv_pretok *open_pretok(const char *name)
{
    struct nkv_pretok *pretok = NULL;

    assert_int_equal(nkv_pretok_open((struct nkv_str){name, strlen(name)}, &pretok), 0);
    return pretok;
}

static void check_words(struct nkv_words *words, const char *text, size_t bytes, const json_t *expected)
{
    size_t start = 0, i = 0;

    nkv_words_begin(words, text, bytes);
    while (nkv_words_next(words) == 1) {
        json_int_t want = json_integer_value(json_array_get(expected, i));

        if ((json_int_t)(words->end - start) != want)
            fail_msg("'%s': word %zu has %zu bytes, not %d", text, i, words->end - start, (int)want);
        start = words->end;
        i++;
    }
    assert_int_equal(i, json_array_size(expected));
    assert_int_equal(start, bytes);
}

static void test_agrees_on_words(void **state)
{
    char path[512], key[32];
    json_t *cases, *c;
    size_t i;

    (void)state;
    snprintf(path, sizeof path, "%s/fixtures/tokenizer/cases.json", NKV_TEST_DIR);
    cases = json_load_file(path, JSON_ALLOW_NUL, NULL);
    for (size_t t = 0; t < N_PRETOKS; t++) {
        struct nkv_pretok *pretok = open_pretok(pretok_names[t]);
        struct nkv_words words;

        snprintf(key, sizeof key, "words.%s", fixture_names[t]);
        assert_int_equal(nkv_words_open(pretok, &words), 0);
        assert_int_equal(json_array_size(json_object_get(cases, key)),
                         json_array_size(json_object_get(cases, "plain")));
        json_array_foreach(json_object_get(cases, "plain"), i, c)
        {
            json_t *text = json_object_get(c, "text");

            check_words(&words, json_string_value(text), json_string_length(text),
                        json_array_get(json_object_get(cases, key), i));
        }
        nkv_words_close(&words);
        nkv_pretok_close(pretok);
    }
    json_decref(cases);
}

static void test_malformed_bytes_are_words(void **state)
{
    static const struct {
        const char *text, *lengths;
    } cases[] = {
        {"a\xff\xfe b", "[1,2,2]"}, {"\xed\xa0\x80x", "[3,1]"}, {"a\xc0\x80", "[1,2]"},
        {"\xe2\x96", "[2]"},        {"   \xff   ", "[3,1,3]"},  {"\xf4\x90\x80\x80\xf4\x8f\xbf\xbf", "[4,4]"},
    };

    (void)state;
    for (size_t t = 0; t < N_PRETOKS; t++) {
        struct nkv_pretok *pretok = open_pretok(pretok_names[t]);
        struct nkv_words words;

        assert_int_equal(nkv_words_open(pretok, &words), 0);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            json_t *lengths = json_loads(cases[i].lengths, 0, NULL);

            check_words(&words, cases[i].text, strlen(cases[i].text), lengths);
            json_decref(lengths);
        }
        nkv_words_close(&words);
        nkv_pretok_close(pretok);
    }
}

/* Every sequence of up to four bytes that encodes a character, from the definition. */
static size_t encode_utf8(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

static void test_utf8(void **state)
{
    static const char *const malformed[] = {"\x80",
                                            "\xbf",
                                            "\xc0\x80",
                                            "\xc1\xbf",
                                            "\xe0\x9f\xbf",
                                            "\xf0\x8f\xbf\xbf",
                                            "\xf4\x90\x80\x80",
                                            "\xf5\x80\x80\x80",
                                            "\xff",
                                            "\xc3\x28",
                                            "\xe2\x82\x28",
                                            "\xf0\x9f\x98\x28",
                                            "\xe2\x28\xa1"};
    char text[4];

    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        size_t n = encode_utf8(c, text), expected = c >= 0xd800 && c < 0xe000 ? 0 : n;

        if (nkv_utf8_next(text, n) != expected || (n > 1 && nkv_utf8_next(text, n - 1) != 0))
            fail_msg("U+%04X", c);
    }
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++)
        assert_int_equal(nkv_utf8_next(malformed[i], strlen(malformed[i])), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agrees_on_words),
        cmocka_unit_test(test_malformed_bytes_are_words),
        cmocka_unit_test(test_utf8),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
