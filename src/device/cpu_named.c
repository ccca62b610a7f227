/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands about published sequences: their names and lists lie in the window, so they are copied or checked here
 * before the store sees them.
 */
#include <string.h>

#include "device/cpu.h"

static int take_name(const struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_seq_name *name_out)
{
    const struct nkv_seq_name *name = NULL;

    TRY(nkv_cpu_check_operand(cpu, "a name", cmd->in_offset, sizeof *name, &name));
    memcpy(name_out, name, sizeof *name_out);
    return nkv_seq_name_check(name_out);
}

int nkv_cpu_seq_attach(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, uint64_t key)
{
    struct nkv_seq_name name;

    TRY(take_name(cpu, cmd, &name));
    return nkv_store_attach(cpu->store, key, &name, cmd->n_tokens);
}

int nkv_cpu_seq_fork_named(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, uint64_t key)
{
    struct nkv_seq_name name;
    uint64_t parent = 0;

    TRY(take_name(cpu, cmd, &name));
    TRY(nkv_store_find_named(cpu->store, &name, &parent));
    return nkv_store_seq_fork(cpu->store, key, parent, cmd->pos, cmd->n_tokens);
}

int nkv_cpu_seq_publish(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, uint64_t key)
{
    struct nkv_seq_name name;
    const uint32_t *ids = NULL;
    uint64_t bytes = nkv_cpu_times(cmd->n_tokens, sizeof *ids);

    TRY(take_name(cpu, cmd, &name));
    TRY(nkv_cpu_check_operand(cpu, "token ids", cmd->in_offset + sizeof name, bytes, &ids));
    return nkv_store_publish(cpu->store, key, &name, ids, cmd->n_tokens);
}

int nkv_cpu_seq_list(struct nkv_cpu *cpu, const struct nkv_cmd *cmd)
{
    uint64_t in_bytes = nkv_cpu_times(cmd->n_tokens, sizeof(uint32_t));
    uint64_t out_bytes = nkv_cpu_times(cmd->n_pages, sizeof(struct nkv_seq_info));
    const uint32_t *tokens = NULL;
    struct nkv_seq_info *infos = NULL;

    TRY(nkv_cpu_check_operand(cpu, "seq_list: token ids", cmd->in_offset, in_bytes, &tokens));
    TRY(nkv_cpu_check_operand(cpu, "seq_list: descriptions", cmd->out_offset, out_bytes, &infos));
    TRY(nkv_cpu_check_disjoint(cmd->out_offset, out_bytes, cmd->in_offset, in_bytes));
    return (int)nkv_store_list(cpu->store, cmd->arg, cmd->n_pages, tokens, cmd->n_tokens, infos);
}

int nkv_cpu_tokens(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq)
{
    uint64_t offset = cmd->op == NKV_OP_READ ? cmd->out_offset : cmd->in_offset;
    uint64_t bytes = nkv_cpu_times(cmd->n_tokens, sizeof(uint32_t));
    uint32_t *ids = NULL;

    if (!seq->tokens)
        FAIL(NKV_EINVAL, "sequence %u is not published: it has no token ids", seq->id);
    if (cmd->pos > seq->max_tokens || cmd->n_tokens > seq->max_tokens - cmd->pos)
        FAIL(NKV_EINVAL, "ids of %u tokens from %u on of a sequence of at most %u", cmd->n_tokens, cmd->pos,
             seq->max_tokens);
    TRY(nkv_cpu_check_operand(cpu, "token ids", offset, bytes, &ids));
    if (cmd->op == NKV_OP_READ)
        memcpy(ids, seq->tokens + cmd->pos, bytes);
    else
        nkv_store_put_ids(cpu->store, seq, cmd->pos, ids, cmd->n_tokens);
    return (int)cmd->n_tokens;
}
