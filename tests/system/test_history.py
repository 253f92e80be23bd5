"""The checker of histories on histories made by hand, and the service under random kills."""
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

import history
from faults import ALL, FORMED_S
from service import MODELS, SERVING, Service, api, fastkv, full, grpc, prompt, sampling

SOLO = {"a": [1, 2, 3], "b": [4, 5]}
GOOD = [("a", "begin", None), ("b", "begin", None), ("a", "tokens", [1]), ("b", "tokens", [4]),
        ("b", "end", "UNAVAILABLE"), ("a", "tokens", [2, 3]), ("a", "end", "done")]


def test_a_good_history():
    assert history.check(GOOD, SOLO) == []
    assert history.count_ends(GOOD) == {"done": 1, "UNAVAILABLE": 1}


BAD = {
    "a: has no end": GOOD[:-1],
    "b: end after its end": [*GOOD, ("b", "end", "done")],
    "a: tokens after its end": [*GOOD, ("a", "tokens", [])],
    "a: began twice": [GOOD[0], *GOOD],
    "c: tokens before its beginning": [*GOOD, ("c", "tokens", [])],
    "b: ended with INTERNAL": [event if event[2] != "UNAVAILABLE" else ("b", "end", "INTERNAL")
                               for event in GOOD],
    "a: token 1 is not that of the undisturbed run": [
        event if event[2] != [2, 3] else ("a", "tokens", [1, 2, 3]) for event in GOOD],
    "a: token 3 is not that of the undisturbed run": [
        event if event[2] != [2, 3] else ("a", "tokens", [2, 3, 4]) for event in GOOD],
    "a: done after 1 of 3 tokens": [event for event in GOOD if event[2] != [2, 3]],
    "a: an unknown event word": [*GOOD[:-1], ("a", "word", None), GOOD[-1]],
}


@pytest.mark.parametrize("sentence", BAD)
def test_a_bad_history(sentence):
    assert sentence in history.check(BAD[sentence], SOLO)


# ---- the service ----

N_REQUESTS = 10000 if ALL else 300
LIMIT_S = 7200 if ALL else 240
# Seconds between kills.  A local worker that is killed again and again starts later each time, up to
# 5 s: a long run with short pauses would find nobody.
PAUSE_S = (2, 8) if ALL else (0.3, 1.5)
CLIENTS = 16
KINDS = [(20, 40), (200, 8), (60, 100)]  # tokens of the prompt and of the answer


class Recorder:
    """Clients that send requests, cancel some, and write down what they see."""

    def __init__(self, service, requests, seed):
        self.service, self.requests = service, requests
        self.events, self.lock = [], threading.Lock()
        self.random = random.Random(seed)
        self.left = list(range(len(requests)))
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def alive(self):
        return any(thread.is_alive() for thread in self.threads)

    def _record(self, *event):
        with self.lock:
            self.events.append(event)

    def _work(self):
        while True:
            with self.lock:
                if not self.left:
                    return
                number = self.left.pop()
                cancel_after = self.random.randrange(30) if self.random.random() < 0.05 else None
            self._one(f"r{number}", self.requests[number], cancel_after)

    def _one(self, name, request, cancel_after):
        self._record(name, "begin", None)
        seen = 0
        call = self.service.inference.Generate(request, timeout=120)
        try:
            for response in call:
                kind = response.WhichOneof("event")
                if kind == "tokens":
                    seen += len(response.tokens.ids)
                    self._record(name, "tokens", list(response.tokens.ids))
                elif kind == "done":
                    self._record(name, "end", "done")
                if cancel_after is not None and seen >= cancel_after:
                    call.cancel()
        except grpc.RpcError as error:
            self._record(name, "end", error.code().name)
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                self.service.wait_for_health(SERVING, FORMED_S)


def make_requests(service, random_numbers):
    """All kinds: greedy and drawn, with the full cache and a compressed one."""
    requests = []
    for length, tokens in KINDS:
        for variant in range(4):
            ids = [1] + [random_numbers.randrange(3, 500) for _ in range(length - 1)]
            requests.append(api.GenerateRequest(
                **prompt(ids=ids),
                sampling=sampling(max_tokens=tokens, temperature=[0, 1][variant % 2],
                                  seed=length + variant),
                compression=full() if variant < 2 else fastkv()))
    return requests


def test_a_history_under_random_kills(tmp_path):
    """Two groups of two ranks; a random worker is killed every second or so."""
    seed = int(os.environ.get("WINNOW_TEST_SEED", "1"))
    print(f"seed {seed} (WINNOW_TEST_SEED)")
    chance = random.Random(seed)
    with Service(MODELS / "stories260k", workers=4, dtype="float32",
                 options=["--tp", "2", "--threads", "1"]) as service:
        distinct = make_requests(service, chance)
        solo = [service.generate(request).ids for request in distinct]
        requests = [distinct[i % len(distinct)] for i in range(N_REQUESTS)]
        begin, kills = time.monotonic(), 0
        recorder = Recorder(service, requests, seed)
        while recorder.alive():
            time.sleep(chance.uniform(*PAUSE_S))
            assert time.monotonic() - begin < LIMIT_S, f"{len(recorder.left)} requests are left"
            if workers := service.workers():
                os.kill(chance.choice(workers), signal.SIGKILL)
                kills += 1
        took = time.monotonic() - begin
        service.wait_for_health(SERVING, FORMED_S)
        log = service.log_text()
    ends = history.count_ends(recorder.events)
    print(f"{N_REQUESTS} requests in {took:.1f} s, {kills} kills, ends {dict(ends)}")
    expected = {f"r{i}": solo[i % len(solo)] for i in range(N_REQUESTS)}
    wrong = history.check(recorder.events, expected)
    if wrong:
        kept = Path(tmp_path) / "history.json"
        kept.write_text(json.dumps(recorder.events))
        print(log)
    assert not wrong, wrong[:20]
    assert ends["done"] > N_REQUESTS / 2 and kills > 0 and sum(ends.values()) == N_REQUESTS
