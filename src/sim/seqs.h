/* SPDX-License-Identifier: Apache-2.0 */
/* sim/seqs.h: the sequences of a simulated device: how long they are in each layer, and the bytes that they hold. */
#ifndef NKV_SIM_SEQS_H
#define NKV_SIM_SEQS_H

#include <nearkv/device.h>

struct sim_seq {
    uint32_t id, ordinal;
    bool open;
    uint16_t flags; /* as it was opened */
    uint32_t max_tokens;
    uint32_t *lengths; /* [n_layers] tokens */
    uint32_t parent;   /* index of a sequence whose first n_shared pages these are; see seqs.c */
    uint32_t n_shared;
    uint64_t q_offset; /* of the query that is in the device's buffer; UINT64_MAX: none */
    uint32_t q_pos, q_layer;
};

struct sim_seqs {
    struct nkv_kv_shape shape;
    uint64_t capacity_bytes, used_bytes;
    uint64_t page_bytes, chunk_bytes; /* of all layers: a page; the digests of chunk_pages pages */
    uint32_t chunk_pages;
    uint32_t n_open, max;
    struct sim_seq *all; /* [max] */
    uint32_t *lengths;
};

int sim_seqs_init(const struct nkv_kv_shape *shape, uint64_t capacity_bytes, uint32_t max, struct sim_seqs *seqs_out);
void sim_seqs_free(struct sim_seqs *seqs);

/* returns: NKV_ENOENT when no such sequence is open. */
int sim_seqs_find(struct sim_seqs *seqs, uint32_t id, struct sim_seq **seq_out);
/* SEQ_OPEN of a sequence that holds n_kept tokens already, and SEQ_FORK. returns: 0, NKV_EINVAL, NKV_ENOENT,
 * NKV_ENOSPC. */
int sim_seqs_add(struct sim_seqs *seqs, const struct nkv_cmd *cmd, uint32_t n_kept, struct sim_seq **seq_out);
int sim_seqs_fork(struct sim_seqs *seqs, const struct nkv_cmd *cmd, struct sim_seq **seq_out);
int sim_seqs_truncate(struct sim_seqs *seqs, struct sim_seq *seq, uint32_t n_tokens);
void sim_seqs_remove(struct sim_seqs *seqs, struct sim_seq *seq);
/* `layer` grows by n_tokens from pos on. returns: 0, or NKV_EINVAL: it does not end at pos, or they do not fit. */
int sim_seq_extend(struct sim_seq *seq, uint32_t layer, uint32_t pos, uint32_t n_tokens);
/* Whether `layer` holds tokens pos .. pos + n_tokens - 1. returns: 0 or NKV_EINVAL. */
int sim_seq_check(const struct sim_seq *seq, uint32_t layer, uint32_t pos, uint32_t n_tokens);

#endif
