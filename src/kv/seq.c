/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences: open, close, fork, truncate. Every function first allocates and checks, then changes: once the pools are
 * touched nothing can fail, so a failure leaves the state as it was.
 *
 * The invariant behind copy-on-write: a slot or chunk from the first page that is not full on has one reference. Fork
 * keeps it by copying the open page and the partly filled chunk; truncate, which moves that boundary back, by giving
 * the sequence slots of its own for what it shared beyond. So appending never copies, never allocates and cannot fail.
 * Copying at the first write after a fork was rejected: it would put an allocation that can fail in the decode path.
 */
#include <string.h>

#include "kv/store_private.h"

static uint32_t pages_of(const struct nkv_store *store, uint64_t n_tokens)
{
    uint32_t page_tokens = store->shape.page_tokens;

    return (uint32_t)((n_tokens + page_tokens - 1) / page_tokens);
}

static uint32_t chunks_of(uint32_t n_full_pages)
{
    return n_full_pages / NKV_DIGEST_CHUNK_PAGES + (n_full_pages % NKV_DIGEST_CHUNK_PAGES != 0);
}

/* What a new sequence does not take because another gives it. */
struct kept {
    uint32_t n_slots, n_chunks;
};

static struct kept kept_of_fork(const struct nkv_store *store, uint16_t flags, uint32_t n_tokens)
{
    uint32_t n_full = n_tokens / store->shape.page_tokens;

    return (struct kept){flags & NKV_NO_PAGES ? 0 : n_full,
                         flags & NKV_NO_DIGEST ? 0 : n_full / NKV_DIGEST_CHUNK_PAGES};
}

/*
 * A sequence whose slots and chunks behind those kept are taken. One allocation; room is checked before it, so that an
 * absurd length is refused without allocating its tables.
 */
static int seq_new(struct nkv_store *store, struct nkv_kv_seq head, struct kept kept, struct nkv_kv_seq **seq_out)
{
    struct nkv_kv_seq *seq = NULL;
    uint32_t n_layers = store->shape.n_layers;
    size_t n_words;
    int status;

    head.n_pages = pages_of(store, head.max_tokens);
    head.n_slots = head.flags & NKV_NO_PAGES ? 1 : head.n_pages;
    head.n_chunks = nkv_seq_has_digests(&head) ? chunks_of(head.max_tokens / store->shape.page_tokens) : 0;
    TRY(nkv_store_charge(store, head.n_slots - kept.n_slots, head.n_chunks - kept.n_chunks));
    TRY(nkv_store_table_reserve(store));
    n_words = (size_t)head.n_slots + head.n_chunks + 2 * (size_t)n_layers;
    if (nkv_seq_is_published(&head) && !store->image)
        n_words += head.max_tokens;
    TRY(nkv_alloc(1, sizeof head + sizeof(uint32_t) * n_words, &seq));
    *seq = head;
    seq->slots = (uint32_t *)(seq + 1);
    seq->chunks = seq->slots + seq->n_slots;
    seq->lengths = seq->chunks + seq->n_chunks;
    seq->held = head.flags & NKV_NO_PAGES ? seq->lengths + n_layers : NULL;
    seq->tokens = nkv_seq_is_published(seq) ? seq->lengths + 2 * n_layers : NULL;
    for (uint32_t layer = 0; seq->held && layer < n_layers; layer++)
        seq->held[layer] = NKV_PAGE_NONE;
    status = nkv_image_reserve(store, seq);
    if (status < 0) {
        nkv_free(seq);
        return status;
    }
    nkv_pool_take(&store->slot_pool, seq->n_slots - kept.n_slots, seq->slots + kept.n_slots);
    nkv_pool_take(&store->chunk_pool, seq->n_chunks - kept.n_chunks, seq->chunks + kept.n_chunks);
    *seq_out = seq;
    return 0;
}

static int check_new(const struct nkv_store *store, uint64_t key, uint32_t max_tokens)
{
    uint32_t id = (uint32_t)key;

    if (nkv_store_find(store, key))
        FAIL(NKV_EINVAL, "sequence %u is open already: close it or use another id", id);
    if (max_tokens == 0)
        FAIL(NKV_EINVAL, "sequence %u: 0 tokens asked for: ask for at least 1", id);
    return 0;
}

static int check_flags(const struct nkv_store *store, uint32_t max_tokens, uint16_t flags)
{
    if (flags & ~(NKV_NO_DIGEST | NKV_NO_PAGES | NKV_SLOTS) || (flags & (flags - 1)))
        FAIL(NKV_EINVAL, "flags 0x%x of a sequence: use one of NO_DIGEST, NO_PAGES, SLOTS or none", flags);
    if (flags & NKV_SLOTS && max_tokens % store->shape.page_tokens)
        FAIL(NKV_EINVAL, "%u tokens of page slots are no multiple of the page size %u", max_tokens,
             store->shape.page_tokens);
    return 0;
}

/* Slots of a resident set are readable before they are filled: no one may see what was there before. */
static void clear_slots(struct nkv_store *store, const struct nkv_kv_seq *seq)
{
    for (uint32_t layer = 0; layer < store->shape.n_layers; layer++)
        for (uint32_t i = 0; i < seq->n_slots; i++)
            memset(nkv_store_frame(store, layer, seq->slots[i]), 0, store->frame_bytes);
    for (uint32_t i = 0; i < seq->n_slots; i++)
        nkv_pool_mark(&store->slot_pool, seq->slots[i], true);
}

int nkv_store_seq_open(struct nkv_store *store, uint64_t key, uint32_t max_tokens, uint16_t flags)
{
    struct nkv_kv_seq head = {.key = key, .id = (uint32_t)key, .flags = flags, .max_tokens = max_tokens}, *seq;

    TRY(check_new(store, key, max_tokens));
    TRY(check_flags(store, max_tokens, flags));
    TRY(seq_new(store, head, (struct kept){0}, &seq));
    if (flags & NKV_SLOTS)
        clear_slots(store, seq);
    nkv_image_enter(store, seq);
    nkv_store_table_insert(store, seq);
    return 0;
}

static int find(const struct nkv_store *store, uint64_t key, struct nkv_kv_seq **seq_out)
{
    struct nkv_kv_seq *seq = nkv_store_find(store, key);

    if (!seq)
        FAIL(NKV_ENOENT, "no sequence %u on this device", (uint32_t)key);
    *seq_out = seq;
    return 0;
}

void nkv_store_free_seq(struct nkv_store *store, struct nkv_kv_seq *seq)
{
    nkv_image_forget(store, seq);
    nkv_store_table_remove(store, seq->key);
    for (uint32_t i = 0; i < seq->n_slots; i++)
        nkv_pool_drop(&store->slot_pool, seq->slots[i]);
    for (uint32_t i = 0; i < seq->n_chunks; i++)
        nkv_pool_drop(&store->chunk_pool, seq->chunks[i]);
    nkv_free(seq);
}

static void close_seq(struct nkv_store *store, struct nkv_kv_seq *seq)
{
    if (nkv_seq_is_published(seq))
        nkv_store_detach(store, seq);
    else
        nkv_store_free_seq(store, seq);
}

/* What published sequences hold must survive a crash of the system from here on. If the medium refuses, checksums find
 * what is missing then. */
static void sync_sessions(struct nkv_store *store, bool any_published)
{
    if (any_published)
        (void)nkv_store_sync(store);
}

int nkv_store_seq_close(struct nkv_store *store, uint64_t key)
{
    struct nkv_kv_seq *seq = NULL;
    bool published;

    TRY(find(store, key, &seq));
    published = nkv_seq_is_published(seq);
    close_seq(store, seq);
    sync_sessions(store, published);
    return 0;
}

/* Removing an entry moves others, also to places that were passed, so the search begins anew. */
uint32_t nkv_store_close_where(struct nkv_store *store,
                               bool (*is_one)(const struct nkv_store *store, uint32_t owner, uint32_t arg),
                               uint32_t arg)
{
    uint32_t n = 0, i = 0;
    bool published = false;

    while (i < 1u << store->table_shift) {
        if (!store->table[i] || !is_one(store, (uint32_t)(store->table[i]->key >> 32), arg)) {
            i++;
            continue;
        }
        published |= nkv_seq_is_published(store->table[i]);
        close_seq(store, store->table[i]);
        n++;
        i = 0;
    }
    sync_sessions(store, published);
    return n;
}

static bool is_owner(const struct nkv_store *store, uint32_t owner, uint32_t wanted)
{
    (void)store;
    return owner == wanted;
}

uint32_t nkv_store_close_owner(struct nkv_store *store, uint32_t owner)
{
    if (owner == NKV_OWNER_NONE) /* these have no client, and stay */
        return 0;
    return nkv_store_close_where(store, is_owner, owner);
}

void nkv_store_rekey(struct nkv_store *store, struct nkv_kv_seq *seq, uint64_t key)
{
    nkv_store_table_remove(store, seq->key);
    seq->key = key;
    seq->id = (uint32_t)key;
    nkv_store_table_insert(store, seq);
    nkv_image_rekey(store, seq);
}

int nkv_store_seq_remake(struct nkv_store *store, struct nkv_kv_seq *old, struct nkv_kv_seq head, const uint32_t *ids,
                         uint32_t n_ids, struct nkv_kv_seq **seq_out)
{
    struct nkv_kv_seq *seq;

    head.flags = old->flags;
    TRY(seq_new(store, head, (struct kept){old->n_slots, old->n_chunks}, &seq));
    memcpy(seq->slots, old->slots, old->n_slots * sizeof *seq->slots);
    memcpy(seq->chunks, old->chunks, old->n_chunks * sizeof *seq->chunks);
    memcpy(seq->lengths, old->lengths, store->shape.n_layers * sizeof *seq->lengths);
    if (old->tokens)
        memcpy(seq->tokens, old->tokens, old->max_tokens * sizeof *seq->tokens);
    if (n_ids)
        memcpy(seq->tokens, ids, n_ids * sizeof *seq->tokens);
    nkv_image_enter(store, seq);
    nkv_image_drop_blocks(store, old->place);
    nkv_store_table_remove(store, old->key);
    nkv_free(old);
    nkv_store_table_insert(store, seq);
    *seq_out = seq;
    return 0;
}

static void copy_slot(struct nkv_store *store, uint32_t from, uint32_t to)
{
    for (uint32_t layer = 0; layer < store->shape.n_layers; layer++)
        memcpy(nkv_store_frame(store, layer, to), nkv_store_frame(store, layer, from), store->frame_bytes);
    nkv_pool_mark(&store->slot_pool, to, true);
    nkv_image_touch_slot(store, to);
}

/* The digests of the first n_pages pages of a chunk. */
static void copy_chunk(struct nkv_store *store, uint32_t from, uint32_t to, uint32_t n_pages)
{
    for (uint32_t layer = 0; layer < store->shape.n_layers; layer++)
        for (uint32_t head = 0; head < store->shape.n_kv_heads; head++)
            memcpy(nkv_store_run(store, to, layer, head), nkv_store_run(store, from, layer, head),
                   n_pages * store->digest_bytes);
    nkv_pool_mark(&store->chunk_pool, to, true);
    nkv_image_touch_chunk(store, to);
}

static int check_fork(const struct nkv_store *store, const struct nkv_kv_seq *parent, uint32_t n_tokens,
                      uint32_t max_tokens)
{
    uint32_t page_tokens = store->shape.page_tokens, open = n_tokens % page_tokens;

    if (parent->flags & NKV_SLOTS)
        FAIL(NKV_EINVAL, "sequence %u holds page slots: it cannot be forked", parent->id);
    if (n_tokens > max_tokens)
        FAIL(NKV_EINVAL, "a copy of %u tokens does not fit a sequence of at most %u", n_tokens, max_tokens);
    for (uint32_t layer = 0; layer < store->shape.n_layers; layer++) {
        if (parent->lengths[layer] < n_tokens)
            FAIL(NKV_EINVAL, "sequence %u holds %u tokens in layer %u: %u cannot be copied", parent->id,
                 parent->lengths[layer], layer, n_tokens);
        if (parent->held && open && parent->held[layer] != n_tokens / page_tokens)
            FAIL(NKV_EINVAL, "sequence %u does not hold the page of token %u in layer %u: fork at %u", parent->id,
                 n_tokens, layer, n_tokens - open);
    }
    return 0;
}

/* Gives the child what it shares and what it copies. pre: its own slots and chunks are there. */
static void fork_data(struct nkv_store *store, const struct nkv_kv_seq *parent, struct nkv_kv_seq *seq,
                      uint32_t n_tokens)
{
    uint32_t page_tokens = store->shape.page_tokens, n_full = n_tokens / page_tokens;
    uint32_t partial = n_full % NKV_DIGEST_CHUNK_PAGES, chunk = n_full / NKV_DIGEST_CHUNK_PAGES;
    bool open = n_tokens % page_tokens != 0;

    if (seq->held) {
        if (open)
            copy_slot(store, parent->slots[0], seq->slots[0]);
    } else {
        for (uint32_t i = 0; i < n_full; i++)
            nkv_pool_share(&store->slot_pool, seq->slots[i] = parent->slots[i]);
        if (open)
            copy_slot(store, parent->slots[n_full], seq->slots[n_full]);
    }
    if (seq->n_chunks) {
        for (uint32_t i = 0; i < chunk; i++)
            nkv_pool_share(&store->chunk_pool, seq->chunks[i] = parent->chunks[i]);
        if (partial)
            copy_chunk(store, parent->chunks[chunk], seq->chunks[chunk], partial);
    }
    for (uint32_t layer = 0; layer < store->shape.n_layers; layer++) {
        seq->lengths[layer] = n_tokens;
        if (seq->held && open)
            seq->held[layer] = n_full;
    }
}

int nkv_store_seq_fork(struct nkv_store *store, uint64_t key, uint64_t parent_key, uint32_t n_tokens,
                       uint32_t max_tokens)
{
    struct nkv_kv_seq head = {.key = key, .id = (uint32_t)key, .max_tokens = max_tokens}, *parent = NULL, *seq;

    TRY(check_new(store, key, max_tokens));
    TRY(find(store, parent_key, &parent));
    TRY(check_fork(store, parent, n_tokens, max_tokens));
    head.flags = parent->flags;
    TRY(seq_new(store, head, kept_of_fork(store, head.flags, n_tokens), &seq));
    fork_data(store, parent, seq, n_tokens);
    nkv_image_enter(store, seq);
    nkv_store_table_insert(store, seq);
    return 0;
}

static int check_truncate(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t n_tokens)
{
    uint32_t open = n_tokens % store->shape.page_tokens, page = n_tokens / store->shape.page_tokens;

    if (seq->flags & NKV_SLOTS)
        FAIL(NKV_EINVAL, "sequence %u holds page slots: it cannot be truncated", seq->id);
    for (uint32_t layer = 0; seq->held && open && layer < store->shape.n_layers; layer++)
        if (seq->lengths[layer] > n_tokens && seq->held[layer] != page)
            FAIL(NKV_EINVAL,
                 "sequence %u does not hold the page of token %u in layer %u: truncate to %u, then write the page",
                 seq->id, n_tokens, layer, n_tokens - open);
    return 0;
}

static uint32_t count_shared(const struct nkv_pool *pool, const uint32_t *things, uint32_t begin, uint32_t end)
{
    uint32_t n = 0;

    for (uint32_t i = begin; i < end; i++)
        n += nkv_pool_is_shared(pool, things[i]);
    return n;
}

/* Puts a thing of the sequence's own in place of a shared one. returns: the old one, still to be dropped. */
static uint32_t replace(struct nkv_pool *pool, uint32_t *thing)
{
    uint32_t old = *thing;

    nkv_pool_take(pool, 1, thing);
    return old;
}

/* From page n_full on, the sequence owns everything and nothing but the open page (if any) holds data. */
static void own_slots(struct nkv_store *store, struct nkv_kv_seq *seq, uint32_t n_full, bool open)
{
    struct nkv_pool *pool = &store->slot_pool;

    for (uint32_t i = n_full; i < seq->n_slots; i++) {
        bool keeps = open && i == n_full;

        if (nkv_pool_is_shared(pool, seq->slots[i])) {
            uint32_t old = replace(pool, &seq->slots[i]);

            if (keeps)
                copy_slot(store, old, seq->slots[i]);
            nkv_pool_drop(pool, old);
        } else if (!keeps) {
            nkv_pool_mark(pool, seq->slots[i], false);
        }
    }
}

static void own_chunks(struct nkv_store *store, struct nkv_kv_seq *seq, uint32_t n_full)
{
    struct nkv_pool *pool = &store->chunk_pool;
    uint32_t partial = n_full % NKV_DIGEST_CHUNK_PAGES, first = n_full / NKV_DIGEST_CHUNK_PAGES;

    for (uint32_t i = first; i < seq->n_chunks; i++) {
        bool keeps = partial && i == first;

        if (nkv_pool_is_shared(pool, seq->chunks[i])) {
            uint32_t old = replace(pool, &seq->chunks[i]);

            if (keeps)
                copy_chunk(store, old, seq->chunks[i], partial);
            nkv_pool_drop(pool, old);
        } else if (!keeps) {
            nkv_pool_mark(pool, seq->chunks[i], false);
        }
    }
}

static uint32_t longest_layer(const struct nkv_store *store, const struct nkv_kv_seq *seq)
{
    uint32_t longest = 0;

    for (uint32_t layer = 0; layer < store->shape.n_layers; layer++)
        if (seq->lengths[layer] > longest)
            longest = seq->lengths[layer];
    return longest;
}

uint32_t nkv_seq_shortest_layer(const struct nkv_store *store, const struct nkv_kv_seq *seq)
{
    uint32_t shortest = UINT32_MAX;

    for (uint32_t layer = 0; layer < store->shape.n_layers; layer++)
        if (seq->lengths[layer] < shortest)
            shortest = seq->lengths[layer];
    return shortest;
}

/* Cuts what the tables say; the data and the image follow. */
static void cut(const struct nkv_store *store, struct nkv_kv_seq *seq, uint32_t n_tokens)
{
    for (uint32_t layer = 0; layer < store->shape.n_layers; layer++) {
        if (seq->lengths[layer] <= n_tokens)
            continue;
        seq->lengths[layer] = n_tokens;
        if (seq->held && n_tokens % store->shape.page_tokens == 0)
            seq->held[layer] = NKV_PAGE_NONE;
    }
}

int nkv_store_seq_truncate(struct nkv_store *store, uint64_t key, uint32_t n_tokens)
{
    struct nkv_kv_seq *seq = NULL;
    struct nkv_image_place before;
    uint32_t n_full = n_tokens / store->shape.page_tokens, n_slots, n_chunks;
    bool open = n_tokens % store->shape.page_tokens != 0;

    TRY(find(store, key, &seq));
    TRY(check_truncate(store, seq, n_tokens));
    if (longest_layer(store, seq) <= n_tokens)
        return 0;
    n_slots = seq->held ? 0 : count_shared(&store->slot_pool, seq->slots, n_full, seq->n_slots);
    n_chunks = count_shared(&store->chunk_pool, seq->chunks, n_full / NKV_DIGEST_CHUNK_PAGES, seq->n_chunks);
    TRY(nkv_store_charge(store, n_slots, n_chunks));
    before = seq->place;
    if (n_slots + n_chunks)
        TRY(nkv_image_renew(store, seq));
    if (!seq->held)
        own_slots(store, seq, n_full, open);
    own_chunks(store, seq, n_full);
    cut(store, seq, n_tokens);
    if (n_slots + n_chunks) {
        nkv_image_enter(store, seq);
        nkv_image_drop_blocks(store, before);
        return 0;
    }
    for (uint32_t layer = 0; layer < store->shape.n_layers; layer++)
        nkv_image_commit(store, seq, layer);
    nkv_image_record_pages(store, seq, UINT32_MAX); /* forgets those of pages that were cut off */
    return 0;
}

/* Pages and chunks that hold data now, and their checksums. */
static void mark_pages(struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t before,
                       uint32_t after)
{
    uint32_t page_tokens = store->shape.page_tokens, page0 = before / page_tokens, full_end = after / page_tokens;

    for (uint32_t page = page0; page <= (after - 1) / page_tokens; page++) {
        nkv_pool_mark(&store->slot_pool, seq->slots[page], true);
        nkv_image_touch_slot(store, seq->slots[page]);
    }
    nkv_image_seal(store, seq, layer, page0, full_end);
}

void nkv_store_extend(struct nkv_store *store, struct nkv_kv_seq *seq, uint32_t layer, uint32_t n_tokens,
                      bool with_pages)
{
    uint32_t page_tokens = store->shape.page_tokens, before = seq->lengths[layer], after = before + n_tokens;

    if (n_tokens == 0)
        return;
    seq->lengths[layer] = after;
    if (seq->held)
        seq->held[layer] = with_pages ? (after - 1) / page_tokens : NKV_PAGE_NONE;
    if (seq->held && with_pages)
        nkv_pool_mark(&store->slot_pool, seq->slots[0], true);
    if (!seq->held)
        mark_pages(store, seq, layer, before, after);
    if (seq->n_chunks && after / page_tokens != before / page_tokens)
        for (uint32_t i = before / page_tokens / NKV_DIGEST_CHUNK_PAGES;
             i <= (after / page_tokens - 1) / NKV_DIGEST_CHUNK_PAGES; i++) {
            nkv_pool_mark(&store->chunk_pool, seq->chunks[i], true);
            nkv_image_touch_chunk(store, seq->chunks[i]);
        }
    nkv_image_record_pages(store, seq, UINT32_MAX);
    nkv_image_commit(store, seq, layer);
}
