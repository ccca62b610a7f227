/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices that were lost and come back. A port whose device is lost is out of order: everything in flight failed, and
 * nothing is submitted. Recovering maps its window anew, which is how a backend reconnects, and puts the port in order;
 * what the device kept is not asked: each sequence finds out when it is truncated to its committed length, which it has
 * to be anyway, because a step may have ended in the middle.
 *
 * What was closed while the device was away, and what was being opened when it went, is noted by its id (orphans) and
 * closed first of all, so that a device that kept its memory leaks nothing. Recovering by itself inside of a step was
 * rejected: waiting is the caller's decision, and so is feeding tokens again.
 */
#include "runtime/runtime.h"

#include "base/clock.h"

#define RETRY_MS 20u

/* Without memory for the note the sequence stays until the client leaves. */
void port_note_orphan(struct port *port, uint32_t id, uint16_t flags)
{
    struct orphan *orphans;
    uint32_t room = port->max_orphans ? 2 * port->max_orphans : 16;

    if (port->n_orphans == port->max_orphans) {
        if (nkv_alloc(room, sizeof *orphans, &orphans) < 0)
            return;
        for (uint32_t i = 0; i < port->n_orphans; i++)
            orphans[i] = port->orphans[i];
        nkv_free(port->orphans);
        port->orphans = orphans;
        port->max_orphans = room;
    }
    port->orphans[port->n_orphans++] = (struct orphan){id, flags};
}

/* One that is not there is as good as closed; one to be removed may not have been published yet. returns: 0; the port's
 * status: it is lost again. */
static int close_orphans(struct nkv_context *context, struct port *port)
{
    while (port->n_orphans > 0) {
        struct orphan orphan = port->orphans[port->n_orphans - 1];
        struct nkv_cmd cmd = {.op = NKV_OP_SEQ_CLOSE, .seq = orphan.id, .flags = orphan.flags};
        int status = port_control(context, port, &cmd);

        cmd.flags = 0;
        if (status == NKV_EINVAL && orphan.flags)
            status = port_control(context, port, &cmd);
        if (port->status < 0)
            return status;
        port->n_orphans--;
    }
    return 0;
}

static int recover_port(struct nkv_context *context, struct port *port)
{
    int status = port_reopen(port, context_lane_bytes(context, port), &context->shape);

    ports_check_shares(context); /* the group may have lost what its port brought back */
    TRY(status);
    return close_orphans(context, port);
}

/* The group of a context that has each of its devices, too, is none more. */
static bool is_device(const struct nkv_context *context, const struct port *port)
{
    return !context->shares || port != context->group_port;
}

/* Tries each lost device once. returns: how many are still lost; another failure than that. */
static int try_all(struct nkv_context *context, uint32_t *n_recovered)
{
    int n_lost = 0;

    for (uint32_t i = 0; i < context->n_ports; i++) {
        struct port *port = &context->ports[i];
        int status;

        if (port->status != NKV_EDEVICE)
            continue;
        status = recover_port(context, port);
        if (status < 0 && status != NKV_EDEVICE)
            return status;
        n_lost += status < 0;
        *n_recovered += status >= 0 && is_device(context, port);
    }
    return n_lost;
}

int nkv_context_recover(struct nkv_context *context, uint64_t timeout_ms)
{
    uint64_t begin_ns = nkv_now_ns();
    uint32_t n_recovered = 0;
    int n_lost;

    if (context_open_tickets(context))
        FAIL(NKV_ESTATE, "devices cannot be recovered while a ticket is in flight: end it first");
    context_drain(context, NULL, ANY_LAYER);
    while ((n_lost = try_all(context, &n_recovered)) > 0) {
        if ((nkv_now_ns() - begin_ns) / 1000000u >= timeout_ms)
            return NKV_EDEVICE; /* the message is that of the last attempt */
        nkv_sleep_ms(RETRY_MS);
    }
    return n_lost < 0 ? n_lost : (int)n_recovered;
}
