/* SPDX-License-Identifier: Apache-2.0 */
/* device/memory_list.h: the insides of nkv_memory_list_open, shared by its two files and its test. */
#ifndef NKV_DEVICE_MEMORY_LIST_H
#define NKV_DEVICE_MEMORY_LIST_H

#include <nearkv/nearkv.h>

struct nkv_memory_builder {
    struct nkv_memory *memories;
    uint32_t n, size;
};

/*
 * A zeroed entry at the end of the list, node and distance unknown. The pointer is good until the next call.
 * returns: 0; NKV_ENOMEM.
 */
int nkv_memory_append(struct nkv_memory_builder *builder, enum nkv_memory_kind kind, const char *name,
                      struct nkv_memory **memory_out);

/* Appends DAX devices and CXL memory devices; nodes must be in the list already. returns: 0; NKV_ENOMEM. */
int nkv_memory_append_devices(struct nkv_memory_builder *builder);

/*
 * nkv_memory_list_open with the files of /sys under another root ("" is the system's own; hwloc takes its root from
 * HWLOC_FSROOT) and with so much memory to be had.
 */
int nkv_memory_list_open_at(const char *root, uint64_t available_bytes, struct nkv_memory_list **list_out);

#endif
