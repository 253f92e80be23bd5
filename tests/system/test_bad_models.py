"""A model directory that is not right ends the start with one sentence and exit status 1.

Every case is tried on the release build and, where it exists, on the build with sanitizers.
"""
import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from service import BUILD, MODELS, ROOT

SOURCE = MODELS / "needle-tiny"
SANITIZED = Path(os.environ.get("WINNOW_ASAN_BUILD", ROOT / "build-asan"))
BUILDS = [build for build in (BUILD, SANITIZED)
          if (build / "bin" / "winnow-coordinator").exists()]
Q0 = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


def read_weights():
    data = (SOURCE / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + size]), data[8 + size:]


def write_weights(folder, header, body, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if size is None else size
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + text + body)


def weights(change):
    """A case that changes the tensor header, or returns what else to write."""
    def apply(folder):
        header, body = read_weights()
        changed = change(header, body)
        write_weights(folder, *(changed or (header, body)))
    return apply


def tensor(name, **fields):
    return weights(lambda header, body: header[name].update(fields))


def config(**fields):
    def apply(folder):
        content = json.loads((SOURCE / "config.json").read_text())
        for name, value in fields.items():
            if value is None:
                del content[name]
            else:
                content[name] = value
        (folder / "config.json").write_text(json.dumps(content))
    return apply


def file(name, content):
    def apply(folder):
        (folder / name).write_bytes(content)
    return apply


def tokenizer(change):
    def apply(folder):
        content = json.loads((SOURCE / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return apply


def missing(name):
    return lambda folder: (folder / name).unlink()


def half(data):
    return data[:len(data) // 2]



BIN = "model.safetensors"
CASES = {
    # what is wrong: (words of the sentence, how it is made)
    "no config": (["config.json"], missing("config.json")),
    "config empty": (["config.json"], file("config.json", b"")),
    "config cut": (["config.json"], file("config.json", half((SOURCE / "config.json").read_bytes()))),
    "config is a list": (["config.json"], file("config.json", b"[1, 2]")),
    "config nested deep": (["config.json"], file("config.json", b'{"a":' * 100000)),
    "config without hidden_size": (["config.json", "hidden_size"], config(hidden_size=None)),
    "hidden_size text": (["config.json", "hidden_size"], config(hidden_size="128")),
    "hidden_size negative": (["config.json", "hidden_size"], config(hidden_size=-128)),
    "hidden_size a fraction": (["config.json", "hidden_size"], config(hidden_size=128.5)),
    "hidden_size enormous": (["hidden_size"], config(hidden_size=10 ** 18)),
    "layers 0": (["config.json", "num_hidden_layers"], config(num_hidden_layers=0)),
    "layers 10^9": (["num_hidden_layers"], config(num_hidden_layers=10 ** 9)),
    "kv heads do not divide": (["config.json", "num_key_value_heads"],
                               config(num_key_value_heads=3)),
    "vocab 0": (["config.json", "vocab_size"], config(vocab_size=0)),
    "another family": (["config.json"], config(architectures=["GPT2LMHeadModel"],
                                               model_type="gpt2")),
    "another activation": (["config.json", "hidden_act"], config(hidden_act="gelu")),
    "rope scaling unknown": (["config.json", "rope"],
                             config(rope_scaling={"rope_type": "yarn", "factor": 4.0})),
    "eps 0 as text": (["config.json", "rms_norm_eps"], config(rms_norm_eps="small")),
    "theta negative": (["config.json", "rope_theta"], config(rope_theta=-1.0)),

    "no weights": (["safetensors"], missing(BIN)),
    "weights empty": ([BIN], file(BIN, b"")),
    "weights of 7 bytes": ([BIN], file(BIN, b"1234567")),
    "header longer than the file": ([BIN, "header"],
                                    weights(lambda h, b: (h, b, 1 << 40))),
    "header of 2^64 - 1": ([BIN, "header"], weights(lambda h, b: (h, b, (1 << 64) - 1))),
    "header is no JSON": ([BIN, "JSON"], weights(lambda h, b: (b"{" * 64, b))),
    "header is a list": ([BIN, "JSON object"], weights(lambda h, b: (b"[]" + b" " * 62, b))),
    "body cut": ([BIN], weights(lambda h, b: (h, half(b)))),
    "body empty": ([BIN], weights(lambda h, b: (h, b""))),
    "tensor missing": ([NORM], weights(
        lambda h, b: h.update({"model.layers.0.self_attn.rotary_emb.inv_freq": h.pop(NORM)}))),
    "tensor of no model": (["model.other.weight"], weights(
        lambda h, b: h.update({"model.other.weight": h.pop(NORM)}))),
    "a hole in the data": ([BIN, "512"], weights(lambda h, b: h.pop(NORM) and None)),
    "tensor beyond the file": ([BIN, NORM], tensor(NORM, data_offsets=[1 << 40, (1 << 40) + 512])),
    "offsets beyond 2^53": ([BIN, NORM], tensor(NORM, data_offsets=[0, 1 << 62])),
    "offsets reversed": ([BIN, NORM], tensor(NORM, data_offsets=[512, 0])),
    "offsets negative": ([BIN, NORM], tensor(NORM, data_offsets=[-512, 0])),
    "offsets of the wrong length": ([BIN, NORM], tensor(NORM, data_offsets=[0, 510])),
    "one offset": ([BIN, NORM], tensor(NORM, data_offsets=[0])),
    "offsets are text": ([BIN, NORM], tensor(NORM, data_offsets=["0", "512"])),
    "tensors overlap": ([BIN], weights(
        lambda h, b: h[NORM].update(data_offsets=[h[Q0]["data_offsets"][0],
                                                  h[Q0]["data_offsets"][0] + 512]))),
    "dtype unknown": ([BIN, NORM, "dtype"], tensor(NORM, dtype="Q4")),
    "dtype of integers": ([BIN, NORM, "I32"], tensor(NORM, dtype="I32")),
    "dtype of another size": ([BIN, NORM], tensor(NORM, dtype="BF16")),
    "dtype is a number": ([BIN, NORM, "dtype"], tensor(NORM, dtype=32)),
    "shape overflows": ([BIN, NORM], tensor(NORM, shape=[1 << 32, 1 << 32])),
    "shape negative": ([BIN, NORM], tensor(NORM, shape=[-128])),
    "shape of nine dimensions": ([BIN, NORM], tensor(NORM, shape=[1] * 8 + [128])),
    "shape transposed": ([BIN, NORM], tensor(NORM, shape=[64, 2])),
    "shape of another model": ([BIN, Q0], tensor(Q0, shape=[64, 256])),
    "tensor is a number": ([BIN, NORM], weights(lambda h, b: h.__setitem__(NORM, 7))),
    "a bias": (["q_proj.bias"], weights(
        lambda h, b: h.__setitem__("model.layers.0.self_attn.q_proj.bias", h[NORM]))),
    "an index that names no file": (["elsewhere.safetensors"], lambda folder: (
        missing(BIN)(folder),
        file("model.safetensors.index.json",
             json.dumps({"weight_map": {NORM: "elsewhere.safetensors"}}).encode())(folder))),
    "an index that leaves the directory": (["model.safetensors.index.json"], lambda folder: (
        missing(BIN)(folder),
        file("model.safetensors.index.json",
             json.dumps({"weight_map": {NORM: "../../etc/passwd"}}).encode())(folder))),

    "tokenizer empty": (["tokenizer.json"], file("tokenizer.json", b"")),
    "tokenizer cut": (["tokenizer.json"],
                      file("tokenizer.json", half((SOURCE / "tokenizer.json").read_bytes()))),
    "tokenizer without model": (["tokenizer.json", "model"], tokenizer(lambda t: t.pop("model"))),
    "tokenizer of another kind": (["tokenizer.json", "Unigram"],
                                  tokenizer(lambda t: t["model"].update(type="Unigram"))),
    "tokenizer id outside": (["tokenizer.json"],
                             tokenizer(lambda t: t["model"]["vocab"].update({"zz": 10 ** 9}))),
    "tokenizer id negative": (["tokenizer.json"],
                              tokenizer(lambda t: t["model"]["vocab"].update({"zz": -1}))),
    "tokenizer id is text": (["tokenizer.json"],
                             tokenizer(lambda t: t["model"]["vocab"].update({"zz": "one"}))),
    "tokenizer with a bad pattern": (["tokenizer.json"], tokenizer(
        lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="(unclosed"))),
    "tokenizer with an unknown step": (["tokenizer.json"], tokenizer(
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(type="Mystery"))),
    "tokenizer merges of nothing": (["tokenizer.json", "merges"], tokenizer(
        lambda t: t["model"].update(merges=["not-a-token neither-this"]))),
}


@pytest.fixture(params=BUILDS, ids=[build.name for build in BUILDS])
def program(request):
    return request.param / "bin" / "winnow-coordinator"


@pytest.mark.parametrize("name", CASES)
def test_a_bad_model_is_told_in_one_sentence(program, tmp_path, name):
    words, make = CASES[name]
    for path in SOURCE.iterdir():
        if path.suffix in (".json", ".safetensors"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    make(tmp_path)
    done = subprocess.run([program, "--model", tmp_path, "--listen", "127.0.0.1:0",
                           "--local-workers", "1"],
                          capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 1, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    for bad in ("Sanitizer", "runtime error", "Assertion"):
        assert bad not in done.stderr
    assert any(all(word in line for word in words) for line in lines), done.stderr


def test_a_directory_that_is_not_there(program):
    done = subprocess.run([program, "--model", "/no/such/dir", "--listen", "127.0.0.1:0"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "/no/such/dir" in done.stderr


def test_more_ranks_than_query_heads_are_refused_with_the_numbers(program):
    done = subprocess.run([program, "--model", SOURCE, "--listen", "127.0.0.1:0",
                           "--local-workers", "5"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "5" in done.stderr and "4" in done.stderr and "head" in done.stderr


@pytest.mark.parametrize("options", [["--no-such-option"], ["--tp", "none"], ["--kv-memory", "1Q"],
                                     ["--threads", "-1"], ["--dtype", "float8"]])
def test_wrong_usage_ends_with_status_2(program, options):
    done = subprocess.run([program, "--model", SOURCE, "--listen", "127.0.0.1:0", *options],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert options[0].lstrip("-") in done.stderr


@pytest.mark.parametrize("name", ["winnow-coordinator", "winnow-worker", "winnow"])
def test_help_and_version_are_no_errors(program, name):
    for option in ("--help", "--version"):
        done = subprocess.run([program.parent / name, option], capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 0 and done.stdout.strip() and not done.stderr.strip()
