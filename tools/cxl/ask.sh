# SPDX-License-Identifier: Apache-2.0
# The questions that the host answers with devices of its own process and the guest with its device processes: the same options but for
# the devices. Sourced by check_cxl.sh and guest.sh; what is printed is the JSON of `nearkv run`.
#   ask MODE DEVICES...   two sequences
#   ask_book DEVICES...   one, of a text that is fed in two chunks
options="--page 16 --budget 96 --prefill sparse --json"

ask() {
    mode=$1
    shift
    "${NEARKV:-nearkv}" run -m "$WORK/needle.gguf" -f "$WORK/text" -p 'The pass key is ' -p 'The other key is ' --mode "$mode" $options "$@"
}

ask_book() {
    "${NEARKV:-nearkv}" run -m "$WORK/needle.gguf" -f "$WORK/book" -p 'The pass key is ' --mode pnm $options "$@"
}

# The tokens of all answers in a report.
tokens_of() {
    grep -o '"tokens":\[[0-9,]*\]' "$1"
}
