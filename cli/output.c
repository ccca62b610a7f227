/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is asked of a file before a subcommand writes it: that it is none of those it reads or maps. A model that is
 * truncated while it is mapped ends the process with SIGBUS, and an image that is renamed over takes its sessions with
 * it.
 *
 * Two names are the same file if device and inode are; if there is no file yet, if the directory is the same and the
 * last part of the names. Comparing names alone was rejected: links and "./" are the usual way to get there. What
 * another process has as its devices' memory is known by the lock that it holds.
 */
#define _GNU_SOURCE
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

static bool look(const char *path, struct stat *info_out)
{
    return strcmp(path, "-") == 0 ? fstat(STDIN_FILENO, info_out) == 0 : stat(path, info_out) == 0;
}

static bool is_same_node(const struct stat *one, const struct stat *two)
{
    return one->st_dev == two->st_dev && one->st_ino == two->st_ino;
}

/* The directory that a name is in, and its last part. */
static const char *split(const char *path, struct stat *directory_out)
{
    const char *slash = strrchr(path, '/');
    char directory[PATH_MAX];
    int n = slash ? (int)(slash - path) + 1 : 0;

    if (n >= PATH_MAX)
        return NULL;
    snprintf(directory, sizeof directory, "%.*s", n, path);
    return stat(n ? directory : ".", directory_out) == 0 ? path + n : NULL;
}

/* Neither is there. */
static bool will_be_same(const char *one, const char *two)
{
    struct stat one_directory, two_directory;
    const char *one_name = split(one, &one_directory), *two_name = split(two, &two_directory);

    return one_name && two_name && is_same_node(&one_directory, &two_directory) && strcmp(one_name, two_name) == 0;
}

static bool is_same(const char *one, const char *two)
{
    struct stat one_info, two_info;
    bool has_one = look(one, &one_info), has_two = look(two, &two_info);

    if (has_one != has_two)
        return false;
    return has_one ? S_ISREG(one_info.st_mode) && is_same_node(&one_info, &two_info) : will_be_same(one, two);
}

static int refuse(const char *flag, const char *path, const char *other_flag, const char *other)
{
    return cli_usage("%s %s and %s %s are the same file, which would be lost: write another; nothing was changed", flag,
                     path, other_flag, other);
}

int output_is_other(const char *flag, const char *path, const char *other_flag, const char *other)
{
    if (!path || !other || !is_same(path, other))
        return CLI_OK;
    return refuse(flag, path, other_flag, other);
}

int output_memory_length(const char *memory)
{
    const char *colon = strrchr(memory, ':');
    bool sized = colon[1] >= '0' && colon[1] <= '9' && !strchr(colon, '/') && colon != strchr(memory, ':');

    return sized ? (int)(colon - memory) : (int)strlen(memory);
}

bool output_memory_path(const char *memory, char *path_out, size_t bytes)
{
    int n = strncmp(memory, "file:", 5) == 0 ? output_memory_length(memory) - 5 : 0;

    return n > 0 && (size_t)snprintf(path_out, bytes, "%.*s", n, memory + 5) < bytes;
}

int output_is_no_memory(const char *flag, const char *path, const char *other_flag, const char *memory)
{
    char other[PATH_MAX];

    if (!path || !memory || !output_memory_path(memory, other, sizeof other) || !is_same(path, other))
        return CLI_OK;
    return refuse(flag, path, other_flag, memory);
}

int output_is_free(const char *flag, const char *path)
{
    struct stat info;
    int fd, held;

    if (stat(path, &info) < 0 || !S_ISREG(info.st_mode)) /* opening a pipe would wait */
        return CLI_OK;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return CLI_OK; /* who writes it will tell */
    held = flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
    close(fd);
    return held ? cli_usage("%s %s: another process has that file as a device's memory (nearkv pnmd?): write another",
                            flag, path)
                : CLI_OK;
}
