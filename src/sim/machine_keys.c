/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of a machine's keys, in the order of struct sim_values. Ranges are what hardware of this century can be,
 * wide enough for what-if questions, narrow enough to catch a wrong unit.
 */
#include "sim/machine.h"

#include <math.h>

const struct sim_key sim_keys[] = {
    {"gpu.memory_capacity", UNIT_BYTES, 1e9, 1e14, NAN, "HBM of one GPU"},
    {"gpu.memory_usable", UNIT_ONE, 0.1, 1, NAN, "share of the HBM for weights and KV pages"},
    {"gpu.memory_bandwidth", UNIT_BYTES_PER_S, 1e9, 1e15, NAN, "HBM bandwidth of one GPU"},
    {"gpu.compute_rate", UNIT_FLOPS, 1e9, 1e18, NAN, "dense bf16 rate of one GPU"},
    {"gpu.weight_efficiency", UNIT_ONE, 0.01, 1, NAN, "share of the bandwidth when weights stream"},
    {"gpu.gemm_efficiency", UNIT_ONE, 0.01, 1, NAN, "share of the rate in large matrix products"},
    {"gpu.weight_efficiency_8bit", UNIT_ONE, 0.01, 1, 0.75, "weight_efficiency where weights take at most a byte"},
    {"gpu.gemm_efficiency_8bit", UNIT_ONE, 0.01, 1, 0.6, "share of twice the rate, the same"},
    {"gpu.attention_efficiency", UNIT_ONE, 0.01, 1, NAN, "share of the bandwidth in decode attention"},
    {"gpu.attention_floor", UNIT_S, 0, 1e-2, NAN, "least time of one layer's attention"},
    {"gpu.layer_overhead", UNIT_S, 0, 1e-2, NAN, "fixed time per layer beside FC and attention"},
    {"gpu.step_overhead", UNIT_S, 0, 1, NAN, "fixed time per step"},
    {"gpu.link_bandwidth", UNIT_BYTES_PER_S, 1e8, 1e14, NAN, "GPU to GPU, one direction"},
    {"gpu.allreduce_latency", UNIT_S, 0, 1e-2, NAN, "small all-reduce over the GPUs of a group"},
    {"gpu.peak_power", UNIT_W, 1, 1e5, NAN, "TDP; the cost table's power"},
    {"gpu.busy_power", UNIT_W, 1, 1e5, NAN, "while decoding"},
    {"gpu.idle_power", UNIT_W, 0, 1e5, NAN, "while waiting"},
    {"gpu.memory_energy", UNIT_J_PER_BIT, 0, 1e-9, NAN, "DRAM and path to it"},
    {"gpu.compute_energy", UNIT_J_PER_FLOP, 0, 1e-9, NAN, "of a matrix product"},
    {"gpu.price", UNIT_USD, 0, 1e7, NAN, "of one GPU"},

    {"pnm.memory_capacity", UNIT_BYTES, 1e8, 1e15, NAN, "of one card"},
    {"pnm.memory_bandwidth", UNIT_BYTES_PER_S, 1e8, 1e14, NAN, "of one card"},
    {"pnm.efficiency_sequential", UNIT_ONE, 0.01, 1, 0.927, "share of the bandwidth, one sequential stream"},
    {"pnm.efficiency_4096", UNIT_ONE, 0.01, 1, 0.902, "the same, runs of 4096 bytes in random order"},
    {"pnm.efficiency_512", UNIT_ONE, 0.01, 1, 0.899, "runs of 512 bytes"},
    {"pnm.efficiency_256", UNIT_ONE, 0.01, 1, 0.902, "runs of 256 bytes"},
    {"pnm.efficiency_64", UNIT_ONE, 0.01, 1, 0.673, "runs of 64 bytes"},
    {"pnm.efficiency_32", UNIT_ONE, 0.01, 1, 0.394, "runs of 32 bytes"},
    {"pnm.efficiency_writes_10", UNIT_ONE, 0.01, 1, 0.892, "sequential, 10 % writes"},
    {"pnm.efficiency_writes_50", UNIT_ONE, 0.01, 1, 0.751, "sequential, 50 % writes"},
    {"pnm.access_latency", UNIT_S, 0, 1e-4, 65e-9, "of a row conflict: paid once per command"},
    {"pnm.compute_rate", UNIT_FLOPS, 1e9, 1e17, NAN, "vector units, FP16"},
    {"pnm.compute_efficiency", UNIT_ONE, 0.01, 1, NAN, "share of that rate which attention and scores reach"},
    {"pnm.score_flops", UNIT_ONE, 1, 100, 4, "FLOPs per digest dimension and query head"},
    {"pnm.exp_rate", UNIT_PER_S, 1e6, 1e17, NAN, "exponentials of the softmax unit"},
    {"pnm.sort_rate", UNIT_PER_S, 1e6, 1e17, NAN, "scores that the Top-K sorter takes"},
    {"pnm.command_overhead", UNIT_S, 0, 1e-2, NAN, "fixed time per command"},
    {"pnm.card_power", UNIT_W, 1, 1e4, NAN, "of the whole card; the cost table's power"},
    {"pnm.controller_power", UNIT_W, 0, 1e4, NAN, "of the controller while it works, in the full activity account"},
    {"pnm.background_power", UNIT_W, 0, 1e4, NAN, "of the DRAM while nothing is accessed"},
    {"pnm.idle_power", UNIT_W, 0, 1e4, NAN, "of a waiting card"},
    {"pnm.memory_energy", UNIT_J_PER_BIT, 0, 1e-9, NAN, "of DRAM accesses"},
    {"pnm.compute_energy", UNIT_J_PER_FLOP, 0, 1e-9, NAN, "of the vector units"},
    {"pnm.price", UNIT_USD, 0, 1e7, NAN, "of one card"},

    {"link.device_bandwidth", UNIT_BYTES_PER_S, 1e8, 1e14, NAN, "of one PNM device, one direction"},
    {"link.host_bandwidth", UNIT_BYTES_PER_S, 1e8, 1e14, NAN, "of the host's link, one direction"},
    {"link.recall_bandwidth", UNIT_BYTES_PER_S, 1e8, 1e14, NAN,
     "at which one GPU reads pages of a PNM device or CXL memory"},
    {"link.shared_recall", UNIT_ONE, 0, 1, 1, "1: what all GPUs recall shares the host link; 0: it does not"},
    {"link.latency", UNIT_S, 0, 1e-2, NAN, "of a transfer or command, one way"},
    {"link.element_bytes", UNIT_ONE, 1, 4, 2, "bytes of an element of q, k, v and outputs on the link"},
    {"link.energy", UNIT_J_PER_BIT, 0, 1e-9, NAN, "of transfers"},

    {"node.gpus", UNIT_ONE, 1, 1024, 8, "GPUs of one node at most"},
    {"node.pnm", UNIT_ONE, 1, 1024, 8, "PNM devices behind one host link at most"},
    {"node.host_power", UNIT_W, 0, 1e5, NAN, "of a host"},
    {"node.host_price", UNIT_USD, 0, 1e7, NAN, "of a host"},
    {"node.switch_power", UNIT_W, 0, 1e5, NAN, "of a CXL switch"},
    {"node.switch_price", UNIT_USD, 0, 1e7, NAN, "of a CXL switch"},
    {"node.memory_power", UNIT_W, 0, 1e4, NAN, "of a plain CXL memory card (the baseline's)"},
    {"node.memory_price", UNIT_USD, 0, 1e7, NAN, "of a plain CXL memory card"},

    {"cost.electricity", UNIT_USD_PER_KWH, 0, 10, NAN, "price of energy"},
    {"cost.years", UNIT_YEARS, 0.1, 100, NAN, "over which hardware is paid off"},
    {"cost.utilisation", UNIT_ONE, 0.01, 1, 1, "share of the time in use"},
    {"cost.pue", UNIT_ONE, 1, 3, 1, "power usage effectiveness, in the full account"},
};

const uint32_t sim_n_keys = sizeof sim_keys / sizeof *sim_keys;

_Static_assert(sizeof sim_keys / sizeof *sim_keys == sizeof(struct sim_values) / sizeof(double),
               "one key for each number");
