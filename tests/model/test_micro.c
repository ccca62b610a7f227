/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two micro-batches: the halves' attention is in flight while the other's dense layers run; logits are those of one
 * micro-batch to the bit, whatever the mode and the number of rows; a device that fails, or is gone, takes its own
 * sequences with it only; a step that is refused or runs out of memory half way leaves nothing in flight and every
 * sequence as it was.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "device/server.h"
#include "many_fixture.h"

#define N_STEPS  4u
#define MAX_ROWS 40u
#define CAPACITY (16u << 20)

struct batch {
    uint32_t n;
    struct nkv_seq *seqs[MAX_ROWS];
};

static uint32_t length_of(uint32_t i)
{
    return 20 + i * 37 % 90;
}

static void open_many_as(uint32_t n_micro, const char *spec, struct many *m)
{
    n_micro_batches = n_micro;
    open_many(spec, CAPACITY, m);
}

/* Fed but for their last token. */
static void open_batch(struct many *m, enum nkv_mode mode, uint32_t n, struct batch *b)
{
    *b = (struct batch){.n = n};
    for (uint32_t i = 0; i < n; i++) {
        struct nkv_seq_options so;
        int32_t prompt[128];

        nkv_seq_options_init(&so);
        so.mode = mode;
        so.budget_tokens = 64;
        so.max_tokens = length_of(i) + N_STEPS;
        for (uint32_t t = 0; t < length_of(i); t++)
            prompt[t] = (int32_t)((t * 7 + i * 31 + t * t % 5) % m->n_vocab);
        assert_ok(nkv_seq_open(m->context, &so, &b->seqs[i]));
        if (nkv_prefill(m->decoder, b->seqs[i], prompt, length_of(i), NULL, NULL, NULL) < 0)
            assert_int_equal(nkv_seq_status(b->seqs[i]), NKV_EDEVICE);
    }
}

static void close_batch(struct batch *b)
{
    for (uint32_t i = 0; i < b->n; i++)
        nkv_seq_close(b->seqs[i]);
}

static int step(struct many *m, struct batch *b, uint32_t number, float *logits_out)
{
    int32_t tokens[MAX_ROWS];

    for (uint32_t i = 0; i < b->n; i++)
        tokens[i] = (int32_t)((number * 5 + i) % m->n_vocab);
    return nkv_decode(m->decoder, b->seqs, tokens, b->n, logits_out);
}

/* [N_STEPS][n][n_vocab]: to be freed. */
static float *logits_of(struct many *m, enum nkv_mode mode, uint32_t n)
{
    float *logits = malloc((size_t)N_STEPS * n * m->n_vocab * sizeof *logits);
    struct batch b;

    open_batch(m, mode, n, &b);
    for (uint32_t s = 0; s < N_STEPS; s++)
        assert_ok(step(m, &b, s, logits + (size_t)s * n * m->n_vocab));
    close_batch(&b);
    return logits;
}

static void logits_are_those_of_one(void **state)
{
    static const uint32_t rows[] = {1, 2, 3, 4, 5, 8, 15, 16};
    struct many one, two;

    (void)state;
    open_many_as(1, "cpu", &one);
    open_many_as(2, "cpu", &two);
    for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++)
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            float *a = logits_of(&one, mode, rows[i]), *b = logits_of(&two, mode, rows[i]);

            if (memcmp(a, b, (size_t)N_STEPS * rows[i] * one.n_vocab * sizeof *a) != 0)
                fail_msg("%s, %u rows: not those of one micro-batch", nkv_mode_name(mode), rows[i]);
            free(a);
            free(b);
        }
    close_many(&one);
    close_many(&two);
}

static uint64_t count_calls(void *arg)
{
    static uint64_t n;

    (void)arg;
    return ++n;
}

/* By a clock that counts who asks: between a half's begin and end comes an end and a begin of the other, where there is
 * one. */
static void attention_is_in_flight(void **state)
{
    struct nkv_model_info info;
    struct nkv_seq_stats stats;

    (void)state;
    many_clock = count_calls;
    for (uint32_t n_micro = 1; n_micro <= 2; n_micro++) {
        struct batch b;
        struct many m;
        float *logits;

        open_many_as(n_micro, "cpu", &m);
        nkv_model_info(m.model, &info);
        logits = malloc(5 * m.n_vocab * sizeof *logits);
        for (uint32_t n = 1; n <= 5; n += 2) {
            open_batch(&m, NKV_MODE_PNM, n, &b);
            for (uint32_t i = 0; i < n; i++)
                nkv_seq_stats_reset(b.seqs[i]);
            assert_ok(step(&m, &b, 0, logits));
            for (uint32_t i = 0; i < n; i++) {
                nkv_seq_stats(b.seqs[i], &stats);
                assert_int_equal(stats.wall_ns, n_micro == 1 || n == 1 ? info.n_layers : 3 * info.n_layers - 1);
            }
            close_batch(&b);
        }
        free(logits);
        close_many(&m);
    }
    many_clock = NULL;
}

/* The logits of those that a device lets down are zero, all others are as ever. returns: how many it lets down. */
static uint32_t failed_alone(const struct many *m, const struct batch *b, const float *logits, const float *undisturbed)
{
    uint32_t n_failed = 0;

    for (uint32_t i = 0; i < b->n; i++) {
        const float *row = logits + (size_t)i * m->n_vocab;
        bool failed = nkv_seq_status(b->seqs[i]) < 0;

        n_failed += failed;
        for (uint32_t v = 0; failed && v < m->n_vocab; v++)
            assert_true(row[v] == 0);
        if (!failed)
            assert_memory_equal(row, undisturbed + (size_t)i * m->n_vocab, m->n_vocab * sizeof *row);
    }
    return n_failed;
}

/* Steps of sequences of which one loses a command, maybe in its prompt. returns: how many failed in a step. */
static uint32_t steps_with_a_fault(const char *spec, enum nkv_mode mode, uint32_t n, const float *undisturbed)
{
    uint32_t n_failed = 0, n_before = 0;
    struct batch b;
    struct many m;
    float *logits;

    open_many_as(2, spec, &m);
    logits = malloc(n * m.n_vocab * sizeof *logits);
    open_batch(&m, mode, n, &b);
    for (uint32_t i = 0; i < n; i++)
        n_before += nkv_seq_status(b.seqs[i]) < 0;
    for (uint32_t s = 0; s < N_STEPS; s++) {
        assert_ok(step(&m, &b, s, logits));
        n_failed = failed_alone(&m, &b, logits, undisturbed + (size_t)s * n * m.n_vocab);
    }
    assert_true(n_failed <= 1);
    close_batch(&b);
    close_many(&m);
    free(logits);
    return n_failed - n_before;
}

/* In either half, in early layers and late. */
static void a_command_fails(void **state)
{
    static const char *const ops[] = {"append", "attend", "select"};
    const uint32_t n = 7;

    (void)state;
    for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++) {
        uint32_t n_failed = 0;
        float *undisturbed;
        struct many m;

        open_many_as(2, "cpu", &m);
        undisturbed = logits_of(&m, mode, n);
        close_many(&m);
        for (size_t op = 0; op < sizeof ops / sizeof *ops; op++)
            for (uint32_t nth = 1; nth < 80; nth += 6) {
                char spec[64];

                snprintf(spec, sizeof spec, "fault:op=%s,n=%u:cpu", ops[op], nth);
                n_failed += steps_with_a_fault(spec, mode, n, undisturbed);
            }
        assert_true(n_failed >= 4); /* recall: appends only */
        free(undisturbed);
    }
}

struct killer {
    struct server *server;
    long delay_ns;
};

static void *kill_later(void *arg)
{
    const struct killer *killer = arg;

    nanosleep(&(struct timespec){.tv_nsec = killer->delay_ns}, NULL);
    server_kill(killer->server);
    return NULL;
}

/* A device process is killed while both halves' tickets name its sequences: the other device's go on. */
static void a_device_is_gone(void **state)
{
    const uint32_t n = 6;
    float *undisturbed, *logits;
    struct many m;

    (void)state;
    open_many_as(2, "cpu", &m);
    undisturbed = logits_of(&m, NKV_MODE_PNM, n);
    close_many(&m);
    logits = malloc(n * m.n_vocab * sizeof *logits);
    for (long i = 0; i < 6; i++) {
        struct server server;
        struct killer killer = {&server, i * 150000};
        pthread_t thread;
        struct batch b;
        uint32_t n_failed = 0;

        server_open(&server, true, CAPACITY);
        open_many_as(2, server.spec, &m);
        open_batch(&m, NKV_MODE_PNM, n, &b);
        assert_int_equal(pthread_create(&thread, NULL, kill_later, &killer), 0);
        for (uint32_t s = 0; s < N_STEPS; s++) {
            if (s == N_STEPS - 1)
                pthread_join(thread, NULL);
            assert_ok(step(&m, &b, s, logits));
            n_failed = failed_alone(&m, &b, logits, undisturbed + (size_t)s * n * m.n_vocab);
        }
        assert_int_equal(n_failed, n / N_DEVICES);
        close_batch(&b);
        close_many(&m);
        unlink(server.path);
        rmdir(server.dir);
    }
    free(logits);
    free(undisturbed);
}

static void close_to(const struct many *m, uint32_t n, const float *logits, const float *expected)
{
    for (size_t i = 0; i < (size_t)n * m->n_vocab; i++)
        assert_true(fabsf(logits[i] - expected[i]) <= 1e-4f * fmaxf(1, fabsf(expected[i])));
}

/* The second half's attention is refused while the first one's is in flight: a sequence is full. */
static void the_second_half_is_refused(void **state)
{
    const uint32_t n = 5;
    struct many m;

    (void)state;
    open_many_as(2, "cpu", &m);
    for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++) {
        float *undisturbed = logits_of(&m, mode, n), *logits = malloc(n * m.n_vocab * sizeof *logits);
        struct batch b;

        open_batch(&m, mode, n, &b);
        for (uint32_t s = 0; s < N_STEPS; s++) { /* the last one fills up, by a step of its own */
            struct batch last = {.n = 1, .seqs = {b.seqs[n - 1]}};

            assert_ok(step(&m, &last, s, logits));
        }
        assert_int_equal(step(&m, &b, 0, logits), NKV_ENOSPC);
        assert_non_null(strstr(nkv_last_error(), "more than the"));
        assert_int_equal(nkv_context_recover(m.context, 0), 0); /* no ticket is in flight */
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(nkv_seq_status(b.seqs[i]), 0);
            assert_int_equal(nkv_seq_length(b.seqs[i]), length_of(i) + (i == n - 1 ? N_STEPS : 0));
        }
        assert_ok(nkv_seq_truncate(b.seqs[n - 1], length_of(n - 1)));
        for (uint32_t s = 0; s < N_STEPS; s++) {
            assert_ok(step(&m, &b, s, logits));
            if (mode == NKV_MODE_PNG) /* other pages are resident by now, and what is merged of them rounds otherwise */
                close_to(&m, n, logits, undisturbed + (size_t)s * n * m.n_vocab);
            else
                assert_int_equal(failed_alone(&m, &b, logits, undisturbed + (size_t)s * n * m.n_vocab), 0);
        }
        close_batch(&b);
        free(logits);
        free(undisturbed);
    }
    close_many(&m);
}

/* Halves of more than 16 rows are multiplied by the library, whose scratch grows on the way through a layer. */
static void memory_runs_out_half_way(void **state)
{
    uint32_t n_failures = 0, n_fed = 0, vocab;
    float *undisturbed, *logits;
    struct batch b;
    struct many m;
    int status = NKV_ENOMEM;

    (void)state;
    open_many_as(2, "cpu", &m);
    vocab = m.n_vocab;
    undisturbed = logits_of(&m, NKV_MODE_PNM, MAX_ROWS);
    close_many(&m);
    open_many_as(2, "cpu", &m);
    open_batch(&m, NKV_MODE_PNM, MAX_ROWS, &b);
    logits = malloc(MAX_ROWS * vocab * sizeof *logits);
    for (uint64_t nth = 1; status < 0 && nth < 100; nth++) {
        nkv_mem_fail_at(nth);
        status = step(&m, &b, 0, logits);
        nkv_mem_fail_at(0);
        assert_true(status == 0 || status == NKV_ENOMEM);
        n_failures += status < 0;
        for (uint32_t i = 0; i < MAX_ROWS && status < 0; i++) { /* as an engine does, when only logits failed */
            n_fed += nkv_seq_length(b.seqs[i]) > length_of(i);
            assert_ok(nkv_seq_truncate(b.seqs[i], length_of(i)));
        }
    }
    assert_true(n_failures > n_fed / MAX_ROWS); /* not in logits only */
    assert_int_equal(failed_alone(&m, &b, logits, undisturbed), 0);
    close_batch(&b);
    close_many(&m);
    free(logits);
    free(undisturbed);
}

static void what_is_refused(void **state)
{
    struct nkv_decoder_options options = {.size = sizeof options, .n_micro_batches = 3};
    struct nkv_decoder *decoder;
    uint64_t bytes, bytes_of_one;
    struct many m;

    (void)state;
    open_many_as(1, "cpu", &m);
    assert_int_equal(nkv_decoder_open(m.model, m.context, &options, &decoder), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "3 micro-batches"));
    options.n_micro_batches = 2;
    assert_ok(nkv_decoder_estimate(m.model, &options, &bytes));
    assert_ok(nkv_decoder_estimate(m.model, NULL, &bytes_of_one));
    assert_int_equal(bytes, bytes_of_one); /* the halves are rows of the same buffers */
    close_many(&m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_one),
        cmocka_unit_test(attention_is_in_flight),
        cmocka_unit_test(a_command_fails),
        cmocka_unit_test(a_device_is_gone),
        cmocka_unit_test(the_second_half_is_refused),
        cmocka_unit_test(memory_runs_out_half_way),
        cmocka_unit_test(what_is_refused),
    };

    if (argc == 4)
        return server_role(argv);
    many_batch = MAX_ROWS;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
