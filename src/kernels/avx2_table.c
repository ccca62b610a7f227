/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx2_table.c: which entries AVX2 overrides. One block per operation; an entry that is not
 * named here stays the reference's.
 */
#include "kernels/tables.h"

void nkv_avx2_install(struct nkv_kernels *kernels)
{
    kernels->name = "avx2";
    nkv_avx2_install_vec(kernels);
}
