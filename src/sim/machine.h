/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim/machine.h: a machine as the simulator sees it: one number per key, in base units (bytes, seconds, FLOP, watts,
 * joules, dollars), each with its source. machine_keys.c is the table of keys, units and ranges; docs/simulator.md says
 * what each one does.
 */
#ifndef NKV_SIM_MACHINE_H
#define NKV_SIM_MACHINE_H

#include <nearkv/sim.h>

/* The struct is an array of doubles to the table of keys, and has names for everybody else. */
struct sim_values {
    struct {
        double memory_capacity, memory_usable, memory_bandwidth;
        double compute_rate;
        double weight_efficiency, gemm_efficiency, attention_efficiency;
        double attention_floor, layer_overhead, step_overhead;
        double link_bandwidth, allreduce_latency;
        double peak_power, busy_power, idle_power;
        double memory_energy, compute_energy;
        double price;
    } gpu;
    struct {
        double memory_capacity, memory_bandwidth;
        double efficiency_sequential, efficiency_4096, efficiency_512, efficiency_256, efficiency_64, efficiency_32;
        double efficiency_writes_10, efficiency_writes_50;
        double access_latency;
        double compute_rate, score_flops, exp_rate, sort_rate, command_overhead;
        double card_power, controller_power, background_power, idle_power;
        double memory_energy, compute_energy;
        double price;
    } pnm;
    struct {
        double device_bandwidth, host_bandwidth, recall_bandwidth;
        double shared_recall;
        double latency;
        double element_bytes;
        double energy;
    } link;
    struct {
        double gpus_per_node, pnm_per_node;
        double host_power, host_price;
        double switch_power, switch_price;
        double memory_power, memory_price;
    } node;
    struct {
        double electricity, years, utilisation, pue;
    } cost;
};

enum sim_unit {
    UNIT_BYTES,
    UNIT_BYTES_PER_S,
    UNIT_FLOPS,
    UNIT_S,
    UNIT_PER_S,
    UNIT_W,
    UNIT_J_PER_BIT,
    UNIT_J_PER_FLOP,
    UNIT_USD,
    UNIT_USD_PER_KWH,
    UNIT_YEARS,
    UNIT_ONE
};

/* One key. A number must lie in [low, high], base units; `fallback` NAN: the file must give it. */
struct sim_key {
    const char *name; /* "gpu.memory_bandwidth" */
    enum sim_unit unit;
    double low, high, fallback;
    const char *what; /* for people */
};

#define SIM_SOURCE_BYTES 200u

struct nkv_sim_machine {
    char name[64];
    char about[256];
    struct sim_values values;
    char (*sources)[SIM_SOURCE_BYTES]; /* [sim_n_keys] */
};

extern const struct sim_key sim_keys[];
extern const uint32_t sim_n_keys;

/* The i-th number. */
double *sim_value(struct sim_values *values, uint32_t i);
/* The index of a key, or NKV_ENOENT with the nearest names in the message. */
int sim_key_find(const char *name);
/* Numbers that contradict one another: the first such, by key names. */
int sim_machine_check(const struct nkv_sim_machine *machine);

/*
 * A number with an optional unit ("1.1 TB/s", "512 GiB", "4.5 pJ/bit", "90 W", "0.9") in base units.
 * returns: NKV_EINVAL naming the units that are allowed.
 */
int sim_number_parse(const char *text, enum sim_unit unit, double *value_out);

/* Efficiency of a PNM device's channels for runs of access_bytes, of which write_share are writes. */
double sim_pnm_efficiency(const struct sim_values *values, double access_bytes, double write_share);

#endif
