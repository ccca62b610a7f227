/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes a session's file (table in session_file.h), which appears whole or not at all: the bytes go to a new file
 * beside it, are forced to the disk, and the new file takes the name by rename(2). What is left of a process that was
 * killed ends in .tmp and is no session to anybody, because its trailer is missing.
 */
#define _GNU_SOURCE
#define XXH_STATIC_LINKING_ONLY
#include "runtime/session_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

struct session_writer {
    int fd;
    char path[PATH_MAX], temporary[PATH_MAX];
    struct session_head head;
    uint64_t n_pieces;
    XXH64_state_t sum;
};

static int put(struct session_writer *writer, const void *data, uint64_t bytes)
{
    const uint8_t *at = data;

    XXH64_update(&writer->sum, data, bytes);
    while (bytes) {
        ssize_t n = write(writer->fd, at, bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            FAIL(NKV_EIO, "cannot write %s: %s", writer->temporary, strerror(errno));
        at += n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

static int create(struct session_writer *writer, const char *path)
{
    struct stat info;
    int n;

    if (!*path)
        FAIL(NKV_EINVAL, "no file name for a session");
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        FAIL(NKV_EINVAL, "%s exists and is not a regular file", path);
    n = snprintf(writer->temporary, sizeof writer->temporary, "%s.%ld.tmp", path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof writer->temporary)
        FAIL(NKV_EINVAL, "file name of %zu bytes is too long", strlen(path));
    memcpy(writer->path, path, strlen(path) + 1);
    writer->fd = open(writer->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600); /* it holds a conversation */
    if (writer->fd < 0)
        FAIL(NKV_EIO, "cannot create %s: %s", writer->temporary, strerror(errno));
    return 0;
}

int session_writer_open(const char *path, const struct session_head *head, struct session_writer **writer_out)
{
    struct session_writer *writer = NULL;
    int status;

    TRY(nkv_alloc(1, sizeof *writer, &writer));
    writer->fd = -1;
    writer->head = *head;
    XXH64_reset(&writer->sum, 0);
    status = create(writer, path);
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

/* The directory, too, must be on the disk, or a crash could take the new name back. */
static int sync_directory(const char *path)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) + 1 : 1;
    int fd, status;

    memcpy(directory, slash ? path : ".", n);
    directory[n] = '\0';
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        FAIL(NKV_EIO, "cannot open %s: %s", directory, strerror(errno));
    status = fsync(fd) < 0 ? nkv_fail(NKV_EIO, "cannot write %s to the disk: %s", directory, strerror(errno)) : 0;
    close(fd);
    return status;
}

int session_writer_finish(struct session_writer *writer)
{
    struct session_trailer trailer = {.n_pieces = writer->n_pieces, .file_bytes = writer->head.file_bytes};
    int fd = writer->fd;

    memcpy(trailer.magic, "NKV-END.", sizeof trailer.magic);
    TRY(put(writer, &trailer, offsetof(struct session_trailer, sum)));
    trailer.sum = XXH64_digest(&writer->sum);
    TRY(put(writer, &trailer.sum, sizeof trailer.sum));
    if (fsync(fd) < 0)
        FAIL(NKV_EIO, "cannot write %s to the disk: %s", writer->temporary, strerror(errno));
    if (rename(writer->temporary, writer->path) < 0)
        FAIL(NKV_EIO, "cannot rename %s to %s: %s", writer->temporary, writer->path, strerror(errno));
    writer->fd = -1;
    close(fd);
    return sync_directory(writer->path);
}

void session_writer_close(struct session_writer *writer)
{
    if (!writer)
        return;
    if (writer->fd >= 0) {
        close(writer->fd);
        unlink(writer->temporary);
    }
    nkv_free(writer);
}
