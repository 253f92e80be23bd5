#!/usr/bin/env python3
"""compare.py - winnow beside llama.cpp, transformers and vLLM on this machine.

    compare.py --setup                          # models and peers (once, some minutes)
    compare.py                                  # all short loads, three rounds, and the report
    compare.py --long --budget-minutes 60       # with the long ones, and stop in time
    compare.py --only '160M 8192' --wrap quiet  # some loads, each run behind a lock
    compare.py --report                         # only write docs/bench/cpu.md and cpu.svg again

Each run of a cell is a process of its own; its result goes into one JSON file at once, and what is
there already is not measured again (--fresh forgets it).  README.md beside this file says more.
"""
import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE)]

from compare import engines, machine, peers, report  # noqa: E402
from compare.cells import Cell, all_cells  # noqa: E402
from compare.shapes import size_of  # noqa: E402
from compare.store import Store, plan  # noqa: E402
from models import CACHE, NAMES, model_folder  # noqa: E402

LIMIT_S = 3600  # of one run of a cell


def set_up(options, places):
    for name in NAMES:
        model_folder(name, options.cache)
    for name in peers.INSTALLERS:
        peers.install(name, options.cache, shlex.split(options.build_wrap))
    for name in NAMES:
        peers.convert(name, places)
    for name in ("1B", "160M"):
        peers.convert(name, places, "Q8_0")


def run_here(text, places):
    """In the process of a cell: one round, as JSON."""
    given = json.loads(text)
    if given == "limits":
        result = machine.measure(places, ROOT, engines.execute)
    else:
        result = engines.run(Cell(**given), places)
    print(json.dumps(result))


def run_apart(given, options):
    """One round in a process of its own, behind the wrapper."""
    command = [*engines.DIES_WITH_US, *shlex.split(options.wrap), sys.executable, __file__,
               "--cache", str(options.cache), "--cell", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(said[-1] if said else f"exit status {done.returncode}")
    return engines.last_json(done.stdout)


def chosen(options):
    return [cell for cell in all_cells()
            if (options.long or not cell.long)
            and (not options.only or any(part in cell.key for part in options.only))
            and (not options.engines or cell.engine in options.engines.split(","))]


def count_work(cells, store, places):
    """Sizes of the models, and the FLOPs of long prompts by method (winnow-bench-plan)."""
    sizes = store.data.setdefault("sizes", {})
    work = store.data.setdefault("work", {})
    for cell in cells:
        if cell.model not in sizes:
            config = json.loads((places.model(cell.model) / "config.json").read_text())
            sizes[cell.model] = asdict(size_of(config))
        name = f"{cell.model} {cell.tokens}"
        if cell.engine == "winnow" and cell.tokens >= 8192 and name not in work:
            text = engines.execute([ROOT / "build" / "bin" / "winnow-bench-plan",
                                    places.model(cell.model), cell.tokens, 1])
            lines = [json.loads(line) for line in text.splitlines()]
            work[name] = {w["method"]: w["linear"] + w["attention"] for w in lines
                          if w["phase"] == "prefill"}


def measure(options, store, places):
    begin = time.monotonic()
    store.forget_failures(chosen(options))
    if not store.data["limits"] or options.limits:
        store.data["machine"] = machine.facts()
        store.data["limits"] = run_apart("limits", options)
        store.data["peers"] = peers.VERSIONS
        store.save()
    count_work(chosen(options), store, places)
    for turn, cell in plan(chosen(options), store):
        left = 60 * options.budget_minutes - (time.monotonic() - begin)
        if store.failed(cell) or store.seconds(cell) > left or turn >= options.rounds:
            continue
        start = time.monotonic()
        try:
            result = run_apart(cell.as_json(), options)
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            print(f"{cell.key}: failed: {error}", file=sys.stderr, flush=True)
            store.fail(cell, str(error)[-300:])
            continue
        store.add(cell, result, time.monotonic() - start)
        print(f"{cell.key}: ttft {result['ttft_s']:.3f} s, decode {result['decode_tps']:.1f}/s, "
              f"{result['peak_bytes'] >> 20} MiB", file=sys.stderr, flush=True)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="make the models, install the peers")
    parser.add_argument("--report", action="store_true", help="only write the report again")
    parser.add_argument("--long", action="store_true", help="also the loads that take long")
    parser.add_argument("--only", action="append", metavar="TEXT",
                        help="cells with it in their key")
    parser.add_argument("--engines", help="only these, by comma")
    parser.add_argument("--rounds", type=int, default=3, help="at most so many of each cell")
    parser.add_argument("--fresh", action="store_true", help="forget the chosen cells first")
    parser.add_argument("--limits", action="store_true", help="measure the machine's limits again")
    parser.add_argument("--budget-minutes", type=float, default=1e6,
                        help="start nothing that would end later")
    parser.add_argument("--wrap", default="", metavar="CMD", help="goes before each run of a cell")
    parser.add_argument("--build-wrap", default="nice", metavar="CMD", help="before installations")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench",
                        help="folder of cpu.json, cpu.md and cpu.svg")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    options = parse(argv)
    places = engines.Places(options.cache)
    if options.cell:
        return run_here(options.cell, places)
    if options.setup:
        return set_up(options, places)
    store = Store(options.out / "cpu.json")
    if options.fresh:
        for cell in chosen(options):
            store.data["cells"].pop(cell.key, None)
    if not options.report:
        measure(options, store, places)
    report.write(store.data, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
