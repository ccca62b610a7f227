/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Vocabularies with one defect each are refused with the right status and a message; small hand-made vocabularies show
 * the rules that the fixtures cannot (no token for a byte, defaults of keys, the needle model's bytes); every
 * allocation may fail.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "model/tokenizer_fixture.h"

/* ---- llama: unknown, control, the 256 bytes, then some pieces */

#define SPM_BYTES  3u /* the first byte token */
#define SPM_PIECES 259u
#define N_SPM      269u

static char byte_names[256][8];
static const char *spm_tokens[N_SPM];
static int32_t spm_types[N_SPM];
static float spm_scores[N_SPM];

static struct recipe spm_recipe(void)
{
    static const char *const first[] = {"<unk>", "<s>", "</s>"};
    static const char *const pieces[] = {"\xe2\x96\x81",     "a",  "b",    "ab", "aa",
                                         "\xe2\x96\x81\x61", "bc", "<ud>", "xy", ""};

    for (uint32_t i = 0; i < N_SPM; i++) {
        spm_types[i] = i == 0 ? 2 : i < SPM_BYTES ? 3 : i < SPM_PIECES ? 6 : 1;
        spm_scores[i] = i < SPM_PIECES ? 0 : -(float)(i - SPM_PIECES);
        spm_tokens[i] = i < SPM_BYTES ? first[i] : i < SPM_PIECES ? byte_names[i - SPM_BYTES] : pieces[i - SPM_PIECES];
    }
    for (int b = 0; b < 256; b++)
        snprintf(byte_names[b], sizeof *byte_names, "<0x%02X>", (unsigned)b);
    spm_types[SPM_PIECES + 7] = 4;
    return (struct recipe){.model = "llama",
                           .tokens = spm_tokens,
                           .types = spm_types,
                           .scores = spm_scores,
                           .n_tokens = N_SPM,
                           .n_types = N_SPM,
                           .n_scores = N_SPM,
                           .bos = 1,
                           .eos = 2,
                           .unk = 0,
                           .add_bos = -1,
                           .add_space = -1};
}

/* ---- gpt2: the 256 letters of the byte alphabet, then some pieces */

#define N_BPE 262u

static char letters[256][4];
static const char *bpe_tokens[N_BPE];
static int32_t bpe_types[N_BPE];
static const char *bpe_merges[3];

static void spell(uint32_t byte, uint32_t *others, char *out)
{
    uint32_t c = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad) ? byte : 256 + (*others)++;

    if (c < 0x80) {
        out[0] = (char)c;
    } else {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
    }
}

static struct recipe bpe_recipe(void)
{
    static const char *const pieces[] = {"ab", "abc", "bc", "<|endoftext|>", "<|eot_id|>", "\xe6\xb2\xb3"};
    uint32_t others = 0;

    memset(letters, 0, sizeof letters);
    for (uint32_t b = 0; b < 256; b++)
        spell(b, &others, letters[b]);
    for (uint32_t i = 0; i < N_BPE; i++) {
        bpe_tokens[i] = i < 256 ? letters[i] : pieces[i - 256];
        bpe_types[i] = i == 259 || i == 260 ? 3 : 1;
    }
    bpe_merges[0] = "b c";
    bpe_merges[1] = "a b";
    bpe_merges[2] = "a bc";
    return (struct recipe){.model = "gpt2",
                           .pre = "qwen2",
                           .tokens = bpe_tokens,
                           .types = bpe_types,
                           .merges = bpe_merges,
                           .n_tokens = N_BPE,
                           .n_types = N_BPE,
                           .n_merges = 3,
                           .bos = 259,
                           .eos = 259,
                           .unk = -1,
                           .add_bos = -1,
                           .add_space = -1};
}

/* ---- Helpers */

static struct nkv_tokenizer *open_good(const struct recipe *r)
{
    struct nkv_tokenizer *tokenizer = NULL;

    assert_int_equal(open_recipe(r, &tokenizer), 0);
    return tokenizer;
}

static void check_refused(const struct recipe *r, int status, const char *message)
{
    struct nkv_tokenizer *tokenizer = NULL;

    assert_int_equal(open_recipe(r, &tokenizer), status);
    assert_null(tokenizer);
    if (!strstr(nkv_last_error(), message))
        fail_msg("'%s' does not say '%s'", nkv_last_error(), message);
}

static void check_tokens(const struct nkv_tokenizer *tokenizer, const char *text, unsigned flags, size_t n,
                         const int32_t *expected)
{
    int32_t *tokens = NULL;
    size_t n_tokens = 0;

    assert_int_equal(nkv_tokenizer_encode(tokenizer, text, strlen(text), flags, &tokens, &n_tokens), 0);
    assert_int_equal(n_tokens, n);
    assert_memory_equal(tokens, expected, n * sizeof *tokens);
    nkv_free(tokens);
}

#define CHECK_TOKENS(tokenizer, text, flags, ...)                                                                      \
    do {                                                                                                               \
        static const int32_t expected_[] = {__VA_ARGS__};                                                              \
        check_tokens(tokenizer, text, flags, sizeof expected_ / sizeof *expected_, expected_);                         \
    } while (0)

/* ---- Defects */

static void test_missing_keys(void **state)
{
    struct recipe r = spm_recipe();

    (void)state;
    r.model = NULL;
    check_refused(&r, NKV_ENOENT, "tokenizer.ggml.model");
    r = spm_recipe(), r.tokens = NULL;
    check_refused(&r, NKV_ENOENT, "tokenizer.ggml.tokens");
    r = spm_recipe(), r.types = NULL;
    check_refused(&r, NKV_ENOENT, "tokenizer.ggml.token_type");
    r = spm_recipe(), r.scores = NULL;
    check_refused(&r, NKV_ENOENT, "tokenizer.ggml.scores");
    r = bpe_recipe(), r.merges = NULL;
    check_refused(&r, NKV_ENOENT, "tokenizer.ggml.merges");
}

static void test_wrong_types(void **state)
{
    static const char *const keys[] = {"model", "tokens", "token_type", "scores", "add_bos_token", "add_space_prefix"};
    char key[64];

    (void)state;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct recipe r = spm_recipe();

        snprintf(key, sizeof key, "tokenizer.ggml.%s", keys[i]);
        r.number_for_text = key;
        r.model = i == 0 ? NULL : r.model;
        r.tokens = i == 1 ? NULL : r.tokens;
        r.types = i == 2 ? NULL : r.types;
        r.scores = i == 3 ? NULL : r.scores;
        check_refused(&r, NKV_EFORMAT, key);
    }
}

static void test_wrong_types_of_bpe(void **state)
{
    struct recipe r = bpe_recipe();

    (void)state;
    r.merges = NULL, r.number_for_text = "tokenizer.ggml.merges";
    check_refused(&r, NKV_EFORMAT, "tokenizer.ggml.merges");
    r = bpe_recipe(), r.pre = NULL, r.number_for_text = "tokenizer.ggml.pre";
    check_refused(&r, NKV_EFORMAT, "tokenizer.ggml.pre");
}

static void test_unsupported_kinds(void **state)
{
    struct recipe r = spm_recipe();

    (void)state;
    r.model = "bert";
    check_refused(&r, NKV_ENOTSUP, "'bert'");
    r = bpe_recipe(), r.pre = "tekken";
    check_refused(&r, NKV_ENOTSUP, "'tekken'");
    r.pre = "qwen2 deepseek-r1-qwen";
    check_refused(&r, NKV_ENOTSUP, "pre-tokenizer");
    r.pre = "";
    check_refused(&r, NKV_ENOTSUP, "pre-tokenizer");
}

static void test_counts_that_differ(void **state)
{
    struct recipe r = spm_recipe();

    (void)state;
    r.n_types = N_SPM - 1;
    check_refused(&r, NKV_EFORMAT, "268 token types for 269 tokens");
    r = spm_recipe(), r.n_scores = N_SPM - 1;
    check_refused(&r, NKV_EFORMAT, "268 token scores for 269 tokens");
    r = spm_recipe(), r.n_tokens = r.n_types = r.n_scores = 0;
    check_refused(&r, NKV_EFORMAT, "vocabulary of 0 tokens");
}

static void test_bad_tokens(void **state)
{
    static char long_token[1026];
    struct recipe r = spm_recipe();

    (void)state;
    spm_tokens[SPM_PIECES + 2] = "a";
    check_refused(&r, NKV_EFORMAT, "tokens 260 and 261 are both 'a'");
    r = spm_recipe(), spm_types[5] = 7;
    check_refused(&r, NKV_EFORMAT, "token 5 is of type 7");
    r = spm_recipe(), spm_types[5] = 0;
    check_refused(&r, NKV_EFORMAT, "token 5 is of type 0");
    r = spm_recipe(), spm_tokens[5] = "<0xG2>";
    check_refused(&r, NKV_EFORMAT, "<0xG2>");
    r = spm_recipe(), spm_tokens[5] = "<0x2>";
    check_refused(&r, NKV_EFORMAT, "<0x2>");
    r = spm_recipe(), spm_tokens[5] = "";
    check_refused(&r, NKV_EFORMAT, "token 5");
    r = spm_recipe(), memset(long_token, 'x', 1025), spm_tokens[SPM_PIECES] = long_token;
    check_refused(&r, NKV_EFORMAT, "1025 bytes");
    r = spm_recipe(), spm_scores[7] = NAN;
    check_refused(&r, NKV_EFORMAT, "score of token 7");
    r = bpe_recipe(), bpe_types[5] = 6;
    check_refused(&r, NKV_EFORMAT, "token 5");
}

static void test_ids_out_of_range(void **state)
{
    struct recipe r = spm_recipe();

    (void)state;
    r.bos = N_SPM;
    check_refused(&r, NKV_EFORMAT, "bos_token_id is 269");
    r = spm_recipe(), r.eos = UINT32_MAX;
    check_refused(&r, NKV_EFORMAT, "eos_token_id is 4294967295");
    r = spm_recipe(), r.unk = N_SPM;
    check_refused(&r, NKV_EFORMAT, "unknown_token_id");
}

static void test_bad_merges(void **state)
{
    static const char *const bad[] = {"",     " ",    "ab",  "a",     "a ",     " b",
                                      "a zz", "zz a", "b a", "a b c", "\xff b", "b \xe6\xb2\xb3"};
    struct recipe r = bpe_recipe();

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bpe_merges[1] = bad[i];
        check_refused(&r, NKV_EFORMAT, "merge 1 ('");
    }
    bpe_merges[1] = "b c";
    check_refused(&r, NKV_EFORMAT, "merge 1 is listed before");
}

static void test_a_byte_without_token(void **state)
{
    struct recipe r = bpe_recipe();
    struct nkv_tokenizer *tokenizer;

    (void)state;
    bpe_tokens['z'] = "zz";
    check_refused(&r, NKV_EFORMAT, "byte 0x7a");
    r.unk = 259;
    tokenizer = open_good(&r);
    CHECK_TOKENS(tokenizer, "yzz", 0, 'y', 259, 259);
    nkv_tokenizer_close(tokenizer);
    r = spm_recipe(), spm_tokens[SPM_BYTES + 0xbc] = "<0x00>x", spm_types[SPM_BYTES + 0xbc] = 1;
    tokenizer = open_good(&r);
    CHECK_TOKENS(tokenizer, "\xc3\xbc", 0, SPM_PIECES, SPM_BYTES + 0xc3, 0);
    nkv_tokenizer_close(tokenizer);
}

/* ---- Rules */

static void test_spm_rules(void **state)
{
    struct recipe r = spm_recipe();
    struct nkv_tokenizer *t = open_good(&r);
    int32_t p = SPM_PIECES;

    (void)state;
    assert_int_equal(p, 259);
    CHECK_TOKENS(t, "b", 0, 259, 261);
    CHECK_TOKENS(t, "b", NKV_TOKENIZE_BOS, 1, 259, 261); /* BOS and the leading space are SPM's defaults */
    CHECK_TOKENS(t, "ab", 0, 259, 262);                  /* "ab" beats U+2581 "a" by score */
    CHECK_TOKENS(t, "aaa", 0, 259, 263, 260);            /* the leftmost of equals */
    CHECK_TOKENS(t, "bc", 0, 259, 265);                  /* c is no token, and still merges */
    CHECK_TOKENS(t, "c", 0, 259, SPM_BYTES + 'c');
    CHECK_TOKENS(t, "xyx", 0, 259, 267, SPM_BYTES + 'x');
    CHECK_TOKENS(t, "<ud>b", 0, 266, 259, 261); /* user-defined: found without asking */
    CHECK_TOKENS(t, "<s>b", NKV_TOKENIZE_SPECIAL, 1, 259, 261);
    CHECK_TOKENS(t, "\xe2\x96\x81", 0, 259, SPM_BYTES + 0xe2, SPM_BYTES + 0x96, SPM_BYTES + 0x81);
    assert_true(nkv_tokenizer_is_end(t, 2));
    assert_false(nkv_tokenizer_is_end(t, 1));
    assert_false(nkv_tokenizer_is_end(t, -1));
    assert_false(nkv_tokenizer_is_end(t, N_SPM));
    assert_int_equal(nkv_tokenizer_n_vocab(t), N_SPM);
    nkv_tokenizer_close(t);
    r.add_bos = r.add_space = 0;
    t = open_good(&r);
    CHECK_TOKENS(t, "b", NKV_TOKENIZE_BOS, 261);
    check_round_trip(t, " b", 2, 0);
    nkv_tokenizer_close(t);
}

static void test_control_tokens_are_not_spelled_by_text(void **state)
{
    struct recipe r = spm_recipe();
    struct nkv_tokenizer *t;

    (void)state;
    r.add_space = 0;
    spm_tokens[SPM_PIECES + 1] = "<", spm_tokens[SPM_PIECES + 2] = "s>", spm_tokens[SPM_PIECES + 6] = ">";
    t = open_good(&r);
    CHECK_TOKENS(t, "<s>", 0, 260, 261);
    nkv_tokenizer_close(t);
}

static void test_bpe_rules(void **state)
{
    struct recipe r = bpe_recipe();
    struct nkv_tokenizer *t = open_good(&r);

    (void)state;
    CHECK_TOKENS(t, "abc", 0, 257);
    CHECK_TOKENS(t, "abab", NKV_TOKENIZE_BOS, 256, 256); /* no BOS unless the file says so */
    CHECK_TOKENS(t, "a<|eot_id|>", NKV_TOKENIZE_SPECIAL, 'a', 260);
    CHECK_TOKENS(t, "\xe6\xb2\xb3", 0, 0xe6, 0xb2, 0xb3); /* a token spelled outside the byte alphabet */
    assert_true(nkv_tokenizer_is_end(t, 259));
    assert_true(nkv_tokenizer_is_end(t, 260)); /* by its name */
    nkv_tokenizer_close(t);
    r.pre = "llama-bpe";
    t = open_good(&r);
    CHECK_TOKENS(t, "abc", NKV_TOKENIZE_BOS, 259, 257);
    CHECK_TOKENS(t, "\xe6\xb2\xb3", 0, 0xe6, 0xb2, 0xb3);
    nkv_tokenizer_close(t);
    r.pre = NULL, r.add_bos = 1;
    t = open_good(&r);
    CHECK_TOKENS(t, "ab", NKV_TOKENIZE_BOS, 259, 256);
    nkv_tokenizer_close(t);
}

static void test_decode(void **state)
{
    static const int32_t tokens[] = {1, 264, 259, 2, 259, 261, 0, 268}, bad[] = {0, N_SPM}, negative[] = {-1};
    struct recipe r = spm_recipe();
    struct nkv_tokenizer *t = open_good(&r);
    char *text = NULL;
    size_t bytes = 0;

    (void)state;
    assert_int_equal(nkv_tokenizer_decode(t, tokens, 8, 0, &text, &bytes), 0);
    assert_string_equal(text, "a b");
    nkv_free(text);
    assert_int_equal(nkv_tokenizer_decode(t, tokens, 8, NKV_TOKENIZE_SPECIAL, &text, &bytes), 0);
    assert_string_equal(text, "<s>a </s>b<unk>");
    nkv_free(text);
    text = NULL;
    assert_int_equal(nkv_tokenizer_decode(t, bad, 2, 0, &text, &bytes), NKV_EINVAL);
    assert_int_equal(nkv_tokenizer_decode(t, negative, 1, 0, &text, &bytes), NKV_EINVAL);
    assert_null(text);
    nkv_tokenizer_close(t);
}

/* A vocabulary of bytes alone, as the needle model's, at a million tokens. */
static void test_a_megabyte_of_bytes(void **state)
{
    size_t bytes = (size_t)1 << 20, n = 0;
    struct recipe r = spm_recipe();
    struct nkv_tokenizer *t;
    int32_t *tokens = NULL;
    char *text;

    (void)state;
    r.n_tokens = r.n_types = r.n_scores = SPM_PIECES + 1;
    r.add_space = 0;
    t = open_good(&r);
    assert_int_equal(nkv_alloc(bytes, 1, &text), 0);
    for (size_t i = 0; i < bytes; i++)
        text[i] = (char)(i * 2654435761u >> 24);
    assert_int_equal(nkv_tokenizer_encode(t, text, bytes, 0, &tokens, &n), 0);
    assert_int_equal(n, bytes);
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(tokens[i], text[i] == ' ' ? SPM_PIECES : SPM_BYTES + (uint8_t)text[i]);
    nkv_free(tokens);
    check_round_trip(t, text, bytes, 0);
    nkv_free(text);
    nkv_tokenizer_close(t);
}

/* ---- Allocations */

/* Opens, encodes and decodes; the first failure's status. */
static int use(const struct nkv_gguf *gguf)
{
    static const char text[] =
        "the <|eot_id|> aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \xff 12";
    struct nkv_tokenizer *tokenizer = NULL;
    int32_t *tokens = NULL;
    char *back = NULL;
    size_t n = 0, bytes = 0;
    int status = nkv_tokenizer_open(gguf, &tokenizer);

    if (status < 0)
        return status;
    status = nkv_tokenizer_encode(tokenizer, text, sizeof text, NKV_TOKENIZE_SPECIAL, &tokens, &n);
    if (status == 0)
        status = nkv_tokenizer_decode(tokenizer, tokens, n, NKV_TOKENIZE_SPECIAL, &back, &bytes);
    if (status == 0)
        assert_memory_equal(back, text, sizeof text);
    nkv_free(back);
    nkv_free(tokens);
    nkv_tokenizer_close(tokenizer);
    return status;
}

static void check_failing_allocations(const struct recipe *r)
{
    struct nkv_gguf *gguf = NULL;
    size_t bytes = 0;
    void *data = build(r, &bytes);
    uint64_t n = 0, seen;
    int status;

    assert_int_equal(nkv_gguf_open_memory(data, bytes, "recipe", &gguf), 0);
    do {
        nkv_mem_fail_at(++n);
        status = use(gguf);
        seen = nkv_mem_fail_at(0);
        assert_true(status == 0 || status == NKV_ENOMEM); /* 0: machine code for a pattern is a luxury */
    } while (seen >= n);
    assert_int_equal(status, 0);
    assert_true(n > 12);
    nkv_gguf_close(gguf);
    nkv_free(data);
}

static void test_every_allocation_may_fail(void **state)
{
    struct recipe spm = spm_recipe(), bpe = bpe_recipe();

    (void)state;
    check_failing_allocations(&spm);
    check_failing_allocations(&bpe);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_missing_keys),
        cmocka_unit_test(test_wrong_types),
        cmocka_unit_test(test_wrong_types_of_bpe),
        cmocka_unit_test(test_unsupported_kinds),
        cmocka_unit_test(test_counts_that_differ),
        cmocka_unit_test(test_bad_tokens),
        cmocka_unit_test(test_ids_out_of_range),
        cmocka_unit_test(test_bad_merges),
        cmocka_unit_test(test_a_byte_without_token),
        cmocka_unit_test(test_spm_rules),
        cmocka_unit_test(test_control_tokens_are_not_spelled_by_text),
        cmocka_unit_test(test_bpe_rules),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_a_megabyte_of_bytes),
        cmocka_unit_test(test_every_allocation_may_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
