#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every tracked C file is as clang-format leaves it.
set -euo pipefail
command -v clang-format >/dev/null || { echo "skipped: no clang-format"; exit 77; }
git rev-parse --git-dir >/dev/null 2>&1 || { echo "skipped: not a git checkout"; exit 77; }
git ls-files '*.c' '*.h' | xargs clang-format --dry-run --Werror
