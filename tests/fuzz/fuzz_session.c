/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a session's file: it is refused with a status and a message, or its pieces follow one another as the
 * header says and lie in what was read. Sums would keep all mutants at the door, so the first byte says which of them
 * are made right before (1: the header's, 2: the pieces' and the whole file's).
 */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "runtime/session_file.h"

static void check(bool condition)
{
    if (!condition)
        abort();
}

static void mend_head(uint8_t *file, size_t bytes)
{
    uint64_t sum;

    if (bytes < sizeof(struct session_head))
        return;
    sum = XXH64(file, offsetof(struct session_head, sum), 0);
    memcpy(file + offsetof(struct session_head, sum), &sum, sizeof sum);
}

/* Pieces as they claim to be, then the trailer, where it ends the file. */
static void mend_pieces(uint8_t *file, size_t bytes)
{
    size_t at = sizeof(struct session_head);
    struct session_trailer trailer = {.file_bytes = bytes};

    while (bytes >= sizeof trailer && at < bytes - sizeof trailer) {
        struct session_piece piece;

        if (bytes - at < sizeof piece)
            return;
        memcpy(&piece, file + at, sizeof piece);
        if (piece.bytes > bytes - at - sizeof piece)
            return;
        piece.sum = session_piece_sum(&piece, file + at + sizeof piece);
        memcpy(file + at, &piece, sizeof piece);
        at += sizeof piece + piece.bytes;
        trailer.n_pieces++;
    }
    if (at + sizeof trailer != bytes)
        return;
    memcpy(trailer.magic, "NKV-END.", sizeof trailer.magic);
    memcpy(file + at, &trailer, sizeof trailer);
    trailer.sum = XXH64(file, bytes - sizeof trailer.sum, 0);
    memcpy(file + bytes - sizeof trailer.sum, &trailer.sum, sizeof trailer.sum);
}

static void use(struct session_file *file, size_t bytes)
{
    const struct session_head *head = session_file_head(file);
    uint64_t n_ids = 0, n_pages = 0;
    struct session_piece piece;
    const void *data;
    uint64_t sum = 0;
    int more;

    check(head->file_bytes == bytes && head->n_tokens > 0);
    while ((more = session_file_next(file, &piece, &data)) > 0) {
        check(piece.bytes <= bytes && piece.layer < head->shape.n_layers);
        sum ^= XXH64(data, piece.bytes, sum); /* reads all of it */
        n_ids += piece.kind == SESSION_IDS_PIECE ? piece.n : 0;
        n_pages += piece.kind == SESSION_PAGES_PIECE ? piece.n : 0;
    }
    check(more == 0 || ((more == NKV_EFORMAT || more == NKV_EIO) && nkv_last_error()[0] != 0));
    if (more == 0)
        check(n_ids == head->n_tokens && n_pages % head->shape.n_layers == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct session_file *file = NULL;
    uint8_t *copy;
    FILE *stream;
    int status;

    if (bytes < 2)
        return 0;
    copy = malloc(bytes - 1);
    check(copy != NULL);
    memcpy(copy, data + 1, bytes - 1);
    if (data[0] & 1)
        mend_head(copy, bytes - 1);
    if (data[0] & 2)
        mend_pieces(copy, bytes - 1);
    stream = fmemopen(copy, bytes - 1, "rb");
    check(stream != NULL);
    status = session_file_open(stream, "fuzz", &file);
    check(status == 0 ||
          ((status == NKV_EFORMAT || status == NKV_ENOTSUP || status == NKV_ENOMEM) && nkv_last_error()[0] != 0));
    if (status == 0)
        use(file, bytes - 1);
    session_file_close(file);
    fclose(stream);
    free(copy);
    return 0;
}
