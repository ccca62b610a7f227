/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks at an image that nobody uses and says what is wrong with it. What opening it believes is not believed here:
 * every page is compared with its checksums, digests are computed anew and compared, and what two sequences claim is
 * named. Nothing is written.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kv/image.h"

struct check {
    struct nkv_store *store;
    struct nkv_memory_report report;
    void (*say)(void *arg, const char *line);
    void *arg;
};

NKV_PRINTF(2, 3) static void complain(struct check *c, const char *format, ...)
{
    char line[400];
    va_list args;

    c->report.n_problems++;
    if (!c->say)
        return;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    c->say(c->arg, line);
}

static const char *title(const struct nkv_kv_seq *seq, char text_out[96])
{
    if (nkv_seq_is_published(seq))
        snprintf(text_out, 96, "sequence '%s'", seq->name.name);
    else
        snprintf(text_out, 96, "sequence %u of client %u", (uint32_t)seq->key, (uint32_t)(seq->key >> 32));
    return text_out;
}

static bool digest_differs(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t layer, uint32_t head,
                           uint32_t page)
{
    struct nkv_page_view view = nkv_store_page(store, seq, layer, page, head);
    const char *digests = nkv_store_digests(store, seq, layer, page / NKV_DIGEST_CHUNK_PAGES, head);
    uint64_t expected[NKV_MAX_HEAD_DIM]; /* two rows of f32 at most */

    nkv_digest_build(store->shape.digest, store->shape.dtype, store->shape.page_tokens, store->shape.head_dim, view.k,
                     view.k_scale, expected);
    return memcmp(digests + page % NKV_DIGEST_CHUNK_PAGES * store->digest_bytes, expected, store->digest_bytes) != 0;
}

static uint32_t count_bad_digests(const struct nkv_store *store, const struct nkv_kv_seq *seq, uint32_t n_pages)
{
    uint32_t n = 0;

    for (uint32_t page = 0; nkv_seq_has_digests(seq) && page < n_pages; page++)
        for (uint32_t layer = 0; layer < store->shape.n_layers; layer++)
            for (uint32_t head = 0; head < store->shape.n_kv_heads; head++)
                n += digest_differs(store, seq, layer, head, page);
    return n;
}

static void check_data(struct check *c, const struct nkv_kv_seq *seq)
{
    uint32_t n_tokens = nkv_seq_shortest_layer(c->store, seq), page_tokens = c->store->shape.page_tokens;
    uint32_t n_whole = nkv_image_whole_pages(c->store, seq), n_bad = count_bad_digests(c->store, seq, n_whole);
    char text[96];

    c->report.n_tokens += n_tokens;
    c->report.n_full_pages += n_whole;
    if (n_whole < n_tokens / page_tokens)
        complain(c, "%s: %u tokens, of which only the first %u pass their checksums", title(seq, text), n_tokens,
                 n_whole * page_tokens);
    if (n_bad)
        complain(c, "%s: %u digests are not those of its pages", title(seq, text), n_bad);
}

/* Counts references, and names what may be written but belongs to another, too. */
static void check_claims(struct check *c, const struct nkv_kv_seq *seq, bool count)
{
    uint32_t n_full = nkv_seq_shortest_layer(c->store, seq) / c->store->shape.page_tokens, n_shared = 0;
    struct nkv_pool *slots = &c->store->slot_pool, *chunks = &c->store->chunk_pool;
    char text[96];

    for (uint32_t i = 0; count && i < seq->n_slots; i++)
        nkv_pool_claim(slots, seq->slots[i]);
    for (uint32_t i = 0; count && i < seq->n_chunks; i++)
        nkv_pool_claim(chunks, seq->chunks[i]);
    for (uint32_t i = n_full; !count && i < seq->n_slots; i++)
        n_shared += nkv_pool_is_shared(slots, seq->slots[i]);
    for (uint32_t i = n_full / NKV_DIGEST_CHUNK_PAGES; !count && i < seq->n_chunks; i++)
        n_shared += nkv_pool_is_shared(chunks, seq->chunks[i]);
    if (n_shared)
        complain(c, "%s: %u of the slots and chunks that it may write belong to another sequence, too",
                 title(seq, text), n_shared);
}

static void check_clients(struct check *c)
{
    const struct nkv_kv_client *clients =
        (const struct nkv_kv_client *)(const void *)((const char *)c->store->image->memory.base +
                                                     c->store->image->super.clients_at);

    for (uint32_t i = 0; i < NKV_STORE_CLIENTS; i++)
        if (clients[i].number && (clients[i].number == NKV_OWNER_NONE || clients[i].id == 0))
            complain(c, "client %u of the table has the number %u, which no client has", i, clients[i].number);
}

static int check_all(struct check *c, struct nkv_kv_seq **seqs)
{
    struct nkv_image *image = c->store->image;
    uint32_t n = 0;
    int status = 0;

    for (uint32_t root = 0; status != NKV_ENOMEM && root < image->super.n_roots; root++) {
        status = image->roots[root] ? nkv_image_read_seq(image, root, &seqs[n]) : 1;
        if (status == NKV_EFORMAT)
            complain(c, "root %u: %s", root, nkv_last_error());
        n += status == 0;
    }
    for (uint32_t i = 0; i < n; i++)
        check_claims(c, seqs[i], true);
    for (uint32_t i = 0; i < n; i++) {
        check_claims(c, seqs[i], false);
        check_data(c, seqs[i]);
        nkv_free(seqs[i]);
    }
    c->report.n_sequences = n;
    return status == NKV_ENOMEM ? status : 0;
}

/* returns: 0; 1: there is no image. State after a failure: nkv_store_free is right. */
static int open_parts(struct nkv_store *store, const struct nkv_image_options *options,
                      struct nkv_memory_report *report_out)
{
    struct nkv_image *image;
    int status;

    TRY(nkv_alloc(1, sizeof *image, &image));
    store->image = image;
    image->fd = -1;
    TRY(nkv_image_file_open(options, image));
    status = nkv_image_read_super(&image->memory, options->path, &image->super);
    if (status != 0)
        return status;
    nkv_image_map_parts(image);
    nkv_store_size(&image->super.shape, store);
    store->image = image;
    report_out->shape = image->super.shape;
    report_out->image_bytes = image->super.image_bytes;
    report_out->capacity_bytes = image->super.capacity_bytes;
    report_out->closed_in_order = image->state->clean;
    return nkv_image_open_parts(store);
}

static int open_as_it_is(struct nkv_store **store_out, const struct nkv_image_options *options,
                         struct nkv_memory_report *report_out)
{
    struct nkv_image_options there = {.path = options->path, .is_dax = options->is_dax, .is_read_only = true};
    struct nkv_store *store;
    int status;

    TRY(nkv_alloc(1, sizeof *store, &store));
    status = open_parts(store, &there, report_out);
    if (status != 0) {
        nkv_store_free(store);
        return status;
    }
    *store_out = store;
    return 0;
}

int nkv_image_check(const struct nkv_image_options *options, void (*say)(void *arg, const char *line), void *arg,
                    struct nkv_memory_report *report_out)
{
    struct check c = {.say = say, .arg = arg};
    struct nkv_kv_seq **seqs = NULL;
    int status = open_as_it_is(&c.store, options, &c.report);

    if (status == 1)
        FAIL(NKV_ENOENT, "%s holds no image: it is all zero", options->path);
    TRY(status);
    status = nkv_alloc(c.store->image->super.n_roots, sizeof(struct nkv_kv_seq *), &seqs);
    if (status == 0)
        status = check_all(&c, seqs);
    if (status == 0)
        check_clients(&c);
    nkv_free(seqs);
    nkv_store_free(c.store);
    TRY(status);
    *report_out = c.report;
    return 0;
}
