/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From an image to a store. Each root leads to a sequence; its tables are read and checked, its references counted, and
 * its length is what every layer has committed.
 *
 * How much is believed depends on how the image was left. If a process closed it, or died while the system went on,
 * every store that it made is there, in order: what does not fit together is damage, and the image is refused as it is.
 * If the system went down, any page of memory may be of any time since the last sync: roots and tables that do not
 * check are dropped, each page is compared with its checksums and with the sequence's chain of records (so that a page
 * that another sequence took over since, or one of before a truncation, does not pass), a sequence ends before the
 * first page that differs, digests are computed anew, and what two sequences claim is given to the one that can prove
 * it.
 */
#include <string.h>

#include "kv/image.h"

struct recovery {
    struct nkv_store *store;
    struct nkv_image *image;
    bool trusted;
    struct nkv_kv_seq **seqs; /* [n] */
    uint32_t n, n_dropped;
    const struct nkv_kv_seq **chunk_owner; /* after a crash of the system: [n_chunks] who claims it */
    uint32_t *chunk_index;                 /* [n_chunks] and as which of its own */
};

/* ---- Reading ---- */

static int read_all(struct recovery *r)
{
    for (uint32_t root = 0; root < r->image->super.n_roots; root++) {
        int status = r->image->roots[root] ? nkv_image_read_seq(r->image, root, &r->seqs[r->n]) : 1;

        if (status == NKV_EFORMAT && !r->trusted)
            r->n_dropped++;
        else if (status < 0)
            return status;
        else if (status == 0)
            r->n++;
    }
    return 0;
}

/* ---- Claims ---- */

static void claim(struct recovery *r, const struct nkv_kv_seq *seq)
{
    for (uint32_t i = 0; i < seq->n_slots; i++)
        nkv_pool_claim(&r->store->slot_pool, seq->slots[i]);
    for (uint32_t i = 0; i < seq->n_chunks; i++)
        nkv_pool_claim(&r->store->chunk_pool, seq->chunks[i]);
}

static void mark(struct recovery *r, const struct nkv_kv_seq *seq)
{
    uint32_t n = nkv_seq_shortest_layer(r->store, seq), page_tokens = r->store->shape.page_tokens;

    for (uint32_t i = 0; i < n / page_tokens + (n % page_tokens != 0); i++)
        nkv_pool_mark(&r->store->slot_pool, seq->slots[i], true);
    for (uint32_t i = 0; i < seq->n_chunks && i * NKV_DIGEST_CHUNK_PAGES < n / page_tokens; i++)
        nkv_pool_mark(&r->store->chunk_pool, seq->chunks[i], true);
}

/* What may still be written belongs to one sequence alone. */
static int check_own(const struct recovery *r, const struct nkv_kv_seq *seq)
{
    uint32_t n_full = nkv_seq_shortest_layer(r->store, seq) / r->store->shape.page_tokens;

    for (uint32_t i = n_full; i < seq->n_slots; i++)
        if (nkv_pool_is_shared(&r->store->slot_pool, seq->slots[i]))
            FAIL(NKV_EFORMAT, "slot %u belongs to two sequences", seq->slots[i]);
    for (uint32_t i = n_full / NKV_DIGEST_CHUNK_PAGES; i < seq->n_chunks; i++)
        if (nkv_pool_is_shared(&r->store->chunk_pool, seq->chunks[i]))
            FAIL(NKV_EFORMAT, "chunk %u belongs to two sequences", seq->chunks[i]);
    return 0;
}

static int claim_blocks(struct recovery *r)
{
    for (uint32_t i = 0; i < r->n; i++)
        for (uint32_t b = 0; b < r->seqs[i]->place.n_blocks; b++) {
            uint32_t block = r->seqs[i]->place.block + b;

            if (r->image->block_pool.refs[block])
                FAIL(NKV_EFORMAT, "block %u belongs to two sequences", block);
            nkv_pool_claim(&r->image->block_pool, block);
        }
    return 0;
}

static int insert_all(struct recovery *r)
{
    for (uint32_t i = 0; i < r->n; i++) {
        TRY(nkv_store_table_reserve(r->store));
        if (nkv_store_find(r->store, r->seqs[i]->key))
            FAIL(NKV_EFORMAT, "two sequences have the key %llx", (unsigned long long)r->seqs[i]->key);
        nkv_store_table_insert(r->store, r->seqs[i]);
        r->seqs[i]->id = (uint32_t)r->seqs[i]->key;
    }
    return 0;
}

/* ---- After a process: everything is as it was left ---- */

/* A step that no one finished is cut off. */
static void cut_to_shortest(struct recovery *r, struct nkv_kv_seq *seq)
{
    uint32_t n = nkv_seq_shortest_layer(r->store, seq);

    for (uint32_t layer = 0; layer < r->store->shape.n_layers; layer++) {
        if (seq->lengths[layer] == n)
            continue;
        seq->lengths[layer] = n;
        nkv_image_commit(r->store, seq, layer);
    }
}

static int take_as_left(struct recovery *r)
{
    TRY(claim_blocks(r));
    for (uint32_t i = 0; i < r->n; i++)
        claim(r, r->seqs[i]);
    for (uint32_t i = 0; i < r->n; i++)
        TRY(check_own(r, r->seqs[i]));
    TRY(insert_all(r));
    for (uint32_t i = 0; i < r->n; i++) {
        cut_to_shortest(r, r->seqs[i]);
        nkv_image_record_pages(r->store, r->seqs[i], 0);
        mark(r, r->seqs[i]);
    }
    return 0;
}

/* ---- After a crash of the system ---- */

/* Ends the sequence before its first page that is not whole, or does not follow on the one before. */
static void cut_to_whole(const struct recovery *r, struct nkv_kv_seq *seq)
{
    uint32_t n_tokens = nkv_image_whole_pages(r->store, seq) * r->store->shape.page_tokens;

    for (uint32_t layer = 0; layer < r->store->shape.n_layers; layer++)
        seq->lengths[layer] = n_tokens;
}

/* Digests of one chunk belong to the pages of one sequence, or of several that share those pages. */
static bool has_same_pages(const struct recovery *r, const struct nkv_kv_seq *a, const struct nkv_kv_seq *b,
                           uint32_t index)
{
    uint32_t begin = index * NKV_DIGEST_CHUNK_PAGES, end = begin + NKV_DIGEST_CHUNK_PAGES;
    uint32_t page_tokens = r->store->shape.page_tokens;

    return end <= a->lengths[0] / page_tokens && end <= b->lengths[0] / page_tokens &&
           memcmp(a->slots + begin, b->slots + begin, NKV_DIGEST_CHUNK_PAGES * sizeof *a->slots) == 0;
}

static bool may_keep_chunk(struct recovery *r, const struct nkv_kv_seq *seq, uint32_t index)
{
    uint32_t chunk = seq->chunks[index];
    const struct nkv_kv_seq *owner = r->chunk_owner[chunk];

    if (!owner) {
        r->chunk_owner[chunk] = seq;
        r->chunk_index[chunk] = index;
        return true;
    }
    return r->chunk_index[chunk] == index && has_same_pages(r, owner, seq, index);
}

/* Pages that hold data are proven; they may be shared. */
static void claim_data(struct recovery *r, const struct nkv_kv_seq *seq)
{
    for (uint32_t i = 0; i < seq->lengths[0] / r->store->shape.page_tokens; i++)
        nkv_pool_claim(&r->store->slot_pool, seq->slots[i]);
}

/* What is still to be written, and chunks: what another has is a gap. */
static void claim_rest(struct recovery *r, struct nkv_kv_seq *seq)
{
    for (uint32_t i = seq->lengths[0] / r->store->shape.page_tokens; i < seq->n_slots; i++) {
        if (r->store->slot_pool.refs[seq->slots[i]])
            seq->slots[i] = NKV_PAGE_NONE;
        else
            nkv_pool_claim(&r->store->slot_pool, seq->slots[i]);
    }
    for (uint32_t i = 0; i < seq->n_chunks; i++) {
        if (may_keep_chunk(r, seq, i))
            nkv_pool_claim(&r->store->chunk_pool, seq->chunks[i]);
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

static bool is_kept(const struct nkv_kv_seq *seq)
{
    return seq->place.root != NKV_PAGE_NONE;
}

/* Of two with one key or one name, one was gone already: the younger stays. */
static void let_go_twins(struct recovery *r)
{
    for (uint32_t i = 0; i < r->n; i++)
        for (uint32_t j = 0; j < r->n; j++) {
            struct nkv_kv_seq *a = r->seqs[i], *b = r->seqs[j];

            if (a->place.birth < b->place.birth && a->place.root != NKV_PAGE_NONE &&
                (a->key == b->key ||
                 (nkv_seq_is_published(a) && strncmp(a->name.name, b->name.name, NKV_SEQ_NAME_BYTES) == 0))) {
                let_go(r, a);
            }
        }
}

/* Gaps come last: what fills them must be nobody's. */
static void settle(struct recovery *r)
{
    let_go_twins(r);
    for (uint32_t i = 0; i < r->n; i++)
        if (is_kept(r->seqs[i])) {
            cut_to_whole(r, r->seqs[i]);
            claim_data(r, r->seqs[i]);
        }
    for (uint32_t i = 0; i < r->n; i++)
        if (is_kept(r->seqs[i]))
            claim_rest(r, r->seqs[i]);
    for (uint32_t i = 0; i < r->n; i++) {
        struct nkv_kv_seq *seq = r->seqs[i];

        if (!is_kept(seq) || (fill_gaps(&r->store->slot_pool, seq->slots, seq->n_slots) &&
                              fill_gaps(&r->store->chunk_pool, seq->chunks, seq->n_chunks)))
            continue;
        drop_all(&r->store->slot_pool, seq->slots, seq->n_slots);
        drop_all(&r->store->chunk_pool, seq->chunks, seq->n_chunks);
        let_go(r, seq);
    }
}

static void compute_digests(const struct recovery *r, const struct nkv_kv_seq *seq)
{
    uint32_t n_full = seq->lengths[0] / r->store->shape.page_tokens;

    for (uint32_t layer = 0; layer < r->store->shape.n_layers; layer++)
        for (uint32_t head = 0; head < r->store->shape.n_kv_heads; head++)
            for (uint32_t page = 0; page < n_full; page++)
                nkv_store_seal(r->store, seq, layer, head, page);
}

/*
 * Every sequence gets new blocks, as those of two may overlap, and its root is turned to them; then roots of nobody are
 * emptied. A process that dies meanwhile leaves an image that is recovered from the beginning.
 */
static int rewrite(struct recovery *r)
{
    struct nkv_pool *pool = &r->image->block_pool;
    uint32_t n_blocks = pool->n;
    bool *is_root;

    for (uint32_t i = 0; i < r->n; i++)
        for (uint32_t b = 0; b < r->seqs[i]->place.n_blocks; b++)
            nkv_pool_claim(pool, r->seqs[i]->place.block + b);
    for (uint32_t i = 0; i < r->n; i++)
        TRY(nkv_image_renew(r->store, r->seqs[i]));
    TRY(nkv_alloc(r->image->super.n_roots, sizeof *is_root, &is_root));
    for (uint32_t i = 0; i < r->n; i++) {
        if (!is_kept(r->seqs[i]))
            continue;
        compute_digests(r, r->seqs[i]);
        nkv_image_enter(r->store, r->seqs[i]);
        is_root[r->seqs[i]->place.root] = true;
    }
    for (uint32_t root = 0; root < r->image->super.n_roots; root++)
        if (!is_root[root])
            r->image->roots[root] = 0;
    nkv_free(is_root);
    nkv_pool_close(pool);
    return nkv_pool_open(n_blocks, pool);
}

static void remove_dropped(struct recovery *r)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < r->n; i++) {
        if (is_kept(r->seqs[i]))
            r->seqs[n++] = r->seqs[i];
        else
            nkv_free(r->seqs[i]);
    }
    r->n = n;
}

static int take_what_is_proven(struct recovery *r)
{
    TRY(nkv_alloc(r->image->super.n_chunks, sizeof(struct nkv_kv_seq *), &r->chunk_owner));
    TRY(nkv_alloc(r->image->super.n_chunks, sizeof *r->chunk_index, &r->chunk_index));
    settle(r);
    TRY(rewrite(r));
    remove_dropped(r);
    TRY(claim_blocks(r));
    TRY(insert_all(r));
    for (uint32_t i = 0; i < r->n; i++) {
        mark(r, r->seqs[i]);
        for (uint32_t k = 0; k < r->seqs[i]->n_chunks; k++) /* they were computed anew */
            nkv_image_touch_chunk(r->store, r->seqs[i]->chunks[k]);
    }
    return 0;
}

/* ---- The whole ---- */

static bool is_trusted(const struct nkv_image *image)
{
    char boot_id[40];

    nkv_image_boot_id(boot_id);
    return image->state->clean || (boot_id[0] && memcmp(boot_id, image->state->boot_id, sizeof boot_id) == 0);
}

static int recover(struct recovery *r)
{
    TRY(nkv_alloc(r->image->super.n_roots, sizeof(struct nkv_kv_seq *), &r->seqs));
    TRY(read_all(r));
    for (uint32_t i = 0; i < r->n; i++)
        if (r->seqs[i]->place.birth > r->image->n_births)
            r->image->n_births = r->seqs[i]->place.birth;
    return r->trusted ? take_as_left(r) : take_what_is_proven(r);
}

int nkv_image_recover(struct nkv_store *store)
{
    struct recovery r = {.store = store, .image = store->image, .trusted = is_trusted(store->image)};
    int status = recover(&r);

    for (uint32_t i = 0; status < 0 && i < r.n; i++) /* the table frees its own */
        if (nkv_store_find(store, r.seqs[i]->key) != r.seqs[i])
            nkv_free(r.seqs[i]);
    nkv_free(r.seqs);
    nkv_free(r.chunk_owner);
    nkv_free(r.chunk_index);
    store->n_lost = r.n_dropped;
    if (status == NKV_EFORMAT) {
        char what[300];

        strncpy(what, nkv_last_error(), sizeof what - 1);
        what[sizeof what - 1] = '\0';
        FAIL(NKV_EFORMAT, "the image is damaged: %s; nothing was changed: see nearkv pnm check", what);
    }
    return status;
}
