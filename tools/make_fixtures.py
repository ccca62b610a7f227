#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/fixtures/model: tiny models with random weights as GGUF, and what transformers computes with them.

    tools/make_fixtures.py DIR           writes NAME.gguf and NAME.expected for every model
    tools/make_fixtures.py --check DIR   makes them anew and compares with those in DIR; exit status 1 when they differ

Matrices hold numbers that float16 can represent and are stored as F16, so that the same file serves as an f16 model and,
widened without loss, as an f32 model; the expected logits are float32 arithmetic over exactly these numbers.

NAME.expected, little endian: u32 n_prompt, n_generated, n_vocab; i32 prompt[n_prompt]; i32 generated[n_generated], greedy;
f32 logits[n_generated][n_vocab], from which each generated token was chosen.
"""
import math
import pathlib
import struct
import sys
import tempfile

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

N_PROMPT, N_GENERATED, N_VOCAB = 150, 17, 256
MIN_MARGIN = 0.05  # between the best two logits of every step: a greedy choice must not hang on rounding
LLAMA3 = dict(rope_type='llama3', rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
COMMON = dict(vocab_size=N_VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=2048, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
              attn_implementation='eager')
MODELS = {
    'llama': (LlamaConfig, dict(head_dim=16, tie_word_embeddings=False, rope_parameters=dict(rope_type='default', rope_theta=10000.0))),
    'llama-rope': (LlamaConfig, dict(head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    # a head dimension that is not hidden_size / num_attention_heads, and as many KV heads as heads
    'llama-tied': (LlamaConfig, dict(head_dim=24, tie_word_embeddings=True, num_hidden_layers=1, num_attention_heads=2,
                                     rope_parameters=dict(rope_type='linear', rope_theta=500000.0, factor=2.0))),
    'qwen2': (Qwen2Config, dict(tie_word_embeddings=True, rope_parameters=dict(rope_type='default', rope_theta=1000000.0))),
}


def f16(x):
    return x.astype(np.float16).astype(np.float32)


def random_weights(model, rng):
    """Weights that make attention look somewhere: matrices of gain above 1, norms around 1, biases as large as activations."""
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            x = rng.standard_normal(p.shape).astype(np.float32)
            if name.endswith('bias'):
                x = x * 0.5
            elif p.dim() == 1:
                x = 1 + 0.2 * x
            elif 'embed' in name:
                x = f16(x * 0.2)
            else:
                gain = 1.6 if 'q_proj' in name or 'k_proj' in name else 1.3
                x = f16(x * gain / math.sqrt(p.shape[1]))
            p.copy_(torch.from_numpy(x))


def greedy(model, prompt):
    tokens, generated, logits = list(prompt), [], []
    with torch.no_grad():
        for _ in range(N_GENERATED):
            row = model(torch.tensor([tokens])).logits[0, -1].float().numpy()
            generated.append(int(row.argmax()))
            logits.append(row)
            tokens.append(generated[-1])
    return generated, np.stack(logits)


def margin(logits):
    best = np.sort(logits, axis=1)
    return float((best[:, -1] - best[:, -2]).min())


def build(name):
    """The first seed whose greedy choices all have a margin."""
    config_class, options = MODELS[name]
    model_class = {LlamaConfig: LlamaForCausalLM, Qwen2Config: Qwen2ForCausalLM}[config_class]
    model = model_class(config_class(**{**COMMON, **options})).float().eval()
    for seed in range(100):
        rng = np.random.RandomState(1000 + seed)
        random_weights(model, rng)
        if model.config.tie_word_embeddings:
            model.tie_weights()
        prompt = rng.randint(3, N_VOCAB, N_PROMPT)
        generated, logits = greedy(model, prompt)
        if margin(logits) > MIN_MARGIN and len(set(generated)) > N_GENERATED // 3:
            return model, prompt, generated, logits
    raise SystemExit(f'{name}: no seed gives a margin')


def interleave(w, n_heads):
    """Rotate-half rows to neighbouring pairs, as the `llama` architecture of GGUF has them."""
    return w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def llama3_divisors(rope, head_dim):
    low, high = (rope['original_max_position_embeddings'] / rope[k] for k in ('low_freq_factor', 'high_freq_factor'))
    out = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope['rope_theta'] ** (i / head_dim)
        smooth = (rope['original_max_position_embeddings'] / wavelength - rope['low_freq_factor']) / (
            rope['high_freq_factor'] - rope['low_freq_factor'])
        out.append(1.0 if wavelength < high else rope['factor'] if wavelength > low else
                   1 / ((1 - smooth) / rope['factor'] + smooth))
    return np.array(out, np.float32)


def write_keys(w, config, head_dim, rope):
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_rope_freq_base(rope['rope_theta'])
    w.add_vocab_size(config.vocab_size)
    if head_dim * config.num_attention_heads != config.hidden_size:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
        w.add_rope_dimension_count(head_dim)
    if rope['rope_type'] == 'linear':
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope['factor'])


LAYER_NAMES = {'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v', 'self_attn.o_proj': 'attn_output',
               'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down', 'input_layernorm': 'attn_norm',
               'post_attention_layernorm': 'ffn_norm'}
NAMES = {'model.embed_tokens.weight': 'token_embd.weight', 'model.norm.weight': 'output_norm.weight', 'lm_head.weight': 'output.weight'}


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split('.', 3)
    module, kind = rest.rsplit('.', 1)
    return f'blk.{layer}.{LAYER_NAMES[module]}.{kind}'


def write_gguf(path, name, model):
    config, arch = model.config, 'qwen2' if name == 'qwen2' else 'llama'
    head_dim = getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads
    rope = MODELS[name][1]['rope_parameters']
    w = gguf.GGUFWriter(str(path), arch)
    w.add_name(f'fixture {name}')
    write_keys(w, config, head_dim, rope)
    if rope['rope_type'] == 'llama3':
        w.add_tensor('rope_freqs.weight', llama3_divisors(rope, head_dim))
    for key, p in model.named_parameters():
        x = p.detach().numpy()
        if arch == 'llama' and ('q_proj' in key or 'k_proj' in key):
            x = interleave(x, config.num_attention_heads if 'q_proj' in key else config.num_key_value_heads)
        w.add_tensor(gguf_name(key), np.ascontiguousarray(x.astype(np.float16) if x.ndim == 2 else x))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_expected(path, prompt, generated, logits):
    path.write_bytes(struct.pack('<3I', len(prompt), len(generated), N_VOCAB) + np.array(prompt, '<i4').tobytes() +
                     np.array(generated, '<i4').tobytes() + logits.astype('<f4').tobytes())


def make_all(directory):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name in MODELS:
        model, prompt, generated, logits = build(name)
        write_gguf(directory / f'{name}.gguf', name, model)
        write_expected(directory / f'{name}.expected', prompt, generated, logits)


def read_expected(path):
    data = path.read_bytes()
    n_prompt, n_generated, n_vocab = struct.unpack_from('<3I', data)
    tokens = np.frombuffer(data, '<i4', n_prompt + n_generated, 12)
    return tokens, np.frombuffer(data, '<f4', offset=12 + 4 * len(tokens)).reshape(n_generated, n_vocab)


def read_fields(path):
    reader = gguf.GGUFReader(str(path))
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith('GGUF.')}
    return fields, {t.name: t.data for t in reader.tensors}


def same_gguf(a, b):
    fields_a, tensors_a = read_fields(a)
    fields_b, tensors_b = read_fields(b)
    return fields_a == fields_b and tensors_a.keys() == tensors_b.keys() and all(
        tensors_a[k].dtype == tensors_b[k].dtype and np.allclose(tensors_a[k], tensors_b[k], rtol=1e-6, atol=1e-7) for k in tensors_a)


def same_expected(a, b):
    tokens_a, logits_a = read_expected(a)
    tokens_b, logits_b = read_expected(b)
    return np.array_equal(tokens_a, tokens_b) and np.allclose(logits_a, logits_b, atol=1e-3)


def check(directory):
    n_bad = 0
    with tempfile.TemporaryDirectory() as new:
        make_all(pathlib.Path(new))
        for path in sorted(pathlib.Path(new).iterdir()):
            old = directory / path.name
            same = same_gguf if path.suffix == '.gguf' else same_expected
            if not old.exists() or not same(old, path):
                print(f'{old}: differs from what tools/make_fixtures.py makes')
                n_bad += 1
    print(f'{2 * len(MODELS)} files, {n_bad} differ')
    return 1 if n_bad else 0


def main():
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] == '--check':
        return check(pathlib.Path(arguments[1]))
    if len(arguments) != 1 or arguments[0].startswith('-'):
        print(__doc__, file=sys.stderr)
        return 2
    pathlib.Path(arguments[0]).mkdir(parents=True, exist_ok=True)
    make_all(pathlib.Path(arguments[0]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
