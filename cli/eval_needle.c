/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv eval needle: hides "The pass key is NNNNN." in a long text and asks for it in each mode. The text is fed once
 * per depth; every mode answers from its own fork of it, so that the modes are compared on the very same cache. Only
 * the question's last token and the answer are decoded in the mode: these steps are where a mode can miss the key.
 *
 * Text, key and question are joined as tokens, so that ctx is met exactly with any tokenizer.
 */
#include "eval_needle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "commands.h"
#include "progress.h"

#define ANSWER_TOKENS 12u
#define DEFAULT_CTX   32768u
#define QUESTION      "\nThe pass key is "
#define MAX_CTX       (1u << 30)

enum {
    OPTION_TEXT = SESSION_END,
    OPTION_CTX,
    OPTION_MODES,
    OPTION_DEPTH,
    OPTION_SEED,
    OPTION_JSON,
    OPTION_HELP,
};

static const char usage[] =
    "usage: nearkv eval needle [-f FILE | --text PATH]... [--ctx N] [--modes LIST] [--depth LIST] [options]\n"
    "Hides \"The pass key is NNNNN.\" in a text, asks for it in each mode and prints a table.\n"
    "Exit status 1 when an answer is wrong.\n\n"
    "  -f FILE                 the text; without --ctx all of it\n"
    "  --text PATH             text files below PATH, in alphabetical order; may repeat\n"
    "                          (neither: generated sentences)\n"
    "  --ctx N                 tokens of text, key and question together (32768)\n"
    "  --modes LIST            e.g. pnm,png (all four); --mode is the same\n"
    "  --depth LIST            where the key lies, 0 (beginning) to 1 (end), e.g. 0.1,0.5,0.9 (0.5)\n"
    "  --seed S                of keys and generated sentences (0)\n"
    "  --json                  one JSON object on stdout (schema nearkv.eval.needle/1)\n" SESSION_TRACE_HELP;

/* ---- Options ----------------------------------------------------------------------------------------------------- */

/* Calls add for each part of a comma-separated list. */
static int each_part(struct eval_needle *eval, const char *list, int (*add)(struct eval_needle *, const char *))
{
    int rc = CLI_OK;

    while (rc == CLI_OK && *list) {
        char part[32];
        size_t n = strcspn(list, ",");

        if (n == 0 || n >= sizeof part)
            return cli_usage("'%s': give a list like a,b,c", list);
        memcpy(part, list, n);
        part[n] = '\0';
        rc = add(eval, part);
        list += n + (list[n] == ',');
    }
    return rc;
}

static int add_mode(struct eval_needle *eval, const char *name)
{
    enum nkv_mode mode;

    if (nkv_mode_parse(name, &mode) < 0)
        return cli_usage("--modes: %s", nkv_last_error());
    for (uint32_t i = 0; i < eval->n_modes; i++)
        if (eval->modes[i] == mode)
            return cli_usage("--modes: %s is there twice", name);
    eval->modes[eval->n_modes++] = mode;
    return CLI_OK;
}

static int add_depth(struct eval_needle *eval, const char *text)
{
    float depth;
    int rc = cli_float("--depth", text, 0, 1, &depth);

    if (rc == CLI_OK && eval->n_depths == EVAL_MAX_DEPTHS)
        rc = cli_usage("--depth: at most %u depths", EVAL_MAX_DEPTHS);
    if (rc == CLI_OK)
        eval->depths[eval->n_depths++] = (double)depth;
    return rc;
}

static int own_option(int option, const char *arg, void *read_arg)
{
    struct eval_needle *eval = read_arg;

    switch (option) {
    case 'f':
        eval->file = arg;
        return CLI_OK;
    case OPTION_TEXT:
        if (eval->n_texts == EVAL_MAX_TEXTS)
            return cli_usage("--text: at most %u paths", EVAL_MAX_TEXTS);
        eval->texts[eval->n_texts++] = arg;
        return CLI_OK;
    case OPTION_CTX:
        return cli_u32("--ctx", arg, 128, MAX_CTX, &eval->ctx_tokens);
    case OPTION_MODES:
        return each_part(eval, arg, add_mode);
    case OPTION_DEPTH:
        return each_part(eval, arg, add_depth);
    case OPTION_SEED:
        return cli_u64("--seed", arg, 0, UINT64_MAX, &eval->seed);
    case OPTION_JSON:
        eval->json = true;
        return CLI_OK;
    case SESSION_MODE:
        return each_part(eval, arg, add_mode);
    default:
        return session_option(&eval->session_options, option, arg);
    }
}

static int check_options(struct eval_needle *eval)
{
    int rc;

    if (eval->file && eval->n_texts)
        return cli_usage("give -f or --text, not both");
    if (!eval->file && eval->ctx_tokens == 0)
        eval->ctx_tokens = DEFAULT_CTX;
    for (uint32_t i = 0; eval->n_modes == i && i < NKV_MODE_COUNT; i++)
        eval->modes[eval->n_modes++] = (enum nkv_mode)i; /* none were named: all */
    if (eval->n_depths == 0)
        eval->depths[eval->n_depths++] = 0.5;
    rc = session_check(&eval->session_options);
    if (rc == CLI_OK)
        rc = session_check_input(&eval->session_options, "-f", eval->file);
    for (uint32_t i = 0; rc == CLI_OK && i < eval->n_texts; i++)
        rc = session_check_input(&eval->session_options, "--text", eval->texts[i]);
    return rc;
}

/* returns: CLI_OK, CLI_USAGE, or -1: help was printed. */
static int parse(int argc, char **argv, struct eval_needle *eval)
{
    static const struct option options[] = {
        SESSION_LONG_OPTIONS,
        {"file", required_argument, NULL, 'f' | ARGUMENTS_ONCE},
        {"text", required_argument, NULL, OPTION_TEXT},
        {"ctx", required_argument, NULL, OPTION_CTX},
        {"modes", required_argument, NULL, OPTION_MODES},
        {"depth", required_argument, NULL, OPTION_DEPTH},
        {"seed", required_argument, NULL, OPTION_SEED},
        {"json", no_argument, NULL, OPTION_JSON},
        {"help", no_argument, NULL, OPTION_HELP},
        {0},
    };
    static const struct arguments arguments = {
        .usage = usage, .more_usage = session_help, .options = options, .help = OPTION_HELP};
    int rc;

    session_defaults(&eval->session_options);
    rc = arguments_options(argc, argv, &arguments, own_option, eval);
    if (rc == CLI_OK && optind < argc)
        rc = cli_usage("unexpected argument '%s'", argv[optind]);
    return rc == CLI_OK ? check_options(eval) : rc;
}

/* ---- The haystack ------------------------------------------------------------------------------------------------ */

static int tokenize(const struct eval_needle *eval, const char *text, size_t bytes, unsigned flags,
                    int32_t **tokens_out, size_t *n_out)
{
    if (nkv_tokenize(eval->session.model, text, bytes, flags, tokens_out, n_out) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

static int load_text(const struct eval_needle *eval, size_t max_bytes, struct text *text)
{
    int rc = CLI_OK;

    if (eval->file)
        return eval->ctx_tokens ? text_collect(text, eval->file, max_bytes) : text_read(text, eval->file);
    if (eval->n_texts == 0)
        return text_generate(text, max_bytes, eval->seed);
    for (uint32_t i = 0; rc == CLI_OK && i < eval->n_texts; i++)
        rc = text_collect(text, eval->texts[i], max_bytes);
    return rc;
}

/* Reads text until it makes ctx tokens; how many bytes that takes is known only after a first reading. */
static int load_hay(struct eval_needle *eval, struct text *text)
{
    size_t max_bytes = eval->ctx_tokens;

    for (;;) {
        bool all;
        int rc = load_text(eval, max_bytes, text);

        if (rc != CLI_OK)
            return rc;
        all = eval->ctx_tokens == 0 || text->bytes < max_bytes;
        rc = tokenize(eval, text->data, text->bytes, NKV_TOKENIZE_BOS, &eval->hay, &eval->n_hay);
        if (rc != CLI_OK || all || eval->n_hay >= eval->ctx_tokens)
            return rc;
        max_bytes = max_bytes / (eval->n_hay + 1) * eval->ctx_tokens + max_bytes / 8;
        nkv_tokens_free(eval->hay);
        eval->hay = NULL;
        text_free(text);
    }
}

static int check_hay(const struct eval_needle *eval, const struct text *text)
{
    static const char phrase[] = "pass key is";

    if (text->bytes == 0)
        return cli_usage("there is no text to hide the key in");
    for (const char *p = text->data, *end = p + text->bytes; (p = memchr(p, 'p', (size_t)(end - p))); p++)
        if ((size_t)(end - p) >= sizeof phrase - 1 && memcmp(p, phrase, sizeof phrase - 1) == 0)
            return cli_usage("the text already contains \"%s\": the answer would not be the hidden key; give another",
                             phrase);
    if (eval->ctx_tokens > eval->n_hay + 32)
        return cli_usage("the text has %zu tokens of the %u that --ctx asks for: give more --text or a smaller --ctx",
                         eval->n_hay, eval->ctx_tokens);
    return CLI_OK;
}

/* One case's prompt: text with the key sentence at its depth, then the question. */
struct question {
    int32_t *tokens;
    size_t n_tokens;
    size_t n_shared; /* before the question */
};

static int join(const struct eval_needle *eval, const struct eval_case *c, struct question *q)
{
    char sentence[64];
    int32_t *key = NULL, *ask = NULL;
    size_t n_key = 0, n_ask = 0, n_hay, at, limit;
    int rc, n = snprintf(sentence, sizeof sentence, "\nThe pass key is %s.\n", c->key);

    rc = tokenize(eval, sentence, (size_t)n, 0, &key, &n_key);
    if (rc == CLI_OK)
        rc = tokenize(eval, QUESTION, strlen(QUESTION), 0, &ask, &n_ask);
    limit = eval->ctx_tokens ? eval->ctx_tokens : eval->n_hay + n_key + n_ask;
    n_hay = limit > n_key + n_ask ? limit - n_key - n_ask : 1;
    n_hay = n_hay < eval->n_hay ? n_hay : eval->n_hay;
    at = 1 + (size_t)(c->depth * (double)(n_hay - 1)); /* after the begin token */
    q->n_shared = n_hay + n_key;
    q->n_tokens = n_hay + n_key + n_ask;
    q->tokens = rc == CLI_OK ? malloc(q->n_tokens * sizeof *q->tokens) : NULL;
    if (q->tokens) {
        memcpy(q->tokens, eval->hay, at * sizeof *key);
        memcpy(q->tokens + at, key, n_key * sizeof *key);
        memcpy(q->tokens + at + n_key, eval->hay + at, (n_hay - at) * sizeof *key);
        memcpy(q->tokens + q->n_shared, ask, n_ask * sizeof *key);
    } else if (rc == CLI_OK) {
        rc = cli_fail("out of memory for %zu tokens", q->n_tokens);
    }
    nkv_tokens_free(key);
    nkv_tokens_free(ask);
    return rc;
}

/* ---- Asking ------------------------------------------------------------------------------------------------------ */

static int feed(struct eval_needle *eval, struct nkv_seq *seq, const int32_t *tokens, size_t n, const char *what)
{
    struct progress progress;
    int status;

    if (n == 0)
        return CLI_OK;
    progress_start(&progress, what, "tokens");
    status = nkv_prefill(eval->session.decoder, seq, tokens, n, NULL, progress_update, &progress);
    progress_end(&progress);
    if (status == NKV_ECANCELED)
        return cli_fail("interrupted during prefill");
    return status < 0 ? cli_fail("%s", nkv_last_error()) : CLI_OK;
}

static void judge(struct eval_row *row, const struct eval_case *c, const char *text, size_t bytes)
{
    size_t n = strlen(c->key);

    while (bytes && (*text == ' ' || *text == '\n')) {
        text++;
        bytes--;
    }
    row->right = bytes >= n && memcmp(text, c->key, n) == 0 && (bytes == n || text[n] < '0' || text[n] > '9');
    snprintf(row->text, sizeof row->text, "%.*s", (int)(bytes < 63 ? bytes : 63), text);
    row->text[strcspn(row->text, "\n")] = '\0';
}

static int answer_row(struct eval_needle *eval, const struct eval_case *c, struct answer *answer, struct eval_row *row)
{
    uint64_t step_ns[ANSWER_TOKENS] = {0};
    struct generation generation = {
        .session = &eval->session,
        .answers = answer,
        .n_answers = 1,
        .max_tokens = ANSWER_TOKENS,
        .step_ns = step_ns,
    };
    const struct nkv_seq_stats *s = &answer->stats;
    char *text;
    size_t bytes;
    int rc = generate(&generation);

    if (rc == CLI_OK && answer->status < 0)
        rc = cli_fail("%s: %s", nkv_mode_name(row->mode), answer->error);
    if (rc != CLI_OK || (rc = answer_text(&eval->session, answer, &text, &bytes)) != CLI_OK)
        return rc;
    judge(row, c, text, bytes);
    nkv_text_free(text);
    row->ttft_ms = (double)answer->ttft_ns / 1e6 + c->prefill_s * 1e3;
    row->tpot_ms = step_times(step_ns + 1, answer->n_steps).mean_ms;
    row->attended_tokens = s->n_layer_steps ? (double)s->attended_tokens / (double)s->n_layer_steps : 0;
    row->link_bytes = s->n_steps ? (double)(s->to_device_bytes + s->from_device_bytes) / (double)s->n_steps : 0;
    row->recalled_pages = s->recalled_pages;
    return CLI_OK;
}

/* Asks one mode, in a fork of the text. */
static int ask(struct eval_needle *eval, const struct eval_case *c, struct nkv_seq *base, const struct question *q,
               struct eval_row *row)
{
    struct nkv_sampler_options greedy = {.size = sizeof greedy, .top_p = 1};
    struct answer answer = {.start_ns = progress_now_ns(), .last_prompt_token = q->tokens[q->n_tokens - 1]};
    struct nkv_seq_options options;
    int rc;

    session_seq_options(&eval->session, (uint32_t)q->n_tokens, (uint32_t)q->n_tokens + ANSWER_TOKENS, &options);
    options.mode = row->mode;
    if (nkv_seq_fork(base, (uint32_t)q->n_shared, &options, &answer.seq) < 0 ||
        nkv_sampler_open(&greedy, &answer.sampler) < 0)
        rc = cli_fail("%s", nkv_last_error());
    else
        rc = feed(eval, answer.seq, q->tokens + q->n_shared, q->n_tokens - 1 - q->n_shared, "question");
    if (rc == CLI_OK)
        rc = answer_row(eval, c, &answer, row);
    answer_free(&answer);
    if (answer.sampler)
        nkv_sampler_close(answer.sampler);
    nkv_seq_close(answer.seq);
    return rc;
}

static int open_base(struct eval_needle *eval, struct eval_case *c, const struct question *q, struct nkv_seq **seq_out)
{
    struct nkv_seq_options options;
    uint64_t start_ns = progress_now_ns();
    int rc;

    session_seq_options(&eval->session, (uint32_t)q->n_tokens, (uint32_t)q->n_shared, &options);
    options.mode = NKV_MODE_FULL;
    options.keep_digests = true;
    if (nkv_seq_open(eval->session.context, &options, seq_out) < 0)
        return cli_fail("%s", nkv_last_error());
    rc = feed(eval, *seq_out, q->tokens, q->n_shared, "prefill");
    c->prefill_s = (double)(progress_now_ns() - start_ns) / 1e9;
    c->sparse = options.sparse_prefill;
    return rc;
}

static int run_case(struct eval_needle *eval, struct eval_case *c)
{
    struct question q = {0};
    struct nkv_seq *base = NULL;
    int rc = join(eval, c, &q);

    if (rc == CLI_OK)
        rc = open_base(eval, c, &q, &base);
    for (uint32_t i = 0; rc == CLI_OK && i < eval->n_modes; i++) {
        c->rows[i].mode = eval->modes[i];
        rc = ask(eval, c, base, &q, &c->rows[i]);
        c->n_rows += rc == CLI_OK;
    }
    nkv_seq_close(base);
    free(q.tokens);
    return rc;
}

/* ---- The whole --------------------------------------------------------------------------------------------------- */

/* Room for one text and one fork of it at a time; the compute side as the mode that needs most. */
static int open_devices(struct eval_needle *eval)
{
    struct session_need need = {.max_batch = 1};
    uint32_t n_text = (uint32_t)(eval->ctx_tokens ? eval->ctx_tokens : eval->n_hay + 64);
    uint32_t n_fork = n_text + 64 + ANSWER_TOKENS;
    struct nkv_seq_options text;
    uint64_t fork_bytes;
    int rc = session_device_bytes(&eval->session, 0, n_text, &need.device_bytes);

    /* The question begins up to 64 tokens before the end. */
    if (rc == CLI_OK)
        rc = session_device_bytes(&eval->session, n_text > 64 ? n_text - 64 : 0, n_fork, &fork_bytes);
    for (uint32_t i = 0; rc == CLI_OK && i < eval->n_modes; i++) {
        struct nkv_seq_options options;
        uint64_t bytes = 0;

        session_seq_options(&eval->session, n_text, n_fork, &options);
        options.mode = eval->modes[i];
        rc = session_compute_bytes(&eval->session, &options, &bytes);
        need.compute_bytes = bytes > need.compute_bytes ? bytes : need.compute_bytes;
    }
    if (rc != CLI_OK)
        return rc;
    need.device_bytes += fork_bytes;
    need.total_bytes = need.device_bytes;
    rc = session_open_devices(&eval->session, &need);
    if (rc != CLI_OK)
        return rc;
    session_seq_options(&eval->session, n_text, n_text, &text);
    text.mode = NKV_MODE_FULL;
    text.keep_digests = true;
    return nkv_seq_can_fit(eval->session.context, &text) < 0 ? cli_usage("%s", nkv_last_error()) : CLI_OK;
}

static int load(struct eval_needle *eval)
{
    struct text text = {0};
    int rc = load_hay(eval, &text);

    if (rc == CLI_OK)
        rc = check_hay(eval, &text);
    text_free(&text);
    if (rc != CLI_OK)
        return rc;
    return session_check_context(&eval->session, "--ctx", eval->ctx_tokens ? eval->ctx_tokens : eval->n_hay,
                                 ANSWER_TOKENS);
}

static int eval_all(struct eval_needle *eval)
{
    uint64_t random = eval->seed;
    bool all_right = true;
    int rc = session_open_model(&eval->session, &eval->session_options);

    if (rc == CLI_OK)
        rc = load(eval);
    if (rc == CLI_OK)
        rc = open_devices(eval);
    for (uint32_t i = 0; rc == CLI_OK && i < eval->n_depths; i++) {
        struct eval_case *c = &eval->cases[i];

        c->depth = eval->depths[i];
        snprintf(c->key, sizeof c->key, "%u", (unsigned)(text_random(&random) % 90000 + 10000));
        if (i == 0 && !eval->json)
            eval_print_head(eval);
        rc = run_case(eval, c);
        eval->n_cases += rc == CLI_OK;
        for (uint32_t r = 0; r < c->n_rows; r++)
            all_right = all_right && c->rows[r].right;
        if (rc == CLI_OK && !eval->json)
            eval_print_case(c);
    }
    if (rc == CLI_OK && eval->json)
        rc = eval_print_json(eval);
    if (rc == CLI_OK)
        rc = session_check_devices(&eval->session);
    return rc == CLI_OK && !all_right ? CLI_FAILED : rc;
}

int eval_needle_main(int argc, char **argv)
{
    struct eval_needle *eval = calloc(1, sizeof *eval);
    int rc;

    if (!eval)
        return cli_fail("out of memory");
    rc = parse(argc, argv, eval);
    if (rc == CLI_OK) {
        progress_catch_interrupt();
        rc = eval_all(eval);
        nkv_tokens_free(eval->hay);
        session_close(&eval->session);
    }
    free(eval);
    return rc < 0 ? CLI_OK : rc;
}
