/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes and FLOPs of a command: functions of the command and the shape alone, so that what is charged is what was
 * planned. A multiply and an add are two FLOPs; a page's bytes are those of the cache's element type.
 */
#include "sim/cluster.h"

/* K and V of one token in one layer, all KV heads. */
static double token_bytes(const struct nkv_kv_shape *shape)
{
    return (double)nkv_page_bytes(shape, shape->n_kv_heads) / shape->page_tokens;
}

static double rows(const struct nkv_kv_shape *shape, uint32_t n_tokens, uint32_t n_heads)
{
    return (double)n_tokens * n_heads * shape->head_dim;
}

/* Writes K and V; a full page's digest is a minimum and a maximum per element of K. */
struct sim_cost sim_cost_append(const struct nkv_kv_shape *shape, uint32_t n_tokens)
{
    double digest = (double)nkv_digest_bytes(shape) * shape->n_kv_heads / shape->page_tokens;

    return (struct sim_cost){.bytes = n_tokens * (token_bytes(shape) + digest),
                             .flops = 2 * rows(shape, n_tokens, shape->n_kv_heads)};
}

struct sim_cost sim_cost_score(const struct nkv_kv_shape *shape, uint32_t n_tokens, double n_pages, double score_flops)
{
    return (struct sim_cost){.bytes = n_pages * (double)nkv_digest_bytes(shape) * shape->n_kv_heads,
                             .flops = n_pages * score_flops * rows(shape, n_tokens, shape->n_heads)};
}

struct sim_cost sim_cost_attend(const struct nkv_kv_shape *shape, uint32_t n_tokens, double tokens)
{
    return (struct sim_cost){.bytes = tokens * token_bytes(shape),
                             .flops = 4 * tokens * rows(shape, n_tokens, shape->n_heads),
                             .exps = tokens * n_tokens * shape->n_heads};
}

double sim_bytes_kv(const struct nkv_kv_shape *shape, const struct sim_values *values, uint32_t n_tokens)
{
    return 2 * rows(shape, n_tokens, shape->n_kv_heads) * values->link.element_bytes;
}

double sim_bytes_q(const struct nkv_kv_shape *shape, const struct sim_values *values, uint32_t n_tokens)
{
    return rows(shape, n_tokens, shape->n_heads) * values->link.element_bytes;
}

/* Outputs in the link's element type, maxima and sums in f32. */
double sim_bytes_partials(const struct nkv_kv_shape *shape, const struct sim_values *values, uint32_t n_tokens)
{
    return rows(shape, n_tokens, shape->n_heads) * values->link.element_bytes + 8.0 * n_tokens * shape->n_heads;
}
