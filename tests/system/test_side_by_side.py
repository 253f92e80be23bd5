"""A long prompt does not hold up the others."""
import threading

import grpc
import pytest

from service import api, full, prompt, sampling


class LongRequest(threading.Thread):
    """Reads a prompt of 131,067 tokens until it is cancelled."""

    def __init__(self, service, ids):
        super().__init__(daemon=True)
        request = api.GenerateRequest(**prompt(ids=ids), compression=full(),
                                      sampling=sampling(max_tokens=1))
        self.call = service.inference.Generate(request, timeout=600)
        self.reading = threading.Event()
        self.fraction, self.code = 0, None

    def run(self):
        try:
            for response in self.call:
                if response.WhichOneof("event") == "progress":
                    if response.progress.phase == api.PHASE_PREFILL:
                        self.fraction = response.progress.fraction
                        self.reading.set()
        except grpc.RpcError as e:
            self.code = e.code()

    def __enter__(self):
        self.start()
        assert self.reading.wait(30)
        return self

    def __exit__(self, *_):
        self.call.cancel()
        self.join(30)


@pytest.fixture
def short(needle, needle_cases):
    case = needle_cases[1024][0]
    return {**prompt(ids=needle.tokenize(case["prompt"])), "sampling": sampling(max_tokens=5)}


def test_a_short_prompt_is_answered_while_a_long_one_is_read(needle, long_prompt, short):
    alone = needle.generate(**short)
    with LongRequest(needle, long_prompt) as long:
        answer = needle.generate(**short)
        assert long.is_alive() and long.fraction < 0.9
    assert answer.ids == alone.ids
    assert answer.timing.queue_ms < 1000
    assert long.code == grpc.StatusCode.CANCELLED


def test_a_short_prompt_passes_a_second_long_one(needle, long_prompt, short):
    with LongRequest(needle, long_prompt) as first:
        request = api.GenerateRequest(**prompt(ids=long_prompt), compression=full(),
                                      sampling=sampling(max_tokens=1))
        second = needle.inference.Generate(request, timeout=600)
        try:
            queued = next(second).progress
            assert queued.phase == api.PHASE_QUEUED
            assert needle.generate(**short).ids
            assert first.is_alive() and needle.status().queued_requests == 1
        finally:
            second.cancel()
