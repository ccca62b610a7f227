/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sampling: the next token from logits. Candidates are put in order of logit (ties to the lower id, so that a run is
 * repeatable), cut to top_k, turned into probabilities at the temperature, cut to the fewest that reach top_p, and one
 * is drawn. Random numbers are xoshiro256**, seeded by splitmix64: the C library's would differ from machine to
 * machine.
 *
 * Only as many candidates as needed are sorted: a heap of all n is built in O(n) and popped in order, until top_k or
 * top_p is reached; a full sort of 150,000 logits per token was rejected. With neither cut, nothing is ordered at all.
 */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"

#include <nearkv/model.h>

struct nkv_sampler {
    struct nkv_sampler_options options;
    uint64_t state[4];
    uint32_t capacity;
    uint32_t *ids;        /* [capacity] candidates: a heap, from whose end the popped ones grow */
    float *probabilities; /* [capacity] of the popped ones, not normalised */
};

/* ---- Random numbers */

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t rotate_left(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

static uint64_t xoshiro256(uint64_t s[4])
{
    uint64_t result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

/* Uniform in [0, 1). */
static double next_uniform(struct nkv_sampler *s)
{
    return (double)(xoshiro256(s->state) >> 11) * 0x1p-53;
}

/* ---- Open and close */

static int check_options(const struct nkv_sampler_options *o)
{
    if (o->size != sizeof *o)
        FAIL(NKV_EINVAL, "nkv_sampler_options.size is %u: it must be %zu", o->size, sizeof *o);
    if (!isfinite(o->temperature) || o->temperature < 0)
        FAIL(NKV_EINVAL, "temperature is %g: it must be 0 (greedy) or positive", (double)o->temperature);
    if (!(o->top_p > 0 && o->top_p <= 1))
        FAIL(NKV_EINVAL, "top_p is %g: it must be above 0 and at most 1 (all)", (double)o->top_p);
    return 0;
}

int nkv_sampler_open(const struct nkv_sampler_options *options, struct nkv_sampler **sampler_out)
{
    struct nkv_sampler *s;
    uint64_t seed = options->seed;

    TRY(check_options(options));
    TRY(nkv_alloc(1, sizeof *s, &s));
    s->options = *options;
    for (int i = 0; i < 4; i++)
        s->state[i] = splitmix64(&seed);
    *sampler_out = s;
    return 0;
}

void nkv_sampler_close(struct nkv_sampler *s)
{
    if (!s)
        return;
    nkv_free(s->probabilities);
    nkv_free(s->ids);
    nkv_free(s);
}

static int reserve(struct nkv_sampler *s, uint32_t n)
{
    uint32_t *ids;
    float *probabilities;
    int status;

    if (n <= s->capacity)
        return 0;
    TRY(nkv_alloc(n, sizeof *ids, &ids));
    status = nkv_alloc(n, sizeof *probabilities, &probabilities);
    if (status < 0) {
        nkv_free(ids);
        return status;
    }
    nkv_free(s->ids);
    nkv_free(s->probabilities);
    s->ids = ids;
    s->probabilities = probabilities;
    s->capacity = n;
    return 0;
}

/* ---- Candidates in order */

static bool ranks_before(const float *logits, uint32_t a, uint32_t b)
{
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sift_down(const float *logits, uint32_t *heap, uint32_t n, uint32_t i)
{
    for (;;) {
        uint32_t best = i, left = 2 * i + 1, swap;

        if (left < n && ranks_before(logits, heap[left], heap[best]))
            best = left;
        if (left + 1 < n && ranks_before(logits, heap[left + 1], heap[best]))
            best = left + 1;
        if (best == i)
            return;
        swap = heap[i];
        heap[i] = heap[best];
        heap[best] = swap;
        i = best;
    }
}

/* Moves the best of the heap's n to heap[n - 1]. */
static void pop(const float *logits, uint32_t *heap, uint32_t n)
{
    uint32_t best = heap[0];

    heap[0] = heap[n - 1];
    heap[n - 1] = best;
    sift_down(logits, heap, n - 1, 0);
}

/* The best logit's id; an error where no choice makes sense. */
static int best_of(const float *logits, uint32_t n, int32_t *best_out)
{
    uint32_t best = 0;

    if (n == 0)
        FAIL(NKV_EINVAL, "cannot sample from no logits");
    for (uint32_t i = 0; i < n; i++) {
        if (isnan(logits[i]))
            FAIL(NKV_EINVAL,
                 "logit %u is not a number: the model's weights, or what was fed to it, hold NaN or infinity", i);
        if (logits[i] > logits[best])
            best = i;
    }
    if (isinf(logits[best]))
        FAIL(NKV_EINVAL, "the largest logit (token %u) is %s: the model's weights hold values out of range", best,
             logits[best] > 0 ? "infinite" : "minus infinity, so all are");
    *best_out = (int32_t)best;
    return 0;
}

/* Draws one of n choices, whose weights are probabilities[0..n-1] of sum `total`. */
static uint32_t draw(struct nkv_sampler *s, uint32_t n, double total)
{
    double target = next_uniform(s) * total, sum = 0;

    for (uint32_t i = 0; i < n; i++) {
        sum += (double)s->probabilities[i];
        if (target < sum)
            return i;
    }
    return n - 1; /* rounding: the sum fell short of the total */
}

/* No cut: every token in order of id. */
static uint32_t draw_any(struct nkv_sampler *s, const float *logits, uint32_t n, float best)
{
    double total = 0;

    for (uint32_t i = 0; i < n; i++) {
        s->probabilities[i] = expf((logits[i] - best) / s->options.temperature);
        total += (double)s->probabilities[i];
    }
    return draw(s, n, total);
}

/* The top_k best, of these the fewest that hold top_p of their probability. */
static uint32_t draw_best(struct nkv_sampler *s, const float *logits, uint32_t n, uint32_t top_k, float best)
{
    double total = 0, kept = 0;
    uint32_t n_kept = 0;

    for (uint32_t i = 0; i < n; i++)
        s->ids[i] = i;
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(logits, s->ids, n, i);
    if (top_k == n)
        for (uint32_t i = 0; i < n; i++)
            total += (double)expf((logits[i] - best) / s->options.temperature);
    for (uint32_t i = 0; i < top_k; i++) {
        pop(logits, s->ids, n - i);
        s->probabilities[i] = expf((logits[s->ids[n - 1 - i]] - best) / s->options.temperature);
        kept += (double)s->probabilities[i];
        n_kept = i + 1;
        if (top_k == n && kept >= (double)s->options.top_p * total)
            break;
    }
    if (top_k < n) {
        total = kept;
        for (n_kept = 0, kept = 0; n_kept < top_k && kept < (double)s->options.top_p * total; n_kept++)
            kept += (double)s->probabilities[n_kept];
    }
    return s->ids[n - 1 - draw(s, n_kept, kept)];
}

int nkv_sample(struct nkv_sampler *s, const float *logits, uint32_t n_vocab, int32_t *token_out)
{
    const struct nkv_sampler_options *o = &s->options;
    uint32_t top_k = o->top_k == 0 || o->top_k > n_vocab ? n_vocab : o->top_k;
    int32_t best = 0;

    TRY(best_of(logits, n_vocab, &best));
    if (o->temperature > 0) {
        TRY(reserve(s, n_vocab));
        best = (int32_t)(top_k == n_vocab && o->top_p >= 1 ? draw_any(s, logits, n_vocab, logits[best])
                                                           : draw_best(s, logits, n_vocab, top_k, logits[best]));
    }
    *token_out = best;
    return 0;
}
