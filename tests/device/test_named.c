/* SPDX-License-Identifier: Apache-2.0 */
/* Published sequences: names, token ids, taking over and growing, forks by name, lists; what is refused. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/rig.h"
#include "device/server.h"

static const struct nkv_kv_shape small = {
    .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8, .page_tokens = 4, .dtype = NKV_F16};

#define NAME_AT  ((uint64_t)1 << 20)
#define IDS_AT   ((uint64_t)2 << 20)
#define INFOS_AT ((uint64_t)3 << 20)

static void put_name(struct rig *rig, const char *name, uint64_t model)
{
    struct nkv_seq_name *at = rig_at(rig, NAME_AT);

    memset(at, 0, sizeof *at);
    strncpy(at->name, name, sizeof at->name - 1);
    at->model = model;
}

/* With the ids 0, 1, ... of its first n tokens. */
static int publish_ids(struct rig *rig, uint32_t seq, const char *name, uint64_t model, uint32_t n)
{
    uint32_t *ids = rig_at(rig, NAME_AT + sizeof(struct nkv_seq_name));

    put_name(rig, name, model);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = i;
    return rig_run(rig, (struct nkv_cmd){.op = NKV_OP_SEQ_PUBLISH, .seq = seq, .in_offset = NAME_AT, .n_tokens = n});
}

static int publish(struct rig *rig, uint32_t seq, const char *name, uint64_t model)
{
    return publish_ids(rig, seq, name, model, 0);
}

static int attach(struct rig *rig, uint32_t seq, const char *name, uint64_t model, uint32_t max_tokens)
{
    put_name(rig, name, model);
    return rig_run(
        rig, (struct nkv_cmd){
                 .op = NKV_OP_SEQ_OPEN, .seq = seq, .flags = NKV_NAMED, .in_offset = NAME_AT, .n_tokens = max_tokens});
}

static int fork_named(struct rig *rig, uint32_t seq, const char *name, uint32_t n_tokens, uint32_t max_tokens)
{
    put_name(rig, name, 1);
    return rig_run(rig, (struct nkv_cmd){.op = NKV_OP_SEQ_FORK,
                                         .seq = seq,
                                         .flags = NKV_NAMED,
                                         .in_offset = NAME_AT,
                                         .pos = n_tokens,
                                         .n_tokens = max_tokens});
}

static int remove_named(struct rig *rig, uint32_t seq)
{
    return rig_run(rig, (struct nkv_cmd){.op = NKV_OP_SEQ_CLOSE, .seq = seq, .flags = NKV_NAMED});
}

/* Ids first, first + 1, ... of n tokens from pos on. */
static int write_ids(struct rig *rig, uint32_t seq, uint32_t pos, uint32_t n, uint32_t first)
{
    uint32_t *ids = rig_at(rig, IDS_AT);

    for (uint32_t i = 0; i < n; i++)
        ids[i] = first + i;
    return rig_run(
        rig, (struct nkv_cmd){
                 .op = NKV_OP_WRITE, .seq = seq, .flags = NKV_TOKENS, .in_offset = IDS_AT, .pos = pos, .n_tokens = n});
}

static int list(struct rig *rig, uint32_t first, uint32_t n, uint32_t n_ids, const struct nkv_seq_info **infos_out)
{
    uint32_t *ids = rig_at(rig, IDS_AT);

    for (uint32_t i = 0; i < n_ids; i++)
        ids[i] = i;
    *infos_out = rig_at(rig, INFOS_AT);
    return rig_run(rig, (struct nkv_cmd){.op = NKV_OP_SEQ_LIST,
                                         .arg = first,
                                         .in_offset = IDS_AT,
                                         .n_tokens = n_ids,
                                         .out_offset = INFOS_AT,
                                         .n_pages = n});
}

static void append_both(struct rig *rig, struct model *model, uint32_t seq, uint32_t n, uint64_t *random)
{
    for (uint32_t layer = 0; layer < 2; layer++)
        rig_append(rig, model, seq, layer, n, random);
}

/* The device holds what the model does, to the bit. */
static void check(struct rig *rig, const struct model *model, uint32_t seq)
{
    uint32_t dim = small.head_dim, page_tokens = small.page_tokens;
    uint64_t page_bytes = nkv_page_bytes(&small, small.n_kv_heads);
    float row[8];

    for (uint32_t layer = 0; layer < small.n_layers; layer++) {
        uint32_t n_pages = (model->lengths[layer] + page_tokens - 1) / page_tokens, *pages = rig_at(rig, IDS_AT);

        pages[0] = n_pages;
        for (uint32_t i = 0; i < n_pages; i++)
            pages[1 + i] = i;
        rig_do(rig, (struct nkv_cmd){.op = NKV_OP_READ,
                                     .seq = seq,
                                     .layer = (uint16_t)layer,
                                     .list_offset = IDS_AT,
                                     .out_offset = INFOS_AT,
                                     .n_pages = n_pages});
        for (uint32_t t = 0; t < model->lengths[layer]; t++)
            for (uint32_t head = 0; head < small.n_kv_heads; head++) {
                const uint16_t *k = rig_at(rig, INFOS_AT + t / page_tokens * page_bytes);
                size_t cell = ((size_t)head * page_tokens + t % page_tokens) * dim;

                nkv_kernels()->load[NKV_F16](1, dim, k + cell, NULL, row);
                assert_memory_equal(row, model->k + model_row(model, layer, t, head), sizeof row);
                cell += (size_t)small.n_kv_heads * page_tokens * dim;
                nkv_kernels()->load[NKV_F16](1, dim, k + cell, NULL, row);
                assert_memory_equal(row, model->v + model_row(model, layer, t, head), sizeof row);
            }
    }
}

static void a_published_sequence_is_taken_over_and_grown(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    struct rig rig;
    struct model model;
    uint64_t random = 5;
    const uint32_t *ids;

    (void)state;
    rig_open(&rig, "cpu", &config);
    model_open(&model, &small, 400);
    assert_int_equal(rig_seq_open(&rig, 1, 20, 0), 0);
    append_both(&rig, &model, 1, 13, &random);
    assert_int_equal(write_ids(&rig, 1, 0, 1, 0), NKV_EINVAL); /* not published */
    assert_int_equal(publish(&rig, 1, "book", 1), 0);
    assert_int_equal(write_ids(&rig, 1, 0, 13, 0), 13);
    assert_int_equal(write_ids(&rig, 1, 13, 8, 0), NKV_EINVAL); /* beyond its 20 tokens */
    rig_append(&rig, &model, 1, 0, 2, &random);                 /* a step that never reaches layer 1 */
    model.lengths[0] -= 2;
    assert_int_equal(rig_seq_close(&rig, 1), 0);
    assert_int_equal(rig_stat(&rig).n_sequences, 1);

    assert_int_equal(attach(&rig, 9, "book", 1, 300), 13);
    append_both(&rig, &model, 9, 280, &random);
    check(&rig, &model, 9);
    assert_int_equal(
        rig_run(
            &rig,
            (struct nkv_cmd){
                .op = NKV_OP_READ, .seq = 9, .flags = NKV_TOKENS, .out_offset = INFOS_AT, .pos = 3, .n_tokens = 10}),
        10);
    ids = rig_at(&rig, INFOS_AT);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(ids[i], 3 + i);
    assert_int_equal(remove_named(&rig, 9), 0);
    assert_true(rig_stat(&rig).n_sequences == 0 && rig_stat(&rig).used_bytes == 0);
    model_close(&model);
    rig_close(&rig);
}

static void names_are_checked(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    struct rig rig;

    (void)state;
    rig_open(&rig, "cpu", &config);
    assert_int_equal(rig_seq_open(&rig, 1, 20, 0), 0);
    assert_int_equal(rig_seq_open(&rig, 2, 20, NKV_SLOTS), 0);
    assert_int_equal(publish(&rig, 1, "", 1), NKV_EINVAL);
    assert_int_equal(publish(&rig, 1, "a b", 1), NKV_EINVAL);
    assert_int_equal(publish(&rig, 2, "slots", 1), NKV_EINVAL);
    assert_int_equal(publish(&rig, 7, "none", 1), NKV_ENOENT);
    assert_int_equal(remove_named(&rig, 1), NKV_EINVAL); /* not published */
    assert_int_equal(publish(&rig, 1, "a", 1), 0);
    assert_int_equal(publish(&rig, 1, "b", 1), NKV_ESTATE);
    assert_int_equal(rig_seq_open(&rig, 3, 20, 0), 0);
    assert_int_equal(publish(&rig, 3, "a", 1), NKV_ESTATE);
    assert_int_equal(attach(&rig, 4, "a", 1, 20), NKV_ESTATE); /* this client has it */
    assert_int_equal(rig_seq_close(&rig, 1), 0);
    assert_int_equal(attach(&rig, 4, "a", 2, 20), NKV_EFORMAT);
    assert_non_null(strstr(nkv_last_error(), "another name"));
    assert_int_equal(attach(&rig, 4, "b", 1, 20), NKV_ENOENT);
    assert_int_equal(attach(&rig, 3, "a", 1, 20), NKV_EINVAL); /* the id is in use */
    assert_int_equal(attach(&rig, 4, "a", 1, 1u << 30), NKV_ENOSPC);
    assert_int_equal(attach(&rig, 4, "a", 1, 1), 0);
    rig_close(&rig);
}

static void forks_by_name_share_pages_and_lists_tell(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    const struct nkv_seq_info *infos;
    struct rig rig;
    struct model model;
    uint64_t random = 6, used;

    (void)state;
    rig_open(&rig, "cpu", &config);
    model_open(&model, &small, 100);
    assert_int_equal(rig_seq_open(&rig, 1, 40, 0), 0);
    append_both(&rig, &model, 1, 30, &random);
    assert_int_equal(publish_ids(&rig, 1, "mother", 1, 41), NKV_EINVAL); /* beyond its 40 tokens */
    assert_int_equal(publish_ids(&rig, 1, "mother", 1, 30), 0);
    used = rig_stat(&rig).used_bytes;
    assert_int_equal(fork_named(&rig, 2, "mother", 31, 40), NKV_EINVAL);
    assert_int_equal(fork_named(&rig, 2, "mother", 22, 40), 0);
    assert_true(rig_stat(&rig).used_bytes < 2 * used);
    assert_int_equal(publish(&rig, 2, "daughter", 1), 0);
    assert_int_equal(write_ids(&rig, 2, 0, 22, 5), 22);
    assert_int_equal(list(&rig, 0, 8, 25, &infos), 2);
    assert_string_equal(infos[0].name.name, "daughter");
    assert_string_equal(infos[1].name.name, "mother");
    assert_true(infos[0].n_tokens == 22 && infos[0].n_common == 0 && infos[0].max_tokens == 40);
    assert_true(infos[1].n_tokens == 30 && infos[1].n_common == 25 && infos[1].attached == 1);
    assert_true(infos[0].shared_bytes == infos[1].shared_bytes && infos[0].shared_bytes > 0);
    assert_true(infos[0].used_bytes + infos[1].used_bytes - infos[0].shared_bytes == rig_stat(&rig).used_bytes);
    assert_int_equal(list(&rig, 1, 8, 0, &infos), 1);
    assert_string_equal(infos[0].name.name, "mother");
    assert_int_equal(remove_named(&rig, 1), 0); /* what the other shares stays */
    for (uint32_t layer = 0; layer < 2; layer++)
        model.lengths[layer] = 22;
    check(&rig, &model, 2);
    model_close(&model);
    rig_close(&rig);
}

static void files_keep_published_sequences(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    char memory[80], path[64];
    struct nkv_kv_shape shape;
    struct rig rig;
    struct model model;
    uint64_t random = 8;

    (void)state;
    snprintf(path, sizeof path, "/tmp/nkv-named-%d", (int)getpid());
    snprintf(memory, sizeof memory, "file:%s:1M", path);
    config.memory = memory;
    model_open(&model, &small, 100);
    rig_open(&rig, "cpu", &config);
    assert_int_equal(rig_seq_open(&rig, 1, 40, 0), 0);
    assert_int_equal(rig_seq_open(&rig, 2, 40, 0), 0);
    append_both(&rig, &model, 1, 30, &random);
    assert_int_equal(publish(&rig, 1, "stays", 1), 0);
    assert_int_equal(nkv_memory_shape(memory, &shape), NKV_ESTATE); /* in use */
    rig_close(&rig);
    snprintf(memory, sizeof memory, "file:%s", path);
    assert_int_equal(nkv_memory_shape(memory, &shape), 1);
    assert_memory_equal(&shape, &small, sizeof shape);
    rig_open(&rig, "cpu", &config);
    assert_int_equal(rig_stat(&rig).n_sequences, 1);
    assert_int_equal(attach(&rig, 5, "stays", 1, 60), 30);
    check(&rig, &model, 5);
    append_both(&rig, &model, 5, 25, &random);
    check(&rig, &model, 5);
    assert_int_equal(remove_named(&rig, 5), 0);
    assert_true(rig_stat(&rig).used_bytes == 0);
    rig_close(&rig);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(nkv_memory_shape(memory, &shape), NKV_ENOENT);
    assert_int_equal(nkv_memory_shape("anon:1M", &shape), NKV_EINVAL);
    assert_int_equal(nkv_memory_shape("dax:/dev/null", &shape), NKV_EINVAL);
    model_close(&model);
}

static void clients_go_and_published_sequences_stay(void **state)
{
    struct nkv_device_config config = rig_config(&small, 1);
    struct nkv_serve_stat stat;
    struct server server;
    struct rig one, two;
    struct model model;
    uint64_t random = 7;

    (void)state;
    server_open(&server, false, (uint64_t)64 << 20);
    model_open(&model, &small, 100);
    rig_open(&one, server.spec, &config);
    rig_open(&two, server.spec, &config);
    assert_int_equal(rig_seq_open(&one, 1, 40, 0), 0);
    assert_int_equal(rig_seq_open(&one, 2, 40, 0), 0);
    append_both(&one, &model, 1, 30, &random);
    assert_int_equal(publish(&one, 1, "stays", 1), 0);
    assert_int_equal(attach(&two, 1, "stays", 1, 40), NKV_ESTATE);
    rig_close(&one);
    server_await_clients(&server, 1);
    assert_int_equal(server_stat(&server).n_sequences, 1);
    assert_int_equal(server_stat(&server).clients[0].n_sequences, 0);
    assert_int_equal(attach(&two, 1, "stays", 1, 40), 30);
    check(&two, &model, 1);
    stat = server_stat(&server);
    assert_true(stat.clients[0].n_sequences == 1 && stat.clients[0].used_bytes == stat.used_bytes);
    assert_int_equal(remove_named(&two, 1), 0);
    stat = server_stat(&server);
    assert_true(stat.clients[0].n_sequences == 0 && stat.clients[0].used_bytes == 0 && stat.used_bytes == 0);
    rig_close(&two);
    model_close(&model);
    server_close(&server);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_published_sequence_is_taken_over_and_grown),
        cmocka_unit_test(names_are_checked),
        cmocka_unit_test(forks_by_name_share_pages_and_lists_tell),
        cmocka_unit_test(files_keep_published_sequences),
        cmocka_unit_test(clients_go_and_published_sequences_stay),
    };

    if (argc == 4)
        return server_role(argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
