#!/usr/bin/env python3
"""models.py - make the models that benchmarks run: real shapes, random bfloat16 weights.

    models.py                # makes what is missing of all, and prints each folder
    models.py 160M --cache /tmp/bench

The same names give the same weights on every machine.  Prompts are token ids: the tokenizer is a
bundled one, whose vocabulary is smaller.  SmolLM2 is a real model (tests/models/make_smollm2.py).
"""
import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "system"))

from make_model import Shape, write_model  # noqa: E402

CACHE = Path(os.environ.get("WINNOW_BENCH_CACHE", ROOT / ".cache" / "bench"))
SHAPES = {
    "1B": Shape(hidden=2048, layers=16, query_heads=32, kv_heads=8, head_dim=64,   # Llama-3.2-1B
                intermediate=8192, vocab=128256, rope_theta=500000.0, tied=True,
                dtype="bfloat16", seed=1),
    "160M": Shape(hidden=768, layers=12, query_heads=12, kv_heads=4, head_dim=64,  # attention-heavy
                  intermediate=2048, vocab=32000, dtype="bfloat16", seed=2),
}
NAMES = (*SHAPES, "SmolLM2")


def model_folder(name, cache=CACHE):
    """The folder of a model, made if it is not there yet."""
    folder = Path(cache) / "models" / name
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    if name == "SmolLM2":
        maker = ROOT / "tests" / "models" / "make_smollm2.py"
        subprocess.run([sys.executable, maker, folder], check=True)
        return folder
    made = write_model(folder.with_name(name + ".part"), SHAPES[name],
                       ROOT / "tests" / "models" / "needle-tiny")
    return made.rename(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of " + ", ".join(NAMES))
    parser.add_argument("--cache", default=CACHE, help="default: %(default)s")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no model {', '.join(sorted(unknown))}")
    for name in options.names or NAMES:
        print(model_folder(name, options.cache))


if __name__ == "__main__":
    main()
