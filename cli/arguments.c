/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options by getopt_long, which moves arguments that are no options to the end, so that both may be mixed. What an
 * option means is the subcommand's: it gives a table and a function. Short forms follow from the table, because a
 * second list of them could disagree with it.
 */
#define _GNU_SOURCE
#include "arguments.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

#define MAX_LETTERS 16u

/* "m:f:" of the options that have a letter, and h. */
static void list_letters(const struct option *options, char letters[2 * MAX_LETTERS + 2])
{
    size_t n = 0;

    for (; options->name && n + 2 <= 2 * MAX_LETTERS; options++) {
        int letter = options->val & ~ARGUMENTS_ONCE;

        if (letter < 'a' || letter > 'z')
            continue;
        letters[n++] = (char)letter;
        if (options->has_arg == required_argument)
            letters[n++] = ':';
    }
    letters[n++] = 'h';
    letters[n] = '\0';
}

/* That the option is there, in seen, a bit for each of the table. returns: CLI_OK, or CLI_USAGE: it was before. */
static int check_once(const struct option *options, int flag, uint64_t *seen)
{
    uint32_t i = 0;

    while (options[i].name && (options[i].val & ~ARGUMENTS_ONCE) != flag)
        i++;
    if (!(options[i].val & ARGUMENTS_ONCE))
        return CLI_OK;
    if (*seen >> i & 1)
        return cli_usage("-%s%s is given twice: give it once", options[i].name[1] ? "-" : "", options[i].name);
    *seen |= UINT64_C(1) << i;
    return CLI_OK;
}

bool arguments_is_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

int arguments_options(int argc, char **argv, const struct arguments *arguments,
                      int (*read_flag)(int flag, const char *arg, void *read_arg), void *read_arg)
{
    char letters[2 * MAX_LETTERS + 2];
    uint64_t seen = 0;
    int flag, rc;

    list_letters(arguments->options, letters);
    while ((flag = getopt_long(argc, argv, letters, arguments->options, NULL)) != -1) {
        flag &= ~ARGUMENTS_ONCE;
        if (flag == arguments->help || flag == 'h') {
            fputs(arguments->usage, stdout);
            fputs(arguments->more_usage ? arguments->more_usage : "", stdout);
            return -1;
        }
        rc = check_once(arguments->options, flag, &seen);
        if (rc == CLI_OK)
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
