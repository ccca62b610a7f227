/* SPDX-License-Identifier: Apache-2.0 */
/* nearkv needle: writes the built-in needle model as a GGUF file, for other programs. */
#include <errno.h>
#include <nearkv/model.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arguments.h"
#include "cli.h"
#include "commands.h"
#include "output.h"
#include "text.h"

static const char usage[] =
    "usage: nearkv needle -o FILE [--type f16|f32] [--json]\n"
    "Writes the built-in needle model, a Llama over bytes whose weights are set by hand, as a GGUF file.\n"
    "It completes \"NAME is \" with the digits that follow \"NAME is \" in the text, and nothing else:\n"
    "  a name counts by the five bytes before \" is \": they must be the same in both places, so a shorter name needs\n"
    "  the same before it (\"the a is 5. So the a is \"), and names that end alike are one;\n"
    "  of a longer number come the first five digits and one byte more;\n"
    "  of two values of one name comes a mixture of both;\n"
    "  for a name that is not in the text comes anything.\n\n"
    "  -o, --output FILE   appears whole or not at all\n"
    "  --type f16|f32      of the matrices (f16)\n"
    "  --json              one JSON object on stdout (schema nearkv.needle/1)\n";

enum { TYPE = 256, JSON, HELP };

static const struct option long_options[] = {
    {"output", required_argument, NULL, 'o' | ARGUMENTS_ONCE},
    {"type", required_argument, NULL, TYPE},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {0},
};

static const struct arguments arguments = {.usage = usage, .options = long_options, .help = HELP};

struct options {
    const char *path;
    enum nkv_dtype dtype;
    bool json;
};

static int read_flag(int flag, const char *arg, void *read_arg)
{
    struct options *o = read_arg;

    switch (flag) {
    case 'o':
        o->path = arg;
        return CLI_OK;
    case TYPE:
        if (nkv_dtype_parse(arg, &o->dtype) < 0 || (o->dtype != NKV_F16 && o->dtype != NKV_F32))
            return cli_usage("--type %s: give f16 or f32", arg);
        return CLI_OK;
    case JSON:
        o->json = true;
        return CLI_OK;
    default:
        return cli_usage("see nearkv needle --help");
    }
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
    struct options o = {.dtype = NKV_F16};
    int rc = arguments_options(argc, argv, &arguments, read_flag, &o);

    if (rc != CLI_OK)
        return rc < 0 ? CLI_OK : rc;
    if (optind < argc)
        return cli_usage("unexpected argument '%s': the file goes after -o", argv[optind]);
    if (!o.path)
        return cli_usage("give the file to write with -o FILE");
    if (output_is_free("-o", o.path) != CLI_OK || (o.json && check_json(o.path) != CLI_OK))
        return CLI_USAGE;
    if (nkv_needle_write(o.path, o.dtype) < 0)
        return cli_fail("%s", nkv_last_error());
    return o.json ? print_json(o.path, o.dtype) : CLI_OK;
}
