/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opens what a subcommand runs on. Devices are as large as the sequences need and no larger (the estimate is exact), so
 * that the memory which the program takes is the memory it announced; "80 % of what is free", the library's default,
 * was rejected for a program that shares its machine.
 */
#define _GNU_SOURCE
#include "session.h"

#include <nearkv/device.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "estimate.h"

#define CHUNK_TOKENS 512u
/* Up to this many times its prefill budget a prompt is fed densely. Where sparse becomes cheaper depends on the model:
 * measured below two budgets for one shape and above four for another (docs/architecture.md); dense is exact. */
#define DENSE_BUDGETS 4u

uint32_t session_device_count(const struct session_options *o)
{
    return o->n_specs ? o->n_specs : o->n_devices ? o->n_devices : 1;
}

uint32_t session_home_count(const struct session_options *o)
{
    return o->kv_parallel == NKV_KV_DATA || o->kv_parallel == NKV_KV_AUTO ? session_device_count(o) : 1;
}

/* What one device is opened with. */
static struct nkv_kv_shape device_shape(const struct session *session)
{
    struct nkv_kv_shape shape = session->shape;

    if (session->options.kv_parallel == NKV_KV_HEADS) {
        shape.n_heads /= session_device_count(&session->options);
        shape.n_kv_heads /= session_device_count(&session->options);
    }
    return shape;
}

uint32_t session_more_windows(const struct session_options *o)
{
    enum nkv_kv_parallel kv_parallel = session_kv_parallel(o);

    return (kv_parallel != NKV_KV_DATA) + (kv_parallel == NKV_KV_AUTO ? session_device_count(o) : 0);
}

void session_seq_options(const struct session *session, uint32_t n_prompt, uint32_t max_tokens,
                         struct nkv_seq_options *options_out)
{
    struct nkv_seq_options seq = session->options.seq;
    uint64_t budget = seq.prefill_budget_tokens == NKV_DEFAULT ? seq.budget_tokens : seq.prefill_budget_tokens;

    seq.max_tokens = max_tokens;
    seq.sparse_prefill = session->options.prefill == NKV_PREFILL_SPARSE ||
                         (session->options.prefill == NKV_PREFILL_AUTO && n_prompt > DENSE_BUDGETS * budget);
    *options_out = seq;
}

/* Its pages lie on n devices in turn. */
static int bytes_over(const struct session *session, uint32_t n, uint32_t n_shared, uint32_t max_tokens,
                      uint64_t *bytes_out)
{
    struct nkv_kv_estimate whole, shared;
    struct nkv_kv_shape shape = device_shape(session);
    uint32_t page = shape.page_tokens, n_pages = max_tokens / page + (max_tokens % page != 0);

    n_shared = n_shared / page / n * page;
    if (n > 1)
        max_tokens = (n_pages / n + (n_pages % n != 0)) * page;
    if (nkv_kv_estimate(&shape, max_tokens, &whole) < 0)
        return cli_fail("%s", nkv_last_error());
    *bytes_out = whole.total_bytes;
    if (n_shared == 0)
        return CLI_OK;
    /* Full pages are shared; so are digests, by the chunk. A chunk more is added for the one that is not full. */
    if (nkv_kv_estimate(&shape, n_shared, &shared) < 0)
        return cli_fail("%s", nkv_last_error());
    *bytes_out -= shared.total_bytes;
    if (nkv_kv_estimate(&shape, page, &shared) < 0)
        return cli_fail("%s", nkv_last_error());
    *bytes_out += shared.digest_bytes;
    return CLI_OK;
}

int session_device_bytes(const struct session *session, uint32_t n_shared, uint32_t max_tokens, uint64_t *bytes_out)
{
    bool spread = session->options.kv_parallel == NKV_KV_CONTEXT;

    return bytes_over(session, spread ? session_device_count(&session->options) : 1, n_shared, max_tokens, bytes_out);
}

int session_part_bytes(const struct session *session, uint32_t n_shared, uint32_t max_tokens, uint64_t *bytes_out)
{
    return bytes_over(session, session_device_count(&session->options), n_shared, max_tokens, bytes_out);
}

int session_compute_bytes(const struct session *session, const struct nkv_seq_options *seq, uint64_t *bytes_out)
{
    if (nkv_compute_estimate(&session->shape, seq, bytes_out) < 0)
        return cli_usage("%s", nkv_last_error());
    return CLI_OK;
}

int session_check_shape(const struct session_options *options, const struct nkv_kv_shape *shape)
{
    if (nkv_kv_shape_check(shape) < 0)
        return cli_usage("%s", nkv_last_error());
    if (options->kv_parallel == NKV_KV_HEADS && shape->n_kv_heads % session_device_count(options))
        return cli_usage(
            "--kv-parallel tp: %u KV heads cannot be shared evenly by %u devices: give a number of devices "
            "that divides them",
            shape->n_kv_heads, session_device_count(options));
    return CLI_OK;
}

int session_open_model(struct session *session, const struct session_options *options)
{
    int status;

    *session = (struct session){.options = *options};
    status = nkv_model_open(options->model, &session->model);
    if (status < 0)
        return cli_fail("%s", nkv_last_error());
    nkv_model_info(session->model, &session->info);
    nkv_model_kv_shape(session->model, options->page_tokens, options->kv, options->digest, &session->shape);
    return session_check_shape(options, &session->shape);
}

static struct nkv_decoder_options decoder_options(const struct session *session, uint32_t max_batch)
{
    return (struct nkv_decoder_options){
        .size = sizeof(struct nkv_decoder_options),
        .n_threads = session->options.n_threads,
        .max_batch = max_batch,
        .chunk_tokens = CHUNK_TOKENS,
        .comm = session->options.comm,
        .n_micro_batches = session->options.n_micro_batches,
    };
}

int session_work_bytes(const struct session *session, uint32_t max_batch, uint64_t *bytes_out)
{
    struct nkv_decoder_options decoder = decoder_options(session, max_batch);
    struct estimate program = {
        .shape = session->shape,
        .mode = session->options.seq.mode,
        .budget_tokens = session->options.seq.budget_tokens,
        .chunk_tokens = CHUNK_TOKENS,
        .n_devices = session_device_count(&session->options),
        .n_more_windows = session_more_windows(&session->options),
        .n_threads = session->options.n_threads,
    };

    if (nkv_decoder_estimate(session->model, &decoder, bytes_out) < 0)
        return cli_fail("%s", nkv_last_error());
    *bytes_out += estimate_program_bytes(&program);
    return CLI_OK;
}

/* Of the KV cache, what the devices of this process will hold at most. */
static uint64_t local_bytes(const struct session *session, const struct session_need *need)
{
    uint64_t n_local = session->n_devices, bytes;

    if (session->options.memory) /* a file or a DAX device: not the memory that is asked for here */
        return 0;
    for (uint32_t i = 0; i < session->options.n_specs; i++)
        n_local -= cli_is_remote(session->options.specs[i]);
    bytes = n_local * need->device_bytes;
    return bytes < need->total_bytes ? bytes : need->total_bytes;
}

static int check_memory(const struct session *session, const struct session_need *need)
{
    uint64_t bytes;
    char what[160];
    int rc = session_work_bytes(session, need->max_batch, &bytes);

    if (rc != CLI_OK)
        return rc;
    bytes += local_bytes(session, need) + need->compute_bytes + session->info.weight_bytes;
    snprintf(what, sizeof what, "%s (weights %s) with a KV cache of %s", session->info.name,
             cli_bytes(session->info.weight_bytes), cli_bytes(need->total_bytes));
    return cli_check_memory(what, bytes);
}

/* What the user wrote of device i, before a message about it. */
static int device_refused(const struct session_options *o, uint32_t i, const char *memory)
{
    bool has_spec = i < o->n_specs;

    if (!has_spec && !memory)
        return o->trace ? cli_usage("--trace %s: %s", o->trace, nkv_last_error()) : cli_usage("%s", nkv_last_error());
    return cli_usage("%s%s%s%s%s: %s", has_spec ? "--device " : "", has_spec ? o->specs[i] : "",
                     has_spec && memory ? " " : "", memory ? "--memory " : "", memory ? memory : "", nkv_last_error());
}

static int open_device(struct session *session, uint32_t i, uint64_t capacity_bytes)
{
    const struct session_options *o = &session->options;
    uint32_t share = o->n_threads / session->n_devices;
    char name[32], spec[SESSION_SPEC_BYTES], memory[SESSION_SPEC_BYTES];
    struct nkv_device_config config = {
        .size = sizeof config,
        .shape = device_shape(session),
        .capacity_bytes = capacity_bytes,
        .n_threads = share ? share : 1,
        .name = name,
    };
    int rc = session_spec(o, i, spec);

    snprintf(name, sizeof name, "cpu%u", i);
    if (rc == CLI_OK && session_has_memory(o, i)) {
        rc = session_memory(o, i, memory);
        config.memory = memory;
        session->made_memory[i] = session_memory_is_missing(memory);
    }
    if (rc != CLI_OK)
        return rc;
    if (nkv_device_open(spec, &config, &session->devices[i]) == NKV_EINVAL)
        return device_refused(o, i, config.memory);
    return session->devices[i] ? CLI_OK : cli_fail("%s", nkv_last_error());
}

static int open_compute(struct session *session, uint64_t capacity_bytes)
{
    const char *trace = session->options.trace;
    char spec[4096] = "cpu";
    struct nkv_device_config config = {
        .size = sizeof config,
        .shape = session->shape,
        .capacity_bytes = capacity_bytes,
        .n_threads = session->options.n_threads,
        .name = "compute",
    };

    if (capacity_bytes == 0)
        return CLI_OK;
    if (trace && snprintf(spec, sizeof spec, "record:%s.compute:cpu", trace) >= (int)sizeof spec)
        return cli_usage("--trace: longer than %zu bytes", sizeof spec);
    if (nkv_device_open(spec, &config, &session->compute) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

int session_open_decoder(struct session *session, uint32_t max_batch)
{
    struct nkv_decoder_options options = decoder_options(session, max_batch);

    if (nkv_decoder_open(session->model, session->context, &options, &session->decoder) < 0)
        return cli_fail("%s", nkv_last_error());
    return CLI_OK;
}

static int open_context(struct session *session, uint32_t max_batch)
{
    struct nkv_context_options context = {
        .size = sizeof context,
        .shape = session->shape,
        .devices = session->devices,
        .n_devices = session->n_devices,
        .compute = session->compute,
        .max_batch = max_batch,
        .max_tokens = max_batch > CHUNK_TOKENS ? max_batch : CHUNK_TOKENS,
        .record_scores = session->options.trace != NULL,
        .kv_parallel = session_kv_parallel(&session->options),
    };

    if (nkv_context_open(&context, &session->context) < 0)
        return cli_fail("%s", nkv_last_error());
    return session_open_decoder(session, max_batch);
}

int session_open_pnm(struct session *session, uint64_t capacity_bytes)
{
    int rc = CLI_OK;

    session->n_devices = session_device_count(&session->options);
    for (uint32_t i = 0; rc == CLI_OK && i < session->n_devices; i++)
        if (!session->devices[i])
            rc = open_device(session, i, capacity_bytes);
    return rc;
}

int session_open_devices(struct session *session, const struct session_need *need)
{
    int rc;

    session->n_devices = session_device_count(&session->options);
    rc = check_memory(session, need);
    return rc == CLI_OK ? session_open_checked(session, need) : rc;
}

int session_open_checked(struct session *session, const struct session_need *need)
{
    int rc = session_open_pnm(session, need->device_bytes);

    if (rc == CLI_OK)
        rc = open_compute(session, need->compute_bytes);
    return rc == CLI_OK ? open_context(session, need->max_batch) : rc;
}

int session_check_devices(const struct session *session)
{
    for (uint32_t i = 0; i < session->n_devices; i++) {
        struct nkv_device_report report;

        if (nkv_context_device(session->context, i, &report) < 0)
            return cli_fail("%s", nkv_last_error());
    }
    return CLI_OK;
}

void session_close(struct session *session)
{
    if (session->decoder)
        nkv_decoder_close(session->decoder);
    if (session->context)
        nkv_context_close(session->context);
    if (session->compute)
        nkv_device_close(session->compute);
    for (uint32_t i = 0; i < SESSION_MAX_DEVICES; i++)
        if (session->devices[i])
            nkv_device_close(session->devices[i]);
    if (session->model)
        nkv_model_close(session->model);
    *session = (struct session){0};
}

/* Only what holds no sequence: another process may have come to the same file first. */
void session_abandon(struct session *session)
{
    struct session_options o = session->options;
    bool made[SESSION_MAX_DEVICES];

    memcpy(made, session->made_memory, sizeof made);
    session_close(session);
    for (uint32_t i = 0; i < SESSION_MAX_DEVICES; i++) {
        char memory[SESSION_SPEC_BYTES];

        if (made[i] && session_memory(&o, i, memory) == CLI_OK)
            session_remove_memory(memory);
    }
}
