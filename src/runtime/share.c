/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One device with two users: its queue and its window are shared out between two faces, each of which is a device.
 *
 *   queue    A command goes down under the number of a slot, which says whose it is and what its user calls it. Whoever
 *            waits takes completions of both; those of the other face lie ready there, with their messages, until they
 *            are asked for. What `after` counts back in a face's queue is counted anew in the device's.
 *   window   The first face's part, then the second's. A part that grows moves what lies behind it, and maybe all of
 *            the window: nothing may be in flight on either face then, and the users are told their new addresses.
 *   loss     A device that is lost is lost for both, and the first face that is mapped again brings it back.
 *
 * Invariant: of the device's queue no more than QUEUE_COMMANDS entries are ever taken, and no face waits for a command
 * of the other to be asked for. A second context over the same device was rejected: it would have a second window and
 * would not see what the first one's sequences take; so was a second kind of home in port.c and group.c, which would
 * each have to know the other's commands.
 */
#include "runtime/share.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/runtime.h"

#define PART_ALIGN 4096u

struct ready {
    struct nkv_cqe cqe;
    char error[256];
};

struct face {
    struct nkv_device device; /* first */
    struct share *share;
    uint64_t at, bytes;               /* its part of the window */
    uint8_t **window;                 /* its user's; NULL: nobody's */
    uint64_t n_commands;              /* submitted */
    uint64_t numbers[QUEUE_COMMANDS]; /* of the latest, in the device's queue */
    uint32_t n_open;                  /* submitted, not asked for yet */
    uint32_t first_ready, n_ready;    /* completed, not asked for yet */
    struct ready ready[QUEUE_COMMANDS];
};

struct slot {
    struct face *face; /* NULL: free */
    uint64_t user_data;
};

struct share {
    struct nkv_device *inner;
    uint8_t *window;
    uint64_t n_commands;
    struct slot slots[QUEUE_COMMANDS];
    uint32_t free_slots[QUEUE_COMMANDS], n_free;
    struct nkv_cmd staged[QUEUE_COMMANDS];
    int status; /* < 0: lost, and why: */
    char error[256];
    struct face faces[FACE_COUNT];
};

struct shares {
    uint32_t n;
    struct share *shares;                  /* [n] */
    struct nkv_device **faces[FACE_COUNT]; /* [n] */
};

static struct face *face_of(struct nkv_device *device)
{
    return (struct face *)(void *)device;
}

static int check(const struct share *share)
{
    if (share->status < 0)
        FAIL(share->status, "%s", share->error);
    return 0;
}

static int lose(struct share *share, int status, const char *reason)
{
    snprintf(share->error, sizeof share->error, "%s", reason);
    share->status = status;
    FAIL(status, "%s", share->error);
}

/* As the device was when it was opened. */
static void reset_queue(struct share *share)
{
    share->n_free = 0;
    for (uint32_t i = QUEUE_COMMANDS; i-- > 0;) {
        share->slots[i].face = NULL;
        share->free_slots[share->n_free++] = i;
    }
    for (uint32_t f = 0; f < FACE_COUNT; f++)
        share->faces[f].n_open = share->faces[f].n_ready = 0;
}

/* ---- Down ---- */

/* Which offsets an op names; lists: unless a flag says that there is none. */
static const struct {
    bool in, out, lists;
} operands[NKV_OP_COUNT] = {
    [NKV_OP_APPEND] = {.in = true},
    [NKV_OP_SELECT] = {.in = true, .out = true},
    [NKV_OP_ATTEND] = {.in = true, .out = true, .lists = true},
    [NKV_OP_READ] = {.out = true, .lists = true},
    [NKV_OP_WRITE] = {.in = true, .lists = true},
    [NKV_OP_SEQ_PUBLISH] = {.in = true},
    [NKV_OP_SEQ_LIST] = {.in = true, .out = true},
};

static void move_operands(struct nkv_cmd *cmd, uint64_t by)
{
    bool no_lists = cmd->flags & (NKV_ALL_PAGES | NKV_DIGEST | NKV_TOKENS);

    if (operands[cmd->op].in || (cmd->flags & NKV_NAMED && cmd->op != NKV_OP_SEQ_CLOSE))
        cmd->in_offset += by;
    if (operands[cmd->op].out)
        cmd->out_offset += by;
    if ((operands[cmd->op].lists && !no_lists) || cmd->flags & NKV_STEADY)
        cmd->list_offset += by;
}

static void stage(struct face *face, const struct nkv_cmd *cmd, struct nkv_cmd *staged)
{
    struct share *share = face->share;
    uint32_t slot = share->free_slots[--share->n_free];

    *staged = *cmd;
    share->slots[slot] = (struct slot){face, cmd->user_data};
    staged->user_data = slot;
    staged->after = 0;
    if (cmd->after && cmd->after <= face->n_commands && cmd->after < QUEUE_COMMANDS)
        staged->after = (uint32_t)(share->n_commands - face->numbers[(face->n_commands - cmd->after) % QUEUE_COMMANDS]);
    move_operands(staged, face->at);
    face->numbers[face->n_commands++ % QUEUE_COMMANDS] = share->n_commands++;
    face->n_open++;
}

/* Takes one completion, for whichever face it is. returns: how many; what the device is lost with. */
static int take(struct share *share, uint32_t min_n)
{
    uint64_t n_messages = nkv_fail_count();
    struct nkv_cqe cqe;
    struct ready *ready;
    struct slot *slot;
    struct face *face;
    int n = share->inner->ops->reap(share->inner, &cqe, 1, min_n);

    if (n == 0 && min_n == 0)
        return 0;
    if (n < 0)
        return lose(share, n, port_message_since(n_messages));
    if (n != 1)
        return lose(share, NKV_EDEVICE, "it gave another number of completions than it was asked for");
    slot = cqe.user_data < QUEUE_COMMANDS ? &share->slots[cqe.user_data] : NULL;
    if (!slot || !slot->face)
        return lose(share, NKV_EDEVICE, "it completed what is not in flight there");
    face = slot->face;
    ready = &face->ready[(face->first_ready + face->n_ready++) % QUEUE_COMMANDS];
    ready->cqe = cqe;
    ready->cqe.user_data = slot->user_data;
    if (cqe.res < 0)
        snprintf(ready->error, sizeof ready->error, "%s", nkv_last_error());
    slot->face = NULL;
    share->free_slots[share->n_free++] = (uint32_t)cqe.user_data;
    return 1;
}

static int face_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    struct face *face = face_of(device);
    struct share *share = face->share;
    uint64_t n_messages;
    int status;

    TRY(check(share));
    if (n > QUEUE_COMMANDS - face->n_open)
        FAIL(NKV_ENOSPC, "%u commands into a queue of %u", n, QUEUE_COMMANDS);
    while (share->n_free < n)
        TRY(take(share, 1));
    for (uint32_t i = 0; i < n; i++)
        stage(face, &cmds[i], &share->staged[i]);
    n_messages = nkv_fail_count();
    status = share->inner->ops->submit(share->inner, share->staged, n);
    return status < 0 ? lose(share, status, port_message_since(n_messages)) : 0;
}

/* ---- Up ---- */

static void give(struct face *face, struct nkv_cqe *cqe_out)
{
    const struct ready *ready = &face->ready[face->first_ready];

    *cqe_out = ready->cqe;
    if (ready->cqe.res < 0)
        (void)nkv_fail(ready->cqe.res, "%s", ready->error);
    face->first_ready = (face->first_ready + 1) % QUEUE_COMMANDS;
    face->n_ready--;
    face->n_open--;
}

static int face_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    struct face *face = face_of(device);
    uint32_t n = 0;
    int taken = 1;

    TRY(check(face->share));
    if (min_n > face->n_open || min_n > max_n)
        FAIL(NKV_EINVAL, "%u completions of %u commands in flight", min_n, face->n_open);
    while (n < max_n && taken > 0) {
        if (face->n_ready > 0) {
            give(face, &cqes_out[n++]);
            continue;
        }
        if (face->n_open == 0)
            break;
        taken = take(face->share, n < min_n);
        TRY(taken);
    }
    return (int)n;
}

/* ---- The window ---- */

/* Maps both parts. State after a failure: as it was. */
static int map_all(struct share *share, const uint64_t bytes[FACE_COUNT])
{
    uint64_t all = 0;
    void *window;

    for (uint32_t f = 0; f < FACE_COUNT; f++)
        all += bytes[f];
    TRY(share->inner->ops->map(share->inner, all, &window));
    share->window = window;
    all = 0;
    for (uint32_t f = 0; f < FACE_COUNT; f++) {
        struct face *face = &share->faces[f];

        face->at = all;
        face->bytes = bytes[f];
        all += bytes[f];
        if (face->window && face->bytes > 0)
            *face->window = share->window + face->at;
    }
    return 0;
}

static int face_map(struct nkv_device *device, uint64_t bytes, void **window_out)
{
    struct face *face = face_of(device);
    struct share *share = face->share;
    uint64_t sizes[FACE_COUNT];
    bool grows = bytes > face->bytes, lost = share->status < 0;
    uint64_t n_messages;
    int status;

    for (uint32_t f = 0; f < FACE_COUNT; f++) {
        const struct face *one = &share->faces[f];

        sizes[f] = one == face && grows ? nkv_round_up(bytes, PART_ALIGN) : one->bytes;
        if (grows && !lost && one->n_open > 0)
            FAIL(NKV_ESTATE, "a window cannot grow while %u commands are in flight", one->n_open);
    }
    n_messages = nkv_fail_count();
    status = grows || lost ? map_all(share, sizes) : 0;
    if (status == NKV_EDEVICE && !lost)
        return lose(share, status, port_message_since(n_messages));
    TRY(status);
    if (lost)
        reset_queue(share);
    share->status = 0;
    *window_out = share->window + face->at;
    return 0;
}

/* ---- What is asked of the device itself ---- */

static int face_caps(struct nkv_device *device, struct nkv_device_caps *caps_out)
{
    struct nkv_device *inner = face_of(device)->share->inner;

    return inner->ops->caps(inner, caps_out);
}

static int face_stat(struct nkv_device *device, struct nkv_device_stat *stat_out)
{
    struct share *share = face_of(device)->share;
    uint64_t n_messages = nkv_fail_count();
    int status;

    TRY(check(share));
    if (!share->inner->ops->stat)
        return NKV_ENOTSUP;
    status = share->inner->ops->stat(share->inner, stat_out);
    if (status == NKV_EDEVICE)
        return lose(share, status, port_message_since(n_messages));
    return status;
}

static int face_copy(struct nkv_device *device, uint64_t offset, const void *from, uint64_t bytes)
{
    const struct face *face = face_of(device);
    struct nkv_device *inner = face->share->inner;

    if (inner->ops->copy)
        return inner->ops->copy(inner, face->at + offset, from, bytes);
    memcpy(face->share->window + face->at + offset, from, bytes);
    return 0;
}

static const struct nkv_device_ops face_ops = {
    .abi = NKV_DEVICE_ABI,
    .backend = "share",
    .caps = face_caps,
    .map = face_map,
    .submit = face_submit,
    .reap = face_reap,
    .stat = face_stat,
    .copy = face_copy,
};

/* ---- For the context ---- */

void share_watch(struct nkv_device *face, uint8_t **window)
{
    face_of(face)->window = window;
}

int share_check(const struct nkv_device *face, const char **why_out)
{
    const struct share *share = ((const struct face *)(const void *)face)->share;

    *why_out = share->error;
    return share->status;
}

struct nkv_device *const *shares_faces(const struct shares *shares, enum face_kind kind)
{
    return shares->faces[kind];
}

void shares_close(struct shares *shares)
{
    if (!shares)
        return;
    for (uint32_t f = 0; f < FACE_COUNT; f++)
        nkv_free(shares->faces[f]);
    nkv_free(shares->shares);
    nkv_free(shares);
}

static int fill(struct shares *shares, struct nkv_device *const *devices)
{
    TRY(nkv_alloc(shares->n, sizeof *shares->shares, &shares->shares));
    for (uint32_t f = 0; f < FACE_COUNT; f++)
        TRY(nkv_alloc(shares->n, sizeof(struct nkv_device *), &shares->faces[f]));
    for (uint32_t i = 0; i < shares->n; i++) {
        struct share *share = &shares->shares[i];

        TRY(port_check_device(devices[i], i));
        share->inner = devices[i];
        for (uint32_t f = 0; f < FACE_COUNT; f++) {
            share->faces[f].device.ops = &face_ops;
            share->faces[f].share = share;
            shares->faces[f][i] = &share->faces[f].device;
        }
        reset_queue(share);
    }
    return 0;
}

int shares_open(struct nkv_device *const *devices, uint32_t n, struct shares **shares_out)
{
    struct shares *shares;
    int status;

    TRY(nkv_alloc(1, sizeof *shares, &shares));
    shares->n = n;
    status = fill(shares, devices);
    if (status < 0) {
        shares_close(shares);
        return status;
    }
    *shares_out = shares;
    return 0;
}
