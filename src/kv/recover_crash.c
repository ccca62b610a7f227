/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening an image after a crash of the system. Any page of memory may be of any time since the last sync, so nothing
 * counts but what proves itself:
 *
 *   - Unpublished sequences go: their clients ended with the system. The table of clients is emptied.
 *   - Tables that do not check are dropped; of two sequences of one name the younger stays.
 *   - A sequence ends before its first page whose frames differ from their sums, or that does not follow on the page
 *     before in the chain of records: so neither a page that another sequence took over since nor one of before a
 *     truncation passes.
 *   - Digests are computed anew.
 *   - What two sequences claim stays with the one for which it holds proven data; the other gets something free in its
 *     place, or goes if there is nothing.
 *   - A sequence whose tables change, or whose blocks are another's, too, gets new blocks.
 *
 * A process that dies meanwhile leaves an image that is opened the same way again.
 */
#include <string.h>

#include "kv/recover.h"

struct proof {
    struct recovery *r;
    const struct nkv_kv_seq **chunk_owner; /* [n_chunks] who claims it */
    uint32_t *chunk_index;                 /* [n_chunks] and as which of its own */
    bool *is_changed;                      /* [n] its tables are not those of its blocks */
    bool *is_root;                         /* [n_roots] */
};

/* Ends the sequence before its first page that is not whole, or does not follow on the one before. */
static void cut_to_whole(const struct recovery *r, struct nkv_kv_seq *seq)
{
    uint32_t n_tokens = nkv_image_whole_pages(r->store, seq) * r->store->shape.page_tokens;

    for (uint32_t layer = 0; layer < r->store->shape.n_layers; layer++)
        seq->lengths[layer] = n_tokens;
}

/* Digests of one chunk belong to the pages of one sequence, or of several that share those pages. */
static bool has_same_pages(const struct proof *p, const struct nkv_kv_seq *a, const struct nkv_kv_seq *b,
                           uint32_t index)
{
    uint32_t begin = index * NKV_DIGEST_CHUNK_PAGES, end = begin + NKV_DIGEST_CHUNK_PAGES;
    uint32_t page_tokens = p->r->store->shape.page_tokens;

    return end <= a->lengths[0] / page_tokens && end <= b->lengths[0] / page_tokens &&
           memcmp(a->slots + begin, b->slots + begin, NKV_DIGEST_CHUNK_PAGES * sizeof *a->slots) == 0;
}

static bool may_keep_chunk(struct proof *p, const struct nkv_kv_seq *seq, uint32_t index)
{
    uint32_t chunk = seq->chunks[index];
    const struct nkv_kv_seq *owner = p->chunk_owner[chunk];

    if (!owner) {
        p->chunk_owner[chunk] = seq;
        p->chunk_index[chunk] = index;
        return true;
    }
    return p->chunk_index[chunk] == index && has_same_pages(p, owner, seq, index);
}

/* Pages that hold data are proven; they may be shared. */
static void claim_data(struct proof *p, const struct nkv_kv_seq *seq)
{
    for (uint32_t i = 0; i < seq->lengths[0] / p->r->store->shape.page_tokens; i++)
        nkv_pool_claim(&p->r->store->slot_pool, seq->slots[i]);
}

/* What is still to be written, and chunks: what another has is a gap. */
static void claim_rest(struct proof *p, struct nkv_kv_seq *seq)
{
    for (uint32_t i = seq->lengths[0] / p->r->store->shape.page_tokens; i < seq->n_slots; i++) {
        if (p->r->store->slot_pool.refs[seq->slots[i]])
            seq->slots[i] = NKV_PAGE_NONE;
        else
            nkv_pool_claim(&p->r->store->slot_pool, seq->slots[i]);
    }
    for (uint32_t i = 0; i < seq->n_chunks; i++) {
        if (may_keep_chunk(p, seq, i))
            nkv_pool_claim(&p->r->store->chunk_pool, seq->chunks[i]);
        else
            seq->chunks[i] = NKV_PAGE_NONE;
    }
}

/* returns: whether there was room. */
static bool fill_gaps(struct nkv_pool *pool, uint32_t *things, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (things[i] != NKV_PAGE_NONE)
            continue;
        if (pool->n_used == pool->n)
            return false;
        nkv_pool_take(pool, 1, &things[i]);
    }
    return true;
}

static void drop_all(struct nkv_pool *pool, const uint32_t *things, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (things[i] != NKV_PAGE_NONE)
            nkv_pool_drop(pool, things[i]);
}

/* It is not to come back; others may still be compared with it. */
static void let_go(struct recovery *r, struct nkv_kv_seq *seq)
{
    seq->place.root = NKV_PAGE_NONE;
    r->n_dropped++;
}

static bool is_older(const struct nkv_kv_seq *a, const struct nkv_kv_seq *b)
{
    return a->place.birth != b->place.birth ? a->place.birth < b->place.birth : a->place.root < b->place.root;
}

static void choose(struct recovery *r)
{
    for (uint32_t i = 0; i < r->n; i++) {
        struct nkv_kv_seq *seq = r->seqs[i];

        if (!nkv_seq_is_published(seq))
            let_go(r, seq);
        for (uint32_t j = 0; j < r->n && is_kept(seq); j++)
            if (is_kept(r->seqs[j]) && is_older(seq, r->seqs[j]) &&
                strncmp(seq->name.name, r->seqs[j]->name.name, NKV_SEQ_NAME_BYTES) == 0)
                let_go(r, seq);
    }
}

static void release(struct recovery *r, struct nkv_kv_seq *seq)
{
    drop_all(&r->store->slot_pool, seq->slots, seq->n_slots);
    drop_all(&r->store->chunk_pool, seq->chunks, seq->n_chunks);
    let_go(r, seq);
}

static bool has_gaps(const uint32_t *things, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (things[i] == NKV_PAGE_NONE)
            return true;
    return false;
}

/* Gaps come last: what fills them must be nobody's. */
static void settle(struct proof *p)
{
    struct recovery *r = p->r;

    for (uint32_t i = 0; i < r->n; i++)
        if (is_kept(r->seqs[i])) {
            cut_to_whole(r, r->seqs[i]);
            claim_data(p, r->seqs[i]);
        }
    for (uint32_t i = 0; i < r->n; i++)
        if (is_kept(r->seqs[i]))
            claim_rest(p, r->seqs[i]);
    for (uint32_t i = 0; i < r->n; i++) {
        struct nkv_kv_seq *seq = r->seqs[i];

        if (!is_kept(seq))
            continue;
        p->is_changed[i] = has_gaps(seq->slots, seq->n_slots) || has_gaps(seq->chunks, seq->n_chunks);
        if (!fill_gaps(&r->store->slot_pool, seq->slots, seq->n_slots) ||
            !fill_gaps(&r->store->chunk_pool, seq->chunks, seq->n_chunks))
            release(r, seq);
    }
}

/* Nobody has it; the key that it had may be of another time, and another's. */
static void give_key(struct recovery *r, struct nkv_kv_seq *seq)
{
    seq->key = nkv_seq_key(NKV_OWNER_NONE, r->store->next_detached++);
    seq->id = (uint32_t)seq->key;
}

static void compute_digests(const struct recovery *r, const struct nkv_kv_seq *seq)
{
    uint32_t n_full = seq->lengths[0] / r->store->shape.page_tokens;

    for (uint32_t layer = 0; layer < r->store->shape.n_layers; layer++)
        for (uint32_t head = 0; head < r->store->shape.n_kv_heads; head++)
            for (uint32_t page = 0; page < n_full; page++)
                nkv_store_seal(r->store, seq, layer, head, page);
}

static bool shares_blocks(const struct recovery *r, const struct nkv_kv_seq *seq)
{
    for (uint32_t b = 0; b < seq->place.n_blocks; b++)
        if (nkv_pool_is_shared(&r->image->block_pool, seq->place.block + b))
            return true;
    return false;
}

/* Its tables stay; what changes in place is a store for each layer and page. */
static void write_in_place(struct recovery *r, struct nkv_kv_seq *seq)
{
    for (uint32_t layer = 0; layer < r->store->shape.n_layers; layer++)
        nkv_image_commit(r->store, seq, layer);
    nkv_image_rekey(r->store, seq);
    nkv_image_record_pages(r->store, seq, 0);
}

static void write_seq(struct proof *p, uint32_t i)
{
    struct recovery *r = p->r;
    struct nkv_kv_seq *seq = r->seqs[i];
    struct nkv_image_place before = seq->place;

    if (!p->is_changed[i] && !shares_blocks(r, seq)) {
        write_in_place(r, seq);
    } else if (nkv_image_renew(r->store, seq) == 0) {
        nkv_image_enter(r->store, seq);
        nkv_image_drop_blocks(r->store, before);
    } else {
        nkv_image_drop_blocks(r->store, before);
        nkv_store_table_remove(r->store, seq->key);
        release(r, seq);
        return;
    }
    p->is_root[before.root] = true;
    compute_digests(r, seq);
    nkv_recovery_mark(r, seq);
}

static void write_all(struct proof *p)
{
    struct recovery *r = p->r;

    for (uint32_t i = 0; i < r->n; i++)
        for (uint32_t b = 0; is_kept(r->seqs[i]) && b < r->seqs[i]->place.n_blocks; b++)
            nkv_pool_claim(&r->image->block_pool, r->seqs[i]->place.block + b);
    for (uint32_t i = 0; i < r->n; i++)
        if (is_kept(r->seqs[i]))
            write_seq(p, i);
    for (uint32_t root = 0; root < r->image->super.n_roots; root++)
        if (!p->is_root[root])
            r->image->roots[root] = 0;
    memset((char *)r->image->memory.base + r->image->super.clients_at, 0,
           NKV_STORE_CLIENTS * sizeof(struct nkv_kv_client));
}

static int prove(struct proof *p)
{
    struct recovery *r = p->r;

    TRY(nkv_alloc(r->image->super.n_chunks, sizeof(struct nkv_kv_seq *), &p->chunk_owner));
    TRY(nkv_alloc(r->image->super.n_chunks, sizeof *p->chunk_index, &p->chunk_index));
    TRY(nkv_alloc((size_t)r->n + 1, sizeof *p->is_changed, &p->is_changed));
    TRY(nkv_alloc(r->image->super.n_roots, sizeof *p->is_root, &p->is_root));
    choose(r);
    settle(p);
    for (uint32_t i = 0; i < r->n; i++)
        if (is_kept(r->seqs[i]))
            give_key(r, r->seqs[i]);
    TRY(nkv_recovery_insert(r));
    write_all(p);
    for (uint32_t i = 0; i < r->n; i++)
        if (!is_kept(r->seqs[i]))
            nkv_free(r->seqs[i]);
    return 0;
}

int nkv_recovery_prove(struct recovery *r)
{
    struct proof p = {.r = r};
    int status = prove(&p);

    nkv_free(p.chunk_owner);
    nkv_free(p.chunk_index);
    nkv_free(p.is_changed);
    nkv_free(p.is_root);
    return status;
}
