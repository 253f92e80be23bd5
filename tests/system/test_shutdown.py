"""The end of a service: NOT_SERVING first, a window, a bounded drain; Drain; workers that leave."""
import math
import os
import signal
import threading
import time

import grpc
import pytest

from seen import until
from service import (MODELS, NOT_SERVING, SERVING, Service, api, control, full, prompt, sampling)
from test_health import Worker, dialled_in
from test_workers import NEEDLE, Watch, worker_address

STORIES = MODELS / "stories260k"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Stream:
    """A Generate call that is read on a thread; how it ended is in `code`, None: it has not."""

    def __init__(self, service, max_tokens, request_id=""):
        request = api.GenerateRequest(request_id=request_id, **prompt(ids=[5] * 50),
                                      compression=full(), sampling=sampling(max_tokens=max_tokens))
        self.call = service.inference.Generate(request, timeout=300)
        self.ids, self.code, self.details, self.done = [], None, "", None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            for response in self.call:
                if response.WhichOneof("event") == "tokens":
                    self.ids.extend(response.tokens.ids)
                elif response.WhichOneof("event") == "done":
                    self.done = response.done
            self.code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            self.code, self.details = error.code(), error.details()

    def wait(self):
        self.thread.join(60)
        return self.code


def refusal(service):
    """The details of an UNAVAILABLE, or None where the request is accepted."""
    try:
        service.generate(**prompt(ids=[1, 2]), sampling=sampling(max_tokens=1), timeout=30)
        return None
    except grpc.RpcError as error:
        assert error.code() == UNAVAILABLE
        return error.details()


def wait_for_exit(service, seconds):
    begin = time.monotonic()
    assert service.process.wait(seconds) == 0
    return time.monotonic() - begin


def test_sigterm_is_told_first_then_a_window_accepts_then_all_is_finished():
    options = ["--drain-window-ms", 3000, "--drain-timeout-ms", 60000]
    with Service(NEEDLE, workers=2, dtype="float32", options=options) as service:
        watch = Watch(service)
        watch.wait_for([SERVING], 5)
        running = Stream(service, 1200)
        until(lambda: running.ids)
        service.process.send_signal(signal.SIGTERM)
        watch.wait_for([SERVING, NOT_SERVING], 3)
        assert service.check("liveness") == SERVING
        assert refusal(service) is None, "the window accepts what was under way"
        last = Stream(service, 900)
        until(lambda: last.ids)
        assert running.wait() == grpc.StatusCode.OK and len(running.ids) == 1200
        assert last.wait() == grpc.StatusCode.OK and len(last.ids) == 900
        wait_for_exit(service, 30)


def test_after_the_window_new_requests_are_refused_while_running_ones_end():
    options = ["--drain-timeout-ms", 60000]
    with Service(NEEDLE, dtype="float32", options=options) as service:
        running = Stream(service, 2000)
        until(lambda: running.ids)
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.status().draining)
        assert "draining" in refusal(service)
        assert running.code is None, "it ended before anything was tried"
        (group,) = service.status().groups
        assert group.state == "draining" and group.running_requests == 1
        assert running.wait() == grpc.StatusCode.OK and len(running.ids) == 2000
        wait_for_exit(service, 30)


def test_a_drain_is_bounded():
    with Service(NEEDLE, dtype="float32", options=["--drain-timeout-ms", 500]) as service:
        running = Stream(service, 100000)
        until(lambda: running.ids)
        service.process.send_signal(signal.SIGTERM)
        assert wait_for_exit(service, 30) < 15
        assert running.wait() == UNAVAILABLE and "draining" in running.details


@pytest.mark.parametrize("phase", ["window", "drain"])
def test_a_second_signal_is_immediate(phase):
    minute = 600000
    options = ["--drain-window-ms", minute if phase == "window" else 0,
               "--drain-timeout-ms", minute]
    with Service(NEEDLE, dtype="float32", options=options) as service:
        running = Stream(service, 120000)
        until(lambda: running.ids)
        service.process.send_signal(signal.SIGTERM)
        if phase == "window":
            until(lambda: service.check() == NOT_SERVING)
        else:
            until(lambda: service.status().draining)
        assert service.alive() and running.code is None
        service.process.send_signal(signal.SIGTERM)
        assert wait_for_exit(service, 30) < 15
        assert running.wait() == UNAVAILABLE


def test_a_signal_before_anything_is_ready_ends_at_once():
    with Service(STORIES, workers=0, wait=False, options=["--worker-listen", "127.0.0.1:0"]) \
            as service:
        service.process.send_signal(signal.SIGTERM)
        assert wait_for_exit(service, 30) < 15


# ---- Drain ----


def drain(service, seconds):
    return service.control.Drain(control.DrainRequest(timeout_s=seconds), timeout=60).unfinished


def test_a_drain_waits_for_what_runs_and_says_so():
    with Service(NEEDLE, dtype="float32") as service:
        watch = Watch(service)
        watch.wait_for([SERVING], 5)
        running = Stream(service, 1200)
        until(lambda: running.ids)
        assert drain(service, 60) == 0
        assert running.wait() == grpc.StatusCode.OK and len(running.ids) == 1200
        watch.wait_for([SERVING, NOT_SERVING], 5)
        assert service.check("liveness") == SERVING
        assert service.status().draining and "draining" in refusal(service)


def test_a_drain_that_is_too_short_fails_the_rest_and_counts_it():
    with Service(NEEDLE, dtype="float32") as service:
        streams = [Stream(service, 100000) for _ in range(2)]
        until(lambda: all(stream.ids for stream in streams))
        later = []
        patient = threading.Thread(target=lambda: later.append(drain(service, 600)))
        patient.start()
        until(lambda: service.status().draining)
        assert drain(service, 0.2) == 2
        patient.join(30)
        assert later == [2], "a shorter drain ends a longer one, too"
        assert [stream.wait() for stream in streams] == [UNAVAILABLE] * 2
        assert all("draining" in stream.details for stream in streams)
        until(lambda: service.status().failed_requests == 2)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1, 1e9])
def test_a_drain_of_no_possible_length_is_invalid_and_drains_nothing(stories, seconds):
    with pytest.raises(grpc.RpcError) as error:
        drain(stories, seconds)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "timeout_s" in error.value.details()
    assert not stories.status().draining and refusal(stories) is None


# ---- a worker ----


def test_a_worker_that_is_told_to_stop_lets_its_group_finish():
    """Readiness goes first, then what runs ends, then the worker; a new one takes its place."""
    with dialled_in() as (service, workers):
        one = ["--threads", "1"]
        workers += [Worker(worker_address(service), options=one) for _ in range(2)]
        service.wait_for_health()
        watch = Watch(service)
        watch.wait_for([SERVING], 5)
        running = Stream(service, 600)
        until(lambda: running.ids)
        leaving = workers.pop()
        leaving.process.send_signal(signal.SIGTERM)
        watch.wait_for([SERVING, NOT_SERVING], 5)
        assert "no worker group is ready" in refusal(service)
        (group,) = service.status().groups
        assert running.code is not None or group.state == "draining"
        assert running.wait() == grpc.StatusCode.OK and len(running.ids) == 600
        assert leaving.process.wait(15) == 0
        workers.append(Worker(worker_address(service), options=one))
        watch.wait_for([SERVING, NOT_SERVING, SERVING], 30)
        assert refusal(service) is None


@pytest.mark.parametrize("how", ["timeout", "second signal"])
def test_the_drain_of_a_worker_is_bounded(how):
    ms = 1500 if how == "timeout" else 600000
    with dialled_in() as (service, workers):
        options = ["--threads", "1", "--drain-timeout-ms", str(ms)]
        workers += [Worker(worker_address(service), options=options) for _ in range(2)]
        service.wait_for_health()
        running = Stream(service, 100000)
        until(lambda: running.ids)
        leaving = workers.pop()
        begin = time.monotonic()
        leaving.process.send_signal(signal.SIGTERM)
        until(lambda: service.status().groups[0].state == "draining")
        if how != "timeout":
            leaving.process.send_signal(signal.SIGTERM)
        assert leaving.process.wait(15) == (0 if how == "timeout" else 1)
        assert running.wait() == UNAVAILABLE and time.monotonic() - begin < 10
        assert "rank" in running.details


def test_a_worker_without_a_coordinator_leaves_too():
    with dialled_in() as (service, workers):
        worker = Worker(worker_address(service))
        service.process.kill()
        service.process.wait()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(15) == 0
        service.process = _Ended(service.process)


class _Ended:
    """A coordinator that the test itself ended: its status is no failure."""

    def __init__(self, process):
        self.pid, self.stdout = process.pid, process.stdout

    def poll(self):
        return 0

    def wait(self, _=None):
        return 0


def test_a_stopped_worker_that_is_told_to_stop_twice_ends_at_once():
    with dialled_in() as (service, workers):
        worker = Worker(worker_address(service))
        os.kill(worker.process.pid, signal.SIGSTOP)
        worker.process.send_signal(signal.SIGTERM)
        worker.process.send_signal(signal.SIGINT)
        os.kill(worker.process.pid, signal.SIGCONT)
        assert worker.process.wait(15) == 1
