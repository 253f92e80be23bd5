"""Workers and coordinators that die, stop or are cut off, while models load, in prefill and in
decode: what runs ends or runs again within a bounded time, and everything is served again."""
import os
import signal
import threading
import time

import pytest

from service import MODELS, SERVING, Service, api, full, grpc, prompt, sampling

NEEDLE = MODELS / "needle-tiny"
HEARTBEAT_S = 2
# A silent rank is lost HEARTBEAT_S after its last message, which is up to 0.5 s old; the coordinator
# looks every 50 ms.  The rest is for a busy machine.
DETECTED_S = HEARTBEAT_S + 3
FORMED_S = 60
OPTIONS = ["--heartbeat-timeout-ms", str(HEARTBEAT_S * 1000)]


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

    def wait_for_phase(self, phase):
        """Of a request that is to be disturbed there."""
        if phase == "prefill":
            self.wait(lambda call: api.PHASE_PREFILL in call.phases)
            assert not self.tokens
        else:
            self.wait(lambda call: len(call.tokens) >= 3)

    def wait_for_end(self, timeout):
        with self.changed:
            assert self.changed.wait_for(lambda: self.ended_at, timeout), "the request hangs"


@pytest.fixture(scope="module")
def disturbed(needle_cases):
    """Two local workers that are killed and stopped, and tell of it soon."""
    with Service(NEEDLE, workers=2, dtype="float32", options=OPTIONS) as service:
        service.long = service.tokenize(needle_cases[16384][0]["prompt"])
        service.short = service.tokenize(needle_cases[1024][0]["prompt"])
        service.solo = service.generate(**prompt(ids=service.short), sampling=sampling(max_tokens=200),
                                        compression=full()).ids
        yield service


def start_in(service, phase):
    """A request that is in that phase now."""
    ids, tokens = (service.long, 8) if phase == "prefill" else (service.short, 3000)
    call = Call(service, **prompt(ids=ids), sampling=sampling(max_tokens=tokens), compression=full())
    call.wait_for_phase(phase)
    return call


def serves_right(service):
    """Back, and with the same tokens as before."""
    service.wait_for_health(SERVING, FORMED_S)
    answer = service.generate(**prompt(ids=service.short), sampling=sampling(max_tokens=200),
                              compression=full())
    return answer.ids == service.solo and not any(service.pages_used())


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_worker(disturbed, number, phase):
    """In prefill the request runs again; in decode it fails and names the rank and the cause."""
    call = start_in(disturbed, phase)
    before = disturbed.workers()
    os.kill(before[number], signal.SIGKILL)
    killed = time.monotonic()
    if phase == "prefill":
        call.wait(lambda call: call.phases[-1] == api.PHASE_QUEUED, timeout=DETECTED_S)
        call.wait_for_end(120)
        assert call.done and len(call.tokens) == 8, call.error
    else:
        call.wait_for_end(DETECTED_S)
        assert call.error.code() == grpc.StatusCode.UNAVAILABLE
        assert f"process {before[number]}) was killed by signal 9" in call.error.details()
        assert call.ended_at - killed < 2
    assert serves_right(disturbed)
    after = disturbed.workers()
    assert before[number] not in after and before[1 - number] in after
