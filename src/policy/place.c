/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Data-parallel placement: a whole sequence on the device that will have the least to do in a decode step. A step ends
 * when the busiest device has done its part, and a device reads from memory all the time, so the time is predicted as
 * bytes: those of the pages attended and of the digests scored, plus a fixed sum per layer for the commands. Lengths
 * are those that were asked for at admission, so that the choice depends on what was admitted and never on how fast
 * anything ran. Most free memory, the rule before, was rejected: under a budget a long sequence fills a device that has
 * little to do. So was round robin, which loads by count.
 *
 * Spreading a sequence over all devices (context parallel) shortens the busiest device's step while there are fewer
 * sequences than devices; it costs every device the commands of all, and cannot be undone by a move. So it has to take
 * a good part off the step, for a bounded amount of work, and while the devices are not as full of work as that many
 * such sequences make them. The shorter step alone was rejected as the rule: whoever
 * comes to devices that are equally busy makes one of them the busiest, so all would be spread, also where there are
 * sequences enough to even out.
 *
 * Migration repairs what departures leave behind, one move at a time. A move's bytes are read on one device and written
 * on another while nobody decodes; it is made when the steps that it shortens win that back, and only away from a
 * device that is well above the mean, so that a load which is as even as whole sequences allow stays where it is.
 */
#include "policy/place.h"

/* An APPEND, a SELECT and an ATTEND take about 5 us beside their reads, in which a device reads this much. */
#define LAYER_BYTES 65536u
/* Spreading pays if it takes more than a quarter off the busiest device's step. */
#define SPREAD_PARTS 4u
/* And costs all devices together at most so many times what it costs one. */
#define MAX_SPREAD_WORK 2u
/* A device is too busy by more than a 16th of the mean. */
#define SLACK_PARTS 16u
/* A byte moved is read once and written once. */
#define MOVE_COST 2u

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t ceil_div(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

/* Of the sequence's pages, an n-th. */
static uint64_t read_bytes(const struct nkv_step_work *work, uint32_t n)
{
    uint64_t n_pages = ceil_div(ceil_div(work->n_tokens, work->page_tokens), n);
    uint64_t n_chosen = ceil_div(ceil_div(work->budget_tokens, work->page_tokens), n);
    uint64_t dense = n_pages * work->page_bytes, sparse = min_u64(n_pages, n_chosen) * work->page_bytes;
    uint64_t n_dense = work->mode == NKV_MODE_FULL ? work->n_layers : work->n_dense_layers;

    if (work->mode != NKV_MODE_RECALL) /* which scores on the compute side */
        sparse += n_pages * work->digest_bytes;
    return n_dense * dense + (work->n_layers - n_dense) * sparse;
}

uint64_t nkv_step_bytes(const struct nkv_step_work *work)
{
    return nkv_spread_bytes(work, 1);
}

uint64_t nkv_spread_bytes(const struct nkv_step_work *work, uint32_t n_devices)
{
    return read_bytes(work, n_devices) + (uint64_t)work->n_layers * n_devices * LAYER_BYTES;
}

int nkv_place(const uint64_t *loads, const uint64_t *free_bytes, uint32_t n_devices, uint64_t need_bytes)
{
    int best = NKV_ENOSPC;

    for (uint32_t i = 0; i < n_devices; i++)
        if (free_bytes[i] >= need_bytes && (best < 0 || loads[i] < loads[best]))
            best = (int)i;
    return best;
}

static bool fits_all(const uint64_t *free_bytes, uint32_t n_devices, uint64_t need_bytes)
{
    for (uint32_t i = 0; i < n_devices; i++)
        if (free_bytes[i] < need_bytes)
            return false;
    return n_devices > 0;
}

static uint64_t sum(const uint64_t *loads, uint32_t n_devices)
{
    uint64_t all = 0;

    for (uint32_t i = 0; i < n_devices; i++)
        all += loads[i];
    return all;
}

static uint32_t busiest(const uint64_t *loads, uint32_t n_devices)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n_devices; i++)
        if (loads[i] > loads[best])
            best = i;
    return best;
}

int nkv_place_or_spread(const uint64_t *loads, const uint64_t *free_bytes, uint32_t n_devices,
                        const struct nkv_share *whole, const struct nkv_share *part)
{
    int device = nkv_place(loads, free_bytes, n_devices, whole->need_bytes);
    uint64_t work = n_devices * part->load, most, step, spread;

    if (!fits_all(free_bytes, n_devices, part->need_bytes))
        return device;
    if (device < 0)
        return (int)n_devices;
    if (work > MAX_SPREAD_WORK * whole->load || sum(loads, n_devices) >= n_devices * work)
        return device;
    most = loads[busiest(loads, n_devices)];
    step = max_u64(most, loads[device] + whole->load);
    spread = most + part->load;
    return spread < step - step / SPREAD_PARTS ? (int)n_devices : device;
}

bool nkv_unbalanced(const uint64_t *loads, uint32_t n_devices)
{
    uint64_t mean = n_devices ? sum(loads, n_devices) / n_devices : 0;

    return n_devices > 1 && loads[busiest(loads, n_devices)] > mean + mean / SLACK_PARTS;
}

/* What the busier of two devices has less to do when a sequence goes from one to the other; 0: nothing, or more. */
static uint64_t gain(uint64_t from, uint64_t to, uint64_t load)
{
    uint64_t after = max_u64(from - load, to + load);

    return after < from ? from - after : 0;
}

bool nkv_migrate_plan(const struct nkv_placed *seqs, uint32_t n_seqs, const uint64_t *loads, const uint64_t *free_bytes,
                      uint32_t n_devices, uint32_t n_steps, struct nkv_move *move_out)
{
    uint64_t best = 0;
    uint32_t from;

    if (!nkv_unbalanced(loads, n_devices))
        return false;
    from = busiest(loads, n_devices);
    for (uint32_t s = 0; s < n_seqs; s++)
        for (uint32_t d = 0; seqs[s].device == from && d < n_devices; d++) {
            uint64_t saved = d != from ? gain(loads[from], loads[d], seqs[s].load) : 0;

            if (saved <= best || free_bytes[d] < seqs[s].need_bytes ||
                (double)saved * n_steps <= (double)seqs[s].held_bytes * MOVE_COST)
                continue;
            best = saved;
            *move_out = (struct nkv_move){s, d};
        }
    return best > 0;
}
