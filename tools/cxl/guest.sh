#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# What is checked inside the guest. One line per check, "ok NAME" or "not ok NAME: reason", and at the end
# "cxl check: N passed, M failed", which the host reads.
WORK=/job
. /ask.sh
passed=0
failed=0

# check NAME COMMAND...: the last line that a failing command prints is the reason.
check() {
    name=$1
    shift
    if "$@" >/tmp/check.log 2>&1; then
        passed=$((passed + 1))
        echo "ok $name ($(seconds) s)"
        return 0
    fi
    failed=$((failed + 1))
    echo "not ok $name: $(tail -n 1 /tmp/check.log)"
    sed 's/^/    /' /tmp/check.log
    return 1
}

seconds() {
    cut -d ' ' -f 1 /proc/uptime
}

finish() {
    echo "cxl check: $passed passed, $failed failed"
    exit
}

# wait_for COMMAND...: until it succeeds, at most 60 s.
wait_for() {
    for _ in $(seq 600); do
        "$@" && return 0
        sleep 0.1
    done
    echo "waited 60 s for: $*"
    return 1
}

# ---- Windows, regions, namespaces ------------------------------------------------------------------------------------

# The memory devices are numbered as they are found; a window's own is the one behind its bridge.
make_region() {
    memdev=$(cxl list -M -d "decoder0.$1" | sed -n 's/.*"memdev":"\([^"]*\)".*/\1/p')
    [ -n "$memdev" ] || { echo "no CXL memory device behind window $1"; return 1; }
    eval "memdev$1=$memdev"
    cxl create-region -m -t pmem -d "decoder0.$1" -w 1 "$memdev"
}

make_namespace() {
    ndctl create-namespace -m devdax -r "$1" -f && wait_for [ -c "/dev/dax${1#region}.0" ]
}

make_devices() {
    for n in 0 1; do
        check "window $n becomes a region" make_region $n || finish
        check "region $n becomes a DAX device" make_namespace "region$n" || finish
    done
}

# All are written before one is checked.
check_patterns() {
    pattern write /dev/dax0.0 1 && pattern write /dev/dax1.0 2 && pattern check /dev/dax0.0 1 && pattern check /dev/dax1.0 2
}

# ---- nearkv info -----------------------------------------------------------------------------------------------------

# has FILE TEXT
has() {
    grep -qF -e "$2" "$1" || { echo "$1 lacks: $2"; return 1; }
}

# place NAME TEXT...: what info's JSON has to say of a device.
place() {
    tr '{' '\n' </tmp/info.json | grep -F "\"name\":\"$1\"" >/tmp/place || { echo "info does not list $1"; return 1; }
    shift
    for text in "$@"; do
        has /tmp/place "$text" || { cat /tmp/place; echo "info should say of it: $text"; return 1; }
    done
}

# What the kernel says in /sys is what info has to say.
check_info() {
    nearkv info >/tmp/info.txt 2>/tmp/info.err && nearkv info --json >/tmp/info.json 2>>/tmp/info.err || { cat /tmp/info.err; return 1; }
    [ ! -s /tmp/info.err ] || { echo "info prints messages of others: $(head -n 1 /tmp/info.err)"; return 1; }
    for n in 0 1; do
        eval "memdev=\$memdev$n"
        place dax$n.0 '"kind":"dax"' "\"path\":\"/dev/dax$n.0\"" "\"bytes\":$(cat /sys/bus/dax/devices/dax$n.0/size)," \
            "\"node\":$(cat /sys/bus/dax/devices/dax$n.0/target_node)," "\"memory\":\"dax:/dev/dax$n.0\"" "\"regions\":\"region$n\"" || return 1
        place "$memdev" '"kind":"cxl"' "\"bytes\":$(printf %d "$(cat "/sys/bus/cxl/devices/$memdev/pmem/size")")," '"memory":null' \
            "\"regions\":\"region$n\"" || return 1
    done
    [ "$(grep -c '^dax[01].0 .*, in region[01], --memory dax:/dev/dax[01].0$' /tmp/info.txt)" = 2 ] &&
        [ "$(grep -c '^mem[01] .*, in region[01]$' /tmp/info.txt)" = 2 ] && has /tmp/info.txt "use       --memory dax:/dev/dax0.0" ||
        { cat /tmp/info.txt; echo "the text does not say what JSON says"; return 1; }
}

# ---- Device processes ------------------------------------------------------------------------------------------------

listens() {
    nearkv pnm stat "unix:/run/pnm$1.sock" >/dev/null 2>&1
}

# start N OPTIONS...
start() {
    n=$1
    shift
    nearkv pnmd --memory "dax:/dev/dax$n.0" --listen "unix:/run/pnm$n.sock" --name "pnm$n" --threads 1 "$@" 2>"/run/pnm$n.log" &
    eval "pid$n=\$!"
    wait_for listens "$n" || { cat "/run/pnm$n.log"; return 1; }
}

# Two processes on one memory would destroy it.
check_lock() {
    timeout 20 nearkv pnmd --memory dax:/dev/dax0.0 --listen unix:/run/other.sock 2>/tmp/other.err
    status=$?
    [ $status = 1 ] && has /tmp/other.err "in use" || { echo "exit status $status, $(tail -n 1 /tmp/other.err)"; return 1; }
}

# is_answer NAME FILE: the tokens are those of the host's report NAME.
is_answer() {
    [ "$(tokens_of "$2")" = "$(tokens_of "/job/$1.json")" ] || { echo "$(tokens_of "$2" | tr '\n' ' ')" "are not the host's" \
        "$(tokens_of "/job/$1.json" | tr '\n' ' ')"; return 1; }
}

# Each device has a sequence.
is_answer_of_both() {
    is_answer "$1" "$2" && has "$2" '"device":0' && has "$2" '"device":1'
}

check_answer() {
    ask "$1" $devices >/tmp/answer.json && is_answer_of_both "$1" /tmp/answer.json
}

# at_work N: device N holds a sequence and has done commands for its client.
at_work() {
    nearkv pnm stat "unix:/run/pnm$1.sock" --json >/tmp/stat.json && grep -q '"sequences":[1-9]' /tmp/stat.json &&
        grep -q '"clients":.*"commands":[1-9]' /tmp/stat.json
}

kill_device() {
    eval "kill -9 \$pid$1; wait \$pid$1"
    kill -0 "$client" || { echo "the run was over before its device was killed"; return 1; }
}

# Device 1 dies in the middle of a run and comes back on the same memory; the run waits for it and gives the host's answer.
check_reconnect() {
    ask png $devices --reconnect >/tmp/answer.json 2>/tmp/answer.err &
    client=$!
    wait_for at_work 1 && kill_device 1 && start 1 || return 1
    wait "$client" || { cat /tmp/answer.err; return 1; }
    has /tmp/answer.err "there again" && is_answer_of_both png /tmp/answer.json
}

# holds_tokens N: device 1 has committed N tokens of the session.
holds_tokens() {
    n_tokens=$(nearkv pnm list unix:/run/pnm1.sock --json | sed -n 's/.*"tokens":\([0-9]*\).*/\1/p')
    [ "${n_tokens:-0}" -ge "$1" ]
}

# Nobody has the session; a device that comes back keeps it for the client of before for a while.
is_free() {
    nearkv pnm list unix:/run/pnm1.sock --json | grep -q '"attached":false'
}

# A run that feeds a session dies with its device. The device comes back: the same run again feeds only what is missing.
check_session() {
    book="--device unix:/run/pnm1.sock --session book"
    ask_book $book >/tmp/book.json 2>/tmp/book.err &
    client=$!
    wait_for holds_tokens 512 && kill_device 1 || return 1
    wait "$client"
    status=$?
    [ $status = 1 ] || { echo "exit status $status of a run whose device was killed"; return 1; }
    has /tmp/book.err pnm1 && has /tmp/book.err "its process ended" || { cat /tmp/book.err; return 1; }
    start 1 --keep 1 && wait_for is_free && ask_book $book >/tmp/book.json && is_answer book /tmp/book.json || return 1
    reused=$(sed -n 's/.*"reused_tokens":\([0-9]*\).*/\1/p' /tmp/book.json)
    [ "${reused:-0}" -ge 512 ] || { echo "only $reused tokens were reused"; return 1; }
}

devices="--device unix:/run/pnm0.sock --device unix:/run/pnm1.sock"
make_devices
check "both DAX devices keep what is written" check_patterns || finish
check "info lists both CXL and DAX devices" check_info
sed -n '/^node\|^dax\|^mem\|^use/p' /tmp/info.txt
check "pnmd starts on device 0" start 0 || finish
check "pnmd starts on device 1" start 1 || finish
check "run over both devices, pnm" check_answer pnm
check "a second pnmd on device 0 is refused" check_lock
check "run over both, png, device 1 killed in between" check_reconnect
check "session on device 1, killed in between" check_session
finish
