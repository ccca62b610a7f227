/* SPDX-License-Identifier: Apache-2.0 */
/* arguments.h: how a subcommand's options, and the verb behind its name ("nearkv pnm stat unix:PATH"), are read. */
#ifndef NKV_CLI_ARGUMENTS_H
#define NKV_CLI_ARGUMENTS_H

#include <getopt.h>
#include <stdbool.h>

/* Added to the val of an option that may be there only once; read_flag gets the val without it. */
#define ARGUMENTS_ONCE (1 << 16)

struct arguments {
    const char *usage, *more_usage; /* printed one behind the other; more_usage: NULL, or what several share */
    const struct option *options;
    int help; /* the val of --help */
};
/*
 * Reads long options; one whose val is a letter has it as its short form. read_flag takes each but help (also -h),
 * which prints usage. Of a value that is given twice the last one counts, so that a script's can be overridden; but one
 * that names a file or a device must not be dropped in silence, and is ARGUMENTS_ONCE. Arguments that are no options
 * are left, from argv[optind] on. returns: CLI_OK, CLI_USAGE after a message, or -1: help was printed.
 */
int arguments_options(int argc, char **argv, const struct arguments *arguments,
                      int (*read_flag)(int flag, const char *arg, void *read_arg), void *read_arg);
/* Whether the word behind a command's name asks for help. */
bool arguments_is_help(const char *word);

struct arguments_verb {
    const char *name;  /* NULL: the end of a table */
    const char *takes; /* "NAME FILE", for messages; it may name options that must be there, too */
    int n;             /* how many arguments that is */
};
/*
 * The verb that argv[0] names; its arguments are the rest, as many as it takes. returns: CLI_OK, or CLI_USAGE after a
 * message with what can be written behind `nearkv command`.
 */
int arguments_verb(const char *command, const struct arguments_verb *verbs, int argc, char **argv,
                   const struct arguments_verb **verb_out);

#endif
