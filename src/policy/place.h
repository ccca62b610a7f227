/* SPDX-License-Identifier: Apache-2.0 */
/* policy/place.h: on which device a new sequence lives. Pure. */
#ifndef NKV_POLICY_PLACE_H
#define NKV_POLICY_PLACE_H

#include <nearkv/types.h>

/*
 * The device with the most free bytes among those that can hold need_bytes; ties to the lower number.
 * returns: its number, or NKV_ENOSPC (no message: the caller knows what was asked).
 */
int nkv_place(const uint64_t *free_bytes, uint32_t n_devices, uint64_t need_bytes);

#endif
