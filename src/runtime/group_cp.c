/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Context parallel: one sequence's pages over all members, page p as page p / n of member p % n. So a member holds a
 * plain sequence, which grows at its end only, and only the newest page of all is open anywhere.
 *
 *   APPEND   each member's tokens, gathered
 *   SELECT   every member ranks its part of the pages that compete and tells its best with their scores (candidates, as
 *            many as could all be chosen); the host ranks those. What is chosen is what one device would choose, to the
 *            last tie, because every page that is among the best of all is among the best of its member.
 *   ATTEND   each member its part of the list; partials are merged in the order of members. A member cannot tell which
 *            of its tokens come before a query token whose page lies elsewhere; so a block of query tokens is cut
 *            into runs of one page: on the member that has the page, the run is causal; elsewhere it sees all pages
 *            before.
 *   READ     each member its part of the list, in the list's order, or its digests: put where one device has them
 *
 * Sending all scores to the host was rejected: candidates are bounded by the budget, whatever the context.
 */
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "policy/select.h"
#include "runtime/group.h"

/* Pages below `page` that lie on the member. */
static uint32_t local_pages(const struct group *group, uint32_t member, uint32_t page)
{
    return page / group->n + (page % group->n > member);
}

static uint32_t local_tokens(const struct group *group, uint32_t member, uint32_t n_tokens)
{
    uint32_t page_tokens = group->shape.page_tokens, page = n_tokens / page_tokens;

    return local_pages(group, member, page) * page_tokens + (page % group->n == member ? n_tokens % page_tokens : 0);
}

static uint64_t row_bytes(const struct group *group, uint32_t n_heads)
{
    return 4u * (uint64_t)n_heads * group->shape.head_dim;
}

static void copy_to(struct group *group, uint32_t member, uint64_t at, const void *from, uint64_t bytes)
{
    void *to = group_at(group, member, at, bytes);

    if (to)
        memcpy(to, from, bytes);
}

/* ---- APPEND ---- */

/* The rows of k or v that go to the member. */
static void gather(struct group *group, uint32_t member, const struct nkv_cmd *cmd, const uint8_t *rows, uint64_t to)
{
    uint32_t page_tokens = group->shape.page_tokens, n;
    uint64_t row = row_bytes(group, group->shape.n_kv_heads);

    for (uint32_t done = 0; done < cmd->n_tokens; done += n) {
        uint32_t pos = cmd->pos + done, left = page_tokens - pos % page_tokens;

        n = cmd->n_tokens - done < left ? cmd->n_tokens - done : left;
        if (pos / page_tokens % group->n != member)
            continue;
        copy_to(group, member, to, rows + done * row, n * row);
        to += n * row;
    }
}

static int plan_append(struct group *group, struct group_entry *entry)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    const uint8_t *in = group_window(group) + cmd->in_offset;
    uint64_t row = row_bytes(group, group->shape.n_kv_heads);

    for (uint32_t m = 0; m < group->n; m++) {
        struct nkv_cmd part = *cmd;

        part.pos = local_tokens(group, m, cmd->pos);
        part.n_tokens = local_tokens(group, m, cmd->pos + cmd->n_tokens) - part.pos;
        if (part.n_tokens == 0)
            continue;
        part.in_offset = group_take(group, m, 2 * part.n_tokens * row);
        gather(group, m, cmd, in, part.in_offset);
        gather(group, m, cmd, in + cmd->n_tokens * row, part.in_offset + part.n_tokens * row);
        TRY(group_add(group, entry, m, &part, 0));
    }
    return 0;
}

/* ---- SELECT ---- */

/* How many of the pages that compete are chosen. */
static uint32_t n_best(const struct nkv_select_rule *rule, uint32_t begin, uint32_t end)
{
    return rule->n_budget - (rule->n_total - (end - begin));
}

static int plan_select(struct group *group, struct group_entry *entry)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    struct nkv_select_rule rule = group_rule(group, cmd);
    uint64_t q_bytes = cmd->n_tokens * row_bytes(group, group->shape.n_heads);
    uint32_t begin, end;

    TRY(nkv_select_range(&rule, &begin, &end));
    for (uint32_t m = 0; begin < end && n_best(&rule, begin, end) > 0 && m < group->n; m++) {
        uint32_t first = local_pages(group, m, begin), last = local_pages(group, m, end);
        struct nkv_cmd part = *cmd;

        if (first == last)
            continue;
        part.flags = (uint16_t)((cmd->flags & ~NKV_STEADY) | NKV_CANDIDATES | NKV_SCORES);
        part.arg = 0;
        part.list_offset = 0;
        part.sink = (uint8_t)first; /* no more than the group's */
        part.recent = 0;
        part.pos = last * group->shape.page_tokens;
        part.n_pages = last - first < n_best(&rule, begin, end) ? last - first : n_best(&rule, begin, end);
        part.in_offset = group_take(group, m, q_bytes);
        part.out_offset =
            group_take(group, m, nkv_select_layout(group_units(group, cmd), part.n_pages, 0, part.n_pages).bytes);
        copy_to(group, m, part.in_offset, group_window(group) + cmd->in_offset, q_bytes);
        TRY(group_add(group, entry, m, &part, 0));
    }
    return 0;
}

/* A member's candidates: their ids of the group, and their scores by id. returns: how many. */
static uint32_t collect(struct group *group, const struct group_sub *sub, uint32_t unit, uint32_t begin, uint32_t end,
                        uint32_t *ids)
{
    uint32_t cap = sub->cmd.n_pages, n_units = group_units(group, &sub->cmd), n = 0;
    struct nkv_select_layout at = nkv_select_layout(n_units, cap, 0, cap);
    uint8_t *window = group->members[sub->member].window;
    const uint32_t *list = list_at(window, sub->cmd.out_offset + at.chosen, unit, cap);
    const float *scores = (const float *)(const void *)(window + sub->cmd.out_offset + at.scores) + unit * (size_t)cap;

    for (uint32_t i = 0; i < cap;
         i++) { /* as many as it was asked for: pages that it was given, or the page is not counted */
        uint64_t id = (uint64_t)list[1 + i] * group->n + sub->member;

        if (id < begin || id >= end)
            continue;
        group->scores[id - begin] = scores[i];
        ids[n++] = (uint32_t)id;
    }
    return n;
}

/* The set in rank order. returns: how many. */
static uint32_t rank(struct group *group, const struct group_entry *entry, const struct nkv_select_rule *rule,
                     uint32_t unit, uint32_t *chosen)
{
    uint32_t *ids = group->ids, *scratch = ids + group->max_pages, *best = scratch + group->max_pages;
    uint32_t begin = 0, end = 0, n = 0, n_ids = 0, n_chosen;

    (void)nkv_select_range(rule, &begin, &end); /* it was right when it was planned */
    for (; n < begin; n++)
        chosen[n] = n;
    for (uint32_t i = 0; i < entry->n_subs; i++)
        n_ids += collect(group, &group->subs[entry->first_sub + i], unit, begin, end, ids + n_ids);
    nkv_sort_ids(ids, n_ids);
    for (uint32_t i = 0; i < n_ids; i++) /* ids ascend: no score is overwritten before it is read */
        group->scores[i] = group->scores[ids[i] - begin];
    n_chosen = begin < end ? nkv_topk(group->scores, n_ids, n_best(rule, begin, end), 0, scratch, best) : 0;
    for (uint32_t i = 0; i < n_chosen; i++)
        chosen[n++] = ids[best[i]];
    for (uint32_t page = end; page < rule->n_total; page++)
        chosen[n++] = page;
    return n;
}

static int finish_select(struct group *group, const struct group_entry *entry)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    struct nkv_select_rule rule = group_rule(group, cmd);
    struct nkv_select_layout at = group_select_layout(group, cmd);
    uint32_t n = 0;

    for (uint32_t unit = 0; unit < group_units(group, cmd); unit++) {
        uint32_t *chosen = list_at(group_window(group), cmd->out_offset + at.chosen, unit, cmd->n_pages);

        n = chosen[0] = rank(group, entry, &rule, unit, chosen + 1);
        TRY(group_put_set(group, cmd, unit));
    }
    group->counts.n_select_rounds += entry->n_subs > 0;
    return (int)n;
}

/* ---- ATTEND ---- */

/* Query tokens that see the same pages of other members. */
struct run {
    uint32_t first, n;
    uint32_t page; /* that of its tokens; what comes later is not seen */
    bool causal;
};

static bool next_run(const struct group *group, const struct nkv_cmd *cmd, struct run *run)
{
    uint32_t page_tokens = group->shape.page_tokens, first = run->first + run->n, left = cmd->n_tokens - first;
    uint32_t pos = cmd->pos + first, in_page = page_tokens - pos % page_tokens;

    if (left == 0)
        return false;
    run->first = first;
    run->causal = cmd->flags & NKV_CAUSAL;
    run->n = run->causal && group->n > 1 && left > in_page ? in_page : left;
    run->page = (pos + run->n - 1) / page_tokens;
    return true;
}

/* The member's part of the unit's list, as far as the run sees it. to: NULL: only counts. returns: how many. */
static uint32_t split_list(const struct group *group, const struct nkv_cmd *cmd, uint32_t m, uint32_t unit,
                           const struct run *run, uint32_t *to)
{
    const uint32_t *list = list_at(group_window(group), cmd->list_offset, unit, cmd->n_pages);
    uint32_t n = 0;

    for (uint32_t i = 0; i < list[0] && i < cmd->n_pages && list[1 + i] <= run->page; i++) {
        if (list[1 + i] % group->n != m)
            continue;
        if (to)
            to[n] = list[1 + i] / group->n;
        n++;
    }
    return n;
}

/* returns: pages of all units together, 0: none. */
static uint32_t put_lists(struct group *group, const struct nkv_cmd *cmd, uint32_t m, const struct run *run,
                          struct nkv_cmd *part)
{
    uint32_t n_units = group_units(group, cmd), n_all = 0;
    uint64_t bytes;

    part->n_pages = 0;
    for (uint32_t unit = 0; unit < n_units; unit++) {
        uint32_t n = split_list(group, cmd, m, unit, run, NULL);

        part->n_pages = n > part->n_pages ? n : part->n_pages;
        n_all += n;
    }
    if (n_all == 0)
        return 0;
    bytes = n_units * nkv_list_stride(part->n_pages);
    part->list_offset = group_take(group, m, bytes);
    for (uint32_t unit = 0; group_at(group, m, part->list_offset, bytes) && unit < n_units; unit++) {
        uint32_t *list = list_at(group->members[m].window, part->list_offset, unit, part->n_pages);

        list[0] = split_list(group, cmd, m, unit, run, list + 1);
    }
    return n_all;
}

/* Every page below n_pages of a member on which the run is not causal. */
static void put_all(struct group *group, uint32_t m, uint32_t n_pages, struct nkv_cmd *part)
{
    uint64_t bytes = nkv_list_stride(n_pages);
    uint32_t *list;

    part->flags &= (uint16_t)~NKV_ALL_PAGES;
    part->n_pages = n_pages;
    part->list_offset = group_take(group, m, bytes);
    list = group_at(group, m, part->list_offset, bytes);
    for (uint32_t i = 0; list && i < n_pages; i++)
        list[1 + i] = i;
    if (list)
        list[0] = n_pages;
}

static int plan_run(struct group *group, struct group_entry *entry, uint32_t m, const struct run *run)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    uint64_t row = row_bytes(group, group->shape.n_heads);
    uint32_t n_held = local_tokens(group, m, cmd->pos + run->first + run->n);
    bool owns = run->page % group->n == m;
    struct nkv_cmd part = *cmd;

    part.n_tokens = run->n;
    part.pos = owns ? n_held - run->n : 0;
    if (run->causal && !owns)
        part.flags &= (uint16_t)~NKV_CAUSAL;
    if (!(cmd->flags & NKV_ALL_PAGES)) {
        if (put_lists(group, cmd, m, run, &part) == 0)
            return 0;
    } else if (n_held == 0) {
        return 0;
    } else if (run->causal && !owns) {
        put_all(group, m, n_held / group->shape.page_tokens, &part);
    }
    part.in_offset = group_take(group, m, run->n * row);
    part.out_offset = group_take(group, m, nkv_partial_layout(&group->shape, run->n).bytes);
    copy_to(group, m, part.in_offset, group_window(group) + cmd->in_offset + run->first * row, run->n * row);
    return group_add(group, entry, m, &part, run->first);
}

static int plan_attend(struct group *group, struct group_entry *entry)
{
    struct run run = {0};

    while (next_run(group, &entry->cmd, &run))
        for (uint32_t m = 0; m < group->n; m++)
            TRY(plan_run(group, entry, m, &run));
    return 0;
}

static void clear(const struct nkv_kv_shape *shape, struct partial p, uint32_t n_tokens)
{
    size_t n_rows = (size_t)n_tokens * shape->n_heads;

    memset(p.o, 0, n_rows * shape->head_dim * sizeof *p.o);
    memset(p.l, 0, n_rows * sizeof *p.l);
    for (size_t i = 0; i < n_rows; i++)
        p.m[i] = -INFINITY;
}

/* The first of a run is taken as it is, so that one member's bits stay what they are. */
static void fold(size_t dim, size_t n_rows, bool is_first, struct partial to, struct partial from)
{
    if (!is_first) {
        nkv_kernels()->merge(n_rows, dim, to.o, to.m, to.l, from.o, from.m, from.l);
        return;
    }
    memcpy(to.o, from.o, n_rows * dim * sizeof *to.o);
    memcpy(to.m, from.m, n_rows * sizeof *to.m);
    memcpy(to.l, from.l, n_rows * sizeof *to.l);
}

static int finish_attend(struct group *group, const struct group_entry *entry)
{
    const struct nkv_kv_shape *shape = &group->shape;
    const struct nkv_cmd *cmd = &entry->cmd;
    struct partial out = partial_at(shape, group_window(group), cmd->out_offset, cmd->n_tokens);
    uint64_t n_seen = 0;

    clear(shape, out, cmd->n_tokens);
    for (uint32_t i = 0; i < entry->n_subs; i++) {
        const struct group_sub *sub = &group->subs[entry->first_sub + i];
        struct partial part =
            partial_at(shape, group->members[sub->member].window, sub->cmd.out_offset, sub->cmd.n_tokens);
        size_t first = (size_t)sub->first * shape->n_heads, n_rows = (size_t)sub->cmd.n_tokens * shape->n_heads;

        fold(shape->head_dim, n_rows, i == 0 || sub[-1].first != sub->first,
             (struct partial){out.o + first * shape->head_dim, out.m + first, out.l + first}, part);
        n_seen += sub->first + sub->cmd.n_tokens == cmd->n_tokens ? (uint32_t)sub->res : 0;
    }
    return (int)n_seen;
}

/* ---- READ ---- */

static int plan_pages(struct group *group, struct group_entry *entry, uint32_t m)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    const struct run all = {.page = UINT32_MAX};
    struct nkv_cmd part = *cmd;

    if (put_lists(group, cmd, m, &all, &part) == 0)
        return 0;
    part.out_offset =
        group_take(group, m, group_read_bytes(&group->shape, cmd, (uint64_t)group_units(group, cmd) * part.n_pages));
    return group_add(group, entry, m, &part, 0);
}

static int plan_digests(struct group *group, struct group_entry *entry, uint32_t m)
{
    struct nkv_cmd part = entry->cmd;

    part.pos = local_pages(group, m, entry->cmd.pos);
    part.n_pages = local_pages(group, m, entry->cmd.pos + entry->cmd.n_pages) - part.pos;
    if (part.n_pages == 0)
        return 0;
    part.out_offset = group_take(group, m, group_read_bytes(&group->shape, &part, part.n_pages));
    return group_add(group, entry, m, &part, 0);
}

static int plan_transfer(struct group *group, struct group_entry *entry)
{
    for (uint32_t m = 0; m < group->n; m++)
        TRY(entry->cmd.flags & NKV_DIGEST ? plan_digests(group, entry, m) : plan_pages(group, entry, m));
    return 0;
}

static const uint8_t *member_pages(const struct group *group, const struct group_sub *sub)
{
    return group->members[sub->member].window + sub->cmd.out_offset;
}

/* A member's pages lie in the order of its part of the lists. to: NULL: only counts. returns: pages of all members. */
static uint32_t spread_pages(const struct group *group, const struct nkv_cmd *cmd, const struct group_sub *sub,
                             uint8_t *to)
{
    uint64_t bytes = group_read_bytes(&group->shape, cmd, 1);
    uint32_t n_all = 0, n = 0;

    for (uint32_t unit = 0; unit < group_units(group, cmd); unit++) {
        const uint32_t *list = list_at(group_window(group), cmd->list_offset, unit, cmd->n_pages);

        for (uint32_t i = 0; i < list[0] && i < cmd->n_pages; i++, n_all++)
            if (to && list[1 + i] % group->n == sub->member)
                memcpy(to + n_all * bytes, member_pages(group, sub) + n++ * bytes, bytes);
    }
    return n_all;
}

static void spread_digests(const struct group *group, const struct nkv_cmd *cmd, const struct group_sub *sub,
                           uint8_t *to)
{
    uint64_t bytes = nkv_digest_bytes(&group->shape);
    const uint8_t *from = member_pages(group, sub);

    for (uint32_t head = 0; head < group->shape.n_kv_heads; head++)
        for (uint32_t i = 0; i < sub->cmd.n_pages; i++, from += bytes) {
            uint64_t page = (uint64_t)(sub->cmd.pos + i) * group->n + sub->member - cmd->pos;

            memcpy(to + (head * (uint64_t)cmd->n_pages + page) * bytes, from, bytes);
        }
}

static int finish_read(struct group *group, const struct group_entry *entry)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    bool digests = cmd->flags & NKV_DIGEST;
    uint32_t n_all = digests ? cmd->n_pages : spread_pages(group, cmd, NULL, NULL);

    TRY(group_check_read(group, cmd, n_all));
    for (uint32_t i = 0; i < entry->n_subs; i++) {
        const struct group_sub *sub = &group->subs[entry->first_sub + i];
        uint8_t *to = group_window(group) + cmd->out_offset;

        if (digests)
            spread_digests(group, cmd, sub, to);
        else
            (void)spread_pages(group, cmd, sub, to);
    }
    return (int)n_all;
}

static int plan(struct group *group, struct group_entry *entry)
{
    switch (entry->cmd.op) {
    case NKV_OP_APPEND:
        return plan_append(group, entry);
    case NKV_OP_SELECT:
        return plan_select(group, entry);
    case NKV_OP_READ:
        return plan_transfer(group, entry);
    default:
        return plan_attend(group, entry);
    }
}

const struct group_kind group_cp = {
    .id = NKV_KV_CONTEXT,
    .name = "cp",
    .local_tokens = local_tokens,
    .plan = plan,
    .finish_select = finish_select,
    .finish_attend = finish_attend,
    .finish_read = finish_read,
};
