"""The commands that measure the methods, on a few small prompts: tests/bench/quality.py, methods.py."""
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import methods  # noqa: E402
import needles  # noqa: E402
import quality  # noqa: E402


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The tables of a handful of questions, in a document, and where the answers are kept."""
    folder = tmp_path_factory.mktemp("quality")
    names = [f"needle-tiny {table}" for table in ("accuracy", "match", "window", "fastgen")]
    document = folder / "quality.md"
    document.write_text("before\n" + "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n"
                                             for name in names) + "after\n")
    command = ["--only", "needle-tiny", "--counts", "256:1,1024:1", "--cache", str(folder)]
    assert quality.main([*command, "--write", str(document)]) == 0
    return command, document, folder / "needle-tiny.jsonl"


def test_full_and_fastkv_find_the_needle_and_a_window_alone_does_not(measured):
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line
            for line in measured[1].read_text().splitlines() if line.startswith("| ")}
    assert "| 2/2 | 100 % | 100 % |" in rows["FULL", ""]
    assert "| 2/2 | 20 % | 20 % |" in rows["FASTKV", "20 %"]
    assert "| 0/2 | 10 % | 100 % |" in rows["STREAMINGLLM", "10 %"]
    assert {method for method, _ in rows} >= set(methods.METHODS)


def test_what_was_answered_is_not_asked_again(measured, capsys):
    command, document, answers = measured
    before = answers.read_text(), document.read_text()
    assert quality.main([*command, "--write", str(document)]) == 0
    assert (answers.read_text(), document.read_text()) == before
    assert before[1].startswith("before\n") and before[1].endswith("after\n")
    assert "needle-tiny accuracy" in capsys.readouterr().out


def test_a_document_without_places_for_the_tables_is_refused(measured, tmp_path):
    (tmp_path / "other.md").write_text("no marks")
    with pytest.raises(SystemExit, match="no place for the table"):
        quality.main([*measured[0], "--write", str(tmp_path / "other.md")])


def test_numbers_are_hidden_where_and_in_what_length_was_asked(needle):
    cases = list(needles.numbers(needle, 2000, 3))
    others = list(needles.numbers(needle, 2000, 2, held_out=True))
    for case, depth in zip(cases, (0.5, 0.25, 0.75)):
        assert 1700 < len(case.ids) <= 2010
        assert case.answer in needle.detokenize(case.ids[case.needle.start:case.needle.stop])
        assert abs(case.needle.start / len(case.ids) - depth) < 0.1
    assert len({case.text for case in cases + others}) == 5


def test_costs_of_methods_are_measured_in_one_table(tmp_path, capsys):
    out = tmp_path / "out.json"
    command = ["--tokens", "2048", "--max-tokens", "100", "--methods", "FULL,SNAPKV",
               "--out", str(out)]
    assert methods.main([*command, "--check", "0"]) == 1  # nothing scores in no time
    whole, snapkv = json.loads(out.read_text())
    assert whole["scoring_s"] < snapkv["scoring_s"] < snapkv["prefill_s"]
    assert snapkv["kv_bytes"] < whole["kv_bytes"] / 9
    assert min(whole["prefill_cpu_s"], snapkv["decode_cpu_ms"]) > 0
    assert "| SNAPKV | " in capsys.readouterr().out
