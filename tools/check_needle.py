#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that the needle model is a valid Llama for others, too.

    check_needle.py NEARKV           makes the model with NEARKV, answers a hidden pass key with it and with transformers, compares
    check_needle.py --gguf FILE      checks an existing file with transformers alone

The GGUF file is read with the `gguf` package, its weights go into LlamaForCausalLM (f32). Exit status 1 when the key is not the
answer, when transformers' logits leave no clear winner at a step, or when our tokens or logits differ.
"""
import argparse
import ctypes as c
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUESTION = 'The pass key is '
HF_NAMES = {'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj',
            'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj', 'attn_norm': 'input_layernorm',
            'ffn_norm': 'post_attention_layernorm'}


def field(reader, key):
    return reader.fields[key].contents()


def rotate_half(weight, heads):
    """GGUF's interleaved RoPE rows (2f, 2f+1) of each head in transformers' order (f, f + half)."""
    rows, cols = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def hf_name(name):
    top = {'token_embd.weight': 'model.embed_tokens.weight', 'output_norm.weight': 'model.norm.weight', 'output.weight': 'lm_head.weight'}
    if name in top:
        return top[name]
    _, layer, part, _ = name.split('.')
    return f'model.layers.{layer}.{HF_NAMES[part]}.weight'


def load(path):
    reader = gguf.GGUFReader(path)
    heads, kv_heads = field(reader, 'llama.attention.head_count'), field(reader, 'llama.attention.head_count_kv')
    config = LlamaConfig(
        hidden_size=field(reader, 'llama.embedding_length'), intermediate_size=field(reader, 'llama.feed_forward_length'),
        num_hidden_layers=field(reader, 'llama.block_count'), num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=field(reader, 'llama.attention.key_length'), vocab_size=field(reader, 'llama.vocab_size'),
        rope_theta=field(reader, 'llama.rope.freq_base'), rms_norm_eps=field(reader, 'llama.attention.layer_norm_rms_epsilon'),
        max_position_embeddings=field(reader, 'llama.context_length'), tie_word_embeddings=False, attention_bias=False, mlp_bias=False)
    config.rope_parameters = {'rope_type': 'default', 'rope_theta': field(reader, 'llama.rope.freq_base')}
    model = LlamaForCausalLM(config).eval()
    state = {}
    for tensor in reader.tensors:
        weight = np.array(tensor.data, dtype=np.float32)
        if '.attn_q.' in tensor.name or '.attn_k.' in tensor.name:
            weight = rotate_half(weight, heads if '.attn_q.' in tensor.name else kv_heads)
        state[hf_name(tensor.name)] = torch.from_numpy(weight)
    model.load_state_dict(state)
    return model, field(reader, 'tokenizer.ggml.tokens')


def encode(text, spellings):
    byte = {int(s[3:5], 16): i for i, s in enumerate(spellings) if s.startswith('<0x')}
    space = spellings.index('\u2581')
    return [spellings.index('<s>')] + [space if b == 32 else byte[b] for b in text.encode()]


def decode(tokens, spellings):
    return bytes(32 if spellings[t] == '\u2581' else int(spellings[t][3:5], 16) for t in tokens).decode()


@torch.no_grad()
def answer(model, prompt, end, limit=16):
    """Greedy tokens up to the end token, and the smallest lead of a winner over the second."""
    tokens, past, ids, lead = [], None, torch.tensor([prompt]), float('inf')
    for _ in range(limit):
        out = model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        top = torch.topk(out.logits[0, -1], 2)
        lead = min(lead, float(top.values[0] - top.values[1]))
        token, past = int(top.indices[0]), out.past_key_values
        if token == end:
            break
        tokens.append(token)
        ids = torch.tensor([[token]])
    return tokens, lead


def haystack(key):
    text = (ROOT / 'LICENSE').read_text()[:4000]
    return text[:1500] + f'\nThe pass key is {key}.\n' + text[1500:] + '\n'


def ours(nearkv, model, text):
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
        file.write(text)
        file.flush()
        done = subprocess.run([nearkv, 'run', '-m', model, '-f', file.name, '-p', QUESTION, '-n', '16', '--mode', 'full', '--kv', 'f32', '--json'],
                              check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


class Shape(c.Structure):
    _fields_ = [(n, c.c_uint32) for n in ('n_layers', 'n_heads', 'n_kv_heads', 'head_dim', 'page_tokens', 'dtype', 'digest')] + [('scale', c.c_float)]


class DeviceConfig(c.Structure):
    _fields_ = [('size', c.c_uint32), ('shape', Shape), ('capacity_bytes', c.c_uint64), ('n_threads', c.c_uint32), ('name', c.c_char_p), ('memory', c.c_char_p)]


class ContextOptions(c.Structure):
    _fields_ = [('size', c.c_uint32), ('shape', Shape), ('devices', c.POINTER(c.c_void_p)), ('n_devices', c.c_uint32), ('compute', c.c_void_p),
                ('max_batch', c.c_uint32), ('max_tokens', c.c_uint32), ('now_ns', c.c_void_p), ('clock_arg', c.c_void_p), ('plan_log', c.c_void_p),
                ('plan_log_arg', c.c_void_p)]


class SeqOptions(c.Structure):
    _fields_ = [('size', c.c_uint32), ('max_tokens', c.c_uint32), ('mode', c.c_uint32), ('rest', c.c_uint8 * 256)]


def our_logits(nearkv, path, prompt, n_vocab):
    """The library's logits after the prompt: full attention, f32 cache. The structures are those of include/nearkv."""
    lib = c.CDLL(str(next(pathlib.Path(nearkv).resolve().parent.glob('libnearkv.so.0'))))
    lib.nkv_last_error.restype = c.c_char_p

    def call(name, *args):
        if getattr(lib, name)(*args) < 0:
            raise SystemExit(f'check_needle: {name}: {lib.nkv_last_error().decode()}')

    model, device, context, decoder, seq = (c.c_void_p() for _ in range(5))
    shape, options = Shape(), SeqOptions()
    logits = (c.c_float * n_vocab)()
    call('nkv_model_open', path.encode(), c.byref(model))
    lib.nkv_model_kv_shape(model, 32, 0, 0, c.byref(shape))
    config = DeviceConfig(c.sizeof(DeviceConfig), shape, 64 << 20, 0, None, None)
    call('nkv_device_open', b'cpu', c.byref(config), c.byref(device))
    devices = (c.c_void_p * 1)(device)
    call('nkv_context_open', c.byref(ContextOptions(c.sizeof(ContextOptions), shape, devices, 1)), c.byref(context))
    call('nkv_decoder_open', model, context, None, c.byref(decoder))
    lib.nkv_seq_options_init(c.byref(options))
    options.max_tokens, options.mode = len(prompt), 0
    call('nkv_seq_open', context, c.byref(options), c.byref(seq))
    call('nkv_prefill', decoder, seq, (c.c_int32 * len(prompt))(*prompt), c.c_size_t(len(prompt)), logits, None, None)
    lib.nkv_seq_close(seq)
    lib.nkv_decoder_close(decoder)
    lib.nkv_context_close(context)
    lib.nkv_device_close(device)
    lib.nkv_model_close(model)
    return np.array(logits)


@torch.no_grad()
def compare_logits(nearkv, path, model, prompt):
    want = model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].numpy()
    got = our_logits(nearkv, path, prompt, len(want))
    cosine = float(want @ got / np.linalg.norm(want) / np.linalg.norm(got))
    print(f'{path}: logits: cosine {cosine:.8f}, largest difference {np.abs(want - got).max():.2e} of {np.abs(want).max():.0f}')
    if not cosine > 0.9999:
        raise SystemExit('check_needle: our logits are not those of transformers')


def check(path, nearkv):
    model, spellings = load(path)
    for key in ('71432', '08', '555'):
        text = haystack(key)
        tokens, lead = answer(model, encode(text + QUESTION, spellings), spellings.index('</s>'))
        said = decode(tokens, spellings)
        print(f'{path}: key {key}: transformers says {said!r}, the winner leads by {lead:.1f}')
        if said != key + '.' or lead < 10:
            raise SystemExit(f'check_needle: expected {key + "."!r} with a lead of at least 10')
        if nearkv:
            compare_logits(nearkv, path, model, encode(text + QUESTION, spellings))
            mine = ours(nearkv, path, text)
            if mine['text'] != said or [t for t in mine['tokens'] if t != spellings.index('</s>')] != tokens:
                raise SystemExit(f'check_needle: nearkv says {mine["text"]!r} {mine["tokens"]}, transformers {said!r} {tokens}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('nearkv', nargs='?')
    parser.add_argument('--gguf')
    args = parser.parse_args()
    if args.gguf:
        check(args.gguf, args.nearkv)
        return
    if not args.nearkv:
        parser.error('NEARKV or --gguf is needed')
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ('f16', 'f32'):
            path = f'{folder}/needle.{dtype}.gguf'
            subprocess.run([args.nearkv, 'needle', '-o', path, '--type', dtype], check=True)
            check(path, args.nearkv)


if __name__ == '__main__':
    sys.exit(main())
