/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a SELECT of a group writes when its set is known: the pages to attend, and under NKV_STEADY the three lists of
 * Steady-Select, by the very function that a device runs. The resident table stays on the host, which wrote it: members
 * are asked for scores or sets alone, so png costs them nothing that pnm does not.
 *
 * Invariant: a group's lists are those of one device that holds the whole sequence, to the last entry, because both are
 * functions of the set, the table and the open page.
 *
 * Running Steady-Select on the members (per KV head of tp they could) was rejected: the table would go down, three
 * lists would come up, and there would be two ways to the same lists.
 */
#include "policy/steady.h"

#include <string.h>

#include "runtime/group.h"

struct nkv_select_layout group_select_layout(const struct group *group, const struct nkv_cmd *cmd)
{
    return nkv_select_layout(group_units(group, cmd), cmd->n_pages, cmd->arg, 0);
}

static int put_steady(struct group *group, const struct nkv_cmd *cmd, uint32_t unit, const uint32_t *chosen,
                      uint32_t *device)
{
    struct nkv_select_layout at = group_select_layout(group, cmd);
    uint8_t *window = group_window(group);
    const uint32_t *resident = list_at(window, cmd->list_offset, unit, cmd->arg);
    uint32_t *steady = list_at(window, cmd->out_offset + at.steady, unit, cmd->arg);
    uint32_t *recall = list_at(window, cmd->out_offset + at.recall, unit, cmd->arg);
    uint32_t *slots = list_at(window, cmd->out_offset + at.slots, unit, cmd->arg);
    uint32_t n_tokens = cmd->pos + cmd->n_tokens,
             page_tokens = group->shape.page_tokens; /* the newest: all there are */
    struct nkv_recall_plan plan;

    if (resident[0] != cmd->arg)
        FAIL(NKV_EINVAL, "select: %u resident slots listed of %u", resident[0], cmd->arg);
    plan = nkv_steady_select(chosen + 1, chosen[0], resident + 1, cmd->arg,
                             n_tokens % page_tokens ? n_tokens / page_tokens : NKV_PAGE_NONE, group->ids, device + 1,
                             steady + 1, recall + 1, slots + 1);
    device[0] = chosen[0] - plan.n_steady;
    steady[0] = plan.n_steady;
    recall[0] = slots[0] = plan.n_recall;
    return 0;
}

int group_put_set(struct group *group, const struct nkv_cmd *cmd, uint32_t unit)
{
    struct nkv_select_layout at = group_select_layout(group, cmd);
    const uint32_t *chosen = list_at(group_window(group), cmd->out_offset + at.chosen, unit, cmd->n_pages);
    uint32_t *device = list_at(group_window(group), cmd->out_offset + at.device, unit, cmd->n_pages);

    if (chosen[0] > cmd->n_pages)
        FAIL(NKV_EDEVICE, "select: a set of %u pages of at most %u", chosen[0], cmd->n_pages);
    if (cmd->flags & NKV_STEADY)
        return put_steady(group, cmd, unit, chosen, device);
    device[0] = chosen[0];
    memcpy(device + 1, chosen + 1, chosen[0] * sizeof *chosen);
    nkv_sort_ids(device + 1, chosen[0]);
    return 0;
}
