/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of memories over a made-up /sys (hwloc reads it through HWLOC_FSROOT) and made-up libcxl and libdaxctl: the
 * functions of these libraries that are defined here take the place of theirs.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>
#include <cxl/libcxl.h>
#include <daxctl/libdaxctl.h>

#include "base/mem.h"
#include "device/memory_list.h"

#define GIB     ((uint64_t)1 << 30)
#define AVAIL   (1000 * GIB)
#define NODE(n) "sys/devices/system/node/node" #n "/"
#define HMAT    "access0/initiators/"

/* ---- libdaxctl and libcxl ---------------------------------------------------------------------------------------- */

static struct daxctl_dev {
    const char *name;
    unsigned long long size;
    int node;
    bool is_kmem;
    unsigned long long resource;
} dax_devices[4];
static struct cxl_region {
    const char *name;
    unsigned long long resource, size;
} cxl_regions[3];
static struct cxl_memdev {
    const char *name;
    unsigned long long ram, pmem;
    int node;
    struct cxl_region *regions[3]; /* of its decoders; a device without any has no endpoint */
} cxl_devices[3];
static char cxl_context;
static unsigned n_dax, n_cxl;
static int library_status; /* of daxctl_new and cxl_new */

int daxctl_new(struct daxctl_ctx **ctx)
{
    *ctx = NULL;
    return library_status;
}

void daxctl_unref(struct daxctl_ctx *ctx)
{
    (void)ctx;
}

void daxctl_set_log_fn(struct daxctl_ctx *ctx,
                       void (*log_fn)(struct daxctl_ctx *ctx, int priority, const char *file, int line, const char *fn,
                                      const char *format, va_list args))
{
    (void)ctx, (void)log_fn;
}

struct daxctl_region *daxctl_region_get_first(struct daxctl_ctx *ctx)
{
    (void)ctx;
    return n_dax ? (struct daxctl_region *)dax_devices : NULL;
}

struct daxctl_region *daxctl_region_get_next(struct daxctl_region *region)
{
    (void)region;
    return NULL;
}

struct daxctl_dev *daxctl_dev_get_first(struct daxctl_region *region)
{
    (void)region;
    return dax_devices;
}

struct daxctl_dev *daxctl_dev_get_next(struct daxctl_dev *dev)
{
    return dev + 1 < dax_devices + n_dax ? dev + 1 : NULL;
}

const char *daxctl_dev_get_devname(struct daxctl_dev *dev)
{
    return dev->name;
}

unsigned long long daxctl_dev_get_size(struct daxctl_dev *dev)
{
    return dev->size;
}

int daxctl_dev_get_target_node(struct daxctl_dev *dev)
{
    return dev->node;
}

struct daxctl_memory *daxctl_dev_get_memory(struct daxctl_dev *dev)
{
    return dev->is_kmem ? (struct daxctl_memory *)dev : NULL;
}

unsigned long long daxctl_dev_get_resource(struct daxctl_dev *dev)
{
    return dev->resource;
}

int cxl_new(struct cxl_ctx **ctx)
{
    *ctx = (struct cxl_ctx *)&cxl_context;
    return library_status;
}

void cxl_unref(struct cxl_ctx *ctx)
{
    (void)ctx;
}

void cxl_set_log_fn(struct cxl_ctx *ctx, void (*log_fn)(struct cxl_ctx *ctx, int priority, const char *file, int line,
                                                        const char *fn, const char *format, va_list args))
{
    (void)ctx, (void)log_fn;
}

struct cxl_memdev *cxl_memdev_get_first(struct cxl_ctx *ctx)
{
    (void)ctx;
    return n_cxl ? cxl_devices : NULL;
}

struct cxl_memdev *cxl_memdev_get_next(struct cxl_memdev *memdev)
{
    return memdev + 1 < cxl_devices + n_cxl ? memdev + 1 : NULL;
}

/* Endpoint, port and first decoder are the array of the device's regions. */
struct cxl_endpoint *cxl_memdev_get_endpoint(struct cxl_memdev *memdev)
{
    return memdev->regions[0] ? (struct cxl_endpoint *)memdev->regions : NULL;
}

struct cxl_port *cxl_endpoint_get_port(struct cxl_endpoint *endpoint)
{
    return (struct cxl_port *)endpoint;
}

struct cxl_decoder *cxl_decoder_get_first(struct cxl_port *port)
{
    return (struct cxl_decoder *)port;
}

/* The last of the three slots ends the array. */
struct cxl_decoder *cxl_decoder_get_next(struct cxl_decoder *decoder)
{
    struct cxl_region **slot = (struct cxl_region **)decoder + 1;

    return *slot ? (struct cxl_decoder *)slot : NULL;
}

struct cxl_region *cxl_decoder_get_region(struct cxl_decoder *decoder)
{
    struct cxl_region *region = *(struct cxl_region **)decoder;

    return region->name ? region : NULL; /* without a name: a decoder that is not in use */
}

const char *cxl_region_get_devname(struct cxl_region *region)
{
    return region->name;
}

unsigned long long cxl_region_get_resource(struct cxl_region *region)
{
    return region->resource;
}

unsigned long long cxl_region_get_size(struct cxl_region *region)
{
    return region->size;
}

const char *cxl_memdev_get_devname(struct cxl_memdev *memdev)
{
    return memdev->name;
}

unsigned long long cxl_memdev_get_ram_size(struct cxl_memdev *memdev)
{
    return memdev->ram;
}

unsigned long long cxl_memdev_get_pmem_size(struct cxl_memdev *memdev)
{
    return memdev->pmem;
}

int cxl_memdev_get_numa_node(struct cxl_memdev *memdev)
{
    return memdev->node;
}

/* ---- A machine --------------------------------------------------------------------------------------------------- */

static char root[64];

static void put(const char *name, const char *text)
{
    char path[256];
    FILE *file;

    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = '\0';
        (void)mkdir(path, 0700);
    }
    file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void put_node(unsigned node, const char *cpulist, const char *cpumap, const char *distance, uint64_t total,
                     uint64_t free)
{
    char name[96], text[256];
    const char *const files[][2] = {
        {"cpulist", cpulist}, {"cpumap", cpumap}, {"distance", distance}, {"meminfo", text}};

    snprintf(text, sizeof text,
             "Node %u MemTotal: %llu kB\nNode %u MemFree: %llu kB\nNode %u Inactive(file): 1024 kB\n", node,
             (unsigned long long)(total >> 10), node, (unsigned long long)(free >> 10), node);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(name, sizeof name, "sys/devices/system/node/node%u/%s", node, files[i][0]);
        put(name, files[i][1]);
    }
}

static void remove_tree(void)
{
    char command[96];

    snprintf(command, sizeof command, "rm -rf '%s'", root);
    assert_int_equal(system(command), 0);
}

/* Two CPUs on nodes 0 and 1; node 2 has none, and is nearer to node 1. */
static int set_up(void **state)
{
    (void)state;
    n_dax = n_cxl = 0;
    memset(dax_devices, 0, sizeof dax_devices);
    memset(cxl_devices, 0, sizeof cxl_devices);
    memset(cxl_regions, 0, sizeof cxl_regions);
    library_status = 0;
    snprintf(root, sizeof root, "/tmp/nkv_memory_XXXXXX");
    assert_non_null(mkdtemp(root));
    put("proc/cpuinfo", "processor\t: 0\n\nprocessor\t: 1\n\n");
    put("proc/meminfo", "MemTotal: 16777216 kB\n");
    put("sys/devices/system/cpu/online", "0-1\n");
    for (int cpu = 0; cpu < 2; cpu++) {
        const char *const files[][2] = {{"core_id", "0\n"},
                                        {"physical_package_id", cpu ? "1\n" : "0\n"},
                                        {"thread_siblings", cpu ? "2\n" : "1\n"},
                                        {"core_siblings", cpu ? "2\n" : "1\n"}};
        char name[96];

        for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
            snprintf(name, sizeof name, "sys/devices/system/cpu/cpu%d/topology/%s", cpu, files[i][0]);
            put(name, files[i][1]);
        }
    }
    put("sys/devices/system/node/online", "0-2\n");
    put_node(0, "0\n", "1\n", "10 21 30\n", 8 * GIB, 5 * GIB);
    put_node(1, "1\n", "2\n", "21 10 17\n", 8 * GIB, 5 * GIB);
    put_node(2, "\n", "0\n", "30 17 10\n", 64 * GIB, 50 * GIB);
    put(NODE(2) HMAT "read_bandwidth", "26000\n");
    put(NODE(2) HMAT "read_latency", "250\n");
    return setenv("HWLOC_FSROOT", root, 1);
}

static int tear_down(void **state)
{
    (void)state;
    remove_tree();
    return unsetenv("HWLOC_FSROOT");
}

static struct nkv_memory_list *list_of(uint64_t available)
{
    struct nkv_memory_list *list;

    assert_int_equal(nkv_memory_list_open_at(root, available, &list), 0);
    return list;
}

/* ---- Tests ------------------------------------------------------------------------------------------------------- */

static void test_nodes(void **state)
{
    struct nkv_memory_list *list = list_of(AVAIL);

    (void)state;
    assert_int_equal(list->n, 3);
    assert_int_equal(list->memories[0].kind, NKV_MEMORY_NODE);
    assert_string_equal(list->memories[1].cpus, "1");
    assert_int_equal(list->memories[1].distance, 10);
    assert_int_equal(list->memories[1].bandwidth_mb_s, 0);
    assert_string_equal(list->memories[1].argument, "numa:1:4096M"); /* 80 % of 5 GiB and 1 MiB */
    assert_int_equal(list->memories[2].kind, NKV_MEMORY_CPULESS_NODE);
    assert_string_equal(list->memories[2].path, "/sys/devices/system/node/node2");
    assert_int_equal(list->memories[2].bytes, 64 * GIB);
    assert_int_equal(list->memories[2].distance, 17);
    assert_int_equal(list->memories[2].bandwidth_mb_s, 26000);
    assert_int_equal(list->memories[2].latency_ns, 250);
    assert_string_equal(list->memories[2].argument, "numa:2:40G");
    assert_ptr_equal(list->best, &list->memories[2]);
    nkv_memory_list_close(list);
}

static void test_what_is_available_limits(void **state)
{
    struct nkv_memory_list *list = list_of((uint64_t)100 << 20);

    (void)state;
    assert_string_equal(list->memories[0].argument, "numa:0:80M");
    assert_string_equal(list->memories[2].argument, "numa:2:80M");
    nkv_memory_list_close(list);
    list = list_of(0);
    assert_string_equal(list->memories[2].argument, "");
    assert_null(list->best);
    nkv_memory_list_close(list);
}

static void test_one_node(void **state)
{
    struct nkv_memory_list *list;

    (void)state;
    remove_tree();
    assert_int_equal(mkdir(root, 0700), 0);
    put("proc/cpuinfo", "processor\t: 0\n\n");
    put("sys/devices/system/cpu/online", "0\n");
    put("sys/devices/system/cpu/cpu0/topology/core_id", "0\n");
    put("sys/devices/system/cpu/cpu0/topology/thread_siblings", "1\n");
    put("sys/devices/system/node/online", "0\n");
    put_node(0, "0\n", "1\n", "10\n", 8 * GIB, 5 * GIB);
    list = list_of(AVAIL);
    assert_int_equal(list->n, 1);
    assert_int_equal(list->memories[0].distance, 10);
    assert_string_equal(list->memories[0].argument, "anon:4096M");
    assert_ptr_equal(list->best, &list->memories[0]);
    nkv_memory_list_close(list);
}

static void test_hostile_files(void **state)
{
    static const char *const bad[] = {"",       "\n",      "-1\n",         "x\n",
                                      "0x10\n", "12 34\n", "1.5\n",        "99999999999999999999999\n",
                                      " 77\n",  "+5\n",    "4294967296\n", "7z\n"};
    char huge[5000];
    struct nkv_memory_list *list;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put(NODE(2) HMAT "read_bandwidth", bad[i]);
        list = list_of(AVAIL);
        assert_int_equal(list->memories[2].bandwidth_mb_s, 0);
        assert_int_equal(list->memories[2].latency_ns, 250);
        nkv_memory_list_close(list);
    }
    memset(huge, '9', sizeof huge - 1);
    huge[sizeof huge - 1] = '\0';
    put(NODE(2) HMAT "read_latency", huge);
    put(NODE(1) "cpulist", huge);
    put(NODE(0) "cpulist", "0\xff\x1b[2J\n");
    list = list_of(AVAIL);
    assert_int_equal(list->memories[2].latency_ns, 0);
    assert_int_equal(strlen(list->memories[1].cpus), sizeof list->memories[1].cpus - 1);
    assert_string_equal(list->memories[0].cpus, "0");
    nkv_memory_list_close(list);
}

static void test_hostile_meminfo(void **state)
{
    static const char *const bad[] = {"", "Node 2 MemFree: -5 kB\n", "Node 2 MemFree:\n", "MemFree: 100000000 kB\n",
                                      "Node 2 MemFree: 0 kB\n"};
    struct nkv_memory_list *list;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put(NODE(2) "meminfo", bad[i]);
        list = list_of(AVAIL);
        assert_string_equal(list->memories[2].argument, "");
        assert_ptr_not_equal(list->best, &list->memories[2]);
        nkv_memory_list_close(list);
    }
    /* More free than there is: no more is offered than there is. */
    put(NODE(2) "meminfo", "Node 2 MemTotal: 67108864 kB\nNode 2 MemFree: 999999999999999999999999 kB\n");
    list = list_of(AVAIL);
    assert_string_equal(list->memories[2].argument, "numa:2:64G");
    nkv_memory_list_close(list);
}

static void test_no_sys_at_all(void **state)
{
    struct nkv_memory_list *list;

    (void)state;
    remove_tree();
    assert_int_equal(mkdir(root, 0700), 0);
    list = list_of(10 * GIB);
    assert_int_equal(list->n, 1);
    assert_int_equal(list->memories[0].bytes, 0);
    assert_ptr_equal(list->best, &list->memories[0]);
    assert_string_equal(list->best->argument, "anon:8192M");
    nkv_memory_list_close(list);
}

/* The CPUs of a node whose cpulist is hidden are hwloc's. */
static void test_hidden_cpulist(void **state)
{
    struct nkv_memory_list *list;
    char path[128];

    (void)state;
    snprintf(path, sizeof path, "%s/" NODE(1) "cpulist", root);
    assert_int_equal(remove(path), 0);
    list = list_of(AVAIL);
    assert_int_equal(list->memories[1].kind, NKV_MEMORY_NODE);
    assert_string_equal(list->memories[1].cpus, "1");
    nkv_memory_list_close(list);
}

static void test_devices(void **state)
{
    struct nkv_memory_list *list;

    (void)state;
    dax_devices[0] = (struct daxctl_dev){"dax0.0", 0, 2, false, 0}; /* a seed */
    dax_devices[1] = (struct daxctl_dev){"dax0.1", 4 * GIB, 5, false, 0};
    dax_devices[2] = (struct daxctl_dev){"dax1.0", 64 * GIB, 2, true, 0};
    dax_devices[3] = (struct daxctl_dev){NULL, GIB, 0, false, 0};
    n_dax = 3;
    cxl_devices[0] = (struct cxl_memdev){"mem0", GIB, 2 * GIB, 1, {NULL}};
    cxl_devices[1] = (struct cxl_memdev){"mem1", UINT64_MAX, UINT64_MAX, -1, {NULL}};
    cxl_devices[2] = (struct cxl_memdev){NULL, GIB, GIB, 0, {NULL}};
    n_cxl = 3;
    list = list_of(AVAIL);
    assert_int_equal(list->n, 7);
    assert_int_equal(list->memories[3].kind, NKV_MEMORY_DAX);
    assert_string_equal(list->memories[3].path, "/dev/dax0.1");
    assert_int_equal(list->memories[3].distance, 0);
    assert_string_equal(list->memories[3].argument, "dax:/dev/dax0.1");
    assert_int_equal(list->memories[4].distance, 17);
    assert_int_equal(list->memories[4].latency_ns, 250);
    assert_string_equal(list->memories[4].argument, "numa:2:40G"); /* the kernel has it */
    assert_int_equal(list->memories[5].kind, NKV_MEMORY_CXL);
    assert_string_equal(list->memories[5].path, "/dev/cxl/mem0");
    assert_int_equal(list->memories[5].bytes, 3 * GIB);
    assert_int_equal(list->memories[5].node, 1);
    assert_int_equal(list->memories[5].distance, 0);
    assert_string_equal(list->memories[5].argument, "");
    assert_int_equal(list->memories[6].bytes, 0);
    assert_int_equal(list->memories[6].node, -1);
    assert_ptr_equal(list->best, &list->memories[4]);
    nkv_memory_list_close(list);
}

/* Devices are in the order of their names, and those that belong together say the same region. */
static void test_regions(void **state)
{
    struct cxl_region *unused = &cxl_regions[2];
    struct nkv_memory_list *list;

    (void)state;
    cxl_regions[0] = (struct cxl_region){"region0", 256 * GIB, 16 * GIB};
    cxl_regions[1] = (struct cxl_region){"region1", 272 * GIB, UINT64_MAX}; /* its size cannot be read */
    dax_devices[0] = (struct daxctl_dev){"dax10.0", GIB, 5, false, 272 * GIB};
    dax_devices[1] = (struct daxctl_dev){"dax9.0", GIB, 5, false, 256 * GIB};
    dax_devices[2] = (struct daxctl_dev){"dax0.0", GIB, 5, false, 272 * GIB - 1};
    dax_devices[3] = (struct daxctl_dev){"dax1.0", GIB, 5, false, UINT64_MAX};
    n_dax = 4;
    cxl_devices[0] = (struct cxl_memdev){"mem2", 0, GIB, 1, {unused, &cxl_regions[0]}};
    cxl_devices[1] = (struct cxl_memdev){"mem0", 0, GIB, 1, {NULL}};
    cxl_devices[2] = (struct cxl_memdev){"mem1", 0, GIB, 1, {&cxl_regions[0], &cxl_regions[1]}};
    n_cxl = 3;
    list = list_of(AVAIL);
    assert_int_equal(list->n, 10);
    for (uint32_t i = 3; i < 10; i++) {
        static const char *const want[][2] = {{"dax0.0", "region0"}, {"dax1.0", ""}, {"dax9.0", "region0"},
                                              {"dax10.0", ""},       {"mem0", ""},   {"mem1", "region0,region1"},
                                              {"mem2", "region0"}};

        assert_string_equal(list->memories[i].name, want[i - 3][0]);
        assert_string_equal(list->memories[i].regions, want[i - 3][1]);
    }
    assert_ptr_equal(list->best, &list->memories[3]);
    nkv_memory_list_close(list);
}

static void test_libraries_fail(void **state)
{
    struct nkv_memory_list *list;

    (void)state;
    n_cxl = 1;
    n_dax = 1;
    library_status = -12;
    list = list_of(AVAIL);
    assert_int_equal(list->n, 3);
    nkv_memory_list_close(list);
}

static void test_out_of_memory(void **state)
{
    struct nkv_memory_list *list;
    uint64_t n;

    (void)state;
    dax_devices[0] = (struct daxctl_dev){"dax0.1", GIB, -1, false, 0};
    cxl_devices[0] = (struct cxl_memdev){"mem0", GIB, 0, 0, {NULL}};
    n_dax = n_cxl = 1;
    nkv_mem_fail_at(0);
    nkv_memory_list_close(list_of(AVAIL));
    n = nkv_mem_fail_at(0);
    assert_true(n >= 2);
    for (uint64_t i = 1; i <= n; i++) {
        list = NULL;
        nkv_mem_fail_at(i);
        assert_int_equal(nkv_memory_list_open_at(root, AVAIL, &list), NKV_ENOMEM);
        assert_null(list);
    }
    nkv_mem_fail_at(0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_nodes),           TEST(test_what_is_available_limits),
        TEST(test_one_node),        TEST(test_hostile_files),
        TEST(test_hostile_meminfo), TEST(test_no_sys_at_all),
        TEST(test_hidden_cpulist),  TEST(test_devices),
        TEST(test_regions),         TEST(test_libraries_fail),
        TEST(test_out_of_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
