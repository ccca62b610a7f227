/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads tokenizer.ggml.{model,tokens,token_type,*_token_id}. Texts are copied into one pool and turned into the bytes
 * they stand for: GPT-2 spelling is undone and <0xXX> becomes its byte, so that decoding is concatenation (and, for
 * SPM, U+2581 to space). Only NORMAL tokens can come out of plain text; control tokens must be asked for, or a prompt
 * could spell them.
 *
 * Two tokens of one spelling are an error: which of them the model was trained on cannot be known. Empty tokens are
 * padding and match nothing. Every byte needs a token, or there must be an unknown token to stand for it; checking this
 * at open means that no text can fail later.
 */
#include "model/tokenizer_vocab.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/unicode.h"

#define MAX_TOKEN_BYTES 1024u /* bounds the work per token when the tables are built */
#define SHOWN_BYTES     64

static int shown(struct nkv_str s)
{
    return s.bytes < SHOWN_BYTES ? (int)s.bytes : SHOWN_BYTES;
}

static int read_kind(const struct nkv_gguf *gguf, enum nkv_vocab_kind *kind_out)
{
    struct nkv_str model = {0};

    TRY(nkv_gguf_str(gguf, "tokenizer.ggml.model", &model));
    if (model.bytes == 5 && memcmp(model.data, "llama", 5) == 0)
        *kind_out = NKV_VOCAB_SPM;
    else if (model.bytes == 4 && memcmp(model.data, "gpt2", 4) == 0)
        *kind_out = NKV_VOCAB_BPE;
    else
        FAIL(NKV_ENOTSUP, "%s: tokenizer '%.*s' is not supported: llama and gpt2 are", nkv_gguf_name(gguf),
             shown(model), model.data);
    return 0;
}

/* "<0x0A>" */
static int parse_byte(struct nkv_str s)
{
    char digits[3] = {0}, *end;
    long value;

    if (s.bytes != 6 || memcmp(s.data, "<0x", 3) != 0 || s.data[5] != '>')
        return -1;
    memcpy(digits, s.data + 3, 2);
    if (!strchr("0123456789ABCDEFabcdef", digits[0]) || digits[0] == 0)
        return -1;
    value = strtol(digits, &end, 16);
    return end == digits + 2 ? (int)value : -1;
}

static int decode_byte(const struct nkv_vocab *v, uint32_t token, struct nkv_str spelled, char *bytes_out)
{
    int byte = parse_byte(spelled);

    if (v->kind != NKV_VOCAB_SPM || byte < 0)
        FAIL(NKV_EFORMAT, "%s: token %u ('%.*s') is marked as a byte but is not <0x00> to <0xFF> of a llama tokenizer",
             v->file, token, shown(spelled), spelled.data);
    bytes_out[0] = (char)byte;
    return 1;
}

/*
 * Writes the bytes that a token stands for, at most as many as it is spelled with; returns how many. A NORMAL token
 * of a GPT-2 vocabulary with characters outside the byte alphabet cannot come out of any text: it becomes UNUSED.
 */
static int decode_text(struct nkv_vocab *v, uint32_t token, struct nkv_str spelled, char *bytes_out)
{
    if (spelled.bytes > MAX_TOKEN_BYTES)
        FAIL(NKV_EFORMAT, "%s: token %u has %zu bytes: at most %u are allowed", v->file, token, spelled.bytes,
             MAX_TOKEN_BYTES);
    if (v->type[token] == NKV_TOKEN_BYTE)
        return decode_byte(v, token, spelled, bytes_out);
    if (v->kind == NKV_VOCAB_BPE && v->type[token] == NKV_TOKEN_NORMAL) {
        size_t n = nkv_alphabet_decode(spelled.data, spelled.bytes, bytes_out);

        if (n != NKV_ALPHABET_FOREIGN)
            return (int)n;
        v->type[token] = NKV_TOKEN_UNUSED;
    }
    memcpy(bytes_out, spelled.data, spelled.bytes);
    return (int)spelled.bytes;
}

static int read_types(const struct nkv_gguf *gguf, struct nkv_vocab *v)
{
    struct nkv_gguf_array types = {0};

    TRY(nkv_gguf_array(gguf, "tokenizer.ggml.token_type", NKV_GGUF_I32, &types));
    if (types.n != v->n)
        FAIL(NKV_EFORMAT, "%s: %llu token types for %u tokens", v->file, (unsigned long long)types.n, v->n);
    for (uint32_t i = 0; i < v->n; i++) {
        int32_t type;

        memcpy(&type, types.data + 4 * (size_t)i, sizeof type);
        if (type < NKV_TOKEN_NORMAL || type > NKV_TOKEN_BYTE)
            FAIL(NKV_EFORMAT, "%s: token %u is of type %d: 1 to 6 are known", v->file, i, type);
        v->type[i] = (uint8_t)type;
    }
    return 0;
}

/* Fails on two tokens of one spelling. */
static int check_distinct(const struct nkv_vocab *v, const struct nkv_str *spelled)
{
    struct nkv_strings seen = {0};
    uint32_t i, first = 0;

    TRY(nkv_strings_open(spelled, v->n, &seen));
    for (i = 0; i < v->n; i++) {
        first = spelled[i].bytes ? nkv_strings_put(&seen, i) : i;
        if (first != i)
            break;
    }
    nkv_strings_close(&seen);
    if (i < v->n)
        FAIL(NKV_EFORMAT, "%s: tokens %u and %u are both '%.*s'", v->file, first, i, shown(spelled[i]),
             spelled[i].data);
    return 0;
}

static bool is_end_name(struct nkv_str text)
{
    static const char *const names[] = {"</s>",       "<|endoftext|>", "<|end_of_text|>",
                                        "<|eot_id|>", "<|eom_id|>",    "<|im_end|>"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (text.bytes == strlen(names[i]) && memcmp(text.data, names[i], text.bytes) == 0)
            return true;
    return false;
}

/* Fills text, ends, normal and byte_token from the spellings. */
static int fill_texts(struct nkv_vocab *v, const struct nkv_str *spelled)
{
    char *at = v->pool;

    TRY(check_distinct(v, spelled));
    TRY(nkv_strings_open(v->text, v->n, &v->normal));
    for (uint32_t i = 0; i < v->n; i++) {
        int n = decode_text(v, i, spelled[i], at);

        TRY(n);
        v->text[i] = (struct nkv_str){at, (size_t)n};
        at += n;
        v->ends[i] = v->type[i] == NKV_TOKEN_CONTROL && is_end_name(v->text[i]);
        if (v->type[i] == NKV_TOKEN_NORMAL && n > 0)
            (void)nkv_strings_put(&v->normal, i);
    }
    return 0;
}

static int read_tokens(const struct nkv_gguf *gguf, struct nkv_vocab *v)
{
    struct nkv_gguf_array tokens = {0};
    struct nkv_str *spelled = NULL;
    const uint8_t *cursor;
    size_t bytes = 0;
    int status;

    TRY(nkv_gguf_array(gguf, "tokenizer.ggml.tokens", NKV_GGUF_STRING, &tokens));
    if (tokens.n == 0 || tokens.n > INT32_MAX)
        FAIL(NKV_EFORMAT, "%s: a vocabulary of %llu tokens: from 1 to 2147483647 are possible", v->file,
             (unsigned long long)tokens.n);
    v->n = (uint32_t)tokens.n;
    TRY(nkv_alloc(v->n, sizeof *v->type, &v->type));
    TRY(nkv_alloc(v->n, sizeof *v->ends, &v->ends));
    TRY(nkv_alloc(v->n, sizeof *v->text, &v->text));
    TRY(read_types(gguf, v));
    TRY(nkv_alloc(v->n, sizeof *spelled, &spelled));
    cursor = tokens.data;
    for (uint32_t i = 0; i < v->n; i++) {
        spelled[i] = nkv_gguf_next_str(&cursor);
        bytes += spelled[i].bytes;
    }
    status = nkv_alloc(bytes, 1, &v->pool);
    if (status == 0)
        status = fill_texts(v, spelled);
    nkv_free(spelled);
    return status;
}

/* An optional token id. */
static int read_id(const struct nkv_gguf *gguf, const struct nkv_vocab *v, const char *key, uint32_t *id_out)
{
    uint32_t id = NKV_TOKEN_NONE;

    if (nkv_gguf_has(gguf, key)) {
        TRY(nkv_gguf_u32(gguf, key, &id));
        if (id >= v->n)
            FAIL(NKV_EFORMAT, "%s: %s is %u, outside the vocabulary of %u tokens", v->file, key, id, v->n);
    }
    *id_out = id;
    return 0;
}

static int read_ids(const struct nkv_gguf *gguf, struct nkv_vocab *v)
{
    static const char *const end_keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                           "tokenizer.ggml.eom_token_id"};

    TRY(read_id(gguf, v, "tokenizer.ggml.bos_token_id", &v->bos));
    TRY(read_id(gguf, v, "tokenizer.ggml.unknown_token_id", &v->unk));
    for (size_t i = 0; i < sizeof end_keys / sizeof *end_keys; i++) {
        uint32_t id = NKV_TOKEN_NONE;

        TRY(read_id(gguf, v, end_keys[i], &id));
        if (id != NKV_TOKEN_NONE)
            v->ends[id] = true;
    }
    return 0;
}

static int find_bytes(struct nkv_vocab *v)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        char text = (char)byte;
        uint32_t token = nkv_strings_get(&v->normal, &text, 1);

        v->byte_token[byte] = token != NKV_TOKEN_NONE ? token : v->unk;
    }
    for (uint32_t i = 0; i < v->n; i++)
        if (v->type[i] == NKV_TOKEN_BYTE)
            v->byte_token[(uint8_t)v->text[i].data[0]] = i;
    for (uint32_t byte = 0; byte < 256; byte++)
        if (v->byte_token[byte] == NKV_TOKEN_NONE)
            FAIL(NKV_EFORMAT, "%s: the vocabulary has neither a token for byte 0x%02x nor an unknown token", v->file,
                 byte);
    return 0;
}

static int load(const struct nkv_gguf *gguf, struct nkv_vocab *v)
{
    TRY(read_kind(gguf, &v->kind));
    TRY(read_tokens(gguf, v));
    TRY(read_ids(gguf, v));
    return find_bytes(v);
}

int nkv_vocab_open(const struct nkv_gguf *gguf, struct nkv_vocab *vocab_out)
{
    struct nkv_vocab vocab = {.file = nkv_gguf_name(gguf)};
    int status = load(gguf, &vocab);

    if (status < 0) {
        nkv_vocab_close(&vocab);
        return status;
    }
    *vocab_out = vocab;
    return 0;
}

void nkv_vocab_close(struct nkv_vocab *vocab)
{
    nkv_strings_close(&vocab->normal);
    nkv_free(vocab->pool);
    nkv_free(vocab->text);
    nkv_free(vocab->ends);
    nkv_free(vocab->type);
    *vocab = (struct nkv_vocab){0};
}

bool nkv_vocab_is_special(const struct nkv_vocab *vocab, uint32_t token)
{
    uint8_t type = vocab->type[token];

    return type == NKV_TOKEN_CONTROL || type == NKV_TOKEN_USER_DEFINED || type == NKV_TOKEN_UNKNOWN;
}

/* One unknown token for a symbol, however many of its bytes have none of their own. */
static int emit_bytes(const struct nkv_vocab *v, const char *text, size_t bytes, struct nkv_tokens *tokens)
{
    bool unknown = false;

    for (size_t i = 0; i < bytes; i++) {
        uint32_t token = v->byte_token[(uint8_t)text[i]];

        if (token != v->unk || !unknown)
            TRY(nkv_tokens_push(tokens, token));
        unknown = unknown || token == v->unk;
    }
    return 0;
}

int nkv_vocab_emit(const struct nkv_vocab *vocab, const struct nkv_merger *merger, const char *text, size_t bytes,
                   struct nkv_tokens *tokens)
{
    for (uint32_t i = 0; i != NKV_TOKEN_NONE; i = merger->symbols[i].next) {
        const struct nkv_symbol *symbol = &merger->symbols[i];
        size_t end = symbol->next == NKV_TOKEN_NONE ? bytes : merger->symbols[symbol->next].start;

        if (symbol->id < vocab->n)
            TRY(nkv_tokens_push(tokens, symbol->id));
        else
            TRY(emit_bytes(vocab, text + symbol->start, end - symbol->start, tokens));
    }
    return 0;
}
