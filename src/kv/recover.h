/* SPDX-License-Identifier: Apache-2.0 */
/* kv/recover.h: the opening of an image, between recover.c and recover_crash.c. */
#ifndef NKV_KV_RECOVER_H
#define NKV_KV_RECOVER_H

#include "kv/image.h"

struct recovery {
    struct nkv_store *store;
    struct nkv_image *image;
    bool trusted;
    struct nkv_kv_seq **seqs; /* [n] */
    uint32_t n, n_dropped;
};

/* One that is let go has no root any more. */
static inline bool is_kept(const struct nkv_kv_seq *seq)
{
    return seq->place.root != NKV_PAGE_NONE;
}

/* Enters the sequences that are kept into the table. returns: 0, NKV_EFORMAT, NKV_ENOMEM; the image is unchanged. */
int nkv_recovery_insert(struct recovery *r);
/* Tells the pools which slots and chunks hold data. */
void nkv_recovery_mark(struct recovery *r, const struct nkv_kv_seq *seq);
/* After a crash of the system: keeps what is proven. returns: 0, NKV_ENOMEM; after a failure the image is as it was. */
int nkv_recovery_prove(struct recovery *r);

#endif
