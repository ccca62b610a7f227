#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nearkv info: its schema, and that a run takes the memory that it says, within 5 %.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" <<'PY'
import concurrent.futures
import os
import subprocess
import sys

from check import NEARKV, fields, haystack, run

tmp = sys.argv[1]
got, _ = run('info', '--ctx', 65536, '--mode', 'pnm', '--json')
ESTIMATE = {'page_bytes': int, 'kv_bytes': int, 'digest_bytes': int, 'compute_bytes': int, 'total_bytes': int}
fields(got, {'schema': str, 'version': str, 'machine': dict, 'kernels': str, 'model': dict, 'ctx_tokens': int, 'page_tokens': int, 'mode': str,
             'work_bytes': int, 'memory': list, 'estimate': {'f32': ESTIMATE, 'f16': ESTIMATE, 'bf16': ESTIMATE, 'q8_0': ESTIMATE}})
assert got['schema'] == 'nearkv.info/1' and got['model']['name'] == 'needle' and got['machine']['cpus'] >= 1
assert got['estimate']['f16']['kv_bytes'] == 65536 * 3 * 2 * 2 * 128 * 2
assert got['estimate']['f32']['kv_bytes'] == 2 * got['estimate']['f16']['kv_bytes']

# Every place with every field; the nodes are those of `machine`; what the text names is what JSON marks as best.
assert got['memory'], 'no memory listed'
for place in got['memory']:
    assert set(place) == {'kind', 'name', 'path', 'bytes', 'node', 'distance', 'bandwidth_mb_s', 'latency_ns', 'memory', 'regions', 'best'}, place
    assert place['kind'] in ('node', 'memory-only node', 'dax', 'cxl') and place['path'].startswith(('/sys/', '/dev/')), place
    assert all(place[key] is None or place[key] > 0 for key in ('bytes', 'distance', 'bandwidth_mb_s', 'latency_ns')), place
nodes = {place['node']: place['bytes'] for place in got['memory'] if place['kind'].endswith('node')}
assert nodes == {node['node']: node['bytes'] for node in got['machine']['nodes']}, got
assert sum(place['best'] for place in got['memory']) == 1, got['memory']
text = subprocess.run([NEARKV, 'info'], capture_output=True, text=True, check=True)
assert not [line for line in text.stderr.splitlines() if not line.startswith('[hwloc/')], text.stderr  # libcxl and libdaxctl keep quiet
best = next(place['memory'] for place in got['memory'] if place['best'])
assert f"use       --memory {best.split(':')[0]}:" in text.stdout, text.stdout
plain = all(place['kind'] == 'node' for place in got['memory'])
assert plain == ('no CXL devices' in text.stdout), text.stdout

with open(os.path.join(os.environ['NKV_BUILD_DIR'], 'CMakeCache.txt')) as cache:
    sanitized = any(line.startswith('NKV_SANITIZE:') and not line.endswith('=\n') for line in cache)
if sanitized:
    print('a sanitized program takes more memory: only the schema was checked')
    sys.exit(0)


def ratio(ctx, mode, kv, threads):
    """Resident over estimated bytes of a run whose text fills the context."""
    how = ['--mode', mode, '--threads', threads, '--prefill-budget', 128]
    estimate = run('info', '--ctx', ctx, '--json', *how)[0]['estimate'][kv]['total_bytes']
    args = [NEARKV, 'run', '-f', f'{tmp}/text{ctx}', '-n', '4', '--prefill', 'sparse', '--kv', kv, *how]
    _, status, usage = os.wait4(os.posix_spawn(NEARKV, list(map(str, args)), os.environ, file_actions=quiet), 0)
    assert status == 0, args
    return usage.ru_maxrss * 1024 / estimate


# Each mode with each type on 2 threads; on 1 and on 8 threads each mode with one type. Two runs at a time.
quiet = [(os.POSIX_SPAWN_OPEN, 1, '/dev/null', os.O_WRONLY, 0)]
cases = [(65536, mode, kv, 2) for mode in ('full', 'recall', 'pnm', 'png') for kv in ('f16', 'q8_0')]
cases += [(65536, mode, ('f16', 'q8_0')[(i + threads) % 2], threads) for i, mode in enumerate(('full', 'recall', 'pnm', 'png')) for threads in (1, 8)]
cases += [(16384, 'pnm', 'f16', 2)]
for ctx in 16384, 65536:
    haystack(f'{tmp}/text{ctx}', ctx - 64)
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    ratios = dict(zip(cases, pool.map(lambda case: ratio(*case), cases)))
print('resident / estimate from %.3f to %.3f' % (min(ratios.values()), max(ratios.values())))
assert all(0.95 <= r <= 1.05 for r in ratios.values()), {case: round(r, 3) for case, r in ratios.items() if not 0.95 <= r <= 1.05}
PY
