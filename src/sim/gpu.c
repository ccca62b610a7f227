/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPUs' times: one group, one engine. A layer's FC is split over the tp GPUs of a stage; the pp stages work on a
 * pp-th of the batch each, at the same time, so a layer takes as long as one stage's share of the batch. Attention is
 * split over all of them. Attention of a batch is one kernel however many commands say it: it takes the sum of their
 * times, and at least the floor that profiles show.
 */
#include <math.h>

#include "sim/cluster.h"

/* Ring all-reduce: twice (tp - 1) / tp of the data over each GPU's link, after a latency. */
static double allreduce_seconds(const struct sim_cluster *cluster, const struct nkv_cmd *cmd)
{
    const struct sim_values *v = cluster->values;
    double bytes = (double)cmd->list_offset / cluster->pp, tp = cluster->tp;

    if (cluster->tp < 2)
        return 0;
    return cmd->arg * (v->gpu.allreduce_latency + 2 * (tp - 1) / tp * bytes / v->gpu.link_bandwidth);
}

struct sim_moment sim_gpu_fc(struct sim_cluster *cluster, struct sim_moment ready, const struct nkv_cmd *cmd)
{
    const struct sim_values *v = cluster->values;
    double bytes = (double)cmd->out_offset, flops = (double)cmd->in_offset;
    double stream = bytes / (cluster->tp * cluster->weight_rate);
    double multiply = flops / (cluster->n_gpus * cluster->gemm_rate);
    struct sim_moment end;

    cluster->batch.open = false;
    cluster->charge.gpu_bytes += bytes * cluster->pp;
    cluster->charge.gpu_flops += flops;
    end = sim_serve(&cluster->world, cluster->gpu, NKV_SIM_FC, ready,
                    sim_ns(fmax(stream, multiply) + v->gpu.layer_overhead));
    return sim_serve(&cluster->world, cluster->gpu, NKV_SIM_ALLREDUCE, end, sim_ns(allreduce_seconds(cluster, cmd)));
}

static double attention_seconds(struct sim_cluster *cluster, const struct sim_cost *cost)
{
    const struct sim_values *v = cluster->values;
    double n = cluster->n_gpus;

    cluster->charge.gpu_bytes += cost->bytes;
    cluster->charge.gpu_flops += cost->flops;
    return fmax(cost->bytes / (n * v->gpu.memory_bandwidth * v->gpu.attention_efficiency),
                cost->flops / (n * v->gpu.compute_rate * v->gpu.gemm_efficiency));
}

/* One kernel for all sequences of a batch: the floor is the kernel's, not each command's, and keeps the engine busy. */
static struct sim_moment kernel(struct sim_cluster *cluster, enum nkv_sim_part part, struct sim_moment ready,
                                const struct nkv_cmd *cmd, const struct sim_cost *cost)
{
    struct sim_resource *engine = &cluster->world.resources[cluster->gpu];
    struct sim_batch *batch = &cluster->batch;
    uint64_t ns = sim_ns(attention_seconds(cluster, cost)), floor_ns = sim_ns(cluster->values->gpu.attention_floor);
    struct sim_moment start, end;

    if (batch->open && batch->part == part && batch->layer == cmd->layer && batch->pos == cmd->pos) {
        start = sim_later(ready, batch->work);
    } else {
        start = sim_later(ready, engine->free);
        *batch = (struct sim_batch){
            .open = true, .part = part, .layer = cmd->layer, .pos = cmd->pos, .floor_ns = start.ns + floor_ns};
    }
    batch->work.ns = start.ns + ns;
    end = sim_serve_until(&cluster->world, cluster->gpu, part, start,
                          batch->work.ns > batch->floor_ns ? batch->work.ns : batch->floor_ns, batch->counted_ns);
    batch->work.cause = end.cause;
    batch->counted_ns = end.ns;
    return end;
}

struct sim_moment sim_gpu_score(struct sim_cluster *cluster, struct sim_moment ready, const struct nkv_cmd *cmd,
                                const struct sim_cost *cost)
{
    return kernel(cluster, NKV_SIM_SCORE, ready, cmd, cost);
}

struct sim_moment sim_gpu_attend(struct sim_cluster *cluster, struct sim_moment ready, const struct nkv_cmd *cmd,
                                 const struct sim_cost *cost)
{
    return kernel(cluster, NKV_SIM_ATTEND_GPU, ready, cmd, cost);
}
