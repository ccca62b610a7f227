/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who owns sequences: which client, by the random id that it gave itself, has which number. A number is half of the
 * keys of the client's sequences; the id is what a client knows of itself after its device or its connection was lost,
 * and what nobody else can guess.
 *
 * The table is flat, of fixed size and reached through one pointer, so that it can lie in memory that outlives the
 * process. An entry counts while its number is not 0: a new entry gets its id first and its number last, and loses its
 * number first, so that whoever finds the table after a crash finds no entry half written. A table as large as the
 * number of sequences was rejected: a device serves dozens of clients.
 */
#include "kv/store_private.h"

static struct nkv_kv_client *find_number(const struct nkv_store *store, uint32_t number)
{
    for (uint32_t i = 0; i < NKV_STORE_CLIENTS; i++)
        if (store->clients[i].number == number)
            return &store->clients[i];
    return NULL;
}

static void set_number(struct nkv_kv_client *client, uint32_t number)
{
    __atomic_store_n(&client->number, number, __ATOMIC_RELEASE);
}

/* The table has no checksum: what cannot be is struck out. */
void nkv_store_clients_open(struct nkv_store *store)
{
    for (uint32_t i = 0; i < NKV_STORE_CLIENTS; i++) {
        struct nkv_kv_client *client = &store->clients[i];

        for (uint32_t j = 0; j < i; j++)
            if (store->clients[j].number &&
                (store->clients[j].number == client->number || store->clients[j].id == client->id))
                client->number = 0;
        if (client->number == NKV_OWNER_NONE || client->id == 0)
            client->number = 0;
        client->is_absent = 1;
    }
}

uint32_t nkv_store_client_find(const struct nkv_store *store, uint64_t id)
{
    for (uint32_t i = 0; i < NKV_STORE_CLIENTS; i++)
        if (store->clients[i].number != 0 && store->clients[i].id == id)
            return store->clients[i].number;
    return 0;
}

int nkv_store_client_add(struct nkv_store *store, uint32_t number, uint64_t id)
{
    struct nkv_kv_client *client = find_number(store, 0);

    if (number == 0 || number == NKV_OWNER_NONE || find_number(store, number))
        FAIL(NKV_EINVAL, "client number %u is reserved or in use", number);
    if (!client)
        FAIL(NKV_ENOSPC, "it has %u clients already, those counted that may still come back", NKV_STORE_CLIENTS);
    client->id = id;
    client->is_absent = 0;
    set_number(client, number);
    return 0;
}

void nkv_store_client_return(struct nkv_store *store, uint32_t number)
{
    struct nkv_kv_client *client = find_number(store, number);

    if (client)
        client->is_absent = 0;
}

bool nkv_store_has_client(const struct nkv_store *store, uint32_t owner)
{
    const struct nkv_kv_client *client = owner ? find_number(store, owner) : NULL;

    return owner != NKV_OWNER_NONE && !(client && client->is_absent);
}

void nkv_store_client_remove(struct nkv_store *store, uint32_t number)
{
    struct nkv_kv_client *client = number ? find_number(store, number) : NULL;

    if (client)
        set_number(client, 0);
}

uint32_t nkv_store_client_numbers(const struct nkv_store *store, uint32_t numbers_out[NKV_STORE_CLIENTS])
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < NKV_STORE_CLIENTS; i++)
        if (store->clients[i].number != 0)
            numbers_out[n++] = store->clients[i].number;
    return n;
}

static bool is_stranger(const struct nkv_store *store, uint32_t owner, uint32_t arg)
{
    (void)arg;
    return owner != NKV_OWNER_NONE && (owner == 0 || !find_number(store, owner));
}

void nkv_store_close_strangers(struct nkv_store *store)
{
    (void)nkv_store_close_where(store, is_stranger, 0);
}

/* Counts the owner's references to each of a sequence's things; the last one that there is gives `bytes`. */
static uint64_t count_things(const struct nkv_pool *pool, const uint32_t *things, uint32_t n, uint64_t bytes,
                             uint32_t *counts)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < n; i++)
        if (++counts[things[i]] == nkv_pool_refs(pool, things[i]))
            sum += bytes;
    return sum;
}

int nkv_store_owner_usage(const struct nkv_store *store, uint32_t owner, uint64_t *bytes_out, uint32_t *n_out)
{
    uint64_t bytes = 0;
    uint32_t n = 0, *counts;

    TRY(nkv_alloc((size_t)store->slot_pool.n + store->chunk_pool.n + 1, sizeof *counts, &counts));
    for (uint32_t i = 0; i < 1u << store->table_shift; i++) {
        const struct nkv_kv_seq *seq = store->table[i];

        if (!seq || seq->key >> 32 != owner)
            continue;
        n++;
        bytes += count_things(&store->slot_pool, seq->slots, seq->n_slots, store->page_bytes, counts);
        bytes += count_things(&store->chunk_pool, seq->chunks, seq->n_chunks, store->chunk_bytes,
                              counts + store->slot_pool.n);
    }
    nkv_free(counts);
    *bytes_out = bytes;
    *n_out = n;
    return 0;
}
