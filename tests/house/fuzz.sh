#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the fuzz targets with libFuzzer and gives each its committed corpus and 20 seconds of new inputs.
set -euo pipefail
command -v clang >/dev/null || { echo "skipped: no clang"; exit 77; }
cmake --preset fuzz -DNKV_HOUSE=OFF >/dev/null
cmake --build build/fuzz -j "$(nproc)" | tail -n 5
# One target with what is its own; a failure ends with the target's last lines.
one() {
    local target=$1 found rc=0
    found=$(mktemp -d)
    "build/fuzz/$target" -max_total_time=20 -rss_limit_mb=4096 -timeout=20 -artifact_prefix="$found/" "$found" \
        "tests/fuzz/corpus/${target#fuzz_}" >"$found.log" 2>&1 || rc=$?
    echo "$target: exit $rc: $(tail -n 3 "$found.log")"
    rm -rf "$found" "$found.log"
    return $rc
}
export -f one
# As many at a time as there are CPUs: each has one thread, and its 20 seconds.
printf '%s\0' tests/fuzz/fuzz_*.c | xargs -0 -n 1 basename -s .c | xargs -P "$(nproc)" -I '{}' bash -c 'set -euo pipefail; one {}'
