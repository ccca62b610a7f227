/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor parallel decoders, on threads in place of processes. The logits of every fixture, type of weights and number
 * of processes lie within a bound of those of one process (sums of o and down are rounded in another order, nothing
 * else differs), and are the same bits in every run. What cannot be divided is refused with what can; a step that fails
 * leaves all of them in step, also half way through one of two micro-batches.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/tp.h"
#include "model_fixture.h"
#include "threads_comm.h"

/* Largest difference of a logit, relative to the largest logit. Weights of f32 and f16: rounding. The others' products
 * of many rows round activations to bf16, where the last bit of a sum may decide about the sixteen below it. */
#define BOUND_F32  1e-5
#define BOUND_BF16 1e-2

#define N_PROMPT 70u
#define N_STEPS  6u
#define BATCH    3u

struct process {
    struct threads_comm comm;
    const void *data;
    size_t bytes;
    enum nkv_mode mode;
    float *logits; /* rank 0: [N_STEPS][n_vocab] */
    int status;
    bool fails;       /* a step, on purpose */
    uint32_t n_micro; /* of steps of several sequences; 0: there is one sequence */
    pthread_t thread;
};

static int32_t token_at(uint32_t i)
{
    return (int32_t)(i * 37 % 250 + 3);
}

static struct nkv_decoder_options options_of(struct process *p)
{
    return (struct nkv_decoder_options){.size = sizeof(struct nkv_decoder_options),
                                        .n_threads = 2,
                                        .max_batch = 4,
                                        .chunk_tokens = 56,
                                        .comm = p->comm.comm.size > 1 ? &p->comm.comm : NULL,
                                        .n_micro_batches = p->n_micro};
}

static struct nkv_seq *open_short_seq(struct rig *rig)
{
    struct nkv_seq_options options;
    struct nkv_seq *seq;

    nkv_seq_options_init(&options);
    options.max_tokens = 3;
    assert_ok(nkv_seq_open(rig->context, &options, &seq));
    return seq;
}

/* More tokens than its sequence may hold: the first layer's attention is refused. */
static void fail_step(struct rig *rig)
{
    struct nkv_seq *seq = open_short_seq(rig);
    int32_t tokens[5] = {3, 4, 5, 6, 7};

    assert_int_equal(nkv_prefill(rig->decoder, seq, tokens, 5, NULL, NULL, NULL), NKV_ENOSPC);
    assert_int_equal(nkv_seq_length(seq), 0);
    nkv_seq_close(seq);
}

static void lead(struct process *p, struct nkv_model *model)
{
    struct nkv_decoder_options options = options_of(p);
    struct nkv_decoder *alone = NULL;
    struct nkv_model_info info;
    struct rig rig;
    struct nkv_seq *seq;
    int32_t prompt[N_PROMPT];

    nkv_model_info(model, &info);
    rig_open_devices(model, "cpu", NKV_F32, 16, 2, &rig);
    assert_ok(nkv_decoder_open(model, rig.context, &options, &rig.decoder));
    if (options.comm) {
        options.comm = NULL;
        assert_int_equal(nkv_decoder_open(model, rig.context, &options, &alone), NKV_EINVAL);
        assert_non_null(strstr(nkv_last_error(), "the other processes"));
    }
    if (p->fails)
        fail_step(&rig);
    seq = open_seq(&rig, p->mode, 64);
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = token_at(i);
    assert_ok(nkv_prefill(rig.decoder, seq, prompt, N_PROMPT, p->logits, NULL, NULL));
    for (uint32_t i = 1; i < N_STEPS; i++) {
        int32_t token = token_at(N_PROMPT + i);

        assert_ok(nkv_decode(rig.decoder, &seq, &token, 1, p->logits + (size_t)i * info.n_vocab));
    }
    nkv_seq_close(seq);
    rig_close(&rig);
    if (p->comm.comm.size > 1)
        assert_ok(nkv_follow_end(&p->comm.comm));
}

/* The last of a batch is full: its half's attention is refused in rank 0 while the other half's is in flight. */
static void fail_batch(struct rig *rig, struct nkv_seq *const seqs[BATCH], float *logits)
{
    struct nkv_seq *short_seq = open_short_seq(rig), *with_short[BATCH + 1];
    int32_t tokens[BATCH + 1] = {3, 4, 5, 6};

    memcpy(with_short, seqs, BATCH * sizeof *with_short);
    with_short[BATCH] = short_seq;
    assert_ok(nkv_prefill(rig->decoder, short_seq, tokens, 3, NULL, NULL, NULL));
    assert_int_equal(nkv_decode(rig->decoder, with_short, tokens, BATCH + 1, logits), NKV_ENOSPC);
    assert_non_null(strstr(nkv_last_error(), "more than the"));
    assert_int_equal(nkv_context_recover(rig->context, 0), 0); /* no ticket is in flight */
    for (uint32_t i = 0; i < BATCH; i++)
        assert_int_equal(nkv_seq_length(seqs[i]), N_PROMPT - i);
    nkv_seq_close(short_seq);
}

static void lead_batch(struct process *p, struct nkv_model *model)
{
    struct nkv_decoder_options options = options_of(p);
    struct nkv_seq *seqs[BATCH];
    struct nkv_model_info info;
    int32_t prompt[N_PROMPT];
    struct rig rig;

    nkv_model_info(model, &info);
    rig_open_devices(model, "cpu", NKV_F32, 16, 2, &rig);
    assert_ok(nkv_decoder_open(model, rig.context, &options, &rig.decoder));
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = token_at(i);
    for (uint32_t i = 0; i < BATCH; i++) {
        seqs[i] = open_seq(&rig, p->mode, 64);
        assert_ok(nkv_prefill(rig.decoder, seqs[i], prompt + i, N_PROMPT - i, NULL, NULL, NULL));
    }
    if (p->fails)
        fail_batch(&rig, seqs, p->logits);
    for (uint32_t s = 0; s < N_STEPS / BATCH; s++)
        assert_ok(nkv_decode(rig.decoder, seqs, prompt, BATCH, p->logits + (size_t)s * BATCH * info.n_vocab));
    for (uint32_t i = 0; i < BATCH; i++)
        nkv_seq_close(seqs[i]);
    rig_close(&rig);
    assert_ok(nkv_follow_end(&p->comm.comm));
}

static void follow(struct process *p, struct nkv_model *model)
{
    struct nkv_decoder_options options = options_of(p);
    struct nkv_decoder *decoder = NULL;

    p->status = nkv_decoder_open(model, NULL, &options, &decoder);
    if (p->status == 0)
        p->status = nkv_decoder_follow(decoder);
    nkv_decoder_close(decoder);
}

static void *process_main(void *arg)
{
    struct process *p = arg;
    struct nkv_model *model;

    assert_ok(nkv_model_open_memory(p->data, p->bytes, "fixture", &model));
    assert_ok(nkv_model_shard(model, &p->comm.comm));
    if (p->comm.comm.rank == 0 && p->n_micro > 0)
        lead_batch(p, model);
    else if (p->comm.comm.rank == 0)
        lead(p, model);
    else
        follow(p, model);
    nkv_model_close(model);
    return NULL;
}

/* Processes like this one, n of them. */
static void run(const struct process *like, uint32_t n)
{
    struct threads_group group = {.size = n};
    struct process processes[COMM_MAX];

    pthread_barrier_init(&group.barrier, NULL, n);
    for (uint32_t r = 0; r < n; r++) {
        processes[r] = *like;
        comm_init(&processes[r].comm, &group, r);
        if (r > 0)
            assert_int_equal(pthread_create(&processes[r].thread, NULL, process_main, &processes[r]), 0);
    }
    process_main(&processes[0]);
    for (uint32_t r = 1; r < n; r++) {
        pthread_join(processes[r].thread, NULL);
        assert_int_equal(processes[r].status, 0);
    }
    pthread_barrier_destroy(&group.barrier);
}

static double difference(const float *a, const float *b, size_t n)
{
    double worst = 0, largest = 0;

    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)a[i] - b[i]));
        largest = fmax(largest, fabs((double)b[i]));
    }
    return worst / largest;
}

static bool divides(const void *data, size_t bytes, uint32_t n)
{
    struct threads_group group = {.size = n};
    struct threads_comm comm;
    struct nkv_model *model;
    int status;

    comm_init(&comm, &group, 0);
    assert_ok(nkv_model_open_memory(data, bytes, "fixture", &model));
    status = nkv_model_shard(model, &comm.comm);
    nkv_model_close(model);
    return status == 0;
}

static void compare(const char *name, enum nkv_dtype dtype, enum nkv_mode mode)
{
    static float alone[N_STEPS * 256], many[N_STEPS * 256], again[N_STEPS * 256];
    const double bound = dtype == NKV_F32 || dtype == NKV_F16 ? BOUND_F32 : BOUND_BF16;
    struct process process = {.mode = mode, .logits = alone};
    void *data;

    convert_fixture(name, dtype, NULL, &data, &process.bytes);
    process.data = data;
    run(&process, 1);
    for (uint32_t n = 2; n <= 4; n++) {
        double worst;

        if (!divides(data, process.bytes, n))
            continue;
        process.logits = many, process.fails = false;
        run(&process, n);
        worst = difference(many, alone, N_STEPS * 256);
        if (getenv("NKV_VERBOSE"))
            print_message("%-10s %-5s %-5s %u processes: %.2g\n", name, nkv_dtype_name(dtype), nkv_mode_name(mode), n,
                          worst);
        if (!(worst <= bound) || worst == 0)
            fail_msg("%s in %s, %u processes: logits differ by %g, bound %g (not 0)", name, nkv_dtype_name(dtype), n,
                     worst, bound);
        process.logits = again, process.fails = true;
        run(&process, n);
        assert_memory_equal(many, again, sizeof many);
    }
    nkv_free(data);
}

static void test_logits_are_those_of_one_process(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FIXTURES; i++)
        for (int dtype = 0; dtype < NKV_DTYPE_COUNT; dtype++)
            compare(fixture_names[i], (enum nkv_dtype)dtype, NKV_MODE_FULL);
}

static void test_modes(void **state)
{
    (void)state;
    for (int mode = 0; mode < NKV_MODE_COUNT; mode++)
        compare("llama", NKV_F32, (enum nkv_mode)mode);
}

/* The halves are exchanged one after the other, in the same order everywhere: the same bits. */
static void test_two_micro_batches(void **state)
{
    static float one[N_STEPS * 256], two[N_STEPS * 256];
    struct process process = {0};
    void *data;

    (void)state;
    convert_fixture("llama", NKV_F32, NULL, &data, &process.bytes);
    process.data = data;
    for (int mode = 0; mode < NKV_MODE_COUNT; mode++)
        for (uint32_t n = 2; n <= 4; n += 2) {
            process.mode = (enum nkv_mode)mode;
            process.n_micro = 1, process.logits = one, process.fails = false;
            run(&process, n);
            process.n_micro = 2, process.logits = two;
            run(&process, n);
            assert_memory_equal(one, two, sizeof one);
            process.fails = true;
            run(&process, n);
            if (mode != NKV_MODE_PNG) /* where what is resident already rounds otherwise */
                assert_memory_equal(one, two, sizeof one);
        }
    nkv_free(data);
}

static void test_what_cannot_be_divided_is_refused(void **state)
{
    static const struct {
        const char *name;
        enum nkv_dtype dtype;
        uint32_t n;
        const char *says;
    } cases[] = {
        {"llama", NKV_F32, 3,
         "4 heads, 2 KV heads and 64 feed-forward units: they cannot be divided among 3 "
         "processes, only among 1, 2, 4"},
        {"llama", NKV_F32, 8, "only among 1, 2, 4"},
        {"llama", NKV_Q8_0, 4, "only among 1, 2"}, /* a block of q8_0 stays whole */
        {"llama-tied", NKV_F32, 4, "only among 1, 2"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        void *data;
        size_t bytes;

        convert_fixture(cases[i].name, cases[i].dtype, NULL, &data, &bytes);
        assert_false(divides(data, bytes, cases[i].n));
        if (!strstr(nkv_last_error(), cases[i].says))
            fail_msg("\"%s\" does not say \"%s\"", nkv_last_error(), cases[i].says);
        nkv_free(data);
    }
}

/* Each process holds its part only, and is cut once. */
static void test_a_part_is_a_part(void **state)
{
    struct threads_group group = {.size = 4};
    struct threads_comm comm;
    struct nkv_model_info whole, part;
    struct nkv_model *model;
    char path[512];

    (void)state;
    comm_init(&comm, &group, 3);
    fixture_path("llama", "gguf", path);
    assert_ok(nkv_model_open(path, &model));
    nkv_model_info(model, &whole);
    assert_ok(nkv_model_shard(model, &comm.comm));
    nkv_model_info(model, &part);
    assert_true(part.weight_bytes < whole.weight_bytes * 2 / 3); /* the embedding stays whole */
    assert_int_equal(part.n_heads, whole.n_heads);
    assert_int_equal(nkv_model_shard(model, &comm.comm), NKV_ESTATE);
    nkv_model_close(model);
}

/* Rank 0 as a follower sees it: it announces this step and goes. */
struct stranger {
    struct nkv_comm comm; /* first */
    struct nkv_tp_step step;
};

static int reserve_nothing(struct nkv_comm *comm, uint64_t bytes)
{
    (void)comm, (void)bytes;
    return 0;
}

static int announce(struct nkv_comm *comm, void *data, uint64_t bytes)
{
    struct stranger *stranger = (struct stranger *)(void *)comm;

    if (stranger->step.kind == 0)
        return NKV_EDEVICE;
    assert_int_equal(bytes, sizeof stranger->step);
    memcpy(data, &stranger->step, bytes);
    stranger->step.kind = 0;
    return 0;
}

/* Another version's, or another decoder's. */
static void test_steps_that_cannot_be_followed(void **state)
{
    static const struct nkv_comm_ops ops = {.reserve = reserve_nothing, .broadcast = announce};
    static const struct {
        struct nkv_tp_step step;
        const char *says;
    } cases[] = {
        {{NKV_TP_LAYERS, 57, 0, 1}, "a step of 57 rows"},   {{NKV_TP_LOGITS, 1, 56, 0}, "a step of 1 rows"},
        {{NKV_TP_LAYERS, 4, 0, 0}, "in 0 micro-batches"},   {{NKV_TP_LAYERS, 4, 0, 3}, "in 3 micro-batches"},
        {{NKV_TP_LAYERS, 4, 0, UINT32_MAX}, "micro-batch"},
    };
    char path[512];

    (void)state;
    fixture_path("llama", "gguf", path);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct stranger stranger = {{&ops, 1, 2}, cases[i].step};
        struct nkv_decoder_options options = {
            .size = sizeof options, .n_threads = 1, .max_batch = 4, .chunk_tokens = 56, .comm = &stranger.comm};
        struct nkv_decoder *decoder;
        struct nkv_model *model;

        assert_ok(nkv_model_open(path, &model));
        assert_ok(nkv_model_shard(model, &stranger.comm));
        assert_ok(nkv_decoder_open(model, NULL, &options, &decoder));
        assert_int_equal(nkv_decoder_follow(decoder), NKV_EINVAL);
        assert_non_null(strstr(nkv_last_error(), cases[i].says));
        nkv_decoder_close(decoder);
        nkv_model_close(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_are_those_of_one_process),
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_two_micro_batches),
        cmocka_unit_test(test_what_cannot_be_divided_is_refused),
        cmocka_unit_test(test_a_part_is_a_part),
        cmocka_unit_test(test_steps_that_cannot_be_followed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
