/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "record:FILE:DEVICE": writes what goes through DEVICE to FILE, one JSON object per line. FILE holds no ':'.
 *
 *   first line   {"schema":"nearkv.trace/1","backend":"cpu","shape":{"n_layers":..,"n_heads":..,"n_kv_heads":..,
 *                 "head_dim":..,"page_tokens":..,"dtype":"f16","digest":"minmax"},"capacity_bytes":..}
 *   submitted    {"cmd":NUMBER,"op":"select","order":.., and the fields of struct nkv_cmd that are not 0}
 *   completed    {"cqe":NUMBER,"res":..,"start_ns":..,"end_ns":..}
 *   and SELECT   "chosen":[[page,..] per unit],"device":..; with NKV_STEADY "steady":..,"recall":..,"slots":..;
 *                with NKV_SCORES "scores":[[score or null per page] per unit] (NKV_CANDIDATES: per page of "chosen")
 *
 * NUMBER counts commands from 0; `order` counts them over all recorders of the program, so that the traces of a
 * context's devices can be put in one order. Lines are in the order of submission and of reaping. What a SELECT wrote
 * is read from the window when its completion is reaped, before the client sees it.
 *
 * A trace that cannot be written (a full disk) makes the next submit or stat fail with NKV_EIO: a recording with holes
 * is worth nothing. stat writes out what is buffered, so that who asks it after the last command knows: at close nobody
 * can be told.
 */
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "device/backend.h"
#include "device/wrap.h"

struct record {
    struct nkv_wrap wrap; /* first */
    struct nkv_kv_shape shape;
    FILE *file;
    char *path;
    int error; /* errno of the first write that failed; 0: none */
};

/* Of the whole program: recorders know nothing of one another, and of the clocks only that they may be coarse. */
static atomic_uint_fast64_t n_submitted;

static struct record *record_of(struct nkv_device *device)
{
    return (struct record *)(void *)device;
}

/* Later calls change errno. */
static void note_error(struct record *record)
{
    if (ferror(record->file) && !record->error)
        record->error = errno ? errno : EIO;
}

static int check_written(const struct record *record)
{
    if (record->error)
        FAIL(NKV_EIO, "cannot write the trace '%s': %s: %s", record->path, strerror(record->error),
             record->error == ENOSPC || record->error == EDQUOT ? "free some space, or record to another file system"
                                                                : "record to another file, or not at all");
    return 0;
}

static void put_field(FILE *file, const char *name, uint64_t value)
{
    if (value)
        fprintf(file, ",\"%s\":%llu", name, (unsigned long long)value);
}

static void put_cmd(FILE *file, uint64_t number, const struct nkv_cmd *cmd)
{
    fprintf(file, "{\"cmd\":%llu,\"op\":\"%s\",\"order\":%llu", (unsigned long long)number, nkv_op_name(cmd->op),
            (unsigned long long)atomic_fetch_add(&n_submitted, 1));
    put_field(file, "sink", cmd->sink);
    put_field(file, "recent", cmd->recent);
    put_field(file, "flags", cmd->flags);
    put_field(file, "layer", cmd->layer);
    put_field(file, "user_data", cmd->user_data);
    put_field(file, "after", cmd->after);
    put_field(file, "arg", cmd->arg);
    put_field(file, "in_offset", cmd->in_offset);
    put_field(file, "out_offset", cmd->out_offset);
    put_field(file, "list_offset", cmd->list_offset);
    put_field(file, "seq", cmd->seq);
    put_field(file, "n_tokens", cmd->n_tokens);
    put_field(file, "n_pages", cmd->n_pages);
    put_field(file, "pos", cmd->pos);
    fputs("}\n", file);
}

static void put_lists(FILE *file, const char *name, const char *lists, uint32_t cap, uint32_t n_units)
{
    fprintf(file, ",\"%s\":[", name);
    for (uint32_t unit = 0; unit < n_units; unit++) {
        const uint32_t *list = (const uint32_t *)(const void *)(lists + unit * nkv_list_stride(cap));
        uint32_t n = list[0] < cap ? list[0] : cap;

        fputs(unit ? ",[" : "[", file);
        for (uint32_t i = 0; i < n; i++)
            fprintf(file, i ? ",%u" : "%u", list[1 + i]);
        fputc(']', file);
    }
    fputc(']', file);
}

static void put_scores(FILE *file, const float *scores, uint32_t n_units, uint32_t n_total)
{
    fputs(",\"scores\":[", file);
    for (uint32_t unit = 0; unit < n_units; unit++) {
        fputs(unit ? ",[" : "[", file);
        for (uint32_t page = 0; page < n_total; page++, scores++) {
            if (page)
                fputc(',', file);
            if (isfinite(*scores))
                fprintf(file, "%.9g", (double)*scores);
            else
                fputs("null", file);
        }
        fputc(']', file);
    }
    fputc(']', file);
}

static void put_selection(const struct record *record, const struct nkv_cmd *cmd)
{
    uint32_t n_units = cmd->flags & NKV_PER_HEAD ? record->shape.n_kv_heads : 1;
    uint32_t n_total =
        cmd->flags & NKV_CANDIDATES ? cmd->n_pages : (cmd->pos + (cmd->n_tokens - 1)) / record->shape.page_tokens + 1;
    struct nkv_select_layout at =
        nkv_select_layout(n_units, cmd->n_pages, cmd->arg, cmd->flags & NKV_SCORES ? n_total : 0);
    const char *out = record->wrap.window + cmd->out_offset;

    put_lists(record->file, "chosen", out + at.chosen, cmd->n_pages, n_units);
    put_lists(record->file, "device", out + at.device, cmd->n_pages, n_units);
    if (cmd->flags & NKV_STEADY) {
        put_lists(record->file, "steady", out + at.steady, cmd->arg, n_units);
        put_lists(record->file, "recall", out + at.recall, cmd->arg, n_units);
        put_lists(record->file, "slots", out + at.slots, cmd->arg, n_units);
    }
    if (cmd->flags & NKV_SCORES)
        put_scores(record->file, (const float *)(const void *)(out + at.scores), n_units, n_total);
}

static int record_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    struct record *record = record_of(device);
    uint64_t first = record->wrap.n_commands;

    TRY(check_written(record));
    TRY(nkv_wrap_stage(&record->wrap, cmds, n));
    TRY(nkv_wrap_submit_staged(&record->wrap, n));
    for (uint32_t i = 0; i < n; i++)
        put_cmd(record->file, first + i, &cmds[i]);
    note_error(record);
    return 0;
}

static int record_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    struct record *record = record_of(device);
    int n = record->wrap.inner->ops->reap(record->wrap.inner, cqes_out, max_n, min_n);

    for (int i = 0; i < n; i++) {
        const struct nkv_cmd *cmd;
        uint32_t tag;

        TRY(nkv_wrap_finish(&record->wrap, &cqes_out[i], &tag));
        cmd = &record->wrap.pending[tag];
        fprintf(record->file, "{\"cqe\":%llu,\"res\":%d,\"start_ns\":%llu,\"end_ns\":%llu",
                (unsigned long long)record->wrap.numbers[tag], cqes_out[i].res,
                (unsigned long long)cqes_out[i].start_ns, (unsigned long long)cqes_out[i].end_ns);
        if (cmd->op == NKV_OP_SELECT && cqes_out[i].res >= 0)
            put_selection(record, cmd);
        fputs("}\n", record->file);
    }
    note_error(record);
    return n;
}

static int record_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    struct record *record = record_of(device);

    (void)fflush(record->file);
    note_error(record);
    TRY(check_written(record));
    return nkv_wrap_stat(device, stat_out);
}

static void record_close(struct nkv_device *device)
{
    struct record *record = record_of(device);

    nkv_device_close(record->wrap.inner);
    fclose(record->file);
    nkv_free(record->path);
    nkv_free(record);
}

static const struct nkv_device_ops record_ops = {
    .abi = NKV_DEVICE_ABI,
    .backend = "record",
    .caps = nkv_wrap_caps,
    .map = nkv_wrap_map,
    .submit = record_submit,
    .reap = record_reap,
    .stat = record_stat,
    .close = record_close,
    .copy = nkv_wrap_copy,
};

static void put_header(FILE *file, const struct nkv_device *inner, const struct nkv_kv_shape *shape,
                       uint64_t capacity_bytes)
{
    fprintf(file,
            "{\"schema\":\"nearkv.trace/1\",\"backend\":\"%s\",\"shape\":{\"n_layers\":%u,\"n_heads\":%u,"
            "\"n_kv_heads\":%u,\"head_dim\":%u,\"page_tokens\":%u,\"dtype\":\"%s\",\"digest\":\"%s\"},\"capacity_"
            "bytes\":%llu}\n",
            inner->ops->backend, shape->n_layers, shape->n_heads, shape->n_kv_heads, shape->head_dim,
            shape->page_tokens, nkv_dtype_name(shape->dtype), nkv_digest_name(shape->digest),
            (unsigned long long)capacity_bytes);
}

static int open_file(struct record *record, const char *path)
{
    size_t bytes = strlen(path) + 1;

    TRY(nkv_alloc(bytes, 1, &record->path));
    memcpy(record->path, path, bytes);
    record->file = fopen(path, "w");
    if (!record->file)
        FAIL(NKV_EIO, "cannot create the trace file '%s': %s", path, strerror(errno));
    return 0;
}

int nkv_record_open(const char *args, const struct nkv_device_config *config, struct nkv_device *inner,
                    struct nkv_device **device_out)
{
    struct nkv_device_caps caps = {.size = sizeof caps};
    struct record *record;
    int status;

    TRY(inner->ops->caps(inner, &caps));
    TRY(nkv_alloc(1, sizeof *record, &record));
    nkv_wrap_init(&record->wrap, &record_ops, inner);
    record->shape = config->shape;
    status = open_file(record, args);
    if (status < 0) {
        nkv_free(record->path);
        nkv_free(record);
        return status;
    }
    put_header(record->file, inner, &config->shape, caps.capacity_bytes);
    *device_out = &record->wrap.device;
    return 0;
}
