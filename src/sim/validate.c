/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulator against what is known from elsewhere: one list of checks, each a number with the limits that it must
 * keep. Parts: validate_anchors.c (latencies and ratios that others measured), validate_forms.c (the table of LPDDR
 * efficiencies, formulas of tiny machines).
 *
 * Invariant: a check never has a limit of its own making: anchors may be off by 15 %, ratios in kind by what their
 * publication leaves open, the table and the formulas by rounding.
 *
 * What this machine itself measures is not here: the library knows no clock but the simulated one (cli/sim_self.c).
 */
#include "sim/validate.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"

const char *nkv_sim_check_group_name(enum nkv_sim_check_group group)
{
    static const char *const names[NKV_SIM_CHECK_GROUP_COUNT] = {"anchor", "in_kind", "memory", "closed_form"};

    return (unsigned)group < NKV_SIM_CHECK_GROUP_COUNT ? names[group] : "?";
}

struct nkv_sim_check *sim_check_add(struct sim_checks *checks, const struct nkv_sim_check *check)
{
    struct nkv_sim_check *added = &checks->all[checks->n++];

    *added = *check;
    added->holds = check->simulated >= check->low && check->simulated <= check->high;
    return added;
}

static int check_all(const struct nkv_sim_machine *server, struct sim_checks *checks)
{
    TRY(sim_check_anchors(server, checks));
    TRY(sim_check_ratios(checks));
    TRY(sim_check_memory(checks));
    return sim_check_closed(checks);
}

static void sum_up(struct nkv_sim_validation *validation)
{
    double sum = 0, n = 0;

    for (uint32_t i = 0; i < validation->n_checks; i++) {
        const struct nkv_sim_check *check = &validation->checks[i];
        double error = fabs(check->simulated / check->expected - 1);

        if (check->group != NKV_SIM_CHECK_ANCHOR)
            continue;
        sum += error;
        n++;
        validation->anchor_max_error = fmax(validation->anchor_max_error, error);
    }
    validation->anchor_mean_error = sum / n;
}

int nkv_sim_validate(const struct nkv_sim_machine *server, struct nkv_sim_validation **validation_out)
{
    struct nkv_sim_validation *validation;
    struct sim_checks *checks;
    int status;

    TRY(nkv_alloc(1, sizeof *checks, &checks));
    status = check_all(server, checks);
    if (status == 0)
        status = nkv_alloc(1, sizeof *validation, &validation);
    if (status == 0) {
        status = nkv_alloc(checks->n, sizeof *validation->checks, &validation->checks);
        if (status < 0)
            nkv_free(validation);
    }
    if (status == 0) {
        validation->n_checks = checks->n;
        memcpy(validation->checks, checks->all, checks->n * sizeof *checks->all);
        sum_up(validation);
        *validation_out = validation;
    }
    nkv_free(checks);
    return status;
}

void nkv_sim_validation_close(struct nkv_sim_validation *validation)
{
    if (validation)
        nkv_free(validation->checks);
    nkv_free(validation);
}
