/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image as a whole: its layout, making one, opening one, closing it.
 *
 * A file or a DAX device cannot promise one byte twice, so slots and digest chunks, which share a capacity in anonymous
 * memory, get parts of their own here: as many slots as fit with the chunks that their digests take, and a few chunks
 * more, because the last chunk of a sequence is rarely full. File space is taken when the file is made: a page that
 * finds no room later would end the process.
 *
 * What is flushed when: nothing at a commit. A process that dies leaves its memory behind, and the order of its stores
 * is the order that the next one sees. Against a crash of the system there is nkv_store_sync, called when a published
 * sequence loses its client and when the store is closed; what came later may be lost, and is found by checksums.
 * Flushing at every commit was rejected: on a disk it costs more than the step.
 */
#define _GNU_SOURCE
#include "kv/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define MAX_ROOTS   4096u
#define MIN_ROOTS   64u
#define MAX_SLOTS   0x7fffffffu
#define FRAME_ALIGN ((uint64_t)2 << 20)
#define LINE        64u
/* The last chunk of a sequence is rarely full: one over this of the pages' bytes is for such chunks. */
#define SPARE_CHUNKS_SHARE 8u

static uint64_t up(uint64_t bytes, uint64_t align)
{
    return (bytes + align - 1) / align * align;
}

static uint64_t super_sum(const struct image_super *super)
{
    return XXH3_64bits(super, offsetof(struct image_super, sum));
}

/* The layout for n_slots; image_bytes becomes what it takes. */
static struct image_super layout_of(const struct nkv_kv_shape *shape, uint64_t n_slots)
{
    struct image_super s = {.version = NKV_IMAGE_VERSION, .shape = *shape, .n_slots = (uint32_t)n_slots};
    struct nkv_store size;
    uint64_t n_chunks = n_slots / NKV_DIGEST_CHUNK_PAGES, spare, seq_bytes, extent_slots;

    nkv_store_size(shape, &size);
    memcpy(s.magic, NKV_IMAGE_MAGIC, sizeof s.magic);
    s.n_roots = n_slots < MIN_ROOTS ? MIN_ROOTS : n_slots < MAX_ROOTS ? (uint32_t)n_slots : MAX_ROOTS;
    spare = n_slots * size.page_bytes / SPARE_CHUNKS_SHARE / size.chunk_bytes;
    spare = spare < 4 ? 4 : spare;
    s.n_chunks = (uint32_t)(n_chunks + (spare < s.n_roots ? spare : s.n_roots));
    s.extent_shift = nkv_store_extent_shift(size.frame_bytes);
    seq_bytes = sizeof(struct image_seq) + 8 * (uint64_t)shape->n_layers + 16;
    s.n_blocks = (uint32_t)(2 * n_slots * (12 + 4 * (uint64_t)shape->page_tokens) / NKV_IMAGE_BLOCK_BYTES +
                            8 * (uint64_t)s.n_chunks / NKV_IMAGE_BLOCK_BYTES +
                            MIN_ROOTS * (seq_bytes / NKV_IMAGE_BLOCK_BYTES + 2));
    s.clients_at = (uint64_t)2 * NKV_IMAGE_PAGE;
    s.roots_at = s.clients_at + NKV_IMAGE_PAGE;
    s.blocks_at = up(s.roots_at + 8 * (uint64_t)s.n_roots, NKV_IMAGE_PAGE);
    s.sums_at = up(s.blocks_at + NKV_IMAGE_BLOCK_BYTES * (uint64_t)s.n_blocks, NKV_IMAGE_PAGE);
    s.frames_at = s.sums_at + 8 * n_slots * shape->n_layers;
    extent_slots = up(n_slots, 1u << s.extent_shift);
    s.frames_at = up(s.frames_at, extent_slots * size.page_bytes >= 16 * FRAME_ALIGN ? FRAME_ALIGN : NKV_IMAGE_PAGE);
    s.chunks_at = up(s.frames_at + extent_slots * size.page_bytes, NKV_IMAGE_PAGE);
    s.image_bytes = up(s.chunks_at + s.n_chunks * size.chunk_bytes, NKV_IMAGE_PAGE);
    s.capacity_bytes = n_slots * size.page_bytes + s.n_chunks * size.chunk_bytes;
    return s;
}

/* The most slots that fit, by bisection: every part grows with them. */
int nkv_image_layout(const struct nkv_kv_shape *shape, uint64_t image_bytes, struct image_super *super_out)
{
    struct nkv_store size;
    uint64_t least = 0, most;
    struct image_super super;

    nkv_store_size(shape, &size);
    most = image_bytes / size.page_bytes + 1;
    most = most < MAX_SLOTS ? most : MAX_SLOTS;
    while (most - least > 1) {
        uint64_t middle = least + (most - least) / 2;

        if (layout_of(shape, middle).image_bytes <= image_bytes)
            least = middle;
        else
            most = middle;
    }
    if (least == 0)
        FAIL(NKV_EINVAL, "an image of %llu bytes has no room for a page of %zu bytes: make it larger than %llu",
             (unsigned long long)image_bytes, size.page_bytes, (unsigned long long)layout_of(shape, 1).image_bytes);
    super = layout_of(shape, least);
    super.image_bytes = image_bytes;
    super.sum = super_sum(&super);
    *super_out = super;
    return 0;
}

static bool is_zero(const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (bytes[i])
            return false;
    return true;
}

int nkv_image_read_super(const struct nkv_region *memory, const char *path, struct image_super *super_out)
{
    struct image_super super, expected;

    memcpy(&super, memory->base, sizeof super);
    if (is_zero(memory->base, NKV_IMAGE_PAGE))
        return 1;
    if (memcmp(super.magic, NKV_IMAGE_MAGIC, sizeof super.magic) != 0)
        FAIL(NKV_EFORMAT,
             "%s holds something else than an image of nearkv; nothing was changed: use other memory, or "
             "format it if what is there may go",
             path);
    if (super.version != NKV_IMAGE_VERSION)
        FAIL(NKV_ENOTSUP, "%s is an image of version %u, this nearkv has version %u; nothing was changed", path,
             super.version, NKV_IMAGE_VERSION);
    if (super.sum != super_sum(&super))
        FAIL(NKV_EFORMAT, "%s: the superblock is damaged (its checksum differs); nothing was changed", path);
    if (super.image_bytes > memory->bytes)
        FAIL(NKV_EFORMAT, "%s has %zu bytes, but its superblock says %llu: it was cut off; nothing was changed", path,
             memory->bytes, (unsigned long long)super.image_bytes);
    if (nkv_kv_shape_check(&super.shape) < 0 || nkv_image_layout(&super.shape, super.image_bytes, &expected) < 0 ||
        memcmp(&expected, &super, sizeof super) != 0)
        FAIL(NKV_EFORMAT, "%s: the superblock contradicts itself; nothing was changed", path);
    *super_out = super;
    return 0;
}

void nkv_image_boot_id(char id_out[40])
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, id_out, 36);

    if (fd >= 0)
        close(fd);
    n = n > 0 ? n : 0;
    memset(id_out + n, 0, 40 - (size_t)n);
}

void nkv_image_map_parts(struct nkv_image *image)
{
    char *base = image->memory.base;

    image->state = (struct image_state *)(void *)(base + NKV_IMAGE_PAGE);
    image->roots = (_Atomic uint64_t *)(void *)(base + image->super.roots_at);
    image->blocks = base + image->super.blocks_at;
    image->sums = (uint64_t *)(void *)(base + image->super.sums_at);
}

static void flush_lines(const char *base, uint64_t bytes)
{
#if defined(__x86_64__)
    for (uint64_t at = 0; at < bytes; at += LINE)
        __builtin_ia32_clflush(base + at);
    __builtin_ia32_mfence();
#else
    (void)base;
    (void)bytes;
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

static int sync_first(const struct nkv_image *image, uint64_t bytes)
{
    if (!image->is_dax)
        return nkv_region_sync(&image->memory, bytes);
    flush_lines(image->memory.base, bytes);
    return 0;
}

/* Nothing of before comes back, whenever the system goes down: each part is on the medium before the next is written.
 * The superblock comes last: until it is there, the image is none. */
static int format(struct nkv_image *image, const struct image_super *super)
{
    char *base = image->memory.base;

    memset(base, 0, NKV_IMAGE_PAGE);
    TRY(sync_first(image, NKV_IMAGE_PAGE));
    memset(base + NKV_IMAGE_PAGE, 0, super->blocks_at - NKV_IMAGE_PAGE);
    TRY(sync_first(image, super->blocks_at));
    memcpy(base, super, sizeof *super);
    image->super = *super;
    return sync_first(image, NKV_IMAGE_PAGE);
}

static bool holds_sequences(const struct nkv_image *image)
{
    for (uint32_t i = 0; i < image->super.n_roots; i++)
        if (image->roots[i])
            return true;
    return false;
}

/* Makes the image's superblock right for the shape, or says why not. */
static int prepare(struct nkv_image *image, const struct nkv_kv_shape *shape, const struct nkv_image_options *options)
{
    int status = options->format ? 1 : nkv_image_read_super(&image->memory, options->path, &image->super);
    struct image_super super;

    TRY(status);
    if (status == 0) {
        nkv_image_map_parts(image);
        if (memcmp(&image->super.shape, shape, sizeof *shape) == 0)
            return 0;
        if (holds_sequences(image))
            FAIL(NKV_ESTATE,
                 "%s holds sequences of another KV shape (%u layers, %u KV heads of %u, pages of %u, %s): "
                 "remove them, or use other memory",
                 options->path, image->super.shape.n_layers, image->super.shape.n_kv_heads, image->super.shape.head_dim,
                 image->super.shape.page_tokens, nkv_dtype_name(image->super.shape.dtype));
    }
    TRY(nkv_image_layout(shape, image->memory.bytes, &super));
    TRY(format(image, &super));
    nkv_image_map_parts(image);
    return 0;
}

int nkv_image_open_parts(struct nkv_store *store)
{
    struct nkv_image *image = store->image;
    const struct image_super *super = &image->super;

    store->capacity_bytes = super->capacity_bytes;
    store->extent_shift = super->extent_shift;
    store->frames = (char *)image->memory.base + super->frames_at;
    store->chunks = (char *)image->memory.base + super->chunks_at;
    TRY(nkv_alloc(super->n_slots, 1, &image->dirty_slots));
    TRY(nkv_alloc(super->n_chunks, 1, &image->dirty_chunks));
    TRY(nkv_pool_open(super->n_blocks, &image->block_pool));
    image->n_births = image->state->n_births;
    return nkv_store_open_tables(store, super->n_slots, super->n_chunks);
}

static int open_image(struct nkv_store *store, const struct nkv_kv_shape *shape,
                      const struct nkv_image_options *options)
{
    TRY(nkv_alloc(1, sizeof *store->image, &store->image));
    store->image->fd = -1;
    TRY(nkv_image_file_open(options, store->image));
    TRY(prepare(store->image, shape, options));
    TRY(nkv_image_open_parts(store));
    TRY(nkv_image_recover(store));
    store->clients =
        (struct nkv_kv_client *)(void *)((char *)store->image->memory.base + store->image->super.clients_at);
    nkv_store_clients_open(store);
    return 0;
}

int nkv_store_open_image(const struct nkv_kv_shape *shape, const struct nkv_image_options *options,
                         struct nkv_store **store_out)
{
    struct nkv_store *store;
    int status;

    TRY(nkv_kv_shape_check(shape));
    TRY(nkv_alloc(1, sizeof *store, &store));
    nkv_store_size(shape, store);
    status = open_image(store, shape, options);
    if (status < 0) {
        if (store->image && store->image->is_made)
            (void)unlink(options->path);
        nkv_store_free(store);
        return status;
    }
    nkv_image_boot_id(store->image->state->boot_id);
    store->image->state->clean = 0;
    status = nkv_image_sync_state(store->image);
    if (status < 0) {
        nkv_store_free(store);
        return status;
    }
    *store_out = store;
    return 0;
}

int nkv_image_peek(const struct nkv_image_options *options, struct nkv_kv_shape *shape_out)
{
    struct nkv_image image = {.fd = -1};
    struct nkv_image_options there = *options;
    int status;

    there.is_read_only = !options->is_locked;
    there.bytes = options->is_locked ? options->bytes : 0;
    status = nkv_image_file_open(&there, &image);
    if (status == NKV_ENOENT && options->bytes)
        return 0; /* it will be made */
    if (status == 0)
        status = options->format ? 1 : nkv_image_read_super(&image.memory, options->path, &image.super);
    if (status == 0) {
        nkv_image_map_parts(&image);
        *shape_out = image.super.shape;
        status = holds_sequences(&image) ? 0 : 1;
    }
    nkv_image_file_close(&image);
    return status < 0 ? status : !status;
}

/* Pages first: what names them must not be there before them. */
static void flush_dirty(struct nkv_store *store)
{
    struct nkv_image *image = store->image;

    for (uint32_t slot = 0; slot < image->super.n_slots; slot++) {
        for (uint32_t layer = 0; image->dirty_slots[slot] && layer < store->shape.n_layers; layer++)
            flush_lines(nkv_store_frame(store, layer, slot), store->frame_bytes);
        image->dirty_slots[slot] = 0;
    }
    for (uint32_t chunk = 0; chunk < image->super.n_chunks; chunk++) {
        if (image->dirty_chunks[chunk])
            flush_lines(nkv_store_run(store, chunk, 0, 0), store->chunk_bytes);
        image->dirty_chunks[chunk] = 0;
    }
    flush_lines(image->memory.base, image->super.frames_at);
}

int nkv_store_sync(struct nkv_store *store)
{
    if (!store->image)
        return 0;
    if (store->image->is_dax) {
        flush_dirty(store);
        return 0;
    }
    return nkv_region_sync(&store->image->memory, store->image->memory.bytes);
}

int nkv_image_sync_state(struct nkv_image *image)
{
    return sync_first(image, 2 * NKV_IMAGE_PAGE);
}

void nkv_image_close(struct nkv_store *store)
{
    struct nkv_image *image = store->image;

    if (!image)
        return;
    nkv_pool_close(&image->block_pool);
    nkv_free(image->dirty_slots);
    nkv_free(image->dirty_chunks);
    nkv_image_file_close(image);
    nkv_free(image);
    store->image = NULL;
}

void nkv_image_close_clean(struct nkv_store *store)
{
    if (nkv_store_sync(store) < 0)
        return; /* the next one compares checksums */
    store->image->state->clean = 1;
    (void)nkv_image_sync_state(store->image);
}
