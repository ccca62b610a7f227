#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nearkv run over two machines: two network namespaces joined by a veth pair, each with a host name of its own. The tokens of one
# process, be the compute ranks on one of them or on both; a rank that dies over there ends the job.
set -euo pipefail
tmp=$(mktemp -d)
a=nkv$$a b=nkv$$b
cleanup() {
    ip netns del "$a" 2>/dev/null || true
    ip netns del "$b" 2>/dev/null || true
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() {
    echo "skipped: $1"
    exit 77
}
command -v mpirun >/dev/null || skip "no mpirun"
"$NEARKV" run -p x --tp 2 2>&1 | grep -q "built without MPI" && skip "built without MPI"
command -v ip >/dev/null || skip "no ip (iproute2)"
{ ip netns add "$a" && ip netns add "$b" && ip link add veth0 netns "$a" type veth peer name veth0 netns "$b"; } 2>"$tmp/why" ||
    skip "no network namespaces here: $(head -n 1 "$tmp/why")"
unshare --uts true 2>"$tmp/why" || skip "no host name of one's own: $(head -n 1 "$tmp/why")"
ip -n "$a" addr add 10.77.0.1/24 dev veth0
ip -n "$b" addr add 10.77.0.2/24 dev veth0
for ns in "$a" "$b"; do
    ip -n "$ns" link set lo up
    ip -n "$ns" link set veth0 up
done
# mpirun's way to the other machine, in place of ssh: agent HOST COMMAND.
cat >"$tmp/agent" <<END
#!/bin/sh
shift
exec ip netns exec $b unshare --uts sh -c "hostname nodeb; \$*"
END
cat >"$tmp/job" <<END
#!/bin/sh
hostname nodea
exec mpirun --allow-run-as-root --oversubscribe --bind-to none --mca plm_rsh_agent $tmp/agent \\
    --mca oob_tcp_if_include 10.77.0.0/24 --mca btl_tcp_if_include 10.77.0.0/24 --host 10.77.0.1:2,10.77.0.2:2 "\$@"
END
chmod +x "$tmp/agent" "$tmp/job"
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" "$a" <<'PY'
import json
import subprocess
import sys
import time

from check import NEARKV, haystack, run

tmp, a = sys.argv[1:]
JOB = ['ip', 'netns', 'exec', a, 'unshare', '--uts', f'{tmp}/job']
haystack(f'{tmp}/text', 1500, ('pass', '31415'))
ask = ['run', '-f', f'{tmp}/text', '-p', 'The pass key is ', '--budget', 256, '--json', '--mode']

for mode, more, machines in (('png', ['--map-by', 'slot'], ['nodeb', 'nodeb']), ('pnm', ['--map-by', 'node'], ['nodea', 'nodeb'])):
    done = subprocess.run([*JOB, *more, '-n', '4', NEARKV, *map(str, ask), mode, '--tp', '2', '--pnm-ranks', '2'], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    got, alone = json.loads(done.stdout), run(*ask, mode)[0]
    assert got['tokens'] == alone['tokens'] and got['text'] == '31415.', got
    assert [d['name'].split('@')[1] for d in got['devices']] == machines, got['devices']
    assert got['parallel']['per_token_layer'] == {'down_elements': 1536, 'up_elements': 1024}, got['parallel']

# Rank 2 is over there; it dies two seconds after it has begun.
haystack(f'{tmp}/endless', 400000)
dies = f'[ "$OMPI_COMM_WORLD_RANK" != 2 ] || {{ (sleep 2; kill -9 $$) & }}; exec "$@"'
start = time.monotonic()
done = subprocess.run([*JOB, '-n', '3', 'sh', '-c', dies, 'sh', NEARKV, 'run', '-f', f'{tmp}/endless', '--prefill', 'dense', '--tp', '2', '--pnm-ranks', '1'],
                      capture_output=True, text=True, timeout=120)
assert done.returncode != 0 and 'rank 2 ' in done.stderr and time.monotonic() - start < 12, (time.monotonic() - start, done.stderr)
PY
