/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv sim: dispatches to the simulator's subcommands. */
#include "arguments.h"
#include "sim.h"

#include <stdio.h>
#include <string.h>

#include "cli.h"

static const struct {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *what;
} commands[] = {
    {"run", sim_run_main, "one configuration: throughput, breakdown, energy, cost"},
    {"paper", sim_paper_main, "the paper's configurations, claims R1-R13 and figures"},
    {"ablate", sim_ablate_main, "one choice at a time: recall, micro-batches, page, budget, digests, cards, GPUs"},
    {"sweep", sim_sweep_main, "every combination of lists of options, as CSV"},
    {"validate", sim_validate_main, "the simulator against measured latencies, tables and formulas, and this machine"},
};

static void print_usage(FILE *file)
{
    fputs("usage: nearkv sim run|sweep|paper|ablate|validate [options]\n", file);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(file, "  %-9s %s\n", commands[i].name, commands[i].what);
    fputs("Each has --help and --json or CSV output. Times are simulated, not measured.\n", file);
}

int sim_main(int argc, char **argv)
{
    if (argc > 1 && arguments_is_help(argv[1])) {
        print_usage(stdout);
        return CLI_OK;
    }
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[1], commands[i].name) != 0)
            continue;
        argv[1] = argv[0];
        return commands[i].main(argc - 1, argv + 1);
    }
    if (argc > 1)
        fprintf(stderr, "nearkv: no simulation '%s'\n", argv[1]);
    print_usage(stderr);
    return CLI_USAGE;
}
