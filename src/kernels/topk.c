/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/topk.c: the exact k best of n scores.
 *
 * Radix select: a score becomes an unsigned key of the same order, and three histograms of 11, 11 and 10 bits narrow
 * down the key of the k-th best, each over the candidates that the one before left. Every key above that threshold is
 * in, and of the keys equal to it the first ones by id. Then the k winners, which are in order of id, are sorted by a
 * merge sort or, where there are many, by a radix sort of four bytes; both are stable, so ties keep the lower id. O(n +
 * k log k) whatever the scores are.
 *
 * Rejected: quickselect (quadratic on adversarial orders unless the pivot is random, and then not reproducible) and a
 * heap (O(n log k), with a branch per score that the predictor loses).
 */
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

enum { DIGIT_BITS = 11, N_BUCKETS = 1 << DIGIT_BITS, RADIX_FROM = 256 };

/* Greater key = greater score; NaN = -inf; -0 = +0. */
static uint32_t key_of(float score)
{
    uint32_t bits;
    score = isnan(score) ? -INFINITY : score + 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The bucket that holds the k-th best (k >= 1) and, in *k, its rank there. */
static uint32_t find_bucket(const uint32_t *counts, uint32_t *k)
{
    uint32_t bucket = N_BUCKETS - 1;
    while (counts[bucket] < *k) {
        *k -= counts[bucket];
        bucket--;
    }
    return bucket;
}

/* The key of the k-th best; *k becomes how many of those equal to it are among the k best. */
static uint32_t find_threshold(const float *scores, uint32_t n, uint32_t *k, uint32_t *candidates)
{
    uint32_t counts[N_BUCKETS] = {0};
    for (uint32_t i = 0; i < n; i++)
        counts[key_of(scores[i]) >> 21]++;
    uint32_t high = find_bucket(counts, k), n_candidates = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = key_of(scores[i]);
        candidates[n_candidates] = key;
        n_candidates += key >> 21 == high;
    }

    memset(counts, 0, sizeof counts);
    for (uint32_t i = 0; i < n_candidates; i++)
        counts[candidates[i] >> 10 & (N_BUCKETS - 1)]++;
    uint32_t middle = find_bucket(counts, k);
    uint32_t prefix = high << DIGIT_BITS | middle;

    memset(counts, 0, sizeof counts);
    for (uint32_t i = 0; i < n_candidates; i++)
        if (candidates[i] >> 10 == prefix)
            counts[candidates[i] & 1023u]++;
    return prefix << 10 | find_bucket(counts, k);
}

static void merge_runs(const float *scores, const uint32_t *from, uint32_t begin, uint32_t middle, uint32_t end,
                       uint32_t *to)
{
    uint32_t a = begin, b = middle;
    for (uint32_t i = begin; i < end; i++) {
        bool take_a = b == end || (a < middle && key_of(scores[from[a]]) >= key_of(scores[from[b]]));
        to[i] = take_a ? from[a++] : from[b++];
    }
}

/* Sorts k indices by descending key, stable; the result is in ids. */
static void merge_by_key(const float *scores, uint32_t k, uint32_t *ids, uint32_t *scratch)
{
    uint32_t *from = ids, *to = scratch;
    for (uint64_t width = 1; width < k; width *= 2) {
        for (uint64_t begin = 0; begin < k; begin += 2 * width) {
            uint64_t middle = begin + width < k ? begin + width : k;
            uint64_t end = begin + 2 * width < k ? begin + 2 * width : k;
            merge_runs(scores, from, (uint32_t)begin, (uint32_t)middle, (uint32_t)end, to);
        }
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != ids)
        memcpy(ids, from, k * sizeof *ids);
}

/* One stable pass by the byte at `shift`, greatest first. */
static void radix_pass(const float *scores, uint32_t k, uint32_t shift, const uint32_t *from, uint32_t *to)
{
    uint32_t at[257] = {0};
    for (uint32_t i = 0; i < k; i++)
        at[256 - (key_of(scores[from[i]]) >> shift & 255u)]++;
    for (uint32_t i = 1; i < 257; i++)
        at[i] += at[i - 1];
    for (uint32_t i = 0; i < k; i++)
        to[at[255 - (key_of(scores[from[i]]) >> shift & 255u)]++] = from[i];
}

static void sort_by_key(const float *scores, uint32_t k, uint32_t *ids, uint32_t *scratch)
{
    if (k < RADIX_FROM) {
        merge_by_key(scores, k, ids, scratch);
        return;
    }
    for (uint32_t shift = 0; shift < 32; shift += 16) {
        radix_pass(scores, k, shift, ids, scratch);
        radix_pass(scores, k, shift + 8, scratch, ids);
    }
}

uint32_t nkv_topk(const float *scores, uint32_t n, uint32_t k, uint32_t base, uint32_t *scratch, uint32_t *ids_out)
{
    if (k > n)
        k = n;
    if (k == 0)
        return 0;
    uint32_t n_equal = k;
    uint32_t threshold = find_threshold(scores, n, &n_equal, scratch);
    uint32_t n_ids = 0;
    for (uint32_t i = 0; i < n && n_ids < k; i++) {
        uint32_t key = key_of(scores[i]);
        if (key < threshold || (key == threshold && n_equal == 0))
            continue;
        n_equal -= key == threshold;
        ids_out[n_ids++] = i;
    }
    sort_by_key(scores, k, ids_out, scratch);
    for (uint32_t i = 0; i < k; i++)
        ids_out[i] += base;
    return k;
}
