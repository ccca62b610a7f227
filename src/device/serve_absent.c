/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients by their ids. One that attaches is entered in the store's table, one that goes while the device lives is
 * struck out with all that it did not publish. What the table holds when the device opens memory of before are absent
 * clients: they lost their device and may come back. Their numbers are reserved and their sequences kept; one that says
 * its id again within the time of grace gets both back, the others are struck out when that has passed. A published
 * sequence does not wait: who asks for it by name gets it, as its client may have ended with the device.
 *
 * Who knows an id owns the sequences, and ids are 64 random bits, so nobody gets others' by trying. A time of grace for
 * clients of a device that lives was rejected: a client whose socket closes has ended (or given up the connection by
 * itself), and memory would wait for it in vain.
 */
#include <stdio.h>

#include "base/clock.h"
#include "device/serve.h"

#define DEFAULT_KEEP_MS 60000u

static bool is_attached(const struct nkv_serve *serve, uint32_t number)
{
    for (uint32_t i = 0; i < serve->n_clients; i++)
        if (serve->clients[i]->attached && serve->clients[i]->number == number)
            return true;
    return false;
}

/* The numbers of absent clients. returns: how many. */
static uint32_t list_absent(const struct nkv_serve *serve, uint32_t numbers_out[NKV_STORE_CLIENTS])
{
    uint32_t n = serve->cpu ? nkv_store_client_numbers(serve->cpu->store, numbers_out) : 0, n_absent = 0;

    for (uint32_t i = 0; i < n; i++)
        if (!is_attached(serve, numbers_out[i]))
            numbers_out[n_absent++] = numbers_out[i];
    return n_absent;
}

uint32_t nkv_serve_count_absent(const struct nkv_serve *serve)
{
    uint32_t numbers[NKV_STORE_CLIENTS];

    return list_absent(serve, numbers);
}

void nkv_serve_fill_absent(const struct nkv_serve *serve, struct nkv_device_stat *stat)
{
    uint32_t numbers[NKV_STORE_CLIENTS], n = list_absent(serve, numbers), n_sequences;
    uint64_t bytes, sum = 0;
    int left_ms = nkv_serve_absent_ms(serve, nkv_now_ns());

    for (uint32_t i = 0; i < n; i++)
        if (nkv_store_owner_usage(serve->cpu->store, numbers[i], &bytes, &n_sequences) == 0)
            sum += bytes;
    if (sum == 0 || left_ms < 0)
        return;
    stat->n_absent_pages = (uint32_t)(sum / (nkv_page_bytes(&serve->cpu->shape, serve->cpu->shape.n_kv_heads) *
                                             serve->cpu->shape.n_layers));
    stat->absent_ms = (uint32_t)left_ms;
}

void nkv_serve_explain_absent(const struct nkv_serve *serve)
{
    struct nkv_device_stat stat = {0};
    char message[160];

    snprintf(message, sizeof message, "%s", nkv_last_error());
    nkv_serve_fill_absent(serve, &stat);
    if (stat.n_absent_pages)
        nkv_fail(NKV_ENOSPC, "%s; %u absent clients hold %u pages for up to %u s (--keep)", message,
                 nkv_serve_count_absent(serve), stat.n_absent_pages, stat.absent_ms / 1000 + 1);
    else
        nkv_fail(NKV_ENOSPC, "%s", message);
}

void nkv_serve_await_absent(struct nkv_serve *serve)
{
    uint64_t keep_ms = serve->options.keep_ms ? serve->options.keep_ms : DEFAULT_KEEP_MS;
    uint32_t n = nkv_serve_count_absent(serve);

    serve->absent_until_ns = n ? nkv_now_ns() + keep_ms * 1000000u : 0;
    if (n)
        nkv_serve_log(serve, "%u clients of before may come back: their sequences are kept for %.3g s", n,
                      (double)keep_ms * 1e-3);
}

uint32_t nkv_serve_forget(struct nkv_serve *serve, uint32_t number)
{
    uint32_t n = nkv_store_close_owner(serve->cpu->store, number);

    nkv_store_client_remove(serve->cpu->store, number);
    nkv_cpu_publish(serve->cpu);
    return n;
}

void nkv_serve_expire_absent(struct nkv_serve *serve, uint64_t now_ns)
{
    uint32_t numbers[NKV_STORE_CLIENTS], n;

    if (serve->absent_until_ns == 0 || now_ns < serve->absent_until_ns)
        return;
    n = list_absent(serve, numbers);
    for (uint32_t i = 0; i < n; i++)
        nkv_serve_log(serve, "client %u did not come back: %u sequences closed", numbers[i],
                      nkv_serve_forget(serve, numbers[i]));
    serve->absent_until_ns = 0;
}

int nkv_serve_absent_ms(const struct nkv_serve *serve, uint64_t now_ns)
{
    uint64_t ms;

    if (serve->absent_until_ns == 0)
        return -1;
    ms = now_ns < serve->absent_until_ns ? (serve->absent_until_ns - now_ns) / 1000000u + 1 : 0;
    return ms < INT32_MAX ? (int)ms : INT32_MAX;
}

/* A number that no client has, absent ones included: after 2^32 they begin anew. */
static uint32_t free_number(struct nkv_serve *serve)
{
    uint32_t numbers[NKV_STORE_CLIENTS], n = nkv_store_client_numbers(serve->cpu->store, numbers);
    bool taken;

    do {
        taken = ++serve->next_number == 0 || serve->next_number == NKV_OWNER_NONE;
        for (uint32_t i = 0; i < n; i++)
            taken |= numbers[i] == serve->next_number;
    } while (taken);
    return serve->next_number;
}

int nkv_serve_identify(struct nkv_serve *serve, struct serve_client *client, uint64_t id)
{
    uint32_t number = nkv_store_client_find(serve->cpu->store, id), n = 0;
    uint64_t bytes = 0;

    if (number == 0) {
        number = free_number(serve);
        TRY(nkv_store_client_add(serve->cpu->store, number, id));
        client->number = number;
        return 0;
    }
    if (is_attached(serve, number))
        FAIL(NKV_ESTATE, "client %u, which is attached, has said the same id", number);
    TRY(nkv_store_owner_usage(serve->cpu->store, number, &bytes, &n));
    client->number = number;
    nkv_store_client_return(serve->cpu->store, number);
    nkv_serve_log(serve, "client %u is back: %u sequences, %llu bytes", number, n, (unsigned long long)bytes);
    return 0;
}
