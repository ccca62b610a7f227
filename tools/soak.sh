#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make soak`: the crash tests of `make check`, long: KILLS kills of the device, of clients and of a store at work (1000), OPS random
# operations against a naive model (100000), TORN histories of a system that crashes (500). SEED (1) chooses the moments and the operations.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh check
cmake --preset release >/dev/null
cmake --build build/release -j "$(nproc)" --target runtime_crash kv_image kv_image_crash
export NKV_SOAK_TORN=${TORN:-500} NKV_SOAK_KILLS=${KILLS:-1000} NKV_SOAK_OPS=${OPS:-100000} NKV_SOAK_SEED=${SEED:-1}
build/release/runtime_crash
build/release/kv_image
build/release/kv_image_crash
