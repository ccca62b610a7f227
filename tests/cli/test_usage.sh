#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Wrong usage exits with 2 and a message that names what was wrong and what to do; failures exit with 1; nothing crashes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failed=0

# expect STATUS 'part of the message' ARGUMENT...
expect() {
    local want=$1 part=$2 rc=0
    shift 2
    "$NEARKV" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null || rc=$?
    if [ "$rc" != "$want" ] || ! grep -qF -e "$part" "$tmp/err"; then
        echo "nearkv $*: exit $rc, wanted $want with '$part': $(cat "$tmp/err")"
        failed=1
    elif [ -s "$tmp/out" ]; then
        echo "nearkv $*: wrote to standard output: $(head -c 200 "$tmp/out")"
        failed=1
    fi
}

expect 2 'usage:'
expect 2 "no command 'walk'" walk
expect 2 'usage:' eval
expect 2 'unrecognized option' run -p x --no-such-option
expect 2 'nothing to answer' run
expect 2 'is empty' run -p ''
expect 2 'unexpected argument' run -p x stray
expect 2 '--page 0' run -p x --page 0
expect 2 'less than sink + recent' run -p x --budget 64
expect 2 'less than sink + recent' run -p x --sink 100 --budget 2048
expect 2 'less than sink + recent' run -p x --prefill-budget 32
expect 2 "unknown mode 'gpu'" run -p x --mode gpu
expect 2 'f32, f16, bf16, q8_0' run -p x --kv q4
expect 2 'minmax, cuboid-mean' run -p x --digest none
expect 2 'layer, kv-head' run -p x --select page
expect 2 'dense, sparse or auto' run -p x --prefill maybe
expect 2 '--temp -1' run -p x --temp -1
expect 2 '--top-p 1.5' run -p x --top-p 1.5
expect 2 '--top-p 0' run -p x --top-p 0
expect 2 '--seed 5 :' run -p x --seed '5 '
expect 2 '--seed  -5:' run -p x --seed ' -5'
expect 2 "--trace 'a:b'" run -p x --trace a:b
expect 2 "no evaluation 'all'" eval all
expect 2 "no benchmark 'all'" bench all
expect 2 'see nearkv bench attend --help' bench attend --no-such-option
expect 2 "--device: unknown device 'gpu'" bench attend --device gpu --ctx 256 --steps 5
expect 2 "--device: unknown device 'gpu'" bench device --device gpu
expect 2 'no model shape' bench decode --shape none
expect 2 'no model shape' bench prefill --shape none
expect 2 'raise the budget' bench decode --shape needle-256 --ctx 64 --budget 1
expect 2 'raise the budget' bench prefill --shape tiny-256 --ctx 64 --budget 1
expect 1 'No such file' eval needle --text "$tmp/none"
expect 2 'can never fit' bench attend --ctx 5000 --device cpu:capacity=1M
expect 2 '--lengths fixed:5000: ' bench serve --lengths fixed:5000 --requests 2 --device cpu:capacity=1M
expect 2 'can never fit' eval needle --ctx 5000 --modes pnm --device cpu:capacity=1M
expect 2 "the model's context is 2097152 tokens: give --ctx 2097152 or less" info --ctx 4M
expect 2 "the model's context is 2097152 tokens: give --lengths 2097120 or less" bench serve --fill --lengths fixed:2200000
expect 2 "the model's context is 2097152 tokens: give --ctx 2097140 or less" eval needle --ctx 2097141
expect 2 '--trace: nothing runs here' info --trace "$tmp/t"
expect 2 'no device is opened here' info --device "unix:$tmp/none"
expect 2 "--device unix:$tmp/d is given twice" run -p x --device "unix:$tmp/d" --device "fault:op=attend,n=1:unix:$tmp/d"
expect 2 '--device mpi:1 is given twice' eval needle --device mpi:1 --device cpu --device mpi:1
: >"$tmp/d"
ln -s d "$tmp/link"
expect 2 "--device unix:$tmp/link is given twice" bench serve --device "unix:$tmp/d" --device "unix:$tmp/link"
expect 2 '--file is given twice' run -p x -f a --file b
expect 2 "unknown mode 'no'" run -p x --mode png --mode no # the last one counts
expect 2 '--trace is given twice' eval needle --trace a --trace b
expect 2 '--device is given twice' bench attend --device cpu --device cpu
expect 2 '--output is given twice' needle -o a -o b
expect 2 '(--dense-layers)' run -p x --dense-layers 4
expect 2 '(--resident) to 160' run -p x --mode recall --resident 0
expect 2 '--top-p 1e-320: too near to 0' run -p x --top-p 1e-320
expect 1 'so much address space cannot be had' run -p x --device cpu:capacity=9999T
expect 1 "device 'unix:::': no device listens on '::'" run -p x --device unix:::
expect 2 '-n 0' run -p x -n 0
expect 2 '--threads 0' run -p x --threads 0
expect 2 'not both' run -p x --devices 2 --device cpu
expect 2 "unknown device 'gpu'" run -p x --device gpu
expect 2 '--session NAME' run -p x --continue
expect 2 'outlives this run' run -p x --session s
expect 2 'ends with this run' run -p x --session s --device cpu
expect 2 "name 'a b' of a sequence: use from 1 to 55 letters, digits and -_." run -p x --session 'a b' --memory "file:$tmp/names:64M"
[[ $(cat "$tmp/err") != *zero* ]] || { echo "a session's name is told about zeros: $(cat "$tmp/err")"; failed=1; }
expect 2 'holds one text' run -p x -p y --session s --device "unix:$tmp/none"
expect 2 '--memory anon:1M' run -p x --memory anon:1M
expect 2 'is one device' run -p x --memory dax:/dev/dax0.0 --devices 2
expect 1 'give file:PATH:SIZE' run -p x --memory "file:$tmp/none" --session s
expect 2 'say what to do' session
expect 2 'name the device' session list
expect 2 'NAME FILE' session export s --device "unix:$tmp/none"
expect 2 '--name is for' session list --name s --device "unix:$tmp/none"
expect 2 'give one' session list --memory "file:$tmp/none" --device "unix:$tmp/none"
expect 1 'no device listens' session list --device "unix:$tmp/none"
expect 1 'No such file' session import "$tmp/none" --device "unix:$tmp/none"
expect 2 'say what to do' pnm walk
expect 2 'NAME unix:PATH' pnm show "unix:$tmp/none"
expect 2 'it must have from 1 to 107' pnm stat unix:
expect 2 'it must have from 1 to 107' session list --device unix:
expect 2 '--watch is for' pnm list "unix:$tmp/none" --watch
expect 2 '--device' run -p x --device cpu:colour=red
expect 1 'No such file' run -f "$tmp/none" -p x
expect 1 'Is a directory' run -f "$tmp" -p x
: >"$tmp/empty"
expect 2 'is empty' run -f "$tmp/empty"
expect 2 "model's context" run -p x -n 4M
expect 2 'is missing' run -p x --device cpu:capacity=128K
expect 1 'no device listens' run -p x --device unix:"$tmp/none"
expect 2 'socket path' run -p x --device unix:
expect 1 'no device listens' pnm stat unix:"$tmp/none"
expect 2 'which takes 1: nearkv pnm stat unix:PATH' pnm stat
expect 2 'name one device' pnm stat file:x
expect 2 'say what to do' pnm
expect 2 'what memory' pnmd --listen unix:"$tmp/s"
expect 2 'where clients find' pnmd --memory anon:64M
expect 1 'give file:PATH:SIZE' pnmd --memory file:"$tmp/pnm.img" --listen unix:"$tmp/s"
expect 2 'at least 65536' pnmd --memory file:"$tmp/pnm.img:1K" --listen unix:"$tmp/s"
expect 1 'does not exist' pnmd --memory dax:"$tmp/none" --listen unix:"$tmp/s"
expect 2 'is it a DAX device' pnmd --memory dax:/dev/null --listen unix:"$tmp/s"
expect 2 'for --memory file' pnmd --memory anon:64M --format --listen unix:"$tmp/s"
expect 2 'anon:SIZE' pnmd --memory 64M --listen unix:"$tmp/s"
expect 2 'numa:N:SIZE' pnmd --memory numa:0 --listen unix:"$tmp/s"
expect 2 "--memory numa:x:1G: 'x' is no NUMA node" pnmd --memory numa:x:1G --listen unix:"$tmp/s"
expect 2 "--memory anon:1X: '1X' is no size: give bytes, or a whole number with K, M, G or T" pnmd --memory anon:1X --listen unix:"$tmp/s"
expect 2 'from 1M on' pnmd --memory numa:0:1K --listen unix:"$tmp/s"
expect 2 'are the same socket' pnmd --memory anon:64M --listen unix:"$tmp/s" --metrics unix:"$tmp/s"
expect 1 'is missing' pnmd --memory anon:900T --listen unix:"$tmp/s"
expect 2 'unix:PATH' pnmd --memory anon:64M --listen "$tmp/s"
expect 2 'is no socket' pnmd --memory anon:64M --listen unix:"$tmp"
expect 1 'cannot listen' pnmd --memory anon:64M --listen unix:"$tmp/none/s"
expect 2 'device name' pnmd --memory anon:64M --listen unix:"$tmp/s" --name 'a b'
[ ! -e "$tmp/s" ]
expect 1 'No such file' run -m "$tmp/none.gguf" -p x
head -c 1000 "$NEARKV" >"$tmp/not.gguf"
expect 1 'not.gguf' run -m "$tmp/not.gguf" -p x
expect 1 "the trace '/dev/full': No space left on device: free some space" run -p x --trace /dev/full
expect 1 "the trace '/dev/full': No space left on device: free some space" eval needle --ctx 512 --modes pnm --json --trace /dev/full
expect 1 "create the trace file '$tmp/none/t': No such file" run -p x --trace "$tmp/none/t"
many=()
for _ in {1..64}; do many+=(-p x); done
expect 1 'is missing' run "${many[@]}" --kv f32 -n 2000000
expect 1 'is missing' bench attend --ctx 100000000
expect 1 'is missing' bench decode --shape needle-256 --ctx 100000000
expect 1 'is missing' bench prefill --shape needle-256 --ctx 200000000
expect 1 '32.1 GB of weights, with 6.8 TB of caches' bench decode --shape llama-3.1-8b --weights f32 --kv bf16 --ctx 50000000 # at once
expect 2 '--depth' eval needle --depth 1.5
expect 2 '--modes' eval needle --modes pnm,pnm
expect 2 'not both' eval needle -f "$tmp/empty" --text "$tmp"
expect 2 'no text' eval needle -f "$tmp/empty"
printf 'it says: The pass key is unknown.\n%.0s' {1..20} >"$tmp/has-key"
expect 2 'already contains' eval needle -f "$tmp/has-key"
printf 'it says nothing.\n%.0s' {1..20} >"$tmp/short"
expect 2 'give more --text' eval needle --text "$tmp/short" --ctx 1M
expect 2 '--ctx' info --ctx 0
expect 2 'give the file' needle
expect 2 'f16 or f32' needle -o "$tmp/x.gguf" --type bf16
expect 1 'cannot create' needle -o "$tmp/none/x.gguf"
[ ! -e "$tmp/x.gguf" ]

# An answer that cannot be written is a failure, and a closed standard output does not end in another file.
for command in 'run -p x -p y' 'info' 'info --json' '--version' 'run --help' 'bench attend --help' \
    'eval needle --ctx 256 --modes pnm' 'bench attend --ctx 256 --steps 5 --json'; do
    for to in /dev/full closed; do
        rc=0
        # shellcheck disable=SC2086
        if [ $to = closed ]; then
            "$NEARKV" $command >&- 2>"$tmp/err" || rc=$?
        else
            "$NEARKV" $command >$to 2>"$tmp/err" || rc=$?
        fi
        [ $rc = 1 ] && grep -q 'standard output' "$tmp/err" || { echo "nearkv $command >$to: exit $rc: $(cat "$tmp/err")"; failed=1; }
    done
done

# A trace that stops in the middle ends the run, and the message names the file and the reason.
rc=0
(trap '' XFSZ; ulimit -f 4; exec "$NEARKV" run -p 'The pass key is 71432. The pass key is ' --trace "$tmp/trace") >"$tmp/out" 2>"$tmp/err" || rc=$?
[ $rc = 1 ] && grep -q "cannot write the trace '$tmp/trace': File too large: record to another file" "$tmp/err" || { echo "--trace beyond the limit: exit $rc: $(cat "$tmp/err")"; failed=1; }

for command in '' run eval 'eval needle' info needle bench 'bench attend' 'bench decode' 'bench prefill' 'bench serve' 'bench device' pnm pnmd session sim 'sim run' 'sim paper' 'sim sweep' 'sim validate' 'sim ablate'; do
    # shellcheck disable=SC2086
    "$NEARKV" $command --help >"$tmp/help"
    # shellcheck disable=SC2086
    grep -q '^usage: nearkv' "$tmp/help" && "$NEARKV" $command -h | cmp - "$tmp/help" || { echo "nearkv $command --help"; failed=1; }
done
"$NEARKV" eval needle --help | grep -q 'default png' && { echo "eval needle --help: --mode is not png there"; failed=1; }
"$NEARKV" --version | grep -q '^nearkv [0-9]'
exit $failed
