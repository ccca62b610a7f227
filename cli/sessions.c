/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv session: sessions as things that are listed, removed, and carried from one device to another as a file. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "arguments.h"
#include "cli.h"
#include "commands.h"
#include "output.h"
#include "progress.h"
#include "remote.h"

static const char usage[] =
    "usage: nearkv session export NAME FILE --device unix:PATH\n"
    "       nearkv session import FILE --device unix:PATH [--name NAME]\n"
    "       nearkv session list --device unix:PATH [--json]\n"
    "       nearkv session remove NAME --device unix:PATH\n"
    "Sessions of `nearkv run --session NAME`: writes one to a file, makes one of a file, lists\n"
    "them, removes one.\n"
    "\n"
    "  --device SPEC   the device that holds them: unix:PATH (nearkv pnmd)\n"
    "  --memory SPEC   or memory that no process has: file:PATH[:SIZE], dax:/dev/daxX.Y\n"
    "  --name NAME     import: under this name, not the one in the file\n"
    "  --json          list: one JSON object on stdout\n";

enum { DEVICE = 256, MEMORY, NAME, JSON, HELP };

static const struct option long_options[] = {
    {"device", required_argument, NULL, DEVICE | ARGUMENTS_ONCE},
    {"memory", required_argument, NULL, MEMORY | ARGUMENTS_ONCE},
    {"name", required_argument, NULL, NAME},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

struct options {
    const char *what, *session, *file; /* NULL where `what` takes none */
    const char *device, *name;
    bool json;
};

#define WHERE "--device unix:PATH"

static const struct arguments_verb verbs[] = {
    {"export", "NAME FILE " WHERE, 2},
    {"import", "FILE " WHERE, 1},
    {"list", WHERE, 0},
    {"remove", "NAME " WHERE, 1},
    {NULL, NULL, 0},
};

static const struct arguments arguments = {.usage = usage, .options = long_options, .help = HELP};

static int read_flag(int flag, const char *arg, void *read_arg)
{
    struct options *o = read_arg;

    if ((flag == DEVICE || flag == MEMORY) && o->device)
        return cli_usage("--device, --memory: give one");
    if (flag == MEMORY && !remote_is_memory(arg))
        return cli_usage("--memory %s: give file:PATH[:SIZE] or dax:/dev/daxX.Y", arg);
    if (flag == DEVICE || flag == MEMORY)
        o->device = arg;
    else if (flag == NAME)
        o->name = arg;
    else if (flag == JSON)
        o->json = true;
    else
        return cli_usage("see nearkv session --help for the options");
    return CLI_OK;
}

static int read_arguments(int argc, char **argv, struct options *o)
{
    const struct arguments_verb *verb = NULL;
    int rc = arguments_verb("session", verbs, argc, argv, &verb);
    bool imports, exports;

    if (rc != CLI_OK)
        return rc;
    o->what = verb->name;
    imports = strcmp(o->what, "import") == 0;
    exports = strcmp(o->what, "export") == 0;
    o->session = exports || strcmp(o->what, "remove") == 0 ? argv[1] : NULL;
    o->file = exports || imports ? argv[verb->n] : NULL;
    if (!o->device)
        return cli_usage("nearkv session %s: name the device: --device unix:PATH or --memory file:PATH", o->what);
    if (exports) {
        rc = output_is_no_memory("session export", o->file, "--memory", o->device);
        rc = rc == CLI_OK ? output_is_free("session export", o->file) : rc;
    }
    if (rc != CLI_OK)
        return rc;
    if (o->name && !imports)
        return cli_usage("--name is for nearkv session import");
    if (o->json && strcmp(o->what, "list") != 0)
        return cli_usage("--json is for nearkv session list");
    return CLI_OK;
}

static int export(const struct remote *remote, const struct options *o)
{
    struct progress progress;
    int status;

    if (!remote->context)
        return cli_fail("%s: no session '%s': the device holds nothing yet", remote->spec, o->session);
    progress_start(&progress, "export", "bytes");
    status = nkv_session_export(remote->context, o->session, o->file, progress_update, &progress);
    progress_end(&progress);
    if (status == NKV_ECANCELED)
        return cli_fail("interrupted: %s was not written", o->file);
    return status < 0 ? cli_refused(NULL, status) : CLI_OK;
}

static int import(const struct remote *remote, const struct options *o)
{
    struct progress progress;
    int status;

    progress_start(&progress, "import", "bytes");
    status = nkv_session_import(remote->context, o->file, o->name, progress_update, &progress);
    progress_end(&progress);
    if (status == NKV_ECANCELED)
        return cli_fail("interrupted: nothing was left on %s", remote->spec);
    return status < 0 ? cli_refused(NULL, status) : CLI_OK;
}

static int run(const struct options *o)
{
    struct nkv_session_file_info info;
    struct remote remote;
    bool imports = strcmp(o->what, "import") == 0;
    int rc;

    if (imports && nkv_session_file_info(o->file, &info) < 0)
        return cli_fail("%s", nkv_last_error());
    rc = remote_open(&remote, o->device, imports ? &info.shape : NULL);
    if (rc == CLI_OK && imports)
        rc = import(&remote, o);
    else if (rc == CLI_OK && strcmp(o->what, "export") == 0)
        rc = export(&remote, o);
    else if (rc == CLI_OK && strcmp(o->what, "list") == 0)
        rc = remote_list(&remote, o->json);
    else if (rc == CLI_OK)
        rc = remote_remove(&remote, o->session);
    remote_close(&remote);
    return rc;
}

int session_main(int argc, char **argv)
{
    struct options o = {0};
    int rc = arguments_options(argc, argv, &arguments, read_flag, &o);

    if (rc == CLI_OK)
        rc = read_arguments(argc - optind, argv + optind, &o);
    if (rc != CLI_OK)
        return rc < 0 ? CLI_OK : rc;
    progress_catch_interrupt();
    return run(&o);
}
