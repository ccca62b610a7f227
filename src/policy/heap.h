/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy/heap.h: a heap of u32, in place. Chosen over quickselect because the lists that a policy ranks come from a
 * command's operands: no input may make it quadratic, and it needs neither memory nor recursion.
 */
#ifndef NKV_POLICY_HEAP_H
#define NKV_POLICY_HEAP_H

#include <nearkv/types.h>

/* Whether a ranks before b; `context` is what the caller passed. */
typedef bool (*heap_less_fn)(const void *context, uint32_t a, uint32_t b);

static inline void heap_sift(uint32_t *items, uint32_t root, uint32_t n, heap_less_fn less, const void *context)
{
    uint32_t item = items[root], child = 2 * root + 1;

    if (root >= n)
        return;
    while (child < n) {
        if (child + 1 < n && less(context, items[child], items[child + 1]))
            child++;
        if (!less(context, item, items[child]))
            break;
        items[root] = items[child];
        root = child;
        child = 2 * root + 1;
    }
    items[root] = item;
}

/* Makes items a heap: no item ranks before its children, so the last in rank is items[0]. pre: n < 2^31. */
static inline void heap_build(uint32_t *items, uint32_t n, heap_less_fn less, const void *context)
{
    for (uint32_t root = n / 2; root-- > 0;)
        heap_sift(items, root, n, less, context);
}

/* Takes the last in rank out of a heap of n items, which then has n - 1. pre: n > 0. */
static inline uint32_t heap_pop(uint32_t *items, uint32_t n, heap_less_fn less, const void *context)
{
    uint32_t last = items[0];

    items[0] = items[n - 1];
    heap_sift(items, 0, n - 1, less, context);
    return last;
}

#endif
