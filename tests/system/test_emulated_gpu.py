"""--device cuda through the whole service, on the emulated GPU of tests/cuda_host.

The programs of build/cuda-host are the ordinary ones, but for the CUDA runtime and cuBLAS, which
are stand-ins; "apart" lets nothing but the GPU's own work touch its memory.  What they compute is
compared in tests/goldens/run.py --emulated-gpu; here is the rest of the way.
"""
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from make_model import Shape, write_model
from test_workers import worker_address
from service import (BUILD, MODELS, NOT_SERVING, SERVING, Service, api, fastkv, full, prompt,
                     sampling)

PROGRAMS = BUILD / "cuda-host"
MODEL = MODELS / "stories260k"


def emulated(workers, words, options=("--kv-memory", "4M"), **env):
    return Service(MODEL, workers=workers, dtype="float32", build=PROGRAMS,
                   options=["--device", "cuda", *options],
                   env={"WINNOW_CUDA_HOST": f"apart {words}", **env})


def refusal(**arguments):
    """What the programs say when the local workers can never serve."""
    service = emulated(**arguments)
    with pytest.raises(RuntimeError):
        service.__enter__()
    return service.log_text()


def ids(service, count=6, n=40, **fields):
    return service.generate(**prompt(ids=[1 + 7 * i % 300 for i in range(n)]),
                            sampling=sampling(max_tokens=count, **fields),
                            compression=fastkv(window=4, retain_rate=0.3)).ids


@pytest.fixture(scope="module")
def two_gpus():
    with emulated(2, "lazy devices=2") as service:
        yield service


def test_each_local_worker_has_a_gpu_of_its_own(two_gpus):
    devices = sorted(w.device for g in two_gpus.status().groups for w in g.workers)
    assert [d.split()[0] for d in devices] == ["cuda:0", "cuda:1"]


def test_tokens_are_those_of_the_cpu(two_gpus):
    with Service(MODEL, workers=2, dtype="float32") as cpu:
        for fields in ({}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 5}):
            assert ids(two_gpus, **fields) == ids(cpu, **fields)


def test_samples_penalties_and_logprobs_are_those_of_the_cpu(two_gpus):
    """Samples share pages, and of a method that evicts they copy them while decoding."""
    request = api.GenerateRequest(
        **prompt(ids=[1 + 7 * i % 300 for i in range(40)]),
        sampling=sampling(max_tokens=6, temperature=0.9, min_p=0.01, repetition_penalty=1.3,
                          frequency_penalty=0.4, presence_penalty=-0.2, seed=3, n=3, logprobs=4),
        compression=api.Compression(method=api.METHOD_H2O, retain_rate=0.5, window=4,
                                    h2o=api.H2O(h2o_dynamic=True)))
    with Service(MODEL, workers=2, dtype="float32") as cpu:
        expected = cpu.start_samples(request)()
    found = two_gpus.start_samples(request)()
    assert len(found) == 3 and [a.ids for a in found] == [a.ids for a in expected]
    for one, other in zip(found, expected):
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert list(mine.top_ids) == list(theirs.top_ids) and len(mine.top_ids) == 4
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    assert not any(two_gpus.pages_used())


def test_the_order_of_warps_and_streams_does_not_matter(two_gpus):
    with emulated(1, "reversed") as other:
        assert ids(two_gpus, 4) == ids(other, 4)


def test_steps_give_the_same_tokens_without_graphs(two_gpus):
    with emulated(2, "shuffled devices=2", WINNOW_CUDA_GRAPHS="off") as other:
        assert ids(two_gpus, 5) == ids(other, 5)


def test_a_wrong_word_for_graphs_is_refused():
    done = subprocess.run([PROGRAMS / "bin" / "winnow-worker", "--model", MODEL, "--cuda-graphs", "some"],
                          capture_output=True, text=True)
    assert done.returncode == 2
    assert "--cuda-graphs some: it must be on or off" in done.stderr


def test_a_float16_model_is_served_in_float16_on_a_gpu_and_in_float32_on_a_cpu(tmp_path):
    write_model(tmp_path, Shape(dtype="float16", layers=2, positions=4096), MODEL)
    request = dict(**prompt(ids=[1 + 7 * i % 300 for i in range(40)]),
                   sampling=sampling(max_tokens=2), compression=full())
    with Service(tmp_path, options=["--enable-trace"]) as cpu:
        assert cpu.model().dtype == "float32"
        expected = list(cpu.generate(**request, trace=api.Trace(prompt_logits=True)).trace.prompt_logits)
    with Service(tmp_path, build=PROGRAMS,
                 options=["--enable-trace", "--device", "cuda", "--kv-memory", "4M"],
                 env={"WINNOW_CUDA_HOST": "apart lazy"}) as gpu:
        assert gpu.model().dtype == "float16"
        found = list(gpu.generate(**request, trace=api.Trace(prompt_logits=True)).trace.prompt_logits)
    spread = np.std(expected)
    assert 0 < np.abs(np.subtract(found, expected)).max() < 0.02 * spread


def test_float16_is_refused_for_a_cpu_by_name():
    service = Service(MODEL, dtype="float16")
    with pytest.raises(RuntimeError):
        service.__enter__()
    assert "--dtype float16: a CPU computes in float32 and bfloat16" in service.log_text()


def test_a_group_whose_worker_died_forms_again(two_gpus):
    before = ids(two_gpus, 3)
    os.kill(two_gpus.workers()[0], signal.SIGKILL)
    two_gpus.wait_for_health(NOT_SERVING)
    two_gpus.wait_for_health(SERVING)
    assert ids(two_gpus, 3) == before


def children(pid):
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_one_command_serves_a_range_of_gpus():
    coordinator = Service(MODEL, workers=0, dtype="float32", wait=False,
                          options=["--worker-listen", "127.0.0.1:0"])
    coordinator.command[coordinator.command.index("--tp") + 1] = "2"
    with coordinator as service:
        parent = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", PROGRAMS / "bin" / "winnow-worker",
             "--coordinator", worker_address(service), "--model", MODEL, "--device", "cuda:0-1",
             "--kv-memory", "4M"], env={**os.environ, "WINNOW_CUDA_HOST": "apart lazy devices=2"},
            stderr=subprocess.DEVNULL)
        try:
            service.wait_for_health(SERVING)
            devices = sorted(w.device.split()[0] for g in service.status().groups for w in g.workers)
            assert devices == ["cuda:0", "cuda:1"]
            before = children(parent.pid)
            os.kill(before[1], signal.SIGKILL)
            service.wait_for_health(NOT_SERVING)
            service.wait_for_health(SERVING)
            after = children(parent.pid)
            assert before[0] in after and before[1] not in after
        finally:
            parent.terminate()
            assert parent.wait(15) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in after)


def test_without_a_driver_or_a_gpu_one_sentence_says_so():
    assert "cuda: GPU 0 was asked for: no CUDA-capable device" in refusal(workers=1, words="devices=0")
    assert "this machine has no NVIDIA driver" in refusal(workers=1, words="no-driver")
    assert "cuda: GPU 1 was asked for, of 0 to 0" in refusal(workers=2, words="devices=1")


def test_the_kv_pool_takes_what_is_free():
    with emulated(1, "memory=128", options=()) as service:
        (worker,) = [w for g in service.status().groups for w in g.workers]
        assert 8 << 20 < worker.kv_bytes_total < 128 << 20
        assert len(ids(service, 2, 10)) == 2
        assert service.generate(**prompt(ids=[1, 2, 3]), compression=full(),
                                sampling=sampling(max_tokens=1)).done is not None
