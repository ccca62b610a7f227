/* SPDX-License-Identifier: Apache-2.0 */
/*
 * runtime/runtime.h: what the files of the runtime share.
 *
 *   context   ports (devices and their windows), lanes (tickets), sequences
 *   port      one device: commands are staged, submitted and reaped here and nowhere else
 *   lane      one attend call: its work items, its plan, and its part of every port's window
 *   work      one sequence in one lane
 *
 * A lane's part of a window holds the operands of that lane's commands until all have completed. There are more lanes
 * than tickets a client may hold: a lane whose outputs are delivered may still be moving recalled pages (draining).
 *
 *   attend_begin: lay out the windows, copy q k v in, plan the first commands, submit
 *   lane_advance: as SELECTs and READs complete, plan what depends on them (in the order of the items, so that the
 *                 plan does not depend on speed)
 *   attend_end:   wait for the partials, merge, write out; the rest drains
 */
#ifndef NKV_RUNTIME_RUNTIME_H
#define NKV_RUNTIME_RUNTIME_H

#include <nearkv/device.h>
#include <nearkv/nearkv.h>

#include "base/mem.h"
#include "base/status.h"

#define MAX_TICKETS       2u
#define N_LANES           4u
#define STAGED_COMMANDS   64u
#define QUEUE_COMMANDS    256u /* what every device's queue holds at least */
#define MAX_BLOCK_TOKENS  128u /* query tokens that share one page set in a sparse prefill */
#define MOVE_PAGES        64u  /* digests copied per command when a compute side is brought up to date */
#define WORK_COMMANDS     11u  /* most commands of a decode step of one sequence and layer */
#define CONTROL_USER_DATA UINT64_MAX

struct group;
struct shares;

struct orphan {
    uint32_t id;
    uint16_t flags; /* of SEQ_CLOSE */
};

#define GROUP_BACKEND "group" /* of the device that stands for all */
struct port {
    struct nkv_device *device;
    struct nkv_device_caps caps;
    char label[96]; /* for messages: "device 1 (pnm1)", "all devices (cp over 2)" */
    uint32_t index;
    uint8_t *window;
    uint64_t window_bytes, lane_bytes;
    uint64_t control_bytes; /* behind the lanes: operands of commands that port_control runs */
    uint64_t n_queued;      /* commands ever staged: a command's number in this queue */
    uint32_t n_in_flight, n_staged;
    int status; /* < 0: the queue itself failed; nothing is submitted until it is reopened, and why: */
    char error[256];
    bool control_done; /* also when none was sent */
    int control_res;
    bool refused;           /* the sequence that is being opened, for lack of room */
    uint32_t epoch;         /* how often it was reopened */
    struct orphan *orphans; /* what the device may hold and no sequence has */
    uint32_t n_orphans, max_orphans;
    struct nkv_cmd staged[STAGED_COMMANDS];
};

/* What a command is for; also the order in which a lane waits. */
enum role {
    ROLE_IDS,          /* sessions: the ids of the tokens to the home device, before the tokens */
    ROLE_APPEND,       /* k, v to the home device */
    ROLE_MIRROR,       /* recall: k, v to the compute side */
    ROLE_SELECT,       /* on the home device; recall: on the compute side */
    ROLE_ATTEND,       /* on the home device */
    ROLE_READ,         /* recalled pages from the home device */
    ROLE_WRITE,        /* the same pages into slots of the compute side */
    ROLE_ATTEND_SLOTS, /* resident pages, on the compute side */
    ROLE_ATTEND_OPEN,  /* recall: the open page, on the compute side */
    ROLE_COUNT
};

struct planned {
    struct nkv_cmd cmd;
    uint64_t number; /* in its port's queue */
    uint32_t work;
    uint16_t port;
    uint8_t role;
    bool submitted, completed;
    int32_t after; /* index in the plan of the command whose result it needs, -1: none */
    int32_t res;
};

enum method {
    METHOD_APPEND, /* no query: only the home device's (and the mirror's) cache grows */
    METHOD_DENSE,  /* every page, on the home device */
    METHOD_BLOCKS, /* sparse prefill: select and attend block by block, on the home device */
    METHOD_PNM,
    METHOD_PNG,
    METHOD_PNG_SAME_STEP,
    METHOD_RECALL,
};

enum stage {
    STAGE_SELECT, /* waits for the SELECT: the host has something to plan from its result */
    STAGE_MOVE,   /* waits for the READ: pages are to be handed on */
    STAGE_FINAL,  /* everything is submitted */
};

/* Where the operands lie, as offsets from the work's part of a lane. */
struct home_layout {
    uint64_t kv, ids, q, q_stride, partial, partial_stride, select, select_stride, resident, list, pages, bytes;
};
struct compute_layout {
    uint64_t kv, q, select, open_list, open_partial, slot_list, slot_partial, write_list, pages, bytes;
};

struct work {
    struct nkv_seq *seq; /* NULL: passed over */
    struct nkv_attend_item item;
    enum method method;
    enum stage stage;
    uint32_t pos;
    uint32_t n_blocks, block_tokens;
    bool delivered;
    struct home_layout home;
    struct compute_layout compute;
    uint64_t home_base, compute_base; /* in the windows */
    uint32_t waiting[ROLE_COUNT];     /* planned, not yet submitted */
    uint32_t in_flight[ROLE_COUNT];
    int32_t last[ROLE_COUNT]; /* index in the plan of the role's latest command, -1: none */
    uint64_t ns[ROLE_COUNT];
    uint32_t n_recalled; /* pages, all units together */
    uint32_t n_attended; /* recall: resident pages attended, all units together */
    int status;          /* the failure with the lowest index in the plan */
    uint32_t failed_at;
    char error[256];
};

enum lane_state { LANE_FREE, LANE_OPEN, LANE_DRAINING };

struct nkv_ticket {
    struct nkv_context *context;
    enum lane_state state;
    uint32_t index;
    uint32_t layer;
    uint32_t n_works, n_planned, max_planned;
    uint64_t begin_ns;
    struct work *works;    /* [max_batch] */
    struct planned *plan;  /* [max_planned] */
    uint64_t *window_used; /* [n_ports] */
};

struct nkv_seq {
    struct nkv_context *context;
    struct nkv_seq *previous, *next;
    struct nkv_seq_options options; /* every default resolved */
    struct port *home;
    uint32_t id;                  /* on the home device */
    uint32_t mirror_id, slots_id; /* on the compute device; 0: none */
    uint32_t compute_epoch;       /* of the compute device, when they were opened */
    uint32_t n_units, max_pages, budget_pages, prefill_pages, block_tokens, n_slots;
    uint32_t length;                  /* committed tokens */
    uint32_t step_tokens, next_layer; /* of the step in progress; next_layer 0: none */
    struct nkv_ticket *ticket;        /* NULL: not in flight */
    uint64_t batch;                   /* the attend call that named it last */
    uint32_t *resident;               /* [layer][unit][slot] page or NKV_PAGE_NONE */
    int32_t *ids;                     /* sessions: [max_tokens of the context] of the next step; else NULL */
    uint32_t n_ids;
    bool removes;           /* closing frees it, published as it is */
    uint32_t mirror_tokens; /* that every layer of the mirror holds, unless it is stale */
    bool mirror_stale;
    int status;
    char error[256];
    struct nkv_seq_stats stats;
    uint64_t recalled_units;
};

/* What the windows must hold, the most that any sequence asked for: bytes of a block of a sparse prefill, of all blocks
 * of max_tokens tokens, and of a decode work on either side. */
struct lane_need {
    uint64_t block, blocks, home, compute;
    uint64_t lists; /* auto: page lists that the group adds in its members' windows */
};

struct nkv_context {
    struct nkv_kv_shape shape;
    struct nkv_context_options options;
    struct group *group;           /* the PNM devices as one; NULL: dp */
    struct nkv_device *group_view; /* [1] */
    struct shares *shares;         /* auto: between the devices and their two users, their own ports and the group */
    uint32_t n_ports;              /* the PNM devices (cp, tp: the group), auto: the group, then the compute device */
    struct port *ports, *compute;
    struct port *group_port; /* NULL: none */
    struct nkv_ticket lanes[N_LANES];
    struct nkv_seq *sequences;
    uint32_t next_id;
    uint64_t n_batches; /* attend calls */
    struct lane_need need;
    uint32_t *scratch; /* u32s for the policies */
    uint64_t n_scratch;
    uint64_t *free_bytes; /* [n_ports], for placement; of lost devices 0 */
    uint64_t *loads;      /* [n_ports], of the PNM devices: bytes per decode step, as the policy predicts them */
    char refusal[512];    /* of the last port that is `refused` */
    char *line;           /* of the plan log */
    uint64_t line_bytes;
};

/* ---- step.c ---- */
struct partial {
    float *o, *m, *l;
};
static inline struct partial partial_at(const struct nkv_kv_shape *shape, uint8_t *window, uint64_t offset,
                                        uint32_t n_tokens)
{
    struct nkv_partial_layout at = nkv_partial_layout(shape, n_tokens);
    uint8_t *base = window + offset;

    return (struct partial){(float *)(void *)(base + at.o), (float *)(void *)(base + at.m),
                            (float *)(void *)(base + at.l)};
}

/* ---- group.c ---- */
/* Makes one device of several, which are borrowed. */
int group_open(enum nkv_kv_parallel kv_parallel, const struct nkv_kv_shape *shape, struct nkv_device *const *devices,
               uint32_t n, struct group **group_out);
/* NULL is allowed. */
void group_close(struct group *group);
/* Waits for what is in flight on members that still answer; what was to come of it is lost. */
void group_drain(struct group *group);
struct nkv_device *group_device(struct group *group);
uint32_t group_size(const struct group *group);
const struct port *group_member(const struct group *group, uint32_t i);
/* Where the group keeps the address of a member's window. */
uint8_t **group_member_window(struct group *group, uint32_t i);
/* What lies on a member of a sequence of n_tokens tokens: tokens, in what shape. */
uint32_t group_local(const struct group *group, uint32_t member, uint32_t n_tokens, struct nkv_kv_shape *shape_out);
void group_report(const struct group *group, struct nkv_kv_parallel_report *report_out);

/* ---- port.c ---- */
int port_check_device(const struct nkv_device *device, uint32_t index);
/* Checks that the device speaks this ABI and, where it tells, that it was opened with this shape. */
int port_open(struct port *port, struct nkv_device *device, uint32_t index, const struct nkv_kv_shape *shape);
/* What the device holds; zeros where it does not tell. */
int port_stat(const struct port *port, struct nkv_device_stat *stat_out);
/* Maps N_LANES times lane_bytes and control_bytes; nothing may be in flight. */
int port_map(struct port *port, uint64_t lane_bytes, uint64_t control_bytes);
/* Where the operands of control commands lie. */
static inline uint64_t port_control_at(const struct port *port)
{
    return N_LANES * port->lane_bytes;
}
/* Maps a window of so many bytes, and asks again what the device is: one that came back may have other memory. */
int port_remap(struct port *port, uint64_t bytes);
/* After the device was lost: maps such a window again and puts the port in order. State after a failure: out of order.
 * pre: no lane has anything in it. */
int port_reopen(struct port *port, uint64_t lane_bytes, const struct nkv_kv_shape *shape);
/* The queue failed: puts the port out of order and ends what is in flight. */
void port_fail(struct nkv_context *context, struct port *port, int status, const char *reason);
/* A device is lost for its own sequences and for those that lie on all, whoever of them noticed. */
void ports_check_shares(struct nkv_context *context);
/* Queues a command; what is staged goes down with port_flush. returns: its number. */
uint64_t port_stage(struct nkv_context *context, struct port *port, const struct nkv_cmd *cmd);
void port_flush(struct nkv_context *context, struct port *port);
/* What a call that failed has to say; a message of before it (nkv_fail_count() then) is not its. */
const char *port_message_since(uint64_t n_messages);
/* Takes completions and hands them to their lanes; min_n 0: those that are there. */
void port_reap(struct nkv_context *context, struct port *port, uint32_t min_n);
/* Runs one command to its end, beside whatever else is in flight. returns: its result, with a message on failure. */
int port_control(struct nkv_context *context, struct port *port, const struct nkv_cmd *cmd);
/* Copies bytes from another port's window to `offset` of this one's, by the device's own means if it has some. */
int port_copy(const struct port *port, uint64_t offset, const void *from, uint64_t bytes);
/* What READ and WRITE of n pages from `first` on have in common: their list is put where the control area begins. */
struct nkv_cmd port_name_pages(const struct port *port, uint32_t seq, uint32_t layer, uint32_t first, uint32_t n);
const char *op_name(uint8_t op);

/* ---- admit.c ---- */
/* Resolves defaults and checks; fills the derived sizes of seq from options. */
int seq_resolve(const struct nkv_kv_shape *shape, const struct nkv_seq_options *options, struct nkv_seq *seq_out);
/* Bytes on the home device and on the compute device. */
int seq_bytes(const struct nkv_kv_shape *shape, const struct nkv_seq *seq, uint64_t *home_out, uint64_t *compute_out);
/* Chooses seq->home, none that is `refused`, and checks the compute device's room. whole: on one device, whatever auto
 * would choose. */
int seq_place(struct nkv_context *context, struct nkv_seq *seq, bool whole);
/* Whether it lies on all devices of a context in which others do not. */
static inline bool seq_is_spread(const struct nkv_seq *seq)
{
    return seq->context->shares && seq->home == seq->context->group_port;
}
int seq_check_compute(struct nkv_context *context, const struct nkv_seq *seq);
bool seq_has_digests(const struct nkv_seq *seq);
/* What can be reserved there by a sequence whose pages take page_bytes each with all that belongs to them; 0: only its
 * bytes count. */
int port_free(const struct port *port, uint64_t page_bytes, uint64_t *bytes_out);
/* Bytes that its home device reads in a decode step, as the policy predicts them; of a sequence that is spread over
 * n_devices devices, each of them. */
uint64_t seq_load(const struct nkv_kv_shape *shape, const struct nkv_seq *seq, uint32_t n_devices);
/* Fills context->loads, and context->free_bytes of all PNM devices (page_bytes: as port_free). returns: 0; what a
 * device that tells nothing is lost with, if no device has any room; another failure. */
int context_survey(struct nkv_context *context, uint64_t page_bytes);

/* ---- layout.c ---- */
void work_layout(const struct nkv_kv_shape *shape, const struct nkv_seq *seq, enum method method, uint32_t n_tokens,
                 uint32_t block_tokens, struct home_layout *home_out, struct compute_layout *compute_out);
/* Grows windows, scratch and log line to what seq can ask for. pre: no ticket is open, or nothing has to grow. */
int context_reserve(struct nkv_context *context, const struct nkv_seq *seq);
/* Grows a PNM device's room for operands of control commands. pre: as context_reserve. returns: 0, also what the device
 * is lost with. */
int context_reserve_control(struct nkv_context *context, struct port *port, uint64_t bytes);
/* What a lane's part of the port's window must hold now. */
uint64_t context_lane_bytes(const struct nkv_context *context, const struct port *port);

/* ---- plan.c ---- */
int32_t plan_add(struct nkv_ticket *lane, uint32_t work, enum role role, struct port *port, struct nkv_cmd cmd,
                 int32_t after);
void plan_submit(struct nkv_ticket *lane, int32_t index);
void plan_complete(struct nkv_ticket *lane, uint32_t index, const struct nkv_cqe *cqe);
/* Whether the lane has a command of that number in flight on the port. */
bool plan_in_flight(const struct nkv_ticket *lane, uint32_t index, const struct port *port);
/* Whether a port that the work uses is out of order: the work has failed then. Asked before the host writes operands,
 * because what such a device was given before may still run in the same place of its window. */
bool plan_port_lost(struct nkv_ticket *lane, uint32_t work);
/* Gives up what the work has planned but not submitted. */
void plan_cancel(struct nkv_ticket *lane, uint32_t work);
void work_fail(struct nkv_ticket *lane, uint32_t work, uint32_t at, int status, const char *format, ...)
    NKV_PRINTF(5, 6);
void log_lane(struct nkv_ticket *lane);
void log_command(struct nkv_context *context, const struct port *port, const struct nkv_cmd *cmd);

/* ---- step_plan.c ---- */
void work_begin(struct nkv_ticket *lane, uint32_t index, uint32_t phase);
#define WORK_PHASES 4u /* work_begin in phases, so that equal commands of a batch are neighbours in the queue */
enum method work_method(const struct nkv_seq *seq, uint32_t layer, uint32_t n_tokens);
uint16_t unit_flag(const struct nkv_seq *seq);
uint32_t open_page(const struct nkv_kv_shape *shape, const struct work *work);
uint32_t block_length(const struct work *work, uint32_t block);
void copy_q(const struct nkv_context *context, const struct work *work, const struct port *port, uint64_t at,
            uint32_t first, uint32_t n_tokens);
void plan_read(struct nkv_ticket *lane, uint32_t index, uint64_t list_offset, uint32_t n_pages, int32_t after);

/* ---- recall.c ---- */
void work_after_select(struct nkv_ticket *lane, uint32_t index);
void work_after_read(struct nkv_ticket *lane, uint32_t index);

/* ---- lane.c ---- */
struct nkv_ticket *lane_take(struct nkv_context *context);
void lane_advance(struct nkv_ticket *lane);
/* Waits until outputs can be delivered, or (all) until nothing is in flight. */
void lane_wait(struct nkv_ticket *lane, bool all);
void context_poll(struct nkv_context *context);
/* Waits for everything that a sequence (NULL: any) has in draining lanes of a layer. */
#define ANY_LAYER UINT32_MAX
void context_drain(struct nkv_context *context, const struct nkv_seq *seq, uint32_t layer);
/* Ends what an open ticket has in flight and takes seq out of it. */
void lane_finish_work(struct nkv_ticket *lane, const struct nkv_seq *seq);
void port_abandon(struct nkv_context *context, struct port *port);
uint32_t context_open_tickets(const struct nkv_context *context);

/* ---- recover.c ---- */
/* The device is lost and may hold a sequence of that id, which is to be closed with those flags when it is there again.
 */
void port_note_orphan(struct port *port, uint32_t id, uint16_t flags);

/* ---- attach.c ---- */
/* Brings the compute side of a recall sequence up to its committed length. */
int mirror_attach(struct nkv_context *context, struct nkv_ticket *lane, struct nkv_seq *seq);

/* ---- seq.c ---- */
/* nkv_seq_open; whole: as seq_place. */
int seq_open(struct nkv_context *context, const struct nkv_seq_options *options, bool whole, struct nkv_seq **seq_out);
/*
 * From a resolved and placed draft to an open sequence, which begins on its home device as `open` says: OPEN or FORK,
 * with everything but its id and length.
 */
int seq_create(const struct nkv_seq *draft, const struct nkv_cmd *open, struct nkv_seq **seq_out);
/* Closes seq, frees it also where it is published, and fails with the message of before. */
int seq_discard(struct nkv_seq *seq, int status);
void seq_mark_failed(struct nkv_seq *seq, int status, const char *error);
uint32_t *seq_resident(const struct nkv_seq *seq, uint32_t layer, uint32_t unit);

/* ---- session.c ---- */
#define SESSION_IDS 16384u /* ids that one command moves */
/* Takes over, in mode full, the session that info describes, as it is. */
int session_attach(struct nkv_context *context, struct port *port, const struct nkv_seq_info *info,
                   struct nkv_seq **seq_out);
/* The device that has a session of that name, and its description. NKV_ENOENT: none. */
int session_find(struct nkv_context *context, const char *name, struct port **port_out, struct nkv_seq_info *info_out);
/* Publishes seq with the ids of its first n tokens, and makes a session of it. */
int session_publish(struct nkv_seq *seq, const struct nkv_seq_name *name, const int32_t *ids, uint32_t n);
int session_name(const char *name, uint64_t model, struct nkv_seq_name *name_out);

/* ---- stats.c ---- */
bool work_decodes(const struct work *work);
/* At delivery: what was attended and what crossed the link. */
void stats_count(const struct nkv_ticket *lane, struct work *work);
/* When the last command has completed. */
void stats_count_times(struct work *work);

#endif
