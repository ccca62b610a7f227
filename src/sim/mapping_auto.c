/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mapping auto: the runtime chooses for each sequence, when it opens, one device or all of them. The requests of a
 * simulated batch are equal, so its policy (policy/place.h) is asked for one after the other, with the loads and the
 * room that the ones before have left, and the batch is simulated in the mapping that most of them get: dp, or cp over
 * all devices; at equal numbers dp, which needs no messages. Where that has no room for the batch it is the other.
 *
 * Invariant: what the policy is told of a request (bytes read per step, bytes held) is what the runtime would tell it
 * of one with the same shape, mode, length and budget, in the simulated layers.
 *
 * Rejected: simulating the mix. dp is the runtime on simulated devices and cp a model without it: they have no common
 * engine queue. How many requests the policy would have put elsewhere is reported instead.
 */
#include "policy/place.h"
#include "sim/mapping.h"

struct choice {
    const struct nkv_sim_config *config;
    struct sim_work whole, part; /* one request, on one device and over all */
    bool fits;                   /* on one device */
    uint32_t n_devices, n_whole, n_spread;
    uint64_t *loads, *free_bytes;
};

static int size_as(const struct choice *c, enum nkv_sim_mapping mapping, struct nkv_sim_config *config,
                   struct sim_work *work_out)
{
    *config = *c->config;
    config->mapping = mapping;
    config->batch = 1;
    return sim_work_size(config, NULL, work_out);
}

/* A request that is larger than a device leaves the policy no choice; what else is wrong, cp's sizes have, too. */
static int size_both(struct choice *c, struct nkv_sim_config configs[2])
{
    int status;

    if (c->config->mapping_group > 1)
        FAIL(NKV_EINVAL, "groups of %u devices with mapping auto, which spreads a request over all or none: use cp",
             c->config->mapping_group);
    TRY(size_as(c, NKV_SIM_CP, &configs[1], &c->part));
    status = size_as(c, NKV_SIM_DP, &configs[0], &c->whole);
    c->fits = status == 0;
    c->n_devices = c->part.n_devices;
    return status == NKV_ENOSPC ? 0 : status;
}

static struct nkv_share share_of(const struct choice *c, bool spread)
{
    const struct sim_work *w = &c->part;
    const struct nkv_step_work work = {.mode = c->config->mode,
                                       .n_layers = w->shape.n_layers,
                                       .n_tokens = w->max_tokens,
                                       .budget_tokens = w->budget_tokens,
                                       .page_tokens = w->shape.page_tokens,
                                       .page_bytes = nkv_page_bytes(&w->shape, w->shape.n_kv_heads),
                                       .digest_bytes = w->shape.n_kv_heads * nkv_digest_bytes(&w->shape)};

    if (spread)
        return (struct nkv_share){w->request_bytes, nkv_spread_bytes(&work, c->n_devices)};
    return (struct nkv_share){c->fits ? c->whole.request_bytes : UINT64_MAX, nkv_step_bytes(&work)};
}

static void put(struct choice *c, uint32_t device, const struct nkv_share *share)
{
    c->loads[device] += share->load;
    c->free_bytes[device] -= share->need_bytes;
}

/* Requests as they come, until all are placed or, in a batch as large as possible, none has room. */
static void place_all(struct choice *c)
{
    struct nkv_share whole = share_of(c, false), part = share_of(c, true);
    uint32_t most = c->config->batch ? c->config->batch : SIM_BATCH_MAX;

    for (uint32_t i = 0; i < c->n_devices; i++)
        c->free_bytes[i] = c->part.device_bytes;
    while (c->n_whole + c->n_spread < most) {
        int device = nkv_place_or_spread(c->loads, c->free_bytes, c->n_devices, &whole, &part);

        if (device < 0)
            return;
        c->n_whole += device < (int)c->n_devices;
        c->n_spread += device == (int)c->n_devices;
        if (device < (int)c->n_devices)
            put(c, (uint32_t)device, &whole);
        for (uint32_t i = 0; device == (int)c->n_devices && i < c->n_devices; i++)
            put(c, i, &part);
    }
}

static enum nkv_sim_mapping most_get(const struct choice *c)
{
    uint64_t n_dp = c->fits ? c->n_devices * (c->whole.device_bytes / c->whole.request_bytes) : 0;
    uint64_t n_cp = c->part.device_bytes / c->part.request_bytes, batch = c->config->batch ? c->config->batch : 1;

    if (n_dp < batch || n_cp < batch)
        return n_cp > n_dp ? NKV_SIM_CP : NKV_SIM_DP;
    return c->n_spread > c->n_whole ? NKV_SIM_CP : NKV_SIM_DP;
}

int sim_mapping_choose(const struct nkv_sim_config *config, struct sim_mapping_choice *choice_out)
{
    struct nkv_sim_config configs[2];
    struct choice c = {.config = config};
    int status;

    TRY(size_both(&c, configs));
    status = nkv_alloc(c.n_devices, sizeof *c.loads, &c.loads);
    if (status == 0)
        status = nkv_alloc(c.n_devices, sizeof *c.free_bytes, &c.free_bytes);
    if (status == 0) {
        place_all(&c);
        *choice_out = (struct sim_mapping_choice){most_get(&c), c.n_whole, c.n_spread};
    }
    nkv_free(c.loads);
    nkv_free(c.free_bytes);
    return status;
}
