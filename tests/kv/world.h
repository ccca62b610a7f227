/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tests/kv/world.h: random operations on a store in an image, and a naive model of what it should hold. An operation is
 * planned (from the model and random numbers alone), applied to the store, and applied to the model, in three steps, so
 * that a process that was killed between them leaves a plan from which both possible states follow.
 */
#ifndef NKV_TESTS_KV_WORLD_H
#define NKV_TESTS_KV_WORLD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kv/rows.h"
#include "kv/store.h"

#define WORLD_SEQS   10u
#define WORLD_TOKENS 420u /* of a sequence, at most */
#define WORLD_LAYERS 2u

static const struct nkv_kv_shape world_shape = {
    .n_layers = WORLD_LAYERS, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8, .page_tokens = 2, .dtype = NKV_F32};

struct world_seq {
    bool open, detached;
    uint16_t flags;
    uint64_t key;
    uint32_t max_tokens, lengths[WORLD_LAYERS];
    uint32_t numbers[WORLD_LAYERS][WORLD_TOKENS]; /* which number each token is; K and V rows are made from it */
    struct nkv_seq_name name;
    uint32_t ids[WORLD_TOKENS];
};

enum world_kind { WORLD_OPEN, WORLD_APPEND, WORLD_FORK, WORLD_TRUNCATE, WORLD_CLOSE, WORLD_PUBLISH, WORLD_ATTACH };

struct world_op {
    enum world_kind kind;
    uint32_t seq, parent; /* places in the world */
    uint32_t n, max_tokens, number;
    uint16_t flags;
    uint32_t layer0, layers; /* APPEND: the first and how many get the tokens: fewer than all is a step that failed */
    bool remove;             /* CLOSE: what is published, too */
};

struct world {
    struct nkv_store *store;
    struct world_seq seqs[WORLD_SEQS];
    uint64_t random;
    uint32_t next_number;
};

static inline uint32_t world_shortest(const struct world_seq *seq)
{
    uint32_t n = UINT32_MAX;

    for (uint32_t layer = 0; layer < WORLD_LAYERS; layer++)
        n = seq->lengths[layer] < n ? seq->lengths[layer] : n;
    return n;
}

/* A place that is or is not open (and, if open, has a client); WORLD_SEQS: none. */
static inline uint32_t world_pick(struct world *w, bool open, bool detached)
{
    uint32_t first = below(&w->random, WORLD_SEQS);

    for (uint32_t i = 0; i < WORLD_SEQS; i++) {
        const struct world_seq *seq = &w->seqs[(first + i) % WORLD_SEQS];

        if (seq->open == open && (!open || seq->detached == detached))
            return (first + i) % WORLD_SEQS;
    }
    return WORLD_SEQS;
}

static inline uint64_t world_key(uint32_t place)
{
    return nkv_seq_key(1 + place % 3, place * 0x10000u + 7);
}

/* returns: false: nothing of that kind can be done now. */
static inline bool world_plan(struct world *w, struct world_op *op)
{
    static const uint8_t kinds[] = {WORLD_OPEN,     WORLD_OPEN,     WORLD_APPEND, WORLD_APPEND,  WORLD_APPEND,
                                    WORLD_APPEND,   WORLD_APPEND,   WORLD_APPEND, WORLD_APPEND,  WORLD_FORK,
                                    WORLD_FORK,     WORLD_TRUNCATE, WORLD_CLOSE,  WORLD_PUBLISH, WORLD_PUBLISH,
                                    WORLD_TRUNCATE, WORLD_ATTACH};

    *op = (struct world_op){.kind = kinds[below(&w->random, sizeof kinds)]};
    op->seq = world_pick(w, op->kind != WORLD_OPEN && op->kind != WORLD_FORK, op->kind == WORLD_ATTACH);
    op->parent = world_pick(w, true, below(&w->random, 4) == 0);
    op->number = w->next_number;
    op->n = 1 + below(&w->random, 60);
    op->layers = below(&w->random, 5) ? WORLD_LAYERS : below(&w->random, WORLD_LAYERS);
    op->layer0 = below(&w->random, WORLD_LAYERS);
    op->flags = below(&w->random, 4) ? 0 : NKV_NO_DIGEST;
    op->remove = below(&w->random, 2);
    op->max_tokens = 1 + below(&w->random, WORLD_TOKENS);
    if (op->seq == WORLD_SEQS || (op->kind == WORLD_FORK && op->parent == WORLD_SEQS))
        return false;
    w->next_number += op->n * WORLD_LAYERS;
    if (op->kind == WORLD_PUBLISH && w->seqs[op->seq].name.name[0])
        return false;
    if (op->kind == WORLD_FORK) {
        op->n = below(&w->random, world_shortest(&w->seqs[op->parent]) + 1);
        op->max_tokens = op->n + 1 + below(&w->random, WORLD_TOKENS - op->n);
        op->max_tokens = op->max_tokens < WORLD_TOKENS ? op->max_tokens : WORLD_TOKENS;
        return op->max_tokens >= op->n && op->max_tokens > 0;
    }
    if (op->kind == WORLD_TRUNCATE)
        op->n = below(&w->random, w->seqs[op->seq].lengths[0] + 2);
    return true;
}

static inline struct nkv_seq_name world_name(const struct world_op *op)
{
    struct nkv_seq_name name = {.model = 7};

    snprintf(name.name, sizeof name.name, "s%u.%u", op->seq, op->number);
    return name;
}

static inline void world_append_layer(struct world *w, struct nkv_kv_seq *seq, const struct world_op *op,
                                      uint32_t layer)
{
    uint32_t pos = seq->lengths[layer], left = seq->max_tokens - pos, n = op->n < left ? op->n : left;
    float k[60 * 8], v[60 * 8];

    for (uint32_t head = 0; head < world_shape.n_kv_heads; head++) {
        for (uint32_t i = 0; i < n; i++)
            fill_rows(op->number + layer * op->n + i, head, 8, k + i * 8, v + i * 8);
        nkv_store_put(w->store, seq, layer, head, pos, n, k, v, 8);
    }
    nkv_store_extend(w->store, seq, layer, n, true);
}

/* returns: the store's status. */
static inline int world_apply_store(struct world *w, const struct world_op *op)
{
    struct world_seq *model = &w->seqs[op->seq];
    struct nkv_seq_name name = world_name(op);
    struct nkv_kv_seq *seq;
    uint32_t ids[WORLD_TOKENS], n_ids;

    switch (op->kind) {
    case WORLD_OPEN:
        return nkv_store_seq_open(w->store, world_key(op->seq), op->max_tokens, op->flags);
    case WORLD_FORK:
        return nkv_store_seq_fork(w->store, world_key(op->seq), w->seqs[op->parent].key, op->n, op->max_tokens);
    case WORLD_TRUNCATE:
        return nkv_store_seq_truncate(w->store, model->key, op->n);
    case WORLD_CLOSE:
        return model->name.name[0] && op->remove ? nkv_store_remove(w->store, model->key)
                                                 : nkv_store_seq_close(w->store, model->key);
    case WORLD_PUBLISH:
        n_ids = world_shortest(model);
        for (uint32_t i = 0; i < n_ids; i++)
            ids[i] = op->number + i;
        return nkv_store_publish(w->store, model->key, &name, ids, n_ids);
    case WORLD_ATTACH:
        return nkv_store_attach(w->store, world_key(op->seq), &model->name, op->max_tokens);
    default:
        break;
    }
    seq = nkv_store_find(w->store, model->key);
    if (!seq)
        return NKV_ENOENT;
    n_ids = seq->max_tokens - world_shortest(model);
    n_ids = op->n < n_ids ? op->n : n_ids;
    for (uint32_t i = 0; i < n_ids; i++)
        ids[i] = op->number + i;
    if (seq->tokens && n_ids)
        nkv_store_put_ids(w->store, seq, world_shortest(model), ids, n_ids);
    for (uint32_t i = 0; i < op->layers; i++)
        world_append_layer(w, seq, op, (op->layer0 + i) % WORLD_LAYERS);
    return 0;
}

static inline void world_cut(struct world_seq *seq, uint32_t n)
{
    for (uint32_t layer = 0; layer < WORLD_LAYERS; layer++)
        seq->lengths[layer] = seq->lengths[layer] < n ? seq->lengths[layer] : n;
}

static inline void world_append_model(struct world_seq *seq, const struct world_op *op)
{
    uint32_t shortest = world_shortest(seq);

    for (uint32_t i = 0; i < op->n && seq->name.name[0] && shortest + i < seq->max_tokens; i++)
        seq->ids[shortest + i] = op->number + i;
    for (uint32_t l = 0; l < op->layers; l++) {
        uint32_t layer = (op->layer0 + l) % WORLD_LAYERS;

        for (uint32_t i = 0; i < op->n && seq->lengths[layer] < seq->max_tokens; i++)
            seq->numbers[layer][seq->lengths[layer]++] = op->number + layer * op->n + i;
    }
}

/* What the store does when it succeeds. */
static inline void world_apply_model(struct world *w, const struct world_op *op)
{
    struct world_seq *seq = &w->seqs[op->seq];

    switch (op->kind) {
    case WORLD_OPEN:
        *seq = (struct world_seq){
            .open = true, .flags = op->flags, .key = world_key(op->seq), .max_tokens = op->max_tokens};
        break;
    case WORLD_FORK:
        *seq = w->seqs[op->parent];
        seq->detached = false;
        memset(&seq->name, 0, sizeof seq->name);
        seq->key = world_key(op->seq);
        seq->max_tokens = op->max_tokens;
        world_cut(seq, op->n);
        break;
    case WORLD_TRUNCATE:
        world_cut(seq, op->n);
        break;
    case WORLD_CLOSE:
        seq->detached = seq->name.name[0] && !op->remove;
        seq->open = seq->detached;
        break;
    case WORLD_PUBLISH:
        seq->name = world_name(op);
        memset(seq->ids, 0, sizeof seq->ids);
        for (uint32_t i = 0; i < world_shortest(seq); i++)
            seq->ids[i] = op->number + i;
        break;
    case WORLD_ATTACH:
        seq->detached = false;
        seq->key = world_key(op->seq);
        seq->max_tokens = op->max_tokens > seq->max_tokens ? op->max_tokens : seq->max_tokens;
        world_cut(seq, world_shortest(seq));
        break;
    default:
        world_append_model(seq, op);
        break;
    }
}

/* The key of a detached sequence is the store's choice: the model learns it. returns: whether the store has the
 * sequence, detached. */
static inline bool world_learn_key(struct world *w, struct world_seq *seq)
{
    return !seq->detached ||
           (nkv_store_find_named(w->store, &seq->name, &seq->key) == 0 && seq->key >> 32 == NKV_OWNER_NONE);
}

/* What a new process finds: steps that failed are cut off. */
static inline void world_restart(struct world *w)
{
    for (uint32_t i = 0; i < WORLD_SEQS; i++)
        world_cut(&w->seqs[i], world_shortest(&w->seqs[i]));
}

static inline bool world_token_is(const struct world *w, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t token,
                                  uint32_t number)
{
    for (uint32_t head = 0; head < world_shape.n_kv_heads; head++) {
        struct nkv_page_view view = nkv_store_page(w->store, seq, layer, token / world_shape.page_tokens, head);
        size_t at = (size_t)(token % world_shape.page_tokens) * 8;
        float k[8], v[8];

        fill_rows(number, head, 8, k, v);
        if (memcmp((float *)view.k + at, k, sizeof k) != 0 || memcmp((float *)view.v + at, v, sizeof v) != 0)
            return false;
    }
    return true;
}

/* Digests are the least and the most of each page. */
static inline bool world_digest_is(const struct world *w, const struct world_seq *model, const struct nkv_kv_seq *seq,
                                   uint32_t layer, uint32_t page)
{
    for (uint32_t head = 0; head < world_shape.n_kv_heads; head++) {
        const float *lo = nkv_store_digests(w->store, seq, layer, page / NKV_DIGEST_CHUNK_PAGES, head);
        uint32_t t = page * world_shape.page_tokens;

        lo += (size_t)(page % NKV_DIGEST_CHUNK_PAGES) * 16;
        for (uint32_t d = 0; d < 8; d++) {
            float a = cell(model->numbers[layer][t], head, d, false);
            float b = cell(model->numbers[layer][t + 1], head, d, false);

            if (lo[d] != (a < b ? a : b) || lo[8 + d] != (a < b ? b : a))
                return false;
        }
    }
    return true;
}

/* Does the store hold the first n tokens of this sequence? */
static inline bool world_holds(const struct world *w, const struct world_seq *model, const struct nkv_kv_seq *seq,
                               uint32_t layer, uint32_t n)
{
    for (uint32_t t = 0; t < n; t++)
        if (!world_token_is(w, seq, layer, t, model->numbers[layer][t]))
            return false;
    for (uint32_t page = 0; !(model->flags & NKV_NO_DIGEST) && page < n / world_shape.page_tokens; page++)
        if (!world_digest_is(w, model, seq, layer, page))
            return false;
    return true;
}

static inline bool world_seq_matches(struct world *w, struct world_seq *model)
{
    const struct nkv_kv_seq *seq;

    if (!world_learn_key(w, model))
        return false;
    seq = nkv_store_find(w->store, model->key);
    if (!seq || seq->flags != model->flags || seq->max_tokens != model->max_tokens ||
        memcmp(&seq->name, &model->name, sizeof seq->name) != 0)
        return false;
    for (uint32_t layer = 0; layer < WORLD_LAYERS; layer++)
        if (seq->lengths[layer] != model->lengths[layer] || !world_holds(w, model, seq, layer, model->lengths[layer]))
            return false;
    return !seq->tokens || memcmp(seq->tokens, model->ids, world_shortest(model) * sizeof *seq->tokens) == 0;
}

/* Slots and chunks that some sequence refers to are used, and no others. */
static inline bool world_account_matches(const struct world *w)
{
    static uint8_t slot_seen[1 << 16], chunk_seen[1 << 16];
    struct nkv_device_stat stat = {0};
    struct nkv_kv_estimate unit;
    uint64_t pages = 0, chunks = 0;
    uint32_t n_seqs = 0;

    memset(slot_seen, 0, sizeof slot_seen);
    memset(chunk_seen, 0, sizeof chunk_seen);
    for (uint32_t i = 0; i < WORLD_SEQS; i++) {
        const struct nkv_kv_seq *seq = w->seqs[i].open ? nkv_store_find(w->store, w->seqs[i].key) : NULL;

        n_seqs += seq != NULL;
        for (uint32_t j = 0; seq && j < seq->n_slots; j++)
            pages += !slot_seen[seq->slots[j]]++;
        for (uint32_t j = 0; seq && j < seq->n_chunks; j++)
            chunks += !chunk_seen[seq->chunks[j]]++;
    }
    nkv_store_stat(w->store, &stat);
    return nkv_kv_estimate(&world_shape, world_shape.page_tokens, &unit) == 0 && stat.n_sequences == n_seqs &&
           stat.used_bytes == pages * unit.page_bytes + chunks * unit.digest_bytes;
}

/* Is the store what the model says? Fills in the keys of detached sequences. */
static inline bool world_matches(struct world *w)
{
    for (uint32_t i = 0; i < WORLD_SEQS; i++)
        if (w->seqs[i].open && !world_seq_matches(w, &w->seqs[i]))
            return false;
    return world_account_matches(w);
}

#endif
