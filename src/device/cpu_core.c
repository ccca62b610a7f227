/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core of the CPU device: a store, a team, and one function that runs a command. Who calls it decides where
 * commands come from: a ring in this process (cpu.c) or the rings of other processes (serve.c). A command comes with
 * its client's number and window, so the core keeps no state of a client but its sequences, whose keys hold the number.
 * One caller thread touches all of it, so the data need no locks.
 *
 * Commands run one after the other, each in parallel inside. Running several at once was rejected: a command of
 * a batch is long enough to fill the team (what is not runs on the leader alone), and memory bandwidth, which
 * is what they need, is shared anyway.
 */
#include <math.h>

#include "base/clock.h"
#include "device/cpu.h"

/* Commands that open, close and change whole sequences. */
static int run_control(struct nkv_cpu *cpu, const struct nkv_cmd *cmd)
{
    uint64_t key = nkv_seq_key(cpu->owner, cmd->seq);
    bool named = cmd->flags & NKV_NAMED;

    switch (cmd->op) {
    case NKV_OP_SEQ_OPEN:
        return named ? nkv_cpu_seq_attach(cpu, cmd, key)
                     : nkv_store_seq_open(cpu->store, key, cmd->n_tokens, cmd->flags);
    case NKV_OP_SEQ_CLOSE:
        return named ? nkv_store_remove(cpu->store, key) : nkv_store_seq_close(cpu->store, key);
    case NKV_OP_SEQ_FORK:
        return named ? nkv_cpu_seq_fork_named(cpu, cmd, key)
                     : nkv_store_seq_fork(cpu->store, key, nkv_seq_key(cpu->owner, cmd->arg), cmd->pos, cmd->n_tokens);
    case NKV_OP_SEQ_TRUNCATE:
        return nkv_store_seq_truncate(cpu->store, key, cmd->pos);
    case NKV_OP_SEQ_PUBLISH:
        return nkv_cpu_seq_publish(cpu, cmd, key);
    case NKV_OP_SEQ_LIST:
        return nkv_cpu_seq_list(cpu, cmd);
    default:
        return 0; /* COMPUTE */
    }
}

static int run_data(struct nkv_cpu *cpu, const struct nkv_cmd *cmd)
{
    struct nkv_kv_seq *seq = NULL;

    TRY(nkv_cpu_check_seq(cpu, cmd, &seq));
    if (cmd->flags & NKV_TOKENS)
        return nkv_cpu_tokens(cpu, cmd, seq);
    switch (cmd->op) {
    case NKV_OP_APPEND:
        return nkv_cpu_append(cpu, cmd, seq);
    case NKV_OP_SELECT:
        return nkv_cpu_select(cpu, cmd, seq);
    case NKV_OP_ATTEND:
        return nkv_cpu_attend(cpu, cmd, seq);
    case NKV_OP_READ:
        return nkv_cpu_read(cpu, cmd, seq);
    default:
        return nkv_cpu_write(cpu, cmd, seq);
    }
}

static int run(struct nkv_cpu *cpu, const struct nkv_cmd *cmd)
{
    TRY(nkv_cpu_check_fields(cmd));
    if (cmd->op >= NKV_OP_APPEND && cmd->op <= NKV_OP_WRITE)
        return run_data(cpu, cmd);
    return run_control(cpu, cmd);
}

void nkv_cpu_tasks(struct nkv_cpu *cpu, uint64_t bytes, uint32_t n_tasks, nkv_task_fn fn, void *arg)
{
    if (bytes >= NKV_CPU_SERIAL_BYTES) {
        nkv_team_tasks(cpu->team, n_tasks, fn, arg);
        return;
    }
    for (uint32_t task = 0; task < n_tasks; task++)
        fn(arg, task, 0);
}

void nkv_cpu_publish(struct nkv_cpu *cpu)
{
    struct nkv_device_stat stat;
    struct nkv_cpu_stat *out = &cpu->stat;

    nkv_store_stat(cpu->store, &stat);
    atomic_store_explicit(&out->used_bytes, stat.used_bytes, memory_order_relaxed);
    atomic_store_explicit(&out->resident_bytes, stat.resident_bytes, memory_order_relaxed);
    atomic_store_explicit(&out->n_sequences, stat.n_sequences, memory_order_relaxed);
    atomic_store_explicit(&out->n_free_pages, stat.n_free_pages, memory_order_relaxed);
}

static void count(struct nkv_cpu *cpu, const struct nkv_cqe *cqe)
{
    struct nkv_cpu_stat *out = &cpu->stat;

    atomic_fetch_add_explicit(&out->busy_ns, cqe->end_ns - cqe->start_ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&out->n_commands, 1, memory_order_relaxed);
    if (cqe->res < 0)
        cpu->read_bytes = cpu->written_bytes = 0;
    atomic_fetch_add_explicit(&out->read_bytes, cpu->read_bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&out->written_bytes, cpu->written_bytes, memory_order_relaxed);
}

struct nkv_cqe nkv_cpu_run(struct nkv_cpu *cpu, uint32_t owner, void *window, uint64_t window_bytes,
                           const struct nkv_cmd *cmd)
{
    struct nkv_cqe cqe = {.user_data = cmd->user_data, .start_ns = nkv_now_ns()};

    cpu->owner = owner;
    cpu->window = window;
    cpu->window_bytes = window_bytes;
    cpu->read_bytes = cpu->written_bytes = 0;
    cqe.res = run(cpu, cmd);
    cqe.end_ns = nkv_now_ns();
    nkv_cpu_publish(cpu);
    count(cpu, &cqe);
    return cqe;
}

struct nkv_device_stat nkv_cpu_read_stat(const struct nkv_cpu *cpu)
{
    return (struct nkv_device_stat){
        .size = sizeof(struct nkv_device_stat),
        .used_bytes = atomic_load_explicit(&cpu->stat.used_bytes, memory_order_relaxed),
        .resident_bytes = atomic_load_explicit(&cpu->stat.resident_bytes, memory_order_relaxed),
        .busy_ns = atomic_load_explicit(&cpu->stat.busy_ns, memory_order_relaxed),
        .n_commands = atomic_load_explicit(&cpu->stat.n_commands, memory_order_relaxed),
        .n_sequences = atomic_load_explicit(&cpu->stat.n_sequences, memory_order_relaxed),
        .n_free_pages = atomic_load_explicit(&cpu->stat.n_free_pages, memory_order_relaxed),
        .n_total_pages = nkv_store_total_pages(cpu->store),
        .read_bytes = atomic_load_explicit(&cpu->stat.read_bytes, memory_order_relaxed),
        .written_bytes = atomic_load_explicit(&cpu->stat.written_bytes, memory_order_relaxed),
    };
}

static void bind_worker(void *arg, uint32_t rank)
{
    const struct nkv_cpu *cpu = arg;

    nkv_cpu_bind_thread(cpu->binding, rank, cpu->n_threads, NULL);
}

static int open_store(struct nkv_cpu *cpu, const struct nkv_cpu_config *config)
{
    uint64_t capacity = config->capacity_bytes ? config->capacity_bytes : nkv_cpu_available_bytes() / 5 * 4;
    struct nkv_image_options options;
    char path[NKV_MEMORY_PATH_BYTES];

    if (!config->memory)
        return nkv_store_open(&config->shape, capacity, &cpu->store);
    TRY(nkv_memory_parse(config->memory, &options, path));
    options.format = config->format;
    options.is_locked = config->is_locked;
    options.fd = config->memory_fd;
    return nkv_store_open_image(&config->shape, &options, &cpu->store);
}

int nkv_cpu_core_open(struct nkv_cpu *cpu, const struct nkv_cpu_config *config)
{
    const struct nkv_kv_shape *shape = &config->shape;
    uint32_t n_cpus = 1;
    void *memory;
    size_t bytes;

    cpu->shape = *shape;
    cpu->group = shape->n_heads / shape->n_kv_heads;
    cpu->scale = shape->scale > 0 ? shape->scale : 1.0f / sqrtf((float)shape->head_dim);
    TRY(nkv_cpu_binding_open(config->node, &cpu->binding, &n_cpus));
    cpu->n_threads = config->n_threads ? config->n_threads : n_cpus;
    TRY(open_store(cpu, config));
    cpu->capacity_bytes = nkv_store_capacity(cpu->store);
    nkv_store_memory(cpu->store, &memory, &bytes);
    nkv_cpu_bind_memory(cpu->binding, memory, bytes);
    TRY(nkv_cpu_scratch_open(cpu));
    TRY(nkv_team_open(cpu->n_threads, bind_worker, cpu, &cpu->team));
    nkv_cpu_publish(cpu);
    return 0;
}

void nkv_cpu_core_close(struct nkv_cpu *cpu)
{
    nkv_team_close(cpu->team);
    nkv_cpu_scratch_close(cpu);
    nkv_store_close(cpu->store);
    nkv_cpu_binding_close(cpu->binding);
}
