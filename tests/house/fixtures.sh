#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fixtures.sh NEARKV: makes the committed fixtures anew with transformers and tokenizers and compares; checks the needle
# model with transformers. The Python packages go into build/venv.
set -euo pipefail
nearkv=$1
python3 -m venv build/venv
build/venv/bin/pip install -q --disable-pip-version-check -r tools/requirements.txt
python=build/venv/bin/python
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
$python tools/make_fixtures.py --check tests/fixtures/model
$python tools/make_tokenizer_fixtures.py --check tests/fixtures/tokenizer
$python tools/check_needle.py "$nearkv"
