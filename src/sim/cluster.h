/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim/cluster.h: the devices of one simulated machine and what they share: the clock, the links, the machine's numbers,
 * the source of page scores.
 *
 *   GPUs --- one group: engine (FC, attention), one after the other; arriving pages do not hold it up
 *     |
 *   host link(s), in and out: one for each node of PNM devices
 *     |
 *   PNM devices: a link in and out, an engine (append, score, Top-K, attention), a DMA that reads pages beside it
 */
#ifndef NKV_SIM_CLUSTER_H
#define NKV_SIM_CLUSTER_H

#include <nearkv/device.h>
#include <nearkv/nearkv.h>

#include "base/mem.h"
#include "sim/machine.h"
#include "sim/pick.h"
#include "sim/world.h"

/* What was charged since the last reset; docs/simulator.md, "Accounts". */
struct sim_charge {
    double pnm_bytes, pnm_flops, gpu_bytes, gpu_flops;
    double link_bytes, recall_bytes; /* link_bytes: both directions, recalled pages included */
    double gpu_attend_bytes, gpu_attend_flops;
    double gpu_kv_bytes;         /* of gpu_attend_bytes: K and V */
    double pnm_attend_bytes;     /* of pnm_bytes */
    double n_transfers, n_sorts; /* over links; by the devices' sorters */
    /* Selection over several devices: messages with scores or candidates, and with lists; their bytes, counted once on
     * the way from device to device; time that the rounds add to layers. */
    double n_reduce_messages, n_list_messages, select_bytes, select_seconds;
    double n_chosen, n_steady; /* pages of the sets of mapped sequences, and those that the GPUs had; of all units */
};

/*
 * A transfer from a device to the host, its way not yet served. Those that were submitted at the same time are served
 * in the order of the plan (user_data), not in that in which the runtime rang the devices' doorbells.
 */
struct sim_transfer {
    struct sim_moment ready;
    uint64_t submit_ns, user_data;
    double bytes;
    const struct sim_pnm *pnm;
    struct sim_moment *end; /* where the host will know */
    bool recall;
    bool gather; /* recalled pages that the host asked for: those of a batch are one gather */
};

/* The kernel that the GPUs are at: the commands of a batch, one after the other. */
struct sim_batch {
    bool open;
    enum nkv_sim_part part;
    uint32_t layer, pos;
    struct sim_moment work;        /* its end without the floor */
    uint64_t floor_ns, counted_ns; /* its end at the earliest; until when the engine is counted busy */
};

enum sim_kind { SIM_KIND_PNM, SIM_KIND_GPU };

struct sim_cluster {
    struct sim_world world;
    const struct sim_values *values;
    struct nkv_kv_shape shape; /* n_layers: those simulated */
    uint32_t n_gpus, tp, pp, n_pnm, n_nodes;
    uint32_t interleave; /* cards that a sequence's pages are spread over: plain memory's all, a PNM device's 1 */
    double weight_rate, gemm_rate;              /* of one GPU in the dense layers: B/s and FLOP/s */
    uint16_t gpu;                               /* resources */
    uint16_t *host_in, *host_out, *host_recall; /* [n_nodes] */
    struct sim_transfer *transfers;
    uint32_t n_transfers, max_transfers;
    struct sim_pick *pick;
    struct sim_charge charge;
    struct sim_batch batch;
    uint32_t n_opened[2]; /* sequences ever opened on devices of a kind, in order: those of one batch on both */
    /* Pages read per sampled pair and step. */
    double sample_sum, sample_squares;
};

struct sim_device_options {
    enum sim_kind kind;
    uint32_t index;          /* of the PNM device */
    uint64_t capacity_bytes; /* for the simulated layers */
    uint32_t kept_tokens;    /* that a sequence opened here already holds */
    uint32_t max_sequences;
};

/* A device of the cluster, to be closed with nkv_device_close before the cluster. */
int sim_device_open(struct sim_cluster *cluster, const struct sim_device_options *options,
                    struct nkv_device **device_out);

/* pre: values, shape, n_gpus, tp, pp, n_pnm, interleave and pick are filled in. */
int sim_cluster_open(struct sim_cluster *cluster);
/* What the GPUs reach in dense layers. Matrix products of 8-bit weights have half the bytes and twice the rate, and
 * reach less of either. */
void sim_cluster_set_rates(struct sim_cluster *cluster, double weight_bytes);
void sim_cluster_close(struct sim_cluster *cluster);
uint64_t sim_cluster_now(void *cluster);

/* ---- What commands cost (cost.c): pure functions of the command, its lists and the shape ---- */

struct sim_cost {
    double bytes, flops, exps;
};
struct sim_cost sim_cost_append(const struct nkv_kv_shape *shape, uint32_t n_tokens);
/* Scanning the digests of n_pages pages: score_flops per dimension and query row. */
struct sim_cost sim_cost_score(const struct nkv_kv_shape *shape, uint32_t n_tokens, double n_pages, double score_flops);
/* Attending to `tokens` tokens (mean over the units). */
struct sim_cost sim_cost_attend(const struct nkv_kv_shape *shape, uint32_t n_tokens, double tokens);
/* Bytes that cross the link. */
double sim_bytes_kv(const struct nkv_kv_shape *shape, const struct sim_values *values, uint32_t n_tokens);
double sim_bytes_q(const struct nkv_kv_shape *shape, const struct sim_values *values, uint32_t n_tokens);
double sim_bytes_partials(const struct nkv_kv_shape *shape, const struct sim_values *values, uint32_t n_tokens);

/* ---- Engines: a command on a PNM device, and on the GPUs ---- */

struct sim_pnm {
    uint16_t engine, link_in, link_out, recall_out, host_in, host_out, host_recall;
};
/* Adds the index-th PNM device's resources. */
struct sim_pnm sim_pnm_add(struct sim_cluster *cluster, uint32_t index);
/* From the host to the device; what it carries is counted. returns: its arrival. */
struct sim_moment sim_pnm_down(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                               double bytes);
/* To the host, served at once. returns: its arrival. */
struct sim_moment sim_pnm_send(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                               double bytes);
/* Pages to the GPUs, served at once. returns: their arrival. */
struct sim_moment sim_pnm_recall(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                                 double bytes);
/* Queues a transfer to the host. returns: 0 or NKV_ENOMEM. */
int sim_pnm_up(struct sim_cluster *cluster, const struct sim_transfer *transfer);
/* Serves the transfers that are queued. */
void sim_pnm_serve_up(struct sim_cluster *cluster);
struct sim_moment sim_pnm_append(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                                 const struct sim_cost *cost);
struct sim_moment sim_pnm_score(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                                const struct sim_cost *cost, double n_scores);
struct sim_moment sim_pnm_attend(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                                 const struct sim_cost *cost);

struct sim_moment sim_gpu_fc(struct sim_cluster *cluster, struct sim_moment ready, const struct nkv_cmd *cmd);
struct sim_moment sim_gpu_score(struct sim_cluster *cluster, struct sim_moment ready, const struct nkv_cmd *cmd,
                                const struct sim_cost *cost);
struct sim_moment sim_gpu_attend(struct sim_cluster *cluster, struct sim_moment ready, const struct nkv_cmd *cmd,
                                 const struct sim_cost *cost);

#endif
