/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DAX devices with libdaxctl and CXL memory devices with libcxl, appended to a list of nodes (memory_list.c).
 *
 * A DAX device is memory that can be mapped (dax:/dev/daxX.Y), unless its driver is kmem: then the kernel has it as a
 * NUMA node, and that node's --memory is the one to use. Its target node, when online, tells distance and speed. A CXL
 * memory device cannot be mapped: it is listed for its size, without a --memory, until a region makes a DAX device or
 * a node of it, which is an entry of its own. The region that both name shows that they belong together: the one of a
 * memory device is that of its decoders, the one of a DAX device that around its address. Entries are in the order of
 * their names, not in that in which the kernel found the devices, which changes from boot to boot.
 *
 * Invariant: both libraries only read here, need no privilege, and their failures, a missing /sys/bus/cxl among them,
 * leave the list as it is. They would print to stderr: their logs are dropped.
 *
 * Rejected: following a region to its DAX devices with libcxl: it does not know those of persistent regions, the only
 * ones that older kernels make.
 */
#define _GNU_SOURCE
#include <cxl/libcxl.h>
#include <daxctl/libdaxctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static bool holds(struct cxl_region *region, uint64_t address)
{
    return address - known_bytes(cxl_region_get_resource(region)) < known_bytes(cxl_region_get_size(region));
}

/* Adds the regions of a memory device; of those with an address given, only the one around it. */
static void add_regions(struct cxl_memdev *memdev, const uint64_t *address, struct nkv_memory *memory)
{
    struct cxl_endpoint *endpoint = cxl_memdev_get_endpoint(memdev);
    struct cxl_decoder *decoder;

    if (!endpoint)
        return;
    cxl_decoder_foreach(cxl_endpoint_get_port(endpoint), decoder)
    {
        struct cxl_region *region = cxl_decoder_get_region(decoder);
        size_t used = strlen(memory->regions);

        if (region && (!address || holds(region, *address)))
            snprintf(memory->regions + used, sizeof memory->regions - used, "%s%s", used ? "," : "",
                     cxl_region_get_devname(region));
    }
}

/* Several memory devices may interleave in a region: the first one tells its name. */
static void find_region(struct cxl_ctx *cxl, uint64_t address, struct nkv_memory *memory)
{
    struct cxl_memdev *memdev;

    cxl_memdev_foreach(cxl, memdev)
    {
        if (!*memory->regions)
            add_regions(memdev, &address, memory);
    }
}

static int append_dax(struct nkv_memory_builder *builder, struct daxctl_dev *dev, struct cxl_ctx *cxl)
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
    if (cxl && known_bytes(daxctl_dev_get_resource(dev)))
        find_region(cxl, daxctl_dev_get_resource(dev), memory);
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

static int append_all_dax(struct nkv_memory_builder *builder, struct daxctl_ctx *ctx, struct cxl_ctx *cxl)
{
    struct daxctl_region *region;
    struct daxctl_dev *dev;

    daxctl_region_foreach(ctx, region)
    {
        daxctl_dev_foreach(region, dev) TRY(append_dax(builder, dev, cxl));
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
        add_regions(memdev, NULL, memory);
    }
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strverscmp(((const struct nkv_memory *)a)->name, ((const struct nkv_memory *)b)->name);
}

static void sort_from(struct nkv_memory_builder *builder, uint32_t first)
{
    if (builder->n > first)
        qsort(builder->memories + first, builder->n - first, sizeof *builder->memories, by_name);
}

int nkv_memory_append_devices(struct nkv_memory_builder *builder)
{
    struct daxctl_ctx *dax;
    struct cxl_ctx *cxl;
    uint32_t first = builder->n;
    int status = 0;

    if (cxl_new(&cxl) != 0)
        cxl = NULL;
    if (cxl)
        cxl_set_log_fn(cxl, drop_cxl_log);
    if (daxctl_new(&dax) == 0) {
        daxctl_set_log_fn(dax, drop_dax_log);
        status = append_all_dax(builder, dax, cxl);
        daxctl_unref(dax);
        sort_from(builder, first);
    }
    first = builder->n;
    if (status == 0 && cxl) {
        status = append_all_cxl(builder, cxl);
        sort_from(builder, first);
    }
    if (cxl)
        cxl_unref(cxl);
    return status;
}
