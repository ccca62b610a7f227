#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that nearkv needs, only those that are missing.
#   tools/setup.sh build    to build and run it; what is optional only when it can install (CMake builds without)
#   tools/setup.sh check    to run `make check`, too
#   tools/setup.sh cxl      to run `make check-cxl` (QEMU; without them `make check` skips that test)
set -euo pipefail

build="gcc libc6-dev make cmake ninja-build pkg-config libdnnl-dev libhwloc-dev libcxl-dev libdaxctl-dev libjansson-dev libpcre2-dev libxxhash-dev libcyaml-dev libyaml-dev libcmocka-dev"
optional="libopenmpi-dev openmpi-bin" # run --tp, --pnm-ranks
check="$build git iproute2 clang clang-format libclang-rt-14-dev gnuplot-nox python3 python3-venv man-db"
cxl="gcc libc6-dev qemu-system-x86 ndctl busybox-static cpio"

case "${1:-}" in
build) wanted=$build ;;
check) wanted=$check ;;
cxl) wanted=$cxl optional="" ;;
*)
    echo "usage: tools/setup.sh build|check|cxl" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null; then
    echo "nearkv: not a Debian system; make sure you have what these packages hold: $wanted" >&2
    exit 0
fi
# absent PACKAGE...: those that are not installed
absent() {
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || printf ' %s' "$package"
    done
}
# shellcheck disable=SC2086
missing=$(absent $wanted)
# shellcheck disable=SC2086
wished=$(absent $optional)
if [ "$(id -u)" != 0 ]; then
    [ -z "$missing" ] && exit 0
    echo "nearkv: these Debian packages are missing:$missing" >&2
    echo "nearkv: install them with: sudo apt-get update && sudo apt-get install$missing$wished" >&2
    exit 1
fi
[ -z "$missing$wished" ] && exit 0
echo "nearkv: installing$missing$wished"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
[ -z "$missing" ] || apt-get install -y -qq --no-install-recommends $missing >/dev/null
# shellcheck disable=SC2086
[ -z "$wished" ] || apt-get install -y -qq --no-install-recommends $wished >/dev/null ||
    echo "nearkv: goes on without$wished" >&2
