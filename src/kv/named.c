/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Published sequences: they have a name and the ids of their tokens, and they stay when their client goes. One that no
 * client has is filed under an owner of its own (NKV_OWNER_NONE), so that closing an owner's sequences, the isolation
 * of clients and the table need not know about names; taking it over gives it another key.
 *
 * Names are looked up by walking the table. An index by name was rejected: it is wanted when a session begins, not in
 * a step, and a device holds dozens of sessions, not millions.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <string.h>

#include "kv/store_private.h"

int nkv_seq_name_check(const struct nkv_seq_name *name)
{
    size_t n = strnlen(name->name, NKV_SEQ_NAME_BYTES);
    bool good = n > 0 && n < NKV_SEQ_NAME_BYTES;

    for (size_t i = 0; good && i < n; i++)
        good = isalnum((unsigned char)name->name[i]) || strchr("-_.", name->name[i]);
    if (!good)
        FAIL(NKV_EINVAL, "the name '%.*s' of a sequence: use from 1 to %u letters, digits and -_.", (int)n, name->name,
             NKV_SEQ_NAME_BYTES - 1);
    for (size_t i = n; i < NKV_SEQ_NAME_BYTES; i++)
        if (name->name[i])
            FAIL(NKV_EINVAL, "the name '%s' of a sequence: byte %zu behind it is not zero", name->name, i - n);
    return 0;
}

static struct nkv_kv_seq *lookup(const struct nkv_store *store, const char *name)
{
    for (uint32_t i = 0; i < 1u << store->table_shift; i++)
        if (store->table[i] && nkv_seq_is_published(store->table[i]) &&
            strncmp(store->table[i]->name.name, name, NKV_SEQ_NAME_BYTES) == 0)
            return store->table[i];
    return NULL;
}

static int find_named(const struct nkv_store *store, const struct nkv_seq_name *name, struct nkv_kv_seq **seq_out)
{
    struct nkv_kv_seq *seq;

    TRY(nkv_seq_name_check(name));
    seq = lookup(store, name->name);
    if (!seq)
        FAIL(NKV_ENOENT, "no published sequence '%s' on this device", name->name);
    if (seq->name.model != name->model)
        FAIL(NKV_EFORMAT, "sequence '%s' is of model %016llx, not of %016llx: remove it or use another name",
             name->name, (unsigned long long)seq->name.model, (unsigned long long)name->model);
    *seq_out = seq;
    return 0;
}

int nkv_store_find_named(const struct nkv_store *store, const struct nkv_seq_name *name, uint64_t *key_out)
{
    struct nkv_kv_seq *seq = NULL;

    TRY(find_named(store, name, &seq));
    *key_out = seq->key;
    return 0;
}

int nkv_store_publish(struct nkv_store *store, uint64_t key, const struct nkv_seq_name *name, const uint32_t *ids,
                      uint32_t n_ids)
{
    struct nkv_kv_seq *seq = nkv_store_find(store, key), head;

    TRY(nkv_seq_name_check(name));
    if (!seq)
        FAIL(NKV_ENOENT, "no sequence %u on this device", (uint32_t)key);
    if (seq->flags & (NKV_NO_PAGES | NKV_SLOTS))
        FAIL(NKV_EINVAL, "sequence %u does not hold all its pages: it cannot be published", seq->id);
    if (nkv_seq_is_published(seq))
        FAIL(NKV_ESTATE, "sequence %u is published as '%s' already", seq->id, seq->name.name);
    if (lookup(store, name->name))
        FAIL(NKV_ESTATE, "the name '%s' is in use on this device: remove that sequence or use another name",
             name->name);
    if (n_ids > seq->max_tokens)
        FAIL(NKV_EINVAL, "ids of %u tokens of a sequence of at most %u", n_ids, seq->max_tokens);
    head = *seq;
    head.name = *name;
    return nkv_store_seq_remake(store, seq, head, ids, n_ids, &seq);
}

static uint64_t free_detached_key(struct nkv_store *store)
{
    while (nkv_store_find(store, nkv_seq_key(NKV_OWNER_NONE, store->next_detached)))
        store->next_detached++;
    return nkv_seq_key(NKV_OWNER_NONE, store->next_detached++);
}

void nkv_store_detach(struct nkv_store *store, struct nkv_kv_seq *seq)
{
    nkv_store_rekey(store, seq, free_detached_key(store));
}

void nkv_store_put_ids(struct nkv_store *store, struct nkv_kv_seq *seq, uint32_t pos, const uint32_t *ids, uint32_t n)
{
    memcpy(seq->tokens + pos, ids, n * sizeof *ids);
    nkv_image_record_pages(store, seq, pos / store->shape.page_tokens);
}

int nkv_store_attach(struct nkv_store *store, uint64_t key, const struct nkv_seq_name *name, uint32_t max_tokens)
{
    struct nkv_kv_seq *seq = NULL;
    uint32_t n_tokens;

    TRY(find_named(store, name, &seq));
    if (nkv_store_find(store, key))
        FAIL(NKV_EINVAL, "sequence %u is open already: close it or use another id", (uint32_t)key);
    if (nkv_store_has_client(store, (uint32_t)(seq->key >> 32)))
        FAIL(NKV_ESTATE, "sequence '%s' is in use by a client: wait until it ends or use another name", name->name);
    /* What a step that was never finished left behind is shared with nobody, so cutting it off takes no room. */
    n_tokens = nkv_seq_shortest_layer(store, seq);
    TRY(nkv_store_seq_truncate(store, seq->key, n_tokens));
    if (max_tokens > seq->max_tokens) {
        struct nkv_kv_seq head = *seq;

        head.key = key;
        head.id = (uint32_t)key;
        head.max_tokens = max_tokens;
        TRY(nkv_store_seq_remake(store, seq, head, NULL, 0, &seq));
    } else {
        nkv_store_rekey(store, seq, key);
    }
    return (int)n_tokens;
}

int nkv_store_remove(struct nkv_store *store, uint64_t key)
{
    struct nkv_kv_seq *seq = nkv_store_find(store, key);

    if (!seq)
        FAIL(NKV_ENOENT, "no sequence %u on this device", (uint32_t)key);
    if (!nkv_seq_is_published(seq))
        FAIL(NKV_EINVAL, "sequence %u is not published: close it without NAMED", seq->id);
    nkv_store_free_seq(store, seq);
    return 0;
}

static void describe(const struct nkv_store *store, const struct nkv_kv_seq *seq, const uint32_t *tokens,
                     uint32_t n_tokens, struct nkv_seq_info *info_out)
{
    struct nkv_seq_info info = {.name = seq->name, .max_tokens = seq->max_tokens, .flags = seq->flags};

    info.n_tokens = nkv_seq_shortest_layer(store, seq);
    info.attached = nkv_store_has_client(store, (uint32_t)(seq->key >> 32));
    while (info.n_common < info.n_tokens && info.n_common < n_tokens &&
           seq->tokens[info.n_common] == tokens[info.n_common])
        info.n_common++;
    for (uint32_t i = 0; i < seq->n_slots; i++)
        if (nkv_pool_is_shared(&store->slot_pool, seq->slots[i]))
            info.shared_bytes += store->page_bytes;
    for (uint32_t i = 0; i < seq->n_chunks; i++)
        if (nkv_pool_is_shared(&store->chunk_pool, seq->chunks[i]))
            info.shared_bytes += store->chunk_bytes;
    info.used_bytes = seq->n_slots * store->page_bytes + seq->n_chunks * store->chunk_bytes;
    *info_out = info;
}

/* The published sequence that comes next by name; NULL: none. */
static const struct nkv_kv_seq *next_by_name(const struct nkv_store *store, const char *after)
{
    const struct nkv_kv_seq *next = NULL;

    for (uint32_t i = 0; i < 1u << store->table_shift; i++) {
        const struct nkv_kv_seq *seq = store->table[i];

        if (seq && strncmp(seq->name.name, after, NKV_SEQ_NAME_BYTES) > 0 &&
            (!next || strncmp(seq->name.name, next->name.name, NKV_SEQ_NAME_BYTES) < 0))
            next = seq;
    }
    return next;
}

uint32_t nkv_store_list(const struct nkv_store *store, uint32_t first, uint32_t n, const uint32_t *tokens,
                        uint32_t n_tokens, struct nkv_seq_info *infos_out)
{
    const struct nkv_kv_seq *seq = next_by_name(store, "");
    uint32_t n_described = 0;

    for (uint32_t i = 0; seq && n_described < n; i++, seq = next_by_name(store, seq->name.name))
        if (i >= first)
            describe(store, seq, tokens, n_tokens, &infos_out[n_described++]);
    return n_described;
}
