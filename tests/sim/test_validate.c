/* SPDX-License-Identifier: Apache-2.0 */
/* The simulator against latencies that others measured, the table of LPDDR efficiencies and formulas of tiny machines;
 * and what those latencies need: load with prompts in flight, types of K and V. */
#include "rig.h"

static struct nkv_sim_validation *validate(const char *assignment)
{
    struct nkv_sim_machine *machine;
    struct nkv_sim_validation *validation;

    assert_int_equal(nkv_sim_machine_open("h100-server", &machine), 0);
    if (assignment)
        assert_int_equal(nkv_sim_machine_set(machine, assignment), 0);
    if (nkv_sim_validate(machine, &validation) < 0)
        fail_msg("%s", nkv_last_error());
    nkv_sim_machine_close(machine);
    return validation;
}

static void all_checks_hold(void **state)
{
    static const uint32_t wanted[NKV_SIM_CHECK_GROUP_COUNT] = {12, 3, 15, 8};
    uint32_t n[NKV_SIM_CHECK_GROUP_COUNT] = {0};
    struct nkv_sim_validation *validation = validate(NULL);

    (void)state;
    for (uint32_t i = 0; i < validation->n_checks; i++) {
        const struct nkv_sim_check *check = &validation->checks[i];

        n[check->group]++;
        if (!check->holds || !(check->low <= check->simulated && check->simulated <= check->high))
            fail_msg("%s: %.9g, wanted %.9g to %.9g", check->name, check->simulated, check->low, check->high);
    }
    assert_memory_equal(n, wanted, sizeof n);
    assert_true(validation->anchor_mean_error <= 0.08);
    assert_true(validation->anchor_max_error <= 0.15);
    nkv_sim_validation_close(validation);
}

static void closed_forms_are_exact(void **state)
{
    struct nkv_sim_validation *validation = validate(NULL);

    (void)state;
    for (uint32_t i = 0; i < validation->n_checks; i++) {
        const struct nkv_sim_check *check = &validation->checks[i];

        if (check->group == NKV_SIM_CHECK_CLOSED)
            assert_true(fabs(check->simulated - check->expected) <= fmax(1e-6 * check->expected, 2e-6)); /* ms */
        if (check->group == NKV_SIM_CHECK_MEMORY && !isnan(check->expected))
            rig_near(check->simulated, check->expected, 1e-12);
    }
    nkv_sim_validation_close(validation);
}

/* The checks see a machine that is not the one measured, and only where it matters. */
static void a_wrong_machine_is_seen(void **state)
{
    struct nkv_sim_validation *validation = validate("gpu.memory_bandwidth=2 TB/s");
    uint32_t n_failed[NKV_SIM_CHECK_GROUP_COUNT] = {0};

    (void)state;
    for (uint32_t i = 0; i < validation->n_checks; i++)
        n_failed[validation->checks[i].group] += !validation->checks[i].holds;
    assert_true(validation->anchor_max_error > 0.15);
    assert_true(n_failed[NKV_SIM_CHECK_ANCHOR] > 0);
    assert_int_equal(n_failed[NKV_SIM_CHECK_KIND] + n_failed[NKV_SIM_CHECK_MEMORY] + n_failed[NKV_SIM_CHECK_CLOSED], 0);
    nkv_sim_validation_close(validation);
}

static struct nkv_sim_config loaded(const struct nkv_sim_machine *machine, uint32_t batch, uint32_t output_tokens)
{
    struct nkv_sim_config config = rig_config(machine, NKV_MODE_FULL);

    config.n_pnm = 0;
    config.context_tokens = 4000;
    config.batch = batch;
    config.output_tokens = output_tokens;
    return config;
}

/* What prompts add to a step, ms. */
static double added_ms(struct nkv_sim_config config)
{
    double plain;

    config.in_flight_prefill = false;
    plain = rig_run(&config).step_ms;
    config.in_flight_prefill = true;
    return rig_run(&config).step_ms - plain;
}

/* Half as many prompts per step when requests generate twice as much; more of them with a larger batch. */
static void prompts_in_flight_add_in_proportion(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    double few = added_ms(loaded(machine, 9, 1000)), half = added_ms(loaded(machine, 9, 2000)),
           alone = added_ms(loaded(machine, 1, 1000));
    /* A prompt of 8B's dense layers and their attention, on 225 TFLOP/s, in 8 of 1000 steps. */
    double parameters = 32.0 * 218103808, flops = 2 * parameters * 4000 + 32.0 * 2 * 32 * 128 * 4000.0 * 4000.0;

    (void)state;
    rig_near(few, 2 * half, 1e-3);
    assert_true(alone == 0);
    rig_near(few, 8.0 / 1000 * flops / (312e12 * 0.72) * 1e3, 0.1); /* the streaming of weights is not paid again */
    nkv_sim_machine_close(machine);
}

/* The parts of the mean step still sum to it, and money and energy are of its time. */
static void the_mean_of_steps_is_whole(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = loaded(machine, 9, 1000);
    struct nkv_sim_report r;
    double sum = 0;

    (void)state;
    config.in_flight_prefill = true;
    r = rig_run(&config);
    for (uint32_t part = 0; part < NKV_SIM_PART_COUNT; part++)
        sum += r.breakdown_ms[part];
    rig_near(sum, r.step_ms, 1e-9);
    rig_near(r.tokens_per_s, 9e3 / r.step_ms, 1e-9);
    rig_near(r.tokens_per_usd, 3600 * r.tokens_per_s / r.usd_per_hour, 1e-9);
    rig_near(r.full_tokens_per_usd, 3600 * r.tokens_per_s / r.full_usd_per_hour, 1e-9);
    for (uint32_t a = 0; a < NKV_SIM_ACCOUNT_COUNT; a++)
        rig_near(r.energy_j[a], r.energy_gpu_j[a] + r.energy_pnm_j[a], 1e-9);
    nkv_sim_machine_close(machine);
}

static void limits_of_load_are_told(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = loaded(machine, 9, 0);
    struct nkv_sim_report report;

    (void)state;
    config.in_flight_prefill = true;
    assert_int_equal(nkv_sim_run(&config, &report), NKV_EINVAL);
    config = rig_config(machine, NKV_MODE_PNM);
    config.in_flight_prefill = true;
    config.context_tokens = 1u << 24;
    config.output_tokens = 1;
    assert_int_equal(nkv_sim_machine_set(machine, "pnm.memory_capacity=20 TB"), 0);
    assert_int_equal(nkv_sim_run(&config, &report), NKV_EINVAL);
    config = rig_config(machine, NKV_MODE_PNM);
    config.kv_dtype = (enum nkv_dtype)NKV_DTYPE_COUNT;
    assert_int_equal(nkv_sim_run(&config, &report), NKV_EINVAL);
    nkv_sim_machine_close(machine);
}

/* q8_0 adds an f32 scale to the 128 bytes of a head. */
static void bytes_follow_the_type_of_k_and_v(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = rig_config(machine, NKV_MODE_FULL);
    double attended = 65536 - 0.5, kv = 2.0 * 8 * (128 + 4), digest = 8 * 2.0 * 128 * 2 / 32; /* means over two steps */

    (void)state;
    config.kv_dtype = NKV_Q8_0;
    rig_near(rig_run(&config).pnm_bytes_per_token, 32 * ((attended + 1) * kv + digest), 1e-9);
    nkv_sim_machine_close(machine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_checks_hold),
        cmocka_unit_test(closed_forms_are_exact),
        cmocka_unit_test(a_wrong_machine_is_seen),
        cmocka_unit_test(prompts_in_flight_add_in_proportion),
        cmocka_unit_test(the_mean_of_steps_is_whole),
        cmocka_unit_test(limits_of_load_are_told),
        cmocka_unit_test(bytes_follow_the_type_of_k_and_v),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
