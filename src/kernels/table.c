/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/table.c: the tables, and which one is in use.
 *
 * Every table is the one before it with some entries overridden: ref, then avx2 over ref, then avx512 over avx2. They
 * are filled once, at the first call, and never change after that; only the pointer to the one in use does (atomic, so
 * that a test may switch while other threads compute: they finish with the table they read).
 *
 * Rejected: one indirect function per kernel resolved by the loader (ifunc). It is not portable, and a test could not
 * hold two versions side by side.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <nearkv/nearkv.h>

#include "base/mem.h"
#include "base/status.h"
#include "kernels/attend_fast.h"
#include "kernels/tables.h"

enum { TABLES_MAX = 3 };
static struct nkv_kernels tables[TABLES_MAX];
static size_t n_tables;
static _Atomic(const struct nkv_kernels *) in_use;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void add_ref(void)
{
    struct nkv_kernels *ref = &tables[n_tables++];
    ref->name = "ref";
    nkv_ref_install_attend(ref);
    nkv_ref_install_convert(ref);
    nkv_ref_install_digest(ref);
    nkv_ref_install_matvec(ref);
}

#ifdef __x86_64__
static struct nkv_kernels *add_copy_of_last(void)
{
    tables[n_tables] = tables[n_tables - 1];
    return &tables[n_tables++];
}

static void add_x86(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") ||
        !__builtin_cpu_supports("fma")) /* F16C came before AVX2; clang 14 cannot ask */
        return;
    nkv_avx2_install(add_copy_of_last());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        nkv_avx512_install(add_copy_of_last(),
                           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"));
}
#endif

static const struct nkv_kernels *find(const char *name)
{
    if (strcmp(name, "auto") == 0)
        return &tables[n_tables - 1];
    for (size_t i = 0; i < n_tables; i++)
        if (strcmp(tables[i].name, name) == 0)
            return &tables[i];
    return NULL;
}

static void fill(void)
{
    add_ref();
#ifdef __x86_64__
    add_x86();
#endif
    const char *wanted = getenv("NEARKV_KERNELS");
    const struct nkv_kernels *chosen = wanted != NULL ? find(wanted) : NULL;
    atomic_store(&in_use, chosen != NULL ? chosen : find("auto"));
}

const struct nkv_kernels *nkv_kernels(void)
{
    const struct nkv_kernels *kernels = atomic_load_explicit(&in_use, memory_order_acquire);
    if (kernels != NULL)
        return kernels;
    pthread_once(&once, fill);
    return atomic_load(&in_use);
}

const struct nkv_kernels *nkv_kernels_find(const char *name)
{
    pthread_once(&once, fill);
    return find(name);
}

int nkv_kernels_use(const char *name)
{
    if (name == NULL)
        FAIL(NKV_EINVAL, "kernels: name is NULL; use auto, ref, avx2 or avx512");
    const struct nkv_kernels *kernels = nkv_kernels_find(name);
    if (kernels == NULL) {
        const char *second = n_tables > 1 ? ", avx2" : "", *third = n_tables > 2 ? ", avx512" : "";
        FAIL(NKV_ENOTSUP, "kernels: this CPU and build have no \"%s\"; use auto, ref%s%s", name, second, third);
    }
    atomic_store(&in_use, kernels);
    return NKV_OK;
}

const char *nkv_kernels_name(void)
{
    return nkv_kernels()->name;
}

int nkv_kernels_choose(const char *name)
{
    return nkv_kernels_use(name);
}

size_t nkv_prepared_row_bytes(uint32_t dim)
{
    size_t q8_0 = NKV_CACHE_LINE + 2 * nkv_round_up(dim, NKV_CACHE_LINE), bf16 = 4 * nkv_round_up(dim, 32);
    return q8_0 > bf16 ? q8_0 : bf16;
}

size_t nkv_attend_scratch_bytes(uint32_t n_rows, uint32_t page_tokens, uint32_t dim)
{
    (void)n_rows;                                                            /* rows are computed a few at a time */
    size_t block = NKV_ATTEND_BLOCK * nkv_round_up(dim, 16) * sizeof(float); /* of K or V as f32 */
    size_t scores = nkv_round_up(page_tokens * sizeof(float), NKV_CACHE_LINE);
    return 2 * block + scores;
}

void nkv_digest_build(enum nkv_digest kind, enum nkv_dtype dtype, size_t n_tokens, size_t dim, const void *k,
                      const float *k_scale, void *digest_out)
{
    nkv_kernels()->digest[dtype](kind, n_tokens, dim, k, k_scale, digest_out);
}
