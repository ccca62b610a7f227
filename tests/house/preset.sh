#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# preset.sh PRESET [REGEX]: builds a preset and runs its tests (those that match REGEX), all but the house's own.
set -euo pipefail
cmake --preset "$1" -DNKV_HOUSE=OFF >/dev/null
cmake --build "build/$1" -j "$(nproc)" | tail -n 5
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
ctest --test-dir "build/$1" --output-on-failure -j "$(nproc)" -R "${2:-.}"
