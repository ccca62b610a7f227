#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The guest of check_cxl.sh as one initramfs: busybox, the CXL and DAX modules, cxl, ndctl, nearkv with their libraries, the model and
# text, the scripts beside this one.
#   tools/cxl/image.sh NEARKV MODULES WORK OUT     MODULES: lib/modules/VERSION of the kernel; WORK: the model, text, answers
set -euo pipefail
here=$(dirname "$0")
nearkv=$1 modules=$2 work=$3 out=$4
version=$(basename "$modules")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

programs=("$nearkv" "$(command -v cxl)" "$(command -v ndctl)")
mkdir -p "$root"/{bin,lib,lib64,job} "$root/lib/modules/$version/kernel/drivers"
cp "$(command -v busybox)" "${programs[@]}" "$root/bin"
gcc -std=c17 -O2 -Wall -Wextra -Werror "$here/pattern.c" -o "$root/bin/pattern"

# Libraries by name into one folder; the loader where programs look for it.
ldd "${programs[@]}" "$root/bin/pattern" | awk '$3 ~ /^\// { print $3 }' | sort -u | xargs cp -L -t "$root/lib"
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64"

for folder in cxl dax nvdimm; do
    cp -r "$modules/kernel/drivers/$folder" "$root/lib/modules/$version/kernel/drivers"
done
cp "$modules"/modules.{builtin,order} "$root/lib/modules/$version"
busybox depmod -b "$root" "$version"

cp "$work"/* "$root/job"
cp "$here"/{ask,guest}.sh "$root"
cp "$here/init.sh" "$root/init"
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) >"$out.part"
mv "$out.part" "$out"
