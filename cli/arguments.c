/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options by getopt_long, which moves arguments that are no options to the end, so that both may be mixed. What an
 * option means is the subcommand's: it gives a table and a function. Short forms follow from the table, because a
 * second list of them could disagree with it.
 */
#define _GNU_SOURCE
#include "arguments.h"

#include <stdio.h>
#include <string.h>

#include "cli.h"

#define MAX_LETTERS 16u

/* "m:f:" of the options that have a letter. */
static void list_letters(const struct option *options, char letters[2 * MAX_LETTERS + 1])
{
    size_t n = 0;

    for (; options->name && n + 2 <= 2 * MAX_LETTERS; options++) {
        if (options->val < 'a' || options->val > 'z')
            continue;
        letters[n++] = (char)options->val;
        if (options->has_arg == required_argument)
            letters[n++] = ':';
    }
    letters[n] = '\0';
}

int arguments_options(int argc, char **argv, const char *usage, const struct option *options, int help,
                      int (*read_flag)(int flag, const char *arg, void *read_arg), void *read_arg)
{
    char letters[2 * MAX_LETTERS + 1];
    int flag, rc;

    list_letters(options, letters);
    while ((flag = getopt_long(argc, argv, letters, options, NULL)) != -1) {
        if (flag == help) {
            fputs(usage, stdout);
            return -1;
        }
        rc = read_flag(flag, optarg, read_arg);
        if (rc != CLI_OK)
            return rc;
    }
    return CLI_OK;
}

/* "stat, list or show". */
static void list_verbs(const struct arguments_verb *verbs, char *list, size_t bytes)
{
    size_t used = 0;

    for (const struct arguments_verb *verb = verbs; verb->name && used < bytes; verb++)
        used += (size_t)snprintf(list + used, bytes - used, "%s%s",
                                 verb == verbs  ? ""
                                 : verb[1].name ? ", "
                                                : " or ",
                                 verb->name);
}

int arguments_verb(const char *command, const struct arguments_verb *verbs, int argc, char **argv,
                   const struct arguments_verb **verb_out)
{
    const struct arguments_verb *verb = verbs;
    char list[128] = "";

    while (verb->name && (argc == 0 || strcmp(argv[0], verb->name) != 0))
        verb++;
    list_verbs(verbs, list, sizeof list);
    if (!verb->name)
        return cli_usage("say what to do: nearkv %s %s", command, list);
    if (argc - 1 != verb->n)
        return cli_usage("%d arguments of nearkv %s %s, which takes %d: nearkv %s %s %s", argc - 1, command, verb->name,
                         verb->n, command, verb->name, verb->takes);
    *verb_out = verb;
    return CLI_OK;
}
