"""One measurement with vLLM's CPU build, in an environment of its own.

A cell as JSON on stdin (cells.py); the last line of stdout is its result.
"""
import json
import os
import re
import sys
import time


def peak_bytes():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1)) << 10


def run(engine, prompts, new):
    """The times at which each request's tokens came."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    for i, ids in enumerate(prompts):
        engine.add_request(f"{len(ids)}-{new}-{i}", {"prompt_token_ids": ids}, params)
    times, seen = [[] for _ in prompts], [0] * len(prompts)
    while engine.has_unfinished_requests():
        for output in engine.step():
            i = int(output.request_id.rpartition("-")[2])
            count = len(output.outputs[0].token_ids)
            times[i] += [time.monotonic()] * (count - seen[i])
            seen[i] = count
    return times


def main():
    cell, begin = json.load(sys.stdin), time.monotonic()
    from vllm import LLM

    longest = max(map(len, cell["ids"])) + cell["new"]
    llm = LLM(cell["folder"], dtype="bfloat16", max_model_len=longest + 64,
              enable_prefix_caching=False, skip_tokenizer_init=True,
              max_num_seqs=max(8, len(cell["ids"])), max_num_batched_tokens=cell["chunk"],
              enforce_eager=cell["eager"], disable_log_stats=True)
    run(llm.llm_engine, [cell["ids"][0][:16]], 2)
    ready = start = time.monotonic()
    times = run(llm.llm_engine, cell["ids"], cell["new"])
    begun, ended = max(t[0] for t in times), min(t[-1] for t in times)
    made = sum(sum(begun < moment <= ended for moment in t) for t in times)
    print(json.dumps({"ready_s": ready - begin, "ttft_s": times[0][0] - start,
                      "total_s": max(t[-1] for t in times) - start,
                      "decode_tps": made / (ended - begun), "peak_bytes": peak_bytes()}))
    sys.stdout.flush()
    os._exit(0)


main()
