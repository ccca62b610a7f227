/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A port: the queue and the window of one device. Commands are staged, so that those of a whole batch go down in one
 * submit; completions are handed to the lane that `user_data` names and change only counters there, so that reaping
 * to make room in a full queue can never start more work (which would need room).
 *
 * A queue that fails as such (submit or reap, not a command) fails everything that is in flight on it and everything
 * that is staged later, until it is reopened; the works concerned end with that status, the other devices go on. A
 * queue that completes what is not in flight there has failed, too: `user_data` comes from a backend and is an index
 * here.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/share.h"

const char *op_name(uint8_t op)
{
    static const char *const names[NKV_OP_COUNT] = {"?",       "open",    "close",  "fork", "truncate",
                                                    "append",  "select",  "attend", "read", "write",
                                                    "compute", "publish", "list"};

    return names[op < NKV_OP_COUNT ? op : 0];
}

static float scale_of(const struct nkv_kv_shape *shape)
{
    return shape->scale > 0 ? shape->scale : 1.0f / sqrtf((float)shape->head_dim);
}

static int other_shape(const struct port *port, const char *what, const char *device, const char *context)
{
    FAIL(NKV_EINVAL, "device %u (%s) was opened with %s %s, the context with %s: give both the same shape", port->index,
         port->caps.name, what, device, context);
}

/* Pages and operands of one shape are read as another's otherwise. */
static int check_shape(const struct port *port, const struct nkv_kv_shape *shape)
{
    const struct nkv_kv_shape *d = &port->caps.shape;
    const struct {
        const char *what;
        uint32_t device, context;
    } numbers[] = {
        {"number of layers", d->n_layers, shape->n_layers},
        {"number of query heads", d->n_heads, shape->n_heads},
        {"number of KV heads", d->n_kv_heads, shape->n_kv_heads},
        {"head dimension", d->head_dim, shape->head_dim},
        {"page size in tokens", d->page_tokens, shape->page_tokens},
    };

    if (d->n_layers == 0)
        return 0;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char device[16], context[16];

        if (numbers[i].device == numbers[i].context)
            continue;
        snprintf(device, sizeof device, "%u", numbers[i].device);
        snprintf(context, sizeof context, "%u", numbers[i].context);
        return other_shape(port, numbers[i].what, device, context);
    }
    if (d->dtype != shape->dtype)
        return other_shape(port, "KV type", nkv_dtype_name(d->dtype), nkv_dtype_name(shape->dtype));
    if (d->digest != shape->digest)
        return other_shape(port, "digest", nkv_digest_name(d->digest), nkv_digest_name(shape->digest));
    if (scale_of(d) != scale_of(shape))
        FAIL(NKV_EINVAL, "device %u (%s) was opened with scale %g, the context with %g: give both the same shape",
             port->index, port->caps.name, (double)scale_of(d), (double)scale_of(shape));
    return 0;
}

int port_check_device(const struct nkv_device *device, uint32_t index)
{
    if (!device)
        FAIL(NKV_EINVAL, "device %u is NULL", index);
    if (device->ops->abi != NKV_DEVICE_ABI)
        FAIL(NKV_ENOTSUP, "device %u (%s) speaks ABI %u, this library %u: rebuild the backend", index,
             device->ops->backend, device->ops->abi, NKV_DEVICE_ABI);
    return 0;
}

static void set_label(struct port *port)
{
    if (strcmp(port->device->ops->backend, GROUP_BACKEND) == 0)
        snprintf(port->label, sizeof port->label, "all devices (%s)", port->caps.name);
    else
        snprintf(port->label, sizeof port->label, "device %u (%s)", port->index, port->caps.name);
}

int port_open(struct port *port, struct nkv_device *device, uint32_t index, const struct nkv_kv_shape *shape)
{
    struct nkv_device_caps caps = {.size = sizeof caps};

    TRY(port_check_device(device, index));
    TRY(device->ops->caps(device, &caps));
    caps.name[sizeof caps.name - 1] = '\0';
    *port = (struct port){.device = device, .caps = caps, .index = index, .control_done = true};
    set_label(port);
    return check_shape(port, shape);
}

int port_stat(const struct port *port, struct nkv_device_stat *stat_out)
{
    struct nkv_device_stat stat = {.size = sizeof stat};
    int status = port->device->ops->stat ? port->device->ops->stat(port->device, &stat) : NKV_ENOTSUP;

    if (status < 0 && status != NKV_ENOTSUP)
        return status;
    *stat_out = status < 0 ? (struct nkv_device_stat){0} : stat;
    return 0;
}

int port_map(struct port *port, uint64_t lane_bytes, uint64_t control_bytes)
{
    uint64_t bytes = N_LANES * lane_bytes + control_bytes;
    void *window;

    if (bytes > port->window_bytes) {
        TRY(port->device->ops->map(port->device, bytes, &window));
        port->window = window;
        port->window_bytes = bytes;
    }
    port->lane_bytes = lane_bytes;
    port->control_bytes = control_bytes;
    return 0;
}

void ports_check_shares(struct nkv_context *context)
{
    for (uint32_t i = 0; context->shares && i < context->options.n_devices; i++) {
        const char *why;
        int status = share_check(context->options.devices[i], &why);

        if (status < 0 && context->ports[i].status == 0)
            port_fail(context, &context->ports[i], status, why);
        if (status < 0 && context->group_port->status == 0)
            port_fail(context, context->group_port, status, why);
    }
}

void port_fail(struct nkv_context *context, struct port *port, int status, const char *reason)
{
    snprintf(port->error, sizeof port->error, "%s: stopped: %s%s%s", port->label, nkv_status_name(status),
             *reason ? ": " : "", reason);
    port->status = status;
    port->n_in_flight = 0;
    port->n_staged = 0;
    port->control_done = true;
    port->control_res = status;
    port_abandon(context, port);
    ports_check_shares(context);
}

int port_remap(struct port *port, uint64_t bytes)
{
    struct nkv_device_caps caps = {.size = sizeof caps};
    void *window;

    TRY(port->device->ops->map(port->device, bytes, &window));
    port->window = window;
    port->window_bytes = bytes;
    TRY(port->device->ops->caps(port->device, &caps));
    caps.name[sizeof caps.name - 1] = '\0';
    port->caps = caps;
    set_label(port);
    return 0;
}

int port_reopen(struct port *port, uint64_t lane_bytes, const struct nkv_kv_shape *shape)
{
    TRY(port_remap(port, N_LANES * lane_bytes + port->control_bytes));
    port->lane_bytes = lane_bytes;
    TRY(check_shape(port, shape));
    port->status = 0;
    port->error[0] = '\0';
    port->epoch++;
    return 0;
}

const char *port_message_since(uint64_t n_messages)
{
    return nkv_fail_count() != n_messages ? nkv_last_error() : "";
}

void port_flush(struct nkv_context *context, struct port *port)
{
    uint64_t n_messages;
    int status;

    if (port->n_staged == 0 || port->status < 0)
        return;
    while (port->n_in_flight + port->n_staged > QUEUE_COMMANDS && port->status >= 0)
        port_reap(context, port, 1);
    if (port->status < 0)
        return;
    n_messages = nkv_fail_count();
    status = port->device->ops->submit(port->device, port->staged, port->n_staged);
    if (status < 0) {
        port_fail(context, port, status, port_message_since(n_messages));
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
    uint64_t lane = cqe->user_data >> 32;
    uint32_t index = (uint32_t)cqe->user_data;
    char reason[96];

    if (cqe->user_data == CONTROL_USER_DATA && !port->control_done) {
        port->control_done = true;
        port->control_res = cqe->res;
    } else if (lane < N_LANES && plan_in_flight(&context->lanes[lane], index, port)) {
        plan_complete(&context->lanes[lane], index, cqe);
    } else {
        snprintf(reason, sizeof reason, "it completed user_data 0x%" PRIx64 ", which is not in flight there",
                 cqe->user_data);
        port_fail(context, port, NKV_EDEVICE, reason);
    }
}

/* reap's answer: 0 or 1 completion. returns: whether the port is still in order. */
static bool check_reaped(struct nkv_context *context, struct port *port, int n, uint32_t min_n, uint64_t n_messages)
{
    char reason[96];

    if (n == 1 || (n == 0 && min_n == 0))
        return true;
    if (n < 0) {
        port_fail(context, port, n, port_message_since(n_messages));
        return false;
    }
    snprintf(reason, sizeof reason, "it gave %d completions where %u to 1 were asked for", n, min_n);
    port_fail(context, port, NKV_EDEVICE, reason);
    return false;
}

/* One completion at a time: the device's message belongs to the last one taken. */
void port_reap(struct nkv_context *context, struct port *port, uint32_t min_n)
{
    struct nkv_cqe cqe;
    int n;

    while (port->n_in_flight > 0) {
        uint64_t n_messages = nkv_fail_count();

        n = port->device->ops->reap(port->device, &cqe, 1, min_n > 0);
        if (!check_reaped(context, port, n, min_n > 0, n_messages) || n == 0)
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

struct nkv_cmd port_name_pages(const struct port *port, uint32_t seq, uint32_t layer, uint32_t first, uint32_t n)
{
    uint64_t base = port_control_at(port);
    uint8_t *list = port->window + base;

    memcpy(list, &n, sizeof n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t page = first + i;

        memcpy(list + 4 * (i + (size_t)1), &page, sizeof page);
    }
    return (struct nkv_cmd){.seq = seq, .layer = (uint16_t)layer, .n_pages = n, .list_offset = base};
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
        FAIL(port->status, "%s", port->error);
    if (port->control_res < 0) {
        char reason[200];

        strncpy(reason, nkv_last_error(), sizeof reason - 1);
        reason[sizeof reason - 1] = '\0';
        FAIL(port->control_res, "%s failed %s of sequence %u: %s: %s", port->label, op_name(cmd->op), cmd->seq,
             nkv_status_name(port->control_res), reason);
    }
    return port->control_res;
}
