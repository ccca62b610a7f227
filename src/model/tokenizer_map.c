/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open addressing with linear probing, at most half full, nothing is ever removed: a miss ends at the first empty slot,
 * mostly in the same cache line. One map of pairs serves merges (left, right), characters (character, 0) and the trie
 * of special tokens (node, byte); a table per use would be the same code three times.
 */
#include "model/tokenizer_map.h"

#include <string.h>

#include "base/mem.h"

#define EMPTY UINT64_MAX /* (NKV_TOKEN_NONE, NKV_TOKEN_NONE), which is never put */

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 32)) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
    return x ^ (x >> 32);
}

static struct nkv_pair *find_slot(struct nkv_pair *slots, size_t n_slots, uint64_t key)
{
    size_t i = mix(key) & (n_slots - 1);

    while (slots[i].key != key && slots[i].key != EMPTY)
        i = (i + 1) & (n_slots - 1);
    return &slots[i];
}

struct nkv_pair *nkv_pairs_get(const struct nkv_pairs *pairs, uint32_t left, uint32_t right)
{
    struct nkv_pair *slot;

    if (left == NKV_TOKEN_NONE || right == NKV_TOKEN_NONE || pairs->n == 0)
        return NULL;
    slot = find_slot(pairs->slots, pairs->n_slots, (uint64_t)left << 32 | right);
    return slot->key == EMPTY ? NULL : slot;
}

static int grow(struct nkv_pairs *pairs)
{
    size_t n_slots = pairs->n_slots ? 2 * pairs->n_slots : 64;
    struct nkv_pair *slots;

    TRY(nkv_alloc(n_slots, sizeof *slots, &slots));
    for (size_t i = 0; i < n_slots; i++)
        slots[i].key = EMPTY;
    for (size_t i = 0; i < pairs->n_slots; i++)
        if (pairs->slots[i].key != EMPTY)
            *find_slot(slots, n_slots, pairs->slots[i].key) = pairs->slots[i];
    nkv_free(pairs->slots);
    pairs->slots = slots;
    pairs->n_slots = n_slots;
    return 0;
}

int nkv_pairs_put(struct nkv_pairs *pairs, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    uint64_t key = (uint64_t)left << 32 | right;

    if (2 * pairs->n >= pairs->n_slots)
        TRY(grow(pairs));
    *find_slot(pairs->slots, pairs->n_slots, key) = (struct nkv_pair){key, rank, id};
    pairs->n++;
    return 0;
}

void nkv_pairs_close(struct nkv_pairs *pairs)
{
    nkv_free(pairs->slots);
    *pairs = (struct nkv_pairs){0};
}

static uint64_t hash_bytes(const char *data, size_t bytes)
{
    uint64_t hash = bytes, word;

    for (; bytes >= sizeof word; data += sizeof word, bytes -= sizeof word) {
        memcpy(&word, data, sizeof word);
        hash = mix(hash ^ word);
    }
    word = 0;
    if (bytes)
        memcpy(&word, data, bytes);
    return mix(hash ^ word);
}

int nkv_strings_open(const struct nkv_str *text, size_t n, struct nkv_strings *strings_out)
{
    size_t n_slots = 64;
    uint32_t *slots;

    while (n_slots < 2 * n)
        n_slots *= 2;
    TRY(nkv_alloc(n_slots, sizeof *slots, &slots));
    *strings_out = (struct nkv_strings){text, slots, n_slots - 1};
    return 0;
}

static size_t string_slot(const struct nkv_strings *strings, const char *data, size_t bytes)
{
    size_t i = hash_bytes(data, bytes) & strings->mask;

    for (; strings->slots[i]; i = (i + 1) & strings->mask) {
        const struct nkv_str *text = &strings->text[strings->slots[i] - 1];

        if (text->bytes == bytes && memcmp(text->data, data, bytes) == 0)
            break;
    }
    return i;
}

uint32_t nkv_strings_put(struct nkv_strings *strings, uint32_t i)
{
    size_t slot = string_slot(strings, strings->text[i].data, strings->text[i].bytes);

    if (strings->slots[slot] == 0)
        strings->slots[slot] = i + 1;
    return strings->slots[slot] - 1;
}

uint32_t nkv_strings_get(const struct nkv_strings *strings, const char *data, size_t bytes)
{
    uint32_t found = strings->slots[string_slot(strings, data, bytes)];

    return found ? found - 1 : NKV_TOKEN_NONE;
}

void nkv_strings_close(struct nkv_strings *strings)
{
    nkv_free(strings->slots);
    *strings = (struct nkv_strings){0};
}
