/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A simulated device behind nearkv/device.h: timing only. A command is given its times when it is submitted
 * (sim/world.h); its results (page lists, counts) are written at once, where the runtime finds them when it has waited
 * for the completion.
 *
 * There is no data: the window holds page lists, and what else the host writes is ignored; pages are not copied (`copy`
 * does nothing), keys and values are never read. A sequence opens with the tokens that the simulation starts from; from
 * there on its layers grow, fork and are cut back as on a real device (sim/seqs.h), which takes no time.
 *
 * Queries are charged to the link once: a command whose q the device has from the one before finds it in its buffer.
 */
#include <stdio.h>
#include <string.h>

#include "sim/cluster.h"
#include "sim/seqs.h"

#define QUEUE_ENTRIES 1024u

struct entry {
    struct nkv_cqe cqe;
    struct sim_moment end;
    bool kernel; /* a part of the GPUs' scoring kernel, which ends as a whole */
};

struct sim_device {
    struct nkv_device device; /* first */
    struct sim_cluster *cluster;
    struct sim_device_options options;
    struct sim_pnm pnm;
    struct nkv_region window;
    struct sim_seqs seqs;
    uint64_t n_commands;
    uint32_t n_entries;
    struct entry entries[QUEUE_ENTRIES];   /* submitted, not reaped; in the order of submission */
    struct sim_moment done[QUEUE_ENTRIES]; /* on the device, by number modulo QUEUE_ENTRIES, for `after` */
};

static struct sim_device *sim_of(struct nkv_device *device)
{
    return (struct sim_device *)(void *)device;
}

/* ---- Commands. Each returns its result and sets when it is done on the device and when the host knows. ---- */

struct run {
    struct sim_device *d;
    const struct nkv_cmd *cmd;
    struct sim_seq *seq;
    struct sim_moment submitted, ready; /* ready: what it needs is done, its operands are there */
    struct sim_moment done, known;      /* on the device, and by the host */
    double up_bytes;                    /* to the host, behind done */
    bool up, recall;
};

/* Sequences of a batch are counted on both kinds of devices, so that a mirror has its sequence's scores. */
static void count_seq(struct sim_device *d, struct sim_seq *seq)
{
    seq->ordinal = d->cluster->n_opened[d->options.kind];
    d->cluster->n_opened[d->options.kind] += !(seq->flags & NKV_SLOTS);
}

static int run_open(struct sim_device *d, const struct nkv_cmd *cmd)
{
    uint32_t kept = d->options.kept_tokens < cmd->n_tokens ? d->options.kept_tokens : cmd->n_tokens;
    struct sim_seq *seq;

    if (cmd->flags & (NKV_SLOTS | NKV_NO_PAGES))
        kept = 0;
    TRY(sim_seqs_add(&d->seqs, cmd, kept, &seq));
    count_seq(d, seq);
    return (int)kept;
}

static int run_fork(struct sim_device *d, const struct nkv_cmd *cmd)
{
    struct sim_seq *seq;

    TRY(sim_seqs_fork(&d->seqs, cmd, &seq));
    count_seq(d, seq);
    return 0;
}

static bool on_pnm(const struct run *run)
{
    return run->d->options.kind == SIM_KIND_PNM;
}

/* Brings q to the device, unless it is there. */
static void bring_q(struct run *run, double more_bytes)
{
    struct sim_cluster *c = run->d->cluster;
    const struct nkv_cmd *cmd = run->cmd;
    struct sim_seq *seq = run->seq;
    bool there = seq->q_offset == cmd->in_offset && seq->q_pos == cmd->pos && seq->q_layer == cmd->layer;
    double bytes = more_bytes + (there ? 0 : sim_bytes_q(&c->shape, c->values, cmd->n_tokens));

    if (!on_pnm(run))
        return;
    seq->q_offset = cmd->in_offset;
    seq->q_pos = cmd->pos;
    seq->q_layer = cmd->layer;
    run->ready = sim_later(run->ready, sim_pnm_down(c, &run->d->pnm, run->submitted, bytes));
}

/* What the command's result sends to the host. */
static void send_up(struct run *run, double bytes, bool recall)
{
    run->up = true;
    run->up_bytes = bytes;
    run->recall = recall;
}

static int run_append(struct run *run)
{
    struct sim_cluster *c = run->d->cluster;
    const struct nkv_cmd *cmd = run->cmd;
    struct sim_cost cost = sim_cost_append(&c->shape, cmd->n_tokens);

    TRY(sim_seq_extend(run->seq, cmd->layer, cmd->pos, cmd->n_tokens));
    run->seq->q_offset = UINT64_MAX; /* a new layer or step */
    if (on_pnm(run)) {
        struct sim_moment there =
            sim_pnm_down(c, &run->d->pnm, run->submitted, sim_bytes_kv(&c->shape, c->values, cmd->n_tokens));

        run->done = sim_pnm_append(c, &run->d->pnm, sim_later(run->ready, there), &cost);
    } else {
        c->charge.gpu_bytes += cost.bytes; /* a part of the FC kernels that made k and v */
    }
    run->known = run->done;
    return 0;
}

static uint32_t n_units(const struct run *run)
{
    return run->cmd->flags & NKV_PER_HEAD ? run->d->cluster->shape.n_kv_heads : 1;
}

static const uint32_t *list_at(const struct run *run, uint32_t unit)
{
    const uint8_t *lists = (const uint8_t *)run->d->window.base + run->cmd->list_offset;

    return (const uint32_t *)(const void *)(lists + unit * nkv_list_stride(run->cmd->n_pages));
}

static double n_listed(const struct run *run)
{
    double n = 0;

    for (uint32_t unit = 0; unit < n_units(run); unit++)
        n += list_at(run, unit)[0];
    return n;
}

/* Lists that the host reads: Steady-Select's, of what it found. */
static double steady_list_bytes(const struct run *run, const uint8_t *out)
{
    const struct nkv_cmd *cmd = run->cmd;
    struct nkv_select_layout at = nkv_select_layout(n_units(run), cmd->n_pages, cmd->arg, 0);
    double bytes = 0;

    for (uint32_t unit = 0; unit < n_units(run); unit++) {
        const uint32_t *steady = (const uint32_t *)(const void *)(out + at.steady + unit * nkv_list_stride(cmd->arg));
        const uint32_t *recall = (const uint32_t *)(const void *)(out + at.recall + unit * nkv_list_stride(cmd->arg));

        bytes += 4.0 * (steady[0] + 3) + 8.0 * recall[0];
    }
    return bytes;
}

static int run_select(struct run *run)
{
    struct sim_device *d = run->d;
    struct sim_cluster *c = d->cluster;
    const struct nkv_cmd *cmd = run->cmd;
    bool steady = cmd->flags & NKV_STEADY;
    uint8_t *out = (uint8_t *)d->window.base + cmd->out_offset;
    const uint8_t *resident = steady ? (const uint8_t *)d->window.base + cmd->list_offset : NULL;
    double n_scored = 0;
    struct sim_cost cost;
    int n;

    if (cmd->flags & NKV_CANDIDATES)
        FAIL(NKV_ENOTSUP, "candidates of a sequence that lies on several devices (cp) are not simulated");
    TRY(sim_seq_check(run->seq, cmd->layer, cmd->pos, cmd->n_tokens));
    n = sim_pick_select(c->pick, cmd, run->seq->ordinal, resident, out, &n_scored);
    TRY(n);
    cost = sim_cost_score(&c->shape, cmd->n_tokens, n_scored, c->values->pnm.score_flops);
    bring_q(run, steady ? 4.0 * n_units(run) * (cmd->arg + 1) : 0);
    if (!on_pnm(run)) {
        run->done = run->known = sim_gpu_score(c, run->ready, cmd, &cost);
        return n;
    }
    c->charge.n_sorts += n_units(run);
    run->done = run->known = sim_pnm_score(c, &d->pnm, run->ready, &cost, n_scored * n_units(run));
    if (steady)
        send_up(run, steady_list_bytes(run, out), false);
    return n;
}

/* Tokens that a query token attends to, mean over units. */
static double n_attended(const struct run *run)
{
    const struct nkv_cmd *cmd = run->cmd;
    uint32_t page_tokens = run->d->cluster->shape.page_tokens, n_held = cmd->pos + cmd->n_tokens;
    double n = 0;

    if (cmd->flags & NKV_ALL_PAGES)
        return n_held;
    for (uint32_t unit = 0; unit < n_units(run); unit++) {
        const uint32_t *list = list_at(run, unit);
        bool open = !(run->seq->flags & NKV_SLOTS) && list[0] && list[list[0]] == (n_held - 1) / page_tokens;

        n += (double)list[0] * page_tokens - (open ? (page_tokens - n_held % page_tokens) % page_tokens : 0);
    }
    return n / n_units(run);
}

static int run_attend(struct run *run)
{
    struct sim_device *d = run->d;
    struct sim_cluster *c = d->cluster;
    double tokens = n_attended(run);
    struct sim_cost cost = sim_cost_attend(&c->shape, run->cmd->n_tokens, tokens);

    if (!(run->seq->flags & NKV_SLOTS))
        TRY(sim_seq_check(run->seq, run->cmd->layer, run->cmd->pos, run->cmd->n_tokens));
    bring_q(run, 0);
    if (!on_pnm(run)) {
        c->charge.gpu_attend_bytes += cost.bytes;
        c->charge.gpu_attend_flops += cost.flops;
        c->charge.gpu_kv_bytes += cost.bytes;
        run->done = run->known = sim_gpu_attend(c, run->ready, run->cmd, &cost);
        return (int)tokens;
    }
    run->done = sim_pnm_attend(c, &d->pnm, run->ready, &cost);
    send_up(run, sim_bytes_partials(&c->shape, c->values, run->cmd->n_tokens), false);
    return (int)tokens;
}

static int run_read(struct run *run)
{
    struct sim_cluster *c = run->d->cluster;
    double n;

    if (run->cmd->flags & NKV_DIGEST) {
        double bytes = (double)run->cmd->n_pages * c->shape.n_kv_heads * (double)nkv_digest_bytes(&c->shape);

        TRY(sim_seq_check(run->seq, run->cmd->layer, run->cmd->pos * c->shape.page_tokens,
                          run->cmd->n_pages * c->shape.page_tokens));
        send_up(run, bytes, false);
        return (int)run->cmd->n_pages;
    }
    n = n_listed(run);
    if (run->seq->ordinal < sim_pick_streams(c->pick)) {
        c->sample_sum += n / n_units(run);
        c->sample_squares += n / n_units(run) * n / n_units(run);
    }
    if (n > 0)
        send_up(run, n * (double)nkv_page_bytes(&c->shape, c->shape.n_kv_heads / n_units(run)), true);
    return (int)n;
}

/* The way was charged to READ; writing is hidden behind it. */
static int run_write(struct run *run)
{
    const struct nkv_cmd *cmd = run->cmd;
    uint32_t page_tokens = run->d->cluster->shape.page_tokens;

    if (run->seq->flags & NKV_SLOTS)
        return (int)cmd->n_pages;
    if (cmd->flags & NKV_DIGEST)
        TRY(sim_seq_extend(run->seq, cmd->layer, cmd->pos * page_tokens, cmd->n_pages * page_tokens));
    else
        TRY(sim_seq_extend(run->seq, cmd->layer, run->seq->lengths[cmd->layer], cmd->n_tokens));
    return (int)cmd->n_pages;
}

static int run_command(struct run *run)
{
    struct sim_device *d = run->d;
    const struct nkv_cmd *cmd = run->cmd;

    if (cmd->flags & (NKV_NAMED | NKV_TOKENS) || cmd->op >= NKV_OP_SEQ_PUBLISH)
        FAIL(NKV_ENOTSUP, "op %u with flags 0x%x: no sequence is published on a simulated device", cmd->op, cmd->flags);
    if (cmd->op == NKV_OP_SEQ_OPEN)
        return run_open(d, cmd);
    if (cmd->op == NKV_OP_SEQ_FORK)
        return run_fork(d, cmd);
    if (cmd->op == NKV_OP_COMPUTE) {
        run->done = run->known = sim_gpu_fc(d->cluster, run->ready, cmd);
        return 0;
    }
    TRY(sim_seqs_find(&d->seqs, cmd->seq, &run->seq));
    switch (cmd->op) {
    case NKV_OP_SEQ_CLOSE:
        sim_seqs_remove(&d->seqs, run->seq);
        return 0;
    case NKV_OP_SEQ_TRUNCATE:
        return sim_seqs_truncate(&d->seqs, run->seq, cmd->pos);
    case NKV_OP_APPEND:
        return run_append(run);
    case NKV_OP_SELECT:
        return run_select(run);
    case NKV_OP_ATTEND:
        return run_attend(run);
    case NKV_OP_READ:
        return run_read(run);
    case NKV_OP_WRITE:
        return run_write(run);
    default:
        FAIL(NKV_ENOTSUP, "op %u on a simulated device", cmd->op);
    }
}

/* ---- The interface ---- */

static int sim_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    const struct sim_device *d = sim_of(device);

    *caps_out =
        (struct nkv_device_caps){.size = sizeof *caps_out, .capacity_bytes = d->options.capacity_bytes, .n_threads = 1};
    snprintf(caps_out->name, sizeof caps_out->name, d->options.kind == SIM_KIND_PNM ? "pnm%u" : "gpu%u",
             d->options.index);
    return 0;
}

static int sim_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    struct sim_device *d = sim_of(device);
    struct nkv_region window;

    TRY(nkv_region_open_sparse(bytes, &window));
    nkv_region_close(&d->window);
    d->window = window;
    *window_out = window.base;
    return 0;
}

static int submit_one(struct sim_device *d, const struct nkv_cmd *cmd)
{
    struct sim_cluster *c = d->cluster;
    struct run run = {.d = d, .cmd = cmd, .submitted = c->world.now, .ready = c->world.now};
    struct entry *entry = &d->entries[d->n_entries++];
    int res;

    if (cmd->after && cmd->after < QUEUE_ENTRIES)
        run.ready = sim_later(run.ready, d->done[(d->n_commands - cmd->after) % QUEUE_ENTRIES]);
    run.done = run.known = run.ready;
    res = run_command(&run);
    d->done[d->n_commands++ % QUEUE_ENTRIES] = run.done;
    entry->end = run.known;
    entry->kernel = cmd->op == NKV_OP_SELECT && d->options.kind == SIM_KIND_GPU;
    entry->cqe = (struct nkv_cqe){.user_data = cmd->user_data, .res = res, .start_ns = run.ready.ns};
    if (!run.up)
        return 0;
    return sim_pnm_up(c, &(struct sim_transfer){.ready = run.done,
                                                .submit_ns = run.submitted.ns,
                                                .user_data = cmd->user_data,
                                                .bytes = run.up_bytes,
                                                .pnm = &d->pnm,
                                                .end = &entry->end,
                                                .recall = run.recall,
                                                .gather = run.recall && cmd->after == 0});
}

static int sim_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    struct sim_device *d = sim_of(device);

    if (n > QUEUE_ENTRIES - d->n_entries)
        FAIL(NKV_ENOSPC, "%u commands for %u free entries of the queue", n, QUEUE_ENTRIES - d->n_entries);
    for (uint32_t i = 0; i < n; i++)
        TRY(submit_one(d, &cmds[i]));
    return 0;
}

/* Scores of a batch are known when its kernel ends. */
static void end_kernels(struct sim_device *d)
{
    struct sim_moment last = {0, SIM_NO_CAUSE};

    for (uint32_t i = 0; i < d->n_entries; i++)
        if (d->entries[i].kernel)
            last = sim_later(last, d->entries[i].end);
    for (uint32_t i = 0; i < d->n_entries; i++)
        if (d->entries[i].kernel) {
            d->entries[i].end = last;
            d->entries[i].kernel = false;
        }
}

/* The entry that is known first; of equal ones the one submitted first. */
static uint32_t first_entry(const struct sim_device *d)
{
    uint32_t first = 0;

    for (uint32_t i = 1; i < d->n_entries; i++)
        if (d->entries[i].end.ns < d->entries[first].end.ns)
            first = i;
    return first;
}

static int sim_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    struct sim_device *d = sim_of(device);
    uint32_t n = 0;

    if (min_n > max_n || min_n > d->n_entries)
        FAIL(NKV_EINVAL, "cannot wait for %u completions: %u commands are in flight", min_n, d->n_entries);
    sim_pnm_serve_up(d->cluster);
    end_kernels(d);
    while (n < max_n && d->n_entries > 0) {
        uint32_t at = first_entry(d);

        if (n >= min_n && d->entries[at].end.ns > d->cluster->world.now.ns)
            break;
        sim_world_advance(&d->cluster->world, d->entries[at].end);
        cqes_out[n] = d->entries[at].cqe;
        cqes_out[n++].end_ns = d->entries[at].end.ns;
        d->n_entries--;
        memmove(&d->entries[at], &d->entries[at + 1], (d->n_entries - at) * sizeof d->entries[at]);
    }
    return (int)n;
}

static int sim_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    const struct sim_device *d = sim_of(device);

    *stat_out = (struct nkv_device_stat){.size = sizeof *stat_out,
                                         .used_bytes = d->seqs.used_bytes,
                                         .n_commands = d->n_commands,
                                         .n_sequences = d->seqs.n_open};
    return 0;
}

static int sim_copy(struct nkv_device *device, uint64_t offset, const void *from, uint64_t bytes)
{
    (void)device;
    (void)offset;
    (void)from;
    (void)bytes;
    return 0;
}

static void sim_close(struct nkv_device *device)
{
    struct sim_device *d = sim_of(device);

    nkv_region_close(&d->window);
    sim_seqs_free(&d->seqs);
    nkv_free(d);
}

static const struct nkv_device_ops sim_ops = {
    .abi = NKV_DEVICE_ABI,
    .backend = "sim",
    .caps = sim_caps,
    .map = sim_map,
    .submit = sim_submit,
    .reap = sim_reap,
    .stat = sim_stat,
    .close = sim_close,
    .copy = sim_copy,
};

int sim_device_open(struct sim_cluster *cluster, const struct sim_device_options *options,
                    struct nkv_device **device_out)
{
    struct sim_device *d;
    int status;

    TRY(nkv_alloc(1, sizeof *d, &d));
    d->device.ops = &sim_ops;
    d->cluster = cluster;
    d->options = *options;
    status = sim_seqs_init(&cluster->shape, options->capacity_bytes, options->max_sequences, &d->seqs);
    if (status < 0) {
        nkv_free(d);
        return status;
    }
    if (options->kind == SIM_KIND_PNM)
        d->pnm = sim_pnm_add(cluster, options->index);
    *device_out = &d->device;
    return 0;
}
