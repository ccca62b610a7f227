/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kv/image_rig.h: one image in a file: opened, read and written as a whole, worked on. */
#ifndef NKV_TESTS_KV_IMAGE_RIG_H
#define NKV_TESTS_KV_IMAGE_RIG_H

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kv/image.h"
#include "kv/world.h"

#define IMAGE_BYTES ((uint64_t)768 << 10)

static char path[64];

static inline struct nkv_image_options image_options(uint64_t bytes)
{
    return (struct nkv_image_options){.path = path, .bytes = bytes};
}

static inline void open_store(struct world *w)
{
    struct nkv_image_options options = image_options(0);
    int status = nkv_store_open_image(&world_shape, &options, &w->store);

    if (status < 0)
        fail_msg("%s", nkv_last_error());
}

static inline void make_store(struct world *w, uint64_t bytes)
{
    struct nkv_image_options options = image_options(bytes);

    (void)unlink(path);
    if (nkv_store_open_image(&world_shape, &options, &w->store) < 0)
        fail_msg("%s", nkv_last_error());
}

static inline uint32_t setting(const char *name, uint32_t fallback)
{
    const char *text = getenv(name);

    return text ? (uint32_t)strtoul(text, NULL, 10) : fallback;
}

static inline char *read_image(size_t *bytes_out)
{
    int fd = open(path, O_RDONLY);
    struct stat file;
    char *bytes;

    assert_true(fd >= 0 && fstat(fd, &file) == 0);
    *bytes_out = (size_t)file.st_size;
    bytes = malloc(*bytes_out);
    assert_non_null(bytes);
    assert_true(read(fd, bytes, *bytes_out) == (ssize_t)*bytes_out);
    close(fd);
    return bytes;
}

static inline void write_image(const char *bytes, size_t n)
{
    int fd = open(path, O_WRONLY | O_TRUNC);

    assert_true(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
    close(fd);
}

static inline void append_rows(struct nkv_store *store, uint64_t key, uint32_t layer, uint32_t n)
{
    struct nkv_kv_seq *seq = nkv_store_find(store, key);
    float rows[8 * 16] = {0};

    for (uint32_t head = 0; head < world_shape.n_kv_heads; head++)
        nkv_store_put(store, seq, layer, head, seq->lengths[layer], n, rows, rows, 8);
    nkv_store_extend(store, seq, layer, n, true);
}

/* As if the system had been started since, and had never been told to close. */
static inline void forget_boot(char *bytes)
{
    struct image_state *state = (struct image_state *)(void *)(bytes + NKV_IMAGE_PAGE);

    state->clean = 0;
    memcpy(state->boot_id, "another", 8);
}

/* Runs n operations; history (may be NULL): [n], the world after each. */
static inline void run_ops(struct world *w, uint32_t n, struct world *history)
{
    struct world_op op;

    for (uint32_t done = 0; done < n;) {
        if (!world_plan(w, &op))
            continue;
        if (world_apply_store(w, &op) >= 0)
            world_apply_model(w, &op);
        for (uint32_t i = 0; i < WORLD_SEQS; i++)
            assert_true(!w->seqs[i].open || world_learn_key(w, &w->seqs[i]));
        if (history)
            history[done] = *w;
        done++;
    }
}

/* Where memory is a file system if there is one. */
static inline void choose_path(void)
{
    snprintf(path, sizeof path, "%s/nkv-image-%d", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", (int)getpid());
}

#endif
