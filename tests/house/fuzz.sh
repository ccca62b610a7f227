#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the fuzz targets with libFuzzer and gives each its committed corpus and 20 seconds of new inputs.
set -euo pipefail
command -v clang >/dev/null || { echo "skipped: no clang"; exit 77; }
cmake --preset fuzz -DNKV_HOUSE=OFF >/dev/null
cmake --build build/fuzz -j "$(nproc)" | tail -n 5
for source in tests/fuzz/fuzz_*.c; do
    target=$(basename "$source" .c)
    found=$(mktemp -d)
    "build/fuzz/$target" -max_total_time=20 -rss_limit_mb=4096 -timeout=20 -artifact_prefix="$found/" "$found" \
        "tests/fuzz/corpus/${target#fuzz_}" 2>&1 | tail -n 3
    rm -rf "$found"
done
