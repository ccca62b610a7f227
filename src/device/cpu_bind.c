/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where threads and memory belong: hwloc where there is more than one NUMA node (a CXL memory expander is one without
 * CPUs), nothing where there is one. A device on a node has its memory there and its threads on the CPUs that hwloc
 * calls local to it; a device without a node on such a machine spreads its memory over all nodes and lets threads run
 * anywhere. The topology is read only when it matters, as reading it takes longer than opening the device.
 *
 * On one node a team with a thread for every CPU gives each its own (base/affinity.h).
 *
 * Also how much memory is free: the least of the system's and of the cgroups' that this process is in.
 */
#include <hwloc.h>
#include <stdio.h>
#include <string.h>

#include "base/affinity.h"
#include "device/cpu.h"

struct nkv_cpu_binding {
    hwloc_topology_t topology;
    hwloc_const_nodeset_t nodes;
    hwloc_const_cpuset_t cpus; /* NULL: any */
    hwloc_membind_policy_t policy;
};

/* The first line of a file without its newline; "" when it cannot be read. */
static void read_line(const char *path, char *line_out, size_t size)
{
    FILE *file = fopen(path, "r");

    line_out[0] = '\0';
    if (!file)
        return;
    if (!fgets(line_out, (int)size, file))
        line_out[0] = '\0';
    line_out[strcspn(line_out, "\n")] = '\0';
    fclose(file);
}

/* "0" or "3" is one node; "0-1" or "0,2" are several. */
static bool has_several_nodes(void)
{
    char line[256];

    read_line("/sys/devices/system/node/online", line, sizeof line);
    return strpbrk(line, ",-") != NULL;
}

static int bind_to_node(struct nkv_cpu_binding *binding, unsigned node, uint32_t *n_cpus_out)
{
    hwloc_obj_t object = hwloc_get_numanode_obj_by_os_index(binding->topology, node);
    char nodes[128];
    int n_cpus;

    if (!object) {
        hwloc_bitmap_list_snprintf(nodes, sizeof nodes, hwloc_topology_get_topology_nodeset(binding->topology));
        FAIL(NKV_EINVAL, "no NUMA node %u: the nodes of this machine are %s", node, nodes);
    }
    binding->nodes = object->nodeset;
    binding->policy = HWLOC_MEMBIND_BIND;
    n_cpus = hwloc_bitmap_weight(object->cpuset);
    if (n_cpus > 0) {
        binding->cpus = object->cpuset;
        *n_cpus_out = (uint32_t)n_cpus < *n_cpus_out ? (uint32_t)n_cpus : *n_cpus_out;
    }
    return 0;
}

int nkv_cpu_binding_open(int node, struct nkv_cpu_binding **binding_out, uint32_t *n_cpus_out)
{
    struct nkv_cpu_binding *binding;
    uint32_t n_cpus = nkv_cpu_count();
    int status = 0;

    *n_cpus_out = n_cpus;
    if (node < 0 && !has_several_nodes())
        return 0;
    TRY(nkv_alloc(1, sizeof *binding, &binding));
    if (hwloc_topology_init(&binding->topology)) {
        nkv_free(binding);
        FAIL(NKV_ENOMEM, "hwloc cannot start");
    }
    if (hwloc_topology_load(binding->topology))
        status = nkv_fail(NKV_EIO, "hwloc cannot read this machine's topology");
    if (status == 0 && node >= 0)
        status = bind_to_node(binding, (unsigned)node, &n_cpus);
    if (status < 0) {
        nkv_cpu_binding_close(binding);
        return status;
    }
    if (node < 0) {
        binding->nodes = hwloc_topology_get_topology_nodeset(binding->topology);
        binding->policy = HWLOC_MEMBIND_INTERLEAVE;
    }
    *binding_out = binding;
    *n_cpus_out = n_cpus;
    return 0;
}

void nkv_cpu_binding_close(struct nkv_cpu_binding *binding)
{
    if (!binding)
        return;
    hwloc_topology_destroy(binding->topology);
    nkv_free(binding);
}

void nkv_cpu_bind_thread(const struct nkv_cpu_binding *binding, uint32_t rank, uint32_t n_threads,
                         struct nkv_affinity *before_out)
{
    if (before_out)
        *before_out = (struct nkv_affinity){0};
    if (!binding)
        nkv_affinity_pin(rank, n_threads, before_out);
    else if (binding->cpus)
        (void)hwloc_set_cpubind(binding->topology, binding->cpus, HWLOC_CPUBIND_THREAD);
}

void nkv_cpu_bind_memory(const struct nkv_cpu_binding *binding, void *base, size_t bytes)
{
    if (binding)
        (void)hwloc_set_area_membind(binding->topology, base, bytes, binding->nodes, binding->policy,
                                     HWLOC_MEMBIND_BYNODESET);
}

/* The number after `key` in a file of "key number" lines; fallback when there is none. */
static uint64_t read_number(const char *path, const char *key, uint64_t fallback)
{
    FILE *file = fopen(path, "r");
    char line[256];
    size_t length = strlen(key);
    unsigned long long number;

    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, key, length) == 0 && sscanf(line + length, "%llu", &number) == 1) {
            fallback = number;
            break;
        }
    if (file)
        fclose(file);
    return fallback;
}

/* What is left under one cgroup's limit: pages of files that were not used lately are as good as free. */
static uint64_t cgroup_left(const char *dir, const char *limit_file, const char *used_file)
{
    char path[600];
    uint64_t limit, used, reclaimable;

    snprintf(path, sizeof path, "%s/%s", dir, limit_file);
    limit = read_number(path, "", UINT64_MAX);
    snprintf(path, sizeof path, "%s/%s", dir, used_file);
    used = read_number(path, "", 0);
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    reclaimable = read_number(path, "inactive_file ", 0);
    used -= reclaimable < used ? reclaimable : used;
    return limit == UINT64_MAX ? limit : limit - (used < limit ? used : limit);
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

uint64_t nkv_cpu_available_bytes(void)
{
    uint64_t left = read_number("/proc/meminfo", "MemAvailable:", (uint64_t)1 << 20) << 10;
    char own[256], dir[512];

    left = min_u64(left, cgroup_left("/sys/fs/cgroup", "memory.max", "memory.current"));
    left = min_u64(left, cgroup_left("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"));
    read_line("/proc/self/cgroup", own, sizeof own);
    if (strncmp(own, "0::/", 4) == 0 && own[4]) {
        snprintf(dir, sizeof dir, "/sys/fs/cgroup%s", own + 3);
        left = min_u64(left, cgroup_left(dir, "memory.max", "memory.current"));
    }
    return left;
}
