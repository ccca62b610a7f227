/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv info: the machine, the kernels chosen, a model's facts, and what a context would take in each cache type,
 * before anything is allocated. Of the memory (nodes, DAX and CXL devices) what cannot be read (containers) is left
 * out.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "commands.h"
#include "progress.h"
#include "session.h"
#include "text.h"

#define BANDWIDTH_BYTES  ((uint64_t)1 << 30)
#define BANDWIDTH_ROUNDS 5u
#define DEFAULT_CTX      131072u

enum { OPTION_CTX = SESSION_END, OPTION_BANDWIDTH, OPTION_JSON, OPTION_HELP };

struct info {
    struct session_options options;
    struct session session;
    uint32_t ctx_tokens;
    bool wants_bandwidth, json;

    char cpu_name[96];
    struct nkv_memory_list *memory;
    double gb_per_s;
    uint64_t work_bytes;
    struct nkv_kv_estimate kv[NKV_DTYPE_COUNT];
    uint64_t compute[NKV_DTYPE_COUNT]; /* of the chosen mode */
};

static const char usage[] =
    "usage: nearkv info [-m MODEL] [--ctx N] [--bandwidth] [--json] [options]\n"
    "Prints the machine, the kernels chosen, the model, and the memory that a context of N tokens takes.\n\n"
    "  --ctx N                 tokens (131072, or the model's context if that is less)\n"
    "  --bandwidth             measure the memory read bandwidth\n"
    "  --json                  one JSON object on stdout (schema nearkv.info/1)\n" SESSION_MODE_HELP;

static uint32_t default_context(const struct nkv_model_info *model)
{
    return model->context_length && model->context_length < DEFAULT_CTX ? model->context_length : DEFAULT_CTX;
}

static int own_option(int option, const char *arg, void *read_arg)
{
    struct info *info = read_arg;

    switch (option) {
    case OPTION_CTX:
        return cli_u32("--ctx", arg, 1, 1u << 30, &info->ctx_tokens);
    case OPTION_BANDWIDTH:
        info->wants_bandwidth = true;
        return CLI_OK;
    case OPTION_JSON:
        info->json = true;
        return CLI_OK;
    default:
        return session_option(&info->options, option, arg);
    }
}

/* returns: CLI_OK, CLI_USAGE, or -1: help was printed. */
static int parse(int argc, char **argv, struct info *info)
{
    static const struct option options[] = {
        SESSION_LONG_OPTIONS,
        {"ctx", required_argument, NULL, OPTION_CTX},
        {"bandwidth", no_argument, NULL, OPTION_BANDWIDTH},
        {"json", no_argument, NULL, OPTION_JSON},
        {"help", no_argument, NULL, OPTION_HELP},
        {0},
    };
    static const struct arguments arguments = {
        .usage = usage, .more_usage = session_help, .options = options, .help = OPTION_HELP};
    int rc;

    session_defaults(&info->options);
    rc = arguments_options(argc, argv, &arguments, own_option, info);
    if (rc == CLI_OK && optind < argc)
        rc = cli_usage("unexpected argument '%s'; a model goes after -m", argv[optind]);
    if (rc == CLI_OK && info->options.trace)
        rc = cli_usage("--trace: nothing runs here: leave it out");
    for (uint32_t i = 0; rc == CLI_OK && i < info->options.n_specs; i++)
        if (cli_is_remote(info->options.specs[i]))
            rc = cli_usage("--device %s: no device is opened here, what another process takes is not counted: leave it "
                           "out, or see nearkv pnm stat",
                           info->options.specs[i]);
    return rc == CLI_OK ? session_check(&info->options) : rc;
}

/* ---- The machine ------------------------------------------------------------------------------------------------- */

/* The first line of a file, or of those the first that begins with key (without key, ':' and blanks). */
static void read_line(const char *path, const char *key, char *line_out, size_t size)
{
    char line[1024];
    FILE *file = fopen(path, "r");

    line_out[0] = '\0';
    if (!file)
        return;
    while (!*line_out && fgets(line, sizeof line, file)) {
        const char *value = line + strlen(key);

        if (strncmp(line, key, strlen(key)) != 0)
            continue;
        value += strspn(value, " \t:");
        snprintf(line_out, size, "%.*s", (int)strcspn(value, "\n"), value);
    }
    fclose(file);
}

static int look(struct info *info)
{
    read_line("/proc/cpuinfo", "model name", info->cpu_name, sizeof info->cpu_name);
    if (nkv_memory_list_open(&info->memory) < 0)
        return cli_fail("%s", nkv_last_error());
    if (info->wants_bandwidth &&
        nkv_read_bandwidth(BANDWIDTH_BYTES, info->options.n_threads, BANDWIDTH_ROUNDS, &info->gb_per_s) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

/* ---- The estimate ------------------------------------------------------------------------------------------------ */

static int estimate(struct info *info)
{
    int rc = session_work_bytes(&info->session, 1, &info->work_bytes);

    for (int t = 0; rc == CLI_OK && t < NKV_DTYPE_COUNT; t++) {
        struct nkv_kv_shape shape = info->session.shape;
        struct nkv_seq_options seq;

        shape.dtype = (enum nkv_dtype)t;
        session_seq_options(&info->session, info->ctx_tokens, info->ctx_tokens, &seq);
        if (nkv_kv_estimate(&shape, info->ctx_tokens, &info->kv[t]) < 0 ||
            nkv_compute_estimate(&shape, &seq, &info->compute[t]) < 0)
            rc = cli_usage("%s", nkv_last_error());
    }
    return rc;
}

static uint64_t total_bytes(const struct info *info, int t)
{
    return info->session.info.weight_bytes + info->work_bytes + info->kv[t].total_bytes + info->compute[t];
}

/* ---- Reports ----------------------------------------------------------------------------------------------------- */

static void print_place(const struct nkv_memory *memory)
{
    printf("%-9s %s", memory->name, memory->bytes ? cli_bytes(memory->bytes) : "size not known");
    if (memory->kind <= NKV_MEMORY_CPULESS_NODE)
        printf(", %s%s", *memory->cpus ? "CPUs " : "no CPUs", memory->cpus);
    else if (memory->node >= 0)
        printf(", %s node %d", memory->kind == NKV_MEMORY_CXL ? "attached to" : "memory of", memory->node);
    if (memory->distance)
        printf(", distance %u", memory->distance);
    if (memory->bandwidth_mb_s)
        printf(", reads %.1f GB/s", memory->bandwidth_mb_s / 1e3);
    if (memory->latency_ns)
        printf(", latency %u ns", memory->latency_ns);
    if (*memory->regions)
        printf(", in %s", memory->regions);
    if (*memory->argument)
        printf(", --memory %s\n", memory->argument);
    else if (memory->kind == NKV_MEMORY_CXL && *memory->regions)
        printf("\n");
    else if (memory->kind == NKV_MEMORY_CXL)
        printf(", of use as a DAX device or node (cxl create-region, then daxctl or ndctl)\n");
    else
        printf(", nothing free\n");
}

static void print_memory(const struct nkv_memory_list *list)
{
    bool is_plain = true;

    for (uint32_t i = 0; i < list->n; i++) {
        print_place(&list->memories[i]);
        is_plain = is_plain && list->memories[i].kind == NKV_MEMORY_NODE;
    }
    if (is_plain)
        printf("cxl       no CXL devices, DAX devices or memory-only nodes here\n");
    if (list->best)
        printf("use       --memory %s\n", list->best->argument);
}

static void print_machine(const struct info *info)
{
    printf("machine   %s, %u CPUs, %s of memory available\n", *info->cpu_name ? info->cpu_name : "unknown CPU",
           cli_cpus(), cli_bytes(cli_available_bytes()));
    print_memory(info->memory);
    printf("kernels   %s\n", nkv_kernels_name());
    if (info->wants_bandwidth)
        printf("memory    reads %.1f GB/s with %u threads\n", info->gb_per_s, info->options.n_threads);
}

static void print_model(const struct nkv_model_info *m)
{
    printf("model     %s (%s), %.1f M parameters, %s weights, %s%s\n", m->name, m->architecture,
           (double)m->n_parameters / 1e6, nkv_dtype_name(m->weight_dtype), cli_bytes(m->weight_bytes),
           m->tied_embeddings ? ", tied embeddings" : "");
    printf("          %u layers, %u wide, %u heads, %u KV heads of %u, FFN %u, vocabulary %u, context %u\n",
           m->n_layers, m->n_embd, m->n_heads, m->n_kv_heads, m->head_dim, m->n_ff, m->n_vocab, m->context_length);
}

static void print_report(const struct info *info)
{
    print_machine(info);
    print_model(&info->session.info);
    printf("\n%u tokens in pages of %u, mode %s: weights %s, program and activations %s, and\n", info->ctx_tokens,
           info->options.page_tokens, nkv_mode_name(info->options.seq.mode), cli_bytes(info->session.info.weight_bytes),
           cli_bytes(info->work_bytes));
    printf("  %-6s %12s %12s %14s %12s\n", "kv", "pages", "digests", "compute side", "in all");
    for (int t = 0; t < NKV_DTYPE_COUNT; t++)
        printf("  %-6s %12s %12s %14s %12s%s\n", nkv_dtype_name((enum nkv_dtype)t), cli_bytes(info->kv[t].kv_bytes),
               cli_bytes(info->kv[t].digest_bytes), cli_bytes(info->compute[t]), cli_bytes(total_bytes(info, t)),
               total_bytes(info, t) > cli_available_bytes() ? "  (does not fit)" : "");
}

static json_t *machine_json(const struct info *info)
{
    json_t *nodes = json_array(), *root;

    for (uint32_t i = 0; i < info->memory->n; i++) {
        const struct nkv_memory *memory = &info->memory->memories[i];

        if (memory->kind <= NKV_MEMORY_CPULESS_NODE && memory->bytes)
            json_array_append_new(nodes, json_pack("{s:i, s:s, s:I}", "node", (int)memory->node, "cpus", memory->cpus,
                                                   "bytes", (json_int_t)memory->bytes));
    }
    root = json_pack("{s:s, s:i, s:I, s:o}", "cpu", info->cpu_name, "cpus", (int)cli_cpus(), "available_bytes",
                     (json_int_t)cli_available_bytes(), "nodes", nodes);
    if (info->wants_bandwidth)
        json_object_set_new(root, "read_bandwidth_gb_s", json_real(info->gb_per_s));
    return root;
}

static json_t *known_json(uint64_t value)
{
    return value ? json_integer((json_int_t)value) : json_null();
}

/* What is not known is null. */
static json_t *memory_json(const struct nkv_memory_list *list)
{
    json_t *root = json_array();

    for (uint32_t i = 0; i < list->n; i++) {
        const struct nkv_memory *memory = &list->memories[i];

        json_array_append_new(
            root,
            json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:s?, s:s?, s:b}", "kind",
                      nkv_memory_kind_name(memory->kind), "name", memory->name, "path", memory->path, "bytes",
                      known_json(memory->bytes), "node", memory->node < 0 ? json_null() : json_integer(memory->node),
                      "distance", known_json(memory->distance), "bandwidth_mb_s", known_json(memory->bandwidth_mb_s),
                      "latency_ns", known_json(memory->latency_ns), "memory",
                      *memory->argument ? memory->argument : NULL, "regions", *memory->regions ? memory->regions : NULL,
                      "best", (int)(memory == list->best)));
    }
    return root;
}

static json_t *model_json(const struct nkv_model_info *m)
{
    return json_pack("{s:o, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:I, s:I, s:b}", "name",
                     text_json(m->name, strlen(m->name)), "architecture", m->architecture, "n_layers", (int)m->n_layers,
                     "n_embd", (int)m->n_embd, "n_heads", (int)m->n_heads, "n_kv_heads", (int)m->n_kv_heads, "head_dim",
                     (int)m->head_dim, "n_ff", (int)m->n_ff, "n_vocab", (int)m->n_vocab, "context_length",
                     (int)m->context_length, "weight_dtype", nkv_dtype_name(m->weight_dtype), "weight_bytes",
                     (json_int_t)m->weight_bytes, "n_parameters", (json_int_t)m->n_parameters, "tied_embeddings",
                     (int)m->tied_embeddings);
}

static json_t *estimates_json(const struct info *info)
{
    json_t *root = json_object();

    for (int t = 0; t < NKV_DTYPE_COUNT; t++)
        json_object_set_new(root, nkv_dtype_name((enum nkv_dtype)t),
                            json_pack("{s:I, s:I, s:I, s:I, s:I}", "page_bytes", (json_int_t)info->kv[t].page_bytes,
                                      "kv_bytes", (json_int_t)info->kv[t].kv_bytes, "digest_bytes",
                                      (json_int_t)info->kv[t].digest_bytes, "compute_bytes",
                                      (json_int_t)info->compute[t], "total_bytes", (json_int_t)total_bytes(info, t)));
    return root;
}

static int print_json(const struct info *info)
{
    json_t *root =
        json_pack("{s:s, s:s, s:o, s:s, s:o, s:I, s:i, s:s, s:I, s:o, s:o}", "schema", "nearkv.info/1", "version",
                  nkv_version(), "machine", machine_json(info), "kernels", nkv_kernels_name(), "model",
                  model_json(&info->session.info), "ctx_tokens", (json_int_t)info->ctx_tokens, "page_tokens",
                  (int)info->options.page_tokens, "mode", nkv_mode_name(info->options.seq.mode), "work_bytes",
                  (json_int_t)info->work_bytes, "estimate", estimates_json(info), "memory", memory_json(info->memory));

    return text_print_json(root);
}

int info_main(int argc, char **argv)
{
    struct info *info = calloc(1, sizeof *info);
    int rc;

    if (!info)
        return cli_fail("out of memory");
    progress_end_on_interrupt();
    rc = parse(argc, argv, info);
    if (rc == CLI_OK) {
        rc = session_open_model(&info->session, &info->options);
        if (rc == CLI_OK && info->ctx_tokens == 0)
            info->ctx_tokens = default_context(&info->session.info);
        if (rc == CLI_OK)
            rc = session_check_context(&info->session, "--ctx", info->ctx_tokens, 0);
        if (rc == CLI_OK)
            rc = look(info);
        if (rc == CLI_OK)
            rc = estimate(info);
        if (rc == CLI_OK && info->json)
            rc = print_json(info);
        else if (rc == CLI_OK)
            print_report(info);
        nkv_memory_list_close(info->memory);
        session_close(&info->session);
    }
    free(info);
    return rc < 0 ? CLI_OK : rc;
}
