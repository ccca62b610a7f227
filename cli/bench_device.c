/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv bench device: the round trip of an empty command (COMPUTE), one at a time: what submitting, running nothing
 * and reaping cost. All of the distribution is printed, because its tail is what a shared machine adds.
 */
#include "bench.h"

#include <jansson.h>
#include <nearkv/device.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli.h"
#include "progress.h"
#include "text.h"

#define WARM_UP_TRIPS 1000u

struct options {
    const char *device;
    uint32_t n_trips, n_threads;
    bool json;
};

static const char usage[] = "usage: nearkv bench device [options]\n"
                            "Times the round trip of an empty command, one at a time.\n"
                            "\n"
                            "  --device SPEC       cpu, unix:PATH, under mpirun mpi:RANK (cpu)\n"
                            "  --trips N           timed round trips (20000)\n"
                            "  --threads N         threads of the device, where it is this process's (one per CPU)\n"
                            "  --json              one JSON object on stdout\n";

enum { DEVICE = 256, TRIPS, THREADS, JSON, HELP };

static const struct option long_options[] = {
    {"device", required_argument, NULL, DEVICE | ARGUMENTS_ONCE},
    {"trips", required_argument, NULL, TRIPS},
    {"threads", required_argument, NULL, THREADS},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static const struct arguments arguments = {.usage = usage, .options = long_options, .help = HELP};

static int read_flag(int flag, const char *arg, void *read_arg)
{
    struct options *o = read_arg;

    switch (flag) {
    case DEVICE:
        o->device = arg;
        return CLI_OK;
    case TRIPS:
        return cli_u32("--trips", arg, 1, 10000000, &o->n_trips);
    case THREADS:
        return cli_u32("--threads", arg, 1, 1024, &o->n_threads);
    case JSON:
        o->json = true;
        return CLI_OK;
    default:
        return cli_usage("see nearkv bench device --help for the options");
    }
}

static int trip(struct nkv_device *device, double *us_out)
{
    struct nkv_cmd cmd = {.op = NKV_OP_COMPUTE};
    struct nkv_cqe cqe;
    uint64_t start_ns = progress_now_ns();

    if (device->ops->submit(device, &cmd, 1) < 0 || device->ops->reap(device, &cqe, 1, 1) < 0)
        return cli_fail("%s", nkv_last_error());
    *us_out = (double)(progress_now_ns() - start_ns) * 1e-3;
    return CLI_OK;
}

static int measure(struct nkv_device *device, const struct options *o, double *us)
{
    int rc = CLI_OK;
    double warm_up;

    for (uint32_t i = 0; rc == CLI_OK && i < WARM_UP_TRIPS; i++)
        rc = trip(device, &warm_up);
    for (uint32_t i = 0; rc == CLI_OK && i < o->n_trips; i++)
        rc = trip(device, &us[i]);
    return rc;
}

static int print(const struct options *o, const double *us, double median)
{
    double min = us[0], p90 = us[cli_nearest_rank(o->n_trips, 90)], p99 = us[cli_nearest_rank(o->n_trips, 99)];
    double max = us[o->n_trips - 1];

    if (o->json)
        return text_print_json(json_pack("{s:s, s:s, s:I, s:{s:f, s:f, s:f, s:f, s:f}}", "schema",
                                         "nearkv.bench.device/1", "device", o->device, "n", (json_int_t)o->n_trips,
                                         "us", "min", min, "p50", median, "p90", p90, "p99", p99, "max", max));
    printf("%s: %u round trips of an empty command\n", o->device, o->n_trips);
    printf("%8.2f us least, %.2f median, %.2f p90, %.2f p99, %.2f most\n", min, median, p90, p99, max);
    return CLI_OK;
}

int bench_device_main(int argc, char **argv)
{
    struct options o = {.device = "cpu", .n_trips = 20000, .n_threads = cli_cpus()};
    struct nkv_device_config config = {
        .size = sizeof config,
        .shape = {.n_layers = 1, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128, .page_tokens = 32, .dtype = NKV_F16},
        .capacity_bytes = (uint64_t)64 << 20,
    };
    struct nkv_device *device = NULL;
    double *us, min;
    int rc = bench_read_options(argc, argv, &arguments, read_flag, &o), status = 0;

    if (rc != CLI_OK)
        return rc < 0 ? CLI_OK : rc;
    config.n_threads = o.n_threads;
    us = malloc(o.n_trips * sizeof *us);
    if (!us)
        rc = cli_fail("out of memory");
    else
        status = nkv_device_open(o.device, &config, &device);
    if (status < 0)
        rc = cli_refused("--device", status);
    if (rc == CLI_OK)
        rc = measure(device, &o, us);
    if (rc == CLI_OK)
        rc = print(&o, us, bench_median(us, o.n_trips, &min));
    nkv_device_close(device);
    free(us);
    return rc;
}
