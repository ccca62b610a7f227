/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moves a session between a device and a file. Export takes the session over while it reads, so that nobody changes it
 * meanwhile, and gives it back as it was. Import writes pages into a sequence without a name and gives it the name,
 * with all ids, as its very last command: whatever ends it before (a damaged file, a full device, a killed client)
 * leaves a sequence that the device frees with its client. Publishing first was rejected for that reason.
 *
 * Pages travel in pieces of about 4 MB through the window, one READ or WRITE each.
 */
#include "runtime/runtime.h"

#include <errno.h>
#include <string.h>

#include "runtime/session_file.h"

struct transfer {
    struct nkv_context *context;
    struct nkv_seq *seq;
    const struct session_head *head;
    nkv_progress_fn progress;
    void *progress_arg;
    uint64_t n_done; /* bytes of data */
};

/* A piece's list comes first, its pages behind. */
static uint64_t data_at(uint32_t n)
{
    return nkv_list_stride(n);
}

static int reserve(const struct nkv_seq *seq, const struct session_head *head)
{
    return context_reserve_control(seq->context, seq->home,
                                   data_at(head->piece_pages) + head->piece_pages * head->page_bytes);
}

static int report(struct transfer *t, const struct session_piece *piece)
{
    t->n_done += piece->bytes;
    if (t->progress && t->progress(t->progress_arg, t->n_done, t->head->file_bytes))
        FAIL(NKV_ECANCELED, "stopped after %llu of %llu bytes", (unsigned long long)t->n_done,
             (unsigned long long)t->head->file_bytes);
    return 0;
}

/* READ and WRITE name the same things; the pages lie in the window, at *data_out. */
static struct nkv_cmd move(const struct transfer *t, const struct session_piece *piece, uint8_t **data_out)
{
    const struct port *port = t->seq->home;

    *data_out = port->window + port_control_at(port) + data_at(piece->n);
    return port_name_pages(port, t->seq->id, piece->layer, piece->first, piece->n);
}

/* ---- Export ---- */

_Static_assert(SESSION_PIECE_IDS <= SESSION_IDS, "session_find made room for them");

static int export_ids(const struct transfer *t, struct session_writer *writer, const struct session_piece *piece)
{
    struct port *port = t->seq->home;
    struct nkv_cmd cmd = {.op = NKV_OP_READ,
                          .flags = NKV_TOKENS,
                          .seq = t->seq->id,
                          .pos = piece->first,
                          .n_tokens = piece->n,
                          .out_offset = port_control_at(port)};

    TRY(port_control(t->context, port, &cmd));
    return session_writer_put(writer, *piece, port->window + cmd.out_offset);
}

static int export_pages(const struct transfer *t, struct session_writer *writer, const struct session_piece *piece)
{
    uint8_t *data = NULL;
    struct nkv_cmd cmd = move(t, piece, &data);

    cmd.op = NKV_OP_READ;
    cmd.out_offset = cmd.list_offset + data_at(piece->n);
    TRY(port_control(t->context, t->seq->home, &cmd));
    return session_writer_put(writer, *piece, data);
}

static int export_all(struct transfer *t, struct session_writer *writer)
{
    struct session_piece piece = {0};

    while (session_piece_next(t->head, &piece)) {
        if (piece.kind == SESSION_IDS_PIECE)
            TRY(export_ids(t, writer, &piece));
        else
            TRY(export_pages(t, writer, &piece));
        TRY(report(t, &piece));
    }
    return session_writer_finish(writer);
}

static int export_seq(struct transfer *t, const struct nkv_seq_name *name, const char *path)
{
    struct session_writer *writer = NULL;
    struct session_head head;
    int status;

    session_head_fill(&t->context->shape, name, t->seq->length, &head);
    t->head = &head;
    TRY(reserve(t->seq, &head));
    TRY(session_writer_open(path, &head, &writer));
    status = export_all(t, writer);
    session_writer_close(writer);
    return status;
}

int nkv_session_export(struct nkv_context *context, const char *name, const char *path, nkv_progress_fn progress,
                       void *progress_arg)
{
    struct transfer t = {.context = context, .progress = progress, .progress_arg = progress_arg};
    struct port *port = NULL;
    struct nkv_seq_info info;
    int status;

    TRY(session_find(context, name, &port, &info));
    if (info.n_tokens == 0)
        FAIL(NKV_EINVAL, "session '%s' holds no tokens: there is nothing to export", name);
    TRY(session_attach(context, port, &info, &t.seq));
    status = export_seq(&t, &info.name, path);
    nkv_seq_close(t.seq);
    return status;
}

/* ---- Import ---- */

static int import_pages(const struct transfer *t, const struct session_piece *piece, const void *packed)
{
    uint32_t page_tokens = t->context->shape.page_tokens;
    uint64_t first = (uint64_t)piece->first * page_tokens, n = (uint64_t)piece->n * page_tokens;
    uint8_t *data = NULL;
    struct nkv_cmd cmd = move(t, piece, &data);

    cmd.op = NKV_OP_WRITE;
    cmd.in_offset = cmd.list_offset + data_at(piece->n);
    cmd.n_tokens = (uint32_t)(first + n < t->head->n_tokens ? n : t->head->n_tokens - first);
    memcpy(data, packed, piece->bytes);
    return port_control(t->context, t->seq->home, &cmd);
}

/* returns: 0, with all pages on the device and the file found right to its last byte. */
static int import_all(struct transfer *t, struct session_file *file, int32_t *ids)
{
    struct session_piece piece;
    const void *data = NULL;
    int more;

    while ((more = session_file_next(file, &piece, &data)) > 0) {
        if (piece.kind == SESSION_IDS_PIECE)
            memcpy(ids + piece.first, data, piece.bytes);
        else
            TRY(import_pages(t, &piece, data));
        TRY(report(t, &piece));
    }
    return more;
}

static int import_seq(struct transfer *t, struct session_file *file, const struct nkv_seq_name *name)
{
    int32_t *ids = NULL;
    int status;

    TRY(reserve(t->seq, t->head));
    TRY(nkv_alloc(t->head->n_tokens, sizeof *ids, &ids));
    status = import_all(t, file, ids);
    if (status == 0)
        status = session_publish(t->seq, name, ids, t->head->n_tokens);
    nkv_free(ids);
    return status;
}

static int check_name(struct nkv_context *context, const struct nkv_seq_name *name)
{
    struct port *port = NULL;
    struct nkv_seq_info info;
    int status = session_find(context, name->name, &port, &info);

    if (status == 0)
        FAIL(NKV_ESTATE, "session '%s' is on device %u (%s) already: remove it, or import under another name",
             name->name, port->index, port->caps.name);
    return status == NKV_ENOENT ? 0 : status;
}

static bool same_shape(const struct nkv_kv_shape *a, const struct nkv_kv_shape *b)
{
    return a->n_layers == b->n_layers && a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads &&
           a->head_dim == b->head_dim && a->page_tokens == b->page_tokens && a->dtype == b->dtype &&
           a->digest == b->digest;
}

static int check_shape(const struct nkv_kv_shape *file, const struct nkv_kv_shape *device, const char *path)
{
    if (same_shape(file, device))
        return 0;
    FAIL(NKV_EFORMAT,
         "%s: %u layers, %u:%u heads of %u, pages of %u, %s, %s; the device holds %u layers, %u:%u heads of %u, pages "
         "of "
         "%u, %s, %s: import it into a device of its own shape",
         path, file->n_layers, file->n_heads, file->n_kv_heads, file->head_dim, file->page_tokens,
         nkv_dtype_name(file->dtype), nkv_digest_name(file->digest), device->n_layers, device->n_heads,
         device->n_kv_heads, device->head_dim, device->page_tokens, nkv_dtype_name(device->dtype),
         nkv_digest_name(device->digest));
}

static int import_file(struct transfer *t, struct session_file *file, const char *path, const char *name)
{
    struct nkv_seq_options options;
    struct nkv_seq_name padded;
    int status;

    t->head = session_file_head(file);
    TRY(check_shape(&t->head->shape, &t->context->shape, path));
    TRY(session_name(name ? name : t->head->name.name, t->head->name.model, &padded));
    TRY(check_name(t->context, &padded));
    nkv_seq_options_init(&options);
    options.mode = NKV_MODE_FULL;
    options.keep_digests = true;
    options.max_tokens = t->head->n_tokens;
    TRY(seq_open(t->context, &options, true, &t->seq));
    status = import_seq(t, file, &padded);
    if (status < 0)
        return seq_discard(t->seq, status);
    nkv_seq_close(t->seq);
    return 0;
}

static int open_file(const char *path, FILE **stream_out, struct session_file **file_out)
{
    FILE *stream = fopen(path, "rbe");
    int status;

    if (!stream)
        FAIL(errno == ENOENT ? NKV_ENOENT : NKV_EIO, "cannot open %s: %s", path, strerror(errno));
    status = session_file_open(stream, path, file_out);
    if (status < 0)
        fclose(stream);
    else
        *stream_out = stream;
    return status;
}

int nkv_session_import(struct nkv_context *context, const char *path, const char *name, nkv_progress_fn progress,
                       void *progress_arg)
{
    struct transfer t = {.context = context, .progress = progress, .progress_arg = progress_arg};
    struct session_file *file = NULL;
    FILE *stream = NULL;
    int status;

    TRY(open_file(path, &stream, &file));
    status = import_file(&t, file, path, name);
    session_file_close(file);
    fclose(stream);
    return status;
}

int nkv_session_file_info(const char *path, struct nkv_session_file_info *info_out)
{
    struct session_file *file = NULL;
    const struct session_head *head;
    FILE *stream = NULL;

    TRY(open_file(path, &stream, &file));
    head = session_file_head(file);
    *info_out = (struct nkv_session_file_info){
        .shape = head->shape, .model = head->name.model, .n_tokens = head->n_tokens, .file_bytes = head->file_bytes};
    memcpy(info_out->name, head->name.name, sizeof info_out->name);
    session_file_close(file);
    fclose(stream);
    return 0;
}
