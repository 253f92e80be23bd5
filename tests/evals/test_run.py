"""The three evaluations on tiny data and a bundled model: whole, resumable, reported."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="tests/evals/requirements.txt is not installed")

from service import MODELS  # noqa: E402

RUN = Path(__file__).resolve().parent / "run.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evals")
    (folder / "longbench").mkdir()
    tasks = ["triviaqa", "multi_news", "lcc"]
    (folder / "longbench_prompts.json").write_text(json.dumps({
        "tasks": tasks + ["qasper"], "max_new_tokens": dict.fromkeys(tasks + ["qasper"], 6),
        "no_chat_template": ["triviaqa", "lcc"],
        "prompt": dict.fromkeys(tasks + ["qasper"], "{context}\n{input}")}))
    for task in tasks:  # one of them longer than the context, so that its middle is cut out
        (folder / "longbench" / f"{task}.jsonl").write_text("".join(json.dumps({
            "input": "and then", "context": "Once upon a time there was a girl. " * repeat,
            "answers": ["One day", "the"], "all_classes": None, "_id": str(repeat)}) + "\n"
            for repeat in (1, 200)))
    (folder / "ruler").mkdir()
    (folder / "ruler" / "niah.jsonl").write_text(json.dumps({
        "index": 0, "task": "niah", "input": "The number is 7.", "answer_prefix": " It is",
        "outputs": ["7", "8"], "max_new_tokens": 4, "length": 40}) + "\n")
    (folder / "ruler" / "original.jsonl").write_text(json.dumps({  # the prefix ends the input
        "index": 0, "input": "The number is 7. It is", "outputs": ["7"], "length": 40}) + "\n")
    (folder / "test_public.jsonl").write_text("".join(json.dumps({
        "id": f"case-{n}", "length": 300 * n, "prompt_tokens": 300 * n, "depth": 0.99 * (n - 1),
        "prompt": "Once upon a time " * 50 * n, "answer": " there"}) + "\n" for n in (1, 2)))
    essays = folder / "needle_haystack" / "PaulGrahamEssays"
    essays.mkdir(parents=True)
    (essays / "a.txt").write_text("The sun is warm. Birds sing in the tree. " * 5)
    return folder


def run(data, out, suite, *options):
    done = subprocess.run([sys.executable, RUN, suite, "--model", MODELS / "stories260k", "--data", data,
                           "--out", out, "--method", "FULL", "FASTKV:retain_rate=0.5,tsp_rate=0.6,pooling=POOLING_AVG",
                           *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("suite,options,examples", [
    ("longbench", (), 6), ("ruler", (), 2), ("callsigns", (), 1),
    ("needle", ("--lengths", "350,450", "--depths", "0,50,100"), 6)])
def test_an_evaluation_runs_to_its_tables_and_goes_on_where_it_was(
    data, tmp_path, suite, options, examples):
    run(data, tmp_path, suite, *options)
    lines = [json.loads(line) for line in (tmp_path / f"{suite}.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * examples
    assert all(0 <= e["score"] <= 1 and 0 < e["kept"] <= 1 for e in lines)
    assert all(e["prompt_tokens"] <= 512 for e in lines)
    assert any(e["kept"] < 0.6 for e in lines if e["method"].startswith("FASTKV"))
    table = (tmp_path / f"{suite}.md").read_text()
    assert "| FULL |" in table and "| FASTKV:retain_rate=0.5" in table
    assert (tmp_path / f"{suite}.svg").read_text().lstrip().startswith("<?xml")
    again = run(data, tmp_path, suite, *options)
    assert len((tmp_path / f"{suite}.jsonl").read_text().splitlines()) == 2 * examples
    assert table in again.stdout


def test_a_folder_without_data_is_told(tmp_path):
    done = subprocess.run([sys.executable, RUN, "ruler", "--model", MODELS / "stories260k", "--data", tmp_path,
                           "--out", tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "no data of ruler" in done.stderr
