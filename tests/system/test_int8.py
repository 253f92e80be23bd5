"""--weights int8 and --kv int8 through the whole service: what it answers, what it says, what it refuses."""
import subprocess

import pytest

from service import BUILD, MODELS, Service, fastkv, full, sampling

MODEL = MODELS / "needle-tiny"


@pytest.fixture(scope="module", params=[1, 2], ids=lambda tp: f"tp{tp}")
def service(request):
    with Service(MODEL, workers=request.param,
                 options=["--weights", "int8", "--kv", "int8"]) as service:
        yield service


@pytest.mark.parametrize("compression", [full(), fastkv()], ids=["full", "fastkv"])
def test_facts_are_found(service, needle_cases, compression):
    for case in needle_cases[4096][:4]:
        answer = service.generate(text=case["prompt"], compression=compression,
                                  sampling=sampling(max_tokens=8))
        assert answer.text.startswith(case["answer"]), case["id"]


def test_status_and_log_say_int8(service):
    devices = [w.device for g in service.status().groups for w in g.workers]
    assert devices and all("int8 weights, int8 KV" in device for device in devices)
    assert "int8 weights, int8 KV" in service.log_text()


@pytest.mark.parametrize("program", ["winnow-coordinator", "winnow-worker"])
@pytest.mark.parametrize("options, words", [
    (["--weights", "int8", "--device", "cuda"], "--weights int8 needs --device cpu"),
    (["--weights", "int4"], "--weights int4: "),
    (["--kv", "int8", "--device", "cuda"], "--kv int8 needs --device cpu"),
    (["--kv", "int4"], "--kv int4: "),
])
def test_what_there_is_not_is_refused(program, options, words):
    done = subprocess.run([BUILD / "bin" / program, "--model", MODEL, *options],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and words in done.stderr
