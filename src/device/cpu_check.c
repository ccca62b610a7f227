/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks of commands. Nothing is trusted: a table says which fields and flags an op names, everything else must be 0;
 * operands must lie in the window; lists are copied out of the window before they are checked, so that a host that
 * writes at the wrong time cannot slip an id past the check. Sizes are 64-bit products that saturate, and no
 * window is that large.
 */
#include <string.h>

#include "device/backend.h"
#include "device/cpu.h"

enum field {
    F_LAYER = 1 << 0,
    F_SINK = 1 << 1, /* and recent */
    F_ARG = 1 << 2,
    F_IN = 1 << 3,
    F_OUT = 1 << 4,
    F_LIST = 1 << 5,
    F_TOKENS = 1 << 6,
    F_PAGES = 1 << 7,
    F_POS = 1 << 8,
};

struct op_rule {
    uint32_t fields, flags;
};

static const struct op_rule rules[NKV_OP_COUNT] = {
    [NKV_OP_SEQ_OPEN] = {F_TOKENS, NKV_NO_DIGEST | NKV_NO_PAGES | NKV_SLOTS | NKV_NAMED},
    [NKV_OP_SEQ_CLOSE] = {0, NKV_NAMED},
    [NKV_OP_SEQ_FORK] = {F_ARG | F_POS | F_TOKENS, NKV_NAMED},
    [NKV_OP_SEQ_TRUNCATE] = {F_POS, 0},
    [NKV_OP_APPEND] = {F_LAYER | F_IN | F_TOKENS | F_POS, 0},
    [NKV_OP_SELECT] = {F_LAYER | F_SINK | F_IN | F_OUT | F_TOKENS | F_PAGES | F_POS,
                       NKV_PER_HEAD | NKV_STEADY | NKV_SCORES | NKV_CANDIDATES},
    [NKV_OP_ATTEND] = {F_LAYER | F_IN | F_OUT | F_LIST | F_TOKENS | F_PAGES | F_POS,
                       NKV_PER_HEAD | NKV_CAUSAL | NKV_ALL_PAGES},
    [NKV_OP_READ] = {F_LAYER | F_OUT | F_LIST | F_PAGES, NKV_PER_HEAD | NKV_DIGEST | NKV_TOKENS},
    [NKV_OP_WRITE] = {F_LAYER | F_IN | F_LIST | F_TOKENS | F_PAGES, NKV_PER_HEAD | NKV_DIGEST | NKV_TOKENS},
    [NKV_OP_SEQ_PUBLISH] = {F_IN | F_TOKENS, 0},
    [NKV_OP_SEQ_LIST] = {F_ARG | F_IN | F_OUT | F_TOKENS | F_PAGES, 0},
    [NKV_OP_COMPUTE] = {F_LAYER | F_SINK | F_ARG | F_IN | F_OUT | F_LIST | F_TOKENS | F_PAGES | F_POS, 0},
};

/* Flags change which fields are named. */
static uint32_t named_fields(const struct nkv_cmd *cmd)
{
    uint32_t fields = rules[cmd->op].fields;

    if (cmd->flags & NKV_STEADY)
        fields |= F_LIST | F_ARG;
    if (cmd->flags & NKV_ALL_PAGES)
        fields &= ~(uint32_t)(F_LIST | F_PAGES);
    if (cmd->flags & NKV_DIGEST)
        fields = (fields & ~(uint32_t)(F_LIST | F_TOKENS)) | F_POS;
    if (cmd->flags & NKV_TOKENS)
        fields = (fields & (F_IN | F_OUT)) | F_TOKENS | F_POS;
    if (cmd->flags & NKV_NAMED && cmd->op != NKV_OP_SEQ_CLOSE)
        fields = (fields & ~(uint32_t)F_ARG) | F_IN;
    return fields;
}

static int check_zero(const struct nkv_cmd *cmd)
{
    const struct {
        uint32_t field;
        const char *name;
        uint64_t value;
    } all[] = {
        {F_LAYER, "layer", cmd->layer},
        {F_SINK, "sink", cmd->sink},
        {F_SINK, "recent", cmd->recent},
        {F_ARG, "arg", cmd->arg},
        {F_IN, "in_offset", cmd->in_offset},
        {F_OUT, "out_offset", cmd->out_offset},
        {F_LIST, "list_offset", cmd->list_offset},
        {F_TOKENS, "n_tokens", cmd->n_tokens},
        {F_PAGES, "n_pages", cmd->n_pages},
        {F_POS, "pos", cmd->pos},
    };
    uint32_t named = named_fields(cmd);

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!(named & all[i].field) && all[i].value)
            FAIL(NKV_EINVAL, "%s: %s is %llu: with flags 0x%x it must be 0", nkv_op_name(cmd->op), all[i].name,
                 (unsigned long long)all[i].value, cmd->flags);
    return 0;
}

int nkv_cpu_check_fields(const struct nkv_cmd *cmd)
{
    uint32_t unknown;

    if (cmd->op == 0 || cmd->op >= NKV_OP_COUNT)
        FAIL(NKV_EINVAL, "unknown op %u", cmd->op);
    unknown = cmd->flags & ~rules[cmd->op].flags;
    if (unknown)
        FAIL(NKV_EINVAL, "%s: flags 0x%x are not for this op", nkv_op_name(cmd->op), unknown);
    if (cmd->reserved)
        FAIL(NKV_EINVAL, "%s: the reserved byte is %u: it must be 0", nkv_op_name(cmd->op), cmd->reserved);
    if ((cmd->flags & (NKV_DIGEST | NKV_TOKENS | NKV_NAMED)) && (cmd->flags & (cmd->flags - 1)))
        FAIL(NKV_EINVAL, "%s: flags 0x%x: DIGEST, TOKENS and NAMED stand alone", nkv_op_name(cmd->op), cmd->flags);
    return check_zero(cmd);
}

int nkv_cpu_check_seq(const struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq **seq_out)
{
    struct nkv_kv_seq *seq = nkv_store_find(cpu->store, nkv_seq_key(cpu->owner, cmd->seq));

    if (!seq)
        FAIL(NKV_ENOENT, "%s: no sequence %u on this device", nkv_op_name(cmd->op), cmd->seq);
    if (cmd->layer >= cpu->shape.n_layers)
        FAIL(NKV_EINVAL, "%s: layer %u of %u", nkv_op_name(cmd->op), cmd->layer, cpu->shape.n_layers);
    *seq_out = seq;
    return 0;
}

int nkv_cpu_check_operand(const struct nkv_cpu *cpu, const char *what, uint64_t offset, uint64_t bytes,
                          void *operand_out)
{
    void *operand;

    if (offset % 64)
        FAIL(NKV_EINVAL, "%s: offset %llu is no multiple of 64", what, (unsigned long long)offset);
    if (offset > cpu->window_bytes || bytes > cpu->window_bytes - offset)
        FAIL(NKV_EINVAL, "%s: %llu bytes at %llu are not within the window of %llu", what, (unsigned long long)bytes,
             (unsigned long long)offset, (unsigned long long)cpu->window_bytes);
    operand = cpu->window + offset;
    memcpy(operand_out, &operand, sizeof operand);
    return 0;
}

int nkv_cpu_check_disjoint(uint64_t out, uint64_t out_bytes, uint64_t in, uint64_t in_bytes)
{
    if (out_bytes && in_bytes && out < in + in_bytes && in < out + out_bytes)
        FAIL(NKV_EINVAL, "what is written at %llu overlaps what is read at %llu", (unsigned long long)out,
             (unsigned long long)in);
    return 0;
}

uint32_t nkv_cpu_units(const struct nkv_cpu *cpu, const struct nkv_cmd *cmd)
{
    return cmd->flags & NKV_PER_HEAD ? cpu->shape.n_kv_heads : 1;
}

uint64_t nkv_cpu_times(uint64_t a, uint64_t b)
{
    uint64_t product;

    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

int nkv_cpu_take_lists(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, uint32_t cap, struct nkv_cpu_lists *lists_out)
{
    uint32_t n_units = nkv_cpu_units(cpu, cmd);
    struct nkv_cpu_lists lists = {n_units, cpu->unit_ids, cpu->unit_n, cpu->list_memory.base, 0};
    uint64_t stride = nkv_list_stride(cap);
    const char *operand = NULL;

    TRY(nkv_cpu_check_operand(cpu, "lists", cmd->list_offset, nkv_cpu_times(stride, n_units), &operand));
    for (uint32_t unit = 0; unit < n_units; unit++) {
        uint32_t n = *(const volatile uint32_t *)(const void *)(operand + unit * stride); /* read once */

        if (n > cap)
            FAIL(NKV_EINVAL, "%s: list %u has %u entries of at most %u", nkv_op_name(cmd->op), unit, n, cap);
        lists.ids[unit] = lists.free;
        lists.n[unit] = n;
        memcpy(lists.free, operand + unit * stride + sizeof n, n * sizeof n);
        lists.free += n;
        lists.n_all += n;
    }
    *lists_out = lists;
    return 0;
}

static int check_list(const struct nkv_kv_seq *seq, uint32_t layer, const uint32_t *ids, uint32_t n, uint32_t n_held,
                      bool ascending)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] >= n_held || (seq->held && ids[i] != seq->held[layer]))
            FAIL(NKV_EINVAL, "sequence %u does not hold page %u in layer %u", seq->id, ids[i], layer);
        if (ascending && i > 0 && ids[i] <= ids[i - 1])
            FAIL(NKV_EINVAL, "page %u after page %u: a list must ascend without repeats", ids[i], ids[i - 1]);
    }
    return 0;
}

int nkv_cpu_check_ids(const struct nkv_cpu *cpu, const struct nkv_kv_seq *seq, uint32_t layer,
                      const struct nkv_cpu_lists *lists, bool ascending)
{
    uint32_t n_held = nkv_seq_layer_pages(cpu->store, seq, layer);

    for (uint32_t unit = 0; unit < lists->n_units; unit++)
        TRY(check_list(seq, layer, lists->ids[unit], lists->n[unit], n_held, ascending));
    return 0;
}
