/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What follows from a configuration before anything runs: groups, capacities, budget, batch, resident pages.
 *
 * A few layers stand for all. Layers are alike, so the devices are given the same share of their capacity, and
 * admission, which counts bytes, takes the same requests as it would with all layers.
 *
 *   GPU pool = GPUs x capacity x usable - weights
 *   recall   batch = pool / (budget + open page + digests of the context)          (the paper: T_budget B <= |P|);
 *            the plain memory behind is never what limits it
 *   pnm      batch = devices x floor(device capacity / request)
 *   png      the same, and resident tokens = min(steady x budget, pool / batch)    (the paper: T_steady B <= |P|)
 */
#include "sim/work.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "sim/model.h"

#define STREAM_PAGES 16384u
#define SIM_GPUS_MAX 4096u

double sim_layer_parameters(const struct nkv_sim_model *m)
{
    double head = (double)m->vocab * m->hidden;

    return ((double)nkv_sim_model_parameters(m) - head) / m->n_layers;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static int check_range(const char *what, double value, double low, double high)
{
    if (!(value >= low && value <= high))
        FAIL(NKV_EINVAL, "%s is %g: it must be from %g to %g", what, value, low, high);
    return 0;
}

static int check_mapping(const struct nkv_sim_config *c)
{
    const char *name = nkv_sim_mapping_name(c->mapping);

    if ((unsigned)c->mapping >= NKV_SIM_MAPPING_COUNT)
        FAIL(NKV_EINVAL, "mapping is %d: it must be below %d", (int)c->mapping, NKV_SIM_MAPPING_COUNT);
    if (c->mapping == NKV_SIM_DP && c->mapping_group > 1)
        FAIL(NKV_EINVAL, "groups of %u devices with mapping dp, which has each sequence on one: use tp or cp",
             c->mapping_group);
    if (c->mapping == NKV_SIM_DP)
        return 0;
    if (c->n_pnm == 0)
        FAIL(NKV_EINVAL, "mapping %s spreads sequences over PNM devices: give at least one", name);
    if (c->mode == NKV_MODE_RECALL)
        FAIL(NKV_EINVAL,
             "mapping %s in mode recall, whose plain memory is interleaved: it is modelled in modes pnm, "
             "png and full",
             name);
    if (c->trace || c->micro_batches != 1 || c->digest_levels != 1 || c->in_flight_prefill)
        FAIL(NKV_EINVAL,
             "mapping %s with a trace, two micro-batches, two digest levels or prompts in flight: these "
             "are simulated with mapping dp only",
             name);
    return 0;
}

static int check_config(const struct nkv_sim_config *c)
{
    if (c->size != sizeof *c)
        FAIL(NKV_EINVAL, "nkv_sim_config.size is %u: it must be %zu", c->size, sizeof *c);
    if (!c->machine)
        FAIL(NKV_EINVAL, "no machine");
    if ((unsigned)c->mode >= NKV_MODE_COUNT)
        FAIL(NKV_EINVAL, "mode is %d: it must be below %d", (int)c->mode, NKV_MODE_COUNT);
    TRY(check_range("context", c->context_tokens, 64, 1u << 28));
    TRY(check_range("GPUs", c->n_gpus, 1, SIM_GPUS_MAX));
    TRY(check_range("PNM devices", c->n_pnm, 0, 8192));
    TRY(check_range("batch", c->batch, 0, SIM_BATCH_MAX));
    TRY(check_range("page tokens", c->page_tokens, 1, NKV_MAX_PAGE_TOKENS));
    TRY(check_range("micro-batches", c->micro_batches, 1, 2));
    TRY(check_range("digest levels", c->digest_levels, 1, 2));
    TRY(check_range("bytes per weight", c->weight_bytes, 0.25, 4));
    TRY(check_range("steps", c->n_steps, 1, 10000));
    TRY(check_range("simulated layers", c->n_layers, 1, NKV_MAX_LAYERS));
    TRY(check_range("output tokens", c->output_tokens, 0, 1u << 28));
    TRY(check_range("streams", c->n_streams, 0, 4096));
    if (!isnan(c->steady) && c->steady != -1)
        TRY(check_range("steady share", c->steady, 0, 1));
    if ((unsigned)c->kv_dtype >= NKV_DTYPE_COUNT)
        FAIL(NKV_EINVAL, "KV type is %d: it must be below %d", (int)c->kv_dtype, NKV_DTYPE_COUNT);
    if (c->in_flight_prefill && c->output_tokens == 0)
        FAIL(NKV_EINVAL, "prompts in flight with output tokens 0: say how many tokens a request generates");
    TRY(check_mapping(c));
    if (c->n_pnm == 0 && (c->mode == NKV_MODE_RECALL || c->mode == NKV_MODE_PNG))
        FAIL(NKV_EINVAL, "mode %s needs PNM devices (or plain memory cards): give at least one",
             nkv_mode_name(c->mode));
    return 0;
}

/* GPUs of a group when there are n_gpus. */
static uint32_t group_of(const struct sim_work *w, uint32_t n_gpus)
{
    return w->config->tp ? w->config->tp : min_u32(n_gpus, (uint32_t)w->values->node.gpus_per_node);
}

static bool splits(const struct sim_work *w, uint32_t n_gpus)
{
    uint32_t group = group_of(w, n_gpus);

    return n_gpus % group == 0 && w->config->model.n_heads % group == 0;
}

static int split_gpus(struct sim_work *w)
{
    const struct nkv_sim_config *c = w->config;

    w->tp = group_of(w, c->n_gpus);
    if (w->tp > c->n_gpus || c->n_gpus % w->tp)
        FAIL(NKV_EINVAL, "%u GPUs do not split into groups of %u", c->n_gpus, w->tp);
    w->pp = c->n_gpus / w->tp;
    if (c->model.n_heads % w->tp)
        FAIL(NKV_EINVAL, "%u heads of %s do not split over %u GPUs", c->model.n_heads, c->model.name, w->tp);
    return 0;
}

/* "1, 2, 4, 8": what a group can be. */
static void list_groups(const struct nkv_sim_config *c, char *list, size_t bytes)
{
    size_t used = 0;

    for (uint32_t g = 1; g <= c->n_pnm && used < bytes; g++)
        if (c->n_pnm % g == 0 && (c->mapping == NKV_SIM_CP || c->model.n_kv_heads % g == 0))
            used += (size_t)snprintf(list + used, bytes - used, "%s%u", used ? ", " : "", g);
}

static int size_group(struct sim_work *w)
{
    const struct nkv_sim_config *c = w->config;
    char list[160] = "";

    w->group = 1;
    if (c->mapping == NKV_SIM_DP)
        return 0;
    w->group = c->mapping_group ? c->mapping_group
                                : min_u32(c->n_pnm, c->mapping == NKV_SIM_TP ? c->model.n_kv_heads : c->n_pnm);
    list_groups(c, list, sizeof list);
    if (c->n_pnm % w->group || (c->mapping == NKV_SIM_TP && c->model.n_kv_heads % w->group))
        FAIL(NKV_EINVAL, "%s over groups of %u of %u PNM devices, %u KV heads: a group can be %s",
             nkv_sim_mapping_name(c->mapping), w->group, c->n_pnm, c->model.n_kv_heads, list);
    return 0;
}

struct nkv_kv_shape sim_work_part(const struct sim_work *w)
{
    struct nkv_kv_shape shape = w->shape;

    if (w->config->mapping == NKV_SIM_TP) {
        shape.n_heads /= w->group;
        shape.n_kv_heads /= w->group;
    }
    return shape;
}

static double weight_bytes(const struct sim_work *w)
{
    const struct nkv_sim_model *m = &w->config->model;
    double embedding = m->tied ? 0 : (double)m->vocab * m->hidden;

    return ((double)nkv_sim_model_parameters(m) + embedding) * w->config->weight_bytes;
}

/* Names the first number of GPUs that has room and splits into groups. */
static int too_few_gpus(const struct sim_work *w, double weights, double one)
{
    const struct nkv_sim_config *c = w->config;
    double least = ceil(weights / one);
    uint32_t n = (uint32_t)fmin(least, SIM_GPUS_MAX + 1.0);

    while (n <= SIM_GPUS_MAX && !splits(w, n))
        n++;
    if (least > SIM_GPUS_MAX)
        FAIL(NKV_ENOSPC, "the weights of %s take %.1f GB, more than %u GPUs have for them", c->model.name,
             weights / 1e9, SIM_GPUS_MAX);
    if (n > SIM_GPUS_MAX)
        FAIL(NKV_ENOSPC,
             "the weights of %s take %.1f GB, %u GPUs have %.1f GB for them: use at least %.0f GPUs, in groups that "
             "split them and %u heads",
             c->model.name, weights / 1e9, c->n_gpus, c->n_gpus * one / 1e9, least, c->model.n_heads);
    FAIL(NKV_ENOSPC, "the weights of %s take %.1f GB, %u GPUs have %.1f GB for them: use at least %u GPUs",
         c->model.name, weights / 1e9, c->n_gpus, c->n_gpus * one / 1e9, n);
}

static int size_memory(struct sim_work *w)
{
    const struct nkv_sim_config *c = w->config;
    double weights = weight_bytes(w), one = w->values->gpu.memory_capacity * w->values->gpu.memory_usable;
    double pool = c->n_gpus * one - weights;

    if (pool < 0)
        return too_few_gpus(w, weights, one);
    w->pool_bytes = (uint64_t)(pool * w->share);
    w->device_bytes = c->n_pnm ? (uint64_t)(w->values->pnm.memory_capacity * w->share) : w->pool_bytes;
    return 0;
}

static int request_bytes(struct sim_work *w)
{
    struct nkv_kv_estimate estimate;
    struct nkv_kv_shape part = sim_work_part(w);
    uint32_t page = w->shape.page_tokens, n_tokens = w->max_tokens;

    if (w->config->mapping == NKV_SIM_CP) /* of the pages, the larger share */
        n_tokens = ((n_tokens + page - 1) / page + w->group - 1) / w->group * page;
    TRY(nkv_kv_estimate(&part, n_tokens, &estimate));
    if (w->config->mode == NKV_MODE_FULL) { /* keeps no digests */
        estimate.total_bytes -= estimate.digest_bytes;
        estimate.digest_bytes = 0;
    }
    w->request_bytes = estimate.total_bytes;
    if (w->config->mode != NKV_MODE_RECALL && w->request_bytes > w->device_bytes)
        FAIL(NKV_ENOSPC,
             "%s of %u tokens takes %.1f GB (pages %.1f, digests %.1f) and %s has %.1f GB: not one fits, %.1f "
             "GB "
             "are missing",
             w->group > 1 ? "a device's part of one request" : "one request", w->max_tokens,
             (double)w->request_bytes / w->share / 1e9, (double)estimate.kv_bytes / w->share / 1e9,
             (double)estimate.digest_bytes / w->share / 1e9,
             w->config->n_pnm ? "a PNM device" : "the GPUs' memory beside the weights",
             (double)w->device_bytes / w->share / 1e9, (double)(w->request_bytes - w->device_bytes) / w->share / 1e9);
    return 0;
}

/* Requests that fit, by arithmetic; the run then asks admission itself. */
static int batch_limit(const struct sim_work *w, uint64_t *batch_out)
{
    uint64_t compute = 0;
    struct nkv_seq_options options;

    *batch_out = w->n_devices / w->group * (w->device_bytes / w->request_bytes);
    if (w->config->mode != NKV_MODE_RECALL)
        return 0;
    nkv_seq_options_init(&options);
    options.mode = NKV_MODE_RECALL;
    options.max_tokens = w->max_tokens;
    options.granularity = w->config->granularity;
    options.budget_tokens = options.resident_tokens = w->budget_tokens;
    TRY(nkv_compute_estimate(&w->shape, &options, &compute));
    *batch_out = compute ? w->pool_bytes / compute : 0;
    return 0;
}

static int size_batch(struct sim_work *w)
{
    const struct nkv_sim_config *c = w->config;
    uint64_t most = 0;

    TRY(batch_limit(w, &most));
    if (most == 0)
        FAIL(NKV_ENOSPC,
             "the GPUs' memory beside the weights is %.1f GB: not one request's budget of %u tokens, with the digests "
             "of its "
             "context, fits; use more GPUs or a smaller budget",
             (double)w->pool_bytes / w->share / 1e9, w->budget_tokens);
    if (c->batch > most)
        FAIL(NKV_ENOSPC, "a batch of %u: at most %llu requests fit", c->batch, (unsigned long long)most);
    w->n_fit = (uint32_t)(most < UINT32_MAX ? most : UINT32_MAX);
    w->batch = c->batch ? c->batch : min_u32(w->n_fit, SIM_BATCH_MAX);
    if (c->mode == NKV_MODE_RECALL) /* plain memory is as large as the GPUs' batch needs */
        w->device_bytes = w->request_bytes * ((w->batch + w->n_devices - 1) / w->n_devices);
    return 0;
}

static void size_slots(struct sim_work *w)
{
    const struct nkv_sim_config *c = w->config;
    uint64_t page_bytes = nkv_page_bytes(&w->shape, w->shape.n_kv_heads) * w->shape.n_layers;
    double share = isnan(c->steady) ? (double)c->n_gpus / (c->n_gpus + c->n_pnm) : c->steady;
    uint64_t pool_pages = w->pool_bytes / w->batch / page_bytes;

    w->n_slots = 0;
    if (c->mode == NKV_MODE_RECALL)
        w->n_slots = w->budget_pages;
    if (c->mode == NKV_MODE_PNG)
        w->n_slots = (uint32_t)fmin(share * w->budget_pages, (double)pool_pages);
}

/* Long contexts average over their own pages. */
static uint32_t default_streams(const struct sim_work *w)
{
    uint32_t n = STREAM_PAGES / (w->max_tokens / w->config->page_tokens + 1);

    return n > 4 ? 4 : n > 1 ? n : 1;
}

/* What the recorded scores are the scores of must be what the run selects from. */
static int match_trace(struct sim_work *w)
{
    const struct nkv_sim_config *c = w->config;
    struct nkv_sim_trace_info info;

    w->sink_pages = w->recent_pages = NKV_DEFAULT;
    if (!w->trace)
        return 0;
    TRY(sim_trace_describe(w->trace, &info));
    if (info.shape.page_tokens != c->page_tokens)
        FAIL(NKV_EINVAL, "pages of %u tokens: %s was recorded with pages of %u, and scores are per page",
             c->page_tokens, c->trace, info.shape.page_tokens);
    if (info.granularity != c->granularity)
        FAIL(NKV_EINVAL, "selection per %s: %s was recorded with selection per %s",
             nkv_granularity_name(c->granularity), c->trace, nkv_granularity_name(info.granularity));
    w->sink_pages = info.sink_pages;
    w->recent_pages = info.recent_pages;
    return 0;
}

int sim_work_size(const struct nkv_sim_config *config, struct sim_trace *trace, struct sim_work *w)
{
    const struct nkv_sim_model *m = &config->model;

    *w = (struct sim_work){.config = config, .trace = trace};
    TRY(check_config(config));
    TRY(sim_machine_check(config->machine));
    TRY(sim_model_check(m));
    TRY(match_trace(w));
    if (config->n_layers > m->n_layers)
        FAIL(NKV_EINVAL, "%u simulated layers, which stand for all: %s has %u", config->n_layers, m->name, m->n_layers);
    w->values = &config->machine->values;
    w->shape = (struct nkv_kv_shape){.n_layers = config->n_layers,
                                     .n_heads = m->n_heads,
                                     .n_kv_heads = m->n_kv_heads,
                                     .head_dim = m->head_dim,
                                     .page_tokens = config->page_tokens,
                                     .dtype = config->kv_dtype};
    TRY(nkv_kv_shape_check(&w->shape));
    w->share = (double)w->shape.n_layers / m->n_layers;
    w->n_devices = config->n_pnm ? config->n_pnm : 1;
    w->n_steps = SIM_WARM_STEPS + config->n_steps;
    if (w->n_steps >= config->context_tokens)
        FAIL(NKV_EINVAL, "%u steps in a context of %u tokens", config->n_steps, config->context_tokens);
    TRY(split_gpus(w));
    TRY(size_group(w));
    w->max_tokens = config->context_tokens + config->output_tokens;
    w->kept_tokens = config->context_tokens + config->output_tokens / 2 - w->n_steps;
    TRY(nkv_sim_budget(config->budget, config->context_tokens + config->output_tokens / 2, &w->budget_tokens));
    w->n_streams = config->n_streams ? config->n_streams : default_streams(w);
    w->budget_pages = (w->budget_tokens + config->page_tokens - 1) / config->page_tokens;
    TRY(size_memory(w));
    TRY(request_bytes(w));
    TRY(size_batch(w));
    size_slots(w);
    return 0;
}
