/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files that the options of a session write (traces of each device and of the compute side, images that are the
 * devices' memory), and that none of them is one that is read. A trace that a device's spec asks for (record:FILE:) is
 * one of them: a spec is searched for the word, because wrappers stack.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "output.h"
#include "session.h"

int session_memory(const struct session_options *o, uint32_t i, char memory_out[SESSION_SPEC_BYTES])
{
    int length = output_memory_length(o->memory), n;

    if (session_device_count(o) == 1)
        n = snprintf(memory_out, SESSION_SPEC_BYTES, "%s", o->memory);
    else
        n = snprintf(memory_out, SESSION_SPEC_BYTES, "%.*s.%u%s", length, o->memory, i, o->memory + length);
    return n < SESSION_SPEC_BYTES ? CLI_OK : cli_usage("--memory: longer than %d bytes", SESSION_SPEC_BYTES);
}

bool session_has_memory(const struct session_options *o, uint32_t i)
{
    return o->memory && !(i < o->n_specs && cli_is_remote(o->specs[i]));
}

bool session_memory_is_missing(const char *memory)
{
    char path[SESSION_SPEC_BYTES];

    return output_memory_path(memory, path, sizeof path) && access(path, F_OK) < 0 && errno == ENOENT;
}

void session_remove_memory(const char *memory)
{
    char path[SESSION_SPEC_BYTES];
    struct nkv_kv_shape shape;

    if (output_memory_path(memory, path, sizeof path) && nkv_memory_shape(memory, &shape) == 0)
        (void)unlink(path);
}

int session_spec(const struct session_options *o, uint32_t i, char spec_out[SESSION_SPEC_BYTES])
{
    const char *spec = i < o->n_specs ? o->specs[i] : "cpu";
    int n;

    if (!o->trace)
        n = snprintf(spec_out, SESSION_SPEC_BYTES, "%s", spec);
    else if (session_device_count(o) == 1)
        n = snprintf(spec_out, SESSION_SPEC_BYTES, "record:%s:%s", o->trace, spec);
    else
        n = snprintf(spec_out, SESSION_SPEC_BYTES, "record:%s.%u:%s", o->trace, i, spec);
    return n < SESSION_SPEC_BYTES ? CLI_OK
                                  : cli_usage("device spec number %u is longer than %d bytes", i, SESSION_SPEC_BYTES);
}

/* What is looked at for each file that is written: whether it is the one that is read, or (NULL) may be written. */
struct read_file {
    const char *flag, *path;
};

static int check_trace(const struct session_options *o, const char *flag, const char *trace,
                       const struct read_file *read)
{
    char memory[SESSION_SPEC_BYTES];
    int rc = read ? output_is_other(flag, trace, read->flag, read->path) : output_is_free(flag, trace);

    for (uint32_t i = 0; rc == CLI_OK && !read && i < session_device_count(o); i++) {
        if (session_has_memory(o, i))
            rc = session_memory(o, i, memory);
        if (rc == CLI_OK && session_has_memory(o, i))
            rc = output_is_no_memory(flag, trace, "--memory", memory);
    }
    return rc;
}

/* The traces in the spec of device i. */
static int check_spec(const struct session_options *o, uint32_t i, const struct read_file *read)
{
    static const char word[] = "record:";
    char spec[SESSION_SPEC_BYTES], *at = spec;
    int rc = session_spec(o, i, spec);

    while (rc == CLI_OK && (at = strstr(at, word))) {
        char *end = strchr(at += sizeof word - 1, ':');

        if (!end)
            break;
        *end = '\0';
        rc = check_trace(o, o->trace && at == spec + sizeof word - 1 ? "--trace" : "--device record:", at, read);
        at = end + 1;
    }
    return rc;
}

static int check_all(const struct session_options *o, const struct read_file *read)
{
    char compute[SESSION_SPEC_BYTES], memory[SESSION_SPEC_BYTES];
    int rc = CLI_OK;

    if (o->trace && snprintf(compute, sizeof compute, "%s.compute", o->trace) < (int)sizeof compute)
        rc = check_trace(o, "--trace", compute, read);
    for (uint32_t i = 0; rc == CLI_OK && i < session_device_count(o); i++) {
        rc = check_spec(o, i, read);
        if (rc == CLI_OK && read && session_has_memory(o, i))
            rc = session_memory(o, i, memory);
        if (rc == CLI_OK && read && session_has_memory(o, i))
            rc = output_is_no_memory(read->flag, read->path, "--memory", memory);
    }
    return rc;
}

int session_check_input(const struct session_options *o, const char *flag, const char *path)
{
    struct read_file read = {flag, path};

    return path ? check_all(o, &read) : CLI_OK;
}

int session_check_files(const struct session_options *o)
{
    int rc = session_check_input(o, "--model", o->model);

    return rc == CLI_OK ? check_all(o, NULL) : rc;
}
