#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make check`: builds, then runs every test. The gates that are not tests of one program (other compilers, sanitizers, layering,
# formatting, fixtures, a fresh clone) are CTest tests as well (tests/house), so the last lines are one summary of everything.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh check
tools/setup.sh cxl || echo "nearkv: the test house/cxl will be skipped" >&2
cmake --preset release -DNKV_HOUSE=ON >/dev/null
cmake --build build/release -j "$(nproc)"
exec ctest --test-dir build/release --output-on-failure -j "$(nproc)"
