/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Data-parallel placement: a whole sequence on the device with the most free memory. Bytes reserved by open sequences
 * count as used, so that the choice depends on what was admitted and never on how fast anything ran. Round robin was
 * rejected: sequences of unequal length would fill one device while another is empty.
 */
#include "policy/place.h"

int nkv_place(const uint64_t *free_bytes, uint32_t n_devices, uint64_t need_bytes)
{
    int best = NKV_ENOSPC;

    for (uint32_t i = 0; i < n_devices; i++)
        if (free_bytes[i] >= need_bytes && (best < 0 || free_bytes[i] > free_bytes[best]))
            best = (int)i;
    return best;
}
