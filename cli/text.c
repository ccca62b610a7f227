/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text for prompts and haystacks. Directories are walked in alphabetical order, so that the same machine gives the same
 * haystack; nftw(3) was rejected because its order is the file system's.
 */
#define _GNU_SOURCE
#include "text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "progress.h"

#define PROBE_BYTES 4096u
#define MAX_DEPTH   32u
/* Above, memory is looked for before it is asked for: a stream that never ends must not take the machine down. */
#define CHECKED_BYTES ((size_t)64 << 20)

int text_append(struct text *text, const void *data, size_t bytes)
{
    size_t need = text->bytes + bytes + 1;

    if (need > text->capacity) {
        size_t capacity = text->capacity ? text->capacity : 4096;
        char *grown;

        while (capacity < need)
            capacity *= 2;
        if (capacity >= CHECKED_BYTES && cli_check_memory("the text", capacity) != CLI_OK)
            return CLI_FAILED;
        grown = realloc(text->data, capacity);
        if (!grown)
            return cli_fail("out of memory for %zu bytes of text", capacity);
        text->data = grown;
        text->capacity = capacity;
    }
    if (bytes)
        memcpy(text->data + text->bytes, data, bytes);
    text->bytes += bytes;
    text->data[text->bytes] = '\0';
    return CLI_OK;
}

void text_free(struct text *text)
{
    free(text->data);
    *text = (struct text){0};
}

static int read_stream(struct text *text, int fd, const char *path, size_t max_bytes)
{
    char buffer[65536];
    int rc = CLI_OK;

    while (rc == CLI_OK && text->bytes < max_bytes) {
        size_t room = max_bytes - text->bytes;
        ssize_t n;

        if (!progress_wait_readable(fd))
            return cli_fail("interrupted while reading %s", path);
        n = read(fd, buffer, room < sizeof buffer ? room : sizeof buffer);
        if (n < 0)
            return cli_fail("cannot read %s: %s", path, strerror(errno));
        if (n == 0)
            break;
        rc = text_append(text, buffer, (size_t)n);
    }
    return rc;
}

static int read_file(struct text *text, const char *path, size_t max_bytes)
{
    int fd = strcmp(path, "-") == 0 ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC), rc;

    if (fd < 0)
        return cli_fail("cannot read %s: %s", path, strerror(errno));
    rc = read_stream(text, fd, path, max_bytes);
    if (fd != STDIN_FILENO)
        close(fd);
    return rc;
}

int text_read(struct text *text, const char *path)
{
    return read_file(text, path, SIZE_MAX);
}

static bool is_text(const char *path)
{
    char probe[PROBE_BYTES];
    FILE *file = fopen(path, "r");
    size_t n;

    if (!file)
        return false;
    n = fread(probe, 1, sizeof probe, file);
    fclose(file);
    return n > 0 && !memchr(probe, 0, n);
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static int collect(struct text *text, const char *path, size_t max_bytes, uint32_t depth);

static int collect_entries(struct text *text, const char *path, size_t max_bytes, uint32_t depth)
{
    struct dirent **entries;
    int n = scandir(path, &entries, visible, alphasort), rc = CLI_OK;

    if (n < 0)
        return depth ? CLI_OK : cli_fail("cannot read %s: %s", path, strerror(errno));
    for (int i = 0; i < n; i++) {
        char *below = NULL;

        if (rc == CLI_OK && text->bytes < max_bytes && asprintf(&below, "%s/%s", path, entries[i]->d_name) >= 0) {
            rc = collect(text, below, max_bytes, depth + 1);
            free(below);
        }
        free(entries[i]);
    }
    free(entries);
    return rc;
}

static int collect(struct text *text, const char *path, size_t max_bytes, uint32_t depth)
{
    struct stat info;

    if ((depth ? lstat(path, &info) : stat(path, &info)) < 0)
        return depth ? CLI_OK : cli_fail("cannot read %s: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode))
        return depth < MAX_DEPTH ? collect_entries(text, path, max_bytes, depth) : CLI_OK;
    if (!S_ISREG(info.st_mode) || (depth && !is_text(path)))
        return CLI_OK;
    return read_file(text, path, max_bytes);
}

int text_collect(struct text *text, const char *path, size_t max_bytes)
{
    return collect(text, path, max_bytes, 0);
}

uint64_t text_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

#define PICK(list, random) (list)[text_random(random) % (sizeof(list) / sizeof *(list))]

int text_generate(struct text *text, size_t max_bytes, uint64_t seed)
{
    static const char *const who[] = {"clerk", "miller", "captain", "teacher", "gardener", "painter", "neighbour"};
    static const char *const did[] = {"counted", "carried", "sold", "found", "repaired", "forgot", "measured"};
    static const char *const what[] = {"barrels", "letters", "lanterns", "maps", "ropes", "chairs", "baskets"};
    static const char *const where[] = {"by the river", "in the square", "near the mill", "on the pier", "at home"};
    char line[128];
    int rc = CLI_OK;

    while (rc == CLI_OK && text->bytes < max_bytes) {
        const char *subject = PICK(who, &seed);
        unsigned number = (unsigned)(text_random(&seed) % 900 + 100);
        int n = text_random(&seed) % 8 ? snprintf(line, sizeof line, "The %s %s %u %s %s. ", subject, PICK(did, &seed),
                                                  number, PICK(what, &seed), PICK(where, &seed))
                                       : snprintf(line, sizeof line, "The number of the %s is %u.\n", subject, number);

        rc = text_append(text, line, (size_t)n);
    }
    return rc;
}

/* Bytes of the UTF-8 character that begins with `first`; 0: none does. */
static size_t utf8_length(unsigned char first)
{
    return first < 0x80 ? 1 : first >> 5 == 6 ? 2 : first >> 4 == 14 ? 3 : first >> 3 == 30 ? 4 : 0;
}

size_t text_whole_characters(const char *data, size_t bytes)
{
    for (size_t back = 1; back <= 3 && back <= bytes; back++) {
        unsigned char c = (unsigned char)data[bytes - back];

        if (c >> 6 != 2)
            return utf8_length(c) > back ? bytes - back : bytes;
    }
    return bytes;
}

/* Bytes of the UTF-8 character at p, 0 when there is none. */
static size_t utf8_bytes(const unsigned char *p, size_t left)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = utf8_length(*p);
    uint32_t code = *p & (n == 1 ? 0x7fu : 0xffu >> (n + 1));

    if (n == 0 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if (p[i] >> 6 != 2)
            return 0;
        code = code << 6 | (p[i] & 0x3fu);
    }
    return code >= least[n] && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff) ? n : 0;
}

json_t *text_json(const char *data, size_t bytes)
{
    struct text clean = {0};
    json_t *json = NULL;
    int rc = text_append(&clean, "", 0);

    for (size_t i = 0; i < bytes && rc == CLI_OK;) {
        size_t n = utf8_bytes((const unsigned char *)data + i, bytes - i);

        rc = n ? text_append(&clean, data + i, n) : text_append(&clean, "\xef\xbf\xbd", 3);
        i += n ? n : 1;
    }
    if (rc == CLI_OK)
        json = json_stringn(clean.data, clean.bytes);
    text_free(&clean);
    return json;
}

int text_print_json(json_t *object)
{
    int status;

    if (!object)
        return cli_fail("out of memory for the report");
    status = json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(object);
    if (status < 0 || putchar('\n') == EOF || fflush(stdout) == EOF)
        return cli_fail("cannot write the report to standard output");
    return CLI_OK;
}

void text_put_csv(FILE *file, const char *text)
{
    if (!strpbrk(text, ",\"\n")) {
        fputs(text, file);
        return;
    }
    fputc('"', file);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', file);
        fputc(*text, file);
    }
    fputc('"', file);
}
