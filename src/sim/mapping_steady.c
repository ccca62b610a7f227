/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steady pages of sequences that lie on several devices. The GPUs are one, so there is one resident table per sequence,
 * layer and unit, as in dp; it evolves by the real rule (policy/steady.h, in sim_pick_select) over the same scores, and
 * holds what dp's holds. The devices' parts:
 *
 *   ATTEND   the set without the steady pages: tp: each its heads of all of them; cp: each those that it has
 *   READ     recalled pages, in the same split, each device over its own link; all of a node share the host's
 *   GPUs     attention of the steady pages from when the host knows them, beside the devices' ATTEND
 *
 * Recalled pages count from the next step, whose same layer waits for them (sim_steady_drain), or, with recall in the
 * same step, for the GPUs' attention of this one, which waits for all parts of a sequence's pages.
 *
 * Invariant: tokens attended on devices and GPUs, and bytes recalled, summed over a group, are those of dp.
 *
 * Rejected: one table per device. A page on the GPUs is there with all its heads, whichever devices it came from.
 */
#include <string.h>

#include "sim/mapping.h"

static uint64_t table_bytes(const struct sim_mapping *m)
{
    return m->n_units * nkv_list_stride(m->n_slots);
}

static uint32_t *table(const struct sim_mapping *m, uint32_t seq, uint32_t unit)
{
    uint64_t number = (uint64_t)seq * m->work->shape.n_layers + m->layer;

    return (uint32_t *)(void *)(m->tables + number * table_bytes(m) + unit * nkv_list_stride(m->n_slots));
}

const uint8_t *sim_steady_resident(const struct sim_mapping *m, uint32_t seq)
{
    return (const uint8_t *)table(m, seq, 0);
}

/* ---- What a SELECT says ---- */

/* Recalled pages of a unit leave the devices' lists for the GPUs' when they count in the same step. */
static void take_recalled(struct sim_mapping *m, uint32_t seq, uint32_t unit, uint32_t page)
{
    uint32_t n_units = sim_mapping_units(m);

    for (uint32_t i = 0; i < m->group; i++) {
        struct sim_part *part = sim_mapping_part(m, seq, i);
        bool has =
            sim_mapping_by_pages(m) ? sim_mapping_owner(m, seq, page) == i : m->n_units == 1 || unit / n_units == i;

        if (!has)
            continue;
        part->n_recalled++;
        if (!m->same_step)
            continue;
        part->n_chosen--;
        part->tokens -= (double)m->shape.page_tokens / n_units;
    }
}

static void count_steady(struct sim_mapping *m, uint32_t seq, uint32_t unit, uint32_t n)
{
    uint32_t n_units = sim_mapping_units(m);

    for (uint32_t i = 0; i < m->group; i++)
        if (sim_mapping_by_pages(m) || m->n_units == 1 || unit / n_units == i)
            sim_mapping_part(m, seq, i)->n_steady += n;
    m->cluster->charge.n_steady += n;
}

void sim_steady_take(struct sim_mapping *m, uint32_t seq, uint32_t unit)
{
    struct nkv_select_layout at = nkv_select_layout(m->n_units, m->work->budget_pages, m->n_slots, 0);
    const uint32_t *steady = sim_mapping_list(m, at.steady, m->n_slots, unit);
    const uint32_t *recall = sim_mapping_list(m, at.recall, m->n_slots, unit);
    const uint32_t *slots = sim_mapping_list(m, at.slots, m->n_slots, unit);
    uint32_t *resident = table(m, seq, unit) + 1;
    double n_attended = steady[0] + (m->same_step ? recall[0] : 0);

    if (unit == 0)
        m->steady_tokens[seq] = 0;
    m->steady_tokens[seq] += n_attended * m->shape.page_tokens / m->n_units;
    count_steady(m, seq, unit, steady[0]);
    for (uint32_t k = 1; k <= recall[0]; k++) {
        take_recalled(m, seq, unit, recall[k]);
        resident[slots[k]] = recall[k];
    }
}

bool sim_steady_runs(const struct sim_mapping *m, uint32_t seq, uint32_t i)
{
    if (m->group == 1)
        return true;
    return !sim_mapping_by_pages(m) && (m->n_units > 1 || i == seq % m->group);
}

/* A count and the pages in the slots. */
double sim_steady_down_bytes(const struct sim_mapping *m)
{
    return 4.0 * sim_mapping_units(m) * (m->n_slots + 1);
}

/* Three counts; steady slots; recalled pages and their slots. */
double sim_steady_up_bytes(const struct sim_mapping *m, const struct sim_part *part)
{
    return 4.0 * (part->n_steady + 3.0 * sim_mapping_units(m)) + 8.0 * part->n_recalled;
}

/* ---- Pages on their way, and the GPUs ---- */

void sim_steady_drain(struct sim_mapping *m, uint32_t layer)
{
    sim_world_advance(&m->cluster->world, m->arrived[layer]);
}

/* READ on all devices. returns: when the last of the sequence's pages is there. */
static struct sim_moment recall(struct sim_mapping *m, uint32_t seq)
{
    struct sim_cluster *c = m->cluster;
    double page = (double)nkv_page_bytes(&m->shape, m->shape.n_kv_heads / sim_mapping_units(m)), n = 0;
    struct sim_moment last = m->at[seq];

    for (uint32_t i = 0; i < m->group; i++) {
        const struct sim_part *part = sim_mapping_part(m, seq, i);

        if (part->n_recalled > 0)
            last =
                sim_later(last, sim_pnm_recall(c, sim_mapping_pnm(m, seq, i), part->listed, part->n_recalled * page));
        n += part->n_recalled;
    }
    if (!sim_mapping_by_pages(m) && m->n_units == 1)
        n /= m->group; /* every device sends its heads of the same pages */
    if (seq < sim_pick_streams(c->pick)) {
        c->sample_sum += n / m->n_units;
        c->sample_squares += n / m->n_units * n / m->n_units;
    }
    return last;
}

/* Sequences in the order of the batch, as the runtime plans them. */
struct sim_moment sim_steady_attend(struct sim_mapping *m)
{
    struct sim_cluster *c = m->cluster;
    struct nkv_cmd cmd = {.layer = (uint16_t)m->layer, .pos = m->pos};
    struct sim_moment last = c->world.now;

    for (uint32_t seq = 0; seq < m->work->batch; seq++) {
        struct sim_moment there = recall(m, seq);
        struct sim_cost cost = sim_cost_attend(&m->work->shape, 1, m->steady_tokens[seq]);

        m->arrived[m->layer] = sim_later(m->arrived[m->layer], there);
        if (m->steady_tokens[seq] == 0)
            continue;
        c->charge.gpu_attend_bytes += cost.bytes;
        c->charge.gpu_attend_flops += cost.flops;
        c->charge.gpu_kv_bytes += cost.bytes;
        last = sim_later(last, sim_gpu_attend(c, m->same_step ? there : m->at[seq], &cmd, &cost));
    }
    return last;
}

/* ---- Open and close ---- */

int sim_steady_open(struct sim_mapping *m)
{
    uint32_t n_layers = m->work->shape.n_layers;
    uint64_t bytes = (uint64_t)m->work->batch * n_layers * table_bytes(m);

    if (m->n_slots == 0)
        return 0;
    TRY(nkv_alloc(bytes, 1, &m->tables));
    TRY(nkv_alloc(m->work->batch, sizeof *m->steady_tokens, &m->steady_tokens));
    TRY(nkv_alloc(n_layers, sizeof *m->arrived, &m->arrived));
    memset(m->tables, 0xff, bytes); /* NKV_PAGE_NONE */
    for (uint64_t list = 0; list < bytes; list += nkv_list_stride(m->n_slots))
        memcpy(m->tables + list, &m->n_slots, sizeof m->n_slots);
    return 0;
}

void sim_steady_close(struct sim_mapping *m)
{
    nkv_free(m->tables);
    nkv_free(m->steady_tokens);
    nkv_free(m->arrived);
}
