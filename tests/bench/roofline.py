#!/usr/bin/env python3
"""What a model should take on GPUs, from the counts of winnow-bench-plan: tables in Markdown.

usage: roofline.py [CONFIG.json]      default: that of LLaMA-3.1-8B

The counts are the code's own (worker/work.h).  A time is compute, or memory if that is longer,
plus the collectives, which do not overlap with anything yet; at the efficiencies below.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("WINNOW_BUILD", ROOT / "build"))
CONFIG = ROOT / "tests" / "models" / "rows" / "configs" / "llama-3.1-8b-instruct.json"
TOKENS = (8192, 32768, 131072)
RANKS = (1, 2, 4, 8)

# Dense bf16 FLOP/s, bytes/s of memory, bytes/s of NVLink out of a GPU; and the share of the peak
# that attention is taken to reach: with wgmma on H100 what was measured (docs/cuda.md), with mma.sync
# on A100 a guess, on B200 what an H100 does with it.
GPUS = {
    "A100": (312e12, 2.04e12, 300e9, 0.60),
    "H100": (989e12, 3.35e12, 450e9, 0.52),
    "H200": (989e12, 4.80e12, 450e9, 0.52),
    "B200": (2250e12, 8.00e12, 900e9, 0.12),
}
GEMM, MEMORY, LINK, LATENCY_S = 0.64, 0.70, 0.70, 12e-6  # the first two as measured on an H100


def count(folder, tokens, ranks):
    done = subprocess.run([BUILD / "bin" / "winnow-bench-plan", folder, str(tokens), str(ranks)],
                          capture_output=True, text=True, check=True)
    return {(w["method"], w["phase"]): w for w in map(json.loads, done.stdout.splitlines())}


def seconds(work, gpu):
    flops, memory, link, attention = GPUS[gpu]
    compute = work["linear"] / (flops * GEMM) + work["attention"] / (flops * attention)
    moved = sum(work[name] for name in ("weight_bytes", "kv_bytes", "residual_bytes"))
    return (max(compute, moved / (memory * MEMORY)) + work["collective_bytes"] / (link * LINK)
            + work["collectives"] * LATENCY_S)


def print_counts(counts):
    print("| tokens | tp | method | prefill TFLOP: linear, attention | GB: weights, KV, residual | "
          "collectives: GB, number | decode GB: weights, KV | collectives: MB, number |")
    print("|" + "---|" * 8)
    for (tokens, ranks), works in counts.items():
        for method in ("FULL", "FASTKV"):
            p, d = works[method, "prefill"], works[method, "decode"]
            print(f"| {tokens} | {ranks} | {method} | {p['linear'] / 1e12:.0f}, "
                  f"{p['attention'] / 1e12:.0f} | {p['weight_bytes'] / 1e9:.0f}, "
                  f"{p['kv_bytes'] / 1e9:.0f}, {p['residual_bytes'] / 1e9:.0f} | "
                  f"{p['collective_bytes'] / 1e9:.1f}, {p['collectives']:.0f} | "
                  f"{d['weight_bytes'] / 1e9:.2f}, {d['kv_bytes'] / 1e9:.2f} | "
                  f"{d['collective_bytes'] / 1e6:.2f}, {d['collectives']:.0f} |")


def print_times(counts):
    print("\n| tokens | tp | " + " | ".join(GPUS) + " |")
    print("|" + "---|" * (2 + len(GPUS)))
    for (tokens, ranks), works in counts.items():
        cells = []
        for gpu in GPUS:
            prefill = [seconds(works[m, "prefill"], gpu) for m in ("FULL", "FASTKV")]
            decode = [1e3 * seconds(works[m, "decode"], gpu) for m in ("FULL", "FASTKV")]
            cells.append(f"{prefill[0]:.2f} / {prefill[1]:.2f} s, "
                         f"{decode[0]:.1f} / {decode[1]:.1f} ms")
        print(f"| {tokens} | {ranks} | " + " | ".join(cells) + " |")


def main():
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(sys.argv[1] if len(sys.argv) > 1 else CONFIG, Path(folder) / "config.json")
        counts = {(tokens, ranks): count(folder, tokens, ranks)
                  for tokens in TOKENS for ranks in RANKS}
    print_counts(counts)
    print_times(counts)


if __name__ == "__main__":
    main()
