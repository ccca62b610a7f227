/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv sim sweep: every combination of lists of options, one CSV row each. Workers take points in order; rows are
 * printed in order when all are done or after Ctrl-C, so that the file does not depend on the number of threads.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arguments.h"
#include "cli.h"
#include "progress.h"
#include "sim.h"
#include "text.h"

#define MAX_AXES    32u
#define MAX_POINTS  1000000u
#define ERROR_BYTES 512u /* of a message of the library */

/* One option and its values; of --set, "key=" before each. */
struct axis {
    const struct sim_flag *flag;
    uint32_t n_values;
    char **values;
    char *memory;
};

struct row {
    bool done, ok;
    struct nkv_sim_report report;
    char error[ERROR_BYTES];
};

struct sweep {
    uint32_t n_axes, n_points, n_threads;
    struct axis axes[MAX_AXES];
    struct row *rows;
    const char *out;
    bool help;
    _Atomic uint32_t next, n_done;
    _Atomic bool stop;
};

static void print_usage(FILE *file)
{
    fputs("usage: nearkv sim sweep [options]\n"
          "Simulates every combination of the values given, as CSV. Every option takes a list: --pnm 1,2,4,8\n\n",
          file);
    sim_flags_print(file);
    fputs("  --threads N      points at a time (one per CPU)\n"
          "  --out FILE       CSV goes there (standard output)\n",
          file);
}

static bool is_set(const struct axis *axis)
{
    return strcmp(axis->flag->name, "set") == 0;
}

/* Splits "a,b,c", or for --set "key=a,b,c" into "key=a", "key=b", "key=c". */
static int split_values(struct axis *axis, const char *text)
{
    const char *equals = is_set(axis) ? strchr(text, '=') : NULL;
    size_t key = equals ? (size_t)(equals - text) + 1 : 0, n = 1, used = 0;

    for (const char *c = text + key; *c; c++)
        n += *c == ',';
    axis->values = calloc(n, sizeof *axis->values);
    axis->memory = malloc(strlen(text) + n * (key + 1) + 1);
    if (!axis->values || !axis->memory)
        return cli_fail("out of memory");
    for (const char *at = text + key;; at++) {
        size_t length = strcspn(at, ",");

        axis->values[axis->n_values++] = axis->memory + used;
        memcpy(axis->memory + used, text, key);
        memcpy(axis->memory + used + key, at, length);
        axis->memory[used + key + length] = '\0';
        used += key + length + 1;
        at += length;
        if (*at == '\0')
            return CLI_OK;
    }
}

static int add_axis(struct sweep *s, const struct sim_flag *flag, const char *text)
{
    struct sim_options probe;
    struct axis *axis = &s->axes[s->n_axes];
    int rc;

    if (s->n_axes == MAX_AXES)
        return cli_usage("more than %u options", MAX_AXES);
    axis->flag = flag;
    s->n_axes++;
    rc = split_values(axis, text);
    sim_options_init(&probe);
    for (uint32_t i = 0; rc == CLI_OK && i < axis->n_values; i++) {
        rc = flag->read(&probe, flag->name, axis->values[i]);
        probe.n_sets = 0;
    }
    if (rc != CLI_OK)
        return rc;
    if ((uint64_t)s->n_points * axis->n_values > MAX_POINTS)
        return cli_usage("more than %u combinations", MAX_POINTS);
    s->n_points *= axis->n_values;
    return CLI_OK;
}

static int read_valued(struct sweep *s, const char *name, const char *arg)
{
    const struct sim_flag *flag = strncmp(name, "--", 2) == 0 ? sim_flag_find(name + 2) : NULL;

    if (!flag && strcmp(name, "--threads") != 0 && strcmp(name, "--out") != 0)
        return cli_usage("unrecognized option '%s': see nearkv sim sweep --help", name);
    if (!arg)
        return cli_usage("%s needs a value", name);
    if (flag)
        return add_axis(s, flag, arg);
    if (strcmp(name, "--threads") == 0)
        return cli_u32("--threads", arg, 1, 1024, &s->n_threads);
    s->out = arg;
    return CLI_OK;
}

static int read_options(int argc, char **argv, struct sweep *s)
{
    for (int at = 1; at < argc; at += 2) {
        int rc;

        if (arguments_is_help(argv[at])) {
            s->help = true;
            return CLI_OK;
        }
        rc = read_valued(s, argv[at], at + 1 < argc ? argv[at + 1] : NULL);
        if (rc != CLI_OK)
            return rc;
    }
    return CLI_OK;
}

/* The last axis varies fastest. */
static const char *value_at(const struct sweep *s, uint32_t point, uint32_t axis)
{
    for (uint32_t i = s->n_axes - 1; i > axis; i--)
        point /= s->axes[i].n_values;
    return s->axes[axis].values[point % s->axes[axis].n_values];
}

static int open_point(const struct sweep *s, uint32_t point, struct sim_options *o,
                      struct nkv_sim_machine **machine_out)
{
    sim_options_init(o);
    for (uint32_t i = 0; i < s->n_axes; i++)
        (void)s->axes[i].flag->read(o, s->axes[i].flag->name, value_at(s, point, i)); /* checked before */
    return sim_options_open(o, machine_out);
}

static void run_point(const struct sweep *s, uint32_t point, struct row *row)
{
    struct sim_options o;
    struct nkv_sim_machine *machine;

    if (open_point(s, point, &o, &machine) != CLI_OK) {
        snprintf(row->error, sizeof row->error, "%s", nkv_last_error());
        return;
    }
    row->ok = nkv_sim_run(&o.config, &row->report) == 0;
    if (!row->ok)
        snprintf(row->error, sizeof row->error, "%s", nkv_last_error());
    nkv_sim_machine_close(machine);
}

static void *worker(void *arg)
{
    struct sweep *s = arg;
    uint32_t point;

    while (!atomic_load(&s->stop) && (point = atomic_fetch_add(&s->next, 1)) < s->n_points) {
        run_point(s, point, &s->rows[point]);
        s->rows[point].done = true;
        atomic_fetch_add(&s->n_done, 1);
    }
    return NULL;
}

/* Every value on its own, with the first of the other axes: a wrong name is told once, before hundreds of rows. */
static int check_values(const struct sweep *s)
{
    for (uint32_t axis = 0; axis < s->n_axes; axis++)
        for (uint32_t i = 0; i < s->axes[axis].n_values; i++) {
            struct sim_options o;
            struct nkv_sim_machine *machine;
            int rc;

            sim_options_init(&o);
            for (uint32_t other = 0; other < s->n_axes; other++)
                (void)s->axes[other].flag->read(&o, s->axes[other].flag->name,
                                                s->axes[other].values[other == axis ? i : 0]);
            rc = sim_options_check_output(&o, "--out", s->out);
            if (rc == CLI_OK)
                rc = sim_options_open(&o, &machine);
            if (rc != CLI_OK)
                return rc;
            nkv_sim_machine_close(machine);
        }
    return CLI_OK;
}

static int run_points(struct sweep *s)
{
    pthread_t threads[1024];
    uint32_t n_started = 0;
    struct progress progress;

    progress_start(&progress, "sweep", "points");
    while (n_started < s->n_threads && pthread_create(&threads[n_started], NULL, worker, s) == 0)
        n_started++;
    if (n_started == 0)
        return cli_fail("cannot start a thread");
    while (!atomic_load(&s->stop) && atomic_load(&s->n_done) < s->n_points) {
        if (progress_update(&progress, atomic_load(&s->n_done), s->n_points))
            atomic_store(&s->stop, true);
        progress_sleep_ms(20);
    }
    for (uint32_t i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
    progress_end(&progress);
    return CLI_OK;
}

static void put_header(const struct sweep *s, FILE *file)
{
    for (uint32_t i = 0; i < s->n_axes; i++) {
        const char *value = s->axes[i].values[0];

        if (is_set(&s->axes[i])) /* of "key=value" the key */
            fprintf(file, "%.*s,", (int)strcspn(value, "="), value);
        else
            fprintf(file, "%s,", s->axes[i].flag->name);
    }
    fputs("status,admitted_batch,budget_tokens,steady_tokens,tokens_per_s,step_ms", file);
    for (enum nkv_sim_part p = 0; p < NKV_SIM_PART_COUNT; p++)
        fprintf(file, ",%s_ms", nkv_sim_part_name(p));
    fputs(",gpu_utilisation,pnm_utilisation", file);
    for (enum nkv_sim_account a = 0; a < NKV_SIM_ACCOUNT_COUNT; a++)
        fprintf(file, ",%s_j_per_token", nkv_sim_account_name(a));
    fputs(",usd_per_hour,tokens_per_usd,full_tokens_per_usd,recalled_pages_per_layer_request,recalled_pages_error,"
          "steady_hit_ratio,link_bytes_per_token,kv_group,attended_bytes_per_token,gpu_attended_bytes_per_token,"
          "transfers_per_layer,sorts_per_layer,"
          "reduce_messages_per_layer,list_messages_per_layer,select_bytes_per_layer,select_ms_per_layer\n",
          file);
}

/* Of "key=value" the value: the key is the column's name. */
static void put_value(const struct sweep *s, uint32_t point, uint32_t axis, FILE *file)
{
    const char *value = value_at(s, point, axis);

    text_put_csv(file, is_set(&s->axes[axis]) ? value + strcspn(value, "=") + 1 : value);
}

static void put_row(const struct sweep *s, uint32_t point, FILE *file)
{
    const struct row *row = &s->rows[point];
    const struct nkv_sim_report *r = &row->report;

    for (uint32_t i = 0; i < s->n_axes; i++) {
        put_value(s, point, i, file);
        fputc(',', file);
    }
    text_put_csv(file, row->ok ? "ok" : row->error);
    if (!row->ok) {
        for (uint32_t i = 0; i < 5u + NKV_SIM_PART_COUNT + 2u + NKV_SIM_ACCOUNT_COUNT + 16u; i++)
            fputc(',', file);
        fputc('\n', file);
        return;
    }
    fprintf(file, ",%u,%u,%u,%.6g,%.6g", r->batch, r->budget_tokens, r->steady_tokens, r->tokens_per_s, r->step_ms);
    for (enum nkv_sim_part p = 0; p < NKV_SIM_PART_COUNT; p++)
        fprintf(file, ",%.6g", r->breakdown_ms[p]);
    fprintf(file, ",%.6g,%.6g", r->gpu_utilisation, r->pnm_utilisation);
    for (enum nkv_sim_account a = 0; a < NKV_SIM_ACCOUNT_COUNT; a++)
        fprintf(file, ",%.6g", r->energy_j[a]);
    fprintf(file, ",%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g", r->usd_per_hour, r->tokens_per_usd, r->full_tokens_per_usd,
            r->recalled_pages, r->recalled_pages_error, r->steady_hit, r->link_bytes_per_token);
    fprintf(file, ",%u,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g\n", r->mapping_group, r->attended_bytes_per_token,
            r->gpu_attended_bytes_per_token, r->layer_transfers, r->layer_sorts, r->layer_reduce_messages,
            r->layer_list_messages, r->layer_select_bytes, r->layer_select_ms);
}

static int print_rows(const struct sweep *s)
{
    FILE *file = s->out ? fopen(s->out, "w") : stdout;
    uint32_t n_ok = 0;
    int error = 0;

    if (!file)
        return cli_fail("cannot create '%s': %s", s->out, strerror(errno));
    put_header(s, file);
    for (uint32_t i = 0; i < s->n_points; i++)
        if (s->rows[i].done) {
            put_row(s, i, file);
            n_ok += s->rows[i].ok;
        }
    if (fflush(file) == EOF || ferror(file))
        error = errno ? errno : EIO;
    if (s->out && fclose(file) == EOF && !error)
        error = errno;
    if (error)
        return cli_fail("cannot write '%s': %s", s->out ? s->out : "standard output", strerror(error));
    if (atomic_load(&s->stop))
        return cli_fail("interrupted after %u of %u points; their rows are written", atomic_load(&s->n_done),
                        s->n_points);
    return n_ok ? CLI_OK : cli_fail("no point of %u could be simulated: see the status column", s->n_points);
}

static void close_sweep(struct sweep *s)
{
    for (uint32_t i = 0; i < s->n_axes; i++) {
        free(s->axes[i].values);
        free(s->axes[i].memory);
    }
    free(s->rows);
}

int sim_sweep_main(int argc, char **argv)
{
    struct sweep s = {.n_points = 1, .n_threads = cli_cpus()};
    int rc = read_options(argc, argv, &s);

    if (rc == CLI_OK && s.help) {
        print_usage(stdout);
    } else if (rc == CLI_OK) {
        s.rows = calloc(s.n_points, sizeof *s.rows);
        rc = s.rows ? check_values(&s) : cli_fail("out of memory");
        progress_catch_interrupt();
        if (rc == CLI_OK)
            rc = run_points(&s);
        if (rc == CLI_OK)
            rc = print_rows(&s);
    }
    close_sweep(&s);
    return rc;
}
