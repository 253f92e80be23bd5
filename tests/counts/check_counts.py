#!/usr/bin/env python3
"""Instructions of some operations and of parts of the engine, against what they were.

usage: check_counts.py [--program FILE] [--update]

Times say nothing on a busy machine; instructions of one thread do not depend on it.  callgrind
counts them in build/bin/winnow-count-instructions on the AVX2 path.  More than the count in
counts.json and a tolerance fails; --update writes that file.  Without valgrind, or without AVX2,
the program says so and ends with 77, which is "skipped".
"""
import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = Path(__file__).with_name("counts.json")
SKIPPED, TOLERANCE = 77, 0.05


def inclusive(text):
    """{name: instructions} of the counted_*() functions in callgrind's own file: what they cost
    themselves, and what they called.

    A function's lines follow its "fn=(id) name"; a line of costs is "position count", and the
    line after "calls=" has the cost of the call, which is inclusive.
    """
    names, costs, current = {}, {}, None
    for line in text.splitlines():
        found = re.match(r"(c?)fn=\((\d+)\)(?: (.*))?", line)
        if found:
            called, number, name = found.groups()
            if name:
                names[number] = name.partition(".")[0]  # .constprop.0
            if not called:
                current = names[number]
        elif re.match(r"[+\-*\d]\S* \d+$", line):
            costs[current] = costs.get(current, 0) + int(line.split()[1])
    return {name.removeprefix("counted_"): costs[name] for name in sorted(costs)
            if name.startswith("counted_")}


def count(program):
    """Runs the program under callgrind."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--toggle-collect=counted_*",
             f"--callgrind-out-file={out}", "-q", str(program)], capture_output=True, text=True)
        if done.returncode == SKIPPED:
            print(done.stderr.strip())
            sys.exit(SKIPPED)
        if done.returncode:
            sys.exit(f"{program.name} under valgrind: exit status {done.returncode}\n{done.stderr}")
        return inclusive(out.read_text())


def differences(found, expected, tolerance=TOLERANCE):
    """(sentences about what is worse or missing, sentences about what is better)."""
    worse = [f"{name}: no count" for name in expected if name not in found]
    better = []
    for name, cost in found.items():
        if name not in expected:
            worse.append(f"{name}: not in {EXPECTED.name}")
        elif cost > expected[name] * (1 + tolerance):
            worse.append(f"{name}: {cost:,} instructions, {cost / expected[name] - 1:+.0%} "
                         f"against {expected[name]:,}")
        elif cost < expected[name] * (1 - tolerance):
            better.append(f"{name}: {cost:,} instructions, {cost / expected[name] - 1:+.0%}")
    return worse, better


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--program", type=Path,
                        default=ROOT / "build" / "bin" / "winnow-count-instructions")
    parser.add_argument("--update", action="store_true", help="write counts.json")
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        print("check_counts: skipped: there is no valgrind")
        return SKIPPED
    found = count(options.program)
    if options.update:
        EXPECTED.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    worse, better = differences(found, json.loads(EXPECTED.read_text()))
    for sentence in better:
        print(f"better, to be kept with --update: {sentence}")
    for sentence in worse:
        print(f"worse: {sentence}")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
