/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contexts: ports, lanes and what they share. Everything that a step needs is allocated here or when a sequence opens;
 * the decode path allocates nothing.
 */
#include "runtime/runtime.h"

#include <string.h>

#include "base/clock.h"
#include "runtime/share.h"

#define DEFAULT_BATCH  16u
#define DEFAULT_TOKENS 512u
#define MAX_BATCH      4096u
#define MAX_TOKENS     (1u << 20)
#define MAX_DEVICES    8192u

static uint64_t monotonic_ns(void *arg)
{
    (void)arg;
    return nkv_now_ns();
}

static int check_devices(const struct nkv_context_options *o)
{
    if (o->n_devices == 0 || o->n_devices > MAX_DEVICES || !o->devices)
        FAIL(NKV_EINVAL, "%u PNM devices: give from 1 to %u", o->devices ? o->n_devices : 0, MAX_DEVICES);
    for (uint32_t i = 0; i < o->n_devices; i++) {
        if (o->devices[i] && o->devices[i] == o->compute)
            FAIL(NKV_EINVAL, "device %u is also the compute device: open another one", i);
        for (uint32_t j = 0; j < i; j++)
            if (o->devices[i] && o->devices[i] == o->devices[j])
                FAIL(NKV_EINVAL, "devices %u and %u are the same one", j, i);
    }
    return 0;
}

static int read_options(const struct nkv_context_options *options, struct nkv_context_options *o)
{
    *o = (struct nkv_context_options){0};
    if (options->size < offsetof(struct nkv_context_options, max_batch) || options->size > sizeof *o)
        FAIL(NKV_EINVAL, "size of the context options is %u: set it to sizeof(struct nkv_context_options), %zu",
             options->size, sizeof *o);
    memcpy(o, options, options->size);
    o->size = sizeof *o;
    o->max_batch = o->max_batch ? o->max_batch : DEFAULT_BATCH;
    o->max_tokens = o->max_tokens ? o->max_tokens : DEFAULT_TOKENS;
    o->now_ns = o->now_ns ? o->now_ns : monotonic_ns;
    if (o->max_batch > MAX_BATCH || o->max_tokens > MAX_TOKENS)
        FAIL(NKV_EINVAL, "a batch of %u sequences and %u tokens: at most %u and %u", o->max_batch, o->max_tokens,
             MAX_BATCH, MAX_TOKENS);
    if ((unsigned)o->kv_parallel > NKV_KV_AUTO)
        FAIL(NKV_EINVAL, "kv_parallel is %d: it must be from 0 to %d", (int)o->kv_parallel, NKV_KV_AUTO);
    if (o->kv_parallel == NKV_KV_AUTO && (o->n_devices == 1 || o->record_scores))
        o->kv_parallel = NKV_KV_DATA; /* nothing is ever spread */
    if (o->kv_parallel != NKV_KV_DATA && o->record_scores)
        FAIL(NKV_ENOTSUP, "scores are recorded of sequences that lie on one device (dp), not of %s",
             nkv_kv_parallel_name(o->kv_parallel));
    TRY(nkv_kv_shape_check(&o->shape));
    return check_devices(o);
}

/* From here on the context's PNM devices are faces of those that it was given, as are the group's. */
static int open_shared_group(struct nkv_context *context)
{
    struct nkv_context_options *o = &context->options;

    TRY(shares_open(o->devices, o->n_devices, &context->shares));
    o->devices = shares_faces(context->shares, FACE_WHOLE);
    TRY(group_open(NKV_KV_CONTEXT, &o->shape, shares_faces(context->shares, FACE_PART), o->n_devices, &context->group));
    context->group_view = group_device(context->group);
    return 0;
}

/* From here on the context has one PNM device, unless it has the group beside its own. */
static int open_group(struct nkv_context *context)
{
    struct nkv_context_options *o = &context->options;

    if (o->kv_parallel == NKV_KV_DATA)
        return 0;
    if (o->kv_parallel == NKV_KV_AUTO)
        return open_shared_group(context);
    TRY(group_open(o->kv_parallel, &o->shape, o->devices, o->n_devices, &context->group));
    context->group_view = group_device(context->group);
    o->devices = &context->group_view;
    o->n_devices = 1;
    return 0;
}

static int open_ports(struct nkv_context *context)
{
    const struct nkv_context_options *o = &context->options;
    uint32_t n_homes = o->n_devices + (context->shares != NULL);

    context->n_ports = n_homes + (o->compute != NULL);
    TRY(nkv_alloc(context->n_ports, sizeof *context->ports, &context->ports));
    TRY(nkv_alloc(context->n_ports, sizeof *context->free_bytes, &context->free_bytes));
    TRY(nkv_alloc(context->n_ports, sizeof *context->loads, &context->loads));
    for (uint32_t i = 0; i < context->n_ports; i++) {
        struct nkv_device *other = i < n_homes ? context->group_view : o->compute;

        TRY(port_open(&context->ports[i], i < o->n_devices ? o->devices[i] : other, i, &o->shape));
    }
    context->compute = o->compute ? &context->ports[n_homes] : NULL;
    context->group_port = context->group ? &context->ports[n_homes - 1] : NULL;
    for (uint32_t i = 0; context->shares && i < o->n_devices; i++) {
        share_watch(o->devices[i], &context->ports[i].window);
        share_watch(shares_faces(context->shares, FACE_PART)[i], group_member_window(context->group, i));
    }
    return 0;
}

static int open_lanes(struct nkv_context *context)
{
    const struct nkv_context_options *o = &context->options;

    for (uint32_t i = 0; i < N_LANES; i++) {
        struct nkv_ticket *lane = &context->lanes[i];

        lane->context = context;
        lane->index = i;
        lane->max_planned = WORK_COMMANDS * o->max_batch + 2 * o->max_tokens;
        TRY(nkv_alloc(o->max_batch, sizeof *lane->works, &lane->works));
        TRY(nkv_alloc(lane->max_planned, sizeof *lane->plan, &lane->plan));
        TRY(nkv_alloc(context->n_ports, sizeof *lane->window_used, &lane->window_used));
    }
    return 0;
}

static int fill_context(struct nkv_context *context, const struct nkv_context_options *options)
{
    TRY(read_options(options, &context->options));
    context->shape = context->options.shape;
    context->next_id = 1;
    TRY(open_group(context));
    TRY(open_ports(context));
    TRY(open_lanes(context));
    return context_reserve(context, NULL);
}

int nkv_context_open(const struct nkv_context_options *options, struct nkv_context **context_out)
{
    struct nkv_context *context;
    int status;

    TRY(nkv_alloc(1, sizeof *context, &context));
    status = fill_context(context, options);
    if (status < 0) {
        nkv_context_close(context);
        return status;
    }
    *context_out = context;
    return 0;
}

void nkv_context_close(struct nkv_context *context)
{
    if (!context)
        return;
    while (context->sequences)
        nkv_seq_close(context->sequences);
    for (uint32_t i = 0; i < N_LANES; i++) {
        nkv_free(context->lanes[i].works);
        nkv_free(context->lanes[i].plan);
        nkv_free(context->lanes[i].window_used);
    }
    for (uint32_t i = 0; context->ports && i < context->n_ports; i++)
        nkv_free(context->ports[i].orphans);
    nkv_free(context->ports);
    group_close(context->group);
    shares_close(context->shares);
    nkv_free(context->free_bytes);
    nkv_free(context->loads);
    nkv_free(context->scratch);
    nkv_free(context->line);
    nkv_free(context);
}

static const char *const kv_parallel_names[] = {"dp", "cp", "tp", "auto"};

const char *nkv_kv_parallel_name(enum nkv_kv_parallel kv_parallel)
{
    return (unsigned)kv_parallel <= NKV_KV_AUTO ? kv_parallel_names[kv_parallel] : "?";
}

int nkv_kv_parallel_parse(const char *name, enum nkv_kv_parallel *kv_parallel_out)
{
    for (unsigned i = 0; i <= NKV_KV_AUTO; i++)
        if (strcmp(name, kv_parallel_names[i]) == 0) {
            *kv_parallel_out = (enum nkv_kv_parallel)i;
            return 0;
        }
    FAIL(NKV_EINVAL, "unknown mapping '%s': give dp, cp, tp or auto", name);
}
