#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nearkv run: the JSON schema, all modes and devices, several prompts, sampling, the trace, a failing device, Ctrl-C.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" <<'PY'
import itertools
import os
import signal
import subprocess
import sys
import time

from check import NEARKV, fields, haystack, on_terminal, run

tmp = sys.argv[1]
text = f'{tmp}/text'
haystack(text, 8000, ('pass', '31415'), ('other', '27'))
sparse = ['--prefill', 'sparse', '--prefill-budget', 512, '--budget', 512]
number = (int, float)
SCHEMA = {
    'schema': str, 'mode': str, 'model': str, 'text': str, 'tokens': list, 'n_prompt': int, 'n_generated': int,
    'device': (int, type(None)), 'spread': bool, 'prefill_s': float,
    'decode_s': float, 'ttft_ms': float, 'tpot_ms': {'mean': float, 'p50': float, 'p99': float}, 'tokens_per_s': float,
    'kv': {'page_tokens': int, 'dtype': str, 'pages': int, 'bytes': int, 'digest_bytes': int},
    'select': {'budget_tokens': int, 'attended_tokens_mean': number}, 'steady': {'resident_pages': int, 'hit_ratio': number},
    'link': {'to_device_bytes': int, 'from_device_bytes': int, 'recalled_pages': int, 'recalled_bytes': int}, 'devices': list}
DEVICE = {'name': str, 'capacity_bytes': int, 'used_bytes': int, 'busy_s': number}

for mode in ('full', 'recall', 'pnm', 'png'):
    for devices in (1, 2):
        got, _ = run('run', '-f', text, '-p', 'The pass key is ', '--mode', mode, '--devices', devices, '--json', *sparse)
        compute = got.pop('compute', None)
        assert (compute is not None) == (mode in ('recall', 'png'))
        kv = got.pop('kv_parallel', {'mapping': 'dp'})  # two devices and one long text: it lies on both
        assert kv['mapping'] == ('auto' if devices == 2 else 'dp') and kv.get('sequences', 1) == 1, kv
        tpot = got['tpot_ms']  # of the steps after the first: five tokens and the end, so that p99 is the longest
        assert 0 < tpot['p50'] <= tpot['p99'] and tpot['mean'] <= tpot['p99'] < 1000 * got['decode_s'] <= 6.01 * tpot['p99'], got
        assert abs(6 * tpot['mean'] - 1000 * got['decode_s']) < 1e-3, got
        assert (got['device'], got['spread']) == ((None, True) if devices == 2 else (0, False)), got
        fields(got, SCHEMA)
        assert got['schema'] == 'nearkv.run/1' and got['mode'] == mode and got['text'] == '31415.', got
        assert got['n_generated'] == len(got['tokens']) == 6 and got['n_prompt'] > 8000
        assert len(got['devices']) == devices
        for device in got['devices']:
            fields(device, DEVICE)
            assert device['used_bytes'] <= device['capacity_bytes']
        attended = got['select']['attended_tokens_mean']
        assert attended > 8000 if mode == 'full' else 0 < attended <= 512, attended
        assert got['kv']['pages'] >= got['n_prompt'] // 32 and got['link']['to_device_bytes'] > 0
        if mode == 'png':
            assert got['steady']['hit_ratio'] > 0 and got['steady']['resident_pages'] > 0

# Several prompts, in one batch: each has its own answer, whether the prefix is shared or not.
ask = ['-p', 'The pass key is ', '-p', 'The other key is ', '-p', 'Nothing.']
for more in ([], ['--devices', 2], ['--mode', 'full', '--devices', 3], ['--mode', 'recall', '--kv', 'q8_0']):
    got, _ = run('run', '-f', text, *ask, '--json', *sparse, *more)
    assert [a['text'] for a in got['answers']] == ['31415.', '27.', ''], got['answers']
    assert got['n_prompt'] == sum(a['n_prompt'] for a in got['answers']) and got['n_generated'] == 9
got, _ = run('run', '-p', 'The key is 5. The key is ', '-p', 'His age is 71. Truly: his age is ', '--json', '--devices', 2)
assert [a['text'] for a in got['answers']] == ['5.', '71.'] and [a['device'] for a in got['answers']] == [0, 1], got['answers']

# Sequences over several devices: the same text, also of several prompts with a common prefix, and equal parts on each.
one, _ = run('run', '-f', text, '-p', 'The pass key is ', '--mode', 'pnm', '--json', *sparse)
for mapping, devices in (('cp', 3), ('tp', 2)):
    for select in ('layer', 'kv-head'):
        spread = ['--mode', 'pnm', '--devices', devices, '--kv-parallel', mapping, '--select', select, '--json', *sparse]
        got, _ = run('run', '-f', text, '-p', 'The pass key is ', *spread)
        kv = got.pop('kv_parallel')
        fields(got, SCHEMA)
        assert got['tokens'] == one['tokens'] and kv['mapping'] == mapping and kv['devices'] == devices, (got['text'], kv)
        assert got['device'] is None and got['spread'], got
        assert kv['messages'] > kv['commands'] > 0 and (kv['select_rounds'] > 0) == (mapping == 'cp' or select == 'layer'), kv
        used = [d['used_bytes'] for d in got['devices']]
        assert max(used) < 1.1 * one['devices'][0]['used_bytes'] / devices and min(used) > 0.8 * max(used), used
for mode in ('png', 'recall'):  # the same pages are recalled into the same slots
    one, _ = run('run', '-f', text, '-p', 'The pass key is ', '--mode', mode, '--json', *sparse)
    for spread in (['--kv-parallel', 'cp', '--devices', 3], ['--kv-parallel', 'tp', '--devices', 2]):
        got, _ = run('run', '-f', text, '-p', 'The pass key is ', *spread, *(['--mode', mode] if mode == 'recall' else []), '--json', *sparse)
        assert got['mode'] == mode and got['tokens'] == one['tokens'], got['text']
        assert got['steady'] == one['steady'] and got['link'] == one['link'] and got['steady']['resident_pages'] > 0, got
        assert all(d['used_bytes'] > 0 for d in got['devices']) and len(got['devices']) == spread[-1] and got['compute']['used_bytes'] > 0, got
got, _ = run('run', '-f', text, *ask, '--json', *sparse, *spread)
assert [a['text'] for a in got['answers']] == ['31415.', '27.', ''] and got['answers'][0]['device'] is None, got['answers']
small = ['--device', 'cpu:capacity=20M', '--device', 'cpu:capacity=20M']
_, err = run('run', '-f', text, '-p', 'The pass key is ', '--mode', 'pnm', *small, *sparse, '--kv-parallel', 'dp', status=2)
assert 'the largest device has' in err, err
for mapping in (['--kv-parallel', 'cp'], []):
    got, _ = run('run', '-f', text, '-p', 'The pass key is ', '--mode', 'pnm', *small, *sparse, *mapping, '--json')
    assert got['text'] == '31415.' and got['kv']['bytes'] + got['kv']['digest_bytes'] > 20 << 20, got['kv']
_, err = run('run', '-f', text, '-p', 'The pass key is ', '--mode', 'pnm', *small[:2], '--device', 'cpu:capacity=10M', *sparse, status=2)
assert 'over 2 devices (cp)' in err, err

# Each where it belongs: a long text on all devices, a short one on one, with the tokens of one device; no error where nothing can be
# spread, and several prompts go where what they have in common lies.
short = ['-p', 'The key is 5. The key is ']
long = open(text).read() + 'The pass key is '
for mode in 'pnm', 'png':
    alone = [run('run', *ask, '--mode', mode, *sparse[:4], '--json')[0]['tokens'] for ask in (short, ['-p', long])]
    got, _ = run('run', *short, '-p', long, *short, '--mode', mode, *sparse[:4], '--devices', 2, '--kv-parallel', 'auto', '--json')
    assert [a['tokens'] for a in got['answers']] == [alone[0], alone[1], alone[0]], got['answers']
    assert [(a['device'], a['spread']) for a in got['answers']] == [(0, False), (None, True), (1, False)] and got['kv_parallel']['sequences'] == 1, got
    assert all(0 < d['used_bytes'] <= d['capacity_bytes'] for d in got['devices']), got['devices']
got, _ = run('run', '-f', text, *ask, '--mode', 'pnm', '--devices', 2, *sparse, '--json')
assert [a['text'] for a in got['answers']] == ['31415.', '27.', ''] and got['kv_parallel']['sequences'] == 3, got
for more in (['--trace', f'{tmp}/auto'], ['--memory', f'file:{tmp}/auto.img:64M'], ['--devices', 1]):
    got, _ = run('run', *short, '--mode', 'png', *([] if '--devices' in more else ['--devices', 2]), '--kv-parallel', 'auto', '--json', *more)
    assert got['tokens'] == alone[0] and 'kv_parallel' not in got, (more, got)
for wrong, words in ((['--trace', f'{tmp}/t'], '--trace'), (['--memory', f'file:{tmp}/i:64M', '--devices', 2], '--memory'),
                     (['--session', 's', '--device', 'unix:/x'], '--session'), (['--kv-parallel', 'tp', '--devices', 3], 'KV heads')):
    done = subprocess.run([NEARKV, 'run', '-p', 'x', *([] if '--kv-parallel' in wrong else ['--kv-parallel', 'cp']), *map(str, wrong)], capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count('\n') == 1, done

# Streaming prints the same text; standard input is a file.
done = subprocess.run([NEARKV, 'run', '-f', '-', '-p', ' The pass key is '], input=b'The pass key is 271. And so on.', capture_output=True)
assert done.returncode == 0 and done.stdout == b'271.\n', done

# Byte by byte, too: what is written at a time ends with a whole character, and all of it is the text that JSON has.
def characters(data):
    """(bytes, text) one by one; a byte that belongs to no character is U+FFFD, as in JSON."""
    while data:
        for n in (1, 2, 3, 4):
            try:
                yield n, data[:n].decode()
                break
            except UnicodeDecodeError:
                pass
        else:
            n = 1
            yield n, '\ufffd'
        data = data[n:]


sampled = ['run', '-p', 'x is ', '--temp', '50', '--seed', '11', '-n', '400']
child = subprocess.Popen([NEARKV, *sampled], stdout=subprocess.PIPE, bufsize=0)
written, ends = b'', []
while chunk := os.read(child.stdout.fileno(), 65536):
    written += chunk
    ends.append(len(written))
text_of_all = run(*sampled, '--json')[0]['text']
assert child.wait() == 0 and ''.join(c for _, c in characters(written[:-1])) == text_of_all, (written, text_of_all)
assert sum(c > '\x7f' and c != '\ufffd' for c in text_of_all) > 0, text_of_all
assert set(ends) <= set(itertools.accumulate(n for n, _ in characters(written))), (written, ends)

# The seed decides what is sampled; the answer does not depend on threads.
one = [run('run', '-p', 'x is ', '--temp', 50, '--seed', s, '-n', 20, '--json', '--threads', t)[0]['tokens'] for s, t in ((1, 1), (1, 2), (2, 1))]
assert one[0] == one[1] and one[0] != one[2], one

# A terminal gets a progress bar of the prefill; it goes when the answer comes, and a pipe never sees it.
answer, shown = on_terminal('run', '-f', text, '-p', 'The pass key is ', *sparse)
assert answer == b'31415.\n', answer
assert b'prefill' in shown and b'100' in shown and b'\r' in shown and b'tokens/s\r\n' in shown, shown
# With several devices it is told where the text lies.
for args, words in ((['-f', text, '-p', 'The pass key is ', '--devices', 2, *sparse], b'tokens/s, over 2 devices (cp)'),
                    (['-f', text, *ask, '--devices', 2, '--kv-parallel', 'tp', *sparse], b'tokens/s, over 2 devices (tp)'),
                    ([*short, '--devices', 2], b'tokens/s, on device 0'),
                    ([*short, *short, '--devices', 2], b'tokens/s, each answer on one device'),
                    ([*short, '-p', long, *short, *sparse[:4], '--devices', 2], b'tokens/s, 1 of 3 answers over 2 devices (cp)')):
    assert words + b'\r\n' in on_terminal('run', *args)[1], args

# A trace per device.
run('run', '-f', text, '-p', 'The pass key is ', '--trace', f'{tmp}/trace', '--json', *sparse)
assert os.path.getsize(f'{tmp}/trace') > 64 and os.path.getsize(f'{tmp}/trace.compute') > 64
# It feeds the simulator: any budget, since scores are recorded, but no position that was not decoded.
sim = ['sim', 'run', '--trace', f'{tmp}/trace', '--batch', 2, '--steps', 1, '--json']
for budget in (512, 2048):
    got, _ = run(*sim, '--budget', budget)
    trace = got['assumptions']['trace']
    assert trace['file'] == f'{tmp}/trace' and trace['scores'] and trace['sequences'] == 1 and trace['budget_tokens'] == 512, trace
    assert got['budget_tokens'] == budget and 'locality' not in got['assumptions']
got, err = run(*sim, '--context', 4096, status=2)
assert 'steps are recorded, at' in err, err
run('run', '-p', 'a is ', '-p', 'b is ', '--trace', f'{tmp}/t2', '--devices', 2, '--json')
assert os.path.getsize(f'{tmp}/t2.0') > 64 and os.path.getsize(f'{tmp}/t2.1') > 64

# A device that fails a command ends the sequence with its error, be it in prefill or later; another device's goes on.
for n in (1, 5, 12):
    got, err = run('run', '-p', 'The pass key is 71432. The pass key is ', '--device', f'fault:op=attend,n={n}:cpu', status=1)
    assert 'injected fault' in err and err.count('nearkv:') == 1, err
got, err = run('run', '-p', 'The key is 5. The key is ', '-p', 'His age is 71. Truly: his age is ', '--json', '--device', 'fault:op=attend,n=5:cpu',
               '--device', 'cpu', status=1)
assert 'error' in got['answers'][0] and got['answers'][1]['text'] == '71.', got['answers']
assert 'sequence 1 ended' in err

# So it is when they share the beginning, which each device is fed once.
common = 'All of this comes before the question and is longer than one page of thirty-two tokens. '
ask = [f'{common}The key is {i}. The key is ' for i in (5, 7, 9)]
got, err = run('run', '--json', *(x for text in ask for x in ('-p', text)), '--device', 'fault:op=attend,n=2:cpu', '--device', 'cpu', status=1)
assert [a['text'] for a in got['answers']] == ['', '7.', ''] and [a['device'] for a in got['answers']] == [None, 1, None], got['answers']
assert 'sequence 1 ended' in err and 'sequence 3 ended' in err and 'error' in got['answers'][2], err

# Ctrl-C ends it with a message and exit status 1.
child = subprocess.Popen([NEARKV, 'run', '-f', '-'], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
child.stdin.write(b'x' * 200000)  # more than a pipe holds: it reads, so Ctrl-C is caught
child.stdin.flush()
child.send_signal(signal.SIGINT)
assert child.wait(timeout=60) == 1
err = child.stderr.read().decode()
assert 'interrupted while reading -' in err, err
haystack(f'{tmp}/long', 400000)
child = subprocess.Popen([NEARKV, 'run', '-f', f'{tmp}/long', '--prefill', 'dense', '--trace', f'{tmp}/t3'], stderr=subprocess.PIPE, text=True)
while not os.path.exists(f'{tmp}/t3') and child.poll() is None:
    time.sleep(0.1)
child.send_signal(signal.SIGINT)
_, err = child.communicate(timeout=120)
assert child.returncode == 1 and 'interrupted' in err, (child.returncode, err)
PY
