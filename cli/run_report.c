/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `nearkv run` reports. The JSON object of one prompt is the schema that scripts rely on; several prompts put what
 * belongs to each into an array "answers" and keep the sums at the top. Figures of decoding (decode_s, tpot_ms, select,
 * steady, link) leave the first token out.
 */
#include "run.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

static double ratio(uint64_t a, uint64_t b)
{
    return b ? (double)a / (double)b : 0;
}

static json_t *tokens_json(const struct answer *answer)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < answer->n_tokens; i++)
        json_array_append_new(list, json_integer(answer->tokens[i]));
    return list;
}

static json_t *answer_text_json(const struct run *run, const struct answer *answer)
{
    json_t *json;
    char *text;
    size_t bytes;

    if (answer_text(&run->session, answer, &text, &bytes) != CLI_OK)
        return NULL;
    json = text_json(text, bytes);
    nkv_text_free(text);
    return json;
}

static json_t *tpot_json(const struct run *run, uint32_t n_steps)
{
    struct step_times t = step_times(run->step_ns + 1, n_steps);

    return json_pack("{s:f, s:f, s:f}", "mean", t.mean_ms, "p50", t.p50_ms, "p99", t.p99_ms);
}

static uint32_t longest(const struct run *run)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < run->n; i++)
        n = run->answers[i].n_steps > n ? run->answers[i].n_steps : n;
    return n;
}

/* The statistics of all sequences together. */
static struct nkv_seq_stats total_stats(const struct run *run)
{
    struct nkv_seq_stats sum = {0};

    for (uint32_t i = 0; i < run->n; i++) {
        const struct nkv_seq_stats *s = &run->answers[i].stats;

        sum.to_device_bytes += s->to_device_bytes;
        sum.from_device_bytes += s->from_device_bytes;
        sum.recalled_pages += s->recalled_pages;
        sum.recalled_bytes += s->recalled_bytes;
        sum.attended_tokens += s->attended_tokens;
        sum.chosen_pages += s->chosen_pages;
        sum.steady_pages += s->steady_pages;
        sum.n_layer_steps += s->n_layer_steps;
        sum.resident_pages += s->resident_pages;
        sum.pages += s->pages;
        sum.kv_bytes += s->kv_bytes;
        sum.digest_bytes += s->digest_bytes;
    }
    return sum;
}

static void add_stats(const struct run *run, json_t *root, const struct nkv_seq_stats *s)
{
    const struct session_options *o = &run->options.session;

    json_object_set_new(root, "kv",
                        json_pack("{s:i, s:s, s:i, s:I, s:I}", "page_tokens", (int)o->page_tokens, "dtype",
                                  nkv_dtype_name(o->kv), "pages", (int)s->pages, "bytes", (json_int_t)s->kv_bytes,
                                  "digest_bytes", (json_int_t)s->digest_bytes));
    json_object_set_new(root, "select",
                        json_pack("{s:I, s:f}", "budget_tokens", (json_int_t)o->seq.budget_tokens,
                                  "attended_tokens_mean", ratio(s->attended_tokens, s->n_layer_steps)));
    json_object_set_new(root, "steady",
                        json_pack("{s:i, s:f}", "resident_pages", (int)s->resident_pages, "hit_ratio",
                                  ratio(s->steady_pages, s->chosen_pages)));
    json_object_set_new(root, "link",
                        json_pack("{s:I, s:I, s:I, s:I}", "to_device_bytes", (json_int_t)s->to_device_bytes,
                                  "from_device_bytes", (json_int_t)s->from_device_bytes, "recalled_pages",
                                  (json_int_t)s->recalled_pages, "recalled_bytes", (json_int_t)s->recalled_bytes));
}

static json_t *device_json(const struct run *run, uint32_t i)
{
    struct nkv_device_report report;

    if (nkv_context_device(run->session.context, i, &report) < 0)
        return NULL;
    return json_pack("{s:s, s:I, s:I, s:f}", "name", report.name, "capacity_bytes", (json_int_t)report.capacity_bytes,
                     "used_bytes", (json_int_t)report.used_bytes, "busy_s", (double)report.busy_ns / 1e9);
}

static void add_devices(const struct run *run, json_t *root)
{
    json_t *devices = json_array();

    for (uint32_t i = 0; i < run->session.n_devices; i++)
        json_array_append_new(devices, device_json(run, i));
    json_object_set_new(root, "devices", devices);
    if (run->session.compute)
        json_object_set_new(root, "compute", device_json(run, run->session.n_devices));
}

static bool on_one_device(const struct run *run, const struct nkv_seq *seq)
{
    enum nkv_kv_parallel kv_parallel = session_kv_parallel(&run->options.session);

    return kv_parallel == NKV_KV_DATA || (kv_parallel == NKV_KV_AUTO && nkv_seq_device(seq) != NKV_ALL_DEVICES);
}

static bool is_spread(const struct run *run, const struct answer *answer)
{
    return answer->seq && !on_one_device(run, answer->seq);
}

static uint32_t count_spread(const struct run *run)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < run->n; i++)
        n += is_spread(run, &run->answers[i]);
    return n;
}

static json_t *kv_parallel_json(const struct run *run)
{
    struct nkv_kv_parallel_report report;

    nkv_context_kv_parallel(run->session.context, &report);
    return json_pack("{s:s, s:i, s:i, s:I, s:I, s:I, s:I, s:I}", "mapping", nkv_kv_parallel_name(report.kv_parallel),
                     "devices", (int)report.n_devices, "sequences", (int)count_spread(run), "commands",
                     (json_int_t)report.n_commands, "messages", (json_int_t)report.n_messages, "select_rounds",
                     (json_int_t)report.n_select_rounds, "to_device_bytes", (json_int_t)report.to_device_bytes,
                     "from_device_bytes", (json_int_t)report.from_device_bytes);
}

/* What belongs to one prompt. */
static void add_answer(const struct run *run, json_t *root, uint32_t i)
{
    const struct answer *a = &run->answers[i];

    json_object_set_new(root, "text", answer_text_json(run, a));
    json_object_set_new(root, "tokens", tokens_json(a));
    json_object_set_new(root, "n_prompt", json_integer((json_int_t)run->prompts[i].n_tokens));
    json_object_set_new(root, "n_generated", json_integer(a->n_tokens));
    json_object_set_new(root, "device",
                        a->seq && !is_spread(run, a) ? json_integer(nkv_seq_device(a->seq)) : json_null());
    json_object_set_new(root, "spread", json_boolean(is_spread(run, a)));
    if (a->status < 0)
        json_object_set_new(root, "error", text_json(a->error, strlen(a->error)));
}

static json_t *answers_json(const struct run *run)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < run->n; i++) {
        const struct answer *a = &run->answers[i];
        json_t *one = json_object();

        add_answer(run, one, i);
        json_object_set_new(one, "ttft_ms", json_real((double)a->ttft_ns / 1e6));
        json_object_set_new(one, "tpot_ms", tpot_json(run, a->n_steps));
        add_stats(run, one, &a->stats);
        json_array_append_new(list, one);
    }
    return list;
}

static void add_totals(const struct run *run, json_t *root)
{
    json_int_t n_prompt = 0, n_generated = 0;

    for (uint32_t i = 0; i < run->n; i++) {
        n_prompt += (json_int_t)run->prompts[i].n_tokens;
        n_generated += run->answers[i].n_tokens;
    }
    json_object_set_new(root, "answers", answers_json(run));
    json_object_set_new(root, "n_prompt", json_integer(n_prompt));
    json_object_set_new(root, "n_generated", json_integer(n_generated));
}

static void add_times(const struct run *run, json_t *root)
{
    uint64_t steps = 0, ttft_ns = 0;

    for (uint32_t i = 0; i < run->n; i++) {
        steps += run->answers[i].n_steps;
        ttft_ns = run->answers[i].ttft_ns > ttft_ns ? run->answers[i].ttft_ns : ttft_ns;
    }
    json_object_set_new(root, "prefill_s", json_real((double)run->prefill_ns / 1e9));
    json_object_set_new(root, "decode_s", json_real((double)run->decode_ns / 1e9));
    json_object_set_new(root, "ttft_ms", json_real((double)ttft_ns / 1e6));
    json_object_set_new(root, "tpot_ms", tpot_json(run, longest(run)));
    json_object_set_new(root, "tokens_per_s", json_real(ratio(steps * 1000000000u, run->decode_ns)));
}

int run_report_json(const struct run *run)
{
    struct nkv_seq_stats stats = total_stats(run);
    json_t *root =
        json_pack("{s:s, s:s, s:o}", "schema", "nearkv.run/1", "mode", nkv_mode_name(run->options.session.seq.mode),
                  "model", text_json(run->session.info.name, strlen(run->session.info.name)));

    if (!root)
        return cli_fail("out of memory for the report");
    if (run->n == 1)
        add_answer(run, root, 0);
    else
        add_totals(run, root);
    add_times(run, root);
    add_stats(run, root, &stats);
    add_devices(run, root);
    if (run->parallel.mpi)
        json_object_set_new(root, "parallel", parallel_json(&run->parallel));
    if (session_kv_parallel(&run->options.session) != NKV_KV_DATA)
        json_object_set_new(root, "kv_parallel", kv_parallel_json(run));
    if (run->options.session_name)
        json_object_set_new(root, "session", run_session_json(run));
    return text_print_json(root);
}

static int print_answer(const struct run *run, uint32_t i)
{
    char *text;
    size_t bytes;

    if (answer_text(&run->session, &run->answers[i], &text, &bytes) != CLI_OK)
        return CLI_FAILED;
    printf("[%u] ", i + 1);
    fwrite(text, 1, bytes, stdout);
    putchar('\n');
    nkv_text_free(text);
    return CLI_OK;
}

/* Where the sequences lie, when there is a choice. */
static void print_places(const struct run *run)
{
    uint32_t n_spread = count_spread(run), n_devices = run->session.n_devices;
    const char *mapping = nkv_kv_parallel_name(
        session_kv_parallel(&run->options.session) == NKV_KV_HEADS ? NKV_KV_HEADS : NKV_KV_CONTEXT);

    if (n_devices == 1)
        return;
    if (n_spread == run->n)
        fprintf(stderr, ", over %u devices (%s)", n_devices, mapping);
    else if (n_spread > 0)
        fprintf(stderr, ", %u of %u answers over %u devices (%s)", n_spread, run->n, n_devices, mapping);
    else if (run->n > 1)
        fprintf(stderr, ", each answer on one device");
    else if (run->answers[0].seq)
        fprintf(stderr, ", on device %u", nkv_seq_device(run->answers[0].seq));
}

int run_report_text(const struct run *run)
{
    uint64_t n_prompt = 0, steps = 0;
    int rc = CLI_OK;

    for (uint32_t i = 0; i < run->n; i++) {
        n_prompt += run->prompts[i].n_tokens;
        steps += run->answers[i].n_steps;
        if (run->n > 1 && run->answers[i].status == 0 && rc == CLI_OK)
            rc = print_answer(run, i);
    }
    if (run->options.session_name)
        run_session_report(run);
    if (isatty(STDERR_FILENO)) {
        fprintf(stderr, "%llu prompt tokens in %.2f s, then %.1f tokens/s", (unsigned long long)n_prompt,
                (double)run->prefill_ns / 1e9, ratio(steps * 1000000000u, run->decode_ns));
        print_places(run);
        fputc('\n', stderr);
    }
    return rc;
}
