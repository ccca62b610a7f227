#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Under mpirun a process frees itself from a core that nobody chose for it, all its threads and its devices' with it, and says so once; a
# binding that somebody asked for, on the command line or in a parameter file, stays, and where threads share it that is said.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PYTHONPATH=$NKV_SOURCE_DIR/tests/cli PYTHONDONTWRITEBYTECODE=1 python3 - "$tmp" <<'PY'
import glob
import os
import shutil
import subprocess
import sys
import time

from check import NEARKV, haystack, run

tmp = sys.argv[1]
_, err = run('run', '-p', 'x', '--tp', 2, status=2)
if 'built without MPI' in err or not shutil.which('mpirun') or len(os.sched_getaffinity(0)) < 2:
    print('skipped: no MPI, or one CPU')
    sys.exit(77)
MPIRUN = ['mpirun', '--allow-run-as-root', '--oversubscribe', '-n', '2']
probe = 'import os; print(len(os.sched_getaffinity(0)), os.environ.get("OMPI_MCA_orte_bound_at_launch"))'
out = subprocess.run([*MPIRUN, sys.executable, '-c', probe], capture_output=True, text=True, check=True).stdout.split('\n')
if out[0] != '1 1':
    print(f'skipped: this mpirun does not bind two processes to cores of one CPU: {out[0]}')
    sys.exit(77)

haystack(f'{tmp}/endless', 400000)
everything = os.sched_getaffinity(0)
FREED, SHARED = 'for want of orders', 'threads share 1 of'


def ranks(mpirun):
    """Of each process of the job, the CPUs of its threads: of those that the main thread made."""
    found = {}
    for path in glob.glob('/proc/[0-9]*/stat'):
        pid = path.split('/')[2]
        try:
            parent = open(path).read().rsplit(')', 1)[1].split()[1]
            if parent == str(mpirun) and os.readlink(f'/proc/{pid}/exe') == os.path.realpath(NEARKV):
                found[pid] = [os.sched_getaffinity(int(tid)) for tid in os.listdir(f'/proc/{pid}/task')]
        except OSError:
            pass
    return found


def cpus_of(threads, *bind, home=None):
    """A job of a compute rank and a device at work: CPUs that each of its threads may use, and what it says."""
    env = {**os.environ, **({'HOME': home} if home else {})}
    child = subprocess.Popen([*MPIRUN, *bind, NEARKV, 'run', '-f', f'{tmp}/endless', '--prefill', 'dense', '--tp', '1', '--pnm-ranks', '1',
                              *(['--threads', str(threads)] if threads else [])],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    found = {}
    while time.monotonic() < deadline and child.poll() is None:
        found = ranks(child.pid)
        if len(found) == 2 and all(len(sets) > (threads or 1) for sets in found.values()):
            break
        time.sleep(0.05)
    time.sleep(0.7)  # threads that pin themselves have done so
    found = ranks(child.pid)
    child.terminate()
    _, err = child.communicate(timeout=60)
    assert len(found) == 2, (found, err)
    return [set().union(*sets) for sets in found.values()], err


for threads in None, 2:
    sets, err = cpus_of(threads)
    assert sets == [everything] * 2 and err.count(FREED) == 1 and SHARED not in err, (threads, sets, err)
sets, err = cpus_of(1)  # a core is enough
assert all(len(s) == 1 for s in sets) and FREED not in err and SHARED not in err, (sets, err)
for bind in ('--bind-to', 'core'), ('--map-by', 'core'):
    sets, err = cpus_of(2, *bind)
    assert all(len(s) == 1 for s in sets) and FREED not in err and err.count(SHARED) == 1, (bind, sets, err)
sets, err = cpus_of(2, '--bind-to', 'none')
assert sets == [everything] * 2 and FREED not in err and SHARED not in err, (sets, err)
os.makedirs(f'{tmp}/home/.openmpi')
with open(f'{tmp}/home/.openmpi/mca-params.conf', 'w') as f:
    f.write('hwloc_base_binding_policy = core\n')
sets, err = cpus_of(2, home=f'{tmp}/home')
assert all(len(s) == 1 for s in sets) and FREED not in err and err.count(SHARED) == 1, (sets, err)
PY
