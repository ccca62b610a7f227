#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A fresh clone builds with plain `make`, answers, and installs a library that a program finds through pkg-config.
set -euo pipefail
git rev-parse --git-dir >/dev/null 2>&1 || { echo "skipped: not a git checkout"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone -q . "$work/clone"
cd "$work/clone"
make >/dev/null
build/release/nearkv --version
make install PREFIX="$work/prefix" >/dev/null
"$work/prefix/bin/nearkv" --version
export PKG_CONFIG_PATH="$work/prefix/lib/pkgconfig:$work/prefix/lib/$(gcc -print-multiarch)/pkgconfig"
cat >"$work/use.c" <<'END'
#include <nearkv/model.h>
#include <stdio.h>
int main(void)
{
    struct nkv_model *model;
    if (nkv_model_open("needle", &model) < 0)
        return fprintf(stderr, "%s\n", nkv_last_error()), 1;
    nkv_model_close(model);
    return puts(nkv_version()) < 0;
}
END
# shellcheck disable=SC2046
gcc -Wall -Werror "$work/use.c" -o "$work/use" $(pkg-config --cflags --libs nearkv)
LD_LIBRARY_PATH=$(pkg-config --variable=libdir nearkv) "$work/use"
test -s "$work/prefix/share/man/man1/nearkv.1"
