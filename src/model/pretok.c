/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The split patterns of GPT-2, Llama 3 and Qwen2, run by PCRE2. They are the published ones with two notations made
 * explicit: \s is written as Unicode's White_Space (PCRE2's \s also holds U+180E), and each match must start where the
 * last one ended, which loses nothing because every character starts a match of one of the alternatives. Letters and
 * digits are those of PCRE2's Unicode tables (version 14 in PCRE2 10.42); characters assigned later split differently
 * from tokenizers with newer tables.
 *
 * Malformed UTF-8: the text is taken as alternating runs, well-formed ones, which are matched, and malformed ones, each
 * of which is one word. Runs are found by us and matched unchecked: PCRE2_MATCH_INVALID_UTF would validate the rest of
 * the text for every word, which is quadratic.
 *
 * No alternative backtracks over more than the run of whitespace that it then consumes, so matching is linear and the
 * match limit, meant for patterns that are not, is lifted. Where PCRE2 cannot make machine code (no JIT, no writable
 * and executable memory), its interpreter gives the same words.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/pretok.h"

#include <pcre2.h>
#include <string.h>

#include "base/mem.h"
#include "model/unicode.h"

#define SPACE        "\\t-\\r\\x{85}\\p{Z}"
#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define OTHERS       " ?[^" SPACE "\\p{L}\\p{N}]+"
#define SPACES       "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
/* What Llama 3 and Qwen2 share; they differ in how many digits make a word. */
#define NEWER(digits)                                                                                                  \
    "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "|" OTHERS "[\\r\\n]*|[" SPACE "]*[\\r\\n]+|" SPACES

static const struct kind {
    const char *names; /* separated and enclosed by spaces */
    const char *pattern;
    bool ignores_merges, adds_bos;
} kinds[] = {
    {" gpt-2 default ", CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+|" OTHERS "|" SPACES, false, false},
    {" llama-bpe llama3 llama-v3 ", NEWER("\\p{N}{1,3}"), true, true},
    {" qwen2 deepseek-r1-qwen ", NEWER("\\p{N}"), false, false},
};

struct nkv_pretok {
    const struct kind *kind;
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_code *code;
};

static bool is_named(const struct kind *kind, struct nkv_str name)
{
    for (const char *at = kind->names + 1; *at; at = strchr(at, ' ') + 1)
        if (strncmp(at, name.data, name.bytes) == 0 && at[name.bytes] == ' ')
            return true;
    return false;
}

static const struct kind *find_kind(struct nkv_str name)
{
    if (name.bytes == 0 || memchr(name.data, ' ', name.bytes) || memchr(name.data, 0, name.bytes))
        return NULL;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (is_named(&kinds[i], name))
            return &kinds[i];
    return NULL;
}

/* PCRE2 allocates as we do, so that a test can make it fail. */
static void *allocate(PCRE2_SIZE bytes, void *unused)
{
    void *memory = NULL;

    (void)unused;
    return nkv_alloc(bytes, 1, &memory) < 0 ? NULL : memory;
}

static void release(void *memory, void *unused)
{
    (void)unused;
    nkv_free(memory);
}

static int pcre2_fail(int code, const char *what)
{
    char message[128] = "";

    pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof message);
    FAIL(code == PCRE2_ERROR_NOMEMORY ? NKV_ENOMEM : NKV_ENOTSUP, "%s: PCRE2 says: %s", what, message);
}

/* The error code for PCRE2_ERROR_NOMEMORY differs between compiling and matching. */
static int compile(struct nkv_pretok *p)
{
    pcre2_compile_context *context = pcre2_compile_context_create(p->memory);
    int code;
    PCRE2_SIZE offset;

    if (!context)
        FAIL(NKV_ENOMEM, "out of memory: cannot compile the pre-tokenizer's pattern");
    p->code = pcre2_compile((PCRE2_SPTR)p->kind->pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED, &code,
                            &offset, context);
    pcre2_compile_context_free(context);
    if (!p->code)
        return pcre2_fail(code == PCRE2_ERROR_HEAP_FAILED ? PCRE2_ERROR_NOMEMORY : code, "pre-tokenizer's pattern");
    (void)pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);
    return 0;
}

static int prepare(struct nkv_pretok *p)
{
    p->memory = pcre2_general_context_create(allocate, release, NULL);
    p->limits = p->memory ? pcre2_match_context_create(p->memory) : NULL;
    if (!p->limits)
        FAIL(NKV_ENOMEM, "out of memory: cannot open the pre-tokenizer");
    pcre2_set_match_limit(p->limits, UINT32_MAX);
    return compile(p);
}

int nkv_pretok_open(struct nkv_str name, struct nkv_pretok **pretok_out)
{
    const struct kind *kind = find_kind(name);
    struct nkv_pretok *p;
    int status;

    if (!kind)
        FAIL(NKV_ENOTSUP, "pre-tokenizer '%.*s' is not supported: gpt-2, llama-bpe and qwen2 are",
             name.bytes < 64 ? (int)name.bytes : 64, name.data);
    TRY(nkv_alloc(1, sizeof *p, &p));
    p->kind = kind;
    status = prepare(p);
    if (status < 0) {
        nkv_pretok_close(p);
        return status;
    }
    *pretok_out = p;
    return 0;
}

void nkv_pretok_close(struct nkv_pretok *pretok)
{
    if (!pretok)
        return;
    pcre2_code_free(pretok->code);
    pcre2_match_context_free(pretok->limits);
    pcre2_general_context_free(pretok->memory);
    nkv_free(pretok);
}

bool nkv_pretok_ignores_merges(const struct nkv_pretok *pretok)
{
    return pretok->kind->ignores_merges;
}

bool nkv_pretok_adds_bos(const struct nkv_pretok *pretok)
{
    return pretok->kind->adds_bos;
}

int nkv_words_open(const struct nkv_pretok *pretok, struct nkv_words *words_out)
{
    pcre2_match_data *match = pcre2_match_data_create(1, pretok->memory);

    if (!match)
        FAIL(NKV_ENOMEM, "out of memory: cannot open the pre-tokenizer");
    *words_out = (struct nkv_words){.pretok = pretok, .match = match};
    return 0;
}

void nkv_words_close(struct nkv_words *words)
{
    pcre2_match_data_free(words->match);
    *words = (struct nkv_words){0};
}

void nkv_words_begin(struct nkv_words *words, const char *text, size_t bytes)
{
    words->text = text;
    words->bytes = bytes;
    words->end = words->run_end = 0;
}

/* One match in the well-formed run. */
static int match_word(struct nkv_words *w)
{
    const struct nkv_pretok *p = w->pretok;
    PCRE2_SPTR text = (PCRE2_SPTR)w->text;
    int status = pcre2_match(p->code, text, w->run_end, w->end, PCRE2_NO_UTF_CHECK, w->match, p->limits);

    if (status == PCRE2_ERROR_JIT_STACKLIMIT)
        status = pcre2_match(p->code, text, w->run_end, w->end, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, w->match, p->limits);
    if (status < 0)
        return pcre2_fail(status, "cannot split the text into words");
    w->end = pcre2_get_ovector_pointer(w->match)[1];
    return 1;
}

/* The end of the run of characters (or, from a malformed byte on, of malformed bytes) that starts at `from`. */
static size_t find_run_end(const struct nkv_words *w, size_t from, bool well_formed)
{
    size_t at = from;

    while (at < w->bytes) {
        size_t step = nkv_utf8_next(w->text + at, w->bytes - at);

        if ((step != 0) != well_formed)
            break;
        at += step ? step : 1;
    }
    return at;
}

int nkv_words_next(struct nkv_words *words)
{
    if (words->end == words->bytes)
        return 0;
    if (words->end == words->run_end)
        words->run_end = find_run_end(words, words->end, true);
    if (words->end < words->run_end)
        return match_word(words);
    words->end = words->run_end = find_run_end(words, words->end, false);
    return 1;
}
