/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv pnm check: what is wrong with memory that outlives its process, as fsck tells it of a file system. */
#include <jansson.h>
#include <nearkv/nearkv.h>
#include <stdio.h>

#include "cli.h"
#include "commands.h"
#include "text.h"

static void print_problem(void *arg, const char *line)
{
    (void)arg;
    printf("%s\n", line);
}

static void add_problem(void *arg, const char *line)
{
    json_array_append_new(arg, json_string(line));
}

static int print_json(const char *memory, const struct nkv_memory_report *report, json_t *problems)
{
    return text_print_json(
        json_pack("{s:s, s:s, s:I, s:I, s:b, s:I, s:I, s:I, s:o}", "schema", "nearkv.pnm.check/1", "memory", memory,
                  "bytes", (json_int_t)report->image_bytes, "capacity_bytes", (json_int_t)report->capacity_bytes,
                  "closed_in_order", report->closed_in_order, "sequences", (json_int_t)report->n_sequences, "tokens",
                  (json_int_t)report->n_tokens, "full_pages", (json_int_t)report->n_full_pages, "problems", problems));
}

int pnm_check(const char *memory, bool json)
{
    struct nkv_memory_report report;
    json_t *problems = json ? json_array() : NULL;

    if (nkv_memory_check(memory, json ? add_problem : print_problem, problems, &report) < 0) {
        json_decref(problems);
        return cli_fail("%s", nkv_last_error());
    }
    if (json) {
        if (print_json(memory, &report, problems) != CLI_OK)
            return CLI_FAILED;
    } else {
        printf("%s: %s, %s, %u sequences, %llu tokens, %llu full pages that pass their checksums, %u problems\n",
               memory, cli_bytes(report.image_bytes),
               report.closed_in_order ? "closed in order" : "not closed in order", report.n_sequences,
               (unsigned long long)report.n_tokens, (unsigned long long)report.n_full_pages, report.n_problems);
    }
    if (fflush(stdout) == EOF)
        return cli_fail("cannot write to standard output");
    return report.n_problems ? CLI_FAILED : CLI_OK;
}
