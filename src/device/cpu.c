/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU device: cores beside memory. A leader thread takes commands from a ring in order and runs each one on a team
 * of which it is rank 0; the store's pages and digests are only ever touched from there, so the data need no
 * locks. The client thread writes operands, submits, and sleeps until it is woken.
 *
 * Commands run one after the other, each in parallel inside. Running several at once was rejected: a command of
 * a batch is long enough to fill the team (what is not runs on the leader alone), and memory bandwidth, which
 * is what they need, is shared anyway.
 */
#include "device/cpu.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "device/backend.h"

static struct nkv_cpu *cpu_of(struct nkv_device *device)
{
    return (struct nkv_cpu *)(void *)device;
}

static int run(struct nkv_cpu *cpu, const struct nkv_cmd *cmd)
{
    struct nkv_kv_seq *seq = NULL;

    TRY(nkv_cpu_check_fields(cmd));
    switch (cmd->op) {
    case NKV_OP_COMPUTE:
        return 0;
    case NKV_OP_SEQ_OPEN:
        return nkv_store_seq_open(cpu->store, cmd->seq, cmd->n_tokens, cmd->flags);
    case NKV_OP_SEQ_CLOSE:
        return nkv_store_seq_close(cpu->store, cmd->seq);
    case NKV_OP_SEQ_FORK:
        return nkv_store_seq_fork(cpu->store, cmd->seq, cmd->arg, cmd->pos, cmd->n_tokens);
    case NKV_OP_SEQ_TRUNCATE:
        return nkv_store_seq_truncate(cpu->store, cmd->seq, cmd->pos);
    default:
        break;
    }
    TRY(nkv_cpu_check_seq(cpu, cmd, &seq));
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

void nkv_cpu_tasks(struct nkv_cpu *cpu, uint64_t bytes, uint32_t n_tasks, nkv_task_fn fn, void *arg)
{
    if (bytes >= NKV_CPU_SERIAL_BYTES) {
        nkv_team_tasks(cpu->team, n_tasks, fn, arg);
        return;
    }
    for (uint32_t task = 0; task < n_tasks; task++)
        fn(arg, task, 0);
}

static void publish(struct nkv_cpu *cpu)
{
    struct nkv_device_stat stat;
    struct nkv_cpu_stat *out = &cpu->stat;

    nkv_store_stat(cpu->store, &stat);
    atomic_store_explicit(&out->used_bytes, stat.used_bytes, memory_order_relaxed);
    atomic_store_explicit(&out->resident_bytes, stat.resident_bytes, memory_order_relaxed);
    atomic_store_explicit(&out->n_sequences, stat.n_sequences, memory_order_relaxed);
    atomic_store_explicit(&out->n_free_pages, stat.n_free_pages, memory_order_relaxed);
}

static void *leader_main(void *arg)
{
    struct nkv_cpu *cpu = arg;
    struct nkv_cmd cmd;

    nkv_cpu_bind_thread(cpu->binding, 0, cpu->n_threads);
    while (nkv_cpu_queue_next(cpu->queue, &cmd)) {
        struct nkv_cqe cqe = {.user_data = cmd.user_data, .start_ns = nkv_now_ns()};

        cqe.res = run(cpu, &cmd);
        cqe.end_ns = nkv_now_ns();
        publish(cpu);
        atomic_fetch_add_explicit(&cpu->stat.busy_ns, cqe.end_ns - cqe.start_ns, memory_order_relaxed);
        atomic_fetch_add_explicit(&cpu->stat.n_commands, 1, memory_order_relaxed);
        nkv_cpu_queue_complete(cpu->queue, &cqe, nkv_last_error());
    }
    return NULL;
}

static int cpu_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    struct nkv_cpu *cpu = cpu_of(device);

    *caps_out = (struct nkv_device_caps){.size = sizeof *caps_out,
                                         .capacity_bytes = cpu->capacity_bytes,
                                         .n_threads = cpu->n_threads,
                                         .shape = cpu->shape};
    memcpy(caps_out->name, cpu->name, sizeof caps_out->name);
    return 0;
}

static int cpu_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    struct nkv_cpu *cpu = cpu_of(device);

    if (nkv_cpu_queue_in_flight(cpu->queue))
        FAIL(NKV_ESTATE, "the window cannot grow while %u commands are in flight: reap them first",
             nkv_cpu_queue_in_flight(cpu->queue));
    TRY(nkv_cpu_window_map(cpu, bytes));
    nkv_cpu_bind_memory(cpu->binding, cpu->window_memory.base, cpu->window_memory.bytes);
    *window_out = cpu->window;
    return 0;
}

static int cpu_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    return nkv_cpu_queue_submit(cpu_of(device)->queue, cmds, n);
}

static int cpu_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    return nkv_cpu_queue_reap(cpu_of(device)->queue, cqes_out, max_n, min_n);
}

static int cpu_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    struct nkv_cpu *cpu = cpu_of(device);

    *stat_out = (struct nkv_device_stat){
        .size = sizeof *stat_out,
        .used_bytes = atomic_load_explicit(&cpu->stat.used_bytes, memory_order_relaxed),
        .resident_bytes = atomic_load_explicit(&cpu->stat.resident_bytes, memory_order_relaxed),
        .busy_ns = atomic_load_explicit(&cpu->stat.busy_ns, memory_order_relaxed),
        .n_commands = atomic_load_explicit(&cpu->stat.n_commands, memory_order_relaxed),
        .n_sequences = atomic_load_explicit(&cpu->stat.n_sequences, memory_order_relaxed),
        .n_free_pages = atomic_load_explicit(&cpu->stat.n_free_pages, memory_order_relaxed),
        .n_total_pages = nkv_store_total_pages(cpu->store),
    };
    return 0;
}

/* Frees what is there; the leader has ended or never began. */
static void free_parts(struct nkv_cpu *cpu)
{
    nkv_team_close(cpu->team);
    nkv_cpu_scratch_close(cpu);
    nkv_store_close(cpu->store);
    nkv_cpu_binding_close(cpu->binding);
    nkv_free(cpu->queue);
    nkv_free(cpu);
}

static void cpu_close(struct nkv_device *device)
{
    struct nkv_cpu *cpu = cpu_of(device);

    nkv_cpu_queue_stop(cpu->queue);
    pthread_join(cpu->leader, NULL);
    free_parts(cpu);
}

static const struct nkv_device_ops cpu_ops = {
    .abi = NKV_DEVICE_ABI,
    .backend = "cpu",
    .caps = cpu_caps,
    .map = cpu_map,
    .submit = cpu_submit,
    .reap = cpu_reap,
    .stat = cpu_stat,
    .close = cpu_close,
};

struct spec {
    uint64_t threads, capacity;
    int node;
};

static int parse_spec(const char *args, const struct nkv_device_config *config, struct spec *spec_out)
{
    struct spec spec = {config->n_threads, config->capacity_bytes, -1};
    struct nkv_option option;
    uint64_t node = 0;
    int more;

    while ((more = nkv_option_next(&args, &option)) > 0) {
        if (nkv_option_is(&option, "threads")) {
            TRY(nkv_option_number(&option, false, 1024, &spec.threads));
        } else if (nkv_option_is(&option, "capacity")) {
            TRY(nkv_option_number(&option, true, UINT64_MAX, &spec.capacity));
        } else if (nkv_option_is(&option, "node")) {
            TRY(nkv_option_number(&option, false, 65535, &node));
            spec.node = (int)node;
        } else {
            return nkv_option_unknown(&option, "threads, capacity, node");
        }
    }
    TRY(more);
    *spec_out = spec;
    return 0;
}

static void bind_worker(void *arg, uint32_t rank)
{
    const struct nkv_cpu *cpu = arg;

    nkv_cpu_bind_thread(cpu->binding, rank, cpu->n_threads);
}

static int open_parts(struct nkv_cpu *cpu, const struct spec *spec)
{
    uint32_t n_cpus = 1;
    void *memory;
    size_t bytes;

    TRY(nkv_cpu_binding_open(spec->node, &cpu->binding, &n_cpus));
    cpu->n_threads = spec->threads ? (uint32_t)spec->threads : n_cpus;
    cpu->capacity_bytes = spec->capacity ? spec->capacity : nkv_cpu_available_bytes() / 5 * 4;
    TRY(nkv_store_open(&cpu->shape, cpu->capacity_bytes, &cpu->store));
    nkv_store_memory(cpu->store, &memory, &bytes);
    nkv_cpu_bind_memory(cpu->binding, memory, bytes);
    TRY(nkv_cpu_scratch_open(cpu));
    TRY(nkv_alloc(1, sizeof *cpu->queue, &cpu->queue));
    TRY(nkv_team_open(cpu->n_threads, bind_worker, cpu, &cpu->team));
    publish(cpu);
    if (pthread_create(&cpu->leader, NULL, leader_main, cpu))
        FAIL(NKV_ENOMEM, "cannot start the device's leader thread");
    return 0;
}

int nkv_cpu_open(const char *args, const struct nkv_device_config *config, struct nkv_device **device_out)
{
    const struct nkv_kv_shape *shape = &config->shape;
    struct nkv_cpu *cpu;
    struct spec spec = {0};
    int status;

    TRY(parse_spec(args, config, &spec));
    TRY(nkv_alloc(1, sizeof *cpu, &cpu));
    cpu->device.ops = &cpu_ops;
    cpu->shape = *shape;
    cpu->group = shape->n_heads / shape->n_kv_heads;
    cpu->scale = shape->scale > 0 ? shape->scale : 1.0f / sqrtf((float)shape->head_dim);
    snprintf(cpu->name, sizeof cpu->name, "%s", config->name ? config->name : "cpu");
    status = open_parts(cpu, &spec);
    if (status < 0) {
        free_parts(cpu);
        return status;
    }
    *device_out = &cpu->device;
    return 0;
}
