#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nearkv sim paper: the JSON that scripts read; CSV files that are whole and agree with each other; scripts that draw after
# DIR moved; gnuplot started in DIR, missing, failing; a DIR or a file that cannot be written. The samples are as small as can be.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" <<'PY'
import csv
import math
import os
import re
import shutil
import subprocess
import sys

from check import NEARKV, SOURCE, fields, run

tmp = sys.argv[1]
path = os.environ['PATH']
number = (int, float)
FIGURES = {'03': 'recall_batch', '08': 'steady', '10': 'throughput', '11': 'energy', '12': 'rack', '13': 'breakdown', '14': 'cost'}
NAMES = [f'fig{n}_{name}' for n, name in FIGURES.items()]
PARTS = ['fc', 'allreduce', 'score', 'topk', 'attend_pnm', 'attend_gpu', 'recall', 'link', 'append', 'other']
ACCOUNTS = ['activity', 'power_time', 'paper', 'power_busy']
SMALL = ['--no-tornado', '--layers', 1, '--steps', 1, '--streams', 1, '--threads', 2, '--json']
FEW = [*SMALL, '--page', 256, '--set', 'pnm.memory_capacity=1 GB']  # hardly a point fits: quick


def with_gnuplot(text):
    """A directory that is the whole PATH, with this gnuplot in it (None: with nothing)."""
    os.makedirs(f'{tmp}/bin', exist_ok=True)
    if text is not None:
        with open(f'{tmp}/bin/gnuplot', 'w') as file:
            file.write(f'#!/bin/sh\n{text}\n')
        os.chmod(f'{tmp}/bin/gnuplot', 0o755)
    os.environ['PATH'] = f'{tmp}/bin'


def table(directory, name):
    with open(f'{directory}/{name}.csv', newline='') as file:
        lines = list(file)
    assert lines[0].startswith('# simulated by nearkv ') and 'budget=' in lines[0], (name, lines[0])
    header, *rows = csv.reader(lines[1:])
    assert rows and len(set(header)) == len(header), (name, header)
    for row in rows:
        assert len(row) == len(header), (name, row)
    return [dict(zip(header, row)) for row in rows]


def close(got, want, tolerance=1e-3):
    return abs(float(got) - want) <= tolerance * abs(want)


# Without gnuplot: data and scripts, one line that says what to do, nothing half written.
out = f'{tmp}/out'
with_gnuplot(None)
got, said = run('sim', 'paper', *SMALL, '--out', out)
assert said.count('\n') == 1 and 'gnuplot-nox' in said and out in said, said
assert sorted(os.listdir(out)) == sorted([f'{n}.csv' for n in NAMES + ['points', 'claims']] + [f'fig{n}.gp' for n in FIGURES])

fields(got, {'schema': str, 'kind': str, 'parameters': dict, 'claims': list, 'mean_abs_log': float, 'r3_by_account': dict,
             'points': {'all': int, 'not_simulated': int, 'first_error': type(None)},
             'tornado_sample': {'layers': int, 'steps': int, 'streams': int}, 'assumptions': list})
assert got['points'] == {'all': 112, 'not_simulated': 0, 'first_error': None}
assert got['schema'] == 'nearkv.sim.paper/1' and got['kind'] == 'simulated' and len(got['claims']) == 16
assert got['parameters']['layers'] == 1 and got['parameters']['machine']['name'] == 'paper-server'
assert set(got['r3_by_account']) == set(ACCOUNTS) and got['mean_abs_log'] > 0
numeric = [c for c in got['claims'] if not isinstance(c['paper'], bool)]
assert {re.match(r'R\d+', c['id']).group() for c in got['claims']} == {f'R{i}' for i in range(1, 14)}
for claim in got['claims']:
    kind = number if claim in numeric else bool
    fields(claim, {'id': str, 'text': str, 'paper': kind, 'ours': kind, 'verdict': str, 'note': str}, claim['id'])
    assert claim['verdict'] in ('reproduced', 'off')
error = [abs(math.log(c['ours'] / c['paper'])) for c in numeric]
assert len(numeric) == 12 and close(got['mean_abs_log'], sum(error) / len(error)), got['mean_abs_log']
for row, claim in zip(table(out, 'claims'), got['claims'], strict=True):
    assert row['id'] == claim['id'] and row['verdict'] == claim['verdict'] and close(row['ours'], float(claim['ours'])), (row, claim)

# Every field of the report is a column of points.csv, and the figures' numbers are those.
points = table(out, 'points')
with open(f'{SOURCE}/include/nearkv/sim.h') as file:
    report = re.search(r'struct nkv_sim_report \{(.*?)\n\};', file.read(), re.S).group(1)
for name in re.findall(r'(\w+)(?:\[\w+\])?[,;]', re.sub(r'/\*.*?\*/', '', report, flags=re.S)):
    assert any(column == name or column.startswith(f'{name}_') for column in points[0]), name
key = ['machine', 'model', 'context_tokens', 'n_gpus', 'n_pnm', 'mode', 'adaptive']
by_key = {tuple(p[k] for k in key): p for p in points}
assert len(by_key) == len(points)
figures = {name: table(out, name) for name in NAMES}
for name, rows in figures.items():
    for row in rows:
        point = by_key[tuple(row[k] for k in key)]
        assert row['status'] == 'ok' and all(row[k] == point[k] for k in row if k in point), (name, row)
for row in points:
    assert close(sum(float(row[f'breakdown_ms_{p}']) for p in PARTS), float(row['step_ms'])), row
    assert close(row['tokens_per_s'], float(row['batch']) / float(row['step_ms']) * 1e3), row

assert [int(r['context_tokens']) for r in figures['fig03_recall_batch']] == [2**i for i in range(15, 21)]
batches = [int(r['batch']) for r in figures['fig03_recall_batch']]
assert batches == sorted(batches, reverse=True) and batches[0] > batches[-1]
assert len(figures['fig08_steady']) == 7 * 4 and {r['mode'] for r in figures['fig08_steady']} == {'png'}
for name, column, of in (('fig10_throughput', 'throughput_to_baseline', 'tokens_per_s'),
                         ('fig11_energy', 'energy_to_baseline_paper', 'energy_j_paper')):
    base = {(r['model'], r['context_tokens']): float(r[of]) for r in figures[name] if r['system'] == 'baseline'}
    assert len(figures[name]) == 7 * (1 + 3 * 4) and len(base) == 7
    assert all(close(r[column], float(r[of]) / base[r['model'], r['context_tokens']]) for r in figures[name]), name
assert all(f'energy_j_{a}' in figures['fig11_energy'][0] for a in ACCOUNTS)
assert len(figures['fig12_rack']) == 1 + 3 * 4 and {r['machine'] for r in figures['fig12_rack']} == {'rack'}
assert len(figures['fig13_breakdown']) == len(figures['fig10_throughput']) + len(figures['fig12_rack'])
cost = {(r['system'], r['n_gpus'], r['n_pnm']): float(r['tokens_per_usd']) for r in figures['fig14_cost']}
assert all(close(r['tokens_per_usd_to_baseline'], float(r['tokens_per_usd']) / cost['baseline', '1', '8']) for r in figures['fig14_cost'])
r10 = next(c['ours'] for c in numeric if c['id'] == 'R10')
assert len(cost) == 4 + 3 * 4 and close(cost['PnG-KV', '1', '8'] / cost['baseline', '8', '8'], r10)
r2 = next(c['ours'] for c in numeric if c['id'] == 'R2')
assert any(close(r['throughput_to_baseline'], r2) for r in figures['fig10_throughput'] if r['system'] == 'PnG-KV')

# The scripts name no directory: DIR is moved and drawn again.
os.rename(out, f'{tmp}/moved')
for n, name in FIGURES.items():
    with open(f'{tmp}/moved/fig{n}.gp') as file:
        script = file.read()
    assert script.startswith('# simulated by nearkv ') and f"'fig{n}_{name}.csv'" in script and '/tmp' not in script
    assert tmp not in script and '(simulated' in script
    if shutil.which('gnuplot', path=path):
        done = subprocess.run(['gnuplot', f'fig{n}.gp'], cwd=f'{tmp}/moved', env={'PATH': path}, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done
        with open(f'{tmp}/moved/fig{n}_{name}.svg') as file:
            assert 'simulated' in file.read()
        with open(f'{tmp}/moved/fig{n}_{name}.png', 'rb') as file:
            picture = file.read()
        assert picture.startswith(b'\x89PNG') and len(picture) > 5000, (name, len(picture))

# gnuplot runs in DIR with the script's name alone; its failure is ours, and old pictures do not stay beside new data.
log = f'{tmp}/log'
with_gnuplot(f'echo "$PWD $*" >>{log}\nif [ "$2" = fig13.gp ]; then echo no such terminal >&2; exit 3; fi\n: >"$2.drawn"')
for name in NAMES:
    with open(f'{tmp}/moved/{name}.png', 'w') as file:
        file.write('old')
_, said = run('sim', 'paper', *FEW, '--out', f'{tmp}/moved', status=1)
assert 'fig13.gp' in said and 'exit 3' in said and 'no such terminal' in said and said.count('\n') == 2, said
with open(log) as file:
    assert file.read().splitlines() == [f'{tmp}/moved -d fig{n}.gp' for n in ('03', '12', '13')]
assert not [name for name in os.listdir(f'{tmp}/moved') if name.endswith(('.png', '.svg', '.part'))]

# Points that could not be simulated: no claim about them, no number in their place, no figure of nothing.
left_out = ['fig08_steady', 'fig10_throughput', 'fig11_energy']
assert said.splitlines()[0].endswith('could be simulated (the column status of their CSV says why): ' + ', '.join(left_out)), said
assert [n for n in FIGURES if not os.path.exists(f'{tmp}/moved/fig{n}.gp')] == ['08', '10', '11']
assert all(row['status'] == 'ok' or row['status'].endswith('are missing') for row in table(f'{tmp}/moved', 'points'))
os.environ['PATH'] = path
few, said = run('sim', 'paper', *FEW, *(['--out', f'{tmp}/few'] if shutil.which('gnuplot') else []))
assert said.count('\n') <= 1, said
known = {c['id'] for c in few['claims'] if c['verdict'] != 'not simulated'}
assert known == {'R1a', 'R9'} and all((c['ours'] is None) == (c['id'] not in known) for c in few['claims']), few['claims']
assert few['points']['not_simulated'] > 0 and 'not one fits' in few['points']['first_error']
assert few['mean_abs_log'] > 0 and set(few['r3_by_account'].values()) == {None}
done = subprocess.run([NEARKV, 'sim', 'paper', *(str(x) for x in FEW if x not in ('--no-tornado', '--json'))], capture_output=True, text=True)
assert done.returncode == 0 and not re.search(r'\b(nan|inf)\b', done.stdout), done
assert len(re.findall('^R.* not simulated$', done.stdout, re.M)) == 14 and 'points could not be simulated' in done.stdout, done
# The tornado's samples are smaller, and the R8 note says what its numbers are of.
assert 'from smaller samples than the claims above: 1 layer, 2 steps' in done.stdout and '  R5   not simulated' in done.stdout, done
assert 'with the default parameters' in next(c['note'] for c in got['claims'] if c['id'] == 'R8')

# What cannot be written is named: a directory in the place of a file; before the simulation, DIR.
os.remove(f'{tmp}/moved/fig14_cost.csv')
os.mkdir(f'{tmp}/moved/fig14_cost.csv')
_, said = run('sim', 'paper', *FEW, '--out', f'{tmp}/moved', status=1)
assert f'{tmp}/moved/fig14_cost.csv' in said and 'directory' in said, said
assert not [name for name in os.listdir(f'{tmp}/moved') if name.endswith('.part')]
for bad, why in (f'{tmp}/none/out', 'No such file'), (f'{tmp}/log', 'Not a directory'), ('/proc/out', '/proc/out'):
    _, said = run('sim', 'paper', *FEW, '--out', bad, status=1)
    assert f"'{bad}'" in said and why in said and said.count('\n') == 1, said
PY
