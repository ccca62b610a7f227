/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What memory there is for a device, and how to name it: NUMA nodes with hwloc (which leaves out what the cgroup
 * forbids), then DAX and CXL devices (memory_devices.c).
 *
 * hwloc gives a node without CPUs the CPUs that are near it, so whether a node has its own is read from its cpulist;
 * hwloc's answer stands in where that file is hidden. Bandwidth and latency are those that the kernel took from the
 * HMAT for the nearest CPUs. Distances are the SLIT's: from the nearest node with CPUs; the own one is 10 by
 * definition, and hwloc keeps no matrix of a single node.
 *
 * Invariant: 0, -1 or "" is "not known"; a file with anything but what it should hold counts as missing, and nothing
 * but lack of memory makes the list fail: a machine may be described badly and work well.
 *
 * Rejected: hwloc's memory attributes for the HMAT: they mix in estimates of hwloc's own where a table is missing.
 */
#include <hwloc.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/cpu.h"
#include "device/memory_list.h"

#define LOCAL_DISTANCE 10u
#define NODE_DIR       "/sys/devices/system/node/node"
/* Sizes of at least so much are named in G, smaller ones in M: rounding down loses little. */
#define WHOLE_G ((uint64_t)16 << 30)

int nkv_memory_append(struct nkv_memory_builder *builder, enum nkv_memory_kind kind, const char *name,
                      struct nkv_memory **memory_out)
{
    struct nkv_memory *memory;

    if (builder->n == builder->size) {
        uint32_t size = builder->size ? 2 * builder->size : 8;
        struct nkv_memory *grown;

        TRY(nkv_alloc(size, sizeof *grown, &grown));
        if (builder->n)
            memcpy(grown, builder->memories, builder->n * sizeof *grown);
        nkv_free(builder->memories);
        builder->memories = grown;
        builder->size = size;
    }
    memory = &builder->memories[builder->n++];
    memory->kind = kind;
    memory->node = -1;
    snprintf(memory->name, sizeof memory->name, "%s", name);
    *memory_out = memory;
    return 0;
}

/* ---- Files of /sys ----------------------------------------------------------------------------------------------- */

static FILE *open_node_file(const char *root, int node, const char *name)
{
    char path[600];

    if (snprintf(path, sizeof path, "%s" NODE_DIR "%d/%s", root, node, name) >= (int)sizeof path)
        return NULL;
    return fopen(path, "r");
}

/* A file that holds one number; 0: there is none, or it holds something else. */
static uint32_t node_number(const char *root, int node, const char *name)
{
    FILE *file = open_node_file(root, node, name);
    char line[16] = "";
    size_t digits;

    if (!file)
        return 0;
    if (!fgets(line, sizeof line, file))
        line[0] = '\0';
    fclose(file);
    digits = strspn(line, "0123456789");
    if (digits == 0 || digits > 9 || (line[digits] && line[digits] != '\n'))
        return 0;
    return (uint32_t)strtoul(line, NULL, 10);
}

/* Free pages, and those of files that were not used lately: as good as free. UINT64_MAX: the file is hidden. */
static uint64_t node_free_bytes(const char *root, int node)
{
    FILE *file = open_node_file(root, node, "meminfo");
    char line[128], key[32], kib[16];
    uint64_t bytes = 0;

    if (!file)
        return UINT64_MAX;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "Node %*d %31s %15[0-9]", key, kib) == 2 &&
            (strcmp(key, "MemFree:") == 0 || strcmp(key, "Inactive(file):") == 0))
            bytes += (uint64_t)strtoull(kib, NULL, 10) << 10;
    fclose(file);
    return bytes;
}

/* The node's own CPUs, as text; what does not fit is cut off. returns: false when the file is hidden. */
static bool node_cpus(const char *root, int node, char *cpus_out, size_t size)
{
    FILE *file = open_node_file(root, node, "cpulist");

    if (!file)
        return false;
    if (!fgets(cpus_out, (int)size, file))
        cpus_out[0] = '\0';
    fclose(file);
    cpus_out[strspn(cpus_out, "0123456789,-")] = '\0';
    return true;
}

/* ---- Nodes ------------------------------------------------------------------------------------------------------- */

static int append_node(struct nkv_memory_builder *builder, const char *root, hwloc_obj_t object)
{
    int node = (int)object->os_index;
    struct nkv_memory *memory;
    char name[32];

    snprintf(name, sizeof name, "node%d", node);
    TRY(nkv_memory_append(builder, NKV_MEMORY_NODE, name, &memory));
    memory->node = node;
    memory->bytes = object->attr->numanode.local_memory;
    snprintf(memory->path, sizeof memory->path, NODE_DIR "%d", node);
    if (!node_cpus(root, node, memory->cpus, sizeof memory->cpus))
        hwloc_bitmap_list_snprintf(memory->cpus, sizeof memory->cpus, object->cpuset);
    if (*memory->cpus)
        memory->distance = LOCAL_DISTANCE;
    else
        memory->kind = NKV_MEMORY_CPULESS_NODE;
    memory->bandwidth_mb_s = node_number(root, node, "access0/initiators/read_bandwidth");
    memory->latency_ns = node_number(root, node, "access0/initiators/read_latency");
    return 0;
}

static struct nkv_memory *find_node(struct nkv_memory_builder *builder, hwloc_obj_t object)
{
    for (uint32_t i = 0; i < builder->n; i++)
        if (object && builder->memories[i].node == (int32_t)object->os_index)
            return &builder->memories[i];
    return NULL;
}

/* For each node without CPUs the least value from a node with CPUs. */
static void take_distances(struct nkv_memory_builder *builder, const struct hwloc_distances_s *matrix)
{
    for (unsigned from = 0; from < matrix->nbobjs; from++) {
        const struct nkv_memory *initiator = find_node(builder, matrix->objs[from]);

        for (unsigned to = 0; to < matrix->nbobjs && initiator && *initiator->cpus; to++) {
            struct nkv_memory *target = find_node(builder, matrix->objs[to]);
            uint64_t value = matrix->values[from * matrix->nbobjs + to];

            if (target && !*target->cpus && value <= UINT32_MAX && (!target->distance || value < target->distance))
                target->distance = (uint32_t)value;
        }
    }
}

static int append_loaded_nodes(struct nkv_memory_builder *builder, const char *root, hwloc_topology_t topology)
{
    struct hwloc_distances_s *matrix;
    hwloc_obj_t object = NULL;
    unsigned n = 1;

    while ((object = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, object)))
        TRY(append_node(builder, root, object));
    if (hwloc_distances_get_by_name(topology, "NUMALatency", &n, &matrix, 0) == 0 && n > 0) {
        take_distances(builder, matrix);
        hwloc_distances_release(topology, matrix);
    }
    return 0;
}

static int append_nodes(struct nkv_memory_builder *builder, const char *root)
{
    hwloc_topology_t topology;
    int status = 0;

    if (hwloc_topology_init(&topology))
        FAIL(NKV_ENOMEM, "hwloc cannot start");
    if (hwloc_topology_load(topology) == 0)
        status = append_loaded_nodes(builder, root, topology);
    hwloc_topology_destroy(topology);
    return status;
}

/* ---- What to use ------------------------------------------------------------------------------------------------- */

/* As a device's default capacity: 80 % of what is free, on the node and in all. */
static void name_node(struct nkv_memory *memory, const char *root, uint64_t available_bytes, bool is_only)
{
    uint64_t bytes = node_free_bytes(root, memory->node);
    char size[32];

    bytes = (bytes < available_bytes ? bytes : available_bytes) / 5 * 4;
    if (memory->bytes && bytes > memory->bytes)
        bytes = memory->bytes;
    if (bytes >> 20 == 0)
        return;
    if (bytes >= WHOLE_G)
        snprintf(size, sizeof size, "%" PRIu64 "G", bytes >> 30);
    else
        snprintf(size, sizeof size, "%" PRIu64 "M", bytes >> 20);
    if (is_only)
        snprintf(memory->argument, sizeof memory->argument, "anon:%s", size);
    else
        snprintf(memory->argument, sizeof memory->argument, "numa:%d:%s", memory->node, size);
}

/* A DAX device is nobody else's memory; then a node that runs no programs; then the rest. Of a kind, the largest. */
static const struct nkv_memory *choose(const struct nkv_memory_builder *builder)
{
    static const int rank[NKV_MEMORY_KIND_COUNT] = {
        [NKV_MEMORY_NODE] = 1, [NKV_MEMORY_CPULESS_NODE] = 2, [NKV_MEMORY_DAX] = 3};
    const struct nkv_memory *best = NULL;

    for (uint32_t i = 0; i < builder->n; i++) {
        const struct nkv_memory *memory = &builder->memories[i];

        if (*memory->argument && (!best || rank[memory->kind] > rank[best->kind] ||
                                  (memory->kind == best->kind && memory->bytes > best->bytes)))
            best = memory;
    }
    return best;
}

static int build(struct nkv_memory_builder *builder, const char *root, uint64_t available_bytes)
{
    TRY(append_nodes(builder, root));
    for (uint32_t i = 0; i < builder->n; i++)
        name_node(&builder->memories[i], root, available_bytes, builder->n == 1);
    return nkv_memory_append_devices(builder);
}

int nkv_memory_list_open_at(const char *root, uint64_t available_bytes, struct nkv_memory_list **list_out)
{
    struct nkv_memory_builder builder = {0};
    struct nkv_memory_list *list;
    int status;

    TRY(nkv_alloc(1, sizeof *list, &list));
    status = build(&builder, root, available_bytes);
    if (status < 0) {
        nkv_free(builder.memories);
        nkv_free(list);
        return status;
    }
    list->memories = builder.memories;
    list->n = builder.n;
    list->best = choose(&builder);
    *list_out = list;
    return 0;
}

int nkv_memory_list_open(struct nkv_memory_list **list_out)
{
    return nkv_memory_list_open_at("", nkv_cpu_available_bytes(), list_out);
}

void nkv_memory_list_close(struct nkv_memory_list *list)
{
    if (!list)
        return;
    nkv_free(list->memories);
    nkv_free(list);
}

const char *nkv_memory_kind_name(enum nkv_memory_kind kind)
{
    static const char *const names[NKV_MEMORY_KIND_COUNT] = {
        [NKV_MEMORY_NODE] = "node",
        [NKV_MEMORY_CPULESS_NODE] = "memory-only node",
        [NKV_MEMORY_DAX] = "dax",
        [NKV_MEMORY_CXL] = "cxl",
    };

    return (unsigned)kind < NKV_MEMORY_KIND_COUNT ? names[kind] : "unknown";
}
