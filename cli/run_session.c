/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv run --session: the sequence lives on the device under a name. What the device holds is asked before anything
 * is sized, because the session may be longer than the prompt; the library then decides what of it can be kept.
 *
 * The session must hold all text that was printed, so that --continue goes on behind it: the last token of an answer,
 * which no step of decoding feeds, is fed at the end. A run that is interrupted leaves the session at its last
 * committed token, which the next run takes up like any other.
 */
#include "run.h"

#include <stdio.h>
#include <string.h>

#include "cli.h"

static const char *const hows[] = {
    [NKV_SESSION_NEW] = "new", [NKV_SESSION_RESUMED] = "resumed", [NKV_SESSION_FORKED] = "forked"};

int run_session_check(const struct run_options *o)
{
    const struct session_options *s = &o->session;

    if (s->memory && strncmp(s->memory, "file:", 5) != 0 && strncmp(s->memory, "dax:", 4) != 0)
        return cli_usage("--memory %s: give file:PATH[:SIZE] or dax:/dev/daxX.Y", s->memory);
    if (s->memory && strncmp(s->memory, "dax:", 4) == 0 && session_device_count(s) > 1)
        return cli_usage("--memory %s is one device, but there are %u", s->memory, session_device_count(s));
    if (!o->session_name)
        return o->continues ? cli_usage("--continue: name the session to go on with: --session NAME") : CLI_OK;
    if (s->kv_parallel != NKV_KV_DATA)
        return cli_usage("--session keeps a text on one device, --kv-parallel %s spreads it over all: leave one out",
                         nkv_kv_parallel_name(s->kv_parallel));
    if (o->n_prompts > 1)
        return cli_usage("--session holds one text, but there are %u prompts: give one -p", o->n_prompts);
    for (uint32_t i = 0; i < s->n_specs && !s->memory; i++)
        if (!cli_is_remote(s->specs[i]))
            return cli_usage("--session: device %s ends with this run: give --device unix:PATH (nearkv pnmd), or "
                             "--memory file:PATH",
                             s->specs[i]);
    if (s->n_specs == 0 && !s->memory)
        return cli_usage("--session needs a device that outlives this run: give --device unix:PATH (nearkv pnmd), or "
                         "--memory file:PATH:SIZE");
    return CLI_OK;
}

/* A context of its own, for a question: the one for the run is sized by the answer. */
static int find(const struct run *run, struct nkv_session_info *info_out)
{
    struct nkv_context_options options = {
        .size = sizeof options,
        .shape = run->session.shape,
        .devices = run->session.devices,
        .n_devices = run->session.n_devices,
        .max_batch = 1,
        .max_tokens = 1,
    };
    struct nkv_context *context = NULL;
    int status = nkv_context_open(&options, &context);

    if (status == 0)
        status = nkv_session_find(context, run->options.session_name, info_out);
    nkv_context_close(context);
    return status;
}

int run_session_look(struct run *run)
{
    struct nkv_session_info info;
    int rc = session_open_pnm(&run->session, 0), status;

    if (rc != CLI_OK)
        return rc;
    status = find(run, &info);
    if (status == NKV_EINVAL)
        return cli_usage("--session: %s", nkv_last_error());
    if (status < 0 && (status != NKV_ENOENT || run->options.continues))
        return cli_fail("%s", nkv_last_error());
    run->n_held = status == 0 ? info.n_tokens : 0;
    return CLI_OK;
}

uint32_t run_session_tokens(const struct run *run, uint32_t n_prompt)
{
    uint32_t n = n_prompt + run->options.max_tokens;

    if (run->options.continues)
        return run->n_held + n;
    return n > run->n_held ? n : run->n_held;
}

int run_session_open(struct run *run, const struct nkv_seq_options *seq, struct nkv_seq **seq_out)
{
    struct nkv_session_options options = {
        .size = sizeof options,
        .name = run->options.session_name,
        .model = nkv_model_fingerprint(run->session.model),
        .tokens = run->prompts[0].tokens,
        .n_tokens = (uint32_t)run->prompts[0].n_tokens,
        .continues = run->options.continues,
    };

    return nkv_session_open(run->session.context, seq, &options, seq_out, &run->resumed);
}

uint32_t run_session_reused(const struct run *run)
{
    return run->options.continues ? 0 : run->resumed.n_reused;
}

static uint32_t n_fed(const struct run *run)
{
    return nkv_seq_length(run->answers[0].seq) - run->resumed.n_reused;
}

int run_session_finish(struct run *run)
{
    const struct answer *answer = &run->answers[0];
    uint32_t n_prompt = (uint32_t)run->prompts[0].n_tokens - run_session_reused(run);

    if (answer->status < 0 || answer->n_tokens == 0 || n_fed(run) == n_prompt + answer->n_tokens)
        return CLI_OK;
    if (nkv_prefill(run->session.decoder, answer->seq, &answer->tokens[answer->n_tokens - 1], 1, NULL, NULL, NULL) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

/* Logits that are no numbers (NKV_EINVAL): what was closed in order is taken as it is, and nobody has compared it. */
int run_session_ended(const struct run *run, uint32_t i)
{
    const struct answer *answer = &run->answers[i];
    uint32_t device = answer->seq ? nkv_seq_device(answer->seq) : 0;
    char memory[SESSION_SPEC_BYTES];

    if (answer->status == NKV_EINVAL && run->resumed.n_reused && session_has_memory(&run->options.session, device) &&
        session_memory(&run->options.session, device, memory) == CLI_OK)
        return cli_fail("sequence %u ended: %s; or the session's memory is damaged: nearkv pnm check %s tells", i + 1,
                        answer->error, memory);
    return cli_fail("sequence %u ended: %s", i + 1, answer->error);
}

/* Of what was fed, what the prompt had and the session had not; the rest is the answer. */
static uint32_t n_fed_of_prompt(const struct run *run)
{
    uint32_t n = (uint32_t)run->prompts[0].n_tokens - run_session_reused(run);

    return n < n_fed(run) ? n : n_fed(run);
}

json_t *run_session_json(const struct run *run)
{
    const struct nkv_session_result *r = &run->resumed;

    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:s?}", "name", run->options.session_name, "how", hows[r->how],
                     "reused_tokens", (json_int_t)r->n_reused, "fed_tokens", (json_int_t)n_fed(run),
                     "fed_prompt_tokens", (json_int_t)n_fed_of_prompt(run), "shared_bytes", (json_int_t)r->shared_bytes,
                     "from", r->how == NKV_SESSION_FORKED ? r->from : NULL);
}

void run_session_report(const struct run *run)
{
    const struct nkv_session_result *r = &run->resumed;

    fprintf(stderr, "session %s: %s%s%s, %u tokens reused, %u fed (%u of the prompt, the rest the answer)",
            run->options.session_name, hows[r->how], r->how == NKV_SESSION_FORKED ? " from " : "",
            r->how == NKV_SESSION_FORKED ? r->from : "", r->n_reused, n_fed(run), n_fed_of_prompt(run));
    if (r->shared_bytes)
        fprintf(stderr, ", %s shared", cli_bytes(r->shared_bytes));
    fputc('\n', stderr);
}
