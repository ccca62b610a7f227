#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The benchmarks run on small shapes in every mode and print the fields that scripts read. Nothing is timed against a limit.
set -euo pipefail
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - <<'PY'
import signal
import subprocess
import time

from check import NEARKV, fields, on_terminal, run


def text_of(*args):
    return subprocess.run([NEARKV, *map(str, args)], capture_output=True, text=True, check=True).stdout



for mode in 'full', 'recall', 'pnm', 'png':
    for kv in 'f16', 'q8_0':
        out = run('bench', 'attend', '--ctx', 2000, '--heads', 8, '--kv-heads', 2, '--dim', 64, '--pages', 16,
                             '--kv', kv, '--mode', mode, '--steps', 5, '--fresh-queries', '--json')[0]
        assert out['schema'] == 'nearkv.bench.attend/1' and out['mode'] == mode and out['kv'] == kv
        assert 0 < out['ms']['min'] <= out['ms']['median']
        assert out['read_bandwidth_gb_s'] > 0 and out['floor_ms'] > 0
        assert out['ms']['min'] <= out['ms']['mean'] and out['ms']['attend'] > 0 and (out['ms']['select'] > 0) == (mode != 'full')
        assert abs(out['ratio_to_floor'] - out['ms']['median'] / out['floor_ms']) < 1e-6 * out['ratio_to_floor']

out = run('bench', 'decode', '--shape', 'needle-256', '--ctx', '500,3000', '--budget', 512, '--steps', 5,
                     '--json')[0]
assert out['schema'] == 'nearkv.bench.decode/1' and out['page_tokens'] == 32 and [c['ctx'] for c in out['contexts']] == [500, 3000]
for context in out['contexts']:
    ms = context['ms']
    assert ms['fc'] > 0 and ms['select'] >= 0 and ms['attend'] > 0 and ms['median'] > 0

out = run('bench', 'device', '--trips', 500, '--json')[0]
us = out['us']
assert out['schema'] == 'nearkv.bench.device/1' and out['n'] == 500 and out['device'] == 'cpu'
assert 0 < us['min'] <= us['p50'] <= us['p90'] <= us['p99'] <= us['max'] and len(us) == 5

out = run('bench', 'prefill', '--shape', 'needle-256', '--ctx', 1000, '--prefill', 'sparse', '--budget', 512,
                     '--json')[0]
assert out['schema'] == 'nearkv.bench.prefill/1' and out['gflop_per_s'] > 0 and out['library_gflop_per_s'] > 0

for batch, mode in (3, 'png'), (1, 'pnm'):
    out = run('bench', 'decode', '--shape', 'needle-256', '--ctx', '300', '--budget', 128, '--steps', 5, '--mode', mode,
              '--batch', batch, '--micro-batches', 2, '--json')[0]
    assert out['batch'] == batch and out['micro_batches'] == 2
    assert out['contexts'][0]['ms']['attend'] > 0 and out['contexts'][0]['ms']['wait'] > 0
for bench in 'decode', 'serve':
    assert '--micro-batches' in run('bench', bench, '--micro-batches', 3, status=2)[1]

# Ctrl-C ends it with a message: at once while weights are made, and what is measured or filled afterwards.
def interrupted(*args, after_s=0):
    child = subprocess.Popen([NEARKV, *map(str, args)], stderr=subprocess.PIPE, text=True)
    while not int(next(line for line in open(f'/proc/{child.pid}/status') if line.startswith('SigCgt')).split()[1], 16) & 1 << (signal.SIGINT - 1):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.001)
    time.sleep(after_s)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 1 and err == 'nearkv: interrupted\n', (args, child.returncode, err)


interrupted('bench', 'decode', '--shape', 'needle-256')
interrupted('bench', 'prefill', '--shape', 'needle-256')
interrupted('bench', 'device', '--trips', 10000000)
interrupted('info', '--bandwidth')
for args in (('attend', '--ctx', 2000000, '--kv-heads', 1, '--dim', 64), ('decode', '--shape', 'tiny-256', '--ctx', 500, '--steps', 100000),
             ('prefill', '--shape', 'tiny-256', '--ctx', 400000)):
    interrupted('bench', *args, after_s=0.5)

three = {'p50': float, 'p90': float, 'p99': float}
want = {'schema': str, 'model': str, 'mode': str, 'kv': str, 'budget_tokens': int, 'page_tokens': int, 'threads': int, 'kernels': str, 'batch': int, 'micro_batches': int, 'failed': int, 'wall_s': float, 'ttft_ms': three, 'tpot_ms': three,
        'queue_ms': three, 'steps': int, 'moves': int, 'most_running': int, 'busiest_to_mean': float, 'busiest_to_mean_bytes': float,
        'devices': list,
        'load': {'arrivals': str, 'lengths': str, 'filled': bool, 'requests': int, 'outputs': int, 'least_outputs': int, 'seed': int},
        'throughput': {'requests_per_s': float, 'prompt_tokens_per_s': float, 'output_tokens_per_s': float}}
prompts = {}
for model in ('-m', 'needle'), ('--shape', 'needle-256'):
    for arrivals, lengths in ('all', 'uniform:10-300'), ('poisson:200', 'loguniform:10-2K'), ('poisson:200', 'fixed:100'):
        out, err = run('bench', 'serve', *model, '--arrivals', arrivals, '--lengths', lengths, '--requests', 9, '--outputs', 4,
                       '--batch', 3, '--micro-batches', 1 + (arrivals == 'all'), '--devices', 2, '--threads', 1, '--seed', 5,
                       '--json')
        fields(out, want)
        assert out['micro_batches'] == 1 + (arrivals == 'all')
        assert out['schema'] == 'nearkv.bench.serve/1' and out['failed'] == 0 and out['most_running'] <= 3 and err == ''
        for name in 'ttft_ms', 'tpot_ms', 'queue_ms':
            assert 0 < out[name]['p50'] <= out[name]['p90'] <= out[name]['p99'] < out['wall_s'] * 1000
        assert out['queue_ms']['p50'] < out['ttft_ms']['p50'] and out['busiest_to_mean'] >= 1
        devices = out['devices']
        assert [d['name'] for d in devices] == ['cpu0', 'cpu1'] and all(d['busy_s'] > 0 for d in devices)
        assert sum(d['sequences'] for d in devices) == 9 and sum(d['output_tokens'] for d in devices) == 9 * 4
        n = sum(d['prefill_tokens'] for d in devices)
        assert n == 9 * 99 if lengths == 'fixed:100' else 9 * 9 <= n <= 9 * 2047
        assert prompts.setdefault(lengths, n) == n, 'the load depends on the seed alone'

# No estimate of what is left before there is one: the first request comes after 1.2 s.
_, shown = on_terminal('bench', 'serve', '--requests', 1, '--arrivals', 'poisson:1', '--seed', 3, '--lengths', 'fixed:9', '--outputs', 2)
assert b' 0/1 requests \x1b[K' in shown and b' 0/1 requests,' not in shown, shown

# What lies on all devices is counted once, beside what lies on each.
for mapping in 'auto', 'cp':
    out, _ = run('bench', 'serve', '--mode', 'pnm', '--lengths', 'uniform:20-2000', '--requests', 6, '--outputs', 3, '--batch', 2, '--devices', 2,
                 '--threads', 1, '--kv-parallel', mapping, '--json')
    kv = out.pop('kv_parallel')
    fields(out, want)
    assert kv['mapping'] == mapping and kv['sequences'] > 0 and out['failed'] == 0, (kv, out)
    assert kv['sequences'] + sum(d['sequences'] for d in out['devices']) == 6, (kv, out)
    assert kv['output_tokens'] + sum(d['output_tokens'] for d in out['devices']) == 6 * 3, (kv, out)
# In text what lies on all comes first, and a device of which each has a part shows no sequences of its own.
for mapping, lines in (('dp', ['device 0 ', 'device 1 ']), ('cp', ['all devices (cp): 1 sequence, 8 prompt and 2 output tokens', 'device 0 ', 'device 1 '])):
    text = text_of('bench', 'serve', '--lengths', 'fixed:9', '--requests', 1, '--outputs', 2, '--devices', 2, '--threads', 1, '--kv-parallel', mapping)
    shown = [line for line in text.splitlines() if 'device' in line][:-1]
    assert len(shown) == len(lines) and all(s.startswith(want) for s, want in zip(shown, lines)), text
    assert all(('sequence' in line) == (mapping == 'dp') for line in shown if line.startswith('device')) and ': 1 request, ' in text, text

# What a prompt's filling in writes is not counted; each of two tokens writes itself and reads the 32 pages of 32 tokens of 64 dimensions, K and V.
page = 32 * 64 * 2 * 2
out = run('bench', 'serve', '--shape', 'tiny-256', '--fill', '--kv', 'f16', '--mode', 'full', '--lengths', 'fixed:1000', '--requests', 3,
          '--outputs', 2, '--threads', 1, '--json')[0]
fields(out, want)
assert out['load']['filled'] and out['steps'] == 3 and out['devices'][0]['prefill_tokens'] == 3 * 999, out
assert out['devices'][0]['read_bytes'] == 3 * 2 * 32 * page and out['devices'][0]['written_bytes'] == 3 * 2 * page // 32, out['devices']
assert out['devices'][0]['fill_s'] > 0, out['devices']

out = run('bench', 'serve', '--shape', 'tiny-256', '--fill', '--lengths', 'fixed:10', '--requests', 40, '--outputs', '3-5', '--threads', 1, '--json')[0]
assert 40 * 3 < out['devices'][0]['output_tokens'] < 40 * 5 and out['load']['outputs'] == 5 and out['load']['least_outputs'] == 3, out

# What is wrong is told as it was given, with what would be right.
for flag, value, message in (('--arrivals', 'often', 'poisson:R'), ('--arrivals', 'poisson:0', 'from 1e-06 to 1e+06'), ('--arrivals', 'poisson:', 'poisson:R'),
                             ('--lengths', 'fixed:0', 'fixed:N'), ('--lengths', 'fixed:3-9', 'fixed:N'), ('--lengths', 'uniform:9-3', 'A not more than B'),
                             ('--lengths', 'uniform:9', 'A-B'), ('--lengths', 'loguniform:1-999M', 'to 268435456'), ('--lengths', 'normal:3', 'loguniform:A-B'),
                             ('--outputs', '1', 'from 2'), ('--outputs', '9-3', 'A not more than B'), ('--outputs', '-5', 'A-B'), ('--outputs', '2-', 'A-B'),
                             ('--outputs', '2' * 40 + '-9', 'from 2'), ('--step-tokens', '100', 'need at least 520')):
    err = run('bench', 'serve', flag, value, status=2)[1]
    assert f'{flag} {value}: ' in err and message in err and err.count('\n') == 1, err
for flags, message in ((('--shape', 'gpt-9'), '--shape'), (('--shape', 'tiny-256', '-m', 'needle'), '-m needle and --shape tiny-256'),
                       (('--weights', 'f32'), 'give their --shape'), (('--batch', 1, '--micro-batches', 2), 'has no halves')):
    assert message in run('bench', 'serve', *flags, status=2)[1], flags
for shape, devices in (('--shape', 'tiny-256'), 4), (('--shape', 'llama-3.2-1b'), 3), ((), 3):
    err = run('bench', 'serve', *shape, '--devices', devices, '--kv-parallel', 'tp', status=2)[1]
    assert f'KV heads cannot be shared evenly by {devices} devices' in err and err.count('\n') == 1, err
PY
