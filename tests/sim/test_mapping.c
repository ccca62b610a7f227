/* SPDX-License-Identifier: Apache-2.0 */
/* Mappings of attention to devices: one device is one device, what is attended does not depend on who attends, traffic,
 * counts, and faster is never slower. */
#include "rig.h"

static const enum nkv_sim_mapping spread[] = {NKV_SIM_TP, NKV_SIM_CP};

static const struct variant {
    enum nkv_mode mode;
    bool same_step;
    double steady;
} variants[] = {{NKV_MODE_PNM, false, 0},
                {NKV_MODE_FULL, false, 0},
                {NKV_MODE_PNG, false, 0.25},
                {NKV_MODE_PNG, false, 0.75},
                {NKV_MODE_PNG, true, 0.5}};
static const uint32_t n_variants = sizeof variants / sizeof *variants;

static void vary(struct nkv_sim_config *config, const struct variant *variant)
{
    config->mode = variant->mode;
    config->same_step_recall = variant->same_step;
    config->steady = variant->steady;
}

/* Who attends what, and what is recalled, are those of dp. */
static void assert_same_work(const struct nkv_sim_report *other, const struct nkv_sim_report *dp)
{
    rig_near(other->attended_bytes_per_token, dp->attended_bytes_per_token, 1e-9);
    rig_near(other->gpu_attended_bytes_per_token, dp->gpu_attended_bytes_per_token, 1e-9);
    rig_near(other->recall_bytes_per_token, dp->recall_bytes_per_token, 1e-9);
    rig_near(other->recalled_pages, dp->recalled_pages, 1e-9);
    rig_near(other->steady_hit, dp->steady_hit, 1e-9);
}

static struct nkv_sim_config mapped(const struct nkv_sim_machine *machine, enum nkv_sim_mapping mapping, uint32_t n_pnm)
{
    struct nkv_sim_config config = rig_config(machine, NKV_MODE_PNM);

    config.mapping = mapping;
    config.n_pnm = n_pnm;
    return config;
}

static void assert_one_device(struct nkv_sim_config config)
{
    struct nkv_sim_report dp, other;

    config.mapping = NKV_SIM_DP;
    dp = rig_run(&config);
    for (uint32_t m = 0; m < 2; m++) {
        config.mapping = spread[m];
        other = rig_run(&config);
        rig_near(other.step_ms, dp.step_ms, 0.01);
        for (enum nkv_sim_part p = 0; p < NKV_SIM_PART_COUNT; p++)
            assert_true(fabs(other.breakdown_ms[p] - dp.breakdown_ms[p]) <= 0.01 * dp.step_ms);
        assert_same_work(&other, &dp);
        rig_near(other.gpu_bytes_per_token, dp.gpu_bytes_per_token, 1e-9);
        rig_near(other.pnm_bytes_per_token, dp.pnm_bytes_per_token, 1e-9);
        rig_near(other.pnm_flops_per_token, dp.pnm_flops_per_token, 1e-9);
        rig_near(other.link_bytes_per_token, dp.link_bytes_per_token, 1e-9);
        rig_near(other.layer_transfers, dp.layer_transfers, 1e-9);
        rig_near(other.layer_sorts, dp.layer_sorts, 1e-9);
        rig_near(other.kv_capacity_used, dp.kv_capacity_used, 1e-9);
        assert_true(other.layer_reduce_messages == 0 && other.layer_select_ms == 0);
    }
}

/* Also where recalled pages are what is waited for. */
static void one_device_is_one_device(void **state)
{
    struct nkv_sim_machine *machine = rig_machine(), *slow = rig_machine();

    (void)state;
    assert_int_equal(nkv_sim_machine_set(slow, "link.recall_bandwidth=0.5 GB/s"), 0);
    for (uint32_t batch = 1; batch <= 6; batch += 5)
        for (uint32_t v = 0; v < n_variants; v++)
            for (enum nkv_granularity g = NKV_SELECT_LAYER; g <= NKV_SELECT_KV_HEAD; g++) {
                struct nkv_sim_config config = mapped(machine, NKV_SIM_DP, 1);

                vary(&config, &variants[v]);
                config.batch = batch;
                config.granularity = g;
                assert_one_device(config);
                config.machine = slow;
                if (config.mode == NKV_MODE_PNG)
                    assert_one_device(config);
            }
    nkv_sim_machine_close(machine);
    nkv_sim_machine_close(slow);
}

static void what_is_attended_is_conserved(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();

    (void)state;
    for (uint32_t v = 0; v < n_variants; v++)
        for (uint32_t n_pnm = 2; n_pnm <= 8; n_pnm *= 2)
            for (enum nkv_granularity g = NKV_SELECT_LAYER; g <= NKV_SELECT_KV_HEAD; g++) {
                struct nkv_sim_config config = mapped(machine, NKV_SIM_DP, n_pnm);
                struct nkv_sim_report dp, other;

                vary(&config, &variants[v]);
                config.context_tokens = 65536 + 13; /* an open page */
                config.granularity = g;
                dp = rig_run(&config);
                for (uint32_t m = 0; m < 2; m++) {
                    config.mapping = spread[m];
                    other = rig_run(&config);
                    assert_int_equal(other.mapping_group, n_pnm);
                    assert_same_work(&other, &dp);
                }
                assert_true((dp.gpu_attended_bytes_per_token > 0) == (config.mode == NKV_MODE_PNG));
            }
    nkv_sim_machine_close(machine);
}

/* The paper's N sorts and N-1 messages, and that there are none where every head has a set of its own. */
static void messages_and_sorts_are_counted(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();

    (void)state;
    for (uint32_t n = 2; n <= 8; n *= 2) {
        struct nkv_sim_config config = mapped(machine, NKV_SIM_TP, n);
        struct nkv_sim_report r = rig_run(&config);

        rig_near(r.layer_sorts, n, 1e-9);
        rig_near(r.layer_reduce_messages, n - 1, 1e-9);
        rig_near(r.layer_list_messages, n - 1, 1e-9);
        /* k and v, q, partials of each device; scores and lists once up and once down, the list once to the host */
        rig_near(r.layer_transfers, 3 * n + 2 * (n - 1) + 1 + n - 1, 1e-9);
        rig_near(r.layer_select_bytes, (n - 1) * (4.0 * (2048 - 3) + 4 * (r.budget_tokens / 32 + 1)), 1e-9);
        assert_true(r.layer_select_ms > 0);
        config.granularity = NKV_SELECT_KV_HEAD;
        r = rig_run(&config);
        rig_near(r.layer_sorts, 8, 1e-9);
        assert_true(r.layer_reduce_messages == 0 && r.layer_list_messages == 0 && r.layer_select_ms == 0);
        config = mapped(machine, NKV_SIM_CP, n);
        r = rig_run(&config);
        rig_near(r.layer_sorts, n, 1e-9);
        rig_near(r.layer_list_messages, n, 1e-9);
        assert_true(r.layer_reduce_messages >= n && r.layer_reduce_messages < 3 * n && r.layer_select_ms > 0);
        for (uint32_t m = 0; m < 2; m++) { /* the budget holds all: nothing to choose */
            config = mapped(machine, spread[m], n);
            snprintf(config.budget, sizeof config.budget, "context");
            r = rig_run(&config);
            assert_true(r.layer_reduce_messages == 0 && r.layer_list_messages == 0 && r.layer_select_ms == 0);
        }
    }
    nkv_sim_machine_close(machine);
}

/* Lists of png name what to attend to and what to read; where every device has a set of its own nothing is told. */
static void steady_lists_are_counted(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();

    (void)state;
    for (uint32_t same_step = 0; same_step < 2; same_step++)
        for (uint32_t n = 2; n <= 8; n *= 2) {
            struct nkv_sim_config config = mapped(machine, NKV_SIM_TP, n);
            struct nkv_sim_report r;
            double steady, recalled, attended, list;

            config.mode = NKV_MODE_PNG;
            config.same_step_recall = same_step;
            config.n_streams = config.batch;
            r = rig_run(&config);
            steady = r.steady_hit * r.budget_tokens / 32;
            recalled = r.recalled_pages;
            attended = r.budget_tokens / 32 - steady - (same_step ? recalled : 0);
            list = 4 * (attended + 1) + 4 * (recalled + 1);
            rig_near(r.layer_select_bytes, (n - 1) * (4.0 * (2048 - 3) + list), 1e-9);
            rig_near(r.layer_reduce_messages, n - 1, 1e-9);
            assert_true(recalled > 0 && steady > 0);
            config.granularity = NKV_SELECT_KV_HEAD;
            r = rig_run(&config);
            assert_true(r.layer_reduce_messages == 0 && r.layer_list_messages == 0 && r.layer_select_ms == 0);
            for (uint32_t m = 0; m < 2; m++) { /* nothing to choose, but who attends to it has to be told */
                config = mapped(machine, spread[m], n);
                config.mode = NKV_MODE_PNG;
                config.same_step_recall = same_step;
                snprintf(config.budget, sizeof config.budget, "context");
                r = rig_run(&config);
                assert_true(r.layer_reduce_messages == 0);
                rig_near(r.layer_list_messages, spread[m] == NKV_SIM_CP ? n : n - 1, 1e-9);
            }
        }
    nkv_sim_machine_close(machine);
}

/* GPUs that have all the time in the world take their share of the budget off the devices' time, which is the step's;
 * slow ones are waited for; so is a slow link, by whoever needs its pages. */
static void steady_pages_are_attended_beside_the_devices(void **state)
{
    static const struct {
        const char *set;
        enum nkv_sim_part part;
    } slow[] = {{"gpu.attention_efficiency=0.02", NKV_SIM_ATTEND_GPU},
                {"link.recall_bandwidth=0.1 GB/s", NKV_SIM_RECALL}};

    (void)state;
    for (uint32_t i = 0; i < 4; i++) {
        struct nkv_sim_machine *machine = rig_machine();
        struct nkv_sim_config config = mapped(machine, spread[i % 2], 2);
        struct nkv_sim_report pnm, png, late;
        double share;

        assert_int_equal(nkv_sim_machine_set(machine, "gpu.attention_efficiency=1"), 0);
        assert_int_equal(nkv_sim_machine_set(machine, "pnm.compute_efficiency=0.1"), 0);
        pnm = rig_run(&config);
        config.mode = NKV_MODE_PNG;
        png = rig_run(&config);
        share = png.steady_hit * pnm.breakdown_ms[NKV_SIM_ATTEND_PNM];
        assert_true(png.step_ms > pnm.step_ms - 1.05 * share && png.step_ms < pnm.step_ms - 0.95 * share);
        assert_int_equal(nkv_sim_machine_set(machine, slow[i / 2].set), 0);
        late = rig_run(&config);
        assert_true(late.step_ms > 1.5 * png.step_ms);
        assert_true(late.breakdown_ms[slow[i / 2].part] > 0.3 * late.step_ms);
        nkv_sim_machine_close(machine);
    }
}

/* One request on two devices: scores over both links, the home's sum and sort, the list back. */
static void a_round_takes_what_its_messages_take(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    const struct sim_values *v = &machine->values;
    struct nkv_sim_config config = mapped(machine, NKV_SIM_TP, 2);
    struct nkv_sim_report r;
    double n, list, seconds;

    (void)state;
    config.context_tokens = 1u << 20;
    config.batch = 1;
    config.n_steps = config.n_streams = 1;
    r = rig_run(&config);
    n = 32768 - 3; /* all but a sink and two recent pages */
    list = 4.0 * (r.budget_tokens / 32 + 1);
    seconds = 2 * (4 * n + list) / v->link.device_bandwidth + 4 * v->link.latency + n / v->pnm.sort_rate +
              2 * 4 * n / (v->pnm.memory_bandwidth * v->pnm.efficiency_sequential) + v->pnm.access_latency +
              v->pnm.command_overhead;
    rig_near(r.layer_select_ms, 1e3 * seconds, 1e-3);
    nkv_sim_machine_close(machine);
}

static void traffic_follows_the_context_in_tp_only(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();

    (void)state;
    for (enum nkv_sim_mapping mapping = NKV_SIM_DP; mapping <= NKV_SIM_CP; mapping++) {
        struct nkv_sim_config config = mapped(machine, mapping, 4);
        struct nkv_sim_report small, large;

        snprintf(config.budget, sizeof config.budget, "4096");
        small = rig_run(&config);
        config.context_tokens *= 4;
        large = rig_run(&config);
        if (mapping == NKV_SIM_TP) {
            rig_near(large.layer_select_bytes - small.layer_select_bytes, 3 * 4.0 * (8192 - 2048), 1e-9);
        } else {
            rig_near(large.layer_select_bytes, small.layer_select_bytes, 0.01); /* cp: how often a device is asked */
            rig_near(large.link_bytes_per_token, small.link_bytes_per_token, mapping == NKV_SIM_DP ? 1e-12 : 0.01);
        }
    }
    nkv_sim_machine_close(machine);
}

static void faster_is_never_slower(void **state)
{
    static const char *const rates[] = {
        "pnm.memory_bandwidth=%g TB/s",  "pnm.compute_rate=%g TFLOP/s", "pnm.sort_rate=%g",
        "link.device_bandwidth=%g GB/s", "link.host_bandwidth=%g GB/s", "gpu.memory_bandwidth=%g TB/s",
        "link.recall_bandwidth=%g GB/s"};
    uint64_t seed = 11;

    (void)state;
    for (uint32_t m = 0; m < 2; m++)
        for (uint32_t i = 0; i < 70; i++) {
            struct nkv_sim_machine *machine = rig_machine();
            struct nkv_sim_config config = mapped(machine, spread[m], 4);
            double low = rig_uniform(&seed, 0.3, 3), step_ms;
            const char *rate = rates[i % 7];
            double unit = strstr(rate, "GB/s") ? 20 : strstr(rate, "sort") ? 1e9 : strstr(rate, "TFLOP") ? 5 : 1;
            char set[64];

            vary(&config, &variants[i / 7 % n_variants]);
            config.n_steps = config.n_layers = config.n_streams = 1;
            snprintf(set, sizeof set, rate, low * unit);
            assert_int_equal(nkv_sim_machine_set(machine, set), 0);
            step_ms = rig_run(&config).step_ms;
            snprintf(set, sizeof set, rate, low * unit * rig_uniform(&seed, 1.05, 4));
            assert_int_equal(nkv_sim_machine_set(machine, set), 0);
            assert_true(rig_run(&config).step_ms <= step_ms);
            nkv_sim_machine_close(machine);
        }
}

/* A request larger than a device, and what is refused. */
static void groups_hold_and_refuse(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = mapped(machine, NKV_SIM_DP, 4);
    struct nkv_sim_report r;

    (void)state;
    config.context_tokens = 8u << 20;
    config.batch = 0;
    config.n_layers = config.n_steps = config.n_streams = 1;
    assert_int_equal(nkv_sim_run(&config, &r), NKV_ENOSPC);
    for (uint32_t m = 0; m < 2; m++) {
        config.mapping = spread[m];
        r = rig_run(&config);
        assert_int_equal(r.batch, 1);
        assert_true(r.kv_capacity_used > 0.25 && r.kv_capacity_used <= 1);
    }
    config.context_tokens = 65536;
    config.batch = 4;
    config.mapping_group = 2;
    assert_int_equal(rig_run(&config).mapping_group, 2);
    config.mapping_group = 3;
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "1, 2, 4"));
    config.mapping_group = 0;
    config.mapping = NKV_SIM_TP;
    config.n_pnm = 3;
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    config.n_pnm = 16;
    assert_int_equal(rig_run(&config).mapping_group, 8);
    config.mode = NKV_MODE_RECALL;
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    assert_non_null(strstr(nkv_last_error(), "pnm, png and full"));
    nkv_sim_machine_close(machine);
}

/* Requests one by one, as the runtime would place them; the mapping that most get is the one that is simulated. */
static void auto_is_what_most_get(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = mapped(machine, NKV_SIM_AUTO, 8);
    struct nkv_sim_report r, same;

    (void)state;
    config.n_layers = config.n_steps = config.n_streams = 1;
    for (uint32_t v = 0; v < n_variants; v++) {
        vary(&config, &variants[v]);
        for (uint32_t batch = 1; batch <= 64; batch *= 4) {
            config.mapping = NKV_SIM_AUTO;
            config.batch = batch;
            r = rig_run(&config);
            assert_int_equal(r.n_whole + r.n_spread, batch);
            assert_int_equal(r.mapping, r.n_spread > r.n_whole ? NKV_SIM_CP : NKV_SIM_DP);
            assert_int_equal(r.mapping, batch < 16 ? NKV_SIM_CP : batch == 64 ? NKV_SIM_DP : r.mapping);
            config.mapping = r.mapping;
            same = rig_run(&config);
            assert_true(same.step_ms == r.step_ms && same.n_whole + same.n_spread == 0);
        }
    }
    config = mapped(machine, NKV_SIM_AUTO, 1); /* nowhere to spread to */
    r = rig_run(&config);
    assert_true(r.mapping == NKV_SIM_DP && r.n_spread == 0);
    config.n_pnm = 4;
    config.batch = 0;
    config.n_layers = config.n_steps = config.n_streams = 1;
    config.context_tokens = 8u << 20; /* larger than a device */
    r = rig_run(&config);
    assert_true(r.mapping == NKV_SIM_CP && r.n_whole == 0 && r.batch == r.n_spread);
    config.mapping_group = 2;
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    config.mapping_group = 0;
    config.n_pnm = 0;
    assert_int_equal(nkv_sim_run(&config, &r), NKV_EINVAL);
    nkv_sim_machine_close(machine);
}

/* The policy puts most requests on one device each; that mapping has no room for all of them. */
static void auto_has_room_for_the_batch(void **state)
{
    struct nkv_sim_machine *machine = rig_machine();
    struct nkv_sim_config config = mapped(machine, NKV_SIM_CP, 2);
    struct nkv_sim_report dp, cp, r;

    (void)state;
    config.n_layers = config.n_steps = config.n_streams = 1;
    config.context_tokens = 300000;
    config.batch = 0;
    cp = rig_run(&config);
    config.mapping = NKV_SIM_DP;
    dp = rig_run(&config);
    assert_true(cp.batch > dp.batch);
    config.mapping = NKV_SIM_AUTO;
    config.batch = dp.batch;
    r = rig_run(&config);
    assert_true(r.mapping == NKV_SIM_DP && r.n_whole > r.n_spread);
    config.batch = cp.batch;
    r = rig_run(&config);
    assert_int_equal(r.mapping, NKV_SIM_CP);
    nkv_sim_machine_close(machine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_device_is_one_device),
        cmocka_unit_test(what_is_attended_is_conserved),
        cmocka_unit_test(messages_and_sorts_are_counted),
        cmocka_unit_test(steady_lists_are_counted),
        cmocka_unit_test(steady_pages_are_attended_beside_the_devices),
        cmocka_unit_test(a_round_takes_what_its_messages_take),
        cmocka_unit_test(traffic_follows_the_context_in_tp_only),
        cmocka_unit_test(faster_is_never_slower),
        cmocka_unit_test(groups_hold_and_refuse),
        cmocka_unit_test(auto_is_what_most_get),
        cmocka_unit_test(auto_has_room_for_the_batch),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
