"""report.py - the answers of an evaluation as JSON, a table and a plot."""
import json
from collections import defaultdict
from statistics import mean

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

# small files, the same ones for the same answers
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "winnow"})
NO_DATE = {"Date": None}
HEAT = ("needle", "callsigns")  # suites whose examples have a length and a depth


def cells(entries, key):
    """Mean scores in percent by (method, key)."""
    found = defaultdict(list)
    for e in entries:
        found[e["method"], key(e)].append(100 * e["score"])
    return {k: (round(mean(v), 2), len(v)) for k, v in found.items()}


def column(suite):
    """What the columns of the table are."""
    if suite in HEAT:
        return lambda e: e["length"]
    return lambda e: e["task"]


def table(entries, methods, key):
    by_cell = cells(entries, key)
    columns = sorted({k for _, k in by_cell})
    counts = {c: max(by_cell.get((m, c), (0, 0))[1] for m in methods) for c in columns}
    lines = ["| method | KV kept | TTFT, mean s | " + " | ".join(f"{c} ({counts[c]})" for c in columns)
             + " | mean |", "|---" * (len(columns) + 4) + "|"]
    for method in methods:
        own = [e for e in entries if e["method"] == method]
        if not own:
            continue
        scores = [by_cell.get((method, c)) for c in columns]
        lines.append(
            f"| {method} | {100 * mean(e['kept'] for e in own):.0f} % "
            f"| {mean(e['ttft_ms'] for e in own) / 1000:.2f} | "
            + " | ".join("-" if s is None else f"{s[0]:.1f}" for s in scores)
            + f" | {mean(s[0] for s in scores if s is not None):.1f} |")
    return "\n".join(lines) + "\n"


def plot_bars(path, entries, methods, key):
    by_cell = cells(entries, key)
    columns = sorted({k for _, k in by_cell}, key=str)
    figure, axes = pyplot.subplots(figsize=(max(6, 0.9 * len(columns)), 4), layout="constrained")
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        heights = [by_cell.get((method, c), (0, 0))[0] for c in columns]
        axes.bar([x + i * width for x in range(len(columns))], heights, width, label=method)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(columns))],
                    map(str, columns), rotation=45)
    axes.set_ylabel("score, %")
    axes.set_ylim(0, 100)
    figure.legend(loc="outside upper left", ncols=2)
    figure.savefig(path, metadata=NO_DATE)
    pyplot.close(figure)


def plot_heat(path, entries, methods):
    """Depth against length, a map for each method, four in a row."""
    lengths = sorted({e["length"] for e in entries})
    depths = sorted({e["depth"] for e in entries})
    across = min(4, len(methods))
    down = -(-len(methods) // across)
    figure, axes = pyplot.subplots(down, across, figsize=(1.2 + 2.6 * across, 2.6 * down),
                                   squeeze=False, layout="constrained", sharex=True, sharey=True)
    for axis in axes.flat[len(methods):]:
        axis.set_visible(False)
    for axis, method in zip(axes.flat, methods):
        scores = cells([e for e in entries if e["method"] == method],
                       lambda e: (e["length"], e["depth"]))
        grid = [[scores.get((method, (n, d)), (float("nan"),))[0] for n in lengths] for d in depths]
        image = axis.imshow(grid, aspect="auto", vmin=0, vmax=100, cmap="viridis")
        axis.set_title(method.replace(":", "\n"), fontsize=7)
        axis.set_xticks(range(len(lengths)), map(str, lengths), rotation=45)
        axis.set_yticks(range(len(depths)), map(str, depths))
    figure.supxlabel("tokens", fontsize=9)
    figure.supylabel("depth, %", fontsize=9)
    figure.colorbar(image, ax=axes, label="score, %")
    figure.savefig(path, metadata=NO_DATE)
    pyplot.close(figure)


def write(stem, suite, entries, methods):
    """STEM.json, STEM.md and STEM.svg."""
    key = column(suite)
    stem.with_suffix(".md").write_text(table(entries, methods, key))
    stem.with_suffix(".json").write_text(json.dumps({
        "suite": suite, "methods": methods,
        "scores": [{"method": m, "cell": c, "score": s, "examples": n}
                   for (m, c), (s, n) in sorted(cells(entries, key).items(), key=str)]}, indent=1) + "\n")
    if suite in HEAT:
        plot_heat(stem.with_suffix(".svg"), entries, methods)
    else:
        plot_bars(stem.with_suffix(".svg"), entries, methods, key)
