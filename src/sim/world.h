/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim/world.h: virtual time. Integer nanoseconds; resources that serve in the order in which work is given to them;
 * stages of work, each of which remembers what made it start no earlier.
 */
#ifndef NKV_SIM_WORLD_H
#define NKV_SIM_WORLD_H

#include <nearkv/sim.h>

#include "base/status.h"

#define SIM_NO_CAUSE UINT32_MAX

/* A point in time and the stage that ends there (SIM_NO_CAUSE: the beginning of the run). */
struct sim_moment {
    uint64_t ns;
    uint32_t cause;
};

/* What serves one stage at a time. */
enum sim_resource_kind { SIM_GPU_ENGINE, SIM_PNM_ENGINE, SIM_LINK, SIM_RECALL_LINK };

struct sim_resource {
    char name[32];
    enum sim_resource_kind kind;
    struct sim_moment free;
    uint64_t busy_ns;
};

/* Work on a resource, or a delay that occupies none. */
struct sim_stage {
    uint64_t start_ns, end_ns;
    uint32_t cause;    /* the stage that made this one start no earlier */
    uint16_t resource; /* index, or SIM_NO_RESOURCE */
    uint8_t part;      /* enum nkv_sim_part */
};
#define SIM_NO_RESOURCE UINT16_MAX

struct sim_world {
    struct sim_moment now;
    struct sim_resource *resources;
    uint32_t n_resources, max_resources;
    struct sim_stage *stages; /* since sim_world_mark; causes are numbered from the beginning of the run */
    uint32_t first_stage, n_stages, max_stages;
    uint64_t mark_ns;
    uint64_t busy_ns[NKV_SIM_PART_COUNT]; /* of all resources together, since sim_world_mark */
    int status;                           /* NKV_ENOMEM: stages could not be kept; the run's result is not valid */
};

int sim_world_open(uint32_t max_resources, struct sim_world *world_out);
void sim_world_close(struct sim_world *world);

/* Adds a resource. pre: fewer than max_resources are there. returns: its index. */
uint16_t sim_resource_add(struct sim_world *world, enum sim_resource_kind kind, const char *format, ...)
    NKV_PRINTF(3, 4);

/* Forgets the stages so far, and counts busy time from now. */
void sim_world_mark(struct sim_world *world);

struct sim_moment sim_later(struct sim_moment a, struct sim_moment b);

/* Runs for `ns` on a resource, no earlier than `ready`. returns: its end. */
struct sim_moment sim_serve(struct sim_world *world, uint16_t resource, enum nkv_sim_part part, struct sim_moment ready,
                            uint64_t ns);
/* Holds a resource from start to end_ns, and counts as busy what lies behind counted_ns. pre: end_ns >= start.ns. */
struct sim_moment sim_serve_until(struct sim_world *world, uint16_t resource, enum nkv_sim_part part,
                                  struct sim_moment start, uint64_t end_ns, uint64_t counted_ns);
/* As sim_serve, on two resources at once: the stage lasts as long as the slower, each is held as long as it needs. */
struct sim_moment sim_serve_both(struct sim_world *world, const uint16_t resources[2], enum nkv_sim_part part,
                                 struct sim_moment ready, const uint64_t ns[2]);
/* A delay. returns: its end. */
struct sim_moment sim_delay(struct sim_world *world, enum nkv_sim_part part, struct sim_moment ready, uint64_t ns);

/* Time passes until `moment`, if that is later than now. */
void sim_world_advance(struct sim_world *world, struct sim_moment moment);

/* The critical path from sim_world_mark to now: nanoseconds in each part, all of it and what lies in some spans of
 * time. */
struct sim_span {
    uint64_t begin_ns, end_ns;
};
struct sim_path {
    const struct sim_span *spans;
    uint32_t n_spans;
    uint64_t *all_ns, *span_ns; /* [NKV_SIM_PART_COUNT]; all_ns sums to now - mark */
};
void sim_world_path(const struct sim_world *world, const struct sim_path *path);

/* Seconds to whole nanoseconds, rounded up. */
uint64_t sim_ns(double seconds);

#endif
