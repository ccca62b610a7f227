/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a run needs: tokens of each sequence, what prompts have in common, and memory of the devices, which are opened
 * as large as that and no larger.
 *
 * Where auto places the sequences (--kv-parallel) is found out only when they open; whatever it chooses there must be
 * room for the next one. So a device holds the largest and an even share of all others: then the others, wherever they
 * lie, leave that much free on one device at least. Planning with the policy's own predictions was rejected: the
 * library owns them, and remote devices are as large as they are anyway.
 */
#include "cli.h"
#include "run.h"

/* Tokens that every prompt begins with, leaving each at least one of its own; 0 when it is not worth a fork. */
static uint32_t common_prefix(const struct run *run)
{
    size_t n = run->prompts[0].n_tokens - 1;

    for (uint32_t i = 1; i < run->n; i++) {
        size_t same = 0, limit = run->prompts[i].n_tokens - 1 < n ? run->prompts[i].n_tokens - 1 : n;

        while (same < limit && run->prompts[i].tokens[same] == run->prompts[0].tokens[same])
            same++;
        n = same;
    }
    return run->n > 1 && n >= run->session.shape.page_tokens ? (uint32_t)n : 0;
}

uint32_t run_max_tokens(const struct run *run, uint32_t i)
{
    if (run->options.session_name)
        return run_session_tokens(run, (uint32_t)run->prompts[i].n_tokens);
    return (uint32_t)run->prompts[i].n_tokens + run->options.max_tokens;
}

/* The load of each home when sequences go, one by one, to the one with the most free memory. */
static int plan_loads(const struct run *run, uint32_t n_homes, struct session_need *need)
{
    uint64_t load[SESSION_MAX_DEVICES] = {0}, bytes = 0;
    int rc = CLI_OK;

    if (run->n_prefix)
        rc = session_device_bytes(&run->session, 0, run->n_prefix, &bytes);
    for (uint32_t i = 0; i < run->n_bases; i++)
        load[i] = bytes;
    for (uint32_t i = 0; rc == CLI_OK && i < run->n; i++) {
        uint32_t to = run->n_bases ? i % run->n_bases : 0;

        for (uint32_t d = 1; !run->n_bases && d < n_homes; d++)
            to = load[d] < load[to] ? d : to;
        rc = session_device_bytes(&run->session, run->n_prefix, run_max_tokens(run, i), &bytes);
        load[to] += bytes;
    }
    for (uint32_t d = 0; d < n_homes; d++) {
        need->device_bytes = load[d] > need->device_bytes ? load[d] : need->device_bytes;
        need->total_bytes += load[d];
    }
    return rc;
}

/* Auto, nothing in common: see above. A part is rounded up to pages, so parts may be more than the whole. */
static int plan_mixed(const struct run *run, struct session_need *need)
{
    uint64_t n = session_device_count(&run->options.session), whole[RUN_MAX_PROMPTS] = {0}, use[RUN_MAX_PROMPTS],
             part = 0;
    int rc = CLI_OK;

    for (uint32_t i = 0; rc == CLI_OK && i < run->n; i++) {
        rc = session_device_bytes(&run->session, 0, run_max_tokens(run, i), &whole[i]);
        if (rc == CLI_OK)
            rc = session_part_bytes(&run->session, 0, run_max_tokens(run, i), &part);
        use[i] = n * part > whole[i] ? n * part : whole[i];
        need->total_bytes += use[i];
    }
    for (uint32_t i = 0; rc == CLI_OK && i < run->n; i++) {
        uint64_t bytes = whole[i] + (need->total_bytes - use[i] + n - 1) / n;

        need->device_bytes = bytes > need->device_bytes ? bytes : need->device_bytes;
    }
    return rc;
}

/* Auto, something in common: on each device, or once on all of them, and whatever follows goes where it lies. */
static int plan_shared(const struct run *run, struct session_need *need)
{
    uint32_t n = session_device_count(&run->options.session);
    uint64_t all = 0, bytes = 0;
    int rc = plan_loads(run, n, need);

    if (rc == CLI_OK)
        rc = session_part_bytes(&run->session, 0, run->n_prefix, &all);
    for (uint32_t i = 0; rc == CLI_OK && i < run->n; i++) {
        rc = session_part_bytes(&run->session, run->n_prefix, run_max_tokens(run, i), &bytes);
        all += bytes;
    }
    need->device_bytes = all > need->device_bytes ? all : need->device_bytes;
    need->total_bytes = n * all > need->total_bytes ? n * all : need->total_bytes;
    return rc;
}

int run_plan(struct run *run, struct session_need *need)
{
    bool mixed = session_kv_parallel(&run->options.session) == NKV_KV_AUTO;
    uint32_t n_homes = session_home_count(&run->options.session);
    int rc = CLI_OK;

    *need = (struct session_need){.max_batch = run->n};
    run->n_prefix = common_prefix(run);
    run->n_bases = run->n_prefix ? (run->n < n_homes ? run->n : n_homes) : 0;
    for (uint32_t i = 0; rc == CLI_OK && i < run->n; i++) {
        struct nkv_seq_options seq;
        uint64_t bytes = 0;

        session_seq_options(&run->session, (uint32_t)run->prompts[i].n_tokens, run_max_tokens(run, i), &seq);
        rc = session_compute_bytes(&run->session, &seq, &bytes);
        need->compute_bytes += bytes;
    }
    if (rc == CLI_OK)
        rc = !mixed ? plan_loads(run, n_homes, need) : run->n_bases ? plan_shared(run, need) : plan_mixed(run, need);
    need->total_bytes *= session_device_count(&run->options.session) / n_homes; /* a home that is all devices */
    return rc;
}

/* What no device could ever hold may lie on all. */
static int check_spread(const struct run *run, uint32_t i)
{
    struct nkv_seq_options seq;

    session_seq_options(&run->session, (uint32_t)run->prompts[i].n_tokens, run_max_tokens(run, i), &seq);
    return nkv_seq_can_fit(run->session.context, &seq) < 0
               ? cli_usage("prompt %u with its answer: %s", i + 1, nkv_last_error())
               : CLI_OK;
}

/* A prompt that no device could ever hold is a wrong use, not a busy device. */
int run_check_capacity(const struct run *run)
{
    uint64_t largest = 0, bytes;
    int rc = CLI_OK;

    for (uint32_t d = 0; d < run->session.n_devices; d++) {
        struct nkv_device_report report;

        if (nkv_context_device(run->session.context, d, &report) < 0)
            return cli_fail("%s", nkv_last_error());
        largest = report.capacity_bytes > largest ? report.capacity_bytes : largest;
    }
    for (uint32_t i = 0; rc == CLI_OK && i < run->n; i++) {
        rc = session_device_bytes(&run->session, 0, run_max_tokens(run, i), &bytes);
        if (rc != CLI_OK)
            return rc;
        if (bytes > largest && session_kv_parallel(&run->options.session) == NKV_KV_AUTO)
            rc = check_spread(run, i);
        else if (bytes > largest)
            return cli_usage("prompt %u with its answer (%u tokens) needs %s of KV cache, the largest device has %s: "
                             "%s is missing",
                             i + 1, run_max_tokens(run, i), cli_bytes(bytes), cli_bytes(largest),
                             cli_bytes(bytes - largest));
    }
    return rc;
}
