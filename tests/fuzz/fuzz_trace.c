/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as the only device's file of a trace: it is refused with a status and a message, or everything that it
 * holds lies in its range, every recorded step answers a query or says why not, and it is a script of calls or no run.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "policy/select.h"
#include "sim/script.h"
#include "sim/trace.h"

#define MOST_PAGES 4096u /* that are asked for; a position may claim to be at 2^31 */

static void check(bool condition)
{
    if (!condition)
        abort();
}

static void check_picks(const struct sim_trace *trace)
{
    for (uint32_t i = 0; i < trace->n_picks; i++) {
        const struct sim_trace_pick *pick = &trace->picks[i];

        check(pick->cmd < trace->n_cmds && pick->n_chosen <= pick->n_total);
        for (uint32_t j = 0; j < pick->n_units * pick->n_chosen; j++)
            check(pick->chosen[j] < pick->n_total);
    }
}

/* Asks for a recorded step as a SELECT with the recorded budget does. */
static void ask(const struct sim_trace *trace, struct sim_trace_source *source, const struct sim_trace_cmd *cmd)
{
    static float scores[MOST_PAGES];
    uint32_t page_tokens = trace->shape.page_tokens;
    struct sim_query query = {.layer = cmd->layer, .pos = cmd->pos, .n_tokens = cmd->n_tokens, .n_pages = cmd->n_pages};
    struct nkv_select_rule rule = {.n_total = (cmd->pos + cmd->n_tokens - 1) / page_tokens + 1,
                                   .first_query_page = cmd->pos / page_tokens,
                                   .n_budget = cmd->n_pages,
                                   .n_sink = cmd->sink,
                                   .n_recent = cmd->recent};

    if (nkv_select_range(&rule, &query.begin, &query.end) < 0 || query.end - query.begin > MOST_PAGES)
        return;
    for (uint32_t stream = 0; stream < sim_trace_source(source)->n_streams; stream++) {
        query.stream = stream;
        if (sim_trace_source(source)->scores(sim_trace_source(source), &query, scores) < 0)
            check(nkv_last_error()[0] != 0);
    }
}

static void ask_all(struct sim_trace *trace, struct sim_trace_source *source)
{
    for (uint32_t i = 0; i < trace->n_picks; i++)
        if (trace->cmds[trace->picks[i].cmd].pick == i)
            ask(trace, source, &trace->cmds[trace->picks[i].cmd]);
    sim_trace_source_close(source);
}

static void use(struct sim_trace *trace)
{
    struct nkv_sim_trace_info info;
    struct sim_trace_source *source;
    struct sim_script script;

    check_picks(trace);
    if (sim_trace_describe(trace, &info) == 0) {
        check(info.n_steps > 0 && info.n_steps <= info.context_tokens && info.n_sequences > 0);
        check(sim_trace_source_open(trace, info.context_tokens - info.n_steps, info.context_tokens, 0, &source) == 0);
        ask_all(trace, source);
    }
    if (trace->n_streams && sim_trace_source_open_replay(trace, &source) == 0)
        ask_all(trace, source);
    if (sim_script_open(trace, &script) == 0) {
        for (uint32_t i = 0; i < script.n_items; i++)
            check(script.items[i].seq < script.n_actors && script.items[i].call < script.n_events);
        sim_script_close(&script);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct sim_trace *trace = NULL;
    FILE *file = bytes ? fmemopen((void *)(uintptr_t)data, bytes, "rb") : NULL;
    int status;

    if (!file)
        return 0;
    check(sim_trace_new("fuzz", &trace) == 0);
    status = sim_trace_read(trace, file, "fuzz", 0);
    trace->n_devices = 1;
    if (status == 0)
        status = sim_trace_index(trace);
    check(status == 0 || ((status == NKV_EFORMAT || status == NKV_ENOMEM) && nkv_last_error()[0] != 0));
    if (status == 0)
        use(trace);
    sim_trace_close(trace);
    fclose(file);
    return 0;
}
