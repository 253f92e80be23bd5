"""One measurement with transformers, in an environment of its own.

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


def main():
    cell, begin = json.load(sys.stdin), time.monotonic()
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(cell["threads"])
    torch.set_num_interop_threads(1)
    model = AutoModelForCausalLM.from_pretrained(cell["folder"], dtype=torch.bfloat16,
                                                 attn_implementation="sdpa").eval()
    ids = torch.tensor(cell["ids"])
    with torch.inference_mode():
        model(ids[:, :8], use_cache=True, logits_to_keep=1)
        ready, start = time.monotonic(), time.monotonic()
        out = model(ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        first = time.monotonic()
        for _ in range(cell["new"] - 1):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
        end = time.monotonic()
    made = len(cell["ids"]) * (cell["new"] - 1)
    print(json.dumps({"ready_s": ready - begin, "ttft_s": first - start, "total_s": end - start,
                      "decode_tps": made / (end - first), "peak_bytes": peak_bytes()}))
    sys.stdout.flush()
    os._exit(0)


main()
