#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nearkv sim run and sweep: JSON, CSV, the timeline, and the examples of the documentation.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli python3 - <<'PY'
import csv
import json
import re
import subprocess

from check import NEARKV, SOURCE, fields, run

quick = ['--layers', 1, '--steps', 1, '--streams', 1]
report, _ = run('sim', 'run', '--machine', f'{SOURCE}/machines/paper-server.yaml', '--model', 'llama-3.1-70b', '--context', 131072,
                '--mode', 'png', '--gpus', 2, '--pnm', 8, '--json')
parts = {name: float for name in ['fc', 'allreduce', 'score', 'topk', 'attend_pnm', 'attend_gpu', 'recall', 'link', 'append', 'other']}
accounts = {name: float for name in ['activity', 'power_time', 'paper', 'power_busy']}
mapping = {'kv_parallel': str, 'group': int, 'auto': {'whole': int, 'spread': int}, 'attended_bytes_per_token': float, 'gpu_attended_bytes_per_token': float,
           'select_ms_per_layer': float, 'select_ms_per_step': float, 'per_token_and_layer': {name: float for name in ['transfers', 'sorts', 'reduce_messages', 'list_messages', 'select_bytes']}}
assumptions = report.pop('assumptions')
fields(report, {'schema': str, 'kind': str, 'tokens_per_s': float, 'step_ms': float, 'batch': int, 'budget_tokens': int,
                'steady_tokens': int, 'breakdown_ms': parts, 'busy_ms': parts, 'utilisation': {'gpu': float, 'pnm': float},
                'requests_that_fit': int, 'energy_j_per_token': accounts, 'usd_per_hour': float, 'tokens_per_usd': float, 'usd_per_mtoken': float,
                'full_cost': {'usd_per_hour': float, 'tokens_per_usd': float, 'usd_per_mtoken': float},
                'recalled_pages_per_layer_request': float, 'recalled_pages_error': float, 'samples': int,
                'steady_hit_ratio': float, 'link_bytes_per_token': float, 'recall_bytes_per_token': float, 'mapping': mapping})
assert report['schema'] == 'nearkv.sim/1' and report['kind'] == 'simulated'
assert report['batch'] == report['requests_that_fit'] == 96
assert [assumptions[key] for key in ['batch', 'tp', 'kv_group', 'layers']] == [96, 2, 1, 4]  # used, not 0
assert abs(sum(report['breakdown_ms'].values()) - report['step_ms']) < 1e-6 * report['step_ms']
assert assumptions['machine']['pnm.memory_bandwidth']['source']
# $/h: 2 A100 and 8 cards, the paper's table
assert abs(report['usd_per_hour'] - (2 * (0.0724 + 0.761) + 8 * (0.02715 + 0.2664))) < 0.01

rack, _ = run('sim', 'run', '--machine', f'{SOURCE}/machines/paper-rack.yaml', '--model', 'llama-3.1-405b', '--context', 1000000,
              '--mode', 'png', '--gpus', 16, '--pnm', 64, '--json', *quick)
assert rack['batch'] == 64

run('sim', 'run', '--timeline', 'timeline.json', '--batch', 8, '--json', *quick)
with open('timeline.json') as file:
    events = json.load(file)['traceEvents']
names = {event['tid']: event['args']['name'] for event in events if event['name'] == 'thread_name'}
assert 'GPUs' in names.values() and 'pnm 7' in names.values()
for event in events:
    if event['ph'] == 'X':
        assert event['dur'] >= 0 and event['ts'] >= 0
assert any(event['ph'] == 'X' and event['name'] == 'attend_pnm' for event in events)

# a request over 8 devices: N sorts and N-1 messages, or two rounds, or neither
spread = {name: run('sim', 'run', '--kv-parallel', name, '--batch', 8, '--json', *quick)[0] for name in ['dp', 'tp', 'cp']}
assert all(r['assumptions']['mode'] == 'png' and r['steady_hit_ratio'] > 0 for r in spread.values())
spread = {name: r['mapping'] for name, r in spread.items()}
for name in ['tp', 'cp']:  # steady pages of a request are steady wherever the others are
    for key in ['attended_bytes_per_token', 'gpu_attended_bytes_per_token']:
        assert abs(spread[name][key] / spread['dp'][key] - 1) < 1e-9
counts = spread['tp']['per_token_and_layer']
assert spread['tp']['group'] == 8 and counts['sorts'] == 8 and counts['reduce_messages'] == counts['list_messages'] == 7
assert spread['cp']['per_token_and_layer']['list_messages'] == 8 and spread['cp']['select_ms_per_step'] > 0
heads, _ = run('sim', 'run', '--kv-parallel', 'tp', '--select', 'kv-head', '--batch', 8, '--json', *quick)
assert heads['mapping']['per_token_and_layer']['reduce_messages'] == 0 and heads['mapping']['gpu_attended_bytes_per_token'] > 0

# most of a full batch stay whole, one request is spread; both are simulated as if they had been asked for
for batch, name in [('max', 'dp'), (1, 'cp')]:
    auto, _ = run('sim', 'run', '--model', 'llama-3.1-8b', '--kv-parallel', 'auto', '--batch', batch, '--json', *quick)
    same, _ = run('sim', 'run', '--model', 'llama-3.1-8b', '--kv-parallel', name, '--batch', batch, '--json', *quick)
    placed = auto['mapping'].pop('auto')
    assert auto['assumptions'].pop('kv_parallel') == 'auto' and placed['whole' if name == 'dp' else 'spread'] > auto['batch'] / 2
    assert same['mapping'].pop('auto') == {'whole': 0, 'spread': 0} and same['assumptions'].pop('kv_parallel') == name
    assert auto == same

# short contexts: as many as a batch can be; mode full: all of the context
most, _ = run('sim', 'run', '--model', 'llama-3.1-8b', '--context', 512, '--pnm', 64, '--json', *quick)
assert most['batch'] == most['assumptions']['batch'] == 4096 < most['requests_that_fit']
text = subprocess.run([NEARKV, 'sim', 'run', '--model', 'llama-3.1-8b', '--context', '512', '--pnm', '64', *map(str, quick)],
                      capture_output=True, text=True).stdout
assert f"4096 requests (the most a batch can be; {most['requests_that_fit']} fit)" in text, text
full, _ = run('sim', 'run', '--pnm', 0, '--mode', 'full', '--context', 16384, '--json', *quick)
assert full['budget_tokens'] == 16384

# every key that may be left out is in the table of the documentation, with nothing else
with open(f'{SOURCE}/src/sim/machine_keys.c') as file:
    keys = re.findall(r'\{"(\w+\.\w+)", \w+, [^,]+, [^,]+, ([^,]+),', file.read())
with open(f'{SOURCE}/docs/simulator.md') as file:
    listed = file.read().split('| optional key |')[1].split('\n\n')[0]
assert len(keys) > 50 and set(re.findall(r'`(\w+\.\w+)`', listed)) == {name for name, fallback in keys if fallback != 'NAN'}
# and every field of run --json is in the man page
with open(f'{SOURCE}/man/nearkv-sim.1') as file:
    manual = file.read().split('.SH JSON OF RUN')[1].split('.SH EXIT STATUS')[0]
assert [name for name in [*report, *parts, *accounts, *mapping, *mapping['per_token_and_layer']] if name not in manual] == []

# the remedy for weights that do not fit is one
for given, works in [(2, 16), (8, 16)]:
    _, said = run('sim', 'run', '--model', 'llama-3.1-405b', '--gpus', given, *quick, status=1)
    assert f'use at least {works} GPUs' in said, said
run('sim', 'run', '--model', 'llama-3.1-405b', '--gpus', 16, '--batch', 1, '--json', *quick)

# a GGUF header and a YAML shape
model, _ = run('sim', 'run', '--model', f'{SOURCE}/tests/fixtures/model/llama.gguf', '--context', 1024, '--gpus', 1, '--pnm', 1,
               '--batch', 1, '--budget', 256, '--json', *quick)
assert model['batch'] == 1
with open('model.yaml', 'w') as file:
    file.write('name: toy\nn_layers: 2\nhidden: 512\nn_heads: 8\nn_kv_heads: 2\nhead_dim: 64\nffn: 1024\nvocab: 1000\ntied: false\n')
toy, _ = run('sim', 'run', '--model', 'model.yaml', '--context', 4096, '--gpus', 1, '--pnm', 1, '--batch', 2, '--json', *quick)
assert toy['batch'] == 2
toy, _ = run('sim', 'run', '--model', 'model.yaml', '--context', 4096, '--gpus', 1, '--pnm', 1, '--batch', 2, '--json')
assert toy['assumptions']['layers'] == 2  # all there are

# more bandwidth by --set
fast, _ = run('sim', 'run', '--set', 'pnm.memory_bandwidth=4.4 TB/s', '--set', 'pnm.compute_rate=33 TFLOP/s', '--json')
assert fast['step_ms'] < 0.6 * report['step_ms']

def sweep(*args, status=0):
    done = subprocess.run([NEARKV, 'sim', 'sweep', *map(str, args)], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return list(csv.DictReader(done.stdout.splitlines()))

common = ['--mode', 'pnm,png', '--pnm', '1,2', '--context', '128K,8M', '--set', 'gpu.idle_power=60 W,80 W', *quick]
rows = sweep(*common, '--threads', 2)
assert rows == sweep(*common, '--threads', 1)
assert len(rows) == 16 and all(None not in row and None not in row.values() for row in rows)
assert [row['mode'] for row in rows[:9]] == ['pnm'] * 8 + ['png']
assert all((row['status'] == 'ok') == (row['context'] == '128K') for row in rows)
assert all('not one fits' in row['status'] and row['status'].endswith('are missing') for row in rows if row['context'] == '8M')
sweep('--context', '8M', *quick, status=1)
rows = sweep('--mode', 'pnm', '--kv-parallel', 'dp,tp,cp', '--pnm', 4, '--context', '128K,2M', '--batch', 1, *quick)
assert [row['status'] == 'ok' for row in rows] == [True, False, True, True, True, True]
assert [row['kv_group'] for row in rows] == ['1', '', '4', '4', '4', '4']
PY
expect() {
    local want=$1 part=$2 rc=0
    shift 2
    "$NEARKV" sim "$@" >out 2>err </dev/null || rc=$?
    if [ "$rc" != "$want" ] || ! grep -qF -e "$part" err; then
        echo "nearkv sim $*: exit $rc, wanted $want with '$part': $(cat err)"
        exit 1
    fi
}
expect 2 'usage:'
expect 2 "no simulation 'all'" all
expect 2 "unrecognized option '--colour'" run --colour red
expect 2 '--context 1:' run --context 1
expect 2 'needs a value' run --context
expect 2 '--budget x' run --budget x
expect 2 'gpu.no_such_key' run --set gpu.no_such_key=1
expect 2 "no mapping 'xp'" run --kv-parallel xp
expect 2 'a group can be 1, 2' run --kv-parallel tp --pnm 6
expect 2 'modes pnm, png and full' run --kv-parallel cp --mode recall
expect 2 'all or none' run --kv-parallel auto --kv-group 2
expect 2 'use tp or cp' run --kv-group 2
expect 2 'give at least one' run --kv-parallel cp --pnm 0
expect 2 'mapping dp only' run --kv-parallel cp --micro-batches 2
expect 2 'needs PNM devices' run --pnm 0
expect 2 '64 heads of llama-3.1-70b do not split over 3 GPUs' run --gpus 3
expect 2 'do not split into groups of 3' run --tp 3
expect 2 'raise the budget' run --budget 64
expect 2 'raise the budget' run --budget 64 --mode recall
expect 2 'how many tokens a request generates' run --prefill in-flight
expect 2 '64 steps in a context of 64 tokens' run --context 64 --steps 64
expect 2 'llama-3.1-70b has 80' run --layers 1000
expect 2 '--drift with --trace' run --trace nothing --drift 0.2
expect 2 '--seed with --trace' run --seed 2 --trace nothing
expect 2 '--correlation with --trace' sweep --trace nothing --correlation 0.5
expect 2 'must not be more than gpu.busy_power' run --set 'gpu.idle_power=900 W'
expect 2 'must not be more than gpu.busy_power' paper --set 'gpu.idle_power=900 W'
expect 2 'must not be more than gpu.busy_power' validate --no-self --set 'gpu.idle_power=900 W'
expect 2 'raise the budget' paper --no-tornado --layers 1 --steps 1 --streams 1 --budget 1
expect 1 'none of' paper --no-tornado --layers 1 --steps 1 --streams 1 --set 'pnm.memory_capacity=1 GB' --set 'gpu.memory_capacity=1 GB'
expect 2 '--weights int3' run --weights int3
expect 1 'llama-3.1-8b' run --model nothing
expect 1 'paper-server' run --machine nothing
expect 1 'not one' run --context 8M
expect 1 'takes 42.9 GB (pages 42.9, digests 0.0)' run --pnm 0 --mode full
expect 1 'use at least' run --model llama-3.1-405b --gpus 2
expect 1 '/nonexistent/t.json' run --timeline /nonexistent/t.json --batch 1
expect 1 '/nonexistent/sweep.csv' sweep --batch 1 --out /nonexistent/sweep.csv
expect 2 'unrecognized option' sweep --json
