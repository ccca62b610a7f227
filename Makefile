# SPDX-License-Identifier: Apache-2.0
# A thin front door: CMakePresets.json holds the build, tools/ the scripts.
PRESET ?= release
CTX    ?= 131072
PREFIX ?= /usr/local
JOBS   ?= $(shell nproc)

.PHONY: all demo soak check check-cxl bench fmt install clean

all:
	@tools/setup.sh build
	@cmake --preset $(PRESET) >/dev/null
	@cmake --build build/$(PRESET) -j $(JOBS) --target nearkv-cli

demo: all
	@tools/demo.sh $(CTX)

check:
	@tools/check.sh

check-cxl: all
	@tools/check_cxl.sh

soak:
	@tools/soak.sh

bench:
	@$(MAKE) --no-print-directory all >&2
	@tools/bench.sh

fmt:
	@tools/setup.sh check
	@git ls-files '*.c' '*.h' | xargs clang-format -i

install: all
	@cmake --install build/$(PRESET) --prefix $(PREFIX)

clean:
	rm -rf build
