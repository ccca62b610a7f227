/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine is an array of doubles and as many sources; everything here goes through the table of keys, so that a new
 * number needs one line there and a field in struct sim_values.
 *
 * Invariant: every value of an open machine lies in its key's range. Two numbers may still contradict each other after
 * nkv_sim_machine_set(): sim_machine_check() tells.
 *
 * A hash table of keys was rejected: names are looked up when a person sets one, among sixty.
 */
#include "sim/machine.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "sim/load.h"

#define KEY(member) ((uint32_t)(offsetof(struct sim_values, member) / sizeof(double)))
#define N_NEAR      3u

double *sim_value(struct sim_values *values, uint32_t i)
{
    return (double *)values + i;
}

static double value_at(const struct sim_values *values, uint32_t i)
{
    return ((const double *)values)[i];
}

/* ---- Keys */

/* How far a name is from a key's, whole or without its section. */
static uint32_t key_distance(const char *name, const char *key)
{
    uint32_t whole = sim_edit_distance(name, key), part = sim_edit_distance(name, strchr(key, '.') + 1);

    return whole < part ? whole : part;
}

/* The keys nearest to a name, nearest first. */
static void near_keys(const char *name, uint32_t near[N_NEAR])
{
    for (uint32_t n = 0; n < N_NEAR; n++) {
        uint32_t best = UINT32_MAX;

        for (uint32_t i = 0; i < sim_n_keys; i++) {
            uint32_t distance = key_distance(name, sim_keys[i].name);
            bool taken = false;

            for (uint32_t j = 0; j < n; j++)
                taken |= near[j] == i;
            if (!taken && distance < best) {
                best = distance;
                near[n] = i;
            }
        }
    }
}

int sim_key_find(const char *name)
{
    uint32_t near[N_NEAR] = {0};

    for (uint32_t i = 0; i < sim_n_keys; i++)
        if (strcmp(name, sim_keys[i].name) == 0)
            return (int)i;
    near_keys(name, near);
    FAIL(NKV_ENOENT, "a machine has no number '%.60s': near are %s, %s and %s", name, sim_keys[near[0]].name,
         sim_keys[near[1]].name, sim_keys[near[2]].name);
}

int sim_key_check(uint32_t i, double value, const char *shown)
{
    const struct sim_key *key = &sim_keys[i];
    char low[32], high[32];

    if (value >= key->low && value <= key->high)
        return 0;
    sim_number_show(key->low, key->unit, low, sizeof low);
    sim_number_show(key->high, key->unit, high, sizeof high);
    FAIL(NKV_EINVAL, "%s is %.60s: it must be from %s to %s", key->name, shown, low, high);
}

/* ---- Contradictions */

struct order {
    uint32_t smaller, larger;
};

static const struct order orders[] = {
    {KEY(gpu.idle_power), KEY(gpu.busy_power)},
    {KEY(gpu.busy_power), KEY(gpu.peak_power)},
    {KEY(pnm.efficiency_64), KEY(pnm.efficiency_sequential)},
    {KEY(pnm.efficiency_32), KEY(pnm.efficiency_sequential)},
    {KEY(pnm.efficiency_writes_10), KEY(pnm.efficiency_sequential)},
    {KEY(pnm.efficiency_writes_50), KEY(pnm.efficiency_sequential)},
    {KEY(pnm.controller_power), KEY(pnm.card_power)},
    {KEY(pnm.background_power), KEY(pnm.card_power)},
    {KEY(pnm.idle_power), KEY(pnm.card_power)},
};

static const uint32_t whole_numbers[] = {KEY(link.shared_recall), KEY(node.gpus_per_node), KEY(node.pnm_per_node)};

static int check_order(const struct sim_values *values, struct order order)
{
    const struct sim_key *smaller = &sim_keys[order.smaller], *larger = &sim_keys[order.larger];
    double a = value_at(values, order.smaller), b = value_at(values, order.larger);
    char text_a[32], text_b[32];

    if (a <= b)
        return 0;
    sim_number_show(a, smaller->unit, text_a, sizeof text_a);
    sim_number_show(b, larger->unit, text_b, sizeof text_b);
    FAIL(NKV_EINVAL, "%s is %s: it must not be more than %s, which is %s", smaller->name, text_a, larger->name, text_b);
}

int sim_machine_check(const struct nkv_sim_machine *machine)
{
    const struct sim_values *values = &machine->values;

    for (uint32_t i = 0; i < sizeof orders / sizeof *orders; i++)
        TRY(check_order(values, orders[i]));
    for (uint32_t i = 0; i < sizeof whole_numbers / sizeof *whole_numbers; i++) {
        double value = value_at(values, whole_numbers[i]);

        if (value != floor(value))
            FAIL(NKV_EINVAL, "%s is %g: it must be a whole number", sim_keys[whole_numbers[i]].name, value);
    }
    return 0;
}

/* ---- Machines */

int sim_machine_new(struct nkv_sim_machine **machine_out)
{
    struct nkv_sim_machine *machine = NULL;
    int status;

    TRY(nkv_alloc(1, sizeof *machine, &machine));
    status = nkv_alloc(sim_n_keys, sizeof *machine->sources, &machine->sources);
    if (status < 0) {
        nkv_free(machine);
        return status;
    }
    for (uint32_t i = 0; i < sim_n_keys; i++)
        *sim_value(&machine->values, i) = NAN;
    *machine_out = machine;
    return 0;
}

/* The names of all built-in machines, for a message. */
static void list_builtins(char *list, size_t bytes)
{
    size_t used = 0;

    for (uint32_t i = 0; i < sim_n_builtins && used < bytes; i++)
        used += (size_t)snprintf(list + used, bytes - used, "%s%s", i ? ", " : "", sim_builtins[i].name);
}

int sim_machine_read_builtin(const char *name, struct nkv_sim_machine **machine_out)
{
    char list[256] = "";

    for (uint32_t i = 0; i < sim_n_builtins; i++)
        if (strcmp(name, sim_builtins[i].name) == 0)
            return sim_machine_read((const char *)sim_builtins[i].text, sim_builtins[i].bytes, name, machine_out);
    list_builtins(list, sizeof list);
    FAIL(NKV_ENOENT, "no built-in machine '%.60s': there are %s", name, list);
}

int nkv_sim_machine_open(const char *name_or_path, struct nkv_sim_machine **machine_out)
{
    char list[256] = "", *text = NULL;
    size_t bytes = 0;
    int status;

    if (!name_or_path || !machine_out)
        FAIL(NKV_EINVAL, "a machine needs a name or a path, and a place to go");
    status = sim_machine_read_builtin(name_or_path, machine_out);
    if (status != NKV_ENOENT)
        return status;
    status = sim_file_read(name_or_path, &text, &bytes);
    if (status == NKV_ENOENT) {
        list_builtins(list, sizeof list);
        FAIL(NKV_ENOENT, "no machine '%.100s': there is no such file, and the built-in machines are %s", name_or_path,
             list);
    }
    TRY(status);
    status = sim_machine_read(text, bytes, name_or_path, machine_out);
    nkv_free(text);
    return status;
}

int nkv_sim_machine_copy(const struct nkv_sim_machine *machine, struct nkv_sim_machine **copy_out)
{
    struct nkv_sim_machine *copy = NULL;
    char(*sources)[SIM_SOURCE_BYTES];

    TRY(sim_machine_new(&copy));
    sources = copy->sources;
    memcpy(sources, machine->sources, sim_n_keys * sizeof *sources);
    *copy = *machine;
    copy->sources = sources;
    *copy_out = copy;
    return 0;
}

void nkv_sim_machine_close(struct nkv_sim_machine *machine)
{
    if (machine)
        nkv_free(machine->sources);
    nkv_free(machine);
}

int nkv_sim_machine_set(struct nkv_sim_machine *machine, const char *assignment)
{
    const char *equals = assignment ? strchr(assignment, '=') : NULL;
    char key[64] = "";
    double value;
    int i;

    if (!equals || equals == assignment || (size_t)(equals - assignment) >= sizeof key)
        FAIL(NKV_EINVAL, "'%.60s' is no assignment: write one as gpu.memory_bandwidth=2 TB/s",
             assignment ? assignment : "");
    memcpy(key, assignment, (size_t)(equals - assignment));
    i = sim_key_find(key);
    TRY(i);
    if (sim_number_parse(equals + 1, sim_keys[i].unit, &value) < 0) {
        char reason[256];

        snprintf(reason, sizeof reason, "%s", nkv_last_error());
        FAIL(NKV_EINVAL, "%s: %s", key, reason);
    }
    TRY(sim_key_check((uint32_t)i, value, equals + 1));
    *sim_value(&machine->values, (uint32_t)i) = value;
    snprintf(machine->sources[i], sizeof machine->sources[i], "set to %.100s", equals + 1);
    return 0;
}

const char *nkv_sim_machine_name(const struct nkv_sim_machine *machine)
{
    return machine->name;
}

const char *nkv_sim_machine_builtin(uint32_t i)
{
    return i < sim_n_builtins ? sim_builtins[i].name : NULL;
}

int nkv_sim_machine_number(const struct nkv_sim_machine *machine, uint32_t i, struct nkv_sim_number *number_out)
{
    if (i >= sim_n_keys)
        FAIL(NKV_ENOENT, "a machine has %u numbers: there is no number %u", sim_n_keys, i);
    *number_out = (struct nkv_sim_number){.key = sim_keys[i].name,
                                          .what = sim_keys[i].what,
                                          .unit = sim_unit_base(sim_keys[i].unit),
                                          .source = machine->sources[i],
                                          .value = value_at(&machine->values, i)};
    return 0;
}

/* ---- Efficiency */

struct point {
    double x, y;
};

/* Linear between points that ascend in x, constant beyond. */
static double interpolate(const struct point *points, uint32_t n, double x)
{
    if (x <= points[0].x)
        return points[0].y;
    for (uint32_t i = 1; i < n; i++)
        if (x <= points[i].x)
            return points[i - 1].y +
                   (points[i].y - points[i - 1].y) * (x - points[i - 1].x) / (points[i].x - points[i - 1].x);
    return points[n - 1].y;
}

double sim_pnm_efficiency(const struct sim_values *values, double access_bytes, double write_share)
{
    double sequential = values->pnm.efficiency_sequential;
    const struct point by_bytes[] = {{5, values->pnm.efficiency_32},
                                     {6, values->pnm.efficiency_64},
                                     {8, values->pnm.efficiency_256},
                                     {9, values->pnm.efficiency_512},
                                     {12, values->pnm.efficiency_4096}};
    const struct point by_writes[] = {{0, 1},
                                      {0.1, values->pnm.efficiency_writes_10 / sequential},
                                      {0.5, values->pnm.efficiency_writes_50 / sequential}};
    double reads = isinf(access_bytes) ? sequential : interpolate(by_bytes, 5, log2(access_bytes));

    return reads * interpolate(by_writes, 3, write_share);
}
