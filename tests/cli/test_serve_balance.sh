#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# An engine's real run keeps four devices about equally busy, whatever the lengths: no device reads and writes more than 1.15 times the
# mean. Bytes, which no clock and no neighbour disturbs: the same run gives the same numbers. Lengths are a 32nd of those that the
# result in bench/results was measured with, over the same span of 1 to 512. Without moves the first of these runs is at 1.19.
set -euo pipefail
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - <<'PY'
from check import run

flags = ['bench', 'serve', '--shape', 'tiny-256', '--fill', '--kv', 'f16', '--devices', 4, '--threads', 1, '--requests', 200, '--batch', 24,
         '--lengths', 'loguniform:32-16K', '--outputs', '32-128', '--budget', 256, '--json']


def bytes_of(out):
    return [(d['read_bytes'], d['written_bytes']) for d in out['devices']]


for mode in 'full', 'pnm', 'png':
    out = run(*flags, '--mode', mode, '--seed', 3)[0]
    assert out['failed'] == 0 and out['most_running'] == 24 and out['moves'] > 0, out
    work = [r + w for r, w in bytes_of(out)]
    assert all(d['sequences'] > 0 and d['fill_s'] > 0 for d in out['devices'])
    assert abs(out['busiest_to_mean_bytes'] - 4 * max(work) / sum(work)) < 1e-6, out
    assert out['busiest_to_mean_bytes'] <= 1.15, (mode, out)
    if mode == 'full':
        assert bytes_of(run(*flags, '--mode', mode, '--seed', 3)[0]) == bytes_of(out)
PY
