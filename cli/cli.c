/* SPDX-License-Identifier: Apache-2.0 */
/* What the subcommands share. Messages name the flag, the value and the remedy; exit status 1 is a failure, 2 wrong
 * usage. */
#define _GNU_SOURCE
#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool holds_messages;
static char message[4096]; /* the last one */

static void report(const char *format, va_list args)
{
    vsnprintf(message, sizeof message, format, args);
    for (char *c = message; *c; c++) /* names come from files: a terminal must not obey them */
        *c = iscntrl((unsigned char)*c) ? '?' : *c;
    if (!holds_messages)
        fprintf(stderr, "nearkv: %s\n", message);
}

void cli_hold_messages(void)
{
    holds_messages = true;
}

void cli_tell_message(uint32_t rank)
{
    fprintf(stderr, "nearkv: rank %u: %s\n", rank, message);
}

int cli_fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    report(format, args);
    va_end(args);
    return CLI_FAILED;
}

int cli_usage(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    report(format, args);
    va_end(args);
    return CLI_USAGE;
}

int cli_refused(const char *what, int status)
{
    int (*tell)(const char *format, ...) = status == NKV_EINVAL ? cli_usage : cli_fail;

    return what ? tell("%s: %s", what, nkv_last_error()) : tell("%s", nkv_last_error());
}

static unsigned suffix_shift(const char *suffix)
{
    static const char letters[] = "KMGT";
    const char *at = *suffix ? strchr(letters, toupper((unsigned char)*suffix)) : NULL;

    return at && suffix[1] == '\0' ? 10u * (unsigned)(at - letters + 1) : 0;
}

bool cli_number(const char *text, uint64_t low, uint64_t high, uint64_t *value_out)
{
    char *end;
    unsigned long long number;
    unsigned shift;

    errno = 0;
    number = strtoull(text, &end, 10);
    shift = suffix_shift(end);
    if (!isdigit((unsigned char)*text) || errno || (*end && !shift) || number > UINT64_MAX >> shift ||
        (number << shift) < low || (number << shift) > high)
        return false;
    *value_out = (uint64_t)number << shift;
    return true;
}

int cli_u64(const char *flag, const char *text, uint64_t low, uint64_t high, uint64_t *value_out)
{
    if (cli_number(text, low, high, value_out))
        return CLI_OK;
    return cli_usage("%s %s: give a whole number from %llu to %llu", flag, text, (unsigned long long)low,
                     (unsigned long long)high);
}

int cli_u32(const char *flag, const char *text, uint32_t low, uint32_t high, uint32_t *value_out)
{
    uint64_t value = 0;
    int rc = cli_u64(flag, text, low, high, &value);

    if (rc == CLI_OK)
        *value_out = (uint32_t)value;
    return rc;
}

int cli_float(const char *flag, const char *text, double low, double high, float *value_out)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !(value >= low && value <= high))
        return cli_usage("%s %s: give a number from %g to %g", flag, text, low, high);
    *value_out = (float)value;
    if (value > 0 && !(*value_out > 0))
        return cli_usage("%s %s: too near to 0 to be told from it: give more", flag, text);
    return CLI_OK;
}

uint32_t cli_nearest_rank(uint32_t n, uint32_t percent)
{
    uint64_t rank = ((uint64_t)n * percent + 99) / 100;

    return rank ? (uint32_t)rank - 1 : 0;
}

/* The number after `key` in a file of "key number" lines, or alone in a file when key is "". */
static uint64_t read_number(const char *path, const char *key)
{
    char line[256];
    uint64_t value = UINT64_MAX;
    FILE *file = fopen(path, "r");

    if (!file)
        return value;
    while (value == UINT64_MAX && fgets(line, sizeof line, file)) {
        char *end;
        unsigned long long number;

        if (strncmp(line, key, strlen(key)) != 0)
            continue;
        number = strtoull(line + strlen(key), &end, 10);
        if (end != line + strlen(key))
            value = number;
    }
    fclose(file);
    return value;
}

uint64_t cli_available_bytes(void)
{
    uint64_t kib = read_number("/proc/meminfo", "MemAvailable:");
    uint64_t free_bytes = kib == UINT64_MAX ? UINT64_MAX : kib * 1024;
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max", "");
    uint64_t used = read_number("/sys/fs/cgroup/memory.current", "");
    uint64_t inactive = read_number("/sys/fs/cgroup/memory.stat", "inactive_file ");

    if (limit == UINT64_MAX || used == UINT64_MAX)
        return free_bytes;
    if (inactive < used) /* cached files that are dropped when memory is wanted count as free */
        used -= inactive;
    limit = limit > used ? limit - used : 0;
    return limit < free_bytes ? limit : free_bytes;
}

int cli_check_memory(const char *what, uint64_t need_bytes)
{
    uint64_t free_bytes = cli_available_bytes();

    if (need_bytes <= free_bytes)
        return CLI_OK;
    return cli_fail("%s needs %s of memory, %s is available: %s is missing", what, cli_bytes(need_bytes),
                    cli_bytes(free_bytes), cli_bytes(need_bytes - free_bytes));
}

const char *cli_bytes(uint64_t bytes)
{
    static char buffers[4][24];
    static unsigned next;
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    double value = (double)bytes;
    unsigned unit = 0;
    char *buffer = buffers[next++ % 4];

    while (value >= 1000 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1000;
        unit++;
    }
    snprintf(buffer, sizeof buffers[0], unit && value < 100 ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return buffer;
}

bool cli_is_remote(const char *spec)
{
    return strncmp(spec, "unix:", 5) == 0 || strstr(spec, ":unix:") || strncmp(spec, "mpi:", 4) == 0 ||
           strstr(spec, ":mpi:");
}

uint32_t cli_cpus(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
}
