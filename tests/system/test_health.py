"""Health: liveness is progress, readiness a group that can compute; coordinator and workers."""
import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from seen import Metrics, fetch, http_port, until
from service import (BUILD, MODELS, NOT_SERVING, SERVING, Service, api, prompt, sampling)
from test_workers import NEEDLE, Watch, worker_address

NAMES = ["", "liveness", "readiness", "winnow.v1.Inference"]
READY_NAMES = ["", "readiness", "winnow.v1.Inference"]


class Health:
    """A channel to a health port."""

    def __init__(self, port):
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def check(self, name=""):
        return self.health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status


def port_of(text, module):
    found = re.search(module + r": listening host=127\.0\.0\.1 port=(\d+)", text)
    return int(found.group(1)) if found else None


class Worker:
    """A winnow-worker that dials in, with both of its ports."""

    def __init__(self, address, model=NEEDLE, options=()):
        self.log = tempfile.TemporaryFile(mode="w+", prefix="winnow-worker-log-")
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", BUILD / "bin" / "winnow-worker",
             "--coordinator", address, "--model", model, "--http", "127.0.0.1:0",
             "--health-listen", "127.0.0.1:0", *options], stderr=self.log)
        self.health = Health(until(lambda: port_of(self.log_text(), "health")))
        self.http = until(lambda: port_of(self.log_text(), "web"))

    def log_text(self):
        return Path(f"/proc/self/fd/{self.log.fileno()}").read_text()

    def stop(self):
        self.health.channel.close()
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(15)
        self.process.kill()
        return self.process.wait()


@contextlib.contextmanager
def dialled_in(ranks=2, options=()):
    """A coordinator without children, and its workers."""
    coordinator = Service(NEEDLE, workers=0, dtype="float32", wait=False,
                          options=["--worker-listen", "127.0.0.1:0", *options])
    coordinator.command[coordinator.command.index("--tp") + 1] = str(ranks)
    workers = []
    with coordinator as service:
        try:
            yield service, workers
        finally:
            codes = [worker.stop() for worker in workers]
    assert all(code == 0 for code in codes if code is not None), codes


def test_ready_is_a_complete_group_on_both_sides():
    with dialled_in() as (service, workers):
        watch = Watch(service)
        workers.append(Worker(worker_address(service)))
        alone = workers[0].health
        assert [alone.check(name) for name in NAMES] == \
            [NOT_SERVING, SERVING, NOT_SERVING, NOT_SERVING]
        assert fetch(workers[0].http, "/health/ready") == (503, "not ready\n")
        assert fetch(workers[0].http, "/health/live") == (200, "alive\n")
        assert service.check("liveness") == SERVING
        assert watch.states == [NOT_SERVING]
        own = Watch(alone, "readiness")
        workers.append(Worker(worker_address(service)))
        watch.wait_for([NOT_SERVING, SERVING], 30)
        own.wait_for([NOT_SERVING, SERVING], 30)
        for worker in workers:
            assert [worker.health.check(name) for name in NAMES] == [SERVING] * 4
            assert fetch(worker.http, "/health/ready") == (200, "ready\n")
            assert "warmup_ms=" in worker.log_text()
        with pytest.raises(grpc.RpcError) as error:
            alone.check("no.such.Service")
        assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_worker_tells_its_steps_and_its_memory():
    with dialled_in() as (service, workers):
        workers += [Worker(worker_address(service)) for _ in range(2)]
        service.wait_for_health()
        answer = service.generate(**prompt(ids=[5] * 300), sampling=sampling(max_tokens=6))
        assert len(answer.ids) == 6
        seen = [Metrics(fetch(worker.http, "/metrics")[1]) for worker in workers]
        assert {m.value("winnow:worker_rank") for m in seen} == {0, 1}
        for each in seen:
            assert each.value("winnow:worker_ready") == 1
            assert each.value("winnow:worker_group") == 0
            assert each.value("winnow:worker_steps_total") >= 6
            assert each.value("winnow:worker_step_seconds_count") == \
                each.value("winnow:worker_steps_total")
            assert 0 < each.value("winnow:worker_collective_seconds_total") < \
                each.value("winnow:worker_step_seconds_sum")
            assert each.value("winnow:worker_kv_total_bytes") > 0
            assert all(dict(labels)["model_name"] == "needle-tiny" for _, labels in each.samples)
        assert sorted(m.value("winnow:worker_tokens_total") for m in seen)[0] == 0
        assert max(m.value("winnow:worker_tokens_total") for m in seen) >= 6


def test_the_health_port_serves_health_and_nothing_else():
    with Service(NEEDLE, dtype="float32", options=["--health-listen", "127.0.0.1:0"]) as service:
        plain = Health(port_of(service.log_text(0), "health"))
        assert [plain.check(name) for name in NAMES] == [SERVING] * 4
        watch = Watch(plain)
        watch.wait_for([SERVING], 5)
        call = plain.channel.unary_unary("/winnow.v1.Inference/GetModel")
        with pytest.raises(grpc.RpcError) as error:
            call(b"", timeout=10)
        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert service.stop() == 0
        watch.wait_for([SERVING, NOT_SERVING], 5)
        plain.channel.close()


def test_a_stopped_rank_turns_readiness_off_within_the_heartbeat_limit():
    limit = 1.5
    options = ["--heartbeat-timeout-ms", int(limit * 1000)]
    with dialled_in(options=options) as (service, workers):
        workers += [Worker(worker_address(service)) for _ in range(2)]
        service.wait_for_health()
        watch = Watch(service)
        watch.wait_for([SERVING], 5)
        peer = Watch(workers[0].health)
        peer.wait_for([SERVING], 5)
        begin = time.monotonic()
        os.kill(workers[1].process.pid, signal.SIGSTOP)
        try:
            watch.wait_for([SERVING, NOT_SERVING], limit + 3)
            took = time.monotonic() - begin
            peer.wait_for([SERVING, NOT_SERVING], 5)
            assert service.check("liveness") == SERVING, "the coordinator itself gets on"
            assert workers[0].health.check("liveness") == SERVING
        finally:
            os.kill(workers[1].process.pid, signal.SIGCONT)
        assert took < limit + 2, f"noticed after {took:.1f} s"
        watch.wait_for([SERVING, NOT_SERVING, SERVING], 30)
        peer.wait_for([SERVING, NOT_SERVING, SERVING], 30)


@pytest.mark.parametrize("option", ["--http", "--health-listen"])
def test_a_port_that_is_taken_is_an_error_of_one_sentence(option):
    with Service(MODELS / "stories260k", options=["--http", "127.0.0.1:0"]) as service:
        taken = f"127.0.0.1:{http_port(service)}"
        for program in ("winnow-coordinator", "winnow-worker"):
            ended = subprocess.run(
                [BUILD / "bin" / program, "--model", MODELS / "stories260k", option, taken],
                capture_output=True, text=True, timeout=30,
                env={**os.environ, "WINNOW_LISTEN": "127.0.0.1:0",
                     "WINNOW_WORKER_LISTEN": "127.0.0.1:0"})
            assert ended.returncode == 1
            assert f"{option}: cannot listen on {taken}" in ended.stderr.splitlines()[-1]


def test_the_environment_of_the_coordinator_does_not_reach_its_children(tmp_path):
    """WINNOW_HTTP is the coordinator's port; its workers must not want it, too."""
    with Service(MODELS / "stories260k", env={"WINNOW_HTTP": "127.0.0.1:0"}) as service:
        assert fetch(http_port(service), "/health/ready")[0] == 200
        assert len(re.findall("web: listening", service.log_text(0))) == 1
