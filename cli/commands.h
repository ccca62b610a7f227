/* SPDX-License-Identifier: Apache-2.0 */
/* commands.h: the subcommands. argv[0] is the program; each returns its exit status. */
#ifndef NKV_CLI_COMMANDS_H
#define NKV_CLI_COMMANDS_H

#include <stdbool.h>

int run_main(int argc, char **argv);
int eval_main(int argc, char **argv);
int eval_needle_main(int argc, char **argv);
int info_main(int argc, char **argv);
int needle_main(int argc, char **argv);
int pnm_main(int argc, char **argv);
int pnmd_main(int argc, char **argv);
/* A part of pnm. */
int pnm_check(const char *memory, bool json);
int session_main(int argc, char **argv);

#endif
