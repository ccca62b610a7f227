/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lanes: what is in flight and who waits for what. A lane advances in the order of its works: a work whose SELECT is
 * still running holds back the planning of those behind it, never their running commands. So the plan is the same
 * whatever the devices' speeds, at the cost of a short wait when a later sequence's device answers first.
 *
 * Waiting blocks on one device at a time: that of the first command which the least advanced work needs. Completions of
 * other devices lie in their queues meanwhile and cost nothing.
 */
#include "runtime/runtime.h"

#include <assert.h>
#include <stdio.h>

static uint32_t busy(const struct work *work, enum role role)
{
    return work->waiting[role] + work->in_flight[role];
}

/* Whether outputs wait for recalled pages. */
static bool attends_recalled(const struct work *work)
{
    return work->waiting[ROLE_ATTEND_SLOTS] > 0;
}

static bool work_waits_for(const struct work *work, enum role role, bool all)
{
    bool moves = role == ROLE_READ || role == ROLE_WRITE;

    return busy(work, role) > 0 && (!moves || all || work->status < 0 || attends_recalled(work));
}

static bool work_ready(const struct work *work, bool all)
{
    if (!work->seq)
        return true;
    if (work->status == 0 && work->stage == STAGE_SELECT)
        return false;
    for (enum role role = 0; role < ROLE_COUNT; role++)
        if (work_waits_for(work, role, all))
            return false;
    return true;
}

/* The device whose next completion brings the work further. */
static struct port *blocking_port(const struct nkv_ticket *lane, const struct work *work, bool all)
{
    for (enum role role = 0; role < ROLE_COUNT; role++)
        if (work->in_flight[role] > 0 && work_waits_for(work, role, all))
            return &lane->context->ports[lane->plan[work->last[role]].port];
    return NULL;
}

static void flush_ports(struct nkv_context *context)
{
    for (uint32_t i = 0; i < context->n_ports; i++)
        port_flush(context, &context->ports[i]);
}

void lane_advance(struct nkv_ticket *lane)
{
    bool may_plan = true;

    for (uint32_t i = 0; i < lane->n_works; i++) {
        struct work *work = &lane->works[i];

        if (!work->seq || work->stage == STAGE_FINAL)
            continue;
        if (work->stage == STAGE_SELECT) {
            may_plan = may_plan && busy(work, ROLE_SELECT) == 0;
            if (may_plan && !plan_port_lost(lane, i))
                work_after_select(lane, i);
        }
        if (work->stage == STAGE_MOVE &&
            busy(work, ROLE_READ) == 0 && /* one sent with the SELECT may be done already */
            !plan_port_lost(lane, i))
            work_after_read(lane, i);
    }
    flush_ports(lane->context);
}

/* Of works that only wait for what is submitted, those on all devices have commands that the host has still to hand
 * out. Before that the order is the items', as in lane_advance. */
static bool is_before(const struct work *a, const struct work *b)
{
    if (a->stage != b->stage)
        return a->stage < b->stage;
    return a->stage == STAGE_FINAL && seq_is_spread(a->seq) && !seq_is_spread(b->seq);
}

/* The work to wait for: first those whose SELECT or READ lets other devices start. */
static const struct work *first_unready(const struct nkv_ticket *lane, bool all)
{
    const struct work *first = NULL;

    for (uint32_t i = 0; i < lane->n_works; i++) {
        const struct work *work = &lane->works[i];

        if (!work_ready(work, all) && (!first || is_before(work, first)))
            first = work;
    }
    return first;
}

void lane_wait(struct nkv_ticket *lane, bool all)
{
    for (;;) {
        const struct work *work;
        struct port *port;

        lane_advance(lane);
        work = first_unready(lane, all);
        if (!work)
            return;
        port = blocking_port(lane, work, all);
        if (port)
            port_reap(lane->context, port, 1);
        else /* flushing a full queue reaped what the work waited for: it can be advanced */
            assert(work->stage != STAGE_FINAL);
    }
}

/* Everything of the lane has completed: what failed after delivery ends its sequence, too. */
static void lane_release(struct nkv_ticket *lane)
{
    for (uint32_t i = 0; i < lane->n_works; i++) {
        struct work *work = &lane->works[i];

        if (!work->seq)
            continue;
        stats_count_times(work);
        if (work->status < 0)
            seq_mark_failed(work->seq, work->status, work->error);
    }
    lane->state = LANE_FREE;
    lane->n_works = 0;
}

void context_poll(struct nkv_context *context)
{
    for (uint32_t i = 0; i < context->n_ports; i++)
        port_reap(context, &context->ports[i], 0);
    for (uint32_t i = 0; i < N_LANES; i++) {
        struct nkv_ticket *lane = &context->lanes[i];

        if (lane->state != LANE_FREE)
            lane_advance(lane);
        if (lane->state == LANE_DRAINING && !first_unready(lane, true))
            lane_release(lane);
    }
}

static void lane_drain(struct nkv_ticket *lane)
{
    lane_wait(lane, true);
    lane_release(lane);
}

/* The lowest free lane, so that as little as possible of the windows is ever touched. */
struct nkv_ticket *lane_take(struct nkv_context *context)
{
    for (uint32_t i = 0; i < N_LANES; i++)
        if (context->lanes[i].state == LANE_FREE)
            return &context->lanes[i];
    for (uint32_t i = 0; i < N_LANES; i++)
        if (context->lanes[i].state == LANE_DRAINING) {
            lane_drain(&context->lanes[i]);
            return &context->lanes[i];
        }
    return NULL;
}

static bool lane_holds(const struct nkv_ticket *lane, const struct nkv_seq *seq)
{
    for (uint32_t i = 0; i < lane->n_works; i++)
        if (lane->works[i].seq == seq)
            return true;
    return false;
}

void context_drain(struct nkv_context *context, const struct nkv_seq *seq, uint32_t layer)
{
    for (uint32_t i = 0; i < N_LANES; i++) {
        struct nkv_ticket *lane = &context->lanes[i];

        if (lane->state == LANE_DRAINING && (layer == ANY_LAYER || lane->layer == layer) &&
            (!seq || lane_holds(lane, seq)))
            lane_drain(lane);
    }
}

void lane_finish_work(struct nkv_ticket *lane, const struct nkv_seq *seq)
{
    lane_wait(lane, true);
    for (uint32_t i = 0; i < lane->n_works; i++)
        if (lane->works[i].seq == seq)
            lane->works[i].seq = NULL;
}

uint32_t context_open_tickets(const struct nkv_context *context)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < N_LANES; i++)
        n += context->lanes[i].state == LANE_OPEN;
    return n;
}

void port_abandon(struct nkv_context *context, struct port *port)
{
    for (uint32_t i = 0; i < N_LANES; i++) {
        struct nkv_ticket *lane = &context->lanes[i];

        for (uint32_t p = 0; lane->state != LANE_FREE && p < lane->n_planned; p++) {
            struct planned *planned = &lane->plan[p];
            struct work *work = &lane->works[planned->work];

            if (planned->port != port->index || !planned->submitted || planned->completed)
                continue;
            planned->completed = true;
            work->in_flight[planned->role]--;
            work_fail(lane, planned->work, p, port->status, "%s", port->error);
        }
    }
}
