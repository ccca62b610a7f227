#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# cxl.sh NEARKV: device processes on two emulated CXL memory devices, in a guest (tools/check_cxl.sh). 77: no QEMU, or no kernel for it.
exec tools/check_cxl.sh "$1"
