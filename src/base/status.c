/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Status codes, their names, and the per-thread message of the last failure. The message lives in
 * thread-local storage of fixed size, so that reporting an allocation failure allocates nothing.
 */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_error[512];
static _Thread_local uint64_t n_messages;

int nkv_fail(int status, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    n_messages++;
    return status;
}

uint64_t nkv_fail_count(void)
{
    return n_messages;
}

const char *nkv_last_error(void)
{
    return last_error;
}

const char *nkv_status_name(int status)
{
    static const char *const names[] = {
        "NKV_OK",      "NKV_EINVAL", "NKV_ENOMEM",  "NKV_ENOSPC", "NKV_EIO",       "NKV_EFORMAT",
        "NKV_ENOTSUP", "NKV_ENOENT", "NKV_EDEVICE", "NKV_ESTATE", "NKV_ECANCELED",
    };

    if (status > 0 || status <= -(int)(sizeof names / sizeof *names))
        return status > 0 ? "NKV_OK" : "unknown status";
    return names[-status];
}

static const char *const dtype_names[] = {"f32", "f16", "bf16", "q8_0"};
static const char *const mode_names[] = {"full", "recall", "pnm", "png"};
static const char *const digest_names[] = {"minmax", "cuboid-mean"};
static const char *const granularity_names[] = {"layer", "kv-head"};

#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

static const char *name_of(const char *const *names, int n, int value)
{
    return value >= 0 && value < n ? names[value] : "?";
}

static int parse(const char *what, const char *const *names, int n, const char *name)
{
    char allowed[64] = "";

    for (int i = 0; i < n; i++) {
        if (name && strcmp(name, names[i]) == 0)
            return i;
        strncat(allowed, i ? ", " : "", sizeof allowed - strlen(allowed) - 1);
        strncat(allowed, names[i], sizeof allowed - strlen(allowed) - 1);
    }
    FAIL(NKV_EINVAL, "unknown %s '%s': use one of %s", what, name ? name : "", allowed);
}

const char *nkv_dtype_name(enum nkv_dtype dtype)
{
    return name_of(dtype_names, COUNT(dtype_names), (int)dtype);
}

const char *nkv_mode_name(enum nkv_mode mode)
{
    return name_of(mode_names, COUNT(mode_names), (int)mode);
}

const char *nkv_digest_name(enum nkv_digest digest)
{
    return name_of(digest_names, COUNT(digest_names), (int)digest);
}

const char *nkv_granularity_name(enum nkv_granularity granularity)
{
    return name_of(granularity_names, COUNT(granularity_names), (int)granularity);
}

int nkv_dtype_parse(const char *name, enum nkv_dtype *dtype_out)
{
    int i = parse("element type", dtype_names, COUNT(dtype_names), name);

    TRY(i);
    *dtype_out = (enum nkv_dtype)i;
    return 0;
}

int nkv_mode_parse(const char *name, enum nkv_mode *mode_out)
{
    int i = parse("mode", mode_names, COUNT(mode_names), name);

    TRY(i);
    *mode_out = (enum nkv_mode)i;
    return 0;
}

int nkv_digest_parse(const char *name, enum nkv_digest *digest_out)
{
    int i = parse("digest", digest_names, COUNT(digest_names), name);

    TRY(i);
    *digest_out = (enum nkv_digest)i;
    return 0;
}

int nkv_granularity_parse(const char *name, enum nkv_granularity *granularity_out)
{
    int i = parse("granularity", granularity_names, COUNT(granularity_names), name);

    TRY(i);
    *granularity_out = (enum nkv_granularity)i;
    return 0;
}

static int check_range(const char *field, uint32_t value, uint32_t low, uint32_t high)
{
    if (value < low || value > high)
        FAIL(NKV_EINVAL, "%s is %u: it must be from %u to %u", field, value, low, high);
    return 0;
}

int nkv_kv_shape_check(const struct nkv_kv_shape *shape)
{
    TRY(check_range("number of layers", shape->n_layers, 1, NKV_MAX_LAYERS));
    TRY(check_range("number of query heads", shape->n_heads, 1, NKV_MAX_HEADS));
    TRY(check_range("number of KV heads", shape->n_kv_heads, 1, shape->n_heads));
    TRY(check_range("head dimension", shape->head_dim, 8, NKV_MAX_HEAD_DIM));
    TRY(check_range("page size in tokens", shape->page_tokens, 1, NKV_MAX_PAGE_TOKENS));
    TRY(check_range("element type", (uint32_t)shape->dtype, 0, NKV_DTYPE_COUNT - 1));
    TRY(check_range("digest kind", (uint32_t)shape->digest, 0, NKV_DIGEST_CUBOID_MEAN));
    if (shape->n_heads % shape->n_kv_heads)
        FAIL(NKV_EINVAL, "%u query heads are no multiple of %u KV heads", shape->n_heads, shape->n_kv_heads);
    if (shape->head_dim % 8)
        FAIL(NKV_EINVAL, "head dimension is %u: it must be a multiple of 8", shape->head_dim);
    if (!(shape->scale >= 0))
        FAIL(NKV_EINVAL, "attention scale is %g: it must be positive, or 0 for 1/sqrt(head dimension)",
             (double)shape->scale);
    return 0;
}
