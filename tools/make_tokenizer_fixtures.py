#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the tokenizer fixtures: four small vocabularies as GGUF files and, in cases.json, the words and tokens that the
`tokenizers` and `sentencepiece` packages make of a list of texts.

    make_tokenizer_fixtures.py DIR            writes them
    make_tokenizer_fixtures.py --check DIR    makes them anew and compares

Everything is trained on text that this script holds or generates, and nothing is random, so that the files are the same every
time. gpt2, llama3 and qwen2 are byte-level BPE with the three split patterns; spm is SentencePiece BPE with byte fallback. Where
the packages have no answer to compare with (malformed UTF-8, U+2581 in the text), test_tokenizer.c asks for the round trip only.
"""
import argparse
import io
import json
import pathlib
import random
import sys
import tempfile

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, decoders, trainers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
NEWER_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")
SPLITS = {
    'gpt2': GPT2_SPLIT,
    'llama3': NEWER_SPLIT.replace('DIGITS', r'\p{N}{1,3}'),
    'qwen2': NEWER_SPLIT.replace('DIGITS', r'\p{N}'),
}
PRE = {'gpt2': 'gpt-2', 'llama3': 'llama-bpe', 'qwen2': 'qwen2'}
# Control tokens first; the user-defined ones are found in any text.
SPECIALS = {
    'gpt2': ['<|endoftext|>'],
    'llama3': ['<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>', '<|eot|>'],
    'qwen2': ['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
}
USER = {'gpt2': [], 'llama3': [], 'qwen2': ['<tool>', '<tool>s', '<tool_call>']}
SPM_USER = USER['qwen2']

SENTENCES = """The keys of a page stay where they were written, and the query travels to them.
A page that nobody asks for is never moved; a page that everybody asks for is kept close.
It's the reader's turn: they're reading what we've written, I'm told, and they'll see it'd work.
In the morning the river was still, and the boats lay side by side under the bridge.
She counted twelve windows, three doors and one very small cat that didn't move at all.
Memory is cheap until it has to be fetched. Distance is what costs time and energy.
Der Fluss war still, und die Boote lagen früh am Morgen unter der Brücke; größere Schiffe kamen später.
La mémoire est bon marché jusqu'à ce qu'il faille aller la chercher, même à côté.
El niño contó doce ventanas y una gata pequeña que no se movió; mañana volverá.
Река была тиха, и лодки лежали под мостом. Память дешева, пока её не нужно доставать.
Το ποτάμι ήταν ήσυχο και οι βάρκες ήταν κάτω από τη γέφυρα.
河很安静,小船停在桥下。内存很便宜,直到需要读取它。
川は静かで、舟は橋の下にあった。メモリは安いが、遠い。
강은 조용했고 배들은 다리 아래에 있었다.
كان النهر هادئا وكانت القوارب تحت الجسر.
הנהר היה שקט והסירות היו מתחת לגשר.
नदी शांत थी और नावें पुल के नीचे थीं।
"""


def code_text():
    lines = []
    for i, name in enumerate(['page', 'frame', 'digest', 'query', 'score', 'budget']):
        lines += [f'static int {name}_count(const struct {name} *{name}, size_t n)', '{', f'    size_t {name}s = 0;', '',
                  f'    for (size_t i = {i}; i < n; i++)', f'        {name}s += {name}[i].used != 0;',
                  f'    return (int){name}s;', '}', '', f'def {name}_mean(xs):', f'\treturn sum(xs) / len(xs)  # {name}', '']
    return lines


def number_text():
    return [f'{i * 37} {i * i * 7919} {1900 + i}-{i % 12 + 1:02d}-{i % 28 + 1:02d} {i / 8:.3f}' for i in range(1, 120)]


def corpus():
    """Lines: sentences, each several times in changing company, code and numbers."""
    rng = random.Random(7)
    sentences = SENTENCES.strip().split('\n')
    words = ' '.join(sentences[:6]).split()
    lines = []
    for _ in range(12):
        lines += sentences
        lines.append(' '.join(rng.choice(words) for _ in range(14)))
    return lines + code_text() + number_text()


def cases():
    """The texts, all of them valid UTF-8 without U+2581."""
    texts = ['', ' ', '  ', 'a', 'Hello', ' Hello', '  Hello  world  ', 'hello world', 'The river was still.', '\n', '\n\n', '\t', ' \n',
             '\r\n', 'a\r\nb\rc\n', 'line one\n\n\n  line two\t\tend ', 'tab\tand  spaces   \n   \n x', ' ' * 31 + 'x', ' ' * 64, '\t' * 9,
             "it's we've they'll I'd don't you're I'm", "IT'S WE'VE THEY'LL I'D DON'T", "'s 's  's", "'ſ o'ſea", "rock'n'roll 'tis",
             'café naïve coöperate', 'cafe\u0301 n\u0303 o\u0308\u0323 a\u0300\u0301\u0302', 'é', '\u0301', 'ﬁ ﬂ ½ ² Ⅷ ① ٣٤٥ १२३ 〇 零',
             '河很安静,小船停在桥下。', '川は静かで、舟は橋の下。ｶﾅ', '강은 조용했다', 'كان النهر هادئا ١٢٣', 'הנהר היה שקט', 'नदी शांत थी',
             'ภาษาไทย ไม่มี', 'Ελληνικά ΆΈ', 'Ünïcödé Ǆ ǅ ǆ İ ı ẞ', 'Русский текст, ещё', '\u202bRTL\u202c \u200fmark',
             '😀', '😀😀 ok', '👩\u200d👩\u200d👧\u200d👦 family', '👍🏽 skin', '🇩🇪🇯🇵', '❤️ heart', '🏳️\u200d🌈', '𝒳𝓎 𝟘𝟙𝟚', '𐍈 𓀀 𠜎',
             'a\u00a0b', '\u00a0', 'a\u2003b\u2009c', '\u3000全角', 'x\u180ey', 'x\u0085y', 'a\u2028b\u2029c', 'zero\u200bwidth\ufeff', '\x0b\x0c v',
             'nul\x00inside', '\x00', '\x01\x02\x7f', '\u0080\u009f', '\ufffd', '\uffff \U0010ffff', '\ue000',
             'for (size_t i = 0; i < n; i++)\n        pages += page[i].used != 0;\n', 'def f(x):\n\treturn x**2  # ok', '#include <stdio.h>',
             '{"a": [1, 2.5e-3, null], "b": "\\u00e9"}', 'https://example.org/a?b=c&d=%20#e', '<html><body>&nbsp;</body></html>', 'a_b-c.d/e\\f',
             '!!!', '...', '--- ===', '$100.00 (50%)', '"quoted" “quoted” ‘q’ «q»', '….—–', '!? !?\n!', '()[]{}\n\n', ' (x) ', '=>\n=>',
             'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'ababababababab', 'abcabcabc' * 5, 'theretherethere', 'pagepagespage ', 'aaaaaaaaab' * 7,
             'unreachableword', ' unreachableword', 'x unreachableword.', 'Hello\nWorld' * 3, 'The' + '\u0300' * 20, '1', '3.14159', '1,234,567.89',
             '2024-01-31T12:34:56Z', '0x1F 1e10 -5', '12 345', '１２３４', 'x1y22z333w4444', 'mixed 文字 and текст and 123العربية']
    texts += [''.join(str(d % 10) for d in range(1, n + 1)) for n in range(1, 11)]
    texts += [' '.join(['7' * n for n in range(1, 11)]), '\n'.join(' ' * n + 'i' for n in range(9)), '\t \t \n \t\n']
    texts += [SENTENCES, '\n'.join(code_text()[:24]), SENTENCES.replace('\n', '  ').upper()]
    texts += [f'.{c}. {c}{c}a{c} 1' for c in '\t\n\x0b\x0c\r\x1c\x85\xa0\u1680\u180e\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000']
    return texts + generated_cases()


def generated_cases():
    """Random characters of every kind side by side, where split patterns differ most."""
    rng = random.Random(11)
    kinds = ['abcXYZ', '0189', ' ', '  ', '\n', '\r\n', '\t', "'s", "'LL", '.,!?', '#$%', 'éß', '\u0301', '漢字', '😀', '\u200d', '\u00a0', '½', 'ع',
             '_', '-', '\u2028', '\x0b']
    return [''.join(rng.choice(rng.choice(kinds)) if rng.random() < .7 else rng.choice(kinds) for _ in range(rng.randint(2, 40)))
            for _ in range(120)]


def special_cases(name):
    control, user = SPECIALS.get(name, ['<s>', '</s>']), USER.get(name, SPM_USER)
    tokens = control + user
    texts = [tokens[0], tokens[-1] * 2, f'a{tokens[0]}b', f' {tokens[-1]} x', f'{tokens[0]}{tokens[-1]}\n', tokens[-1][:-1], f'<{tokens[-1]}>',
             f'{tokens[0]}user\nHello world{tokens[-1]} next', ' '.join(tokens) + ' 123', f'it{tokens[-1]}\'s  {tokens[0]}  end  ',
             '<tool>s <tool> s<tool>', '<|eot_id|><|eot|><|eot_id', '<|im_start|>user<|im_end|>']
    return texts


# ---- Byte-level BPE by the tokenizers package

def train_bpe(name):
    """The trained tokenizer; for llama3 with a token that no merge makes, which ignore_merges alone can find."""
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLITS[name]), 'isolated'),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = split
    trained.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=760, show_progress=False,
                                                              initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    model = json.loads(trained.to_str())['model']
    vocab, merges = model['vocab'], [tuple(m) for m in model['merges']]
    if name == 'llama3':
        vocab['unreachableword'] = len(vocab)
        vocab['\u0120unreachableword'] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=name == 'llama3'))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    plain = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIALS[name]])
    for each in (plain, tokenizer):
        each.add_tokens([AddedToken(t, normalized=False) for t in USER[name]])
    return plain, tokenizer, vocab, merges


def write_bpe(path, name, tokenizer, vocab, merges):
    n = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) for i in range(n)]
    types = [CONTROL if t in SPECIALS[name] else USER_DEFINED if t in USER[name] else NORMAL for t in tokens]
    writer = open_writer(path, 'gpt2', PRE[name], tokens, types)
    writer.add_token_merges([' '.join(m) for m in merges])
    writer.add_bos_token_id(tokens.index(SPECIALS[name][0]))
    writer.add_eos_token_id(tokens.index(SPECIALS[name][-1]))
    close_writer(writer)


def open_writer(path, model, pre, tokens, types):
    writer = gguf.GGUFWriter(str(path), 'llama')
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    return writer


def close_writer(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def make_bpe(directory, name):
    plain, full, vocab, merges = train_bpe(name)
    # Ids of added tokens follow the vocabulary; user-defined ones must have the same ids in both tokenizers.
    ids = {plain.token_to_id(t): full.token_to_id(t) for t in USER[name]}
    write_bpe(directory / f'{name}.gguf', name, full, vocab, merges)
    encode = lambda t: [ids.get(i, i) for i in plain.encode(t).ids]  # noqa: E731
    return encode, lambda t: full.encode(t).ids


# ---- SentencePiece

def train_spm():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type='bpe', vocab_size=900, byte_fallback=True,
        normalization_rule_name='identity', remove_extra_whitespaces=False, add_dummy_prefix=True, character_coverage=0.995,
        allow_whitespace_only_pieces=True, split_digits=True, num_threads=1, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write_spm(path, sp, user):
    n = sp.get_piece_size()
    pieces = [sp.id_to_piece(i) for i in range(n)] + user
    types = [UNKNOWN if sp.is_unknown(i) else CONTROL if sp.is_control(i) else BYTE if sp.is_byte(i) else NORMAL for i in range(n)]
    scores = [sp.get_score(i) for i in range(n)]
    writer = open_writer(path, 'llama', 'default', pieces, types + [USER_DEFINED] * len(user))
    writer.add_token_scores(scores + [0.0] * len(user))
    writer.add_bos_token_id(sp.bos_id())
    writer.add_eos_token_id(sp.eos_id())
    writer.add_unk_token_id(sp.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    close_writer(writer)


def cut(text, tokens):
    """The text as [plain, token, plain, token, ...]: the leftmost token first, the longest of those that start there."""
    parts, start, at = [], 0, 0
    while at < len(text):
        here = max((t for t in tokens if text.startswith(t, at)), key=len, default=None)
        if here:
            parts += [text[start:at], here]
            start = at = at + len(here)
        else:
            at += 1
    return parts + [text[start:]]


def make_spm(directory):
    sp, user = train_spm(), SPM_USER
    write_spm(directory / 'spm.gguf', sp, user)
    ids = {t: sp.get_piece_size() + i for i, t in enumerate(user)}

    def encode(text, tokens):
        out = []
        for i, part in enumerate(cut(text, tokens)):
            out += [tokens[part]] if i % 2 else sp.encode(part)
        return out
    full = dict(ids, **{'<s>': sp.bos_id(), '</s>': sp.eos_id(), '<unk>': sp.unk_id()})
    return lambda t: encode(t, ids), lambda t: encode(t, full)


def make_words(name):
    """For each text, how many bytes each word has that the split pattern makes."""
    split = pre_tokenizers.Split(Regex(SPLITS[name]), 'isolated')
    return [[len(word.encode()) for word, _ in split.pre_tokenize_str(t)] for t in cases()]


def make(directory):
    answers = {'spm': make_spm(directory)}
    answers.update({name: make_bpe(directory, name) for name in SPLITS})
    out = {'plain': [{'text': t, **{n: plain(t) for n, (plain, _) in answers.items()}} for t in cases()]}
    for name, (_, full) in answers.items():
        out[f'special.{name}'] = [{'text': t, name: full(t)} for t in special_cases(name)]
    out.update({f'words.{name}': make_words(name) for name in SPLITS})
    lines = [f'"{key}":[\n' + ',\n'.join(json.dumps(c, separators=(',', ':')) for c in value) + ']' for key, value in out.items()]
    (directory / 'cases.json').write_text('{' + ',\n'.join(lines) + '}\n')


def check(directory):
    with tempfile.TemporaryDirectory() as fresh:
        make(pathlib.Path(fresh))
        names = {p.name for p in pathlib.Path(fresh).iterdir()}
        differ = [n for n in sorted(names | {p.name for p in directory.iterdir()})
                  if n not in names or not (directory / n).exists()
                  or (directory / n).read_bytes() != (pathlib.Path(fresh) / n).read_bytes()]
    for name in differ:
        print(f'{directory / name}: differs from what this script makes', file=sys.stderr)
    return 1 if differ else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true')
    parser.add_argument('directory', type=pathlib.Path)
    args = parser.parse_args()
    if args.check:
        return check(args.directory)
    args.directory.mkdir(parents=True, exist_ok=True)
    make(args.directory)
    return 0


if __name__ == '__main__':
    sys.exit(main())
