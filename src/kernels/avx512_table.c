/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512_table.c: which entries AVX-512 overrides. One block per operation; an entry that is
 * not named here stays AVX2's, which every CPU with AVX-512 has, too.
 */
#include "kernels/attend_fast.h"
#include "kernels/tables.h"

void nkv_avx512_install(struct nkv_kernels *kernels, bool extended)
{
    kernels->name = "avx512";
    nkv_avx512_install_vec(kernels);
    kernels->attend[NKV_F32] = nkv_avx512_attend_f32;
    kernels->attend[NKV_F16] = nkv_avx512_attend_f16;
    kernels->attend[NKV_BF16] = nkv_avx512_attend_bf16;
    kernels->attend[NKV_Q8_0] = nkv_avx512_attend_q8_0;
    if (extended) {
        kernels->attend[NKV_BF16] = nkv_avx512x_attend_bf16;
        kernels->prepare[NKV_BF16] = nkv_avx512x_prepare_bf16;
        kernels->attend[NKV_Q8_0] = nkv_avx512x_attend_q8_0;
        kernels->prepare[NKV_Q8_0] = nkv_avx512x_prepare_q8_0;
    }
}
