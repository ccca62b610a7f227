/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FC work, announced to the compute device. It goes through the same queue as what the compute side attends, so that a
 * device that charges time lets the two wait for each other as a GPU's stream does.
 */
#include "runtime/runtime.h"

int nkv_fc(struct nkv_context *context, const struct nkv_fc_work *work)
{
    struct nkv_cmd cmd = {.op = NKV_OP_COMPUTE,
                          .n_tokens = work->n_rows,
                          .in_offset = work->flops,
                          .out_offset = work->bytes,
                          .arg = work->n_sums,
                          .list_offset = work->sum_bytes};

    if (!context->compute)
        FAIL(NKV_EINVAL, "FC work is told to the compute device, and this context was opened without one");
    TRY(port_control(context, context->compute, &cmd));
    return 0;
}
