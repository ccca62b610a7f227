/* SPDX-License-Identifier: Apache-2.0 */
/* The bar goes to stderr and only to a terminal, so that logs and pipes stay clean. */
#define _GNU_SOURCE
#include "progress.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

#define BAR_CELLS      30
#define REDRAW_NS      100000000u
#define FIRST_SHOWN_NS 300000000u

static volatile sig_atomic_t interrupted;

uint64_t progress_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void progress_start(struct progress *progress, const char *what, const char *unit)
{
    *progress = (struct progress){
        .what = what, .unit = unit, .start_ns = progress_now_ns(), .is_terminal = isatty(STDERR_FILENO) == 1};
}

static void draw(const struct progress *progress, uint64_t n_done, uint64_t n_total, double elapsed_s)
{
    char bar[BAR_CELLS + 1];
    double part = n_total ? (double)n_done / (double)n_total : 1;
    int full = (int)(part * BAR_CELLS);

    memset(bar, ' ', BAR_CELLS);
    memset(bar, '#', (size_t)full);
    bar[BAR_CELLS] = '\0';
    fprintf(stderr, "\r%s [%s] %3.0f%% %llu/%llu %s", progress->what, bar, part * 100, (unsigned long long)n_done,
            (unsigned long long)n_total, progress->unit);
    if (part > 0)
        fprintf(stderr, ", %.0f s left", elapsed_s / part - elapsed_s);
    fputs(" \x1b[K", stderr);
    fflush(stderr);
}

int progress_update(void *arg, uint64_t n_done, uint64_t n_total)
{
    struct progress *progress = arg;
    uint64_t now = progress_now_ns();

    if (progress->is_terminal && now - progress->start_ns > FIRST_SHOWN_NS &&
        (n_done == n_total || now - progress->shown_ns > REDRAW_NS)) {
        draw(progress, n_done, n_total, (double)(now - progress->start_ns) / 1e9);
        progress->shown_ns = now;
    }
    return interrupted;
}

void progress_sleep_ms(uint32_t ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

    nanosleep(&t, NULL);
}

void progress_end(struct progress *progress)
{
    if (progress->shown_ns)
        fputs("\r\x1b[K", stderr);
    progress->shown_ns = 0;
}

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

static void catch (void (*handler)(int number))
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = (int)SA_RESETHAND};

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

void progress_catch_interrupt(void)
{
    catch (on_signal);
}

static void end_now(int number)
{
    static const char told[] = "nearkv: interrupted\n";

    (void)number;
    if (write(STDERR_FILENO, told, sizeof told - 1) < 0) {
        /* nobody reads it, and the status says it, too */
    }
    _exit(CLI_FAILED);
}

void progress_end_on_interrupt(void)
{
    catch (end_now);
}

bool progress_interrupted(void)
{
    return interrupted;
}

/* A signal between a look at `interrupted` and a read would leave the read waiting: it is let in by the wait alone. */
bool progress_wait_readable(int fd)
{
    struct pollfd wanted = {.fd = fd, .events = POLLIN};
    sigset_t signals, before;
    int n;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, &before);
    do
        n = interrupted ? 0 : ppoll(&wanted, 1, NULL, &before);
    while (n < 0 && errno == EINTR);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return !interrupted;
}
