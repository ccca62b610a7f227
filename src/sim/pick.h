/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim/pick.h: what SELECT answers on a simulated device: page scores from a source, sets and steady lists from policy/.
 */
#ifndef NKV_SIM_PICK_H
#define NKV_SIM_PICK_H

#include <nearkv/device.h>

/* The scores that one unit of a SELECT needs: of pages begin .. end-1. */
struct sim_query {
    uint32_t stream, layer, unit;
    uint32_t pos, n_tokens, n_pages; /* of the command */
    uint32_t begin, end;
};

/*
 * A source of page scores. A *stream* is one sequence's; streams repeat over the sequences of a batch, so that sampled
 * (sequence, layer) pairs stand for all.
 */
struct sim_source {
    /* Calls for one (stream, layer, unit) come with pos that never falls, unless the source tells streams apart by
     * stream_of. returns: 0, or an error. */
    int (*scores)(struct sim_source *source, const struct sim_query *query, float *scores_out);
    /* The stream of a sequence's id, or an error: every SELECT is then a query of its own, none is answered from what
     * is kept. NULL: sequences take streams in turn. */
    int (*stream_of)(struct sim_source *source, uint32_t seq);
    uint32_t n_streams;
    uint32_t n_before; /* steps before the first query for which it has scores; 0: the run begins where they begin */
};

struct sim_pick;

struct sim_pick_options {
    struct nkv_kv_shape shape;
    struct sim_source *source; /* borrowed */
    uint32_t max_pages;        /* of a sequence */
    uint32_t digest_levels;
};
int sim_pick_open(const struct sim_pick_options *options, struct sim_pick **pick_out);
uint32_t sim_pick_streams(const struct sim_pick *pick);
void sim_pick_close(struct sim_pick *pick);

/*
 * Serves a SELECT of the ordinal-th sequence. in: lists(arg) of resident pages or NULL; out: the command's output. The
 * scan takes n_scored_out digests. returns: pages chosen, or an error.
 */
int sim_pick_select(struct sim_pick *pick, const struct nkv_cmd *cmd, uint32_t ordinal, const uint8_t *resident,
                    uint8_t *out, double *n_scored_out);

#endif
