#!/usr/bin/env bash
# Pass the tests: prepare the machine, build with gcc and clang, lint, and run everything.
#
#   tests/run.sh [--setup-only] [--quick] [--all] [--fuzz-seconds N] [PART...]
#
#   --setup-only       install and build, test nothing
#   --quick            only the parts lint and unit
#   --all              also what takes long: more goldens, bfloat16 at every degree, longer fuzzing,
#                      and what tests do more of with WINNOW_TEST_LONG set: trials, simulated requests
#   --fuzz-seconds N   for each fuzz target (default 10)
#   PART               only these: lint unit asan fuzz goldens system, and sanitized, which is part of
#                      a run with --all: the services under load, with ASan and UBSan, and with TSan
#
# More data is used where WINNOW_TEST_DATA names a folder that holds goldens/, models/ and
# tokenizers/.  The last line counts everything; the exit status says whether all of it passed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

parts=() all='' fuzz_seconds=10 setup_only=''
usage() { sed -n '2,15s/^# \{0,1\}//p' "$root/tests/run.sh"; }
while [ $# -gt 0 ]; do
    case $1 in
        --setup-only) setup_only=1 ;;
        --quick) parts+=(lint unit) ;;
        --all) all=1 fuzz_seconds=300; export WINNOW_TEST_LONG=1 ;;
        --fuzz-seconds) fuzz_seconds=${2:?--fuzz-seconds needs a number}; shift ;;
        lint | unit | asan | fuzz | goldens | system | sanitized) parts+=("$1") ;;
        --help | -h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
[ "${#parts[@]}" -gt 0 ] || parts=(lint unit asan fuzz goldens system ${all:+sanitized})

deploy/local/setup.sh --tests
if [ -n "$setup_only" ]; then exit 0; fi

work=$(mktemp -d)
child=
stop() {
    code=$?
    trap - EXIT INT TERM
    if [ -n "$child" ]; then kill -TERM -- "-$child" 2>/dev/null || true; wait "$child" 2>/dev/null || true; fi
    rm -rf "$work"
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

jobs=$(nproc)
python=$root/.venv/bin/python
failures=()
passed=0 failed=0

# Runs a command in a process group of its own, so that nothing of it can stay behind; its output
# goes to the terminal and to $work/log.
run() {
    local code=0 tee
    exec 3> >(tee "$work/log")
    tee=$!
    setsid --wait "$@" >&3 2>&1 3>&- &
    child=$!
    exec 3>&-
    wait "$child" || code=$?
    kill -KILL -- "-$child" 2>/dev/null || true
    child=
    wait "$tee"
    return "$code"
}

# count NAME CODE PASSED FAILED: adds a runner's numbers; one that failed without saying so is 1.
count() {
    local name=$1 code=$2 good=${3:-0} bad=${4:-0}
    if [ "$code" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    passed=$((passed + good)) failed=$((failed + bad))
    if [ "$bad" != 0 ]; then failures+=("$name"); fi
    echo "-- $name: $good passed, $bad failed (${SECONDS} s since the start)"
}

# one NAME COMMAND...: a check that counts as a single test, and is silent if it passes.
one() {
    local name=$1 code=0
    shift
    echo "== $name"
    run "$@" >"$work/silent" || code=$?
    if [ "$code" != 0 ]; then tail -n 200 "$work/silent"; fi
    if [ "$code" = 0 ]; then count "$name" 0 1 0; else count "$name" "$code" 0 1; fi
}

# number WORDS: the number before these words in the last line of the log, 0 if there is none.
number() {
    local found
    found=$(tail -n 1 "$work/log" | { grep -oE "[0-9]+ ($1)" || true; } | cut -d' ' -f1)
    echo "${found:-0}"
}

unit_tests() { # FOLDER NAME
    local code=0 summary bad total
    echo "== $2"
    run ctest --test-dir "$1" --output-on-failure -j "$jobs" || code=$?
    summary=$(sed -nE 's/.* ([0-9]+) tests failed out of ([0-9]+)$/\1 \2/p' "$work/log" | tail -n 1)
    read -r bad total <<<"${summary:-0 0}"
    count "$2" "$code" $((total - bad)) "$bad"
}

pytests() { # NAME ARGUMENT...
    local name=$1 code=0
    shift
    echo "== $name"
    run "$python" -m pytest -q -rs -p no:cacheprovider "$@" || code=$?
    count "$name" "$code" "$(number passed)" "$(($(number failed) + $(number 'error|errors')))"
}

goldens() { # DIR ARGUMENT...
    local name="goldens $*" code=0
    echo "== $name"
    run "$python" tests/goldens/run.py "$@" || code=$?
    count "$name" "$code" "$(number passed)" "$(number failed)"
}

part_lint() {
    mapfile -t sources < <(find cli common coordinator kernels tests worker -name '*.[ch]' -o -name '*.cc' -o -name '*.cu')
    one clang-format clang-format --dry-run --Werror "${sources[@]}"
    one clang-tidy python3 tests/clang_tidy.py build-asan -j "$jobs"
}
part_unit() { unit_tests build 'unit tests, gcc'; }
# Sanitizers are slow: they see the data of the repository, the plain build sees all.
part_asan() {
    local data=${WINNOW_TEST_DATA:-}
    unset WINNOW_TEST_DATA
    unit_tests build-asan 'unit tests, clang with ASan and UBSan'
    if [ -n "$data" ]; then export WINNOW_TEST_DATA=$data; fi
}
# As many targets at a time as there are cores.
part_fuzz() {
    local targets=(build-asan/bin/fuzz_*)
    printf '%s\n' "${targets[@]}" >"$work/targets"
    # shellcheck disable=SC2016 # the inner shell expands it
    one "${#targets[@]} fuzz targets for $fuzz_seconds s each" xargs -a "$work/targets" -P "$jobs" -I TARGET sh -c '
        name=$(basename TARGET) && mkdir -p "$0/$name" .cache &&
        exec TARGET -max_total_time="$1" -timeout=10 -rss_limit_mb=2048 -print_final_stats=0 -verbosity=0 \
            -artifact_prefix=".cache/$name-" "$0/$name" "tests/fuzz/corpus/${name#fuzz_}"' \
        "$work" "$fuzz_seconds"
}
# The whole worker with --device cuda, on the processor: the shortest cases of every method and some
# middle ones, a few tokens each; with --all everything.
goldens_on_emulated_gpu() {
    local data=tests/goldens/data middle='^(adakv|fastkv_prop|h2o|headkv|pyramidinfer|snapkv).*_n256'
    if [ -n "$all" ]; then
        goldens "$data" --emulated-gpu --tp 1,2,4
        goldens "$data" --emulated-gpu 'apart rotating' --longest 100 --tp 2
        goldens "$data" --emulated-gpu --dtype bfloat16 --tp 1,2 --method full fastkv
        goldens "$data" --emulated-gpu --dtype float16 --tp 1,2 --method full fastkv
        return
    fi
    goldens "$data" --emulated-gpu --longest 100 --steps 4 --tp 1,2
    goldens "$data" --emulated-gpu reversed --match "$middle" --steps 4 --tp 2
    goldens "$data" --emulated-gpu --dtype bfloat16 --longest 40 --steps 4 --tp 2 \
        --method full fastkv
    goldens "$data" --emulated-gpu --dtype float16 --longest 40 --steps 4 --tp 1 \
        --method full fastkv
}
part_goldens() {
    local full=${WINNOW_TEST_DATA:+$WINNOW_TEST_DATA/goldens/public}
    if [ -n "$full" ] && [ -d "$full" ]; then
        goldens "$full" --tp 1,2,4
    else
        goldens tests/goldens/data --tp 1,2,4
    fi
    goldens tests/goldens/data --tp "$([ -n "$all" ] && echo 1,2,4 || echo 2)" --dtype bfloat16 \
        --method full fastkv adakv fastgen
    goldens_on_emulated_gpu
}
part_sanitized() {
    [ -f build-tsan/build.ninja ] || cmake --preset tsan >"$work/silent"
    one 'build with TSan' cmake --build --preset tsan --target winnow-coordinator winnow-worker
    pytests 'services under load, with sanitizers' tests/system/test_sanitized.py
}
part_system() {
    pytests 'system tests' tests/system
    pytests 'deployment tests' tests/deploy
    pytests 'evaluations' tests/evals
    if [ -n "$all" ]; then one 'container image' tests/deploy/image.sh; fi
}

for part in "${parts[@]}"; do "part_$part"; done

echo
for name in "${failures[@]}"; do echo "FAILED: $name"; done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
