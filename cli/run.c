/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv run: answers prompts. FILE's text comes before each TEXT. Several prompts run as one batch; what their tokens
 * have in common at the beginning is fed once on each device and forked, so that ten questions about one book read the
 * book once. (The common part is found in the tokens, not in the text: a tokenizer may join FILE's end and TEXT.)
 */
#include "run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "commands.h"
#include "progress.h"
#include "reconnect.h"

enum {
    OPTION_TEMP = SESSION_END,
    OPTION_TOP_K,
    OPTION_TOP_P,
    OPTION_SEED,
    OPTION_TP,
    OPTION_PNM_RANKS,
    OPTION_SESSION,
    OPTION_CONTINUE,
    OPTION_MEMORY,
    OPTION_RECONNECT,
    OPTION_JSON,
    OPTION_HELP
};

#define RECONNECT_SECONDS 60u

static const char usage[] =
    "usage: nearkv run [-m MODEL] [-f FILE] [-p TEXT]... [-n N] [options]\n"
    "Answers a prompt: FILE's text, then TEXT. -p may repeat: one sequence and one answer each.\n\n"
    "  -f FILE                 text before TEXT (\"-\": standard input)\n"
    "  -p, --prompt TEXT\n"
    "  -n N                    at most N new tokens (128)\n"
    "  --temp T                temperature; 0 is greedy (0)\n"
    "  --top-k K               sample from the K likeliest; 0: all (0)\n"
    "  --top-p P               sample from the likeliest that make up P (1)\n"
    "  --seed S                of sampling (0)\n"
    "  --tp N                  dense layers in N processes (1): mpirun -n N nearkv run ...\n"
    "  --pnm-ranks N           N more processes that are the PNM devices (none: devices in rank 0)\n"
    "  --kv-parallel auto|dp|cp|tp  a sequence on one device (dp), its pages over all (cp), its KV heads over "
    "all (tp);\n"
    "                          auto: cp if it fits on no device or few long ones would leave devices idle, else "
    "dp (auto)\n"
    "  --session NAME          the sequence stays on the device under that name; the next run with it, or with "
    "a text\n"
    "                          that begins alike, feeds only what is new\n"
    "  --memory file:PATH[:SIZE]|dax:PATH   memory of the devices of this process that outlives it; a file is "
    "made\n"
    "                          with SIZE if it does not exist (N devices: PATH.0, PATH.1, ...)\n"
    "  --continue              TEXT comes after all that the session holds\n"
    "  --reconnect[=SECONDS]   wait for a device process that was lost and go on from there (60)\n"
    "  --json                  one JSON object on stdout (schema nearkv.run/1)\n" SESSION_MODE_HELP SESSION_TRACE_HELP;

static int own_option(int option, const char *arg, void *read_arg)
{
    struct run_options *o = read_arg;

    switch (option) {
    case 'f':
        o->file = arg;
        return CLI_OK;
    case 'p':
        if (o->n_prompts == RUN_MAX_PROMPTS)
            return cli_usage("-p: at most %u prompts", RUN_MAX_PROMPTS);
        o->prompts[o->n_prompts++] = arg;
        return CLI_OK;
    case 'n':
        return cli_u32("-n", arg, 1, 1u << 24, &o->max_tokens);
    case OPTION_TEMP:
        return cli_float("--temp", arg, 0, 100, &o->sampler.temperature);
    case OPTION_TOP_K:
        return cli_u32("--top-k", arg, 0, 1u << 30, &o->sampler.top_k);
    case OPTION_TOP_P:
        return cli_float("--top-p", arg, 0, 1, &o->sampler.top_p);
    case OPTION_SEED:
        return cli_u64("--seed", arg, 0, UINT64_MAX, &o->sampler.seed);
    case OPTION_TP:
        return parallel_option("--tp", arg, &o->parallel.n_tp);
    case OPTION_PNM_RANKS:
        return parallel_option("--pnm-ranks", arg, &o->parallel.n_pnm);
    case OPTION_SESSION:
        o->session_name = arg;
        return CLI_OK;
    case OPTION_MEMORY:
        o->session.memory = arg;
        return CLI_OK;
    case OPTION_CONTINUE:
        o->continues = true;
        return CLI_OK;
    case OPTION_JSON:
        o->json = true;
        return CLI_OK;
    case OPTION_RECONNECT:
        o->session.reconnect_s = RECONNECT_SECONDS;
        return arg ? cli_u32("--reconnect", arg, 1, 86400, &o->session.reconnect_s) : CLI_OK;
    default:
        return session_option(&o->session, option, arg);
    }
}

/* returns: CLI_OK, CLI_USAGE, or -1: help was printed. */
static int parse(int argc, char **argv, struct run_options *o)
{
    static const struct option options[] = {
        SESSION_LONG_OPTIONS,
        {"file", required_argument, NULL, 'f' | ARGUMENTS_ONCE},
        {"prompt", required_argument, NULL, 'p'},
        {"n", required_argument, NULL, 'n'},
        {"temp", required_argument, NULL, OPTION_TEMP},
        {"top-k", required_argument, NULL, OPTION_TOP_K},
        {"top-p", required_argument, NULL, OPTION_TOP_P},
        {"seed", required_argument, NULL, OPTION_SEED},
        {"tp", required_argument, NULL, OPTION_TP},
        {"pnm-ranks", required_argument, NULL, OPTION_PNM_RANKS},
        {"kv-parallel", required_argument, NULL, SESSION_KV_PARALLEL},
        {"session", required_argument, NULL, OPTION_SESSION | ARGUMENTS_ONCE},
        {"memory", required_argument, NULL, OPTION_MEMORY | ARGUMENTS_ONCE},
        {"continue", no_argument, NULL, OPTION_CONTINUE},
        {"reconnect", optional_argument, NULL, OPTION_RECONNECT},
        {"json", no_argument, NULL, OPTION_JSON},
        {"help", no_argument, NULL, OPTION_HELP},
        {0},
    };
    static const struct arguments arguments = {
        .usage = usage, .more_usage = session_help, .options = options, .help = OPTION_HELP};
    int rc;

    *o = (struct run_options){.max_tokens = 128, .sampler = {.size = sizeof o->sampler, .top_p = 1}};
    session_defaults(&o->session);
    o->session.kv_parallel = NKV_KV_AUTO;
    if (parallel_launched())
        o->session.n_threads = 0; /* not given: parallel_roles knows how many there are for each process */
    rc = arguments_options(argc, argv, &arguments, own_option, o);
    if (rc < 0)
        return rc;
    if (rc == CLI_OK && optind < argc)
        rc = cli_usage("unexpected argument '%s'; text for the model goes after -p", argv[optind]);
    if (rc == CLI_OK && !o->file && o->n_prompts == 0)
        rc = cli_usage("nothing to answer: give text with -p TEXT, -f FILE or both");
    if (rc == CLI_OK && !(o->sampler.top_p > 0))
        rc = cli_usage("--top-p 0: no token is left to choose from; give more than 0, or --temp 0 for the likeliest");
    if (rc == CLI_OK && (o->parallel.n_tp || o->parallel.n_pnm) && (o->session.memory || o->session.reconnect_s))
        rc = cli_usage("--memory and --reconnect are for a run of one process: leave out --tp and --pnm-ranks");
    if (o->session_name && o->session.kv_parallel == NKV_KV_AUTO)
        o->session.kv_parallel = NKV_KV_DATA; /* a session lies on one device */
    if (rc == CLI_OK)
        rc = run_session_check(o);
    if (rc == CLI_OK)
        rc = session_check(&o->session);
    return rc == CLI_OK ? session_check_input(&o->session, "-f", o->file) : rc;
}

/* ---- Prompts ----------------------------------------------------------------------------------------------------- */

static int tokenize_prompt(struct run *run, const struct text *file, uint32_t i)
{
    const char *prompt = run->options.n_prompts ? run->options.prompts[i] : "";
    struct text text = {0};
    unsigned flags = NKV_TOKENIZE_SPECIAL | (run->options.continues ? 0 : NKV_TOKENIZE_BOS);
    int rc = text_append(&text, file->data, file->bytes);

    if (rc == CLI_OK)
        rc = text_append(&text, prompt, strlen(prompt));
    if (rc == CLI_OK && text.bytes == 0)
        rc = cli_usage("prompt %u is empty: give text with -p TEXT or a FILE that is not empty", i + 1);
    if (rc == CLI_OK && nkv_tokenize(run->session.model, text.data, text.bytes, flags, &run->prompts[i].tokens,
                                     &run->prompts[i].n_tokens) < 0)
        rc = cli_fail("%s", nkv_last_error());
    text_free(&text);
    return rc;
}

static int check_length(const struct run *run, uint32_t i)
{
    uint64_t n = run->prompts[i].n_tokens, limit = run->session.info.context_length;

    if (n == 0)
        return cli_usage("prompt %u has no tokens", i + 1);
    n += run->options.continues ? run->n_held : 0;
    if (limit == 0)
        limit = 1u << 30;
    if (n + run->options.max_tokens > limit)
        return cli_usage("prompt %u has %llu tokens: with -n %u that is %llu more than the model's context of %llu",
                         i + 1, (unsigned long long)n, run->options.max_tokens,
                         (unsigned long long)(n + run->options.max_tokens - limit), (unsigned long long)limit);
    return CLI_OK;
}

static int load_prompts(struct run *run)
{
    struct text file = {0};
    int rc = run->options.file ? text_read(&file, run->options.file) : CLI_OK;

    run->n = run->options.n_prompts ? run->options.n_prompts : 1;
    for (uint32_t i = 0; rc == CLI_OK && i < run->n; i++) {
        rc = tokenize_prompt(run, &file, i);
        if (rc == CLI_OK)
            rc = check_length(run, i);
    }
    text_free(&file);
    return rc;
}

/* ---- Prefill ----------------------------------------------------------------------------------------------------- */

/* A sequence that its device fails ends there, with its status, and the others go on. */
static int prefill(struct run *run, struct nkv_seq *seq, const int32_t *tokens, size_t n)
{
    uint32_t begin = nkv_seq_length(seq), done;
    struct progress progress;
    int status = 0;

    while (status == 0 && (done = nkv_seq_length(seq) - begin) < n) {
        progress_start(&progress, "prefill", "tokens");
        status = nkv_prefill(run->session.decoder, seq, tokens + done, n - done, NULL, progress_update, &progress);
        progress_end(&progress);
        while (status < 0 && reconnect_may_help(&run->session, nkv_seq_status(seq)) && reconnect_devices(&run->session))
            if (reconnect_seq(seq)) /* else the device may be lost again */
                status = 0;
    }
    if (status == NKV_ECANCELED)
        return cli_fail("interrupted during prefill");
    return status < 0 && nkv_seq_status(seq) == 0 ? cli_fail("%s", nkv_last_error()) : CLI_OK;
}

/* Opens a sequence (base NULL) or forks one. A device that is lost while it is opened is waited for. */
static int open_or_fork(struct run *run, struct nkv_seq *base, const struct nkv_seq_options *options,
                        struct nkv_seq **seq_out)
{
    int status;

    do
        status = base                        ? nkv_seq_fork(base, run->n_prefix, options, seq_out)
                 : run->options.session_name ? run_session_open(run, options, seq_out)
                                             : nkv_seq_open(run->session.context, options, seq_out);
    while (reconnect_may_help(&run->session, status) && reconnect_devices(&run->session));
    return status;
}

static int open_bases(struct run *run)
{
    int rc = CLI_OK;

    for (uint32_t i = 0; rc == CLI_OK && i < run->n_bases; i++) {
        struct nkv_seq_options seq;

        session_seq_options(&run->session, (uint32_t)run->prompts[0].n_tokens, run->n_prefix, &seq);
        seq.keep_digests = seq.mode != NKV_MODE_FULL;
        seq.mode = NKV_MODE_FULL; /* it never decodes: nothing on the compute side */
        if (open_or_fork(run, NULL, &seq, &run->bases[i]) < 0)
            return cli_fail("%s", nkv_last_error());
        if (nkv_seq_device(run->bases[i]) == NKV_ALL_DEVICES)
            run->n_bases = i + 1; /* it serves all */
        rc = prefill(run, run->bases[i], run->prompts[0].tokens, run->n_prefix);
    }
    return rc;
}

static int open_sequence(struct run *run, uint32_t i)
{
    struct nkv_sampler_options sampler = run->options.sampler;
    struct answer *answer = &run->answers[i];
    struct prompt *prompt = &run->prompts[i];
    struct nkv_seq *base = run->n_bases ? run->bases[i % run->n_bases] : NULL;
    struct nkv_seq_options seq;
    uint32_t n_there;
    int status, rc;

    if (base && nkv_seq_status(base) < 0) {
        answer_fail(answer, nkv_seq_status(base), nkv_seq_error(base));
        return CLI_OK;
    }
    sampler.seed += i;
    session_seq_options(&run->session, (uint32_t)prompt->n_tokens, run_max_tokens(run, i), &seq);
    status = open_or_fork(run, base, &seq, &answer->seq);
    if (status < 0 || nkv_sampler_open(&sampler, &answer->sampler) < 0)
        return cli_fail("%s", nkv_last_error());
    answer->start_ns = run->start_ns;
    answer->last_prompt_token = prompt->tokens[prompt->n_tokens - 1];
    n_there = run->options.session_name ? run_session_reused(run) : run->n_prefix;
    rc = prefill(run, answer->seq, prompt->tokens + n_there, prompt->n_tokens - 1 - n_there);
    if (nkv_seq_status(answer->seq) < 0) /* now: a device that comes back later must not go on from half a prompt */
        answer_fail(answer, nkv_seq_status(answer->seq), nkv_seq_error(answer->seq));
    return rc;
}

static void close_bases(struct run *run)
{
    for (uint32_t i = 0; i < run->n_bases; i++) {
        nkv_seq_close(run->bases[i]);
        run->bases[i] = NULL;
    }
}

static int prefill_all(struct run *run)
{
    int rc = open_bases(run);

    for (uint32_t i = 0; rc == CLI_OK && i < run->n; i++)
        rc = open_sequence(run, i);
    if (rc == CLI_OK)
        close_bases(run);
    run->prefill_ns = progress_now_ns() - run->start_ns;
    return rc;
}

/* ---- The run ----------------------------------------------------------------------------------------------------- */

/* Prints the first n of the bytes that wait. */
static void print_text(struct run *run, size_t n)
{
    struct text *text = &run->unprinted;

    if (n == 0)
        return;
    fwrite(text->data, 1, n, stdout);
    fflush(stdout);
    run->printed = true;
    memmove(text->data, text->data + n, text->bytes - n);
    text->bytes -= n;
}

/* Prints what the newest token adds to the only answer, in whole characters: their bytes may come from several tokens,
 * and a terminal that gets them in pieces shows garbage. */
static void stream(void *arg, const struct answer *answer)
{
    struct run *run = arg;

    if (answer_append_newest(&run->session, answer, &run->unprinted) == CLI_OK)
        print_text(run, text_whole_characters(run->unprinted.data, run->unprinted.bytes));
}

static int decode_all(struct run *run)
{
    struct generation generation = {
        .session = &run->session,
        .answers = run->answers,
        .n_answers = run->n,
        .max_tokens = run->options.max_tokens,
        .on_token = run->n == 1 && !run->options.json ? stream : NULL,
        .on_token_arg = run,
    };
    int rc;

    run->step_ns = calloc(run->options.max_tokens, sizeof *run->step_ns);
    if (!run->step_ns)
        return cli_fail("out of memory for %u step times", run->options.max_tokens);
    generation.step_ns = run->step_ns;
    rc = generate(&generation);
    for (uint32_t i = 1; i < run->options.max_tokens; i++)
        run->decode_ns += run->step_ns[i];
    print_text(run, run->unprinted.bytes);
    if (run->printed)
        putchar('\n');
    return rc;
}

static int run_all(struct run *run)
{
    struct session_need need;
    int rc = session_open_model(&run->session, &run->options.session);

    rc = parallel_shard(&run->parallel, rc, run->session.model);
    if (rc == CLI_OK && run->options.session_name)
        rc = run_session_look(run);
    if (rc == CLI_OK)
        rc = load_prompts(run);
    if (rc == CLI_OK)
        rc = run_plan(run, &need);
    if (rc == CLI_OK)
        rc = session_open_devices(&run->session, &need);
    if (rc == CLI_OK)
        rc = run_check_capacity(run);
    if (rc == CLI_OK) {
        run->start_ns = progress_now_ns();
        rc = prefill_all(run);
    }
    if (rc == CLI_OK)
        rc = decode_all(run);
    if (rc == CLI_OK && run->options.session_name)
        rc = run_session_finish(run);
    if (rc == CLI_OK)
        rc = run->options.json ? run_report_json(run) : run_report_text(run);
    for (uint32_t i = 0; i < run->n; i++)
        if (run->answers[i].status < 0)
            rc = run_session_ended(run, i);
    return rc == CLI_OK ? session_check_devices(&run->session) : rc;
}

static void run_close(struct run *run)
{
    close_bases(run);
    for (uint32_t i = 0; i < run->n; i++) {
        nkv_seq_close(run->answers[i].seq);
        if (run->answers[i].sampler)
            nkv_sampler_close(run->answers[i].sampler);
        answer_free(&run->answers[i]);
        nkv_tokens_free(run->prompts[i].tokens);
    }
    text_free(&run->unprinted);
    free(run->step_ns);
    if (run->start_ns == 0)
        session_abandon(&run->session);
    else
        session_close(&run->session);
}

/* A compute rank but the first: its part of the model, and a decoder that does what rank 0's does. */
static int follow(struct run *run)
{
    int rc = session_open_model(&run->session, &run->options.session);

    rc = parallel_shard(&run->parallel, rc, run->session.model);
    if (rc != CLI_OK)
        return rc;
    rc = session_open_decoder(&run->session, run->options.n_prompts ? run->options.n_prompts : 1);
    return parallel_follow(&run->parallel, rc == CLI_OK ? run->session.decoder : NULL);
}

static int run_role(struct run *run)
{
    int rc;

    if (parallel_is_device(&run->parallel))
        return parallel_serve(&run->parallel);
    if (!parallel_follows(&run->parallel))
        progress_catch_interrupt();
    rc = parallel_follows(&run->parallel) ? follow(run) : run_all(run);
    run_close(run);
    return rc;
}

int run_main(int argc, char **argv)
{
    struct run *run = calloc(1, sizeof *run);
    int rc;

    if (!run)
        return cli_fail("out of memory");
    rc = parallel_begin(&run->parallel);
    if (rc == CLI_OK)
        rc = parse(argc, argv, &run->options);
    run->parallel.options = run->options.parallel;
    rc = parallel_roles(&run->parallel, rc, &run->options.session);
    if (rc == CLI_OK)
        rc = run_role(run);
    rc = parallel_end(&run->parallel, rc);
    free(run);
    return rc < 0 ? CLI_OK : rc;
}
