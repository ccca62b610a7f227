/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv bench: dispatches to the benchmarks. */
#include "bench.h"

#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "parallel.h"

static const struct {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *what;
} benches[] = {
    {"attend", bench_attend_main, "one layer's decode attention against the memory floor"},
    {"decode", bench_decode_main, "token time of a model shape over filled caches"},
    {"device", bench_device_main, "round trip of an empty command"},
    {"prefill", bench_prefill_main, "prefill of a model shape against the FC library's rate"},
    {"serve", bench_serve_main, "many requests that come and go: latencies, throughput, load of the devices"},
};

static void print_usage(FILE *file)
{
    fputs("usage: nearkv bench attend|decode|prefill|serve|device [options]\n", file);
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
        fprintf(file, "  %-8s %s\n", benches[i].name, benches[i].what);
    fputs("Each has --help and --json.\n", file);
}

int bench_main(int argc, char **argv)
{
    if (argc > 1 && arguments_is_help(argv[1])) {
        print_usage(stdout);
        return CLI_OK;
    }
    for (size_t i = 0; argc > 1 && i < sizeof benches / sizeof *benches; i++) {
        if (strcmp(argv[1], benches[i].name) != 0)
            continue;
        argv[1] = argv[0]; /* getopt's messages begin with it */
        return parallel_bench(argc - 1, argv + 1, benches[i].main);
    }
    if (argc > 1)
        fprintf(stderr, "nearkv: no benchmark '%s'\n", argv[1]);
    print_usage(stderr);
    return CLI_USAGE;
}
