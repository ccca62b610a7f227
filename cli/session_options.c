/* SPDX-License-Identifier: Apache-2.0 */
/* The options that name a model, a cache and devices: defaults, parsing, and what can be wrong between them. */
#include "cli.h"
#include "session.h"

#include <string.h>
#include <sys/stat.h>

#define MAX_TOKENS (1u << 30)

const char session_help[] =
    "  -m, --model MODEL       GGUF file, or \"needle\" (default): the built-in model, which can only complete\n"
    "                          \"NAME is \" with the digits (at most five) that follow it in the text;\n"
    "                          nearkv needle --help says how far that goes\n"
    "  --budget TOKENS         attended per step in the sparse modes (2048)\n"
    "  --page TOKENS           tokens per page (32)\n"
    "  --sink PAGES            first pages, always attended (1)\n"
    "  --recent PAGES          last pages, always attended (2)\n"
    "  --digest minmax|cuboid-mean  how a page is summarised (minmax)\n"
    "  --select layer|kv-head  one page set per layer or per KV head (layer)\n"
    "  --dense-layers N        the first N layers attend to everything (0)\n"
    "  --devices N             N CPU devices that share the threads (1)\n"
    "  --device SPEC           one device, e.g. cpu:capacity=8G,threads=4 or unix:PATH (nearkv pnmd); may repeat\n"
    "  --resident TOKENS       copies per layer on the compute side (half the budget; recall: twice)\n"
    "  --kv f32|f16|bf16|q8_0  element type of the cache (f16)\n"
    "  --prefill dense|sparse|auto  auto: dense up to 4 times the prefill budget (auto)\n"
    "  --prefill-budget TOKENS attended per block of prompt tokens (the budget)\n"
    "  --threads N             threads of dense layers, of the compute side, of all devices together (CPUs)\n";

void session_defaults(struct session_options *options)
{
    *options = (struct session_options){
        .model = "needle",
        .page_tokens = 32,
        .kv = NKV_F16,
        .digest = NKV_DIGEST_MINMAX,
        .prefill = NKV_PREFILL_AUTO,
        .n_threads = cli_cpus(),
    };
    nkv_seq_options_init(&options->seq);
    options->seq.mode = NKV_MODE_PNG;
}

static int parse_prefill(const char *arg, enum nkv_prefill *prefill_out)
{
    static const char *const names[] = {"dense", "sparse", "auto"};

    for (unsigned i = 0; i < 3; i++)
        if (strcmp(arg, names[i]) == 0) {
            *prefill_out = (enum nkv_prefill)i;
            return CLI_OK;
        }
    return cli_usage("--prefill %s: give dense, sparse or auto", arg);
}

static int add_device(struct session_options *o, const char *spec)
{
    if (o->n_specs == SESSION_MAX_DEVICES)
        return cli_usage("--device: at most %u devices", SESSION_MAX_DEVICES);
    o->specs[o->n_specs++] = spec;
    return CLI_OK;
}

/* The result of one of the library's name parsers. */
static int named(const char *flag, int status)
{
    return status < 0 ? cli_usage("%s: %s", flag, nkv_last_error()) : CLI_OK;
}

int session_option(struct session_options *o, int option, const char *arg)
{
    switch (option) {
    case 'm':
        o->model = arg;
        return CLI_OK;
    case SESSION_MODE:
        return named("--mode", nkv_mode_parse(arg, &o->seq.mode));
    case SESSION_BUDGET:
        return cli_u32("--budget", arg, 1, MAX_TOKENS, &o->seq.budget_tokens);
    case SESSION_PAGE:
        return cli_u32("--page", arg, 1, NKV_MAX_PAGE_TOKENS, &o->page_tokens);
    case SESSION_SINK:
        return cli_u32("--sink", arg, 0, 255, &o->seq.sink_pages);
    case SESSION_RECENT:
        return cli_u32("--recent", arg, 1, 255, &o->seq.recent_pages);
    case SESSION_DIGEST:
        return named("--digest", nkv_digest_parse(arg, &o->digest));
    case SESSION_SELECT:
        return named("--select", nkv_granularity_parse(arg, &o->seq.granularity));
    case SESSION_DENSE_LAYERS:
        return cli_u32("--dense-layers", arg, 0, NKV_MAX_LAYERS, &o->seq.n_dense_layers);
    case SESSION_DEVICES:
        return cli_u32("--devices", arg, 1, SESSION_MAX_DEVICES, &o->n_devices);
    case SESSION_DEVICE:
        return add_device(o, arg);
    case SESSION_RESIDENT:
        return cli_u32("--resident", arg, 0, MAX_TOKENS, &o->seq.resident_tokens);
    case SESSION_KV:
        return named("--kv", nkv_dtype_parse(arg, &o->kv));
    case SESSION_PREFILL:
        return parse_prefill(arg, &o->prefill);
    case SESSION_PREFILL_BUDGET:
        return cli_u32("--prefill-budget", arg, 1, MAX_TOKENS, &o->seq.prefill_budget_tokens);
    case SESSION_THREADS:
        return cli_u32("--threads", arg, 1, 1024, &o->n_threads);
    case SESSION_KV_PARALLEL:
        return named("--kv-parallel", nkv_kv_parallel_parse(arg, &o->kv_parallel));
    case SESSION_TRACE:
        o->trace = arg;
        return CLI_OK;
    default:
        return cli_usage("see --help for the options");
    }
}

static int check_budget(const struct session_options *o, const char *flag, uint32_t budget)
{
    uint64_t sink = o->seq.sink_pages == NKV_DEFAULT ? 1 : o->seq.sink_pages;
    uint64_t recent = o->seq.recent_pages == NKV_DEFAULT ? 2 : o->seq.recent_pages;
    uint64_t least = (sink + recent) * o->page_tokens;

    if (budget == NKV_DEFAULT || budget >= least)
        return CLI_OK;
    return cli_usage("%s %u is less than sink + recent (%llu + %llu pages of %u tokens = %llu): raise it, or lower "
                     "--sink, --recent or --page",
                     flag, budget, (unsigned long long)sink, (unsigned long long)recent, o->page_tokens,
                     (unsigned long long)least);
}

enum nkv_kv_parallel session_kv_parallel(const struct session_options *o)
{
    bool whole = session_device_count(o) == 1 || o->trace || o->memory;

    return o->kv_parallel == NKV_KV_AUTO && whole ? NKV_KV_DATA : o->kv_parallel;
}

static int check_kv_parallel(const struct session_options *o)
{
    const char *name = nkv_kv_parallel_name(o->kv_parallel);

    if (o->kv_parallel == NKV_KV_DATA || o->kv_parallel == NKV_KV_AUTO)
        return CLI_OK;
    if (o->trace || o->memory)
        return cli_usage("--kv-parallel %s: no %s of sequences that lie on several devices: leave it out", name,
                         o->trace ? "--trace" : "--memory");
    return CLI_OK;
}

/* What is behind the wrappers of a spec that names a device of another process; NULL: it names none. */
static const char *remote_part(const char *spec)
{
    static const char *const kinds[] = {"unix:", "mpi:"};

    for (; spec; spec = strchr(spec, ':') ? strchr(spec, ':') + 1 : NULL)
        for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
            if (strncmp(spec, kinds[i], strlen(kinds[i])) == 0)
                return spec;
    return NULL;
}

/* The same text, or two paths of one socket. */
static bool is_same_device(const char *a, const char *b)
{
    struct stat one, other;

    if (strcmp(a, b) == 0)
        return true;
    return strncmp(a, "unix:", 5) == 0 && strncmp(b, "unix:", 5) == 0 && stat(a + 5, &one) == 0 &&
           stat(b + 5, &other) == 0 && one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

/* A device would be counted twice, with its memory. */
static int check_devices(const struct session_options *o)
{
    if (o->n_specs && o->n_devices)
        return cli_usage("give --devices or --device, not both");
    for (uint32_t i = 0; i < o->n_specs; i++) {
        const char *device = remote_part(o->specs[i]);

        for (uint32_t other = 0; device && other < i; other++)
            if (remote_part(o->specs[other]) && is_same_device(device, remote_part(o->specs[other])))
                return cli_usage("--device %s is given twice: name each device once", device);
    }
    return CLI_OK;
}

int session_check_context(const struct session *session, const char *flag, uint64_t n_tokens, uint32_t n_answer)
{
    uint64_t limit = session->info.context_length;

    if (limit == 0 || n_tokens + n_answer <= limit)
        return CLI_OK;
    return cli_usage("the model's context is %llu tokens: give %s %llu or less", (unsigned long long)limit, flag,
                     (unsigned long long)(limit > n_answer ? limit - n_answer : 0));
}

int session_check(const struct session_options *o)
{
    int rc = check_budget(o, "--budget", o->seq.budget_tokens);

    if (rc == CLI_OK)
        rc = check_budget(o, "--prefill-budget", o->seq.prefill_budget_tokens);
    if (rc == CLI_OK && o->trace && (!*o->trace || strchr(o->trace, ':')))
        rc = cli_usage("--trace '%s': give a file name without ':'", o->trace);
    if (rc == CLI_OK)
        rc = check_devices(o);
    if (rc == CLI_OK)
        rc = check_kv_parallel(o);
    return rc == CLI_OK ? session_check_files(o) : rc;
}
