"""The client program, as people and scripts use it: output, exit status, interruption."""
import json
import os
import pty
import re
import signal
import socket
import subprocess
import time

import pytest

from service import BUILD

WINNOW = str(BUILD / "bin" / "winnow")


def run(service, *words, stdin="", timeout=120):
    command = [WINNOW, words[0], "--server", service.address, *map(str, words[1:])]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def document(needle_cases, tmp_path):
    """A file to ask, and the answer."""
    case = needle_cases[4096][0]
    path = tmp_path / "doc.txt"
    path.write_text(case["prompt"])
    return path, case["answer"]


def test_the_answer_goes_to_stdout_and_the_rest_to_stderr(needle, document):
    path, answer = document
    done = run(needle, "generate", "--file", path, "--max-tokens", 8, "--method", "FULL")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(answer) and done.stdout.endswith("\n")
    assert re.search(r"prompt: \d+ tokens, \d+ propagated; KV kept: .* of .*\(100.0 %\)", done.stderr)
    assert re.search(r"answer: \d+ tokens .*the first after .* s, then .* tokens/s", done.stderr)


def test_json_is_one_object(needle, document):
    path, answer = document
    done = run(needle, "generate", "--file", path, "--max-tokens", 8, "--json", "--quiet",
               "--method", "FASTKV", "--retain-rate", 0.4, "--tsp-rate", 0.4, "--window", 16)
    assert (done.returncode, done.stderr) == (0, "")
    reply = json.loads(done.stdout)
    assert reply["text"].startswith(answer)
    assert len(reply["ids"]) == reply["usage"]["completion_tokens"]
    assert reply["usage"]["propagated_tokens"] < reply["usage"]["prompt_tokens"]
    assert reply["usage"]["kv_bytes"] < reply["usage"]["kv_bytes_full"]
    assert reply["timing"]["ttft_ms"] > 0


def test_the_json_object_can_go_to_a_file_beside_the_text(needle, tmp_path):
    path = tmp_path / "answer.json"
    done = run(needle, "generate", "--prompt", "A note.", "--max-tokens", 4, "--json-file", path)
    assert done.returncode == 0
    assert json.loads(path.read_text())["text"] in done.stdout
    done = run(needle, "generate", "--prompt", "A note.", "--max-tokens", 4, "--json-file", tmp_path)
    assert done.returncode == 1 and str(tmp_path) in done.stderr


def test_documents_come_from_stdin_and_questions_from_the_command_line(needle):
    text = run(needle, "generate", "--file", "-", "--prompt", "Key?", "--max-tokens", 4, "--json",
               stdin="A short note.\n")
    ids = needle.tokenize("A short note.\n\nKey?")
    assert json.loads(text.stdout)["usage"]["prompt_tokens"] == len(ids)


def test_a_chat_needs_a_model_with_a_template(needle):
    done = run(needle, "generate", "--chat", "--system", "Be brief.", "--prompt", "Key?")
    assert done.returncode == 1 and "chat" in done.stderr and "send text" in done.stderr
    done = run(needle, "generate", "--system", "Be brief.", "--prompt", "Key?")
    assert done.returncode == 2 and "--system goes with --chat" in done.stderr


def test_ids_may_be_sent_instead_of_text(needle, tmp_path):
    ids = needle.tokenize("A short note.")
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(ids))
    by_ids = run(needle, "generate", "--tokens-file", path, "--max-tokens", 4, "--json")
    by_text = run(needle, "generate", "--prompt", "A short note.", "--max-tokens", 4, "--json")
    assert json.loads(by_ids.stdout)["ids"] == json.loads(by_text.stdout)["ids"]


def test_tokenize_and_back(needle):
    ids = needle.tokenize("Hello world")
    plain = run(needle, "tokenize", "Hello world")
    assert plain.stdout.split() == [str(i) for i in ids]
    assert json.loads(run(needle, "tokenize", "--json", stdin="Hello world").stdout) == {"ids": ids}
    back = run(needle, "tokenize", "--detokenize", "--skip-special", *ids)
    assert back.stdout == "Hello world\n"


def test_status_shows_workers_and_model(needle):
    table = run(needle, "status")
    assert table.returncode == 0
    assert "rank 0" in table.stdout and "rank 1" in table.stdout and "needle-tiny" in table.stdout
    state = json.loads(run(needle, "status", "--json").stdout)
    assert [w["state"] for w in state["groups"][0]["workers"]] == ["ready", "ready"]
    assert state["model"]["layers"] == needle.model().layers


@pytest.mark.parametrize("words", [
    ["generate"], ["generate", "--prompt", "x", "--method", "BEST"], ["status", "--no-such"],
    ["generate", "--prompt", "x", "--temperature", "warm"], ["tokenize", "--file", "x", "y"],
])
def test_wrong_usage_ends_with_status_2(needle, words):
    done = run(needle, *words)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_errors_are_one_sentence_with_the_name_of_the_status(needle):
    done = run(needle, "generate", "--prompt", "x", "--tsp-layer", 99)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"winnow generate: INVALID_ARGUMENT: .*tsp_layer.*\n", done.stderr)


def test_an_absent_server_is_unavailable():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % free.getsockname()[1]
    for words in (["generate", "--prompt", "x"], ["status"], ["tokenize", "x"]):
        done = subprocess.run([WINNOW, *words, "--server", address], capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 1 and ": UNAVAILABLE: " in done.stderr


def test_ctrl_c_cancels_the_call_and_exits_130(needle, needle_cases, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(needle_cases[131072][0]["prompt"])
    process = subprocess.Popen([WINNOW, "generate", "--server", needle.address, "--file", str(path)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "reading" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "interrupted" in err
    deadline = time.monotonic() + 60
    while needle.status().running_requests and time.monotonic() < deadline:
        time.sleep(0.1)
    assert needle.status().running_requests == 0


def test_a_deadline_is_kept(needle, needle_cases, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(needle_cases[131072][0]["prompt"])
    done = run(needle, "generate", "--file", path, "--deadline", 0.5, "--quiet")
    assert done.returncode == 1 and "DEADLINE_EXCEEDED" in done.stderr


def test_a_terminal_gets_one_line_that_is_drawn_again(needle, document):
    path, answer = document
    try:
        pid, terminal = pty.fork()
    except OSError as e:
        pytest.skip(f"no terminal can be made here: {e}")
    if pid == 0:
        os.execv(WINNOW, [WINNOW, "generate", "--server", needle.address, "--file", str(path),
                          "--max-tokens", "8"])
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # how Linux tells that the other side has closed
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"\r\x1b[K" in shown and answer.encode() in shown
    before_answer = shown[:shown.index(answer.encode())]
    assert b"\n" not in before_answer
