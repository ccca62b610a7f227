/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv sim paper: the paper's configurations with one parameter set, its claims against ours, and its figures. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arguments.h"
#include "cli.h"
#include "progress.h"
#include "sim.h"
#include "text.h"

struct paper_options {
    struct sim_options sim;
    const char *rack, *out;
    uint32_t n_threads;
    bool json, no_tornado, help;
};

static void print_usage(FILE *file)
{
    fputs(
        "usage: nearkv sim paper [options]\n"
        "Simulates every configuration of the paper's section 6 with one parameter set, and compares R1-R13.\n\n"
        "  --out DIR        data (CSV) and figures 3, 8, 10-14 (gnuplot scripts; SVG, PNG where gnuplot is "
        "installed) go there\n"
        "  --machine NAME   the server (paper-server)\n"
        "  --rack NAME      the rack (paper-rack)\n"
        "  --budget RULE    tokens attended per step, or a rule (52*context^0.5)\n"
        "  --recall WHEN    same-step, as the paper, or next-step (same-step)\n"
        "  --page N         tokens per page (32)\n"
        "  --drift X, --correlation X, --seed N   of the page scores\n"
        "  --set KEY=VALUE  a number of both machines\n"
        "  --steps N, --layers N, --streams N     size of each point's sample (4, at most the model's 4, by context)\n"
        "  --no-tornado     leaves out which assumption moves which claim\n"
        "  --threads N      points at a time (one per CPU)\n"
        "  --json           one JSON object on stdout\n",
        file);
}

static int read_valued(struct paper_options *o, const char *flag, const char *arg)
{
    static const char *const shared[] = {"machine", "budget", "recall", "page",   "drift",  "correlation",
                                         "seed",    "set",    "steps",  "layers", "streams"};

    if (strcmp(flag, "out") == 0)
        o->out = arg;
    else if (strcmp(flag, "rack") == 0)
        o->rack = arg;
    else if (strcmp(flag, "threads") == 0)
        return cli_u32("--threads", arg, 1, 1024, &o->n_threads);
    else
        for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
            if (strcmp(flag, shared[i]) == 0)
                return sim_flag_find(flag)->read(&o->sim, flag, arg);
    if (o->out == arg || o->rack == arg)
        return CLI_OK;
    return cli_usage("unrecognized option '--%s': see nearkv sim paper --help", flag);
}

static int read_options(int argc, char **argv, struct paper_options *o)
{
    for (int at = 1; at < argc; at++) {
        if (strcmp(argv[at], "--json") == 0) {
            o->json = true;
        } else if (arguments_is_help(argv[at])) {
            o->help = true;
        } else if (strcmp(argv[at], "--no-tornado") == 0) {
            o->no_tornado = true;
        } else if (strncmp(argv[at], "--", 2) != 0) {
            return cli_usage("unexpected argument '%s'", argv[at]);
        } else {
            const char *flag = argv[at] + 2;
            int rc;

            if (at + 1 == argc)
                return cli_usage("--%s needs a value", flag);
            rc = read_valued(o, flag, argv[++at]);
            if (rc != CLI_OK)
                return rc;
        }
    }
    return CLI_OK;
}

/* ---- The table ---- */

static void print_value(const struct nkv_sim_claim *claim, double value)
{
    if (isnan(value))
        printf(" %10s", "-");
    else if (claim->numeric)
        printf(" %10.4g", value);
    else
        printf(" %10s", value > 0 ? "holds" : "does not");
}

const char *sim_verdict_name(enum nkv_sim_verdict verdict)
{
    static const char *const names[] = {
        [NKV_SIM_REPRODUCED] = "reproduced", [NKV_SIM_OFF] = "off", [NKV_SIM_UNKNOWN] = "not simulated"};

    return names[verdict];
}

/* The points that could not be simulated. returns: their number; *first_out: one of them, or NULL. */
static uint32_t missing_points(const struct nkv_sim_paper *paper, const struct nkv_sim_point **first_out)
{
    uint32_t n = 0;

    *first_out = NULL;
    for (uint32_t i = 0; i < paper->n_points; i++)
        if (paper->points[i].status < 0 && n++ == 0)
            *first_out = &paper->points[i];
    return n;
}

static void print_missing(const struct nkv_sim_paper *paper)
{
    const struct nkv_sim_point *first;
    uint32_t n = missing_points(paper, &first);

    if (n > 0)
        printf(
            "%u of %u points could not be simulated, nor claims about them; the first (%s, %u tokens, %s, %u GPUs, %u "
            "PNM): %s\n",
            n, paper->n_points, first->model, first->context_tokens, nkv_mode_name(first->mode), first->n_gpus,
            first->n_pnm, first->error);
}

static void print_claims(const struct nkv_sim_paper *paper)
{
    const struct nkv_sim_point *first;

    printf("%-4s %-70s %10s %10s %6s  %s\n", "", "claim", "paper", "ours", "ratio", "verdict");
    for (uint32_t i = 0; i < paper->n_claims; i++) {
        const struct nkv_sim_claim *claim = &paper->claims[i];

        printf("%-4s %-70s", claim->id, claim->text);
        print_value(claim, claim->paper);
        print_value(claim, claim->ours);
        if (claim->numeric && claim->verdict != NKV_SIM_UNKNOWN)
            printf(" %6.2f  %s\n", claim->ours / claim->paper, sim_verdict_name(claim->verdict));
        else
            printf(" %6s  %s\n", "", sim_verdict_name(claim->verdict));
        if (claim->verdict == NKV_SIM_OFF && *claim->note)
            printf("     %s\n", claim->note);
    }
    print_missing(paper);
    if (!isnan(paper->mean_abs_log))
        printf("mean |log(ours/paper)| over the numbers of R1-R10%s: %.3f\n",
               missing_points(paper, &first) ? " that are known" : "", paper->mean_abs_log);
    for (enum nkv_sim_account a = 0; a < NKV_SIM_ACCOUNT_COUNT && !isnan(paper->energy_ratios[0]); a++)
        printf("%s %s %.1f%s", a == 0 ? "R3 by account:" : "", nkv_sim_account_name(a), paper->energy_ratios[a],
               a + 1 < NKV_SIM_ACCOUNT_COUNT ? "," : "\n");
}

static void print_assumptions(const struct nkv_sim_paper *paper, bool tornado)
{
    printf("\nassumptions that the paper leaves open\n");
    for (uint32_t i = 0; i < paper->n_assumptions; i++)
        printf("  %-26s %-16s (%s .. %s) %s\n", paper->assumptions[i].name, paper->assumptions[i].chosen,
               paper->assumptions[i].low, paper->assumptions[i].high, paper->assumptions[i].why);
    if (!tornado)
        return;
    printf("\nwhat moves each claim most (from smaller samples than the claims above: %u layer, %u steps, %u sequence "
           "with "
           "scores per point; so an end that is the value chosen gives nearly, not exactly, the number above)\n",
           paper->tornado_layers, paper->tornado_steps, paper->tornado_streams);
    for (uint32_t i = 0; i < paper->n_claims; i++) {
        const struct nkv_sim_claim *claim = &paper->claims[i];
        const struct nkv_sim_assumption *mover = &paper->assumptions[claim->mover];

        if (isnan(claim->mover_low))
            printf("  %-4s %s\n", claim->id, isnan(claim->ours) ? "not simulated" : "the rack is not varied");
        else if (claim->mover_low == claim->mover_high)
            printf("  %-4s nothing within these ranges\n", claim->id);
        else
            printf("  %-4s %-26s %s: %.4g, %s: %.4g\n", claim->id, mover->name, mover->low, claim->mover_low,
                   mover->high, claim->mover_high);
    }
}

/* png against pnm: the fixed share, and the adaptive one. */
static void print_adaptive(const struct nkv_sim_paper *paper)
{
    uint32_t n = 0, n_worse = 0, n_adaptive_worse = 0;

    for (uint32_t i = 2; i < paper->n_points; i++) {
        const struct nkv_sim_point *p = &paper->points[i];
        const struct nkv_sim_report *pnm = &paper->points[i - 2].report, *png = &paper->points[i - 1].report;

        if (!p->adaptive || p->status < 0 || paper->points[i - 1].status < 0 || paper->points[i - 2].status < 0)
            continue;
        n++;
        n_worse += png->tokens_per_s < pnm->tokens_per_s;
        n_adaptive_worse += p->report.tokens_per_s < pnm->tokens_per_s;
    }
    printf("\npng slower than pnm: with the paper's steady share in %u of %u configurations, with the adaptive one in "
           "%u\n",
           n_worse, n, n_adaptive_worse);
}

/* ---- JSON ---- */

static json_t *number_json(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *claim_json(const struct nkv_sim_claim *claim)
{
    json_t *object = json_pack("{s:s, s:s, s:s, s:s}", "id", claim->id, "text", claim->text, "verdict",
                               sim_verdict_name(claim->verdict), "note", claim->note);

    json_object_set_new(object, "paper", claim->numeric ? json_real(claim->paper) : json_boolean(claim->paper > 0));
    if (claim->numeric || isnan(claim->ours))
        json_object_set_new(object, "ours", number_json(claim->ours));
    else
        json_object_set_new(object, "ours", json_boolean(claim->ours > 0));
    return object;
}

static json_t *tornado_json(const struct nkv_sim_paper *paper, uint32_t assumption)
{
    json_t *object = json_object();

    for (uint32_t c = 0; c < paper->n_claims; c++)
        json_object_set_new(object, paper->claims[c].id,
                            json_pack("[o, o]", number_json(paper->tornado[2 * assumption * paper->n_claims + c]),
                                      number_json(paper->tornado[(2 * assumption + 1) * paper->n_claims + c])));
    return object;
}

static json_t *assumptions_json(const struct nkv_sim_paper *paper, bool tornado)
{
    json_t *array = json_array();

    for (uint32_t i = 0; i < paper->n_assumptions; i++) {
        const struct nkv_sim_assumption *a = &paper->assumptions[i];
        json_t *object = json_pack("{s:s, s:s, s:s, s:s, s:s}", "name", a->name, "chosen", a->chosen, "low", a->low,
                                   "high", a->high, "why", a->why);

        if (tornado)
            json_object_set_new(object, "claims", tornado_json(paper, i));
        json_array_append_new(array, object);
    }
    return array;
}

static int print_json(const struct paper_options *o, const struct nkv_sim_paper *paper,
                      const struct nkv_sim_machine *server)
{
    json_t *claims = json_array(), *energy = json_object();
    const struct nkv_sim_point *first;
    json_int_t n_missing = missing_points(paper, &first);

    for (uint32_t i = 0; i < paper->n_claims; i++)
        json_array_append_new(claims, claim_json(&paper->claims[i]));
    for (enum nkv_sim_account a = 0; a < NKV_SIM_ACCOUNT_COUNT; a++)
        json_object_set_new(energy, nkv_sim_account_name(a), number_json(paper->energy_ratios[a]));
    return text_print_json(json_pack(
        "{s:s, s:s, s:o, s:o, s:o, s:o, s:{s:I, s:I, s:s?}, s:{s:I, s:I, s:I}, s:o}", "schema", "nearkv.sim.paper/1",
        "kind", "simulated", "parameters", sim_shared_assumptions(&o->sim, server), "claims", claims, "mean_abs_log",
        number_json(paper->mean_abs_log), "r3_by_account", energy, "points", "all", (json_int_t)paper->n_points,
        "not_simulated", n_missing, "first_error", first ? first->error : NULL, "tornado_sample", "layers",
        (json_int_t)paper->tornado_layers, "steps", (json_int_t)paper->tornado_steps, "streams",
        (json_int_t)paper->tornado_streams, "assumptions", assumptions_json(paper, !o->no_tornado)));
}

/* ---- Main ---- */

static int open_machine(const struct paper_options *o, const char *name, struct nkv_sim_machine **machine_out)
{
    if (nkv_sim_machine_open(name, machine_out) < 0)
        return cli_fail("%s", nkv_last_error());
    for (uint32_t i = 0; i < o->sim.n_sets; i++)
        if (nkv_sim_machine_set(*machine_out, o->sim.sets[i]) < 0)
            return cli_usage("--set %s: %s", o->sim.sets[i], nkv_last_error());
    return CLI_OK;
}

static int run(const struct paper_options *o, const struct nkv_sim_machine *server, const struct nkv_sim_machine *rack,
               struct nkv_sim_paper **paper_out)
{
    struct progress progress;
    struct nkv_sim_paper_options options = {.size = sizeof options,
                                            .server = server,
                                            .rack = rack,
                                            .config = o->sim.config,
                                            .n_threads = o->n_threads,
                                            .tornado = !o->no_tornado,
                                            .progress = progress_update,
                                            .progress_arg = &progress};
    int status;

    progress_catch_interrupt();
    progress_start(&progress, "sim paper", "points");
    status = nkv_sim_paper_run(&options, paper_out);
    progress_end(&progress);
    return status < 0 ? cli_refused(NULL, status) : CLI_OK;
}

static int report(const struct paper_options *o, const struct nkv_sim_machine *server,
                  const struct nkv_sim_paper *paper)
{
    int rc = o->out ? sim_figures_write(paper, o->out) : CLI_OK;

    if (rc == CLI_OK && o->json)
        return print_json(o, paper, server);
    if (rc == CLI_OK) {
        print_claims(paper);
        print_adaptive(paper);
        print_assumptions(paper, !o->no_tornado);
    }
    return rc;
}

int sim_paper_main(int argc, char **argv)
{
    struct paper_options o = {.rack = "paper-rack"};
    struct nkv_sim_machine *server = NULL, *rack = NULL;
    struct nkv_sim_paper *paper = NULL;
    int rc;

    sim_options_init(&o.sim);
    nkv_sim_paper_config_init(&o.sim.config);
    rc = read_options(argc, argv, &o);
    if (rc != CLI_OK)
        return rc;
    if (o.help) {
        print_usage(stdout);
        return CLI_OK;
    }
    rc = open_machine(&o, o.sim.machine, &server);
    if (rc == CLI_OK)
        rc = open_machine(&o, o.rack, &rack);
    if (rc == CLI_OK && o.out)
        rc = sim_figures_prepare(o.out); /* before the minute that the simulation takes */
    if (rc == CLI_OK)
        rc = run(&o, server, rack, &paper);
    if (rc == CLI_OK)
        rc = report(&o, server, paper);
    nkv_sim_paper_close(paper);
    nkv_sim_machine_close(server);
    nkv_sim_machine_close(rack);
    return rc;
}
