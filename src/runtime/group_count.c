/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a group's members exchange with the host, for its report (nkv_kv_parallel_report): the bytes of the formats that
 * cross, computed from the commands as runtime/stats.c does for whole sequences. A READ is counted when it has
 * completed, since only its result tells how many pages it found.
 *
 * Counting what is copied between the windows was rejected: it would depend on how operands are laid out there.
 */
#include "runtime/group.h"

uint64_t group_read_bytes(const struct nkv_kv_shape *shape, const struct nkv_cmd *cmd, uint64_t n_pages)
{
    uint32_t n_units = cmd->flags & NKV_PER_HEAD ? shape->n_kv_heads : 1;

    if (cmd->flags & NKV_DIGEST)
        return n_pages * shape->n_kv_heads * nkv_digest_bytes(shape);
    return n_pages * nkv_page_bytes(shape, shape->n_kv_heads / n_units);
}

void group_count_pages(struct group *group, const struct nkv_cmd *cmd, uint32_t n_pages)
{
    uint32_t n_units = cmd->flags & NKV_PER_HEAD ? group->local.n_kv_heads : 1;

    group->counts.to_device_bytes += cmd->flags & NKV_DIGEST ? 0 : 4u * ((uint64_t)n_units + n_pages);
    group->counts.from_device_bytes += group_read_bytes(&group->local, cmd, n_pages);
}

void group_count_bytes(struct group *group, const struct nkv_cmd *cmd)
{
    const struct nkv_kv_shape *shape = &group->local;
    uint64_t n_units = cmd->flags & NKV_PER_HEAD ? shape->n_kv_heads : 1,
             n_rows = cmd->n_tokens * (uint64_t)shape->n_heads;
    uint64_t lists = 4u * n_units * ((uint64_t)cmd->n_pages + 1), n_scores = 0;

    if (cmd->op == NKV_OP_READ)
        return;
    if (cmd->op == NKV_OP_APPEND) {
        group->counts.to_device_bytes += 8u * (uint64_t)cmd->n_tokens * shape->n_kv_heads * shape->head_dim;
        return;
    }
    if (cmd->flags & NKV_SCORES)
        n_scores = n_units * (cmd->flags & NKV_CANDIDATES ? cmd->n_pages : group_rule(group, cmd).n_total);
    group->counts.to_device_bytes += 4u * n_rows * shape->head_dim;
    group->counts.to_device_bytes += cmd->op == NKV_OP_ATTEND && !(cmd->flags & NKV_ALL_PAGES) ? lists : 0;
    group->counts.from_device_bytes +=
        cmd->op == NKV_OP_SELECT ? lists + 4u * n_scores : 4u * n_rows * (shape->head_dim + 2u);
}
