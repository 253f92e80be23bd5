"""Coordinator and workers built with sanitizers, under load with cancels and kills: no report.

Builds that are not there are skipped; `tests/run.sh sanitized` makes them.  AddressSanitizer's build
also looks for leaks, in the coordinator and in those workers that end by themselves.
"""
import os
import random
import signal
import threading
import time

import pytest

from faults import ALL, FORMED_S
from seen import metrics
from service import MODELS, ROOT, SERVING, Service, api, fastkv, full, grpc, prompt, sampling

SUPPRESSIONS = ROOT / "tests" / "sanitizers"
N_REQUESTS = 1000 if ALL else 60
CLIENTS = 8
N_KILLS = 20 if ALL else 3
LIMIT_S = 3600 if ALL else 300
# A method of each sort: full, propagating, evicting while it decodes.
METHODS = [full(), fastkv(), api.Compression(method=api.METHOD_H2O),
           api.Compression(method=api.METHOD_ADAKV)]


def environment(reports, collectives):
    return {
        "WINNOW_COLLECTIVES": collectives,  # read by the workers; tcp has a thread of its own
        "OMP_WAIT_POLICY": "passive",  # four workers of two threads may have two cores
        "ASAN_OPTIONS": f"log_path={reports}/asan:exitcode=66:detect_leaks=1",
        "UBSAN_OPTIONS": f"log_path={reports}/ubsan:print_stacktrace=1:halt_on_error=0",
        "TSAN_OPTIONS": f"log_path={reports}/tsan:exitcode=66:"
                        f"suppressions={SUPPRESSIONS}/tsan.supp",
    }


class Load:
    """Clients that send requests of all kinds and leave some of them in the middle."""

    def __init__(self, service, ids):
        self.service, self.ids = service, ids
        self.left, self.ended = N_REQUESTS, []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._work, args=(i,), daemon=True)
                        for i in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def alive(self):
        return any(thread.is_alive() for thread in self.threads)

    def _work(self, number):
        chance = random.Random(number)
        while True:
            with self.lock:
                if self.left == 0:
                    return
                self.left -= 1
            self.ended.append(self._one(chance))

    def _one(self, chance):
        events = chance.randrange(1, 12) if chance.random() < 0.3 else None
        request = api.GenerateRequest(
            **prompt(ids=self.ids[:chance.randrange(30, len(self.ids))]),
            sampling=sampling(max_tokens=chance.randrange(1, 40), temperature=chance.choice([0, 1]),
                              top_p=0.9, seed=chance.randrange(1000)),
            compression=chance.choice(METHODS))
        call = self.service.inference.Generate(request, timeout=300)
        try:
            for number, _ in enumerate(call):
                if number == events:
                    call.cancel()
            return "OK"
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                self.service.wait_for_health(SERVING, FORMED_S)
            return error.code().name


@pytest.mark.parametrize("collectives", ["auto", "tcp"])
@pytest.mark.parametrize("kind", ["asan", "tsan"])
def test_nothing_is_reported_under_load(kind, collectives, tmp_path, needle_cases):
    build = ROOT / f"build-{kind}"
    if not (build / "bin" / "winnow-worker").exists():
        pytest.skip(f"there is no {build.name}/: tests/run.sh sanitized makes it")
    options = ["--tp", "2", "--http", "127.0.0.1:0", "--heartbeat-timeout-ms", "30000", "--threads", "2"]
    with Service(MODELS / "needle-tiny", workers=4, dtype="float32", options=options, build=build,
                 env=environment(tmp_path, collectives)) as service:
        load = Load(service, service.tokenize(needle_cases[512][0]["prompt"]))
        begin, kills = time.monotonic(), 0
        while load.alive():
            assert time.monotonic() - begin < LIMIT_S, f"{load.left} requests are left"
            time.sleep(0.2)
            assert metrics(service)
            due = N_REQUESTS * (kills + 1) / (N_KILLS + 1)
            if len(load.ended) > due and service.check() == SERVING:
                os.kill(random.Random(kills).choice(service.workers()), signal.SIGKILL)
                kills += 1
        service.wait_for_health(SERVING, FORMED_S)
        service.generate(**prompt(ids=[1, 2, 3]), sampling=sampling(max_tokens=3))
    ends = {end: load.ended.count(end) for end in set(load.ended)}
    print(f"{kind}: {N_REQUESTS} requests in {time.monotonic() - begin:.0f} s, {kills} kills, {ends}")
    reports = [path.read_text(errors="replace") for path in sorted(tmp_path.iterdir())]
    assert not reports, "\n".join(reports)[:20000]
    assert sum(ends.values()) == N_REQUESTS and ends["OK"] > N_REQUESTS / 5
    assert ends["CANCELLED"] > 0 and kills > 0
