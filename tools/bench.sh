#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make bench`: measures attention, decode and prefill on this machine and prints a Markdown report (machine, compiler, commit,
# commands, results). Publish one with: make -s bench > bench/results/NAME.md
#   tools/bench.sh [--quick]     --quick: short contexts
set -euo pipefail
cd "$(dirname "$0")/.."
nearkv=build/release/nearkv
long=1048576 middle=524288
[ "${1:-}" = --quick ] && long=65536 middle=65536

run() {
    echo
    echo "\`\`\`"
    echo "\$ nearkv $*"
    "$nearkv" "$@"
    echo "\`\`\`"
}

echo "# Measured: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) CPUs"
echo
echo "* Machine: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) CPUs, $(awk '/MemTotal/ {printf "%.0f GB", $2 / 1e6}' /proc/meminfo), $(uname -sr)"
echo "* Compiler: $(gcc --version | head -n 1)"
echo "* Commit: $(git describe --always --dirty 2>/dev/null || echo unknown)"
echo "* Date: $(date -u +%Y-%m-%d)"
echo
echo "Floor: bytes that must be read over the read bandwidth measured in the same run. Ratios are of medians."
echo
echo "## Attention of one layer: 32 query heads, 8 KV heads, dimension 128"
for kv in f16 bf16 q8_0; do
    run bench attend --ctx 131072 --kv $kv --mode full --fresh-queries
done
for ctx in 131072 $long; do
    run bench attend --ctx $ctx --kv f16 --mode pnm --pages 64 --fresh-queries
done
run bench attend --ctx 131072 --kv f16 --mode pnm --pages 64
echo
echo "## Token time"
run bench decode --shape llama-3.2-1b --kv q8_0 --mode pnm --ctx 4096,$middle --steps 10
echo
echo "## Prefill"
run bench prefill --shape llama-3.2-1b --ctx 2048
