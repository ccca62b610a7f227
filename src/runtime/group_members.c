/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The members of a group: their queues and windows, and what is counted of what crosses to them and back.
 *
 * A member is not trusted: it completes what is in flight there, each command once, or the group is lost, and with it
 * all its sequences. What a command fails with is the entry's, which tells the first failure with the member's name.
 *
 * Members are reaped one completion at a time: a batch would have to be taken to its end also where one of it is wrong.
 */
#include <stdio.h>
#include <string.h>

#include "runtime/group.h"

static int lose(struct group *group, const struct port *member, int status, const char *reason)
{
    snprintf(group->error, sizeof group->error, "device %u (%s): %s", member->index, member->caps.name,
             *reason ? reason : nkv_status_name(status));
    group->status = status;
    FAIL(status, "%s", group->error);
}

int group_check(const struct group *group)
{
    if (group->status < 0)
        FAIL(group->status, "%s", group->error);
    return 0;
}

void group_entry_fail(struct group_entry *entry, const struct port *member, int status)
{
    if (entry->res < 0)
        return;
    entry->res = status;
    if (member)
        snprintf(entry->error, sizeof entry->error, "device %u (%s): %s", member->index, member->caps.name,
                 nkv_last_error());
    else
        snprintf(entry->error, sizeof entry->error, "%s", nkv_last_error());
}

/* A member read n_pages pages, of all units together. */
static void count_pages(struct group *group, const struct nkv_cmd *cmd, uint32_t n_pages)
{
    uint32_t n_units = cmd->flags & NKV_PER_HEAD ? group->local.n_kv_heads : 1;

    group->counts.to_device_bytes += cmd->flags & NKV_DIGEST ? 0 : 4u * ((uint64_t)n_units + n_pages);
    group->counts.from_device_bytes += group_read_bytes(&group->local, cmd, n_pages);
}

static void complete(struct group *group, struct group_sub *sub, const struct nkv_cqe *cqe)
{
    struct group_entry *entry = &group->entries[sub->slot];

    sub->done = true;
    sub->res = cqe->res;
    entry->n_open--;
    if (cqe->end_ns - cqe->start_ns >= entry->ns) {
        entry->ns = cqe->end_ns - cqe->start_ns;
        entry->start_ns = cqe->start_ns;
    }
    if (cqe->res < 0)
        group_entry_fail(entry, &group->members[sub->member], cqe->res);
    else if (sub->cmd.op == NKV_OP_READ)
        count_pages(group, &sub->cmd, (uint32_t)cqe->res);
}

int group_reap_member(struct group *group, uint32_t m, uint32_t min_n)
{
    struct port *member = &group->members[m];
    struct nkv_cqe cqe;
    uint64_t n_messages = nkv_fail_count();
    char reason[96];
    int n;

    if (member->n_in_flight == 0)
        return 0;
    n = member->device->ops->reap(member->device, &cqe, 1, min_n);
    if (n < 0)
        return lose(group, member, n, port_message_since(n_messages));
    if (n > 1 || (uint32_t)n < min_n) {
        snprintf(reason, sizeof reason, "it gave %d completions where %u to 1 were asked for", n, min_n);
        return lose(group, member, NKV_EDEVICE, reason);
    }
    if (n == 0)
        return 0;
    if (cqe.user_data >= group->n_subs || group->subs[cqe.user_data].member != m || group->subs[cqe.user_data].done)
        return lose(group, member, NKV_EDEVICE, "it completed what is not in flight there");
    member->n_in_flight--;
    complete(group, &group->subs[cqe.user_data], &cqe);
    return n;
}

static int submit_batch(struct group *group, uint32_t m, const struct nkv_cmd *cmds, uint32_t n)
{
    struct port *member = &group->members[m];
    uint64_t n_messages;
    int status;

    while (member->n_in_flight + n > QUEUE_COMMANDS)
        TRY(group_reap_member(group, m, 1));
    n_messages = nkv_fail_count();
    status = member->device->ops->submit(member->device, cmds, n);
    if (status < 0)
        return lose(group, member, status, port_message_since(n_messages));
    member->n_in_flight += n;
    group->counts.n_messages += n;
    return 0;
}

/* What a member's command takes down and brings up: f32 q, k, v, partials and scores, u32 lists; not a READ's, whose
 * result tells. */
static void count_bytes(struct group *group, const struct nkv_cmd *cmd)
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

int group_submit_member(struct group *group, const struct group_entry *entry, uint32_t m)
{
    uint32_t slot = (uint32_t)(entry - group->entries), after = entry->cmd.after, n = 0;
    uint64_t needed =
        after && after < QUEUE_COMMANDS ? group->last[(group->n_begun - after) % QUEUE_COMMANDS * group->n + m] : 0;
    struct port *member = &group->members[m];
    struct nkv_cmd batch[STAGED_COMMANDS];

    group->last[slot * group->n + m] = needed;
    for (uint32_t i = 0; i < entry->n_subs; i++) {
        struct group_sub *sub = &group->subs[entry->first_sub + i];

        if (sub->member != m)
            continue;
        sub->cmd.after = needed ? (uint32_t)(member->n_queued - (needed - 1)) : 0;
        batch[n++] = sub->cmd;
        count_bytes(group, &sub->cmd);
        group->last[slot * group->n + m] = ++member->n_queued;
        if (n < STAGED_COMMANDS)
            continue;
        TRY(submit_batch(group, m, batch, n));
        n = 0;
    }
    return n ? submit_batch(group, m, batch, n) : 0;
}

int group_run(struct group *group, struct group_entry *entry, uint32_t m, struct nkv_cmd *cmd)
{
    uint32_t index = group->n_subs;

    TRY(group_add(group, entry, m, cmd, 0));
    cmd->user_data = index;
    group->members[m].n_queued++;
    TRY(submit_batch(group, m, cmd, 1));
    while (!group->subs[index].done)
        TRY(group_reap_member(group, m, 1));
    return group->subs[index].res;
}

int group_map_members(struct group *group, uint64_t bytes)
{
    for (uint32_t m = 0; m < group->n; m++) {
        struct port *member = &group->members[m];
        uint64_t n_messages = nkv_fail_count();
        void *window;
        int status = member->device->ops->map(member->device, bytes, &window);

        if (status < 0)
            return lose(group, member, status, port_message_since(n_messages));
        member->window = window;
        member->window_bytes = bytes;
    }
    group->member_bytes = bytes;
    return 0;
}

void group_drain_members(struct group *group)
{
    for (uint32_t m = 0; m < group->n; m++) {
        struct port *member = &group->members[m];
        struct nkv_cqe cqe;

        while (member->n_in_flight > 0 && member->device->ops->reap(member->device, &cqe, 1, 1) == 1)
            member->n_in_flight--;
        member->n_in_flight = 0;
    }
}
