/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim/mapping.h: attention of a batch whose sequences are each spread over a group of PNM devices, by KV heads (tp) or
 * by pages (cp). Groups share the batch: sequence b is on group b mod n_groups.
 */
#ifndef NKV_SIM_MAPPING_H
#define NKV_SIM_MAPPING_H

#include "sim/work.h"

struct sim_mapping;

/* Both are borrowed; the cluster's pick must be open. */
int sim_mapping_open(const struct sim_work *work, struct sim_cluster *cluster, struct sim_mapping **mapping_out);
/* NULL is allowed. */
void sim_mapping_close(struct sim_mapping *mapping);

/* One layer's attention of the whole batch at position `pos`, and the clock behind it. returns: 0, or an error of the
 * source of scores. */
int sim_mapping_attend(struct sim_mapping *mapping, uint32_t layer, uint32_t pos);
/* Dense work of the GPUs, as nkv_fc. */
void sim_mapping_fc(struct sim_mapping *mapping, const struct nkv_fc_work *work);

/* ---- Between mapping.c and mapping_select.c ---- */

/* What one device of a group does for one sequence in the current layer. */
struct sim_part {
    struct sim_moment scored, listed, known;
    double n_scored, n_chosen; /* digests; pages, all units together */
    double tokens;             /* attended, mean over units */
    double n_missing;          /* cp: candidates that were asked for */
};

struct sim_mapping {
    const struct sim_work *work;
    struct sim_cluster *cluster;
    uint32_t group, n_groups, n_units; /* n_units: page sets of a layer */
    uint32_t layer, pos;
    double n_scored;           /* pages of a sequence; 0: the budget holds them all */
    struct nkv_kv_shape shape; /* of a device: tp: its heads; cp: all */
    struct sim_pnm *pnm;       /* [n_pnm] */
    struct sim_part *parts;    /* [batch][group] */
    uint8_t *answer;           /* of sim_pick_select */
    uint32_t *counts;          /* [n_units][group]: chosen pages */
    struct sim_moment *at;     /* [batch]: where a sequence's selection is */
};

static inline struct sim_part *sim_mapping_part(const struct sim_mapping *m, uint32_t seq, uint32_t i)
{
    return &m->parts[(size_t)seq * m->group + i];
}

static inline const struct sim_pnm *sim_mapping_pnm(const struct sim_mapping *m, uint32_t seq, uint32_t i)
{
    return &m->pnm[seq % m->n_groups * m->group + i];
}

/* Candidates per unit that a device of a cp group sends unasked. */
uint32_t sim_mapping_candidates(const struct sim_mapping *mapping);
/* The page sets become known on all devices of a group: from every part's `scored` to its `listed`. */
void sim_mapping_select(struct sim_mapping *mapping);

#endif
