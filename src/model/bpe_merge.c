/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Symbols form a doubly linked list; a heap holds every adjacent pair that can merge, by (rank, position). Popping the
 * least merges it into the left symbol and proposes the two pairs that the merge created. Each merge removes one symbol
 * and proposes at most two pairs, hence O(n log n), also for one word of a million equal letters.
 *
 * A candidate may be out of date when it is popped, because a neighbour was merged meanwhile. It counts only if the
 * pair that stands there now makes the same token, which is the rule of the `tokenizers` package.
 *
 * Rejected: scanning the word for the best pair after each merge, which is faster for words of a few letters and
 * quadratic for long ones; a prompt of one repeated character must not stop a server.
 */
#include "model/bpe_merge.h"

#include <string.h>

#include "base/mem.h"

/* Makes room for one more element than n in an array from nkv_alloc. */
static int make_room(void *array, size_t size, size_t n, size_t *room)
{
    size_t bigger = *room ? 2 * *room : 64;
    void *old, *new;

    if (n < *room)
        return 0;
    memcpy(&old, array, sizeof old);
    TRY(nkv_alloc(bigger, size, &new));
    if (n)
        memcpy(new, old, n * size);
    nkv_free(old);
    memcpy(array, &new, sizeof new);
    *room = bigger;
    return 0;
}

int nkv_tokens_push(struct nkv_tokens *tokens, uint32_t id)
{
    TRY(make_room(&tokens->ids, sizeof *tokens->ids, tokens->n, &tokens->room));
    tokens->ids[tokens->n++] = (int32_t)id;
    return 0;
}

int nkv_merger_add(struct nkv_merger *merger, uint32_t id, uint32_t start)
{
    TRY(make_room(&merger->symbols, sizeof *merger->symbols, merger->n, &merger->room));
    merger->symbols[merger->n++] = (struct nkv_symbol){id, start, 0, 0};
    return 0;
}

void nkv_merger_close(struct nkv_merger *merger)
{
    nkv_free(merger->symbols);
    nkv_free(merger->heap);
    *merger = (struct nkv_merger){0};
}

static int push(struct nkv_merger *m, struct nkv_candidate candidate)
{
    size_t i = m->n_heap;

    TRY(make_room(&m->heap, sizeof *m->heap, m->n_heap, &m->heap_room));
    for (; i > 0 && m->heap[(i - 1) / 2].order > candidate.order; i = (i - 1) / 2)
        m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = candidate;
    m->n_heap++;
    return 0;
}

/* pre: the heap is not empty. */
static struct nkv_candidate pop(struct nkv_merger *m)
{
    struct nkv_candidate least = m->heap[0], last = m->heap[--m->n_heap];
    size_t i = 0, child;

    for (; (child = 2 * i + 1) < m->n_heap; i = child) {
        if (child + 1 < m->n_heap && m->heap[child + 1].order < m->heap[child].order)
            child++;
        if (last.order <= m->heap[child].order)
            break;
        m->heap[i] = m->heap[child];
    }
    m->heap[i] = last;
    return least;
}

/* The merge of a symbol with its right neighbour, or NULL. */
static const struct nkv_pair *merge_at(const struct nkv_merger *m, const struct nkv_pairs *pairs, uint32_t left)
{
    const struct nkv_symbol *symbol = &m->symbols[left];
    const struct nkv_pair *pair;

    if (symbol->next == NKV_TOKEN_NONE)
        return NULL;
    pair = nkv_pairs_get(pairs, symbol->id, m->symbols[symbol->next].id);
    return pair && pair->id != NKV_TOKEN_NONE ? pair : NULL;
}

static int propose(struct nkv_merger *m, const struct nkv_pairs *pairs, uint32_t left)
{
    const struct nkv_pair *pair = left == NKV_TOKEN_NONE ? NULL : merge_at(m, pairs, left);

    return pair ? push(m, (struct nkv_candidate){(uint64_t)pair->rank << 32 | left, pair->id}) : 0;
}

/* The right symbol leaves the chain; its id makes candidates that still name it out of date. */
static void merge(struct nkv_merger *m, uint32_t left, uint32_t id)
{
    struct nkv_symbol *symbol = &m->symbols[left], *right = &m->symbols[symbol->next];

    symbol->id = id;
    symbol->next = right->next;
    right->id = NKV_TOKEN_NONE;
    if (symbol->next != NKV_TOKEN_NONE)
        m->symbols[symbol->next].prev = left;
}

int nkv_merger_run(struct nkv_merger *merger, const struct nkv_pairs *pairs)
{
    size_t n = merger->n;

    merger->n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        merger->symbols[i].prev = i ? (uint32_t)(i - 1) : NKV_TOKEN_NONE;
        merger->symbols[i].next = i + 1 < n ? (uint32_t)(i + 1) : NKV_TOKEN_NONE;
    }
    for (size_t i = 0; i + 1 < n; i++)
        TRY(propose(merger, pairs, (uint32_t)i));
    while (merger->n_heap) {
        struct nkv_candidate best = pop(merger);
        uint32_t left = (uint32_t)best.order;
        const struct nkv_pair *pair = merge_at(merger, pairs, left);

        if (!pair || pair->id != best.id)
            continue;
        merge(merger, left, best.id);
        TRY(propose(merger, pairs, merger->symbols[left].prev));
        TRY(propose(merger, pairs, left));
    }
    return 0;
}
