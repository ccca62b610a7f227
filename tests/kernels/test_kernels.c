/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every kernel of every table, from one table of cases: the reference is compared with an oracle in double, the others
 * with the reference, each with a bound per operation and element type; and splitting the work must not change a bit.
 *
 *   kernels_kernels            the comparison (what CTest runs)
 *   kernels_kernels --time     the time of each kernel on the shapes of the same table, and the rate at which it reads
 *                              as a share of the machine's read bandwidth, measured in the same run
 */
#define _DEFAULT_SOURCE /* posix_memalign, madvise */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <nearkv/nearkv.h>

#include "base/clock.h"
#include "base/team.h"
#include "kernels/ops.h"

/* ---- the table of cases ---- */

enum { F16_STEP_INVERSE = 2048, BF16_STEP_INVERSE = 256 }; /* half a step: 2^-11, 2^-8 */
#define HALF_F16  (1.0 / F16_STEP_INVERSE)
#define HALF_BF16 (1.0 / BF16_STEP_INVERSE)

enum { DOT, SCORE, ATTEND, MERGE, FINISH, STORE, LOAD, MATVEC, DIGEST, N_OPS };
static const struct op ops[N_OPS] = {
    /* Order of the four types: f32, f16, bf16, q8_0. */
    [DOT] = {"dot", dot_setup, dot_expect, dot_run, one_unit, row_bytes, {1e-7, 1e-7, 1e-7, -1}, {2e-6, 2e-6, 2e-6}},
    [SCORE] = {"score",
               score_setup,
               score_expect,
               score_run,
               n_units,
               score_bytes,
               {5e-7, 5e-7, 5e-7, -1},
               {2e-6, 2e-6, 2e-6}},
    /* bf16, q8_0: 16 bits of q and of the weights of V may count where the CPU multiplies bf16 or bytes. */
    [ATTEND] = {"attend",
                attend_setup,
                attend_expect,
                attend_run,
                attend_units,
                attend_bytes,
                {1e-6, 1e-6, 1e-6, 1e-6},
                {2e-6, 2e-6, 2e-5, 5e-5}},
    [MERGE] = {"merge", merge_setup, merge_expect, merge_run, one_unit, NULL, {1e-6, -1, -1, -1}, {1e-6}},
    [FINISH] = {"finish", finish_setup, finish_expect, finish_run, one_unit, NULL, {1e-7, -1, -1, -1}, {3e-7}},
    [STORE] = {"store",
               store_setup,
               store_expect,
               store_run,
               n_units,
               NULL,
               {0, HALF_F16, HALF_BF16, 0.5 / 127},
               {0, 0, 0, 0}},
    [LOAD] = {"load", load_setup, load_expect, load_run, n_units, NULL, {0, 0, 0, 0}, {0, 0, 0, 0}},
    [MATVEC] = {"matvec",
                matvec_setup,
                matvec_expect,
                matvec_run,
                n_units,
                matvec_bytes,
                {1e-7, 1e-7, 1e-7, 1e-7},
                {2e-6, 2e-6, 2e-6, 2e-6}},
    /* cuboid-mean rounds to the digest's type, and outward rounding of q8_0 is one whole step. */
    [DIGEST] = {"digest",
                digest_setup,
                digest_expect,
                digest_run,
                one_unit,
                digest_bytes,
                {1e-6, HALF_F16, HALF_BF16, 2 * HALF_BF16},
                {1e-6, 2 * HALF_F16, 2 * HALF_BF16, 2 * HALF_BF16}},
};

/* Every combination of the numbers in the lists (which end at 0) is a case. */
struct cases {
    int op;
    uint32_t dims[8], ns[8], rows[8];
    struct shape time[4];
};
static const struct cases table[] = {
    {DOT, {1, 7, 8, 31, 64, 80, 1000}, {1}, {1}, {{128, 1, 1, 1, false}}},
    {SCORE,
     {8, 64, 80, 128, 512, 24},
     {1, 2, 3, 4, 5, 33, 100},
     {1},
     {{128, 1u << 18, 1, 1, false}, {64, 1u << 19, 1, 1, false}}},
    {ATTEND,
     {8, 64, 80, 128, 512},
     {1, 2, 31, 32, 17},
     {1, 3, 4, 8, 32, 200},
     {{128, 32, 4, 1u << 13, false},
      {64, 32, 4, 1u << 14, false},
      {128, 32, 256, 64, false},
      {128, 32, 1, 1u << 13, false}}},
    {MERGE, {8, 64, 80, 128, 512}, {1}, {1, 3, 200}, {{128, 1, 32, 1, false}}},
    {FINISH, {8, 64, 80, 128, 512}, {1}, {1, 3, 200}, {{128, 1, 32, 1, false}}},
    {STORE, {8, 64, 80, 128, 512}, {1, 2, 31}, {1}, {{128, 32, 1, 1, false}}},
    {LOAD, {8, 64, 80, 128, 512}, {1, 2, 31}, {1}, {{128, 32, 1, 1, false}}},
    {MATVEC,
     {32, 64, 96, 2048, 4064},
     {1, 2, 3, 4, 7, 17},
     {1, 2, 3, 5, 8, 11},
     {{2048, 8192 * 4, 1, 1, false},
      {8192, 2048 * 4, 1, 1, false},
      {2048, 8192 * 4, 4, 1, false},
      {2048, 8192 * 4, 8, 1, false}}},
    {DIGEST, {8, 64, 80, 128, 512}, {1, 2, 31, 32}, {NKV_DIGEST_CUBOID_MEAN}, {{128, 32, 1, 1, false}}},
    {DIGEST, {8, 64, 80, 128, 512}, {1, 2, 31, 32}, {0}, {{128, 32, 0, 1, false}}},
};

static const char *const table_names[] = {"ref", "avx2", "avx512"};
enum { N_TABLES = sizeof table_names / sizeof *table_names };

static void result_alloc(const struct operands *p, struct result *r)
{
    const struct shape *s = &p->shape;
    size_t rows = 2 * (size_t)s->rows + 1;
    *r = (struct result){
        .out = test_alloc(p->n_out * sizeof(float)),
        .o = test_alloc(rows * s->dim * sizeof(float)),
        .m = test_alloc(rows * sizeof(float)),
        .l = test_alloc(rows * sizeof(float)),
        .raw = test_alloc(p->n_out * 4),
        .scale = test_alloc(s->n * sizeof(float)),
        .scratch = test_alloc(nkv_attend_scratch_bytes(s->rows + 1, s->n, s->dim)),
    };
}

static void result_free(struct result *r)
{
    void *all[] = {r->out, r->o, r->m, r->l, r->raw, r->scale, r->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void operands_free(struct operands *p)
{
    void *all[] = {p->x, p->x2, p->w, p->w2, p->scale, p->scale2, p->visible, p->want, p->size};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void compare(const struct op *op, const struct operands *p, const char *name, const float *out, double bound)
{
    const struct shape *s = &p->shape;
    for (size_t i = 0; i < p->n_out; i++) {
        double want = p->want[i], got = (double)out[i];
        if (want == got || (isnan(want) && isnan(got)) || fabs(got - want) <= bound * p->size[i])
            continue;
        fail_msg("%s %s %s dim %u n %u rows %u%s: out[%zu] = %.9g, want %.9g, error %.3g, bound %.3g", name, op->name,
                 nkv_dtype_name(p->dtype), s->dim, s->n, s->rows, s->ragged ? " ragged" : "", i, got, want,
                 fabs(got - want) / p->size[i], bound);
    }
}

/* Two halves, one after the other, must give the bits that the whole gave. Not for attend: it is a fold. */
static void check_split(const struct op *op, const struct operands *p, const struct nkv_kernels *k,
                        const struct result *whole)
{
    uint32_t n = op->units(p);
    struct result halves;
    if (n < 2 || op == &ops[ATTEND])
        return;
    result_alloc(p, &halves);
    op->run(k, p, &halves, 0, n / 2);
    op->run(k, p, &halves, n / 2, n);
    for (size_t i = 0; i < p->n_out; i++)
        if (memcmp(&whole->out[i], &halves.out[i], sizeof(float)) != 0)
            fail_msg("%s %s %s dim %u n %u rows %u: out[%zu] changes when the work is split", k->name, op->name,
                     nkv_dtype_name(p->dtype), p->shape.dim, p->shape.n, p->shape.rows, i);
    result_free(&halves);
}

static void check_case(const struct op *op, enum nkv_dtype dtype, struct shape shape)
{
    struct operands p = {.dtype = dtype, .shape = shape};
    struct result r;
    op->setup(&p);
    op->expect(&p);
    for (size_t i = 0; i < N_TABLES; i++) {
        const struct nkv_kernels *k = nkv_kernels_find(table_names[i]);
        if (k == NULL)
            continue;
        result_alloc(&p, &r);
        op->run(k, &p, &r, 0, op->units(&p));
        compare(op, &p, k->name, r.out, i == 0 ? op->bound_ref[dtype] : op->bound[dtype]);
        check_split(op, &p, k, &r);
        for (size_t j = 0; i == 0 && j < p.n_out; j++) /* from now on the reference is what is right */
            p.want[j] = (double)r.out[j];
        result_free(&r);
    }
    operands_free(&p);
}

static void check_cases(const struct cases *c)
{
    const struct op *op = &ops[c->op];
    bool attends = c->op == ATTEND;
    for (enum nkv_dtype dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++)
        for (size_t i = 0; op->bound_ref[dtype] >= 0 && i < 8 && c->dims[i]; i++)
            for (size_t j = 0; j < 8 && c->ns[j]; j++)
                for (size_t l = 0; l == 0 || (l < 8 && c->rows[l]); l++) {
                    struct shape shape = {c->dims[i], c->ns[j], c->rows[l], attends ? 3 : 1, false};
                    check_case(op, dtype, shape);
                    shape.ragged = attends;
                    if (attends)
                        check_case(op, dtype, shape);
                }
}

static void every_table_agrees_with_the_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        check_cases(&table[i]);
}

/* ---- times ---- */

struct timing {
    const struct op *op;
    const struct nkv_kernels *kernels;
    const struct operands *operands;
    struct result results[2];
};

static void timed_part(void *arg, uint32_t rank, uint32_t n_ranks)
{
    struct timing *t = arg;
    uint64_t n = t->op->units(t->operands);
    if (n == 1 && rank > 0)
        return;
    uint64_t ranks = n == 1 ? 1 : n_ranks;
    t->op->run(t->kernels, t->operands, &t->results[rank], (uint32_t)(n * rank / ranks),
               (uint32_t)(n * (rank + 1) / ranks));
}

static void read_part(void *arg, uint32_t rank, uint32_t n_ranks)
{
    const struct timing *t = arg;
    size_t passes = t->operands->w2 != NULL && t->operands->scale2 != NULL ? 2 : 1; /* attend reads w and w2 */
    size_t share = (size_t)t->op->bytes(t->operands) / passes / n_ranks / 4096 * 4096;
    for (size_t i = 0; i < passes; i++)
        t->results[rank].out[0] =
            (float)t->kernels->read(share, (const char *)(i ? t->operands->w2 : t->operands->w) + share * rank);
}

static double seconds_of(struct nkv_team *team, nkv_team_fn fn, struct timing *t)
{
    uint64_t start = nkv_now_ns();
    if (t->op->units(t->operands) == 1)
        fn(t, 0, 1);
    else
        nkv_team_run(team, fn, t);
    return (double)(nkv_now_ns() - start) * 1e-9;
}

/*
 * The best seconds of the kernel and of a plain read of as many bytes of the same memory, in turns, so that whatever
 * else the machine does disturbs both alike.
 */
static void best_seconds(struct nkv_team *team, struct timing *t, double *kernel_out, double *read_out)
{
    double total = 0;
    bool reads = t->op->bytes != NULL && t->op->bytes(t->operands) >= (64 << 20);
    *kernel_out = *read_out = 1e9;
    for (int i = 0; i < 10 || (total < 0.7 && i < 20000); i++) {
        double kernel = seconds_of(team, timed_part, t), read = reads ? seconds_of(team, read_part, t) : 0;
        *kernel_out = fmin(*kernel_out, kernel);
        *read_out = fmin(*read_out, read);
        total += kernel + read;
    }
}

static void time_shape(struct nkv_team *team, const struct op *op, enum nkv_dtype dtype, struct shape shape)
{
    struct operands p = {.dtype = dtype, .shape = shape};
    struct timing t = {.op = op, .operands = &p};
    op->setup(&p);
    result_alloc(&p, &t.results[0]);
    result_alloc(&p, &t.results[1]);
    for (size_t i = 0; i < N_TABLES; i++) {
        double seconds, read;
        t.kernels = nkv_kernels_find(table_names[i]);
        if (t.kernels == NULL || (i == 0 && op->units(&p) > 1000))
            continue; /* the reference would take minutes on the large shapes */
        best_seconds(team, &t, &seconds, &read);
        printf("%-7s %-5s %-7s dim %5u n %7u rows %3u pages %5u %12.2f us", op->name, nkv_dtype_name(dtype),
               t.kernels->name, shape.dim, shape.n, shape.rows, shape.pages, seconds * 1e6);
        if (op->bytes != NULL)
            printf(" %7.2f GB/s", op->bytes(&p) / seconds * 1e-9);
        if (read > 0)
            printf(" (read %6.2f) %5.1f %%", op->bytes(&p) / read * 1e-9, 100 * read / seconds);
        if (op == &ops[ATTEND] || op == &ops[MATVEC])
            printf(" %7.1f GFLOP/s",
                   (op == &ops[ATTEND] ? 4.0 : 2.0) * shape.rows * shape.dim * shape.n * shape.pages / seconds * 1e-9);
        printf("\n");
        fflush(stdout);
    }
    result_free(&t.results[0]);
    result_free(&t.results[1]);
    operands_free(&p);
}

/* argv[2], argv[3]: only this operation, only this type. */
static int time_all(int argc, char **argv)
{
    struct nkv_team *team;
    double bandwidth;
    if (nkv_read_bandwidth(1u << 30, 2, 5, &bandwidth) != 0 || nkv_team_open(2, NULL, NULL, &team) != 0) {
        fprintf(stderr, "%s\n", nkv_last_error());
        return 1;
    }
    printf("read bandwidth, 2 threads: %.2f GB/s\n", bandwidth);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const struct op *op = &ops[table[i].op];
        if (argc > 2 && strcmp(argv[2], op->name) != 0)
            continue;
        for (enum nkv_dtype dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++) {
            if (op->bound_ref[dtype] < 0 || (argc > 3 && strcmp(argv[3], nkv_dtype_name(dtype)) != 0))
                continue;
            for (size_t j = 0; j < 4 && table[i].time[j].dim; j++)
                time_shape(team, op, dtype, table[i].time[j]);
        }
    }
    nkv_team_close(team);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_table_agrees_with_the_reference),
    };
    if (argc > 1 && strcmp(argv[1], "--time") == 0)
        return time_all(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
