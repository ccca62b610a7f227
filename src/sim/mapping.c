/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of one sequence on several PNM devices. The paper maps whole sequences to devices (dp), which is what the
 * runtime does on simulated devices; this models the two mappings that it rejects or leaves out, on the same engines,
 * links and costs (pnm.c, gpu.c, cost.c):
 *
 *   tp   a device of a group of G has 1/G of the KV heads, with their query heads, of every page
 *   cp   it has every G-th page, with all heads; the GPUs merge G partial results
 *
 * A layer goes in phases over the batch: operands down, APPEND and scores on all devices; the selection's messages
 * (mapping_select.c); ATTEND; steady pages on the GPUs (mapping_steady.c); partial results up; the merge. Page sets are
 * those of the real selection over the sequence's scores, so that devices of a cp group have as unequal shares as they
 * would.
 *
 * Invariant: bytes attended, summed over a group and the GPUs, are those of dp. With G = 1 there are no messages
 * between devices.
 *
 * Rejected: one sequence after the other through all phases. Links serve in the order of submission, so a late message
 * of one sequence would hold up the first ones of the next.
 */
#include "sim/mapping.h"

#include <string.h>

/* As the runtime's defaults. */
#define SINK_PAGES   1
#define RECENT_PAGES 2

/* Of the n pages from `first`, those of device i of a cp group. */
static double n_owned(const struct sim_mapping *m, uint32_t seq, uint32_t i, uint32_t first, uint32_t n)
{
    uint32_t ahead = (i + m->group - sim_mapping_owner(m, seq, first)) % m->group;

    return ahead < n ? (double)((n - ahead - 1) / m->group + 1) : 0;
}

/* ---- What each device has to do ---- */

/* Tokens missing in the last page of a sequence that holds n tokens. */
static double n_open(const struct sim_mapping *m)
{
    uint32_t page_tokens = m->shape.page_tokens, n_held = m->pos + 1;

    return (double)((page_tokens - n_held % page_tokens) % page_tokens);
}

static void share_all(struct sim_mapping *m, uint32_t seq)
{
    uint32_t page_tokens = m->shape.page_tokens, last = m->pos / page_tokens;

    for (uint32_t i = 0; i < m->group; i++) {
        double pages = sim_mapping_by_pages(m) ? n_owned(m, seq, i, 0, last + 1) : last + 1;
        bool open = !sim_mapping_by_pages(m) || sim_mapping_owner(m, seq, last) == i;

        *sim_mapping_part(m, seq, i) =
            (struct sim_part){.n_chosen = pages, .tokens = pages * page_tokens - (open ? n_open(m) : 0)};
    }
}

/* One unit's set over the devices of a cp group: whose candidates its pages are, and who attends to those of `list`. */
static void share_pages(struct sim_mapping *m, uint32_t seq, uint32_t unit, const uint32_t *chosen,
                        const uint32_t *list)
{
    uint32_t page_tokens = m->shape.page_tokens, *counts = m->counts + (size_t)unit * m->group;

    for (uint32_t k = 0; k < chosen[0]; k++)
        counts[sim_mapping_owner(m, seq, chosen[1 + k])]++;
    for (uint32_t k = 0; k < list[0]; k++) {
        uint32_t page = list[1 + k];
        struct sim_part *part = sim_mapping_part(m, seq, sim_mapping_owner(m, seq, page));

        part->n_chosen++;
        part->tokens += (page_tokens - (page == m->pos / page_tokens ? n_open(m) : 0)) / m->n_units;
    }
}

/* In tp: over the devices that have heads of the unit, all or one. */
static void share_heads(struct sim_mapping *m, uint32_t seq, uint32_t unit, const uint32_t *list)
{
    uint32_t n_units = sim_mapping_units(m);

    for (uint32_t i = 0; i < m->group; i++) {
        struct sim_part *part = sim_mapping_part(m, seq, i);

        if (m->n_units > 1 && unit / n_units != i)
            continue;
        part->n_chosen += list[0];
        part->tokens += ((double)list[0] * m->shape.page_tokens - n_open(m)) / n_units;
    }
}

/*
 * Candidates that a device did not send unasked, and one below the threshold that ends them. The threshold of those
 * sent is too low by as many pages as are missing in all, so each device that is asked may send that many more.
 */
static void share_missing(struct sim_mapping *m, uint32_t seq, uint32_t unit)
{
    const uint32_t *counts = m->counts + (size_t)unit * m->group;
    uint32_t n_sent = sim_mapping_candidates(m), n_missing = 0;

    for (uint32_t i = 0; i < m->group; i++)
        n_missing += counts[i] > n_sent ? counts[i] - n_sent : 0;
    for (uint32_t i = 0; i < m->group; i++)
        if (counts[i] >= n_sent && sim_mapping_part(m, seq, i)->n_scored > n_sent)
            sim_mapping_part(m, seq, i)->n_missing += counts[i] - n_sent + n_missing + 1;
}

static int select_pages(struct sim_mapping *m, uint32_t seq, double *n_scored_out)
{
    const struct sim_work *w = m->work;
    struct nkv_cmd cmd = {.op = NKV_OP_SELECT,
                          .sink = SINK_PAGES,
                          .recent = RECENT_PAGES,
                          .flags = (m->n_units > 1 ? NKV_PER_HEAD : 0) | (m->n_slots ? NKV_STEADY : 0),
                          .arg = m->n_slots,
                          .layer = (uint16_t)m->layer,
                          .seq = seq,
                          .n_tokens = 1,
                          .n_pages = w->budget_pages,
                          .pos = m->pos};
    const uint8_t *resident = m->n_slots ? sim_steady_resident(m, seq) : NULL;
    int n = sim_pick_select(m->cluster->pick, &cmd, seq, resident, m->answer, n_scored_out);

    return n < 0 ? n : 0;
}

static int share_chosen(struct sim_mapping *m, uint32_t seq)
{
    uint32_t n_pages = m->work->budget_pages;
    struct nkv_select_layout at = nkv_select_layout(m->n_units, n_pages, m->n_slots, 0);
    double n_scored = 0;

    TRY(select_pages(m, seq, &n_scored));
    memset(sim_mapping_part(m, seq, 0), 0, m->group * sizeof *m->parts);
    for (uint32_t i = 0; i < m->group; i++)
        sim_mapping_part(m, seq, i)->n_scored =
            sim_mapping_by_pages(m) ? n_owned(m, seq, i, SINK_PAGES, (uint32_t)n_scored) : n_scored;
    m->n_scored = n_scored;
    memset(m->counts, 0, (size_t)m->n_units * m->group * sizeof *m->counts);
    for (uint32_t unit = 0; unit < m->n_units; unit++) {
        const uint32_t *chosen = sim_mapping_list(m, at.chosen, n_pages, unit);
        const uint32_t *list = sim_mapping_list(m, at.device, n_pages, unit);

        m->cluster->charge.n_chosen += chosen[0];
        if (sim_mapping_by_pages(m)) {
            share_pages(m, seq, unit, chosen, list);
            share_missing(m, seq, unit);
        } else {
            share_heads(m, seq, unit, list);
        }
        if (m->n_slots)
            sim_steady_take(m, seq, unit);
    }
    return 0;
}

/* ---- Phases ---- */

/* In tp a layer's sets are ranked by the home device; all others rank what they send it. */
static double n_ranked(const struct sim_mapping *m, uint32_t seq, uint32_t i)
{
    const struct sim_part *part = sim_mapping_part(m, seq, i);
    double n_units = sim_mapping_units(m);
    bool later = !sim_mapping_by_pages(m) && m->n_units == 1 && m->group > 1 && seq % m->group == i;

    if (m->work->config->mode == NKV_MODE_FULL || later)
        return 0;
    m->cluster->charge.n_sorts += n_units;
    return part->n_scored * n_units;
}

/* Operands, APPEND, scores. */
static void score(struct sim_mapping *m, uint32_t seq, uint32_t i)
{
    struct sim_cluster *c = m->cluster;
    const struct sim_pnm *pnm = sim_mapping_pnm(m, seq, i);
    struct sim_part *part = sim_mapping_part(m, seq, i);
    struct sim_moment now = c->world.now, ready = now;
    double down_bytes = sim_bytes_q(&m->shape, c->values, 1);

    if (!sim_mapping_by_pages(m) || sim_mapping_owner(m, seq, m->pos / m->shape.page_tokens) == i) {
        struct sim_cost append = sim_cost_append(&m->shape, 1);

        ready = sim_pnm_append(c, pnm, sim_pnm_down(c, pnm, now, sim_bytes_kv(&m->shape, c->values, 1)), &append);
    }
    if (m->n_slots && sim_steady_runs(m, seq, i))
        down_bytes += sim_steady_down_bytes(m);
    ready = sim_later(ready, sim_pnm_down(c, pnm, now, down_bytes));
    if (m->work->config->mode != NKV_MODE_FULL) {
        struct sim_cost scan = sim_cost_score(&m->shape, 1, part->n_scored, c->values->pnm.score_flops);

        ready = sim_pnm_score(c, pnm, ready, &scan, n_ranked(m, seq, i));
    }
    part->scored = part->listed = ready;
}

static void attend(struct sim_mapping *m, uint32_t seq, uint32_t i)
{
    struct sim_part *part = sim_mapping_part(m, seq, i);
    struct sim_cost cost = sim_cost_attend(&m->shape, 1, part->tokens);

    part->known = sim_pnm_attend(m->cluster, sim_mapping_pnm(m, seq, i), part->listed, &cost);
}

/*
 * The GPUs read the partial results of a cp group, in png their own too, and write one: a multiply and two additions
 * per element. (One device's partial and the GPUs' own are merged by what reads them next, in dp and tp.)
 */
static struct sim_moment merge(struct sim_mapping *m, struct sim_moment ready)
{
    struct sim_cluster *c = m->cluster;
    struct nkv_cmd cmd = {.layer = (uint16_t)m->layer, .pos = m->pos};
    double n_read = (double)m->work->batch * (m->group + (m->n_slots > 0));
    struct sim_cost cost = {.bytes = (n_read + m->work->batch) * sim_bytes_partials(&m->shape, c->values, 1),
                            .flops = 3 * n_read * m->shape.n_heads * m->shape.head_dim};

    c->batch.open = false; /* a kernel of its own, behind the steady pages' */
    c->charge.gpu_attend_bytes += cost.bytes;
    c->charge.gpu_attend_flops += cost.flops;
    return sim_gpu_attend(c, ready, &cmd, &cost);
}

static void each_part(struct sim_mapping *m, void (*phase)(struct sim_mapping *m, uint32_t seq, uint32_t i))
{
    for (uint32_t seq = 0; seq < m->work->batch; seq++)
        for (uint32_t i = 0; i < m->group; i++)
            phase(m, seq, i);
}

int sim_mapping_attend(struct sim_mapping *m, uint32_t layer, uint32_t pos)
{
    struct sim_cluster *c = m->cluster;
    double up_bytes = sim_bytes_partials(&m->shape, c->values, 1);
    struct sim_moment last;

    m->layer = layer;
    m->pos = pos;
    if (m->n_slots)
        sim_steady_drain(m, layer);
    last = c->world.now;
    for (uint32_t seq = 0; seq < m->work->batch; seq++)
        if (m->work->config->mode == NKV_MODE_FULL)
            share_all(m, seq);
        else
            TRY(share_chosen(m, seq));
    each_part(m, score);
    if (m->work->config->mode != NKV_MODE_FULL)
        sim_mapping_select(m);
    each_part(m, attend);
    for (uint32_t seq = 0; seq < m->work->batch; seq++)
        for (uint32_t i = 0; i < m->group; i++)
            last = sim_later(last,
                             sim_pnm_send(c, sim_mapping_pnm(m, seq, i), sim_mapping_part(m, seq, i)->known, up_bytes));
    if (m->n_slots)
        last = sim_later(last, sim_steady_attend(m));
    if (sim_mapping_by_pages(m) && m->group > 1)
        last = merge(m, last);
    sim_world_advance(&c->world, last);
    return 0;
}

void sim_mapping_drain(struct sim_mapping *m)
{
    for (uint32_t layer = 0; m->n_slots && layer < m->work->shape.n_layers; layer++)
        sim_steady_drain(m, layer);
}

void sim_mapping_fc(struct sim_mapping *m, const struct nkv_fc_work *work)
{
    struct sim_cluster *c = m->cluster;
    struct nkv_cmd cmd = {.op = NKV_OP_COMPUTE,
                          .n_tokens = work->n_rows,
                          .in_offset = work->flops,
                          .out_offset = work->bytes,
                          .arg = work->n_sums,
                          .list_offset = work->sum_bytes};

    sim_world_advance(&c->world, sim_gpu_fc(c, c->world.now, &cmd));
}

/* ---- Open and close ---- */

static int alloc_parts(struct sim_mapping *m)
{
    const struct sim_work *w = m->work;
    uint64_t answer = nkv_select_layout(m->n_units, w->budget_pages, m->n_slots, 0).bytes;

    TRY(nkv_alloc(w->n_devices, sizeof *m->pnm, &m->pnm));
    TRY(nkv_alloc((size_t)w->batch * m->group, sizeof *m->parts, &m->parts));
    TRY(nkv_alloc((size_t)m->n_units * m->group, sizeof *m->counts, &m->counts));
    TRY(nkv_alloc(w->batch, sizeof *m->at, &m->at));
    TRY(nkv_alloc(answer, 1, &m->answer));
    return sim_steady_open(m);
}

int sim_mapping_open(const struct sim_work *work, struct sim_cluster *cluster, struct sim_mapping **mapping_out)
{
    struct sim_mapping *m;
    int status;

    TRY(nkv_alloc(1, sizeof *m, &m));
    *m = (struct sim_mapping){.work = work,
                              .cluster = cluster,
                              .group = work->group,
                              .n_groups = work->n_devices / work->group,
                              .n_units = work->config->granularity == NKV_SELECT_KV_HEAD ? work->shape.n_kv_heads : 1,
                              .shape = sim_work_part(work),
                              .n_slots = work->config->mode == NKV_MODE_PNG ? work->n_slots : 0,
                              .same_step = work->config->same_step_recall};
    status = alloc_parts(m);
    if (status < 0) {
        sim_mapping_close(m);
        return status;
    }
    for (uint32_t i = 0; i < work->n_devices; i++)
        m->pnm[i] = sim_pnm_add(cluster, i);
    *mapping_out = m;
    return 0;
}

void sim_mapping_close(struct sim_mapping *m)
{
    if (!m)
        return;
    nkv_free(m->pnm);
    nkv_free(m->parts);
    nkv_free(m->counts);
    nkv_free(m->at);
    sim_steady_close(m);
    nkv_free(m->answer);
    nkv_free(m);
}
