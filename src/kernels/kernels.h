/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/kernels.h: the arithmetic of attention, digests and matrix-vector products, as a table of
 * functions. A table starts as the plain C reference (ref_*.c), which defines what is right; an
 * instruction set overrides the entries that are worth it (avx2_*.c, avx512_*.c). The table is chosen once at run
 * time from what the CPU has; NEARKV_KERNELS=ref|avx2|avx512 or nkv_kernels_use() overrides.
 *
 * Operands (all row major, all pointers to distinct memory):
 *
 *   K page of one KV head     k      [n_tokens][dim]        element type of the table's index
 *   V page of one KV head     v      [n_tokens][dim]
 *   scales (q8_0 only)        k_scale, v_scale [n_tokens]   f32: value = scale * int8
 *   digests of one KV head    digest [n_pages][2][dim]      lo then hi; element type nkv_digest_dtype()
 *   partial of one row        o [dim] f32, m f32, l f32     o = sum_t exp(s_t - m) v_t, l = sum_t exp(s_t - m), m =
 * max_t s_t
 *
 * The algebra: a partial over no token is o = 0, m = -inf, l = 0. Merging is associative and commutative up to
 * rounding; the output of attention is o / l. (FlashAttention's online softmax; the paper, section 5.)
 *
 * Any kernel is a pure function of its operands: same operands, same bits, on any thread.
 */
#ifndef NKV_KERNELS_KERNELS_H
#define NKV_KERNELS_KERNELS_H

#include <nearkv/types.h>

/* Pages of one KV head and rows of queries that attend to them; see `attend` below. */
struct nkv_attend {
    uint32_t n_rows;   /* query rows: (query token, query head of this KV head's group) */
    uint32_t n_tokens; /* tokens of this page that exist, 1.. */
    uint32_t dim;
    const float *q;          /* [n_rows][dim], already multiplied by the scale */
    const void *prepared;    /* what the table's `prepare` made of q; NULL: attend does it again for every page */
    const uint32_t *visible; /* [n_rows]: a row sees tokens 0..visible-1 (0: none); NULL: all see all */
    const void *k, *v;
    const float *k_scale, *v_scale; /* q8_0 only */
    /*
     * Hints: where a page lies that the caller folds soon, every page being named once (n_tokens tokens of it are
     * assumed). The kernel prefetches it while it computes, so that memory never waits at a page's end. Any of them may
     * be NULL, e.g. for the last page.
     */
    const void *next_k, *next_v;
    const float *next_k_scale, *next_v_scale; /* q8_0 only */
    float *o;                                 /* [n_rows][dim], in and out */
    float *m, *l;                             /* [n_rows], in and out */
    void *scratch; /* nkv_attend_scratch_bytes(n_rows, page_tokens, dim) bytes, 64-byte aligned */
};

struct nkv_kernels {
    const char *name; /* "ref", "avx2", "avx512" */

    /* sum_i a[i] * b[i]; b in the table's type (index NKV_Q8_0: unused, NULL). */
    float (*dot[NKV_DTYPE_COUNT])(size_t n, const float *a, const void *b);

    /*
     * Page scores of one KV head. Summing sum_d max(q_d lo_d, q_d hi_d) over query rows collapses to
     *   score[p] = sum_d q_pos[d] hi[p][d] + q_neg[d] lo[p][d],   q_pos = sum_rows max(q, 0), q_neg = sum_rows min(q,
     * 0), so that a page costs the same for one row and for a block of rows. (Exact when lo <= hi.) With `add` the
     * scores are added to what scores[] holds (for the sum over KV heads). Index NKV_Q8_0 is NULL: digests are never
     * q8_0.
     */
    void (*score[NKV_DTYPE_COUNT])(size_t n_pages, size_t dim, const float *q_pos, const float *q_neg,
                                   const void *digest, bool add, float *scores);

    /*
     * Folds one page into the partials of n_rows rows. Fast for both shapes that occur: few rows (decode: the
     * group's query heads, memory bound) and many rows (prefill: a block of query tokens, arithmetic bound).
     * -inf scores weigh 0 (a row that saw only -inf has l = 0). A token whose score is NaN or +inf makes its row NaN:
     * l and all of o are NaN and stay so through any later attend, merge and finish (m is then unspecified).
     * Elements of k and v at or beyond n_tokens are never used, whatever they hold; a token that a row does not see
     * weighs 0 in it, provided that its k and v are finite.
     */
    void (*attend[NKV_DTYPE_COUNT])(const struct nkv_attend *a);

    /*
     * Brings queries into the form that attend wants, once for all pages: row r of q [n_rows][dim] becomes the
     * nkv_prepared_row_bytes(dim) bytes at out + r * that; out is 64-byte aligned. NULL where attend wants nothing.
     * attend gives the same bits with and without it.
     */
    void (*prepare[NKV_DTYPE_COUNT])(size_t n_rows, size_t dim, const float *q, void *out);

    /* Folds partial b into partial a, row by row: o [n_rows][dim], m and l [n_rows]. */
    void (*merge)(size_t n_rows, size_t dim, float *o_a, float *m_a, float *l_a, const float *o_b, const float *m_b,
                  const float *l_b);

    /* out = o / l, row by row; rows with l = 0 become 0. out may be o. */
    void (*finish)(size_t n_rows, size_t dim, const float *o, const float *l, float *out);

    /*
     * f32 rows to cache elements (round to nearest even; q8_0: scale = max|x|/127 per row) and back. scale [n_rows] is
     * used by q8_0 only, NULL otherwise. Row strides are dim elements on both sides. NaN stays NaN; a q8_0 row that
     * holds a NaN or an infinity becomes NaN as a whole (scale NaN, elements 0).
     */
    void (*store[NKV_DTYPE_COUNT])(size_t n_rows, size_t dim, const float *x, void *out, float *scale_out);
    void (*load[NKV_DTYPE_COUNT])(size_t n_rows, size_t dim, const void *x, const float *scale, float *out);

    /*
     * Weights times vectors: y[b][r] = sum_c w[r][c] x[b][c] for rows r0 <= r < r1. w [.][n_cols] row major in the
     * table's type (q8_0: GGUF blocks, n_cols a multiple of 32); x [n_batch][n_cols]; y [n_batch][ldy]. Reads each
     * weight once for n_batch <= 8 (any n_batch is right).
     */
    void (*matvec[NKV_DTYPE_COUNT])(const void *w, size_t n_cols, size_t r0, size_t r1, size_t n_batch, const float *x,
                                    float *y, size_t ldy);

    /* The sum of bytes / 8 words, bytes a multiple of 4096: reads memory as fast as it can be (nkv_read_bandwidth). */
    uint64_t (*read)(size_t bytes, const void *memory);

    /* The work of nkv_digest_build below, by the type of k. */
    void (*digest[NKV_DTYPE_COUNT])(enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k,
                                    const float *k_scale, void *digest_out);
};

/* Bytes of scratch that `attend` needs in any table. */
size_t nkv_attend_scratch_bytes(uint32_t n_rows, uint32_t page_tokens, uint32_t dim);

/* Bytes of a row that `prepare` made, in any table: a multiple of 64. */
size_t nkv_prepared_row_bytes(uint32_t dim);

/* The table in use. Thread safe. Never NULL. A name in NEARKV_KERNELS that this CPU or build lacks counts as "auto". */
const struct nkv_kernels *nkv_kernels(void);
/* The table called name, whether in use or not. returns: NULL when this CPU or build lacks it. */
const struct nkv_kernels *nkv_kernels_find(const char *name);
/* Makes name ("auto": the best) the table in use. returns: 0 or NKV_ENOTSUP naming the tables that exist here. */
int nkv_kernels_use(const char *name);

/* Bytes of n elements of a cache row / weight row (q8_0 differs: see enum nkv_dtype). */
size_t nkv_kv_row_bytes(enum nkv_dtype dtype, size_t dim); /* scales not included */
size_t nkv_weight_row_bytes(enum nkv_dtype dtype, size_t n);

/* Element type of digests for a cache type: its own; bf16 for q8_0. */
enum nkv_dtype nkv_digest_dtype(enum nkv_dtype kv);

/*
 * Builds the digest of a full page of one KV head from its cache elements. digest_out [2][dim] in
 * nkv_digest_dtype(dtype). minmax is rounded outwards (lo down, hi up), so that a score is never below the best dot
 * product in the page (up to the rounding of the score's own sum). NaN elements do not count for min and max.
 */
void nkv_digest_build(enum nkv_digest kind, enum nkv_dtype dtype, size_t n_tokens, size_t dim, const void *k,
                      const float *k_scale, void *digest_out);

/*
 * The k best of n scores, exactly: ids_out[0..k-1] in descending order of score, ties to the lower id; NaN ranks as
 * -inf. ids_out holds ids base, base+1, .. (id = base + index). k is clipped to n. No allocation: scratch [n] uint32_t.
 * returns: the number of ids written.
 */
uint32_t nkv_topk(const float *scores, uint32_t n, uint32_t k, uint32_t base, uint32_t *scratch, uint32_t *ids_out);

/* One-element conversions, the reference's definition of rounding (nearest even). */
float nkv_f16_to_f32(uint16_t x);
uint16_t nkv_f32_to_f16(float x);
float nkv_bf16_to_f32(uint16_t x);
uint16_t nkv_f32_to_bf16(float x);

#endif
