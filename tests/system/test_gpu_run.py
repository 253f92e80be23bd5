"""tests/gpu/run.sh, which proves winnow on real GPUs, on the emulated one: it must not fail there
for reasons of its own."""
import json
import os
import subprocess

import pytest

from service import BUILD, ROOT


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for path in [*(BUILD / "cuda-host" / "bin").iterdir(), BUILD / "bin" / "winnow",
                 BUILD / "bin" / "winnow-bench-plan"]:
        (folder / path.name).symlink_to(path)
    # as on a GPU, where launches block: operations are done when they return
    operation = folder / "winnow-gpu-test_top_k"
    operation.write_text(f"#!/bin/sh\nexec env -u WINNOW_CUDA_HOST {BUILD}/bin/cuda_test_top_k\n")
    operation.chmod(0o755)
    return folder


def run(programs, emulated, *words):
    env = {**os.environ, "LD_LIBRARY_PATH": str(BUILD / "cuda-host" / "lib"),
           "WINNOW_CUDA_HOST": emulated}
    return subprocess.run([ROOT / "tests" / "gpu" / "run.sh", "--programs", programs, *words],
                          capture_output=True, text=True, timeout=600, env=env)


def test_it_proves_and_measures(programs, tmp_path):
    out = tmp_path / "results.json"
    done = run(programs, "devices=2 memory=400 lazy", "--quick", "--lengths", "48", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert results["failed"] == 0 and len(results["doctor"]["gpus"]) == 2
    assert results["goldens"] == {"passed": 1, "failed": 0, "status": 0}
    assert results["operations"] == {"passed": 1, "failed": 0}
    assert {"prefill", "e2e", "throughput"} <= set(results)
    assert {plan["method"] for plan in results["plan_48"]} == {"FULL", "FASTKV"}


def test_it_does_not_pass_where_nothing_can_be_proven(programs, tmp_path):
    done = run(programs, "devices=0", "--quick", "--out", tmp_path / "results.json")
    assert done.returncode == 1 and "no GPU: nothing can be proven" in done.stdout
