/* SPDX-License-Identifier: Apache-2.0 */
/* The paper's claims, with a small sample: the calibration is kept, and png never loses to pnm. */
#include "rig.h"

#include "sim/claims.h"

struct shared {
    struct nkv_sim_machine *server, *rack;
    struct nkv_sim_paper *paper;
};

static uint64_t told, told_total;

static int count_progress(void *arg, uint64_t n_done, uint64_t n_total)
{
    told = n_done > told ? n_done : told;
    told_total = n_total;
    return *(const int *)arg;
}

static struct nkv_sim_paper_options options_of(const struct shared *s, int *stop)
{
    struct nkv_sim_paper_options options = {.size = sizeof options,
                                            .server = s->server,
                                            .rack = s->rack,
                                            .n_threads = 2,
                                            .progress = count_progress,
                                            .progress_arg = stop};

    nkv_sim_paper_config_init(&options.config);
    options.config.n_layers = 1;
    options.config.n_steps = 2;
    options.config.n_streams = 1;
    return options;
}

static int setup(void **state)
{
    static struct shared s;
    int go_on = 0;
    struct nkv_sim_paper_options options;

    assert_int_equal(nkv_sim_machine_open("paper-server", &s.server), 0);
    assert_int_equal(nkv_sim_machine_open("paper-rack", &s.rack), 0);
    options = options_of(&s, &go_on);
    assert_int_equal(nkv_sim_paper_run(&options, &s.paper), 0);
    *state = &s;
    return 0;
}

static int teardown(void **state)
{
    struct shared *s = *state;

    nkv_sim_paper_close(s->paper);
    nkv_sim_machine_close(s->server);
    nkv_sim_machine_close(s->rack);
    return 0;
}

static void every_point_is_simulated(void **state)
{
    const struct shared *s = *state;

    for (uint32_t i = 0; i < s->paper->n_points; i++)
        if (s->paper->points[i].status < 0)
            fail_msg("%s %u tokens %u+%u: %s", s->paper->points[i].model, s->paper->points[i].context_tokens,
                     s->paper->points[i].n_gpus, s->paper->points[i].n_pnm, s->paper->points[i].error);
    assert_int_equal(told_total, s->paper->n_points);
    assert_true(told > 0 && told <= told_total);
}

/* The claims of all points but the rack's. */
static void evaluate(const struct nkv_sim_machine *server, const struct nkv_sim_config *config,
                     struct nkv_sim_claim *claims)
{
    struct sim_grid grid;
    struct sim_grid_run run = {.server = server, .rack = server, .config = *config};

    assert_int_equal(nkv_team_open(2, NULL, NULL, &run.team), 0);
    assert_int_equal(sim_grid_open(SIM_GRID_CLAIMS, &grid), 0);
    assert_int_equal(sim_grid_simulate(&grid, &run), 0);
    sim_claims_evaluate(&grid, claims);
    sim_grid_close(&grid);
    nkv_team_close(run.team);
}

static const struct nkv_sim_claim *claim_of(const struct nkv_sim_claim *claims, const char *id)
{
    for (uint32_t i = 0; i < sim_n_claims; i++)
        if (strcmp(claims[i].id, id) == 0)
            return &claims[i];
    fail_msg("no claim %s", id);
    return NULL;
}

/* With the whole sample. R8 and what its note says of it: below. */
static void claims_are_near_the_paper(void **state)
{
    const struct shared *s = *state;
    struct nkv_sim_claim claims[32];
    struct nkv_sim_config config;

    nkv_sim_paper_config_init(&config);
    evaluate(s->server, &config, claims);
    assert_int_equal(sim_n_claims, 16);
    for (uint32_t i = 0; i < sim_n_claims; i++)
        if (strcmp(claims[i].id, "R8") != 0 && strcmp(claims[i].id, "R13") != 0 &&
            claims[i].verdict != NKV_SIM_REPRODUCED)
            fail_msg("%s: %g, the paper %g", claims[i].id, claims[i].ours, claims[i].paper);
    assert_true(sim_claims_error(claims) > 0 && sim_claims_error(claims) <= 0.06);
    assert_int_equal(claim_of(s->paper->claims, "R13")->verdict, NKV_SIM_REPRODUCED);
    for (uint32_t a = 0; a < NKV_SIM_ACCOUNT_COUNT; a++)
        assert_true(s->paper->energy_ratios[a] > 1);
}

/* R8 holds where the baseline recalls cheaply, and there other claims are farther away than a quarter. */
static void r8_excludes_others(void **state)
{
    const struct shared *s = *state;
    struct nkv_sim_machine *unshared;
    struct nkv_sim_claim claims[32];
    struct nkv_sim_config config;

    nkv_sim_paper_config_init(&config);
    config.n_layers = 1;
    config.n_streams = 1;
    assert_int_equal(nkv_sim_machine_copy(s->server, &unshared), 0);
    assert_int_equal(nkv_sim_machine_set(unshared, "link.shared_recall=0"), 0);
    evaluate(unshared, &config, claims);
    nkv_sim_machine_close(unshared);
    assert_int_equal(claim_of(claims, "R8")->verdict, NKV_SIM_REPRODUCED);
    assert_int_equal(claim_of(claims, "R9")->verdict, NKV_SIM_OFF);
    assert_int_equal(claim_of(claims, "R10")->verdict, NKV_SIM_OFF);
    snprintf(config.budget, sizeof config.budget, "4096");
    evaluate(s->server, &config, claims);
    assert_int_equal(claim_of(claims, "R8")->verdict, NKV_SIM_REPRODUCED);
    assert_int_equal(claim_of(claims, "R2")->verdict, NKV_SIM_OFF);
    assert_int_equal(claim_of(claims, "R7a")->verdict, NKV_SIM_OFF);
    assert_true(*claim_of(claims, "R8")->note != '\0');
}

static void the_adaptive_share_never_loses_to_pnm(void **state)
{
    const struct nkv_sim_paper *paper = ((const struct shared *)*state)->paper;
    uint32_t n = 0;

    for (uint32_t i = 2; i < paper->n_points; i++) {
        const struct nkv_sim_point *p = &paper->points[i], *png = p - 1, *pnm = p - 2;

        if (!p->adaptive)
            continue;
        assert_true(pnm->mode == NKV_MODE_PNM && png->mode == NKV_MODE_PNG && !png->adaptive);
        assert_true(pnm->n_pnm == p->n_pnm && pnm->context_tokens == p->context_tokens);
        assert_true(p->report.tokens_per_s >= pnm->report.tokens_per_s);
        assert_true(p->report.tokens_per_s >= png->report.tokens_per_s);
        n++;
    }
    assert_int_equal(n, 7 * 4 + 4);
}

/* A claim follows its points: change one and it changes. */
static void claims_follow_the_points(void **state)
{
    const struct shared *s = *state;
    struct sim_grid grid = {.n_points = s->paper->n_points, .max_points = s->paper->n_points};
    struct nkv_sim_claim claims[32];
    double ratio;

    grid.points = calloc(grid.n_points, sizeof *grid.points);
    memcpy(grid.points, s->paper->points, grid.n_points * sizeof *grid.points);
    for (uint32_t i = 0; i < grid.n_points; i++) {
        struct nkv_sim_point *p = &grid.points[i];

        if (strcmp(p->model, "llama-3.1-70b") == 0 && p->context_tokens == 131072 && p->mode == NKV_MODE_RECALL)
            p->report.tokens_per_s /= 2;
    }
    sim_claims_evaluate(&grid, claims);
    ratio = claims[2].ours / s->paper->claims[2].ours;
    assert_string_equal(claims[2].id, "R2");
    rig_near(ratio, 2, 1e-9);
    grid.n_points = 0;
    sim_claims_evaluate(&grid, claims);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(isnan(claims[i].ours));
        assert_int_equal(claims[i].verdict, NKV_SIM_UNKNOWN);
    }
    assert_true(isnan(sim_claims_error(claims)));
    free(grid.points);
}

/* Of the points with one PNM device none: what is about all numbers of devices is unknown, the rest is as before. */
static void claims_need_all_their_points(void **state)
{
    const struct shared *s = *state;
    struct sim_grid grid = {.n_points = s->paper->n_points, .max_points = s->paper->n_points};
    struct nkv_sim_claim claims[32];
    static const char *const about[] = {"R5", "R6", "R7a", "R7b", "R8", "R11", "R12"};

    grid.points = calloc(grid.n_points, sizeof *grid.points);
    memcpy(grid.points, s->paper->points, grid.n_points * sizeof *grid.points);
    for (uint32_t i = 0; i < grid.n_points; i++)
        if (grid.points[i].n_pnm == 1)
            grid.points[i].status = NKV_ENOSPC;
    sim_claims_evaluate(&grid, claims);
    for (uint32_t i = 0; i < sim_n_claims; i++) {
        bool missing = false;

        for (size_t k = 0; k < sizeof about / sizeof *about; k++)
            missing |= strcmp(claims[i].id, about[k]) == 0;
        assert_int_equal(claims[i].verdict == NKV_SIM_UNKNOWN, missing);
        assert_int_equal(isnan(claims[i].ours), missing);
        if (!missing)
            rig_near(claims[i].ours, s->paper->claims[i].ours, 1e-12);
    }
    assert_true(sim_claims_error(claims) > 0);
    free(grid.points);
}

static void it_can_be_stopped(void **state)
{
    int stop = 1;
    struct nkv_sim_paper_options options = options_of(*state, &stop);
    struct nkv_sim_paper *paper;

    assert_int_equal(nkv_sim_paper_run(&options, &paper), NKV_ECANCELED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_point_is_simulated), cmocka_unit_test(claims_are_near_the_paper),
        cmocka_unit_test(r8_excludes_others),       cmocka_unit_test(the_adaptive_share_never_loses_to_pnm),
        cmocka_unit_test(claims_follow_the_points), cmocka_unit_test(claims_need_all_their_points),
        cmocka_unit_test(it_can_be_stopped),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
