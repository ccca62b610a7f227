/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tests/device/server.h: a device process for tests: on a thread of this process, where sanitizers see it, or as a
 * process of its own (this program again, with the argument "serve"), which can be killed.
 */
#ifndef NKV_TESTS_DEVICE_SERVER_H
#define NKV_TESTS_DEVICE_SERVER_H

#include <nearkv/serve.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

struct server {
    char dir[32], path[64], metrics[64], spec[80];
    char image[64], memory[96]; /* of a process; "": anonymous memory */
    struct nkv_serve *serve;    /* on a thread */
    pthread_t thread;
    pid_t pid; /* as a process */
};

static inline void server_pause(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

static inline void *server_main(void *arg)
{
    return nkv_serve_run(arg) < 0 ? arg : NULL;
}

/* The program again, with some arguments; memory: a capacity in bytes, or file:PATH:SIZE. */
static inline pid_t server_spawn(const char *role, const char *path, const char *memory)
{
    char *argv[] = {(char *)(uintptr_t) "test", (char *)(uintptr_t)role, (char *)(uintptr_t)path,
                    (char *)(uintptr_t)memory, NULL};
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* of the thread that spawned it */
        execv("/proc/self/exe", argv);
        _exit(127);
    }
    return pid;
}

static inline void server_open_at(struct server *server, bool process, uint64_t capacity_bytes)
{
    struct nkv_serve_options options = {.size = sizeof options,
                                        .listen = server->path,
                                        .metrics = process ? NULL : server->metrics,
                                        .name = "pnm0",
                                        .capacity_bytes = capacity_bytes,
                                        .n_threads = 2};
    struct nkv_serve_stat stat;
    char capacity[32];

    if (process) {
        snprintf(capacity, sizeof capacity, "%llu", (unsigned long long)capacity_bytes);
        server->pid = server_spawn("serve", server->path, *server->memory ? server->memory : capacity);
        assert_true(server->pid > 0);
        for (int i = 0; i < 5000 && nkv_serve_stat(server->path, &stat) < 0; i++)
            server_pause();
        assert_int_equal(nkv_serve_stat(server->path, &stat), 0);
        return;
    }
    if (nkv_serve_open(&options, &server->serve))
        fail_msg("%s", nkv_last_error());
    assert_int_equal(pthread_create(&server->thread, NULL, server_main, server->serve), 0);
}

static inline void server_make_names(struct server *server)
{
    *server = (struct server){.dir = "/tmp/nkv-serve-XXXXXX"};
    assert_non_null(mkdtemp(server->dir));
    snprintf(server->path, sizeof server->path, "%s/pnm", server->dir);
    snprintf(server->metrics, sizeof server->metrics, "%s/metrics", server->dir);
    snprintf(server->spec, sizeof server->spec, "unix:%s", server->path);
    snprintf(server->image, sizeof server->image, "%s/image", server->dir);
}

static inline void server_open(struct server *server, bool process, uint64_t capacity_bytes)
{
    server_make_names(server);
    server_open_at(server, process, capacity_bytes);
}

/* A process whose pages are in a file. */
static inline void server_open_on_file(struct server *server, uint64_t bytes)
{
    server_make_names(server);
    snprintf(server->memory, sizeof server->memory, "file:%s:%llu", server->image, (unsigned long long)bytes);
    server_open_at(server, true, bytes);
}

/* Kills a process. */
static inline void server_kill(struct server *server)
{
    int status = 0;

    assert_int_equal(kill(server->pid, SIGKILL), 0);
    assert_int_equal(waitpid(server->pid, &status, 0), server->pid);
    server->pid = 0;
}

/* returns: the exit status of a process, or minus the signal that ended it. */
static inline int server_wait(struct server *server)
{
    int status = 0;

    assert_int_equal(waitpid(server->pid, &status, 0), server->pid);
    server->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static inline void server_close(struct server *server)
{
    void *failed = NULL;

    if (server->pid) {
        kill(server->pid, SIGTERM);
        assert_int_equal(server_wait(server), 0);
    }
    if (server->serve) {
        nkv_serve_stop(server->serve);
        pthread_join(server->thread, &failed);
        assert_null(failed);
        nkv_serve_close(server->serve);
    }
    assert_true(access(server->path, F_OK) != 0);
    (void)unlink(server->path);
    (void)unlink(server->image);
    assert_int_equal(rmdir(server->dir), 0);
}

static inline struct nkv_serve_stat server_stat(const struct server *server)
{
    struct nkv_serve_stat stat;

    if (nkv_serve_stat(server->path, &stat))
        fail_msg("%s", nkv_last_error());
    return stat;
}

/* Waits, for at most a second, until the device has so many clients. */
static inline void server_await_clients(const struct server *server, uint32_t n)
{
    uint64_t deadline_ns = nkv_now_ns() + 1000000000u;

    while (server_stat(server).n_clients != n && nkv_now_ns() < deadline_ns)
        server_pause();
    assert_int_equal(server_stat(server).n_clients, n);
}

/* What "serve PATH MEMORY" does; the time of grace is in the environment. */
static struct nkv_serve *server_own;

static inline void server_on_signal(int signal)
{
    (void)signal;
    nkv_serve_stop(server_own);
}

static inline int server_role(char **argv)
{
    struct nkv_serve_options options = {.size = sizeof options,
                                        .listen = argv[2],
                                        .name = "pnm0",
                                        .capacity_bytes = strtoull(argv[3], NULL, 10),
                                        .n_threads = 2};
    const char *keep_ms = getenv("NKV_TEST_KEEP_MS");
    int status;

    if (strncmp(argv[3], "file:", 5) == 0)
        options.memory = argv[3];
    options.keep_ms = keep_ms ? (uint32_t)strtoul(keep_ms, NULL, 10) : 0;
    if (nkv_serve_open(&options, &server_own) < 0) {
        fprintf(stderr, "server: %s\n", nkv_last_error());
        return 3;
    }
    signal(SIGTERM, server_on_signal);
    status = nkv_serve_run(server_own);
    nkv_serve_close(server_own);
    return status < 0;
}

#endif
