/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device mpi:RANK against the one in this process: the same commands, likely, spoilt and chained, in submits of any
 * size, must leave the same completions and the same bytes in the window. Then what only messages have: what travels
 * and what must not, growing windows, coming and going, errors' texts; and the compute ranks' communicator.
 *
 * The program starts itself again under mpirun with three processes, of which one takes its messages through memory and
 * one by MPI; it is skipped where there is no MPI.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <nearkv/parallel.h>
#include <stdio.h>
#include <unistd.h>

#include "device/hostile.h"

#define N_ROUNDS  8000u
#define MAX_BATCH 6u
#define SKIPPED   77

static const char *const peers[] = {"mpi:1", "mpi:2"}; /* through memory; by MPI, because it will have it so */
static const char *peer;
static struct nkv_mpi *mpi;
static struct nkv_comm *comm; /* of all ranks */

static void open_on(const char *spec, uint64_t window_bytes, struct nkv_device **device_out, void **window_out)
{
    struct nkv_device_config config = rig_config(&hostile_shape, 1);

    config.capacity_bytes = 64u << 10;
    if (nkv_device_open(spec, &config, device_out) < 0)
        fail_msg("open %s: %s", spec, nkv_last_error());
    assert_int_equal((*device_out)->ops->map(*device_out, window_bytes, window_out), 0);
}

/* Operands of command i of a batch. */
static void place(struct nkv_cmd *cmd, uint32_t i)
{
    cmd->in_offset = cmd->in_offset % 4096 + i * 8192;
    cmd->out_offset = cmd->out_offset ? (64u << 10) + i * 16384 : 0;
    cmd->list_offset = cmd->list_offset ? (192u << 10) + i * 8192 : 0;
}

static bool is_chain(const struct nkv_cmd *cmd)
{
    return cmd->op == NKV_OP_ATTEND && cmd[-1].op == NKV_OP_SELECT && !(cmd->flags & NKV_ALL_PAGES);
}

/* Each command has its own part of the window, but for chains: an ATTEND of what the SELECT before it finds. The last
 * one may be spoilt: nothing behind it reads what it should have written. */
static uint32_t make_batch(struct nkv_cmd *cmds, uint64_t *random)
{
    uint32_t n = 1 + pick(random, MAX_BATCH);

    for (uint32_t i = 0; i < n; i++) {
        cmds[i] = likely(random);
        tidy(&cmds[i], random);
        if (i > 0 && cmds[i - 1].op == NKV_OP_SELECT && pick(random, 2)) {
            cmds[i] = cmds[i - 1];
            cmds[i].op = NKV_OP_ATTEND;
            cmds[i].flags = cmds[i].sink = cmds[i].recent = 0;
            cmds[i].arg = 0;
        }
        if (cmds[i].op >= NKV_OP_APPEND)
            place(&cmds[i], i);
        if (i > 0 && is_chain(&cmds[i])) {
            cmds[i].n_pages = cmds[i - 1].n_pages;
            cmds[i].list_offset = cmds[i - 1].out_offset + nkv_select_layout(1, cmds[i].n_pages, 0, 0).device;
            cmds[i].in_offset = cmds[i - 1].in_offset;
            cmds[i].flags &= (uint16_t)~NKV_PER_HEAD;
            cmds[i - 1].flags &= (uint16_t)~NKV_PER_HEAD;
        }
    }
    if (!pick(random, 3))
        mutate(&cmds[n - 1], random);
    for (uint32_t i = 0; i < n; i++)
        cmds[i].user_data = i;
    return n;
}

/* Lists and names where the commands look for them. */
static void scribble_operands(char *window, const struct nkv_cmd *cmds, uint32_t n, uint64_t *random)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t *words = (uint32_t *)(void *)(window + (192u << 10) + i * 8192), ids = pick(random, 8);

        for (uint32_t j = 0; j < 64; j++) /* a second unit's list begins somewhere */
            words[j] = j % 16 == 0 ? ids : j % 16 - 1;
        if (cmds[i].op == NKV_OP_SELECT)
            words[0] = words[16] = cmds[i].arg;
        if ((cmds[i].op == NKV_OP_SEQ_PUBLISH || (cmds[i].flags & NKV_NAMED)) && cmds[i].in_offset < (64u << 10)) {
            struct nkv_seq_name name = {.name = {(char)('a' + pick(random, 4))}};

            memcpy(window + cmds[i].in_offset, &name, sizeof name);
        }
    }
}

static void run_batch(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n, struct nkv_cqe *cqes)
{
    assert_int_equal(device->ops->submit(device, cmds, n), 0);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(device->ops->reap(device, &cqes[i], 1, 1), 1);
}

/* What lies behind a list's entries is anybody's. */
static void wipe_tails(char *window, uint64_t at, uint32_t n_lists, uint32_t cap)
{
    for (uint32_t i = 0; i < n_lists; i++, at += nkv_list_stride(cap)) {
        uint32_t *list = (uint32_t *)(void *)(window + at);

        assert_true(*list <= cap);
        memset(list + 1 + *list, 0, nkv_list_stride(cap) - 4 - 4 * *list);
    }
}

static void wipe_behind_lists(char *window, const struct nkv_cmd *cmd)
{
    uint32_t n_units = cmd->flags & NKV_PER_HEAD ? 2 : 1, n_resident = cmd->flags & NKV_STEADY ? cmd->arg : 0;
    uint32_t n_total = cmd->flags & NKV_SCORES ? (cmd->pos + cmd->n_tokens + 3) / 4 : 0;
    struct nkv_select_layout at = nkv_select_layout(n_units, cmd->n_pages, n_resident, n_total);
    uint64_t end = at.scores + 4u * (uint64_t)n_units * n_total;

    wipe_tails(window, cmd->out_offset, 2 * n_units, cmd->n_pages);
    wipe_tails(window, cmd->out_offset + at.steady, cmd->flags & NKV_STEADY ? 3 * n_units : 0, n_resident);
    if (!(cmd->flags & NKV_STEADY)) /* three lists without entries that nobody writes */
        memset(window + cmd->out_offset + at.steady, 0, at.scores - at.steady);
    memset(window + cmd->out_offset + end, 0, at.bytes - end);
}

/* returns: whether all of the window is to be the same: an ATTEND whose SELECT failed reads what is not told. */
static bool same_results(const struct nkv_cmd *cmds, uint32_t n, const struct nkv_cqe *far, const struct nkv_cqe *near)
{
    bool all = true;

    for (uint32_t i = 0; i < n; i++) {
        bool told = i == 0 || !is_chain(&cmds[i]) || near[i - 1].res >= 0;

        if (far[i].user_data != near[i].user_data || (told && far[i].res != near[i].res))
            fail_msg("op %u, flags 0x%x: %d over MPI (%s), %d here", cmds[i].op, cmds[i].flags, far[i].res,
                     nkv_last_error(), near[i].res);
        all &= told;
    }
    return all;
}

static void test_same_bytes_as_in_this_process(void **state)
{
    struct nkv_device *far, *near;
    void *far_window, *near_window;
    struct nkv_cmd cmds[MAX_BATCH];
    struct nkv_cqe far_cqes[MAX_BATCH], near_cqes[MAX_BATCH];
    uint64_t random = 4711;
    uint32_t n_good[NKV_OP_COUNT] = {0}, n_chains = 0;

    (void)state;
    open_on(peer, HOSTILE_BYTES, &far, &far_window);
    open_on("cpu", HOSTILE_BYTES, &near, &near_window);
    for (uint32_t round = 0; round < N_ROUNDS; round++) {
        uint32_t n = make_batch(cmds, &random);

        scribble(near_window, &random);
        scribble_operands(near_window, cmds, n, &random);
        memcpy(far_window, near_window, HOSTILE_BYTES);
        run_batch(far, cmds, n, far_cqes);
        run_batch(near, cmds, n, near_cqes);
        for (uint32_t i = 0; i < n; i++)
            if (cmds[i].op == NKV_OP_SELECT && near_cqes[i].res >= 0 && far_cqes[i].res >= 0) {
                wipe_behind_lists(far_window, &cmds[i]);
                wipe_behind_lists(near_window, &cmds[i]);
            }
        if (same_results(cmds, n, far_cqes, near_cqes) && memcmp(far_window, near_window, HOSTILE_BYTES) != 0)
            fail_msg("round %u (%u commands, first op %u): the windows differ", round, n, cmds[0].op);
        for (uint32_t i = 0; i < n; i++) {
            n_good[cmds[i].op < NKV_OP_COUNT ? cmds[i].op : 0] += far_cqes[i].res >= 0;
            n_chains += i > 0 && is_chain(&cmds[i]) && far_cqes[i].res >= 0;
        }
    }
    for (uint32_t op = 1; op < NKV_OP_COUNT; op++)
        if (n_good[op] < 5)
            fail_msg("op %u: only %u commands were right", op, n_good[op]);
    assert_true(n_chains >= 10);
    nkv_device_close(far);
    nkv_device_close(near);
}

static struct nkv_mpi_traffic traffic_since(const struct nkv_mpi_traffic *before)
{
    struct nkv_mpi_traffic t;

    nkv_mpi_traffic(mpi, &t);
    t.n_down -= before->n_down;
    t.n_up -= before->n_up;
    t.qkv_bytes -= before->qkv_bytes;
    t.output_bytes -= before->output_bytes;
    t.scale_bytes -= before->scale_bytes;
    t.list_down_bytes -= before->list_down_bytes;
    t.list_up_bytes -= before->list_up_bytes;
    t.page_up_bytes -= before->page_up_bytes;
    t.token_layers -= before->token_layers;
    return t;
}

/* One decode step as the runtime submits it; `steady`: of mode png. */
static struct nkv_mpi_traffic step_traffic(struct rig *rig, uint32_t pos, bool steady)
{
    const uint64_t select = 8192, layout = nkv_select_layout(1, 4, steady ? 2 : 0, 0).device;
    struct nkv_cmd cmds[] = {
        {.op = NKV_OP_APPEND, .seq = VICTIM, .n_tokens = 1, .pos = pos, .in_offset = 0},
        {.op = NKV_OP_SELECT,
         .seq = VICTIM,
         .recent = 1,
         .sink = 1,
         .n_tokens = 1,
         .pos = pos,
         .n_pages = 4,
         .flags = steady ? NKV_STEADY : 0,
         .arg = steady ? 2 : 0,
         .list_offset = steady ? 16384 : 0,
         .in_offset = 4096,
         .out_offset = select},
        {.op = NKV_OP_ATTEND,
         .seq = VICTIM,
         .n_tokens = 1,
         .pos = pos,
         .n_pages = 4,
         .in_offset = 4096,
         .list_offset = select + layout,
         .out_offset = 12288},
    };
    uint32_t resident[3] = {2, NKV_PAGE_NONE, NKV_PAGE_NONE};
    struct nkv_mpi_traffic before;
    struct nkv_cqe cqes[3];

    memcpy(rig_at(rig, 16384), resident, sizeof resident);
    memset(rig_at(rig, select), 0xff, 4096); /* the list that is there now would be refused */
    nkv_mpi_traffic(mpi, &before);
    run_batch(rig->device, cmds, 3, cqes);
    for (uint32_t i = 0; i < 3; i++)
        assert_true(cqes[i].res >= 0);
    return traffic_since(&before);
}

/* (H + 2 KVH) D elements down, H D up, whatever the context: the paper's TP to DP mapping. */
static void test_traffic_does_not_depend_on_the_context(void **state)
{
    const uint64_t q = 4 * 8 * 4, kv = 2 * 8 * 4, set = 2 * nkv_list_stride(4), resident = nkv_list_stride(2);
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    uint64_t random = 5;
    struct model model;
    struct rig rig;

    (void)state;
    rig_open(&rig, peer, &config);
    model_open(&model, &hostile_shape, 2000);
    assert_int_equal(rig_seq_open(&rig, VICTIM, 2000, 0), 0);
    for (uint32_t context = 40; context < 1900; context += 640) {
        rig_append(&rig, &model, VICTIM, 0, context - model.lengths[0], &random);
        for (int steady = 0; steady < 2; steady++) {
            struct nkv_mpi_traffic t = step_traffic(&rig, model.lengths[0], steady);

            model.lengths[0]++;
            assert_int_equal(t.token_layers, 1);
            assert_int_equal(t.qkv_bytes, q + 2 * kv); /* q once, for two commands */
            assert_int_equal(t.output_bytes, q);
            assert_int_equal(t.scale_bytes, 2 * 4 * 4);
            assert_int_equal(t.list_down_bytes, steady ? resident : 0); /* SELECT's own list stays there */
            assert_int_equal(t.list_up_bytes, set + (steady ? 3 * resident : 0));
            assert_int_equal(t.n_down, 1);
            assert_int_equal(t.n_up, steady ? 2 : 1);
        }
    }
    model_close(&model);
    rig_close(&rig);
}

/* READ: the whole room that its list might need is spoken for, what was found travels. */
static void test_only_pages_that_were_read_travel(void **state)
{
    const uint64_t page = nkv_page_bytes(&hostile_shape, 2);
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    uint32_t list[2] = {1, 3}, all[4] = {3, 0, 1, 3};
    struct nkv_mpi_traffic before;
    uint64_t random = 6;
    struct model model;
    struct rig rig;

    (void)state;
    rig_open(&rig, peer, &config);
    model_open(&model, &hostile_shape, 100);
    assert_int_equal(rig_seq_open(&rig, VICTIM, 100, 0), 0);
    rig_append(&rig, &model, VICTIM, 0, 50, &random);
    for (uint32_t i = 0; i < 2; i++) {
        memcpy(rig_at(&rig, 4096), i ? all : list, i ? sizeof all : sizeof list);
        nkv_mpi_traffic(mpi, &before);
        assert_int_equal(
            rig_do(&rig,
                   (struct nkv_cmd){
                       .op = NKV_OP_READ, .seq = VICTIM, .n_pages = 8, .list_offset = 4096, .out_offset = 8192}),
            i ? 3 : 1);
        assert_int_equal(traffic_since(&before).page_up_bytes, (i ? 3 : 1) * page);
    }
    model_close(&model);
    rig_close(&rig);
}

static void test_large_windows_and_messages(void **state)
{
    const struct nkv_kv_shape shape = {
        .n_layers = 1, .n_heads = 8, .n_kv_heads = 2, .head_dim = 128, .page_tokens = 32, .dtype = NKV_F16};
    struct nkv_device_config config = rig_config(&shape, 2);
    uint64_t random = 7;
    struct model model;
    struct rig rig;
    void *window;

    (void)state;
    rig_open(&rig, peer, &config);
    assert_int_equal(rig.device->ops->map(rig.device, 64u << 20, &window), 0);
    rig.window = window;
    model_open(&model, &shape, 4000);
    assert_int_equal(rig_seq_open(&rig, VICTIM, 4000, 0), 0);
    rig_append(&rig, &model, VICTIM, 0, 4000, &random); /* 8 MB down, 16 up */
    assert_int_equal(rig_do(&rig, (struct nkv_cmd){.op = NKV_OP_ATTEND,
                                                   .seq = VICTIM,
                                                   .flags = NKV_ALL_PAGES | NKV_CAUSAL,
                                                   .n_tokens = 1000,
                                                   .pos = 3000,
                                                   .out_offset = 32u << 20}),
                     4000);
    assert_int_equal(rig_stat(&rig).n_sequences, 1);
    assert_true(rig_stat(&rig).written_bytes >= 4000 / shape.page_tokens * nkv_page_bytes(&shape, shape.n_kv_heads));
    model_close(&model);
    rig_close(&rig);
}

static void test_queue_and_faults(void **state)
{
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    struct nkv_cmd cmds[1025] = {{.op = NKV_OP_COMPUTE}};
    struct nkv_device *other;
    struct nkv_cqe cqe;
    struct rig rig;

    (void)state;
    for (uint32_t i = 0; i < 1025; i++)
        cmds[i] = (struct nkv_cmd){.op = NKV_OP_COMPUTE, .user_data = i};
    rig_open(&rig, peer, &config);
    assert_int_equal(nkv_device_open(peer, &config, &other), NKV_ESTATE);
    assert_non_null(strstr(nkv_last_error(), "open already"));
    assert_int_equal(rig.device->ops->submit(rig.device, cmds, 1025), NKV_ENOSPC);
    assert_int_equal(rig.device->ops->submit(rig.device, cmds, 1024), 0);
    assert_int_equal(rig.device->ops->submit(rig.device, cmds, 1), NKV_ENOSPC);
    assert_int_equal(rig.device->ops->reap(rig.device, &cqe, 1, 2), NKV_EINVAL);
    for (uint32_t i = 0; i < 1024; i++) {
        assert_int_equal(rig.device->ops->reap(rig.device, &cqe, 1, 1), 1);
        assert_int_equal(cqe.user_data, i);
    }
    assert_int_equal(rig.device->ops->reap(rig.device, &cqe, 1, 1), NKV_EINVAL);
    assert_int_equal(rig_seq_close(&rig, 9), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "9"));
    rig_close(&rig);
    config.capacity_bytes = (uint64_t)1 << 60;
    assert_int_equal(nkv_device_open(peer, &config, &other), NKV_ENOMEM);
    assert_non_null(strstr(nkv_last_error(), "of memory left"));
    for (uint32_t i = 0; i < 5; i++) {
        static const char *const specs[] = {"mpi:0", "mpi:3", "mpi:", "mpi:-1", "mpi:1x"};

        assert_int_equal(nkv_device_open(specs[i], &config, &other), NKV_EINVAL);
        assert_non_null(strstr(nkv_last_error(), "another rank"));
    }
}

/* Whoever opens a device that is open is told so at once, also while its completions wait to be taken. */
static void test_a_second_open_is_refused(void **state)
{
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    struct nkv_device *other;
    struct nkv_cqe cqe;
    struct rig rig;

    (void)state;
    rig_open(&rig, peer, &config);
    for (uint32_t i = 0; i < 16; i++)
        assert_int_equal(rig.device->ops->submit(rig.device, &(struct nkv_cmd){.op = NKV_OP_COMPUTE}, 1), 0);
    assert_int_equal(nkv_device_open(peer, &config, &other), NKV_ESTATE);
    assert_non_null(strstr(nkv_last_error(), "open already"));
    for (uint32_t i = 0; i < 16; i++)
        assert_int_equal(rig.device->ops->reap(rig.device, &cqe, 1, 1), 1);
    rig_close(&rig);
}

static void test_open_and_close_again_and_again(void **state)
{
    struct nkv_device *device;
    void *window;

    (void)state;
    for (uint32_t i = 0; i < 200; i++) {
        open_on(peer, 4096 + 4096 * (i % 3), &device, &window);
        nkv_device_close(device);
    }
}

/* Each has its output in the same place: together they are larger than any message. */
static void test_outputs_that_overlap(void **state)
{
    struct nkv_cmd cmds[512];
    struct nkv_cqe cqes[512];
    uint64_t random = 8;
    struct model model;
    struct rig rig = {.shape = hostile_shape, .window_bytes = 64u << 10};
    void *window;

    (void)state;
    open_on(peer, rig.window_bytes, &rig.device, &window);
    rig.window = window;
    model_open(&model, &hostile_shape, 200);
    assert_int_equal(rig_seq_open(&rig, VICTIM, 200, 0), 0);
    rig_append(&rig, &model, VICTIM, 0, 100, &random);
    for (uint32_t i = 0; i < 512; i++)
        cmds[i] = (struct nkv_cmd){.op = NKV_OP_ATTEND,
                                   .seq = VICTIM,
                                   .flags = NKV_ALL_PAGES | NKV_CAUSAL,
                                   .n_tokens = 100,
                                   .out_offset = 32u << 10};
    run_batch(rig.device, cmds, 512, cqes);
    for (uint32_t i = 0; i < 512; i++)
        assert_true(cqes[i].res >= 0);
    model_close(&model);
    rig_close(&rig);
}

/* More messages than have room on their way, in both directions. */
static void test_many_messages_on_their_way(void **state)
{
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    struct nkv_mpi_traffic before;
    struct nkv_cqe cqe;
    struct rig rig;

    (void)state;
    rig_open(&rig, peer, &config);
    nkv_mpi_traffic(mpi, &before);
    for (uint32_t i = 0; i < 500; i++)
        assert_int_equal(
            rig.device->ops->submit(rig.device, &(struct nkv_cmd){.op = NKV_OP_COMPUTE, .user_data = i}, 1), 0);
    for (uint32_t i = 0; i < 500; i++) {
        assert_int_equal(rig.device->ops->reap(rig.device, &cqe, 1, 1), 1);
        assert_int_equal(cqe.user_data, i);
    }
    assert_int_equal(traffic_since(&before).n_down, 500);
    assert_int_equal(traffic_since(&before).n_up, 500);
    rig_close(&rig);
}

static uint32_t count_lanes(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    uint32_t n = 0;

    assert_non_null(maps);
    while (fgets(line, sizeof line, maps))
        n += strstr(line, "nearkv-lane") != NULL;
    fclose(maps);
    return n;
}

static void test_memory_between_ranks_of_a_machine(void **state)
{
    struct nkv_device_config config = rig_config(&hostile_shape, 1);
    uint32_t n = peer == peers[0];
    struct rig rig;
    void *window;

    (void)state;
    assert_int_equal(count_lanes(), 0);
    rig_open(&rig, peer, &config);
    assert_int_equal(count_lanes(), n);
    assert_int_equal(rig.device->ops->map(rig.device, 32u << 20, &window), 0);
    assert_int_equal(count_lanes(), n);
    rig.window = window;
    rig_close(&rig);
    assert_int_equal(count_lanes(), 0);
}

/* Every rank runs this; sums are added in the order of ranks. */
static int exchange(void)
{
    float x[7], all[21], part[7], want[7];
    uint32_t word = comm->rank == 0 ? 99 : 0;
    int bad = 0;

    for (uint32_t i = 0; i < 7; i++) {
        x[i] = (float)(comm->rank + 1) * 1e7f / (float)(3 + i);
        want[i] = 1e7f / (float)(3 + i);
        want[i] += 2 * 1e7f / (float)(3 + i);
        want[i] += 3 * 1e7f / (float)(3 + i);
    }
    bad |= comm->ops->broadcast(comm, &word, sizeof word) < 0 || word != 99;
    bad |= comm->ops->gather(comm, x, sizeof x, all) < 0;
    for (uint32_t r = 0; comm->rank == 0 && r < 3; r++)
        bad |= all[7 * r] != (float)(r + 1) * 1e7f / 3;
    bad |= comm->ops->scatter(comm, all, sizeof part, part) < 0 || memcmp(part, x, sizeof x) != 0;
    for (uint64_t n = 7; n >= 6; n--) { /* slices that are uneven, and even ones */
        float y[7];

        memcpy(y, x, sizeof x);
        bad |= comm->ops->sum(comm, y, n) < 0 || memcmp(y, want, n * sizeof *y) != 0;
        bad |= n == 6 && y[6] != x[6];
    }
    return bad;
}

static void test_exchanges(void **state)
{
    int32_t value = 0;
    uint32_t rank = 9;

    (void)state;
    assert_int_equal(exchange(), 0);
    assert_int_equal(nkv_mpi_agree(mpi, 0, &value, &rank), 0);
    assert_int_equal(value, 5);
    assert_int_equal(rank, 1); /* 1 and 2 gave it */
    assert_int_equal(nkv_mpi_open(&mpi), NKV_ESTATE);
}

static int lead(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes_as_in_this_process),
        cmocka_unit_test(test_traffic_does_not_depend_on_the_context),
        cmocka_unit_test(test_only_pages_that_were_read_travel),
        cmocka_unit_test(test_large_windows_and_messages),
        cmocka_unit_test(test_queue_and_faults),
        cmocka_unit_test(test_a_second_open_is_refused),
        cmocka_unit_test(test_open_and_close_again_and_again),
        cmocka_unit_test(test_outputs_that_overlap),
        cmocka_unit_test(test_many_messages_on_their_way),
        cmocka_unit_test(test_memory_between_ranks_of_a_machine),
    };
    const struct CMUnitTest exchanges[] = {cmocka_unit_test(test_exchanges)};
    int n_failed = cmocka_run_group_tests(exchanges, NULL, NULL);

    for (uint32_t i = 0; i < 2; i++) {
        peer = peers[i];
        n_failed += cmocka_run_group_tests_name(peer, tests, NULL, NULL);
    }
    if (n_failed)
        nkv_mpi_abort(mpi, 1); /* devices may be open still */
    return nkv_mpi_release(mpi, 1) < 0;
}

static int serve(void)
{
    int32_t value = 0;
    uint32_t rank = 9;

    if (exchange() || nkv_mpi_agree(mpi, 5, &value, &rank) < 0 || nkv_mpi_serve(mpi) < 0) {
        fprintf(stderr, "rank: %s\n", nkv_last_error());
        nkv_mpi_abort(mpi, 1);
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct nkv_mpi_info info;
    uint32_t rank, size;
    int failed;

    if (argc < 1 || !nkv_mpi_available()) {
        printf("skipped: built without MPI\n");
        return SKIPPED;
    }
#ifdef __SANITIZE_THREAD__
    printf("skipped: MPI's own threads are not known to the sanitizer\n");
    return SKIPPED;
#endif
    if (!nkv_mpi_launched(&rank, &size)) {
        setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* MPI's own; the memory tests of other devices look at ours */
        execlp("mpirun", "mpirun", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "-n", "2", argv[0],
               ":", "-n", "1", "env", "NEARKV_MPI_LANE=0", argv[0], (char *)NULL);
        printf("skipped: no mpirun\n");
        return SKIPPED;
    }
    if (nkv_mpi_open(&mpi) < 0 || nkv_mpi_comm(mpi, 3, &comm) < 0)
        return 1;
    nkv_mpi_info(mpi, &info);
    failed = info.rank == rank && info.size == 3 && info.n_local == 3 ? rank == 0 ? lead() : serve() : 1;
    nkv_mpi_close(mpi);
    return failed;
}
