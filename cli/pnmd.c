/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv pnmd: a PNM device as a process of its own. */
#define _GNU_SOURCE
#include <getopt.h>
#include <nearkv/serve.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "arguments.h"
#include "cli.h"
#include "commands.h"

#define MIN_BYTES ((uint64_t)1 << 20)
#define MAX_NODE  65535u

static const char usage[] =
    "usage: nearkv pnmd --memory KIND --listen unix:PATH [options]\n"
    "Holds KV pages and attends to them for other processes, which attach with --device unix:PATH.\n"
    "\n"
    "  --memory anon:SIZE      ordinary memory, e.g. anon:8G\n"
    "  --memory numa:N:SIZE    memory and threads of NUMA node N\n"
    "  --memory file:PATH[:SIZE]   a file, made with SIZE if it does not exist; what it holds is served again\n"
    "  --memory dax:/dev/daxX.Y    a DAX device, such as CXL memory\n"
    "  --format                make the file or DAX device anew, whatever is there\n"
    "  --listen unix:PATH      the socket for clients; only this user may connect\n"
    "  --metrics unix:PATH     a socket that answers HTTP with a Prometheus page\n"
    "  --threads N             threads (one per CPU beside the memory)\n"
    "  --name NAME             what clients call it (pnm)\n"
    "  --keep SECONDS          after a restart, how long sequences wait for their clients (60)\n"
    "  --quiet                 no line on stderr when a client comes or leaves\n"
    "\n"
    "SIGTERM and SIGINT end it when the commands that are queued are done.\n";

enum { MEMORY = 256, FORMAT, LISTEN, METRICS, THREADS, NAME, KEEP, QUIET, HELP };

static const struct option long_options[] = {
    {"memory", required_argument, NULL, MEMORY | ARGUMENTS_ONCE},
    {"format", no_argument, NULL, FORMAT},
    {"listen", required_argument, NULL, LISTEN},
    {"metrics", required_argument, NULL, METRICS},
    {"threads", required_argument, NULL, THREADS},
    {"name", required_argument, NULL, NAME},
    {"keep", required_argument, NULL, KEEP},
    {"quiet", no_argument, NULL, QUIET},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static struct nkv_serve *serving;

static void on_signal(int signal)
{
    (void)signal;
    nkv_serve_stop(serving);
}

static void log_line(void *arg, const char *line)
{
    (void)arg;
    fprintf(stderr, "nearkv pnmd: %s\n", line);
}

static int read_size(const char *arg, const char *size, struct nkv_serve_options *o)
{
    if (cli_number(size, MIN_BYTES, UINT64_MAX, &o->capacity_bytes))
        return CLI_OK;
    return cli_usage("--memory %s: '%s' is no size: give bytes, or a whole number with K, M, G or T, from 1M on", arg,
                     size);
}

static int read_node(const char *arg, struct nkv_serve_options *o)
{
    const char *number = arg + strlen("numa:"), *colon = strchr(number, ':');
    char node[16];
    uint64_t value;

    if (!colon || (size_t)(colon - number) >= sizeof node)
        return cli_usage("--memory %s: write it as numa:N:SIZE", arg);
    memcpy(node, number, (size_t)(colon - number));
    node[colon - number] = '\0';
    if (!cli_number(node, 0, MAX_NODE, &value))
        return cli_usage("--memory %s: '%s' is no NUMA node: give its number, from 0 to %u", arg, node, MAX_NODE);
    o->on_node = true;
    o->node = (uint32_t)value;
    return read_size(arg, colon + 1, o);
}

static int read_memory(const char *arg, struct nkv_serve_options *o)
{
    if (strncmp(arg, "anon:", 5) == 0)
        return read_size(arg, arg + 5, o);
    if (strncmp(arg, "numa:", 5) == 0)
        return read_node(arg, o);
    if (strncmp(arg, "file:", 5) == 0 || strncmp(arg, "dax:", 4) == 0) {
        o->memory = arg;
        return CLI_OK;
    }
    return cli_usage("--memory %s: give anon:SIZE, numa:N:SIZE, file:PATH[:SIZE] or dax:/dev/daxX.Y", arg);
}

static int read_socket(const char *flag, const char *arg, const char **path_out)
{
    if (strncmp(arg, "unix:", 5) != 0 || !arg[5])
        return cli_usage("%s %s: give unix:PATH", flag, arg);
    *path_out = arg + 5;
    return CLI_OK;
}

static int read_keep(const char *arg, struct nkv_serve_options *o)
{
    uint32_t seconds = 0;
    int rc = cli_u32("--keep", arg, 1, 86400, &seconds);

    o->keep_ms = seconds * 1000;
    return rc;
}

static const struct arguments arguments = {.usage = usage, .options = long_options, .help = HELP};

static int read_flag(int flag, const char *arg, void *read_arg)
{
    struct nkv_serve_options *o = read_arg;

    switch (flag) {
    case MEMORY:
        return read_memory(arg, o);
    case FORMAT:
        o->format = true;
        return CLI_OK;
    case LISTEN:
        return read_socket("--listen", arg, &o->listen);
    case METRICS:
        return read_socket("--metrics", arg, &o->metrics);
    case THREADS:
        return cli_u32("--threads", arg, 1, 1024, &o->n_threads);
    case NAME:
        o->name = arg;
        return CLI_OK;
    case KEEP:
        return read_keep(arg, o);
    case QUIET:
        o->log = NULL;
        return CLI_OK;
    default:
        return cli_usage("see nearkv pnmd --help for the options");
    }
}

/* returns: CLI_OK, CLI_USAGE, or -1: help was printed. */
static int read_options(int argc, char **argv, struct nkv_serve_options *o)
{
    int rc = arguments_options(argc, argv, &arguments, read_flag, o);

    if (rc != CLI_OK)
        return rc;
    if (optind < argc)
        return cli_usage("unexpected argument '%s': see nearkv pnmd --help", argv[optind]);
    if (o->capacity_bytes == 0 && !o->memory)
        return cli_usage("say what memory the device has: --memory anon:SIZE");
    if (o->format && !o->memory)
        return cli_usage("--format is for --memory file: and dax:");
    if (!o->listen)
        return cli_usage("say where clients find the device: --listen unix:PATH");
    if (o->metrics && strcmp(o->metrics, o->listen) == 0)
        return cli_usage("--listen and --metrics are the same socket, unix:%s: give each its own", o->listen);
    return o->memory ? CLI_OK : cli_check_memory("the device", o->capacity_bytes);
}

int pnmd_main(int argc, char **argv)
{
    struct nkv_serve_options options = {.size = sizeof options, .log = log_line};
    struct sigaction action = {.sa_handler = on_signal};
    int rc = read_options(argc, argv, &options), status;

    if (rc != CLI_OK)
        return rc < 0 ? CLI_OK : rc;
    status = nkv_serve_open(&options, &serving);
    if (status < 0)
        return cli_refused(NULL, status);
    signal(SIGPIPE, SIG_IGN); /* who reads the log may leave */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    if (options.log)
        fprintf(stderr, "nearkv pnmd: %s%s, listening on unix:%s\n", options.memory ? "memory " : "",
                options.memory ? options.memory : cli_bytes(options.capacity_bytes), options.listen);
    if (nkv_serve_run(serving) < 0)
        rc = cli_fail("%s", nkv_last_error());
    nkv_serve_close(serving);
    return rc;
}
