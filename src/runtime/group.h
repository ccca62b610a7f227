/* SPDX-License-Identifier: Apache-2.0 */
/*
 * runtime/group.h: several devices that hold one sequence together and look like one device to the rest of the runtime.
 * How a command is taken apart and its results are put together is the group's kind (group_cp.c, group_tp.c).
 */
#ifndef NKV_RUNTIME_GROUP_H
#define NKV_RUNTIME_GROUP_H

#include "policy/select.h"
#include "runtime/runtime.h"

struct group;

/* A command of one member that is part of a command of the group. */
struct group_sub {
    struct nkv_cmd cmd;
    uint32_t slot, member;
    uint32_t first; /* ATTEND: the first of its query tokens in the group's command */
    int32_t res;
    bool done;
};

enum group_state { GROUP_WAITS, GROUP_RUNS, GROUP_DONE };

struct group_entry {
    struct nkv_cmd cmd;
    enum group_state state;
    uint32_t first_sub, n_subs, n_open;
    int32_t res;
    uint64_t start_ns, ns; /* of the member's command that took longest */
    char error[256];
};

struct group_kind {
    enum nkv_kv_parallel id;
    const char *name;
    /* What of a sequence of n_tokens tokens lies on a member. */
    uint32_t (*local_tokens)(const struct group *group, uint32_t member, uint32_t n_tokens);
    /* Adds the members' commands of an APPEND, SELECT, ATTEND or READ. returns: 0, or what is wrong with it. */
    int (*plan)(struct group *group, struct group_entry *entry);
    /* All of them succeeded: writes the output. returns: the command's result. */
    int (*finish_select)(struct group *group, const struct group_entry *entry);
    int (*finish_attend)(struct group *group, const struct group_entry *entry);
    int (*finish_read)(struct group *group, const struct group_entry *entry);
};

extern const struct group_kind group_cp, group_tp;

struct group {
    struct nkv_device device; /* first */
    const struct group_kind *kind;
    struct nkv_kv_shape shape, local; /* of the sequences, and of what a member holds */
    uint32_t n;
    struct port *members; /* of a port: device, caps, window, what is queued and in flight */
    uint64_t *used;       /* [n] of the members' windows, by what is in flight */
    uint64_t *last;       /* [QUEUE_COMMANDS][n] the member's command that stands for the group's, + 1 */
    struct nkv_region window;
    uint64_t member_bytes; /* of every member's window */
    struct group_entry entries[QUEUE_COMMANDS];
    uint64_t n_taken, n_begun, n_given; /* commands submitted, planned, reaped */
    uint32_t n_running;
    struct group_sub *subs;
    uint32_t n_subs, max_subs;
    uint32_t max_pages; /* of the longest sequence so far: */
    float *scores;      /* [max_pages] */
    uint32_t *ids;      /* [3 * max_pages], of sets; slots of a sequence are no more than its pages */
    int status;         /* < 0: a member is lost, and why: */
    char error[256];
    struct nkv_kv_parallel_report counts;
};

/* ---- group.c ---- */
/* 0, or what ended the group, with its message. */
int group_check(const struct group *group);
/* Runs one command of a member to its end while nothing else is in flight. returns: its result. */
int group_run(struct group *group, struct group_entry *entry, uint32_t member, struct nkv_cmd *cmd);

/* ---- group_control.c ---- */
/* Runs a command that a kind does not plan while nothing is in flight. returns: its result. */
int group_control(struct group *group, struct group_entry *entry);

/* ---- group_count.c ---- */
/* What a READ of so many pages (NKV_DIGEST: digests), of all units together, writes in a window of that shape. */
uint64_t group_read_bytes(const struct nkv_kv_shape *shape, const struct nkv_cmd *cmd, uint64_t n_pages);
/* A member read n_pages pages, of all units together. */
void group_count_pages(struct group *group, const struct nkv_cmd *cmd, uint32_t n_pages);
/* A member's command goes down: f32 q, k, v, partials and scores, u32 lists, both ways; nothing of a READ. */
void group_count_bytes(struct group *group, const struct nkv_cmd *cmd);

/* ---- group_set.c ---- */
/* The unit's set is in place in the list of chosen pages: writes the other lists of a SELECT. returns: 0; what is wrong
 * with its operands. */
int group_put_set(struct group *group, const struct nkv_cmd *cmd, uint32_t unit);
/* Where a SELECT of the group writes. */
struct nkv_select_layout group_select_layout(const struct group *group, const struct nkv_cmd *cmd);

/* ---- For the kinds ---- */
/* Room in a member's window for this command's operands; what is beyond the window is never written (group_at). */
uint64_t group_take(struct group *group, uint32_t member, uint64_t bytes);
/* NULL: beyond the window. The command is planned again when there is room. */
void *group_at(struct group *group, uint32_t member, uint64_t offset, uint64_t bytes);
/* returns: 0, NKV_ENOMEM. */
int group_add(struct group *group, struct group_entry *entry, uint32_t member, const struct nkv_cmd *cmd,
              uint32_t first);

/* Room for a READ's n_pages pages in the group's window: a list that a failed SELECT left may name more than there is.
 * returns: 0, NKV_EINVAL. */
int group_check_read(const struct group *group, const struct nkv_cmd *cmd, uint64_t n_pages);

/* What a SELECT asks for. */
static inline struct nkv_select_rule group_rule(const struct group *group, const struct nkv_cmd *cmd)
{
    return (struct nkv_select_rule){.n_total = (cmd->pos + (cmd->n_tokens - 1)) / group->shape.page_tokens + 1,
                                    .first_query_page = cmd->pos / group->shape.page_tokens,
                                    .n_budget = cmd->n_pages,
                                    .n_sink = cmd->sink,
                                    .n_recent = cmd->recent};
}
/* Of the whole model. */
static inline uint32_t group_units(const struct group *group, const struct nkv_cmd *cmd)
{
    return cmd->flags & NKV_PER_HEAD ? group->shape.n_kv_heads : 1;
}
static inline uint32_t *list_at(uint8_t *window, uint64_t lists, uint32_t unit, uint32_t cap)
{
    return (uint32_t *)(void *)(window + lists + unit * nkv_list_stride(cap));
}
static inline uint8_t *group_window(const struct group *group)
{
    return group->window.base;
}

#endif
