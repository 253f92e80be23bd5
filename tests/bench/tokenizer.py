#!/usr/bin/env python3
"""tokenizer.py - encoding long and hostile texts: ours against the tokenizers library, one thread.

    tokenizer.py                               # the tokenizers of this repository
    tokenizer.py DIR... --text essays.txt      # other tokenizers, another document
    tokenizer.py --check                       # exit 1 where the library is faster on English

DIR holds a tokenizer.json.  Without --text the English document is the log in tests/data and then
what Python says about itself (its help topics and docstrings), cut at 1 MB: nothing repeats.
Each text is encoded several times by both, in turn; the best time counts.  Times are processor
time of the one thread that encodes, so other load on the machine matters little.
"""
import argparse
import os
import random
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import pydoc_data.topics  # noqa: E402

import tokenizers  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("WINNOW_BUILD", ROOT / "build"))
MB = 1_000_000
MASK = (1 << 64) - 1


def english():
    """1 MB of text that every Python brings along."""
    parts = [(ROOT / "tests" / "data" / "keepers_log.txt").read_text()]
    parts += [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    size = sum(map(len, parts))
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        if size > MB:
            break
        quoted = path.read_text(errors="replace").split('"""')[1::2]
        parts += (part + "\n\n" for part in quoted)
        size += sum(len(part) + 2 for part in quoted)
    return "".join(parts)


def cut(text, size):
    return text.encode()[:size].decode(errors="ignore")


def texts(document):
    letters = random.Random(1).choices(string.ascii_lowercase, k=MB)
    letters = "".join(letters)
    return {
        "English, 1 MB": cut(document, MB),
        "English, 1/4": cut(document, MB // 4),
        "letters without a space, 1 MB": letters,
        "letters without a space, 1/4": letters[:MB // 4],
        "one letter, 1 MB": "a" * MB,
        "one letter, 1/4": "a" * (MB // 4),
        "combining marks, 100,000": "e" + "\u0301" * 100_000,
        "combining marks, 25,000": "e" + "\u0301" * 25_000,
        "spaces, 1 MB": " " * MB,
        "newlines, 1 MB": "\n" * MB,
    }


def fnv(ids):
    value = 0xcbf29ce484222325
    for number in ids:
        for byte in number.to_bytes(4, "little"):
            value = (value ^ byte) * 0x100000001b3 & MASK
    return value


def ours(folder, path):
    done = subprocess.run([BUILD / "bin" / "winnow-bench-tokenizer", folder / "tokenizer.json", "2",
                           path], capture_output=True, text=True, check=True)
    seconds, n, value = done.stdout.split()
    return float(seconds), int(n), int(value, 16)


def theirs(tokenizer, text):
    """The faster of the library's two ways: with offsets, and without (a batch of one)."""
    begin = time.thread_time()
    encoding = tokenizer.encode(text, add_special_tokens=False)
    middle = time.thread_time()
    tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return min(middle - begin, time.thread_time() - middle), encoding.ids


def compare(folder, name, text, rounds):
    """(our seconds, their seconds, ids, whether the ids are the same)"""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    best = [float("inf"), float("inf")]
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        for _ in range(rounds):
            seconds, n, value = ours(folder, file.name)
            best[0] = min(best[0], seconds)
            seconds, ids = theirs(tokenizer, text)
            best[1] = min(best[1], seconds)
    return *best, n, n == len(ids) and value == fnv(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path,
                        default=[ROOT / "tests/models/needle-tiny", ROOT / "tests/models/stories260k"])
    parser.add_argument("--text", type=Path, help="the English document")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    document = options.text.read_text() if options.text else english()
    print(f"tokenizers {tokenizers.__version__}, best of {options.rounds}, one thread\n")
    print("| tokenizer | text | ids | winnow, s | library, s | times as fast | same ids |")
    print("|---|---|---:|---:|---:|---:|---|")
    slower = []
    for folder in options.folders:
        for name, text in texts(document).items():
            mine, library, n, same = compare(folder, name, text, options.rounds)
            print(f"| {folder.resolve().name} | {name} | {n:,} | {mine:.3f} | {library:.3f} "
                  f"| {library / mine:.1f} | {'yes' if same else 'NO'} |", flush=True)
            if not same or (name.startswith("English") and mine > library):
                slower.append(f"{folder.name}: {name}")
    if options.check and slower:
        sys.exit("not as fast, or not the same: " + "; ".join(slower))


if __name__ == "__main__":
    main()
