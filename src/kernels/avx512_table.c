/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512_table.c: which entries AVX-512 overrides. One block per operation; an entry that is
 * not named here stays AVX2's, which every CPU with AVX-512 has, too.
 */
#include "kernels/tables.h"

void nkv_avx512_install(struct nkv_kernels *kernels, bool extended)
{
    (void)extended; /* no entry needs avx512bf16 or avx512vnni yet */
    kernels->name = "avx512";
}
