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
/* Time passes until no recalled page is on its way. */
void sim_mapping_drain(struct sim_mapping *mapping);
/* Dense work of the GPUs, as nkv_fc. */
void sim_mapping_fc(struct sim_mapping *mapping, const struct nkv_fc_work *work);

/* Of NKV_SIM_AUTO: the mapping that most requests of the batch get, and how many the runtime's policy would leave on
 * one device and spread over all. returns: 0, or an error of sizes. */
struct sim_mapping_choice {
    enum nkv_sim_mapping mapping;
    uint32_t n_whole, n_spread;
};
int sim_mapping_choose(const struct nkv_sim_config *config, struct sim_mapping_choice *choice_out);

/* ---- Between mapping.c and mapping_select.c ---- */

/* What one device of a group does for one sequence in the current layer. */
struct sim_part {
    struct sim_moment scored, listed, known;
    double n_scored, n_chosen;   /* digests; pages that it attends to, all units together */
    double tokens;               /* attended, mean over units */
    double n_missing;            /* cp: candidates that were asked for */
    double n_steady, n_recalled; /* png: of its units, or of its pages, those that the GPUs have, and that they get */
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
    struct sim_moment *at;     /* [batch]: where a sequence's selection is; png: when the host knows it */
    /* png (mapping_steady.c); n_slots 0: none */
    uint32_t n_slots;
    bool same_step;
    uint8_t *tables;            /* [batch][layers]: lists(n_slots) of each unit's resident pages */
    double *steady_tokens;      /* [batch]: attended on the GPUs in this layer, mean over units */
    struct sim_moment *arrived; /* [layers]: the last page that the layer recalled */
};

static inline struct sim_part *sim_mapping_part(const struct sim_mapping *m, uint32_t seq, uint32_t i)
{
    return &m->parts[(size_t)seq * m->group + i];
}

static inline const struct sim_pnm *sim_mapping_pnm(const struct sim_mapping *m, uint32_t seq, uint32_t i)
{
    return &m->pnm[seq % m->n_groups * m->group + i];
}

static inline bool sim_mapping_by_pages(const struct sim_mapping *m)
{
    return m->work->config->mapping == NKV_SIM_CP;
}

/* cp: the device of its group that has a page. */
static inline uint32_t sim_mapping_owner(const struct sim_mapping *m, uint32_t seq, uint32_t page)
{
    return (page + seq) % m->group;
}

/* Page sets that a device has a part in: in tp, where heads have sets of their own, those of its heads. */
static inline uint32_t sim_mapping_units(const struct sim_mapping *m)
{
    return sim_mapping_by_pages(m) || m->n_units == 1 ? m->n_units : m->n_units / m->group;
}

/* One unit's list in `answer`, `at` being the lists' place in its layout. */
static inline const uint32_t *sim_mapping_list(const struct sim_mapping *m, uint64_t at, uint32_t cap, uint32_t unit)
{
    return (const uint32_t *)(const void *)(m->answer + at + unit * nkv_list_stride(cap));
}

/* Candidates per unit that a device of a cp group sends unasked. */
uint32_t sim_mapping_candidates(const struct sim_mapping *mapping);
/* The page sets become known on all devices of a group: from every part's `scored` to its `listed`. */
void sim_mapping_select(struct sim_mapping *mapping);

/* ---- mapping_steady.c: steady pages (png). Nothing of it is called where n_slots is 0, but for open and close. ----
 */

int sim_steady_open(struct sim_mapping *mapping);
void sim_steady_close(struct sim_mapping *mapping);

/* lists(n_slots): the pages that the GPUs have of a sequence in the current layer. */
const uint8_t *sim_steady_resident(const struct sim_mapping *mapping, uint32_t seq);
/* One unit of a SELECT's answer: who recalls and attends what, and the resident pages of the next step. */
void sim_steady_take(struct sim_mapping *mapping, uint32_t seq, uint32_t unit);

/* Whether a device runs Steady-Select itself, as dp's do; what of the resident table goes down for that, and what of
 * its lists comes up. */
bool sim_steady_runs(const struct sim_mapping *mapping, uint32_t seq, uint32_t i);
double sim_steady_down_bytes(const struct sim_mapping *mapping);
double sim_steady_up_bytes(const struct sim_mapping *mapping, const struct sim_part *part);

/* Pages that a layer recalled a step ago are there. */
void sim_steady_drain(struct sim_mapping *mapping, uint32_t layer);
/* READ on all devices and the GPUs' attention. returns: its end. */
struct sim_moment sim_steady_attend(struct sim_mapping *mapping);

#endif
