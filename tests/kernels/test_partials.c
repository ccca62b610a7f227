/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The algebra of attention partials, for every table and element type: merging is commutative, associative and has the
 * empty partial as identity; attending in two halves and merging is attending to all; extreme and infinite scores,
 * empty sets and NaN do what kernels.h says.
 */
#define _DEFAULT_SOURCE /* posix_memalign, madvise */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/common.h"

enum { ROWS = 5, DIM = 72, TOKENS = 19, PAGES = 6, N_TABLES = 3 };
static const char *const table_names[N_TABLES] = {"ref", "avx2", "avx512"};

struct partial {
    float o[ROWS * DIM], m[ROWS], l[ROWS];
};

/* PAGES pages of one KV head. */
struct pages {
    enum nkv_dtype dtype;
    float *q, *k_scale, *v_scale;
    char *k, *v;
    void *scratch;
};

static void empty(struct partial *p)
{
    memset(p, 0, sizeof *p);
    for (int r = 0; r < ROWS; r++)
        p->m[r] = -INFINITY;
}

/* K and V from f32 arrays [PAGES * TOKENS][DIM]; NULL: random. */
static void pages_make(struct pages *p, enum nkv_dtype dtype, const float *k, const float *v)
{
    size_t n = PAGES * TOKENS, bytes = nkv_kv_row_bytes(dtype, DIM);
    float *random = random_floats(n * DIM), *random2 = random_floats(n * DIM);
    *p = (struct pages){dtype,
                        random_floats(ROWS * DIM),
                        test_alloc(n * 4),
                        test_alloc(n * 4),
                        test_alloc(n * bytes),
                        test_alloc(n * bytes),
                        test_alloc(nkv_attend_scratch_bytes(ROWS, TOKENS, DIM))};
    nkv_kernels_find("ref")->store[dtype](n, DIM, k ? k : random, p->k, p->k_scale);
    nkv_kernels_find("ref")->store[dtype](n, DIM, v ? v : random2, p->v, p->v_scale);
    free(random);
    free(random2);
}

static void pages_free(struct pages *p)
{
    void *all[] = {p->q, p->k_scale, p->v_scale, p->k, p->v, p->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void attend(const struct nkv_kernels *kernels, const struct pages *p, size_t first, size_t end,
                   const uint32_t *visible, struct partial *out)
{
    size_t page = TOKENS * nkv_kv_row_bytes(p->dtype, DIM);
    for (size_t i = first; i < end; i++) {
        struct nkv_attend a = {.n_rows = ROWS,
                               .n_tokens = TOKENS,
                               .dim = DIM,
                               .q = p->q,
                               .visible = visible,
                               .k = p->k + i * page,
                               .v = p->v + i * page,
                               .k_scale = p->k_scale + i * TOKENS,
                               .v_scale = p->v_scale + i * TOKENS,
                               .o = out->o,
                               .m = out->m,
                               .l = out->l,
                               .scratch = p->scratch};
        if (p->dtype != NKV_Q8_0)
            a.k_scale = a.v_scale = NULL;
        kernels->attend[p->dtype](&a);
    }
}

static void merge(const struct nkv_kernels *kernels, struct partial *a, const struct partial *b)
{
    kernels->merge(ROWS, DIM, a->o, a->m, a->l, b->o, b->m, b->l);
}

/* Same output and same logarithm of the sum, within bound. */
static void assert_same(const struct nkv_kernels *kernels, const struct partial *a, const struct partial *b,
                        double bound)
{
    float x[ROWS * DIM], y[ROWS * DIM];
    kernels->finish(ROWS, DIM, a->o, a->l, x);
    kernels->finish(ROWS, DIM, b->o, b->l, y);
    for (int i = 0; i < ROWS * DIM; i++)
        if (!(fabs((double)(x[i] - y[i])) <= bound))
            fail_msg("%s: output %d: %g and %g", kernels->name, i, (double)x[i], (double)y[i]);
    for (int r = 0; r < ROWS; r++) {
        double lse_a = (double)a->m[r] + log((double)a->l[r]), lse_b = (double)b->m[r] + log((double)b->l[r]);
        if (!(lse_a == lse_b || fabs(lse_a - lse_b) <= bound * (1 + fabs(lse_a))))
            fail_msg("%s: row %d: log of the sum %g and %g", kernels->name, r, lse_a, lse_b);
    }
}

static void for_all(void (*check)(const struct nkv_kernels *, enum nkv_dtype))
{
    for (int i = 0; i < N_TABLES; i++)
        for (enum nkv_dtype dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++)
            if (nkv_kernels_find(table_names[i]) != NULL)
                check(nkv_kernels_find(table_names[i]), dtype);
}

static void check_laws(const struct nkv_kernels *kernels, enum nkv_dtype dtype)
{
    struct pages p;
    struct partial a, b, c, x, y, none;
    pages_make(&p, dtype, NULL, NULL);
    empty(&a);
    empty(&b);
    empty(&c);
    empty(&none);
    attend(kernels, &p, 0, 1, NULL, &a);
    attend(kernels, &p, 1, 4, NULL, &b);
    attend(kernels, &p, 4, 6, NULL, &c);

    x = a, y = b; /* commutative */
    merge(kernels, &x, &b);
    merge(kernels, &y, &a);
    assert_same(kernels, &x, &y, 1e-6);

    merge(kernels, &x, &c); /* associative: (a b) c = a (b c) */
    y = b;
    merge(kernels, &y, &c);
    struct partial z = a;
    merge(kernels, &z, &y);
    assert_same(kernels, &x, &z, 2e-6);

    empty(&y); /* split-invariant: merging parts is attending to all */
    attend(kernels, &p, 0, 6, NULL, &y);
    assert_same(kernels, &x, &y, 4e-6);

    x = a, y = none; /* identity, to the bit, from either side */
    merge(kernels, &x, &none);
    merge(kernels, &y, &a);
    assert_memory_equal(&x, &a, sizeof a);
    assert_memory_equal(&y, &a, sizeof a);
    x = none;
    merge(kernels, &x, &none);
    assert_memory_equal(&x, &none, sizeof none);
    pages_free(&p);
}

static void merging_is_a_commutative_monoid(void **state)
{
    (void)state;
    for_all(check_laws);
}

/* Scores of +-1e4: all weight is on one token, so the output is its V. */
static void check_extreme(const struct nkv_kernels *kernels, enum nkv_dtype dtype)
{
    float *k = random_floats(PAGES * TOKENS * DIM);
    struct pages p;
    struct partial out;
    for (int sign = -1; sign <= 1; sign += 2) {
        size_t best = 3 * TOKENS + 7;
        for (size_t t = 0; t < PAGES * TOKENS; t++)
            for (size_t d = 0; d < DIM; d++)
                k[t * DIM + d] = d == 0 ? (float)sign * 128 : 0;
        k[best * DIM] = (float)sign * (sign > 0 ? 160.0f : 96.0f);
        pages_make(&p, dtype, k, NULL);
        for (int i = 0; i < ROWS * DIM; i++)
            p.q[i] = i % DIM == 0 ? 64 : 0; /* scores: +-8192; the best 10240 or -6144 */
        empty(&out);
        attend(kernels, &p, 0, PAGES, NULL, &out);
        for (int r = 0; r < ROWS; r++) {
            assert_true(fabsf(out.m[r] / (sign > 0 ? 10240 : -6144) - 1) < 0.01f);
            assert_true(fabsf(out.l[r] - 1) < 1e-6f);
            for (size_t d = 0; d < DIM; d++) {
                float v = (float)element(dtype, p.v, p.v_scale[best], best * DIM + d);
                assert_true(fabsf(out.o[r * DIM + (int)d] - v) <= 0.02f * (1 + fabsf(v)));
            }
        }
        pages_free(&p);
    }
    free(k);
}

static void scores_of_ten_thousand_do_not_overflow(void **state)
{
    (void)state;
    for_all(check_extreme);
}

static void check_minus_infinity(const struct nkv_kernels *kernels, enum nkv_dtype dtype)
{
    float k[PAGES * TOKENS * DIM];
    struct pages p;
    struct partial out, before;
    for (int i = 0; i < PAGES * TOKENS * DIM; i++)
        k[i] = 1;
    pages_make(&p, dtype, k, NULL);
    for (int i = 0; i < ROWS * DIM; i++)
        p.q[i] = -3e38f; /* the sum over DIM is -inf */
    empty(&out);
    attend(kernels, &p, 0, PAGES, NULL, &out);
    float result[ROWS * DIM];
    kernels->finish(ROWS, DIM, out.o, out.l, result);
    for (int r = 0; r < ROWS; r++)
        assert_true(out.l[r] == 0);
    for (int i = 0; i < ROWS * DIM; i++)
        assert_true(result[i] == 0);

    for (int i = 0; i < ROWS * DIM; i++) /* after finite scores they change nothing */
        p.q[i] = 0.01f;
    empty(&out);
    attend(kernels, &p, 0, 1, NULL, &out);
    before = out;
    for (int i = 0; i < ROWS * DIM; i++)
        p.q[i] = -3e38f;
    attend(kernels, &p, 1, PAGES, NULL, &out);
    assert_same(kernels, &out, &before, 0);
    pages_free(&p);
}

static void scores_of_minus_infinity_weigh_nothing(void **state)
{
    (void)state;
    for_all(check_minus_infinity);
}

static void check_empty(const struct nkv_kernels *kernels, enum nkv_dtype dtype)
{
    uint32_t nothing[ROWS] = {0}, some[ROWS] = {0, TOKENS, 0, 1, 0};
    struct pages p;
    struct partial out, none;
    pages_make(&p, dtype, NULL, NULL);
    empty(&none);
    empty(&out);
    attend(kernels, &p, 0, PAGES, nothing, &out);
    assert_memory_equal(&out, &none, sizeof out);

    attend(kernels, &p, 0, 1, some, &out); /* one page; row 3 sees its first token only */
    assert_memory_equal(out.o, none.o, DIM * sizeof(float));
    assert_true(out.l[0] == 0 && out.l[1] >= 1 && out.l[2] == 0 && out.l[3] == 1 && out.l[4] == 0);
    for (size_t d = 0; d < DIM; d++) {
        float v = (float)element(dtype, p.v, p.v_scale[0], d);
        assert_true(fabsf(out.o[3 * DIM + d] - v) <= 0.02f * fabsf(v) + 1e-3f);
    }
    pages_free(&p);
}

static void rows_that_see_nothing_stay_empty(void **state)
{
    (void)state;
    for_all(check_empty);
}

static void check_nan(const struct nkv_kernels *kernels, enum nkv_dtype dtype)
{
    struct pages p;
    struct partial out, none;
    float result[ROWS * DIM];
    pages_make(&p, dtype, NULL, NULL);
    p.q[2 * DIM + 5] = NAN; /* row 2 */
    empty(&out);
    empty(&none);
    attend(kernels, &p, 0, 2, NULL, &out);
    p.q[2 * DIM + 5] = 0;
    attend(kernels, &p, 2, PAGES, NULL, &out); /* a NaN row stays one */
    merge(kernels, &out, &none);
    merge(kernels, &none, &out);
    kernels->finish(ROWS, DIM, none.o, none.l, result);
    for (int i = 0; i < ROWS * DIM; i++)
        if ((isnan(result[i]) != 0) != (i / DIM == 2))
            fail_msg("%s %s: element %d is %g", kernels->name, nkv_dtype_name(dtype), i, (double)result[i]);
    pages_free(&p);
}

static void a_nan_score_makes_its_row_nan_and_no_other(void **state)
{
    (void)state;
    for_all(check_nan);
}

/* Denormal queries and keys score 0 (their scales must not overflow on the way): every token weighs 1. */
static void check_tiny(const struct nkv_kernels *kernels, enum nkv_dtype dtype)
{
    float *k = random_floats(PAGES * TOKENS * DIM);
    struct pages p;
    struct partial out;
    for (size_t i = 0; i < PAGES * TOKENS * DIM; i++)
        k[i] *= 1e-42f;
    pages_make(&p, dtype, k, NULL);
    for (int i = 0; i < 2 * DIM; i++)
        p.q[i] *= 1e-42f; /* rows 0 and 1 */
    empty(&out);
    attend(kernels, &p, 0, PAGES, NULL, &out);
    for (int r = 0; r < ROWS; r++)
        if (!(fabsf(out.l[r] - PAGES * TOKENS) <= 1e-3f * PAGES * TOKENS))
            fail_msg("%s %s: row %d: sum %g", kernels->name, nkv_dtype_name(dtype), r, (double)out.l[r]);
    pages_free(&p);
    free(k);
}

static void denormal_queries_and_keys_score_nothing(void **state)
{
    (void)state;
    for_all(check_tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merging_is_a_commutative_monoid),
        cmocka_unit_test(scores_of_ten_thousand_do_not_overflow),
        cmocka_unit_test(scores_of_minus_infinity_weigh_nothing),
        cmocka_unit_test(rows_that_see_nothing_stay_empty),
        cmocka_unit_test(a_nan_score_makes_its_row_nan_and_no_other),
        cmocka_unit_test(denormal_queries_and_keys_score_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
