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
        double weight_efficiency, gemm_efficiency, weight_efficiency_8bit, gemm_efficiency_8bit, attention_efficiency;
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
        double compute_rate, compute_efficiency, score_flops, exp_rate, sort_rate, command_overhead;
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

/* A machine file that is part of the library; the build makes the table from machines/ (cmake/embed.cmake). */
struct sim_builtin {
    const char *name; /* the file's, without ".yaml" */
    const unsigned char *text;
    size_t bytes;
};

extern const struct sim_builtin sim_builtins[];
extern const uint32_t sim_n_builtins;

/*
 * Reads a machine from a file's text; name is for messages.
 * returns: NKV_EFORMAT with file, line, key and the allowed range; NKV_ENOMEM.
 */
int sim_machine_read(const char *text, size_t bytes, const char *name, struct nkv_sim_machine **machine_out);
/* A built-in machine, or NKV_ENOENT with the names. */
int sim_machine_read_builtin(const char *name, struct nkv_sim_machine **machine_out);
/* An empty machine: every number NAN, every source "". */
int sim_machine_new(struct nkv_sim_machine **machine_out);

/* The i-th number. */
double *sim_value(struct sim_values *values, uint32_t i);
/* The index of a key, or NKV_ENOENT with the nearest names in the message. */
int sim_key_find(const char *name);
/* A number against its key's range. `shown` is how its author wrote it. returns: 0, or NKV_EINVAL with the range. */
int sim_key_check(uint32_t i, double value, const char *shown);
/*
 * Numbers that contradict one another: the first such, by key names (the message starts with one). Reading a file ends
 * with this; nkv_sim_machine_set() does not, since it may take several to get from one sound machine to another.
 */
int sim_machine_check(const struct nkv_sim_machine *machine);

/*
 * A number with an optional unit ("1.1 TB/s", "512 GiB", "4.5 pJ/bit", "90 W", "0.9") in base units.
 * returns: NKV_EINVAL naming the units that are allowed.
 */
int sim_number_parse(const char *text, enum sim_unit unit, double *value_out);
/* The reverse, in the largest decimal unit that leaves at least 1: "2.039 TB/s". */
void sim_number_show(double value, enum sim_unit unit, char *text, size_t bytes);
/* "B/s"; "" for UNIT_ONE; static storage. */
const char *sim_unit_base(enum sim_unit unit);

/*
 * Efficiency of a PNM device's channels for runs of access_bytes, of which write_share are writes: between the table's
 * run lengths (32 to 4096 bytes) linear in the logarithm of the length, constant beyond them, and INFINITY is the
 * sequential stream; times the loss by writes, linear between 0, 10 % and 50 %, constant beyond.
 * Source: a cycle-level run of Ramulator 2.1 for LPDDR5X-8533.
 */
double sim_pnm_efficiency(const struct sim_values *values, double access_bytes, double write_share);

#endif
