/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products of a chunk of prefill, by oneDNN. Measured on 2 cores of a Zen 4 EPYC (avx512_bf16), m = 512,
 * GFLOP/s, best of 6:
 *
 *                                 n, k = 2048, 2048   8192, 2048   2048, 8192
 *   oneDNN 2.6.3 bf16, its threads       417             440          425
 *   oneDNN bf16, our tiles of 256        381             390          389
 *   oneDNN f32, its threads              104             110          108
 *   oneDNN f32, our tiles of 256         119             106          120
 *   OpenBLAS 0.3.21 f32                   99             101          100     (Debian's build has no bf16)
 *
 * so oneDNN serves both types. A whole job of fc.c (conversions included) at 8192 x 2048 reaches, per core, 0.89 of the
 * library's rate for bf16 weights, 0.88 for q8_0, 0.89 for f16 and 0.91 for f32. Each of our threads calls it on tiles
 * of its own with the library's threads switched off for the call: a tile is the same computation on any thread, and no
 * OpenMP worker spins on a core that attention needs. The tiles take the weights row major as they lie in the model
 * file: blocked weights were rejected, since they would be a second copy of the model.
 *
 * What a product works in is the caller's: oneDNN's own scratchpad belongs to the thread that created a primitive, and
 * threads that run primitives of one creator at a time overwrite each other's. (Its build option for that is off in
 * Debian's.)
 *
 * A tile of y is computed dense, rows of n, and put in place by fc.c. Into rows of the whole matrix oneDNN 2.6 takes
 * another kernel, which was slower (bf16, one core, 2048 x 2048 / 8192 x 2048 / 2048 x 8192: 200, 198, 191 GFLOP/s
 * against 215, 210, 216 with the copy) and allocates 1 MB per call, which malloc then keeps for each thread.
 */
#define _GNU_SOURCE
#include "model/fc.h"

#include <dlfcn.h>
#include <dnnl.h>
#include <nearkv/model.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/mem.h"

#define RATE_ROUNDS 6

struct nkv_gemm {
    dnnl_engine_t engine;
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t x, w, y, scratch;
};

/*
 * The OpenMP runtime that oneDNN was built with, if any, is looked up by name: linking one of our own could be another
 * than the library's.
 */
struct omp {
    void (*set_num_threads)(int);
    int (*get_max_threads)(void);
};

static struct omp omp_find(void)
{
    struct omp omp = {NULL, NULL};
    void *set = dlsym(RTLD_DEFAULT, "omp_set_num_threads"), *get = dlsym(RTLD_DEFAULT, "omp_get_max_threads");

    if (set && get) {
        *(void **)&omp.set_num_threads = set;
        *(void **)&omp.get_max_threads = get;
    }
    return omp;
}

/* The setting belongs to the calling thread, which may be the application's: returns what to restore. */
static int omp_limit(int n_threads)
{
    static _Atomic(void *) cached_set, cached_get;
    struct omp omp = {NULL, NULL};
    int before;

    *(void **)&omp.set_num_threads = atomic_load(&cached_set);
    *(void **)&omp.get_max_threads = atomic_load(&cached_get);
    if (!omp.set_num_threads || !omp.get_max_threads) {
        omp = omp_find();
        atomic_store(&cached_set, *(void **)&omp.set_num_threads);
        atomic_store(&cached_get, *(void **)&omp.get_max_threads);
    }
    if (!omp.set_num_threads || n_threads < 1)
        return 0;
    before = omp.get_max_threads();
    omp.set_num_threads(n_threads);
    return before;
}

static int dnnl_failed(dnnl_status_t status, const char *what)
{
    if (status == dnnl_out_of_memory)
        FAIL(NKV_ENOMEM, "out of memory in oneDNN: %s", what);
    FAIL(NKV_ENOTSUP, "oneDNN cannot %s (status %d)", what, (int)status);
}

static dnnl_status_t create(struct nkv_gemm *g, enum nkv_dtype dtype, dnnl_dim_t m, dnnl_dim_t n, dnnl_dim_t k)
{
    dnnl_data_type_t type = dtype == NKV_BF16 ? dnnl_bf16 : dnnl_f32;
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_primitive_desc_t description = NULL;
    dnnl_status_t s = dnnl_engine_create(&g->engine, dnnl_cpu, 0);

    if (s == dnnl_success)
        s = dnnl_memory_desc_init_by_strides(&g->x, 2, (dnnl_dims_t){m, k}, type, (dnnl_dims_t){k, 1});
    if (s == dnnl_success)
        s = dnnl_memory_desc_init_by_strides(&g->w, 2, (dnnl_dims_t){k, n}, type, (dnnl_dims_t){1, k});
    if (s == dnnl_success)
        s = dnnl_memory_desc_init_by_strides(&g->y, 2, (dnnl_dims_t){m, n}, dnnl_f32, (dnnl_dims_t){n, 1});
    if (s == dnnl_success)
        s = dnnl_matmul_desc_init(&matmul, &g->x, &g->w, NULL, &g->y);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_create(&attributes);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user);
    if (s == dnnl_success)
        s = dnnl_primitive_desc_create(&description, &matmul, attributes, g->engine, NULL);
    if (s == dnnl_success)
        s = dnnl_primitive_create(&g->primitive, description);
    if (s == dnnl_success)
        g->scratch = *dnnl_primitive_desc_query_md(description, dnnl_query_scratchpad_md, 0);
    if (description)
        dnnl_primitive_desc_destroy(description);
    if (attributes)
        dnnl_primitive_attr_destroy(attributes);
    return s;
}

/* oneDNN has no bf16 product for CPUs without AVX-512. */
static bool has_bf16(void)
{
    struct nkv_gemm probe = {0};
    int before = omp_limit(1);
    dnnl_status_t s = create(&probe, NKV_BF16, 32, 32, 32);

    omp_limit(before);
    if (probe.primitive)
        dnnl_primitive_destroy(probe.primitive);
    if (probe.engine)
        dnnl_engine_destroy(probe.engine);
    return s == dnnl_success;
}

enum nkv_dtype nkv_gemm_type(enum nkv_dtype dtype)
{
    return (dtype == NKV_BF16 || dtype == NKV_Q8_0) && has_bf16() ? NKV_BF16 : NKV_F32;
}

static int gemm_open(enum nkv_dtype dtype, uint32_t m, uint32_t n, uint32_t k, int n_threads,
                     struct nkv_gemm **gemm_out)
{
    struct nkv_gemm *gemm;
    int before;
    dnnl_status_t s;

    TRY(nkv_alloc(1, sizeof *gemm, &gemm));
    before = omp_limit(n_threads);
    s = create(gemm, dtype, m, n, k);
    omp_limit(before);
    if (s != dnnl_success) {
        nkv_gemm_close(gemm);
        return dnnl_failed(s, "create a matrix product");
    }
    *gemm_out = gemm;
    return 0;
}

int nkv_gemm_open(enum nkv_dtype dtype, uint32_t m, uint32_t n, uint32_t k, struct nkv_gemm **gemm_out)
{
    return gemm_open(dtype, m, n, k, 1, gemm_out);
}

void nkv_gemm_close(struct nkv_gemm *gemm)
{
    if (!gemm)
        return;
    if (gemm->primitive)
        dnnl_primitive_destroy(gemm->primitive);
    if (gemm->engine)
        dnnl_engine_destroy(gemm->engine);
    nkv_free(gemm);
}

size_t nkv_gemm_scratch_bytes(const struct nkv_gemm *gemm)
{
    return dnnl_memory_desc_get_size(&gemm->scratch);
}

static dnnl_status_t execute(const struct nkv_gemm *g, const void *x, const void *w, float *y, void *scratch)
{
    dnnl_memory_t mx = NULL, mw = NULL, my = NULL, ms = NULL;
    dnnl_stream_t stream = NULL;
    dnnl_status_t s = dnnl_stream_create(&stream, g->engine, dnnl_stream_default_flags);

    if (s == dnnl_success)
        s = dnnl_memory_create(&mx, &g->x, g->engine, (void *)(uintptr_t)x);
    if (s == dnnl_success)
        s = dnnl_memory_create(&mw, &g->w, g->engine, (void *)(uintptr_t)w);
    if (s == dnnl_success)
        s = dnnl_memory_create(&my, &g->y, g->engine, y);
    if (s == dnnl_success)
        s = dnnl_memory_create(&ms, &g->scratch, g->engine, scratch);
    if (s == dnnl_success) {
        const dnnl_exec_arg_t args[] = {
            {DNNL_ARG_SRC, mx}, {DNNL_ARG_WEIGHTS, mw}, {DNNL_ARG_DST, my}, {DNNL_ARG_SCRATCHPAD, ms}};

        s = dnnl_primitive_execute(g->primitive, stream, 4, args);
    }
    if (s == dnnl_success)
        s = dnnl_stream_wait(stream);
    if (ms)
        dnnl_memory_destroy(ms);
    if (my)
        dnnl_memory_destroy(my);
    if (mw)
        dnnl_memory_destroy(mw);
    if (mx)
        dnnl_memory_destroy(mx);
    if (stream)
        dnnl_stream_destroy(stream);
    return s;
}

static int gemm_run(const struct nkv_gemm *gemm, const void *x, const void *w, float *y, void *scratch, int n_threads)
{
    int before = omp_limit(n_threads);
    dnnl_status_t s = execute(gemm, x, w, y, scratch);

    omp_limit(before);
    return s == dnnl_success ? 0 : dnnl_failed(s, "multiply matrices");
}

int nkv_gemm_run(const struct nkv_gemm *gemm, const void *x, const void *w, float *y, void *scratch)
{
    return gemm_run(gemm, x, w, y, scratch, 1);
}

/* ---- The library's own rate */

static int best_ns(const struct nkv_gemm *gemm, const void *x, const void *w, float *y, void *scratch, int n_threads,
                   uint64_t *ns_out)
{
    uint64_t best = UINT64_MAX;

    for (int round = 0; round < RATE_ROUNDS; round++) {
        uint64_t start = nkv_now_ns(), ns;

        TRY(gemm_run(gemm, x, w, y, scratch, n_threads));
        ns = nkv_now_ns() - start;
        best = ns < best ? ns : best;
    }
    *ns_out = best ? best : 1;
    return 0;
}

/* Fills with small normal numbers: zeros could be multiplied faster, denormals slower. */
static void fill(enum nkv_dtype dtype, void *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (dtype == NKV_BF16)
            ((uint16_t *)data)[i] = (uint16_t)(0x3f00 + i % 61);
        else
            ((float *)data)[i] = 0.5f + (float)(i % 61) / 64;
    }
}

static int measure(enum nkv_dtype type, int n_threads, uint32_t m, uint32_t n, uint32_t k, const struct nkv_gemm *gemm,
                   double *gflops_out)
{
    const size_t bytes = type == NKV_BF16 ? 2 : 4;
    void *x = NULL, *w = NULL, *scratch = NULL;
    float *y = NULL;
    uint64_t ns = 1;
    int status = nkv_alloc((size_t)m * k, bytes, &x);

    if (status == 0)
        status = nkv_alloc((size_t)n * k, bytes, &w);
    if (status == 0)
        status = nkv_alloc((size_t)m * n, sizeof *y, &y);
    if (status == 0)
        status = nkv_alloc(nkv_gemm_scratch_bytes(gemm), 1, &scratch);
    if (status == 0) {
        fill(type, x, (size_t)m * k);
        fill(type, w, (size_t)n * k);
        status = best_ns(gemm, x, w, y, scratch, n_threads, &ns);
    }
    nkv_free(scratch);
    nkv_free(y);
    nkv_free(w);
    nkv_free(x);
    if (status == 0)
        *gflops_out = 2.0 * m * n * k / (double)ns;
    return status;
}

int nkv_matmul_rate(enum nkv_dtype dtype, uint32_t n_threads, uint32_t m, uint32_t n, uint32_t k, double *gflops_out)
{
    enum nkv_dtype type = nkv_gemm_type(dtype);
    struct nkv_gemm *gemm = NULL;
    int status;

    if (m == 0 || n == 0 || k == 0 || m > 1u << 20 || n > 1u << 20 || k > 1u << 20)
        FAIL(NKV_EINVAL, "cannot measure a matrix product of %u x %u x %u: each must be from 1 to 1048576", m, n, k);
    if (n_threads == 0)
        n_threads = nkv_cpu_count();
    if (n_threads > 1024)
        FAIL(NKV_EINVAL, "number of threads is %u: it must be at most 1024", n_threads);
    TRY(gemm_open(type, m, n, k, (int)n_threads, &gemm));
    status = measure(type, (int)n_threads, m, n, k, gemm, gflops_out);
    nkv_gemm_close(gemm);
    return status;
}
