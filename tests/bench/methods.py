#!/usr/bin/env python3
"""methods.py - what each method costs for one long prompt: time, scoring, decoding, memory.

    methods.py                                 # 32,768 tokens, every method
    methods.py --tokens 8192 --methods FULL,SNAPKV
    methods.py --check 5                       # exit 1 where a window method scores for longer

Each method gets a service of its own: one worker with --threads threads, so that its memory is
its own.  The model has random weights (the `wide` of memory.py): costs do not depend on what the
tokens mean, but for FASTGEN, whose heads need all their rows on noise, and ADAKV's shares.  A
prompt of 1,024 tokens comes first.  CPU times are the worker's, which other load disturbs little;
scoring is what the service logs as scoring_ms: everything that a method needs beyond FULL to
choose its rows.  Its share is of the prefill's own time in the same request.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "system"),
                str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402

from make_model import write_model  # noqa: E402
from memory import MIB, WARM_TOKENS, WIDE, Sampler, growth, memory, reset_peak  # noqa: E402
from quality import compression, markdown, stream  # noqa: E402
from service import MODELS, Service, api, full, sampling  # noqa: E402

WINDOW_METHODS = "FASTKV", "SNAPKV", "ADAKV", "HEADKV", "PYRAMIDKV"
METHODS = ("FULL", *WINDOW_METHODS, "GEMFILTER", "STREAMINGLLM", "H2O", "PYRAMIDINFER", "FASTGEN")


def parameters(method):
    """Every method with its defaults; HEADKV's table makes all heads equal."""
    if method == "FULL":
        return full()
    if method == "HEADKV":
        return compression(method, head_scores=[1.0] * (WIDE.layers * WIDE.query_heads))
    return compression(method)


def measure(folder, method, ids, options):
    """One long prompt on a fresh service."""
    flags = ["--threads", options.threads]
    with Service(folder, options=flags, env={"OMP_WAIT_POLICY": "passive"}) as service:
        request = api.GenerateRequest(tokens=api.TokenIds(ids=ids[:WARM_TOKENS]),
                                      compression=parameters(method),
                                      sampling=sampling(max_tokens=2))
        service.generate(request, timeout=options.timeout)
        request = api.GenerateRequest(request_id="long", tokens=api.TokenIds(ids=ids),
                                      compression=parameters(method),
                                      sampling=sampling(max_tokens=options.max_tokens))
        pid, = service.workers()
        idle = memory(pid)
        reset_peak(pid)
        with Sampler([pid]) as sampler:
            done, first, total = stream(service, request, pid, options.timeout)
        return {"method": method, "tokens": len(ids), "threads": options.threads,
                "prefill_cpu_s": first, "prefill_s": done.timing.prefill_ms / 1000,
                "scoring_s": float(service.log_field("long", "scoring_ms")) / 1000,
                "decode_cpu_ms": 1000 * (total - first) / (options.max_tokens - 1),
                "kv_bytes": done.usage.kv_bytes, "kv_bytes_full": done.usage.kv_bytes_full,
                "growth": growth(idle, memory(pid), sampler.peak[pid])}


def share(result):
    """Scoring as a part of the whole prefill."""
    return result["scoring_s"] / result["prefill_s"]


def table(results):
    whole = next((r["prefill_cpu_s"] for r in results if r["method"] == "FULL"), None)
    lines = [["method", "prefill, CPU s", "of FULL's", "scoring, of the prefill",
              "decode, CPU ms a token", "KV MiB", "of FULL's", "memory of the request, MiB"]]
    for r in results:
        lines.append([r["method"], f"{r['prefill_cpu_s']:.1f}",
                      f"{100 * r['prefill_cpu_s'] / whole:.0f} %" if whole else "",
                      f"{100 * share(r):.1f} %", f"{r['decode_cpu_ms']:.1f}",
                      f"{r['kv_bytes'] / MIB:.1f}",
                      f"{100 * r['kv_bytes'] / r['kv_bytes_full']:.0f} %",
                      f"{r['growth'] / MIB:.0f}"])
    return markdown(lines)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32768, help="length of the prompt")
    parser.add_argument("--max-tokens", type=int, default=65, help="to generate, at least 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--timeout", type=float, default=3600, help="of a request, in seconds")
    parser.add_argument("--out", help="write the results there as JSON")
    parser.add_argument("--check", type=float, metavar="PERCENT",
                        help="fail where a window method's scoring is a larger share")
    options = parser.parse_args(argv)
    if options.tokens <= WARM_TOKENS or options.max_tokens < 2:
        parser.error(f"--tokens: more than {WARM_TOKENS}; --max-tokens: at least 2")
    return options


def main(argv=None):
    options = parse(argv)
    ids = np.random.default_rng(7).integers(3, 500, options.tokens).tolist()
    results = []
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as scratch:
        folder = write_model(Path(scratch) / "wide", WIDE, MODELS / "needle-tiny")
        for method in options.methods.split(","):
            results.append(measure(folder, method, ids, options))
            print(f"{method}: {json.dumps(results[-1])}", file=sys.stderr, flush=True)
    print(table(results))
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=1) + "\n")
    if options.check is not None:
        return int(any(r["method"] in WINDOW_METHODS and 100 * share(r) > options.check
                       for r in results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
