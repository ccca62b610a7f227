/* SPDX-License-Identifier: Apache-2.0 */
/* device/backend.h: what the registry knows of backends and wrappers, and how they read their specs. */
#ifndef NKV_DEVICE_BACKEND_H
#define NKV_DEVICE_BACKEND_H

#include <nearkv/device.h>
#include <nearkv/nearkv.h>

/* args: what follows "cpu:" in the spec, "" when nothing does. */
int nkv_cpu_open(const char *args, const struct nkv_device_config *config, struct nkv_device **device_out);

/* args: the path of the socket on which the device's process listens. */
int nkv_process_open(const char *args, const struct nkv_device_config *config, struct nkv_device **device_out);

/* args: the rank of the MPI job that is the device. */
int nkv_mpi_device_open(const char *args, const struct nkv_device_config *config, struct nkv_device **device_out);

/* args: the wrapper's own part of the spec. The wrapper owns inner once it is open; not when it fails to open. */
int nkv_record_open(const char *args, const struct nkv_device_config *config, struct nkv_device *inner,
                    struct nkv_device **device_out);
int nkv_fault_open(const char *args, const struct nkv_device_config *config, struct nkv_device *inner,
                   struct nkv_device **device_out);

/* The name of an op as specs and traces write it ("attend"); "?" when there is none. nkv_op_parse: 0: no such op. */
const char *nkv_op_name(uint32_t op);
uint32_t nkv_op_parse(const char *name, size_t length);

/*
 * The next "key=value" of *args, which moves behind it. Keys and values end at ',' or at the end.
 * returns: 1; 0 when nothing is left; NKV_EINVAL.
 */
struct nkv_option {
    const char *key, *value;
    size_t key_length, value_length;
};
int nkv_option_next(const char **args, struct nkv_option *option_out);
bool nkv_option_is(const struct nkv_option *option, const char *key);
/* A decimal number, with suffix K, M, G or T (powers of 1024) when `suffix`. returns: 0 or NKV_EINVAL. */
int nkv_option_number(const struct nkv_option *option, bool suffix, uint64_t max, uint64_t *number_out);
int nkv_option_unknown(const struct nkv_option *option, const char *known);

#endif
