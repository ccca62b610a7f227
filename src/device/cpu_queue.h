/* SPDX-License-Identifier: Apache-2.0 */
/* device/cpu_queue.h: commands from one client thread to one leader thread, completions back. */
#ifndef NKV_DEVICE_CPU_QUEUE_H
#define NKV_DEVICE_CPU_QUEUE_H

#include <nearkv/device.h>
#include <stdatomic.h>

#include "base/mem.h"

#define NKV_CPU_QUEUE_ENTRIES 1024u /* a power of two */
#define NKV_CPU_MESSAGE_BYTES 192u

struct nkv_cpu_queue {
    _Alignas(NKV_CACHE_LINE) _Atomic uint32_t doorbell; /* futex: commands or stop */
    _Atomic uint32_t submitted, leader_sleeps, stop;
    _Alignas(NKV_CACHE_LINE) _Atomic uint32_t completed; /* futex */
    _Atomic uint32_t client_sleeps, wanted;              /* the client sleeps until `wanted` are completed */
    _Alignas(NKV_CACHE_LINE) uint32_t reaped;            /* the client's */
    _Alignas(NKV_CACHE_LINE) uint32_t taken;             /* the leader's */
    struct nkv_cmd cmds[NKV_CPU_QUEUE_ENTRIES];
    struct nkv_cqe cqes[NKV_CPU_QUEUE_ENTRIES];
    char messages[NKV_CPU_QUEUE_ENTRIES][NKV_CPU_MESSAGE_BYTES]; /* of failed commands */
};

/* The client. See struct nkv_device_ops: submit and reap. */
int nkv_cpu_queue_submit(struct nkv_cpu_queue *queue, const struct nkv_cmd *cmds, uint32_t n);
int nkv_cpu_queue_reap(struct nkv_cpu_queue *queue, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n);
uint32_t nkv_cpu_queue_in_flight(const struct nkv_cpu_queue *queue);
/* Lets the leader end once it has done what was submitted. */
void nkv_cpu_queue_stop(struct nkv_cpu_queue *queue);

/* The leader. next: waits for a command; false: stop. complete: of the command taken last; message: used if it failed.
 */
bool nkv_cpu_queue_next(struct nkv_cpu_queue *queue, struct nkv_cmd *cmd_out);
void nkv_cpu_queue_complete(struct nkv_cpu_queue *queue, const struct nkv_cqe *cqe, const char *message);

#endif
