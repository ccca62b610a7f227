#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nearkv eval needle finds the key in every mode, granularity and cache type; a starved budget is caught; nearkv needle writes the model.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" <<'PY'
import os
import sys

from check import fields, haystack, run

tmp = sys.argv[1]
sparse = ['--prefill', 'sparse', '--prefill-budget', 256, '--budget', 256]
ROW = {'depth': (int, float), 'key': str, 'mode': str, 'answer': str, 'right': bool, 'ttft_ms': float, 'tpot_ms': float,
       'attended_tokens_mean': float, 'link_bytes_per_token': float, 'recalled_pages': int}

got, _ = run('eval', 'needle', '--ctx', 8192, '--depth', '0,0.5', '--depth', 1, '--json', *sparse)
fields(got, {'schema': str, 'model': str, 'ctx_tokens': int, 'page_tokens': int, 'kv': str, 'budget_tokens': int, 'prefill': str,
             'prefill_s': float, 'results': list, 'n_right': int, 'n_total': int})
assert got['schema'] == 'nearkv.eval.needle/1' and got['n_right'] == got['n_total'] == 12 and got['prefill'] == 'sparse', got
for row in got['results']:
    fields(row, ROW)
    assert row['answer'] == row['key'] + '.'
full, recall = (next(r for r in got['results'] if r['mode'] == m) for m in ('full', 'recall'))
assert full['attended_tokens_mean'] > 8000 and full['recalled_pages'] == 0 and recall['recalled_pages'] > 0

haystack(f'{tmp}/text', 8000)
for more in (['--devices', 2, '--select', 'kv-head'], ['--kv', 'q8_0', '--digest', 'cuboid-mean'], ['--kv', 'bf16', '--page', 16],
             ['--kv', 'f32', '--dense-layers', 1]):
    got, _ = run('eval', 'needle', '-f', f'{tmp}/text', '--seed', 7, '--json', *sparse, *more)
    assert got['n_right'] == got['n_total'] == 4, (more, got['results'])

# Pages that are never looked at cannot be answered from: only the first and the last pages fit this budget.
got, _ = run('eval', 'needle', '--ctx', 4096, '--modes', 'full,pnm', '--budget', 96, '--prefill', 'dense', '--json', status=1)
assert [r['right'] for r in got['results']] == [True, False], got['results']

got, _ = run('needle', '-o', f'{tmp}/needle.gguf', '--type', 'f32', '--json')
assert got == {'schema': 'nearkv.needle/1', 'file': f'{tmp}/needle.gguf', 'type': 'f32', 'bytes': os.path.getsize(f'{tmp}/needle.gguf')}, got
assert 9_000_000 < os.path.getsize(f'{tmp}/needle.gguf') < 10_000_000
run('needle', '-o', f'{tmp}/needle.gguf')
assert os.path.getsize(f'{tmp}/needle.gguf') <= 5_000_000 and os.listdir(tmp).count('needle.gguf') == 1 and len(os.listdir(tmp)) == 2
got, _ = run('run', '-m', f'{tmp}/needle.gguf', '-p', 'The pass key is 42. What? The pass key is', '--json')
assert got['text'] == ' 42.', got

# A model's name is a stranger's bytes: JSON stays JSON, and a terminal gets no control characters.
with open(f'{tmp}/needle.gguf', 'rb') as file:
    model = file.read()
name = model.index(b'general.name') + len('general.name') + 4 + 8
with open(f'{tmp}/named.gguf', 'wb') as file:
    file.write(model[:name] + b'\x1b\xff' + model[name + 2:])
for command in (['run', '-p', 'x is '], ['info'], ['eval', 'needle', '--ctx', 256, '--modes', 'pnm']):
    got, _ = run(*command, '-m', f'{tmp}/named.gguf', '--json')
    assert '?\ufffdedle' in str(got['model']), got
PY
