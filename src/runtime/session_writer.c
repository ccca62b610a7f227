/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes a session's file (table in session_file.h), which appears whole or not at all (base/output.h). What is left of
 * a process that was killed ends in .tmp and is no session to anybody, because its trailer is missing; nor is what a
 * pipe got of an export that failed.
 */
#define XXH_STATIC_LINKING_ONLY
#include "runtime/session_file.h"

#include <string.h>
#include <xxhash.h>

#include "base/output.h"

struct session_writer {
    struct nkv_output output;
    struct session_head head;
    uint64_t n_pieces;
    XXH64_state_t sum;
};

static int put(struct session_writer *writer, const void *data, uint64_t bytes)
{
    XXH64_update(&writer->sum, data, bytes);
    return nkv_output_put(&writer->output, data, bytes);
}

int session_writer_open(const char *path, const struct session_head *head, struct session_writer **writer_out)
{
    struct session_writer *writer = NULL;
    int status;

    TRY(nkv_alloc(1, sizeof *writer, &writer));
    writer->head = *head;
    XXH64_reset(&writer->sum, 0);
    status = nkv_output_open(path, 0600, &writer->output); /* it holds a conversation */
    if (status == 0)
        status = put(writer, head, sizeof *head);
    if (status < 0) {
        session_writer_close(writer);
        return status;
    }
    *writer_out = writer;
    return 0;
}

int session_writer_put(struct session_writer *writer, struct session_piece piece, const void *data)
{
    piece.sum = session_piece_sum(&piece, data);
    writer->n_pieces++;
    TRY(put(writer, &piece, sizeof piece));
    return put(writer, data, piece.bytes);
}

int session_writer_finish(struct session_writer *writer)
{
    struct session_trailer trailer = {.n_pieces = writer->n_pieces, .file_bytes = writer->head.file_bytes};

    memcpy(trailer.magic, "NKV-END.", sizeof trailer.magic);
    TRY(put(writer, &trailer, offsetof(struct session_trailer, sum)));
    trailer.sum = XXH64_digest(&writer->sum);
    TRY(put(writer, &trailer.sum, sizeof trailer.sum));
    return nkv_output_finish(&writer->output);
}

void session_writer_close(struct session_writer *writer)
{
    if (!writer)
        return;
    nkv_output_close(&writer->output);
    nkv_free(writer);
}
