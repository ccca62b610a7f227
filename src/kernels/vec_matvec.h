/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/vec_matvec.h: weights times vectors over vec, and the reading of memory that its rate is held against
 * (included once per instruction set, after its *_vec.h).
 *
 * Bound by memory for one vector, so weights are widened to f32 in registers (one rounding per product and sum, no
 * quantised x). A group of rows is walked side by side, a block of columns at a time, so that each load of x serves
 * them all; more than VECTORS vectors take the group again from the cache. Memory itself is read strictly in order, by
 * prefetching the next group line by line while this one is computed: rows that are walked as streams of their own
 * reach half of that rate, because the hardware's prefetchers begin anew in every 4 KB.
 *
 * Every (row, vector) has two sums and one order of adding, whatever the group and the batch, so that splitting the
 * work changes no bit and a sequence gets the same numbers alone as in a batch.
 */
enum { VECTORS = 4, BLOCK = 32, BLOCK_VECS = BLOCK / LANES, SUMS = 2, MAX_ROWS = 4, NEAR_BYTES = 16384 };

INLINE void load_weights(enum nkv_dtype dtype, const char *row, size_t c, vec w[BLOCK_VECS])
{
    if (dtype == NKV_Q8_0) {
        vec_load_block(row + c / BLOCK * 34, w);
        return;
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < BLOCK_VECS; i++)
        w[i] = vec_load(dtype, row, c + i * LANES);
}

/* The columns behind the last whole block (none in q8_0). */
INLINE void add_tail(enum nkv_dtype dtype, const char *row, const float *x, size_t c, size_t n_cols, vec *sum)
{
    for (; c + LANES <= n_cols; c += LANES)
        *sum = vec_fma(vec_load(dtype, row, c), vec_load(NKV_F32, x, c), *sum);
    if (c < n_cols)
        *sum = vec_fma(vec_load_part(dtype, row, c, n_cols - c), vec_load_part(NKV_F32, x, c, n_cols - c), *sum);
}

/* Into L1 when the whole group fits there beside the vector, else into L2. */
INLINE void prefetch_block(size_t block_bytes, uintptr_t address, bool near)
{
    for (size_t i = 0; i < block_bytes; i += 64)
        if (near)
            __builtin_prefetch((const void *)(address + i), 0, 3);
        else
            __builtin_prefetch((const void *)(address + i), 0, 2);
}

INLINE void rows_times_vectors(enum nkv_dtype dtype, size_t n_rows, size_t n_vectors, const char *w, size_t n_cols,
                               const float *x, float *y, size_t ldy)
{
    vec sums[MAX_ROWS][VECTORS][SUMS];
    size_t row_bytes = nkv_weight_row_bytes(dtype, n_cols), c = 0;
    size_t block_bytes = dtype == NKV_Q8_0 ? 34 : dtype == NKV_F32 ? 128 : 64;
    uintptr_t next = (uintptr_t)w + n_rows * row_bytes; /* may lie behind the end: only prefetched */
    bool near = n_vectors == 1 && n_rows * row_bytes <= NEAR_BYTES;
#pragma GCC unroll 4
    for (size_t r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (size_t b = 0; b < n_vectors; b++)
            sums[r][b][0] = sums[r][b][1] = vec_set1(0);
    for (; c + BLOCK <= n_cols; c += BLOCK) {
        uintptr_t ahead = next + n_rows * (c / BLOCK) * block_bytes;
#pragma GCC unroll 4
        for (size_t r = 0; r < n_rows; r++) {
            vec weights[BLOCK_VECS];
            prefetch_block(block_bytes, ahead + r * block_bytes, near);
            load_weights(dtype, w + r * row_bytes, c, weights);
#pragma GCC unroll 4
            for (size_t b = 0; b < n_vectors; b++)
#pragma GCC unroll 4
                for (size_t i = 0; i < BLOCK_VECS; i++)
                    sums[r][b][i % SUMS] =
                        vec_fma(weights[i], vec_load(NKV_F32, x + b * n_cols, c + i * LANES), sums[r][b][i % SUMS]);
        }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (size_t b = 0; b < n_vectors; b++) {
            if (dtype != NKV_Q8_0)
                add_tail(dtype, w + r * row_bytes, x + b * n_cols, c, n_cols, &sums[r][b][0]);
            y[b * ldy + r] = vec_sum(vec_add(sums[r][b][0], sums[r][b][1]));
        }
}

/* Rows r.. of one group times all vectors. */
INLINE void group_times_batch(enum nkv_dtype dtype, size_t n_rows, const char *w, size_t n_cols, size_t n_batch,
                              const float *x, float *y, size_t ldy)
{
    size_t b = 0;
    for (; b + VECTORS <= n_batch; b += VECTORS)
        rows_times_vectors(dtype, n_rows, VECTORS, w, n_cols, x + b * n_cols, y + b * ldy, ldy);
    for (; b < n_batch; b++)
        rows_times_vectors(dtype, n_rows, 1, w, n_cols, x + b * n_cols, y + b * ldy, ldy);
}

INLINE void groups_times_batch(enum nkv_dtype dtype, size_t n_rows, const void *w, size_t n_cols, size_t r0, size_t r1,
                               size_t n_batch, const float *x, float *y, size_t ldy)
{
    size_t row_bytes = nkv_weight_row_bytes(dtype, n_cols), r = r0;
    const char *row = (const char *)w + r0 * row_bytes;
    for (; r + n_rows <= r1; r += n_rows, row += n_rows * row_bytes)
        group_times_batch(dtype, n_rows, row, n_cols, n_batch, x, y + r, ldy);
    for (; r < r1; r++, row += row_bytes)
        group_times_batch(dtype, 1, row, n_cols, n_batch, x, y + r, ldy);
}

INLINE void matvec(enum nkv_dtype dtype, const void *w, size_t n_cols, size_t r0, size_t r1, size_t n_batch,
                   const float *x, float *y, size_t ldy)
{
    enum { BATCH_ROWS = LANES / 8 }; /* 2 x 4 x 2 sums take half of AVX-512's registers; AVX2 has room for one row */
    if (n_batch < VECTORS)
        groups_times_batch(dtype, MAX_ROWS, w, n_cols, r0, r1, n_batch, x, y, ldy);
    else
        groups_times_batch(dtype, BATCH_ROWS, w, n_cols, r0, r1, n_batch, x, y, ldy);
}

static void matvec_f32(const void *w, size_t n_cols, size_t r0, size_t r1, size_t n_batch, const float *x, float *y,
                       size_t ldy)
{
    matvec(NKV_F32, w, n_cols, r0, r1, n_batch, x, y, ldy);
}

static void matvec_f16(const void *w, size_t n_cols, size_t r0, size_t r1, size_t n_batch, const float *x, float *y,
                       size_t ldy)
{
    matvec(NKV_F16, w, n_cols, r0, r1, n_batch, x, y, ldy);
}

static void matvec_bf16(const void *w, size_t n_cols, size_t r0, size_t r1, size_t n_batch, const float *x, float *y,
                        size_t ldy)
{
    matvec(NKV_BF16, w, n_cols, r0, r1, n_batch, x, y, ldy);
}

static void matvec_q8_0(const void *w, size_t n_cols, size_t r0, size_t r1, size_t n_batch, const float *x, float *y,
                        size_t ldy)
{
    matvec(NKV_Q8_0, w, n_cols, r0, r1, n_batch, x, y, ldy);
}

static uint64_t read_words(size_t bytes, const void *memory)
{
    return vec_sum_words(bytes, memory);
}

static void install_matvec(struct nkv_kernels *kernels)
{
    kernels->matvec[NKV_F32] = matvec_f32;
    kernels->matvec[NKV_F16] = matvec_f16;
    kernels->matvec[NKV_BF16] = matvec_bf16;
    kernels->matvec[NKV_Q8_0] = matvec_q8_0;
    kernels->read = read_words;
}
