/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences of both kinds, on one device and on all, over devices that fail their n-th command, whichever it is: what
 * is tried again works, whoever failed says why, every output is that of an undisturbed run, and every page comes back.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <nearkv/device.h>

#include "runtime/rig.h"

#define N_SEQS   4u /* those of even number lie on all devices */
#define LENGTH   200u
#define CHUNK    70u
#define STRIDE   5u
#define ATTEMPTS 4u
#define ROUNDING 2e-5f /* of sums in another order */

struct play {
    struct rig rig;
    struct rig_seq s[N_SEQS];
    uint32_t n_faults; /* that were noticed */
};

typedef float outputs_t[2][N_SEQS][RIG_LAYERS * RIG_ROW];

static struct nkv_seq_options options_of(enum nkv_mode mode, enum nkv_granularity granularity, uint32_t i)
{
    struct nkv_seq_options so = rig_seq_options(mode, i % 2 ? 400 : 12000 * (i / 2 + 1), 160, granularity);

    so.n_dense_layers = i % 2 == 0;
    so.sparse_prefill = i == 2;
    return so;
}

/* Opens with so, or forks the parent; again, if it fails. */
static struct nkv_seq *open_again(struct play *p, struct nkv_seq *parent, const struct nkv_seq_options *so)
{
    struct nkv_seq *seq = NULL;

    for (uint32_t i = 0; i < ATTEMPTS; i++) {
        if ((parent ? nkv_seq_fork(parent, LENGTH + 1, NULL, &seq) : nkv_seq_open(p->rig.context, so, &seq)) == 0)
            return seq;
        assert_non_null(strstr(nkv_last_error(), "injected fault"));
        p->n_faults++;
    }
    fail_msg("%s", nkv_last_error());
    return NULL;
}

static void cut_back(struct play *p, struct rig_seq *s)
{
    uint32_t i = 0;

    assert_non_null(strstr(nkv_seq_error(s->seq), "injected fault"));
    p->n_faults++;
    while (nkv_seq_truncate(s->seq, nkv_seq_length(s->seq)) < 0)
        assert_true(++i < ATTEMPTS);
}

/* A layer of both halves, each in a ticket. */
static void layer_of(struct play *p, uint32_t layer, const uint32_t *which, const uint32_t *each, uint32_t n,
                     struct nkv_attend_item *items)
{
    uint32_t half = n / 2;
    struct nkv_ticket *tickets[2] = {NULL};

    for (uint32_t j = 0; j < n; j++)
        items[j] = rig_item(&p->s[which[j]], layer, each[j]);
    if (half)
        assert_int_equal(nkv_attend_begin(p->rig.context, layer, items, half, &tickets[0]), 0);
    assert_int_equal(nkv_attend_begin(p->rig.context, layer, items + half, n - half, &tickets[1]), 0);
    assert_int_equal(nkv_attend_end(tickets[1]), 0);
    if (half)
        assert_int_equal(nkv_attend_end(tickets[0]), 0);
    for (uint32_t j = 0; j < n; j++)
        memcpy(p->s[which[j]].last + layer * RIG_ROW, items[j].out + (each[j] - 1) * RIG_ROW, RIG_ROW * sizeof(float));
}

/* A chunk or a token for each that has not as many as that. returns: whether there was one. */
static bool step(struct play *p, uint32_t n_tokens)
{
    struct nkv_attend_item items[N_SEQS];
    uint32_t which[N_SEQS], each[N_SEQS], n = 0;

    for (uint32_t i = 0; i < N_SEQS; i++) {
        uint32_t left = LENGTH - p->s[i].length;

        if (p->s[i].length >= n_tokens)
            continue;
        each[n] = p->s[i].length >= LENGTH ? 1 : left < CHUNK ? left : CHUNK;
        which[n++] = i;
    }
    for (uint32_t layer = 0; n && layer < RIG_LAYERS; layer++)
        layer_of(p, layer, which, each, n, items);
    assert_int_equal(nkv_step_end(p->rig.context, items, n), 0);
    for (uint32_t j = 0; j < n; j++) {
        struct rig_seq *s = &p->s[which[j]];

        if (nkv_seq_status(s->seq) < 0)
            cut_back(p, s);
        s->length = nkv_seq_length(s->seq);
    }
    return n > 0;
}

/* returns: how many failures were noticed. */
static uint32_t play(enum nkv_mode mode, enum nkv_granularity granularity, const char *spec, const char *compute_spec,
                     outputs_t out)
{
    struct rig_options options = {.n_devices = 2,
                                  .kv_parallel = NKV_KV_AUTO,
                                  .spec = spec,
                                  .compute_spec = compute_spec,
                                  .capacity_bytes = 64u << 20,
                                  .max_batch = N_SEQS};
    struct nkv_seq *parents[N_SEQS];
    struct play p = {0};

    assert_int_equal(rig_open(&p.rig, &options), 0);
    for (uint32_t i = 0; i < N_SEQS; i++) {
        struct nkv_seq_options so = options_of(mode, granularity, i);

        parents[i] = open_again(&p, NULL, &so);
        assert_true((nkv_seq_device(parents[i]) == NKV_ALL_DEVICES) == (i % 2 == 0));
        rig_seq_init(&p.s[i], parents[i], 1 + i);
    }
    for (uint32_t part = 0; part < 2; part++) {
        while (step(&p, LENGTH + 3 + part))
            ;
        for (uint32_t i = 0; i < N_SEQS; i++) {
            memcpy(out[part][i], p.s[i].last, sizeof out[part][i]);
            if (part)
                continue;
            p.s[i].seq = open_again(&p, parents[i], NULL);
            p.s[i].length = nkv_seq_length(p.s[i].seq);
        }
    }
    for (uint32_t i = 0; i < N_SEQS; i++) {
        nkv_seq_close(p.s[i].seq);
        nkv_seq_close(parents[i]);
        rig_seq_free(&p.s[i]);
    }
    assert_true(rig_empty(&p.rig));
    rig_close(&p.rig);
    return p.n_faults;
}

/* Every STRIDE-th command, on the PNM devices or on the compute side, until there is none any more. */
static void sweep(enum nkv_mode mode, enum nkv_granularity granularity, bool on_compute)
{
    static outputs_t expected, out;
    uint32_t n_faults = 1;

    (void)play(mode, granularity, "cpu", "cpu", expected);
    for (uint32_t n = 1 + (uint32_t)granularity; n_faults > 0 || n < 40; n += STRIDE) { /* not every close is told */
        char spec[64];

        snprintf(spec, sizeof spec, "fault:op=any,n=%u:cpu", n);
        n_faults = play(mode, granularity, on_compute ? "cpu" : spec, on_compute ? spec : "cpu", out);
        for (uint32_t part = 0; part < 2; part++)
            for (uint32_t i = 0; i < N_SEQS; i++)
                assert_true(rig_difference(out[part][i], expected[part][i], RIG_LAYERS * RIG_ROW) <= ROUNDING);
    }
}

static void test_any_command_fails(void **state)
{
    (void)state;
    for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++)
        for (uint32_t granularity = 0; granularity < 2; granularity++) {
            sweep(mode, (enum nkv_granularity)granularity, false);
            if (mode == NKV_MODE_RECALL || mode == NKV_MODE_PNG)
                sweep(mode, (enum nkv_granularity)granularity, true);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_any_command_fails)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
