/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trace Event Format: one thread per resource, one complete event ("X") per stage, times in microseconds from the first
 * measured step. Delays that occupy no resource are left out.
 */
#include "sim/timeline.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void put_names(const struct sim_world *world, FILE *file)
{
    for (uint32_t i = 0; i < world->n_resources; i++)
        fprintf(file, "{\"ph\":\"M\",\"pid\":0,\"tid\":%u,\"name\":\"thread_name\",\"args\":{\"name\":\"%s\"}},\n", i,
                world->resources[i].name);
    fputs("{\"ph\":\"M\",\"pid\":0,\"name\":\"process_name\",\"args\":{\"name\":\"nearkv sim (virtual time)\"}}", file);
}

int sim_timeline_write(const struct sim_world *world, const char *path)
{
    FILE *file = fopen(path, "w");
    int error = 0;

    if (!file)
        FAIL(NKV_EIO, "cannot create the timeline '%s': %s", path, strerror(errno));
    fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", file);
    put_names(world, file);
    for (uint32_t i = 0; i < world->n_stages; i++) {
        const struct sim_stage *stage = &world->stages[i];

        if (stage->resource == SIM_NO_RESOURCE || stage->start_ns < world->mark_ns)
            continue;
        fprintf(file, ",\n{\"ph\":\"X\",\"pid\":0,\"tid\":%u,\"name\":\"%s\",\"ts\":%.3f,\"dur\":%.3f}",
                stage->resource, nkv_sim_part_name((enum nkv_sim_part)stage->part),
                (double)(stage->start_ns - world->mark_ns) / 1e3, (double)(stage->end_ns - stage->start_ns) / 1e3);
    }
    fputs("\n]}\n", file);
    if (fflush(file) == EOF || ferror(file))
        error = errno ? errno : EIO;
    if (fclose(file) == EOF && !error)
        error = errno;
    if (error)
        FAIL(NKV_EIO, "cannot write the timeline '%s': %s", path, strerror(error));
    return 0;
}
