#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of the guest: file systems, modules, then guest.sh; whatever happens there, the machine is switched off.
/bin/busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/lib
mkdir -p /proc /sys /dev /tmp /run
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
dmesg -n 1 # no message of the kernel in the middle of a line that the host reads
for module in cxl_acpi cxl_pci cxl_mem cxl_pmem nd_pmem dax_pmem device_dax; do
    modprobe "$module" || echo "module $module cannot be loaded"
done
sh /guest.sh
poweroff -f
