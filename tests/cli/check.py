# SPDX-License-Identifier: Apache-2.0
"""What the tests of the program share: running it and looking at its JSON."""
import json
import os
import pty
import subprocess

NEARKV = os.environ['NEARKV']
SOURCE = os.environ['NKV_SOURCE_DIR']


def run(*args, status=0):
    """The JSON object that the program prints, or (status not 0 and nothing printed) None; and its messages."""
    done = subprocess.run([NEARKV, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == status, f'{args}: exit {done.returncode}, wanted {status}: {done.stderr}'
    return (json.loads(done.stdout) if done.stdout else None), done.stderr


def on_terminal(*args):
    """Standard output, and what a terminal gets."""
    terminal, slave = pty.openpty()
    child = subprocess.Popen([NEARKV, *map(str, args)], stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    answer, shown = child.stdout.read(), b''
    try:
        while more := os.read(terminal, 65536):
            shown += more
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(terminal)
    assert child.wait() == 0, shown
    return answer, shown


def haystack(path, n_bytes, *keys):
    """Writes n_bytes of licence text, repeated, with sentences "The NAME key is VALUE." spread over it."""
    with open(os.path.join(SOURCE, 'LICENSE')) as file:
        text = file.read()
    text = (text * (n_bytes // len(text) + 1))[:n_bytes]
    for i, (name, value) in enumerate(keys):
        at = (i + 1) * n_bytes // (len(keys) + 1)
        text = f'{text[:at]}\nThe {name} key is {value}.\n{text[at:]}'
    with open(path, 'w') as file:
        file.write(text + '\n')


def fields(got, want, where='object'):
    """got has exactly the fields of want, of the same types."""
    assert set(got) == set(want), f'{where}: fields {sorted(set(got) ^ set(want))} differ'
    for key, kind in want.items():
        if isinstance(kind, dict):
            fields(got[key], kind, f'{where}.{key}')
        else:
            assert isinstance(got[key], kind) and not isinstance(got[key], bool) or kind is bool, f'{where}.{key}: {got[key]!r}'
