#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the simulator says, as a Markdown report: the paper's claims, the checks, the ablations. Nothing in it is measured on
# this machine. Publish with: tools/simulated.sh > bench/results/simulated.md
set -euo pipefail
cd "$(dirname "$0")/.."

run() {
    echo
    echo "\`\`\`"
    echo "\$ nearkv $*"
    build/release/nearkv "$@"
    echo "\`\`\`"
}

echo "# Simulated"
echo
echo "Every number here comes from \`nearkv sim\`, in virtual time; \`docs/simulator.md\` says how and what it is worth. Latencies in the"
echo "column \"measured\" of the validation are others' publications."
echo
echo "* Compiler: $(gcc --version | head -n 1)"
echo "* Commit: $(git describe --always --dirty 2>/dev/null || echo unknown)"
echo "* Command: \`tools/simulated.sh\`"
echo
echo "## The paper"
run sim paper
echo
echo "## Validation"
run sim validate --no-self
echo
echo "## Ablations"
run sim ablate
