/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A PNM device's times. Its engine runs commands one after the other; each takes as long as the slowest of what it
 * keeps busy: DRAM channels (bandwidth by access pattern), vector units, softmax unit; the Top-K sorter follows the
 * scores. READ's DMA runs beside the engine: it takes at most the link's share of the channels, a few per cent, which
 * is not charged.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/cluster.h"

/* Bytes of a run of one KV head's keys in a page, which lie together. */
static double run_bytes(const struct nkv_kv_shape *shape)
{
    return (double)nkv_page_bytes(shape, 1) / 2;
}

struct sim_pnm sim_pnm_add(struct sim_cluster *cluster, uint32_t index)
{
    struct sim_world *world = &cluster->world;
    uint32_t node = index / (uint32_t)cluster->values->node.pnm_per_node;

    return (struct sim_pnm){.engine = sim_resource_add(world, SIM_PNM_ENGINE, "pnm %u", index),
                            .link_in = sim_resource_add(world, SIM_LINK, "pnm %u in", index),
                            .link_out = sim_resource_add(world, SIM_LINK, "pnm %u out", index),
                            .recall_out = sim_resource_add(world, SIM_RECALL_LINK, "pnm %u recall", index),
                            .host_recall = cluster->host_recall[node],
                            .host_in = cluster->host_in[node],
                            .host_out = cluster->host_out[node]};
}

static struct sim_moment transfer(struct sim_cluster *cluster, enum nkv_sim_part part, const uint16_t resources[2],
                                  struct sim_moment ready, double bytes, double host_bandwidth)
{
    const struct sim_values *v = cluster->values;
    uint64_t ns[2] = {sim_ns(bytes / (v->link.device_bandwidth * cluster->interleave)), sim_ns(bytes / host_bandwidth)};
    struct sim_moment end = ready;

    cluster->charge.link_bytes += bytes;
    cluster->charge.n_transfers += bytes > 0;
    if (bytes > 0)
        end = sim_serve_both(&cluster->world, resources, part, ready, ns);
    return sim_delay(&cluster->world, part, end, sim_ns(v->link.latency));
}

struct sim_moment sim_pnm_down(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                               double bytes)
{
    uint16_t resources[2] = {pnm->link_in, pnm->host_out};

    return transfer(cluster, NKV_SIM_LINK, resources, ready, bytes, cluster->values->link.host_bandwidth);
}

struct sim_moment sim_pnm_send(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                               double bytes)
{
    uint16_t resources[2] = {pnm->link_out, pnm->host_in};

    return transfer(cluster, NKV_SIM_LINK, resources, ready, bytes, cluster->values->link.host_bandwidth);
}

int sim_pnm_up(struct sim_cluster *cluster, const struct sim_transfer *up)
{
    struct sim_transfer *larger;

    if (cluster->n_transfers == cluster->max_transfers) {
        uint32_t max = cluster->max_transfers ? 2 * cluster->max_transfers : 256;

        TRY(nkv_alloc(max, sizeof *larger, &larger));
        if (cluster->n_transfers)
            memcpy(larger, cluster->transfers, cluster->n_transfers * sizeof *larger);
        nkv_free(cluster->transfers);
        cluster->transfers = larger;
        cluster->max_transfers = max;
    }
    cluster->transfers[cluster->n_transfers++] = *up;
    return 0;
}

/* Pages flow on to the GPUs as they come: the way there is charged here, and not again in WRITE. */
struct sim_moment sim_pnm_recall(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                                 double bytes)
{
    const struct sim_values *v = cluster->values;
    uint16_t resources[2] = {pnm->recall_out, pnm->host_recall};
    double gpus = v->link.recall_bandwidth * cluster->n_gpus / cluster->n_nodes;
    double bandwidth = v->link.shared_recall > 0 ? fmin(gpus, v->link.host_bandwidth) : gpus;

    cluster->charge.recall_bytes += bytes;
    cluster->charge.pnm_bytes += bytes;
    return transfer(cluster, NKV_SIM_RECALL, resources, ready, bytes, bandwidth);
}

static int in_plan_order(const void *a, const void *b)
{
    const struct sim_transfer *x = a, *y = b;

    if (x->submit_ns != y->submit_ns)
        return x->submit_ns < y->submit_ns ? -1 : 1;
    return (x->user_data > y->user_data) - (x->user_data < y->user_data);
}

/* Pages that the host asked for at the same time are one gather: its kernel ends when the last has come. */
static void arrive_together(struct sim_cluster *cluster)
{
    uint32_t n = cluster->n_transfers, begin = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct sim_transfer *up = cluster->transfers;
        struct sim_moment last = {0, SIM_NO_CAUSE};

        if (i + 1 < n && up[i + 1].submit_ns == up[begin].submit_ns)
            continue;
        for (uint32_t j = begin; j <= i; j++)
            if (up[j].gather)
                last = sim_later(last, *up[j].end);
        for (uint32_t j = begin; j <= i; j++)
            if (up[j].gather)
                *up[j].end = last;
        begin = i + 1;
    }
}

void sim_pnm_serve_up(struct sim_cluster *cluster)
{
    if (cluster->n_transfers > 1)
        qsort(cluster->transfers, cluster->n_transfers, sizeof *cluster->transfers, in_plan_order);
    for (uint32_t i = 0; i < cluster->n_transfers; i++) {
        const struct sim_transfer *up = &cluster->transfers[i];

        *up->end = up->recall ? sim_pnm_recall(cluster, up->pnm, up->ready, up->bytes)
                              : sim_pnm_send(cluster, up->pnm, up->ready, up->bytes);
    }
    arrive_together(cluster);
    cluster->n_transfers = 0;
}

static struct sim_moment engine(struct sim_cluster *cluster, const struct sim_pnm *pnm, enum nkv_sim_part part,
                                struct sim_moment ready, const struct sim_cost *cost, double efficiency)
{
    const struct sim_values *v = cluster->values;
    double memory = cost->bytes / (v->pnm.memory_bandwidth * efficiency);
    double seconds = fmax(
        memory, fmax(cost->flops / (v->pnm.compute_rate * v->pnm.compute_efficiency), cost->exps / v->pnm.exp_rate));

    cluster->charge.pnm_bytes += cost->bytes;
    cluster->charge.pnm_flops += cost->flops;
    return sim_serve(&cluster->world, pnm->engine, part, ready,
                     sim_ns(seconds + v->pnm.access_latency + v->pnm.command_overhead));
}

struct sim_moment sim_pnm_append(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                                 const struct sim_cost *cost)
{
    double run = run_bytes(&cluster->shape) / cluster->shape.page_tokens;

    return engine(cluster, pnm, NKV_SIM_APPEND, ready, cost, sim_pnm_efficiency(cluster->values, run, 1));
}

struct sim_moment sim_pnm_score(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                                const struct sim_cost *cost, double n_scores)
{
    struct sim_moment scored =
        engine(cluster, pnm, NKV_SIM_SCORE, ready, cost, cluster->values->pnm.efficiency_sequential);

    return sim_serve(&cluster->world, pnm->engine, NKV_SIM_TOPK, scored,
                     sim_ns(n_scores / cluster->values->pnm.sort_rate));
}

struct sim_moment sim_pnm_attend(struct sim_cluster *cluster, const struct sim_pnm *pnm, struct sim_moment ready,
                                 const struct sim_cost *cost)
{
    double efficiency = sim_pnm_efficiency(cluster->values, run_bytes(&cluster->shape), 0);

    cluster->charge.pnm_attend_bytes += cost->bytes;
    return engine(cluster, pnm, NKV_SIM_ATTEND_PNM, ready, cost, efficiency);
}
