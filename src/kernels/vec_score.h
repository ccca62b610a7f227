/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/vec_score.h: dot and score over vec (included once per instruction set, after its *_vec.h).
 *
 * score is one pass over the digests, bound by memory: four pages at a time share each load of q, and the lines
 * PREFETCH_BYTES ahead are asked for, because the hardware's prefetcher stops at every 4 KB. A page's sum has one
 * order, whichever pages lie beside it: the last few repeat the last page instead of taking another path.
 */
enum { SCORE_PAGES = 4, SCORE_PREFETCH_BYTES = 4096 };

INLINE float dot(enum nkv_dtype dtype, size_t n, const float *a, const void *b)
{
    vec sum0 = vec_set1(0), sum1 = vec_set1(0), sum2 = vec_set1(0), sum3 = vec_set1(0);
    size_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        sum0 = vec_fma(vec_load(NKV_F32, a, i), vec_load(dtype, b, i), sum0);
        sum1 = vec_fma(vec_load(NKV_F32, a, i + LANES), vec_load(dtype, b, i + LANES), sum1);
        sum2 = vec_fma(vec_load(NKV_F32, a, i + 2 * LANES), vec_load(dtype, b, i + 2 * LANES), sum2);
        sum3 = vec_fma(vec_load(NKV_F32, a, i + 3 * LANES), vec_load(dtype, b, i + 3 * LANES), sum3);
    }
    for (; i + LANES <= n; i += LANES)
        sum0 = vec_fma(vec_load(NKV_F32, a, i), vec_load(dtype, b, i), sum0);
    if (i < n)
        sum1 = vec_fma(vec_load_part(NKV_F32, a, i, n - i), vec_load_part(dtype, b, i, n - i), sum1);
    return vec_sum(vec_add(vec_add(sum0, sum1), vec_add(sum2, sum3)));
}

static float dot_f32(size_t n, const float *a, const void *b)
{
    return dot(NKV_F32, n, a, b);
}

static float dot_f16(size_t n, const float *a, const void *b)
{
    return dot(NKV_F16, n, a, b);
}

static float dot_bf16(size_t n, const float *a, const void *b)
{
    return dot(NKV_BF16, n, a, b);
}

INLINE void score_group(enum nkv_dtype dtype, size_t dim, const float *q_pos, const float *q_neg,
                        const char *const page[SCORE_PAGES], float s[SCORE_PAGES])
{
    vec lo_sum[SCORE_PAGES], hi_sum[SCORE_PAGES];
    size_t row_bytes = nkv_kv_row_bytes(dtype, dim), d = 0;
    for (size_t j = 0; j < SCORE_PAGES; j++)
        lo_sum[j] = hi_sum[j] = vec_set1(0);
    for (; d + LANES <= dim; d += LANES) {
        vec pos = vec_load(NKV_F32, q_pos, d), neg = vec_load(NKV_F32, q_neg, d);
        for (size_t j = 0; j < SCORE_PAGES; j++) {
            lo_sum[j] = vec_fma(neg, vec_load(dtype, page[j], d), lo_sum[j]);
            hi_sum[j] = vec_fma(pos, vec_load(dtype, page[j] + row_bytes, d), hi_sum[j]);
        }
    }
    if (d < dim) {
        vec pos = vec_load_part(NKV_F32, q_pos, d, dim - d), neg = vec_load_part(NKV_F32, q_neg, d, dim - d);
        for (size_t j = 0; j < SCORE_PAGES; j++) {
            lo_sum[j] = vec_fma(neg, vec_load_part(dtype, page[j], d, dim - d), lo_sum[j]);
            hi_sum[j] = vec_fma(pos, vec_load_part(dtype, page[j] + row_bytes, d, dim - d), hi_sum[j]);
        }
    }
    for (size_t j = 0; j < SCORE_PAGES; j++)
        s[j] = vec_sum(vec_add(lo_sum[j], hi_sum[j]));
}

INLINE void score(enum nkv_dtype dtype, size_t n_pages, size_t dim, const float *q_pos, const float *q_neg,
                  const void *digest, bool add, float *scores)
{
    size_t page_bytes = 2 * nkv_kv_row_bytes(dtype, dim);
    for (size_t p = 0; p < n_pages; p += SCORE_PAGES) {
        const char *page[SCORE_PAGES];
        float s[SCORE_PAGES];
        for (size_t j = 0; j < SCORE_PAGES; j++)
            page[j] = (const char *)digest + (p + j < n_pages ? p + j : n_pages - 1) * page_bytes;
        /* An address only: it may lie behind the end, where a prefetch does nothing. */
        uintptr_t ahead = (uintptr_t)page[0] + SCORE_PREFETCH_BYTES;
        for (size_t i = 0; i < SCORE_PAGES * page_bytes; i += 64)
            __builtin_prefetch((const void *)(ahead + i));
        score_group(dtype, dim, q_pos, q_neg, page, s);
        for (size_t j = 0; j < SCORE_PAGES && p + j < n_pages; j++)
            scores[p + j] = add ? scores[p + j] + s[j] : s[j];
    }
}

static void score_f32(size_t n_pages, size_t dim, const float *q_pos, const float *q_neg, const void *digest, bool add,
                      float *scores)
{
    score(NKV_F32, n_pages, dim, q_pos, q_neg, digest, add, scores);
}

static void score_f16(size_t n_pages, size_t dim, const float *q_pos, const float *q_neg, const void *digest, bool add,
                      float *scores)
{
    score(NKV_F16, n_pages, dim, q_pos, q_neg, digest, add, scores);
}

static void score_bf16(size_t n_pages, size_t dim, const float *q_pos, const float *q_neg, const void *digest, bool add,
                       float *scores)
{
    score(NKV_BF16, n_pages, dim, q_pos, q_neg, digest, add, scores);
}

static void install_score(struct nkv_kernels *kernels)
{
    kernels->dot[NKV_F32] = dot_f32;
    kernels->dot[NKV_F16] = dot_f16;
    kernels->dot[NKV_BF16] = dot_bf16;
    kernels->score[NKV_F32] = score_f32;
    kernels->score[NKV_F16] = score_f16;
    kernels->score[NKV_BF16] = score_bf16;
}
