/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host does between a SELECT and the end of a work: moving pages to the compute side.
 *
 *   png      the device has run Steady-Select: steady slots are attended at once, recalled pages take their slots
 *            behind them and count from the next step on
 *   png same step   the recalled pages leave the device's list, and the compute side attends them after their WRITE
 *   recall   the host runs ArkVale's rule on the compute side's scores, and nothing is attended before it is there
 *
 * The resident table is updated when a recall is planned. That is safe because the compute device runs its commands in
 * order: an ATTEND of the new page is submitted after the WRITE that brings it (lanes of the same layer are drained
 * first). What a device wrote in its lists is checked before it is used as an index.
 *
 * Slots are attended in ascending order, one stream through the compute side's memory; which slot a page gets follows
 * from the history of sets alone, so results repeat.
 */
#include "runtime/runtime.h"

#include <string.h>

#include "policy/select.h"
#include "policy/steady.h"

/* A list of one unit in a window. */
static uint32_t *list_at(const struct port *port, uint64_t offset, uint32_t unit, uint32_t cap)
{
    return (uint32_t *)(void *)(port->window + offset + unit * nkv_list_stride(cap));
}

static bool list_valid(const uint32_t *list, uint32_t cap, uint32_t limit)
{
    if (list[0] > cap)
        return false;
    for (uint32_t i = 1; i <= list[0]; i++)
        if (list[i] >= limit)
            return false;
    return true;
}

static void fail_lists(struct nkv_ticket *lane, uint32_t index)
{
    const struct work *work = &lane->works[index];

    work_fail(lane, index, (uint32_t)work->last[ROLE_SELECT], NKV_EDEVICE,
              "%s wrote page lists out of range for sequence %u, layer %u",
              lane->context->ports[lane->plan[work->last[ROLE_SELECT]].port].label, work->seq->id, lane->layer);
}

static void plan_attend_slots(struct nkv_ticket *lane, uint32_t index, int32_t write)
{
    struct work *work = &lane->works[index];
    struct nkv_seq *seq = work->seq;
    struct port *port = lane->context->compute;
    struct nkv_cmd cmd = {.op = NKV_OP_ATTEND,
                          .seq = seq->slots_id,
                          .flags = unit_flag(seq),
                          .pos = work->pos,
                          .n_tokens = 1,
                          .n_pages = seq->n_slots,
                          .in_offset = work->compute_base + work->compute.q,
                          .list_offset = work->compute_base + work->compute.slot_list,
                          .out_offset = work->compute_base + work->compute.slot_partial};
    int32_t planned;

    planned = plan_add(lane, index, ROLE_ATTEND_SLOTS, port, cmd, write);
    if (write < 0)
        plan_submit(lane, planned);
}

static int32_t plan_write(struct nkv_ticket *lane, uint32_t index, uint32_t cap)
{
    struct work *work = &lane->works[index];
    struct nkv_cmd cmd = {.op = NKV_OP_WRITE,
                          .seq = work->seq->slots_id,
                          .flags = unit_flag(work->seq),
                          .n_pages = cap,
                          .in_offset = work->compute_base + work->compute.pages,
                          .list_offset = work->compute_base + work->compute.write_list};

    work->stage = STAGE_MOVE;
    return plan_add(lane, index, ROLE_WRITE, lane->context->compute, cmd, work->last[ROLE_READ]);
}

/* Adds the slots that are being filled to the steady ones; an ATTEND wants them ascending. */
static void merge_slots(const struct nkv_seq *seq, uint32_t *list, const uint32_t *slots, uint32_t n_slots)
{
    for (uint32_t i = 0; i < n_slots && list[0] < seq->n_slots; i++)
        list[1 + list[0]++] = slots[i];
    nkv_sort_ids(list + 1, list[0]);
}

static void list_resident(const struct nkv_seq *seq, const uint32_t *resident, uint32_t *list)
{
    list[0] = 0;
    for (uint32_t slot = 0; slot < seq->n_slots; slot++)
        if (resident[slot] != NKV_PAGE_NONE)
            list[1 + list[0]++] = slot;
}

/* What Steady-Select left in the home window for one unit. */
struct steady_lists {
    const uint32_t *device, *steady, *recall, *slots;
};

static bool steady_lists(const struct work *work, uint32_t unit, struct steady_lists *lists_out)
{
    const struct nkv_seq *seq = work->seq;
    struct nkv_select_layout at = nkv_select_layout(seq->n_units, seq->budget_pages, seq->n_slots, 0);
    uint64_t base = work->home_base + work->home.select;
    struct steady_lists lists = {list_at(seq->home, base + at.device, unit, seq->budget_pages),
                                 list_at(seq->home, base + at.steady, unit, seq->n_slots),
                                 list_at(seq->home, base + at.recall, unit, seq->n_slots),
                                 list_at(seq->home, base + at.slots, unit, seq->n_slots)};

    *lists_out = lists;
    return list_valid(lists.device, seq->budget_pages, seq->max_pages) &&
           list_valid(lists.steady, seq->n_slots, seq->n_slots) &&
           list_valid(lists.recall, seq->n_slots, seq->max_pages) &&
           list_valid(lists.slots, seq->n_slots, seq->n_slots) && lists.recall[0] == lists.slots[0] &&
           lists.recall[0] <= seq->budget_pages;
}

/* The device's list without the pages that the compute side attends in this step. */
static void list_without_recalled(uint32_t *out, const struct steady_lists *lists, uint32_t *scratch)
{
    uint32_t n_recall = lists->recall[0], n = 0, r = 0;

    memcpy(scratch, lists->recall + 1, 4u * (size_t)n_recall);
    nkv_sort_ids(scratch, n_recall);
    for (uint32_t i = 1; i <= lists->device[0]; i++) {
        while (r < n_recall && scratch[r] < lists->device[i])
            r++;
        if (r == n_recall || scratch[r] != lists->device[i])
            out[1 + n++] = lists->device[i];
    }
    out[0] = n;
}

/* One unit's part of a png step. returns: pages recalled; adds to n_attended what the compute side attends. */
static uint32_t take_steady(struct nkv_ticket *lane, struct work *work, uint32_t unit, const struct steady_lists *lists,
                            uint32_t *n_attended)
{
    struct nkv_seq *seq = work->seq;
    const struct port *compute = lane->context->compute;
    uint32_t *resident = seq_resident(seq, lane->layer, unit);
    uint32_t *slot_list = list_at(compute, work->compute_base + work->compute.slot_list, unit, seq->n_slots);
    uint32_t *write_list = list_at(compute, work->compute_base + work->compute.write_list, unit, seq->n_slots);
    bool same_step = work->method == METHOD_PNG_SAME_STEP;

    memcpy(slot_list, lists->steady, 4u * ((size_t)lists->steady[0] + 1));
    memcpy(write_list, lists->slots, 4u * ((size_t)lists->slots[0] + 1));
    for (uint32_t i = 1; i <= lists->recall[0]; i++)
        resident[lists->slots[i]] = lists->recall[i];
    if (same_step)
        list_without_recalled(list_at(seq->home, work->home_base + work->home.list, unit, seq->budget_pages), lists,
                              lane->context->scratch);
    merge_slots(seq, slot_list, lists->slots + 1, same_step ? lists->slots[0] : 0);
    *n_attended += slot_list[0];
    seq->stats.steady_pages += lists->steady[0];
    return lists->recall[0];
}

static void plan_same_step_home(struct nkv_ticket *lane, uint32_t index, bool recalls)
{
    struct work *work = &lane->works[index];
    struct nkv_seq *seq = work->seq;
    struct nkv_cmd cmd = {.op = NKV_OP_ATTEND,
                          .seq = seq->id,
                          .flags = unit_flag(seq),
                          .pos = work->pos,
                          .n_tokens = 1,
                          .n_pages = seq->budget_pages,
                          .in_offset = work->home_base + work->home.q,
                          .list_offset = work->home_base + work->home.list,
                          .out_offset = work->home_base + work->home.partial};
    uint64_t recall = nkv_select_layout(seq->n_units, seq->budget_pages, seq->n_slots, 0).recall;

    plan_submit(lane, plan_add(lane, index, ROLE_ATTEND, seq->home, cmd, work->last[ROLE_SELECT]));
    if (recalls)
        plan_read(lane, index, work->home_base + work->home.select + recall, seq->n_slots, work->last[ROLE_SELECT]);
}

static void png_after_select(struct nkv_ticket *lane, uint32_t index)
{
    struct work *work = &lane->works[index];
    struct nkv_seq *seq = work->seq;
    uint32_t n_attended = 0, n_recalled = 0;
    bool same_step = work->method == METHOD_PNG_SAME_STEP;
    struct steady_lists lists;
    int32_t write = -1;

    for (uint32_t unit = 0; unit < seq->n_units; unit++) {
        if (!steady_lists(work, unit, &lists)) {
            fail_lists(lane, index);
            return;
        }
        n_recalled += take_steady(lane, work, unit, &lists, &n_attended);
    }
    work->stage = STAGE_FINAL;
    work->n_recalled = n_recalled;
    copy_q(lane->context, work, lane->context->compute, work->compute_base + work->compute.q, 0, 1);
    if (same_step)
        plan_same_step_home(lane, index, n_recalled > 0);
    else if (n_attended > 0)
        plan_attend_slots(lane, index, -1);
    if (n_recalled > 0)
        write = plan_write(lane, index, seq->n_slots);
    if (same_step && n_attended > 0)
        plan_attend_slots(lane, index, write);
}

/* One unit's part of a recall step. returns: pages recalled. */
static uint32_t take_arkvale(struct nkv_ticket *lane, struct work *work, uint32_t unit, uint32_t n_total,
                             uint32_t *n_attended)
{
    struct nkv_seq *seq = work->seq;
    const struct port *compute = lane->context->compute;
    struct nkv_select_layout at = nkv_select_layout(seq->n_units, seq->budget_pages, 0, n_total);
    uint64_t base = work->compute_base + work->compute.select;
    const uint32_t *chosen = list_at(compute, base + at.chosen, unit, seq->budget_pages);
    const float *scores = (const float *)(const void *)(compute->window + base + at.scores) + (size_t)unit * n_total;
    uint32_t *resident = seq_resident(seq, lane->layer, unit);
    uint32_t *slot_list = list_at(compute, work->compute_base + work->compute.slot_list, unit, seq->n_slots);
    uint32_t *write_list = list_at(compute, work->compute_base + work->compute.write_list, unit, seq->budget_pages);
    uint32_t *read_list = list_at(seq->home, work->home_base + work->home.list, unit, seq->budget_pages);
    struct nkv_recall_plan plan =
        nkv_arkvale_recall(chosen + 1, chosen[0], resident, seq->n_slots, open_page(&lane->context->shape, work),
                           scores, n_total, lane->context->scratch, slot_list + 1, read_list + 1, write_list + 1);

    slot_list[0] = plan.n_steady;
    read_list[0] = write_list[0] = plan.n_recall;
    for (uint32_t i = 0; i < plan.n_recall; i++)
        resident[write_list[1 + i]] = read_list[1 + i];
    if (seq->options.attend_resident)
        list_resident(seq, resident, slot_list);
    else
        merge_slots(seq, slot_list, write_list + 1, plan.n_recall);
    *n_attended += slot_list[0];
    seq->stats.steady_pages += plan.n_steady;
    return plan.n_recall;
}

static void recall_after_select(struct nkv_ticket *lane, uint32_t index)
{
    struct work *work = &lane->works[index];
    struct nkv_seq *seq = work->seq;
    uint32_t n_attended = 0, n_recalled = 0, n_total = work->pos / lane->context->shape.page_tokens + 1;
    int32_t write = -1;

    for (uint32_t unit = 0; unit < seq->n_units; unit++) {
        if (!list_valid(
                list_at(lane->context->compute, work->compute_base + work->compute.select, unit, seq->budget_pages),
                seq->budget_pages, n_total)) {
            fail_lists(lane, index);
            return;
        }
        n_recalled += take_arkvale(lane, work, unit, n_total, &n_attended);
    }
    work->stage = STAGE_FINAL;
    work->n_recalled = n_recalled;
    work->n_attended = n_attended;
    if (n_recalled > 0) {
        plan_read(lane, index, work->home_base + work->home.list, seq->budget_pages, work->last[ROLE_SELECT]);
        write = plan_write(lane, index, seq->budget_pages);
    }
    if (n_attended > 0)
        plan_attend_slots(lane, index, write);
}

void work_after_select(struct nkv_ticket *lane, uint32_t index)
{
    struct work *work = &lane->works[index];

    if (work->method == METHOD_RECALL)
        recall_after_select(lane, index);
    else
        png_after_select(lane, index);
}

void work_after_read(struct nkv_ticket *lane, uint32_t index)
{
    struct work *work = &lane->works[index];
    const struct nkv_seq *seq = work->seq;
    uint64_t bytes =
        work->n_recalled * nkv_page_bytes(&lane->context->shape, lane->context->shape.n_kv_heads / seq->n_units);
    int32_t attend = work->last[ROLE_ATTEND_SLOTS], write = work->last[ROLE_WRITE];
    int status = port_copy(lane->context->compute, work->compute_base + work->compute.pages,
                           seq->home->window + work->home_base + work->home.pages, bytes);

    if (status < 0) {
        work_fail(lane, index, (uint32_t)write, status, "cannot copy recalled pages to the compute device: %s",
                  nkv_last_error());
        return;
    }
    work->stage = STAGE_FINAL;
    plan_submit(lane, write);
    if (work->waiting[ROLE_ATTEND_SLOTS] > 0)
        plan_submit(lane, attend);
}
