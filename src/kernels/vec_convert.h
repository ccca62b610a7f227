/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/vec_convert.h: store, load and digest over vec (included once per instruction set, after its *_vec.h). The
 * bits are the reference's, quotients of q8_0 included; only the sum in cuboid-mean may round otherwise.
 */
INLINE void store_plain(enum nkv_dtype dtype, size_t n, const float *x, void *out)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vec_store(dtype, out, i, vec_load(NKV_F32, x, i));
    if (i < n)
        vec_store_part(dtype, out, i, n - i, vec_load_part(NKV_F32, x, i, n - i));
}

static void store_f16(size_t n_rows, size_t dim, const float *x, void *out, float *scale_out)
{
    (void)scale_out;
    store_plain(NKV_F16, n_rows * dim, x, out);
}

static void store_bf16(size_t n_rows, size_t dim, const float *x, void *out, float *scale_out)
{
    (void)scale_out;
    store_plain(NKV_BF16, n_rows * dim, x, out);
}

/* The largest magnitude; NaN when an element is NaN or infinite. */
INLINE float row_magnitude(size_t dim, const float *x)
{
    vec max = vec_set1(0);
    float lanes[LANES], largest = 0;
    size_t d = 0;
    for (; d + LANES <= dim; d += LANES)
        max = vec_max_magnitude(max, vec_load(NKV_F32, x, d));
    if (d < dim)
        max = vec_max_magnitude(max, vec_load_part(NKV_F32, x, d, dim - d));
    vec_store(NKV_F32, lanes, 0, max);
    for (size_t i = 0; i < LANES; i++) {
        if (!isfinite(lanes[i]))
            return NAN;
        largest = lanes[i] > largest ? lanes[i] : largest;
    }
    return largest;
}

INLINE vec quantize(vec x, vec scale)
{
    return vec_min(vec_max(vec_div(x, scale), vec_set1(-127)), vec_set1(127));
}

static void store_q8_0(size_t n_rows, size_t dim, const float *x, void *out, float *scale_out)
{
    int8_t *y = out;
    for (size_t r = 0; r < n_rows; r++, x += dim, y += dim) {
        float scale = scale_out[r] = row_magnitude(dim, x) / 127;
        size_t d = 0;
        if (!(scale > 0)) {
            memset(y, 0, dim);
            continue;
        }
        for (; d + LANES <= dim; d += LANES)
            vec_store(NKV_Q8_0, y, d, quantize(vec_load(NKV_F32, x, d), vec_set1(scale)));
        if (d < dim)
            vec_store_part(NKV_Q8_0, y, d, dim - d, quantize(vec_load_part(NKV_F32, x, d, dim - d), vec_set1(scale)));
    }
}

INLINE void load_row(enum nkv_dtype dtype, size_t n, const void *x, vec scale, float *out)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vec_store(NKV_F32, out, i, vec_mul(scale, vec_load(dtype, x, i)));
    if (i < n)
        vec_store_part(NKV_F32, out, i, n - i, vec_mul(scale, vec_load_part(dtype, x, i, n - i)));
}

static void load_f16(size_t n_rows, size_t dim, const void *x, const float *scale, float *out)
{
    (void)scale;
    load_row(NKV_F16, n_rows * dim, x, vec_set1(1), out);
}

static void load_bf16(size_t n_rows, size_t dim, const void *x, const float *scale, float *out)
{
    (void)scale;
    load_row(NKV_BF16, n_rows * dim, x, vec_set1(1), out);
}

static void load_q8_0(size_t n_rows, size_t dim, const void *x, const float *scale, float *out)
{
    for (size_t r = 0; r < n_rows; r++)
        load_row(NKV_Q8_0, dim, (const int8_t *)x + r * dim, vec_set1(scale[r]), out + r * dim);
}

/* n <= LANES columns from d on of token t, q8_0 scaled. */
INLINE vec load_columns(enum nkv_dtype dtype, const void *k, const float *k_scale, size_t dim, size_t t, size_t d,
                        size_t n)
{
    vec x = n == LANES ? vec_load(dtype, k, t * dim + d) : vec_load_part(dtype, k, t * dim + d, n);
    return dtype == NKV_Q8_0 ? vec_mul(vec_set1(k_scale[t]), x) : x;
}

INLINE void digest_columns(enum nkv_dtype dtype, enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k,
                           const float *k_scale, size_t d, size_t n, void *digest_out)
{
    vec lo = vec_set1(INFINITY), hi = vec_set1(-INFINITY);
    for (size_t t = 0; t < n_tokens; t++) {
        vec x = load_columns(dtype, k, k_scale, dim, t, d, n);
        lo = vec_min(x, lo);
        hi = vec_max(x, hi);
    }
    if (kind == NKV_DIGEST_CUBOID_MEAN) {
        vec center = vec_mul(vec_set1(0.5f), lo), distance = vec_set1(0);
        center = vec_add(center, vec_mul(vec_set1(0.5f), hi));
        for (size_t t = 0; t < n_tokens; t++)
            distance = vec_add(distance, vec_abs(vec_sub(load_columns(dtype, k, k_scale, dim, t, d, n), center)));
        vec radius = vec_div(distance, vec_set1((float)n_tokens));
        lo = vec_sub(center, radius);
        hi = vec_add(center, radius);
    } else if (dtype == NKV_Q8_0) {
        lo = vec_neg(vec_bf16_up(vec_neg(lo)));
        hi = vec_bf16_up(hi);
    }
    enum nkv_dtype type = dtype == NKV_Q8_0 ? NKV_BF16 : dtype;
    if (n == LANES) {
        vec_store(type, digest_out, d, lo);
        vec_store(type, digest_out, dim + d, hi);
    } else {
        vec_store_part(type, digest_out, d, n, lo);
        vec_store_part(type, digest_out, dim + d, n, hi);
    }
}

INLINE void digest(enum nkv_dtype dtype, enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k,
                   const float *k_scale, void *digest_out)
{
    size_t d = 0;
    for (; d + LANES <= dim; d += LANES)
        digest_columns(dtype, kind, n_tokens, dim, k, k_scale, d, LANES, digest_out);
    if (d < dim)
        digest_columns(dtype, kind, n_tokens, dim, k, k_scale, d, dim - d, digest_out);
}

static void digest_f32(enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k, const float *k_scale,
                       void *digest_out)
{
    digest(NKV_F32, kind, n_tokens, dim, k, k_scale, digest_out);
}

static void digest_f16(enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k, const float *k_scale,
                       void *digest_out)
{
    digest(NKV_F16, kind, n_tokens, dim, k, k_scale, digest_out);
}

static void digest_bf16(enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k, const float *k_scale,
                        void *digest_out)
{
    digest(NKV_BF16, kind, n_tokens, dim, k, k_scale, digest_out);
}

static void digest_q8_0(enum nkv_digest kind, size_t n_tokens, size_t dim, const void *k, const float *k_scale,
                        void *digest_out)
{
    digest(NKV_Q8_0, kind, n_tokens, dim, k, k_scale, digest_out);
}

static void install_convert(struct nkv_kernels *kernels)
{
    kernels->store[NKV_F16] = store_f16;
    kernels->store[NKV_BF16] = store_bf16;
    kernels->store[NKV_Q8_0] = store_q8_0;
    kernels->load[NKV_F16] = load_f16;
    kernels->load[NKV_BF16] = load_bf16;
    kernels->load[NKV_Q8_0] = load_q8_0;
    kernels->digest[NKV_F32] = digest_f32;
    kernels->digest[NKV_F16] = digest_f16;
    kernels->digest[NKV_BF16] = digest_bf16;
    kernels->digest[NKV_Q8_0] = digest_q8_0;
}
