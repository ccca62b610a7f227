/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Statistics against the plan log: what is counted is what was planned. The log is the same for any number of threads,
 * and its sets are what naive attention needs to get the same output.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "runtime/rig.h"

#define LOG_BYTES (4u << 20)

struct log {
    char *text;
    size_t n;
    uint32_t sets[RIG_LAYERS][RIG_KV][64], n_set[RIG_LAYERS]; /* of the newest step */
};

static void log_line(void *arg, const char *line)
{
    struct log *log = arg;
    size_t length = strlen(line);
    unsigned seq, layer, pos, unit;
    int at = 0;

    assert_true(log->n + length + 2 < LOG_BYTES);
    memcpy(log->text + log->n, line, length);
    log->text[log->n + length] = '\n';
    log->n += length + 1;
    log->text[log->n] = '\0';
    if (sscanf(line, "set seq=%u layer=%u pos=%u unit=%u:%n", &seq, &layer, &pos, &unit, &at) == 4 && at) {
        uint32_t n = 0;
        char *end;

        for (const char *p = line + at; *p && n < 64; p = end)
            log->sets[layer][unit][n++] = (uint32_t)strtoul(p, &end, 10);
        log->n_set[layer] = n;
    }
}

static uint32_t count(const struct log *log, const char *part)
{
    uint32_t n = 0;

    for (const char *p = log->text; (p = strstr(p, part)); p++)
        n++;
    return n;
}

struct history {
    struct log log;
    struct nkv_seq_stats stats;
    float last[RIG_LAYERS * RIG_ROW];
    uint32_t length;
};

static void run(enum nkv_mode mode, bool same_step, enum nkv_granularity granularity, uint32_t n_threads,
                uint32_t steps, struct history *h)
{
    struct rig_options options = {
        .dtype = NKV_F32, .n_threads = n_threads, .plan_log = log_line, .plan_log_arg = &h->log};
    struct nkv_seq_options so = rig_seq_options(mode, 700, 192, granularity);
    struct nkv_seq *seq;
    struct rig_seq s;
    struct rig rig;

    h->log = (struct log){.text = malloc(LOG_BYTES)};
    h->log.text[0] = '\0';
    so.same_step_recall = same_step;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_seq_open(rig.context, &so, &seq), 0);
    rig_seq_init(&s, seq, 7);
    assert_int_equal(rig_prefill(&rig, &s, 600, 300), 0);
    nkv_seq_stats_reset(seq);
    for (uint32_t step = 0; step < steps; step++)
        assert_int_equal(rig_decode(&rig, &s), 0);
    nkv_seq_stats(seq, &h->stats);
    memcpy(h->last, s.last, sizeof h->last);
    h->length = s.length;
    rig_seq_free(&s);
    rig_close(&rig);
}

#define STEPS 30u

/* Output from the logged sets alone. */
static void test_sets_explain_outputs(void **state)
{
    (void)state;
    for (uint32_t variant = 0; variant < 8; variant++) {
        enum nkv_mode mode = variant < 6 ? (enum nkv_mode)(1 + variant / 2) : NKV_MODE_PNG;
        enum nkv_granularity granularity = (enum nkv_granularity)(variant % 2);
        static struct history h;
        float expected[RIG_ROW];

        run(mode, variant >= 6, granularity, 1, STEPS, &h);
        for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
            uint32_t n = h.log.n_set[layer], pages[RIG_KV][64];

            assert_int_equal(n, 6);
            for (uint32_t unit = 0; unit < RIG_KV; unit++)
                memcpy(pages[0] + unit * n, h.log.sets[layer][granularity ? unit : 0], n * sizeof(uint32_t));
            rig_oracle(7, layer, h.length - 1, pages[0], n, expected);
            assert_true(rig_difference(h.last + layer * RIG_ROW, expected, RIG_ROW) < 2e-5f);
        }
        free(h.log.text);
    }
}

static void test_log_repeats(void **state)
{
    static struct history a, b;

    (void)state;
    for (uint32_t mode = 0; mode < NKV_MODE_COUNT; mode++) {
        run((enum nkv_mode)mode, false, NKV_SELECT_KV_HEAD, 1, STEPS, &a);
        run((enum nkv_mode)mode, false, NKV_SELECT_KV_HEAD, 2, STEPS, &b);
        assert_int_equal(a.log.n, b.log.n);
        assert_string_equal(a.log.text, b.log.text);
        free(a.log.text);
        free(b.log.text);
    }
}

static void test_counts(void **state)
{
    static const uint32_t row = 4 * RIG_ROW, kv_row = 8 * RIG_KV_ROW, partial = 4 * RIG_HEADS * (RIG_DIM + 2);
    static struct history h;
    uint32_t n = STEPS * RIG_LAYERS;

    (void)state;
    run(NKV_MODE_FULL, false, NKV_SELECT_LAYER, 1, STEPS, &h);
    assert_int_equal(h.stats.n_steps, STEPS);
    assert_int_equal(h.stats.n_layer_steps, n);
    assert_int_equal(h.stats.n_sparse_layer_steps, 0);
    assert_int_equal(h.stats.to_device_bytes, (uint64_t)n * (row + kv_row));
    assert_int_equal(h.stats.from_device_bytes, (uint64_t)n * partial);
    assert_int_equal(h.stats.attended_tokens, RIG_LAYERS * (uint64_t)(601 + 630) * 15);
    assert_int_equal(h.stats.pages, 20);
    assert_int_equal(h.stats.kv_bytes, 20 * 2 * RIG_LAYERS * RIG_PAGE * RIG_KV_ROW * 4);
    assert_int_equal(h.stats.digest_bytes, 0);
    assert_true(h.stats.attend_ns > 0 && h.stats.append_ns > 0 && h.stats.wall_ns > 0);
    assert_int_equal(count(&h.log, "select"), 0);
    free(h.log.text);

    run(NKV_MODE_PNM, false, NKV_SELECT_KV_HEAD, 1, STEPS, &h);
    assert_int_equal(h.stats.n_sparse_layer_steps, n * RIG_KV);
    assert_int_equal(h.stats.chosen_pages, n * RIG_KV * 6);
    assert_int_equal(h.stats.steady_pages, 0);
    assert_int_equal(h.stats.recalled_pages, 0);
    assert_int_equal(h.stats.to_device_bytes, (uint64_t)n * (row + kv_row));
    assert_int_equal(h.stats.digest_bytes, 19 * 2 * RIG_LAYERS * RIG_KV_ROW * 4);
    assert_int_equal(count(&h.log, "#1 dev=0 select"), n);
    assert_true(h.stats.attended_tokens <= (uint64_t)n * 6 * RIG_PAGE);
    assert_true(h.stats.attended_tokens > (uint64_t)n * 5 * RIG_PAGE);
    free(h.log.text);
}

static void test_recall_counts(void **state)
{
    static struct history h[3];
    uint64_t page = 2 * RIG_PAGE * RIG_KV_ROW * 4, n = STEPS * RIG_LAYERS;

    (void)state;
    run(NKV_MODE_PNG, false, NKV_SELECT_KV_HEAD, 1, STEPS, &h[0]);
    run(NKV_MODE_PNG, true, NKV_SELECT_KV_HEAD, 1, STEPS, &h[1]);
    run(NKV_MODE_RECALL, false, NKV_SELECT_KV_HEAD, 1, STEPS, &h[2]);
    for (uint32_t i = 0; i < 3; i++) {
        const struct nkv_seq_stats *s = &h[i].stats;

        assert_true(s->steady_pages > 0 && s->steady_pages < s->chosen_pages);
        assert_true(s->recalled_pages > 0);
        assert_true(s->recalled_bytes / page == s->recalled_pages);
        assert_true(s->from_device_bytes > s->recalled_bytes);
        assert_true(s->recall_ns > 0);
        assert_int_equal(s->chosen_pages, n * RIG_KV * 6);
        assert_true(s->resident_pages <= RIG_LAYERS * (i == 2 ? 12 : 3));
        assert_true(s->resident_pages >= RIG_LAYERS * (i == 2 ? 6 : 3));
        free(h[i].log.text);
    }
    assert_int_equal(h[0].stats.recalled_pages, h[1].stats.recalled_pages); /* the same rule, at another time */
    /* recall: pages that stay are not copied again */
    assert_true(h[2].stats.recalled_pages + h[2].stats.steady_pages / RIG_KV <= h[2].stats.chosen_pages / RIG_KV);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sets_explain_outputs),
        cmocka_unit_test(test_log_repeats),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_recall_counts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
