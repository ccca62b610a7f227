/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokenizers against the answers of the `tokenizers` and `sentencepiece` packages (fixtures/tokenizer/cases.json, made
 * by tools/make_tokenizer_fixtures.py), and what holds for any bytes: the round trip, and time about linear in the
 * text.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>

#include "base/clock.h"
#include "model/tokenizer_fixture.h"

#define BIG_BYTES ((size_t)2 << 20)

struct state {
    struct nkv_tokenizer *tokenizers[N_FIXTURES];
    json_t *cases;
};

static int setup(void **state)
{
    static struct state s;
    char path[512];

    for (size_t i = 0; i < N_FIXTURES; i++)
        s.tokenizers[i] = open_fixture(fixture_names[i]);
    snprintf(path, sizeof path, "%s/fixtures/tokenizer/cases.json", NKV_TEST_DIR);
    s.cases = json_load_file(path, JSON_ALLOW_NUL, NULL);
    assert_non_null(s.cases);
    *state = &s;
    return 0;
}

static int teardown(void **state)
{
    struct state *s = *state;

    for (size_t i = 0; i < N_FIXTURES; i++)
        nkv_tokenizer_close(s->tokenizers[i]);
    json_decref(s->cases);
    return 0;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* ---- Agreement */

static void print_difference(const char *name, const char *text, const int32_t *tokens, size_t n,
                             const json_t *expected)
{
    char *want = json_dumps(expected, JSON_COMPACT);

    print_error("%s, text \"%s\"\n  want %s\n  got  [", name, text, want);
    for (size_t i = 0; i < n; i++)
        print_error("%d,", tokens[i]);
    print_error("]\n");
    free(want);
}

static void check_case(const struct nkv_tokenizer *tokenizer, const char *name, const json_t *c, unsigned flags)
{
    const json_t *text = json_object_get(c, "text"), *expected = json_object_get(c, name);
    int32_t *tokens = NULL;
    size_t n = 0;
    bool same;

    assert_non_null(expected);
    assert_int_equal(
        nkv_tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text), flags, &tokens, &n), 0);
    same = n == json_array_size(expected);
    for (size_t i = 0; same && i < n; i++)
        same = tokens[i] == json_integer_value(json_array_get(expected, i));
    if (!same)
        print_difference(name, json_string_value(text), tokens, n, expected);
    assert_true(same);
    nkv_free(tokens);
    check_round_trip(tokenizer, json_string_value(text), json_string_length(text), flags);
}

static void test_agrees_on_plain_text(void **state)
{
    struct state *s = *state;
    json_t *plain = json_object_get(s->cases, "plain"), *c;
    size_t i;

    assert_true(json_array_size(plain) > 200);
    for (size_t t = 0; t < N_FIXTURES; t++)
        json_array_foreach(plain, i, c) check_case(s->tokenizers[t], fixture_names[t], c, 0);
}

static void test_agrees_on_special_tokens(void **state)
{
    struct state *s = *state;
    char key[32];
    json_t *c;
    size_t i;

    for (size_t t = 0; t < N_FIXTURES; t++) {
        snprintf(key, sizeof key, "special.%s", fixture_names[t]);
        assert_true(json_array_size(json_object_get(s->cases, key)) > 5);
        json_array_foreach(json_object_get(s->cases, key), i, c)
            check_case(s->tokenizers[t], fixture_names[t], c, NKV_TOKENIZE_SPECIAL);
    }
}

/* ---- Round trip */

static void test_every_byte_and_pair_comes_back(void **state)
{
    struct state *s = *state;
    char all[256], pair[2];

    for (size_t t = 0; t < N_FIXTURES; t++) {
        for (int i = 0; i < 256; i++)
            all[i] = (char)i;
        check_round_trip(s->tokenizers[t], all, sizeof all, 0);
        for (int i = 0; i < 65536; i += 7) {
            pair[0] = (char)(i >> 8);
            pair[1] = (char)i;
            check_round_trip(s->tokenizers[t], pair, 2, 0);
        }
        check_round_trip(s->tokenizers[t], NULL, 0, NKV_TOKENIZE_SPECIAL);
    }
}

/* Characters, malformed bytes, spaces, U+2581 and special tokens, cut anywhere. */
static size_t random_text(uint64_t *rng, char *text, size_t room)
{
    static const char *const parts[] = {" ",
                                        "  ",
                                        "\n",
                                        "a",
                                        "the",
                                        "\xe2\x96\x81",
                                        "\xe2\x96",
                                        "\x81",
                                        "\xf0\x9f\x98\x80",
                                        "\xf0\x9f",
                                        "\xff",
                                        "<s>",
                                        "</s>",
                                        "<|",
                                        "<tool_call>",
                                        "<tool>",
                                        "7",
                                        "\xc0\x80",
                                        "\xed\xa0\x80",
                                        "'s",
                                        "\r\n",
                                        "\xcc\x81",
                                        "<|im_end|>",
                                        "<|eot_id|>",
                                        "<unk>",
                                        "<0x41>"};
    size_t n = 0, wanted = next_random(rng) % room;

    while (n < wanted) {
        const char *part = parts[next_random(rng) % (sizeof parts / sizeof *parts)];

        if (next_random(rng) % 4 == 0)
            text[n++] = (char)next_random(rng);
        for (size_t i = 0; part[i] && n < wanted; i++)
            text[n++] = part[i];
    }
    return n;
}

static void test_random_bytes_come_back(void **state)
{
    struct state *s = *state;
    uint64_t rng = 88172645463325252u;
    char text[200];

    for (int round = 0; round < 4000; round++) {
        size_t n = random_text(&rng, text, sizeof text);

        for (size_t t = 0; t < N_FIXTURES; t++) {
            check_round_trip(s->tokenizers[t], text, n, 0);
            check_round_trip(s->tokenizers[t], text, n, NKV_TOKENIZE_SPECIAL);
        }
    }
}

/* ---- Time */

static double encode_seconds(const struct nkv_tokenizer *tokenizer, const char *text, size_t bytes)
{
    uint64_t start = nkv_now_ns(), end;
    int32_t *tokens = NULL;
    size_t n = 0;

    assert_int_equal(nkv_tokenizer_encode(tokenizer, text, bytes, 0, &tokens, &n), 0);
    end = nkv_now_ns();
    assert_true(n > 0);
    nkv_free(tokens);
    return (double)(end - start) * 1e-9;
}

static void fill(char *text, const char *pattern)
{
    for (size_t i = 0, n = strlen(pattern); i < BIG_BYTES; i++)
        text[i] = pattern[i % n];
}

/* Quadratic behaviour would take hours here. NKV_TEST_VERBOSE=1 prints the rates. */
static void test_long_runs_take_linear_time(void **state)
{
    static const char *const patterns[] = {"a", " ", "\n",        "ab",           "\t \n",    "7",
                                           "!", "<", "the page ", "\xe6\xb2\xb3", "<tool_cal"};
    struct state *s = *state;
    char *text;

    assert_int_equal(nkv_alloc(BIG_BYTES, 1, &text), 0);
    for (size_t t = 0; t < N_FIXTURES; t++)
        for (size_t p = 0; p < sizeof patterns / sizeof *patterns; p++) {
            size_t bytes = p == 0 ? BIG_BYTES : BIG_BYTES / 4;
            double seconds;

            fill(text, patterns[p]);
            seconds = encode_seconds(s->tokenizers[t], text, bytes);
            if (getenv("NKV_TEST_VERBOSE"))
                print_message("%-7s '%s' %.1f MB/s\n", fixture_names[t], patterns[p], (double)bytes * 1e-6 / seconds);
            assert_true(seconds < 30);
        }
    nkv_free(text);
}

static void test_big_text_comes_back(void **state)
{
    struct state *s = *state;
    uint64_t rng = 2463534242u;
    char *text;

    assert_int_equal(nkv_alloc(BIG_BYTES, 1, &text), 0);
    for (size_t i = 0; i < BIG_BYTES; i++)
        text[i] = (char)next_random(&rng);
    for (size_t t = 0; t < N_FIXTURES; t++)
        check_round_trip(s->tokenizers[t], text, BIG_BYTES / 4, 0);
    fill(text, "The river was still, and it's 1234 boats.\n\tfor (i = 0; i < n; i++) ");
    for (size_t t = 0; t < N_FIXTURES; t++)
        check_round_trip(s->tokenizers[t], text, BIG_BYTES, 0);
    nkv_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agrees_on_plain_text),           cmocka_unit_test(test_agrees_on_special_tokens),
        cmocka_unit_test(test_every_byte_and_pair_comes_back), cmocka_unit_test(test_random_bytes_come_back),
        cmocka_unit_test(test_long_runs_take_linear_time),     cmocka_unit_test(test_big_text_comes_back),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
