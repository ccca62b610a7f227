/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/avx512_kernels.c: everything but attend for AVX-512. The bodies are shared (vec_*.h): written once over
 * `vec`, compiled once per instruction set, so that both widths have one text and cannot drift apart. Rejected:
 * compiler vectorisation of the reference, which may not reorder a sum, and macros that generate functions, which hide
 * them from grep and debuggers.
 */
#include <math.h>
#include <string.h>

#include "kernels/avx512_vec.h"
#include "kernels/tables.h"

#include "kernels/vec_convert.h"
#include "kernels/vec_matvec.h"
#include "kernels/vec_merge.h"
#include "kernels/vec_score.h"

void nkv_avx512_install_vec(struct nkv_kernels *kernels)
{
    install_convert(kernels);
    install_matvec(kernels);
    install_merge(kernels);
    install_score(kernels);
}
