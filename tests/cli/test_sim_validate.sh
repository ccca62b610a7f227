#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `nearkv sim validate` prints the tables that the issue asks for, as JSON and as text, and fails where a check does.
set -euo pipefail
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - <<'PY'
import subprocess

from check import NEARKV, fields, run

CHECK = {'name': str, 'source': str, 'unit': str, 'simulated': float, 'error_percent': (float, type(None)),
         'low': float, 'high': float, 'holds': bool}
KNOWN = {'anchors': 'measured', 'in_kind': 'published', 'memory': 'expected', 'closed_forms': 'expected'}

out = run('sim', 'validate', '--no-self', '--json')[0]
assert out['schema'] == 'nearkv.sim.validate/1' and out['self'] is None
for key, known in KNOWN.items():
    assert out[key], key
    for check in out[key]:
        fields(check, {**CHECK, known: (float, type(None))}, key)
        assert check['holds'] and check['low'] <= check['simulated'] <= check['high'], check
        if check[known] is not None:
            assert abs(check['error_percent'] - 100 * (check['simulated'] / check[known] - 1)) < 1e-5
errors = [abs(check['error_percent']) for check in out['anchors']]
assert len(errors) == 12 and max(errors) <= 15 and sum(errors) / 12 <= 8
assert abs(out['anchor_mean_error_percent'] - sum(errors) / 12) < 1e-6
assert abs(out['anchor_max_error_percent'] - max(errors)) < 1e-6
assert out['parameters']['name'] == 'h100-server'
assert all(number['source'] for key, number in out['parameters'].items() if key != 'name')

text = subprocess.run([NEARKV, 'sim', 'validate', '--no-self'], capture_output=True, text=True, check=True).stdout
for word in 'measured', 'simulated', 'mean error', 'gemm_efficiency', 'sequential', 'one link', 'two GPUs':
    assert word in text, word
assert 'FAILS' not in text

# Another machine is not the one that was measured: printed, and said.
out, message = run('sim', 'validate', '--no-self', '--json', '--set', 'gpu.memory_bandwidth=2 TB/s', status=1)
assert out['anchor_max_error_percent'] > 15 and 'do not hold' in message
for bad in ['--set', 'gpu.bandwidth=1'], ['--machine', 'none'], ['--set'], ['--what'], ['what']:
    assert run('sim', 'validate', '--no-self', *bad, status=1 if bad[-1] == 'none' else 2)[1].startswith('nearkv: '), bad
PY
