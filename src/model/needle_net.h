/* SPDX-License-Identifier: Apache-2.0 */
/* model/needle_net.h: the needle model's shape and weights, between the circuit (needle.c) and its file
 * (needle_file.c). */
#ifndef NKV_MODEL_NEEDLE_NET_H
#define NKV_MODEL_NEEDLE_NET_H

#include <nearkv/types.h>

enum {
    N_EMBD = 256,
    N_LAYERS = 3,
    N_HEADS = 8,
    N_KV_HEADS = 2,
    GROUP = N_HEADS / N_KV_HEADS,
    HEAD_DIM = 128,
    N_FF = 128,
    Q_ROWS = N_HEADS * HEAD_DIM,
    KV_ROWS = N_KV_HEADS * HEAD_DIM,

    TOKEN_UNK = 0,
    TOKEN_BOS = 1,
    TOKEN_EOS = 2,
    TOKEN_BYTE = 3,    /* of byte 0 */
    TOKEN_SPACE = 259, /* U+2581, SPM's spelling of a space */
    N_VOCAB = 260,
    CONTEXT_LENGTH = 2 << 20,
};

#define NEEDLE_ROPE_BASE 1e14f

struct needle_layer {
    float *q, *k, *v, *o, *gate, *up, *down; /* [rows][cols] as in the file */
    uint32_t n_units;
};

struct needle_net {
    float *block;
    float *embd, *output; /* [N_VOCAB][N_EMBD] */
    struct needle_layer layers[N_LAYERS];
};

/* Weights from nkv_alloc at block; everything else points into it. returns: 0 or NKV_ENOMEM. */
int nkv_needle_net_open(struct needle_net *net);

/* What every RMSNorm multiplies with: the rms of any x, so that the norm copies. */
float nkv_needle_norm(void);

#endif
