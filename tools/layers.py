#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the layering in tools/layers.txt against the includes and calls of src/ and cli/. Exit status 1 and a list when it is broken."""
import fnmatch
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def load_rules(path):
    layers, confined = {}, []
    for line in path.read_text().splitlines():
        line = line.split('#')[0].strip()
        if line.startswith('layer'):
            name, rest = line[5:].split(':')
            own, _, public = rest.rpartition('|')
            layers[name.strip()] = (set(own.split()), set(public.split()))
        elif line.startswith('confine'):
            pattern, *files = line[7:].split()
            confined.append((re.compile(pattern), files))
    return layers, confined


def strip(code):
    """Code without comments; strings keep their quotes only (but #include lines are left as they are)."""
    code = re.sub(r'/\*.*?\*/', lambda m: '\n' * m.group().count('\n'), code, flags=re.S)
    lines = []
    for line in code.split('\n'):
        line = re.sub(r'//.*', '', line)
        lines.append(line if line.lstrip().startswith('#include') else re.sub(r'"(\\.|[^"\\])*"', '""', line))
    return lines


def include_errors(layer, allowed, public, lines):
    for number, line in enumerate(lines, 1):
        m = re.match(r'\s*#include\s+[<"]([^>"]+)[>"]', line)
        if not m:
            continue
        target = m.group(1)
        if target.startswith('nearkv/'):
            if target[7:] not in public:
                yield number, f'{layer} may not include <{target}>'
        elif layer != 'cli' and '/' in target and (ROOT / 'src' / target).exists():
            other = target.split('/')[0]
            if other != layer and other not in allowed:
                yield number, f'{layer} may not include {other} ("{target}")'
        elif layer == 'cli' and '"' in line and not (ROOT / 'cli' / target).exists():
            yield number, f'cli may include public headers only, not "{target}"'


def confine_errors(name, confined, lines):
    for number, line in enumerate(lines, 1):
        for pattern, files in confined:
            if pattern.search(line) and not any(fnmatch.fnmatch(name, f) for f in files):
                yield number, f'"{pattern.search(line).group()}" is confined to {" ".join(files)}'


def main():
    layers, confined = load_rules(ROOT / 'tools/layers.txt')
    errors, n = [], 0
    for path in sorted([*ROOT.glob('src/*/*.[ch]'), *ROOT.glob('cli/*.[ch]')]):
        layer = path.parent.name
        lines = strip(path.read_text())
        n += 1
        if layer not in layers:
            errors.append(f'{path.relative_to(ROOT)}: layer {layer} is not in tools/layers.txt')
            continue
        found = list(include_errors(layer, *layers[layer], lines))
        if layer != 'cli':
            found += confine_errors(str(path.relative_to(ROOT / 'src')), confined, lines)
        errors += [f'{path.relative_to(ROOT)}:{number}: {text}' for number, text in found]
    print(*errors, f'{n} files, {len(errors)} layering errors', sep='\n')
    return 1 if errors or n == 0 else 0


if __name__ == '__main__':
    sys.exit(main())
