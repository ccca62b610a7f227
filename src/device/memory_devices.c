/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DAX devices with libdaxctl and CXL memory devices with libcxl, appended to a list of nodes (memory_list.c).
 *
 * A DAX device is memory that can be mapped (dax:/dev/daxX.Y), unless its driver is kmem: then the kernel has it as a
 * NUMA node, and that node's --memory is the one to use. Its target node, when online, tells distance and speed. A CXL
 * memory device cannot be mapped: it is listed for its size, without a --memory, until a region makes a DAX device or
 * a node of it, which is an entry of its own.
 *
 * Invariant: both libraries only read here, need no privilege, and their failures, a missing /sys/bus/cxl among them,
 * leave the list as it is. They would print to stderr: their logs are dropped.
 *
 * Rejected: following a memory device through its regions to its DAX devices: of persistent regions, the only ones that
 * older kernels make, libcxl does not know the DAX device.
 */
#include <cxl/libcxl.h>
#include <daxctl/libdaxctl.h>
#include <stdio.h>

#include "base/status.h"
#include "device/memory_list.h"

static void drop_dax_log(struct daxctl_ctx *ctx, int priority, const char *file, int line, const char *function,
                         const char *format, va_list args)
{
    (void)ctx, (void)priority, (void)file, (void)line, (void)function, (void)format, (void)args;
}

static void drop_cxl_log(struct cxl_ctx *ctx, int priority, const char *file, int line, const char *function,
                         const char *format, va_list args)
{
    (void)ctx, (void)priority, (void)file, (void)line, (void)function, (void)format, (void)args;
}

/* Sizes that the libraries could not read are ~0; JSON has no more than 63 bits. */
static uint64_t known_bytes(unsigned long long bytes)
{
    return bytes > INT64_MAX / 2 ? 0 : bytes;
}

static int append_dax(struct nkv_memory_builder *builder, struct daxctl_dev *dev)
{
    const char *name = daxctl_dev_get_devname(dev);
    struct nkv_memory *memory;

    if (!name || daxctl_dev_get_size(dev) == 0) /* a seed: a name without memory */
        return 0;
    TRY(nkv_memory_append(builder, NKV_MEMORY_DAX, name, &memory));
    memory->bytes = known_bytes(daxctl_dev_get_size(dev));
    memory->node = daxctl_dev_get_target_node(dev) < 0 ? -1 : daxctl_dev_get_target_node(dev);
    snprintf(memory->path, sizeof memory->path, "/dev/%s", memory->name);
    if (!daxctl_dev_get_memory(dev))
        snprintf(memory->argument, sizeof memory->argument, "dax:%s", memory->path);
    for (const struct nkv_memory *node = builder->memories; node < memory && memory->node >= 0; node++)
        if (node->kind <= NKV_MEMORY_CPULESS_NODE && node->node == memory->node) {
            memory->distance = node->distance;
            memory->bandwidth_mb_s = node->bandwidth_mb_s;
            memory->latency_ns = node->latency_ns;
            if (!*memory->argument)
                memcpy(memory->argument, node->argument, sizeof memory->argument);
        }
    return 0;
}

static int append_all_dax(struct nkv_memory_builder *builder, struct daxctl_ctx *ctx)
{
    struct daxctl_region *region;
    struct daxctl_dev *dev;

    daxctl_region_foreach(ctx, region)
    {
        daxctl_dev_foreach(region, dev) TRY(append_dax(builder, dev));
    }
    return 0;
}

static int append_all_cxl(struct nkv_memory_builder *builder, struct cxl_ctx *ctx)
{
    struct cxl_memdev *memdev;

    cxl_memdev_foreach(ctx, memdev)
    {
        const char *name = cxl_memdev_get_devname(memdev);
        struct nkv_memory *memory;

        if (!name)
            continue;
        TRY(nkv_memory_append(builder, NKV_MEMORY_CXL, name, &memory));
        memory->bytes = known_bytes(cxl_memdev_get_ram_size(memdev)) + known_bytes(cxl_memdev_get_pmem_size(memdev));
        memory->node = cxl_memdev_get_numa_node(memdev) < 0 ? -1 : cxl_memdev_get_numa_node(memdev);
        snprintf(memory->path, sizeof memory->path, "/dev/cxl/%s", memory->name);
    }
    return 0;
}

int nkv_memory_append_devices(struct nkv_memory_builder *builder)
{
    struct daxctl_ctx *dax;
    struct cxl_ctx *cxl;
    int status = 0;

    if (daxctl_new(&dax) == 0) {
        daxctl_set_log_fn(dax, drop_dax_log);
        status = append_all_dax(builder, dax);
        daxctl_unref(dax);
    }
    if (status == 0 && cxl_new(&cxl) == 0) {
        cxl_set_log_fn(cxl, drop_cxl_log);
        status = append_all_cxl(builder, cxl);
        cxl_unref(cxl);
    }
    return status;
}
