#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The layering check finds what it is there for: a copy of the sources with one break each.
set -euo pipefail
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r tools src cli include "$copy"
"$copy/tools/layers.py" >/dev/null || { echo "a copy without a break is refused"; exit 1; }
broken() { # FILE LINE EXPECTED
    cp "$copy/src/$1" "$copy/kept"
    printf '%s\n' "$2" >>"$copy/src/$1"
    if out=$("$copy/tools/layers.py") || [[ $out != *"$3"* ]]; then
        echo "src/$1 with '$2': expected '$3', got: $out"
        exit 1
    fi
    mv "$copy/kept" "$copy/src/$1"
}
broken runtime/step.c 'static void f(int simulating) { if (simulating) return; }' '"simulat" is confined to sim/*'
broken policy/place.c 'extern int nkv_is_sim;' '"sim" is confined to sim/*'
broken kv/store.c 'static int sim_kind;' '"sim" is confined to sim/*'
broken model/decoder.c '#include <nearkv/sim.h>' 'model may not include <nearkv/sim.h>'
broken runtime/port.c 'static int f(const char *b) { return strcmp(b, "sim") == 0; }' '"sim" is confined to sim/*'
broken runtime/port.c '#include "sim/cluster.h"' 'runtime may not include sim'
broken sim/trace.c '#include <jansson.h>' '"jansson.h" is confined to sim/trace_read.c'
broken policy/place.c 'static void f(void *p) { free(p); }' 'is confined to base/mem.c'
