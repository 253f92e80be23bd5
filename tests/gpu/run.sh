#!/usr/bin/env bash
# Prove winnow on the GPUs of this machine.  Needs the NVIDIA driver and nothing else: no network,
# no compiler, no Python; everything was built before (tests/gpu/bundle.sh).
#
#   tests/gpu/run.sh [--programs DIR] [--gpus N] [--model DIR] [--lengths LIST] [--quick]
#                    [--out FILE]
#
#   --programs DIR  winnow, winnow-coordinator, winnow-worker, winnow-bench-plan,
#                   winnow-gpu-goldens and winnow-gpu-attention, which may be missing
#                   (default: bin/ of the bundle, or build-cuda/bin)
#   --gpus N        use the first N (default: all that winnow doctor finds)
#   --model DIR     that speed is measured with (default: the tiny one in tests/models)
#   --lengths LIST  prompts to measure (default: 256; with --model 8192,32768,131072)
#   --quick         a few golden cases, one run of each measurement
#   --out FILE      the results as JSON (default: gpu-results.json)
#
# In order: what is here; attention against its definition, and its speed; golden cases in float32
# and bfloat16, alone and in groups; every operation against its definition; a golden case under
# compute-sanitizer, where that is installed; then prefill, whole answers and decoding, with what a
# rank should count for each.  Exit status: 0 if nothing failed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"

programs='' gpus='' model='' lengths='' quick='' out=gpu-results.json
while [ $# -gt 0 ]; do
    case $1 in
        --programs) programs=${2:?--programs needs a folder}; shift ;;
        --gpus) gpus=${2:?--gpus needs a number}; shift ;;
        --model) model=${2:?--model needs a folder}; shift ;;
        --lengths) lengths=${2:?--lengths needs a list}; shift ;;
        --out) out=${2:?--out needs a file}; shift ;;
        --quick) quick=1 ;;
        *) sed -n '2,20s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
    esac
    shift
done
if [ -z "$programs" ]; then
    if [ -d bin ]; then programs=bin; else programs=build-cuda/bin; fi
fi
if [ -d lib ]; then export LD_LIBRARY_PATH="$root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"; fi
if [ -z "$lengths" ]; then
    if [ -n "$model" ]; then lengths=8192,32768,131072; else lengths=256; fi
fi
model=${model:-tests/models/stories260k}

work=$(mktemp -d)
server=
stop() {
    code=$?
    trap - EXIT INT TERM
    if [ -n "$server" ]; then kill -TERM "$server" 2>/dev/null || true; wait "$server" || true; fi
    rm -rf "$work"
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

failures=0
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }

# What one more member of the results is called, and its JSON.
result() { printf '%s\n"%s": %s' "$([ -s "$work/results" ] && echo ,)" "$1" "$2" >>"$work/results"; }

echo '== what is here'
"$programs/winnow" doctor
doctor=$("$programs/winnow" doctor --json)
result doctor "$doctor"
if [ -z "$gpus" ]; then
    gpus=$({ grep -o '"capability"' || true; } <<<"$doctor" | wc -l)
fi
if [ "$gpus" -lt 1 ]; then
    echo 'no GPU: nothing can be proven here'
    exit 1
fi

echo '== attention'
if [ -x "$programs/winnow-gpu-attention" ]; then
    code=0
    "$programs/winnow-gpu-attention" >"$work/log" 2>&1 || { code=$?; fail attention; }
    cat "$work/log"
    rows=$(awk -F ' *[|] *' '$2 ~ /mma$/ {printf "%s{\"kernel\": \"%s\", \"dtype\": \"%s\", "\
        "\"heads\": \"%s\", \"head_dim\": %d, \"rows\": %d, \"keys\": %d, \"ms\": %s, \"tflops\": %s}",
        sep, $2, $3, $4, $5, $6, $7, $8, $9; sep = ", "}' "$work/log")
    result attention "{\"status\": $code, \"measured\": [$rows]}"
else
    echo 'skipped: winnow-gpu-attention is not here'
    result attention '{"skipped": "winnow-gpu-attention is not here"}'
fi

# goldens NAME FILTER: the tests of this name, on all GPUs.
goldens() {
    local code=0 passed failed
    echo "== goldens $2 on $gpus GPUs"
    WINNOW_TEST_GPUS=$gpus WINNOW_TEST_FILTER=$2 "$programs/winnow-gpu-goldens" \
        >"$work/log" 2>&1 || code=$?
    passed=$(grep -c '^\[ *OK \]' "$work/log" || true)
    failed=$(grep -c '^\[  FAILED  \] test_' "$work/log" || true)
    if [ "$code" != 0 ] || [ "$passed" = 0 ]; then
        tail -n 40 "$work/log"
        fail "goldens $2"
    fi
    echo "$passed passed, $failed failed"
    result "$1" "{\"passed\": $passed, \"failed\": $failed, \"status\": $code}"
}
if [ -n "$quick" ]; then
    goldens goldens 'test_full_in_groups'
else
    goldens goldens_float32 'test_[!b]*'
    goldens goldens_bfloat16 'test_bf16*'
fi

echo '== operations against their definitions'
passed=0 wrong=0
for program in "$programs"/winnow-gpu-test_*; do
    if [ -n "$quick" ] && [ "${program##*test_}" != top_k ]; then continue; fi
    if timeout 300 "$program" >"$work/log" 2>&1; then
        passed=$((passed + 1))
    else
        wrong=$((wrong + 1))
        tail -n 40 "$work/log"
        fail "${program##*/}"
    fi
done
echo "$passed passed, $wrong failed"
result operations "{\"passed\": $passed, \"failed\": $wrong}"

echo '== compute-sanitizer'
if command -v compute-sanitizer >/dev/null; then
    code=0
    for tool in memcheck racecheck synccheck initcheck; do
        WINNOW_TEST_GPUS=1 WINNOW_TEST_FILTER=test_bf16_stays_near_float32 compute-sanitizer \
            --tool "$tool" --error-exitcode 9 "$programs/winnow-gpu-goldens" >"$work/log" 2>&1 ||
            { code=$?; tail -n 40 "$work/log"; fail "compute-sanitizer $tool"; }
    done
    result sanitizer "{\"status\": $code}"
else
    echo 'skipped: compute-sanitizer is not installed'
    result sanitizer '{"skipped": "compute-sanitizer is not installed"}'
fi

# The address is the one line that the coordinator prints.
mkfifo "$work/address"
"$programs/winnow-coordinator" --model "$model" --local-workers "$gpus" --device cuda \
    --listen 127.0.0.1:0 >"$work/address" 2>"$work/server" &
server=$!
address=
read -r address <"$work/address" || true
address=${address##* }
if [ -z "$address" ]; then cat "$work/server"; fail 'the coordinator did not start'; exit 1; fi
runs=(--num-runs 3)
if [ -n "$quick" ]; then runs=(--num-warmups 0 --num-runs 1 --output-len 2); fi
until "$programs/winnow" status --server "$address" 2>/dev/null | grep -q ready; do
    if ! kill -0 "$server" 2>/dev/null; then
        cat "$work/server"
        fail 'the workers cannot serve'
        exit 1
    fi
    read -rt 0.2 <> <(:) || true
done
for what in prefill e2e throughput; do
    echo "== $what"
    if "$programs/winnow" bench "$what" --server "$address" --lengths "$lengths" "${runs[@]}" \
        --json --quiet >"$work/bench" 2>"$work/log"; then
        result "$what" "$(cat "$work/bench")"
    else
        cat "$work/log"
        fail "bench $what"
    fi
done
echo '== what a rank should count'
for n in ${lengths//,/ }; do
    "$programs/winnow-bench-plan" "$model" "$n" "$gpus" >"$work/plan"
    result "plan_$n" "[$(paste -sd, "$work/plan")]"
done

printf '{%s,\n"failed": %s}\n' "$(cat "$work/results")" "$failures" >"$out"
echo "$out: $failures failed"
[ "$failures" = 0 ]
