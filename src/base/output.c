/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file that appears whole or not at all: the bytes go to a new file beside it, are forced to the disk, and the new
 * file takes the name by rename(2); a failure removes the new file and leaves what was there. Writing in place was
 * rejected: a reader (or a crash) would see half of it. What is left of a process that was killed ends in .tmp.
 *
 * rename(2) replaces a link, not what it leads to, so links are resolved first. What is no regular file cannot be
 * replaced without harm (/dev/null would become a file) and is written as it is; /dev/stdout and /dev/fd/N are the
 * descriptors themselves, as a shell has it: opened anew, a file would be written from its beginning.
 */
#define _GNU_SOURCE
#include "base/output.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(NKV_OUTPUT_PATH >= PATH_MAX, "realpath writes so much");

static bool is_straight(const struct nkv_output *output)
{
    return strcmp(output->path, output->written) == 0;
}

/* The descriptor that a name stands for; -1: none. */
static int named_descriptor(const char *path)
{
    static const char *const folders[] = {"/dev/fd/", "/proc/self/fd/"};

    if (strcmp(path, "/dev/stdout") == 0)
        return STDOUT_FILENO;
    if (strcmp(path, "/dev/stderr") == 0)
        return STDERR_FILENO;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        const char *number = path + strlen(folders[i]);
        unsigned fd;
        char end;

        if (strncmp(path, folders[i], strlen(folders[i])) == 0 && sscanf(number, "%5u%c", &fd, &end) == 1)
            return (int)fd;
    }
    return -1;
}

/* What is there under the name, with links followed. */
static int resolve(const char *path, struct nkv_output *output, struct stat *info)
{
    struct stat link;

    if (strlen(path) >= sizeof output->path)
        FAIL(NKV_EINVAL, "file name of %zu bytes is too long", strlen(path));
    strcpy(output->path, path);
    if (lstat(path, &link) < 0) {
        info->st_mode = S_IFREG; /* it will be */
        return 0;
    }
    if (S_ISLNK(link.st_mode) && !realpath(path, output->path))
        FAIL(NKV_EINVAL, "%s is a link that leads nowhere: %s: give the name of a file", path, strerror(errno));
    if (stat(output->path, info) < 0)
        FAIL(NKV_EIO, "cannot look at %s: %s", output->path, strerror(errno));
    if (S_ISDIR(info->st_mode))
        FAIL(NKV_EINVAL, "%s exists and is a directory: give the name of a file", path);
    return 0;
}

static int open_straight(struct nkv_output *output, int descriptor)
{
    strcpy(output->written, output->path);
    output->fd = descriptor < 0 ? open(output->path, O_WRONLY | O_CLOEXEC) : fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (output->fd < 0)
        FAIL(NKV_EIO, "cannot write %s: %s", output->path, strerror(errno));
    return 0;
}

int nkv_output_open(const char *path, mode_t mode, struct nkv_output *output)
{
    int descriptor = named_descriptor(path), n;
    struct stat info;

    output->fd = -1;
    if (!*path)
        FAIL(NKV_EINVAL, "no file name to write to");
    if (descriptor >= 0) {
        snprintf(output->path, sizeof output->path, "%s", path);
        return open_straight(output, descriptor);
    }
    TRY(resolve(path, output, &info));
    if (!S_ISREG(info.st_mode))
        return open_straight(output, -1);
    n = snprintf(output->written, sizeof output->written, "%s.%ld.tmp", output->path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof output->written)
        FAIL(NKV_EINVAL, "file name of %zu bytes is too long", strlen(output->path));
    output->fd = open(output->written, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (output->fd < 0)
        FAIL(NKV_EIO, "cannot create %s: %s", output->written, strerror(errno));
    return 0;
}

int nkv_output_put(struct nkv_output *output, const void *data, uint64_t bytes)
{
    const char *at = data;

    while (bytes) {
        ssize_t n = write(output->fd, at, bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            FAIL(NKV_EIO, "cannot write %s: %s", output->written, strerror(errno));
        at += n;
        bytes -= (uint64_t)n;
    }
    return 0;
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

int nkv_output_finish(struct nkv_output *output)
{
    int fd = output->fd;

    if (!is_straight(output)) {
        if (fsync(fd) < 0)
            FAIL(NKV_EIO, "cannot write %s to the disk: %s", output->written, strerror(errno));
        if (rename(output->written, output->path) < 0)
            FAIL(NKV_EIO, "cannot rename %s to %s: %s", output->written, output->path, strerror(errno));
    }
    output->fd = -1;
    if (close(fd) < 0)
        FAIL(NKV_EIO, "cannot write %s: %s", output->path, strerror(errno));
    return is_straight(output) ? 0 : sync_directory(output->path);
}

void nkv_output_close(struct nkv_output *output)
{
    if (output->fd < 0)
        return;
    close(output->fd);
    if (!is_straight(output))
        unlink(output->written);
    output->fd = -1;
}
