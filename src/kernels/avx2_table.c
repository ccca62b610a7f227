/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx2_table.c: which entries AVX2 overrides. One block per operation; an entry that is not
 * named here stays the reference's.
 */
#include "kernels/attend_fast.h"
#include "kernels/tables.h"

void nkv_avx2_install(struct nkv_kernels *kernels)
{
    kernels->name = "avx2";
    nkv_avx2_install_vec(kernels);
    kernels->attend[NKV_F32] = nkv_avx2_attend_f32;
    kernels->attend[NKV_F16] = nkv_avx2_attend_f16;
    kernels->attend[NKV_BF16] = nkv_avx2_attend_bf16;
    kernels->attend[NKV_Q8_0] = nkv_avx2_attend_q8_0;
}
