/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor parallel: member m holds the KV heads m * KVH/n .. of every page, and attends with the query heads that share
 * them, which are consecutive, too. A member is a device of a model with fewer heads.
 *
 *   APPEND   each member its columns of k and v
 *   SELECT   per KV head: each member its own heads' sets, and nothing crosses between them. Per layer: one set needs
 *            the scores of all heads: each member tells the scores of all pages that compete (the mean over its heads),
 *            the host adds them in the order of members and ranks the means: a message per member and a sort, which is
 *            what the paper counts against this mapping
 *   ATTEND   each member its heads, the list as it is: outputs are put side by side, not merged
 *   READ     per KV head: each member its heads' pages, one member's behind the other's. Per layer: each member its
 *            heads of every page, which are put side by side within the page
 *
 * A layer's score is a sum over heads; one device adds them one by one, members add theirs first. Two pages whose means
 * differ by that rounding alone can change places, nothing else can.
 */
#include <string.h>

#include "kernels/kernels.h"
#include "policy/select.h"
#include "runtime/group.h"

static uint32_t local_tokens(const struct group *group, uint32_t member, uint32_t n_tokens)
{
    (void)group;
    (void)member;
    return n_tokens;
}

static uint32_t local_units(const struct group *group, const struct nkv_cmd *cmd)
{
    return cmd->flags & NKV_PER_HEAD ? group->local.n_kv_heads : 1;
}

/* A unit of a member's: its list in the group's window. */
static const uint32_t *member_list(const struct group *group, const struct nkv_cmd *cmd, uint32_t m, uint32_t unit)
{
    uint32_t first = cmd->flags & NKV_PER_HEAD ? m * group->local.n_kv_heads : 0;

    return list_at(group_window(group), cmd->list_offset, first + unit, cmd->n_pages);
}

/* Columns of a member: of n_rows rows of n_heads heads those of its share of the heads. */
static void copy_columns(struct group *group, uint32_t member, uint64_t to, const uint8_t *from, uint32_t n_rows,
                         uint32_t n_heads)
{
    uint64_t row = 4u * (uint64_t)n_heads * group->shape.head_dim, part = row / group->n;
    uint8_t *at = group_at(group, member, to, n_rows * part);

    for (uint32_t i = 0; at && i < n_rows; i++)
        memcpy(at + i * part, from + i * row + member * part, part);
}

static uint64_t take_q(struct group *group, uint32_t member, const struct nkv_cmd *cmd)
{
    uint64_t at =
        group_take(group, member, 4u * (uint64_t)cmd->n_tokens * group->local.n_heads * group->local.head_dim);

    copy_columns(group, member, at, group_window(group) + cmd->in_offset, cmd->n_tokens, group->shape.n_heads);
    return at;
}

static void plan_append(struct group *group, uint32_t m, struct nkv_cmd *part)
{
    const uint8_t *in = group_window(group) + part->in_offset;
    uint64_t bytes = 4u * (uint64_t)part->n_tokens * group->local.n_kv_heads * group->local.head_dim;

    part->in_offset = group_take(group, m, 2 * bytes);
    copy_columns(group, m, part->in_offset, in, part->n_tokens, group->shape.n_kv_heads);
    copy_columns(group, m, part->in_offset + bytes, in + bytes * group->n, part->n_tokens, group->shape.n_kv_heads);
}

/* Scores that the host asks a member for. */
static uint32_t n_scores(const struct group *group, const struct nkv_cmd *cmd)
{
    return cmd->flags & NKV_PER_HEAD ? 0 : group_rule(group, cmd).n_total;
}

static void plan_select(struct group *group, uint32_t m, struct nkv_cmd *part)
{
    uint32_t n = n_scores(group, part);

    part->in_offset = take_q(group, m, part);
    part->out_offset = group_take(group, m, nkv_select_layout(local_units(group, part), part->n_pages, 0, n).bytes);
    part->flags = (uint16_t)((part->flags & ~NKV_STEADY) | (n ? NKV_SCORES : 0));
    part->arg = 0;
    part->list_offset = 0;
}

static void plan_attend(struct group *group, uint32_t m, struct nkv_cmd *part)
{
    uint64_t stride = nkv_list_stride(part->n_pages), bytes = local_units(group, part) * stride;
    const uint8_t *lists = group_window(group) + part->list_offset;
    void *to;

    part->in_offset = take_q(group, m, part);
    part->out_offset = group_take(group, m, nkv_partial_layout(&group->local, part->n_tokens).bytes);
    if (part->flags & NKV_ALL_PAGES)
        return;
    part->list_offset = group_take(group, m, bytes);
    to = group_at(group, m, part->list_offset, bytes);
    if (to)
        memcpy(to, lists + (part->flags & NKV_PER_HEAD ? m * bytes : 0), bytes);
}

/* Pages in the lists of a member. longest_out: in any one of them; NULL: not asked for. */
static uint32_t n_listed(const struct group *group, const struct nkv_cmd *cmd, uint32_t m, uint32_t *longest_out)
{
    uint32_t n_units = local_units(group, cmd), n_all = 0, longest = 0;

    for (uint32_t unit = 0; unit < n_units; unit++) {
        uint32_t n = *member_list(group, cmd, m, unit);

        n = n < cmd->n_pages ? n : cmd->n_pages;
        longest = n > longest ? n : longest;
        n_all += n;
    }
    if (longest_out)
        *longest_out = longest;
    return n_all;
}

/* A member's lists, no longer than they have to be: what a READ writes has room for as many pages. */
static void put_lists(struct group *group, const struct nkv_cmd *cmd, uint32_t m, struct nkv_cmd *part)
{
    uint32_t n_units = local_units(group, cmd), cap = part->n_pages;
    uint64_t bytes = n_units * nkv_list_stride(cap);

    part->list_offset = group_take(group, m, bytes);
    for (uint32_t unit = 0; group_at(group, m, part->list_offset, bytes) && unit < n_units; unit++) {
        const uint32_t *list = member_list(group, cmd, m, unit);
        uint32_t *to = list_at(group->members[m].window, part->list_offset, unit, cap);

        to[0] = list[0] < cap ? list[0] : cap;
        memcpy(to + 1, list + 1, to[0] * sizeof *to);
    }
}

/* returns: whether there is anything to read. */
static bool plan_transfer(struct group *group, uint32_t m, struct nkv_cmd *part)
{
    const struct nkv_cmd cmd = *part;
    uint64_t n_pages = cmd.n_pages;

    if (!(cmd.flags & NKV_DIGEST)) {
        if (n_listed(group, &cmd, m, &part->n_pages) == 0)
            return false;
        put_lists(group, &cmd, m, part);
        n_pages = (uint64_t)local_units(group, &cmd) * part->n_pages;
    }
    part->out_offset = group_take(group, m, group_read_bytes(&group->local, &cmd, n_pages));
    return true;
}

static int plan(struct group *group, struct group_entry *entry)
{
    for (uint32_t m = 0; m < group->n; m++) {
        struct nkv_cmd part = entry->cmd;

        if (part.op == NKV_OP_READ && !plan_transfer(group, m, &part))
            continue;
        if (part.op == NKV_OP_APPEND)
            plan_append(group, m, &part);
        else if (part.op == NKV_OP_SELECT)
            plan_select(group, m, &part);
        else if (part.op == NKV_OP_ATTEND)
            plan_attend(group, m, &part);
        TRY(group_add(group, entry, m, &part, 0));
    }
    return 0;
}

/* The mean of the members' scores; begin: the first page that competes. */
static void add_scores(struct group *group, const struct group_entry *entry, uint32_t begin, uint32_t end)
{
    struct nkv_select_layout at = nkv_select_layout(1, entry->cmd.n_pages, 0, 0);

    memset(group->scores, 0, (end - begin) * sizeof *group->scores);
    for (uint32_t m = 0; m < group->n; m++) {
        const uint8_t *out = group->members[m].window + group->subs[entry->first_sub + m].cmd.out_offset;
        const float *scores = (const float *)(const void *)(out + at.scores);

        for (uint32_t page = begin; page < end; page++)
            group->scores[page - begin] += scores[page] / (float)group->n;
    }
}

static int select_layer(struct group *group, const struct group_entry *entry)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    struct nkv_select_rule rule = group_rule(group, cmd);
    struct nkv_select_layout at = group_select_layout(group, cmd);
    uint32_t *chosen = list_at(group_window(group), cmd->out_offset + at.chosen, 0, cmd->n_pages);
    uint32_t begin, end;

    TRY(nkv_select_range(&rule, &begin, &end));
    add_scores(group, entry, begin, end);
    chosen[0] = nkv_select_pages(&rule, group->scores, group->ids, chosen + 1);
    TRY(group_put_set(group, cmd, 0));
    group->counts.n_select_rounds += begin < end;
    return (int)chosen[0];
}

static int select_heads(struct group *group, const struct group_entry *entry)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    uint64_t chosen = cmd->out_offset + group_select_layout(group, cmd).chosen;
    uint64_t bytes = local_units(group, cmd) * nkv_list_stride(cmd->n_pages);

    for (uint32_t m = 0; m < group->n; m++)
        memcpy(group_window(group) + chosen + m * bytes,
               group->members[m].window + group->subs[entry->first_sub + m].cmd.out_offset, bytes);
    for (uint32_t unit = 0; unit < group_units(group, cmd); unit++)
        TRY(group_put_set(group, cmd, unit));
    return group->subs[entry->first_sub].res;
}

static int finish_select(struct group *group, const struct group_entry *entry)
{
    return entry->cmd.flags & NKV_PER_HEAD ? select_heads(group, entry) : select_layer(group, entry);
}

static int finish_attend(struct group *group, const struct group_entry *entry)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    struct partial out = partial_at(&group->shape, group_window(group), cmd->out_offset, cmd->n_tokens);
    size_t heads = group->local.n_heads, dim = group->local.head_dim;

    for (uint32_t m = 0; m < group->n; m++) {
        const struct group_sub *sub = &group->subs[entry->first_sub + m];
        struct partial part = partial_at(&group->local, group->members[m].window, sub->cmd.out_offset, cmd->n_tokens);

        for (size_t t = 0; t < cmd->n_tokens; t++) {
            size_t to = t * group->shape.n_heads + m * heads;

            memcpy(out.o + to * dim, part.o + t * heads * dim, heads * dim * sizeof *out.o);
            memcpy(out.m + to, part.m + t * heads, heads * sizeof *out.m);
            memcpy(out.l + to, part.l + t * heads, heads * sizeof *out.l);
        }
    }
    return group->subs[entry->first_sub].res;
}

/* A member's heads of one page into the page of all heads. */
static void join_page(const struct group *group, uint32_t m, uint8_t *to, const uint8_t *from)
{
    uint64_t n_rows = (uint64_t)group->local.n_kv_heads * group->local.page_tokens;
    uint64_t rows = n_rows * nkv_kv_row_bytes(group->local.dtype, group->local.head_dim);
    uint64_t scales = group->local.dtype == NKV_Q8_0 ? n_rows * sizeof(float) : 0;
    const uint64_t parts[4] = {rows, rows, scales, scales};
    uint8_t *end = to + nkv_page_bytes(&group->shape, group->shape.n_kv_heads);

    for (uint32_t i = 0; i < 4; i++) {
        memcpy(to + m * parts[i], from, parts[i]);
        to += group->n * parts[i];
        from += parts[i];
    }
    memset(to, 0, (size_t)(end - to));
}

/* Per KV head, and of digests, a member's part is one piece. returns: its bytes. */
static uint64_t join_read(struct group *group, const struct nkv_cmd *cmd, const struct group_sub *sub, uint8_t *to)
{
    const uint8_t *from = group->members[sub->member].window + sub->cmd.out_offset;
    uint32_t n = cmd->flags & NKV_DIGEST ? cmd->n_pages : n_listed(group, cmd, sub->member, NULL);
    uint64_t bytes = group_read_bytes(&group->local, cmd, n);

    if (cmd->flags & (NKV_DIGEST | NKV_PER_HEAD)) {
        memcpy(to, from, bytes);
        return bytes;
    }
    for (uint32_t i = 0; i < n; i++)
        join_page(group, sub->member, to + i * group_read_bytes(&group->shape, cmd, 1),
                  from + i * group_read_bytes(&group->local, cmd, 1));
    return 0; /* all members' heads of a page lie in one place */
}

static int finish_read(struct group *group, const struct group_entry *entry)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    uint8_t *to = group_window(group) + cmd->out_offset;
    uint32_t n_all = 0;

    for (uint32_t m = 0; m < (cmd->flags & NKV_PER_HEAD ? group->n : 1); m++)
        n_all += cmd->flags & NKV_DIGEST ? cmd->n_pages : n_listed(group, cmd, m, NULL);
    TRY(group_check_read(group, cmd, n_all));
    for (uint32_t i = 0; i < entry->n_subs; i++)
        to += join_read(group, cmd, &group->subs[entry->first_sub + i], to);
    return (int)n_all;
}

const struct group_kind group_tp = {
    .id = NKV_KV_HEADS,
    .name = "tp",
    .local_tokens = local_tokens,
    .plan = plan,
    .finish_select = finish_select,
    .finish_attend = finish_attend,
    .finish_read = finish_read,
};
