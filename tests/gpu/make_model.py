#!/usr/bin/env python3
"""make_model.py - LLaMA-3.1-8B's shape with random bfloat16 weights, drawn by a GPU within seconds.

    make_model.py DIR [--layers 32]        needs torch; the tokenizer is a small one
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "system"))

from make_model import TOKENIZER_FILES, Shape  # noqa: E402


def draw(name, shape):
    """Norms near one, projections of variance 1 / fan-in, embeddings of variance 1."""
    if len(shape) == 1:
        return 1 + 0.1 * torch.randn(shape, device="cuda")
    scale = 1.0 if "embed_tokens" in name else shape[1] ** -0.5
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    shape = Shape(hidden=4096, layers=options.layers, query_heads=32, kv_heads=8, head_dim=128,
                  intermediate=14336, vocab=128256, rope_theta=500000.0, rope="llama3",
                  dtype="bfloat16", seed=3)
    torch.manual_seed(shape.seed)
    options.folder.mkdir(parents=True, exist_ok=True)
    save_file({name: draw(name, sizes).bfloat16().cpu() for name, sizes in shape.tensors()},
              options.folder / "model.safetensors", {"format": "pt"})
    (options.folder / "config.json").write_text(json.dumps(shape.config()))
    for name in TOKENIZER_FILES:
        shutil.copy(ROOT / "tests" / "models" / "needle-tiny" / name, options.folder)


if __name__ == "__main__":
    main()
