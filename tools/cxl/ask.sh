# SPDX-License-Identifier: Apache-2.0
# The question that the host answers in one process and the guest over its device processes: the same options but for the devices.
#   ask MODE DEVICES...     sourced by check_cxl.sh and guest.sh; prints the JSON of `nearkv run`
ask() {
    ask_mode=$1
    shift
    "${NEARKV:-nearkv}" run -m "$WORK/needle.gguf" -f "$WORK/text" -p 'The pass key is ' -p 'The other key is ' --mode "$ask_mode" \
        --page 16 --budget 96 --prefill sparse --json "$@"
}

# The tokens of all answers in a report.
tokens_of() {
    grep -o '"tokens":\[[0-9,]*\]' "$1"
}
