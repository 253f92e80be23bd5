#!/usr/bin/env python3
"""memory.py - what a long prompt costs each worker: the formula against the process.

    memory.py                                  # 131,072 tokens, both models, FULL and FASTKV
    memory.py --tokens 8192 --models wide --out result.json
    memory.py --check 10                       # exit 1 where measured is 10 % above predicted

Each method gets a service of its own (a coordinator and local workers), because memory once
touched stays with its process.  A request of 1,024 tokens comes first, so that weights, libraries
and the memory of a chunk are counted in "idle"; then the peak is reset, the long prompt runs, and
the peak is read again.  Predicted is what README.md beside this file derives for that prompt,
less the same for the first one.
"""
import argparse
import contextlib
import json
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

import numpy as np  # noqa: E402

from make_model import Shape, write_model  # noqa: E402
from service import MODELS, Service, fastkv, full, prompt, sampling  # noqa: E402

MIB = 1 << 20
SLICE_ROWS, PAGE_ROWS, WINDOW = 512, 32, 8  # common/slices.h, worker/engine.h, common/method.c
POSITION_BYTES = 4  # of each row of a page (worker/kvcache_bytes.c)
RETAIN_RATE, TSP_RATE = 0.1, 0.2            # FASTKV's defaults
WARM_TOKENS, WARM_NEW = 1024, 2             # the first request
WIDE = Shape(hidden=512, layers=4, query_heads=8, kv_heads=2, head_dim=64, intermediate=1408,
             dtype="bfloat16", tied=True)
METHODS = {"FULL": full, "FASTKV": fastkv}


# ---- the formula

def deal(total, parts, index):
    return total // parts + (index < total % parts)


def split(config, rank, ranks):
    """(query heads, KV heads, MLP columns, vocabulary rows) of a rank, as common/split.c deals."""
    queries, keys = config["num_attention_heads"], config["num_key_value_heads"]
    rest = deal(config["intermediate_size"], ranks, rank), deal(config["vocab_size"], ranks, rank)
    if ranks <= keys:
        heads = deal(keys, ranks, rank)
        return heads * queries // keys, heads, *rest
    for head in range(keys):
        mine = deal(ranks, keys, head)
        if rank < mine:
            return deal(queries // keys, mine, rank), 1, *rest
        rank -= mine
    raise AssertionError("every rank has a head")


def rows(config, method, n):
    """Per layer: (rows that enter, rows that each head keeps), as common/method.c counts."""
    layers, entering, out = config["num_hidden_layers"], n, []
    tsp_layer = (layers - 1) // 2
    for layer in range(layers):
        rate = RETAIN_RATE if layer <= tsp_layer else RETAIN_RATE / TSP_RATE
        selects = method == "FASTKV" and entering > WINDOW and entering >= int(entering * rate)
        out.append((entering, max(int(entering * rate), WINDOW) if selects else entering))
        if selects and layer == tsp_layer:
            entering = max(int(entering * TSP_RATE), WINDOW)
    return out


def predict(config, method, n, new, rank, ranks, element):
    """Bytes that a prompt of n tokens and its new tokens need on one rank, by what they are for."""
    queries, keys, columns, vocab = split(config, rank, ranks)
    hidden, d = config["hidden_size"], config["head_dim"]
    pages = sum(-(-(kept + new - 1) // PAGE_ROWS) for _, kept in rows(config, method, n)) * keys
    chunk = min(n, SLICE_ROWS) * (element * (hidden + 2 * d * (queries + keys) + 2 * columns)
                                  + (5 if ranks > 1 else 2) * 4 * hidden)
    lists = 6 * 4 * n                            # ids, positions, their copies; the plan's prompt
    if method == "FASTKV":
        lists += 4 * n * (2 * queries + 1 + 3)   # scores, pooled, their total; the chosen rows
    return {"hidden": 4 * n * hidden, "layer_kv": 2 * n * keys * d * element,
            "pool": pages * PAGE_ROWS * (2 * d * element + POSITION_BYTES),
            "step": chunk + lists + 4 * vocab}


def weight_bytes(config, rank, ranks, element):
    """What a rank's matrices take; norms are float32."""
    queries, keys, columns, vocab = split(config, rank, ranks)
    hidden, d = config["hidden_size"], config["head_dim"]
    layer = hidden * (2 * d * (queries + keys) + 3 * columns)
    tables = 1 if config.get("tie_word_embeddings") else 2
    norms = 4 * hidden * (2 * config["num_hidden_layers"] + 1)
    return element * (config["num_hidden_layers"] * layer + tables * vocab * hidden) + norms


# ---- the processes

def memory(pid):
    """{"VmHWM": bytes, "VmRSS": ..., "RssAnon": ..., ...} of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: int(kib) << 10
            for name, kib in re.findall(r"^(VmHWM|VmRSS|RssAnon|RssFile|RssShmem):\s+(\d+) kB", text, re.M)}


def reset_peak(pid):
    """VmHWM starts again at VmRSS; where that is not allowed the sampled peak is used."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


class Sampler(threading.Thread):
    """The largest anonymous memory of each process, looked at every 50 ms."""

    def __init__(self, pids):
        super().__init__(daemon=True)
        self.peak = {pid: memory(pid)["RssAnon"] for pid in pids}
        self.stopped = threading.Event()

    def run(self):
        while not self.stopped.wait(0.05):
            for pid in self.peak:
                with contextlib.suppress(OSError, KeyError):
                    self.peak[pid] = max(self.peak[pid], memory(pid)["RssAnon"])

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.join()


def growth(idle, after, sampled):
    """Anonymous memory at the peak beyond idle: sampled, or of VmHWM what nothing else explains."""
    return max(sampled, after["VmHWM"] - after["RssFile"] - after["RssShmem"]) - idle["RssAnon"]


def measure(folder, method, ids, options):
    """Runs one prompt on a fresh service; one entry for each worker, smallest growth first."""
    flags = ["--threads", options.threads] if options.threads else []
    with Service(folder, workers=options.workers, options=flags) as service:
        service.generate(**prompt(ids=ids[:WARM_TOKENS]), compression=METHODS[method](),
                         sampling=sampling(max_tokens=WARM_NEW), timeout=options.timeout)
        pids = service.workers()
        idle = {pid: memory(pid) for pid in pids}
        for pid in pids:
            reset_peak(pid)
        begin = time.monotonic()
        with Sampler(pids) as sampler:
            answer = service.generate(**prompt(ids=ids), compression=METHODS[method](),
                                      sampling=sampling(max_tokens=options.max_tokens),
                                      timeout=options.timeout)
        wall = time.monotonic() - begin
        after = {pid: memory(pid) for pid in pids}
        log = service.log_text()
    workers = [{"idle": idle[pid]["VmRSS"], "idle_file": idle[pid]["RssFile"],
                "peak": after[pid]["VmHWM"], "file": after[pid]["RssFile"],
                "growth": growth(idle[pid], after[pid], sampler.peak[pid])} for pid in pids]
    return {"workers": sorted(workers, key=lambda worker: worker["growth"]),
            "reported_weights": sorted(map(int, re.findall(r"weight_bytes=(\d+)", log))),
            "prefill_s": answer.timing.prefill_ms / 1000, "wall_s": wall,
            "decode_ms": answer.timing.decode_ms / max(1, answer.usage.completion_tokens - 1),
            "propagated": answer.usage.propagated_tokens,
            "kv_bytes": answer.usage.kv_bytes, "kv_bytes_full": answer.usage.kv_bytes_full}


def run(name, folder, method, options):
    config = json.loads((Path(folder) / "config.json").read_text())
    element = 2 if config.get("torch_dtype") == "bfloat16" else 4
    n, ranks = options.tokens, options.workers
    ids = np.random.default_rng(7).integers(3, config["vocab_size"] - 8, n).tolist()
    result = measure(folder, method, ids, options)
    predicted = sorted((predict(config, method, n, options.max_tokens, r, ranks, element)
                        for r in range(ranks)), key=lambda parts: sum(parts.values()))
    warm = sorted(sum(predict(config, method, WARM_TOKENS, WARM_NEW, r, ranks, element).values())
                  for r in range(ranks))
    for worker, parts, before in zip(result["workers"], predicted, warm):
        worker["predicted"] = parts
        worker["predicted_growth"] = sum(parts.values()) - before
    weights = sorted(weight_bytes(config, r, ranks, element) for r in range(ranks))
    if result["reported_weights"] != weights:
        print(f"weights: the workers report {result['reported_weights']}, not {weights}",
              file=sys.stderr)
    return {"model": name, "method": method, "tokens": n, "ranks": ranks, "weights": weights,
            "all_layers_kv": predicted[-1]["layer_kv"] * config["num_hidden_layers"], **result}


# ---- the report

COLUMNS = ("model", "method", "worker", "weights", "hidden", "layer K/V", "pool", "step",
           "predicted", "measured", "differ", "idle", "peak", "prefill s", "decode ms")


def table_rows(result):
    for i, worker in enumerate(result["workers"]):
        parts = worker["predicted"]
        amounts = (result["weights"][i], parts["hidden"], parts["layer_kv"], parts["pool"],
                   parts["step"], worker["predicted_growth"], worker["growth"])
        differ = 100 * (worker["growth"] / worker["predicted_growth"] - 1)
        yield (result["model"], result["method"], str(i),
               *(f"{amount / MIB:.1f}" for amount in amounts), f"{differ:+.1f} %",
               f"{worker['idle'] / MIB:.1f}", f"{worker['peak'] / MIB:.1f}",
               f"{result['prefill_s']:.1f}", f"{result['decode_ms']:.1f}")


def print_table(results):
    lines = [COLUMNS, *(row for result in results for row in table_rows(result))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))
    print(f"MiB of each worker; predicted and measured: what the prompt adds to idle, which is "
          f"after {WARM_TOKENS} tokens.")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tokens", type=int, default=131072, help="length of the prompt")
    parser.add_argument("--max-tokens", type=int, default=8, help="tokens to generate")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, help="of each worker; default: the program's")
    parser.add_argument("--models", default="needle-tiny,wide",
                        help="wide (random weights), a bundled model or a directory; by comma")
    parser.add_argument("--methods", default="FULL,FASTKV")
    parser.add_argument("--timeout", type=float, default=3600, help="of a request, in seconds")
    parser.add_argument("--out", help="write the results there as JSON")
    parser.add_argument("--check", type=float, metavar="PERCENT",
                        help="fail where measured is more than this above predicted")
    options = parser.parse_args(argv)
    if options.tokens <= WARM_TOKENS:
        parser.error(f"--tokens: more than {WARM_TOKENS}")
    return options


def main(argv=None):
    options = parse(argv)
    results = []
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as scratch:
        for name in options.models.split(","):
            if name == "wide":
                folder = write_model(Path(scratch) / "wide", WIDE, MODELS / "needle-tiny")
            else:
                folder = MODELS / name if (MODELS / name).exists() else Path(name)
            for method in options.methods.split(","):
                results.append(run(name, folder, method, options))
                print_table(results[-1:])
    if len(results) > 1:
        print_table(results)
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=1) + "\n")
    if options.check is not None:
        limit = 1 + options.check / 100
        return int(any(worker["growth"] > limit * worker["predicted_growth"]
                       for result in results for worker in result["workers"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
