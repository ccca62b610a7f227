/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.h: what `run`, `eval` and `info` share: the options that name a model, a cache and devices, and the model,
 * devices, context and decoder opened from them.
 */
#ifndef NKV_CLI_SESSION_H
#define NKV_CLI_SESSION_H

#include <nearkv/model.h>
#include <nearkv/nearkv.h>

#include "arguments.h"

#define SESSION_MAX_DEVICES 64u
#define SESSION_SPEC_BYTES  4096

struct session_options {
    const char *model;
    struct nkv_seq_options seq; /* max_tokens and sparse_prefill are set per sequence */
    uint32_t page_tokens;
    enum nkv_dtype kv;
    enum nkv_digest digest;
    enum nkv_prefill prefill;
    const char *specs[SESSION_MAX_DEVICES]; /* --device */
    uint32_t n_specs;
    uint32_t n_devices; /* --devices; 0: not given */
    enum nkv_kv_parallel kv_parallel;
    uint32_t n_threads;
    const char *trace;
    const char *memory;    /* of the devices of this process; NULL: ordinary memory */
    uint32_t reconnect_s;  /* how long a lost device is waited for; 0: not at all */
    struct nkv_comm *comm; /* the processes that share the dense layers; NULL: this one alone */
    uint32_t n_micro_batches;
};

enum {
    SESSION_MODE = 256,
    SESSION_BUDGET,
    SESSION_PAGE,
    SESSION_SINK,
    SESSION_RECENT,
    SESSION_DIGEST,
    SESSION_SELECT,
    SESSION_DENSE_LAYERS,
    SESSION_DEVICES,
    SESSION_DEVICE,
    SESSION_RESIDENT,
    SESSION_KV,
    SESSION_PREFILL,
    SESSION_PREFILL_BUDGET,
    SESSION_THREADS,
    SESSION_TRACE,
    SESSION_KV_PARALLEL, /* of those subcommands that list it beside SESSION_LONG_OPTIONS */
    SESSION_END,         /* a subcommand's own options start here */
};

#define SESSION_LONG_OPTIONS                                                                                           \
    {"model", required_argument, NULL, 'm' | ARGUMENTS_ONCE}, {"mode", required_argument, NULL, SESSION_MODE},         \
        {"budget", required_argument, NULL, SESSION_BUDGET}, {"page", required_argument, NULL, SESSION_PAGE},          \
        {"sink", required_argument, NULL, SESSION_SINK}, {"recent", required_argument, NULL, SESSION_RECENT},          \
        {"digest", required_argument, NULL, SESSION_DIGEST}, {"select", required_argument, NULL, SESSION_SELECT},      \
        {"dense-layers", required_argument, NULL, SESSION_DENSE_LAYERS},                                               \
        {"devices", required_argument, NULL, SESSION_DEVICES}, {"device", required_argument, NULL, SESSION_DEVICE},    \
        {"resident", required_argument, NULL, SESSION_RESIDENT}, {"kv", required_argument, NULL, SESSION_KV},          \
        {"prefill", required_argument, NULL, SESSION_PREFILL},                                                         \
        {"prefill-budget", required_argument, NULL, SESSION_PREFILL_BUDGET},                                           \
        {"threads", required_argument, NULL, SESSION_THREADS},                                                         \
    {                                                                                                                  \
        "trace", required_argument, NULL, SESSION_TRACE | ARGUMENTS_ONCE                                               \
    }

/* Lines of --help. Of --mode, which eval has otherwise: */
#define SESSION_MODE_HELP "  --mode full|recall|pnm|png   where pages are selected and attended (default png)\n"
/* Of --trace, which info refuses: */
#define SESSION_TRACE_HELP                                                                                             \
    "  --trace FILE            record the devices' commands and page scores (N devices: FILE.0, FILE.1, ...; the\n"    \
    "                          compute side: FILE.compute)\n"
/* Of all other SESSION_LONG_OPTIONS. */
extern const char session_help[];

void session_defaults(struct session_options *options);
/* Takes one option of SESSION_LONG_OPTIONS. returns: CLI_OK, or CLI_USAGE with a message. */
int session_option(struct session_options *options, int option, const char *arg);
/* What can be wrong between options. returns: CLI_OK, or CLI_USAGE with a message. */
int session_check(const struct session_options *options);

/* ---- session_files.c ---- */

/* Whether --memory is for device i, and the memory: file:PATH[:SIZE], of several devices file:PATH.i[:SIZE]. */
bool session_has_memory(const struct session_options *options, uint32_t i);
/* returns: CLI_OK, or CLI_USAGE with a message. */
int session_memory(const struct session_options *options, uint32_t i, char memory_out[SESSION_SPEC_BYTES]);
/* Whether the memory is a file that does not exist. */
bool session_memory_is_missing(const char *memory);
/* Removes the file if it is memory that holds no sequence. */
void session_remove_memory(const char *memory);
/* The spec that device i is opened with: behind a recorder if there is a trace. returns: CLI_OK, or CLI_USAGE with a
 * message. */
int session_spec(const struct session_options *options, uint32_t i, char spec_out[SESSION_SPEC_BYTES]);
/* Whether a trace or the devices' memory is the model, and a trace the memory. returns: CLI_OK, or CLI_USAGE with a
 * message. */
int session_check_files(const struct session_options *options);
/* Whether a trace or the devices' memory is path, which flag names for reading (NULL: none). returns: as above. */
int session_check_input(const struct session_options *options, const char *flag, const char *path);

/* ---- session.c, session_options.c ---- */

uint32_t session_device_count(const struct session_options *options);
/* How sequences lie on them: auto is dp where nothing can be spread. */
enum nkv_kv_parallel session_kv_parallel(const struct session_options *options);
/* Windows beside those of the devices: of what makes one device of all, and of its part of each. */
uint32_t session_more_windows(const struct session_options *options);
/* Places that a sequence can have: devices, or one that is all of them. */
uint32_t session_home_count(const struct session_options *options);

struct session {
    struct session_options options;
    struct nkv_model *model;
    struct nkv_model_info info;
    struct nkv_kv_shape shape;
    struct nkv_device *devices[SESSION_MAX_DEVICES];
    uint32_t n_devices;
    struct nkv_device *compute;
    struct nkv_context *context;
    struct nkv_decoder *decoder;
    bool made_memory[SESSION_MAX_DEVICES]; /* the file was not there before the device was opened */
    bool told_reconnect;                   /* that there is --reconnect, or that it was in vain */
};

/* What the sequences will need at most at one time. */
struct session_need {
    uint64_t device_bytes; /* on the fullest device */
    uint64_t total_bytes;  /* on all devices together */
    uint64_t compute_bytes;
    uint32_t max_batch;
};

/* Whether sequences of a model of that shape can lie as the options say. returns: CLI_OK, or CLI_USAGE with a message.
 */
int session_check_shape(const struct session_options *options, const struct nkv_kv_shape *shape);
/* Whether the model's context has room for the n_tokens that the flag asks for and n_answer more. returns: CLI_OK, or
 * CLI_USAGE with a message. */
int session_check_context(const struct session *session, const char *flag, uint64_t n_tokens, uint32_t n_answer);
/* returns: CLI_OK, CLI_FAILED, CLI_USAGE with a message; session_close is right after any of them. */
int session_open_model(struct session *session, const struct session_options *options);
/* Opens the PNM devices alone, unless they are open. */
int session_open_pnm(struct session *session, uint64_t capacity_bytes);
/* Opens devices of the stated capacity, context and decoder, after checking that there is memory for them. */
int session_open_devices(struct session *session, const struct session_need *need);
/* The same when the caller has checked. */
int session_open_checked(struct session *session, const struct session_need *need);
/* The decoder alone, of a process that follows another (nkv_decoder_follow). */
int session_open_decoder(struct session *session, uint32_t max_batch);
/* At the end of the work: what a device has still to say, such as a trace that could not be written. returns: CLI_OK,
 * or CLI_FAILED with a message. */
int session_check_devices(const struct session *session);
void session_close(struct session *session);
/* The same after a failure before anything was put in: files that were made for the devices' memory are removed. */
void session_abandon(struct session *session);

/* Options for a sequence of n_prompt tokens that may grow to max_tokens: the prefill rule is applied here. */
void session_seq_options(const struct session *session, uint32_t n_prompt, uint32_t max_tokens,
                         struct nkv_seq_options *options_out);
/* Bytes that a sequence of max_tokens takes on its device, or on each device where it lies on all of them, and what of
 * it a fork at n_shared tokens adds. */
int session_device_bytes(const struct session *session, uint32_t n_shared, uint32_t max_tokens, uint64_t *bytes_out);
/* The same of a sequence that auto spreads, on each device. */
int session_part_bytes(const struct session *session, uint32_t n_shared, uint32_t max_tokens, uint64_t *bytes_out);
/* Bytes of one more sequence on the compute side. */
int session_compute_bytes(const struct session *session, const struct nkv_seq_options *seq, uint64_t *bytes_out);

/* Bytes that the program takes beside weights and cache: code, activations, the devices' I/O windows. */
int session_work_bytes(const struct session *session, uint32_t max_batch, uint64_t *bytes_out);

#endif
