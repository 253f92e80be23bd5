"""winnow doctor, on this machine and with a stand-in for the NVIDIA driver."""
import json
import os
import subprocess

from service import BUILD


def doctor(*words, emulated=None):
    env = dict(os.environ)
    if emulated is not None:
        env |= {"LD_LIBRARY_PATH": f"{BUILD / 'cuda-host' / 'lib'}", "WINNOW_CUDA_HOST": emulated}
    return subprocess.run([BUILD / "bin" / "winnow", "doctor", *words], capture_output=True,
                          text=True, timeout=60, env=env)


def findings(emulated):
    done = doctor("--json", emulated=emulated)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_it_says_what_this_machine_has_whatever_that_is():
    done = doctor()
    assert (done.returncode, done.stderr) == (0, "")
    assert "--device cpu can work here." in done.stdout
    assert "--device cuda" in done.stdout
    assert doctor("--json").returncode == 0


def test_gpus_and_their_peers_are_listed():
    done = doctor(emulated="devices=3")
    assert "GPU 1      emulated GPU, sm_90, 80.0 GiB, peers 0,2\n" in done.stdout
    assert "driver     13.0\n" in done.stdout
    found = findings("devices=2")
    assert [gpu["peers"] for gpu in found["gpus"]] == [[1], [0]]
    assert not any("GPU" in text and "NCCL" not in text and "shm" not in text
                   for text in found["missing"])


def test_what_is_missing_is_named():
    assert any("CUDA up to 10.0, this needs 13.0" in text for text in findings("old")["missing"])
    assert any("GPU 0 is of compute capability 7.0" in text for text in findings("old")["missing"])
    assert "no GPU" in findings("devices=0")["missing"]
    assert any("does not start (error 999)" in text for text in findings("broken")["missing"])
    assert "GPU 1 has no peer access to GPU 0: collectives go through the host" in findings(
        "devices=2 no-peers")["missing"]


def test_wrong_usage_is_told():
    assert doctor("--nonsense").returncode == 2
    assert doctor("--help").returncode == 0
