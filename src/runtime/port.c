/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A port: the queue and the window of one device. Commands are staged, so that those of a whole batch go down in one
 * submit; completions are handed to the lane that `user_data` names and change only counters there, so that reaping
 * to make room in a full queue can never start more work (which would need room).
 *
 * A queue that fails as such (submit or reap, not a command) fails everything that is in flight on it and everything
 * that is staged later; the works concerned end with that status, the other devices go on.
 */
#include "runtime/runtime.h"

#include <stdio.h>
#include <string.h>

const char *op_name(uint8_t op)
{
    static const char *const names[NKV_OP_COUNT] = {"?",      "open",   "close", "fork",  "truncate", "append",
                                                    "select", "attend", "read",  "write", "compute"};

    return names[op < NKV_OP_COUNT ? op : 0];
}

int port_open(struct port *port, struct nkv_device *device, uint32_t index)
{
    struct nkv_device_caps caps = {.size = sizeof caps};

    if (!device)
        FAIL(NKV_EINVAL, "device %u is NULL", index);
    if (device->ops->abi != NKV_DEVICE_ABI)
        FAIL(NKV_ENOTSUP, "device %u (%s) speaks ABI %u, this library %u: rebuild the backend", index,
             device->ops->backend, device->ops->abi, NKV_DEVICE_ABI);
    TRY(device->ops->caps(device, &caps));
    caps.name[sizeof caps.name - 1] = '\0';
    *port = (struct port){.device = device, .caps = caps, .index = index};
    return 0;
}

int port_map(struct port *port, uint64_t lane_bytes)
{
    uint64_t bytes = N_LANES * lane_bytes;
    void *window;

    if (bytes > port->window_bytes) {
        TRY(port->device->ops->map(port->device, bytes, &window));
        port->window = window;
        port->window_bytes = bytes;
    }
    port->lane_bytes = lane_bytes;
    return 0;
}

/* A completion that no device sent: its queue is out of order. */
static void port_fail(struct nkv_context *context, struct port *port, int status)
{
    port->status = status;
    snprintf(port->reason, sizeof port->reason, "%s", nkv_last_error());
    port->n_in_flight = 0;
    port->n_staged = 0;
    port->control_done = true;
    port->control_res = status;
    port_abandon(context, port);
}

void port_flush(struct nkv_context *context, struct port *port)
{
    int status;

    if (port->n_staged == 0 || port->status < 0)
        return;
    while (port->n_in_flight + port->n_staged > QUEUE_COMMANDS && port->status >= 0)
        port_reap(context, port, 1);
    if (port->status < 0)
        return;
    status = port->device->ops->submit(port->device, port->staged, port->n_staged);
    if (status < 0) {
        port_fail(context, port, status);
        return;
    }
    port->n_in_flight += port->n_staged;
    port->n_staged = 0;
}

uint64_t port_stage(struct nkv_context *context, struct port *port, const struct nkv_cmd *cmd)
{
    if (port->n_staged == STAGED_COMMANDS)
        port_flush(context, port);
    if (port->status >= 0)
        port->staged[port->n_staged++] = *cmd;
    return port->n_queued++;
}

static void dispatch(struct nkv_context *context, struct port *port, const struct nkv_cqe *cqe)
{
    if (cqe->user_data == CONTROL_USER_DATA) {
        port->control_done = true;
        port->control_res = cqe->res;
        return;
    }
    plan_complete(&context->lanes[cqe->user_data >> 32], (uint32_t)cqe->user_data, cqe);
}

/* One completion at a time: the device's message belongs to the last one taken. */
void port_reap(struct nkv_context *context, struct port *port, uint32_t min_n)
{
    struct nkv_cqe cqe;
    int n;

    while (port->n_in_flight > 0) {
        n = port->device->ops->reap(port->device, &cqe, 1, min_n > 0);
        if (n < 0) {
            port_fail(context, port, n);
            return;
        }
        if (n == 0)
            return;
        port->n_in_flight--;
        dispatch(context, port, &cqe);
        min_n -= min_n > 0;
    }
}

int port_copy(const struct port *port, uint64_t offset, const void *from, uint64_t bytes)
{
    if (port->device->ops->copy)
        return port->device->ops->copy(port->device, offset, from, bytes);
    memcpy(port->window + offset, from, bytes);
    return 0;
}

int port_control(struct nkv_context *context, struct port *port, const struct nkv_cmd *cmd)
{
    struct nkv_cmd copy = *cmd;

    copy.user_data = CONTROL_USER_DATA;
    log_command(context, port, &copy);
    port->control_done = false;
    port->control_res = 0;
    port_stage(context, port, &copy);
    port_flush(context, port);
    while (!port->control_done && port->status >= 0)
        port_reap(context, port, 1);
    if (port->status < 0)
        FAIL(port->status, "device %u (%s) is out of order: %s: %s", port->index, port->caps.name,
             nkv_status_name(port->status), port->reason);
    if (port->control_res < 0) {
        char reason[200];

        strncpy(reason, nkv_last_error(), sizeof reason - 1);
        reason[sizeof reason - 1] = '\0';
        FAIL(port->control_res, "device %u (%s) failed %s of sequence %u: %s: %s", port->index, port->caps.name,
             op_name(cmd->op), cmd->seq, nkv_status_name(port->control_res), reason);
    }
    return port->control_res;
}
