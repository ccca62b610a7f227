/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/vec_score.h: dot and score over vec (included once per instruction set, after its *_vec.h).
 *
 * score is one pass over the digests, bound by memory, so what counts is to look like one sequential stream: a page's
 * lo and hi are one run of 2 dim elements against (q_neg, q_pos) laid out alike, one cache line a turn, the line 1 KB
 * ahead asked for into L2. Rejected, because measured at a third to two thirds of this rate: several pages side by
 * side, and turns of several lines; each load instruction then walks with a long stride, which misleads the
 * prefetchers.
 */
enum { SCORE_PREFETCH_BYTES = 1024 };

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

/* The sum of q[i] * page[i], i < n, one cache line a turn. */
INLINE float score_page(enum nkv_dtype dtype, size_t n, const float *q, const char *page)
{
    enum { LINE_BYTES = 64, SUMS_MAX = 4 };
    vec sums[SUMS_MAX] = {vec_set1(0), vec_set1(0), vec_set1(0), vec_set1(0)};
    size_t n_sums = LINE_BYTES / ((dtype == NKV_F32 ? 4u : 2u) * LANES), i = 0;
    uintptr_t ahead = (uintptr_t)page + SCORE_PREFETCH_BYTES; /* may lie behind the end: only prefetched */
#pragma GCC unroll 1
    for (; i + n_sums * LANES <= n; i += n_sums * LANES, ahead += LINE_BYTES) {
        __builtin_prefetch((const void *)ahead, 0, 2);
#pragma GCC unroll 4
        for (size_t j = 0; j < n_sums; j++)
            sums[j] = vec_fma(vec_load(NKV_F32, q, i + j * LANES), vec_load(dtype, page, i + j * LANES), sums[j]);
    }
    for (; i < n; i += LANES) /* n is a multiple of 16, so of LANES */
        sums[0] = vec_fma(vec_load(NKV_F32, q, i), vec_load(dtype, page, i), sums[0]);
    return vec_sum(vec_add(vec_add(sums[0], sums[1]), vec_add(sums[2], sums[3])));
}

INLINE void score(enum nkv_dtype dtype, size_t n_pages, size_t dim, const float *q_pos, const float *q_neg,
                  const void *digest, bool add, float *scores)
{
    float q[2 * NKV_MAX_HEAD_DIM]; /* as a digest lies: lo's factors, then hi's */
    size_t page_bytes = 2 * dim * (dtype == NKV_F32 ? 4u : 2u);
    memcpy(q, q_neg, dim * sizeof *q);
    memcpy(q + dim, q_pos, dim * sizeof *q);
    for (size_t p = 0; p < n_pages; p++) {
        float s = score_page(dtype, 2 * dim, q, (const char *)digest + p * page_bytes);
        scores[p] = add ? scores[p] + s : s;
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
