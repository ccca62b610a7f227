/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv eval: dispatches to the evaluations. */
#include <stdio.h>
#include <string.h>

#include "arguments.h"
#include "cli.h"
#include "commands.h"

static void print_usage(FILE *file)
{
    fputs("usage: nearkv eval needle [options]\n"
          "  needle   hides a pass key in a long text and asks for it in each mode\n"
          "It has --help and --json.\n",
          file);
}

int eval_main(int argc, char **argv)
{
    if (argc > 1 && arguments_is_help(argv[1])) {
        print_usage(stdout);
        return CLI_OK;
    }
    if (argc > 1 && strcmp(argv[1], "needle") == 0) {
        argv[1] = argv[0];
        return eval_needle_main(argc - 1, argv + 1);
    }
    if (argc > 1)
        fprintf(stderr, "nearkv: no evaluation '%s'\n", argv[1]);
    print_usage(stderr);
    return CLI_USAGE;
}
