/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of the CPU device beside the store: everything an op needs beyond its operands, laid out once, so that no
 * command allocates. What depends on the shape and the capacity is one region at open; what depends on the window
 * (copies of lists) comes with the window. All of it is committed on first touch: the bounds are generous, the memory
 * used is that of the largest command seen.
 */
#include <string.h>

#include "device/cpu.h"

/* Keeps every count of list entries and of tasks within 32 bits. */
#define MAX_WINDOW_BYTES ((uint64_t)64 << 30)

/* Carves `base`, or only counts when base is NULL. */
struct carver {
    char *base;
    size_t at;
    bool overflow;
};

static void *carve(struct carver *carver, uint64_t count, uint64_t size)
{
    size_t begin = carver->at;
    uint64_t bytes = nkv_cpu_times(count, size);

    if (bytes > SIZE_MAX / 4 || begin > SIZE_MAX / 4) {
        carver->overflow = true;
        return NULL;
    }
    carver->at = nkv_round_up(begin + bytes, NKV_CACHE_LINE);
    return carver->base ? carver->base + begin : NULL;
}

static void carve_ranks(struct nkv_cpu *cpu, struct carver *carver)
{
    const struct nkv_kv_shape *shape = &cpu->shape;
    size_t rows = cpu->max_rows;

    cpu->ranks = carve(carver, cpu->n_threads, sizeof *cpu->ranks);
    for (uint32_t i = 0; i < cpu->n_threads; i++) {
        struct nkv_cpu_rank rank = {
            .q = carve(carver, rows * shape->head_dim, sizeof(float)),
            .o = carve(carver, rows * shape->head_dim, sizeof(float)),
            .m = carve(carver, rows, sizeof(float)),
            .l = carve(carver, rows, sizeof(float)),
            .visible = carve(carver, rows, sizeof(uint32_t)),
            .kernel = carve(carver, 1, nkv_attend_scratch_bytes(cpu->max_rows, shape->page_tokens, shape->head_dim)),
            .prepared = carve(carver, rows, nkv_prepared_row_bytes(shape->head_dim)),
        };

        if (cpu->ranks)
            cpu->ranks[i] = rank;
    }
}

static void carve_all(struct nkv_cpu *cpu, struct carver *carver)
{
    uint64_t n_heads = cpu->shape.n_kv_heads, dim = cpu->shape.head_dim, pages = n_heads * cpu->max_pages;

    cpu->unit_ids = carve(carver, n_heads, sizeof *cpu->unit_ids);
    cpu->unit_n = carve(carver, n_heads, sizeof *cpu->unit_n);
    cpu->q_sums = carve(carver, 2 * n_heads * dim, sizeof(float));
    carve_ranks(cpu, carver);
    cpu->partials = carve(carver, NKV_CPU_PARTS * (uint64_t)cpu->max_rows * (dim + 2), sizeof(float));
    cpu->scores = carve(carver, pages, sizeof(float));
    cpu->ranked = carve(carver, pages, sizeof(uint32_t));
    cpu->chosen = carve(carver, pages, sizeof(uint32_t));
}

int nkv_cpu_scratch_open(struct nkv_cpu *cpu)
{
    struct carver carver = {0};

    cpu->max_pages = nkv_store_max_pages(cpu->store);
    cpu->max_rows = cpu->shape.n_heads > NKV_CPU_BLOCK_ROWS ? cpu->shape.n_heads : NKV_CPU_BLOCK_ROWS;
    cpu->max_rows = (uint32_t)nkv_round_up(cpu->max_rows, NKV_CPU_ROW_GRAIN);
    carve_all(cpu, &carver);
    if (carver.overflow)
        FAIL(NKV_ENOMEM, "a capacity of %llu bytes is more than this machine can address",
             (unsigned long long)cpu->capacity_bytes);
    TRY(nkv_region_open(carver.at, &cpu->scratch));
    carver = (struct carver){.base = cpu->scratch.base};
    carve_all(cpu, &carver);
    return 0;
}

void nkv_cpu_scratch_close(struct nkv_cpu *cpu)
{
    nkv_region_close(&cpu->list_memory);
    nkv_region_close(&cpu->scratch);
}

int nkv_cpu_window_reserve(struct nkv_cpu *cpu, uint64_t bytes)
{
    struct nkv_region lists;

    if (bytes == 0 || bytes > MAX_WINDOW_BYTES)
        FAIL(NKV_EINVAL, "cannot map a window of %llu bytes: it must have from 1 to %llu", (unsigned long long)bytes,
             (unsigned long long)MAX_WINDOW_BYTES);
    if (4 * nkv_align64(bytes) <= cpu->list_memory.bytes)
        return 0;
    /* A command's lists (once), a sorted copy (once) and Steady-Select's scratch (chosen pages and slots twice). */
    TRY(nkv_region_open(4 * nkv_align64(bytes), &lists));
    nkv_region_close(&cpu->list_memory);
    cpu->list_memory = lists;
    return 0;
}
