/* SPDX-License-Identifier: Apache-2.0 */
/* device/operands.h: which bytes of the window a command reads and writes, for whoever has to carry them. */
#ifndef NKV_DEVICE_OPERANDS_H
#define NKV_DEVICE_OPERANDS_H

#include <nearkv/device.h>

/* LISTS: page lists, scores, names and token ids. */
enum nkv_operand_kind { NKV_OPERAND_QKV, NKV_OPERAND_OUTPUT, NKV_OPERAND_SCALES, NKV_OPERAND_LISTS, NKV_OPERAND_PAGES };

struct nkv_operand {
    uint64_t offset, bytes; /* not empty, within the window */
    enum nkv_operand_kind kind;
};

#define NKV_MAX_OPERANDS 4u /* of one command, per direction */

/* Any bits may be in the command: what does not lie within the window is cut off, and the device will refuse it. Where
 * lists say how many pages there are, cmd.n_pages counts: the most that it may be. returns: how many. */
uint32_t nkv_operands_in(const struct nkv_kv_shape *shape, const struct nkv_cmd *cmd, uint64_t window_bytes,
                         struct nkv_operand operands_out[NKV_MAX_OPERANDS]);
/* res: the completion's result; NKV_RES_UNKNOWN: before it ran, the most that it may write. A failed one writes
 * nothing. */
#define NKV_RES_UNKNOWN INT32_MAX
uint32_t nkv_operands_out(const struct nkv_kv_shape *shape, const struct nkv_cmd *cmd, int32_t res,
                          uint64_t window_bytes, struct nkv_operand operands_out[NKV_MAX_OPERANDS]);

#endif
