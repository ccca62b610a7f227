/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv/store.h: the pages and digests of sequences in one region of memory.
 *
 *   frame    K [kv_head][token][dim], V the same, q8_0: K scales [kv_head][token] f32, V scales; 64-byte aligned
 *   chunk    digests of NKV_DIGEST_CHUNK_PAGES consecutive pages of one sequence: [layer][kv_head][page][2][dim]
 */
#ifndef NKV_KV_STORE_H
#define NKV_KV_STORE_H

#include <nearkv/types.h>

#define NKV_DIGEST_CHUNK_PAGES 64u

#endif
