"""winnow bench, as people run it, on the bundled models: the figures, the files, interruption."""
import json
import os
import re
import signal
import socket
import subprocess
import time

import numpy
import pytest

from seen import until
from service import BUILD, MODELS, ROOT, Service

WINNOW = str(BUILD / "bin" / "winnow")
SMALL = ["--random-input-len", 32, "--random-output-len", 8, "--ignore-eos", "--quiet"]


@pytest.fixture(scope="module")
def crowd():
    """The story model behind a queue that holds a thousand and more."""
    with Service(MODELS / "stories260k", workers=1, options=["--queue-requests", 2000, "--threads", 1]) as service:
        yield service


def bench(service, *words, code=0, cwd=None):
    server = ["--server", service.address] if service else []
    done = subprocess.run([WINNOW, "bench", words[0], *server, *map(str, words[1:])], cwd=cwd,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def serve(service, *words):
    return json.loads(bench(service, "serve", *SMALL, "--json", *words).stdout)


def test_the_figures_are_what_numpy_makes_of_the_requests(crowd, tmp_path):
    bench(crowd, "serve", *SMALL, "--num-prompts", 40, "--max-concurrency", 8, "--num-warmups", 2,
          "--random-range-ratio", 0.5, "--save-detailed", "--result-dir", tmp_path / "out",
          "--result-filename", "a.json", "--metric-percentiles", "10,50,99.9", "--metadata", "who=me",
          "model_id=mine", "--label", "a \"label\"")
    result = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (result["completed"], result["failed"], result["max_concurrent_requests"]) == (40, 0, 8)
    assert result["model_id"] == "stories260k" and result["metadata_model_id"] == "mine"
    assert result["who"] == "me" and result["label"] == 'a "label"'
    assert len(set(result["input_lens"])) > 5
    assert min(result["input_lens"]) >= 16 and max(result["input_lens"]) <= 48
    assert result["total_input_tokens"] == sum(result["input_lens"])
    assert result["total_output_tokens"] == sum(result["output_lens"])
    for name, seconds in (("ttft", result["ttfts"]), ("itl", sum(result["itls"], []))):
        times = numpy.array(seconds) * 1000
        for percent in (10, 50, 99.9):
            assert result[f"p{percent:g}_{name}_ms"] == pytest.approx(numpy.percentile(times, percent))
        assert result[f"mean_{name}_ms"] == pytest.approx(times.mean())
        assert result[f"std_{name}_ms"] == pytest.approx(times.std())
    assert result["output_throughput"] == pytest.approx(
        result["total_output_tokens"] / result["duration"])
    assert result["client_cpu_us_per_token"] > 0


def test_a_seed_gives_the_same_prompts_again(crowd):
    lengths = [serve(crowd, "--num-prompts", 10, "--random-range-ratio", 0.9, "--seed", seed,
                     "--save-detailed", "--result-filename", os.devnull)["input_lens"]
               for seed in (1, 1, 2)]
    assert lengths[0] == lengths[1] != lengths[2]


def test_a_thousand_streams_from_one_process(crowd):
    result = serve(crowd, "--num-prompts", 1000, "--output-len", 4, "--goodput", "ttft:600000",
                   "tpot:600000")
    assert result["completed"] == 1000
    assert result["max_concurrent_requests"] >= 900  # the first may be done before the last is sent
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])


def test_an_open_loop_keeps_its_rate(crowd):
    result = serve(crowd, "--num-prompts", 30, "--request-rate", 20, "--burstiness", 2)
    assert result["completed"] == 30 and result["request_rate"] == 20
    assert result["duration"] >= 1.45  # the last one is due after 30 / 20 s


def test_a_ramp_begins_slowly(crowd):
    result = serve(crowd, "--num-prompts", 20, "--ramp-up-strategy", "linear", "--ramp-up-start-rps",
                   5, "--ramp-up-end-rps", 500, "--burstiness", 1000, "--save-detailed",
                   "--result-filename", os.devnull)
    gaps = numpy.diff(result["start_times"])
    assert result["completed"] == 20 and result["request_rate"] == "ramp"
    assert gaps[0] > 0.02 and result["start_times"][0] > 0.15


def test_documents_and_traces_are_data_sets(crowd, tmp_path):
    (tmp_path / "docs").mkdir()
    for name in "ab":
        (tmp_path / "docs" / name).write_text(f"Once upon a time there was {name}.")
    result = serve(crowd, "--dataset-name", "file", "--dataset-path", tmp_path / "docs", "--prompt",
                   "Who?", "--num-prompts", 5, "--output-len", 3)
    assert (result["completed"], result["total_output_tokens"]) == (5, 15)
    trace = [{"timestamp": 27000, "input_length": 40, "output_length": 5, "hash_ids": [1]},
             {"timestamp": 27100, "input_length": 60, "output_length": 6, "method": "FULL"},
             {"timestamp": 27400, "prompt": "Once", "output_length": 7}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, trace)))
    result = serve(crowd, "--dataset-name", "trace", "--dataset-path", tmp_path / "t.jsonl",
                   "--save-detailed", "--result-filename", os.devnull)
    assert result["output_lens"] == [5, 6, 7] and result["input_lens"][:2] == [40, 60]
    starts = numpy.array(result["start_times"])
    assert starts[1] - starts[0] >= 0.09 and starts[2] - starts[0] >= 0.39


def test_the_method_shows_in_the_figures(crowd):
    until(lambda: crowd.status().groups[0].workers[0].memory_peak_bytes > 0)  # its first heartbeat
    full, fastkv = (serve(crowd, "--num-prompts", 3, "--input-len", 200, "--method", method)
                    for method in ("FULL", "FASTKV"))
    assert (full["kept_ratio"], full["propagated_ratio"]) == (1, 1)
    assert fastkv["kept_ratio"] == pytest.approx(0.1) and fastkv["method"] == "FASTKV"
    assert fastkv["kv_bytes"] < full["kv_bytes"] == full["kv_bytes_full"]
    assert full["worker_memory_peak_bytes"] > full["kv_bytes"]


def test_the_table_names_what_people_look_for(crowd):
    table = bench(crowd, "serve", *SMALL, "--num-prompts", 4).stdout
    for words in ("Successful requests", "Mean TTFT (ms)", "P99 E2EL (ms)", "KV kept (%)",
                  "CPU time of an output token (us)"):
        assert words in table


def test_ctrl_c_keeps_what_there_is(crowd, tmp_path):
    command = [WINNOW, "bench", "serve", "--server", crowd.address, *map(str, SMALL),
               "--num-prompts", "100000", "--request-rate", "50", "--result-filename", "cut.json"]
    before = crowd.status().completed_requests
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    deadline = time.monotonic() + 60
    while crowd.status().completed_requests < before + 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Successful requests" in out
    result = json.loads((tmp_path / "cut.json").read_text())
    assert result["completed"] >= 5 and result["failed"] == 0
    deadline = time.monotonic() + 60
    while crowd.status().running_requests and time.monotonic() < deadline:
        time.sleep(0.05)
    assert crowd.status().running_requests == 0


def test_refused_requests_are_counted_and_explained(stories):
    done = bench(stories, "serve", *SMALL, "--num-prompts", 3, "--input-len", 5000, "--json", code=1)
    assert json.loads(done.stdout)["failed"] == 3
    assert "3 of 3 requests failed; request 1: OUT_OF_RANGE" in done.stderr
    done = bench(stories, "serve", *SMALL, "--num-warmups", 1, "--input-len", 5000, code=1)
    assert "warm-up 1: " in done.stderr


def test_a_result_is_compared_with_another(crowd, tmp_path):
    for name, method in (("a", "FULL"), ("b", "FASTKV")):
        bench(crowd, "serve", *SMALL, "--num-prompts", 4, "--method", method, "--result-dir",
              tmp_path, "--result-filename", f"{name}.json")
    done = bench(None, "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert "mean_ttft_ms" in done.stdout and "differ in method" in done.stderr
    kept = next(line for line in done.stdout.splitlines() if line.startswith("kept_ratio"))
    assert kept.split()[1] == "1" and kept.split()[3].startswith("-")


def test_the_guide_can_be_typed_as_it_is_written(needle, tmp_path):
    guide = (ROOT / "docs" / "benchmarking.md").read_text()
    blocks = re.findall(r"^```bench\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "build").symlink_to(BUILD)
    environment = {**os.environ, "WINNOW_SERVER": needle.address, "WINNOW_QUIET": "true"}
    for line in "".join(blocks).splitlines():
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True,
                              timeout=300, env=environment)
        assert done.returncode == 0, (line, done.stderr)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 14


def test_a_server_that_starts_is_waited_for():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % free.getsockname()[1]
    words = ["serve", "--server", address, *SMALL, "--num-prompts", 2, "--json",
             "--ready-check-timeout-sec"]
    command = [WINNOW, "bench", *map(str, words)]
    done = subprocess.run([*command, "0.5"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "UNAVAILABLE" in done.stderr
    waiting = subprocess.Popen([*command, "120"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    with Service(MODELS / "stories260k", wait=False, options=["--listen", address]):
        out, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, err
    assert json.loads(out)["completed"] == 2
    waiting = subprocess.Popen([*command, "120"], stderr=subprocess.PIPE, text=True)
    mask = 0
    deadline = time.monotonic() + 60
    while not mask & 1 << signal.SIGINT - 1 and time.monotonic() < deadline:  # it has its handler
        status = open(f"/proc/{waiting.pid}/status").read()
        mask = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
    waiting.send_signal(signal.SIGINT)
    assert "interrupted" in waiting.communicate(timeout=60)[1] and waiting.returncode == 130


@pytest.mark.parametrize("kind, rate", [("prefill", None), ("e2e", "e2el_ms"),
                                        ("throughput", None)])
def test_a_sweep_measures_methods_by_lengths(crowd, tmp_path, kind, rate):
    output = [] if kind == "prefill" else ["--output-len", 9]
    done = bench(crowd, kind, "--methods", "FULL,SNAPKV", "--lengths", "100,200,1k", "--num-runs", 4,
                 "--num-warmups", 1, *output, "--result-dir", tmp_path, "--result-filename", "s.json")
    result = json.loads((tmp_path / "s.json").read_text())
    cases = {(c["method"], c["input_len"]): c for c in result["results"]}
    assert result["winnow_bench"] == kind and result["complete"]
    assert set(cases) == {(m, n) for m in ("FULL", "SNAPKV") for n in (100, 200, 1024)}
    assert "OUT_OF_RANGE" in done.stdout  # the story model has 512 positions
    for (method, n), case in cases.items():
        if n == 1024:
            assert "exceed" in case["error"] and case["num_runs"] == 0
            continue
        times = numpy.array(case["ttft_ms"])
        assert len(times) == (2 if kind == "throughput" else 4)  # without its extremes, or all
        assert case["mean_ttft_ms"] == pytest.approx(times.mean())
        assert case["std_ttft_ms"] == pytest.approx(times.std())
        assert case["kept_ratio"] == pytest.approx(1 if method == "FULL" else 0.1)
        assert kind == "prefill" or case["mean_tokens_per_s"] > 0
        if rate:  # 8 tokens after the first, over the whole time
            speeds = sorted(8000 / ms for ms in case[rate])
            assert case["tokens_per_s"] == pytest.approx(speeds)
    if kind == "prefill":
        done = bench(None, "compare", tmp_path / "s.json", tmp_path / "s.json")
        assert "SNAPKV, 200 tokens" in done.stdout and "ci95_ttft_ms" in done.stdout


@pytest.mark.parametrize("words", [[], ["fast"], ["serve", "--no-such"], ["compare", "x"],
                                   ["e2e", "--output-len", "1"]])
def test_wrong_usage_ends_with_status_2(words):
    done = subprocess.run([WINNOW, "bench", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "" and done.stderr


def test_an_absent_server_and_a_strange_file_are_errors(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = subprocess.run([WINNOW, "bench", "serve", "--server",
                               "127.0.0.1:%d" % free.getsockname()[1]],
                              capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and ": UNAVAILABLE: " in done.stderr
    (tmp_path / "x.json").write_text("{}")
    done = bench(None, "compare", tmp_path / "x.json", tmp_path / "x.json", code=1)
    assert "x.json: not a result of winnow bench" in done.stderr
