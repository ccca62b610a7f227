/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device specs: "cpu:threads=2", "unix:pnm0.sock", "record:FILE:cpu", "fault:op=attend,n=3:record:FILE:cpu". A spec is
 * wrappers, each with one part of its own, then a backend with the rest. Built from the inside out, so that a wrapper
 * sees an open device. A registry that plug-ins write to was left out: this table is the only list, and it is data.
 */
#include <string.h>

#include "base/mem.h"
#include "device/backend.h"

#define MAX_WRAPPERS   8u
#define MAX_PART_BYTES 4096u

static const struct backend {
    const char *name;
    int (*open)(const char *args, const struct nkv_device_config *config, struct nkv_device **device_out);
} backends[] = {
    {"cpu", nkv_cpu_open},
    {"unix", nkv_process_open},
    {"mpi", nkv_mpi_device_open},
};

static const struct wrapper {
    const char *name;
    int (*open)(const char *args, const struct nkv_device_config *config, struct nkv_device *inner,
                struct nkv_device **device_out);
} wrappers[] = {
    {"record", nkv_record_open},
    {"fault", nkv_fault_open},
};

static bool is_name(const char *spec, size_t length, const char *name)
{
    return strlen(name) == length && memcmp(spec, name, length) == 0;
}

static int open_backend(const char *spec, const struct nkv_device_config *config, struct nkv_device **device_out)
{
    size_t length = strcspn(spec, ":");

    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (is_name(spec, length, backends[i].name))
            return backends[i].open(spec[length] ? spec + length + 1 : "", config, device_out);
    FAIL(NKV_EINVAL, "unknown device '%.*s': use cpu, unix:PATH, mpi:RANK, or a wrapper before it (record, fault)",
         (int)(length < 64 ? length : 64), spec);
}

static int open_level(const char *spec, uint32_t depth, const struct nkv_device_config *config,
                      struct nkv_device **device_out);

/* spec: what follows the wrapper's name: "ARGS:INNER". */
static int open_wrapper(const struct wrapper *wrapper, const char *spec, uint32_t depth,
                        const struct nkv_device_config *config, struct nkv_device **device_out)
{
    size_t length = strcspn(spec, ":");
    struct nkv_device *inner;
    char *args;
    int status;

    if (spec[length] == '\0' || length == 0 || length > MAX_PART_BYTES)
        FAIL(NKV_EINVAL, "device '%s': write it as %s:%s:DEVICE", wrapper->name, wrapper->name,
             strcmp(wrapper->name, "record") == 0 ? "FILE" : "op=OP,n=N");
    if (depth == MAX_WRAPPERS)
        FAIL(NKV_EINVAL, "more than %u wrappers around a device", MAX_WRAPPERS);
    TRY(open_level(spec + length + 1, depth + 1, config, &inner));
    status = nkv_alloc(length + 1, 1, &args);
    if (status < 0)
        goto close_inner;
    memcpy(args, spec, length);
    status = wrapper->open(args, config, inner, device_out);
    nkv_free(args);
    if (status < 0)
        goto close_inner;
    return 0;

close_inner:
    nkv_device_close(inner);
    return status;
}

static int open_level(const char *spec, uint32_t depth, const struct nkv_device_config *config,
                      struct nkv_device **device_out)
{
    size_t length = strcspn(spec, ":");

    for (size_t i = 0; i < sizeof wrappers / sizeof *wrappers; i++)
        if (is_name(spec, length, wrappers[i].name))
            return open_wrapper(&wrappers[i], spec[length] ? spec + length + 1 : "", depth, config, device_out);
    return open_backend(spec, config, device_out);
}

int nkv_device_open(const char *spec, const struct nkv_device_config *config, struct nkv_device **device_out)
{
    if (!spec || !config || !device_out)
        FAIL(NKV_EINVAL, "nkv_device_open: spec, config and device_out must not be NULL");
    if (config->size != sizeof *config)
        FAIL(NKV_EINVAL, "nkv_device_config.size is %u: it must be %zu", config->size, sizeof *config);
    TRY(nkv_kv_shape_check(&config->shape));
    return open_level(spec, 0, config, device_out);
}

void nkv_device_close(struct nkv_device *device)
{
    if (device && device->ops->close)
        device->ops->close(device);
}
