#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sessions: the same command again gives the same answer and feeds one token; a text that begins alike shares pages; a chat goes on;
# what a killed or interrupted run leaves is taken up; sessions move between devices, and a failed import leaves nothing.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" <<'PY'
import atexit
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time

from check import NEARKV, fields, haystack, run

tmp = sys.argv[1]
children = {}
SESSION = {'name': str, 'how': str, 'reused_tokens': int, 'fed_tokens': int, 'fed_prompt_tokens': int, 'shared_bytes': int, 'from': (str, type(None))}
LISTED = {'name': str, 'model': str, 'tokens': int, 'max_tokens': int, 'attached': bool, 'used_bytes': int, 'shared_bytes': int}


def start(name, memory='anon:256M'):
    path = f'{tmp}/{name}'
    child = subprocess.Popen([NEARKV, 'pnmd', '--memory', memory, '--listen', f'unix:{path}', '--name', name, '--threads', '1'],
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    atexit.register(child.kill)
    assert any('listening on' in line for line in iter(child.stderr.readline, ''))
    children[name] = child
    return f'unix:{path}'


def sessions(device):
    got, _ = run('pnm', 'list', device, '--json')
    for one in got['sessions']:
        fields(one, LISTED)
    return {one['name']: one for one in got['sessions']}


def used(device):
    return run('pnm', 'stat', device, '--json')[0]['used_bytes']


def ask(device, name, *args, **how):
    got, err = run('run', '--device', device, '--session', name, '--json', *args, **how)
    if got:
        fields(got['session'], SESSION)
    return got, err


one, two = start('pnm1'), start('pnm2')
assert sessions(one) == {}
text = f'{tmp}/text'
haystack(text, 6000, ('pass', '31415'), ('other', '27'))
book = ['-f', text, '-p', 'The pass key is ', '--budget', 512]

# The same command again, in every mode.
want, _ = run('run', *book, '--json')
assert want['text'] == '31415.'
for mode in ('png', 'full', 'recall', 'pnm', 'png'):
    got, _ = ask(one, 'book', *book, '--mode', mode)
    assert got['text'] == want['text'] and got['tokens'] == want['tokens'], mode
    s = got['session']
    how, reused = ('new', 0) if mode == 'png' and 'new' not in globals() else ('resumed', want['n_prompt'] - 1)
    new = True
    assert (s['name'], s['how'], s['reused_tokens'], s['from']) == ('book', how, reused, None), s
    assert s['fed_tokens'] == want['n_prompt'] + len(want['tokens']) - reused
    assert sessions(one)['book']['tokens'] == want['n_prompt'] + len(want['tokens'])

# A text that begins alike shares its pages, and the device counts them once.
got, _ = ask(one, 'other', '-f', text, '-p', 'The other key is ', '--budget', 512)
s = got['session']
assert got['text'] == '27.' and s['how'] == 'forked' and s['from'] == 'book', got
assert s['reused_tokens'] > 6000 and s['fed_tokens'] < 30 and s['shared_bytes'] > 0
held = sessions(one)
assert held['other']['shared_bytes'] == held['book']['shared_bytes'] == s['shared_bytes']
assert used(one) == sum(h['used_bytes'] for h in held.values()) - s['shared_bytes']
shown, _ = run('pnm', 'show', 'other', one, '--json')
assert shown['session'] == held['other'] and shown['shape']['page_tokens'] == 32

# A chat goes on without what was said; text mode says on stderr what was reused.
run('run', '--device', one, '--session', 'chat', '-p', 'The red key is 5. The blue key is 77. The red key is ', '--json')
n = sessions(one)['chat']['tokens']
got, _ = ask(one, 'chat', '--continue', '-p', ' The blue key is ')
assert got['text'] == '77.' and got['session']['reused_tokens'] == n and got['n_prompt'] == len(' The blue key is ')
assert sessions(one)['chat']['tokens'] == n + got['session']['fed_tokens'] == n + got['n_prompt'] + len(got['tokens'])
done = subprocess.run([NEARKV, 'run', '--device', one, '--session', 'chat', '--continue', '-p', ' The red key is ', '-n', '1'],
                      capture_output=True, text=True)
assert done.stdout == '5\n' and f'session chat: resumed, {n + got["session"]["fed_tokens"]} tokens reused, 17 fed (16 of the prompt, the rest the answer)' in done.stderr, done
got, _ = ask(one, 'chat', '--continue', '-p', ' The blue key is ')  # the answer that -n cut off was fed to its end
assert got['text'] == '77.'

# Refused: another model, one that is in use, nothing to continue, a name that is none.
run('needle', '-o', f'{tmp}/f32.gguf', '--type', 'f32')
_, err = ask(one, 'book', *book, '-m', f'{tmp}/f32.gguf', status=1)
assert 'is of model' in err and 'another name' in err, err
_, err = ask(one, 'book', *book, '--page', 64, status=1)
assert 'sessions are removed (nearkv pnm list, remove)' in err and 'pages of 64' in err, err
_, err = ask(one, 'none', '-p', 'x', '--continue', status=1)
assert "no session 'none'" in err, err
_, err = ask(one, 'no/name', '-p', 'x', status=2)
assert 'letters, digits' in err, err
haystack(f'{tmp}/long', 6000, ('pass', '9'))
with open(f'{tmp}/long') as f:
    other = 'Another book. ' + f.read()
with open(f'{tmp}/long', 'w') as f:
    f.write(other)
long = ['-f', f'{tmp}/long', '-p', 'The pass key is ', '--prefill', 'dense']
whole, _ = run('run', *long, '--json')
for kill in (signal.SIGKILL, signal.SIGINT):
    busy = subprocess.Popen([NEARKV, 'run', *long, '--device', one, '--session', 'long'], stderr=subprocess.PIPE, text=True)
    while busy.poll() is None and sessions(one).get('long', {'tokens': 0})['tokens'] == 0:
        time.sleep(0.01)
    if kill == signal.SIGKILL:
        _, err = ask(one, 'long', *long, status=1)
        assert 'in use' in err, err
        _, err = run('pnm', 'remove', 'long', one, status=1)
        assert 'in use' in err, err
        assert sessions(one)['long']['attached']
    busy.send_signal(kill)
    busy.communicate()
    left = sessions(one)['long']
    while left['attached']:
        left = sessions(one)['long']
    assert 0 < left['tokens'] < whole['n_prompt'] and left['tokens'] % 512 == 0, (kill, left)
    got, _ = ask(one, 'long', *long)
    assert got['session']['reused_tokens'] == left['tokens'] and got['tokens'] == whole['tokens'], got['session']
    run('pnm', 'remove', 'long', one, status=0)

# From one device to another, as a file.
file = f'{tmp}/book.session'
run('session', 'export', 'book', file, '--device', one)
assert [f for f in os.listdir(tmp) if '.tmp' in f] == []
run('session', 'import', file, '--device', two)
got, _ = ask(two, 'book', *book)
assert got['tokens'] == want['tokens'] and got['session']['reused_tokens'] == want['n_prompt'] - 1
_, err = run('session', 'import', file, '--device', two, status=1)
assert 'already' in err and 'another name' in err, err
run('session', 'remove', 'book', '--device', two)
run('session', 'import', file, '--device', two, '--name', 'volume')
listed, _ = run('session', 'list', '--device', two, '--json')
assert [s['name'] for s in listed['sessions']] == ['volume']
run('session', 'remove', 'volume', '--device', two)
assert used(two) == 0
with open(file, 'rb') as f:
    data = bytearray(f.read())
for cut, what in ((len(data) // 2, 'cut off'), (0, 'ends within the header')):
    with open(f'{tmp}/bad', 'wb') as f:
        f.write(data[:cut])
    _, err = run('session', 'import', f'{tmp}/bad', '--device', two, status=1)
    assert what in err and f'{tmp}/bad' in err, err
data[len(data) * 3 // 4] ^= 1
with open(f'{tmp}/bad', 'wb') as f:
    f.write(data)
_, err = run('session', 'import', f'{tmp}/bad', '--device', two, status=1)
assert 'checksum' in err, err
assert sessions(two) == {} and used(two) == 0

# On memory that outlives the device: the device is killed and started again; then there is no device process at all.
image = f'file:{tmp}/image'
short = ['-p', 'The red key is 5. The blue key is 77. The blue key is ']
three = start('pnm3', f'{image}:32M')
first, _ = ask(three, 'short', *short)
assert first['text'] == '77.' and first['session']['how'] == 'new'
children['pnm3'].kill()
children['pnm3'].wait()
three = start('pnm3', image)
got, _ = ask(three, 'short', *short)
assert got['tokens'] == first['tokens'] and got['session']['reused_tokens'] == first['n_prompt'] - 1
children['pnm3'].send_signal(signal.SIGTERM)
children['pnm3'].wait()
got, _ = run('run', '--memory', image, '--session', 'short', '--json', *short, '--mode', 'full')
assert got['tokens'] == first['tokens'] and got['session']['reused_tokens'] == first['n_prompt'] - 1
assert list(sessions(image)) == ['short']
got, _ = run('pnm', 'check', image, '--json')
assert got['problems'] == [] and got['closed_in_order'] and got['sequences'] == 1 and got['full_pages'] > 0
with open(image[5:], 'rb') as good, open(f'{tmp}/bad', 'wb') as bad:
    data = bytearray(good.read())
    for at in re.finditer(b'NKVSEQ01', bytes(data)): # tables that were replaced are still there
        data[at.start() + 128] ^= 1
    bad.write(data)
got, _ = run('pnm', 'check', f'file:{tmp}/bad', '--json', status=1)
assert len(got['problems']) == 1 and 'checksum differs' in got['problems'][0], got
run('run', '--memory', f'file:{tmp}/bad', '--session', 'short', *short, status=1)
# Pages that were damaged since: nobody compares them, but who stumbles over them says who does.
with open(image[5:], 'rb') as good, open(f'{tmp}/worn', 'wb') as worn:
    data = bytearray(good.read())
    frames, chunks = struct.unpack_from('<QQ', data, 120)
    data[frames:chunks] = b'\xff' * (chunks - frames)
    worn.write(data)
_, err = run('run', '--memory', f'file:{tmp}/worn', '--session', 'short', *short, '--mode', 'full', status=1)
assert 'is not a number' in err and f'nearkv pnm check file:{tmp}/worn' in err, err
got, _ = run('pnm', 'check', f'file:{tmp}/worn', '--json', status=1)
assert got['closed_in_order'] and got['problems'], got
run('session', 'export', 'short', f'{tmp}/short', '--memory', image)
run('session', 'import', f'{tmp}/short', '--memory', f'file:{tmp}/new:32M')
got, _ = run('run', '--memory', f'file:{tmp}/new', '--session', 'short', '--json', *short)
assert got['tokens'] == first['tokens'] and got['session']['reused_tokens'] == first['n_prompt'] - 1

# An import that is killed at any time leaves nothing, or all.
random.seed(5)
for i in range(12):
    busy = subprocess.Popen([NEARKV, 'session', 'import', file, '--device', two], stderr=subprocess.DEVNULL)
    time.sleep(random.uniform(0, 0.25))
    busy.kill()
    busy.wait()
    while run('pnm', 'stat', two, '--json')[0]['clients']:
        time.sleep(0.01)
    left = sessions(two)
    if left:
        assert left['book']['tokens'] == want['n_prompt'] + len(want['tokens'])
        run('pnm', 'remove', 'book', two, status=0)
    assert used(two) == 0, i
PY
