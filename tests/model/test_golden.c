/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole path, from GGUF through the runtime and the CPU device, against logits that transformers computed
 * (tools/make_fixtures.py): the prompt covers several pages and chunks, then every expected token is fed, so that each
 * row of logits is compared on its own and one wrong choice does not hide the rest.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "model_fixture.h"

static const enum nkv_mode modes[] = {NKV_MODE_FULL, NKV_MODE_RECALL, NKV_MODE_PNM, NKV_MODE_PNG};

struct agreement {
    double worst_cosine;
    uint32_t n_same; /* greedy choices that agree */
};

/* Feeds the prompt and the expected tokens; logits_out [n_generated][n_vocab], may be NULL. */
static struct agreement run(struct rig *rig, const struct expected *e, enum nkv_mode mode, uint32_t budget,
                            float *logits_out)
{
    struct nkv_seq *seq = open_seq(rig, mode, budget);
    float *logits = malloc(e->n_vocab * sizeof *logits);
    struct agreement a = {1, 0};

    assert_ok(nkv_prefill(rig->decoder, seq, e->tokens, e->n_prompt, logits, NULL, NULL));
    for (uint32_t i = 0; i < e->n_generated; i++) {
        const float *wanted = e->logits + (size_t)i * e->n_vocab;
        const int32_t token = e->tokens[e->n_prompt + i];

        a.worst_cosine = fmin(a.worst_cosine, cosine(logits, wanted, e->n_vocab));
        a.n_same += argmax(logits, e->n_vocab) == token;
        if (logits_out)
            memcpy(logits_out + (size_t)i * e->n_vocab, logits, e->n_vocab * sizeof *logits);
        if (i + 1 < e->n_generated)
            assert_ok(nkv_decode(rig->decoder, &seq, &token, 1, logits));
    }
    assert_int_equal(nkv_seq_length(seq), e->n_prompt + e->n_generated - 1);
    free(logits);
    nkv_seq_close(seq);
    return a;
}

static void expect(const char *what, const char *name, struct agreement a, const struct expected *e, double min_cosine,
                   uint32_t max_other)
{
    if (getenv("NKV_VERBOSE"))
        print_message("%-10s %-22s cosine %.7f, %u of %u tokens\n", name, what, a.worst_cosine, a.n_same,
                      e->n_generated);
    if (!(a.worst_cosine > min_cosine) || a.n_same + max_other < e->n_generated)
        fail_msg("%s, %s: cosine %.7f (bound %.7f), %u of %u greedy tokens", name, what, a.worst_cosine, min_cosine,
                 a.n_same, e->n_generated);
}

static void open_converted(const char *name, enum nkv_dtype dtype, void **data_out, struct nkv_model **model_out)
{
    size_t bytes;

    convert_fixture(name, dtype, NULL, data_out, &bytes);
    assert_ok(nkv_model_open_memory(*data_out, bytes, name, model_out));
}

static void test_every_mode_in_f32(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FIXTURES; i++) {
        struct expected e;
        struct nkv_model *model;
        struct rig rig;
        void *data;

        read_expected(fixture_names[i], &e);
        open_converted(fixture_names[i], NKV_F32, &data, &model);
        rig_open(model, "cpu", NKV_F32, 16, 2, &rig);
        for (size_t m = 0; m < sizeof modes / sizeof *modes; m++)
            expect(nkv_mode_name(modes[m]), fixture_names[i], run(&rig, &e, modes[m], 256, NULL), &e, 0.99999, 0);
        rig_close(&rig);
        nkv_model_close(model);
        nkv_free(data);
        free_expected(&e);
    }
}

/* The file itself: f16 matrices hold the very numbers of the f32 model. */
static void test_f16_file(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FIXTURES; i++) {
        struct expected e;
        struct nkv_model *model;
        struct rig rig;
        char path[512];

        read_expected(fixture_names[i], &e);
        fixture_path(fixture_names[i], "gguf", path);
        assert_ok(nkv_model_open(path, &model));
        rig_open(model, "cpu", NKV_F32, 32, 1, &rig);
        expect("f16 weights", fixture_names[i], run(&rig, &e, NKV_MODE_FULL, 256, NULL), &e, 0.99999, 0);
        rig_close(&rig);
        nkv_model_close(model);
        free_expected(&e);
    }
}

static void test_weights_of_fewer_bits(void **state)
{
    static const struct {
        enum nkv_dtype dtype;
        double min_cosine;
        uint32_t max_other;
    } cases[] = {{NKV_BF16, 0.998, 2}, {NKV_Q8_0, 0.995, 2}};

    (void)state;
    for (size_t i = 0; i < N_FIXTURES; i++) {
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            struct expected e;
            struct nkv_model *model;
            struct rig rig;
            void *data;
            char what[32];

            read_expected(fixture_names[i], &e);
            open_converted(fixture_names[i], cases[c].dtype, &data, &model);
            rig_open(model, "cpu", NKV_F32, 32, 2, &rig);
            snprintf(what, sizeof what, "%s weights", nkv_dtype_name(cases[c].dtype));
            expect(what, fixture_names[i], run(&rig, &e, NKV_MODE_FULL, 256, NULL), &e, cases[c].min_cosine,
                   cases[c].max_other);
            rig_close(&rig);
            nkv_model_close(model);
            nkv_free(data);
            free_expected(&e);
        }
    }
}

static void test_caches_of_fewer_bits(void **state)
{
    static const struct {
        enum nkv_dtype dtype;
        double min_cosine;
        uint32_t max_other;
    } cases[] = {{NKV_F16, 0.99999, 0}, {NKV_BF16, 0.999, 1}, {NKV_Q8_0, 0.999, 1}};

    (void)state;
    for (size_t i = 0; i < N_FIXTURES; i++) {
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
                struct expected e;
                struct nkv_model *model;
                struct rig rig;
                char path[512], what[64];

                read_expected(fixture_names[i], &e);
                fixture_path(fixture_names[i], "gguf", path);
                assert_ok(nkv_model_open(path, &model));
                rig_open(model, "cpu", cases[c].dtype, 32, 2, &rig);
                snprintf(what, sizeof what, "%s cache, %s", nkv_dtype_name(cases[c].dtype), nkv_mode_name(modes[m]));
                expect(what, fixture_names[i], run(&rig, &e, modes[m], 256, NULL), &e, cases[c].min_cosine,
                       cases[c].max_other);
                rig_close(&rig);
                nkv_model_close(model);
                free_expected(&e);
            }
        }
    }
}

static void test_same_bits_on_any_number_of_threads(void **state)
{
    static const enum nkv_dtype dtypes[] = {NKV_F32, NKV_F16, NKV_BF16, NKV_Q8_0};

    (void)state;
    for (size_t c = 0; c < sizeof dtypes / sizeof *dtypes; c++) {
        struct expected e;
        struct nkv_model *model;
        void *data;
        float *first, *other;

        read_expected("qwen2", &e);
        open_converted("qwen2", dtypes[c], &data, &model);
        first = malloc((size_t)e.n_generated * e.n_vocab * sizeof *first);
        other = malloc((size_t)e.n_generated * e.n_vocab * sizeof *other);
        for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
            struct rig rig;

            rig_open(model, "cpu", NKV_F16, 16, n_threads, &rig);
            run(&rig, &e, NKV_MODE_PNG, 64, n_threads == 1 ? first : other);
            if (n_threads > 1)
                assert_memory_equal(first, other, (size_t)e.n_generated * e.n_vocab * sizeof *first);
            rig_close(&rig);
        }
        free(other);
        free(first);
        nkv_model_close(model);
        nkv_free(data);
        free_expected(&e);
    }
}

/* Three sequences of unequal length in one batch give what each gives alone. */
static void test_batch_agrees_with_single(void **state)
{
    static const uint32_t lengths[] = {150, 31, 64};
    struct expected e;
    struct nkv_model *model;
    struct nkv_seq *together[3], *alone;
    struct rig rig;
    char path[512];
    float *batch, *single;
    int32_t tokens[3];

    (void)state;
    read_expected("llama-rope", &e);
    fixture_path("llama-rope", "gguf", path);
    assert_ok(nkv_model_open(path, &model));
    rig_open(model, "cpu", NKV_F16, 16, 2, &rig);
    batch = malloc(3 * e.n_vocab * sizeof *batch);
    single = malloc(e.n_vocab * sizeof *single);
    for (int i = 0; i < 3; i++) {
        together[i] = open_seq(&rig, modes[i], 64);
        assert_ok(nkv_prefill(rig.decoder, together[i], e.tokens, lengths[i], NULL, NULL, NULL));
        tokens[i] = e.tokens[lengths[i]];
    }
    assert_ok(nkv_decode(rig.decoder, together, tokens, 3, batch));
    for (int i = 0; i < 3; i++) {
        alone = open_seq(&rig, modes[i], 64);
        assert_ok(nkv_prefill(rig.decoder, alone, e.tokens, lengths[i], NULL, NULL, NULL));
        assert_ok(nkv_decode(rig.decoder, &alone, &tokens[i], 1, single));
        assert_true(cosine(batch + (size_t)i * e.n_vocab, single, e.n_vocab) > 0.999999);
        nkv_seq_close(alone);
        nkv_seq_close(together[i]);
    }
    free(single);
    free(batch);
    rig_close(&rig);
    nkv_model_close(model);
    free_expected(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_mode_in_f32),
        cmocka_unit_test(test_f16_file),
        cmocka_unit_test(test_weights_of_fewer_bits),
        cmocka_unit_test(test_caches_of_fewer_bits),
        cmocka_unit_test(test_same_bits_on_any_number_of_threads),
        cmocka_unit_test(test_batch_agrees_with_single),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
