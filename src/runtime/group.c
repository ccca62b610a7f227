/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A group of devices as one device: a queue of commands, each of which is planned as commands of the members, runs on
 * them at the same time, and is put together by the host when the last of them has completed.
 *
 * The group has a window of its own, in which the runtime places operands as ever; those of the members' commands are
 * copied to and from the members' windows. A command is planned as soon as its operands are there: an ATTEND or READ
 * whose list a SELECT writes waits for that SELECT, everything else goes down at once, in order. Operands in the
 * members' windows are given out one behind the other until nothing is in flight; a command that needs more than a
 * whole window has larger ones mapped then.
 *
 * A device behind the runtime, and not a second kind of step in it, was chosen because admission, batches, tickets,
 * sparse prefill and failures are then those of every other device. The price is one more copy of q, k, v and partials.
 */
#include "runtime/group.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"

static struct group *group_of(struct nkv_device *device)
{
    return (struct group *)(void *)device;
}

/* ---- Planning ---- */

uint64_t group_take(struct group *group, uint32_t member, uint64_t bytes)
{
    uint64_t at = group->used[member];

    group->used[member] += nkv_align64(bytes);
    return at;
}

void *group_at(struct group *group, uint32_t member, uint64_t offset, uint64_t bytes)
{
    return offset + bytes <= group->member_bytes ? group->members[member].window + offset : NULL;
}

static int grow_subs(struct group *group)
{
    uint32_t room = group->max_subs ? 2 * group->max_subs : 256;
    struct group_sub *subs;

    TRY(nkv_alloc(room, sizeof *subs, &subs));
    if (group->subs)
        memcpy(subs, group->subs, group->n_subs * sizeof *subs);
    nkv_free(group->subs);
    group->subs = subs;
    group->max_subs = room;
    return 0;
}

int group_add(struct group *group, struct group_entry *entry, uint32_t member, const struct nkv_cmd *cmd,
              uint32_t first)
{
    if (group->n_subs == group->max_subs)
        TRY(grow_subs(group));
    group->subs[group->n_subs] =
        (struct group_sub){.cmd = *cmd, .slot = (uint32_t)(entry - group->entries), .member = member, .first = first};
    group->subs[group->n_subs].cmd.user_data = group->n_subs;
    group->n_subs++;
    entry->n_subs++;
    entry->n_open++;
    return 0;
}

/* ---- Members ---- */

static int lose(struct group *group, const struct port *member, int status, const char *reason)
{
    snprintf(group->error, sizeof group->error, "%s: %s", member->label, *reason ? reason : nkv_status_name(status));
    group->status = status;
    FAIL(status, "%s", group->error);
}

int group_check(const struct group *group)
{
    if (group->status < 0)
        FAIL(group->status, "%s", group->error);
    return 0;
}

static void entry_fail(struct group_entry *entry, const struct port *member, int status)
{
    if (entry->res < 0)
        return;
    entry->res = status;
    if (member)
        snprintf(entry->error, sizeof entry->error, "%s: %s", member->label, nkv_last_error());
    else
        snprintf(entry->error, sizeof entry->error, "%s", nkv_last_error());
}

int group_check_read(const struct group *group, const struct nkv_cmd *cmd, uint64_t n_pages)
{
    uint64_t bytes = group_read_bytes(&group->shape, cmd, n_pages);

    if (cmd->out_offset > group->window.bytes || bytes > group->window.bytes - cmd->out_offset)
        FAIL(NKV_EINVAL, "read: %llu pages at %llu are not within the window of %llu bytes",
             (unsigned long long)n_pages, (unsigned long long)cmd->out_offset, (unsigned long long)group->window.bytes);
    return 0;
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
        entry_fail(entry, &group->members[sub->member], cqe->res);
    else if (sub->cmd.op == NKV_OP_READ)
        group_count_pages(group, &sub->cmd, (uint32_t)cqe->res);
}

/* Takes one completion of a member. returns: how many; its queue's failure. */
static int reap_member(struct group *group, uint32_t m, uint32_t min_n)
{
    struct port *member = &group->members[m];
    uint64_t n_messages = nkv_fail_count();
    struct nkv_cqe cqe;
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
        TRY(reap_member(group, m, 1));
    n_messages = nkv_fail_count();
    status = member->device->ops->submit(member->device, cmds, n);
    if (status < 0)
        return lose(group, member, status, port_message_since(n_messages));
    member->n_in_flight += n;
    group->counts.n_messages += n;
    return 0;
}

/* The commands of one member, which are what `after` of later ones will point to. */
static int submit_member(struct group *group, const struct group_entry *entry, uint32_t m)
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
        group_count_bytes(group, &sub->cmd);
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
        TRY(reap_member(group, m, 1));
    return group->subs[index].res;
}

/* ---- Windows ---- */

/* Nothing is in flight. */
static int map_members(struct group *group, uint64_t bytes)
{
    for (uint32_t m = 0; m < group->n; m++) {
        uint64_t n_messages = nkv_fail_count();
        int status = port_remap(&group->members[m], bytes);

        if (status < 0)
            return lose(group, &group->members[m], status, port_message_since(n_messages));
    }
    group->member_bytes = bytes;
    return 0;
}

/* Waits for what is in flight on members that still answer. */
void group_drain(struct group *group)
{
    for (uint32_t m = 0; m < group->n; m++) {
        struct port *member = &group->members[m];
        struct nkv_cqe cqe;

        while (member->n_in_flight > 0 && member->device->ops->reap(member->device, &cqe, 1, 1) == 1)
            member->n_in_flight--;
        member->n_in_flight = 0;
    }
}

static void discard(struct group *group)
{
    group_drain(group);
    group->n_taken = group->n_begun = group->n_given = 0;
    group->n_running = group->n_subs = 0;
    memset(group->used, 0, group->n * sizeof *group->used);
    memset(group->last, 0, QUEUE_COMMANDS * group->n * sizeof *group->last);
}

static int group_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    struct group *group = group_of(device);
    struct nkv_region window;
    int status;

    TRY(nkv_region_open_sparse(bytes, &window));
    discard(group);
    group->status = 0;
    status = map_members(group, bytes > group->member_bytes ? bytes : group->member_bytes);
    if (status < 0) {
        nkv_region_close(&window);
        group->status = status == NKV_EDEVICE ? status : 0; /* refused: no window has become smaller */
        return status;
    }
    if (group->window.base)
        nkv_region_close(&group->window);
    group->window = window;
    *window_out = window.base;
    return 0;
}

/* ---- The queue ---- */

static bool is_data(const struct nkv_cmd *cmd)
{
    return cmd->op == NKV_OP_APPEND || cmd->op == NKV_OP_SELECT || cmd->op == NKV_OP_ATTEND ||
           (cmd->op == NKV_OP_READ && !(cmd->flags & NKV_TOKENS));
}

/* Whether it reads page lists, which an earlier SELECT may write. */
static bool has_lists(const struct nkv_cmd *cmd)
{
    return (cmd->op == NKV_OP_ATTEND && !(cmd->flags & NKV_ALL_PAGES)) ||
           (cmd->op == NKV_OP_READ && !(cmd->flags & NKV_DIGEST));
}

/* Whether what the next command reads is there. */
static bool operands_ready(const struct group *group, const struct group_entry *entry)
{
    if (!is_data(&entry->cmd))
        return group->n_running == 0;
    if (!has_lists(&entry->cmd))
        return true;
    for (uint64_t i = group->n_given; i < group->n_begun; i++) {
        const struct group_entry *before = &group->entries[i % QUEUE_COMMANDS];

        if (before->cmd.op == NKV_OP_SELECT && before->state != GROUP_DONE)
            return false;
    }
    return true;
}

static bool overflows(const struct group *group, uint64_t *need_out)
{
    *need_out = 0;
    for (uint32_t m = 0; m < group->n; m++)
        *need_out = group->used[m] > *need_out ? group->used[m] : *need_out;
    return *need_out > group->member_bytes;
}

static int plan_once(struct group *group, struct group_entry *entry)
{
    entry->first_sub = group->n_subs;
    entry->n_subs = entry->n_open = 0;
    return group->kind->plan(group, entry);
}

/* returns: 1: planned; 0: there is no room before something completes; a failure. */
static int plan_entry(struct group *group, struct group_entry *entry)
{
    uint32_t n_subs = group->n_subs;
    uint64_t need;
    int status;

    if (group->n_running == 0) {
        group->n_subs = n_subs = 0;
        memset(group->used, 0, group->n * sizeof *group->used);
    }
    TRY(plan_once(group, entry));
    if (!overflows(group, &need))
        return 1;
    group->n_subs = n_subs;
    if (group->n_running > 0) {
        for (uint32_t m = 0; m < group->n; m++) /* full until nothing is in flight */
            group->used[m] = group->member_bytes;
        return 0;
    }
    memset(group->used, 0, group->n * sizeof *group->used);
    TRY(map_members(group, need + need / 2));
    status = plan_once(group, entry);
    return status < 0 ? status : 1;
}

static void give_up(struct group *group, struct group_entry *entry)
{
    group->n_subs = entry->first_sub;
    entry->n_subs = entry->n_open = 0;
}

/* Begins what can begin, in order. returns: 0; a member's queue failed. */
static int pump(struct group *group)
{
    while (group->n_begun < group->n_taken) {
        struct group_entry *entry = &group->entries[group->n_begun % QUEUE_COMMANDS];
        int status;

        if (!operands_ready(group, entry))
            return 0;
        status = is_data(&entry->cmd) ? plan_entry(group, entry) : group_control(group, entry);
        TRY(group_check(group));
        if (status == 0 && is_data(&entry->cmd))
            return 0;
        entry->state = GROUP_RUNS;
        group->n_running++;
        if (status < 0)
            entry_fail(entry, NULL, status);
        if (status < 0 && is_data(&entry->cmd))
            give_up(group, entry);
        for (uint32_t m = 0; m < group->n && is_data(&entry->cmd); m++)
            TRY(submit_member(group, entry, m));
        group->counts.n_commands++;
        group->n_begun++;
    }
    return 0;
}

static int finish(struct group *group, const struct group_entry *entry)
{
    if (entry->cmd.op == NKV_OP_SELECT)
        return group->kind->finish_select(group, entry);
    if (entry->cmd.op == NKV_OP_ATTEND)
        return group->kind->finish_attend(group, entry);
    if (entry->cmd.op == NKV_OP_READ)
        return group->kind->finish_read(group, entry);
    return (int)entry->cmd.n_tokens; /* APPEND */
}

static void finish_entries(struct group *group)
{
    for (uint64_t i = group->n_given; i < group->n_begun; i++) {
        struct group_entry *entry = &group->entries[i % QUEUE_COMMANDS];

        if (entry->state != GROUP_RUNS || entry->n_open > 0)
            continue;
        if (entry->res == 0 && is_data(&entry->cmd)) {
            int res = finish(group, entry);

            if (res < 0)
                entry_fail(entry, NULL, res);
            else
                entry->res = res;
        }
        entry->state = GROUP_DONE;
        group->n_running--;
    }
}

/* Takes what is there, and begins what that allows. */
static int advance(struct group *group)
{
    uint64_t n_begun;

    for (uint32_t m = 0; m < group->n; m++) {
        int n;

        while ((n = reap_member(group, m, 0)) > 0)
            ;
        TRY(n);
    }
    do {
        finish_entries(group);
        n_begun = group->n_begun;
        TRY(pump(group));
    } while (group->n_begun > n_begun);
    return 0;
}

static int group_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    struct group *group = group_of(device);

    TRY(group_check(group));
    if (n > QUEUE_COMMANDS - (group->n_taken - group->n_given))
        FAIL(NKV_ENOSPC, "%u commands into a queue of %u", n, QUEUE_COMMANDS);
    for (uint32_t i = 0; i < n; i++)
        group->entries[group->n_taken++ % QUEUE_COMMANDS] = (struct group_entry){.cmd = cmds[i]};
    return advance(group);
}

/* Waits for the oldest command. */
static int wait_oldest(struct group *group)
{
    const struct group_entry *entry = &group->entries[group->n_given % QUEUE_COMMANDS];

    for (uint32_t i = 0; i < entry->n_subs; i++) {
        const struct group_sub *sub = &group->subs[entry->first_sub + i];

        if (!sub->done)
            return reap_member(group, sub->member, 1);
    }
    return 0;
}

static int group_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    struct group *group = group_of(device);
    uint32_t n = 0;

    TRY(group_check(group));
    if (min_n > group->n_taken - group->n_given || min_n > max_n)
        FAIL(NKV_EINVAL, "%u completions of %llu commands in flight", min_n,
             (unsigned long long)(group->n_taken - group->n_given));
    for (;;) {
        TRY(advance(group));
        while (n < max_n && group->n_given < group->n_begun) {
            const struct group_entry *entry = &group->entries[group->n_given % QUEUE_COMMANDS];

            if (entry->state != GROUP_DONE)
                break;
            if (entry->res < 0)
                nkv_fail(entry->res, "%s", entry->error);
            cqes_out[n++] = (struct nkv_cqe){.user_data = entry->cmd.user_data,
                                             .res = entry->res,
                                             .start_ns = entry->start_ns,
                                             .end_ns = entry->start_ns + entry->ns};
            group->n_given++;
        }
        if (n >= min_n)
            return (int)n;
        TRY(wait_oldest(group));
    }
}

static int group_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    const struct group *group = group_of(device);
    struct nkv_device_caps caps = {.size = sizeof caps, .shape = group->shape};

    snprintf(caps.name, sizeof caps.name, "%s over %u", group->kind->name, group->n);
    for (uint32_t m = 0; m < group->n; m++) {
        caps.capacity_bytes += group->members[m].caps.capacity_bytes;
        caps.n_threads += group->members[m].caps.n_threads;
    }
    *caps_out = caps;
    return 0;
}

static const struct nkv_device_ops ops = {
    .abi = NKV_DEVICE_ABI,
    .backend = GROUP_BACKEND,
    .caps = group_caps,
    .map = group_map,
    .submit = group_submit,
    .reap = group_reap,
};

/* ---- For the context ---- */

void group_close(struct group *group)
{
    if (!group)
        return;
    if (group->members)
        group_drain(group);
    if (group->window.base)
        nkv_region_close(&group->window);
    nkv_free(group->members);
    nkv_free(group->used);
    nkv_free(group->last);
    nkv_free(group->subs);
    nkv_free(group->scores);
    nkv_free(group->ids);
    nkv_free(group);
}

static int fill(struct group *group, struct nkv_device *const *devices)
{
    TRY(nkv_alloc(group->n, sizeof *group->used, &group->used));
    TRY(nkv_alloc((size_t)QUEUE_COMMANDS * group->n, sizeof *group->last, &group->last));
    for (uint32_t m = 0; m < group->n; m++)
        TRY(port_open(&group->members[m], devices[m], m, &group->local));
    return grow_subs(group);
}

static int local_shape(const struct group_kind *kind, struct nkv_kv_shape *shape, uint32_t n)
{
    if (kind->id != NKV_KV_HEADS)
        return 0;
    if (shape->n_kv_heads % n)
        FAIL(NKV_EINVAL, "%u KV heads over %u devices (tp): give a number of devices that divides them",
             shape->n_kv_heads, n);
    shape->n_heads /= n;
    shape->n_kv_heads /= n;
    return 0;
}

int group_open(enum nkv_kv_parallel kv_parallel, const struct nkv_kv_shape *shape, struct nkv_device *const *devices,
               uint32_t n, struct group **group_out)
{
    const struct group_kind *kind = kv_parallel == NKV_KV_CONTEXT ? &group_cp : &group_tp;
    struct nkv_kv_shape local = *shape;
    struct group *group;
    int status;

    TRY(local_shape(kind, &local, n));
    TRY(nkv_alloc(1, sizeof *group, &group));
    group->device.ops = &ops;
    group->kind = kind;
    group->shape = *shape;
    group->local = local;
    group->n = n;
    group->counts = (struct nkv_kv_parallel_report){.kv_parallel = kv_parallel, .n_devices = n};
    status = nkv_alloc(n, sizeof *group->members, &group->members);
    if (status == 0)
        status = fill(group, devices);
    if (status < 0) {
        group_close(group);
        return status;
    }
    *group_out = group;
    return 0;
}

struct nkv_device *group_device(struct group *group)
{
    return &group->device;
}

uint32_t group_size(const struct group *group)
{
    return group->n;
}

const struct port *group_member(const struct group *group, uint32_t i)
{
    return &group->members[i];
}

uint8_t **group_member_window(struct group *group, uint32_t i)
{
    return &group->members[i].window;
}

void group_report(const struct group *group, struct nkv_kv_parallel_report *report_out)
{
    *report_out = group->counts;
}

uint32_t group_local(const struct group *group, uint32_t member, uint32_t n_tokens, struct nkv_kv_shape *shape_out)
{
    *shape_out = group->local;
    return group->kind->local_tokens(group, member, n_tokens);
}
