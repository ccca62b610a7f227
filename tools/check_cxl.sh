#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make check-cxl`: PNM devices on CXL memory. Boots Linux in QEMU (software emulation) with two emulated CXL Type-3 devices, makes a
# DAX device of each with the stock tools, and runs nearkv in the guest over a device process on each (tools/cxl/guest.sh). The host
# computes the answers that the guest has to give.
#   tools/check_cxl.sh [--broken-window] [NEARKV]
# --broken-window leaves out the empty root ports, without which QEMU 7.2 decodes addresses wrongly: the check has to fail, and say so.
# Exit status 77: this machine cannot do it, with the reason. Everything is kept in build/cxl; what the guest said is console.log.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() {
    echo "skipped: $1"
    exit 77
}
spare=yes
[ "${1:-}" != --broken-window ] || { spare=no; shift; }
nearkv=$(realpath "${1:-build/release/nearkv}")
here=tools/cxl
out=build/cxl
mkdir -p "$out"

# ---- What it takes ---------------------------------------------------------------------------------------------------

[ "$(uname -m)" = x86_64 ] || skip "the guest runs this machine's nearkv, which has to be x86_64"
tools/setup.sh cxl >"$out/setup.log" 2>&1 || skip "packages cannot be installed: $(tail -n 1 "$out/setup.log")"
for tool in qemu-system-x86_64 cxl ndctl busybox cpio gcc; do
    command -v "$tool" >/dev/null || skip "no $tool here"
done

# Debian's kernel for virtual machines: unpacked, not installed, so that nothing of this machine's boot is touched.
download() {
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }')
    [ -n "$package" ] || { echo "the package lists have no linux-image-cloud-amd64"; return 1; }
    (cd "$out" && rm -f linux-image-*.deb && apt-get download -qq "$package") 2>&1
}
if ! ls "$out"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
    command -v apt-get >/dev/null || skip "no apt-get to fetch a kernel with"
    download >"$out/download.log" || { [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 && download >"$out/download.log"; } ||
        skip "no kernel can be fetched: $(grep -v '^W:' "$out/download.log" | tail -n 1)"
    rm -rf "$out/kernel" "$out/kernel.part"
    mkdir "$out/kernel.part"
    dpkg --fsys-tarfile "$out"/linux-image-*.deb |
        tar -x -C "$out/kernel.part" --wildcards './boot/vmlinuz-*' './lib/modules/*/modules.*' './lib/modules/*/kernel/drivers/'{cxl,dax,nvdimm}
    rm "$out"/linux-image-*.deb
    mv "$out/kernel.part" "$out/kernel"
fi
kernel=$(ls "$out"/kernel/boot/vmlinuz-*)

# ---- The question, the host's answers, the guest ----------------------------------------------------------------------

# The text is short because the guest does some hundred million operations per second; its pages are small, so that there is a choice.
WORK=$out/work NEARKV=$nearkv
rm -rf "$WORK"
mkdir "$WORK"
"$nearkv" needle -o "$WORK/needle.gguf" >/dev/null
text() {
    head -c "$1" LICENSE
    printf '\nThe pass key is 31415.\n'
    head -c "$1" docs/formats.md
    printf '\nThe other key is 27182.\n'
    head -c "$1" docs/device.md
    echo
}
text 60 >"$WORK/text"
text 160 >"$WORK/book"
# shellcheck source=tools/cxl/ask.sh
. "$here/ask.sh"
for mode in pnm png; do
    ask "$mode" --devices 2 >"$WORK/$mode.json"
done
ask_book >"$WORK/book.json"
"$here/image.sh" "$nearkv" "$out"/kernel/lib/modules/* "$WORK" "$out/guest.cpio"

# ---- The machine -----------------------------------------------------------------------------------------------------

# bridge N BUS SLOT: a host bridge of its own window with a memory device and the spare root port.
machine=()
bridge() {
    machine+=(-object "memory-backend-ram,id=memory$1,size=$size,share=on" -object "memory-backend-ram,id=labels$1,size=1M,share=on"
        -device "pxb-cxl,bus_nr=$2,bus=pcie.0,id=cxl.$1" -device "cxl-rp,port=0,bus=cxl.$1,id=port$1,chassis=0,slot=$3"
        -device "cxl-type3,bus=port$1,memdev=memory$1,lsa=labels$1,id=pnm$1,sn=$1")
    [ $spare = no ] || machine+=(-device "cxl-rp,port=1,bus=cxl.$1,id=spare$1,chassis=0,slot=$(($3 + 1))")
}
size=512M
bridge 1 12 2
bridge 2 32 4

# maxmem makes QEMU write the table (SRAT) without which the kernel gives the windows no NUMA nodes.
begin=$SECONDS
limit=300
timeout -k 5 $limit qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1G,slots=1,maxmem=4G -nodefaults -no-user-config -no-reboot -display none \
    -M "q35,cxl=on,cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=$size,cxl-fmw.1.targets.0=cxl.2,cxl-fmw.1.size=$size" "${machine[@]}" \
    -kernel "$kernel" -initrd "$out/guest.cpio" -append "console=ttyS0 quiet panic=-1" -serial stdio </dev/null 2>&1 |
    tr -d '\r' >"$out/console.log" || echo "QEMU ended with an error, or was stopped after $limit s" | tee -a "$out/console.log"

verdict=$(grep '^cxl check: ' "$out/console.log" || true)
grep -E '^(not )?ok ' "$out/console.log" || true
if [[ $verdict =~ ^cxl\ check:\ [1-9][0-9]*\ passed,\ 0\ failed$ ]]; then
    echo "$verdict ($((SECONDS - begin)) s)"
    exit 0
fi
echo "${verdict:-the guest did not come to its end}; the end of $out/console.log:"
tail -n 40 "$out/console.log"
exit 1
