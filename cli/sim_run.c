/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv sim run: one configuration, simulated. */
#include <stdio.h>
#include <string.h>

#include "arguments.h"
#include "cli.h"
#include "sim.h"
#include "text.h"

static void print_usage(FILE *file)
{
    fputs("usage: nearkv sim run [options]\n"
          "Decodes a few steps of a configuration on simulated devices, in virtual time, with the runtime and the "
          "policies "
          "of real runs.\n\n",
          file);
    sim_flags_print(file);
    fputs("  --timeline FILE  writes the measured steps as a Chrome trace file\n"
          "  --full-activity  counts every static power in the activity account\n"
          "  --json           one JSON object on stdout\n",
          file);
}

struct run_options {
    struct sim_options sim;
    bool json, help;
};

/* One flag and its value, "--flag value" or "--flag=value". returns: CLI_OK or CLI_USAGE; *at moves on. */
static int read_valued(struct run_options *o, int argc, char **argv, int *at)
{
    const char *name = argv[*at] + 2, *equals = strchr(name, '='), *arg;
    char flag[32];
    const struct sim_flag *found;

    snprintf(flag, sizeof flag, "%.*s", (int)(equals ? equals - name : (long)strlen(name)), name);
    found = sim_flag_find(flag);
    if (!found && strcmp(flag, "timeline") != 0)
        return cli_usage("unrecognized option '%s': see nearkv sim run --help", argv[*at]);
    arg = equals ? equals + 1 : argv[++*at];
    if (*at >= argc)
        return cli_usage("--%s needs a value", flag);
    if (found)
        return found->read(&o->sim, flag, arg);
    o->sim.config.timeline = arg;
    return CLI_OK;
}

static int read_options(int argc, char **argv, struct run_options *o)
{
    for (int at = 1; at < argc; at++) {
        int rc = CLI_OK;

        if (strcmp(argv[at], "--json") == 0)
            o->json = true;
        else if (arguments_is_help(argv[at]))
            o->help = true;
        else if (strcmp(argv[at], "--full-activity") == 0)
            o->sim.config.full_activity = true;
        else if (strncmp(argv[at], "--", 2) == 0)
            rc = read_valued(o, argc, argv, &at);
        else
            rc = cli_usage("unexpected argument '%s'", argv[at]);
        if (rc != CLI_OK)
            return rc;
    }
    return CLI_OK;
}

static void print_energy(const struct nkv_sim_report *r)
{
    printf("energy         ");
    for (enum nkv_sim_account a = 0; a < NKV_SIM_ACCOUNT_COUNT; a++)
        printf(" %s %.3g J", nkv_sim_account_name(a), r->energy_j[a]);
    printf(" per token\n");
}

static void print_mapping(const struct nkv_sim_config *c, const struct nkv_sim_report *r)
{
    printf("mapping         %s over groups of %u; per token and layer %.4g transfers, %.4g sorts, %s attended on "
           "devices",
           nkv_sim_mapping_name(r->mapping), r->mapping_group, r->layer_transfers, r->layer_sorts,
           cli_bytes((uint64_t)(r->attended_bytes_per_token / c->model.n_layers)));
    if (r->gpu_attended_bytes_per_token > 0)
        printf(", %s on GPUs", cli_bytes((uint64_t)(r->gpu_attended_bytes_per_token / c->model.n_layers)));
    putchar('\n');
    if (r->n_whole + r->n_spread > 0)
        printf(
            "auto            %s, which most get: the runtime would leave %u requests on one device each and spread %u "
            "over all\n",
            nkv_sim_mapping_name(r->mapping), r->n_whole, r->n_spread);
    if (r->layer_reduce_messages > 0)
        printf("selection       per token and layer %.4g messages with scores, %.4g with lists, %s between devices; "
               "rounds %.4f ms per layer, %.3f ms per step\n",
               r->layer_reduce_messages, r->layer_list_messages, cli_bytes((uint64_t)r->layer_select_bytes),
               r->layer_select_ms, r->layer_select_ms * c->model.n_layers);
}

static void print_text(const struct sim_options *o, const struct nkv_sim_report *r)
{
    const struct nkv_sim_config *c = &o->config;
    char limited[64] = "";

    if (c->batch == 0 && r->n_fit > r->batch)
        snprintf(limited, sizeof limited, " (the most a batch can be; %u fit)", r->n_fit);
    printf("simulated: %s, %s, %u tokens, %s, %u GPUs + %u PNM devices\n", o->machine, c->model.name, c->context_tokens,
           nkv_mode_name(c->mode), c->n_gpus, c->n_pnm);
    printf("batch           %u requests%s, budget %s%u tokens, %u of them on the GPUs; %.0f %% of the KV capacity\n",
           r->batch, limited, c->mode == NKV_MODE_FULL ? "all " : "", r->budget_tokens, r->steady_tokens,
           100 * r->kv_capacity_used);
    printf("throughput      %.1f tokens/s, step %.3f ms\n", r->tokens_per_s, r->step_ms);
    for (enum nkv_sim_part p = 0; p < NKV_SIM_PART_COUNT; p++)
        if (r->breakdown_ms[p] > 0 || r->busy_ms[p] > 0)
            printf("  %-12s %10.3f ms on the critical path, %10.3f ms of work\n", nkv_sim_part_name(p),
                   r->breakdown_ms[p], r->busy_ms[p]);
    printf("busy            GPUs %.0f %%, PNM devices %.0f %%\n", 100 * r->gpu_utilisation, 100 * r->pnm_utilisation);
    printf("recall          %.2f +- %.2f pages per layer and request (%u samples)\n", r->recalled_pages,
           r->recalled_pages_error, r->n_samples);
    printf("link            %s per token, %s of it recalled pages\n", cli_bytes((uint64_t)r->link_bytes_per_token),
           cli_bytes((uint64_t)r->recall_bytes_per_token));
    print_mapping(c, r);
    print_energy(r);
    printf(
        "cost            %.2f $/h, %.0f tokens/$, %.3f $/Mtoken (GPUs and cards); %.3f $/Mtoken with hosts, switches, "
        "memory and PUE\n",
        r->usd_per_hour, r->tokens_per_usd, r->usd_per_mtoken, r->full_usd_per_mtoken);
}

static json_t *parts_json(const double ms[NKV_SIM_PART_COUNT])
{
    json_t *object = json_object();

    for (enum nkv_sim_part p = 0; p < NKV_SIM_PART_COUNT; p++)
        json_object_set_new(object, nkv_sim_part_name(p), json_real(ms[p]));
    return object;
}

static json_t *accounts_json(const double joules[NKV_SIM_ACCOUNT_COUNT])
{
    json_t *object = json_object();

    for (enum nkv_sim_account a = 0; a < NKV_SIM_ACCOUNT_COUNT; a++)
        json_object_set_new(object, nkv_sim_account_name(a), json_real(joules[a]));
    return object;
}

static json_t *mapping_json(const struct nkv_sim_config *c, const struct nkv_sim_report *r)
{
    return json_pack("{s:s, s:I, s:{s:I, s:I}, s:f, s:f, s:{s:f, s:f, s:f, s:f, s:f}, s:f, s:f}", "kv_parallel",
                     nkv_sim_mapping_name(r->mapping), "group", (json_int_t)r->mapping_group, "auto", "whole",
                     (json_int_t)r->n_whole, "spread", (json_int_t)r->n_spread, "attended_bytes_per_token",
                     r->attended_bytes_per_token, "gpu_attended_bytes_per_token", r->gpu_attended_bytes_per_token,
                     "per_token_and_layer", "transfers", r->layer_transfers, "sorts", r->layer_sorts, "reduce_messages",
                     r->layer_reduce_messages, "list_messages", r->layer_list_messages, "select_bytes",
                     r->layer_select_bytes, "select_ms_per_layer", r->layer_select_ms, "select_ms_per_step",
                     r->layer_select_ms * c->model.n_layers);
}

static int print_json(const struct sim_options *o, const struct nkv_sim_machine *machine,
                      const struct nkv_sim_report *r)
{
    json_t *object = json_pack(
        "{s:s, s:s, s:f, s:f, s:I, s:I, s:I, s:o, s:o, s:{s:f, s:f}, s:o, s:f, s:f, s:f, s:{s:f, s:f, s:f}}", "schema",
        "nearkv.sim/1", "kind", "simulated", "tokens_per_s", r->tokens_per_s, "step_ms", r->step_ms, "batch",
        (json_int_t)r->batch, "budget_tokens", (json_int_t)r->budget_tokens, "steady_tokens",
        (json_int_t)r->steady_tokens, "breakdown_ms", parts_json(r->breakdown_ms), "busy_ms", parts_json(r->busy_ms),
        "utilisation", "gpu", r->gpu_utilisation, "pnm", r->pnm_utilisation, "energy_j_per_token",
        accounts_json(r->energy_j), "usd_per_hour", r->usd_per_hour, "tokens_per_usd", r->tokens_per_usd,
        "usd_per_mtoken", r->usd_per_mtoken, "full_cost", "usd_per_hour", r->full_usd_per_hour, "tokens_per_usd",
        r->full_tokens_per_usd, "usd_per_mtoken", r->full_usd_per_mtoken);

    json_object_update_new(object, json_pack("{s:I, s:f, s:f, s:I, s:f, s:f, s:f, s:o, s:o}", "requests_that_fit",
                                             (json_int_t)r->n_fit, "recalled_pages_per_layer_request",
                                             r->recalled_pages, "recalled_pages_error", r->recalled_pages_error,
                                             "samples", (json_int_t)r->n_samples, "steady_hit_ratio", r->steady_hit,
                                             "link_bytes_per_token", r->link_bytes_per_token, "recall_bytes_per_token",
                                             r->recall_bytes_per_token, "mapping", mapping_json(&o->config, r),
                                             "assumptions", sim_assumptions(o, machine, r)));
    return text_print_json(object);
}

int sim_run_main(int argc, char **argv)
{
    struct run_options o = {0};
    struct nkv_sim_machine *machine;
    struct nkv_sim_report report;
    int rc, status;

    sim_options_init(&o.sim);
    rc = read_options(argc, argv, &o);
    if (rc != CLI_OK)
        return rc;
    if (o.help) {
        print_usage(stdout);
        return CLI_OK;
    }
    rc = sim_options_check_output(&o.sim, "--timeline", o.sim.config.timeline);
    if (rc == CLI_OK)
        rc = sim_options_open(&o.sim, &machine);
    if (rc != CLI_OK)
        return rc;
    status = nkv_sim_run(&o.sim.config, &report);
    if (status < 0)
        rc = cli_refused(NULL, status);
    else if (o.json)
        rc = print_json(&o.sim, machine, &report);
    else
        print_text(&o.sim, &report);
    nkv_sim_machine_close(machine);
    return rc;
}
