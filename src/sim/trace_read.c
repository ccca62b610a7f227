/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading one file of a trace (nearkv.trace/1; src/device/wrap_record.c writes it): a header, then a line for each
 * command and each completion. Nothing in a line is believed: every number is held against its range and every list
 * against the command that it completes, so that what is in memory afterwards needs no more checks. Messages begin with
 * file and line.
 *
 * The file is read line by line: a trace is larger than what is kept of it. A parser for just this format was rejected
 * for a JSON library, which has been fed hostile input before; it is confined to this file.
 */
#include "sim/trace.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"
#include "policy/select.h"

#define LINE_BYTES ((size_t)64 << 20) /* of scores of a million pages and more */
#define EXACT      9007199254740992.0 /* 2^53: whole numbers up to here are told apart */

struct reader {
    struct sim_trace *trace;
    FILE *file;
    const char *name;
    uint32_t device, line;
    char *text;
    size_t bytes, room;
    uint32_t first_cmd, n_done;
    json_t *object; /* of the line */
};

/* NKV_EFORMAT with file and line before the message. */
static int NKV_PRINTF(2, 3) bad(const struct reader *r, const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    FAIL(NKV_EFORMAT, "%s:%u: %s", r->name, r->line, text);
}

/* ---- Lines ---- */

static int grow_line(struct reader *r)
{
    size_t room = r->room ? 2 * r->room : 4096;
    char *larger;

    if (r->room >= LINE_BYTES)
        return bad(r, "longer than %zu MiB: this is no trace", LINE_BYTES >> 20);
    TRY(nkv_alloc(room, 1, &larger));
    if (r->bytes)
        memcpy(larger, r->text, r->bytes);
    nkv_free(r->text);
    r->text = larger;
    r->room = room;
    return 0;
}

/* returns: 1; 0 at the end of the file; an error. */
static int next_line(struct reader *r)
{
    int c;

    r->bytes = 0;
    r->line++;
    while ((c = getc(r->file)) != EOF && c != '\n') {
        if (r->bytes == r->room)
            TRY(grow_line(r));
        r->text[r->bytes++] = (char)c;
    }
    if (ferror(r->file))
        FAIL(NKV_EIO, "%s: cannot read line %u", r->name, r->line);
    if (c == EOF && r->bytes > 0)
        return bad(r, "cut off in the middle of a line: the recording did not end");
    return c != EOF;
}

static int parse_line(struct reader *r)
{
    json_error_t error;

    r->object = json_loadb(r->text, r->bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &error);
    if (!r->object)
        return bad(r, "%s at column %d", error.text, error.column);
    if (!json_is_object(r->object))
        return bad(r, "not a JSON object");
    return 0;
}

/* Whole numbers are read as doubles (the tag of a control command, 2^64-1, is one that JSON libraries refuse else). */
static bool whole(const json_t *value, double max)
{
    double number = json_real_value(value);

    return json_is_real(value) && number >= 0 && number <= max && number == floor(number);
}

/* A whole number of an object; what is not there is 0. */
static int get_number(const struct reader *r, const json_t *object, const char *key, double max, uint64_t *number_out)
{
    const json_t *value = json_object_get(object, key);

    *number_out = 0;
    if (!value)
        return 0;
    if (!whole(value, max))
        return bad(r, "%s is no whole number from 0 to %.0f", key, max);
    *number_out = (uint64_t)json_real_value(value);
    return 0;
}

static int get_u32(const struct reader *r, const json_t *object, const char *key, uint32_t max, uint32_t *number_out)
{
    uint64_t number;

    TRY(get_number(r, object, key, max, &number));
    *number_out = (uint32_t)number;
    return 0;
}

static int get_string(const struct reader *r, const json_t *object, const char *key, const char **string_out)
{
    *string_out = json_string_value(json_object_get(object, key));
    if (!*string_out)
        return bad(r, "no %s", key);
    return 0;
}

/* ---- The header ---- */

static int read_types(const struct reader *r, const json_t *shape, struct nkv_kv_shape *shape_out)
{
    const char *dtype, *digest;

    TRY(get_string(r, shape, "dtype", &dtype));
    TRY(get_string(r, shape, "digest", &digest));
    if (nkv_dtype_parse(dtype, &shape_out->dtype) < 0 || nkv_digest_parse(digest, &shape_out->digest) < 0)
        return bad(r, "%s", nkv_last_error());
    return 0;
}

static int read_shape(const struct reader *r, struct nkv_kv_shape *shape_out)
{
    const json_t *shape = json_object_get(r->object, "shape");
    struct nkv_kv_shape s = {0};

    if (!json_is_object(shape))
        return bad(r, "no shape");
    TRY(get_u32(r, shape, "n_layers", UINT32_MAX, &s.n_layers));
    TRY(get_u32(r, shape, "n_heads", UINT32_MAX, &s.n_heads));
    TRY(get_u32(r, shape, "n_kv_heads", UINT32_MAX, &s.n_kv_heads));
    TRY(get_u32(r, shape, "head_dim", UINT32_MAX, &s.head_dim));
    TRY(get_u32(r, shape, "page_tokens", UINT32_MAX, &s.page_tokens));
    TRY(read_types(r, shape, &s));
    if (nkv_kv_shape_check(&s) < 0)
        return bad(r, "%s", nkv_last_error());
    *shape_out = s;
    return 0;
}

static bool same_shape(const struct nkv_kv_shape *a, const struct nkv_kv_shape *b)
{
    return a->n_layers == b->n_layers && a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads &&
           a->head_dim == b->head_dim && a->page_tokens == b->page_tokens && a->dtype == b->dtype &&
           a->digest == b->digest;
}

static int read_header(struct reader *r)
{
    struct nkv_kv_shape shape;
    const char *schema;
    int more = next_line(r);

    TRY(more);
    if (!more)
        return bad(r, "the file is empty");
    TRY(parse_line(r));
    TRY(get_string(r, r->object, "schema", &schema));
    if (strcmp(schema, "nearkv.trace/1") != 0)
        return bad(r, "schema %.40s: this reads nearkv.trace/1", schema);
    TRY(read_shape(r, &shape));
    if (r->device > 0 && !same_shape(&shape, &r->trace->shape))
        return bad(r, "the shape differs from that of the first device's file: these are not of one run");
    r->trace->shape = shape;
    return get_number(r, r->object, "capacity_bytes", EXACT, &r->trace->capacity[r->device]);
}

/* ---- Commands ---- */

static int op_parse(const char *name)
{
    static const char *const names[NKV_OP_COUNT] = {"",        "seq_open",    "seq_close", "seq_fork", "seq_truncate",
                                                    "append",  "select",      "attend",    "read",     "write",
                                                    "compute", "seq_publish", "seq_list"};

    for (int op = 1; op < NKV_OP_COUNT; op++)
        if (strcmp(name, names[op]) == 0)
            return op;
    return 0;
}

/* Tags of 2^53 and more are none of a lane's commands: they count as that of control commands. */
static int read_tag(const struct reader *r, uint64_t *tag_out)
{
    const json_t *value = json_object_get(r->object, "user_data");

    *tag_out = UINT64_MAX;
    return json_is_real(value) && json_real_value(value) > EXACT
               ? 0
               : get_number(r, r->object, "user_data", EXACT, tag_out);
}

static int read_cmd(struct reader *r)
{
    struct sim_trace *trace = r->trace;
    struct sim_trace_cmd cmd = {.device = (uint16_t)r->device, .pick = SIM_TRACE_NONE, .order = UINT64_MAX};
    uint32_t number, flags, layer, sink, recent;
    const char *op;

    TRY(get_u32(r, r->object, "cmd", UINT32_MAX, &number));
    if (number != trace->n_cmds - r->first_cmd)
        return bad(r, "command %u where %u comes next", number, trace->n_cmds - r->first_cmd);
    TRY(get_string(r, r->object, "op", &op));
    cmd.op = (uint8_t)op_parse(op);
    if (!cmd.op)
        return bad(r, "no such op: %.40s", op);
    TRY(get_u32(r, r->object, "flags", UINT16_MAX, &flags));
    TRY(get_u32(r, r->object, "layer", trace->shape.n_layers - 1, &layer));
    TRY(get_u32(r, r->object, "sink", UINT8_MAX, &sink));
    TRY(get_u32(r, r->object, "recent", UINT8_MAX, &recent));
    TRY(get_u32(r, r->object, "seq", UINT32_MAX, &cmd.seq));
    TRY(get_u32(r, r->object, "arg", UINT32_MAX, &cmd.arg));
    TRY(get_u32(r, r->object, "n_tokens", INT32_MAX, &cmd.n_tokens));
    TRY(get_u32(r, r->object, "n_pages", INT32_MAX, &cmd.n_pages));
    TRY(get_u32(r, r->object, "pos", INT32_MAX, &cmd.pos));
    TRY(read_tag(r, &cmd.user_data));
    if (json_object_get(r->object, "order"))
        TRY(get_number(r, r->object, "order", EXACT, &cmd.order));
    cmd.flags = (uint16_t)flags;
    cmd.layer = (uint16_t)layer;
    cmd.sink = (uint8_t)sink;
    cmd.recent = (uint8_t)recent;
    TRY(sim_trace_grow(&trace->cmds, trace->n_cmds, &trace->max_cmds, sizeof *trace->cmds));
    trace->cmds[trace->n_cmds++] = cmd;
    return 0;
}

/* ---- Completions ---- */

/* One unit's list, in rank order. */
static int read_chosen_unit(const struct reader *r, const json_t *list, const struct sim_trace_pick *pick,
                            uint32_t unit, uint32_t *scratch)
{
    uint32_t *chosen = pick->chosen + (size_t)unit * pick->n_chosen;

    for (uint32_t i = 0; i < pick->n_chosen; i++) {
        const json_t *page = json_array_get(list, i);

        if (!whole(page, pick->n_total - 1))
            return bad(r, "unit %u: chosen page number %u is not from 0 to %u", unit, i, pick->n_total - 1);
        chosen[i] = scratch[i] = (uint32_t)json_real_value(page);
    }
    nkv_sort_ids(scratch, pick->n_chosen);
    for (uint32_t i = 1; i < pick->n_chosen; i++)
        if (scratch[i] == scratch[i - 1])
            return bad(r, "unit %u: page %u is chosen twice", unit, scratch[i]);
    return 0;
}

/* The lists of all units, each checked to be there before room is made for what they claim. */
static int get_lists(const struct reader *r, const char *key, uint32_t n_units, uint32_t n_each,
                     const json_t **lists_out)
{
    const json_t *lists = json_object_get(r->object, key);

    if (!lists)
        return bad(r, "no %s", key);
    if (json_array_size(lists) != n_units)
        return bad(r, "%s of %zu units: there are %u", key, json_array_size(lists), n_units);
    for (uint32_t unit = 0; unit < n_units; unit++)
        if (json_array_size(json_array_get(lists, unit)) != n_each)
            return bad(r, "%s of unit %u: %zu pages are listed, %u are to be", key, unit,
                       json_array_size(json_array_get(lists, unit)), n_each);
    *lists_out = lists;
    return 0;
}

static int read_chosen(const struct reader *r, struct sim_trace_pick *pick)
{
    const json_t *lists;
    uint32_t *scratch;
    int status = 0;

    TRY(get_lists(r, "chosen", pick->n_units, pick->n_chosen, &lists));
    TRY(nkv_alloc((size_t)pick->n_units * pick->n_chosen, sizeof *pick->chosen, &pick->chosen));
    TRY(nkv_alloc(pick->n_chosen, sizeof *scratch, &scratch));
    for (uint32_t unit = 0; unit < pick->n_units && status == 0; unit++)
        status = read_chosen_unit(r, json_array_get(lists, unit), pick, unit, scratch);
    nkv_free(scratch);
    return status;
}

static int read_scores(const struct reader *r, struct sim_trace_pick *pick)
{
    const json_t *lists;

    TRY(get_lists(r, "scores", pick->n_units, pick->n_total, &lists));
    TRY(nkv_alloc((size_t)pick->n_units * pick->n_total, sizeof *pick->scores, &pick->scores));
    for (uint32_t unit = 0; unit < pick->n_units; unit++)
        for (uint32_t page = 0; page < pick->n_total; page++) {
            const json_t *score = json_array_get(json_array_get(lists, unit), page);

            if (!json_is_null(score) && !json_is_real(score))
                return bad(r, "scores of unit %u: that of page %u is no number", unit, page);
            pick->scores[(size_t)unit * pick->n_total + page] =
                json_is_null(score) ? NAN : (float)json_real_value(score);
        }
    return 0;
}

/* What a SELECT answered. */
static int read_pick(struct reader *r, struct sim_trace_cmd *cmd, uint32_t number)
{
    struct sim_trace *trace = r->trace;
    struct sim_trace_pick *pick;

    if (cmd->n_tokens == 0 || cmd->n_tokens > INT32_MAX - cmd->pos)
        return bad(r, "a SELECT of %u tokens at position %u cannot have succeeded", cmd->n_tokens, cmd->pos);
    TRY(sim_trace_grow(&trace->picks, trace->n_picks, &trace->max_picks, sizeof *trace->picks));
    pick = &trace->picks[trace->n_picks];
    *pick = (struct sim_trace_pick){.cmd = number,
                                    .n_units = cmd->flags & NKV_PER_HEAD ? trace->shape.n_kv_heads : 1,
                                    .n_total = (cmd->pos + cmd->n_tokens - 1) / trace->shape.page_tokens + 1,
                                    .next = SIM_TRACE_NONE};
    pick->n_chosen = pick->n_total < cmd->n_pages ? pick->n_total : cmd->n_pages;
    trace->n_picks++; /* from here on it is the trace's to free */
    if (cmd->res < 0 || (uint32_t)cmd->res != pick->n_chosen)
        return bad(r, "res is %d: %u of %u pages are to be chosen", cmd->res, pick->n_chosen, pick->n_total);
    cmd->pick = trace->n_picks - 1;
    TRY(read_chosen(r, pick));
    return cmd->flags & NKV_SCORES ? read_scores(r, pick) : 0;
}

static int read_cqe(struct reader *r)
{
    uint32_t n_cmds = r->trace->n_cmds - r->first_cmd, number;
    double res = json_real_value(json_object_get(r->object, "res"));
    struct sim_trace_cmd *cmd;

    TRY(get_u32(r, r->object, "cqe", UINT32_MAX, &number));
    if (number >= n_cmds)
        return bad(r, "command %u completes, but only %u were submitted", number, n_cmds);
    number += r->first_cmd;
    cmd = &r->trace->cmds[number];
    if (cmd->completed)
        return bad(r, "command %u completes for the second time", number - r->first_cmd);
    if (!(json_is_real(json_object_get(r->object, "res")) && fabs(res) <= INT32_MAX && res == floor(res)))
        return bad(r, "res is no 32-bit number");
    cmd->completed = true;
    cmd->res = (int32_t)res;
    r->n_done++;
    return cmd->op == NKV_OP_SELECT && cmd->res >= 0 ? read_pick(r, cmd, number) : 0;
}

static int read_object(struct reader *r)
{
    if (json_object_get(r->object, "cmd"))
        return read_cmd(r);
    if (json_object_get(r->object, "cqe"))
        return read_cqe(r);
    return bad(r, "neither a command nor a completion");
}

static int read_lines(struct reader *r)
{
    int more;

    TRY(read_header(r));
    while ((more = next_line(r)) > 0) {
        json_decref(r->object);
        r->object = NULL;
        TRY(parse_line(r));
        TRY(read_object(r));
    }
    TRY(more);
    if (r->n_done < r->trace->n_cmds - r->first_cmd)
        return bad(r, "the file ends with %u commands not completed: the recording did not end",
                   r->trace->n_cmds - r->first_cmd - r->n_done);
    return 0;
}

int sim_trace_read(struct sim_trace *trace, FILE *file, const char *file_name, uint32_t device)
{
    struct reader r = {.trace = trace, .file = file, .name = file_name, .device = device, .first_cmd = trace->n_cmds};
    int status = read_lines(&r);

    json_decref(r.object);
    nkv_free(r.text);
    return status;
}
