/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From an image to a store. Each root leads to a sequence; its tables are read and checked, its references counted, and
 * its length is what every layer has committed.
 *
 * How much is believed depends on how the image was left. If a process closed it, or died while the system went on,
 * every store that it made is there, in order: what does not fit together is damage, and the image is refused as it is.
 * If the system went down, any page of memory may be of any time since the last sync: recover_crash.c. Whatever can
 * fail comes before the first write, so that a failure leaves the image as it was.
 */
#include <string.h>

#include "kv/recover.h"

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

void nkv_recovery_mark(struct recovery *r, const struct nkv_kv_seq *seq)
{
    uint32_t n = nkv_seq_shortest_layer(r->store, seq), page_tokens = r->store->shape.page_tokens;

    /* Nobody knows what the process before had flushed. */
    for (uint32_t i = 0; i < n / page_tokens + (n % page_tokens != 0); i++) {
        nkv_pool_mark(&r->store->slot_pool, seq->slots[i], true);
        nkv_image_touch_slot(r->store, seq->slots[i]);
    }
    for (uint32_t i = 0; i < seq->n_chunks && i * NKV_DIGEST_CHUNK_PAGES < n / page_tokens; i++) {
        nkv_pool_mark(&r->store->chunk_pool, seq->chunks[i], true);
        nkv_image_touch_chunk(r->store, seq->chunks[i]);
    }
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

int nkv_recovery_insert(struct recovery *r)
{
    for (uint32_t i = 0; i < r->n; i++) {
        if (!is_kept(r->seqs[i]))
            continue;
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
    TRY(nkv_recovery_insert(r));
    for (uint32_t i = 0; i < r->n; i++) {
        cut_to_shortest(r, r->seqs[i]);
        nkv_image_record_pages(r->store, r->seqs[i], 0);
        nkv_recovery_mark(r, r->seqs[i]);
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
    return r->trusted ? take_as_left(r) : nkv_recovery_prove(r);
}

int nkv_image_recover(struct nkv_store *store)
{
    struct recovery r = {.store = store, .image = store->image, .trusted = is_trusted(store->image)};
    int status = recover(&r);

    for (uint32_t i = 0; status < 0 && i < r.n; i++) /* the table frees its own */
        if (nkv_store_find(store, r.seqs[i]->key) != r.seqs[i])
            nkv_free(r.seqs[i]);
    nkv_free(r.seqs);
    store->n_lost = r.n_dropped;
    if (status == NKV_EFORMAT) {
        char what[300];

        strncpy(what, nkv_last_error(), sizeof what - 1);
        what[sizeof what - 1] = '\0';
        FAIL(NKV_EFORMAT, "the image is damaged: %s; nothing was changed: see nearkv pnm check", what);
    }
    return status;
}
