/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Migration: a sequence that moved between steps goes on with the bits of one that stayed, its memory went with it, and
 * what ends a move (a fault, no room, the caller) leaves it where it was. Rebalancing moves what departures left
 * behind.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "runtime/rig.h"

#define LENGTH 300u
#define STEPS  4u

static float stayed[STEPS][RIG_LAYERS * RIG_ROW], moved[STEPS][RIG_LAYERS * RIG_ROW];

static void open_rig(struct rig *rig, enum nkv_dtype dtype, const char *spec, uint64_t capacity_bytes)
{
    struct rig_options options = {.dtype = dtype, .n_devices = 2, .spec = spec, .capacity_bytes = capacity_bytes};

    if (rig_open(rig, &options))
        fail_msg("%s", nkv_last_error());
}

static void open_seq(struct rig *rig, enum nkv_mode mode, uint32_t max_tokens, struct rig_seq *s)
{
    struct nkv_seq_options so = rig_seq_options(mode, max_tokens, 160, NKV_SELECT_LAYER);
    struct nkv_seq *seq = NULL;

    if (nkv_seq_open(rig->context, &so, &seq))
        fail_msg("%s", nkv_last_error());
    rig_seq_init(s, seq, 1);
}

static void close_seq(struct rig_seq *s)
{
    nkv_seq_close(s->seq);
    rig_seq_free(s);
}

static uint64_t used(const struct rig *rig, uint32_t device)
{
    struct nkv_device_report report;

    assert_int_equal(nkv_context_device(rig->context, device, &report), 0);
    return report.used_bytes;
}

static void decode(struct rig *rig, struct rig_seq *s, float out[STEPS][RIG_LAYERS * RIG_ROW])
{
    for (uint32_t step = 0; step < STEPS; step++) {
        assert_int_equal(rig_decode(rig, s), 0);
        memcpy(out[step], s->last, sizeof out[step]);
    }
}

/* Fills a sequence and decodes two tokens, so that the compute side holds something. */
static void begin(struct rig *rig, enum nkv_mode mode, struct rig_seq *s)
{
    open_seq(rig, mode, 500, s);
    assert_int_equal(nkv_seq_device(s->seq), 0);
    assert_int_equal(rig_prefill(rig, s, LENGTH, 128), 0);
    assert_int_equal(rig_decode(rig, s), 0);
    assert_int_equal(rig_decode(rig, s), 0);
}

static void reference(enum nkv_dtype dtype, enum nkv_mode mode)
{
    struct rig_seq s;
    struct rig rig;

    open_rig(&rig, dtype, NULL, 0);
    begin(&rig, mode, &s);
    decode(&rig, &s, stayed);
    close_seq(&s);
    rig_close(&rig);
}

static void the_bits_are_the_same(void **state)
{
    (void)state;
    for (enum nkv_dtype dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++)
        for (enum nkv_mode mode = 0; mode < NKV_MODE_COUNT; mode++) {
            struct rig_seq s;
            struct rig rig;
            uint64_t bytes;

            reference(dtype, mode);
            open_rig(&rig, dtype, NULL, 0);
            begin(&rig, mode, &s);
            bytes = used(&rig, 0);
            assert_true(bytes > 0 && used(&rig, 1) == 0);
            if (nkv_seq_migrate(s.seq, 1, NULL, NULL))
                fail_msg("%s", nkv_last_error());
            assert_int_equal(nkv_seq_device(s.seq), 1);
            assert_int_equal(nkv_seq_length(s.seq), LENGTH + 2);
            assert_true(used(&rig, 0) == 0 && used(&rig, 1) == bytes);
            decode(&rig, &s, moved);
            assert_memory_equal(moved, stayed, sizeof moved);
            assert_int_equal(nkv_seq_truncate(s.seq, LENGTH + 2), 0); /* and back */
            s.length = LENGTH + 2;
            assert_int_equal(nkv_seq_migrate(s.seq, 0, NULL, NULL), 0);
            assert_int_equal(nkv_seq_migrate(s.seq, 0, NULL, NULL), 0);
            assert_true(used(&rig, 0) == bytes && used(&rig, 1) == 0);
            decode(&rig, &s, moved);
            if (mode == NKV_MODE_FULL || mode == NKV_MODE_PNM)
                assert_memory_equal(moved, stayed, sizeof moved); /* the others merge in another split */
            close_seq(&s);
            assert_true(rig_empty(&rig));
            rig_close(&rig);
        }
}

static void a_fork_gets_its_own_pages(void **state)
{
    struct rig_seq s;
    struct rig rig;
    struct nkv_seq *fork = NULL;
    uint64_t alone;

    (void)state;
    reference(NKV_F16, NKV_MODE_PNM);
    open_rig(&rig, NKV_F16, NULL, 0);
    begin(&rig, NKV_MODE_PNM, &s);
    alone = used(&rig, 0);
    assert_int_equal(nkv_seq_fork(s.seq, LENGTH, NULL, &fork), 0);
    assert_int_equal(nkv_seq_migrate(s.seq, 1, NULL, NULL), 0);
    assert_true(used(&rig, 0) == alone && used(&rig, 1) == alone);
    nkv_seq_close(fork);
    assert_int_equal(used(&rig, 0), 0);
    decode(&rig, &s, moved);
    assert_memory_equal(moved, stayed, sizeof moved);
    close_seq(&s);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

/* READ comes from the one device, WRITE and SEQ_OPEN go to the other; layers are 2, of one piece each. */
static void a_fault_leaves_the_old(void **state)
{
    static const struct {
        const char *op;
        uint32_t n;
        enum nkv_mode mode;
    } faults[] = {{"read", 1, NKV_MODE_PNM},
                  {"read", 2, NKV_MODE_FULL},
                  {"write", 1, NKV_MODE_FULL},
                  {"write", 2, NKV_MODE_PNM},
                  {"write", 2, NKV_MODE_FULL}};

    (void)state;
    for (size_t f = 0; f < sizeof faults / sizeof *faults; f++) {
        struct rig_seq s;
        struct rig rig;
        char spec[64];
        uint64_t bytes;

        snprintf(spec, sizeof spec, "fault:op=%s,n=%u:cpu", faults[f].op, faults[f].n);
        reference(NKV_F16, faults[f].mode);
        open_rig(&rig, NKV_F16, spec, 0);
        begin(&rig, faults[f].mode, &s);
        bytes = used(&rig, 0);
        assert_int_equal(nkv_seq_migrate(s.seq, 1, NULL, NULL), NKV_EDEVICE);
        assert_true(nkv_seq_device(s.seq) == 0 && nkv_seq_status(s.seq) == 0);
        assert_true(used(&rig, 0) == bytes && used(&rig, 1) == 0);
        decode(&rig, &s, moved);
        assert_memory_equal(moved, stayed, sizeof moved);
        assert_int_equal(nkv_seq_migrate(s.seq, 1, NULL, NULL), 0);
        assert_true(used(&rig, 0) == 0 && used(&rig, 1) == bytes);
        close_seq(&s);
        assert_true(rig_empty(&rig));
        rig_close(&rig);
    }
}

static int stop(void *arg, uint64_t n_done, uint64_t n_total)
{
    uint32_t *n = arg;

    assert_true(n_done <= n_total && n_done > 0);
    return --*n == 0;
}

static void what_is_refused(void **state)
{
    struct nkv_attend_item item;
    struct nkv_ticket *ticket = NULL;
    struct rig_seq s, other;
    struct rig rig;

    (void)state;
    open_rig(&rig, NKV_F16, NULL, 250000);
    begin(&rig, NKV_MODE_PNM, &s);
    assert_int_equal(nkv_seq_migrate(s.seq, 2, NULL, NULL), NKV_EINVAL);
    for (uint32_t n = 1; n < 3; n++)
        assert_int_equal(nkv_seq_migrate(s.seq, 1, stop, &(uint32_t){n}), NKV_ECANCELED);
    assert_true(nkv_seq_device(s.seq) == 0 && used(&rig, 1) == 0);
    open_seq(&rig, NKV_MODE_PNM, 700, &other);
    assert_int_equal(nkv_seq_device(other.seq), 1);
    assert_int_equal(nkv_seq_migrate(s.seq, 1, NULL, NULL), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "device 1"));
    close_seq(&other);
    item = rig_item(&s, 0, 1);
    assert_int_equal(nkv_attend_begin(rig.context, 0, &item, 1, &ticket), 0);
    assert_int_equal(nkv_seq_migrate(s.seq, 1, NULL, NULL), NKV_ESTATE);
    assert_int_equal(nkv_attend_end(ticket), 0);
    assert_int_equal(nkv_seq_migrate(s.seq, 1, NULL, NULL), NKV_ESTATE);
    assert_int_equal(nkv_seq_truncate(s.seq, s.length), 0);
    assert_int_equal(nkv_seq_migrate(s.seq, 1, NULL, NULL), 0);
    close_seq(&s);
    rig_close(&rig);
}

static void a_session_stays(void **state)
{
    struct nkv_seq_options so = rig_seq_options(NKV_MODE_PNM, 500, 160, NKV_SELECT_LAYER);
    const int32_t ids[] = {1, 2, 3};
    const struct nkv_session_options options = {
        .size = sizeof options, .name = "book", .model = 1, .tokens = ids, .n_tokens = 3};
    struct nkv_session_result result;
    struct nkv_seq *seq = NULL;
    struct rig rig;

    (void)state;
    open_rig(&rig, NKV_F16, NULL, 0);
    assert_int_equal(nkv_session_open(rig.context, &so, &options, &seq, &result), 0);
    assert_int_equal(nkv_seq_migrate(seq, 1, NULL, NULL), NKV_ENOTSUP);
    assert_int_equal(nkv_context_rebalance(rig.context, 1u << 30), 0);
    nkv_seq_close(seq);
    rig_close(&rig);
}

/* Append only: 20,000 tokens of f32 are more than a piece of each layer. */
static void pieces(void **state)
{
    struct rig_seq s;
    struct rig rig;
    uint32_t n_pieces = UINT32_MAX;

    (void)state;
    open_rig(&rig, NKV_F32, NULL, 32u << 20);
    open_seq(&rig, NKV_MODE_PNM, 20100, &s);
    while (s.length < 20000) {
        struct nkv_attend_item item;
        struct nkv_ticket *ticket;

        for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
            item = rig_item(&s, layer, 400);
            item.q = item.out = NULL;
            assert_int_equal(nkv_attend_begin(rig.context, layer, &item, 1, &ticket), 0);
            assert_int_equal(nkv_attend_end(ticket), 0);
        }
        assert_int_equal(nkv_step_end(rig.context, &item, 1), 0);
        s.length = nkv_seq_length(s.seq);
    }
    decode(&rig, &s, stayed);
    assert_int_equal(nkv_seq_truncate(s.seq, 20000), 0);
    s.length = 20000;
    assert_int_equal(nkv_seq_migrate(s.seq, 1, stop, &n_pieces), 0);
    assert_int_equal(UINT32_MAX - n_pieces, 2 * RIG_LAYERS);
    decode(&rig, &s, moved);
    assert_memory_equal(moved, stayed, sizeof moved);
    close_seq(&s);
    rig_close(&rig);
}

static void rebalance(void **state)
{
    struct rig_seq s[4];
    struct rig rig;

    (void)state;
    open_rig(&rig, NKV_F16, NULL, 0);
    for (uint32_t i = 0; i < 4; i++) {
        open_seq(&rig, NKV_MODE_FULL, 3000, &s[i]);
        assert_int_equal(nkv_seq_device(s[i].seq), i % 2);
        assert_int_equal(rig_prefill(&rig, &s[i], 100, 100), 0);
    }
    assert_int_equal(nkv_context_rebalance(rig.context, 1000), 0);
    close_seq(&s[1]);
    close_seq(&s[3]);
    assert_int_equal(nkv_context_rebalance(rig.context, 0), 0); /* nobody will decode */
    assert_int_equal(nkv_context_rebalance(rig.context, 1000), 1);
    assert_true(nkv_seq_device(s[0].seq) != nkv_seq_device(s[2].seq));
    assert_true(used(&rig, 0) == used(&rig, 1));
    assert_int_equal(nkv_context_rebalance(rig.context, 1000), 0);
    close_seq(&s[0]);
    close_seq(&s[2]);
    assert_true(rig_empty(&rig));
    rig_close(&rig);
}

static void placed_by_load(void **state)
{
    struct rig_seq full, small, pnm;
    struct rig rig;

    (void)state;
    open_rig(&rig, NKV_F16, NULL, 0);
    open_seq(&rig, NKV_MODE_FULL, 3000, &full); /* 0: attends to everything */
    open_seq(&rig, NKV_MODE_PNM, 6000, &pnm);   /* 1: more memory, less work */
    open_seq(&rig, NKV_MODE_FULL, 500, &small);
    assert_int_equal(nkv_seq_device(full.seq), 0);
    assert_int_equal(nkv_seq_device(pnm.seq), 1);
    assert_int_equal(nkv_seq_device(small.seq), 1);
    assert_true(used(&rig, 1) > used(&rig, 0));
    close_seq(&full);
    close_seq(&pnm);
    close_seq(&small);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bits_are_the_same),
        cmocka_unit_test(a_fork_gets_its_own_pages),
        cmocka_unit_test(a_fault_leaves_the_old),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(a_session_stays),
        cmocka_unit_test(pieces),
        cmocka_unit_test(rebalance),
        cmocka_unit_test(placed_by_load),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
