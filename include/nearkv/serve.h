/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv/serve.h: a PNM device as a process of its own (nearkv pnmd). The process owns the memory and runs the
 * commands; applications attach to it with the device spec "unix:PATH" (nkv_device_open), several at once, each with
 * its own sequences. What it holds lives as long as the process and the client that opened it.
 *
 *   struct nkv_serve_options options = {.size = sizeof options, .listen = "pnm0.sock", .capacity_bytes = 8ull << 30};
 *   nkv_serve_open(&options, &serve);
 *   nkv_serve_run(serve);             returns after nkv_serve_stop(serve), from a signal handler or another thread
 *   nkv_serve_close(serve);
 */
#ifndef NEARKV_SERVE_H
#define NEARKV_SERVE_H

#include <nearkv/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NKV_SERVE_MAX_CLIENTS 64u

struct nkv_serve;

struct nkv_serve_options {
    uint32_t size;           /* sizeof(struct nkv_serve_options) */
    const char *listen;      /* path of the Unix socket; made with mode 0600 */
    const char *metrics;     /* path of a second one that answers HTTP with a Prometheus page; NULL: none */
    const char *name;        /* letters, digits and "-_.", fewer than 64; NULL: "pnm" */
    uint64_t capacity_bytes; /* for pages and digests; 0: 80 % of what is free when the first client attaches */
    uint32_t n_threads;      /* 0: one per CPU beside the memory */
    bool on_node;            /* memory and threads on NUMA node `node` */
    uint32_t node;
    /* Called on the thread of nkv_serve_run with one line per event (a client came, left, was dropped and why); NULL:
     * none. */
    void (*log)(void *arg, const char *line);
    void *log_arg;
    const char *memory; /* as struct nkv_device_config; what it holds is served from the beginning; NULL: ordinary */
    bool format;        /* make what is in `memory` anew, whatever is there */
    /* How long sequences that a device finds in its memory when it starts wait for their clients to come back, in
     * milliseconds; 0: 60,000. Those that are published stay in any case. */
    uint32_t keep_ms;
};

/*
 * Listens. A socket left behind by a process that ended is replaced. The KV shape is that of the first client; while it
 * or another is attached, later ones must have the same.
 * returns: 0; NKV_EINVAL; NKV_ESTATE: another device answers on the socket, or uses `memory`; what nkv_memory_shape
 * returns; NKV_EIO; NKV_ENOMEM.
 */
NKV_API int nkv_serve_open(const struct nkv_serve_options *options, struct nkv_serve **serve_out);
/* Serves until nkv_serve_stop. Commands that clients had queued by then are finished. blocks. returns: 0, NKV_EIO. */
NKV_API int nkv_serve_run(struct nkv_serve *serve);
/* Any thread, signal handlers too. */
NKV_API void nkv_serve_stop(struct nkv_serve *serve);
/* Disconnects every client, frees everything and removes the sockets. NULL is allowed. */
NKV_API void nkv_serve_close(struct nkv_serve *serve);

/* Fixed-size: crosses the socket as it is. */
struct nkv_serve_client {
    uint32_t number;
    int32_t pid;           /* of the process, as the system knows it */
    uint64_t used_bytes;   /* of pages and digests that its sequences hold or reserve */
    uint64_t window_bytes; /* of its I/O window, on top of the capacity */
    uint64_t n_commands, busy_ns;
    uint64_t read_bytes, written_bytes; /* by its commands, as struct nkv_device_stat says */
    uint32_t n_sequences;
    uint32_t queue_depth; /* commands that wait */
};
struct nkv_serve_stat {
    char name[64];
    uint64_t capacity_bytes;             /* before the first client: of the memory, of which tables take a part */
    uint64_t used_bytes, resident_bytes; /* as struct nkv_device_stat */
    uint64_t page_bytes;                 /* one page, all layers; 0: no client has attached yet */
    uint64_t n_commands, busy_ns, uptime_ns;
    uint64_t read_bytes, written_bytes; /* by commands, as struct nkv_device_stat */
    uint32_t n_threads, n_sequences, n_free_pages, n_total_pages;
    uint32_t queue_depth; /* of all clients */
    uint32_t n_clients;   /* entries of `clients` */
    uint32_t n_absent;    /* clients of before a restart, whose sequences are kept until they come back */
    uint32_t reserved;
    struct nkv_kv_shape shape; /* of what it holds; all 0: no client has attached yet */
    struct nkv_serve_client clients[NKV_SERVE_MAX_CLIENTS];
};
/* Asks the device that listens on a socket. returns: 0; NKV_ENOENT: nobody listens there; NKV_EDEVICE; NKV_ENOTSUP. */
NKV_API int nkv_serve_stat(const char *path, struct nkv_serve_stat *stat_out);

#ifdef __cplusplus
}
#endif
#endif
