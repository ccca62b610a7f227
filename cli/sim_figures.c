/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim paper --out DIR: per figure a CSV file, a gnuplot script beside it, and the pictures that gnuplot draws from
 * both.
 *
 * A file is composed in memory, written under another name and renamed, so that DIR never holds half a file, and errno
 * is that of the call that failed. Pictures of an earlier run are removed before: where gnuplot is missing or fails,
 * none is left that contradicts the data beside it. gnuplot runs in DIR, without a shell and without the user's
 * start-up file (-d), and what it says becomes our message. A figure of which no point could be simulated has data, but
 * neither script nor pictures: gnuplot fails on a plot without values.
 *
 * Rejected: drawing by ourselves (axes, fonts and PNG for seven pictures), and feeding gnuplot through a pipe (the user
 * could not draw again with other labels or sizes).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli.h"
#include "sim.h"
#include "sim_figures.h"

extern char **environ;

int sim_figures_prepare(const char *dir)
{
    struct stat info;

    if (mkdir(dir, 0777) < 0 && errno != EEXIST)
        return cli_fail("cannot create the directory '%s': %s", dir, strerror(errno));
    if (stat(dir, &info) < 0)
        return cli_fail("cannot write into '%s': %s", dir, strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return cli_fail("cannot write into '%s': %s", dir, strerror(ENOTDIR));
    if (access(dir, W_OK | X_OK) < 0)
        return cli_fail("cannot write into '%s': %s", dir, strerror(errno));
    return CLI_OK;
}

/* ---- Files ---- */

struct target {
    const char *dir;
    int fd;
    FILE *file; /* in memory: data, bytes */
    char *data;
    size_t bytes;
    bool left_out[SIM_FIG_COUNT];
};

static int write_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = write(fd, data, bytes);

        if (n < 0 && errno != EINTR)
            return -1;
        if (n > 0) {
            data += n;
            bytes -= (size_t)n;
        }
    }
    return 0;
}

/* Puts what was printed into DIR/name. returns: 0, or -1 with errno and nothing left behind. */
static int replace_file(const struct target *t, const char *name)
{
    char part[64];
    int fd, failed, error;

    snprintf(part, sizeof part, "%s.part", name);
    fd = openat(t->fd, part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return -1;
    failed = write_all(fd, t->data, t->bytes);
    error = errno;
    if (close(fd) < 0 && failed == 0) {
        failed = -1;
        error = errno;
    }
    if (failed == 0) {
        failed = renameat(t->fd, part, t->fd, name);
        error = errno;
    }
    if (failed < 0)
        unlinkat(t->fd, part, 0);
    errno = error;
    return failed;
}

static int begin_file(struct target *t)
{
    t->file = open_memstream(&t->data, &t->bytes);
    return t->file ? CLI_OK : cli_fail("out of memory");
}

static int end_file(struct target *t, const char *name)
{
    int rc = CLI_OK;

    if (fclose(t->file) == EOF)
        rc = cli_fail("out of memory for '%s/%s'", t->dir, name);
    else if (replace_file(t, name) < 0)
        rc = cli_fail("cannot write '%s/%s': %s", t->dir, name, strerror(errno));
    free(t->data);
    return rc;
}

static int write_table(struct target *t, const struct nkv_sim_paper *paper, const char *name,
                       void (*print)(const struct nkv_sim_paper *paper, FILE *file))
{
    int rc = begin_file(t);

    if (rc != CLI_OK)
        return rc;
    print(paper, t->file);
    return end_file(t, name);
}

static int write_rows(struct target *t, const struct sim_rows *rows, const char *name,
                      void (*print)(const struct sim_rows *rows, FILE *file))
{
    int rc = begin_file(t);

    if (rc != CLI_OK)
        return rc;
    print(rows, t->file);
    return end_file(t, name);
}

static void remove_picture(const struct target *t, enum sim_figure figure, const char *suffix)
{
    char name[64];

    snprintf(name, sizeof name, "%s.%s", sim_figure_name(figure), suffix);
    unlinkat(t->fd, name, 0);
}

static int write_figure(struct target *t, const struct nkv_sim_paper *paper, enum sim_figure figure)
{
    struct sim_rows rows;
    char name[64], script[16];
    int rc = sim_rows_open(paper, figure, &rows);

    if (rc != CLI_OK)
        return rc;
    remove_picture(t, figure, "svg");
    remove_picture(t, figure, "png");
    snprintf(name, sizeof name, "%s.csv", sim_figure_name(figure));
    rc = write_rows(t, &rows, name, sim_rows_print);
    snprintf(script, sizeof script, "fig%02u.gp", sim_figure_number(figure));
    t->left_out[figure] = !sim_rows_drawable(&rows);
    if (t->left_out[figure])
        unlinkat(t->fd, script, 0);
    else if (rc == CLI_OK)
        rc = write_rows(t, &rows, script, sim_script_print);
    sim_rows_close(&rows);
    return rc;
}

/* ---- gnuplot ---- */

/* Starts gnuplot in DIR; what it says goes into the log. returns: 0, or an errno. */
static int start_gnuplot(const struct target *t, const char *script, int log, pid_t *pid_out)
{
    char program[] = "gnuplot", defaults[] = "-d", name[16];
    char *argv[] = {program, defaults, name, NULL};
    posix_spawn_file_actions_t actions;
    int error = posix_spawn_file_actions_init(&actions);

    if (error)
        return error;
    snprintf(name, sizeof name, "%s", script);
    error = posix_spawn_file_actions_addfchdir_np(&actions, t->fd);
    if (!error)
        error = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (!error)
        error = posix_spawn_file_actions_adddup2(&actions, log, STDOUT_FILENO);
    if (!error)
        error = posix_spawn_file_actions_adddup2(&actions, log, STDERR_FILENO);
    if (!error)
        error = posix_spawnp(pid_out, program, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

/* Waits for gnuplot; when it failed, its words on one line are the message. */
static int end_gnuplot(const struct target *t, const char *script, FILE *log, pid_t pid)
{
    char said[1024];
    size_t n = 0;
    int status, c;

    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return cli_fail("cannot wait for gnuplot: %s", strerror(errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return CLI_OK;
    rewind(log);
    while (n + 1 < sizeof said && (c = fgetc(log)) != EOF)
        if (c > ' ' || (n > 0 && said[n - 1] != ' '))
            said[n++] = c > ' ' ? (char)c : ' ';
    said[n] = '\0';
    return cli_fail("gnuplot %s failed in '%s' (%s %d): %s", script, t->dir, WIFEXITED(status) ? "exit" : "signal",
                    WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), said);
}

static int draw(const struct target *t, enum sim_figure figure, bool *missing_out)
{
    char script[16];
    FILE *log = tmpfile();
    pid_t pid;
    int error, rc;

    if (!log)
        return cli_fail("cannot create a temporary file: %s", strerror(errno));
    snprintf(script, sizeof script, "fig%02u.gp", sim_figure_number(figure));
    error = start_gnuplot(t, script, fileno(log), &pid);
    *missing_out = error == ENOENT;
    if (error == 0)
        rc = end_gnuplot(t, script, log, pid);
    else
        rc = *missing_out ? CLI_OK : cli_fail("cannot start gnuplot: %s", strerror(error));
    fclose(log);
    return rc;
}

static int draw_all(const struct target *t)
{
    bool missing = false;
    int rc = CLI_OK;

    for (enum sim_figure f = 0; f < SIM_FIG_COUNT && rc == CLI_OK && !missing; f++)
        if (!t->left_out[f])
            rc = draw(t, f, &missing);
    if (missing)
        fprintf(stderr,
                "nearkv: no pictures, gnuplot is not installed: install gnuplot-nox (Debian) and run gnuplot fig*.gp "
                "in %s\n",
                t->dir);
    return rc;
}

static void tell_left_out(const struct target *t)
{
    const char *before = "nearkv: figures left out, as nothing that they show could be simulated (the column status of "
                         "their CSV says why): ";

    for (enum sim_figure f = 0; f < SIM_FIG_COUNT; f++)
        if (t->left_out[f]) {
            fprintf(stderr, "%s%s", before, sim_figure_name(f));
            before = ", ";
        }
    if (*before == ',')
        fputc('\n', stderr);
}

int sim_figures_write(const struct nkv_sim_paper *paper, const char *dir)
{
    struct target t = {.dir = dir, .fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    int rc = CLI_OK;

    if (t.fd < 0)
        return cli_fail("cannot write into '%s': %s", dir, strerror(errno));
    rc = write_table(&t, paper, "points.csv", sim_points_print);
    if (rc == CLI_OK)
        rc = write_table(&t, paper, "claims.csv", sim_claims_print);
    for (enum sim_figure f = 0; f < SIM_FIG_COUNT && rc == CLI_OK; f++)
        rc = write_figure(&t, paper, f);
    if (rc == CLI_OK) {
        tell_left_out(&t);
        rc = draw_all(&t);
    }
    close(t.fd);
    return rc;
}
