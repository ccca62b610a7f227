#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that nearkv needs, only those that are missing.
#   tools/setup.sh build    to build and run it; what is optional only when it can install (CMake builds without)
#   tools/setup.sh check    to run `make check`, too
#   tools/setup.sh cxl      to run `make check-cxl` (QEMU; without them `make check` skips that test)
set -euo pipefail

build="gcc libc6-dev make cmake ninja-build pkg-config libdnnl-dev libhwloc-dev libcxl-dev libdaxctl-dev libjansson-dev libpcre2-dev libxxhash-dev libcyaml-dev libyaml-dev libcmocka-dev"
check="$build git iproute2 clang clang-format libclang-rt-14-dev gnuplot-nox python3 python3-venv man-db"
cxl="gcc libc6-dev qemu-system-x86 ndctl busybox-static cpio"
optional="libopenmpi-dev openmpi-bin" # run --tp, --pnm-ranks

case "${1:-}" in
build) wanted=$build ;;
check) wanted=$check ;;
cxl) wanted=$cxl ;;
*)
    echo "usage: tools/setup.sh build|check|cxl" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null; then
    echo "nearkv: not a Debian system; make sure you have what these packages hold: $wanted" >&2
    exit 0
fi
missing=""
for package in $wanted; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ "$(id -u)" = 0 ]; then
    for package in $optional; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
fi
[ -z "$missing" ] && exit 0

if [ "$(id -u)" != 0 ]; then
    echo "nearkv: these Debian packages are missing:$missing" >&2
    echo "nearkv: install them with: sudo apt-get update && sudo apt-get install$missing $optional" >&2
    exit 1
fi
echo "nearkv: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
