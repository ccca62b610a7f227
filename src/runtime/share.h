/* SPDX-License-Identifier: Apache-2.0 */
/*
 * runtime/share.h: each of several devices as two, for a port that keeps whole sequences there and for a group that
 * keeps parts: neither knows of the other.
 */
#ifndef NKV_RUNTIME_SHARE_H
#define NKV_RUNTIME_SHARE_H

#include <nearkv/device.h>

struct shares;

enum face_kind { FACE_WHOLE, FACE_PART, FACE_COUNT };

/* The devices are borrowed. */
int shares_open(struct nkv_device *const *devices, uint32_t n, struct shares **shares_out);
/* pre: nobody uses a face any more. NULL is allowed. */
void shares_close(struct shares *shares);
/* [n] devices, the shares' own: they are not closed. */
struct nkv_device *const *shares_faces(const struct shares *shares, enum face_kind kind);
/* Where the face's user keeps the window's address: kept right when the other face's growth moves it. */
void share_watch(struct nkv_device *face, uint8_t **window);
/* 0, or what the face's device was lost with, and why. */
int share_check(const struct nkv_device *face, const char **why_out);

#endif
