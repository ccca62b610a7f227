/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening, closing, forking and truncating a sequence that a group holds: alone in the queue, member by member, so that
 * what fails halfway can be undone. A sequence is on all members or on none, also where it has too few pages for all: a
 * member then holds one of no tokens. Truncating goes on behind a failure, because what is cut too far on one member
 * only is cut again by the next attempt.
 *
 * Doing it on all members at once was rejected: it is done once for a sequence, and the first failure ends it.
 */
#include "base/mem.h"
#include "runtime/group.h"

static int grow_scratch(struct group *group, uint32_t n_tokens)
{
    uint32_t n_pages = n_tokens / group->shape.page_tokens + 1, *ids;
    float *scores;

    if (n_pages <= group->max_pages)
        return 0;
    TRY(nkv_alloc(n_pages, sizeof *scores, &scores));
    if (nkv_alloc(3 * (size_t)n_pages, sizeof *ids, &ids) < 0) {
        nkv_free(scores);
        return NKV_ENOMEM;
    }
    nkv_free(group->scores);
    nkv_free(group->ids);
    group->scores = scores;
    group->ids = ids;
    group->max_pages = n_pages;
    return 0;
}

int group_control(struct group *group, struct group_entry *entry)
{
    const struct nkv_cmd *cmd = &entry->cmd;
    bool opens = cmd->op == NKV_OP_SEQ_OPEN || cmd->op == NKV_OP_SEQ_FORK;
    struct nkv_cmd close = {.op = NKV_OP_SEQ_CLOSE, .seq = cmd->seq};
    uint32_t m;

    group->n_subs = 0; /* nothing is in flight */
    if (cmd->op > NKV_OP_SEQ_TRUNCATE || cmd->flags & ~NKV_NO_DIGEST)
        FAIL(NKV_ENOTSUP,
             "a sequence that is spread over devices (%s) cannot be a session: keep each on one device "
             "(dp)",
             group->kind->name);
    if (opens)
        TRY(grow_scratch(group, cmd->n_tokens));
    for (m = 0; m < group->n; m++) {
        struct nkv_cmd part = *cmd;
        uint32_t page = group->shape.page_tokens, local = group->kind->local_tokens(group, m, cmd->n_tokens);

        part.after = 0;
        part.pos = group->kind->local_tokens(group, m, cmd->pos);
        part.n_tokens = !opens ? 0 : local < page ? page : local; /* a member holds a sequence even if none of it */
        if (group_run(group, entry, m, &part) < 0 && opens)
            break;
        TRY(group_check(group));
    }
    for (uint32_t i = 0; opens && m < group->n && i < m; i++) /* it failed on member m: as if it never was */
        (void)group_run(group, entry, i, &close);
    return entry->res;
}
