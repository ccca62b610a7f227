/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A GGUF file is: magic, version, number of tensors and of keys; the keys with their values; one record per tensor
 * (name, dimensions, type, offset); then, from the next multiple of general.alignment on, the tensors' data. All
 * numbers are little endian and unaligned.
 *
 * The whole structure is parsed and checked at open, so that accessors only look things up. Invariant of the reader:
 * at <= end, and every advance is compared with what is left before it is made, never after; a count is compared with
 * the fewest bytes that its elements could take before memory is allocated for them, so that a small hostile file
 * cannot ask for much. Lookup is by binary search in an index sorted by name, where duplicates show as neighbours.
 *
 * Keys and tensors stay where they are in the mapping: copying the file's vocabulary and weights would double what a
 * model costs. A hash table in place of the sorted index was rejected: hostile names would decide its speed.
 */
#define _GNU_SOURCE
#include "model/gguf_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

#define MIN_KEY_BYTES     14u /* length, one character, type, one byte of value */
#define MIN_TENSOR_BYTES  33u /* length, one character, one dimension, type, offset */
#define DEFAULT_ALIGNMENT 32u
#define MAX_ALIGNMENT     (1u << 20)
#define SHOWN_NAME_BYTES  80 /* of a name in a message */

struct reader {
    const struct nkv_gguf *gguf;
    const uint8_t *at, *end;
};

/* ---- Numbers and strings */

static size_t left(const struct reader *r)
{
    return (size_t)(r->end - r->at);
}

static size_t offset(const struct reader *r)
{
    return (size_t)(r->at - r->gguf->base);
}

/* For "%.*s". */
static int shown(struct nkv_str s)
{
    return s.bytes < SHOWN_NAME_BYTES ? (int)s.bytes : SHOWN_NAME_BYTES;
}

static int need(const struct reader *r, uint64_t bytes, const char *what)
{
    if (bytes > left(r))
        FAIL(NKV_EFORMAT,
             "%s: offset %zu: %s needs %" PRIu64 " bytes, but the file ends after %zu more: it is truncated",
             r->gguf->name, offset(r), what, bytes, left(r));
    return 0;
}

static int read_u32(struct reader *r, const char *what, uint32_t *value_out)
{
    TRY(need(r, 4, what));
    *value_out = nkv_gguf_load_u32(r->at);
    r->at += 4;
    return 0;
}

static int read_u64(struct reader *r, const char *what, uint64_t *value_out)
{
    TRY(need(r, 8, what));
    *value_out = nkv_gguf_load_u64(r->at);
    r->at += 8;
    return 0;
}

static int read_str(struct reader *r, const char *what, struct nkv_str *str_out)
{
    uint64_t bytes;

    TRY(read_u64(r, what, &bytes));
    TRY(need(r, bytes, what));
    *str_out = (struct nkv_str){(const char *)r->at, (size_t)bytes};
    r->at += bytes;
    return 0;
}

/* ---- Keys and values */

static int skip_strings(struct reader *r, struct nkv_str key, uint64_t n)
{
    struct nkv_str ignored;

    for (uint64_t i = 0; i < n; i++)
        if (read_str(r, "a string of an array", &ignored) < 0)
            FAIL(NKV_EFORMAT,
                 "%s: offset %zu: key %.*s: string %" PRIu64 " of %" PRIu64 " runs past the end of the file",
                 r->gguf->name, offset(r), shown(key), key.data, i, n);
    return 0;
}

static int read_array(struct reader *r, struct nkv_str key, struct nkv_gguf_array *array_out)
{
    uint32_t type, size;
    uint64_t n;

    TRY(read_u32(r, "an array's type", &type));
    TRY(read_u64(r, "an array's length", &n));
    if (type == NKV_GGUF_ARRAY)
        FAIL(NKV_ENOTSUP, "%s: offset %zu: key %.*s is an array of arrays", r->gguf->name, offset(r), shown(key),
             key.data);
    size = type == NKV_GGUF_STRING ? 8 : nkv_gguf_scalar_bytes(type);
    if (size == 0)
        FAIL(NKV_EFORMAT, "%s: offset %zu: key %.*s is an array of unknown type %u", r->gguf->name, offset(r),
             shown(key), key.data, type);
    if (n > left(r) / size)
        FAIL(NKV_EFORMAT,
             "%s: offset %zu: key %.*s has %" PRIu64 " elements, more than fit in the rest of the file (%zu bytes)",
             r->gguf->name, offset(r), shown(key), key.data, n, left(r));
    *array_out = (struct nkv_gguf_array){(enum nkv_gguf_type)type, n, r->at};
    if (type == NKV_GGUF_STRING)
        return skip_strings(r, key, n);
    r->at += n * size;
    return 0;
}

static int read_scalar(struct reader *r, uint32_t type, struct nkv_gguf_entry *e)
{
    uint32_t size = nkv_gguf_scalar_bytes(type);

    if (size == 0)
        FAIL(NKV_EFORMAT, "%s: offset %zu: key %.*s has unknown type %u", r->gguf->name, offset(r), shown(e->key),
             e->key.data, type);
    TRY(need(r, size, "a value"));
    if (type == NKV_GGUF_BOOL && *r->at > 1)
        FAIL(NKV_EFORMAT, "%s: offset %zu: key %.*s is a bool of value %u", r->gguf->name, offset(r), shown(e->key),
             e->key.data, *r->at);
    e->value = r->at;
    r->at += size;
    return 0;
}

static int read_entry(struct reader *r, struct nkv_gguf_entry *e)
{
    uint32_t type;

    TRY(read_str(r, "a key", &e->key));
    if (e->key.bytes == 0)
        FAIL(NKV_EFORMAT, "%s: offset %zu: a key is empty", r->gguf->name, offset(r));
    TRY(read_u32(r, "a key's type", &type));
    e->type = (enum nkv_gguf_type)type;
    if (type == NKV_GGUF_STRING)
        return read_str(r, "a string", &e->string);
    if (type == NKV_GGUF_ARRAY)
        return read_array(r, e->key, &e->array);
    return read_scalar(r, type, e);
}

static int entry_order(const void *a, const void *b)
{
    return nkv_gguf_str_compare((*(const struct nkv_gguf_entry *const *)a)->key,
                                (*(const struct nkv_gguf_entry *const *)b)->key);
}

static int read_entries(struct reader *r, struct nkv_gguf *gguf)
{
    TRY(nkv_alloc(gguf->n_entries, sizeof *gguf->entries, &gguf->entries));
    TRY(nkv_alloc(gguf->n_entries, sizeof *gguf->entry_index, &gguf->entry_index));
    for (uint64_t i = 0; i < gguf->n_entries; i++) {
        TRY(read_entry(r, &gguf->entries[i]));
        gguf->entry_index[i] = &gguf->entries[i];
    }
    qsort(gguf->entry_index, gguf->n_entries, sizeof *gguf->entry_index, entry_order);
    for (uint64_t i = 1; i < gguf->n_entries; i++) {
        struct nkv_str key = gguf->entry_index[i]->key;

        if (nkv_gguf_str_compare(gguf->entry_index[i - 1]->key, key) == 0)
            FAIL(NKV_EFORMAT, "%s: key %.*s appears twice", gguf->name, shown(key), key.data);
    }
    return 0;
}

/* ---- Tensors */

static const char *ggml_type_name(uint32_t type)
{
    static const char *const names[] = {
        "F32",   "F16",    "Q4_0", "Q4_1", "Q4_2", "Q4_3",    "Q5_0",   "Q5_1",    "Q8_0",  "Q8_1",   "Q2_K",
        "Q3_K",  "Q4_K",   "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
        "IQ2_S", "IQ4_XS", "I8",   "I16",  "I32",  "I64",     "F64",    "IQ1_M",   "BF16",
    };

    return type < sizeof names / sizeof *names ? names[type] : "unknown";
}

static int tensor_dtype(const struct reader *r, struct nkv_str name, uint32_t type, enum nkv_dtype *dtype_out)
{
    switch (type) {
    case 0:
        *dtype_out = NKV_F32;
        return 0;
    case 1:
        *dtype_out = NKV_F16;
        return 0;
    case 8:
        *dtype_out = NKV_Q8_0;
        return 0;
    case 30:
        *dtype_out = NKV_BF16;
        return 0;
    default:
        FAIL(NKV_ENOTSUP,
             "%s: tensor %.*s has type %s (%u): only F32, F16, BF16 and Q8_0 are supported; convert the model",
             r->gguf->name, shown(name), name.data, ggml_type_name(type), type);
    }
}

/* Bytes of a tensor, and that its dimensions make sense for its type. */
static int tensor_bytes(const struct reader *r, struct nkv_gguf_tensor *t)
{
    static const uint64_t element_bytes[NKV_DTYPE_COUNT] = {[NKV_F32] = 4, [NKV_F16] = 2, [NKV_BF16] = 2};
    uint64_t n = 1, bytes;
    bool overflow = false;

    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (t->dims[i] == 0)
            FAIL(NKV_EFORMAT, "%s: tensor %.*s: dimension %u is 0", r->gguf->name, shown(t->name), t->name.data, i);
        overflow |= __builtin_mul_overflow(n, t->dims[i], &n);
    }
    if (t->dtype == NKV_Q8_0 && t->dims[0] % 32)
        FAIL(NKV_EFORMAT, "%s: tensor %.*s: rows of %" PRIu64 " elements of Q8_0 are not whole blocks of 32",
             r->gguf->name, shown(t->name), t->name.data, t->dims[0]);
    if (t->dtype == NKV_Q8_0)
        overflow |= __builtin_mul_overflow(n / 32, 34u, &bytes);
    else
        overflow |= __builtin_mul_overflow(n, element_bytes[t->dtype], &bytes);
    if (overflow || bytes > r->gguf->bytes)
        FAIL(NKV_EFORMAT, "%s: tensor %.*s is larger than the file", r->gguf->name, shown(t->name), t->name.data);
    t->bytes = bytes;
    return 0;
}

/* *offset_out is relative to the data section, whose place is not known yet. */
static int read_tensor(struct reader *r, struct nkv_gguf_tensor *t, uint64_t *offset_out)
{
    uint32_t type;

    TRY(read_str(r, "a tensor's name", &t->name));
    if (t->name.bytes == 0)
        FAIL(NKV_EFORMAT, "%s: offset %zu: a tensor's name is empty", r->gguf->name, offset(r));
    TRY(read_u32(r, "a tensor's number of dimensions", &t->n_dims));
    if (t->n_dims < 1 || t->n_dims > 4)
        FAIL(NKV_EFORMAT, "%s: tensor %.*s has %u dimensions: it must have 1 to 4", r->gguf->name, shown(t->name),
             t->name.data, t->n_dims);
    for (uint32_t i = 0; i < 4; i++) {
        t->dims[i] = 1;
        if (i < t->n_dims)
            TRY(read_u64(r, "a tensor's dimension", &t->dims[i]));
    }
    TRY(read_u32(r, "a tensor's type", &type));
    TRY(read_u64(r, "a tensor's offset", offset_out));
    TRY(tensor_dtype(r, t->name, type, &t->dtype));
    return tensor_bytes(r, t);
}

static int alignment_of(const struct nkv_gguf *gguf, uint32_t *alignment_out)
{
    uint32_t alignment = DEFAULT_ALIGNMENT;

    if (nkv_gguf_has(gguf, "general.alignment"))
        TRY(nkv_gguf_u32(gguf, "general.alignment", &alignment));
    if (alignment < 8 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)))
        FAIL(NKV_EFORMAT, "%s: key general.alignment is %u: it must be a power of two from 8 to %u", gguf->name,
             alignment, MAX_ALIGNMENT);
    *alignment_out = alignment;
    return 0;
}

/* Offsets of data become pointers. pre: r->at is the end of the tensor records. */
static int place_tensors(const struct reader *r, const struct nkv_gguf *gguf, const uint64_t *offsets)
{
    uint32_t alignment = 0;
    size_t start, bytes;

    TRY(alignment_of(gguf, &alignment));
    start = nkv_round_up(offset(r), alignment);
    bytes = start < gguf->bytes ? gguf->bytes - start : 0;
    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        struct nkv_gguf_tensor *t = &gguf->tensors[i];

        if (offsets[i] % alignment)
            FAIL(NKV_EFORMAT, "%s: tensor %.*s: its offset %" PRIu64 " is not a multiple of the alignment %u",
                 gguf->name, shown(t->name), t->name.data, offsets[i], alignment);
        if (offsets[i] > bytes || t->bytes > bytes - offsets[i])
            FAIL(NKV_EFORMAT,
                 "%s: tensor %.*s (%" PRIu64 " bytes at offset %" PRIu64
                 " of the data) runs past the end of the file, which has %zu bytes of data: it is truncated",
                 gguf->name, shown(t->name), t->name.data, t->bytes, offsets[i], bytes);
        t->data = gguf->base + start + offsets[i];
    }
    return 0;
}

static int data_order(const void *a, const void *b)
{
    const struct nkv_gguf_tensor *x = *(const struct nkv_gguf_tensor *const *)a;
    const struct nkv_gguf_tensor *y = *(const struct nkv_gguf_tensor *const *)b;

    return ((uintptr_t)x->data > (uintptr_t)y->data) - ((uintptr_t)x->data < (uintptr_t)y->data);
}

static int name_order(const void *a, const void *b)
{
    return nkv_gguf_str_compare((*(const struct nkv_gguf_tensor *const *)a)->name,
                                (*(const struct nkv_gguf_tensor *const *)b)->name);
}

/* No two tensors share bytes or a name; leaves the index sorted by name. */
static int index_tensors(const struct nkv_gguf *gguf)
{
    const struct nkv_gguf_tensor **index = gguf->tensor_index;

    for (uint64_t i = 0; i < gguf->n_tensors; i++)
        index[i] = &gguf->tensors[i];
    qsort(index, gguf->n_tensors, sizeof *index, data_order);
    for (uint64_t i = 1; i < gguf->n_tensors; i++)
        if ((uintptr_t)index[i]->data - (uintptr_t)index[i - 1]->data < index[i - 1]->bytes)
            FAIL(NKV_EFORMAT, "%s: tensors %.*s and %.*s overlap", gguf->name, shown(index[i - 1]->name),
                 index[i - 1]->name.data, shown(index[i]->name), index[i]->name.data);
    qsort(index, gguf->n_tensors, sizeof *index, name_order);
    for (uint64_t i = 1; i < gguf->n_tensors; i++)
        if (nkv_gguf_str_compare(index[i - 1]->name, index[i]->name) == 0)
            FAIL(NKV_EFORMAT, "%s: tensor %.*s appears twice", gguf->name, shown(index[i]->name), index[i]->name.data);
    return 0;
}

static int read_tensors(struct reader *r, struct nkv_gguf *gguf)
{
    uint64_t *offsets;
    int status = 0;

    TRY(nkv_alloc(gguf->n_tensors, sizeof *gguf->tensors, &gguf->tensors));
    TRY(nkv_alloc(gguf->n_tensors, sizeof *gguf->tensor_index, &gguf->tensor_index));
    TRY(nkv_alloc(gguf->n_tensors, sizeof *offsets, &offsets));
    for (uint64_t i = 0; i < gguf->n_tensors && status == 0; i++)
        status = read_tensor(r, &gguf->tensors[i], &offsets[i]);
    if (status == 0)
        status = place_tensors(r, gguf, offsets);
    nkv_free(offsets);
    return status < 0 ? status : index_tensors(gguf);
}

/* ---- Open and close */

static int read_header(struct reader *r, struct nkv_gguf *gguf)
{
    uint32_t version;

    TRY(need(r, 4, "the magic"));
    if (memcmp(r->at, "GGUF", 4) != 0)
        FAIL(NKV_EFORMAT, "%s: not a GGUF file: it starts with bytes %02x %02x %02x %02x", gguf->name, r->at[0],
             r->at[1], r->at[2], r->at[3]);
    r->at += 4;
    TRY(read_u32(r, "the version", &version));
    if (version != 0 && (version & 0xffff) == 0)
        FAIL(NKV_ENOTSUP, "%s: a big-endian GGUF file: convert it to little endian", gguf->name);
    if (version != 2 && version != 3)
        FAIL(NKV_ENOTSUP, "%s: GGUF version %u: only versions 2 and 3 are supported", gguf->name, version);
    TRY(read_u64(r, "the number of tensors", &gguf->n_tensors));
    TRY(read_u64(r, "the number of keys", &gguf->n_entries));
    if (gguf->n_entries > left(r) / MIN_KEY_BYTES)
        FAIL(NKV_EFORMAT, "%s: offset 16: %" PRIu64 " keys do not fit in a file of %zu bytes", gguf->name,
             gguf->n_entries, gguf->bytes);
    if (gguf->n_tensors > left(r) / MIN_TENSOR_BYTES)
        FAIL(NKV_EFORMAT, "%s: offset 8: %" PRIu64 " tensors do not fit in a file of %zu bytes", gguf->name,
             gguf->n_tensors, gguf->bytes);
    return 0;
}

static int parse(struct nkv_gguf *gguf)
{
    struct reader r = {gguf, gguf->base, gguf->base + gguf->bytes};

    TRY(read_header(&r, gguf));
    TRY(read_entries(&r, gguf));
    return read_tensors(&r, gguf);
}

/* Takes over the mapping, if it is one. */
static int open_bytes(const void *data, size_t bytes, bool is_mapped, const char *name, struct nkv_gguf **gguf_out)
{
    struct nkv_gguf *gguf;
    int status = nkv_alloc(1, sizeof *gguf, &gguf);

    if (status < 0) {
        if (is_mapped)
            munmap((void *)(uintptr_t)data, bytes);
        return status;
    }
    gguf->base = data;
    gguf->bytes = bytes;
    gguf->is_mapped = is_mapped;
    status = nkv_alloc(strlen(name) + 1, 1, &gguf->name);
    if (status == 0) {
        strcpy(gguf->name, name);
        status = parse(gguf);
    }
    if (status < 0) {
        nkv_gguf_close(gguf);
        return status;
    }
    *gguf_out = gguf;
    return 0;
}

int nkv_gguf_open_memory(const void *data, size_t bytes, const char *name, struct nkv_gguf **gguf_out)
{
    if ((uintptr_t)data % 8)
        FAIL(NKV_EINVAL, "%s: a model in memory must start at a multiple of 8 bytes, not at %p", name, data);
    return open_bytes(data, bytes, false, name, gguf_out);
}

static int map_file(int fd, const char *path, void **base_out, size_t *bytes_out)
{
    struct stat st;
    void *base;

    if (fstat(fd, &st) < 0)
        FAIL(NKV_EIO, "%s: cannot read: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        FAIL(NKV_EIO, "%s: cannot map: not a regular file", path);
    if (st.st_size == 0)
        FAIL(NKV_EFORMAT, "%s: not a GGUF file: it is empty", path);
    base = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (base == MAP_FAILED)
        FAIL(NKV_EIO, "%s: cannot map %lld bytes: %s", path, (long long)st.st_size, strerror(errno));
    *base_out = base;
    *bytes_out = (size_t)st.st_size;
    return 0;
}

int nkv_gguf_open(const char *path, struct nkv_gguf **gguf_out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), status;
    void *base = NULL;
    size_t bytes = 0;

    if (fd < 0)
        FAIL(errno == ENOENT ? NKV_ENOENT : NKV_EIO, "%s: cannot open: %s", path, strerror(errno));
    status = map_file(fd, path, &base, &bytes);
    close(fd);
    return status < 0 ? status : open_bytes(base, bytes, true, path, gguf_out);
}

void nkv_gguf_close(struct nkv_gguf *gguf)
{
    if (!gguf)
        return;
    if (gguf->is_mapped)
        munmap((void *)(uintptr_t)gguf->base, gguf->bytes);
    nkv_free(gguf->tensor_index);
    nkv_free(gguf->tensors);
    nkv_free(gguf->entry_index);
    nkv_free(gguf->entries);
    nkv_free(gguf->name);
    nkv_free(gguf);
}

const char *nkv_gguf_name(const struct nkv_gguf *gguf)
{
    return gguf->name;
}
