/* SPDX-License-Identifier: Apache-2.0 */
/* policy/place.h: on which device a sequence lives, and when it should move. Pure. */
#ifndef NKV_POLICY_PLACE_H
#define NKV_POLICY_PLACE_H

#include <nearkv/types.h>

/* What decides how long a device works on a decode step of a sequence. */
struct nkv_step_work {
    enum nkv_mode mode;
    uint32_t n_layers, n_dense_layers;
    uint32_t n_tokens, budget_tokens; /* n_tokens: the length that is expected */
    uint32_t page_tokens;
    uint64_t page_bytes, digest_bytes; /* of a page, in one layer */
};
/* Bytes that the device reads for it, with what its commands cost beside (in bytes that could be read meanwhile). */
uint64_t nkv_step_bytes(const struct nkv_step_work *work);

/*
 * The same for each of n_devices devices over which the sequence's pages are spread: its share of the reads, and the
 * commands that all of them get for it, since the host hands those out one after the other.
 */
uint64_t nkv_spread_bytes(const struct nkv_step_work *work, uint32_t n_devices);

/*
 * The device with the least load (the sum of nkv_step_bytes over its sequences) among those that can hold need_bytes;
 * ties to the lower number. returns: its number, or NKV_ENOSPC (no message: the caller knows what was asked).
 */
int nkv_place(const uint64_t *loads, const uint64_t *free_bytes, uint32_t n_devices, uint64_t need_bytes);

/* What a sequence costs a device. */
struct nkv_share {
    uint64_t need_bytes; /* of memory */
    uint64_t load;       /* per step */
};
/*
 * Whether to spread a sequence over all devices (part: what each of them has of it) or to leave it on one (whole): it
 * is spread if it fits nowhere else, or if the devices have less to do than that many such sequences would give them,
 * all of them together do not work too much for it, and the step of the busiest one becomes much shorter. returns: the
 * number of the device that nkv_place chooses; n_devices: all of them; NKV_ENOSPC: no room either way.
 */
int nkv_place_or_spread(const uint64_t *loads, const uint64_t *free_bytes, uint32_t n_devices,
                        const struct nkv_share *whole, const struct nkv_share *part);

struct nkv_placed {
    uint64_t load, need_bytes; /* per step; of memory */
    uint64_t held_bytes;       /* that a move would carry */
    uint32_t device;
};
struct nkv_move {
    uint32_t seq, device; /* which of the sequences goes where */
};

/* Whether the busiest device has so much more to do than the mean that a move can be worth its bytes. */
bool nkv_unbalanced(const uint64_t *loads, uint32_t n_devices);
/*
 * The move that takes most off the busiest device, if what it saves in n_steps steps is more than what it costs; ties
 * to the sequence and the device that come first. returns: whether there is one.
 */
bool nkv_migrate_plan(const struct nkv_placed *seqs, uint32_t n_seqs, const uint64_t *loads, const uint64_t *free_bytes,
                      uint32_t n_devices, uint32_t n_steps, struct nkv_move *move_out);

#endif
