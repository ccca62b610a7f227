/* SPDX-License-Identifier: Apache-2.0 */
/* Laws of a simulated run: what is charged is what was planned, faster is never slower, the same seed is the same
 * report. */
#include "rig.h"

static const enum nkv_mode sparse_modes[] = {NKV_MODE_RECALL, NKV_MODE_PNM, NKV_MODE_PNG};

/* ---- Conservation: the plan log, counted by hand, against the report. ---- */

struct plan {
    uint32_t first_pos; /* of the measured steps */
    uint64_t n_appends, n_selects, n_attends, n_chosen_tokens, n_scored_pages;
    uint32_t n_layers;
};

static uint32_t field(const char *line, const char *name)
{
    const char *at = strstr(line, name);

    return at ? (uint32_t)strtoul(at + strlen(name), NULL, 10) : 0;
}

static void count_line(void *arg, const char *line)
{
    struct plan *plan = arg;
    uint32_t pos = field(line, " pos="), n_pages = 0;

    if (pos < plan->first_pos || pos > 65536)
        return;
    if (strncmp(line, "set ", 4) == 0) {
        const char *at = strchr(line, ':') + 1;

        for (char *end; strtoul(at, &end, 10), end != at; at = end)
            n_pages++;
        plan->n_chosen_tokens += 32ull * n_pages - (32 - (pos + 1) % 32) % 32;
        return;
    }
    plan->n_appends += strstr(line, " append ") != NULL;
    plan->n_attends += strstr(line, " attend ") != NULL;
    if (strstr(line, " select ")) {
        plan->n_selects++;
        plan->n_scored_pages += pos / 32 + 1 - field(line, " sink=") - field(line, " recent=");
    }
}

static void charges_are_those_of_the_plan(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();

    (void)state;
    for (uint32_t m = 1; m < 3; m++) { /* pnm and png: everything on the devices, or split */
        struct nkv_sim_config config = rig_config(machine, sparse_modes[m]);
        struct plan plan = {.first_pos = config.context_tokens - config.n_steps};
        struct nkv_sim_report r;
        double per_token, kv = 2.0 * 8 * 128 * 2, digest = 8 * 2.0 * 128 * 2, attended, pnm_bytes, pnm_flops;

        config.plan_log = count_line;
        config.plan_log_arg = &plan;
        r = rig_run(&config);
        assert_int_equal(plan.n_appends, config.batch * config.n_layers * config.n_steps);
        assert_int_equal(plan.n_selects, plan.n_appends);
        per_token = (double)config.model.n_layers / config.n_layers / (config.batch * config.n_steps);
        attended = (double)plan.n_chosen_tokens;
        pnm_bytes = per_token * ((double)plan.n_appends * (kv + digest / 32) + (double)plan.n_scored_pages * digest +
                                 attended * kv);
        pnm_flops = per_token * ((double)plan.n_appends * 2 * 8 * 128 + (double)plan.n_scored_pages * 4 * 32 * 128 +
                                 attended * 4 * 32 * 128);
        if (config.mode == NKV_MODE_PNM) {
            assert_int_equal(plan.n_attends, plan.n_appends);
            rig_near(r.pnm_bytes_per_token, pnm_bytes, 1e-9);
            rig_near(r.pnm_flops_per_token, pnm_flops, 1e-9);
            rig_near(r.link_bytes_per_token, 32 * ((2.0 * 8 * 128 + 32 * 128) * 2 + 32 * 128 * 2 + 32 * 8), 1);
        } else { /* what the GPUs attend, the devices do not; recalled pages are read besides */
            double fc = (double)nkv_sim_model_parameters(&config.model) * 2 / config.batch;
            double gpu_attend = r.gpu_bytes_per_token - fc;

            rig_near(r.pnm_bytes_per_token + gpu_attend - r.recall_bytes_per_token, pnm_bytes, 1e-6);
            assert_true(gpu_attend > 0);
        }
    }
    nkv_sim_machine_close(machine);
}

static void parts_sum_to_the_whole(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();

    (void)state;
    for (uint32_t m = 0; m < 3; m++)
        for (uint32_t halves = 1; halves <= 2; halves++) {
            struct nkv_sim_config config = rig_config(machine, sparse_modes[m]);
            struct nkv_sim_report r;
            double sum = 0;

            config.micro_batches = halves;
            r = rig_run(&config);
            for (uint32_t part = 0; part < NKV_SIM_PART_COUNT; part++) {
                assert_true(r.breakdown_ms[part] >= 0);
                sum += r.breakdown_ms[part];
            }
            rig_near(sum, r.step_ms, 1e-9);
            rig_near(r.tokens_per_s * r.step_ms / 1e3, r.batch, 1e-9);
            for (uint32_t a = 0; a < NKV_SIM_ACCOUNT_COUNT; a++) {
                rig_near(r.energy_gpu_j[a] + r.energy_pnm_j[a], r.energy_j[a], 1e-12);
                rig_near(r.fc_j[a] + r.attention_j[a], r.energy_j[a], 1e-12);
                assert_true(r.fc_j[a] > 0 && r.attention_j[a] > 0);
            }
            rig_near(r.tokens_per_usd * r.usd_per_mtoken, 1e6, 1e-9);
            assert_true(r.gpu_utilisation > 0 && r.gpu_utilisation <= 1 && r.pnm_utilisation <= 1);
        }
    nkv_sim_machine_close(machine);
}

/* Where recalled pages need the link for longer than anything else takes, that is the step, however few are measured.
 */
static void no_step_is_shorter_than_its_busiest_link(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = rig_config(machine, NKV_MODE_PNG);
    double steps[2];

    (void)state;
    machine->values.link.recall_bandwidth = 2e9;
    config.locality.drift = 1; /* pages change all the time */
    config.steady = 0.75;
    snprintf(config.budget, sizeof config.budget, "context/4");
    for (uint32_t i = 0; i < 2; i++) {
        struct nkv_sim_report r;
        double link_ms;

        config.n_steps = i ? 16 : 2;
        r = rig_run(&config);
        link_ms = 1e3 * r.recall_bytes_per_token * r.batch / machine->values.link.recall_bandwidth;
        assert_true(r.step_ms >= link_ms * (1 - 1e-6));
        assert_true(r.breakdown_ms[NKV_SIM_RECALL] > 0);
        for (uint32_t part = 0; part < NKV_SIM_PART_COUNT; part++)
            assert_true(r.breakdown_ms[part] >= 0);
        steps[i] = r.step_ms;
    }
    rig_near(steps[0], steps[1], 0.1);
    nkv_sim_machine_close(machine);
}

/* A kernel for a whole batch has one floor, and the engine is busy through it. */
static void a_floor_counts_once(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = rig_config(machine, NKV_MODE_PNM);
    struct nkv_sim_report r;

    (void)state;
    machine->values.gpu.attention_floor = 1e-3;
    config.n_pnm = 0;
    config.context_tokens = 4096;
    config.batch = 5;
    r = rig_run(&config);
    rig_near(r.busy_ms[NKV_SIM_ATTEND_GPU], 32, 1e-6);
    rig_near(r.busy_ms[NKV_SIM_SCORE], 32, 1e-6);
    rig_near(r.gpu_utilisation * r.step_ms, r.step_ms - 1e3 * machine->values.gpu.step_overhead, 1e-6);
    nkv_sim_machine_close(machine);
}

/* ---- Monotony: random machines, one rate or time after the other improved, on a fixed plan. ---- */

static const struct {
    const char *key;
    bool rate; /* more is better; else less */
} speeds[] = {
    {"gpu.memory_bandwidth", true},  {"gpu.compute_rate", true},      {"gpu.link_bandwidth", true},
    {"pnm.memory_bandwidth", true},  {"pnm.compute_rate", true},      {"pnm.exp_rate", true},
    {"pnm.sort_rate", true},         {"link.device_bandwidth", true}, {"link.host_bandwidth", true},
    {"link.recall_bandwidth", true}, {"link.latency", false},         {"gpu.attention_floor", false},
    {"gpu.layer_overhead", false},   {"pnm.command_overhead", false}, {"gpu.allreduce_latency", false},
};
#define N_SPEEDS (sizeof speeds / sizeof *speeds)

static double *speed(struct nkv_sim_machine *machine, size_t i)
{
    int key = sim_key_find(speeds[i].key);

    assert_true(key >= 0);
    return sim_value(&machine->values, (uint32_t)key);
}

static void random_config(struct nkv_sim_config *config, uint64_t *random)
{
    config->mode = sparse_modes[rig_random(random) % 3];
    config->same_step_recall = rig_random(random) & 1;
    config->micro_batches = 1 + rig_random(random) % 2;
    config->granularity = rig_random(random) % 4 == 0 ? NKV_SELECT_KV_HEAD : NKV_SELECT_LAYER;
    config->n_gpus = 1u << rig_random(random) % 3;
    config->n_pnm = 1 + (uint32_t)(rig_random(random) % 5);
    config->context_tokens = 8192 + (uint32_t)(rig_random(random) % 8192);
    config->batch = 1 + (uint32_t)(rig_random(random) % 7);
    config->seed = rig_random(random);
    snprintf(config->budget, sizeof config->budget, "%u", 512 + (uint32_t)(rig_random(random) % 2048));
}

static void faster_is_never_slower(void **state)
{
    uint64_t random = 7;

    (void)state;
    for (uint32_t round = 0; round < 24; round++) {
        struct nkv_sim_machine *machine = rig_machine();
        struct nkv_sim_config config = rig_config(machine, NKV_MODE_PNM);
        double before;

        random_config(&config, &random);
        for (size_t i = 0; i < N_SPEEDS; i++)
            *speed(machine, i) *= exp(rig_uniform(&random, -1.5, 1.5));
        before = rig_run(&config).step_ms;
        for (size_t i = 0; i < N_SPEEDS; i++) {
            double *value = speed(machine, i), old = *value, after;

            *value *= speeds[i].rate ? rig_uniform(&random, 1, 4) : rig_uniform(&random, 0, 1e-6);
            after = rig_run(&config).step_ms;
            if (after > before)
                fail_msg("round %u, %s %s with %s from %g to %g: %.9g ms, before %.9g", round,
                         nkv_mode_name(config.mode), config.same_step_recall ? "same step" : "", speeds[i].key, old,
                         *value, after, before);
            *value = old;
        }
        nkv_sim_machine_close(machine);
    }
}

/* Rates without end leave the fixed costs. */
static void infinite_rates_leave_fixed_costs(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = rig_config(machine, NKV_MODE_PNM);
    struct nkv_sim_report r;
    double layer, want;

    (void)state;
    for (size_t i = 0; i < N_SPEEDS; i++)
        if (speeds[i].rate)
            *speed(machine, i) = 1e30;
    config.batch = 2; /* one on each device */
    r = rig_run(&config);
    /* FC; then q, k, v; append, score, attend; then the outputs */
    layer = machine->values.gpu.layer_overhead + 2 * machine->values.link.latency +
            3 * (machine->values.pnm.command_overhead + machine->values.pnm.access_latency);
    want = 1e3 * (32 * layer + machine->values.gpu.layer_overhead + machine->values.gpu.step_overhead);
    rig_near(r.step_ms, want, 1e-3);
    nkv_sim_machine_close(machine);
}

static void more_devices_admit_no_less(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    uint32_t before = 0;

    (void)state;
    for (uint32_t n_pnm = 1; n_pnm <= 8; n_pnm++) {
        struct nkv_sim_config config = rig_config(machine, NKV_MODE_PNM);
        struct nkv_sim_report r;

        config.n_pnm = n_pnm;
        config.context_tokens = 524288;
        config.batch = 0;
        r = rig_run(&config);
        assert_true(r.batch >= before);
        assert_true(r.kv_capacity_used <= 1);
        before = r.batch;
        config.batch = r.batch + 1; /* and admission takes not one more */
        assert_int_equal(nkv_sim_run(&config, &r), NKV_ENOSPC);
    }
    assert_int_equal(before, 8 * 7); /* 550 GB hold 7 requests of 68.7 GB and their digests */
    nkv_sim_machine_close(machine);
}

static void the_same_seed_is_the_same_report(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();

    (void)state;
    for (uint32_t m = 0; m < 3; m++) {
        struct nkv_sim_config config = rig_config(machine, sparse_modes[m]);
        struct nkv_sim_report a = rig_run(&config), b = rig_run(&config);

        assert_memory_equal(&a, &b, sizeof a);
        config.seed++;
        b = rig_run(&config);
        if (config.mode == NKV_MODE_RECALL)
            assert_true(a.recalled_pages != b.recalled_pages);
    }
    nkv_sim_machine_close(machine);
}

static void more_requests_than_samples_recall_alike(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = rig_config(machine, NKV_MODE_RECALL);
    struct nkv_sim_report few, many;

    (void)state;
    config.batch = 8;
    config.n_streams = 8;
    config.n_steps = 8;
    many = rig_run(&config);
    config.n_streams = 2;
    few = rig_run(&config);
    assert_int_equal(many.n_samples, 8 * 2 * 8);
    assert_int_equal(few.n_samples, 2 * 2 * 8);
    assert_true(few.recalled_pages_error > 0);
    assert_true(fabs(few.recalled_pages - many.recalled_pages) <
                4 * hypot(few.recalled_pages_error, many.recalled_pages_error));
    nkv_sim_machine_close(machine);
}

static void the_adaptive_share_is_never_slower_than_none(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();

    (void)state;
    for (uint32_t n_gpus = 1; n_gpus <= 8; n_gpus *= 2) {
        struct nkv_sim_config config = rig_config(machine, NKV_MODE_PNM);
        double pnm, fixed;

        config.n_gpus = n_gpus;
        config.same_step_recall = true;
        config.locality.drift = 0.5; /* so that recall hurts */
        pnm = rig_run(&config).tokens_per_s;
        config.mode = NKV_MODE_PNG;
        config.steady = NAN;
        fixed = rig_run(&config).tokens_per_s;
        config.steady = -1;
        assert_true(rig_run(&config).tokens_per_s >= fmax(pnm, fixed));
    }
    nkv_sim_machine_close(machine);
}

static void what_cannot_be_is_refused(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = rig_config(machine, NKV_MODE_PNM);
    struct nkv_sim_report r;

    (void)state;
    strcpy(config.budget, "0");
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    strcpy(config.budget, "context/");
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    strcpy(config.budget, "context/0");
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    strcpy(config.budget, "0x100");
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    strcpy(config.budget, "context^1000");
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    strcpy(config.budget, "context/4");
    config.context_tokens = 8u << 20;
    assert_int_equal(nkv_sim_run(&config, &r), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "not one fits"));
    config = rig_config(machine, NKV_MODE_PNM);
    assert_int_equal(nkv_sim_model_open("llama-3.1-405b", &config.model), 0);
    assert_int_equal(nkv_sim_run(&config, &r), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "GPUs"));
    config = rig_config(machine, NKV_MODE_PNG);
    config.n_pnm = 0;
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    config = rig_config(machine, NKV_MODE_PNM);
    config.locality.drift = 2;
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    config = rig_config(machine, NKV_MODE_PNM);
    config.timeline = "/nonexistent/timeline.json";
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EIO);
    assert_non_null(strstr(nkv_last_error(), "/nonexistent/timeline.json"));
    nkv_sim_machine_close(machine);
}

static void thousands_of_devices(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = rig_config(machine, NKV_MODE_PNM);
    struct nkv_sim_report r;

    (void)state;
    config.context_tokens = 8192;
    config.n_pnm = 4000;
    config.batch = 4000;
    config.n_layers = 1;
    config.n_steps = 1;
    r = rig_run(&config);
    assert_int_equal(r.batch, 4000);
    nkv_sim_machine_close(machine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(charges_are_those_of_the_plan),
        cmocka_unit_test(parts_sum_to_the_whole),
        cmocka_unit_test(no_step_is_shorter_than_its_busiest_link),
        cmocka_unit_test(a_floor_counts_once),
        cmocka_unit_test(faster_is_never_slower),
        cmocka_unit_test(infinite_rates_leave_fixed_costs),
        cmocka_unit_test(more_devices_admit_no_less),
        cmocka_unit_test(the_same_seed_is_the_same_report),
        cmocka_unit_test(more_requests_than_samples_recall_alike),
        cmocka_unit_test(the_adaptive_share_is_never_slower_than_none),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(thousands_of_devices),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
