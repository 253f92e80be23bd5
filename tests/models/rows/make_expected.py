#!/usr/bin/env python3
"""Compute again what transformers answers for the rows of rows.py: expected/NAME.safetensors.

usage: make_expected.py [--check] [NAME ...]

Not part of the test run, because torch and transformers are large:

    python3 -m venv .cache/transformers
    .cache/transformers/bin/pip install -r tests/models/rows/requirements.txt
    .cache/transformers/bin/python tests/models/rows/make_expected.py

For a prompt of each length it stores the prompt, greedy tokens and the logits that each was chosen
from, all in float32 arithmetic.  Nearly tied paths say nothing about correctness: the first prompt
is taken whose smallest top-1/top-2 gap is at least GAP.

Every feature of a row must matter: with any one of its fields changed (the rotary base, the
scaling, the window, ...) transformers' own logits must differ by more than SENSITIVE times their
deviation, far above the tolerance of the test; otherwise the row would not notice a reader that
ignored the field.

--check compares with the files that are there and writes nothing.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from rows import EXPECTED, LENGTHS, ROWS, STEPS

PINNED = "5.23.0"
GAP = 0.05
SENSITIVE = 0.02
SAME = 1e-4  # between two machines


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                 attn_implementation="eager")
    model.generation_config.eos_token_id = None
    return model.eval()


def greedy(model, ids):
    """(tokens, logits): STEPS greedy tokens, and the logits that each was chosen from."""
    tokens, rows = [], []
    with torch.inference_mode():
        out = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        for _ in range(STEPS):
            rows.append(out.logits[0, -1])
            tokens.append(int(rows[-1].argmax()))
            if len(tokens) < STEPS:
                out = model(torch.tensor([tokens[-1:]]), use_cache=True,
                            past_key_values=out.past_key_values)
    return tokens, torch.stack(rows)


def smallest_gap(rows):
    top = rows.topk(2).values
    return float((top[:, 0] - top[:, 1]).min())


def choose(row, model, length):
    for start in range(64):
        ids = row.prompt(length, start)
        tokens, rows = greedy(model, ids.tolist())
        if smallest_gap(rows) >= GAP:
            return ids, tokens, rows
    raise RuntimeError(f"{row.name}: every prompt of {length} tokens is nearly tied")


def changes(config):
    """(what, config): the row's configuration with one feature taken away."""
    def changed(**fields):
        return {**config, **fields}

    theta = config.get("rope_theta", 10000.0)
    scaling = config.get("rope_scaling")
    newer = config.get("rope_parameters")
    if newer:
        yield "theta", changed(rope_parameters={**newer, "rope_theta": newer["rope_theta"] * 2})
        for name in ("factor", "low_freq_factor", "high_freq_factor",
                     "original_max_position_embeddings"):
            yield name, changed(rope_parameters={**newer, name: newer[name] * 2})
    else:
        yield "theta", changed(rope_theta=theta * 2)
    for name, value in (scaling or {}).items():
        if not isinstance(value, str):
            yield name, changed(rope_scaling={**scaling, name: value * 2})
    if scaling:
        yield "scaling", changed(rope_scaling=None)
    if config.get("sliding_window") not in (None, config["max_position_embeddings"]):
        yield "no window", changed(sliding_window=None)
        yield "a shorter window", changed(sliding_window=config["sliding_window"] - 1)
        yield "a longer window", changed(sliding_window=config["sliding_window"] + 1)
    yield "epsilon", changed(rms_norm_eps=1e-2)


def check_sensitivity(row, folder, prompts, expected):
    """Each change must move the logits of one of the prompts; the least one is reported."""
    config = json.loads((folder / "config.json").read_text())
    for what, other in changes(config):
        (folder / "config.json").write_text(json.dumps(other))
        model = load(folder)
        with torch.inference_mode():
            moved = max(float((model(torch.tensor([ids.tolist()])).logits[0, -1] - logits[0])
                              .abs().max() / logits.std())
                        for ids, logits in zip(prompts, expected))
        print(f"  {row.name}: {what}: {moved:.3f}", flush=True)
        if moved < SENSITIVE:
            raise RuntimeError(f"{row.name}: {what} moves the logits by only {moved:.4f}")


def make(row):
    out, prompts, expected = {}, [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = row.write(Path(temporary) / row.name)
        model = load(folder)
        for length in LENGTHS:
            ids, tokens, rows = choose(row, model, length)
            out[f"n{length}.prompt"] = ids
            out[f"n{length}.tokens"] = np.array(tokens, np.int32)
            out[f"n{length}.logits"] = rows.numpy()
            prompts.append(ids)
            expected.append(rows)
        check_sensitivity(row, folder, prompts, expected)
    return out


def compare(row, made):
    """What differs from the file that is there, as sentences."""
    stored = load_file(EXPECTED / f"{row.name}.safetensors")
    if stored.keys() != made.keys():
        return [f"{row.name}: other entries"]
    wrong = []
    for name, values in made.items():
        error = np.abs(values.astype(np.float64) - stored[name]).max()
        if error > (SAME if name.endswith("logits") else 0):
            wrong.append(f"{row.name}: {name} differs by {error:.2g}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help="rows; default: all")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    if transformers.__version__ != PINNED:
        parser.error(f"transformers {transformers.__version__} is here, {PINNED} is needed")
    EXPECTED.mkdir(exist_ok=True)
    wrong = []
    for name in args.names or ROWS:
        row = ROWS[name]
        made = make(row)
        if args.check:
            wrong += compare(row, made)
            continue
        about = {"fingerprint": row.fingerprint(), "transformers": transformers.__version__,
                 "torch": torch.__version__.split("+")[0]}
        save_file(made, EXPECTED / f"{name}.safetensors", metadata=about)
    print("\n".join(wrong) or ("as stored" if args.check else "written"))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
