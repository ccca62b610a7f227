/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Selection over the devices of a group. All messages go through the host, as CXL.mem has no others.
 *
 *   tp, a set per layer: a page's score is the mean over all heads, so no device can leave a page out. G - 1 devices
 * send all their scores to the sequence's home device, which adds and ranks them and returns the set; G - 1 messages
 *     there, G - 1 back, G sorts, as the paper counts. An exact sum needs the home's sort only; the others run beside
 * one another, before the messages. tp, a set per KV head: none. Every device ranks its own heads. cp: round 1, every
 * device sends its best candidates; the GPUs find the threshold. A device whose last candidate is above it is asked for
 * the rest, which makes the set exact. Round 2, every device gets its list.
 *
 * png: Steady-Select runs where the set is, in tp on the home or on each device, as on dp's, in cp on the host, which
 * has the resident table anyway. (The runtime's groups run it on the host always: one more list up and down.) The lists
 * tell devices what to attend to and what to read.
 *
 * Homes rotate over the group. Time of the rounds: from the last score to the last list of a group.
 *
 * Rejected for tp: candidates only. The best pages by a sum need not be among any device's best.
 */
#include <math.h>

#include "sim/mapping.h"

#define SCORE_BYTES     4.0
#define CANDIDATE_BYTES 8.0 /* page and score */
#define PAGE_BYTES      4.0
#define ASK_BYTES       8.0 /* a threshold: score and page */

/* A device's share of the set, and four standard deviations of how unequal chance makes shares. */
uint32_t sim_mapping_candidates(const struct sim_mapping *m)
{
    double mean = (double)m->work->budget_pages / m->group;

    return (uint32_t)fmin(ceil(mean + 4 * sqrt(mean)), m->work->budget_pages);
}

static void count(struct sim_mapping *m, double *n_messages, double bytes)
{
    *n_messages += 1;
    m->cluster->charge.select_bytes += bytes;
}

static void gather_scores(struct sim_mapping *m, uint32_t seq)
{
    struct sim_cluster *c = m->cluster;
    uint32_t home = seq % m->group;
    double bytes = SCORE_BYTES * sim_mapping_part(m, seq, home)->n_scored;

    for (uint32_t i = 0; i < m->group; i++) {
        struct sim_part *part = sim_mapping_part(m, seq, i);

        if (i == home)
            continue;
        part->listed = sim_pnm_send(c, sim_mapping_pnm(m, seq, i), part->scored, bytes);
        count(m, &c->charge.n_reduce_messages, bytes);
    }
}

static void pass_scores(struct sim_mapping *m, uint32_t seq)
{
    const struct sim_pnm *home = sim_mapping_pnm(m, seq, seq % m->group);
    double bytes = SCORE_BYTES * sim_mapping_part(m, seq, 0)->n_scored;

    for (uint32_t i = 0; i < m->group; i++)
        if (i != seq % m->group)
            m->at[seq] =
                sim_later(m->at[seq], sim_pnm_down(m->cluster, home, sim_mapping_part(m, seq, i)->listed, bytes));
}

/* The home's sum and sort. */
static void add_scores(struct sim_mapping *m, uint32_t seq)
{
    double n = sim_mapping_part(m, seq, 0)->n_scored;
    struct sim_cost cost = {.bytes = m->group * n * SCORE_BYTES, .flops = (m->group - 1) * n};

    m->cluster->charge.n_sorts++;
    m->at[seq] = sim_pnm_score(m->cluster, sim_mapping_pnm(m, seq, seq % m->group), m->at[seq], &cost, n);
}

static void fetch_list(struct sim_mapping *m, uint32_t seq)
{
    uint32_t home = seq % m->group;
    struct sim_part *part = sim_mapping_part(m, seq, home);
    double bytes = PAGE_BYTES * (part->n_chosen + 1) + (m->n_slots ? sim_steady_up_bytes(m, part) : 0);

    part->listed = m->at[seq];
    m->at[seq] = sim_pnm_send(m->cluster, sim_mapping_pnm(m, seq, home), m->at[seq], bytes);
}

/* What to attend to and, in png, what to read. */
static void spread_list(struct sim_mapping *m, uint32_t seq)
{
    struct sim_cluster *c = m->cluster;

    for (uint32_t i = 0; i < m->group; i++) {
        struct sim_part *part = sim_mapping_part(m, seq, i);
        double bytes = PAGE_BYTES * (part->n_chosen + m->n_units);

        if (!sim_mapping_by_pages(m) && i == seq % m->group)
            continue;
        if (m->n_slots)
            bytes += PAGE_BYTES * (part->n_recalled + m->n_units);
        part->listed = sim_later(part->scored, sim_pnm_down(c, sim_mapping_pnm(m, seq, i), m->at[seq], bytes));
        count(m, &c->charge.n_list_messages, bytes);
    }
}

/* Every device has run Steady-Select for its own sets. */
static void send_lists(struct sim_mapping *m, uint32_t seq)
{
    m->at[seq] = m->cluster->world.now;
    for (uint32_t i = 0; i < m->group; i++) {
        const struct sim_part *part = sim_mapping_part(m, seq, i);

        m->at[seq] = sim_later(m->at[seq], sim_pnm_send(m->cluster, sim_mapping_pnm(m, seq, i), part->scored,
                                                        sim_steady_up_bytes(m, part)));
    }
}

/* Recall in the same step: what a device attends to is without the pages that the host has decided to fetch. */
static void wait_for_host(struct sim_mapping *m, uint32_t seq)
{
    for (uint32_t i = 0; i < m->group; i++)
        if (sim_steady_runs(m, seq, i))
            sim_mapping_part(m, seq, i)->listed = sim_pnm_down(m->cluster, sim_mapping_pnm(m, seq, i), m->at[seq], 0);
}

static void gather_candidates(struct sim_mapping *m, uint32_t seq)
{
    struct sim_cluster *c = m->cluster;

    for (uint32_t i = 0; i < m->group; i++) {
        const struct sim_part *part = sim_mapping_part(m, seq, i);
        double bytes = CANDIDATE_BYTES * m->n_units * fmin(sim_mapping_candidates(m), part->n_scored);

        m->at[seq] = sim_later(m->at[seq], sim_pnm_send(c, sim_mapping_pnm(m, seq, i), part->scored, bytes));
        count(m, &c->charge.n_reduce_messages, bytes);
    }
}

/* One kernel of the batch, which ends as a whole. */
static void find_thresholds(struct sim_mapping *m)
{
    struct nkv_cmd cmd = {.layer = (uint16_t)m->layer, .pos = m->pos};
    struct sim_cost cost = {.bytes = CANDIDATE_BYTES * m->n_units * m->group * sim_mapping_candidates(m)};
    struct sim_moment end = m->cluster->world.now;

    m->cluster->batch.open = false;
    for (uint32_t seq = 0; seq < m->work->batch; seq++)
        end = sim_later(end, sim_gpu_score(m->cluster, m->at[seq], &cmd, &cost));
    for (uint32_t seq = 0; seq < m->work->batch; seq++)
        m->at[seq] = end;
}

static void ask_missing(struct sim_mapping *m, uint32_t seq)
{
    struct sim_cluster *c = m->cluster;
    struct sim_moment asked = m->at[seq];

    for (uint32_t i = 0; i < m->group; i++) {
        const struct sim_pnm *pnm = sim_mapping_pnm(m, seq, i);
        double bytes = CANDIDATE_BYTES * sim_mapping_part(m, seq, i)->n_missing;

        if (bytes == 0)
            continue;
        count(m, &c->charge.n_reduce_messages, ASK_BYTES);
        count(m, &c->charge.n_reduce_messages, bytes);
        m->at[seq] = sim_later(m->at[seq], sim_pnm_send(c, pnm, sim_pnm_down(c, pnm, asked, ASK_BYTES), bytes));
    }
}

/* From the last score to the last list, mean over the groups that have a sequence. */
static double round_seconds(const struct sim_mapping *m)
{
    uint32_t n_groups = m->n_groups < m->work->batch ? m->n_groups : m->work->batch;
    double ns = 0;

    for (uint32_t g = 0; g < n_groups; g++) {
        uint64_t scored = 0, listed = 0;

        for (uint32_t seq = g; seq < m->work->batch; seq += m->n_groups)
            for (uint32_t i = 0; i < m->group; i++) {
                const struct sim_part *part = sim_mapping_part(m, seq, i);

                scored = part->scored.ns > scored ? part->scored.ns : scored;
                listed = part->listed.ns > listed ? part->listed.ns : listed;
            }
        ns += (double)(listed - scored);
    }
    return ns / n_groups / 1e9;
}

static void each_seq(struct sim_mapping *m, void (*phase)(struct sim_mapping *m, uint32_t seq))
{
    for (uint32_t seq = 0; seq < m->work->batch; seq++)
        phase(m, seq);
}

/* Where a selection begins: at the home device, or at the host. */
static void begin_round(struct sim_mapping *m, uint32_t seq)
{
    m->at[seq] = sim_mapping_by_pages(m) ? m->cluster->world.now : sim_mapping_part(m, seq, seq % m->group)->scored;
}

static void select_by_heads(struct sim_mapping *m)
{
    if (m->n_scored > 0) {
        each_seq(m, gather_scores);
        each_seq(m, pass_scores);
        each_seq(m, add_scores);
    }
    each_seq(m, fetch_list);
    each_seq(m, spread_list);
}

static void select_by_pages(struct sim_mapping *m)
{
    double n_messages;

    if (m->n_scored > 0) {
        each_seq(m, gather_candidates);
        find_thresholds(m);
        n_messages = m->cluster->charge.n_reduce_messages;
        each_seq(m, ask_missing);
        if (m->cluster->charge.n_reduce_messages > n_messages)
            find_thresholds(m);
    }
    each_seq(m, spread_list);
}

/* A budget that holds all pages leaves nothing to choose; Steady-Select still says who attends to them. */
static void agree(struct sim_mapping *m)
{
    each_seq(m, begin_round);
    if (sim_mapping_by_pages(m))
        select_by_pages(m);
    else
        select_by_heads(m);
    m->cluster->charge.select_seconds += round_seconds(m);
}

void sim_mapping_select(struct sim_mapping *m)
{
    bool alone = m->group == 1 || (!sim_mapping_by_pages(m) && m->n_units > 1);

    if (!alone && (m->n_scored > 0 || m->n_slots))
        agree(m);
    else if (m->n_slots)
        each_seq(m, send_lists);
    if (m->n_slots && m->same_step)
        each_seq(m, wait_for_host);
}
