#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nearkv info: its schema, and that a run takes the memory that it says, within 5 %.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" <<'PY'
import os
import sys

from check import NEARKV, fields, haystack, run

tmp = sys.argv[1]
got, _ = run('info', '--ctx', 65536, '--mode', 'pnm', '--json')
ESTIMATE = {'page_bytes': int, 'kv_bytes': int, 'digest_bytes': int, 'compute_bytes': int, 'total_bytes': int}
fields(got, {'schema': str, 'version': str, 'machine': dict, 'kernels': str, 'model': dict, 'ctx_tokens': int, 'page_tokens': int, 'mode': str,
             'work_bytes': int, 'estimate': {'f32': ESTIMATE, 'f16': ESTIMATE, 'bf16': ESTIMATE, 'q8_0': ESTIMATE}})
assert got['schema'] == 'nearkv.info/1' and got['model']['name'] == 'needle' and got['machine']['cpus'] >= 1
assert got['estimate']['f16']['kv_bytes'] == 65536 * 3 * 2 * 2 * 128 * 2
assert got['estimate']['f32']['kv_bytes'] == 2 * got['estimate']['f16']['kv_bytes']

with open(os.path.join(os.environ['NKV_BUILD_DIR'], 'CMakeCache.txt')) as cache:
    sanitized = any(line.startswith('NKV_SANITIZE:') and not line.endswith('=\n') for line in cache)
if sanitized:
    print('a sanitized program takes more memory: only the schema was checked')
    sys.exit(0)
haystack(f'{tmp}/text', 65536 - 64)
pid = os.spawnv(os.P_NOWAIT, NEARKV, [NEARKV, 'run', '-f', f'{tmp}/text', '-n', '4', '--mode', 'pnm', '--prefill', 'sparse', '--prefill-budget', '256'])
_, status, usage = os.wait4(pid, 0)
ratio = usage.ru_maxrss * 1024 / got['estimate']['f16']['total_bytes']
assert status == 0 and 0.95 <= ratio <= 1.05, (status, ratio)
PY
