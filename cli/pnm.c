/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv pnm: looks at a device process from outside, and removes what nobody wants any more. */
#define _GNU_SOURCE
#include <jansson.h>
#include <nearkv/serve.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "arguments.h"
#include "cli.h"
#include "commands.h"
#include "remote.h"
#include "text.h"

static const char usage[] = "usage: nearkv pnm stat unix:PATH [--watch] [--json]\n"
                            "       nearkv pnm list DEVICE [--json]\n"
                            "       nearkv pnm show NAME DEVICE [--json]\n"
                            "       nearkv pnm remove NAME DEVICE\n"
                            "       nearkv pnm check MEMORY [--json]\n"
                            "What the device process that listens on PATH does (stat), the sessions that a device\n"
                            "holds (list), one of them (show); removes one (remove). DEVICE is unix:PATH, or memory\n"
                            "that no process has at the moment: file:PATH or dax:/dev/daxX.Y. check says what is\n"
                            "wrong with such memory, page by page, and changes nothing; exit status 1: something is.\n"
                            "\n"
                            "  --watch      stat: again every second, until Ctrl-C or the device ends\n"
                            "  --json       one JSON object on stdout (with --watch: one a line)\n";

enum { WATCH = 256, JSON, HELP };

static const struct option long_options[] = {
    {"watch", no_argument, NULL, WATCH},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

struct options {
    const char *what, *name; /* name: NULL where `what` takes none */
    const char *spec;
    bool watch, json;
};

static json_t *clients_json(const struct nkv_serve_stat *stat)
{
    json_t *clients = json_array();

    for (uint32_t i = 0; i < stat->n_clients; i++) {
        const struct nkv_serve_client *c = &stat->clients[i];

        json_array_append_new(
            clients, json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:I}", "number", (json_int_t)c->number,
                               "pid", (json_int_t)c->pid, "used_bytes", (json_int_t)c->used_bytes, "window_bytes",
                               (json_int_t)c->window_bytes, "sequences", (json_int_t)c->n_sequences, "queue_depth",
                               (json_int_t)c->queue_depth, "commands", (json_int_t)c->n_commands, "busy_s",
                               (double)c->busy_ns * 1e-9, "read_bytes", (json_int_t)c->read_bytes, "written_bytes",
                               (json_int_t)c->written_bytes));
    }
    return clients;
}

static int print_json(const struct nkv_serve_stat *stat)
{
    return text_print_json(json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:{s:I, s:I, s:I}, s:I, s:I, s:I, s:f, s:I, s:I, s:f, s:I, s:o}", "schema",
        "nearkv.pnm.stat/1", "name", stat->name, "threads", (json_int_t)stat->n_threads, "capacity_bytes",
        (json_int_t)stat->capacity_bytes, "used_bytes", (json_int_t)stat->used_bytes, "resident_bytes",
        (json_int_t)stat->resident_bytes, "pages", "total", (json_int_t)stat->n_total_pages, "free",
        (json_int_t)stat->n_free_pages, "bytes", (json_int_t)stat->page_bytes, "sequences",
        (json_int_t)stat->n_sequences, "queue_depth", (json_int_t)stat->queue_depth, "commands",
        (json_int_t)stat->n_commands, "busy_s", (double)stat->busy_ns * 1e-9, "read_bytes",
        (json_int_t)stat->read_bytes, "written_bytes", (json_int_t)stat->written_bytes, "uptime_s",
        (double)stat->uptime_ns * 1e-9, "absent_clients", (json_int_t)stat->n_absent, "clients", clients_json(stat)));
}

static void print_text(const struct nkv_serve_stat *stat)
{
    if (stat->page_bytes == 0)
        printf("%s: %s of memory, which the first client divides into pages\n", stat->name,
               cli_bytes(stat->capacity_bytes));
    else
        printf("%s: %s of %s used, %u of %u pages free, %u sequences, %u commands waiting\n", stat->name,
               cli_bytes(stat->used_bytes), cli_bytes(stat->capacity_bytes), stat->n_free_pages, stat->n_total_pages,
               stat->n_sequences, stat->queue_depth);
    printf("%llu commands in %.3f s, %s read, %s written, up for %.0f s, %u clients, %u absent\n",
           (unsigned long long)stat->n_commands, (double)stat->busy_ns * 1e-9, cli_bytes(stat->read_bytes),
           cli_bytes(stat->written_bytes), (double)stat->uptime_ns * 1e-9, stat->n_clients, stat->n_absent);
    for (uint32_t i = 0; i < stat->n_clients; i++) {
        const struct nkv_serve_client *c = &stat->clients[i];

        printf("  client %u, process %d: %s, %u sequences, %llu commands in %.3f s, %s read, %s written, %u waiting\n",
               c->number, c->pid, cli_bytes(c->used_bytes), c->n_sequences, (unsigned long long)c->n_commands,
               (double)c->busy_ns * 1e-9, cli_bytes(c->read_bytes), cli_bytes(c->written_bytes), c->queue_depth);
    }
}

static const struct arguments_verb verbs[] = {
    {"stat", "unix:PATH", 1},        {"list", "unix:PATH", 1},  {"show", "NAME unix:PATH", 2},
    {"remove", "NAME unix:PATH", 2}, {"check", "file:PATH", 1}, {NULL, NULL, 0},
};

static const struct arguments arguments = {.usage = usage, .options = long_options, .help = HELP};

static int read_flag(int flag, const char *arg, void *read_arg)
{
    struct options *o = read_arg;

    (void)arg;
    if (flag != WATCH && flag != JSON)
        return cli_usage("see nearkv pnm --help for the options");
    o->watch |= flag == WATCH;
    o->json |= flag == JSON;
    return CLI_OK;
}

static int read_arguments(int argc, char **argv, struct options *o)
{
    const struct arguments_verb *verb = NULL;
    int rc = arguments_verb("pnm", verbs, argc, argv, &verb);
    bool is_stat, is_memory;

    if (rc != CLI_OK)
        return rc;
    o->what = verb->name;
    o->name = verb->n == 2 ? argv[1] : NULL;
    o->spec = argv[verb->n];
    is_stat = strcmp(o->what, "stat") == 0;
    is_memory = remote_is_memory(o->spec);
    if (strcmp(o->what, "check") == 0 && !is_memory)
        return cli_usage("name memory that no process has: nearkv pnm check file:PATH or dax:/dev/daxX.Y");
    if (strncmp(o->spec, "unix:", 5) != 0 && (is_stat || !is_memory))
        return cli_usage("name one device: nearkv pnm %s %s", o->what, verb->takes);
    if (o->watch && !is_stat)
        return cli_usage("--watch is for nearkv pnm stat");
    if (o->json && strcmp(o->what, "remove") == 0)
        return cli_usage("--json: nearkv pnm remove prints nothing");
    return CLI_OK;
}

static int show_stat(const struct options *o)
{
    struct nkv_serve_stat stat;
    int rc = remote_stat(o->spec, &stat);

    if (rc != CLI_OK)
        return rc;
    if (o->json)
        rc = print_json(&stat);
    else
        print_text(&stat);
    if (fflush(stdout) == EOF)
        return cli_fail("cannot write to standard output");
    return rc;
}

static int on_sessions(const struct options *o)
{
    struct remote remote;
    int rc = remote_open(&remote, o->spec, NULL);

    if (rc == CLI_OK && strcmp(o->what, "list") == 0)
        rc = remote_list(&remote, o->json);
    else if (rc == CLI_OK && strcmp(o->what, "show") == 0)
        rc = remote_show(&remote, o->name, o->json);
    else if (rc == CLI_OK)
        rc = remote_remove(&remote, o->name);
    remote_close(&remote);
    return rc;
}

int pnm_main(int argc, char **argv)
{
    struct options o = {0};
    int rc = arguments_options(argc, argv, &arguments, read_flag, &o);

    if (rc == CLI_OK)
        rc = read_arguments(argc - optind, argv + optind, &o);
    if (rc != CLI_OK)
        return rc < 0 ? CLI_OK : rc;
    if (strcmp(o.what, "check") == 0)
        return pnm_check(o.spec, o.json);
    if (strcmp(o.what, "stat") != 0)
        return on_sessions(&o);
    while ((rc = show_stat(&o)) == CLI_OK && o.watch)
        sleep(1);
    return rc;
}
