"""faults.py - requests that are read in the background, and workers that are processes of their own."""
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time

from service import BUILD, SERVING, Service, api, full, grpc, prompt, sampling

ALL = os.environ.get("WINNOW_TEST_LONG")  # tests/run.sh --all
HEARTBEAT_S = 3
# A silent rank is lost HEARTBEAT_S after its last message, which is up to 0.5 s old; the coordinator
# looks every 50 ms.  The rest is for a busy machine.
DETECTED_S = HEARTBEAT_S + 3
FORMED_S = 60
OPTIONS = ["--heartbeat-timeout-ms", str(HEARTBEAT_S * 1000)]
SHORT_TOKENS = 50


class Call:
    """A request that is read on a thread of its own."""

    def __init__(self, service, **fields):
        self.tokens, self.phases, self.error, self.done = [], [], None, None
        self.ended_at = None
        self.changed = threading.Condition()
        self.stream = service.inference.Generate(api.GenerateRequest(**fields), timeout=300)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            for response in self.stream:
                with self.changed:
                    if response.WhichOneof("event") == "progress":
                        self.phases.append(response.progress.phase)
                    elif response.WhichOneof("event") == "tokens":
                        self.tokens += response.tokens.ids
                    else:
                        self.done = response.done
                    self.changed.notify_all()
        except grpc.RpcError as error:
            self.error = error
        with self.changed:
            self.ended_at = time.monotonic()
            self.changed.notify_all()

    def wait(self, condition, timeout=60):
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self) or self.ended_at, timeout)
            assert condition(self), f"ended early: {self.error} after {self.tokens}"

    def wait_for_end(self, timeout):
        with self.changed:
            assert self.changed.wait_for(lambda: self.ended_at, timeout), "the request hangs"

    def completes(self, timeout=120):
        self.wait_for_end(timeout)
        assert self.done, f"{self.error.code()}: {self.error.details()}"
        return self.tokens

    def fails(self, timeout):
        """The reason, after UNAVAILABLE within that time."""
        self.wait_for_end(timeout)
        assert self.error and self.error.code() == grpc.StatusCode.UNAVAILABLE, self.error
        return self.error.details()

    def waits_again(self, timeout):
        """It was in prefill, and is in the queue again."""
        self.wait(lambda call: call.phases[-1] == api.PHASE_QUEUED, timeout)


def learn(service, cases):
    """Prompts for disturbances, and what the undisturbed service says."""
    service.long = service.tokenize(cases[8192][0]["prompt"])
    service.short = service.tokenize(cases[1024][0]["prompt"])
    service.solo = short_answer(service)
    service.long_solo = service.generate(**prompt(ids=service.long),
                                         sampling=sampling(max_tokens=8), compression=full()).ids
    return service


def short_answer(service):
    return service.generate(**prompt(ids=service.short), sampling=sampling(max_tokens=SHORT_TOKENS),
                            compression=full()).ids


def start_in(service, phase):
    """A request that is in that phase now, and stays there for a while."""
    ids, tokens = (service.long, 8) if phase == "prefill" else (service.short, 1500)
    call = Call(service, **prompt(ids=ids), sampling=sampling(max_tokens=tokens),
                compression=full())
    if phase == "prefill":
        call.wait(lambda call: api.PHASE_PREFILL in call.phases)
        assert not call.tokens
    else:
        call.wait(lambda call: len(call.tokens) >= 3)
    return call


def serves_right(service, timeout=FORMED_S):
    """Ready within that time, with the same tokens as before; and nothing is left of the rest."""
    deadline = time.monotonic() + timeout
    while True:
        service.wait_for_health(SERVING, deadline - time.monotonic())
        try:
            assert short_answer(service) == service.solo
            break
        except grpc.RpcError as error:  # health may not have noticed the loss yet
            assert error.code() == grpc.StatusCode.UNAVAILABLE
    (group, *_) = service.status().groups
    assert group.state == "ready" and group.running_requests == 0
    assert not any(service.pages_used())


def await_log(text, pattern, timeout=30, count=1):
    """Until the pattern is `count` times in what text() returns."""
    deadline = time.monotonic() + timeout
    while len(re.findall(pattern, text())) < count:
        assert time.monotonic() < deadline, f"{pattern!r} is not {count} times in\n{text()}"
        time.sleep(0.01)


class Worker:
    """winnow-worker as a process of its own, with its log."""

    def __init__(self, model, coordinator, prefix=(), options=()):
        self.log = tempfile.TemporaryFile(mode="w+", prefix="winnow-worker-log-")
        self.process = subprocess.Popen(
            [*prefix, "setpriv", "--pdeathsig", "TERM", "--", str(BUILD / "bin" / "winnow-worker"),
             "--coordinator", coordinator, "--model", str(model), "--threads", "1",
             *map(str, options)], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.pid = self.process.pid

    def log_text(self):
        with open(f"/proc/self/fd/{self.log.fileno()}", errors="replace") as log:
            return log.read()

    def signal(self, number):
        os.kill(self.pid, number)

    def loads(self):
        """How often it read its weights."""
        return self.log_text().count("rank: weights loaded")

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return "killed: it did not stop within 20 s"


def stop_for(service, seconds):
    os.kill(service.process.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(service.process.pid, signal.SIGCONT)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Cluster:
    """A coordinator on fixed ports, which can come back, and workers that are not its children."""

    def __init__(self, model, dtype, workers=2):
        self.model, self.dtype = model, dtype
        self.worker_address = f"127.0.0.1:{free_port()}"
        self.listen = f"127.0.0.1:{free_port()}"
        self.workers = [Worker(model, self.worker_address) for _ in range(workers)]
        self.service = None

    def coordinator(self):
        """Starts it, for the first time or again."""
        service = Service(self.model, workers=0, dtype=self.dtype, wait=False, options=[
            *OPTIONS, "--tp", "2", "--listen", self.listen, "--worker-listen",
            self.worker_address])
        if hasattr(self.service, "solo"):
            for known in ("long", "short", "solo", "long_solo"):
                setattr(service, known, getattr(self.service, known))
        self.service = service.__enter__()
        return self.service

    def __enter__(self):
        self.coordinator()
        return self

    def __exit__(self, kind, *_):
        codes = [worker.stop() for worker in self.workers]
        self.service.__exit__(kind, None, None)
        if kind is None:
            assert all(code in (0, -signal.SIGKILL) for code in codes), codes
