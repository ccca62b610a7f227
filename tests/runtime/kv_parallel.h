/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One history of a sequence (prefill, decode, truncate, fork) in any context, and what came of it: sets, what is
 * resident where, outputs.
 */
#ifndef NKV_TESTS_RUNTIME_KV_PARALLEL_H
#define NKV_TESTS_RUNTIME_KV_PARALLEL_H

#include "runtime/group.h"
#include "runtime/rig.h"

#define N_STEPS  12u
#define N_TOKENS 900u
#define ROUNDING 1e-5f /* outputs are below 1, merged from at most 4 partials of f32 */

/* The "set" lines of the plan log, with what is resident after each decode step, and every output. */
struct record {
    char *sets;
    size_t n, room;
    float *outputs; /* [n_outputs] */
    size_t n_outputs;
};

static inline void note(struct record *record, const char *line)
{
    size_t n = strlen(line);

    if (record->n + n + 2 > record->room) {
        record->room = 2 * (record->n + n + 2);
        record->sets = realloc(record->sets, record->room);
        assert_non_null(record->sets);
    }
    memcpy(record->sets + record->n, line, n);
    record->sets[record->n + n] = '\n';
    record->n += n + 1;
    record->sets[record->n] = '\0';
}

static inline void note_set(void *arg, const char *line)
{
    if (strncmp(line, "set ", 4) == 0)
        note(arg, line);
}

/* What the compute side holds in which slots, and what that took. */
static inline void note_resident(struct record *record, const struct nkv_seq *seq)
{
    uint32_t n = RIG_LAYERS * seq->n_units * seq->n_slots;
    struct nkv_seq_stats stats;
    char line[128];

    for (uint32_t i = 0; i < n; i++) {
        snprintf(line, sizeof line, "slot %u: %u", i, seq->resident[i]);
        note(record, line);
    }
    nkv_seq_stats(seq, &stats);
    snprintf(line, sizeof line, "steady %llu, recalled %llu", (unsigned long long)stats.steady_pages,
             (unsigned long long)stats.recalled_pages);
    note(record, line);
}

static inline void note_outputs(struct record *record, const float *outputs, size_t n)
{
    record->outputs = realloc(record->outputs, (record->n_outputs + n) * sizeof(float));
    assert_non_null(record->outputs);
    memcpy(record->outputs + record->n_outputs, outputs, n * sizeof(float));
    record->n_outputs += n;
}

static inline void record_free(struct record *record)
{
    free(record->sets);
    free(record->outputs);
}

static inline void decode(struct rig *rig, struct rig_seq *s, struct record *record, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(rig_decode(rig, s), 0);
        assert_int_equal(nkv_seq_status(s->seq), 0);
        note_outputs(record, s->last, RIG_LAYERS * RIG_ROW);
        if (s->seq->n_slots)
            note_resident(record, s->seq);
    }
}

/* Prefill in chunks that begin and end anywhere in pages, decode, truncate, fork, decode both. */
static inline void run(struct rig_options options, const struct nkv_seq_options *so, struct record *record)
{
    static const uint32_t chunks[] = {1, 70, 32, 29, 500, 3};
    struct nkv_seq *seq, *fork;
    struct rig_seq s, f;
    struct rig rig;

    *record = (struct record){0};
    options.plan_log = note_set;
    options.plan_log_arg = record;
    assert_int_equal(rig_open(&rig, &options), 0);
    assert_int_equal(nkv_seq_open(rig.context, so, &seq), 0);
    rig_seq_init(&s, seq, 11);
    for (uint32_t i = 0; s.length < N_TOKENS; i = (i + 1) % 6) {
        uint32_t n = chunks[i] < N_TOKENS - s.length ? chunks[i] : N_TOKENS - s.length;

        assert_int_equal(rig_prefill(&rig, &s, n, n), 0);
        assert_int_equal(nkv_seq_status(seq), 0);
        note_outputs(record, s.out, n * RIG_ROW);
    }
    decode(&rig, &s, record, N_STEPS);
    assert_int_equal(nkv_seq_truncate(seq, N_TOKENS - 77), 0);
    s.length = nkv_seq_length(seq);
    decode(&rig, &s, record, 40); /* over a page's end */
    assert_int_equal(nkv_seq_fork(seq, N_TOKENS - 100, NULL, &fork), 0);
    rig_seq_init(&f, fork, 12);
    f.length = nkv_seq_length(fork);
    decode(&rig, &f, record, N_STEPS);
    decode(&rig, &s, record, N_STEPS);
    nkv_seq_close(seq);
    nkv_seq_close(fork);
    assert_true(rig_empty(&rig));
    rig_seq_free(&s);
    rig_seq_free(&f);
    rig_close(&rig);
}

static inline void compare(const struct record *one, const struct record *many, bool has_sets, uint32_t n_devices)
{
    if (has_sets) {
        assert_true(one->n > 0);
        assert_string_equal(one->sets, many->sets);
    }
    assert_int_equal(one->n_outputs, many->n_outputs);
    if (n_devices == 1)
        assert_memory_equal(one->outputs, many->outputs, one->n_outputs * sizeof(float));
    else
        assert_true(rig_difference(one->outputs, many->outputs, (uint32_t)one->n_outputs) <= ROUNDING);
}

/* Over from `least` to `most` devices. */
static inline void check_range(enum nkv_kv_parallel kv_parallel, uint32_t least, uint32_t most,
                               const struct nkv_seq_options *so, enum nkv_dtype dtype)
{
    struct rig_options options = {.dtype = dtype, .n_threads = 2};
    struct record one, many;

    run(options, so, &one);
    options.kv_parallel = kv_parallel;
    for (uint32_t n = least; n <= most; n++) {
        options.n_devices = n;
        run(options, so, &many);
        compare(&one, &many, so->mode != NKV_MODE_FULL || so->sparse_prefill, n);
        record_free(&many);
    }
    record_free(&one);
}

static inline void check_equal(enum nkv_kv_parallel kv_parallel, uint32_t n_devices, const struct nkv_seq_options *so,
                               enum nkv_dtype dtype)
{
    check_range(kv_parallel, n_devices, n_devices, so, dtype);
}

#endif
