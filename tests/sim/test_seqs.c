/* SPDX-License-Identifier: Apache-2.0 */
/* Sequences of a simulated device hold, byte by byte, what the same sequences hold in a real store, and as many tokens.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "kv/store.h"
#include "sim/seqs.h"

#define PAGE     16u
#define LAYERS   2u
#define CAPACITY (2u << 20)
#define MAX_SEQS 24u

static const struct nkv_kv_shape shape = {
    .n_layers = LAYERS, .n_heads = 2, .n_kv_heads = 1, .head_dim = 8, .page_tokens = PAGE, .dtype = NKV_F16};

static uint32_t random_below(uint64_t *state, uint32_t n)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((x ^ x >> 31) % n);
}

struct pair {
    struct nkv_store *store;
    struct sim_seqs seqs;
    uint32_t ids[MAX_SEQS], n_ids, next_id;
    uint32_t n_refused, n_shared_cuts, n_forks;
};

/* Both did it, or both had no room. */
static bool same(struct pair *p, int real, int simulated)
{
    struct nkv_device_stat stat = {.size = sizeof stat};

    assert_int_equal(real, simulated);
    nkv_store_stat(p->store, &stat);
    assert_int_equal(stat.used_bytes, p->seqs.used_bytes);
    p->n_refused += real == NKV_ENOSPC;
    return real == 0;
}

static void open_one(struct pair *p, uint64_t *random)
{
    static const uint16_t flags[] = {0, 0, NKV_NO_DIGEST, NKV_NO_PAGES, NKV_SLOTS};
    struct nkv_cmd cmd = {.op = NKV_OP_SEQ_OPEN, .seq = p->next_id++, .flags = flags[random_below(random, 5)]};
    struct sim_seq *seq;

    cmd.n_tokens = (1 + random_below(random, 300)) * PAGE - (cmd.flags & NKV_SLOTS ? 0 : random_below(random, PAGE));
    if (same(p, nkv_store_seq_open(p->store, cmd.seq, cmd.n_tokens, cmd.flags), sim_seqs_add(&p->seqs, &cmd, 0, &seq)))
        p->ids[p->n_ids++] = cmd.seq;
}

static void grow_one(struct pair *p, uint32_t id, uint64_t *random)
{
    struct nkv_kv_seq *real = nkv_store_find(p->store, id);
    struct sim_seq *seq = NULL;
    uint32_t room = real->max_tokens - real->lengths[0], n = room ? random_below(random, room + 1) : 0;

    assert_int_equal(sim_seqs_find(&p->seqs, id, &seq), 0);
    if (real->flags & (NKV_SLOTS | NKV_NO_PAGES))
        return;
    assert_int_equal(sim_seq_extend(seq, 0, real->lengths[0] + 1, n), NKV_EINVAL);
    assert_int_equal(sim_seq_extend(seq, 0, real->lengths[0], room + 1), NKV_EINVAL);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        assert_int_equal(sim_seq_extend(seq, layer, real->lengths[layer], n), 0);
        nkv_store_extend(p->store, real, layer, n, true);
        assert_int_equal(seq->lengths[layer], real->lengths[layer]);
    }
}

static void fork_one(struct pair *p, uint32_t id, uint64_t *random)
{
    struct nkv_kv_seq *real = nkv_store_find(p->store, id);
    struct nkv_cmd cmd = {.op = NKV_OP_SEQ_FORK, .seq = p->next_id++, .arg = id};
    struct sim_seq *seq;

    if (real->flags & (NKV_SLOTS | NKV_NO_PAGES))
        return;
    cmd.pos = random_below(random, real->lengths[0] + 1);
    cmd.n_tokens = cmd.pos + 1 + random_below(random, 2000);
    if (!same(p, nkv_store_seq_fork(p->store, cmd.seq, id, cmd.pos, cmd.n_tokens), sim_seqs_fork(&p->seqs, &cmd, &seq)))
        return;
    p->ids[p->n_ids++] = cmd.seq;
    p->n_forks++;
}

static void truncate_one(struct pair *p, uint32_t id, uint64_t *random)
{
    struct nkv_kv_seq *real = nkv_store_find(p->store, id);
    uint32_t n = random_below(random, real->lengths[0] + 1);
    uint64_t before = p->seqs.used_bytes;
    struct sim_seq *seq;

    if (real->flags & (NKV_SLOTS | NKV_NO_PAGES))
        return;
    assert_int_equal(sim_seqs_find(&p->seqs, id, &seq), 0);
    (void)same(p, nkv_store_seq_truncate(p->store, id, n), sim_seqs_truncate(&p->seqs, seq, n));
    assert_int_equal(seq->lengths[0], real->lengths[0]);
    p->n_shared_cuts += p->seqs.used_bytes != before;
}

static void close_one(struct pair *p, uint32_t at)
{
    struct sim_seq *seq;

    assert_int_equal(sim_seqs_find(&p->seqs, p->ids[at], &seq), 0);
    sim_seqs_remove(&p->seqs, seq);
    assert_true(same(p, nkv_store_seq_close(p->store, p->ids[at]), 0));
    p->ids[at] = p->ids[--p->n_ids];
}

static void holdings_are_those_of_a_real_store(void **state)
{
    struct pair p = {.next_id = 1};
    uint64_t random = 11;

    (void)state;
    assert_int_equal(nkv_store_open(&shape, CAPACITY, &p.store), 0);
    assert_int_equal(sim_seqs_init(&shape, CAPACITY, MAX_SEQS, &p.seqs), 0);
    for (uint32_t i = 0; i < 20000; i++) {
        uint32_t what = random_below(&random, 10), at = p.n_ids ? random_below(&random, p.n_ids) : 0;

        if (p.n_ids == 0 || (what < 2 && p.n_ids < MAX_SEQS))
            open_one(&p, &random);
        else if (what < 5 && p.n_ids < MAX_SEQS)
            fork_one(&p, p.ids[at], &random);
        else if (what < 7)
            grow_one(&p, p.ids[at], &random);
        else if (what < 8)
            truncate_one(&p, p.ids[at], &random);
        else
            close_one(&p, at);
    }
    assert_true(p.n_forks > 500 && p.n_shared_cuts > 100 && p.n_refused > 100);
    while (p.n_ids)
        close_one(&p, 0);
    assert_int_equal(p.seqs.used_bytes, 0);
    sim_seqs_free(&p.seqs);
    nkv_store_close(p.store);
}

static void what_is_not_there_is_refused(void **state)
{
    struct nkv_cmd cmd = {.op = NKV_OP_SEQ_OPEN, .seq = 1, .n_tokens = 100}, fork = {.seq = 2, .arg = 1, .pos = 50};
    struct sim_seqs seqs;
    struct sim_seq *seq;

    (void)state;
    assert_int_equal(sim_seqs_init(&shape, CAPACITY, 1, &seqs), 0);
    assert_int_equal(sim_seqs_find(&seqs, 1, &seq), NKV_ENOENT);
    assert_int_equal(sim_seqs_add(&seqs, &cmd, 40, &seq), 0);
    assert_int_equal(sim_seq_check(seq, 1, 0, 40), 0);
    assert_int_equal(sim_seq_check(seq, 1, 1, 40), NKV_EINVAL);
    assert_int_equal(sim_seqs_add(&seqs, &cmd, 0, &seq), NKV_EINVAL); /* the id is taken */
    fork.n_tokens = 200;
    assert_int_equal(sim_seqs_fork(&seqs, &fork, &seq), NKV_EINVAL); /* it holds 40 tokens */
    fork.pos = 40;
    assert_int_equal(sim_seqs_fork(&seqs, &fork, &seq), NKV_ENOSPC); /* one sequence is the most */
    assert_int_equal(seqs.n_open, 1);
    sim_seqs_free(&seqs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(holdings_are_those_of_a_real_store),
        cmocka_unit_test(what_is_not_there_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
