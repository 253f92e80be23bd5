#!/usr/bin/env python3
"""Run clang-tidy over every source of ours, and remember what was clean.

usage: clang_tidy.py BUILD_DIR [-j N]

BUILD_DIR holds compile_commands.json of a build with clang.  A file is checked again only when its
preprocessed text, the configuration or the version of clang-tidy has changed; what is clean is
noted in .cache/clang-tidy/.  The last line counts the files.
"""
import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = ("cli", "common", "coordinator", "kernels", "tests", "worker")
CACHE = ROOT / ".cache" / "clang-tidy"


def sources(build):
    """(file, compile command without its output), each file once."""
    seen = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = Path(entry["directory"], entry["file"]).resolve()
        inside = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in OURS
        if inside and path.suffix == ".c":
            seen.setdefault(path, (entry["directory"], shlex.split(entry["command"])))
    return sorted(seen.items())


def fingerprint(directory, command, settings):
    """What clang-tidy would see; None when the file does not even preprocess."""
    arguments = [a for a in command if a not in ("-c", "-MD", "-MMD")]
    if "-o" in arguments:
        at = arguments.index("-o")
        del arguments[at:at + 2]
    done = subprocess.run([*arguments, "-E", "-o", "-"], cwd=directory, capture_output=True)
    if done.returncode:
        return None
    return hashlib.sha256(settings + "\0".join(arguments).encode() + done.stdout).hexdigest()


def check(path, directory, command, settings, build):
    """An empty string when the file is clean, else what clang-tidy said."""
    key = fingerprint(directory, command, settings)
    if key and (CACHE / key).exists():
        return ""
    done = subprocess.run(["clang-tidy", "--quiet", "-p", str(build), str(path)],
                          capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        return done.stdout + done.stderr
    if key:
        (CACHE / key).touch()
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("-j", "--jobs", type=int, default=2)
    args = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    version = subprocess.run(["clang-tidy", "--version"], capture_output=True, check=True).stdout
    settings = version + (ROOT / ".clang-tidy").read_bytes()
    build = args.build.resolve()
    files = sources(build)
    with ThreadPoolExecutor(args.jobs) as pool:
        said = list(pool.map(lambda file: check(file[0], *file[1], settings, build), files))
    for (path, _), text in zip(files, said):
        if text:
            print(f"{path.relative_to(ROOT)}:\n{text}", file=sys.stderr)
    bad = sum(bool(text) for text in said)
    print(f"clang-tidy: {len(files) - bad} files clean, {bad} not")
    return 1 if bad or not files else 0


if __name__ == "__main__":
    sys.exit(main())
