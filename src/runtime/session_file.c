/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a session's file (table in session_file.h). Nothing in it is believed: the header is checked against its own
 * sum, then against itself and the size of the file, so that a file that was cut off is refused before a byte of it
 * goes anywhere, and a wild length cannot make us allocate more than the file has. Each piece must be the one that
 * follows from the header, and its sum must be right before its data are given away. The sum of the whole file finds
 * what the pieces' cannot: pieces of another file with the same header.
 *
 * Mapping the file was rejected: a file that another process cuts while it is read would kill this one (SIGBUS).
 */
#define _GNU_SOURCE
#define XXH_STATIC_LINKING_ONLY /* the state's size, so that it needs no allocation of its own */
#include "runtime/session_file.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

#include "kv/store.h"

#define MOST_TOKENS      0x7fffffffu
#define MOST_PIECE_BYTES ((uint64_t)64 << 20)

struct session_file {
    FILE *stream;
    char *name;
    struct session_head head;
    struct session_piece piece; /* the last one given away */
    uint64_t n_pieces, offset;
    XXH64_state_t sum;
    void *data;
};

static uint32_t n_pages(const struct session_head *head)
{
    return head->n_tokens / head->shape.page_tokens + (head->n_tokens % head->shape.page_tokens != 0);
}

bool session_piece_next(const struct session_head *head, struct session_piece *piece)
{
    uint32_t next = piece->first + piece->n, end = piece->kind == SESSION_PAGES_PIECE ? n_pages(head) : head->n_tokens;
    uint32_t most;

    if (piece->kind == 0) {
        piece->kind = SESSION_IDS_PIECE;
    } else if (next == end) {
        piece->layer += piece->kind == SESSION_PAGES_PIECE;
        piece->kind = SESSION_PAGES_PIECE;
        next = 0;
    }
    if (piece->layer == head->shape.n_layers)
        return false;
    end = piece->kind == SESSION_PAGES_PIECE ? n_pages(head) : head->n_tokens;
    most = piece->kind == SESSION_PAGES_PIECE ? head->piece_pages : SESSION_PIECE_IDS;
    piece->first = next;
    piece->n = end - next < most ? end - next : most;
    piece->bytes = piece->n * (piece->kind == SESSION_PAGES_PIECE ? head->page_bytes : sizeof(uint32_t));
    return true;
}

uint64_t session_piece_sum(const struct session_piece *piece, const void *data)
{
    return XXH64(data, piece->bytes, XXH64(piece, offsetof(struct session_piece, sum), 0));
}

static uint64_t n_pieces(uint32_t n, uint32_t most)
{
    return n / most + (n % most != 0);
}

static uint64_t file_bytes(const struct session_head *head)
{
    uint64_t layers = head->shape.n_layers, pages = n_pages(head);

    return sizeof *head + sizeof(struct session_trailer) + head->n_tokens * sizeof(uint32_t) +
           layers * pages * head->page_bytes +
           sizeof(struct session_piece) *
               (n_pieces(head->n_tokens, SESSION_PIECE_IDS) + layers * n_pieces(n_pages(head), head->piece_pages));
}

void session_head_fill(const struct nkv_kv_shape *shape, const struct nkv_seq_name *name, uint32_t n_tokens,
                       struct session_head *head_out)
{
    struct session_head head = {.version = SESSION_FILE_VERSION,
                                .head_bytes = sizeof head,
                                .shape = *shape,
                                .name = *name,
                                .n_tokens = n_tokens,
                                .page_bytes = nkv_page_bytes(shape, shape->n_kv_heads)};

    memcpy(head.magic, "NKV-SESS", sizeof head.magic);
    head.piece_pages = head.page_bytes < SESSION_PIECE_BYTES ? (uint32_t)(SESSION_PIECE_BYTES / head.page_bytes) : 1;
    head.file_bytes = file_bytes(&head);
    head.sum = XXH64(&head, offsetof(struct session_head, sum), 0);
    *head_out = head;
}

/* ---- The reader ---- */

static int take(struct session_file *file, const char *what, void *out, uint64_t bytes)
{
    size_t n;

    errno = 0;
    n = fread(out, 1, bytes, file->stream);
    if (n < bytes && ferror(file->stream))
        FAIL(NKV_EIO, "cannot read %s: %s", file->name, strerror(errno));
    if (n < bytes)
        FAIL(NKV_EFORMAT, "%s: ends within %s at byte %" PRIu64 ": it is cut off, copy or export it again", file->name,
             what, file->offset + n);
    file->offset += n;
    return 0;
}

static int check_numbers(const struct session_file *file, const struct session_head *head)
{
    uint64_t page_bytes;

    if (nkv_kv_shape_check(&head->shape) < 0)
        FAIL(NKV_EFORMAT, "%s: its KV shape is not one: %u layers, %u:%u heads of %u, pages of %u", file->name,
             head->shape.n_layers, head->shape.n_heads, head->shape.n_kv_heads, head->shape.head_dim,
             head->shape.page_tokens);
    if (nkv_seq_name_check(&head->name) < 0)
        FAIL(NKV_EFORMAT, "%s: the name in it is not one", file->name);
    if (head->n_tokens == 0 || head->n_tokens > MOST_TOKENS)
        FAIL(NKV_EFORMAT, "%s: it claims %u tokens: from 1 to %u are possible", file->name, head->n_tokens,
             MOST_TOKENS);
    page_bytes = nkv_page_bytes(&head->shape, head->shape.n_kv_heads);
    if (head->page_bytes != page_bytes)
        FAIL(NKV_EFORMAT, "%s: pages of %" PRIu64 " bytes: those of its shape have %" PRIu64, file->name,
             head->page_bytes, page_bytes);
    if (head->piece_pages == 0 || (head->piece_pages > 1 && head->piece_pages > MOST_PIECE_BYTES / page_bytes))
        FAIL(NKV_EFORMAT, "%s: pieces of %u pages of %" PRIu64 " bytes: at most %" PRIu64 " bytes are possible",
             file->name, head->piece_pages, page_bytes, MOST_PIECE_BYTES);
    return 0;
}

static int check_head(const struct session_file *file, uint64_t bytes)
{
    const struct session_head *head = &file->head;

    if (head->version != SESSION_FILE_VERSION)
        FAIL(NKV_ENOTSUP, "%s: version %u: this nearkv reads version %u; export it again with one of that version",
             file->name, head->version, SESSION_FILE_VERSION);
    if (head->head_bytes != sizeof *head || head->sum != XXH64(head, offsetof(struct session_head, sum), 0))
        FAIL(NKV_EFORMAT, "%s: the header's checksum is wrong: it is damaged, copy or export it again", file->name);
    TRY(check_numbers(file, head));
    if (head->file_bytes != file_bytes(head))
        FAIL(NKV_EFORMAT, "%s: it claims to have %" PRIu64 " bytes: %u tokens make %" PRIu64, file->name,
             head->file_bytes, head->n_tokens, file_bytes(head));
    if (bytes != head->file_bytes)
        FAIL(NKV_EFORMAT,
             "%s: it has %" PRIu64 " bytes and should have %" PRIu64 ": it is cut off, copy or export it "
             "again",
             file->name, bytes, head->file_bytes);
    return 0;
}

static int stream_bytes(struct session_file *file, uint64_t *bytes_out)
{
    off_t end;

    if (fseeko(file->stream, 0, SEEK_END) < 0 || (end = ftello(file->stream)) < 0 ||
        fseeko(file->stream, 0, SEEK_SET) < 0)
        FAIL(NKV_EIO, "cannot read %s: %s", file->name, strerror(errno));
    *bytes_out = (uint64_t)end;
    return 0;
}

/* First: of something else, even what is shorter than a header, nobody says that it is cut off. */
static int check_magic(const struct session_file *file, uint64_t bytes)
{
    static const char magic[] = "NKV-SESS";
    char there[sizeof magic - 1];
    size_t n = bytes < sizeof there ? (size_t)bytes : sizeof there;

    if (n && (fread(there, 1, n, file->stream) < n || fseeko(file->stream, 0, SEEK_SET) < 0))
        FAIL(NKV_EIO, "cannot read %s: %s", file->name, strerror(errno));
    if (memcmp(there, magic, n) != 0)
        FAIL(NKV_EFORMAT, "%s is no session file, it does not begin with %s: give what nearkv session export wrote",
             file->name, magic);
    return 0;
}

static int read_head(struct session_file *file)
{
    struct session_piece piece = {0};
    uint64_t bytes = 0, room = 0;

    TRY(stream_bytes(file, &bytes));
    TRY(check_magic(file, bytes));
    TRY(take(file, "the header", &file->head, sizeof file->head));
    TRY(check_head(file, bytes));
    XXH64_reset(&file->sum, 0);
    XXH64_update(&file->sum, &file->head, sizeof file->head);
    while (session_piece_next(&file->head, &piece) && piece.layer == 0)
        room = piece.bytes > room ? piece.bytes : room;
    return nkv_alloc(room, 1, &file->data);
}

int session_file_open(FILE *stream, const char *name, struct session_file **file_out)
{
    struct session_file *file = NULL;
    int status;

    TRY(nkv_alloc(1, sizeof *file, &file));
    file->stream = stream;
    status = nkv_alloc(strlen(name) + 1, 1, &file->name);
    if (status == 0) {
        memcpy(file->name, name, strlen(name));
        status = read_head(file);
    }
    if (status < 0) {
        session_file_close(file);
        return status;
    }
    *file_out = file;
    return 0;
}

const struct session_head *session_file_head(const struct session_file *file)
{
    return &file->head;
}

static int read_trailer(struct session_file *file)
{
    struct session_trailer trailer;

    TRY(take(file, "the trailer", &trailer, sizeof trailer));
    XXH64_update(&file->sum, &trailer, offsetof(struct session_trailer, sum));
    if (memcmp(trailer.magic, "NKV-END.", sizeof trailer.magic) != 0 || trailer.n_pieces != file->n_pieces ||
        trailer.file_bytes != file->head.file_bytes || trailer.sum != XXH64_digest(&file->sum))
        FAIL(NKV_EFORMAT, "%s: the checksum of the whole is wrong: it is damaged, copy or export it again", file->name);
    return 0;
}

int session_file_next(struct session_file *file, struct session_piece *piece_out, const void **data_out)
{
    struct session_piece want = file->piece, got;
    uint64_t begin = file->offset;

    if (!session_piece_next(&file->head, &want))
        return read_trailer(file);
    TRY(take(file, "a piece", &got, sizeof got));
    if (memcmp(&got, &want, offsetof(struct session_piece, sum)) != 0)
        FAIL(NKV_EFORMAT, "%s: the piece at byte %" PRIu64 " is not %s %u to %u of layer %u: it is damaged", file->name,
             begin, want.kind == SESSION_IDS_PIECE ? "ids" : "pages", want.first, want.first + want.n - 1, want.layer);
    TRY(take(file, "a piece", file->data, got.bytes));
    if (got.sum != session_piece_sum(&got, file->data))
        FAIL(NKV_EFORMAT,
             "%s: the checksum of the piece at byte %" PRIu64 " is wrong: it is damaged, copy or export it "
             "again",
             file->name, begin);
    XXH64_update(&file->sum, &got, sizeof got);
    XXH64_update(&file->sum, file->data, got.bytes);
    file->n_pieces++;
    file->piece = want;
    *piece_out = got;
    *data_out = file->data;
    return 1;
}

void session_file_close(struct session_file *file)
{
    if (!file)
        return;
    nkv_free(file->data);
    nkv_free(file->name);
    nkv_free(file);
}
