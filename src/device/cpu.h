/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device/cpu.h: the insides of devices whose compute is this machine's CPUs: the core (a store, a team, and how a
 * command runs), shared by the device in this process (cpu.c) and the one that serves others (serve.c). Everything here
 * runs on one thread, the leader.
 */
#ifndef NKV_DEVICE_CPU_H
#define NKV_DEVICE_CPU_H

#include <nearkv/device.h>
#include <nearkv/nearkv.h>
#include <stdatomic.h>

#include "base/affinity.h"
#include "base/mem.h"
#include "base/team.h"
#include "kernels/kernels.h"
#include "kv/store.h"

/* Work of fewer bytes than this is not worth waking the team for. */
#define NKV_CPU_SERIAL_BYTES ((uint64_t)256 << 10)

/* What one thread needs while it attends: sized at open. */
struct nkv_cpu_rank {
    float *q, *o, *m, *l; /* [max_rows][D], [max_rows][D], [max_rows], [max_rows] */
    uint32_t *visible;    /* [max_rows] */
    void *kernel;         /* the attend kernel's scratch */
    char *prepared;       /* q as the kernel wants it, [max_rows] */
};

/* Lists of a command, copied out of the window and checked. */
struct nkv_cpu_lists {
    uint32_t n_units;
    uint32_t **ids; /* [n_units] */
    uint32_t *n;    /* [n_units] */
    uint32_t *free; /* scratch behind them */
    uint64_t n_all; /* sum of n */
};

/* Published by the leader after each command, read by anyone. */
struct nkv_cpu_stat {
    _Atomic uint64_t used_bytes, resident_bytes, busy_ns, n_commands, read_bytes, written_bytes;
    _Atomic uint32_t n_sequences, n_free_pages;
};

struct nkv_cpu {
    struct nkv_kv_shape shape;
    uint64_t capacity_bytes;
    uint32_t n_threads, group; /* query heads per KV head */
    float scale;
    struct nkv_store *store;
    struct nkv_team *team;
    struct nkv_cpu_binding *binding; /* NULL: the system places threads and memory */

    /* of the command that runs */
    char *window;
    uint64_t window_bytes;
    uint64_t read_bytes, written_bytes; /* by it, as struct nkv_device_stat says */
    uint32_t owner;

    /* sized at open (lists: by nkv_cpu_window_reserve), committed on first touch */
    struct nkv_region list_memory, scratch;
    float *q_sums;                /* SELECT: [KVH][2][D]: q_pos, q_neg */
    float *scores;                /* SELECT: [KVH][max_pages] */
    uint32_t *ranked, *chosen;    /* SELECT: [KVH][max_pages] each */
    float *partials;              /* ATTEND: at most NKV_CPU_PARTS blocks of o [rows][D], m [rows], l [rows] */
    struct nkv_cpu_rank *ranks;   /* [n_threads] */
    uint32_t **unit_ids;          /* [KVH] */
    uint32_t *unit_n;             /* [KVH] */
    uint32_t max_pages, max_rows; /* rows of a task */

    struct nkv_cpu_stat stat;
};

/* ---- cpu_core.c ---- */

struct nkv_cpu_config {
    struct nkv_kv_shape shape; /* checked */
    uint64_t capacity_bytes;   /* 0: 80 % of what is free now */
    uint32_t n_threads;        /* 0: one per CPU beside the memory */
    int node;                  /* NUMA node, -1: any */
    const char *memory;        /* as struct nkv_device_config; then the capacity is what fits */
    bool format;               /* make what is in `memory` anew */
    bool is_locked;            /* memory_fd holds its lock (nkv_image_lock) */
    int memory_fd;
};
/*
 * Opens store, scratch and team; no thread runs commands yet. State after a failure: nkv_cpu_core_close is right. The
 * thread that will call nkv_cpu_run is rank 0 of the team; it binds itself (nkv_cpu_bind_thread). pre: *cpu is zero.
 */
int nkv_cpu_core_open(struct nkv_cpu *cpu, const struct nkv_cpu_config *config);
void nkv_cpu_core_close(struct nkv_cpu *cpu);
/*
 * Runs a command of one client: its sequences are those of `owner`, its operands lie in `window`. After a failure
 * nkv_last_error() has the message. pre: window_bytes were reserved. returns: the completion.
 */
struct nkv_cqe nkv_cpu_run(struct nkv_cpu *cpu, uint32_t owner, void *window, uint64_t window_bytes,
                           const struct nkv_cmd *cmd);
/* Tells the statistics that the store changed without a command. */
void nkv_cpu_publish(struct nkv_cpu *cpu);
/* Any thread may ask. */
struct nkv_device_stat nkv_cpu_read_stat(const struct nkv_cpu *cpu);

/* Tasks of one ATTEND that have a partial of their own. */
#define NKV_CPU_PARTS 128u

/* Rows of a partial are a multiple of this, so that m and l begin on cache lines. */
#define NKV_CPU_ROW_GRAIN 16u

/* Query rows that one task of a prefill block holds at most (if a single token does not have more). */
#define NKV_CPU_BLOCK_ROWS 256u

/* ---- cpu_scratch.c ---- */
int nkv_cpu_scratch_open(struct nkv_cpu *cpu);
void nkv_cpu_scratch_close(struct nkv_cpu *cpu);
/* Makes the scratch for lists fit commands with a window of so many bytes. State after a failure: unchanged. */
int nkv_cpu_window_reserve(struct nkv_cpu *cpu, uint64_t bytes);

/* ---- cpu_check.c: operands of a command. Every failure leaves a message. ---- */

/* Op, flags, reserved fields, and that fields the op does not name are 0. */
int nkv_cpu_check_fields(const struct nkv_cmd *cmd);
/* The command's sequence, and that its layer exists where the op names one. */
int nkv_cpu_check_seq(const struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq **seq_out);
/* bytes at offset of the window. */
int nkv_cpu_check_operand(const struct nkv_cpu *cpu, const char *what, uint64_t offset, uint64_t bytes,
                          void *operand_out /* void ** */);
/* What is written at out must not overlap what is read at in. */
int nkv_cpu_check_disjoint(uint64_t out, uint64_t out_bytes, uint64_t in, uint64_t in_bytes);
/* Units of a command: 1, or with NKV_PER_HEAD the KV heads. */
uint32_t nkv_cpu_units(const struct nkv_cpu *cpu, const struct nkv_cmd *cmd);
/* lists(cap) at list_offset into scratch; ids are not checked. */
int nkv_cpu_take_lists(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, uint32_t cap, struct nkv_cpu_lists *lists_out);
/* That the layer holds every id. ascending: and that they ascend without repeats. */
int nkv_cpu_check_ids(const struct nkv_cpu *cpu, const struct nkv_kv_seq *seq, uint32_t layer,
                      const struct nkv_cpu_lists *lists, bool ascending);
/* a * b, saturating. */
uint64_t nkv_cpu_times(uint64_t a, uint64_t b);

/* ---- the ops. returns: the completion's res. ---- */
int nkv_cpu_append(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq);
int nkv_cpu_select(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq);
int nkv_cpu_attend(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq);
int nkv_cpu_read(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq);
int nkv_cpu_write(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq);

/* ---- cpu_named.c: the same for published sequences. ---- */
int nkv_cpu_seq_attach(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, uint64_t key);
int nkv_cpu_seq_fork_named(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, uint64_t key);
int nkv_cpu_seq_publish(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, uint64_t key);
int nkv_cpu_seq_list(struct nkv_cpu *cpu, const struct nkv_cmd *cmd);
/* READ and WRITE with NKV_TOKENS. */
int nkv_cpu_tokens(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq);

/* Runs tasks on the team, or here when they touch few bytes. Same results either way. */
void nkv_cpu_tasks(struct nkv_cpu *cpu, uint64_t bytes, uint32_t n_tasks, nkv_task_fn fn, void *arg);

/* ---- memory_spec.c ---- */

#define NKV_MEMORY_PATH_BYTES 4096u
/* Parses struct nkv_device_config.memory; options_out names path_out. returns: 0, NKV_EINVAL. */
int nkv_memory_parse(const char *memory, struct nkv_image_options *options_out, char path_out[NKV_MEMORY_PATH_BYTES]);

/* ---- cpu_bind.c ---- */

/*
 * Finds where threads and memory belong. node < 0: none was asked for: on a machine with one NUMA node NULL, else
 * memory is interleaved. n_cpus_out: CPUs beside the memory.
 * returns: 0, NKV_EINVAL: no such node, NKV_ENOMEM.
 */
int nkv_cpu_binding_open(int node, struct nkv_cpu_binding **binding_out, uint32_t *n_cpus_out);
void nkv_cpu_binding_close(struct nkv_cpu_binding *binding);
/*
 * Hints: where the system refuses, everything works, slower. Binds the calling thread, rank of n_threads; without a
 * binding (NULL) to a CPU of its own if there is one for each of n_threads, else not at all. before_out (may be NULL):
 * what undoes the latter.
 */
void nkv_cpu_bind_thread(const struct nkv_cpu_binding *binding, uint32_t rank, uint32_t n_threads,
                         struct nkv_affinity *before_out);
/* NULL is allowed. */
void nkv_cpu_bind_memory(const struct nkv_cpu_binding *binding, void *base, size_t bytes);
/* Bytes that this process could still use: free memory of the system and of its cgroups. */
uint64_t nkv_cpu_available_bytes(void);

#endif
