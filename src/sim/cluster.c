/* SPDX-License-Identifier: Apache-2.0 */
#include "sim/cluster.h"

static int open_nodes(struct sim_cluster *cluster)
{
    TRY(nkv_alloc(cluster->n_nodes, sizeof *cluster->host_in, &cluster->host_in));
    TRY(nkv_alloc(cluster->n_nodes, sizeof *cluster->host_out, &cluster->host_out));
    TRY(nkv_alloc(cluster->n_nodes, sizeof *cluster->host_recall, &cluster->host_recall));
    for (uint32_t i = 0; i < cluster->n_nodes; i++) {
        cluster->host_in[i] = sim_resource_add(&cluster->world, SIM_LINK, "host %u in", i);
        cluster->host_out[i] = sim_resource_add(&cluster->world, SIM_LINK, "host %u out", i);
        cluster->host_recall[i] = sim_resource_add(&cluster->world, SIM_RECALL_LINK, "host %u recall", i);
    }
    return 0;
}

int sim_cluster_open(struct sim_cluster *cluster)
{
    uint32_t per_node = (uint32_t)cluster->values->node.pnm_per_node;
    int status;

    cluster->n_nodes = cluster->n_pnm ? (cluster->n_pnm + per_node - 1) / per_node : 1;
    TRY(sim_world_open(1 + 3 * cluster->n_nodes + 4 * cluster->n_pnm, &cluster->world));
    cluster->gpu = sim_resource_add(&cluster->world, SIM_GPU_ENGINE, "GPUs");
    status = open_nodes(cluster);
    if (status < 0)
        sim_cluster_close(cluster);
    return status;
}

void sim_cluster_close(struct sim_cluster *cluster)
{
    nkv_free(cluster->host_in);
    nkv_free(cluster->host_out);
    nkv_free(cluster->host_recall);
    nkv_free(cluster->transfers);
    cluster->host_in = cluster->host_out = cluster->host_recall = NULL;
    cluster->transfers = NULL;
    sim_world_close(&cluster->world);
}

uint64_t sim_cluster_now(void *cluster)
{
    return ((const struct sim_cluster *)cluster)->world.now.ns;
}

void sim_cluster_set_rates(struct sim_cluster *cluster, double weight_bytes)
{
    const struct sim_values *v = cluster->values;
    bool bits8 = weight_bytes <= 1;

    cluster->weight_rate = v->gpu.memory_bandwidth * (bits8 ? v->gpu.weight_efficiency_8bit : v->gpu.weight_efficiency);
    cluster->gemm_rate = v->gpu.compute_rate * (bits8 ? 2 * v->gpu.gemm_efficiency_8bit : v->gpu.gemm_efficiency);
}
