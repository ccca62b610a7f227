/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A recorded run, replayed on simulated devices, has the same plan, line by line: in every mode and granularity, with
 * dense and sparse prefill, sequences of unequal length, forks, truncates, closes and placement on two devices; and a
 * changed trace has another plan.
 */
#define _POSIX_C_SOURCE 200809L
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>
#include <nearkv/sim.h>

#include "base/mem.h"
#include "runtime/rig.h"

#define MAX_SEQS 8u

/* ---- The plan log, in memory ---- */

struct log {
    char *text;
    size_t bytes, room;
};

static void keep_line(void *arg, const char *line)
{
    struct log *log = arg;
    size_t n = strlen(line);

    if (log->bytes + n + 2 > log->room) {
        log->room = 2 * log->room + n + 4096;
        log->text = realloc(log->text, log->room);
        assert_non_null(log->text);
    }
    memcpy(log->text + log->bytes, line, n);
    log->bytes += n;
    log->text[log->bytes++] = '\n';
    log->text[log->bytes] = '\0';
}

static uint32_t n_lines(const struct log *log)
{
    uint32_t n = 0;

    for (size_t i = 0; i < log->bytes; i++)
        n += log->text[i] == '\n';
    return n;
}

/* The number of the first line that differs, from 1; 0: none does. */
static uint32_t first_difference(const struct log *a, const struct log *b)
{
    const char *x = a->text, *y = b->text;

    for (uint32_t line = 1;; line++) {
        size_t n = strcspn(x, "\n"), m = strcspn(y, "\n");

        if (n != m || memcmp(x, y, n) != 0) {
            fprintf(stderr, "line %u:\n  recorded %.*s\n  replayed %.*s\n", line, (int)n, x, (int)m, y);
            return line;
        }
        if (!x[n])
            return 0;
        x += n + 1;
        y += m + 1;
    }
}

/* ---- The recorded run ---- */

struct scenario {
    enum nkv_mode mode;
    enum nkv_granularity granularity;
    uint32_t n_devices, n_dense_layers;
    bool same_step, attend_resident, sparse_prefill, scores;
};

struct recording {
    char dir[32], trace[64];
    struct rig rig;
    struct rig_seq seqs[MAX_SEQS];
    struct nkv_seq_options options[MAX_SEQS]; /* in the order of opening */
    uint32_t n_seqs;
    struct log log;
};

static void must(int status)
{
    if (status < 0)
        fail_msg("%s", nkv_last_error());
}

static void open_recorded(struct recording *r, const char *name, uint64_t capacity_bytes,
                          struct nkv_device **device_out)
{
    struct nkv_device_config config = {
        .size = sizeof config, .shape = r->rig.shape, .capacity_bytes = capacity_bytes, .n_threads = 1};
    char spec[128];

    snprintf(spec, sizeof spec, "record:%s%s:cpu", r->trace, name);
    must(nkv_device_open(spec, &config, device_out));
}

static void recording_open(struct recording *r, const struct scenario *s)
{
    struct nkv_context_options options = {.size = sizeof options,
                                          .n_devices = s->n_devices,
                                          .max_batch = 4,
                                          .max_tokens = 512,
                                          .plan_log = keep_line,
                                          .plan_log_arg = &r->log,
                                          .record_scores = s->scores};

    *r = (struct recording){.dir = "/tmp/nkv-replay-XXXXXX"};
    assert_non_null(mkdtemp(r->dir));
    snprintf(r->trace, sizeof r->trace, "%s/trace", r->dir);
    r->rig.shape = rig_shape(NKV_F16);
    r->rig.n_devices = s->n_devices;
    for (uint32_t i = 0; i < s->n_devices; i++) {
        char name[16] = "";

        if (s->n_devices > 1)
            snprintf(name, sizeof name, ".%u", i);
        open_recorded(r, name, (4u + i) << 20, &r->rig.devices[i]);
    }
    open_recorded(r, ".compute", 8u << 20, &r->rig.compute);
    options.shape = r->rig.shape;
    options.devices = r->rig.devices;
    options.compute = r->rig.compute;
    must(nkv_context_open(&options, &r->rig.context));
}

static struct nkv_seq_options seq_options(const struct scenario *s, uint32_t max_tokens)
{
    struct nkv_seq_options options = rig_seq_options(s->mode, max_tokens, 8 * RIG_PAGE, s->granularity);

    options.same_step_recall = s->same_step;
    options.attend_resident = s->attend_resident;
    options.sparse_prefill = s->sparse_prefill;
    options.n_dense_layers = s->n_dense_layers;
    return options;
}

static struct rig_seq *open_seq(struct recording *r, const struct scenario *s, uint32_t max_tokens)
{
    struct nkv_seq *seq;

    r->options[r->n_seqs] = seq_options(s, max_tokens);
    must(nkv_seq_open(r->rig.context, &r->options[r->n_seqs], &seq));
    rig_seq_init(&r->seqs[r->n_seqs], seq, r->n_seqs + 1);
    return &r->seqs[r->n_seqs++];
}

static struct rig_seq *fork_seq(struct recording *r, struct rig_seq *parent, uint32_t n_tokens)
{
    uint32_t i = (uint32_t)(parent - r->seqs);
    struct nkv_seq *seq;

    r->options[r->n_seqs] = r->options[i];
    must(nkv_seq_fork(parent->seq, n_tokens, NULL, &seq));
    rig_seq_init(&r->seqs[r->n_seqs], seq, r->n_seqs + 1);
    r->seqs[r->n_seqs].length = n_tokens;
    return &r->seqs[r->n_seqs++];
}

static void decode(struct recording *r, struct rig_seq *const *seqs, uint32_t n, uint32_t n_steps)
{
    const uint32_t ones[MAX_SEQS] = {1, 1, 1, 1, 1, 1, 1, 1};

    for (uint32_t i = 0; i < n_steps; i++)
        must(rig_step(&r->rig, seqs, ones, n));
}

/* One step of two sequences, the second without a query, so that it only grows. */
static void append_beside(struct recording *r, struct rig_seq *a, struct rig_seq *b)
{
    struct nkv_attend_item items[2];
    struct nkv_ticket *ticket;

    for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
        items[0] = rig_item(a, layer, 1);
        items[1] = rig_item(b, layer, 1);
        items[1].q = NULL;
        must(nkv_attend_begin(r->rig.context, layer, items, 2, &ticket));
        must(nkv_attend_end(ticket));
    }
    must(nkv_step_end(r->rig.context, items, 2));
    a->length++;
    b->length++;
}

/* One step with two tickets in flight, which end in the order in which they began. */
static void two_tickets(struct recording *r, struct rig_seq *a, struct rig_seq *b)
{
    struct nkv_attend_item items[2];
    struct nkv_ticket *tickets[2];

    for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
        items[0] = rig_item(a, layer, 1);
        items[1] = rig_item(b, layer, 1);
        must(nkv_attend_begin(r->rig.context, layer, &items[0], 1, &tickets[0]));
        must(nkv_attend_begin(r->rig.context, layer, &items[1], 1, &tickets[1]));
        must(nkv_attend_end(tickets[0]));
        must(nkv_attend_end(tickets[1]));
    }
    must(nkv_step_end(r->rig.context, items, 2));
    a->length++;
    b->length++;
}

static void close_seq(struct rig_seq *s)
{
    nkv_seq_close(s->seq);
    s->seq = NULL;
}

/* The conversation of all scenarios. */
static void converse(struct recording *r, const struct scenario *s)
{
    struct rig_seq *a = open_seq(r, s, 1000), *b = open_seq(r, s, 2100), *c = open_seq(r, s, 480), *d, *e;

    must(rig_prefill(&r->rig, a, 700, 200));
    must(rig_prefill(&r->rig, b, 1333, 512));
    must(rig_prefill(&r->rig, c, 96, 96));
    decode(r, (struct rig_seq *[]){a, b, c}, 3, 12);
    decode(r, (struct rig_seq *[]){c, a}, 2, 40); /* another order, and only two */
    two_tickets(r, a, b);
    d = fork_seq(r, b, 1300);
    decode(r, (struct rig_seq *[]){d, c, b}, 3, 8);
    must(nkv_seq_truncate(b->seq, 1100)); /* below what it shares with its fork */
    b->length = 1100;
    b->seed = 77; /* other tokens at the same positions */
    must(rig_prefill(&r->rig, b, 220, 512));
    decode(r, (struct rig_seq *[]){b, d}, 2, 30);
    append_beside(r, a, b);
    must(nkv_seq_truncate(a->seq, a->length - 5));
    a->length -= 5;
    decode(r, (struct rig_seq *[]){a, b}, 2, 10);
    close_seq(b); /* its fork goes on with what they shared */
    e = open_seq(r, s, 3000);
    must(rig_prefill(&r->rig, e, 64, 64));
    decode(r, (struct rig_seq *[]){e, d, a}, 3, 4);
    (void)open_seq(r, s, 600); /* goes where most is free */
    close_seq(a);
    close_seq(e);
}

static void recording_end(struct recording *r)
{
    rig_close(&r->rig);
    for (uint32_t i = 0; i < r->n_seqs; i++)
        rig_seq_free(&r->seqs[i]);
}

static void recording_remove(struct recording *r)
{
    char path[80];
    static const char *const names[] = {"", ".0", ".1", ".compute"};

    for (uint32_t i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s%s", r->trace, names[i]);
        unlink(path);
    }
    rmdir(r->dir);
    free(r->log.text);
}

static void record(struct recording *r, const struct scenario *s)
{
    recording_open(r, s);
    converse(r, s);
    recording_end(r);
}

static uint64_t fail_at, n_allocations; /* of a replay: which one fails; how many there were */

static int replay(const struct recording *r, struct log *log, struct nkv_sim_replay_report *report_out)
{
    struct nkv_sim_replay_options options = {.size = sizeof options,
                                             .trace = r->trace,
                                             .sequences = r->options,
                                             .n_sequences = r->n_seqs,
                                             .plan_log = keep_line,
                                             .plan_log_arg = log};
    struct nkv_sim_machine *machine;
    int status;

    must(nkv_sim_machine_open("paper-server", &machine));
    options.machine = machine;
    *log = (struct log){0};
    keep_line(log, "begin");
    log->bytes = 0;
    (void)nkv_mem_fail_at(fail_at);
    status = nkv_sim_replay(&options, report_out);
    n_allocations = nkv_mem_fail_at(0);
    nkv_sim_machine_close(machine);
    return status;
}

static const struct scenario scenarios[] = {
    {.mode = NKV_MODE_FULL, .granularity = NKV_SELECT_LAYER, .n_devices = 1, .scores = true},
    {.mode = NKV_MODE_FULL, .granularity = NKV_SELECT_LAYER, .n_devices = 2, .sparse_prefill = true},
    {.mode = NKV_MODE_PNM, .granularity = NKV_SELECT_LAYER, .n_devices = 1},
    {.mode = NKV_MODE_PNM, .granularity = NKV_SELECT_KV_HEAD, .n_devices = 2, .scores = true, .sparse_prefill = true},
    {.mode = NKV_MODE_PNM, .granularity = NKV_SELECT_LAYER, .n_devices = 2, .n_dense_layers = 1},
    {.mode = NKV_MODE_PNG, .granularity = NKV_SELECT_LAYER, .n_devices = 1, .scores = true},
    {.mode = NKV_MODE_PNG, .granularity = NKV_SELECT_KV_HEAD, .n_devices = 2},
    {.mode = NKV_MODE_PNG,
     .granularity = NKV_SELECT_LAYER,
     .n_devices = 2,
     .same_step = true,
     .scores = true,
     .sparse_prefill = true},
    {.mode = NKV_MODE_PNG, .granularity = NKV_SELECT_KV_HEAD, .n_devices = 1, .same_step = true},
    {.mode = NKV_MODE_RECALL, .granularity = NKV_SELECT_LAYER, .n_devices = 1},
    {.mode = NKV_MODE_RECALL, .granularity = NKV_SELECT_KV_HEAD, .n_devices = 2, .sparse_prefill = true},
    {.mode = NKV_MODE_RECALL,
     .granularity = NKV_SELECT_LAYER,
     .n_devices = 2,
     .attend_resident = true,
     .n_dense_layers = 1},
};

static void a_replay_has_the_recorded_plan(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
        const struct scenario *s = &scenarios[i];
        struct nkv_sim_replay_report report;
        struct recording r;
        struct log log;

        record(&r, s);
        if (replay(&r, &log, &report) < 0)
            fail_msg("scenario %zu (%s): %s", i, nkv_mode_name(s->mode), nkv_last_error());
        if (first_difference(&r.log, &log))
            fail_msg("scenario %zu: %s per %s on %u devices", i, nkv_mode_name(s->mode),
                     nkv_granularity_name(s->granularity), s->n_devices);
        assert_true(n_lines(&r.log) > 500);
        assert_true(s->n_devices == 1 || strstr(r.log.text, "\ndev=1 open")); /* both are used */
        assert_int_equal(report.n_sequences, r.n_seqs);
        assert_true(report.n_calls > 2 * 100 && report.attention_ms > 1 && report.attention_ms < 1e4);
        free(log.text);
        recording_remove(&r);
    }
}

/* ---- A trace that is not the run's ---- */

static char *read_all(const char *path, size_t *bytes_out)
{
    FILE *file = fopen(path, "rb");
    char *text = malloc(1u << 24);

    assert_non_null(file);
    assert_non_null(text);
    *bytes_out = fread(text, 1, (1u << 24) - 1, file);
    text[*bytes_out] = '\0';
    fclose(file);
    return text;
}

static void write_all(const char *path, const char *text, size_t bytes)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    fclose(file);
}

static char *last_of(char *text, const char *what)
{
    char *found = NULL;

    for (char *at = strstr(text, what); at; at = strstr(at + 1, what))
        found = at;
    assert_non_null(found);
    return found;
}

/* Exchanges the two best-ranked pages of the last SELECT that has chosen by score. */
static void swap_ranks(char *text)
{
    char *at = last_of(text, "\"chosen\":[[0,"), *first = at + strlen("\"chosen\":[[0,"), *second, swapped[32];
    int n, m;

    n = (int)strspn(first, "0123456789");
    second = first + n + 1;
    m = (int)strspn(second, "0123456789");
    snprintf(swapped, sizeof swapped, "%.*s,%.*s", m, second, n, first);
    memcpy(first, swapped, (size_t)(n + 1 + m));
}

/* Gives the first page after the sink the highest score there is, in place of one of equal length. */
static void raise_score(char *text)
{
    char *at = last_of(text, "\"scores\":[[null,") + strlen("\"scores\":[[null,");
    size_t n = strcspn(at, ",");

    assert_true(n >= 4);
    memset(at, '9', n);
}

static void check_changed(const struct scenario *s, const char *file, void (*change)(char *text))
{
    struct nkv_sim_replay_report report;
    struct recording r;
    struct log log;
    char path[80], *text;
    size_t bytes;

    record(&r, s);
    snprintf(path, sizeof path, "%s%s", r.trace, file);
    text = read_all(path, &bytes);
    change(text);
    write_all(path, text, bytes);
    must(replay(&r, &log, &report));
    assert_int_not_equal(first_difference(&r.log, &log), 0);
    free(text);
    free(log.text);
    recording_remove(&r);
}

static void a_changed_trace_has_another_plan(void **state)
{
    (void)state;
    check_changed(&(struct scenario){.mode = NKV_MODE_PNM, .granularity = NKV_SELECT_LAYER, .n_devices = 1}, "",
                  swap_ranks);
    check_changed(
        &(struct scenario){.mode = NKV_MODE_PNG, .granularity = NKV_SELECT_LAYER, .n_devices = 1, .scores = true}, "",
        raise_score);
    check_changed(&(struct scenario){.mode = NKV_MODE_RECALL, .granularity = NKV_SELECT_LAYER, .n_devices = 1},
                  ".compute", raise_score);
}

static void other_options_are_refused_or_differ(void **state)
{
    const struct scenario s = {.mode = NKV_MODE_PNM, .granularity = NKV_SELECT_LAYER, .n_devices = 1};
    struct nkv_sim_replay_report report = {.n_calls = 7};
    struct recording r;
    struct log log;

    (void)state;
    record(&r, &s);
    r.n_seqs--;
    assert_int_equal(replay(&r, &log, &report), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "options are given for"));
    free(log.text);
    r.n_seqs++;
    r.options[0].budget_tokens =
        12 * RIG_PAGE; /* no scores, so nobody knows what comes behind the 8 that were chosen */
    assert_true(replay(&r, &log, &report) < 0);
    assert_non_null(strstr(nkv_last_error(), "12 pages are asked for"));
    assert_int_equal(report.n_calls, 7);
    free(log.text);
    recording_remove(&r);
}

/* All of them would take minutes: most are pages of one step like another. */
static void allocations_may_fail(void **state)
{
    const struct scenario s = {.mode = NKV_MODE_RECALL, .granularity = NKV_SELECT_LAYER, .n_devices = 2};
    struct nkv_sim_replay_report report;
    struct recording r;
    struct log log;
    uint64_t n;

    (void)state;
    record(&r, &s);
    must(replay(&r, &log, &report));
    free(log.text);
    n = n_allocations;
    assert_true(n > 1000);
    for (fail_at = 1; fail_at <= n; fail_at += fail_at > 100 && fail_at + 100 < n ? n / 20 : 1) {
        assert_true(replay(&r, &log, &report) < 0);
        free(log.text);
    }
    fail_at = 0;
    recording_remove(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_replay_has_the_recorded_plan),
        cmocka_unit_test(a_changed_trace_has_another_plan),
        cmocka_unit_test(other_options_are_refused_or_differ),
        cmocka_unit_test(allocations_may_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
