#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make demo`: hides a pass key in CTX tokens of text found on this machine and asks for it in all four modes.
#   tools/demo.sh CTX [nearkv eval needle options]
set -euo pipefail
cd "$(dirname "$0")/.."
ctx=${1:-131072}
[ $# -eq 0 ] || shift
nearkv=${NEARKV:-build/release/nearkv}

# The built-in model reads bytes: a token is a byte. C headers and documentation come first, our own sources fill up.
texts=()
for path in /usr/include /usr/share/doc "$PWD"/src "$PWD"/include "$PWD"/docs "$PWD"/LICENSE; do
    [ ! -e "$path" ] || texts+=(--text "$path")
done
echo "A pass key in $ctx tokens of text from this machine (C headers, documentation):"
exec "$nearkv" eval needle --ctx "$ctx" "${texts[@]}" --prefill sparse --prefill-budget 1024 "$@"
