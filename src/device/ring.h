/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device/ring.h: commands from one client process to the device process and completions back, in memory that both map.
 * Little endian; u32 words are read and written atomically.
 *
 *   offset   bytes  what                                                              written by
 *        0       8  magic "NKVRING1"                                                  device
 *        8       4  version: NKV_RING_VERSION                                         device
 *       12       4  entries: NKV_RING_ENTRIES                                         device
 *       16       4  bytes of a message: NKV_RING_MESSAGE_BYTES                        device
 *       64       4  submitted: commands ever queued, modulo 2^32                      client
 *       68       4  client_sleeps: 1: send a bell once `wanted` are completed         client
 *       72       4  wanted: a value of `completed`                                    client
 *      128       4  completed: commands ever completed, modulo 2^32                   device
 *      132       4  device_sleeps: 1: send a bell after queueing                      device
 *      192   65536  commands, struct nkv_cmd [1024]; number n at n mod 1024           client
 *    65728   32768  completions, struct nkv_cqe [1024], in the same places            device
 *    98496  196608  messages, char [1024][192], zero terminated, of failed commands   device
 *   295104          end
 *
 * An entry serves a command and later its completion, so a client that has room to submit also has room for the answer:
 * it has at most 1,024 commands that it has not reaped.
 */
#ifndef NKV_DEVICE_RING_H
#define NKV_DEVICE_RING_H

#include <nearkv/device.h>
#include <stdatomic.h>

#include "base/mem.h"

#define NKV_RING_MAGIC         0x31474e4952564b4eull /* "NKVRING1" */
#define NKV_RING_VERSION       1u
#define NKV_RING_ENTRIES       1024u /* a power of two */
#define NKV_RING_MESSAGE_BYTES 192u

struct nkv_ring {
    uint64_t magic;
    uint32_t version, n_entries, message_bytes;
    _Alignas(NKV_CACHE_LINE) _Atomic uint32_t submitted;
    _Atomic uint32_t client_sleeps, wanted;
    _Alignas(NKV_CACHE_LINE) _Atomic uint32_t completed;
    _Atomic uint32_t device_sleeps;
    _Alignas(NKV_CACHE_LINE) struct nkv_cmd cmds[NKV_RING_ENTRIES];
    struct nkv_cqe cqes[NKV_RING_ENTRIES];
    char messages[NKV_RING_ENTRIES][NKV_RING_MESSAGE_BYTES];
};
_Static_assert(offsetof(struct nkv_ring, submitted) == 64 && offsetof(struct nkv_ring, completed) == 128 &&
                   offsetof(struct nkv_ring, cmds) == 192 && offsetof(struct nkv_ring, cqes) == 65728 &&
                   offsetof(struct nkv_ring, messages) == 98496 && sizeof(struct nkv_ring) == 295104,
               "the table above");

/* ---- The client's side: one thread. ---- */

struct nkv_ring_user {
    struct nkv_ring *ring;
    uint32_t submitted, reaped;
};
/* returns: 0; NKV_EFORMAT: not a ring that this library understands. */
int nkv_ring_join(struct nkv_ring *ring, struct nkv_ring_user *user_out);
uint32_t nkv_ring_in_flight(const struct nkv_ring_user *user);
/* All or none. returns: whether the device sleeps and must be sent a bell; NKV_ENOSPC. */
int nkv_ring_submit(struct nkv_ring_user *user, const struct nkv_cmd *cmds, uint32_t n);
/* Completions that are there. returns: how many; NKV_EDEVICE: more than were asked for. */
int nkv_ring_ready(const struct nkv_ring_user *user);
/* Asks for a bell when n completions are there, or no longer (0). Look at nkv_ring_ready before sleeping. */
void nkv_ring_await(struct nkv_ring_user *user, uint32_t n);
/* Takes n completions. pre: they are ready. The last failed one's message goes to nkv_last_error(). */
void nkv_ring_reap(struct nkv_ring_user *user, struct nkv_cqe *cqes_out, uint32_t n);

/* ---- The device's side. It believes nothing that the client can write, and keeps its own counts. ---- */

struct nkv_ring_owner {
    struct nkv_ring *ring;
    uint32_t done; /* commands taken and completed */
};
/* pre: the ring is zero. */
void nkv_ring_init(struct nkv_ring *ring, struct nkv_ring_owner *owner_out);
/* Commands that wait, as the client claims; more than NKV_RING_ENTRIES: nonsense. */
uint32_t nkv_ring_waiting(const struct nkv_ring_owner *owner);
/* Copies the next command. returns: 1; 0: none; NKV_EFORMAT: the client's counter is nonsense. */
int nkv_ring_next(const struct nkv_ring_owner *owner, struct nkv_cmd *cmd_out);
/* Of the command that next gave; message: used if it failed. returns: whether the client wants a bell. */
bool nkv_ring_complete(struct nkv_ring_owner *owner, const struct nkv_cqe *cqe, const char *message);
void nkv_ring_sleep(struct nkv_ring_owner *owner, bool sleeps);

#endif
