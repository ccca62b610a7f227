/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Virtual time by max-plus arithmetic: work is given its times when it is submitted,
 *
 *   start = max(ready, resource free)      end = start + duration
 *
 * and a resource serves in the order of submission. There is no event queue: the runtime's own waiting is what moves
 * the clock, to the end of the work it waits for. So the same commands get the same times, and since every time is a
 * sum of maxima of durations, no duration can shrink and make anything later: more bandwidth is never slower on a fixed
 * plan. A link that shares its rate among transfers, or serves whichever is ready first, was rejected for that reason;
 * where work is submitted in the order in which it becomes ready, as the runtime does, the three differ little.
 *
 * Each stage keeps its cause, so the critical path is a walk back from now.
 */
#include "sim/world.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

#define FIRST_STAGES 4096u

int sim_world_open(uint32_t max_resources, struct sim_world *world_out)
{
    struct sim_world world = {.now.cause = SIM_NO_CAUSE, .max_resources = max_resources, .max_stages = FIRST_STAGES};
    int status = nkv_alloc(max_resources, sizeof *world.resources, &world.resources);

    if (status == 0)
        status = nkv_alloc(world.max_stages, sizeof *world.stages, &world.stages);
    if (status < 0) {
        sim_world_close(&world);
        return status;
    }
    *world_out = world;
    return 0;
}

void sim_world_close(struct sim_world *world)
{
    nkv_free(world->resources);
    nkv_free(world->stages);
    *world = (struct sim_world){0};
}

uint16_t sim_resource_add(struct sim_world *world, enum sim_resource_kind kind, const char *format, ...)
{
    struct sim_resource *resource = &world->resources[world->n_resources];
    va_list args;

    assert(world->n_resources < world->max_resources && world->n_resources < SIM_NO_RESOURCE);
    resource->free.cause = SIM_NO_CAUSE;
    resource->kind = kind;
    va_start(args, format);
    vsnprintf(resource->name, sizeof resource->name, format, args);
    va_end(args);
    return (uint16_t)world->n_resources++;
}

void sim_world_mark(struct sim_world *world)
{
    world->first_stage += world->n_stages;
    world->n_stages = 0;
    world->mark_ns = world->now.ns;
    memset(world->busy_ns, 0, sizeof world->busy_ns);
    for (uint32_t i = 0; i < world->n_resources; i++)
        world->resources[i].busy_ns = 0;
}

struct sim_moment sim_later(struct sim_moment a, struct sim_moment b)
{
    return b.ns > a.ns ? b : a;
}

static bool grow(struct sim_world *world)
{
    struct sim_stage *larger;

    if (nkv_alloc(2 * (size_t)world->max_stages, sizeof *larger, &larger) < 0) {
        world->status = NKV_ENOMEM;
        return false;
    }
    memcpy(larger, world->stages, world->n_stages * sizeof *larger);
    nkv_free(world->stages);
    world->stages = larger;
    world->max_stages *= 2;
    return true;
}

static struct sim_moment put_stage(struct sim_world *world, uint16_t resource, enum nkv_sim_part part,
                                   struct sim_moment start, uint64_t ns, uint64_t busy_ns)
{
    struct sim_moment end = {start.ns + ns, SIM_NO_CAUSE};

    world->busy_ns[part] += busy_ns;
    if (world->n_stages == world->max_stages && !grow(world))
        return end;
    world->stages[world->n_stages] = (struct sim_stage){start.ns, end.ns, start.cause, resource, (uint8_t)part};
    end.cause = world->first_stage + world->n_stages++;
    return end;
}

struct sim_moment sim_serve(struct sim_world *world, uint16_t resource, enum nkv_sim_part part, struct sim_moment ready,
                            uint64_t ns)
{
    struct sim_resource *r = &world->resources[resource];

    r->free = put_stage(world, resource, part, sim_later(ready, r->free), ns, ns);
    r->busy_ns += ns;
    return r->free;
}

struct sim_moment sim_serve_until(struct sim_world *world, uint16_t resource, enum nkv_sim_part part,
                                  struct sim_moment start, uint64_t end_ns, uint64_t counted_ns)
{
    struct sim_resource *r = &world->resources[resource];
    uint64_t from_ns = start.ns > counted_ns ? start.ns : counted_ns, busy_ns = end_ns > from_ns ? end_ns - from_ns : 0;

    r->free = put_stage(world, resource, part, start, end_ns - start.ns, busy_ns);
    r->busy_ns += busy_ns;
    return r->free;
}

struct sim_moment sim_serve_both(struct sim_world *world, const uint16_t resources[2], enum nkv_sim_part part,
                                 struct sim_moment ready, const uint64_t ns[2])
{
    struct sim_resource *a = &world->resources[resources[0]], *b = &world->resources[resources[1]];
    struct sim_moment start = sim_later(sim_later(ready, a->free), b->free), end;
    uint32_t slow = ns[1] > ns[0];

    end = put_stage(world, resources[0], part, start, ns[slow], ns[slow]);
    a->free = (struct sim_moment){start.ns + ns[0], end.cause};
    b->free = (struct sim_moment){start.ns + ns[1], end.cause};
    a->busy_ns += ns[0];
    b->busy_ns += ns[1];
    return end;
}

struct sim_moment sim_delay(struct sim_world *world, enum nkv_sim_part part, struct sim_moment ready, uint64_t ns)
{
    return ns ? put_stage(world, SIM_NO_RESOURCE, part, ready, ns, ns) : ready;
}

void sim_world_advance(struct sim_world *world, struct sim_moment moment)
{
    world->now = sim_later(world->now, moment);
}

/* Adds a piece of the path to its part, and what of it lies in a span to the part of the spans. */
static void add_piece(const struct sim_path *path, enum nkv_sim_part part, uint64_t from_ns, uint64_t until_ns)
{
    path->all_ns[part] += until_ns - from_ns;
    for (uint32_t i = 0; i < path->n_spans; i++) {
        uint64_t begin = from_ns > path->spans[i].begin_ns ? from_ns : path->spans[i].begin_ns;
        uint64_t end = until_ns < path->spans[i].end_ns ? until_ns : path->spans[i].end_ns;

        path->span_ns[part] += end > begin ? end - begin : 0;
    }
}

/*
 * A cause may have ended after the stage that names it began: the faster of two links is free again while the slower
 * still carries the rest. What lies before the stage is then the cause's up to that moment.
 */
void sim_world_path(const struct sim_world *world, const struct sim_path *path)
{
    uint64_t until = world->now.ns;
    uint32_t at = world->now.cause;

    memset(path->all_ns, 0, NKV_SIM_PART_COUNT * sizeof *path->all_ns);
    memset(path->span_ns, 0, NKV_SIM_PART_COUNT * sizeof *path->span_ns);
    while (at != SIM_NO_CAUSE && at >= world->first_stage) {
        const struct sim_stage *stage = &world->stages[at - world->first_stage];
        uint64_t from = stage->start_ns > world->mark_ns ? stage->start_ns : world->mark_ns;

        if (until > from) {
            add_piece(path, stage->part, from, until);
            until = from;
        }
        at = stage->cause;
    }
    add_piece(path, NKV_SIM_OTHER, world->mark_ns, until);
}

uint64_t sim_ns(double seconds)
{
    return (uint64_t)ceil(seconds * 1e9);
}
