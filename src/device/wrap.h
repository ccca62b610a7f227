/* SPDX-License-Identifier: Apache-2.0 */
/* device/wrap.h: what wrappers share: they stand between a client and a device and know each command in flight. */
#ifndef NKV_DEVICE_WRAP_H
#define NKV_DEVICE_WRAP_H

#include <nearkv/device.h>

#define NKV_WRAP_ENTRIES 1024u

struct nkv_wrap {
    struct nkv_device device; /* first */
    struct nkv_device *inner;
    char *window;
    uint32_t n_free;
    uint32_t free_tags[NKV_WRAP_ENTRIES];
    bool in_flight[NKV_WRAP_ENTRIES];         /* by tag */
    struct nkv_cmd pending[NKV_WRAP_ENTRIES]; /* by tag, as the client sent them */
    uint64_t numbers[NKV_WRAP_ENTRIES];       /* by tag: commands before this one */
    uint64_t n_commands;
    struct nkv_cmd staged[NKV_WRAP_ENTRIES];
};

void nkv_wrap_init(struct nkv_wrap *wrap, const struct nkv_device_ops *ops, struct nkv_device *inner);
/*
 * Copies n commands to wrap->staged under tags in place of user_data, so that completions are told apart whatever the
 * client's user_data are. returns: 0 or NKV_ENOSPC.
 */
int nkv_wrap_stage(struct nkv_wrap *wrap, const struct nkv_cmd *cmds, uint32_t n);
/* Hands what was staged to the inner device; gives the tags back when it refuses. */
int nkv_wrap_submit_staged(struct nkv_wrap *wrap, uint32_t n);
/* Ends a completion's command: restores user_data, frees the tag, which is valid until the next stage. returns: 0, or
 * NKV_EDEVICE: the inner device completed what it was not sent. */
int nkv_wrap_finish(struct nkv_wrap *wrap, struct nkv_cqe *cqe, uint32_t *tag_out);

/* Slots that pass through. */
int nkv_wrap_caps(struct nkv_device *device, struct nkv_device_caps *caps_out);
int nkv_wrap_map(struct nkv_device *device, uint64_t bytes, void **window_out);
int nkv_wrap_stat(struct nkv_device *device, struct nkv_device_stat *stat_out);
int nkv_wrap_copy(struct nkv_device *device, uint64_t offset, const void *from, uint64_t bytes);

#endif
