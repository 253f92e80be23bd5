#!/usr/bin/env python3
"""Compute again what transformers says SmolLM2 answers: tests/system/expected/smollm2.safetensors.

usage: make_smollm2_expected.py [--model DIR] [--out FILE]

Not part of the test run, because torch and transformers are large:

    python3 -m venv .cache/transformers
    .cache/transformers/bin/pip install torch transformers safetensors numpy
    .cache/transformers/bin/python tests/system/make_smollm2_expected.py

For prompts of about 100, 1,000, 4,000 and 8,000 tokens of tests/data/keepers_log.txt it stores, in
float32 arithmetic: the prompt, 64 greedy tokens, and for each of the 64 steps the 64 largest logits
with their ids and the log-sum-exp over the whole vocabulary; of the prompt of 1,000 also all logits
of the first step.  Prompts whose greedy path is nearly tied say nothing about correctness: among a
few starting points the first is taken whose smallest top-1/top-2 gap is at least GAP.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = (100, 1000, 4000, 8000)
FULL_LOGITS_OF = 1000
STEPS = 64
TOP = 64
GAP = 0.02


def greedy(model, ids):
    """(tokens, logits): STEPS greedy tokens, and the logits that each was chosen from."""
    tokens, rows = [], []
    with torch.inference_mode():
        out = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        for _ in range(STEPS):
            rows.append(out.logits[0, -1].float())
            tokens.append(int(rows[-1].argmax()))
            if len(tokens) < STEPS:
                out = model(torch.tensor([tokens[-1:]]), use_cache=True,
                            past_key_values=out.past_key_values)
    return tokens, torch.stack(rows)


def smallest_gap(rows):
    top = rows.topk(2).values
    return float((top[:, 0] - top[:, 1]).min())


def choose(model, text_ids, length):
    """The first starting point with a clear path, or the clearest of those tried."""
    best = None
    for start in range(0, 5 * 37, 37):
        ids = text_ids[start:start + length]
        tokens, rows = greedy(model, ids)
        gap = smallest_gap(rows)
        print(f"{length} tokens from {start}: smallest gap {gap:.4f}", flush=True)
        if best is None or gap > best[0]:
            best = gap, ids, tokens, rows
        if gap >= GAP:
            break
    return best[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / ".cache" / "smollm2", type=Path)
    parser.add_argument("--out", type=Path,
                        default=ROOT / "tests" / "system" / "expected" / "smollm2.safetensors")
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    text = (ROOT / "tests" / "data" / "keepers_log.txt").read_text()
    text_ids = AutoTokenizer.from_pretrained(args.model)(text * 2)["input_ids"]
    out = {}
    for length in LENGTHS:
        ids, tokens, rows = choose(model, text_ids, length)
        top = rows.topk(TOP)
        out[f"n{length}.prompt"] = np.array(ids, np.int32)
        out[f"n{length}.tokens"] = np.array(tokens, np.int32)
        out[f"n{length}.top_ids"] = top.indices.numpy().astype(np.int32)
        out[f"n{length}.top_logits"] = top.values.numpy()
        out[f"n{length}.logsumexp"] = rows.logsumexp(-1).numpy()
        if length == FULL_LOGITS_OF:
            out[f"n{length}.first_logits"] = rows[0].numpy()
    args.out.parent.mkdir(exist_ok=True)
    save_file(out, args.out)


if __name__ == "__main__":
    main()
