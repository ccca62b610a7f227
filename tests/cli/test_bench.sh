#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The benchmarks run on small shapes in every mode and print the fields that scripts read. Nothing is timed against a limit.
set -euo pipefail
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - <<'PY'
from check import run

for mode in 'full', 'recall', 'pnm', 'png':
    for kv in 'f16', 'q8_0':
        out = run('bench', 'attend', '--ctx', 2000, '--heads', 8, '--kv-heads', 2, '--dim', 64, '--pages', 16,
                             '--kv', kv, '--mode', mode, '--steps', 5, '--fresh-queries', '--json')[0]
        assert out['schema'] == 'nearkv.bench.attend/1' and out['mode'] == mode and out['kv'] == kv
        assert 0 < out['ms']['min'] <= out['ms']['median']
        assert out['read_bandwidth_gb_s'] > 0 and out['floor_ms'] > 0
        assert abs(out['ratio_to_floor'] - out['ms']['median'] / out['floor_ms']) < 1e-6 * out['ratio_to_floor']

out = run('bench', 'decode', '--shape', 'needle-256', '--ctx', '500,3000', '--budget', 512, '--steps', 5,
                     '--json')[0]
assert out['schema'] == 'nearkv.bench.decode/1' and [c['ctx'] for c in out['contexts']] == [500, 3000]
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
PY
