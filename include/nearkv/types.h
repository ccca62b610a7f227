/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv/types.h: the words that every other header shares: status codes, element types, modes and
 * the geometry of a KV cache.
 *
 * Errors. A function that can fail returns an int: 0 (or a count) on success, a negative
 * enum nkv_status on failure. The first detector writes one message for a person;
 * nkv_last_error() returns it, per thread, until the next failure on that thread. Outputs (named
 * *_out, last in the argument list) are written only on success. The library never exits and
 * never prints.
 */
#ifndef NEARKV_TYPES_H
#define NEARKV_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NKV_API __attribute__((visibility("default")))
#if defined(__GNUC__)
#define NKV_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define NKV_PRINTF(fmt, args)
#endif

enum nkv_status {
    NKV_OK = 0,
    NKV_EINVAL = -1,     /* an argument or a command is wrong */
    NKV_ENOMEM = -2,     /* an allocation failed */
    NKV_ENOSPC = -3,     /* a device or a sequence has no room left */
    NKV_EIO = -4,        /* the operating system refused a read, a write or a mapping */
    NKV_EFORMAT = -5,    /* a file is truncated, contradictory or not what it claims to be */
    NKV_ENOTSUP = -6,    /* well formed, but not supported here */
    NKV_ENOENT = -7,     /* no such file, sequence, page or backend */
    NKV_EDEVICE = -8,    /* a device failed a command */
    NKV_ESTATE = -9,     /* the call does not fit the object's state */
    NKV_ECANCELED = -10, /* stopped on the caller's request */
};

/* The name of a status ("NKV_ENOSPC"); static storage. */
NKV_API const char *nkv_status_name(int status);

/* The message of this thread's last failure; never NULL; valid until the next failure here. */
NKV_API const char *nkv_last_error(void);

/*
 * Element types. As a type of KV cache NKV_Q8_0 is int8 with one f32 scale per token and KV head;
 * as a type of weights it is GGUF's block of 32 int8 after one f16 scale (34 bytes).
 */
enum nkv_dtype { NKV_F32 = 0, NKV_F16 = 1, NKV_BF16 = 2, NKV_Q8_0 = 3, NKV_DTYPE_COUNT = 4 };

/* Where selection and attention happen; README has the table of modes. */
enum nkv_mode { NKV_MODE_FULL = 0, NKV_MODE_RECALL = 1, NKV_MODE_PNM = 2, NKV_MODE_PNG = 3, NKV_MODE_COUNT = 4 };

/* How a full page is summarised: two vectors lo, hi of head_dim per page, layer and KV head. */
enum nkv_digest {
    NKV_DIGEST_MINMAX = 0,      /* lo = min k, hi = max k (the paper, Quest) */
    NKV_DIGEST_CUBOID_MEAN = 1, /* c = (min+max)/2, r = mean |k - c|, lo = c - r, hi = c + r (ArkVale) */
};

/* One page set for all heads of a layer (the paper), or one per KV head. */
enum nkv_granularity { NKV_SELECT_LAYER = 0, NKV_SELECT_KV_HEAD = 1 };

/* Names as the command line spells them ("f16", "pnm", "cuboid-mean", "kv-head"); static storage. */
NKV_API const char *nkv_dtype_name(enum nkv_dtype dtype);
NKV_API const char *nkv_mode_name(enum nkv_mode mode);
NKV_API const char *nkv_digest_name(enum nkv_digest digest);
NKV_API const char *nkv_granularity_name(enum nkv_granularity granularity);
/* The reverse; NKV_EINVAL with the allowed names in the message. */
NKV_API int nkv_dtype_parse(const char *name, enum nkv_dtype *dtype_out);
NKV_API int nkv_mode_parse(const char *name, enum nkv_mode *mode_out);
NKV_API int nkv_digest_parse(const char *name, enum nkv_digest *digest_out);
NKV_API int nkv_granularity_parse(const char *name, enum nkv_granularity *granularity_out);

#define NKV_MAX_LAYERS      1024u
#define NKV_MAX_HEADS       1024u
#define NKV_MAX_HEAD_DIM    512u /* head_dim is a multiple of 8 from 8 to this */
#define NKV_MAX_PAGE_TOKENS 1024u
#define NKV_PAGE_NONE       UINT32_MAX

/* The geometry of a KV cache, the same for every device of a context. */
struct nkv_kv_shape {
    uint32_t n_layers;
    uint32_t n_heads;    /* query heads; a multiple of n_kv_heads */
    uint32_t n_kv_heads; /* query head h reads KV head h / (n_heads / n_kv_heads) */
    uint32_t head_dim;
    uint32_t page_tokens; /* tokens per page */
    enum nkv_dtype dtype; /* of K and V in the cache */
    enum nkv_digest digest;
    float scale; /* multiplies q.k; 0 means 1/sqrt(head_dim) */
};

/* Checks every field against its range. returns: 0, or NKV_EINVAL naming field, value and range. */
NKV_API int nkv_kv_shape_check(const struct nkv_kv_shape *shape);

#ifdef __cplusplus
}
#endif
#endif
