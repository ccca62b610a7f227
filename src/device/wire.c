/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket between clients and a device process: connecting, listening, and whole messages. Every send and receive
 * asks not to be blocked, call by call: whether a descriptor blocks is a property that both ends of some descriptors
 * share, and a hostile client must not be able to stop the device in a system call. Where the client has to wait it
 * waits in poll(), which also tells that the device died.
 *
 * A stream socket was rejected: messages would have to be put together from parts, and a client that sends half of one
 * would need a place to keep it.
 */
#define _GNU_SOURCE
#include "device/wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER_MS 30000 /* a device that runs long commands of others answers between two of them */
#define BACKLOG   64

struct nkv_wire_head nkv_wire_head(enum nkv_wire_kind kind)
{
    return (struct nkv_wire_head){NKV_WIRE_MAGIC, NKV_WIRE_VERSION, (uint16_t)kind};
}

static int make_address(const char *path, struct sockaddr_un *address_out)
{
    size_t length = strlen(path);

    *address_out = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (length == 0 || length >= sizeof address_out->sun_path)
        FAIL(NKV_EINVAL, "socket path '%.120s' has %zu bytes: it must have from 1 to %zu", path, length,
             sizeof address_out->sun_path - 1);
    memcpy(address_out->sun_path, path, length);
    return 0;
}

static int open_socket(int type, int *fd_out)
{
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    if (fd < 0)
        FAIL(NKV_EIO, "cannot open a socket: %s", strerror(errno));
    *fd_out = fd;
    return 0;
}

int nkv_wire_connect(const char *path, int *fd_out)
{
    struct sockaddr_un address;
    int fd = -1, error;

    TRY(make_address(path, &address));
    TRY(open_socket(SOCK_SEQPACKET, &fd));
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0) {
        *fd_out = fd;
        return 0;
    }
    error = errno;
    close(fd);
    if (error == ENOENT || error == ECONNREFUSED)
        FAIL(NKV_ENOENT, "no device listens on '%s': start one with nearkv pnmd --listen 'unix:%s'", path, path);
    FAIL(NKV_EIO, "cannot connect to %s: %s", path, strerror(error));
}

/* Whether a socket at path is free to be replaced: there is none, or nobody listens on it. */
static int make_room(const struct sockaddr_un *address, int type)
{
    const char *path = address->sun_path;
    struct stat file;
    int fd = -1, error;

    if (lstat(path, &file))
        return 0;
    if (!S_ISSOCK(file.st_mode))
        FAIL(NKV_EINVAL, "%s exists and is no socket: remove it or listen elsewhere", path);
    TRY(open_socket(type, &fd));
    error = connect(fd, (const struct sockaddr *)address, sizeof *address) ? errno : 0;
    close(fd);
    if (error != ECONNREFUSED)
        FAIL(NKV_ESTATE, "a process listens on %s already: stop it or listen elsewhere", path);
    if (unlink(path))
        FAIL(NKV_EIO, "cannot remove the stale socket %s: %s", path, strerror(errno));
    return 0;
}

int nkv_wire_listen(const char *path, int type, int *fd_out)
{
    struct sockaddr_un address;
    int fd = -1, error;

    TRY(make_address(path, &address));
    TRY(make_room(&address, type));
    TRY(open_socket(type, &fd));
    /* Between bind and listen nobody can connect, so nobody sees the mode that it was made with. */
    if (bind(fd, (const struct sockaddr *)&address, sizeof address) == 0) {
        if (chmod(path, S_IRUSR | S_IWUSR) == 0 && listen(fd, BACKLOG) == 0) {
            *fd_out = fd;
            return 0;
        }
        error = errno;
        (void)unlink(path);
    } else {
        error = errno;
    }
    close(fd);
    FAIL(NKV_EIO, "cannot listen on %s: %s", path, strerror(error));
}

int nkv_wire_send(int fd, const void *message, size_t bytes, int pass_fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {.iov_base = (void *)(uintptr_t)message, .iov_len = bytes};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    struct cmsghdr *cmsg;

    if (pass_fd >= 0) {
        memset(&control, 0, sizeof control);
        header.msg_control = control.bytes;
        header.msg_controllen = sizeof control.bytes;
        cmsg = CMSG_FIRSTHDR(&header);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof pass_fd);
        memcpy(CMSG_DATA(cmsg), &pass_fd, sizeof pass_fd);
    }
    while (sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        if (errno == EAGAIN || errno == ENOBUFS)
            FAIL(NKV_ENOSPC, "the other side of the socket does not read");
        if (errno != EINTR)
            FAIL(NKV_EIO, "cannot send: %s", strerror(errno));
    }
    return 0;
}

/* The first descriptor of a message; any other is closed. */
static int take_fd(struct msghdr *header)
{
    int taken = -1, fd;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(header); cmsg; cmsg = CMSG_NXTHDR(header, cmsg)) {
        size_t n = cmsg->cmsg_len < CMSG_LEN(0) ? 0 : (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof fd;

        for (size_t i = 0; cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS && i < n; i++) {
            memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof fd, sizeof fd);
            if (taken < 0)
                taken = fd;
            else
                close(fd);
        }
    }
    return taken;
}

int nkv_wire_receive(int fd, void *message, size_t room, int *fd_out)
{
    union {
        char bytes[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {.iov_base = message, .iov_len = room};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    uint32_t n_resets = 0;
    ssize_t n;

    /* Without room for them the system closes descriptors that a message brings. */
    header.msg_control = fd_out ? control.bytes : NULL;
    header.msg_controllen = fd_out ? sizeof control.bytes : 0;
    /* A reset is told once, before messages that came earlier. */
    do
        n = recvmsg(fd, &header, MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
    while (n < 0 && (errno == EINTR || (errno == ECONNRESET && n_resets++ == 0)));
    if (n < 0 && errno == EAGAIN)
        FAIL(NKV_ENOSPC, "no message");
    if (n < 0)
        return 0; /* reset: gone */
    if (fd_out)
        *fd_out = take_fd(&header);
    return n > INT32_MAX ? INT32_MAX : (int)n;
}

static int gone(const struct nkv_wire_result *result)
{
    FAIL(NKV_EDEVICE, "%.*s", (int)sizeof result->text, result->text);
}

/* Waits for a message. returns: its size; NKV_EDEVICE. */
static int await_message(int fd, int timeout_ms, void *message, size_t room, int *fd_out)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    int n;

    for (;;) {
        n = poll(&wait, 1, timeout_ms);
        if (n == 0)
            FAIL(NKV_EDEVICE, "it has not answered for %d s", timeout_ms / 1000);
        if (n < 0 && errno != EINTR)
            FAIL(NKV_EDEVICE, "cannot wait for it: %s", strerror(errno));
        if (n < 0)
            continue;
        n = nkv_wire_receive(fd, message, room, fd_out);
        if (n == 0)
            FAIL(NKV_EDEVICE, "its process ended");
        if (n != NKV_ENOSPC)
            return n;
    }
}

/* What a message of n bytes, in room for `bytes`, is. returns: 1: the answer; 0: a bell; < 0. */
static int classify(const struct nkv_wire_result *result, size_t n, size_t bytes, uint16_t kind)
{
    if (n < sizeof result->head || result->head.magic != NKV_WIRE_MAGIC)
        FAIL(NKV_EDEVICE, "what answers is not a nearkv device");
    if (result->head.kind == NKV_WIRE_BELL && n == sizeof result->head)
        return 0;
    if (result->head.version != NKV_WIRE_VERSION)
        FAIL(NKV_ENOTSUP, "it speaks version %u, this library version %u: use the same nearkv on both sides",
             result->head.version, NKV_WIRE_VERSION);
    if (result->head.kind == NKV_WIRE_GONE && n == sizeof *result)
        return gone(result);
    if (result->head.kind != kind || n != bytes)
        FAIL(NKV_EDEVICE, "it answers with %zu bytes of kind %u: %zu of kind %u were asked for", n, result->head.kind,
             bytes, kind);
    if (result->status < 0)
        FAIL(result->status, "%.*s", (int)sizeof result->text, result->text);
    return 1;
}

int nkv_wire_ask(int fd, const struct nkv_wire_request *request, void *result_out, size_t bytes, int *fd_out)
{
    int passed = -1, n, status = nkv_wire_send(fd, request, sizeof *request, -1);

    if (status == NKV_ENOSPC)
        FAIL(NKV_EDEVICE, "it does not read what it is sent");
    do { /* if it is gone, it may have said why */
        n = await_message(fd, ANSWER_MS, result_out, bytes, fd_out ? &passed : NULL);
        TRY(n);
        status = classify(result_out, (size_t)n, bytes, request->head.kind);
    } while (status == 0);
    if (status < 0 && passed >= 0)
        close(passed);
    TRY(status);
    if (fd_out && passed < 0)
        FAIL(NKV_EDEVICE, "it passed no memory");
    if (fd_out)
        *fd_out = passed;
    return 0;
}

int nkv_wire_sleep(int fd)
{
    struct nkv_wire_result result;
    int n = await_message(fd, -1, &result, sizeof result, NULL);

    TRY(n);
    n = classify(&result, (size_t)n, sizeof result, NKV_WIRE_GONE);
    return n < 0 ? nkv_fail(NKV_EDEVICE, "%s", nkv_last_error()) : 0;
}
