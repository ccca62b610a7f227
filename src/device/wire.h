/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device/wire.h: messages between a client and a device process, on a Unix socket of type SOCK_SEQPACKET: each message
 * is one packet of exactly its size, so nobody waits for the rest of one. Little endian; what is not named is 0. KV
 * data never crosses the socket.
 *
 *   every message                          request, 64 bytes (client to device)
 *   offset bytes what                      offset bytes what
 *      0     4   magic "NKVP"                8     4    HELLO: NKV_DEVICE_ABI
 *      4     2   version (3)                16     8    MAP: bytes of window wanted
 *      6     2   kind                       24    32    HELLO: shape, 8 words as struct nkv_kv_shape
 *                                           56     8    HELLO: id of the client, random, not 0
 *
 *   result, 272 bytes (device to client): the beginning of every answer; alone: GONE
 *      8     4   0 or an enum nkv_status
 *     16   256   text of a failure, zero terminated
 *
 *   answer, 432 bytes (to HELLO, MAP, STAT)          status (to STATUS): a result, then struct nkv_serve_stat
 *    272     4   number of this client              of nearkv/serve.h (4,296 bytes)
 *    276     4   threads of the device
 *    280     8   capacity in bytes
 *    288     8   bytes of the memory passed with it: HELLO: a ring (ring.h), MAP: the window
 *    296    72   struct nkv_device_stat
 *    368    64   name of the device
 *
 * HELLO comes first; its answer passes the ring's descriptor (SCM_RIGHTS). The id is what the device knows its client
 * by after it was restarted on the same memory: whoever says it has the sequences. MAP's answer passes that of the new
 * window; nothing may be in flight. STAT: what nkv_device_ops.stat wants. STATUS: the whole device, also before HELLO.
 * BELL (8 bytes, both ways): look at the ring; the receiver announced there that it sleeps. A bell that does not fit
 * the socket's buffer is dropped: what fills the buffer wakes the receiver as well. GONE: the device ends the
 * connection and says why.
 */
#ifndef NKV_DEVICE_WIRE_H
#define NKV_DEVICE_WIRE_H

#include <nearkv/device.h>
#include <nearkv/serve.h>

#include "base/status.h"

#define NKV_WIRE_MAGIC   0x50564b4eu /* "NKVP" */
#define NKV_WIRE_VERSION 3u

enum nkv_wire_kind {
    NKV_WIRE_BELL = 1,
    NKV_WIRE_HELLO = 2,
    NKV_WIRE_MAP = 3,
    NKV_WIRE_STAT = 4,
    NKV_WIRE_STATUS = 5,
    NKV_WIRE_GONE = 6,
};

struct nkv_wire_head {
    uint32_t magic;
    uint16_t version, kind;
};
struct nkv_wire_request {
    struct nkv_wire_head head;
    uint32_t abi, reserved;
    uint64_t bytes;
    struct nkv_kv_shape shape;
    uint64_t id;
};
struct nkv_wire_result {
    struct nkv_wire_head head;
    int32_t status;
    uint32_t reserved;
    char text[256];
};
struct nkv_wire_answer {
    struct nkv_wire_result result;
    uint32_t number, n_threads;
    uint64_t capacity_bytes, bytes;
    struct nkv_device_stat stat;
    char name[64];
};
struct nkv_wire_status {
    struct nkv_wire_result result;
    struct nkv_serve_stat stat;
};
_Static_assert(sizeof(struct nkv_kv_shape) == 32 && sizeof(struct nkv_wire_head) == 8 &&
                   sizeof(struct nkv_wire_request) == 64 && sizeof(struct nkv_wire_result) == 272 &&
                   offsetof(struct nkv_wire_answer, stat) == 296 && sizeof(struct nkv_wire_answer) == 432 &&
                   sizeof(struct nkv_serve_stat) == 4296,
               "the table above");

struct nkv_wire_head nkv_wire_head(enum nkv_wire_kind kind);

/* Connects. returns: 0; NKV_ENOENT: nobody listens at path; NKV_EINVAL, NKV_EIO. */
int nkv_wire_connect(const char *path, int *fd_out);
/*
 * Listens at path with mode 0600; type: SOCK_SEQPACKET or SOCK_STREAM. Replaces a socket that nobody listens on.
 * returns: 0; NKV_EINVAL; NKV_ESTATE: somebody listens there; NKV_EIO.
 */
int nkv_wire_listen(const char *path, int type, int *fd_out);

/* Sends one message at once or not at all, with a descriptor unless pass_fd < 0. returns: 0; NKV_EIO: the other side is
 * gone; NKV_ENOSPC: it does not read. */
int nkv_wire_send(int fd, const void *message, size_t bytes, int pass_fd);
/*
 * Receives one message, without waiting. fd_out NULL: descriptors that come with it are closed; else the first one or
 * -1. returns: its size (more than `room`: it was cut); 0: the other side is gone; NKV_ENOSPC: there is none.
 */
int nkv_wire_receive(int fd, void *message, size_t room, int *fd_out);
/*
 * Sends a request and waits for the answer of that kind, passing over bells. result_out begins with a struct
 * nkv_wire_result. returns: 0; the failure that the answer tells, with its text; NKV_EDEVICE: the device is gone, does
 * not answer, or is not a device; NKV_ENOTSUP: it speaks another version. fd_out: NULL or where a descriptor goes.
 */
int nkv_wire_ask(int fd, const struct nkv_wire_request *request, void *result_out, size_t bytes, int *fd_out);
/* Waits until the other side says something. returns: 0: a bell or nothing; NKV_EDEVICE: it is gone, with what it said.
 */
int nkv_wire_sleep(int fd);

#endif
