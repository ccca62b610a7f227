/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim/trace.h: a recorded run in memory. A trace is the files that the devices of one context were recorded to:
 *
 *   NAME          the only PNM device; or NAME.0, NAME.1, .. one for each
 *   NAME.compute  the compute device, if it was recorded
 *
 * A *stream* is one recorded sequence of one device, a *pick* one completed SELECT of it. Picks of one stream and layer
 * are a list in the order of their recording (a track).
 */
#ifndef NKV_SIM_TRACE_H
#define NKV_SIM_TRACE_H

#include <nearkv/device.h>
#include <nearkv/sim.h>
#include <stdio.h>

#include "sim/pick.h"

#define SIM_TRACE_NONE UINT32_MAX

/* A recorded command: what of it a replay or a what-if needs. */
struct sim_trace_cmd {
    uint64_t order; /* of submission, over all devices of the program that recorded it; UINT64_MAX: not told */
    uint64_t user_data;
    uint32_t seq, arg, n_tokens, n_pages, pos;
    int32_t res;
    uint32_t pick; /* SELECT: number of its pick, or SIM_TRACE_NONE */
    uint16_t device, flags, layer;
    uint8_t op, sink, recent;
    bool completed;
};

struct sim_trace_pick {
    uint32_t cmd;                        /* its number in the trace's commands */
    uint32_t n_units, n_total, n_chosen; /* pages per unit: there are, and are chosen */
    uint32_t next;                       /* of its track, or SIM_TRACE_NONE */
    bool forgotten;                      /* a TRUNCATE took back what it was asked for */
    uint32_t *chosen;                    /* [n_units][n_chosen], in rank order */
    float *scores;                       /* [n_units][n_total], NAN: not scored; NULL: not recorded */
};

struct sim_trace_track {
    uint32_t first, last; /* picks, or SIM_TRACE_NONE */
    uint32_t at;          /* the pick that was asked for last */
};

struct sim_trace_stream {
    uint32_t device, seq;
    bool open;           /* at this point of building the trace */
    uint32_t begin, end; /* positions of its last unbroken run of decode steps that every selecting layer has */
};

struct sim_trace {
    const char *name; /* borrowed, for messages */
    struct nkv_kv_shape shape;
    uint32_t n_devices; /* PNM devices */
    bool has_compute;   /* device number n_devices is the compute device */
    uint64_t *capacity; /* [n_devices + has_compute]; 0: not told */
    uint32_t n_cmds, max_cmds, n_picks, max_picks, n_streams;
    struct sim_trace_cmd *cmds; /* by device, then in the order of submission */
    struct sim_trace_pick *picks;
    struct sim_trace_stream *streams;
    struct sim_trace_track *tracks; /* [n_streams][n_layers] */
    uint32_t first_layer;           /* that selects */
};

/* Reads every file of a trace. returns: 0; NKV_ENOENT, NKV_EIO; NKV_EFORMAT naming file and line; NKV_ENOMEM. */
int sim_trace_open(const char *name, struct sim_trace **trace_out);
/* NULL is allowed. */
void sim_trace_close(struct sim_trace *trace);

/* The steps of one file, so that any bytes can be read: an empty trace; files into it; what follows from them. */
int sim_trace_new(const char *name, struct sim_trace **trace_out);
/* Adds the commands of one more device (trace_read.c). file_name is for messages. */
int sim_trace_read(struct sim_trace *trace, FILE *file, const char *file_name, uint32_t device);
int sim_trace_index(struct sim_trace *trace);
int sim_trace_describe(const struct sim_trace *trace, struct nkv_sim_trace_info *info_out);
/* Makes room for one more element. pre: n <= *max. */
int sim_trace_grow(void *array, uint32_t n, uint32_t *max, size_t size);

static inline struct sim_trace_track *sim_trace_track(const struct sim_trace *trace, uint32_t stream, uint32_t layer)
{
    return &trace->tracks[stream * trace->shape.n_layers + layer];
}
static inline const struct sim_trace_cmd *sim_trace_pick_cmd(const struct sim_trace *trace, uint32_t pick)
{
    return &trace->cmds[trace->picks[pick].cmd];
}

/* ---- Page scores (trace_source.c) ---- */

struct sim_trace_source;

/*
 * For what-if runs: streams that were recorded at positions begin .. end-1, at most n_streams of them (0: all); a layer
 * of the run gets the scores of a selecting layer, modulo their number; units likewise.
 * returns: NKV_EINVAL saying which positions there are.
 */
int sim_trace_source_open(struct sim_trace *trace, uint32_t begin, uint32_t end, uint32_t n_streams,
                          struct sim_trace_source **source_out);
/* For a replay: every SELECT in the order in which it was recorded; streams are found by the sequence's id. */
int sim_trace_source_open_replay(struct sim_trace *trace, struct sim_trace_source **source_out);
void sim_trace_source_close(struct sim_trace_source *source);
struct sim_source *sim_trace_source(struct sim_trace_source *source);

#endif
