#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nearkv run over several processes: the tokens of one process in every mode and split, what crosses between devices and compute ranks,
# refused flags told once, the end of a rank.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" <<'PY'
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from check import NEARKV, haystack, run

tmp = sys.argv[1]
text = f'{tmp}/text'
haystack(text, 1500, ('pass', '31415'), ('other', '27'))
base = ['run', '-f', text, '--prefill', 'sparse', '--prefill-budget', 256, '--budget', 256, '--json']

_, err = run('run', '-p', 'x', '--tp', 2, status=2)
if 'built without MPI' in err or not shutil.which('mpirun'):
    print('skipped: no MPI')
    sys.exit(77)
assert 'mpirun -n 2' in err, err
run('run', '-p', 'The key is 5. The key is ', '--tp', 1, '--json')  # one process is no job

MPIRUN = ['mpirun', '--allow-run-as-root', '--oversubscribe', '--bind-to', 'none']


def job(n, *args, status=0):
    done = subprocess.run([*MPIRUN, '-n', str(n), NEARKV, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == status, f'{args}: exit {done.returncode}, wanted {status}: {done.stderr}'
    return (json.loads(done.stdout) if done.stdout and '--json' in args else done.stdout), done.stderr


def all_of(check, cases):
    """Several at a time: starting and ending a job is mostly waiting."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda case: check(*case), cases))


def split(tp, pnm):
    return ['--tp', tp, *(['--pnm-ranks', pnm] if pnm else [])]


# The same tokens. Two prompts: each has its own home where there are two devices. Four compute ranks: needle has two KV heads.
ask = ['-p', 'The pass key is ', '-p', 'The other key is ']
alone = {mode: run(*base, *ask, '--mode', mode)[0] for mode in ('full', 'pnm', 'png', 'recall')}


def same_tokens(tp, pnm, mode):
    got, _ = job(tp + pnm, *base, *ask, '--mode', mode, *split(tp, pnm))
    assert [a['text'] for a in got['answers']] == ['31415.', '27.'], (tp, pnm, mode, got)
    assert [a['tokens'] for a in got['answers']] == [a['tokens'] for a in alone[mode]['answers']], (tp, pnm, mode)
    assert got['link'] == alone[mode]['link'] and got['select'] == alone[mode]['select'], (tp, pnm, mode, got['link'])
    assert len(got['devices']) == max(pnm, 1) and got['parallel']['tp'] == tp and got['parallel']['pnm_ranks'] == pnm, got
    assert all(d['name'].startswith(f'rank{tp + i}@') for i, d in enumerate(got['devices']) if pnm), got['devices']
    assert (got['parallel']['compute']['sums'] > 0) == (tp > 1), got['parallel']


all_of(same_tokens, [(1, 1, 'png'), (2, 2, 'full'), (2, 2, 'pnm'), (2, 2, 'png'), (2, 1, 'recall'), (1, 2, 'full'), (2, 0, 'png'), (4, 0, 'pnm')])


# One sequence over two PNM ranks, by pages or by KV heads, or as it comes.
def same_tokens_spread(tp, mapping, mode):
    chosen = [] if mode == 'png' else ['--mode', mode]  # png is the default
    got, _ = job(tp + 2, *base, *ask, *chosen, *split(tp, 2), '--kv-parallel', mapping)  # auto: they are long and few
    assert [a['tokens'] for a in got['answers']] == [a['tokens'] for a in alone[mode]['answers']], (tp, mapping, mode)
    assert got['mode'] == mode and got['steady'] == alone[mode]['steady'], (tp, mapping, got['steady'])
    assert got['kv_parallel']['mapping'] == mapping and all(d['used_bytes'] > 0 for d in got['devices']), got


all_of(same_tokens_spread, [(1, 'cp', 'pnm'), (2, 'cp', 'full'), (2, 'tp', 'pnm'), (2, 'cp', 'png'), (2, 'tp', 'png'), (1, 'cp', 'recall'), (1, 'auto', 'pnm')])

# With one compute rank the logits are the same bits: sampling at a high temperature looks at all of them.
sampled = ['run', '-f', text, '-p', ' x is ', '--temp', 50, '--seed', 3, '-n', 60, '--json', '--mode', 'pnm', '--budget', 512]
got, _ = job(2, *sampled, *split(1, 1))
assert got['tokens'] == run(*sampled)[0]['tokens'] and len(got['tokens']) > 20, got['tokens']

# Per token and layer (n_h + 2 n_kv) d elements go down and n_h d come up, 8 and 2 heads of 128 in this model, at any length; the rest
# per step and layer does not depend on it either.
haystack(f'{tmp}/long', 6000, ('pass', '31415'))


def step_traffic(file, differences):
    few, more = (job(2, 'run', '-f', file, *base[3:], '-p', 'The x is ', '--mode', 'pnm', '-n', n, '--temp', 50, *split(1, 1))[0]['parallel'] for n in (4, 24))
    for got in (few, more):
        assert got['per_token_layer'] == {'down_elements': (8 + 2 * 2) * 128, 'up_elements': 8 * 128}, got
    differences.append([more[key] - few[key] for key in ('token_layers', 'control_bytes')] +
                       [more[way][key] - few[way][key] for way in ('down', 'up') for key in more[way]])


rest = []
all_of(step_traffic, [(text, rest), (f'{tmp}/long', rest)])
assert rest[0] == rest[1] and rest[0][0] == 20 * 3, rest

# Refused once, whatever the number of ranks, and all end with the same status.
key = ['-p', 'The key is 5. The key is ']


def refused(n, args, status, says):
    out, err = job(n, 'run', *args, status=status)
    assert err.count('nearkv: ') == 1 and err.count(says) == 1 and not out, (args, err, out)


all_of(refused, [
    (2, key, 2, '2 processes were started'),
    (2, [*key, *split(2, 2)], 2, 'are 4 processes, not 2: start it with mpirun -n 4'),
    (3, [*key, *split(3, 0)], 2, 'cannot be divided among 3 processes, only among 1, 2, 4, 8'),
    (2, [*key, *split(1, 1), '--devices', 2], 2, 'leave out --devices'),
    (2, [*key, *split(0, 1)], 2, '--tp 0'),
    (2, [*key, *split(1, 1), '-m', f'{tmp}/none'], 1, 'cannot open'),
    (2, [*split(1, 1), '-f', f'{tmp}/none'], 1, 'cannot read'),
    (2, [*key, *split(1, 1), '--mode', 'recall', '--resident', 1], 2, 'raise resident_tokens')])
out, _ = job(2, 'run', '--help')
assert out.count('usage: ') == 1, out


# A rank that dies ends the job within 5 s, by name.
def rank_process(parent, rank):
    for pid in os.listdir('/proc'):
        try:
            if pid.isdigit() and open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[1] == str(parent):
                if f'OMPI_COMM_WORLD_RANK={rank}'.encode() in open(f'/proc/{pid}/environ', 'rb').read().split(b'\0'):
                    return int(pid)
        except OSError:
            pass
    return None


haystack(f'{tmp}/endless', 400000)


def dies(rank):
    child = subprocess.Popen([*MPIRUN, '-n', '3', NEARKV, 'run', '-f', f'{tmp}/endless', '--prefill', 'dense', '--tp', '2', '--pnm-ranks', '1'],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not rank_process(child.pid, rank):
        time.sleep(0.05)
    time.sleep(0.7)  # it is at work
    os.kill(rank_process(child.pid, rank), signal.SIGKILL)
    start = time.monotonic()
    _, err = child.communicate(timeout=60)
    assert time.monotonic() - start < 5 and child.returncode != 0, (time.monotonic() - start, child.returncode)
    assert f'rank {rank} ' in err, err


all_of(dies, [(1,), (2,)])
PY
