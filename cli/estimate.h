/* SPDX-License-Identifier: Apache-2.0 */
/* estimate.h: memory that a program takes beside weights, caches and activations. */
#ifndef NKV_CLI_ESTIMATE_H
#define NKV_CLI_ESTIMATE_H

#include <nearkv/nearkv.h>

/* Of a context and what it runs on. */
struct estimate {
    struct nkv_kv_shape shape;
    enum nkv_mode mode;
    uint32_t budget_tokens;
    uint32_t chunk_tokens; /* of prefill */
    uint32_t n_devices, n_threads;
    uint32_t n_more_windows; /* as large as a device's */
};

/* The program, its threads and what they work in, the devices' I/O windows. */
uint64_t estimate_program_bytes(const struct estimate *e);

#endif
