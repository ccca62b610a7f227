#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Files that are written: none is one that is read or the memory of a device; links are followed and pipes written straight; what cannot
# be written is named with the reason; a file that a failing run made is gone again.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" <<'PY'
import atexit
import hashlib
import os
import shutil
import signal
import subprocess
import sys

from check import NEARKV, SOURCE, run

os.chdir(sys.argv[1])
ask = ['-p', 'The pass key is 71432. The pass key is ']


def refused(*args, says, stdin=subprocess.DEVNULL, status=2):
    done = subprocess.run([NEARKV, *map(str, args)], capture_output=True, text=True, stdin=stdin, timeout=60)
    assert done.returncode == status and not done.stdout, f'{args}: exit {done.returncode}: {done.stdout}{done.stderr}'
    assert done.stderr.count('\n') == 1, done.stderr
    for part in says:
        assert part in done.stderr, f'{args}: no {part!r} in {done.stderr}'


def sums():
    return {name: hashlib.sha1(open(name, 'rb').read()).hexdigest() for name in sorted(os.listdir('.')) if not name.startswith('socket')}


run('needle', '-o', 'model.gguf')
run('run', *ask, '--memory', 'file:pm.img:64M', '--session', 'note', '--json')
run('run', *ask, '--trace', 'tr', '--json')
run('run', *ask, '--trace', 'many', '--devices', 2, '--json')
shutil.copy(f'{SOURCE}/machines/paper-server.yaml', 'pm.yaml')
with open('m.txt', 'w') as file:
    file.write(ask[1])
os.symlink('pm.img', 'image.link')
os.symlink('model.gguf', 'model.link')
os.link('m.txt', 'm.hard')

# ---- Nothing is written over what is read ----

before = sums()
same = 'are the same file'
refused('session', 'export', 'note', 'pm.img', '--memory', 'file:pm.img', says=('pm.img', same))
refused('session', 'export', 'note', './image.link', '--memory', 'file:pm.img:64M', says=('./image.link', 'file:pm.img', same))
refused('run', '-m', 'model.gguf', *ask, '--trace', 'model.gguf', says=('--trace model.gguf', '--model model.gguf', same))
refused('run', '-m', 'model.gguf', *ask, '--trace', 'model.link', says=('--trace model.link', '--model model.gguf', same))
refused('run', '-m', 'model.gguf', *ask, '--device', 'record:model.gguf:cpu', says=('record: model.gguf', '--model model.gguf', same))
refused('run', '-m', 'model.gguf', *ask, '--memory', 'file:model.link', says=('--model model.gguf', '--memory file:model.link', same))
refused('run', '-f', 'm.txt', '--trace', 'm.hard', says=('--trace m.hard', '-f m.txt', same))
refused('run', '-f', 'm.txt', '--memory', 'file:m.txt', says=('-f m.txt', '--memory file:m.txt', same))
refused('run', '-f', 'tr.compute', '--trace', 'tr', says=('--trace tr.compute', '-f tr.compute', same))
refused('run', '-f', 'many.1', '--trace', 'many', '--devices', 2, says=('--trace many.1', '-f many.1', same))
refused('run', *ask, '--trace', 'pm.img', '--memory', 'file:pm.img', says=('--trace pm.img', '--memory file:pm.img', same))
refused('run', *ask, '--trace', './none', '--memory', 'file:none:64M', says=('--trace ./none', '--memory file:none:64M', same))
refused('eval', 'needle', '-f', 'm.txt', '--trace', 'm.txt', says=('--trace m.txt', '-f m.txt', same))
refused('eval', 'needle', '--text', 'pm.yaml', '--text', 'm.txt', '--trace', 'm.txt', says=('--trace m.txt', '--text m.txt', same))
refused('sim', 'run', '--trace', 'tr', '--timeline', 'tr', says=('--timeline tr', '--trace tr', same))
refused('sim', 'run', '--model', 'model.gguf', '--timeline', 'model.gguf', says=('--timeline', '--model model.gguf', same))
refused('sim', 'run', '--machine', './pm.yaml', '--timeline', 'pm.yaml', says=('--timeline', '--machine ./pm.yaml', same))
refused('sim', 'sweep', '--machine', 'paper-server,pm.yaml', '--out', 'pm.yaml', says=('--out pm.yaml', '--machine pm.yaml', same))
with open('m.txt') as file:
    refused('run', '-f', '-', '--trace', 'm.txt', stdin=file, says=('--trace m.txt', '-f -', same))
pnmd = subprocess.Popen([NEARKV, 'pnmd', '--memory', 'file:pm.img', '--listen', 'unix:socket'], stderr=subprocess.PIPE, text=True)
atexit.register(pnmd.kill)
assert any('listening on' in line for line in iter(pnmd.stderr.readline, ''))
for command in (['session', 'export', 'note', 'pm.img', '--device', 'unix:socket'], ['run', *ask, '--trace', 'pm.img'],
                ['needle', '-o', 'pm.img'], ['sim', 'run', '--timeline', 'pm.img'], ['sim', 'sweep', '--gpus', '2', '--out', 'pm.img']):
    refused(*command, says=('pm.img', 'another process has that file'))
pnmd.send_signal(signal.SIGTERM)
pnmd.wait()
got, _ = run('pnm', 'list', 'file:pm.img', '--json')
assert [s['name'] for s in got['sessions']] == ['note']
after = sums()
assert {name: s for name, s in after.items() if name != 'pm.img' and name != 'image.link'} == \
       {name: s for name, s in before.items() if name != 'pm.img' and name != 'image.link'}
run('run', '-f', '/dev/null', *ask, '--trace', '/dev/null', '--json')  # which everybody may read and write

# ---- Links, pipes, descriptors ----

with open('model.gguf', 'rb') as file:
    model = file.read()
assert subprocess.run([NEARKV, 'needle', '-o', '/dev/stdout'], stdout=subprocess.PIPE, check=True).stdout == model
with open('behind', 'wb') as file:
    file.write(b'hello')
with open('behind', 'ab') as file:
    subprocess.run([NEARKV, 'needle', '-o', '/dev/fd/1'], stdout=file, check=True)
with open('behind', 'rb') as file:
    assert file.read() == b'hello' + model
refused('needle', '-o', '/dev/stdout', '--json', says=('-o /dev/stdout: --json',))
run('session', 'export', 'note', 'old.session', '--memory', 'file:pm.img')
os.symlink('old.session', 'session.link')
run('session', 'export', 'note', 'session.link', '--memory', 'file:pm.img')
assert os.path.islink('session.link')
with open('old.session', 'rb') as file:
    exported = subprocess.run([NEARKV, 'session', 'export', 'note', '/dev/stdout', '--memory', 'file:pm.img'], stdout=subprocess.PIPE, check=True)
    assert file.read() == exported.stdout
assert not [name for name in os.listdir('.') if name.endswith('.tmp')]

# ---- Advice that fits ----

refused('run', *ask, '--memory', 'file:m.txt:64M', says=('something else than an image', 'does not exist yet'), status=1)
refused('run', *ask, '--memory', 'file:model.gguf:64M', says=('something else than an image',), status=1)
refused('run', *ask, '--memory', 'file:q.img:0', says=('--memory file:q.img:0: ', 'SIZE 0 is no size'))
refused('run', *ask, '--memory', 'file:q.img:5', says=('--memory file:q.img:5: ', 'larger SIZE'))
refused('run', *ask, '--device', 'cpu:x=1', '--memory', 'file:pm.img', says=('--device cpu:x=1 --memory file:pm.img: ',))
refused('session', 'import', 'm.txt', '--memory', 'file:pm.img', says=('m.txt is no session file',), status=1)
with open('old.session', 'rb') as file, open('cut', 'wb') as cut:
    cut.write(file.read(50))
refused('session', 'import', 'cut', '--memory', 'file:pm.img', says=('cut off',), status=1)

# ---- What cannot be written ----

refused('run', '-p', 'x', '--trace', '/dev/full', says=("the trace '/dev/full': No space left", 'free some space'), status=1)
refused('sim', 'sweep', '--batch', 1, '--out', '/dev/full', says=("'/dev/full': No space left",), status=1)
refused('sim', 'sweep', '--batch', 1, '--out', 'none/sweep', says=("'none/sweep': No such file",), status=1)
refused('sim', 'run', '--batch', 1, '--timeline', '/dev/full', says=("'/dev/full': No space left",), status=1)
refused('needle', '-o', '/dev/full', says=('/dev/full: No space left',), status=1)

# ---- A file that was made for nothing ----

text = ['-f', f'{SOURCE}/LICENSE', '-p', 'x']
refused('run', *text, '--memory', 'file:made:2M', says=('KV cache', 'is missing'))
refused('run', *text, '--memory', 'file:made:2M', '--session', 'a', says=('KV cache', 'is missing'))
refused('run', *ask, '--memory', 'file:made:1M', says=('no room for a page',))
assert not os.path.exists('made')
run('run', *ask, '--memory', 'file:made:16M', '--json')
refused('run', *text, '--memory', 'file:made', says=('KV cache', 'is missing'))  # which was there before
assert os.path.exists('made')
PY
