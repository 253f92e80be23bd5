"""Fixtures of the system tests: services that several tests share, started once."""
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from service import MODELS, Service  # noqa: E402


@pytest.fixture(scope="session")
def needle():
    """The retrieval model on two workers, in float32, willing to show its traces."""
    with Service(MODELS / "needle-tiny", workers=2, dtype="float32",
                 options=["--enable-trace"]) as service:
        yield service


@pytest.fixture(scope="session")
def stories():
    """The story model (512 positions) on one worker, without traces."""
    with Service(MODELS / "stories260k", workers=1, dtype="float32") as service:
        yield service


@pytest.fixture(scope="session")
def needle_cases():
    """Questions to the retrieval model, by length: {4096: [case, ...], ...}."""
    cases = {}
    with open(MODELS / "needle-tiny" / "test_public.jsonl") as lines:
        for case in map(json.loads, lines):
            cases.setdefault(case["length"], []).append(case)
    return cases


@pytest.fixture(scope="session")
def long_prompt(needle_cases, needle):
    """131,067 token ids: a prefill that takes long enough to be interrupted."""
    return needle.tokenize(needle_cases[131072][0]["prompt"])
