#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The man pages format without a warning.
set -euo pipefail
command -v groff >/dev/null || { echo "skipped: no groff"; exit 77; }
for page in man/*.1; do
    warnings=$(groff -man -Tutf8 -ww -z "$page" 2>&1)
    [ -z "$warnings" ] || { echo "$page: $warnings"; exit 1; }
done
