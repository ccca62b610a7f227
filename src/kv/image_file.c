/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file or DAX device of an image: opened, locked against a second process, given its space, mapped.
 *
 * A file's blocks are allocated when it is made and completed when it is opened: a hole that the file system cannot
 * fill later would kill the process with SIGBUS in the middle of a step. A file that is made is removed again if it
 * does not get its space.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "kv/image.h"

#define MIN_BYTES ((uint64_t)64 << 10)
#define DAX_ALIGN ((uint64_t)2 << 20)

static int dax_bytes(int fd, const char *path, uint64_t *bytes_out)
{
    char size_path[64], text[32] = "";
    unsigned long long bytes = 0;
    struct stat node;
    int size_fd;

    if (fstat(fd, &node) || !S_ISCHR(node.st_mode))
        FAIL(NKV_EINVAL, "%s is not a DAX device: give dax:/dev/daxX.Y, or file:PATH for a file", path);
    snprintf(size_path, sizeof size_path, "/sys/dev/char/%u:%u/size", major(node.st_rdev), minor(node.st_rdev));
    size_fd = open(size_path, O_RDONLY | O_CLOEXEC);
    if (size_fd >= 0) {
        if (read(size_fd, text, sizeof text - 1) < 0)
            text[0] = '\0';
        close(size_fd);
    }
    if (sscanf(text, "%llu", &bytes) != 1 || bytes < DAX_ALIGN)
        FAIL(NKV_EINVAL, "%s: its size is not in %s: is it a DAX device?", path, size_path);
    *bytes_out = bytes / DAX_ALIGN * DAX_ALIGN;
    return 0;
}

static int take_space(int fd, const char *path, uint64_t bytes)
{
    int error = posix_fallocate(fd, 0, (off_t)bytes);

    if (error == ENOSPC || error == EFBIG || error == EDQUOT)
        FAIL(NKV_ENOSPC, "%s: the file system has no room for %llu bytes: free some, or make it smaller", path,
             (unsigned long long)bytes);
    if (error)
        FAIL(NKV_EIO, "%s: cannot take %llu bytes: %s", path, (unsigned long long)bytes, strerror(error));
    return 0;
}

/* Of a file that is empty, or was just made. */
static int check_size(const struct nkv_image_options *options, uint64_t *bytes_out)
{
    if (options->bytes == 0)
        FAIL(NKV_EINVAL, "%s is empty: give file:PATH:SIZE to make an image of it", options->path);
    if (options->bytes < MIN_BYTES)
        FAIL(NKV_EINVAL, "%s: an image has at least %llu bytes, not %llu: give a larger SIZE", options->path,
             (unsigned long long)MIN_BYTES, (unsigned long long)options->bytes);
    *bytes_out = options->bytes;
    return 0;
}

/* Of a file that has something in it. What is no image is told before its size is: another SIZE would not help. */
static int check_there(int fd, const struct nkv_image_options *options, uint64_t bytes)
{
    char magic[sizeof NKV_IMAGE_MAGIC - 1] = "";
    bool is_used = pread(fd, magic, sizeof magic, 0) > 0 && magic[0];

    if (bytes < MIN_BYTES || (is_used && !options->format && memcmp(magic, NKV_IMAGE_MAGIC, sizeof magic) != 0))
        FAIL(NKV_EFORMAT,
             "%s holds something else than an image of nearkv (%llu bytes); nothing was changed: use a file that does "
             "not exist yet (file:PATH:SIZE)%s",
             options->path, (unsigned long long)bytes,
             bytes < MIN_BYTES ? "" : ", or format it if what is there may go");
    if (options->bytes && options->bytes != bytes)
        FAIL(NKV_EINVAL, "%s has %llu bytes, not the %llu asked for: leave SIZE out, or remove the file", options->path,
             (unsigned long long)bytes, (unsigned long long)options->bytes);
    return 0;
}

static int file_bytes(int fd, const struct nkv_image_options *options, uint64_t *bytes_out)
{
    struct stat file;
    uint64_t bytes;

    if (fstat(fd, &file))
        FAIL(NKV_EIO, "%s: %s", options->path, strerror(errno));
    if (!S_ISREG(file.st_mode))
        FAIL(NKV_EINVAL, "%s is not a file%s", options->path, S_ISCHR(file.st_mode) ? ": give dax:PATH" : "");
    bytes = (uint64_t)file.st_size;
    if (bytes == 0)
        TRY(check_size(options, &bytes));
    else
        TRY(check_there(fd, options, bytes));
    if (!options->is_read_only && (uint64_t)file.st_blocks * 512 < bytes)
        TRY(take_space(fd, options->path, bytes));
    *bytes_out = bytes / NKV_IMAGE_PAGE * NKV_IMAGE_PAGE; /* what is mapped behind a file's end is not kept */
    return 0;
}

static int lock(int fd, const char *path, int kind)
{
    if (flock(fd, kind | LOCK_NB) == 0)
        return 0;
    if (errno == EWOULDBLOCK)
        FAIL(NKV_ESTATE, "%s is in use by another process: stop it, or attach to it with --device unix:PATH", path);
    FAIL(NKV_EIO, "%s: cannot lock it: %s", path, strerror(errno));
}

static int open_node(const struct nkv_image_options *options, bool *made_out, int *fd_out)
{
    int fd = open(options->path, (options->is_read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);

    *made_out = false;
    if (fd < 0 && errno == ENOENT && !options->is_dax && options->bytes) {
        fd = open(options->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        *made_out = fd >= 0;
    }
    if (fd < 0 && errno == ENOENT)
        FAIL(NKV_ENOENT, "%s does not exist%s", options->path,
             options->is_dax ? "" : ": give file:PATH:SIZE to make it");
    if (fd < 0)
        FAIL(NKV_EIO, "cannot open %s: %s", options->path, strerror(errno));
    *fd_out = fd;
    return 0;
}

static int node_bytes(int fd, const struct nkv_image_options *options, uint64_t *bytes_out)
{
    return options->is_dax ? dax_bytes(fd, options->path, bytes_out) : file_bytes(fd, options, bytes_out);
}

static int lock_and_size(int fd, const struct nkv_image_options *options, uint64_t *bytes_out)
{
    TRY(lock(fd, options->path, options->is_read_only ? LOCK_SH : LOCK_EX));
    return node_bytes(fd, options, bytes_out);
}

static int open_locked(const struct nkv_image_options *options, bool *made_out, int *fd_out)
{
    uint64_t bytes;
    int fd = -1, status;

    TRY(open_node(options, made_out, &fd));
    status = lock_and_size(fd, options, &bytes);
    if (status < 0) {
        if (*made_out)
            (void)unlink(options->path);
        close(fd);
        return status;
    }
    *fd_out = fd;
    return 0;
}

int nkv_image_lock(const struct nkv_image_options *options, int *fd_out)
{
    bool made;

    return open_locked(options, &made, fd_out);
}

int nkv_image_bytes(const struct nkv_image_options *options, uint64_t *bytes_out)
{
    return node_bytes(options->fd, options, bytes_out);
}

/* The lock belongs to all descriptors that come from one opening. */
static int take_locked(const struct nkv_image_options *options, bool *made_out, int *fd_out)
{
    *made_out = false;
    if (!options->is_locked)
        return open_locked(options, made_out, fd_out);
    *fd_out = fcntl(options->fd, F_DUPFD_CLOEXEC, 0);
    if (*fd_out < 0)
        FAIL(NKV_EIO, "%s: %s", options->path, strerror(errno));
    return 0;
}

int nkv_image_file_open(const struct nkv_image_options *options, struct nkv_image *image)
{
    uint64_t bytes = 0;
    int fd = -1, status;

    TRY(take_locked(options, &image->is_made, &fd));
    status = lock_and_size(fd, options, &bytes);
    if (status == 0)
        status = nkv_region_map(fd, bytes, !options->is_read_only, &image->memory);
    if (status < 0) {
        close(fd);
        return status;
    }
    image->fd = fd;
    image->is_dax = options->is_dax;
    return 0;
}

void nkv_image_file_close(struct nkv_image *image)
{
    nkv_region_close(&image->memory);
    if (image->fd >= 0)
        close(image->fd);
    image->fd = -1;
}
