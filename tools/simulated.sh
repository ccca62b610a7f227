#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the simulator says, as a Markdown report: the paper's claims, the checks, the ablations. Nothing in it is measured on
# this machine. Publish with: tools/simulated.sh > bench/results/simulated.md; `tools/simulated.sh mappings` prints one section.
set -euo pipefail
cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

run() {
    echo
    echo "\`\`\`"
    echo "\$ nearkv $*"
    build/release/nearkv "$@"
    echo "\`\`\`"
}

# Points of several sweeps, one table: a row per model, context, batch and devices (or mode), a column per mapping.
# usage: pivot COLUMN TITLE MAPPINGS FILE...
pivot() {
    awk -F, -v fourth="$1" -v title="$2" -v mappings="$3" '
        BEGIN { width = fourth == "mode" ? 8 : 7 }
        FNR == 1 { delete at; for (i = 1; i <= NF; i++) at[$i] = i; next }
        {
            row = sprintf("%-14s %7s %5s %" width "s", $at["model"], $at["context"], $at["batch"],
                $at[fourth] (fourth == "mode" && $at["mode"] == "png" && $at["recall"] == "same-step" ? "/same" : ""))
            name = $at["kv-parallel"] ($at["select"] == "kv-head" ? "/head" : "") ($at["kv-group"] != "max" ? "/" $at["kv-group"] : "")
            if (!(row in seen)) { seen[row] = 1; rows[++n] = row }
            if ($at["status"] == "ok") value[row, name] = $at["tokens_per_s"]
        }
        END {
            m = split(mappings, names, " ")
            printf "%-14s %7s %5s %" width "s", "model", "context", "batch", title
            for (j = 1; j <= m; j++) printf " %9s", names[j]
            print "   most (set per layer)"
            for (i = 1; i <= n; i++) {
                best = "none fits"; most = 0
                printf "%s", rows[i]
                for (j = 1; j <= m; j++) {
                    v = value[rows[i], names[j]]
                    printf " %9s", v == "" ? "-" : sprintf("%.1f", v)
                    if (names[j] !~ /head/ && v > 1.01 * most) { best = names[j]; most = v }
                }
                print "   " best
            }
        }' "${@:4}"
}

# Named columns of a sweep.
columns() {
    awk -F, -v wanted="$1" '
        NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; n = split(wanted, names, " ") }
        { for (j = 1; j <= n; j++) {
            width = length(names[j]) > 14 ? length(names[j]) : 14
            printf "%s%" width "s", (j > 1 ? "  " : ""), $at[names[j]]
        } print "" }'
}

mappings() {
    local n=10 models="8b:8 70b:8 405b:16" common="--machine paper-rack --mode pnm --layers 1 --steps 1 --streams 1"
    echo "Tokens per second: dp, tp and cp with as many devices in a group as there are (tp: at most 8), cp/8 with groups of 8; dp/head and"
    echo "tp/head select per KV head. \"-\": not one request fits, or there are not as many devices. At equal rates (1 %) the first is named."
    echo
    echo "\`\`\`"
    for model in $models; do
        local shape="--model llama-3.1-${model%:*} --gpus ${model#*:} --context 128K,256K,512K,1M --batch 1,max"
        for sweep in "--pnm 1,2,4,8,16,32,64 --kv-parallel dp,tp,cp --select layer --kv-group max" \
            "--pnm 16,32,64 --kv-parallel cp --select layer --kv-group 8" \
            "--pnm 1,2,4,8,16,32,64 --kv-parallel dp,tp --select kv-head --kv-group max"; do
            echo "\$ nearkv sim sweep $common $shape $sweep"
            n=$((n + 1))
            # shellcheck disable=SC2086
            build/release/nearkv sim sweep $common $shape $sweep >"$tmp/$n.csv"
        done
    done
    pivot pnm devices "dp tp cp cp/8 dp/head tp/head" "$tmp"/*.csv
    echo "\`\`\`"
    echo
    echo "What the selection takes, one request, per token and layer; select_ms is from the last device's scores, ranked, to the last list:"
    echo
    echo "\`\`\`"
    for model in $models; do
        # shellcheck disable=SC2086
        set -- $common --model "llama-3.1-${model%:*}" --gpus "${model#*:}" --context 128K,1M --batch 1 --pnm 2,4,8 --kv-parallel tp,cp
        echo "\$ nearkv sim sweep $*"
        build/release/nearkv sim sweep "$@" | columns "model context kv-parallel kv_group sorts_per_layer reduce_messages_per_layer \
            list_messages_per_layer select_bytes_per_layer select_ms_per_layer step_ms"
    done
    echo "\`\`\`"
    echo
    echo "Why full batches are slower when requests are spread: without the sorts' time, and without commands' fixed costs:"
    echo
    echo "\`\`\`"
    for set in "pnm.sort_rate=4 G/s" "pnm.sort_rate=100 T/s" "pnm.command_overhead=0 us"; do
        # shellcheck disable=SC2086
        set -- $common --model llama-3.1-8b,llama-3.1-70b --gpus 8 --context 128K,1M --batch max --pnm 8 --kv-parallel dp,tp,cp --set "$set"
        echo "\$ nearkv sim sweep $*"
        build/release/nearkv sim sweep "$@" | columns "model context kv-parallel admitted_batch tokens_per_s step_ms score_ms topk_ms \
            attend_pnm_ms append_ms link_ms"
    done
    echo "\`\`\`"
    echo
    steady_pages
    echo
    chosen_mapping
}

steady_pages() {
    local n=0 common="--machine paper-rack --layers 2 --steps 4 --gpus 8 --pnm 8 --model llama-3.1-8b,llama-3.1-70b --context 128K,1M \
--batch 1,max --mode pnm,png --recall next-step,same-step --kv-group max"
    echo "What steady pages change: tokens per second on 8 GPUs and 8 devices in \`pnm\` and in \`png\` (half the budget on the GPUs), with recall for"
    echo "the next step and within the step (png/same); and where the steps' time goes with recall for the next step, selection per layer:"
    echo
    echo "\`\`\`"
    for sweep in "--kv-parallel dp,tp,cp --select layer" "--kv-parallel dp,tp --select kv-head"; do
        echo "\$ nearkv sim sweep $common $sweep"
        n=$((n + 1))
        # shellcheck disable=SC2086
        build/release/nearkv sim sweep $common $sweep >"$tmp/steady-$n.csv"
    done
    pivot mode mode "dp tp cp dp/head tp/head" "$tmp"/steady-*.csv
    echo
    grep -v same-step "$tmp/steady-1.csv" | columns "model context batch mode kv-parallel admitted_batch step_ms score_ms topk_ms attend_pnm_ms \
        attend_gpu_ms recall_ms link_ms gpu_utilisation recalled_pages_per_layer_request"
    echo "\`\`\`"
}

chosen_mapping() {
    local sweep="--machine paper-rack --layers 2 --steps 4 --gpus 8 --pnm 8 --model llama-3.1-8b,llama-3.1-70b --context 128K,1M \
--batch 1,2,4,8,12,16,24,max --mode png --select layer --kv-group max --kv-parallel dp,cp,auto"
    echo "What the runtime's placement (\`auto\`) gets, by the mapping that most requests of a batch get from it, tokens per second:"
    echo
    echo "\`\`\`"
    echo "\$ nearkv sim sweep $sweep"
    # shellcheck disable=SC2086
    build/release/nearkv sim sweep $sweep >"$tmp/chosen.csv"
    pivot pnm devices "dp cp auto" "$tmp/chosen.csv"
    echo "\`\`\`"
}

if [ "${1:-}" = mappings ]; then # that section alone
    mappings
    exit
fi
echo "# Simulated"
echo
echo "Every number here comes from \`nearkv sim\`, in virtual time; \`docs/simulator.md\` says how and what it is worth. Latencies in the"
echo "column \"measured\" of the validation are others' publications."
echo
echo "* Compiler: $(gcc --version | head -n 1)"
echo "* Commit: $(git describe --always --dirty 2>/dev/null || echo unknown)"
echo "* Command: \`tools/simulated.sh\`"
echo
echo "## The paper"
run sim paper
echo
echo "## Validation"
run sim validate --no-self
echo
echo "## Ablations"
run sim ablate
echo
echo "## Mappings"
echo
mappings
