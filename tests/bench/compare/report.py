"""docs/bench/cpu.md and cpu.svg from the stored results."""
import statistics
from pathlib import Path

from .chart import COLOURS, draw
from .goals import Results, all_goals

BEGIN, END = "<!-- figures: written by tests/bench/compare.py -->", "<!-- end of figures -->"
SETTINGS = {
    "winnow": "one worker, as built for everybody: kernels are chosen at run time",
    "llama.cpp": "GGML_NATIVE, bf16 GGUF, llama-batched-bench, K/V in float16, micro batches of "
                 "512; with flash attention and without",
    "transformers": "bfloat16, sdpa, the prompt in one piece",
    "vLLM": "bfloat16, one process, chunks of 2,048, Intel's OpenMP preloaded; eager, and compiled "
            "where decoding is compared",
}


def table(rows):
    head, *rest = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rest])


def load_name(load):
    model, tokens, new, batch = load
    return f"{model}, {tokens:,} + {new}" + (f", {batch} at once" if batch > 1 else "")


def spread(values, digits, most):
    """The best and the median of the rounds."""
    if not values:
        return "-"
    best = max(values) if most else min(values)
    return f"{best:.{digits}f} / {statistics.median(values):.{digits}f}"


def percent(share):
    return "-" if share is None else f"{100 * share:.0f} %"


def figures(r):
    rows = [("load", "engine", "rounds", "TTFT s", "of GEMM peak", "decode tokens/s",
             "of bandwidth", "whole s", "peak MiB")]
    for load in r.loads():
        for engine in r.engines(load):
            full = "=" not in engine and "FASTKV" not in engine and "HEADKV" not in engine
            peak = r.median(load, engine, "peak_bytes")
            rows.append((load_name(load), engine, str(len(r.values(load, engine, "ttft_s"))),
                         spread(r.values(load, engine, "ttft_s"), 2, False),
                         percent(r.of_peak(load, engine)) if full else "-",
                         spread(r.values(load, engine, "decode_tps"), 1, True),
                         percent(r.of_bandwidth(load, engine)) if full else "-",
                         spread(r.values(load, engine, "total_s"), 1, False),
                         f"{peak / (1 << 20):,.0f}" if peak else "-"))
    return table(rows)


def goal_table(data):
    words = {True: "met", False: "**not met**", None: ""}
    rows = [("what", "goal", "measured", "")]
    rows += [(g.what, g.wanted, g.shown(), words[g.met]) for g in all_goals(data)]
    return table(rows)


def machine_text(data):
    facts, rows = data["machine"], [("threads", "dtype", "GEMM GFLOP/s", "read GB/s")]
    for found in data["limits"]:
        rows.append((str(found["threads"]), found["dtype"], f"{found['gemm_gflops']:.0f}",
                     f"{found.get('read_gbs', 0):.1f}"))
    words = (f"{facts['processor']} (family {facts['family']}, model {facts['model']}), "
             f"{facts['cores']} cores, {facts['memory_gib']} GiB, {', '.join(facts['flags'])}; "
             f"Linux {facts['kernel']}.")
    return f"{words}\n\n{table(rows)}"


def failures(data):
    lines = [f"* {key}: {entry['failed']}" for key, entry in data["cells"].items()
             if "failed" in entry]
    return "\n### What did not run\n\n" + "\n".join(lines) + "\n" if lines else ""


def settings(data):
    lines = [f"* **{name}**: {words}" for name, words in SETTINGS.items()]
    versions = ", ".join(data["peers"].values())
    return "\n".join([*lines, f"* Versions from PyPI: {versions}."])


def markdown(data):
    r = Results(data)
    return "\n\n".join([
        BEGIN, "## The machine and its limits", machine_text(data),
        "## Goals", goal_table(data), "## Figures",
        "Best / median of the rounds. TTFT and peak are of the load; shares count the full "
        "context's FLOPs and bytes. A batch's TTFT is of its first sequence (winnow, vLLM) or of "
        "all together (llama.cpp, transformers).", "![shares of the machine's limits](cpu.svg)",
        figures(r), "## Settings", settings(data) + failures(data), END]) + "\n"


def between(old, new):
    """The page with its figures replaced; what people wrote around them stays."""
    if BEGIN not in old or END not in old:
        return old + new
    return old[:old.index(BEGIN)] + new.rstrip("\n") + old[old.index(END) + len(END):]


def panels(r):
    found = []
    for title, share in (("Prefill: share of the GEMM peak", r.of_peak),
                         ("Decode: share of the read bandwidth", r.of_bandwidth)):
        groups = []
        for load in r.loads():
            if "Prefill" in title and load[1] < 1024:
                continue
            shares = [(engine, share(load, engine)) for engine in r.engines(load)
                      if engine in COLOURS]
            shares = [(engine, value) for engine, value in shares if value is not None]
            if shares:
                groups.append((load_name(load), shares))
        found.append((title, groups))
    return found


def write(data, out):
    """cpu.md and cpu.svg in the folder `out`."""
    page = Path(out) / "cpu.md"
    old = page.read_text() if page.exists() else "# winnow beside its peers on a CPU\n\n"
    page.write_text(between(old, markdown(data)))
    (Path(out) / "cpu.svg").write_text(draw(panels(Results(data))))
