/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv/nearkv.h: attention where the KV cache lives, for applications.
 *
 * The mental model. A *context* owns devices. A *sequence* is one request's tokens; its KV pages live on one device. A
 * model runs its layers and, for each layer, hands q, k and v of the new tokens of a batch of sequences to
 * nkv_attend_begin() and takes the attention output from nkv_attend_end(). What happens between (append, digest,
 * select, attend on the device or the compute side, recall, merge) is the sequence's *mode*:
 *
 *   full     every page, on the PNM device
 *   recall   selected pages, on the compute side, after copying the missing ones there (ArkVale)
 *   pnm      selected pages, selected and attended on the PNM device
 *   png      the same set; its steady pages on the compute side, the rest on the device, at the same time, merged
 *
 *   struct nkv_context *ctx;  struct nkv_seq *seq;  struct nkv_ticket *t;
 *   nkv_device_open("cpu", &config, &device);
 *   nkv_context_open(&options, &ctx);
 *   nkv_seq_open(ctx, &seq_options, &seq);
 *   for each layer:   nkv_attend_begin(ctx, layer, items, n_items, &t);  nkv_attend_end(t);
 *   nkv_step_end(ctx, items, n_items);
 *
 * Threads: one thread at a time per context; contexts are independent.
 */
#ifndef NEARKV_NEARKV_H
#define NEARKV_NEARKV_H

#include <nearkv/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NKV_VERSION "0.1.0"
NKV_API const char *nkv_version(void);

/* ---- Devices
 * --------------------------------------------------------------------------------------------------------------------
 */

struct nkv_device;

struct nkv_device_config {
    uint32_t size; /* sizeof(struct nkv_device_config) */
    struct nkv_kv_shape shape;
    uint64_t capacity_bytes; /* of pages and digests; 0: 80 % of what is free now */
    uint32_t n_threads;      /* 0: one per CPU */
    const char *name;        /* NULL: the backend's name */
    /* "cpu": memory that outlives the process: "file:PATH" (it exists), "file:PATH:SIZE" (it is made if it does not),
     * "dax:/dev/daxX.Y". capacity_bytes is what fits. NULL: ordinary memory. */
    const char *memory;
};

/*
 * The KV shape of the sequences that such memory holds. returns: 1; 0: it holds none, or is a file with a size that
 * does not exist yet; NKV_EINVAL, NKV_ENOENT, NKV_ESTATE: in use; NKV_EFORMAT, NKV_ENOTSUP, NKV_EIO, NKV_ENOSPC,
 * NKV_ENOMEM.
 */
NKV_API int nkv_memory_shape(const char *memory, struct nkv_kv_shape *shape_out);

struct nkv_memory_report {
    struct nkv_kv_shape shape;
    uint64_t image_bytes, capacity_bytes;
    uint64_t n_tokens;     /* committed */
    uint64_t n_full_pages; /* that pass their checksums */
    uint32_t n_sequences;  /* whose tables are sound */
    uint32_t n_problems;
    bool closed_in_order; /* by the last process that used it */
};
/*
 * Looks at such memory while nobody uses it: tables, checksums of every page, digests. say (may be NULL) gets one line
 * per problem. Nothing is changed. blocks. returns: 0, also with problems; NKV_ENOENT: nothing was ever stored there;
 * else as nkv_memory_shape.
 */
NKV_API int nkv_memory_check(const char *memory, void (*say)(void *arg, const char *line), void *arg,
                             struct nkv_memory_report *report_out);

/*
 * Opens a device. spec: "cpu" or "cpu:key=value,..." (threads, capacity with suffix K/M/G/T, node: NUMA node);
 * or "unix:PATH": a device that another process holds (nearkv pnmd, nearkv/serve.h), whose capacity, threads and name
 * are its own: of config it takes the shape only. Wrappers go before it: "record:FILE:cpu", "fault:op=attend,n=3:cpu"
 * (the n-th such command fails; op=any). Keys of the spec win over config. The caller closes it with nkv_device_close,
 * after the context.
 * returns: 0; NKV_EINVAL naming the bad part; NKV_ENOMEM; with `memory`: what nkv_memory_shape returns; "unix":
 * NKV_ENOENT: nobody listens there; NKV_ESTATE: it holds another shape; NKV_ENOTSUP: another version; NKV_EDEVICE,
 * NKV_EIO.
 */
NKV_API int nkv_device_open(const char *spec, const struct nkv_device_config *config, struct nkv_device **device_out);
NKV_API void nkv_device_close(struct nkv_device *device);

/* ---- Contexts
 * -------------------------------------------------------------------------------------------------------------------
 */

struct nkv_context;
struct nkv_seq;
struct nkv_ticket;

/*
 * How sequences lie on the PNM devices. CONTEXT and HEADS make one of all of them, which every sequence shares: every
 * mode, no sessions, no record_scores. The same page sets are chosen as with one device (HEADS with
 * NKV_SELECT_LAYER: up to the rounding of scores), outputs differ by rounding only.
 * AUTO chooses for each sequence when it is opened, and for good: CONTEXT where no device has room for it, or where the
 * step of the busiest device is predicted to become much shorter (long contexts, fewer of them than devices); DATA
 * otherwise, and always for what CONTEXT does not serve. Its outputs are those of the one or the other, to the bit.
 */
enum nkv_kv_parallel {
    NKV_KV_DATA = 0,    /* "dp": a sequence on one device */
    NKV_KV_CONTEXT = 1, /* "cp": its pages over all devices, in turn; it can be larger than any one of them */
    NKV_KV_HEADS = 2,   /* "tp": its KV heads over all devices, each opened with its share of the shape's heads */
    NKV_KV_AUTO = 3,    /* "auto": DATA or CONTEXT, sequence by sequence */
};
/* "dp", "cp", "tp", "auto"; static storage. The reverse: NKV_EINVAL with the allowed names in the message. */
NKV_API const char *nkv_kv_parallel_name(enum nkv_kv_parallel kv_parallel);
NKV_API int nkv_kv_parallel_parse(const char *name, enum nkv_kv_parallel *kv_parallel_out);

struct nkv_context_options {
    uint32_t size; /* sizeof(struct nkv_context_options) */
    struct nkv_kv_shape shape;
    struct nkv_device *const *devices; /* PNM devices, borrowed, opened with the same shape */
    uint32_t n_devices;
    struct nkv_device
        *compute; /* where resident pages are attended; needed by recall and png, may be NULL otherwise; borrowed */
    uint32_t max_batch;         /* sequences per attend call, default 16 */
    uint32_t max_tokens;        /* new tokens per attend call, all sequences together; default 512 */
    uint64_t (*now_ns)(void *); /* the clock; NULL: monotonic time */
    void *clock_arg;
    /* Plan log: called with one line of text per planned command and per selected set; NULL: none. */
    void (*plan_log)(void *arg, const char *line);
    void *plan_log_arg;
    bool record_scores; /* decode steps ask the PNM devices for the scores of pages, too, for whoever records them */
    enum nkv_kv_parallel kv_parallel;
};

/*
 * Opens a context and maps its devices' I/O windows for max_batch and max_tokens; opening a sequence may grow them, a
 * step never does. The devices serve this context alone until it is closed.
 * returns: 0; NKV_EINVAL; NKV_ENOTSUP: a device of another ABI; NKV_ENOMEM; a device's error.
 */
NKV_API int nkv_context_open(const struct nkv_context_options *options, struct nkv_context **context_out);
/* Closes its sequences, too. */
NKV_API void nkv_context_close(struct nkv_context *context);
/*
 * After a device was lost (sequences failed with NKV_EDEVICE): tries to reach each lost device again, for at most
 * timeout_ms milliseconds. Then nkv_seq_truncate(seq, nkv_seq_length(seq)) makes a sequence of it that failed usable
 * again, if the device kept it (a device process on memory that outlives it does), and tokens are fed from there on.
 * blocks. returns: how many devices are there again (0: none was lost); NKV_EDEVICE: one is still lost (others may be
 * there again); NKV_ESTATE: a ticket is in flight, or the device now holds another shape; a device's error.
 */
NKV_API int nkv_context_recover(struct nkv_context *context, uint64_t timeout_ms);
/* The shape it was opened with. */
NKV_API void nkv_context_shape(const struct nkv_context *context, struct nkv_kv_shape *shape_out);

/* ---- Sequences
 * ------------------------------------------------------------------------------------------------------------------ */

struct nkv_seq_options {
    uint32_t size;       /* sizeof(struct nkv_seq_options) */
    uint32_t max_tokens; /* admission reserves memory for this many */
    enum nkv_mode mode;
    uint32_t budget_tokens; /* attended per step in the sparse modes, sink and recent included; rounded up to pages;
                               default 2048 */
    uint32_t sink_pages;    /* 0 is allowed; NKV_DEFAULT: 1 */
    uint32_t recent_pages;  /* >= 1; NKV_DEFAULT: 2 */
    enum nkv_granularity granularity;
    uint32_t n_dense_layers;  /* the first layers attend to every page in every mode */
    uint32_t resident_tokens; /* copies per layer on the compute side; NKV_DEFAULT: half the budget in png, twice in
                                 recall */
    bool same_step_recall;    /* png: recalled pages are attended on the compute side in the same step (the paper), not
                                 from the next */
    bool attend_resident;     /* recall: attend to everything resident (ArkVale), not to the selected set only */
    bool sparse_prefill;      /* blocks of query tokens attend to selected pages, too */
    uint32_t prefill_budget_tokens; /* per block of queries; NKV_DEFAULT: budget_tokens */
    bool keep_digests;              /* full: build digests all the same, so that it can be forked into a sparse mode */
};
#define NKV_DEFAULT UINT32_MAX
/* Fills the defaults: mode pnm, budget 2048, everything else as stated above. */
NKV_API void nkv_seq_options_init(struct nkv_seq_options *options);

/*
 * Opens an empty sequence on the PNM device that has room and will have the least to do in a decode step: bytes of
 * pages and digests read, by mode, budget and max_tokens of its sequences (ties: the lowest number). returns: 0;
 * NKV_EINVAL; NKV_ENOSPC: no device can hold max_tokens now (the message says how much is missing, and whether it could
 * ever fit), or the compute device has no room for resident pages and digests; NKV_ESTATE: the I/O windows must grow,
 * but a ticket is in flight; a device's error.
 */
NKV_API int nkv_seq_open(struct nkv_context *context, const struct nkv_seq_options *options, struct nkv_seq **seq_out);
/*
 * Whether such a sequence would fit if no other were open. returns: 0; NKV_ENOSPC: it can never fit, with what is
 * missing; NKV_EINVAL as nkv_seq_open.
 */
NKV_API int nkv_seq_can_fit(const struct nkv_context *context, const struct nkv_seq_options *options);
/* Frees every page on every device; of a session, those of the compute side only. NULL is allowed. */
NKV_API void nkv_seq_close(struct nkv_seq *seq);
/*
 * A new sequence on the same device that starts as the first n_tokens tokens of parent, sharing full pages.
 * options: its own mode and limits; NULL: the parent's.
 */
NKV_API int nkv_seq_fork(struct nkv_seq *parent, uint32_t n_tokens, const struct nkv_seq_options *options,
                         struct nkv_seq **seq_out);
/* Forgets all but the first n_tokens tokens. Also makes a sequence usable again after a failed step, if n_tokens <= its
 * length. returns: 0; NKV_EINVAL; NKV_ESTATE: it is in a ticket; NKV_ENOENT: its device was lost and came back without
 * it; a device's error. */
NKV_API int nkv_seq_truncate(struct nkv_seq *seq, uint32_t n_tokens);
/* Committed tokens. */
NKV_API uint32_t nkv_seq_length(const struct nkv_seq *seq);
/* 0, or the status that ended this sequence (a device's error); the message is in nkv_seq_error(). */
NKV_API int nkv_seq_status(const struct nkv_seq *seq);
NKV_API const char *nkv_seq_error(const struct nkv_seq *seq);
#define NKV_ALL_DEVICES (UINT32_MAX - 1)
/* Number of the PNM device that holds it; where all do, 0, or NKV_ALL_DEVICES if that was NKV_KV_AUTO's choice. */
NKV_API uint32_t nkv_seq_device(const struct nkv_seq *seq);

/* Called now and then by what takes long; a nonzero return stops it with NKV_ECANCELED. */
typedef int (*nkv_progress_fn)(void *arg, uint64_t n_done, uint64_t n_total);

/*
 * Moves a sequence to another PNM device, between steps: its pages go through both windows in pieces, and the old ones
 * are freed when all are there. It goes on with the same bits; of what a fork shares it gets a copy. progress counts
 * bytes and may be NULL. blocks. returns: 0 (also: it is there already); NKV_ENOSPC: no room there; NKV_ESTATE: a step
 * is under way, the sequence has failed, or the I/O windows must grow, but a ticket is in flight; NKV_ENOTSUP: a
 * session, or one that NKV_KV_AUTO spread over all; NKV_EINVAL, NKV_ENOMEM, NKV_ECANCELED, a device's error. State
 * after a failure: it is where it was.
 */
NKV_API int nkv_seq_migrate(struct nkv_seq *seq, uint32_t device, nkv_progress_fn progress, void *progress_arg);
/*
 * Moves at most one sequence (no session, none in a ticket, spread or with a step under way) off the device that has
 * the most to do, if the steps thus shortened are worth the bytes when n_steps more are expected of this company.
 * returns: 1: moved; 0: nothing is worth it; as nkv_seq_migrate.
 */
NKV_API int nkv_context_rebalance(struct nkv_context *context, uint32_t n_steps);

/* ---- Sessions
 * -------------------------------------------------------------------------------------------------------------------
 */

/*
 * A session is a sequence that stays on its device under a name when it is closed, with the ids of its tokens, so that
 * it can be taken up where it ended: by this process or another one, in any mode, by the same model with the same KV
 * shape. How long it stays is the device's affair: as long as its process, or its memory.
 */
struct nkv_session_options {
    uint32_t size;         /* sizeof(struct nkv_session_options) */
    uint32_t n_tokens;     /* of the whole prompt */
    const int32_t *tokens; /* their ids */
    const char *name;      /* letters, digits and "-_.", at most 55 */
    uint64_t model;        /* tells models apart: nkv_model_fingerprint(), or any number */
    bool continues;        /* the prompt comes after all that the session holds, and it must exist */
};

enum nkv_session_how { NKV_SESSION_NEW = 0, NKV_SESSION_RESUMED = 1, NKV_SESSION_FORKED = 2 };

struct nkv_session_result {
    enum nkv_session_how how;
    uint32_t n_reused; /* tokens that the sequence holds: those of the prompt from there on are to be fed */
    char from[56];     /* FORKED: the session that gave them */
    uint64_t used_bytes, shared_bytes; /* of pages and digests; of these, shared with other sessions */
};

/*
 * Opens the session of that name and cuts it to what its tokens and the prompt's have in common; or, if there is none,
 * forks the session of the same model that has the most in common with the prompt (at least a full page), or opens an
 * empty one. The last token of a prompt is never reused: it must be fed to learn what follows. The sequence always has
 * digests; max_tokens is raised to what the session holds. Every step must be announced with nkv_seq_note_tokens.
 * returns: 0; NKV_EFORMAT: that name is another model's; NKV_ESTATE: another client has it, or as nkv_seq_open;
 * NKV_ENOENT: nothing to continue; NKV_EINVAL, NKV_ENOSPC, a device's error. If a device is lost, a session that
 * another holds is opened, and any other name is refused with that device's error, which may hold it.
 */
NKV_API int nkv_session_open(struct nkv_context *context, const struct nkv_seq_options *seq_options,
                             const struct nkv_session_options *options, struct nkv_seq **seq_out,
                             struct nkv_session_result *result_out);
/*
 * The ids of the tokens that the sequence's next step feeds: before its first layer, for each step of a session. Other
 * sequences: does nothing. (nkv_prefill and nkv_decode call it.)
 */
NKV_API int nkv_seq_note_tokens(struct nkv_seq *seq, const int32_t *tokens, uint32_t n);
/* Reads back the ids of n committed tokens of a session from `first` on. */
NKV_API int nkv_session_tokens(struct nkv_seq *seq, uint32_t first, int32_t *tokens_out, uint32_t n);

struct nkv_session_info {
    char name[56];
    uint64_t model;
    uint32_t device; /* number of the PNM device that has it */
    uint32_t n_tokens, max_tokens;
    bool is_attached; /* a client has it */
    uint64_t used_bytes, shared_bytes;
};
/* Describes at most n sessions from the first-th on, by device and name. returns: how many, or a device's error. */
NKV_API int nkv_session_list(struct nkv_context *context, uint32_t first, struct nkv_session_info *infos_out,
                             uint32_t n);
/* returns: 0; NKV_ENOENT; a device's error, which may hold it. */
NKV_API int nkv_session_find(struct nkv_context *context, const char *name, struct nkv_session_info *info_out);
/* Frees a session. returns: 0; NKV_ENOENT; NKV_ESTATE: a client has it; a device's error. */
NKV_API int nkv_session_remove(struct nkv_context *context, const char *name);

/*
 * Writes a session to a file (docs/formats.md), which appears whole or not at all; the session stays as it is. progress
 * counts bytes and may be NULL. returns: 0; NKV_ENOENT; NKV_ESTATE: a client has it; NKV_EINVAL: it holds no tokens;
 * NKV_EIO, NKV_ECANCELED, a device's error.
 */
NKV_API int nkv_session_export(struct nkv_context *context, const char *name, const char *path,
                               nkv_progress_fn progress, void *progress_arg);
/*
 * Makes a session of such a file, under its own name (NULL) or another. It is there when all is; what fails leaves
 * nothing. returns: 0; NKV_EFORMAT: the file is damaged, or of another KV shape; NKV_ENOTSUP: of another version;
 * NKV_ESTATE: there is one of that name; NKV_ENOSPC, NKV_ENOENT, NKV_EIO, NKV_ECANCELED, a device's error.
 */
NKV_API int nkv_session_import(struct nkv_context *context, const char *path, const char *name,
                               nkv_progress_fn progress, void *progress_arg);
struct nkv_session_file_info {
    char name[56];
    uint64_t model;
    struct nkv_kv_shape shape;
    uint32_t n_tokens;
    uint64_t file_bytes;
};
/* What the header of such a file says. returns: 0, NKV_ENOENT, NKV_EFORMAT, NKV_ENOTSUP, NKV_EIO. */
NKV_API int nkv_session_file_info(const char *path, struct nkv_session_file_info *info_out);

/* ---- Steps
 * ----------------------------------------------------------------------------------------------------------------------
 */

/* New tokens of one sequence in one layer. All arrays are the caller's, row major f32, untouched until nkv_attend_end
 * returns. */
struct nkv_attend_item {
    struct nkv_seq *seq;
    uint32_t n_tokens; /* 1: decode; more: a chunk of prefill */
    const float *q;    /* [n_tokens][n_heads][head_dim], after RoPE, not scaled; NULL: append only, no attention */
    const float *k;    /* [n_tokens][n_kv_heads][head_dim], after RoPE */
    const float *v;    /* [n_tokens][n_kv_heads][head_dim] */
    float *out;        /* [n_tokens][n_heads][head_dim]; unused without q */
};

/*
 * Appends k, v and attends, for one layer of a batch of distinct sequences. Every layer must be called once per step,
 * in order. At most two tickets are in flight, of disjoint sequences (two micro-batches: FC of one under the attention
 * of the other). begin returns when commands are queued; end waits, merges and writes `out`. A sequence that fails (its
 * device's error) is marked, its `out` is zeroed, the others go on: both calls still return 0. Items whose sequence has
 * already failed are passed over. Other returns: NKV_EINVAL, NKV_ESTATE, NKV_ENOSPC (a sequence would outgrow its
 * max_tokens); nothing was queued.
 */
NKV_API int nkv_attend_begin(struct nkv_context *context, uint32_t layer, const struct nkv_attend_item *items,
                             uint32_t n_items, struct nkv_ticket **ticket_out);
NKV_API int nkv_attend_end(struct nkv_ticket *ticket);
/* After the last layer: commits the new tokens of every item's sequence. */
NKV_API int nkv_step_end(struct nkv_context *context, const struct nkv_attend_item *items, uint32_t n_items);

/*
 * Work of the dense layers (FC) between two attend calls, for whoever charges time for it: the compute device is told
 * and waited for. A real one completes it at once, because the caller does the work itself.
 */
struct nkv_fc_work {
    uint32_t n_rows; /* tokens of the batch */
    uint64_t flops;
    uint64_t bytes;  /* of weights read */
    uint32_t n_sums; /* all-reduces between the parts of a compute side that has several */
    uint64_t sum_bytes;
};
/* blocks. returns: 0; NKV_EINVAL: the context has no compute device; a device's error. */
NKV_API int nkv_fc(struct nkv_context *context, const struct nkv_fc_work *work);

/* ---- Statistics
 * ----------------------------------------------------------------------------------------------------------------- */

/* Counted since open or nkv_seq_stats_reset. "link": between compute side and PNM device. Bytes are those of the
 * formats that cross: f32 q, k, v and partials, u32 lists, pages. */
struct nkv_seq_stats {
    uint64_t n_steps;                            /* decode steps (n_tokens == 1) */
    uint64_t to_device_bytes, from_device_bytes; /* recalled pages included */
    uint64_t recalled_pages,
        recalled_bytes;       /* pages copied to the compute side; a page of one KV head counts 1/KVH of a page */
    uint64_t attended_tokens; /* summed over decode steps and layers (mean over units) */
    uint64_t chosen_pages,
        steady_pages; /* summed over decode steps, sparse layers and units; steady: found resident when selected */
    uint64_t n_layer_steps;          /* decode steps x layers */
    uint64_t n_sparse_layer_steps;   /* decode steps x layers in which a selection ran, x units */
    uint32_t resident_pages;         /* now, all layers, mean over units */
    uint32_t pages;                  /* KV pages held */
    uint64_t kv_bytes, digest_bytes; /* held on the device */
    /* decode wall time by part, from the devices' completions */
    uint64_t select_ns, attend_ns, append_ns, recall_ns;
    uint64_t wall_ns; /* decode: from begin to end of every layer, on the context's clock */
};
NKV_API void nkv_seq_stats(const struct nkv_seq *seq, struct nkv_seq_stats *stats_out);
NKV_API void nkv_seq_stats_reset(struct nkv_seq *seq);

struct nkv_device_report {
    char name[64];
    uint64_t capacity_bytes, used_bytes, busy_ns;
    uint32_t n_sequences, n_free_pages, n_total_pages;
    uint64_t window_bytes;              /* of its I/O window: memory on top of the capacity, committed as it is used */
    uint64_t read_bytes, written_bytes; /* by its commands so far, as struct nkv_device_stat says */
};
/* What sharing sequences between devices took so far; all 0 with NKV_KV_DATA, which AUTO is where nothing can be
 * spread. */
struct nkv_kv_parallel_report {
    enum nkv_kv_parallel kv_parallel;
    uint32_t n_devices;
    uint64_t n_commands; /* of the context: an append, a selection, an attention, a read of one sequence and layer */
    uint64_t n_messages; /* commands that the devices got for them; each is answered once */
    uint64_t n_select_rounds; /* selections for which the host ranked what several devices told */
    uint64_t to_device_bytes,
        from_device_bytes; /* of all devices together; nkv_seq_stats counts as if there were one */
};
NKV_API void nkv_context_kv_parallel(const struct nkv_context *context, struct nkv_kv_parallel_report *report_out);

/* Device number i < n_devices; i == n_devices: the compute device. */
NKV_API int nkv_context_device(const struct nkv_context *context, uint32_t i, struct nkv_device_report *report_out);

/*
 * Bytes that one sequence of max_tokens tokens takes, before anything is allocated. (The device rounds nothing beyond
 * this.)
 */
struct nkv_kv_estimate {
    uint64_t page_bytes;   /* one page, all layers */
    uint64_t kv_bytes;     /* all pages */
    uint64_t digest_bytes; /* all digests, whole chunks */
    uint64_t total_bytes;
};
NKV_API int nkv_kv_estimate(const struct nkv_kv_shape *shape, uint32_t max_tokens,
                            struct nkv_kv_estimate *estimate_out);

/*
 * Bytes that one such sequence takes on the compute device: its resident pages and, in recall, digests and the open
 * page. 0 in full and pnm. returns: 0, or NKV_EINVAL as nkv_seq_open.
 */
NKV_API int nkv_compute_estimate(const struct nkv_kv_shape *shape, const struct nkv_seq_options *options,
                                 uint64_t *bytes_out);

/* Sequential read bandwidth of n_threads threads over bytes of memory in GB/s (1e9), best of `rounds`. blocks. */
NKV_API int nkv_read_bandwidth(uint64_t bytes, uint32_t n_threads, uint32_t rounds, double *gb_per_s_out);

/* ---- Memory
 * ---------------------------------------------------------------------------------------------------------------------
 */

enum nkv_memory_kind {
    NKV_MEMORY_NODE,         /* a NUMA node with CPUs */
    NKV_MEMORY_CPULESS_NODE, /* a NUMA node of memory only, as a CXL memory expander makes one */
    NKV_MEMORY_DAX,          /* a DAX device */
    NKV_MEMORY_CXL,          /* a CXL memory device; of use once it is a DAX device or a node */
    NKV_MEMORY_KIND_COUNT
};

struct nkv_memory {
    enum nkv_memory_kind kind;
    char name[32];  /* node0, dax0.0, mem0 */
    char path[96];  /* /sys/devices/system/node/node0, /dev/dax0.0, /dev/cxl/mem0 */
    char cpus[128]; /* of a node: "0-15"; may be cut off */
    uint64_t bytes; /* 0: not known */
    /* The node; of a DAX device the one that its memory is or would be; of a CXL device the one that it is attached to.
     * -1: not known. */
    int32_t node;
    uint32_t distance;       /* from the nearest CPUs, 10: their own node; 0: not known */
    uint32_t bandwidth_mb_s; /* reads by the nearest CPUs, as the firmware (HMAT) says; 0: not known */
    uint32_t latency_ns;
    char argument[112]; /* what to give to --memory: anon:SIZE, numa:N:SIZE, dax:PATH; "": nothing */
    /* Of a CXL device the CXL regions that it is part of ("region0", several with commas), of a DAX device the one that
     * its memory is in. "": none, or not known (only root may read a DAX device's address). */
    char regions[64];
};

struct nkv_memory_list {
    struct nkv_memory *memories; /* nodes, DAX devices, CXL devices */
    uint32_t n;
    const struct nkv_memory *best; /* the one to use for KV pages; NULL: none has an argument */
};

/*
 * What memory there is for a device. What cannot be read is left out or "not known". The caller closes the list.
 * returns: 0; NKV_ENOMEM.
 */
NKV_API int nkv_memory_list_open(struct nkv_memory_list **list_out);
/* NULL is allowed. */
NKV_API void nkv_memory_list_close(struct nkv_memory_list *list);
/* "node", "memory-only node", "dax", "cxl". */
NKV_API const char *nkv_memory_kind_name(enum nkv_memory_kind kind);

/* ---- Kernels
 * --------------------------------------------------------------------------------------------------------------------
 */

/* The kernel table in use ("avx512"), and how to choose another ("ref", "avx2", "avx512", "auto"). */
NKV_API const char *nkv_kernels_name(void);
NKV_API int nkv_kernels_choose(const char *name);

#ifdef __cplusplus
}
#endif
#endif
