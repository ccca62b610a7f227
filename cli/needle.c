/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv needle: writes the built-in needle model as a GGUF file, for other programs. */
#include <errno.h>
#include <getopt.h>
#include <nearkv/model.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "commands.h"
#include "output.h"
#include "text.h"

static void print_help(void)
{
    puts("usage: nearkv needle -o FILE [--type f16|f32] [--json]\n"
         "Writes the built-in needle model, a Llama over bytes whose weights are set by hand, as a GGUF file.\n\n"
         "  -o, --output FILE   appears whole or not at all\n"
         "  --type f16|f32      of the matrices (f16)\n"
         "  --json              one JSON object on stdout (schema nearkv.needle/1)");
}

static int print_json(const char *path, enum nkv_dtype dtype)
{
    struct stat info;

    if (stat(path, &info) < 0)
        return cli_fail("cannot read %s: %s", path, strerror(errno));
    return text_print_json(json_pack("{s:s, s:o, s:s, s:I}", "schema", "nearkv.needle/1", "file",
                                     text_json(path, strlen(path)), "type", nkv_dtype_name(dtype), "bytes",
                                     (json_int_t)info.st_size));
}

/* --json tells the file's size, and must not end up in the file. */
static int check_json(const char *path)
{
    struct stat info, out;

    if (stat(path, &info) < 0)
        return CLI_OK; /* it is still to be made */
    if (S_ISREG(info.st_mode) &&
        (fstat(STDOUT_FILENO, &out) < 0 || out.st_dev != info.st_dev || out.st_ino != info.st_ino))
        return CLI_OK;
    return cli_usage("-o %s: --json goes to standard output and tells of a file of its own: leave it out", path);
}

int needle_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"output", required_argument, NULL, 'o'},
        {"type", required_argument, NULL, 't'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    const char *path = NULL;
    enum nkv_dtype dtype = NKV_F16;
    bool json = false;
    int option;

    while ((option = getopt_long(argc, argv, "o:", options, NULL)) != -1) {
        if (option == 'h') {
            print_help();
            return CLI_OK;
        } else if (option == 'o') {
            path = optarg;
        } else if (option == 'j') {
            json = true;
        } else if (option != 't') {
            return cli_usage("see nearkv needle --help");
        } else if (nkv_dtype_parse(optarg, &dtype) < 0 || (dtype != NKV_F16 && dtype != NKV_F32)) {
            return cli_usage("--type %s: give f16 or f32", optarg);
        }
    }
    if (optind < argc)
        return cli_usage("unexpected argument '%s': the file goes after -o", argv[optind]);
    if (!path)
        return cli_usage("give the file to write with -o FILE");
    if (output_is_free("-o", path) != CLI_OK || (json && check_json(path) != CLI_OK))
        return CLI_USAGE;
    if (nkv_needle_write(path, dtype) < 0)
        return cli_fail("%s", nkv_last_error());
    return json ? print_json(path, dtype) : CLI_OK;
}
