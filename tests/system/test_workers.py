"""Workers that die, workers that dial in from elsewhere, and processes that must not stay."""
import os
import signal
import subprocess
import threading
import time

import pytest
from grpc_health.v1 import health_pb2

from service import (BUILD, MODELS, NOT_SERVING, SERVING, Service, api, fastkv, grpc, prompt,
                     sampling)

NEEDLE = MODELS / "needle-tiny"


class Watch:
    """Collects what Health.Watch reports."""

    def __init__(self, service, name=""):
        self.states = []
        self.call = service.health.Watch(health_pb2.HealthCheckRequest(service=name))
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            for response in self.call:
                self.states.append(response.status)
        except grpc.RpcError:
            pass

    def wait_for(self, states, timeout):
        deadline = time.monotonic() + timeout
        while self.states != states and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.states == states


def answers_right(service, case):
    answer = service.generate(text=case["prompt"], sampling=api.Sampling(max_tokens=5),
                              compression=fastkv())
    return answer.ids[:3] == case["answer_ids"]


def test_a_worker_killed_while_idle_is_replaced(needle_cases):
    with Service(NEEDLE, workers=2, dtype="float32") as service:
        watch = Watch(service)
        watch.wait_for([SERVING], 5)
        os.kill(service.workers()[1], signal.SIGKILL)
        watch.wait_for([SERVING, NOT_SERVING, SERVING], 60)
        assert answers_right(service, needle_cases[512][0])
        watch.call.cancel()


def test_local_workers_die_with_their_coordinator():
    service = Service(NEEDLE, workers=2, dtype="float32")
    service.__enter__()
    workers = service.workers()
    assert len(workers) == 2
    os.kill(service.process.pid, signal.SIGKILL)
    service.stop()
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their coordinator"
        time.sleep(0.05)


def test_a_stop_in_the_middle_of_work_is_clean(needle_cases):
    with Service(NEEDLE, workers=2, dtype="float32") as service:
        ids = service.tokenize(needle_cases[131072][0]["prompt"])
        call = service.inference.Generate(
            api.GenerateRequest(**prompt(ids=ids), sampling=sampling(max_tokens=5)), timeout=300)
        next(iter(call))
        assert service.stop() == 0
        with pytest.raises(grpc.RpcError):
            for _ in call:
                pass


def test_workers_may_dial_in(needle_cases):
    coordinator = Service(NEEDLE, workers=0, dtype="float32", wait=False,
                          options=["--worker-listen", "127.0.0.1:0"])
    at = coordinator.command.index("--tp")
    coordinator.command[at + 1] = "2"
    with coordinator as service:
        assert service.check() == NOT_SERVING
        with pytest.raises(grpc.RpcError) as error:
            service.generate(**prompt(ids=[1, 2, 3]))
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        address = worker_address(service)
        workers = [subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", BUILD / "bin" / "winnow-worker",
             "--coordinator", address, "--model", NEEDLE, "--advertise", "127.0.0.1"],
            stderr=subprocess.DEVNULL) for _ in range(2)]
        try:
            service.wait_for_health(SERVING, 60)
            assert answers_right(service, needle_cases[1024][1])
        finally:
            for worker in workers:
                worker.terminate()
            codes = [worker.wait(15) for worker in workers]
        assert codes == [0, 0]


def worker_address(service):
    """Where workers dial in: port 0 was asked for, so the log says which it became."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for line in service.log_text().splitlines():
            if "worker" in line and "127.0.0.1:" in line and "listen" in line:
                return "127.0.0.1:" + line.split("127.0.0.1:")[1].split()[0].strip('"')
        time.sleep(0.05)
    raise AssertionError("the log does not say where workers dial in:\n" + service.log_text())
