"""Many streams at once: a small run of tests/bench/streams.py, whose checks it makes."""
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import streams  # noqa: E402


def test_each_stream_ends_once_with_the_tokens_of_a_run_alone():
    result = streams.measure(Namespace(streams=150, new=16, rounds=6, sample=15, threads=1, timeout=120))
    memory = [r["rss_mib"] for r in result["rounds"]]
    assert result["checked"] == 15
    assert memory[-1] < memory[1] + 4, f"the coordinator grows: {memory}"
    assert all(r["requests"] * r["new"] == r["tokens"] for r in result["rounds"])
