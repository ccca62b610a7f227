/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv sim validate: the simulator against what is known from elsewhere, table by table. A number that was measured,
 * published or computed and the simulated one have columns of their own.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "arguments.h"
#include "cli.h"
#include "progress.h"
#include "sim.h"
#include "sim_self.h"
#include "text.h"

struct validate_options {
    struct sim_options sim; /* machine and sets */
    struct self self;
    bool no_self, json, help;
};

/* How a group of checks is shown. */
static const struct {
    const char *title, *known, *key; /* of the table, of the column of what is known, of the list in JSON */
} groups[NKV_SIM_CHECK_GROUP_COUNT] = {
    [NKV_SIM_CHECK_ANCHOR] = {"Decode latencies", "measured", "anchors"},
    [NKV_SIM_CHECK_KIND] = {"Published ratios, in kind", "published", "in_kind"},
    [NKV_SIM_CHECK_MEMORY] = {"LPDDR efficiency by access pattern", "expected", "memory"},
    [NKV_SIM_CHECK_CLOSED] = {"Closed forms", "expected", "closed_forms"},
};

static void print_usage(FILE *file)
{
    fputs(
        "usage: nearkv sim validate [options]\n"
        "Compares the simulator with measured decode latencies, a table of LPDDR efficiencies and closed forms, and\n"
        "with this machine: what it measures of itself, and nearkv bench decode predicted from that at four contexts\n"
        "(a model of 2.5 GB, caches of 13 GB).\n\n"
        "  --machine NAME   the machine of the decode latencies (h100-server)\n"
        "  --set KEY=VALUE  a number of that machine\n"
        "  --no-self        leaves this machine out\n"
        "  --steps N        measured steps of each context, at least 5 (15)\n"
        "  --threads N      of the measured runs (one per CPU)\n"
        "  --json           one JSON object on stdout\n"
        "Exit status 1 when a check does not hold. This machine's errors are printed only: they are its noise, too.\n",
        file);
}

static int read_valued(struct validate_options *o, const char *flag, const char *arg)
{
    static const char *const valued[] = {"machine", "set", "steps", "threads"};
    size_t i = 0;

    while (i < sizeof valued / sizeof *valued && strcmp(flag, valued[i]) != 0)
        i++;
    if (i == sizeof valued / sizeof *valued)
        return cli_usage("unrecognized option '--%s': see nearkv sim validate --help", flag);
    if (!arg)
        return cli_usage("--%s needs a value", flag);
    if (strcmp(flag, "steps") == 0)
        return cli_u32("--steps", arg, BENCH_SLICES, 1000, &o->self.n_steps);
    if (strcmp(flag, "threads") == 0)
        return cli_u32("--threads", arg, 1, 1024, &o->self.n_threads);
    return sim_flag_find(flag)->read(&o->sim, flag, arg);
}

static int read_options(int argc, char **argv, struct validate_options *o)
{
    for (int at = 1; at < argc; at++) {
        int rc = CLI_OK;

        if (strcmp(argv[at], "--json") == 0)
            o->json = true;
        else if (strcmp(argv[at], "--self") == 0 || strcmp(argv[at], "--no-self") == 0)
            o->no_self = argv[at][2] == 'n';
        else if (arguments_is_help(argv[at]))
            o->help = true;
        else if (strncmp(argv[at], "--", 2) == 0) {
            rc = read_valued(o, argv[at] + 2, argv[at + 1]);
            at++;
        } else
            rc = cli_usage("unexpected argument '%s'", argv[at]);
        if (rc != CLI_OK)
            return rc;
    }
    return CLI_OK;
}

/* ---- Text */

/* The one set of numbers behind all anchors. */
static void print_gpu(const struct nkv_sim_machine *machine)
{
    struct nkv_sim_number number;

    printf("one set of numbers (%s):", nkv_sim_machine_name(machine));
    for (uint32_t i = 0; nkv_sim_machine_number(machine, i, &number) == 0; i++)
        if (strncmp(number.key, "gpu.", 4) == 0 && !strstr(number.key, "power") && !strstr(number.key, "energy") &&
            !strstr(number.key, "price"))
            printf(" %s %g%s%s", number.key + 4, number.value, *number.unit ? " " : "", number.unit);
    printf("\n");
}

static void print_check(const struct nkv_sim_check *c)
{
    char known[32] = "", error[32] = "";

    if (!isnan(c->expected)) {
        snprintf(known, sizeof known, "%.6g", c->expected);
        snprintf(error, sizeof error, c->group == NKV_SIM_CHECK_ANCHOR ? "%+.1f %%" : "%+.0e %%",
                 100 * (c->simulated / c->expected - 1));
    }
    if (isnan(c->expected) || c->group == NKV_SIM_CHECK_KIND)
        snprintf(error, sizeof error, "%.4g to %.4g", c->low, c->high);
    printf("  %-84s %12s %12.6g %-5s %16s  %s\n", c->name, known, c->simulated, c->unit, error,
           c->holds ? "holds" : "FAILS");
}

static void print_group(const struct nkv_sim_validation *v, enum nkv_sim_check_group group)
{
    const char *source = "";

    printf("\n%s\n  %-84s %12s %12s %-5s %16s\n", groups[group].title, "", groups[group].known, "simulated", "",
           "error or limits");
    for (uint32_t i = 0; i < v->n_checks; i++) {
        const struct nkv_sim_check *c = &v->checks[i];

        if (c->group != group)
            continue;
        if (group != NKV_SIM_CHECK_CLOSED && strcmp(source, c->source) != 0)
            printf("  %s:\n", c->source);
        source = c->source;
        print_check(c);
        if (group == NKV_SIM_CHECK_CLOSED)
            printf("      %s\n", c->source);
    }
}

static void print_text(const struct validate_options *o, const struct nkv_sim_validation *v,
                       const struct nkv_sim_machine *machine)
{
    for (enum nkv_sim_check_group group = 0; group < NKV_SIM_CHECK_GROUP_COUNT; group++) {
        print_group(v, group);
        if (group != NKV_SIM_CHECK_ANCHOR)
            continue;
        printf("  mean error %.1f %%, largest %.1f %%\n  ", 100 * v->anchor_mean_error, 100 * v->anchor_max_error);
        print_gpu(machine);
    }
    if (!o->no_self)
        self_print(&o->self);
}

/* ---- JSON */

static json_t *number_json(double value)
{
    return isnan(value) ? json_null() : json_real(value);
}

static json_t *check_json(const struct nkv_sim_check *c)
{
    double error = 100 * (c->simulated / c->expected - 1);

    return json_pack("{s:s, s:s, s:s, s:o, s:f, s:o, s:f, s:f, s:b}", "name", c->name, "source", c->source, "unit",
                     c->unit, groups[c->group].known, number_json(c->expected), "simulated", c->simulated,
                     "error_percent", number_json(error), "low", c->low, "high", c->high, "holds", (int)c->holds);
}

static int print_json(const struct validate_options *o, const struct nkv_sim_validation *v,
                      const struct nkv_sim_machine *machine)
{
    json_t *object = json_pack("{s:s, s:f, s:f, s:o}", "schema", "nearkv.sim.validate/1", "anchor_mean_error_percent",
                               100 * v->anchor_mean_error, "anchor_max_error_percent", 100 * v->anchor_max_error,
                               "parameters", sim_machine_json(machine));

    for (enum nkv_sim_check_group group = 0; group < NKV_SIM_CHECK_GROUP_COUNT; group++)
        json_object_set_new(object, groups[group].key, json_array());
    for (uint32_t i = 0; i < v->n_checks; i++)
        json_array_append_new(json_object_get(object, groups[v->checks[i].group].key), check_json(&v->checks[i]));
    json_object_set_new(object, "self", o->no_self ? json_null() : self_json(&o->self));
    return text_print_json(object);
}

/* ---- Main */

static int open_machine(const struct validate_options *o, struct nkv_sim_machine **machine_out)
{
    if (nkv_sim_machine_open(o->sim.machine, machine_out) < 0)
        return cli_fail("%s", nkv_last_error());
    for (uint32_t i = 0; i < o->sim.n_sets; i++)
        if (nkv_sim_machine_set(*machine_out, o->sim.sets[i]) < 0)
            return cli_usage("--set %s: %s", o->sim.sets[i], nkv_last_error());
    return CLI_OK;
}

static int verdict(const struct nkv_sim_validation *v)
{
    uint32_t n_failed = 0;

    for (uint32_t i = 0; i < v->n_checks; i++)
        n_failed += !v->checks[i].holds;
    return n_failed ? cli_fail("%u of %u checks do not hold", n_failed, v->n_checks) : CLI_OK;
}

static int validate(struct validate_options *o, const struct nkv_sim_machine *machine)
{
    struct nkv_sim_validation *v;
    int rc = CLI_OK, status = nkv_sim_validate(machine, &v);

    if (status < 0)
        return cli_refused(NULL, status);
    if (!o->no_self)
        rc = self_run(&o->self);
    if (rc == CLI_OK && o->json)
        rc = print_json(o, v, machine);
    else if (rc == CLI_OK)
        print_text(o, v, machine);
    if (rc == CLI_OK)
        rc = verdict(v);
    nkv_sim_validation_close(v);
    return rc;
}

int sim_validate_main(int argc, char **argv)
{
    struct validate_options o = {.self = {.n_steps = 15, .n_threads = cli_cpus()}};
    struct nkv_sim_machine *machine = NULL;
    int rc;

    sim_options_init(&o.sim);
    o.sim.machine = "h100-server";
    rc = read_options(argc, argv, &o);
    if (rc == CLI_OK && o.help) {
        print_usage(stdout);
        return CLI_OK;
    }
    if (rc == CLI_OK)
        rc = open_machine(&o, &machine);
    if (rc == CLI_OK)
        progress_catch_interrupt();
    if (rc == CLI_OK)
        rc = validate(&o, machine);
    nkv_sim_machine_close(machine);
    return rc;
}
