/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv/device.h: what a device is, for those who write one. docs/device.md is the guide; an
 * application needs only nkv_device_open() of nearkv.h.
 *
 * A device is memory that computes. It holds KV pages and digests of sequences and serves flat,
 * fixed-size commands from a queue: append keys and values, select pages, attend to pages, move
 * pages. Operands travel through one I/O window, memory that host and device share (as with a CXL
 * Type-3 card): a command names byte offsets into it. The host leaves the operands of a command
 * alone from its submission to its completion; they are read when the command runs, so that
 * a SELECT's output can be the page list of an ATTEND submitted with it.
 *
 * Order. Results are as if commands ran one after the other in the order of submission. `after` says
 * which earlier command this one really needs, for devices that overlap work.
 *
 * Faults. A failing command completes with a negative enum nkv_status; it has changed nothing. A
 * device never trusts a command: whatever bits are in it or in the window, the result is an error,
 * never a crash, and never another sequence's data. What one command writes in the window must not
 * overlap what it reads there.
 */
#ifndef NEARKV_DEVICE_H
#define NEARKV_DEVICE_H

#include <nearkv/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NKV_DEVICE_ABI 3u

/*
 * Notation: H = n_heads, KVH = n_kv_heads, D = head_dim, P = page_tokens, T = cmd.n_tokens. Numbers in the window are
 * f32 or u32, little endian. A "unit" has its own page set: the layer (1 unit) or, under NKV_PER_HEAD, each KV head
 * (KVH units). "lists(cap)": for each unit one block of nkv_list_stride(cap) bytes: u32 n <= cap, then n page ids.
 */
enum nkv_op {
    /*
     * Opens sequence `seq` (an id of the host's choice, not in use) for at most T tokens and reserves its memory, so
     * that no later APPEND runs out of it. At most one flag: NKV_NO_DIGEST (pages only); NKV_NO_PAGES (digests, and of
     * the pages, in each layer, only that of the newest token); NKV_SLOTS (T/P page slots in no order, zero at first,
     * filled by WRITE; T a multiple of P; no digests). res: 0. With NKV_NAMED instead: takes over, as sequence `seq`,
     * the published sequence that in_offset names (struct nkv_seq_name), with room for T tokens if it had less. res:
     * tokens that it holds, the same in every layer. NKV_ENOENT: there is none of that name; NKV_EFORMAT: it is of
     * another model; NKV_ESTATE: a client has it. NKV_ENOSPC: no room.
     */
    NKV_OP_SEQ_OPEN = 1,
    /* Frees all that seq holds. A published sequence stays for whoever opens it next; with NKV_NAMED it is freed, too.
     */
    NKV_OP_SEQ_CLOSE = 2,
    /*
     * Opens seq as a copy of the first `pos` tokens of sequence `arg`, for at most T tokens. Full pages are shared
     * (counted), the open page is copied. The parent's layers must all hold at least pos tokens; the copy has its flag
     * (NKV_NO_DIGEST, NKV_NO_PAGES). Not for NKV_SLOTS sequences. NKV_NO_PAGES: pos is on a page boundary, or in the
     * page that every layer holds. NKV_NAMED: the parent is the published sequence that in_offset names, whoever has
     * it, and arg is 0. NKV_ENOSPC: no room.
     */
    NKV_OP_SEQ_FORK = 3,
    /*
     * Keeps the first `pos` tokens of every layer (layers that hold fewer keep what they have). NKV_ENOSPC: pages
     * shared with forks must be replaced, and there is no room. NKV_NO_PAGES: pos is on a page boundary, or in the page
     * that each longer layer holds (else truncate to the boundary, then WRITE the open page). Not for NKV_SLOTS.
     */
    NKV_OP_SEQ_TRUNCATE = 4,
    /*
     * in: k [T][KVH][D], then v [T][KVH][D] (no padding between). Appends T tokens at position pos, which must be the
     * length of `layer`; builds the digest of each page that fills. The layers of a sequence grow one by one and may
     * differ in length by one APPEND. A page takes its memory when its first layer reaches it.
     */
    NKV_OP_APPEND = 5,
    /*
     * Chooses at most n_pages pages per unit of `layer` for a block of T query tokens at positions pos .. pos+T-1 (the
     * layer already holds them). in: q [T][H][D]. out: see nkv_select_layout(). Always chosen: the first `sink` pages;
     * the `recent` pages (>= 1) that end with the page of token pos; the later pages up to that of token pos+T-1. The
     * rest of n_pages goes to the best scores among the full pages between, ties to the lower id. If all pages together
     * are no more than n_pages, all are chosen. Score of a page: sum_d max(q_d lo_d, q_d hi_d), mean over the block's
     * query rows (tokens x query heads of the unit). flags: NKV_PER_HEAD; NKV_SCORES:
     * write the scores, too; NKV_STEADY: run Steady-Select against the resident pages, list_offset: lists(arg) with n =
     * arg entries each, the page that slot i holds or NKV_PAGE_NONE; out_offset gets three more lists; a page that
     * is not full is never recalled. res: pages chosen in unit 0. NKV_EINVAL: n_pages < what is always chosen.
     * NKV_CANDIDATES: the query tokens are not of this sequence (of which a part lies here): the pages `sink` ..
     * pos/P - 1 compete, all of them full (pos is on a page boundary), and at most n_pages are chosen; recent is 0,
     * none is always chosen, and NKV_SCORES writes f32 [units][n_pages], in the order of `chosen`. Not with NKV_STEADY.
     */
    NKV_OP_SELECT = 6,
    /*
     * Attends T query tokens at positions pos .. pos+T-1 to pages of `layer`. in: q [T][H][D], not scaled. list_offset:
     * lists(n_pages), ascending ids without repeats (of an NKV_SLOTS sequence: slots); or NKV_ALL_PAGES: every page
     * (n_pages and list_offset are 0). flags: NKV_PER_HEAD (else one list serves all heads); NKV_CAUSAL: token pos+i
     * sees positions 0 .. pos+i only, all held by the layer (without it, all tokens of the pages, and pos does not
     * matter). NKV_SLOTS: neither NKV_CAUSAL nor NKV_ALL_PAGES. NKV_NO_PAGES: only the page of the newest token. out:
     * the partials o [T][H][D], m [T][H], l [T][H]. An empty list gives empty partials. res: tokens that the last query
     * token attended to, mean over units.
     */
    NKV_OP_ATTEND = 7,
    /*
     * Copies pages of `layer` to out_offset: list_offset: lists(n_pages), in any order; the data is packed unit by unit
     * in list order, each page nkv_page_bytes(shape, KV heads of the unit); tokens that the page does not hold are
     * zero. flags: NKV_PER_HEAD. With NKV_DIGEST instead: digests of the full pages pos ..
     * pos+n_pages-1 (pages, not tokens), [KVH][n_pages][2][D] in the digest's element type. res: pages copied, all
     * units together.
     */
    NKV_OP_READ = 8,
    /*
     * The reverse of READ, from in_offset. NKV_SLOTS sequences: any slots, no repeats, T = 0, NKV_PER_HEAD allowed.
     * Others: the listed pages (one unit, consecutive) begin at the layer's end, which is on a page boundary; T tokens
     * are added, so the last page may be left open; digests of the full ones are built. NKV_NO_PAGES sequences: one
     * page. With NKV_DIGEST (NKV_NO_PAGES sequences): n_pages digests are appended, pos = the layer's length in pages.
     * res: as READ. NKV_TOKENS (READ and WRITE): instead of pages, the ids, u32 [T], of the tokens pos .. pos+T-1 of a
     * published sequence, which need not be appended yet; no layer.
     */
    NKV_OP_WRITE = 9,
    /* FC work for T rows (tokens of the batch): in_offset FLOPs over out_offset bytes of weights; arg sums
       (all-reduces) of list_offset bytes each between the parts of a compute side that has several. Real devices
       complete it at once; simulated ones charge its time. */
    NKV_OP_COMPUTE = 10,
    /*
     * Publishes seq under the name at in_offset (struct nkv_seq_name, then u32 [T]: the ids of its first T tokens),
     * which no published sequence has. From then on it outlives its client, and the device itself where the memory
     * does, and it has an id for each token. Not for NKV_NO_PAGES and NKV_SLOTS. NKV_ESTATE: the name is in use, or seq
     * has one. NKV_ENOSPC: no room for the ids.
     */
    NKV_OP_SEQ_PUBLISH = 11,
    /*
     * Describes published sequences, all clients': at out_offset at most n_pages struct nkv_seq_info, by name, from the
     * arg-th on. in: T token ids (u32), with which each is compared. res: how many were described.
     */
    NKV_OP_SEQ_LIST = 12,
    NKV_OP_COUNT = 13,
};

/* An unknown flag, or one that the op does not name, is NKV_EINVAL. */
enum nkv_cmd_flag {
    NKV_PER_HEAD = 1u << 0,
    NKV_STEADY = 1u << 1,
    NKV_SCORES = 1u << 2,
    NKV_CAUSAL = 1u << 3,
    NKV_ALL_PAGES = 1u << 4,
    NKV_DIGEST = 1u << 5,
    NKV_NO_DIGEST = 1u << 6,
    NKV_NO_PAGES = 1u << 7,
    NKV_SLOTS = 1u << 8,
    NKV_NAMED = 1u << 9,
    NKV_TOKENS = 1u << 10,
    NKV_CANDIDATES = 1u << 11,
};

#define NKV_SEQ_NAME_BYTES 56u
/* What a published sequence is called. name: letters, digits and "-_.", at least one, zeros behind. */
struct nkv_seq_name {
    char name[NKV_SEQ_NAME_BYTES];
    uint64_t model; /* tells models apart whose pages must not be mixed up; any number */
};
struct nkv_seq_info {
    struct nkv_seq_name name;
    uint32_t n_tokens; /* that every layer holds */
    uint32_t max_tokens;
    uint32_t n_common; /* of the ids that LIST was given, those that it begins with; at most n_tokens */
    uint32_t flags;    /* NKV_NO_DIGEST or 0 */
    uint32_t attached; /* 1: a client has it */
    uint32_t reserved;
    uint64_t used_bytes;   /* of pages and digests that it holds or reserves */
    uint64_t shared_bytes; /* of these, shared with forks */
    uint64_t reserved2[3];
};

/* A command: 64 bytes without pointers, fit to be logged, hashed and sent. Fields that the op does not name are 0
 * (`seq` is always named, but by COMPUTE and SEQ_LIST; `layer` where the text says layer). */
struct nkv_cmd {
    uint8_t op;     /* enum nkv_op */
    uint8_t sink;   /* SELECT: pages */
    uint8_t recent; /* SELECT: pages, >= 1 */
    uint8_t reserved;
    uint16_t flags; /* enum nkv_cmd_flag */
    uint16_t layer;
    uint64_t user_data;                          /* returned untouched */
    uint32_t after;                              /* needs the command submitted this many before it; 0: none */
    uint32_t arg;                                /* FORK: the parent's id; SELECT: resident slots per unit */
    uint64_t in_offset, out_offset, list_offset; /* bytes into the window, multiples of 64 */
    uint32_t seq;
    uint32_t n_tokens;
    uint32_t n_pages;
    uint32_t pos;
};

/* A completion: 32 bytes. */
struct nkv_cqe {
    uint64_t user_data;
    int32_t res; /* >= 0: the op's result; < 0: enum nkv_status */
    uint32_t reserved;
    uint64_t start_ns, end_ns; /* on the device's clock */
};

_Static_assert(sizeof(struct nkv_cmd) == 64, "a command is 64 bytes");
_Static_assert(sizeof(struct nkv_cqe) == 32, "a completion is 32 bytes");
_Static_assert(sizeof(struct nkv_seq_name) == 64 && sizeof(struct nkv_seq_info) == 128, "names and their descriptions");

/* ---- Layout of the window's contents: used by both sides.
 * ---------------------------------------------------------------------- */

static inline uint64_t nkv_align64(uint64_t bytes)
{
    return (bytes + 63u) & ~(uint64_t)63u;
}

/* Bytes from one unit's list of at most cap ids to the next unit's. */
static inline uint64_t nkv_list_stride(uint32_t cap)
{
    return nkv_align64(4u * ((uint64_t)cap + 1u));
}

/* Bytes of one page of n_kv_heads_in_unit KV heads as READ and WRITE pack it: K [head][P][D], V the same, then (q8_0)
 * the K scales [head][P] and the V scales; rounded up to a multiple of 64. */
NKV_API uint64_t nkv_page_bytes(const struct nkv_kv_shape *shape, uint32_t n_kv_heads_in_unit);
/* Bytes of one page's digest for one KV head: lo [D], hi [D]. */
NKV_API uint64_t nkv_digest_bytes(const struct nkv_kv_shape *shape);

/* Offsets, from an ATTEND's out_offset, of the partials' parts, and their total size. */
struct nkv_partial_layout {
    uint64_t o, m, l, bytes;
};
static inline struct nkv_partial_layout nkv_partial_layout(const struct nkv_kv_shape *shape, uint32_t n_tokens)
{
    uint64_t rows = (uint64_t)n_tokens * shape->n_heads;
    struct nkv_partial_layout at = {.o = 0, .m = nkv_align64(4u * rows * shape->head_dim)};

    at.l = at.m + nkv_align64(4u * rows);
    at.bytes = at.l + nkv_align64(4u * rows);
    return at;
}

/* Offsets, from a SELECT's out_offset, of what it writes, and the total size. */
struct nkv_select_layout {
    uint64_t chosen; /* lists(n_pages): the set in rank order: sinks, then by score, then the recent pages */
    uint64_t device; /* lists(n_pages): pages to attend on this device, ascending: the set, under NKV_STEADY without
                        those resident */
    uint64_t steady; /* lists(n_resident), NKV_STEADY: slots that hold chosen pages, by ascending page id */
    uint64_t recall; /* lists(n_resident), NKV_STEADY: pages to copy to the compute side, best first */
    uint64_t slots;  /* lists(n_resident), NKV_STEADY: the slot for each page of `recall` */
    uint64_t scores; /* NKV_SCORES: f32 [units][n_total]; NaN for pages that were not scored */
    uint64_t bytes;
};
static inline struct nkv_select_layout nkv_select_layout(uint32_t n_units, uint32_t n_pages, uint32_t n_resident,
                                                         uint32_t n_total)
{
    uint64_t set = n_units * nkv_list_stride(n_pages), resident = n_units * nkv_list_stride(n_resident);
    struct nkv_select_layout at = {.chosen = 0, .device = set, .steady = 2 * set};

    at.recall = at.steady + resident;
    at.slots = at.recall + resident;
    at.scores = at.slots + resident;
    at.bytes = at.scores + nkv_align64(4u * (uint64_t)n_units * n_total);
    return at;
}
/* A SELECT without NKV_STEADY uses n_resident = 0, one without NKV_SCORES n_total = 0; with it n_total = pages of pos +
 * T tokens (NKV_CANDIDATES: n_pages). */

/* ---- The backend's side.
 * ------------------------------------------------------------------------------------------------------- */

struct nkv_device;

struct nkv_device_caps {
    uint32_t size;           /* of this struct, as the backend knows it */
    char name[64];           /* for people: "cpu0" */
    uint64_t capacity_bytes; /* for KV pages and digests; what SEQ_OPEN divides */
    uint32_t n_threads;
    struct nkv_kv_shape shape; /* what it was opened with: a context of another shape is refused; all 0: not told */
};

struct nkv_device_stat {
    uint32_t size;
    uint32_t absent_ms;      /* how long n_absent_pages are still kept; 0: there are none */
    uint64_t used_bytes;     /* of pages and digests that hold data or are reserved by open sequences */
    uint64_t resident_bytes; /* of pages and digests that hold data */
    uint64_t busy_ns;
    uint64_t n_commands;
    uint32_t n_sequences;
    uint32_t n_free_pages, n_total_pages; /* all layers of one page together */
    uint32_t n_absent_pages; /* not free: kept, by a device that was restarted, for clients that may come back */
    /* What commands asked for, a measure of work that no clock disturbs; 0: not counted. Read: pages by ATTEND (once
     * for each block of queries that it takes together) and READ, digests by SELECT and READ. Written: keys and values
     * by APPEND, pages and digests by WRITE. Commands that failed do not count. */
    uint64_t read_bytes, written_bytes;
};

/*
 * A backend's functions. One client thread calls them, except that interrupting is left to `close`. Slots marked
 * optional may be NULL; the default is stated.
 */
struct nkv_device_ops {
    uint32_t abi;        /* NKV_DEVICE_ABI */
    const char *backend; /* "cpu" */
    int (*caps)(struct nkv_device *device, struct nkv_device_caps *caps_out);
    /* Maps the I/O window with at least `bytes` bytes, 64-byte aligned, or grows it; called with nothing in flight. Old
     * contents are lost. On a device that was lost (a call failed with NKV_EDEVICE; what was in flight is lost with
     * it): reconnects where the backend can, with the sequences that the device kept and no others; NKV_EDEVICE where
     * it cannot, or not yet; the window of before is valid until it succeeds. */
    int (*map)(struct nkv_device *device, uint64_t bytes, void **window_out);
    /* Queues n commands; all or none. NKV_ENOSPC when n is more than the queue's free entries (it has at least 256; a
     * command takes one until its completion is reaped). */
    int (*submit)(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n);
    /* Waits until at least min_n completions are there (0: does not wait), takes at most max_n in order of completion.
     * returns: how many. NKV_EINVAL when fewer than min_n are in flight. After a failed completion nkv_last_error()
     * tells what was wrong with (the last of) them. */
    int (*reap)(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n);
    /* Optional, or NKV_ENOTSUP. Default: admission takes all of the capacity for free, and what does not fit is refused
     * by SEQ_OPEN; several such devices fill up one by one. */
    int (*stat)(struct nkv_device *device, struct nkv_device_stat *stat_out);
    /* Waits for the commands in flight and frees everything. Optional: nothing is to be freed. */
    void (*close)(struct nkv_device *device);
    /* Optional (default: the host copies): brings `bytes` bytes at `from`, in another device's window, to `offset` of
     * this device's window, for a device that has a better way (DMA), or none to go (it keeps no data). No command in
     * flight uses either range. */
    int (*copy)(struct nkv_device *device, uint64_t offset, const void *from, uint64_t bytes);
};

/* Every backend's device begins with this. */
struct nkv_device {
    const struct nkv_device_ops *ops;
};

#ifdef __cplusplus
}
#endif
#endif
