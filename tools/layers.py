#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the layering in tools/layers.txt against the includes and calls of src/ and cli/. Exit status 1 and a list when it is broken."""
import fnmatch
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def load_rules(path):
    layers, confined = {}, []  # confined: pattern, in string literals (else in code), files
    for line in path.read_text().splitlines():
        line = line.split('#')[0].strip()
        if line.startswith('layer'):
            name, rest = line[5:].split(':')
            own, _, public = rest.rpartition('|')
            layers[name.strip()] = (set(own.split()), set(public.split()))
        elif line.startswith('confine') or line.startswith('literal'):
            pattern, *files = line[7:].split()
            confined.append((re.compile(pattern), line.startswith('literal'), files))
    return layers, confined


STRING = r'"(?:\\.|[^"\\])*"'


def strip(code):
    """Lines of code without comments, in which strings keep their quotes only (#include lines are left as they are), and the strings
    of each line."""
    code = re.sub(r'/\*.*?\*/', lambda m: '\n' * m.group().count('\n'), code, flags=re.S)
    lines, strings = [], []
    for line in code.split('\n'):
        include = line.lstrip().startswith('#include')
        strings.append('' if include else ' '.join(re.findall(STRING, line)))
        line = re.sub(r'//.*', '', line)
        lines.append(line if include else re.sub(STRING, '""', line))
    return lines, strings


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


def confine_errors(name, confined, lines, strings):
    for number, (code, literals) in enumerate(zip(lines, strings), 1):
        for pattern, literal, files in confined:
            line = literals if literal else code
            if pattern.search(line) and not any(fnmatch.fnmatch(name, f) for f in files):
                yield number, f'"{pattern.search(line).group()}" is confined to {" ".join(files)}'


def main():
    layers, confined = load_rules(ROOT / 'tools/layers.txt')
    errors, n = [], 0
    for path in sorted([*ROOT.glob('src/*/*.[ch]'), *ROOT.glob('cli/*.[ch]')]):
        layer = path.parent.name
        lines, strings = strip(path.read_text())
        n += 1
        if layer not in layers:
            errors.append(f'{path.relative_to(ROOT)}: layer {layer} is not in tools/layers.txt')
            continue
        found = list(include_errors(layer, *layers[layer], lines))
        if layer != 'cli':
            found += confine_errors(str(path.relative_to(ROOT / 'src')), confined, lines, strings)
        errors += [f'{path.relative_to(ROOT)}:{number}: {text}' for number, text in found]
    print(*errors, f'{n} files, {len(errors)} layering errors', sep='\n')
    return 1 if errors or n == 0 else 0


if __name__ == '__main__':
    sys.exit(main())
