/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A wrapper sends each command down under a tag of its own instead of the client's user_data, and restores it when the
 * completion comes back. Clients need not make user_data unique, and inner devices may complete in any order. `map` is
 * called with nothing in flight: what is then still noted was lost with a device that is now there again.
 */
#include "device/wrap.h"

#include <string.h>

#include "base/status.h"

void nkv_wrap_init(struct nkv_wrap *wrap, const struct nkv_device_ops *ops, struct nkv_device *inner)
{
    wrap->device.ops = ops;
    wrap->inner = inner;
    wrap->n_free = NKV_WRAP_ENTRIES;
    for (uint32_t i = 0; i < NKV_WRAP_ENTRIES; i++)
        wrap->free_tags[i] = i;
}

int nkv_wrap_stage(struct nkv_wrap *wrap, const struct nkv_cmd *cmds, uint32_t n)
{
    if (n > wrap->n_free)
        FAIL(NKV_ENOSPC, "%u commands for %u free entries of the queue: reap completions first", n, wrap->n_free);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t tag = wrap->free_tags[--wrap->n_free];

        wrap->pending[tag] = cmds[i];
        wrap->numbers[tag] = wrap->n_commands + i;
        wrap->staged[i] = cmds[i];
        wrap->staged[i].user_data = tag;
    }
    return 0;
}

int nkv_wrap_submit_staged(struct nkv_wrap *wrap, uint32_t n)
{
    int status = wrap->inner->ops->submit(wrap->inner, wrap->staged, n);

    if (status < 0) {
        for (uint32_t i = n; i-- > 0;)
            wrap->free_tags[wrap->n_free++] = (uint32_t)wrap->staged[i].user_data;
        return status;
    }
    for (uint32_t i = 0; i < n; i++)
        wrap->in_flight[wrap->staged[i].user_data] = true;
    wrap->n_commands += n;
    return 0;
}

int nkv_wrap_finish(struct nkv_wrap *wrap, struct nkv_cqe *cqe, uint32_t *tag_out)
{
    uint32_t tag = (uint32_t)cqe->user_data;

    if (cqe->user_data >= NKV_WRAP_ENTRIES || !wrap->in_flight[tag])
        FAIL(NKV_EDEVICE, "device '%s' completed user_data 0x%llx, which is not in flight there",
             wrap->inner->ops->backend, (unsigned long long)cqe->user_data);
    cqe->user_data = wrap->pending[tag].user_data;
    wrap->in_flight[tag] = false;
    wrap->free_tags[wrap->n_free++] = tag;
    *tag_out = tag;
    return 0;
}

static struct nkv_wrap *wrap_of(struct nkv_device *device)
{
    return (struct nkv_wrap *)(void *)device;
}

int nkv_wrap_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    struct nkv_device *inner = wrap_of(device)->inner;

    return inner->ops->caps(inner, caps_out);
}

int nkv_wrap_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    struct nkv_wrap *wrap = wrap_of(device);
    void *window;

    TRY(wrap->inner->ops->map(wrap->inner, bytes, &window));
    for (uint32_t tag = 0; tag < NKV_WRAP_ENTRIES; tag++)
        if (wrap->in_flight[tag]) {
            wrap->in_flight[tag] = false;
            wrap->free_tags[wrap->n_free++] = tag;
        }
    wrap->window = window;
    *window_out = window;
    return 0;
}

int nkv_wrap_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    struct nkv_device *inner = wrap_of(device)->inner;

    if (!inner->ops->stat)
        FAIL(NKV_ENOTSUP, "device '%s' keeps no statistics", inner->ops->backend);
    return inner->ops->stat(inner, stat_out);
}

int nkv_wrap_copy(struct nkv_device *device, uint64_t offset, const void *from, uint64_t bytes)
{
    struct nkv_wrap *wrap = wrap_of(device);

    if (wrap->inner->ops->copy)
        return wrap->inner->ops->copy(wrap->inner, offset, from, bytes);
    memcpy(wrap->window + offset, from, bytes);
    return 0;
}
