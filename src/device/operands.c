/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operands of each op, from its fields alone: the text of nearkv/device.h as a function. A device whose window is
 * shared never needs it; one that carries operands between two windows (mpi.c) needs it for nothing else, and so an op
 * that is added without operands in the window needs no line here.
 *
 * Sizes are products of fields that nobody has checked yet: they saturate, and are cut at the window's end. Where that
 * cuts what a command needs, the device finds the fault itself and says what it is, in its own words.
 */
#include "device/operands.h"

struct list {
    const struct nkv_kv_shape *shape;
    uint64_t window_bytes;
    struct nkv_operand *operands;
    uint32_t n;
};

static uint64_t times(uint64_t a, uint64_t b)
{
    uint64_t product;

    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

static void add(struct list *list, enum nkv_operand_kind kind, uint64_t offset, uint64_t bytes)
{
    if (offset > list->window_bytes)
        return;
    if (bytes > list->window_bytes - offset)
        bytes = list->window_bytes - offset;
    if (bytes > 0)
        list->operands[list->n++] = (struct nkv_operand){offset, bytes, kind};
}

static uint32_t units(const struct list *list, const struct nkv_cmd *cmd)
{
    return cmd->flags & NKV_PER_HEAD ? list->shape->n_kv_heads : 1;
}

static uint64_t rows_bytes(const struct list *list, const struct nkv_cmd *cmd, uint32_t n_heads)
{
    return 4u * (uint64_t)cmd->n_tokens * n_heads * list->shape->head_dim;
}

/* Of token ids. */
static uint64_t ids_bytes(const struct nkv_cmd *cmd)
{
    return 4u * (uint64_t)cmd->n_tokens;
}

static uint64_t lists_bytes(const struct list *list, const struct nkv_cmd *cmd, uint32_t cap)
{
    return units(list, cmd) * nkv_list_stride(cap);
}

/* n pages, of all units together. */
static uint64_t pages_bytes(const struct list *list, const struct nkv_cmd *cmd, uint64_t n)
{
    if (cmd->flags & NKV_DIGEST)
        return times(n, list->shape->n_kv_heads * nkv_digest_bytes(list->shape));
    return times(n, nkv_page_bytes(list->shape, list->shape->n_kv_heads / units(list, cmd)));
}

uint32_t nkv_operands_in(const struct nkv_kv_shape *shape, const struct nkv_cmd *cmd, uint64_t window_bytes,
                         struct nkv_operand operands_out[NKV_MAX_OPERANDS])
{
    struct list list = {shape, window_bytes, operands_out, 0};
    bool has_list = !(cmd->flags & (NKV_ALL_PAGES | NKV_DIGEST | NKV_TOKENS));

    switch (cmd->op) {
    case NKV_OP_SEQ_OPEN:
    case NKV_OP_SEQ_FORK:
        if (cmd->flags & NKV_NAMED)
            add(&list, NKV_OPERAND_LISTS, cmd->in_offset, sizeof(struct nkv_seq_name));
        break;
    case NKV_OP_SEQ_PUBLISH:
        add(&list, NKV_OPERAND_LISTS, cmd->in_offset, sizeof(struct nkv_seq_name) + ids_bytes(cmd));
        break;
    case NKV_OP_SEQ_LIST:
        add(&list, NKV_OPERAND_LISTS, cmd->in_offset, ids_bytes(cmd));
        break;
    case NKV_OP_APPEND:
        add(&list, NKV_OPERAND_QKV, cmd->in_offset, 2 * rows_bytes(&list, cmd, shape->n_kv_heads));
        break;
    case NKV_OP_SELECT:
        add(&list, NKV_OPERAND_QKV, cmd->in_offset, rows_bytes(&list, cmd, shape->n_heads));
        if (cmd->flags & NKV_STEADY)
            add(&list, NKV_OPERAND_LISTS, cmd->list_offset, lists_bytes(&list, cmd, cmd->arg));
        break;
    case NKV_OP_ATTEND:
        add(&list, NKV_OPERAND_QKV, cmd->in_offset, rows_bytes(&list, cmd, shape->n_heads));
        if (has_list)
            add(&list, NKV_OPERAND_LISTS, cmd->list_offset, lists_bytes(&list, cmd, cmd->n_pages));
        break;
    case NKV_OP_READ:
        if (has_list)
            add(&list, NKV_OPERAND_LISTS, cmd->list_offset, lists_bytes(&list, cmd, cmd->n_pages));
        break;
    case NKV_OP_WRITE:
        if (has_list)
            add(&list, NKV_OPERAND_LISTS, cmd->list_offset, lists_bytes(&list, cmd, cmd->n_pages));
        if (cmd->flags & NKV_TOKENS)
            add(&list, NKV_OPERAND_LISTS, cmd->in_offset, ids_bytes(cmd));
        else
            add(&list, NKV_OPERAND_PAGES, cmd->in_offset,
                pages_bytes(&list, cmd, times(cmd->n_pages, cmd->flags & NKV_DIGEST ? 1 : units(&list, cmd))));
        break;
    default:
        break;
    }
    return list.n;
}

/* Without NKV_STEADY nobody writes its three lists. */
static void add_select(struct list *list, const struct nkv_cmd *cmd)
{
    bool steady = cmd->flags & NKV_STEADY;
    uint32_t n_units = units(list, cmd), page = list->shape->page_tokens;
    uint64_t n_scores = ((uint64_t)cmd->pos + cmd->n_tokens + page - 1) / page;
    struct nkv_select_layout at = nkv_select_layout(n_units, cmd->n_pages, steady ? cmd->arg : 0, 0);

    if (cmd->out_offset > list->window_bytes) /* else the sums below might overflow */
        return;
    add(list, NKV_OPERAND_LISTS, cmd->out_offset, steady ? at.scores : at.steady);
    if (cmd->flags & NKV_CANDIDATES)
        n_scores = cmd->n_pages;
    if (cmd->flags & NKV_SCORES)
        add(list, NKV_OPERAND_LISTS, cmd->out_offset + at.scores, times(4u * (uint64_t)n_units, n_scores));
}

static void add_partials(struct list *list, const struct nkv_cmd *cmd)
{
    struct nkv_partial_layout at = nkv_partial_layout(list->shape, cmd->n_tokens);
    uint64_t n_rows = (uint64_t)cmd->n_tokens * list->shape->n_heads;

    if (cmd->out_offset > list->window_bytes) /* else the sums below might overflow */
        return;
    add(list, NKV_OPERAND_OUTPUT, cmd->out_offset + at.o, 4u * n_rows * list->shape->head_dim);
    add(list, NKV_OPERAND_SCALES, cmd->out_offset + at.m, 4u * n_rows);
    add(list, NKV_OPERAND_SCALES, cmd->out_offset + at.l, 4u * n_rows);
}

uint32_t nkv_operands_out(const struct nkv_kv_shape *shape, const struct nkv_cmd *cmd, int32_t res,
                          uint64_t window_bytes, struct nkv_operand operands_out[NKV_MAX_OPERANDS])
{
    struct list list = {shape, window_bytes, operands_out, 0};
    uint64_t n_pages = times(cmd->n_pages, cmd->flags & NKV_DIGEST ? 1 : units(&list, cmd));

    if (res < 0)
        return 0;
    if (cmd->op == NKV_OP_SELECT)
        add_select(&list, cmd);
    else if (cmd->op == NKV_OP_ATTEND)
        add_partials(&list, cmd);
    else if (cmd->op == NKV_OP_SEQ_LIST)
        add(&list, NKV_OPERAND_LISTS, cmd->out_offset,
            times(res == NKV_RES_UNKNOWN ? cmd->n_pages : (uint32_t)res, sizeof(struct nkv_seq_info)));
    else if (cmd->op == NKV_OP_READ && (cmd->flags & NKV_TOKENS))
        add(&list, NKV_OPERAND_LISTS, cmd->out_offset, ids_bytes(cmd));
    else if (cmd->op == NKV_OP_READ)
        add(&list, NKV_OPERAND_PAGES, cmd->out_offset,
            pages_bytes(&list, cmd, res == NKV_RES_UNKNOWN ? n_pages : (uint64_t)res));
    return list.n;
}
