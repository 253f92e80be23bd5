"""The comparison with other engines (tests/bench/compare.py): what it does without them."""
import json
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
import pytest

from make_model import Shape, write_model
from service import MODELS, ROOT

sys.path[:0] = [str(ROOT / "tests" / "bench"), str(ROOT / "tests" / "counts")]

import check_counts  # noqa: E402
from compare import chart, engines, goals, machine, peers, report, to_gguf  # noqa: E402
from compare.cells import Cell, all_cells  # noqa: E402
from compare.shapes import size_of  # noqa: E402
from compare.store import Store, plan  # noqa: E402

LOAD = "1B", 2048, 32, 1


def test_every_cell_has_a_key_of_its_own():
    keys = [cell.key for cell in all_cells()]
    assert len(set(keys)) == len(keys)


def test_a_result_is_the_last_line_of_json():
    assert engines.last_json('{"a": 1}\n{"b": 2}\nbye\n') == {"b": 2}
    with pytest.raises(ValueError, match="no result"):
        engines.last_json("nothing\n")


def test_a_failed_engine_says_why():
    with pytest.raises(RuntimeError, match="exit status 3: broken"):
        engines.execute(["sh", "-c", "echo broken >&2; exit 3"])


def test_speed_is_counted_while_all_sequences_decode():
    # tokens at 1, 2, 3, 4 and at 2, 3, 4, 5: between 2 and 4 there are four
    assert engines.window([0, 1], [1, 1], [[1, 1, 1], [1, 1, 1]]) == pytest.approx(2)
    assert engines.window([0, 9], [1, 1], [[1], [1]]) is None


def test_a_rerun_measures_what_is_missing(tmp_path):
    cells = [Cell("winnow", "1B", 16, 4, rounds=2), Cell("vLLM", "1B", 16, 4, rounds=2)]
    store = Store(tmp_path / "cpu.json")
    assert [(turn, cell.engine) for turn, cell in plan(cells, store)] == [
        (0, "winnow"), (0, "vLLM"), (1, "winnow"), (1, "vLLM")]
    store.add(cells[0], {"ttft_s": 1.0}, 5.0)
    store.fail(cells[1], "no such wheel")
    again = Store(tmp_path / "cpu.json")
    assert [(turn, cell.engine) for turn, cell in plan(cells, again)] == [(1, "winnow")]
    assert again.seconds(cells[0]) == 5.0
    again.forget_failures(cells)
    assert len(plan(cells, again)) == 3


def results(found):
    """Stored data with one round for each engine of LOAD."""
    cells = {}
    for engine, values in found.items():
        cell = Cell(engine, *LOAD)
        cells[cell.key] = {"cell": cell.as_json(), "rounds": [
            {"peak_bytes": 1 << 30, "total_s": 9.0, "ready_s": 1.0, **values}]}
    config = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
              "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
              "vocab_size": 128256}
    limits = [{"threads": 2, "dtype": "bfloat16", "gemm_gflops": 1000.0, "read_gbs": 50.0}]
    return {"machine": machine.facts("model name : X & Y\nflags : avx2 fma\n",
                                     "MemTotal: 1048576 kB\n"),
            "limits": limits, "peers": {"a": "a==1"}, "work": {}, "cells": cells,
            "sizes": {"1B": vars(size_of(config))}}


def goal(data, what, wanted):
    found, = (g for g in goals.all_goals(data) if g.what == what and wanted in g.wanted)
    return found


def test_a_goal_is_met_missed_or_not_measured():
    fast = results({"winnow": {"ttft_s": 4.7, "decode_tps": 15.0}})
    slow = results({"winnow": {"ttft_s": 9.4, "decode_tps": 15.0}})
    # 2 * 973e6 * 2048 + 65536 * 2048^2 = 4.26 TFLOP
    assert goal(fast, "prefill 2k, 1B", "GEMM peak").value == pytest.approx(0.906, abs=0.002)
    assert goal(fast, "prefill 2k, 1B", "GEMM peak").met is True
    assert goal(slow, "prefill 2k, 1B", "GEMM peak").met is False
    assert goal(slow, "prefill 8k, 1B", "best peer").met is None


def test_a_share_of_the_bandwidth_is_of_that_moment():
    data = results({"winnow": {"ttft_s": 4.7, "decode_tps": 20.0, "read_gbs": 100.0}})
    share = goals.Results(data).of_bandwidth(LOAD, "winnow FULL")
    assert share == pytest.approx(20 * (2.472e9 + 2064 * 32768) / 100e9, rel=0.01)


def test_the_report_keeps_what_people_wrote(tmp_path):
    data = results({"winnow": {"ttft_s": 4.7, "decode_tps": 15.0},
                    "vLLM": {"ttft_s": 6.2, "decode_tps": 14.0}})
    (tmp_path / "cpu.md").write_text(
        f"# Title\n\nBefore.\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n")
    report.write(data, tmp_path)
    report.write(data, tmp_path)
    page = (tmp_path / "cpu.md").read_text()
    assert page.startswith("# Title\n\nBefore.") and page.endswith("After.\n")
    assert page.count("## Goals") == 1 and "old" not in page
    assert "| 1B, 2,048 + 32 | vLLM | 1 | 6.20 / 6.20 | 69 % |" in page
    bars = xml.parse(tmp_path / "cpu.svg").getroot().findall(".//{*}rect")
    assert len(bars) == len(chart.COLOURS) + 4  # prefill and decode of two engines


def test_limits_are_the_best_of_both():
    merged = machine.merge_limits(
        [{"threads": 2, "dtype": "bfloat16", "gemm_gflops": 900, "read_gbs": 40}],
        [{"threads": 2, "dtype": "bfloat16", "gemm_gflops": 950}])
    assert machine.limit(merged, 2, "gemm_gflops") == 950
    assert machine.limit(merged, 2, "read_gbs") == 40


def test_peers_requirements_leave_out_what_is_chosen_here():
    metadata = ("Requires-Dist: numpy\nRequires-Dist: torch==2.13.0+cpu\n"
                'Requires-Dist: ray; extra == "x"\nName: y\n')
    assert peers.vllm_requirements(metadata) == ["numpy"]


def test_gguf_has_the_same_weights(tmp_path):
    gguf = pytest.importorskip("gguf")
    import ml_dtypes
    from safetensors.numpy import load_file

    shape = Shape(hidden=64, layers=1, query_heads=4, kv_heads=2, head_dim=16, intermediate=96,
                  vocab=80, dtype="bfloat16", tied=True)
    model = write_model(tmp_path / "model", shape)
    to_gguf.convert(model, tmp_path / "model.gguf")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    weights = load_file(model / "model.safetensors")
    assert len(found) == len(weights)
    key = weights["model.layers.0.self_attn.k_proj.weight"]
    rows = np.ascontiguousarray(found["blk.0.attn_k.weight"].data).view(ml_dtypes.bfloat16)
    rows = rows.reshape(key.shape)
    assert (rows[0] == key[0]).all() and (rows[1] == key[8]).all() and (rows[2] == key[1]).all()


def test_one_cell_of_winnow(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "160M").symlink_to(MODELS / "needle-tiny")
    cell = Cell("winnow", "160M", 64, 8, batch=2, method="FASTKV", workers=2, threads=1)
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "bench" / "compare.py", "--cache", tmp_path, "--cell",
         json.dumps(cell.as_json())], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = engines.last_json(done.stdout)
    assert found["ttft_s"] > 0 and found["total_s"] > found["ttft_s"]
    assert found["read_gbs"] > 0 and found["peak_bytes"] > 1 << 20


CALLGRIND = """fn=(1) main
0 5
cfn=(2) counted_a.constprop.0
calls=1 10
0 70
fn=(2)
0 30
+3 4
cfn=(3) op
calls=2 5
* 36
fn=(3)
0 36
"""


def test_instructions_are_counted_with_what_is_called():
    assert check_counts.inclusive(CALLGRIND) == {"a": 70}


def test_more_instructions_are_worse():
    worse, better = check_counts.differences({"a": 106, "b": 104, "c": 50, "new": 1},
                                             {"a": 100, "b": 100, "c": 100, "gone": 1})
    assert [sentence.partition(":")[0] for sentence in worse] == ["gone", "a", "new"]
    assert [sentence.partition(":")[0] for sentence in better] == ["c"]


def test_counts_are_committed_for_every_counted_function():
    source = Path(check_counts.__file__).with_name("count_instructions.c").read_text()
    named = {line.split("counted_")[1].split("(")[0] for line in source.splitlines()
             if line.startswith("COUNTED counted_")}
    assert named == set(json.loads(check_counts.EXPECTED.read_text()))
