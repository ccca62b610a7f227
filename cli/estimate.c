/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is resident beside weights, caches and activations. Windows follow from the shape; the constants were measured
 * (smaps of the built-in model's runs, glibc 2.36, oneDNN 2.6.3, AVX-512): they decide in small runs only.
 * tests/cli/test_info.sh holds whole runs to the sum.
 */
#include "estimate.h"

#include <nearkv/device.h>

/* Code and data of the program and its libraries, and what oneDNN generates and keeps. */
#define PROGRAM_BYTES ((uint64_t)24 << 20)
/* A stack, an arena of malloc, oneDNN's scratch. */
#define THREAD_BYTES ((uint64_t)128 << 10)
/* Query rows that a device's thread holds while it attends in a prefill: q, q prepared, o. */
#define SCRATCH_ROWS 256u
#define SCRATCH_SETS 3u

static bool has_compute(const struct estimate *e)
{
    return e->mode == NKV_MODE_RECALL || e->mode == NKV_MODE_PNG;
}

/* Teams of the dense layers, of each device and of the compute side, which attends single tokens only. */
static uint64_t thread_bytes(const struct estimate *e)
{
    uint64_t share = e->n_threads / e->n_devices, on_devices = (share ? share : 1) * e->n_devices;
    uint64_t n = e->n_threads + on_devices + (has_compute(e) ? e->n_threads : 0);

    return n * THREAD_BYTES + on_devices * SCRATCH_SETS * SCRATCH_ROWS * e->shape.head_dim * sizeof(float);
}

/* A chunk's q, k, v and partials; with a compute side, its own and pages on their way to it. */
static uint64_t window_bytes(const struct estimate *e)
{
    const struct nkv_kv_shape *shape = &e->shape;
    uint64_t n_windows = (uint64_t)e->n_devices + e->n_more_windows, pages = 0;
    uint64_t row_bytes = (shape->n_heads + 2ull * shape->n_kv_heads) * shape->head_dim * sizeof(float);

    if (has_compute(e)) {
        n_windows++;
        pages = e->budget_tokens / shape->page_tokens;
    }
    return n_windows * (e->chunk_tokens * row_bytes + nkv_partial_layout(shape, e->chunk_tokens).bytes) +
           2 * pages * nkv_page_bytes(shape, shape->n_kv_heads);
}

uint64_t estimate_program_bytes(const struct estimate *e)
{
    return PROGRAM_BYTES + thread_bytes(e) + window_bytes(e);
}
