/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions: sequences that live on a device under a name, with the ids of their tokens, and are taken up again by
 * whoever comes with the same beginning. Opening one asks every PNM device what it holds:
 *
 *   the name is there      take it over, cut it to what its tokens and the prompt's have in common
 *   another shares a page  fork that part (pages are counted), publish it under the new name
 *   neither                open a new one where there is room, and publish it
 *
 * Invariant: the ids of all tokens that a published sequence holds are on its device: they travel with PUBLISH, and in
 * a step ahead of the tokens (step_plan.c). So what a crash leaves can be compared with any prompt. Lists are only
 * hints, since other clients change what they tell: a session that was taken over is compared by its own ids, and a
 * fork is asked for again after it was made. Keeping an index of prefixes on the device was rejected: sessions are
 * opened by people, not in steps, and comparing a million ids takes less than a millisecond.
 */
#include "runtime/runtime.h"

#include <string.h>

#include "kv/store.h"

#define LIST_INFOS 32u

/* Operands of a control command, as offsets from port_control_at. PUBLISH wants the ids right behind the name. */
#define NAME_AT 0u
#define IDS_AT  sizeof(struct nkv_seq_name)

static uint64_t infos_at(uint32_t n_ids)
{
    return IDS_AT + nkv_align64(4u * (uint64_t)n_ids);
}

static int reserve(struct nkv_context *context, struct port *port, uint32_t n_ids)
{
    uint32_t room = n_ids > SESSION_IDS ? n_ids : SESSION_IDS;

    return context_reserve_control(context, port, infos_at(room) + LIST_INFOS * sizeof(struct nkv_seq_info));
}

static void *control(const struct port *port, uint64_t at)
{
    return port->window + port_control_at(port) + at;
}

int session_name(const char *name, uint64_t model, struct nkv_seq_name *name_out)
{
    struct nkv_seq_name padded = {.model = model};

    if (!name || strlen(name) >= sizeof padded.name)
        FAIL(NKV_EINVAL, "the name '%.80s' of a session: use from 1 to %u letters, digits and -_.", name ? name : "",
             NKV_SEQ_NAME_BYTES - 1);
    strncpy(padded.name, name, sizeof padded.name - 1);
    TRY(nkv_seq_name_check(&padded));
    *name_out = padded;
    return 0;
}

/* ---- What there is ---- */

struct visitor {
    void (*visit)(void *arg, struct port *port, const struct nkv_seq_info *info);
    void *arg;
};

/* pre: room is reserved for n ids. returns: how many were described. */
static int list_some(struct nkv_context *context, struct port *port, uint32_t first, const int32_t *ids, uint32_t n,
                     struct nkv_seq_info infos_out[LIST_INFOS])
{
    uint64_t base = port_control_at(port);
    struct nkv_cmd cmd = {.op = NKV_OP_SEQ_LIST,
                          .arg = first,
                          .n_tokens = n,
                          .n_pages = LIST_INFOS,
                          .in_offset = base + IDS_AT,
                          .out_offset = base + infos_at(n)};
    int n_infos;

    if (n)
        memcpy(control(port, IDS_AT), ids, n * sizeof *ids);
    n_infos = port_control(context, port, &cmd);
    TRY(n_infos);
    if ((uint32_t)n_infos > LIST_INFOS)
        FAIL(NKV_EDEVICE, "%s described %d sequences of at most %u", port->label, n_infos, LIST_INFOS);
    memcpy(infos_out, control(port, infos_at(n)), (size_t)n_infos * sizeof *infos_out);
    for (int i = 0; i < n_infos; i++) {
        infos_out[i].name.name[NKV_SEQ_NAME_BYTES - 1] = '\0';
        if (infos_out[i].n_common > infos_out[i].n_tokens || infos_out[i].n_common > n)
            infos_out[i].n_common = 0;
    }
    return n_infos;
}

static int visit_port(struct nkv_context *context, struct port *port, const int32_t *ids, uint32_t n,
                      struct visitor visitor)
{
    struct nkv_seq_info infos[LIST_INFOS];
    int n_infos = (int)LIST_INFOS;

    TRY(reserve(context, port, n));
    for (uint32_t first = 0; n_infos == (int)LIST_INFOS; first += LIST_INFOS) {
        n_infos = list_some(context, port, first, ids, n, infos);
        TRY(n_infos);
        for (int i = 0; i < n_infos; i++)
            visitor.visit(visitor.arg, port, &infos[i]);
    }
    return 0;
}

/* *lost_out: a device that is lost and so tells nothing, or NULL. */
static int visit_all(struct nkv_context *context, const int32_t *ids, uint32_t n, struct visitor visitor,
                     const struct port **lost_out)
{
    *lost_out = NULL;
    for (uint32_t p = 0; p < context->options.n_devices; p++) {
        struct port *port = &context->ports[p];
        int status = visit_port(context, port, ids, n, visitor);

        if (port->status < 0)
            *lost_out = port;
        else
            TRY(status);
    }
    return 0;
}

/* What a prompt finds: the session of its name, and the best one to fork. */
struct found {
    const struct nkv_seq_name *name;
    struct port *own_port, *other_port; /* NULL: none */
    struct nkv_seq_info own, other;
};

static void look(void *arg, struct port *port, const struct nkv_seq_info *info)
{
    struct found *found = arg;

    if (strcmp(info->name.name, found->name->name) == 0) {
        if (!found->own_port) {
            found->own_port = port;
            found->own = *info;
        }
    } else if (info->name.model == found->name->model && !(info->flags & NKV_NO_DIGEST) &&
               (!found->other_port || info->n_common > found->other.n_common)) {
        found->other_port = port;
        found->other = *info;
    }
}

/* A name that no device tells may be that of a session on one that is lost: then there is no answer. */
static int find(struct nkv_context *context, const struct nkv_seq_name *name, const int32_t *ids, uint32_t n,
                struct found *found_out)
{
    struct found found = {.name = name};
    const struct port *lost;

    TRY(visit_all(context, ids, n, (struct visitor){look, &found}, &lost));
    if (lost && !found.own_port)
        FAIL(lost->status, "%s", lost->error);
    *found_out = found;
    return 0;
}

int session_find(struct nkv_context *context, const char *name, struct port **port_out, struct nkv_seq_info *info_out)
{
    struct nkv_seq_name padded;
    struct found found;

    TRY(session_name(name, 0, &padded));
    TRY(find(context, &padded, NULL, 0, &found));
    if (!found.own_port)
        FAIL(NKV_ENOENT, "no session '%s' on %s: nearkv pnm list tells what is there", name,
             context->options.n_devices == 1 ? context->ports[0].caps.name : "any device");
    *port_out = found.own_port;
    *info_out = found.own;
    return 0;
}

static struct nkv_session_info describe(const struct port *port, const struct nkv_seq_info *info)
{
    struct nkv_session_info described = {
        .model = info->name.model,
        .device = port->index,
        .n_tokens = info->n_tokens,
        .max_tokens = info->max_tokens,
        .is_attached = info->attached != 0,
        .used_bytes = info->used_bytes,
        .shared_bytes = info->shared_bytes,
    };

    memcpy(described.name, info->name.name, sizeof described.name);
    return described;
}

struct lister {
    uint64_t first, n, n_seen;
    struct nkv_session_info *infos;
};

static void take(void *arg, struct port *port, const struct nkv_seq_info *info)
{
    struct lister *lister = arg;

    if (lister->n_seen >= lister->first && lister->n_seen - lister->first < lister->n)
        lister->infos[lister->n_seen - lister->first] = describe(port, info);
    lister->n_seen++;
}

int nkv_session_list(struct nkv_context *context, uint32_t first, struct nkv_session_info *infos_out, uint32_t n)
{
    struct lister lister = {.first = first, .n = n < INT32_MAX ? n : INT32_MAX, .infos = infos_out};
    const struct port *lost;

    TRY(visit_all(context, NULL, 0, (struct visitor){take, &lister}, &lost));
    if (lost)
        FAIL(lost->status, "%s", lost->error);
    if (lister.n_seen <= first)
        return 0;
    return (int)(lister.n_seen - first < lister.n ? lister.n_seen - first : lister.n);
}

int nkv_session_find(struct nkv_context *context, const char *name, struct nkv_session_info *info_out)
{
    struct port *port = NULL;
    struct nkv_seq_info info;

    TRY(session_find(context, name, &port, &info));
    *info_out = describe(port, &info);
    return 0;
}

/* ---- Ids ---- */

int nkv_session_tokens(struct nkv_seq *seq, uint32_t first, int32_t *tokens_out, uint32_t n)
{
    struct port *port = seq->home;

    if (!seq->ids)
        FAIL(NKV_EINVAL, "this sequence is no session: it has no token ids");
    if (first > seq->length || n > seq->length - first)
        FAIL(NKV_EINVAL, "ids of %u tokens from %u on of a session of %u", n, first, seq->length);
    TRY(reserve(seq->context, port, 0));
    for (uint32_t done = 0; done < n; done += SESSION_IDS) {
        uint32_t some = n - done < SESSION_IDS ? n - done : SESSION_IDS;
        struct nkv_cmd cmd = {.op = NKV_OP_READ,
                              .flags = NKV_TOKENS,
                              .seq = seq->id,
                              .pos = first + done,
                              .n_tokens = some,
                              .out_offset = port_control_at(port) + IDS_AT};

        TRY(port_control(seq->context, port, &cmd));
        memcpy(tokens_out + done, control(port, IDS_AT), some * sizeof *tokens_out);
    }
    return 0;
}

int nkv_seq_note_tokens(struct nkv_seq *seq, const int32_t *tokens, uint32_t n)
{
    if (!seq->ids)
        return 0;
    if (n > seq->context->options.max_tokens)
        FAIL(NKV_EINVAL, "ids of %u tokens: a step takes at most %u (max_tokens of the context)", n,
             seq->context->options.max_tokens);
    memcpy(seq->ids, tokens, n * sizeof *tokens);
    seq->n_ids = n;
    return 0;
}

/* How many of the prompt's tokens the session begins with, by its own ids. */
static int compare(struct nkv_seq *seq, const int32_t *tokens, uint32_t n, uint32_t *n_common_out)
{
    int32_t *ids = NULL;
    uint32_t n_common = 0;
    int status;

    if (n > seq->length)
        n = seq->length;
    TRY(nkv_alloc(n, sizeof *ids, &ids));
    status = nkv_session_tokens(seq, 0, ids, n);
    while (status == 0 && n_common < n && ids[n_common] == tokens[n_common])
        n_common++;
    nkv_free(ids);
    if (status == 0)
        *n_common_out = n_common;
    return status;
}

/* ---- Open ---- */

struct opening {
    struct nkv_context *context;
    struct nkv_session_options options;
    struct nkv_seq_name name;
    struct found found;
    struct nkv_session_result result;
};

static int read_options(const struct nkv_session_options *options, struct opening *o)
{
    if (options->size != sizeof *options)
        FAIL(NKV_EINVAL, "size of the session options is %u: set it to sizeof(struct nkv_session_options), %zu",
             options->size, sizeof *options);
    o->options = *options;
    if (options->n_tokens && !options->tokens)
        FAIL(NKV_EINVAL, "a session of %u tokens, but tokens is NULL", options->n_tokens);
    if (options->n_tokens == 0 && !options->continues)
        FAIL(NKV_EINVAL, "session '%s': the prompt is empty: it must have at least one token", options->name);
    return session_name(options->name, options->model, &o->name);
}

/* Sessions have digests whatever the mode, so that any mode can take them up. */
static int draft_of(const struct opening *o, const struct nkv_seq_options *options, struct nkv_seq *draft_out)
{
    struct nkv_seq_options resolved;

    *draft_out = (struct nkv_seq){.context = o->context};
    TRY(seq_resolve(&o->context->shape, options, draft_out));
    resolved = draft_out->options;
    resolved.keep_digests = true;
    if (o->found.own_port && resolved.max_tokens < o->found.own.n_tokens)
        resolved.max_tokens = o->found.own.n_tokens; /* what it holds must fit before it is cut */
    return seq_resolve(&o->context->shape, &resolved, draft_out);
}

/* Creates from a command that names a published sequence: the window is grown first, so that the name stays in it. */
static int create_named(const struct nkv_seq *draft, struct nkv_cmd open, const struct nkv_seq_name *name,
                        struct nkv_seq **seq_out)
{
    TRY(context_reserve(draft->context, draft));
    memcpy(control(draft->home, NAME_AT), name, sizeof *name);
    open.flags = NKV_NAMED;
    open.in_offset = port_control_at(draft->home) + NAME_AT;
    return seq_create(draft, &open, seq_out);
}

static int alloc_ids(struct nkv_seq *seq)
{
    return nkv_alloc(seq->context->options.max_tokens, sizeof *seq->ids, &seq->ids);
}

/* Gives back what was taken over, with the message of before. */
static int detach(struct nkv_seq *seq, int status)
{
    nkv_free(seq->ids);
    seq->ids = NULL;
    return seq_discard(seq, status);
}

static int check_own(const struct nkv_seq_info *info, const struct port *port)
{
    if (info->flags & NKV_NO_DIGEST)
        FAIL(NKV_EINVAL, "sequence '%s' on device %u (%s) has no digests, which a session needs: use another name",
             info->name.name, port->index, port->caps.name);
    return 0;
}

/* What is kept of a session; the last token of a prompt is fed again, for its logits. */
static int cut(const struct opening *o, struct nkv_seq *seq)
{
    uint32_t n_common = 0;

    if (o->options.continues)
        return 0;
    TRY(compare(seq, o->options.tokens, o->options.n_tokens - 1, &n_common));
    return nkv_seq_truncate(seq, n_common);
}

static int resume(struct opening *o, struct nkv_seq *draft, struct nkv_seq **seq_out)
{
    struct nkv_seq *seq = NULL;
    int status;

    TRY(check_own(&o->found.own, o->found.own_port));
    draft->home = o->found.own_port;
    TRY(seq_check_compute(o->context, draft));
    TRY(create_named(draft, (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN}, &o->name, &seq));
    status = alloc_ids(seq);
    if (status == 0)
        status = cut(o, seq);
    if (status < 0)
        return detach(seq, status);
    o->result.how = NKV_SESSION_RESUMED;
    o->result.n_reused = seq->length;
    *seq_out = seq;
    return 0;
}

int session_attach(struct nkv_context *context, struct port *port, const struct nkv_seq_info *info,
                   struct nkv_seq **seq_out)
{
    struct nkv_seq_options options;
    struct nkv_seq draft = {.context = context}, *seq = NULL;
    int status;

    nkv_seq_options_init(&options);
    options.mode = NKV_MODE_FULL;
    options.keep_digests = true;
    options.max_tokens = info->n_tokens ? info->n_tokens : 1;
    TRY(seq_resolve(&context->shape, &options, &draft));
    draft.home = port;
    TRY(create_named(&draft, (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN}, &info->name, &seq));
    status = alloc_ids(seq);
    if (status < 0)
        return detach(seq, status);
    *seq_out = seq;
    return 0;
}

int session_publish(struct nkv_seq *seq, const struct nkv_seq_name *name, const int32_t *ids, uint32_t n)
{
    struct port *port = seq->home;
    struct nkv_cmd cmd = {.op = NKV_OP_SEQ_PUBLISH, .seq = seq->id, .n_tokens = n};
    int32_t *own = NULL;
    int status;

    TRY(reserve(seq->context, port, n));
    TRY(nkv_alloc(seq->context->options.max_tokens, sizeof *own, &own));
    memcpy(control(port, NAME_AT), name, sizeof *name);
    if (n)
        memcpy(control(port, IDS_AT), ids, n * sizeof *ids);
    cmd.in_offset = port_control_at(port) + NAME_AT;
    status = port_control(seq->context, port, &cmd);
    if (status < 0) {
        nkv_free(own);
        return status;
    }
    seq->ids = own;
    return 0;
}

/* Whether the parent of a fork is still what it was found to be. returns: 1: yes. */
static int still_shares(const struct opening *o, uint32_t n)
{
    struct found now;

    TRY(find(o->context, &o->found.other.name, o->options.tokens, n, &now));
    return now.own_port == o->found.other_port && now.own.n_common == n;
}

static int fork_other(struct opening *o, struct nkv_seq *draft, uint32_t n_tokens, struct nkv_seq **seq_out)
{
    struct nkv_seq *seq = NULL;
    int status;

    draft->home = o->found.other_port;
    TRY(seq_check_compute(o->context, draft));
    TRY(create_named(draft, (struct nkv_cmd){.op = NKV_OP_SEQ_FORK, .pos = n_tokens}, &o->found.other.name, &seq));
    status = still_shares(o, n_tokens);
    if (status == 0)
        status = nkv_fail(NKV_ENOENT, "session '%s' has changed meanwhile", o->found.other.name.name);
    if (status > 0)
        status = session_publish(seq, &o->name, o->options.tokens, n_tokens);
    if (status < 0)
        return seq_discard(seq, status);
    o->result.how = NKV_SESSION_FORKED;
    o->result.n_reused = n_tokens;
    memcpy(o->result.from, o->found.other.name.name, sizeof o->result.from);
    *seq_out = seq;
    return 0;
}

static int open_new(struct opening *o, const struct nkv_seq *draft, struct nkv_seq **seq_out)
{
    struct nkv_seq *seq = NULL;
    int status;

    TRY(seq_open(o->context, &draft->options, true, &seq));
    status = session_publish(seq, &o->name, NULL, 0);
    if (status < 0)
        return seq_discard(seq, status);
    o->result.how = NKV_SESSION_NEW;
    *seq_out = seq;
    return 0;
}

/* Another session is worth a fork from one full page on; the last token of the prompt is fed again. */
static uint32_t fork_tokens(const struct opening *o)
{
    uint32_t n = o->found.other_port ? o->found.other.n_common : 0;

    if (n > o->options.n_tokens - 1)
        n = o->options.n_tokens - 1;
    return n >= o->context->shape.page_tokens ? n : 0;
}

/* A parent that is gone or whose device has no room for the fork is no reason not to begin anew. */
static int open_other(struct opening *o, struct nkv_seq *draft, struct nkv_seq **seq_out)
{
    uint32_t n = fork_tokens(o);
    int status = n ? fork_other(o, draft, n, seq_out) : NKV_ENOENT;

    return status == NKV_ENOENT || status == NKV_ENOSPC ? open_new(o, draft, seq_out) : status;
}

/* Fills what the device alone knows. */
static int measure(struct opening *o)
{
    struct found now;

    TRY(find(o->context, &o->name, NULL, 0, &now));
    o->result.used_bytes = now.own.used_bytes;
    o->result.shared_bytes = now.own.shared_bytes;
    return 0;
}

int nkv_session_open(struct nkv_context *context, const struct nkv_seq_options *seq_options,
                     const struct nkv_session_options *options, struct nkv_seq **seq_out,
                     struct nkv_session_result *result_out)
{
    struct opening o = {.context = context};
    struct nkv_seq draft, *seq = NULL;
    int status;

    TRY(read_options(options, &o));
    TRY(find(context, &o.name, o.options.tokens, o.options.n_tokens, &o.found));
    TRY(draft_of(&o, seq_options, &draft));
    if (o.found.own_port)
        TRY(resume(&o, &draft, &seq));
    else if (o.options.continues)
        FAIL(NKV_ENOENT, "no session '%s' to continue on %u device(s): nearkv pnm list tells what is there",
             options->name, context->options.n_devices);
    else
        TRY(open_other(&o, &draft, &seq));
    status = measure(&o);
    if (status < 0)
        return o.result.how == NKV_SESSION_RESUMED ? detach(seq, status) : seq_discard(seq, status);
    *seq_out = seq;
    *result_out = o.result;
    return 0;
}

int nkv_session_remove(struct nkv_context *context, const char *name)
{
    struct port *port = NULL;
    struct nkv_seq_info info;
    struct nkv_seq *seq = NULL;

    TRY(session_find(context, name, &port, &info));
    TRY(session_attach(context, port, &info, &seq));
    seq->removes = true;
    nkv_seq_close(seq);
    if (port->status < 0)
        FAIL(port->status, "%s", port->error);
    return 0;
}
