/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU device of this process: cores beside memory. A leader thread takes commands from a ring in order and runs
 * each one on a team of which it is rank 0 (cpu_core.c); the store's pages and digests are only ever touched from
 * there. The client thread writes operands, submits, and sleeps until it is woken.
 *
 * Running commands on the client's own thread was rejected: it could not lay out the next layer while the device
 * attends, and a device beside other memory wants its threads there.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "device/backend.h"
#include "device/cpu.h"
#include "device/cpu_queue.h"

struct cpu_device {
    struct nkv_device device; /* first */
    struct nkv_cpu core;
    char name[64];
    struct nkv_region window;
    uint64_t window_bytes;
    struct nkv_cpu_queue *queue;
    pthread_t leader;
};

static struct cpu_device *cpu_of(struct nkv_device *device)
{
    return (struct cpu_device *)(void *)device;
}

static void *leader_main(void *arg)
{
    struct cpu_device *cpu = arg;
    struct nkv_cmd cmd;

    nkv_cpu_bind_thread(cpu->core.binding, 0, cpu->core.n_threads, NULL);
    while (nkv_cpu_queue_next(cpu->queue, &cmd)) {
        struct nkv_cqe cqe = nkv_cpu_run(&cpu->core, 0, cpu->window.base, cpu->window_bytes, &cmd);

        nkv_cpu_queue_complete(cpu->queue, &cqe, nkv_last_error());
    }
    return NULL;
}

static int cpu_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    struct cpu_device *cpu = cpu_of(device);

    *caps_out = (struct nkv_device_caps){.size = sizeof *caps_out,
                                         .capacity_bytes = cpu->core.capacity_bytes,
                                         .n_threads = cpu->core.n_threads,
                                         .shape = cpu->core.shape};
    memcpy(caps_out->name, cpu->name, sizeof caps_out->name);
    return 0;
}

static int cpu_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    struct cpu_device *cpu = cpu_of(device);
    struct nkv_region window;

    if (nkv_cpu_queue_in_flight(cpu->queue))
        FAIL(NKV_ESTATE, "the window cannot grow while %u commands are in flight: reap them first",
             nkv_cpu_queue_in_flight(cpu->queue));
    TRY(nkv_cpu_window_reserve(&cpu->core, bytes));
    TRY(nkv_region_open(nkv_align64(bytes), &window));
    nkv_region_close(&cpu->window);
    cpu->window = window;
    cpu->window_bytes = nkv_align64(bytes);
    nkv_cpu_bind_memory(cpu->core.binding, window.base, window.bytes);
    *window_out = window.base;
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
    *stat_out = nkv_cpu_read_stat(&cpu_of(device)->core);
    return 0;
}

/* Frees what is there; the leader has ended or never began. */
static void free_parts(struct cpu_device *cpu)
{
    nkv_cpu_core_close(&cpu->core);
    nkv_region_close(&cpu->window);
    nkv_free(cpu->queue);
    nkv_free(cpu);
}

static void cpu_close(struct nkv_device *device)
{
    struct cpu_device *cpu = cpu_of(device);

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

static int parse_spec(const char *args, struct nkv_cpu_config *config)
{
    struct nkv_option option;
    uint64_t node = 0, n_threads = 0;
    int more;

    while ((more = nkv_option_next(&args, &option)) > 0) {
        if (nkv_option_is(&option, "threads")) {
            TRY(nkv_option_number(&option, false, 1024, &n_threads));
            config->n_threads = (uint32_t)n_threads;
        } else if (nkv_option_is(&option, "capacity")) {
            TRY(nkv_option_number(&option, true, UINT64_MAX, &config->capacity_bytes));
        } else if (nkv_option_is(&option, "node")) {
            TRY(nkv_option_number(&option, false, 65535, &node));
            config->node = (int)node;
        } else {
            return nkv_option_unknown(&option, "threads, capacity, node");
        }
    }
    return more;
}

/* The memory may hold sequences of a process that is gone, or of a device process's clients. */
static void forget_clients(struct nkv_cpu *core)
{
    uint32_t numbers[NKV_STORE_CLIENTS], n = nkv_store_client_numbers(core->store, numbers);

    for (uint32_t i = 0; i < n; i++)
        nkv_store_client_remove(core->store, numbers[i]);
    nkv_store_close_strangers(core->store);
    nkv_cpu_publish(core);
}

static int open_parts(struct cpu_device *cpu, const struct nkv_cpu_config *config)
{
    TRY(nkv_alloc(1, sizeof *cpu->queue, &cpu->queue));
    TRY(nkv_cpu_core_open(&cpu->core, config));
    forget_clients(&cpu->core);
    if (pthread_create(&cpu->leader, NULL, leader_main, cpu))
        FAIL(NKV_ENOMEM, "cannot start the device's leader thread");
    return 0;
}

int nkv_cpu_open(const char *args, const struct nkv_device_config *config, struct nkv_device **device_out)
{
    struct nkv_cpu_config core = {.shape = config->shape,
                                  .capacity_bytes = config->capacity_bytes,
                                  .n_threads = config->n_threads,
                                  .node = -1,
                                  .memory = config->memory};
    struct cpu_device *cpu;
    int status;

    TRY(parse_spec(args, &core));
    TRY(nkv_alloc(1, sizeof *cpu, &cpu));
    cpu->device.ops = &cpu_ops;
    snprintf(cpu->name, sizeof cpu->name, "%s", config->name ? config->name : "cpu");
    status = open_parts(cpu, &core);
    if (status < 0) {
        free_parts(cpu);
        return status;
    }
    *device_out = &cpu->device;
    return 0;
}
