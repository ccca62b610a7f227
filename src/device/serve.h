/* SPDX-License-Identifier: Apache-2.0 */
/* device/serve.h: the insides of the device process, shared by its files. All of it runs on the thread of
 * nkv_serve_run, but for `stop`. */
#ifndef NKV_DEVICE_SERVE_H
#define NKV_DEVICE_SERVE_H

#include <nearkv/serve.h>
#include <sys/types.h>

#include "base/affinity.h"
#include "device/cpu.h"
#include "device/ring.h"
#include "device/wire.h"

#define NKV_SERVE_SCRAPERS    4u
#define NKV_SERVE_PAGE_BYTES  32768u
#define NKV_SERVE_QUERY_BYTES 2048u

struct serve_client {
    int fd;
    pid_t pid;
    uint32_t number; /* owns its sequences; 0 until it has said hello */
    bool attached;   /* has said hello: has a ring */
    bool lost;       /* to be removed */
    uint32_t last;   /* while stopping: commands up to here are run */
    struct nkv_region ring_memory, window;
    uint64_t window_bytes;
    struct nkv_ring_owner ring;
    uint64_t n_commands, busy_ns, read_bytes, written_bytes;
};

/* A connection to the metrics socket. */
struct serve_scraper {
    int fd; /* -1: free */
    uint64_t deadline_ns;
    uint32_t n_bytes;
    char query[NKV_SERVE_QUERY_BYTES];
};

/* A listening socket and the file that it made, which is removed only if it is still the same. */
struct serve_socket {
    int fd; /* -1: none */
    char path[108];
    dev_t device;
    ino_t inode;
};

struct nkv_serve {
    struct nkv_serve_options options;
    char name[64];
    struct serve_socket socket, metrics;
    int stop_fd;
    int memory_fd; /* holds the lock of memory that outlives the process; -1: there is none */
    _Atomic uint32_t stop;
    uint64_t memory_bytes; /* of such memory, tables included */
    bool stopping;
    bool closing; /* clients are sent away, but not for good: their sequences stay */
    uint64_t begin_ns, polled_ns;
    struct nkv_cpu *cpu;           /* NULL: no client has said hello yet */
    struct nkv_affinity affinity;  /* of the serving thread, before it was bound */
    struct nkv_device_stat before; /* what the cores before have counted */
    uint64_t absent_until_ns;      /* until then absent clients may come back; 0: there are none */
    uint32_t n_clients, next_number;
    struct serve_client *clients[NKV_SERVE_MAX_CLIENTS];
    struct serve_scraper scrapers[NKV_SERVE_SCRAPERS];
    char page[NKV_SERVE_PAGE_BYTES];
};

void nkv_serve_log(const struct nkv_serve *serve, const char *format, ...) NKV_PRINTF(2, 3);

/* ---- serve_client.c ---- */
/* A core for this shape in place of the one there is. State after a failure: unchanged; with memory that outlives the
 * process: there is none. */
int nkv_serve_open_core(struct nkv_serve *serve, const struct nkv_kv_shape *shape);
void nkv_serve_accept(struct nkv_serve *serve);
/* Takes what the client has sent. */
void nkv_serve_listen_to(struct nkv_serve *serve, struct serve_client *client);
/* Tells the client why, and marks it as lost. */
void nkv_serve_drop(struct nkv_serve *serve, struct serve_client *client, const char *why);
/* Frees what lost clients held. */
void nkv_serve_sweep(struct nkv_serve *serve);

/* ---- serve_absent.c ---- */
/* Gives a client that says hello its number: that of the absent client of this id, if there is one. returns: 0;
 * NKV_ESTATE: a client with the id is attached; NKV_ENOSPC, NKV_ENOMEM. */
int nkv_serve_identify(struct nkv_serve *serve, struct serve_client *client, uint64_t id);
/* Closes what a client did not publish and strikes it out. returns: sequences closed. */
uint32_t nkv_serve_forget(struct nkv_serve *serve, uint32_t number);
/* To be called when the core was opened: the time of grace begins. */
void nkv_serve_await_absent(struct nkv_serve *serve);
uint32_t nkv_serve_count_absent(const struct nkv_serve *serve);
/* What is kept for them, and for how long. */
void nkv_serve_fill_absent(const struct nkv_serve *serve, struct nkv_device_stat *stat);
/* Adds it to the message of a command that failed for lack of room. */
void nkv_serve_explain_absent(const struct nkv_serve *serve);
/* Forgets absent clients whose time of grace has passed. */
void nkv_serve_expire_absent(struct nkv_serve *serve, uint64_t now_ns);
/* Milliseconds until then; -1: no client is awaited. */
int nkv_serve_absent_ms(const struct nkv_serve *serve, uint64_t now_ns);

/* ---- serve_stat.c ---- */
void nkv_serve_fill_stat(const struct nkv_serve *serve, struct nkv_serve_stat *stat_out);

/* ---- serve_metrics.c ---- */
void nkv_serve_metrics_accept(struct nkv_serve *serve);
/* Reads from a scraper and answers when its query is whole. */
void nkv_serve_metrics_read(struct nkv_serve *serve, struct serve_scraper *scraper);
/* Closes those that took too long. returns: whether any is left. */
bool nkv_serve_metrics_expire(struct nkv_serve *serve, uint64_t now_ns);
void nkv_serve_metrics_close(struct nkv_serve *serve);

#endif
