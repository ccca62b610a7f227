/* SPDX-License-Identifier: Apache-2.0 */
/* sim/script.h: what a client of the runtime did, from the commands that its devices got. */
#ifndef NKV_SIM_SCRIPT_H
#define NKV_SIM_SCRIPT_H

#include "sim/trace.h"

enum sim_event_kind { SIM_OPEN, SIM_FORK, SIM_TRUNCATE, SIM_CLOSE, SIM_CALL };

struct sim_event {
    enum sim_event_kind kind;
    uint32_t seq;              /* its number in the order of opening */
    uint32_t parent, n_tokens; /* FORK, TRUNCATE */
    uint32_t layer;            /* CALL */
    uint32_t first, n_items;   /* CALL: its items, once the script is complete */
};

/* New tokens of one sequence in one nkv_attend_begin(). */
struct sim_item {
    uint32_t call;  /* the event */
    uint32_t index; /* in the call's plan: items are in this order */
    uint32_t seq;
    uint32_t n_tokens;
    bool attends; /* else they were only appended */
};

/* A sequence and its ids on the devices (mirror and slots on the compute device; 0: none). */
struct sim_actor {
    uint32_t id, mirror_id, slots_id;
    bool closed;
};

struct sim_script {
    uint32_t n_events, max_events, n_items, max_items, n_actors, max_actors;
    struct sim_event *events;
    struct sim_item *items;
    struct sim_actor *actors;
    bool scores; /* decode steps asked for them */
};

/* returns: 0; NKV_EFORMAT saying what the trace does not tell; NKV_ENOMEM. */
int sim_script_open(const struct sim_trace *trace, struct sim_script *script_out);
void sim_script_close(struct sim_script *script);

#endif
