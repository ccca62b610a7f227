/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/vec_merge.h: merge and finish over vec (included once per instruction set, after its *_vec.h). One
 * exponential per row and side, so libm's is good enough; the rows are what costs.
 */
INLINE void merge_row(size_t dim, float *o_a, float weight_a, const float *o_b, float weight_b)
{
    vec a = vec_set1(weight_a), b = vec_set1(weight_b);
    size_t d = 0;
    for (; d + LANES <= dim; d += LANES)
        vec_store(NKV_F32, o_a, d, vec_fma(a, vec_load(NKV_F32, o_a, d), vec_mul(b, vec_load(NKV_F32, o_b, d))));
    if (d < dim) {
        vec x = vec_load_part(NKV_F32, o_a, d, dim - d), y = vec_load_part(NKV_F32, o_b, d, dim - d);
        vec_store_part(NKV_F32, o_a, d, dim - d, vec_fma(a, x, vec_mul(b, y)));
    }
}

static void merge(size_t n_rows, size_t dim, float *o_a, float *m_a, float *l_a, const float *o_b, const float *m_b,
                  const float *l_b)
{
    for (size_t r = 0; r < n_rows; r++) {
        float m = m_a[r] >= m_b[r] || isnan(m_a[r]) ? m_a[r] : m_b[r];
        float weight_a = m == -INFINITY ? 1 : expf(m_a[r] - m); /* see the reference */
        float weight_b = m == -INFINITY ? 1 : expf(m_b[r] - m);
        merge_row(dim, o_a + r * dim, weight_a, o_b + r * dim, weight_b);
        l_a[r] = weight_a * l_a[r] + weight_b * l_b[r];
        m_a[r] = m;
    }
}

static void finish(size_t n_rows, size_t dim, const float *o, const float *l, float *out)
{
    for (size_t r = 0; r < n_rows; r++) {
        float inverse = l[r] == 0 ? 0 : 1 / l[r];
        vec scale = vec_set1(inverse);
        size_t d = 0;
        for (; d + LANES <= dim; d += LANES)
            vec_store(NKV_F32, out, r * dim + d, vec_mul(scale, vec_load(NKV_F32, o, r * dim + d)));
        if (d < dim)
            vec_store_part(NKV_F32, out, r * dim + d, dim - d,
                           vec_mul(scale, vec_load_part(NKV_F32, o, r * dim + d, dim - d)));
    }
}

static void install_merge(struct nkv_kernels *kernels)
{
    kernels->merge = merge;
    kernels->finish = finish;
}
