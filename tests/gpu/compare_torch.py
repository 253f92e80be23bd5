#!/usr/bin/env python3
"""compare_torch.py - what a machine with a GPU does with PyTorch and transformers: the same model's
prompt phase and decode steps, one request at a time, bfloat16, scaled_dot_product_attention.

    compare_torch.py DIR [--tokens 8192 32768]        one JSON line each: the median

Beside it: winnow-bench-engine --device cuda --model DIR --tokens N.
"""
import argparse
import json
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache


def clock():
    torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def measure(model, tokens, rounds, steps):
    prompts, decodes = [], []
    for _ in range(rounds):
        ids = torch.randint(model.config.vocab_size, (1, tokens), device="cuda")
        cache = DynamicCache()
        start = clock()
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        prompts.append(clock() - start)
        for _ in range(steps):
            start = clock()
            out = model(token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            decodes.append(clock() - start)
        del cache, out
    return {"tokens": tokens, "prefill_ms": round(1e3 * min(prompts), 1),
            "step_ms": round(1e3 * statistics.median(decodes), 3),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, nargs="*", default=[8192, 32768])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16,
                                                 attn_implementation="sdpa").cuda().eval()
    for tokens in options.tokens:
        print(json.dumps(measure(model, tokens, options.rounds, options.steps)), flush=True)


if __name__ == "__main__":
    main()
