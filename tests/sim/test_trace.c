/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traces: one test per defect, each named with file and line; what ranks and scores give at which budget; a simulated
 * run that chooses the recorded pages; every allocation failing.
 */
#define _POSIX_C_SOURCE 200809L
#include "rig.h"

#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "policy/select.h"
#include "sim/trace.h"

static const char good[] =
    "{\"schema\":\"nearkv.trace/1\",\"backend\":\"cpu\",\"shape\":{\"n_layers\":1,\"n_heads\":2,\"n_kv_heads\":1,"
    "\"head_dim\":8,\"page_tokens\":4,\"dtype\":\"f32\",\"digest\":\"minmax\"},\"capacity_bytes\":1048576}\n"
    "{\"cmd\":0,\"op\":\"seq_open\",\"order\":0,\"user_data\":18446744073709551615,\"seq\":1,\"n_tokens\":40}\n"
    "{\"cqe\":0,\"res\":0,\"start_ns\":1,\"end_ns\":2}\n"
    "{\"cmd\":1,\"op\":\"append\",\"order\":1,\"seq\":1,\"n_tokens\":30}\n"
    "{\"cmd\":2,\"op\":\"select\",\"order\":2,\"sink\":1,\"recent\":1,\"flags\":4,\"seq\":1,\"n_tokens\":1,\"n_pages\":"
    "3,"
    "\"pos\":29}\n"
    "{\"cqe\":1,\"res\":0,\"start_ns\":1,\"end_ns\":2}\n"
    "{\"cqe\":2,\"res\":3,\"start_ns\":1,\"end_ns\":2,\"chosen\":[[0,2,7]],\"device\":[[0,2,7]],"
    "\"scores\":[[null,1.5,9,0.5,-1e3,1,1,null]]}\n";

/* A file of its own for each test. */
struct file {
    char dir[32], path[48];
};

static struct file file_begin(void)
{
    struct file f = {.dir = "/tmp/nkv-trace-XXXXXX"};

    assert_non_null(mkdtemp(f.dir));
    snprintf(f.path, sizeof f.path, "%s/trace", f.dir);
    return f;
}

static void file_write(const char *path, const char *text, size_t bytes)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static void file_end(struct file *f)
{
    unlink(f->path);
    assert_int_equal(rmdir(f->dir), 0);
}

static int info_of(const char *text, size_t bytes, struct nkv_sim_trace_info *info_out)
{
    struct file f = file_begin();
    int status;

    file_write(f.path, text, bytes);
    status = nkv_sim_trace_info(f.path, info_out);
    file_end(&f);
    return status;
}

static void a_good_trace_is_described(void **state)
{
    struct nkv_sim_trace_info info;

    (void)state;
    assert_int_equal(info_of(good, sizeof good - 1, &info), 0);
    assert_int_equal(info.shape.page_tokens, 4);
    assert_int_equal(info.shape.dtype, NKV_F32);
    assert_int_equal(info.granularity, NKV_SELECT_LAYER);
    assert_int_equal(info.n_sequences, 1);
    assert_int_equal(info.context_tokens, 30);
    assert_int_equal(info.n_steps, 1);
    assert_int_equal(info.n_run_steps, 0);
    assert_int_equal(info.budget_tokens, 12);
    assert_int_equal(info.sink_pages, 1);
    assert_int_equal(info.recent_pages, 1);
    assert_true(info.has_scores);
}

/* ---- Defects ---- */

static const struct defect {
    const char *from, *to; /* the first `from` of the good trace is replaced */
    const char *message;
} defects[] = {
    {"nearkv.trace/1", "nearkv.trace/2", "trace:1: schema nearkv.trace/2: this reads nearkv.trace/1"},
    {"\"schema\":", "\"scheme\":", "trace:1: no schema"},
    {"\"shape\":", "\"shade\":", "trace:1: no shape"},
    {"\"n_layers\":1", "\"n_layers\":0", "trace:1: "},
    {"\"n_layers\":1", "\"n_layers\":99999999999", "trace:1: n_layers is no whole number"},
    {"\"n_heads\":2", "\"n_heads\":2.5", "trace:1: n_heads is no whole number"},
    {"\"head_dim\":8", "\"head_dim\":\"8\"", "trace:1: head_dim is no whole number"},
    {"\"dtype\":\"f32\"", "\"dtype\":\"f64\"", "trace:1: "},
    {"\"digest\":\"minmax\"", "\"digest\":7", "trace:1: no digest"},
    {"\"capacity_bytes\":1048576", "\"capacity_bytes\":-1", "trace:1: capacity_bytes"},
    {"{\"cmd\":0", "garbage", "trace:2: "},
    {"{\"cmd\":0", "\xff\xfe", "trace:2: "},
    {"{\"cmd\":0", "[1]", "trace:2: "},
    {"{\"cmd\":0,\"op\":\"seq_open\"", "{\"cmd\":0,\"cmd\":0,\"op\":\"seq_open\"", "trace:2: duplicate"},
    {"{\"cmd\":0", "{\"cdm\":0", "trace:2: neither a command nor a completion"},
    {"\"cmd\":0", "\"cmd\":1", "trace:2: command 1 where 0 comes next"},
    {"\"cmd\":2", "\"cmd\":7", "trace:5: command 7 where 2 comes next"},
    {"seq_open", "seq_oven", "trace:2: no such op: seq_oven"},
    {"\"op\":\"seq_open\"", "\"op\":1", "trace:2: no op"},
    {"\"op\":\"append\"", "\"op\":\"append\",\"layer\":1", "trace:4: layer is no whole number from 0 to 0"},
    {"\"n_tokens\":30", "\"n_tokens\":1e300", "trace:4: n_tokens is no whole number"},
    {"\"n_tokens\":30", "\"n_tokens\":4294967297", "trace:4: n_tokens is no whole number"},
    {"\"n_tokens\":30", "\"n_tokens\":1e999", "trace:4: "},
    {"\"order\":1", "\"order\":-1", "trace:4: order is no whole number"},
    {"\"flags\":4", "\"flags\":65540", "trace:5: flags is no whole number"},
    {"\"sink\":1", "\"sink\":256", "trace:5: sink is no whole number"},
    {"\"n_tokens\":1,", "\"n_tokens\":0,", "trace:7: a SELECT of 0 tokens at position 29 cannot have succeeded"},
    {"\"pos\":29", "\"pos\":2147483647", "trace:7: a SELECT of 1 tokens at position 2147483647 cannot"},
    {"\"cqe\":1", "\"cqe\":3", "trace:6: command 3 completes, but only 3 were submitted"},
    {"\"cqe\":1", "\"cqe\":0", "trace:6: command 0 completes for the second time"},
    {"\"res\":0", "\"res\":null", "trace:3: res is no 32-bit number"},
    {"\"res\":0", "\"res\":2147483648", "trace:3: res is no 32-bit number"},
    {"\"res\":3", "\"res\":2", "trace:7: res is 2: 3 of 8 pages are to be chosen"},
    {"\"chosen\":", "\"frozen\":", "trace:7: no chosen"},
    {"\"chosen\":[[0,2,7]]", "\"chosen\":7", "trace:7: chosen of 0 units: there are 1"},
    {"\"chosen\":[[0,2,7]]", "\"chosen\":[[0,2,7],[0,2,7]]", "trace:7: chosen of 2 units: there are 1"},
    {"\"chosen\":[[0,2,7]]", "\"chosen\":[[0,7]]", "trace:7: chosen of unit 0: 2 pages are listed, 3 are to be"},
    {"\"chosen\":[[0,2,7]]", "\"chosen\":[[0,8,7]]", "trace:7: unit 0: chosen page number 1 is not from 0 to 7"},
    {"\"chosen\":[[0,2,7]]", "\"chosen\":[[0,-2,7]]", "trace:7: unit 0: chosen page number 1 is not from 0 to 7"},
    {"\"chosen\":[[0,2,7]]", "\"chosen\":[[0,\"2\",7]]", "trace:7: unit 0: chosen page number 1 is not from 0 to 7"},
    {"\"chosen\":[[0,2,7]]", "\"chosen\":[[0,7,7]]", "trace:7: unit 0: page 7 is chosen twice"},
    {"\"scores\":", "\"stores\":", "trace:7: no scores"},
    {"[[null,1.5,", "[[null,", "trace:7: scores of unit 0: 7 pages are listed, 8 are to be"},
    {"[[null,1.5,", "[[null,true,", "trace:7: scores of unit 0: that of page 1 is no number"},
    {"\"op\":\"seq_open\"", "\"op\":\"seq_close\"", "a SELECT of sequence 1, which is not open on device 0"},
    {"\"op\":\"select\"", "\"op\":\"attend\"", "no decode step that selects pages is recorded"},
};

static void a_defect_is_named_with_file_and_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof defects / sizeof *defects; i++) {
        const struct defect *d = &defects[i];
        const char *at = strstr(good, d->from);
        struct nkv_sim_trace_info info = {.n_steps = 77};
        char text[4096];
        int n;

        assert_non_null(at);
        n = snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, d->to, at + strlen(d->from));
        if (info_of(text, (size_t)n, &info) != NKV_EFORMAT || !strstr(nkv_last_error(), d->message))
            fail_msg("'%s' for '%s': expected '%s', got '%s'", d->to, d->from, d->message, nkv_last_error());
        assert_int_equal(info.n_steps, 77);
    }
}

static void a_trace_that_was_cut_off_is_refused(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof good - 1; n++) {
        struct nkv_sim_trace_info info;

        if (info_of(good, n, &info) != NKV_EFORMAT)
            fail_msg("%zu bytes were read", n);
        if (n > 0 && good[n - 1] != '\n' && !strstr(nkv_last_error(), "cut off in the middle of a line"))
            fail_msg("%zu bytes: %s", n, nkv_last_error());
    }
    assert_non_null(strstr(nkv_last_error(), "trace:7:"));
}

static void a_line_without_end_is_refused(void **state)
{
    const size_t bytes = (size_t)65 << 20;
    char *text = malloc(bytes);
    struct nkv_sim_trace_info info;

    (void)state;
    assert_non_null(text);
    memset(text, '[', bytes);
    assert_int_equal(info_of(text, bytes, &info), NKV_EFORMAT);
    assert_non_null(strstr(nkv_last_error(), "trace:1: longer than 64 MiB"));
    text[bytes / 65 - 1] = '\n'; /* and one that a parser would follow down */
    assert_int_equal(info_of(text, bytes / 65, &info), NKV_EFORMAT);
    free(text);
}

static void what_cannot_be_read_is_refused(void **state)
{
    struct file f = file_begin();
    struct nkv_sim_trace_info info;
    char second[56];

    (void)state;
    assert_int_equal(nkv_sim_trace_info(f.path, &info), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "no such trace"));
    assert_int_equal(nkv_sim_trace_info(f.dir, &info), NKV_EIO);
    file_write(f.path, good, sizeof good - 1);
    if (geteuid() != 0) {
        assert_int_equal(chmod(f.path, 0), 0);
        assert_int_equal(nkv_sim_trace_info(f.path, &info), NKV_EIO);
    }
    /* Of several devices the shapes agree. */
    snprintf(second, sizeof second, "%s.0", f.path);
    assert_int_equal(rename(f.path, second), 0);
    assert_int_equal(chmod(second, 0600), 0);
    assert_int_equal(nkv_sim_trace_info(f.path, &info), 0);
    second[strlen(second) - 1] = '1';
    file_write(second,
               "{\"schema\":\"nearkv.trace/1\",\"shape\":{\"n_layers\":2,\"n_heads\":2,\"n_kv_heads\":1,\"head_dim\":8,"
               "\"page_tokens\":4,\"dtype\":\"f32\",\"digest\":\"minmax\"}}\n",
               139);
    assert_int_equal(nkv_sim_trace_info(f.path, &info), NKV_EFORMAT);
    assert_non_null(strstr(nkv_last_error(), "trace.1:1: "));
    unlink(second);
    second[strlen(second) - 1] = '0';
    unlink(second);
    file_end(&f);
}

/* ---- A made-up run ---- */

#define LAYERS  2u
#define STEPS   12u
#define FIRST   4090u /* position of the first step: the number of pages changes under way */
#define PAGE    32u
#define CHOSEN  16u
#define N_PAGES (FIRST + STEPS)

static float score_of(uint32_t seq, uint32_t layer, uint32_t pos, uint32_t page)
{
    uint64_t state = (uint64_t)seq << 40 ^ (uint64_t)layer << 32 ^ (uint64_t)(pos / 4) << 12 ^ page;

    return (float)(rig_random(&state) % 65536) / 16;
}

/* The pages that the rule chooses. returns: how many. */
static uint32_t choose(uint32_t seq, uint32_t layer, uint32_t pos, uint32_t n_budget, uint32_t *chosen)
{
    struct nkv_select_rule rule = {
        .n_total = pos / PAGE + 1, .first_query_page = pos / PAGE, .n_budget = n_budget, .n_sink = 2, .n_recent = 3};
    uint32_t begin, end, scratch[256];
    float scores[256];

    assert_int_equal(nkv_select_range(&rule, &begin, &end), 0);
    for (uint32_t page = begin; page < end; page++)
        scores[page - begin] = score_of(seq, layer, pos, page);
    return nkv_select_pages(&rule, scores, scratch, chosen);
}

static void put_step(FILE *file, uint32_t *number, uint32_t seq, uint32_t layer, uint32_t pos, bool scores)
{
    uint32_t chosen[256], n = choose(seq, layer, pos, CHOSEN, chosen), n_total = pos / PAGE + 1;

    fprintf(file,
            "{\"cmd\":%u,\"op\":\"select\",\"sink\":2,\"recent\":3,\"flags\":%u,\"layer\":%u,\"seq\":%u,\"n_tokens\":1,"
            "\"n_pages\":%u,\"pos\":%u}\n{\"cqe\":%u,\"res\":%u,\"chosen\":[[",
            *number, scores ? 4 : 0, layer, seq, CHOSEN, pos, *number, n);
    for (uint32_t i = 0; i < n; i++)
        fprintf(file, i ? ",%u" : "%u", chosen[i]);
    fputs("]]", file);
    for (uint32_t page = 0; scores && page < n_total; page++)
        if (page >= 2 && page + 3 < n_total)
            fprintf(file, ",%.9g", (double)score_of(seq, layer, pos, page));
        else
            fputs(page ? ",null" : ",\"scores\":[[null", file);
    fputs(scores ? "]]}\n" : "}\n", file);
    ++*number;
}

/* Two sequences, the second of which decodes 3 steps less. */
static void put_run(const char *path, bool scores)
{
    FILE *file = fopen(path, "wb");
    uint32_t number = 0;

    assert_non_null(file);
    fprintf(file,
            "{\"schema\":\"nearkv.trace/1\",\"shape\":{\"n_layers\":%u,\"n_heads\":4,\"n_kv_heads\":2,\"head_dim\":16,"
            "\"page_tokens\":%u,\"dtype\":\"f16\",\"digest\":\"minmax\"}}\n",
            LAYERS, PAGE);
    for (uint32_t seq = 1; seq <= 2; seq++, number++)
        fprintf(file, "{\"cmd\":%u,\"op\":\"seq_open\",\"seq\":%u,\"n_tokens\":8192}\n{\"cqe\":%u,\"res\":0}\n", number,
                seq, number);
    for (uint32_t step = 0; step < STEPS; step++)
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            for (uint32_t seq = 1; seq <= (step < STEPS - 3 ? 2u : 1u); seq++)
                put_step(file, &number, seq, layer, FIRST + step, scores);
    assert_int_equal(fclose(file), 0);
}

/* ---- Scores ---- */

static int ask(struct sim_trace_source *source, const struct sim_query *query, uint32_t n_budget, uint32_t *chosen)
{
    struct nkv_select_rule rule = {.n_total = query->pos / PAGE + 1,
                                   .first_query_page = query->pos / PAGE,
                                   .n_budget = n_budget,
                                   .n_sink = 2,
                                   .n_recent = 3};
    struct sim_query q = *query;
    uint32_t scratch[256];
    float scores[256];
    int status;

    q.n_pages = n_budget;
    q.n_tokens = 1;
    assert_int_equal(nkv_select_range(&rule, &q.begin, &q.end), 0);
    status = sim_trace_source(source)->scores(sim_trace_source(source), &q, scores);
    return status < 0 ? status : (int)nkv_select_pages(&rule, scores, scratch, chosen);
}

/* Sets at a budget against those of the rule; NKV_EINVAL: the trace does not know. */
static void check_budget(struct sim_trace_source *source, uint32_t n_budget, bool known)
{
    for (uint32_t pos = FIRST; pos < FIRST + STEPS; pos++)
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            uint32_t chosen[256], expected[256], n = choose(1, layer, pos, n_budget, expected);
            int got = ask(source, &(struct sim_query){.layer = layer, .pos = pos}, n_budget, chosen);

            assert_int_equal(got, known ? (int)n : NKV_EINVAL);
            if (known)
                assert_memory_equal(chosen, expected, n * sizeof *chosen);
        }
}

static void ranks_answer_small_budgets_scores_any(void **state)
{
    (void)state;
    for (uint32_t scores = 0; scores <= 1; scores++) {
        struct file f = file_begin();
        struct sim_trace_source *source;
        struct sim_trace *trace;
        uint32_t chosen[256];

        put_run(f.path, scores);
        assert_int_equal(sim_trace_open(f.path, &trace), 0);
        assert_int_equal(sim_trace_source_open(trace, FIRST, FIRST + STEPS, 0, &source), 0);
        assert_int_equal(sim_trace_source(source)->n_streams, 1); /* the second has not all of these steps */
        assert_int_equal(sim_trace_source(source)->n_before, 0);
        check_budget(source, CHOSEN, true);
        check_budget(source, CHOSEN - 5, true);
        check_budget(source, CHOSEN + 1, scores);
        if (!scores)
            assert_non_null(strstr(nkv_last_error(), "17 pages are asked for, and the trace has no scores"));
        /* A third layer is the first one again; a position that was not recorded is nobody's. */
        assert_true(ask(source, &(struct sim_query){.layer = LAYERS, .pos = FIRST}, CHOSEN, chosen) == CHOSEN);
        assert_int_equal(ask(source, &(struct sim_query){.pos = FIRST - 1}, CHOSEN, chosen), NKV_EINVAL);
        assert_non_null(strstr(nkv_last_error(), "12 decode steps are, the last at 4101"));
        sim_trace_source_close(source);
        assert_int_equal(sim_trace_source_open(trace, FIRST + 2, FIRST + STEPS - 3, 0, &source), 0);
        assert_int_equal(sim_trace_source(source)->n_streams, 2);
        assert_int_equal(sim_trace_source(source)->n_before, 2);
        sim_trace_source_close(source);
        sim_trace_close(trace);
        file_end(&f);
    }
}

/* ---- Simulated runs ---- */

static uint32_t n_sets; /* that were compared */

static void compare_set(void *arg, const char *line)
{
    const uint32_t *n_budget = arg;
    uint32_t seq, layer, pos, chosen[256], n;
    const char *at = strchr(line, ':');

    if (sscanf(line, "set seq=%u layer=%u pos=%u", &seq, &layer, &pos) != 3)
        return;
    n = choose((seq - 1) % 2 + 1, layer % LAYERS, pos, *n_budget, chosen);
    for (uint32_t i = 0; i < n; i++) {
        char *end;

        assert_int_equal(strtoul(++at, &end, 10), chosen[i]);
        at = end;
    }
    assert_string_equal(at, "");
    n_sets++;
}

static struct nkv_sim_config run_config(const struct nkv_sim_machine *machine, const char *trace, uint32_t *n_budget)
{
    struct nkv_sim_config config = rig_config(machine, NKV_MODE_PNM);

    config.trace = trace;
    config.context_tokens = FIRST + STEPS - 3;
    config.n_steps = 4;
    config.n_layers = 3; /* more than were recorded */
    config.n_streams = 0;
    config.plan_log = compare_set;
    config.plan_log_arg = n_budget;
    snprintf(config.budget, sizeof config.budget, "%u", *n_budget * PAGE);
    return config;
}

static void expect_run(const struct nkv_sim_config *config, const char *message)
{
    struct nkv_sim_report report;

    assert_int_equal(nkv_sim_run(config, &report), NKV_EINVAL);
    if (!strstr(nkv_last_error(), message))
        fail_msg("expected '%s', got '%s'", message, nkv_last_error());
}

static void a_run_chooses_the_recorded_pages(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct file f = file_begin();
    uint32_t n_budget = CHOSEN;
    struct nkv_sim_config config;

    (void)state;
    put_run(f.path, true);
    config = run_config(machine, f.path, &n_budget);
    n_sets = 0;
    rig_run(&config);
    assert_int_equal(n_sets, config.batch * config.n_layers * (config.n_steps + 2));
    n_budget = 40;
    config = run_config(machine, f.path, &n_budget);
    rig_run(&config);
    config.plan_log = NULL; /* in png the ids are not consecutive */
    config.mode = NKV_MODE_PNG;
    config.steady = -1;
    rig_run(&config);
    config.context_tokens++;
    rig_run(&config); /* the longer sequence alone */
    config.context_tokens += 3;
    expect_run(&config,
               "the run decodes positions 4097 to 4102, and 12 steps are recorded, at 4090 to 4101: use --context "
               "4102");
    config.context_tokens = FIRST + STEPS;
    config.n_steps = STEPS;
    expect_run(&config, "at most 12 steps with the warm-up");
    config.n_steps = 4;
    config.page_tokens = 16;
    expect_run(&config, "was recorded with pages of 32");
    config.page_tokens = PAGE;
    config.granularity = NKV_SELECT_KV_HEAD;
    expect_run(&config, "was recorded with selection per layer");
    config.granularity = NKV_SELECT_LAYER;
    put_run(f.path, false);
    expect_run(&config, "40 pages are asked for, and the trace has no scores");
    file_end(&f);
    nkv_sim_machine_close(machine);
}

static void every_allocation_may_fail(void **state)
{
    struct file f = file_begin();
    struct nkv_sim_trace_info info;
    uint64_t n;

    (void)state;
    put_run(f.path, true);
    nkv_mem_fail_at(0);
    assert_int_equal(nkv_sim_trace_info(f.path, &info), 0);
    n = nkv_mem_fail_at(0);
    assert_true(n > 20);
    for (uint64_t i = 1; i <= n; i++) {
        nkv_mem_fail_at(i);
        assert_int_equal(nkv_sim_trace_info(f.path, &info), NKV_ENOMEM);
    }
    nkv_mem_fail_at(0);
    file_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_trace_is_described),           cmocka_unit_test(a_defect_is_named_with_file_and_line),
        cmocka_unit_test(a_trace_that_was_cut_off_is_refused), cmocka_unit_test(a_line_without_end_is_refused),
        cmocka_unit_test(what_cannot_be_read_is_refused),      cmocka_unit_test(ranks_answer_small_budgets_scores_any),
        cmocka_unit_test(a_run_chooses_the_recorded_pages),    cmocka_unit_test(every_allocation_may_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
