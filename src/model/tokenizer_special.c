/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A trie over the spellings, its edges in one hash table. Leftmost first, then longest: the order of the `tokenizers`
 * package. (llama.cpp cuts the whole text by the longest token first; the two differ only where special tokens
 * overlap.) Control and unknown tokens are found only on request, so that text from outside cannot end a turn;
 * user-defined ones are ordinary text that has a token of its own, and always count.
 */
#include "model/tokenizer_special.h"

#include "base/status.h"

static int add(struct nkv_specials *s, uint32_t token)
{
    struct nkv_str text = s->vocab->text[token];
    struct nkv_pair *edge = NULL;
    uint32_t node = 0;

    for (size_t i = 0; i < text.bytes; i++) {
        uint8_t byte = (uint8_t)text.data[i];

        if (!nkv_pairs_get(&s->trie, node, byte))
            TRY(nkv_pairs_put(&s->trie, node, byte, s->n_nodes++, NKV_TOKEN_NONE));
        edge = nkv_pairs_get(&s->trie, node, byte);
        node = edge->rank;
    }
    edge->id = token;
    s->starts[(uint8_t)text.data[0]] = true;
    return 0;
}

int nkv_specials_open(const struct nkv_vocab *vocab, struct nkv_specials *specials_out)
{
    struct nkv_specials specials = {.vocab = vocab, .n_nodes = 1};

    for (uint32_t i = 0; i < vocab->n; i++) {
        int status = nkv_vocab_is_special(vocab, i) && vocab->text[i].bytes ? add(&specials, i) : 0;

        if (status < 0) {
            nkv_specials_close(&specials);
            return status;
        }
    }
    *specials_out = specials;
    return 0;
}

void nkv_specials_close(struct nkv_specials *specials)
{
    nkv_pairs_close(&specials->trie);
}

static bool find_at(const struct nkv_specials *s, const char *text, size_t bytes, size_t start, bool all,
                    struct nkv_special *special_out)
{
    const struct nkv_pair *edge;
    uint32_t node = 0;
    bool found = false;

    for (size_t i = start; i < bytes; i++) {
        edge = nkv_pairs_get(&s->trie, node, (uint8_t)text[i]);
        if (!edge)
            break;
        node = edge->rank;
        if (edge->id == NKV_TOKEN_NONE || (!all && s->vocab->type[edge->id] != NKV_TOKEN_USER_DEFINED))
            continue;
        *special_out = (struct nkv_special){start, i + 1 - start, edge->id};
        found = true;
    }
    return found;
}

bool nkv_specials_find(const struct nkv_specials *specials, const char *text, size_t bytes, size_t from, bool all,
                       struct nkv_special *special_out)
{
    for (size_t i = from; i < bytes; i++)
        if (specials->starts[(uint8_t)text[i]] && find_at(specials, text, bytes, i, all, special_out))
            return true;
    return false;
}
