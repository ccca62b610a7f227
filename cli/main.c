/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv: finds the subcommand. Exit status: 0, 1 failed, 2 wrong usage. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <nearkv/nearkv.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "arguments.h"
#include "bench.h"
#include "cli.h"
#include "commands.h"
#include "sim.h"

static const struct {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *what;
} commands[] = {
    {"run", run_main, "answer a prompt"},
    {"eval", eval_main, "measure answers: needle"},
    {"bench", bench_main, "measure speed: attend, decode, prefill, serve, device"},
    {"pnmd", pnmd_main, "a PNM device as a process of its own"},
    {"pnm", pnm_main, "look at a device process or its memory: stat, list, show, remove, check"},
    {"session", session_main, "sessions of run --session: export, import, list, remove"},
    {"sim", sim_main, "simulate hardware: run, sweep, paper, ablate, validate"},
    {"info", info_main, "topology, kernels, model, memory estimate"},
    {"needle", needle_main, "write the built-in needle model as a GGUF file"},
};

static void print_usage(FILE *file)
{
    fputs("usage: nearkv COMMAND [options]\n\n", file);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(file, "  %-8s %s\n", commands[i].name, commands[i].what);
    fputs("\nnearkv COMMAND --help lists its options; nearkv --version prints the version.\n", file);
}

/* A standard stream that is closed would be the next file that is opened, and the answer go into a trace: its number is
 * taken by a file that can neither be read nor written in its stead. */
static void occupy_standard_files(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            (void)open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

static int run_command(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";

    if (arguments_is_help(name) || strcmp(name, "help") == 0) {
        print_usage(stdout);
        return CLI_OK;
    }
    if (strcmp(name, "--version") == 0) {
        printf("nearkv %s\n", nkv_version());
        return CLI_OK;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(name, commands[i].name) != 0)
            continue;
        argv[1] = argv[0];
        return commands[i].main(argc - 1, argv + 1);
    }
    if (*name)
        fprintf(stderr, "nearkv: no command '%s'\n", name);
    print_usage(stderr);
    return CLI_USAGE;
}

int main(int argc, char **argv)
{
    int rc;

    occupy_standard_files();
    rc = run_command(argc, argv);
    if ((fflush(stdout) == EOF || ferror(stdout)) && rc == CLI_OK)
        rc = cli_fail("cannot write to standard output");
    return rc;
}
