/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tests/device/hostile.h: commands that are likely right, what spoils them, and a sequence of a victim whose data
 * nobody else may change.
 */
#ifndef NKV_TESTS_DEVICE_HOSTILE_H
#define NKV_TESTS_DEVICE_HOSTILE_H

#include "device/rig.h"

#define VICTIM 77u

static const struct nkv_kv_shape hostile_shape = {
    .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8, .page_tokens = 4, .dtype = NKV_F16};

#define HOSTILE_BYTES ((uint64_t)256 << 10) /* of the window */

static inline uint32_t pick(uint64_t *random, uint32_t n)
{
    return (uint32_t)(next_random(random) % n);
}

/* A command that is likely right for sequences 1..6. */
static inline struct nkv_cmd likely(uint64_t *random)
{
    uint32_t n_tokens = 1 + pick(random, 12), n_pages = 4 + pick(random, 8);
    struct nkv_cmd cmd = {.op = (uint8_t)(1 + pick(random, NKV_OP_COUNT - 1)), .seq = 1 + pick(random, 6)};

    switch (cmd.op) {
    case NKV_OP_SEQ_OPEN:
        cmd.n_tokens = 4 * (1 + pick(random, 40));
        cmd.flags = (uint16_t)((uint16_t[]){0, 0, NKV_NO_DIGEST, NKV_NO_PAGES, NKV_SLOTS}[pick(random, 5)]);
        break;
    case NKV_OP_SEQ_FORK:
        cmd.arg = 1 + pick(random, 6);
        cmd.pos = pick(random, 40);
        cmd.n_tokens = cmd.pos + n_tokens;
        break;
    case NKV_OP_SEQ_TRUNCATE:
        cmd.pos = pick(random, 60);
        break;
    case NKV_OP_SEQ_CLOSE:
        cmd.seq = 1 + pick(random, 20); /* rarely one that is open */
        break;
    default:
        cmd.layer = (uint16_t)pick(random, 2);
        cmd.n_tokens = n_tokens;
        cmd.pos = pick(random, 4) ? 0 : pick(random, 60);
        cmd.in_offset = 64 * pick(random, 512);
        cmd.out_offset = (64 << 10) + 64 * pick(random, 512);
        cmd.list_offset = (128 << 10) + 64 * pick(random, 512);
        cmd.n_pages = n_pages;
        break;
    }
    return cmd;
}

/* Makes it fit its op, most of the time. */
static inline void tidy(struct nkv_cmd *cmd, uint64_t *random)
{
    if (cmd->op == NKV_OP_SELECT) {
        cmd->recent = 1;
        cmd->sink = (uint8_t)pick(random, 2);
        cmd->flags = (uint16_t)(pick(random, 8));
        if (cmd->flags & NKV_STEADY)
            cmd->arg = pick(random, 8);
        else
            cmd->list_offset = 0;
        if (!pick(random, 4)) {
            cmd->flags = (uint16_t)((cmd->flags & (NKV_PER_HEAD | NKV_SCORES)) | NKV_CANDIDATES);
            cmd->recent = 0;
            cmd->pos = 8 * pick(random, 8);
            cmd->list_offset = cmd->arg = 0;
        }
    }
    if (cmd->op == NKV_OP_ATTEND) {
        cmd->flags = (uint16_t)((pick(random, 2) ? NKV_PER_HEAD : 0) | (pick(random, 2) ? NKV_CAUSAL : 0) |
                                (pick(random, 3) ? 0 : NKV_ALL_PAGES));
        if (cmd->flags & NKV_ALL_PAGES)
            cmd->list_offset = cmd->n_pages = 0;
    }
    if (cmd->op == NKV_OP_APPEND)
        cmd->out_offset = cmd->list_offset = cmd->n_pages = 0;
    if (cmd->op == NKV_OP_SEQ_PUBLISH)
        *cmd = (struct nkv_cmd){
            .op = NKV_OP_SEQ_PUBLISH, .seq = cmd->seq, .in_offset = 64 * pick(random, 16), .n_tokens = cmd->n_tokens};
    if (cmd->op == NKV_OP_SEQ_LIST) {
        cmd->layer = 0;
        cmd->arg = pick(random, 3);
        cmd->pos = 0;
        cmd->list_offset = 0;
    }
    if (cmd->op >= NKV_OP_SEQ_OPEN && cmd->op <= NKV_OP_SEQ_FORK && !pick(random, 4)) {
        cmd->flags = NKV_NAMED;
        cmd->arg = 0;
        cmd->in_offset = cmd->op == NKV_OP_SEQ_CLOSE ? 0 : 64 * pick(random, 16);
    }
    if (cmd->op == NKV_OP_READ)
        cmd->in_offset = cmd->n_tokens = cmd->pos = 0;
    if (cmd->op == NKV_OP_WRITE)
        cmd->out_offset = cmd->pos = 0;
    if ((cmd->op == NKV_OP_READ || cmd->op == NKV_OP_WRITE) && !pick(random, 3)) {
        cmd->flags = NKV_DIGEST;
        cmd->list_offset = cmd->n_tokens = 0;
        cmd->n_pages = pick(random, 4);
    } else if ((cmd->op == NKV_OP_READ || cmd->op == NKV_OP_WRITE) && !pick(random, 4)) {
        cmd->flags = NKV_TOKENS;
        cmd->layer = 0;
        cmd->list_offset = cmd->n_pages = 0;
        cmd->n_tokens = 1 + pick(random, 12);
        cmd->pos = pick(random, 60);
    }
}

static inline void mutate(struct nkv_cmd *cmd, uint64_t *random)
{
    static const uint64_t extremes[] = {0, 1, 63, 64, 0x7fffffff, 0xffffffff, 0xffffffffffffffc0, 0x8000000000000000};
    unsigned char *bytes = (unsigned char *)cmd;
    uint64_t value = extremes[pick(random, 8)];
    size_t at = pick(random, sizeof *cmd);

    if (pick(random, 2))
        bytes[at] ^= (unsigned char)(1u << pick(random, 8));
    else if (pick(random, 2))
        memcpy(bytes + at / 4 * 4, &value, 4);
    else
        memcpy(bytes + at / 8 * 8, &value, 8);
    if (cmd->seq == VICTIM)
        cmd->seq = 0;
}

/* Lists of all kinds where list_offset likely points; floats of all bits elsewhere. */
static inline void scribble(void *window, uint64_t *random)
{
    uint32_t *words = window, n_words = (uint32_t)(HOSTILE_BYTES / 4);
    uint32_t begin = pick(random, n_words - 64), n = pick(random, 12);

    for (uint32_t i = 0; i < 64; i++)
        words[begin + i] = (uint32_t)next_random(random);
    if (pick(random, 2)) { /* a name that others may have, too, where in_offset likely points */
        struct nkv_seq_name name = {.name = {(char)('a' + pick(random, 8))}, .model = pick(random, 2)};

        memcpy(words + 16 * pick(random, 16), &name, sizeof name);
    }
    begin = (128 << 8) + 16 * pick(random, 600); /* words */
    words[begin] = n;
    for (uint32_t i = 0; i < n; i++)
        words[begin + 1 + i] = pick(random, 8) ? i : pick(random, 20);
}

/* Frees what hostile clients published and left behind. */
static inline void remove_published(struct rig *rig)
{
    struct nkv_cmd list = {.op = NKV_OP_SEQ_LIST, .in_offset = 0, .out_offset = 4096, .n_pages = 1};

    while (rig_do(rig, list) > 0) {
        const struct nkv_seq_info *info = rig_at(rig, list.out_offset);

        memcpy(rig_at(rig, 0), &info->name, sizeof info->name);
        rig_do(rig, (struct nkv_cmd){.op = NKV_OP_SEQ_OPEN, .seq = 1000, .flags = NKV_NAMED, .n_tokens = 1});
        rig_do(rig, (struct nkv_cmd){.op = NKV_OP_SEQ_CLOSE, .seq = 1000, .flags = NKV_NAMED});
    }
}

static inline void fill_victim(struct rig *rig, struct model *model, uint64_t *random)
{
    model_open(model, &hostile_shape, 50);
    assert_int_equal(rig_seq_open(rig, VICTIM, 50, 0), 0);
    for (uint32_t layer = 0; layer < 2; layer++)
        rig_append(rig, model, VICTIM, layer, 50, random);
}

static inline void check_victim(struct rig *rig, const struct model *model)
{
    float *q = rig_at(rig, 0), *o = rig_at(rig, 4096);
    struct nkv_partial_layout at = nkv_partial_layout(&hostile_shape, 1);
    uint32_t pages[13];
    uint64_t random = 1;
    double want[8];

    for (uint32_t i = 0; i < 13; i++)
        pages[i] = i;
    random_floats(&random, q, 4 * 8);
    for (uint16_t layer = 0; layer < 2; layer++) {
        assert_int_equal(rig_do(rig, (struct nkv_cmd){.op = NKV_OP_ATTEND,
                                                      .seq = VICTIM,
                                                      .layer = layer,
                                                      .flags = NKV_ALL_PAGES,
                                                      .out_offset = 4096,
                                                      .n_tokens = 1}),
                         50);
        for (uint32_t h = 0; h < 4; h++) {
            const float *l = rig_at(rig, 4096 + at.l);

            model_attend(model, layer, h / 2, q + h * 8, pages, 13, UINT32_MAX, want);
            for (uint32_t d = 0; d < 8; d++)
                assert_float_equal(o[h * 8 + d] / l[h], want[d], 1e-5);
        }
    }
}

#endif
