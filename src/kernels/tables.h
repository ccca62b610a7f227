/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/tables.h: how a table of kernels is put together (private to src/kernels). ref_install
 * fills every entry; an instruction set's install then overrides the entries it has.
 */
#ifndef NKV_KERNELS_TABLES_H
#define NKV_KERNELS_TABLES_H

#include "kernels/kernels.h"

void nkv_ref_install_attend(struct nkv_kernels *kernels);
void nkv_ref_install_convert(struct nkv_kernels *kernels);
void nkv_ref_install_digest(struct nkv_kernels *kernels);
void nkv_ref_install_matvec(struct nkv_kernels *kernels);

/* Overrides what AVX2 + FMA + F16C do better. Call only on a CPU that has them. */
void nkv_avx2_install(struct nkv_kernels *kernels);
/* The same for AVX-512 F, BW, VL, DQ; with `extended` also for avx512bf16 and avx512vnni. */
void nkv_avx512_install(struct nkv_kernels *kernels, bool extended);

/* Their part that is everything but attend. */
void nkv_avx2_install_vec(struct nkv_kernels *kernels);
void nkv_avx512_install_vec(struct nkv_kernels *kernels);

#endif
