/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Noise is a hash of (seed, pair, page, position), not a generator's state: scores do not depend on who asks first.
 * Normal deviates are sums of uniform ones, four from a 64-bit hash; their tails end at 3.5 deviations, which the
 * popularity, a sum of twelve, does not show and the wandering part forgets by adding up.
 */
#include "sim/locality.h"

#include <math.h>

#include "base/mem.h"
#include "base/status.h"

#define STEPS_BEFORE 1024u

struct wander {
    uint32_t pos;
    uint32_t n_pages; /* that have a value */
    float *popularity, *z;
};

struct sim_locality {
    struct sim_source source;
    double drift, correlation;
    uint64_t seed;
    uint32_t n_layers, n_units, max_pages, n_wanders;
    struct wander *wanders; /* [stream][layer][unit] */
};

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* A deviate of mean 0 and variance 1: the sum of the four 16-bit parts. */
static float normal4(uint64_t x)
{
    uint64_t pairs = (x & 0x0000ffff0000ffffu) + (x >> 16 & 0x0000ffff0000ffffu);
    int32_t sum = (int32_t)((pairs & 0xffffffffu) + (pairs >> 32));

    return (float)(sum - 131070) * (1.0f / 37837.2f); /* 65536 * sqrt(4 / 12) */
}

static float normal12(uint64_t x)
{
    return (normal4(mix(x)) + normal4(mix(x + 1)) + normal4(mix(x + 2))) * 0.57735027f;
}

/* Pages that have appeared since: a popularity, and a place in the middle of their wandering. */
static void add_pages(struct wander *w, uint64_t key, uint32_t n_pages)
{
    for (uint32_t page = w->n_pages; page < n_pages; page++) {
        w->popularity[page] = normal12(mix(key ^ (uint64_t)page << 8));
        w->z[page] = normal12(mix(~key ^ (uint64_t)page << 8));
    }
    w->n_pages = n_pages;
}

static void wander_to(const struct sim_locality *l, struct wander *w, uint64_t key, uint32_t pos)
{
    double rho = pow(l->correlation, (double)(pos - w->pos));
    float keep = (float)rho, noise = (float)sqrt(1 - rho * rho);
    uint64_t base = mix(key ^ (uint64_t)pos << 32);

    for (uint32_t page = 0; page < w->n_pages; page++)
        w->z[page] = keep * w->z[page] + noise * normal4(mix(base + page));
    w->pos = pos;
}

static int wander_begin(const struct sim_locality *l, struct wander *w)
{
    TRY(nkv_alloc(l->max_pages, sizeof *w->popularity, &w->popularity));
    return nkv_alloc(l->max_pages, sizeof *w->z, &w->z);
}

static int locality_scores(struct sim_source *source, const struct sim_query *query, float *scores_out)
{
    struct sim_locality *l = (struct sim_locality *)(void *)source;
    uint32_t at = (query->stream * l->n_layers + query->layer) * l->n_units + query->unit;
    struct wander *w = &l->wanders[at];
    uint64_t key = mix(l->seed + at);
    float lasting = (float)sqrt(1 - l->drift), drifting = (float)sqrt(l->drift);

    if (!w->z)
        TRY(wander_begin(l, w));
    if (query->pos > w->pos)
        wander_to(l, w, key, query->pos);
    if (query->end > w->n_pages)
        add_pages(w, key, query->end);
    for (uint32_t page = query->begin; page < query->end; page++)
        scores_out[page - query->begin] = lasting * w->popularity[page] + drifting * w->z[page];
    return 0;
}

int sim_locality_open(const struct nkv_sim_locality *parameters, uint64_t seed, uint32_t n_streams, uint32_t n_layers,
                      uint32_t n_units, uint32_t max_pages, struct sim_locality **locality_out)
{
    struct sim_locality *l;
    int status;

    if (!(parameters->drift >= 0 && parameters->drift <= 1) ||
        !(parameters->correlation >= 0 && parameters->correlation <= 1))
        FAIL(NKV_EINVAL, "locality drift %g, correlation %g: each must be from 0 to 1", parameters->drift,
             parameters->correlation);
    TRY(nkv_alloc(1, sizeof *l, &l));
    *l = (struct sim_locality){
        .source = {.scores = locality_scores, .n_streams = n_streams, .n_before = STEPS_BEFORE},
        .drift = parameters->drift,
        .correlation = parameters->correlation,
        .seed = mix(seed),
        .n_layers = n_layers,
        .n_units = n_units,
        .max_pages = max_pages,
        .n_wanders = n_streams * n_layers * n_units,
    };
    status = nkv_alloc(l->n_wanders, sizeof *l->wanders, &l->wanders);
    if (status < 0) {
        nkv_free(l);
        return status;
    }
    *locality_out = l;
    return 0;
}

void sim_locality_close(struct sim_locality *l)
{
    if (!l)
        return;
    for (uint32_t i = 0; i < l->n_wanders; i++) {
        nkv_free(l->wanders[i].popularity);
        nkv_free(l->wanders[i].z);
    }
    nkv_free(l->wanders);
    nkv_free(l);
}

struct sim_source *sim_locality_source(struct sim_locality *locality)
{
    return &locality->source;
}
