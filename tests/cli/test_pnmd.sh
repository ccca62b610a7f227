#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Device processes: the same answers as without, in all modes, alone, mixed and several; statistics and metrics; a device that is
# killed, stopped, restarted, in use with another shape.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" <<'PY'
import atexit
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

from check import NEARKV, fields, haystack, run

tmp = sys.argv[1]
number = (int, float)
STAT = {'schema': str, 'name': str, 'threads': int, 'capacity_bytes': int, 'used_bytes': int, 'resident_bytes': int,
        'pages': {'total': int, 'free': int, 'bytes': int}, 'sequences': int, 'queue_depth': int, 'commands': int, 'busy_s': number,
        'read_bytes': int, 'written_bytes': int, 'uptime_s': number, 'absent_clients': int, 'clients': list}
CLIENT = {'number': int, 'pid': int, 'used_bytes': int, 'window_bytes': int, 'sequences': int, 'queue_depth': int, 'commands': int,
          'busy_s': number, 'read_bytes': int, 'written_bytes': int}


def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not (got := what()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return got


def stat(path):
    got, _ = run('pnm', 'stat', f'unix:{path}', '--json')
    fields(got, STAT)
    for client in got['clients']:
        fields(client, CLIENT)
    return got


def start(name, *more, memory='anon:256M'):
    path = f'{tmp}/{name}'
    child = subprocess.Popen([NEARKV, 'pnmd', '--memory', memory, '--listen', f'unix:{path}', '--name', name, '--threads', '1', *more],
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    atexit.register(child.kill)  # so that a failure here leaves no process behind
    while 'listening on' not in (line := child.stderr.readline()):  # what its memory holds comes first
        assert line, path
    return child, path


def stop(child, path):
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 0
    assert not os.path.exists(path)


one, path1 = start('pnm1', '--metrics', f'unix:{tmp}/metrics')
two, path2 = start('pnm2')
devices = [f'unix:{path1}', f'unix:{path2}']
assert stat(path2)['capacity_bytes'] == 256 << 20 and stat(path2)['pages']['total'] == 0
assert os.stat(path1).st_mode & 0o777 == 0o600 and os.stat(f'{tmp}/metrics').st_mode & 0o777 == 0o600

# The same tokens in every mode; two processes, or a process and a device of this one, hold a sequence each.
text = f'{tmp}/text'
haystack(text, 6000, ('pass', '31415'), ('other', '27'))
ask = ['-f', text, '-p', 'The pass key is ', '-p', 'The other key is ', '--budget', 512, '--prefill', 'sparse', '--json']
for mode in ('full', 'recall', 'pnm', 'png'):
    want, _ = run('run', *ask, '--mode', mode, '--devices', 2)
    for specs in (devices, [devices[1], 'cpu'], [devices[0]]):
        got, _ = run('run', *ask, '--mode', mode, *(x for spec in specs for x in ('--device', spec)))
        assert [a['tokens'] for a in got['answers']] == [a['tokens'] for a in want['answers']], (mode, specs)
        assert [a['text'] for a in got['answers']] == ['31415.', '27.']
        assert [d['name'] for d in got['devices']] == [{devices[0]: 'pnm1', devices[1]: 'pnm2'}.get(s, f'cpu{i}') for i, s in enumerate(specs)]
got, _ = run('eval', 'needle', '--ctx', 2048, '--modes', 'full,pnm', '--device', devices[0], '--json')
assert got['schema'] == 'nearkv.eval.needle/1'
got, _ = run('bench', 'device', '--device', devices[0], '--trips', 500, '--json')
assert got['device'] == devices[0] and 0 < got['us']['min'] <= got['us']['p50'] <= got['us']['max']
got, _ = run('bench', 'attend', '--device', devices[0], '--ctx', 2000, '--heads', 8, '--kv-heads', 2, '--dim', 64, '--pages', 16, '--mode', 'pnm',
             '--steps', 5, '--json')
assert got['device'] == devices[0] and got['ms']['median'] > 0
done = stat(path1)
assert done['read_bytes'] > 5 * 16 * 32 * 2 * 64 * 2 * 2 and done['written_bytes'] >= 2000 * 2 * 64 * 2 * 2, done  # of that benchmark alone: f16 K and V
assert done['name'] == 'pnm1' and done['clients'] == [] and done['used_bytes'] == 0 and done['commands'] > 1000 and done['busy_s'] > 0
assert done['pages']['free'] == done['pages']['total'] > 0 and done['capacity_bytes'] == 256 << 20

run('run', '-p', 'The key is 5. The key is ', '--device', devices[0], '--trace', f'{tmp}/trace', '--json')
with open(f'{tmp}/trace') as file:
    assert '"backend":"unix"' in file.readline()

# What a client at work looks like; another shape is refused.
haystack(f'{tmp}/long', 60000)
long = [NEARKV, 'run', '-f', f'{tmp}/long', '--prefill', 'dense', '--page', '64']
busy = subprocess.Popen([*long, '--device', devices[0]], stderr=subprocess.PIPE, text=True)
atexit.register(busy.kill)
got = until(lambda: (s := stat(path1))['sequences'] and s)
assert [c['pid'] for c in got['clients']] == [busy.pid] and got['clients'][0]['used_bytes'] == got['used_bytes'] > 0
assert got['pages']['free'] < got['pages']['total']
got = until(lambda: (s := stat(path1))['clients'] and s['clients'][0]['written_bytes'] and s)
assert done['written_bytes'] + got['clients'][0]['written_bytes'] <= got['written_bytes'] and got['clients'][0]['read_bytes'] <= got['read_bytes']
_, err = run('run', '-p', 'x is ', '--device', devices[0], '--kv', 'q8_0', status=1)
assert 'pages of 64, f16' in err and 'pages of 32, q8_0' in err and devices[0] in err, err
with socket.socket(socket.AF_UNIX) as s:
    s.connect(f'{tmp}/metrics')
    s.sendall(b'GET /metrics HTTP/1.0\r\n\r\n')
    page = b''.join(iter(lambda: s.recv(65536), b'')).decode()
assert page.startswith('HTTP/1.0 200 OK\r\n') and '\nnearkv_pnm_clients 1\n' in page, page
assert f'nearkv_pnm_client_used_bytes{{client="{got["clients"][0]["number"]}",pid="{busy.pid}"}} ' in page

# A device that is in use is not replaced; one that is killed fails its client at once, and leaves a socket that is replaced.
_, err = run('pnmd', '--memory', 'anon:64M', '--listen', devices[0], status=1)
assert 'a process listens' in err, err
one.kill()
one.wait()
begin = time.monotonic()
_, err = busy.communicate(timeout=60)
assert busy.returncode == 1 and time.monotonic() - begin < 5, err
assert 'pnm1' in err and f'unix:{path1}' in err and 'its process ended' in err, err
_, err = run('run', '-p', 'x is ', '--device', devices[0], status=1)
assert 'no device listens' in err, err
one, path1 = start('pnm1')
got, _ = run('run', '-p', 'The key is 5. The key is ', '--device', devices[0], '--json')
assert got['text'] == '5.'

# A client that is killed leaves nothing behind.
busy = subprocess.Popen([*long, '--device', devices[0]], stderr=subprocess.PIPE, text=True)
until(lambda: stat(path1)['sequences'])
busy.kill()
busy.communicate()
until(lambda: stat(path1)['clients'] == [])
assert stat(path1)['used_bytes'] == 0

# --reconnect: a device on a file is killed in prefill or in decoding, and the answer is that of an undisturbed run; so is that of the
# other sequence, on a device of the program's own. Without a file there is nothing to go on with, and that is said. Without the option
# the run ends.
kept = f'file:{tmp}/image:64M'
three, path3 = start('pnm3', memory=kept)
haystack(f'{tmp}/longer', 4000, ('pass', '314159'), ('other', '27'))
ask = ['-f', f'{tmp}/longer', '--budget', '512', '--prefill', 'dense', '--device', f'unix:{path3}']
both = [*ask, '-p', 'The pass key is ', '-p', 'The other key is ', '--device', 'cpu', '--json']


def disturbed(wait, *args):
    """A run whose device is killed when wait(child) returns, and started again. returns: its exit status, output, messages."""
    global three
    child = subprocess.Popen([NEARKV, 'run', *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    atexit.register(child.kill)
    first = wait(child)
    child.send_signal(signal.SIGSTOP)
    three.kill()
    three.wait()
    child.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    three, _ = start('pnm3', memory=kept)
    out, err = child.communicate(timeout=120)
    return child.returncode, (first + out).decode(errors='replace'), err.decode()


def in_prefill(child):
    begin = stat(path3)['commands']
    until(lambda: stat(path3)['commands'] > begin + 5)
    return b''


def in_decoding(child):
    return os.read(child.stdout.fileno(), 1)


def undisturbed(*args):
    return subprocess.run([NEARKV, 'run', *args], stdout=subprocess.PIPE, check=True).stdout.decode(errors='replace')


want, _ = run('run', *both, '--mode', 'pnm')
rc, out, err = disturbed(in_prefill, *both, '--mode', 'pnm', '--reconnect=30')
assert rc == 0 and 'waiting for it' in err and 'is there again' in err, (rc, err)
assert [a['tokens'] for a in json.loads(out)['answers']] == [a['tokens'] for a in want['answers']]
answer = ['-p', 'The pass key is ', '--temp', '50', '--seed', '20', '-n', '400']  # long enough to be killed within
rc, out, err = disturbed(in_decoding, *ask, *answer, '--mode', 'pnm', '--reconnect')
assert rc == 0 and 'waiting for it' in err and out == undisturbed(*ask, *answer, '--mode', 'pnm'), (rc, out, err)
until(lambda: stat(path3)['clients'] == [])
assert stat(path3)['used_bytes'] == 0
# A sequence over this device and another, in the default mode: it goes on, too.
spread = [*ask, '--device', devices[1], '--kv-parallel', 'cp', *answer]
rc, out, err = disturbed(in_decoding, *spread, '--reconnect')
assert rc == 0 and 'pnm3' in err and 'is there again' in err and out == undisturbed(*spread), (rc, out, err)
until(lambda: stat(path3)['clients'] == [])
assert stat(path3)['used_bytes'] == 0
# Between the two sides stands one that changes what a connection (the n-th) gets for its window.
def relay(listener, on_window):
    for n in itertools.count():
        client, _ = listener.accept()
        device = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            device.connect(path3)
            while True:
                for side in select.select([client, device], [], [])[0]:
                    data, fds, _, _ = socket.recv_fds(side, 65536, 4)
                    if not data:
                        raise ConnectionError
                    if side is device and data[6:8] == b'\x03\0':  # NKV_WIRE_MAP
                        data = on_window(n, data)
                    socket.send_fds(client if side is device else device, [data], fds)
                    for fd in fds:
                        os.close(fd)
        except OSError:
            client.close()
            device.close()


def relayed(name, on_window, *more):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f'{tmp}/{name}')
    listener.listen()
    threading.Thread(target=relay, args=(listener, on_window), daemon=True).start()
    args = [f'unix:{tmp}/{name}' if path3 in a else a for a in [*ask, '-p', 'The pass key is ', '--mode', 'pnm', *more]]
    child = subprocess.Popen([NEARKV, 'run', *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    atexit.register(child.kill)
    return child


def die_on_return(n, data):
    if n == 1:
        three.kill()
        three.wait()
    return data


# A window that is smaller than what was asked for is no window: nothing is written beyond it.
small = relayed('small', lambda n, data: data[:288] + (4096).to_bytes(8, 'little') + data[296:])  # nkv_wire_answer.bytes
out, err = small.communicate(timeout=120)
assert small.returncode == 1 and 'a window of 4096 bytes' in err and out == '', (small.returncode, out, err)

# A device that is lost again as soon as it is back, before the sequence is cut back: the prompt is fed to its end all the same.
child = relayed('twice', die_on_return, '--reconnect')
in_prefill(child)
child.send_signal(signal.SIGSTOP)
three.kill()
three.wait()
three, _ = start('pnm3', memory=kept)
child.send_signal(signal.SIGCONT)
until(lambda: three.poll() is not None)
three, _ = start('pnm3', memory=kept)
out, err = child.communicate(timeout=120)
assert child.returncode == 0 and err.count('is there again') == 2 and out == want['answers'][0]['text'] + '\n', (out, err)
rc, out, err = disturbed(in_prefill, *ask, '-p', 'The pass key is ')
assert rc == 1 and 'its process ended' in err and 'waiting' not in err and err.count('--reconnect') == 1, err
rc, out, err = disturbed(in_prefill, *spread)
assert rc == 1 and 'all devices (cp over 2): stopped: NKV_EDEVICE: device 0 (pnm3): ' in err and err.count('--reconnect') == 1, err
stop(three, path3)
kept = 'anon:64M'
three, path3 = start('pnm3', memory=kept)
rc, out, err = disturbed(in_prefill, *ask, '-p', 'The pass key is ', '--reconnect')
assert rc == 1 and 'is there again' in err and 'cannot go on' in err and 'no sequence' in err, err
rc, out, err = disturbed(in_prefill, *spread, '--reconnect')
assert rc == 1 and 'is there again' in err and 'cannot go on' in err and 'pnm3' in err and 'no sequence' in err, err
stop(three, path3)

# Before the first client it tells what memory it has. A node that is not there is refused at once.
empty, path4 = start('pnm4', memory=f'file:{tmp}/empty:3M')
assert stat(path4)['capacity_bytes'] == 3 << 20 and stat(path4)['pages']['bytes'] == 0
got = subprocess.run([NEARKV, 'pnm', 'stat', f'unix:{path4}'], stdout=subprocess.PIPE, text=True, check=True).stdout
assert got.startswith('pnm4: 3.1 MB of memory, which the first client divides'), got
stop(empty, path4)
_, err = run('pnmd', '--memory', 'numa:999:64M', '--listen', f'unix:{tmp}/none', status=2)
assert 'no NUMA node 999: the nodes of this machine are 0' in err and not os.path.exists(f'{tmp}/none'), err

# Clients that are gone hold nearly all pages of a device that was restarted, though not its bytes: it is passed over, or says so.
kept = f'file:{tmp}/tight:32M'
three, path3 = start('pnm3', memory=kept)
for _ in range(2):
    rc, out, err = disturbed(in_prefill, *ask, '-p', 'The pass key is ')
    assert rc == 1 and 'its process ended' in err, err
full = stat(path3)
assert full['absent_clients'] == 2 and full['pages']['free'] < full['pages']['total'] // 3, full
_, err = run('run', *ask, '-p', 'The pass key is ', status=1)
assert 'on one device: the most that is free is' in err and 'device 0 (pnm3) keeps ' in err and 'clients that are gone, for up to' in err, err
got, _ = run('run', *ask, '--device', devices[1], '--kv-parallel', 'dp', '-p', 'The pass key is ', '--json')
assert got['text'] == want['answers'][0]['text'], got
assert stat(path3)['absent_clients'] == 2
stop(three, path3)

# A device that goes under a load: its requests fail, the others and those that come go on, and the report says so.
three, path3 = start('pnm3')
serve = subprocess.Popen([NEARKV, 'bench', 'serve', '--device', devices[1], '--device', f'unix:{path3}', '--fill', '--requests', '60', '--batch', '8',
                          '--arrivals', 'poisson:30', '--lengths', 'fixed:1024', '--json'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
atexit.register(serve.kill)
until(lambda: stat(path3)['commands'] > 100)
three.kill()
three.wait()
out, err = serve.communicate(timeout=120)
got = json.loads(out)
assert serve.returncode == 1 and f'{got["failed"]} request{"s"[:got["failed"] > 1]} failed: device 1 (pnm3)' in err and 'its process ended' in err, err
assert 0 < got['failed'] <= 8 and [d['lost'] for d in got['devices']] == [False, True], got
assert got['devices'][0]['output_tokens'] >= (60 - got['failed'] - got['devices'][1]['sequences']) * 32 and got['devices'][0]['busy_s'] > 0, got

# --watch ends with the device; SIGTERM and SIGINT end it well.
watch = subprocess.Popen([NEARKV, 'pnm', 'stat', devices[0], '--watch', '--json'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
assert watch.stdout.readline().startswith('{"schema":"nearkv.pnm.stat/1"')
stop(one, path1)
assert watch.wait(timeout=60) == 1
two.send_signal(signal.SIGINT)
assert two.wait(timeout=60) == 0 and not os.path.exists(path2)
PY
